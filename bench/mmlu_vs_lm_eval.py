"""MMLU: our scoring with and without sharing, and lm-eval with Hugging Face, on the same weights, CPU and questions.

    python bench/mmlu_vs_lm_eval.py --data mmlu/ --tokenizer LLAMA --subjects high_school_psychology --lm-eval-python VENV/bin/python

The model is random: 12 layers, D 512, LLaMA's tokenizer, 2,048 positions, float32. lm-eval (pip install lm-eval, torch's CPU build; best in an environment of its own, named with
--lm-eval-python) scores the same prompts through its own HFLM.loglikelihood, one forward for the four letters, as it does on its own MMLU task. Rounds are interleaved and the
best of each is taken; compilation and loading are told apart. Left out: reading the files and making prompts, which take milliseconds.
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
model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch, add_bos_token=True, max_length=2048)
prompts = json.load(open(folder + "/prompts.json"))
requests = [Instance(request_type="loglikelihood", doc={}, arguments=(p, f" {c}"), idx=i) for p in prompts for i, c in enumerate("ABCD")]
print(json.dumps({"versions": f"lm-eval {lm_eval.__version__}, torch {torch.__version__} with {torch.get_num_threads()} threads, transformers {transformers.__version__}"}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    got = model.loglikelihood(requests, disable_tqdm=True)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "logp": [[got[4 * k + i][0] for i in range(4)] for k in range(len(prompts))]}), flush=True)
"""


def main():
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
        help="an interpreter with lm-eval, torch and transformers; without it only our two are compared",
    )
    parser.add_argument("--lm-eval-batch", type=int, default=8)
    args = parser.parse_args()

    import jax
    import numpy as np

    import model
    import sharding
    from checkpoint import weights as checkpoint
    from decoding.likelihood import Scorer
    from decoding.records import Request
    from tasks import prompts
    from text import tokenizer

    tok = tokenizer.load(args.tokenizer, roles=False)
    config = model.llama(tok.base_size, 512, 12, 8, 1376, 2048, 1e-5)
    mesh, layout = (
        sharding.make_mesh(1, 1, jax.devices()[:1]),
        model.make_layout(config, 1, 1, fsdp=False),
    )
    weights = model.initialise(config, mesh, layout, 0)
    texts, requests = [], []
    for subject in args.subjects:
        shots = prompts.mmlu_file(args.data, "dev", subject)[:5]
        texts += [
            prompts.mmlu_prompt(subject, shots, q)
            for q in prompts.mmlu_file(args.data, args.split, subject)[: args.limit]
        ]
    letters = [tok.encode(f"Answer: {c}")[-1] for c in "ABCD"]
    for text in texts:
        ids = [tok.bos] + tok.encode(text)
        if len(ids) > config.P:
            raise SystemExit(
                f"a prompt has {len(ids)} tokens, more than {config.P}: choose other --subjects"
            )
        requests.append(Request(ids, [len(ids) - 1], [letters]))
    scorer = Scorer(config, mesh, layout)

    def ours(share):
        scorer.computed, logp, start = 0, np.zeros((len(requests), 4)), time.perf_counter()
        for k, found, _, _ in scorer.score(weights, requests, args.batch, share):
            logp[k] = found[0]
        return {"seconds": time.perf_counter() - start, "logp": logp, "tokens": scorer.computed}

    with tempfile.TemporaryDirectory() as folder:
        theirs, ways = (
            None,
            {"ours, shared": lambda: ours(True), "ours, not shared": lambda: ours(False)},
        )
        if args.lm_eval_python:
            rows = (
                (
                    n,
                    i,
                    np.asarray(weights[n] if i is None else weights[n][i])[
                        : config.V if model.weight_table(config)[n].dims[0] == "V" else None
                    ],
                )
                for n, i in checkpoint.order(config)
            )
            checkpoint.write_hf(f"{folder}/hf", config, rows, tok)
            pathlib.Path(folder, "hf", "prompts.json").write_text(
                json.dumps(texts), encoding="utf-8"
            )
            theirs = subprocess.Popen(
                [
                    args.lm_eval_python,
                    "-c",
                    THEIRS,
                    f"{folder}/hf",
                    str(args.lm_eval_batch),
                    str(args.rounds),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            print(
                json.loads(next(line for line in theirs.stdout if line.startswith("{")))[
                    "versions"
                ],
                flush=True,
            )

            def lm_eval():
                theirs.stdin.write("go\n")
                theirs.stdin.flush()
                return json.loads(theirs.stdout.readline())

            ways["lm-eval, Hugging Face"] = lm_eval
        rounds = {name: [] for name in ways}
        for _ in range(1 + args.rounds):
            for name, way in ways.items():
                rounds[name].append(way())
                print(f"{name}: {rounds[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        if theirs:
            theirs.stdin.close()
            theirs.wait()
    best = {name: min(r["seconds"] for r in found[1:]) for name, found in rounds.items()}
    print(
        f"{len(texts)} questions of {', '.join(args.subjects)} ({args.split}), 5 shots, {np.mean([len(r.ids) for r in requests]):.0f} tokens a prompt; jax {jax.__version__}"
    )
    print(f"{'':24}{'seconds':>9}{'first':>9}{'questions/s':>13}{'tokens':>9}")
    for name, found in rounds.items():
        print(
            f"{name:24}{best[name]:9.2f}{found[0]['seconds']:9.2f}{len(texts) / best[name]:13.1f}{found[0].get('tokens', sum(len(r.ids) for r in requests)):9,}"
        )
    shared, alone = (rounds[n][0] for n in ("ours, shared", "ours, not shared"))
    allowed, got = (
        alone["tokens"] / shared["tokens"],
        best["ours, not shared"] / best["ours, shared"],
    )
    print(
        f"sharing: {got:.2f} times as fast, {got / allowed:.0%} of the {allowed:.2f} that the tokens saved allow"
    )
    answers = {n: np.argmax(r[0]["logp"], axis=1) for n, r in rounds.items()}
    for name in list(ways)[1:]:
        gap = np.diff(np.sort(np.asarray(rounds[name][0]["logp"]), axis=1))[:, -1]
        differ = answers[name] != answers["ours, shared"]
        print(
            f'answers of "{name}" that differ from the shared: {differ.sum()}'
            + (
                f", the letters at most {gap[differ].max():.1e} nats apart there"
                if differ.any()
                else ""
            )
        )
    if theirs:
        print(
            f"faster than lm-eval: {best['lm-eval, Hugging Face'] / best['ours, shared']:.2f} times shared, {best['lm-eval, Hugging Face'] / best['ours, not shared']:.2f} times not shared"
        )


if __name__ == "__main__":
    main()
