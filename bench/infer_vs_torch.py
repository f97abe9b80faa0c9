"""Inference of a real model on this CPU against PyTorch's, each in a process of its own.

    python bench/infer_vs_torch.py --model SmolLM2-135M-Instruct.Q4_1.gguf --mmlu mmlu/
    python bench/infer_vs_torch.py --model MODEL --cases decode_1 prefill --rounds 5

Both hold the weights of MODEL (any model path) in float32. Theirs is transformers with sdpa.

decode_1, decode_16  that many prompts of 64 tokens, continued greedily, reading them included: the
                     loop of `eval.py generate` and transformers' `generate`
prefill              one prompt read up to its first new token: nobody makes all logits
loglik               four texts, every token's log-probability: both make all logits
mmlu                 5-shot questions: ours read what a subject's prompts share once, theirs read
                     each prompt whole, the logits of its last place alone

First both must say the same, or nothing is timed: the ids, but for ties, the log-probabilities and
the letters. Rounds are interleaved, and the ratio is the median of the rounds' ratios, since a
shared machine drifts. Theirs answer the first --theirs questions of a subject, since they take each
the same time. Needs requirements-compare.txt. Left out: loading, tokenizing.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PROMPT, TEXTS, TEXT = 64, 4, 512  # tokens of decode's prompts; loglik's texts, their tokens
CASES = ("decode_1", "decode_16", "prefill", "loglik", "mmlu")
UNIT = {"mmlu": "questions/s"}
AGREE = 1e-3  # nats, of a text's mean log-probability and of the best two at a tie


# --- the two programs: case -> (what it says, how many tokens or questions that is) ---


def ours(path, jobs):
    """What eval.py runs, on any model path."""
    from decoding.opened import open_model
    from decoding.records import Request, Sampling

    opened = open_model(path)

    def generate(prompts, new):
        decoder, weights = opened.decoder()
        decoder.prefixes.kept = None  # else a prompt's beginning is there from the round before
        how = Sampling(max_new=new)
        outputs = sorted(decoder.generate(weights, prompts, how, opened.tok, len(prompts)))
        return [o.ids for o in outputs], min(o.margin for o in outputs)

    def score(requests):
        opened.scorer.prefixes.kept = None
        scores = {k: logp for k, logp, _, _ in opened.score(requests)}
        return [scores[k] for k in range(len(requests))]

    def run(case):
        job = jobs[case]
        if case == "mmlu":
            requests = [Request(ids, [len(ids) - 1], [job["letters"]]) for ids in job["prompts"]]
            opened.scorer.computed = 0
            logp = [logp[0].tolist() for logp in score(requests)]
            return (logp, opened.scorer.computed / len(requests)), len(requests)
        if case == "loglik":
            texts = job["texts"]
            requests = [Request(t, list(range(len(t) - 1)), [[i] for i in t[1:]]) for t in texts]
            return [float(logp.mean()) for logp in score(requests)], sum(map(len, texts))
        said = generate(job["prompts"], job["new"])
        return said, sum(map(len, job["prompts"] if case == "prefill" else said[0]))

    return run


def theirs(folder, jobs):
    """The same of transformers. folder: a Hugging Face folder."""
    import torch
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    net.generation_config.eos_token_id = None  # both say as many tokens

    def mmlu(job):
        last = [
            net(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
            for ids in job["theirs"]
        ]
        tokens = sum(map(len, job["theirs"])) / len(last)
        logp = [torch.log_softmax(a, 0)[job["letters"]].tolist() for a in last]
        return (logp, tokens), len(last)

    def loglik(job):
        ids = torch.tensor(job["texts"])
        logp = torch.log_softmax(net(ids[:, :-1], use_cache=False).logits, dim=-1)
        logp = logp.gather(2, ids[:, 1:, None])
        return logp.mean(dim=(1, 2)).tolist(), ids.numel()

    def generate(job):
        ids = torch.tensor(job["prompts"])
        out = net.generate(
            ids, max_new_tokens=job["new"], do_sample=False, attention_mask=torch.ones_like(ids)
        )
        new = out[:, ids.shape[1] :]
        return (new.tolist(), None), new.numel() if job["new"] > 1 else ids.numel()

    how = {"mmlu": mmlu, "loglik": loglik}

    def run(case):
        with torch.inference_mode():
            return how.get(case, generate)(jobs[case])

    return run


def serve(program, path, jobs):
    """Answer each case on stdin by running it: a line of JSON on stdout."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    jobs = json.loads(pathlib.Path(jobs).read_text(encoding="utf-8"))
    run = {"ours": ours, "theirs": theirs}[program](path, jobs)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        said, count = run(line.strip())
        answer = {"said": said, "count": count, "s": time.perf_counter() - start}
        print(json.dumps(answer | {"cpu_s": time.process_time() - cpu}), file=answers)


