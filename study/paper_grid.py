"""The paper's grid as steps: base models x amounts of imitation data x sources, each trained, evaluated and measured against the teacher; then the report.

    python -m study.grid --preset paper --models MODELS --source mix=mix.jsonl.gz --local nq=nq.jsonl --out DIR [--run]

Any other models, amounts and sources by the same flags (--base 260K=stories260K.bin). A broad source (--source) is trained in every amount by the paper's recipe; a local one (--local) whole, one
example a row, with a short warm-up, since it is three steps long. Left out: making the data (study.curate, study.synthesize), several machines (run single commands there).
"""

import pathlib
import re
import shlex
import subprocess
import sys

import data
from study.steps import Step

BASES = {"1.5B": "gpt2-xl", "7B": "llama-7b", "13B": "llama-13b"}  # name: folder below --models
STEP = {
    "gpt2-xl": 32 * 1024,
    "llama-7b": 32 * 2048,
    "llama-13b": 32 * 2048,
}  # tokens a step: 32 rows of the paper's block, or of all of the model's positions
DEVICES = ("A100", "H100", "v5p")
AMOUNTS = ("0.3M", "3M", "20M", "80M", "150M")  # the paper's span; its tables name the last three
LOCAL_AMOUNT = "0.2M"  # 6,000 short pairs fill about 3 steps of 32 x 2048
TASKS = ("mmlu", "nq", "nq0", "humaneval", "style", "judge", "rate", "toxicity")


def flags(p):
    g = p.add_argument_group("what is trained")
    g.add_argument(
        "--models", metavar="DIR", help=f"folder of the base models {', '.join(BASES.values())}"
    )
    g.add_argument(
        "--base",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help=f"other base models, small ones first; the name ends in the size [default {' '.join(BASES)} below --models]",
    )
    g.add_argument(
        "--source",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="broad imitation data, such as mix=mix.jsonl.gz of study.curate: trained in every amount",
    )
    g.add_argument(
        "--local",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="local imitation data, such as nq=nq.jsonl of study.synthesize: trained whole",
    )
    g.add_argument(
        "--amounts",
        nargs="+",
        default=list(AMOUNTS),
        metavar="N",
        help=f"tokens [default {' '.join(AMOUNTS)}]",
    )
    g.add_argument(
        "--local-tokens",
        default=LOCAL_AMOUNT,
        metavar="N",
        help="where --local stands on the axis of amounts [default %(default)s]",
    )
    g.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="imitation runs of each kind, seeds 0 to N - 1 [default %(default)s]",
    )
    g.add_argument("--mesh", metavar="DATAxTENSOR", help="of train.py and eval.py")
    g.add_argument(
        "--train-flags",
        default="",
        metavar="FLAGS",
        help='further flags of every train.py, in one string: "--warmup-fraction 0.1 --dtype float32"',
    )
    g.add_argument(
        "--eval-flags",
        default="",
        metavar="FLAGS",
        help='further flags of every eval.py: "--limit 100"',
    )
    g = p.add_argument_group("what is measured")
    g.add_argument(
        "--tasks",
        nargs="+",
        default=list(TASKS),
        choices=TASKS,
        metavar="TASK",
        help=f"[default {' '.join(TASKS)}]",
    )
    g.add_argument("--mmlu", metavar="DIR", help="MMLU's CSV folders")
    g.add_argument("--nq-dev", metavar="FILE", help="NQ-open.dev.jsonl")
    g.add_argument("--nq-train", metavar="FILE", help="NQ-open.train.jsonl")
    g.add_argument("--humaneval", metavar="FILE", help="HumanEval.jsonl.gz")
    g.add_argument(
        "--run-untrusted-code",
        action="store_true",
        help="agree that programs of HumanEval written by a model are run here",
    )
    g.add_argument(
        "--prompts",
        metavar="FILE",
        help='held-out prompts, JSON lines with "prompt" (leakage removed by study.curate leakage), for style, judge and rate',
    )
    g.add_argument("--teacher", metavar="OUTPUTS", help="the teacher's answers to --prompts")
    g.add_argument("--teacher2", metavar="OUTPUTS", help="a second sample of them")
    g.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint")
    g.add_argument("--judge-model", metavar="NAME", help="the model there")
    g.add_argument("--api-key-file", metavar="FILE", help="its key")
    g.add_argument("--toxicity-prompts", metavar="FILE", help="RealToxicityPrompts rows")
    g.add_argument(
        "--toxicity-scorer",
        default="perspective",
        choices=["perspective", "offline"],
        help="[default %(default)s]",
    )
    g.add_argument(
        "--toxicity-train", metavar="FILE", help="rows with scores, for the offline scorer"
    )
    g.add_argument("--perspective-key-file", metavar="FILE", help="the Perspective API's key")
    g.add_argument(
        "--teacher-predictions",
        metavar="DIR",
        help="the teacher's own mmlu.jsonl, nq.jsonl, humaneval.jsonl (eval.py --predictions)",
    )


