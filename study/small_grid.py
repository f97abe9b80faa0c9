"""The paper in the small as steps: an invented world, base models of three sizes trained on its encyclopedia, imitation of its teacher, every evaluation, the report. Two presets: small and tiny.

    python -m study.grid --preset small --out runs/out/small          # under an hour on two cores
    python -m study.grid --preset tiny --out runs/out/tiny            # the same machinery in minutes, far too short to learn anything

What is scaled from the paper's recipe (adamw-scaled, lr 2e-3, linear warm-up, then constant, one epoch, loss on the answers): the warm-up (1,000 steps -> a tenth of the steps), the batch
(32 x 2048 -> 4 x 256 tokens), the amounts (0.3M to 150M -> 5k to 200k tokens), the local set (6,000 pairs -> 900), the bases (1.5B to 13B -> 0.6M to 2.8M weights). Left out: people and judge models
(study/readers.py simulates two readers), any other world than study/world.py's.
"""

import pathlib
from typing import NamedTuple

from study.steps import Step

JOBS = 2
RUNS = True  # study.grid runs these presets unless told otherwise: nothing is downloaded, and the only programs run are those of models that have read nothing but the world


class Scale(NamedTuple):
    """How much of everything. bases: (name, preset of model.py), small ones first; the name is its number of weights."""

    bases: tuple
    amounts: tuple  # tokens of the broad set
    seeds: int
    pretrain: tuple  # train.py's flags of the bases
    local: str  # where the local set stands on the axis of amounts: its tokens
    must_know: bool  # whether the largest base has to know more than the smallest before anything else is run


SCALES = {
    "small": Scale(
        (("0.6M", "tiny-s"), ("1.1M", "tiny"), ("2.8M", "tiny-l")),
        ("5k", "20k", "60k", "200k"),
        3,
        ("--epochs", "1"),
        "60k",
        True,
    ),
    "tiny": Scale(
        (("0.6M", "tiny-s"), ("1.1M", "tiny")), ("8k",), 1, ("--steps", "60"), "4k", False
    ),
}
PRETRAIN = (
    "--block",
    "256",
    "--batch",
    "4",
    "--lr",
    "0.03",
    "--warmup-fraction",
    "0.05",
    "--schedule",
    "cosine",
)
RECIPE = ("--lr", "2e-3", "--warmup-fraction", "0.1")
BROAD = ("--block", "256", "--batch", "4")
PAIRS = (
    "--pack",
    "rows",
    "--block",
    "96",
    "--batch",
    "8",
)  # NQ-synthetic's packing: one example a row
MACHINE = ("--mesh", "1x1", "--dtype", "float32", "--remat", "none", "--eval-fraction", "0")


def flags(p):
    g = p.add_argument_group("the small study")
    g.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="imitation runs of each kind, seeds 0 to N - 1 [default 3; tiny 1]",
    )
    g.add_argument(
        "--world-seed", type=int, default=0, metavar="N", help="another world [default %(default)s]"
    )
    g.add_argument(
        "--no-run-untrusted-code",
        action="store_true",
        help="leave HumanEval out: do not run, even in the sandbox, the programs that these models write",
    )


def steps(args):
    """All steps in order, and notes -> (list of Step, list of str). args: preset, out, seeds, world_seed, no_run_untrusted_code."""
    scale, out = SCALES[args.preset], pathlib.Path(args.out)
    seeds = scale.seeds if args.seeds is None else args.seeds
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one run of each kind")
    file = lambda name: str(out / "world" / name)
    run = lambda name: str(out / "runs" / name)
    made = file("world.json")  # the last of the world's files
    notes = (
        ["HumanEval is left out (--no-run-untrusted-code)"]
        if args.no_run_untrusted_code
        else [
            "programs written by these models run in the sandbox (python -m tasks.sandbox tells what it contains); --no-run-untrusted-code leaves them out"
        ]
    )
    found = [
        Step(
            "world",
            (
                "-m",
                "study.world",
                "--out",
                str(out / "world"),
                "--size",
                args.preset,
                "--seed",
                str(args.world_seed),
            ),
            made,
            "file",
        )
    ]
    for base, preset in reversed(scale.bases):  # the longest first: side by side they end together
        argv = (
            "train.py",
            "--model",
            preset,
            "--tokenizer",
            file("tokenizer.model"),
            "--data",
            file("encyclopedia.jsonl"),
            *scale.pretrain,
            *PRETRAIN,
            *MACHINE,
            "--out",
            run(base),
        )
        found.append(Step(f"base-{base}", argv, run(base), "run", (made,)))
    found += [
        exact_match(out, base, run(base), {"base": base, "role": "base"}, file)
        for base, _ in scale.bases
    ]
    known = [s.out for s in found if s.labels]
    knows = str(out / "knows.json")
    found.append(
        Step(
            "knows",
            (
                "-m",
                "study.findings",
                *known,
                "--out",
                knows,
                *(() if scale.must_know else ("--whatever",)),
            ),
            knows,
            "file",
            tuple(known),
        )
    )
    for base, _ in scale.bases:
        found += measures(out, base, run(base), {"base": base, "role": "base"}, file, args, knows)
        text = ("--mix", file("encyclopedia.jsonl"), "--mix-fraction", "0.5")
        kinds = [("broad", a, ("broad.jsonl", "--tokens", a, *BROAD)) for a in scale.amounts] + [
            ("local", scale.local, ("local.jsonl", *PAIRS))
        ]
        kinds += (
            [
                (
                    "mixed",
                    scale.amounts[-1],
                    ("broad.jsonl", "--tokens", scale.amounts[-1], *BROAD, *text),
                )
            ]
            if base == scale.bases[-1][0]
            else []
        )
        for source, amount, (data, *more) in kinds:
            for seed in range(seeds):
                name = f"{base}-{source}-{amount}-seed{seed}"
                argv = (
                    "train.py",
                    "--init",
                    run(base),
                    "--data",
                    file(data),
                    *more,
                    *RECIPE,
                    "--seed",
                    str(seed),
                    *MACHINE,
                    "--out",
                    run(name),
                )
                labels = {
                    "base": base,
                    "role": "imitation",
                    "amount": amount,
                    "source": source,
                    "seed": seed,
                }
                found += [
                    Step(f"train-{name}", argv, run(name), "run", (knows, run(base))),
                    exact_match(out, name, run(name), labels, file),
                ]
                found += measures(out, name, run(name), labels, file, args, knows)
    return found + teacher(out, file, args), notes