class Program:
    """One of the programs, as a process that runs a case when it is asked."""

    def __init__(self, name, path, jobs):
        command = [sys.executable, __file__, "--serve", name, path, jobs]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.name, self.process = name, subprocess.Popen(command, text=True, **pipes)

    def run(self, case):
        assert self.process.stdin and self.process.stdout
        print(case, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: its error is above")
        return json.loads(line)

    def close(self):
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# --- the comparison ---


def text_ids(tok, count):
    """The first ids of the embedded dialogues."""
    from text.dialogues import read_dialogues, turns

    ids = []
    for dialogue in read_dialogues(ROOT / "samples" / "dialogues.jsonl"):
        ids += tok.encode("\n\n".join(text for _, text, _ in turns(dialogue)))
        if len(ids) >= count:
            return ids[:count]
    raise SystemExit(f"the embedded dialogues have {len(ids)} ids of {count}: ask for fewer")


def make_jobs(args):
    """What each case reads, in ids of the model's tokenizer."""
    from decoding.opened import open_model
    from tasks import mmlu

    opened, jobs = open_model(args.model), {}
    for case in args.cases:
        if case == "mmlu":
            options = mmlu.Options(args.mmlu, subjects=args.subjects, limit=args.questions)
            task = mmlu.Task(options, opened)
            questions = list(task.questions.values())
            letters = [i for (i,) in mmlu.letter_ids(opened, task.prompt(questions[0], 0))]

            def ids(q, task=task):
                build = functools.partial(task.prompt, q)
                return opened.truncate_shots(build, task.options.shots, opened.config.P)[0]

            few = [q for q in questions if int(q.id.split("/")[1]) < args.theirs]
            prompts, theirs = [ids(q) for q in questions], [ids(q) for q in few]
            jobs[case] = {"prompts": prompts, "theirs": theirs, "letters": letters}
        elif case == "loglik":
            ids = text_ids(opened.tok, TEXTS * TEXT)
            jobs[case] = {"texts": [ids[i * TEXT : (i + 1) * TEXT] for i in range(TEXTS)]}
        elif case == "prefill":
            jobs[case] = {"prompts": [text_ids(opened.tok, args.prefill)], "new": 1}
        else:
            n = int(case.removeprefix("decode_"))
            ids = text_ids(opened.tok, n * PROMPT)
            prompts = [ids[i * PROMPT : (i + 1) * PROMPT] for i in range(n)]
            jobs[case] = {"prompts": prompts, "new": args.new}
    return jobs


def check(case, job, ours, theirs):
    """A line on how far the two agree; SystemExit where they do not."""
    if case == "mmlu":
        (ours, few), (theirs, many) = ours, theirs
        of = {tuple(ids): logp for ids, logp in zip(job["prompts"], ours, strict=True)}
        pairs = [(of[tuple(ids)], t) for ids, t in zip(job["theirs"], theirs, strict=True)]
        apart = max(abs(a - b) for o, t in pairs for a, b in zip(o, t, strict=True))
        differ = sum(o.index(max(o)) != t.index(max(t)) for o, t in pairs)
        good, line = apart < AGREE, f"{apart:.1e} nats apart, {differ} of {len(pairs)} letters"
        line += f"; {few:.0f} and {many:.0f} tokens a question"
    elif case == "loglik":
        apart = max(abs(o - t) for o, t in zip(ours, theirs, strict=True))
        good, line = apart < AGREE, f"{apart:.1e} nats apart"
    else:
        (ours, margin), (theirs, _) = ours, theirs
        differ = sum(o != t for o, t in zip(ours, theirs, strict=True))
        good = not differ or margin < AGREE
        line = f"{differ} of {len(ours)} texts differ, the best two {margin:.1e} apart at the least"
    if not good:
        raise SystemExit(f"{case}: not the same program: {line}; {ours} and {theirs}")
    return line


def compare(args):
    """Time the programs beside one another and print the table."""
    with tempfile.TemporaryDirectory() as tmp, contextlib.ExitStack() as running:
        jobs, file = make_jobs(args), f"{tmp}/jobs.json"
        pathlib.Path(file).write_text(json.dumps(jobs), encoding="utf-8")
        command = [sys.executable, "-m", "checkpoint", "convert", args.model, f"{tmp}/hf"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        programs = [Program("ours", args.model, file), Program("theirs", f"{tmp}/hf", file)]
        for p in programs:
            running.callback(p.close)
        print(f"{args.model}, float32, {args.rounds} rounds")
        print("| case | ours | theirs | ratio | CPU s, ours and theirs | agreement |")
        print("|---|---|---|---|---|---|", flush=True)
        for case in args.cases:
            line = check(case, jobs[case], *(p.run(case)["said"] for p in programs))
            timed = [[p.run(case) for p in programs] for _ in range(args.rounds)]
            rates = [[a["count"] / a["s"] for a in turn] for turn in timed]
            ratio = statistics.median(o / t for o, t in rates)
            o, t = (f"{statistics.median(c):.1f}" for c in zip(*rates, strict=True))
            cpu = zip(*([a["cpu_s"] for a in turn] for turn in timed), strict=True)
            cpu = " and ".join(f"{statistics.median(c):.2f}" for c in cpu)
            unit = UNIT.get(case, "tokens/s")
            print(f"| {case} | {o} {unit} | {t} | {ratio:.2f} | {cpu} | {line} |", flush=True)


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", metavar="PATH", required="--serve" not in sys.argv)
    p.add_argument("--mmlu", metavar="DIR", help="the original CSV folders; needed for mmlu")
    subjects = ["high_school_psychology", "astronomy"]
    p.add_argument("--subjects", nargs="+", default=subjects, help="[default: %(default)s]")
    p.add_argument("--questions", type=int, default=100, help="a subject [default: %(default)s]")
    p.add_argument("--theirs", type=int, default=8, help="of them [default: %(default)s]")
    p.add_argument("--cases", nargs="+", choices=CASES, help="[default: all that can be]")
    p.add_argument("--new", type=int, default=64, help="of decode [default: %(default)s]")
    p.add_argument("--prefill", type=int, default=1024, metavar="T", help="[default: %(default)s]")
    p.add_argument("--rounds", type=int, default=3, help="timed ones [default: %(default)s]")
    p.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    args.cases = args.cases or [c for c in CASES if c != "mmlu" or args.mmlu]
    if args.serve:
        serve(*args.serve)
    elif "mmlu" in args.cases and not args.mmlu:
        p.error("mmlu needs --mmlu DIR")
    else:
        compare(args)


if __name__ == "__main__":
    main()
