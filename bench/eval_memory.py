"""Peak host memory of evaluating a real model on this CPU, beside transformers'.

    python bench/eval_memory.py --model SmolLM2-135M-Instruct.Q4_1.gguf

loglik scores every token of texts, generate continues prompts greedily; both in float32, as many
texts at once on either side. Each program runs in a process of its own, which loads the model, and
its largest resident memory is read at its end. Ours starts twice, since the first start compiles.
The sum of log-probabilities must agree, and the continuations, or there is no result. Needs
requirements-compare.txt. Left out: accelerators.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GIB = 2**30
TEXTS, TOKENS, AT_ONCE = 16, 512, 4  # of loglik
PROMPTS, PROMPT, NEW = 4, 64, 32  # of generate, all at once


def ours(path, work, rows):
    """What eval.py computes, from any model path."""
    from decoding.opened import open_model
    from decoding.records import Request, Sampling

    if work == "loglik":
        opened = open_model(path, batch=AT_ONCE * TOKENS // 128)
        requests = [Request(ids, list(range(len(ids) - 1)), [[i] for i in ids[1:]]) for ids in rows]
        return sum(float(logp.sum()) for _, logp, _, _ in opened.score(requests))
    opened = open_model(path, batch=PROMPTS)
    return [o.ids for o in sorted(opened.generate(rows, Sampling(max_new=NEW)))]


def theirs(folder, work, rows):
    """The same of transformers. folder: a Hugging Face folder."""
    import torch
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    ids_BT = torch.tensor(rows)
    with torch.inference_mode():
        if work == "generate":
            out = net.generate(
                ids_BT, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(ids_BT)
            )
            return out[:, PROMPT:].tolist()
        total = 0.0
        for part in ids_BT.split(AT_ONCE):
            logp = torch.log_softmax(net(part[:, :-1], use_cache=False).logits, dim=-1)
            total += float(logp.gather(2, part[:, 1:, None]).sum())
        return total


def alone(program, path, work, rows):
    """One program's work in this process -> a line of JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    start = time.perf_counter()
    result = {"ours": ours, "theirs": theirs}[program](path, work, json.loads(rows))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer = {"result": result, "s": time.perf_counter() - start, "peak": peak}
    print(json.dumps(answer), file=answers)


def real_rows(path, count, length):
    """The embedded dialogues' text in ids of the model's tokenizer, count rows of one length."""
    from text import tokenizer
    from text.dialogues import read_dialogues, turns

    tok, ids = tokenizer.load(path, roles=False), []
    for dialogue in read_dialogues(ROOT / "samples" / "dialogues.jsonl"):
        ids += tok.encode("\n\n".join(text for _, text, _ in turns(dialogue)))
    return [ids[i * length : (i + 1) * length] for i in range(count)]


def check(work, ours, theirs):
    """The two computed the same. A continuation may end at one of the model's own ends."""
    if work == "loglik":
        same = abs(ours / theirs - 1) < 1e-4
    else:
        same = all(a == b[: len(a)] for a, b in zip(ours, theirs, strict=True))
    if not same:
        raise SystemExit(f"{work}: ours gives {ours}, transformers {theirs}")


def compare(path):
    print("| work | program | peak GiB | s, loading included |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "checkpoint", "convert", path, f"{folder}/hf"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        starts = (
            ("mynah, first start", "ours", path),
            ("mynah, second start", "ours", path),
            ("transformers", "theirs", f"{folder}/hf"),
        )
        for work, shape in (("loglik", (TEXTS, TOKENS)), ("generate", (PROMPTS, PROMPT))):
            rows, results = json.dumps(real_rows(path, *shape)), []
            for label, name, model in starts:
                command = [sys.executable, __file__, "--alone", name, model, work, rows]
                env = os.environ | {"HOME": folder}  # where nothing is compiled yet
                out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout
                answer = json.loads(out)
                results.append(answer["result"])
                gib = f"{answer['peak'] / GIB:.2f}"
                print(f"| {work} | {label} | {gib} | {answer['s']:.1f} |", flush=True)
            check(work, results[0], results[-1])


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--model", metavar="PATH", help="any model path with its tokenizer")
    p.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.alone:
        alone(*args.alone)
    elif args.model:
        compare(args.model)
    else:
        p.error("--model is needed")


if __name__ == "__main__":
    main()
