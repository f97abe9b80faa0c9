"""What is measured of a model: the flags that name the files, and the steps of each task.

    python -m study.grid --preset paper --help      # the flags, as a user meets them

For presets that measure models on public files (paper.py, real.py). Left out: which models.
"""

import argparse
import pathlib
import re
import shlex
from typing import NamedTuple

from study.grid.steps import Measured, Step

TASKS = ("mmlu", "nq", "nq0", "humaneval", "style", "judge", "rate", "toxicity")
UNTRUSTED = "runs programs written by a model: agree with --run-untrusted-code"


def run_flags(g: argparse._ArgumentGroup) -> None:
    """The flags that go to every train.py and eval.py."""
    about = "of train.py and eval.py [default: theirs]"
    g.add_argument("--mesh", metavar="DATAxTENSOR", help=about)
    about = 'further flags of every train.py, in one string: "--dtype bfloat16"'
    g.add_argument("--train-flags", default="", metavar="FLAGS", help=about)
    about = 'further flags of every eval.py: "--batch 256"'
    g.add_argument("--eval-flags", default="", metavar="FLAGS", help=about)


def mesh_of(args: argparse.Namespace) -> tuple[str, ...]:
    """--mesh, as train.py and eval.py take it."""
    return ("--mesh", args.mesh) if args.mesh else ()


def benchmark_flags(g: argparse._ArgumentGroup) -> None:
    """The flags that name the public benchmarks."""
    g.add_argument("--mmlu", metavar="DIR", help="MMLU's CSV folders")
    g.add_argument("--nq-dev", metavar="FILE", help="NQ-open.dev.jsonl")
    g.add_argument("--nq-train", metavar="FILE", help="NQ-open.train.jsonl")
    g.add_argument("--humaneval", metavar="FILE", help="HumanEval.jsonl.gz")
    g.add_argument(
        "--run-untrusted-code",
        action="store_true",
        help="agree that programs of HumanEval written by a model are run here",
    )
    g.add_argument("--toxicity-prompts", metavar="FILE", help="RealToxicityPrompts rows")
    g.add_argument(
        "--toxicity-train", metavar="FILE", help="rows with scores, for the offline scorer"
    )


def measured_flags(
    g: argparse._ArgumentGroup, tasks: tuple[str, ...] = TASKS, scorer: str = "perspective"
) -> None:
    """The flags that say what is measured. tasks, scorer: a preset's defaults."""
    g.add_argument(
        "--tasks",
        nargs="+",
        default=list(tasks),
        choices=TASKS,
        metavar="TASK",
        help=f"of {' '.join(TASKS)} [default {' '.join(tasks)}]",
    )
    benchmark_flags(g)
    g.add_argument(
        "--prompts",
        metavar="FILE",
        help='held-out prompts, JSON lines with "prompt" (leakage removed by study.curate '
        "leakage), for style, judge and rate",
    )
    g.add_argument("--teacher", metavar="OUTPUTS", help="the teacher's answers to --prompts")
    g.add_argument("--teacher2", metavar="OUTPUTS", help="a second sample of them")
    g.add_argument("--judge", metavar="URL", help="an OpenAI-compatible endpoint")
    g.add_argument("--judge-model", metavar="NAME", help="the model there")
    g.add_argument("--api-key-file", metavar="FILE", help="its key")
    g.add_argument(
        "--toxicity-scorer",
        default=scorer,
        choices=["perspective", "offline"],
        help="[default %(default)s]",
    )
    g.add_argument("--perspective-key-file", metavar="FILE", help="the Perspective API's key")
    g.add_argument(
        "--teacher-predictions",
        metavar="DIR",
        help="the teacher's own mmlu.jsonl, nq.jsonl, humaneval.jsonl (eval.py --predictions)",
    )


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


def named(pairs: list[str], flag: str) -> dict:
    """{name: path} of NAME=PATH texts."""
    paths = {}
    for text in pairs:
        name, _, path = text.partition("=")
        if not path or not re.fullmatch(r"[A-Za-z0-9.]+", name) or name in paths:
            raise ValueError(
                f"{flag} {text}: write NAME=PATH, the name of letters, digits and dots, each once"
            )
        paths[name] = path
    return paths


def missing_flags(task: str, args: argparse.Namespace) -> list:
    """The flags that a task lacks."""
    needs = NEEDS[task]
    if task == "toxicity":
        online = args.toxicity_scorer == "perspective"
        needs += ("perspective_key_file",) if online else ("toxicity_train",)
    return [flag for flag in needs if not getattr(args, flag)]


