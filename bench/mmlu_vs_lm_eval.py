"""MMLU: our scoring with and without sharing, and lm-eval with Hugging Face, on the same weights,
CPU and questions.

    python bench/mmlu_vs_lm_eval.py --data mmlu/ --tokenizer LLAMA \\
        --subjects high_school_psychology --lm-eval-python VENV/bin/python

The model is random: 12 layers, D 512, LLaMA's tokenizer, 2,048 positions, float32. lm-eval (pip
install lm-eval, torch's CPU build; best in an environment of its own, named with --lm-eval-python)
scores the same prompts through its own HFLM.loglikelihood, one forward for the four letters, as it
does on its own MMLU task. Rounds are interleaved and the best of each is taken; compilation and
loading are told apart. Left out: reading the files and making prompts, which take milliseconds.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

THEIRS = r"""
import json, sys, time
folder, batch, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
import lm_eval, logging, torch, transformers
logging.disable(logging.WARNING)
model = HFLM(
    pretrained=folder, device="cpu", dtype="float32", batch_size=batch, add_bos_token=True,
    max_length=2048,
)
prompts = json.load(open(folder + "/prompts.json"))
requests = [
    Instance(request_type="loglikelihood", doc={}, arguments=(p, f" {c}"), idx=i)
    for p in prompts for i, c in enumerate("ABCD")
]
versions = (
    f"lm-eval {lm_eval.__version__}, torch {torch.__version__} with {torch.get_num_threads()}"
    f" threads, transformers {transformers.__version__}"
)
print(json.dumps({"versions": versions}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    got = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    logp = [[got[4 * k + i][0] for i in range(4)] for k in range(len(prompts))]
    print(json.dumps({"seconds": seconds, "logp": logp}), flush=True)
"""


def flags():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="the original CSV folders")
    parser.add_argument("--tokenizer", required=True, help="LLaMA's tokenizer.model, or its folder")
    parser.add_argument("--subjects", nargs="+", default=["high_school_psychology"])
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=None, help="questions of each subject")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--rounds", type=int, default=2, help="timed rounds, after one that compiles"
    )
    parser.add_argument(
        "--lm-eval-python",
        help="an interpreter with lm-eval, torch and transformers; without it ours alone",
    )
    parser.add_argument("--lm-eval-batch", type=int, default=8)
    return parser


def read_prompts(args):
    """The subjects' questions as 5-shot prompts."""
    from tasks import mmlu

    texts = []
    for subject in args.subjects:
        shots = mmlu.read_questions(args.data, "dev", subject)[:5]
        questions = mmlu.read_questions(args.data, args.split, subject)[: args.limit]
        texts += [mmlu.prompt_of(subject, shots, question) for question in questions]
    return texts


def make_requests(texts, tok, positions):
    """One request a prompt: the four letters after it."""
    from decoding.records import Request

    letters = [tok.encode(f"Answer: {c}")[-1] for c in "ABCD"]
    requests = []
    for text in texts:
        ids = [tok.bos] + tok.encode(text)
        if len(ids) > positions:
            raise SystemExit(
                f"a prompt has {len(ids)} tokens, more than {positions}: choose other --subjects"
            )
        requests.append(Request(ids, [len(ids) - 1], [letters]))
    return requests


def write_model(folder, config, weights, tok, texts):
    """The same weights for Hugging Face, and the prompts beside them."""
    import numpy as np

    import model
    from checkpoint import export
    from checkpoint.mapping import order

    table = model.weight_table(config)
    rows = (
        (
            name,
            layer,
            np.asarray(weights[name] if layer is None else weights[name][layer])[
                : config.V if table[name].dims[0] == "V" else None
            ],
        )
        for name, layer in order(config)
    )
    export.write_hf(folder, config, rows, tok)
    pathlib.Path(folder, "prompts.json").write_text(json.dumps(texts), encoding="utf-8")


def start_lm_eval(folder, args):
    """lm-eval in a process of its own, loaded and waiting for a line."""
    command = [args.lm_eval_python, "-c", THEIRS, folder, str(args.lm_eval_batch), str(args.rounds)]
    theirs = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = next(line for line in theirs.stdout if line.startswith("{"))
    print(json.loads(first)["versions"], flush=True)
    return theirs


def ask_lm_eval(theirs):
    theirs.stdin.write("go\n")
    theirs.stdin.flush()
    return json.loads(theirs.stdout.readline())


def run_rounds(ways, count):
    """name -> what each round gave; the ways take turns, the first round compiles."""
    rounds = {name: [] for name in ways}
    for _ in range(1 + count):
        for name, way in ways.items():
            rounds[name].append(way())
            print(f"{name}: {rounds[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    return rounds


def print_results(rounds, prompt_tokens):
    """Seconds, what sharing gains, and where the answers differ."""
    import numpy as np

    n = len(prompt_tokens)
    best = {name: min(r["seconds"] for r in results[1:]) for name, results in rounds.items()}
    print(f"{'':24}{'seconds':>9}{'first':>9}{'questions/s':>13}{'tokens':>9}")
    for name, (first, *_) in rounds.items():
        tokens = first.get("tokens", sum(prompt_tokens))
        print(f"{name:24}{best[name]:9.2f}{first['seconds']:9.2f}{n / best[name]:13.1f}{tokens:9,}")
    shared, alone = (rounds[name][0] for name in ("ours, shared", "ours, not shared"))
    allowed = alone["tokens"] / shared["tokens"]
    gained = best["ours, not shared"] / best["ours, shared"]
    print(
        f"sharing: {gained:.2f} times as fast, {gained / allowed:.0%} of the {allowed:.2f} that the"
        " tokens saved allow"
    )
    answers = {name: np.argmax(results[0]["logp"], axis=1) for name, results in rounds.items()}
    for name in list(rounds)[1:]:
        margin = np.diff(np.sort(np.asarray(rounds[name][0]["logp"]), axis=1))[:, -1]
        differ = answers[name] != answers["ours, shared"]
        widest = margin[differ].max(initial=0.0)
        print(
            f'answers of "{name}" that differ from the shared: {differ.sum()}'
            f", the letters at most {widest:.1e} nats apart there"
        )
    theirs = best.get("lm-eval, Hugging Face")
    if theirs:
        print(
            f"faster than lm-eval: {theirs / best['ours, shared']:.2f} times shared,"
            f" {theirs / best['ours, not shared']:.2f} times not shared"
        )


def main():
    args = flags().parse_args()

    import jax
    import numpy as np

    import model
    import sharding
    from decoding.likelihood import Scorer
    from text import tokenizer

    tok = tokenizer.load(args.tokenizer, roles=False)
    config = model.llama(tok.base_size, 512, 12, 8, 1376, 2048, 1e-5)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    layout = model.make_layout(config, 1, 1, fsdp=False)
    weights = model.initialise(config, mesh, layout, 0)
    texts = read_prompts(args)
    requests = make_requests(texts, tok, config.P)
    scorer = Scorer(config, mesh, layout)

    def ours(share):
        scorer.computed, logp, start = 0, np.zeros((len(requests), 4)), time.perf_counter()
        for k, scores, _, _ in scorer.score(weights, requests, args.batch, share):
            logp[k] = scores[0]
        return {"seconds": time.perf_counter() - start, "logp": logp, "tokens": scorer.computed}

    ways = {"ours, shared": lambda: ours(True), "ours, not shared": lambda: ours(False)}
    with tempfile.TemporaryDirectory() as folder:
        theirs = None
        if args.lm_eval_python:
            write_model(f"{folder}/hf", config, weights, tok, texts)
            theirs = start_lm_eval(f"{folder}/hf", args)
            ways["lm-eval, Hugging Face"] = lambda: ask_lm_eval(theirs)
        rounds = run_rounds(ways, args.rounds)
        if theirs:
            theirs.stdin.close()
            theirs.wait()
    tokens = [len(request.ids) for request in requests]
    print(
        f"{len(texts)} questions of {', '.join(args.subjects)} ({args.split}), 5 shots,"
        f" {np.mean(tokens):.0f} tokens a prompt; jax {jax.__version__}"
    )
    print_results(rounds, tokens)


if __name__ == "__main__":
    main()