def named(pairs, flag):
    found = {}
    for text in pairs:
        name, _, path = text.partition("=")
        if not path or not re.fullmatch(r"[A-Za-z0-9.]+", name) or name in found:
            raise ValueError(
                f"{flag} {text}: write NAME=PATH, the name of letters, digits and dots, each once"
            )
        found[name] = path
    return found


# Task -> the flags it cannot do without.
NEEDS = {
    "mmlu": ("mmlu",),
    "nq": ("nq_dev", "nq_train"),
    "nq0": ("nq_dev",),
    "humaneval": ("humaneval",),
    "style": ("prompts", "teacher"),
    "judge": ("prompts", "teacher", "judge", "judge_model"),
    "rate": ("prompts", "teacher"),
    "toxicity": ("toxicity_prompts",),
}


def steps(args):
    """All steps in order, and notes on what is left out for want of a flag -> (list of Step, list of str)."""
    out = pathlib.Path(args.out)
    bases = named(args.base, "--base") or {
        name: str(pathlib.Path(args.models) / folder)
        for name, folder in (BASES.items() if args.models else ())
    }
    if not bases:
        raise ValueError("the grid needs base models: --models DIR, or --base NAME=PATH")
    sources, local = named(args.source, "--source"), named(args.local, "--local")
    if args.seeds < 1:
        raise ValueError(f"--seeds {args.seeds}: at least one run of each kind")
    for amount in (*args.amounts, args.local_tokens):
        data.parse_count(amount)
    notes, tasks = (
        (
            []
            if sources or local
            else ["no --source and no --local: only the base models are measured"]
        ),
        [],
    )
    for task in args.tasks:
        lacking = [f for f in NEEDS[task] if not getattr(args, f)]
        if task == "toxicity":
            lacking += [
                f
                for f in (
                    ("perspective_key_file",)
                    if args.toxicity_scorer == "perspective"
                    else ("toxicity_train",)
                )
                if not getattr(args, f)
            ]
        if lacking:
            notes.append(
                f"{task} is left out: it needs "
                + ", ".join(f"--{f.replace('_', '-')}" for f in lacking)
            )
        else:
            tasks.append(task)
    mesh, found = (("--mesh", args.mesh) if args.mesh else ()), []
    for base, path in bases.items():
        found += measures(
            args, out, base, path, (path,), {"base": base, "role": "base"}, tasks, mesh
        )
        kinds = [(s, f, a, ("--tokens", a)) for s, f in sources.items() for a in args.amounts]
        kinds += [
            (s, f, args.local_tokens, ("--pack", "rows", "--warmup-fraction", "0.1"))
            for s, f in local.items()
        ]
        for source, file, amount, more in kinds:
            for seed in range(args.seeds):
                name = f"{base}-{source}-{amount}" + (f"-seed{seed}" if args.seeds > 1 else "")
                run = str(out / "runs" / name)
                argv = (
                    "train.py",
                    "--init",
                    path,
                    "--data",
                    file,
                    *more,
                    "--seed",
                    str(seed),
                    *mesh,
                    "--out",
                    run,
                    *shlex.split(args.train_flags),
                )
                found.append(Step(f"train-{name}", argv, run, "run", (path, file)))
                labels = {
                    "base": base,
                    "role": "imitation",
                    "amount": amount,
                    "source": source,
                    "seed": seed,
                }
                found += measures(args, out, name, run, (run,), labels, tasks, mesh)
    if args.teacher_predictions:
        found += teacher(args, out, tasks)
    amounts = [a for _ in sources for a in args.amounts for _ in range(args.seeds)] + [
        args.local_tokens for _ in local for _ in range(args.seeds)
    ]
    return found, notes + predicted(
        {name: pathlib.Path(path).name for name, path in bases.items()}, amounts, args.mesh or "8x1"
    )


def predicted(bases, amounts, mesh):
    """Hours of the trainings of each base by `train.py --plan`, where the base is one of the paper's -> lines. bases: {name: preset}."""
    lines = []
    for name, preset in bases.items():
        if preset not in STEP or not amounts:
            continue
        asked = ["train.py", "--plan", "--model", preset, "--mesh", mesh, "--steps", "1000"]
        said = subprocess.run([sys.executable, *asked], capture_output=True, text=True, check=False)
        table = said.stdout.partition("hours of 1,000 steps")[2].splitlines()
        hours = {
            row.split()[0]: [float(x) for x in row.split()[1:3]]
            for row in table
            if row.split() and row.split()[0] in DEVICES
        }
        if said.returncode or not hours:
            lines.append(
                f"no hours for {name}: {shlex.join(['python', *asked])} says {(said.stderr.strip().splitlines() or ['nothing'])[-1]}"
            )
            continue
        span = lambda tokens: " / ".join(
            f"{tokens / STEP[preset] / 1000 * hours[d][1]:.2g}" for d in hours
        )
        each = "; ".join(f"{a} {span(data.parse_count(a))}" for a in dict.fromkeys(amounts))
        lines.append(
            f"hours of training {name} on mesh {mesh} at 50 % MFU ({' / '.join(hours)}, by {shlex.join(['python', *asked])}): {each}; all {len(amounts)} {span(sum(map(data.parse_count, amounts)))}"
        )
    return lines