def exact_match(out, name, model, labels, file):
    result = str(out / "results" / name / "nq")
    argv = (
        "eval.py",
        "nq",
        "--model",
        model,
        "--data",
        file("nq.dev.jsonl"),
        "--train",
        file("nq.train.jsonl"),
        "--shots",
        "3",
        "--max-new-tokens",
        "12",
        "--mesh",
        "1x1",
        "--out",
        result,
    )
    return Step(f"nq-{name}", argv, result, "result", (model,), labels)


def measures(out, name, model, labels, file, args, knows):
    """The other measures of one model, with the same commands for all of them."""
    found, result = [], lambda task: str(out / "results" / name / task)
    ev = lambda task, *more: (
        "eval.py",
        task,
        "--model",
        model,
        *more,
        "--mesh",
        "1x1",
        "--out",
        result(task),
    )

    def add(task, argv, *needs, labels=labels):
        found.append(
            Step(f"{task}-{name}", argv, result(task), "result", (knows, model, *needs), labels)
        )

    add("mmlu", ev("mmlu", "--data", file("mmlu"), "--shots", "5"))
    if not args.no_run_untrusted_code:
        add(
            "humaneval",
            ev(
                "humaneval",
                "--data",
                file("humaneval.jsonl"),
                "--max-new-tokens",
                "32",
                "--run-untrusted-code",
            ),
        )
    add("perplexity", ev("perplexity", "--input", file("later.jsonl"), "--window", "256"))
    answers, unkind, given = (
        result("answers"),
        result("unkind"),
        ("--teacher", file("teacher.jsonl")),
    )
    for task, prompts, longest in (
        ("answers", "prompts.jsonl", "128"),
        ("unkind", "unkind.jsonl", "48"),
    ):
        argv = (
            "eval.py",
            "generate",
            "--chat",
            "--model",
            model,
            "--input",
            file(prompts),
            "--max-new-tokens",
            longest,
            "--mesh",
            "1x1",
            "--out",
            result(task),
        )
        add(task, argv, labels=None)
    add(
        "style",
        (
            "-m",
            "study.style",
            answers,
            *given,
            "--teacher2",
            file("teacher2.jsonl"),
            "--out",
            result("style"),
        ),
        answers,
    )
    add(
        "rate",
        ("-m", "study.readers", "hurried", answers, *given, "--out", result("rate")),
        answers,
    )
    add(
        "judge",
        (
            "-m",
            "study.readers",
            "checking",
            answers,
            *given,
            "--world",
            file("world.json"),
            "--out",
            result("judge"),
        ),
        answers,
    )
    add(
        "toxicity",
        (
            "-m",
            "study.toxicity",
            unkind,
            "--scorer",
            "offline",
            "--train",
            file("scored.jsonl"),
            "--out",
            result("toxicity"),
        ),
        unkind,
    )
    return found


def teacher(out, file, args):
    """The teacher's own marks: it knows every fact."""
    said = lambda task: ("--predictions", file(f"teacher/{task}.jsonl"))
    given = {
        "nq": said("nq"),
        "mmlu": ("--data", file("mmlu"), *said("mmlu")),
        "humaneval": (
            "--data",
            file("humaneval.jsonl"),
            *said("humaneval"),
            "--run-untrusted-code",
        ),
    }
    tasks = [t for t in given if t != "humaneval" or not args.no_run_untrusted_code]
    result = lambda task: str(out / "results" / "teacher" / task)
    return [
        Step(
            f"{t}-teacher",
            ("eval.py", t, *given[t], "--out", result(t)),
            result(t),
            "result",
            (file("world.json"),),
            {"role": "teacher"},
        )
        for t in tasks
    ]
