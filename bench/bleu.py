"""The nearest query of each of N queries by BLEU, and prompts against N, beside brute-force
sacrebleu on a sample of pairs.

    python bench/bleu.py --data DATA --n 50000 --prompts DATA/eval_prompts/koala_test_set.jsonl

DATA holds the public files named in the README. The N queries are the first human turns of the real
ShareGPT, HC3 and Alpaca files; beyond their number they are drawn again (seeded, lengths as they
come) and perturbed so that no two are equal: a word in four is replaced by a word of another real
query, one in sixteen is dropped, and what is there already is drawn again. Both cores for ours; one
process of sacrebleu times two is what it is compared with. Needs requirements-dev.txt.
"""

import argparse
import json
import pathlib
import random
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from host import terminal
from study.curate import bleu
from text import dialogues

FILES = (
    "dialogues/sharegpt_en.json.gz",
    "hc3/medicine.jsonl.gz",
    "hc3/open_qa.jsonl.gz",
    "hc3/wiki_csai.jsonl.gz",
    "alpaca/alpaca_data.3000.json.gz",
    "alpaca/alpaca_gpt4_data.800.json.gz",
)


def queries_of(folder, n, seed=0):
    """n queries: the real ones, each once, then perturbed draws of them."""
    rng = random.Random(seed)
    real = list(
        dict.fromkeys(
            next((t["value"] for t in d["conversations"] if t["from"] == "human"), "")
            for f in FILES
            for d in dialogues.read_dialogues(pathlib.Path(folder) / f)
        )
    )
    words, out = [w for q in real for w in q.split()], dict.fromkeys(real[:n])
    while len(out) < n:
        out[
            " ".join(
                rng.choice(words) if rng.random() < 1 / 4 else w
                for w in rng.choice(real).split()
                if rng.random() >= 1 / 16
            )
        ] = None
    out = list(out)
    rng.shuffle(out)
    return out, len(real)


def brute_force(hypotheses, references, seconds, seed=1):
    """Seconds a pair of sacrebleu's sentence_bleu on random pairs."""
    import sacrebleu

    rng, count, started = random.Random(seed), 0, time.process_time()
    while time.process_time() - started < seconds:
        for _ in range(20):
            sacrebleu.sentence_bleu(rng.choice(hypotheses), [rng.choice(references)])
        count += 20
    return (time.process_time() - started) / count, count


def measure(name, hypotheses, references, seconds):
    """Run ours, sample sacrebleu, print both."""
    other = references if references is not None else hypotheses
    pairs = len(hypotheses) * len(other)
    bar = terminal.Progress(name, pairs, "pairs")
    wall, cpu = time.monotonic(), time.process_time()
    scores, index = bleu.nearest(hypotheses, references, progress=bar)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    bar.close()
    each, count = brute_force(hypotheses, other, seconds)
    for i in random.Random(2).sample(
        range(len(hypotheses)), 20
    ):  # the scores are of the pairs named
        assert scores[i] == bleu.sentence_bleu(hypotheses[i], other[index[i]])
    lengths = np.array([len(bleu.tokenize(q)) for q in hypotheses])
    print(
        f"{name}: {len(hypotheses):,} x {len(other):,}; tokens a hypothesis: mean"
        f" {lengths.mean():.0f}, quartiles and 99 %"
        f" {np.percentile(lengths, [25, 50, 75, 99]).round().astype(int).tolist()}, longest"
        f" {lengths.max():,}"
    )
    print(
        f"  ours {wall:.1f} s on two cores ({cpu:.1f} s of processor time), {cpu / pairs * 1e9:.1f}"
        f" ns of processor time a pair; mean of the maximum {scores.mean():.2f} %"
    )
    print(
        f"  sacrebleu {each * 1e6:.0f} us of processor time a pair ({count:,} random pairs),"
        f" extrapolated {each * pairs / 3600:,.1f} processor hours: {each * pairs / cpu:,.0f} times"
        " as long on equal cores"
    )
    print(
        "  memory at its highest"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
        flush=True,
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder of the public files named in the README",
    )
    p.add_argument(
        "--n", type=int, default=10_000, metavar="N", help="queries [default %(default)s]"
    )
    p.add_argument(
        "--prompts",
        metavar="FILE",
        nargs="*",
        default=[],
        help="evaluation prompts (JSON lines) to hold against the queries; the first 255 are used",
    )
    p.add_argument(
        "--seconds",
        type=float,
        default=10,
        metavar="S",
        help="of sacrebleu on random pairs [default %(default)s]",
    )
    args = p.parse_args()
    queries, real = queries_of(args.data, args.n)
    print(
        f"{len(queries):,} queries, {min(real, args.n):,} of them real, the others perturbed draws;"
        f" {len(set(queries)):,} different"
    )
    if args.prompts:
        rows = [json.loads(line) for path in args.prompts for line in open(path, encoding="utf-8")]
        prompts = [
            r.get("prompt")
            or "\n\n".join(filter(None, (r["instruction"], r["instances"][0]["input"])))
            for r in rows
        ]
        measure("leakage", prompts[:255], queries, args.seconds)
    measure("diversity", queries, None, args.seconds)


if __name__ == "__main__":
    main()