def measures(args, out, name, model, needs, labels, tasks, mesh):
    """The steps that measure one model."""
    found, result = [], lambda task: str(out / "results" / name / task)
    ev = lambda task, *more: (
        "eval.py",
        task,
        "--model",
        model,
        *more,
        *mesh,
        *shlex.split(args.eval_flags),
    )

    def add(task, argv, *files, by_hand=None, labels=labels):
        found.append(
            Step(f"{task}-{name}", argv, result(task), "result", (*needs, *files), labels, by_hand)
        )

    if "mmlu" in tasks:
        add(
            "mmlu",
            ev("mmlu", "--data", args.mmlu, "--shots", "5", "--out", result("mmlu")),
            args.mmlu,
        )
    if "nq" in tasks:
        add(
            "nq",
            ev(
                "nq",
                "--data",
                args.nq_dev,
                "--train",
                args.nq_train,
                "--shots",
                "3",
                "--out",
                result("nq"),
            ),
            args.nq_dev,
            args.nq_train,
        )
    if "nq0" in tasks:
        add(
            "nq0",
            ev("nq", "--data", args.nq_dev, "--shots", "0", "--out", result("nq0")),
            args.nq_dev,
        )
    if "humaneval" in tasks:
        argv = ev(
            "humaneval",
            "--data",
            args.humaneval,
            "--out",
            result("humaneval"),
            "--run-untrusted-code",
        )
        add(
            "humaneval",
            argv,
            args.humaneval,
            by_hand=None
            if args.run_untrusted_code
            else "runs programs written by a model: agree with --run-untrusted-code",
        )
    if {"style", "judge", "rate"} & set(tasks):
        answers = result("answers")
        add(
            "answers",
            ev(
                "generate",
                "--chat",
                "--input",
                args.prompts,
                "--max-new-tokens",
                "256",
                "--out",
                answers,
            ),
            args.prompts,
            labels=None,
        )
        second = ("--teacher2", args.teacher2) if args.teacher2 else ()
        key = ("--api-key-file", args.api_key_file) if args.api_key_file else ()
        judge = (
            ("--judge", args.judge, "--judge-model", args.judge_model, *key)
            if args.judge and args.judge_model
            else ()
        )
        if "style" in tasks:
            add(
                "style",
                (
                    "-m",
                    "study.style",
                    answers,
                    "--teacher",
                    args.teacher,
                    *second,
                    *judge,
                    "--out",
                    result("style"),
                ),
                answers,
                args.teacher,
            )
        if "judge" in tasks:
            add(
                "judge",
                ("-m", "study.judge", answers, args.teacher, *judge, "--out", result("judge")),
                answers,
                args.teacher,
            )
        if "rate" in tasks:
            db = str(out / "votes" / f"{name}.sqlite")
            why = f"people rate first: python -m study.rate {shlex.quote(answers)} {shlex.quote(args.teacher)} --db {shlex.quote(db)}"
            found.append(
                Step(
                    f"rate-{name}",
                    ("-m", "study.rate", "results", "--db", db, "--out", result("rate")),
                    result("rate"),
                    "result",
                    (db,),
                    labels,
                    None if pathlib.Path(db).is_file() else why,
                )
            )
    if "toxicity" in tasks:
        continued = result("continuations")
        add(
            "continuations",
            ev(
                "generate",
                "--input",
                args.toxicity_prompts,
                "--max-new-tokens",
                "20",
                "--out",
                continued,
            ),
            args.toxicity_prompts,
            labels=None,
        )
        how = (
            ("--train", args.toxicity_train)
            if args.toxicity_scorer == "offline"
            else (
                "--api-key-file",
                args.perspective_key_file,
                "--cache",
                str(out / "perspective.jsonl"),
            )
        )
        add(
            "toxicity",
            (
                "-m",
                "study.toxicity",
                continued,
                "--scorer",
                args.toxicity_scorer,
                *how,
                "--out",
                result("toxicity"),
            ),
            continued,
        )
    return found


def teacher(args, out, tasks):
    """The teacher's benchmarks from its predictions."""
    found, folder = [], pathlib.Path(args.teacher_predictions)
    given = {
        "mmlu": ("--data", args.mmlu),
        "nq": ("--data", args.nq_dev),
        "humaneval": ("--data", args.humaneval, "--run-untrusted-code"),
    }
    for task, more in given.items():
        if task in tasks:
            result, file = str(out / "results" / "teacher" / task), str(folder / f"{task}.jsonl")
            hand = (
                None
                if task != "humaneval" or args.run_untrusted_code
                else "runs programs written by a model: agree with --run-untrusted-code"
            )
            found.append(
                Step(
                    f"{task}-teacher",
                    ("eval.py", task, *more, "--predictions", file, "--out", result),
                    result,
                    "result",
                    (file,),
                    {"role": "teacher"},
                    hand,
                )
            )
    return found