class Wanted(NamedTuple):
    """What is measured of every model.

    files: flag -> what it names. code: whether programs that models write are run. flags: result ->
    further flags of its eval.py. template: in which all models are asked, Natural Questions without
    shots too; None: a base in Koala's plain text, since it knows no template, an imitation in its
    own, and Natural Questions as plain text.
    """

    out: pathlib.Path
    tasks: list
    files: dict
    code: bool
    flags: dict = {}
    template: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace, **more) -> tuple["Wanted", list[str]]:
        """(what the flags allow, notes on what is left out for want of one). more: other fields."""
        notes, tasks = [], []
        for task in args.tasks:
            lacking = missing_flags(task, args)
            if lacking:
                flags = ", ".join(f"--{f.replace('_', '-')}" for f in lacking)
                notes.append(f"{task} is left out: it needs {flags}")
            else:
                tasks.append(task)
        out, code = pathlib.Path(args.out), args.run_untrusted_code
        return cls(out, tasks, vars(args), code, **more), notes


def measure(wanted: Wanted, m: Measured) -> list[Step]:
    """The steps that measure one model."""
    m.flags = wanted.flags
    benchmarks(wanted, m)
    conversations(wanted, m)
    if "toxicity" in wanted.tasks:
        toxicity(wanted, m)
    return m.steps


def benchmarks(wanted: Wanted, m: Measured) -> None:
    file = wanted.files
    dev, train, mmlu = file["nq_dev"], file["nq_train"], file["mmlu"]
    if "mmlu" in wanted.tasks:
        m.eval("mmlu", "mmlu", "--data", mmlu, "--shots", "5", files=(mmlu,))
    if "nq" in wanted.tasks:
        shots = ("--data", dev, "--train", train, "--shots", "3")
        m.eval("nq", "nq", *shots, files=(dev, train))
    if "nq0" in wanted.tasks:
        chat = ("--chat", "--template", wanted.template) if wanted.template else ()
        m.eval("nq0", "nq", "--data", dev, "--shots", "0", *chat, files=(dev,))
    if "humaneval" in wanted.tasks:
        problems = file["humaneval"]
        why = None if wanted.code else UNTRUSTED
        data = ("--data", problems, "--run-untrusted-code")
        m.eval("humaneval", "humaneval", *data, files=(problems,), by_hand=why)


def conversations(wanted: Wanted, m: Measured) -> None:
    """The answers to the prompts, and what they are worth beside the teacher's."""
    if not {"style", "judge", "rate"} & set(wanted.tasks):
        return
    file, answers = wanted.files, m.out("answers")
    prompts, teacher = file["prompts"], file["teacher"]
    asked = ("--chat", "--input", prompts, "--max-new-tokens", "256")
    if wanted.template or m.labels.get("role") == "base":
        asked += ("--template", wanted.template or "koala")
    m.eval("answers", "generate", *asked, files=(prompts,), labelled=False)
    judge = ()
    if file["judge"] and file["judge_model"]:
        judge = ("--judge", file["judge"], "--judge-model", file["judge_model"])
        judge += ("--api-key-file", file["api_key_file"]) if file["api_key_file"] else ()
    if "style" in wanted.tasks:
        second = ("--teacher2", file["teacher2"]) if file["teacher2"] else ()
        argv = ("-m", "study.style", answers, "--teacher", teacher, *second, *judge)
        m.add("style", argv, answers, teacher)
    if "judge" in wanted.tasks:
        m.add("judge", ("-m", "study.judge", answers, teacher, *judge), answers, teacher)
    if "rate" in wanted.tasks:
        db = str(wanted.out / "votes" / f"{m.name}.sqlite")
        rating = ("python", "-m", "study.rate", answers, teacher, "--db", db)
        why = None if pathlib.Path(db).is_file() else f"people rate first: {shlex.join(rating)}"
        argv = ("-m", "study.rate", "results", "--db", db, "--out", m.out("rate"))
        m.steps.append(Step(f"rate-{m.name}", argv, m.out("rate"), "result", (db,), m.labels, why))


def toxicity(wanted: Wanted, m: Measured) -> None:
    """Continuations of RealToxicityPrompts, and their scores."""
    file, continued = wanted.files, m.out("continuations")
    prompts = file["toxicity_prompts"]
    asked = ("--input", prompts, "--max-new-tokens", "20")
    m.eval("continuations", "generate", *asked, files=(prompts,), labelled=False)
    how = ("--train", file["toxicity_train"])
    if file["toxicity_scorer"] == "perspective":
        cache = str(wanted.out / "perspective.jsonl")
        how = ("--api-key-file", file["perspective_key_file"], "--cache", cache)
    argv = ("-m", "study.toxicity", continued, "--scorer", file["toxicity_scorer"], *how)
    m.add("toxicity", argv, continued)
