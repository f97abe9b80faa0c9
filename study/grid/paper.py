"""The paper's grid as steps: base models x amounts of imitation data x sources, then the report.

    python -m study.grid --preset paper --models MODELS --source mix=mix.jsonl.gz \\
        --local nq=nq.jsonl --out DIR [--run]

Each is trained, evaluated and measured against the teacher. Any other models, amounts and sources
by the same flags (--base 260K=stories260K.bin). A broad source (--source) is trained in every
amount by the paper's recipe; a local one (--local) whole, one example a row, with a short warm-up,
since it is three steps long. Left out: making the data (study.curate, study.synthesize), several
machines (run single commands there).
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

from host import terminal
from study.grid.measured import (
    UNTRUSTED,
    Wanted,
    measure,
    measured_flags,
    mesh_of,
    named,
    run_flags,
)
from study.grid.steps import Measured, Step

BASES = {"1.5B": "gpt2-xl", "7B": "llama-7b", "13B": "llama-13b"}  # name: folder below --models
# Tokens a step: 32 rows of the paper's block, or of all of the model's positions.
STEP = {"gpt2-xl": 32 * 1024, "llama-7b": 32 * 2048, "llama-13b": 32 * 2048}
DEVICES = ("A100", "H100", "v5p")
AMOUNTS = ("0.3M", "3M", "20M", "80M", "150M")  # the paper's span; its tables name the last three
LOCAL_AMOUNT = "0.2M"  # 6,000 short pairs fill about 3 steps of 32 x 2048


def flags(p: argparse.ArgumentParser) -> None:
    trained_flags(p.add_argument_group("what is trained"))
    measured_flags(p.add_argument_group("what is measured"))


def trained_flags(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--models", metavar="DIR", help=f"folder of the base models {', '.join(BASES.values())}"
    )
    g.add_argument(
        "--base",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="other base models, small ones first; the name ends in the size [default "
        f"{' '.join(BASES)} below --models]",
    )
    g.add_argument(
        "--source",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="broad imitation data, such as mix=mix.jsonl.gz of study.curate: trained in every "
        "amount",
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
    run_flags(g)


class Data(NamedTuple):
    """One kind of imitation: its source, its file, its amount, train.py's flags of it."""

    source: str
    file: str
    amount: str
    flags: tuple


class Study(NamedTuple):
    """What the steps are made from: the flags, read and checked."""

    out: pathlib.Path
    bases: dict
    data: list
    seeds: int
    mesh: tuple
    train_flags: tuple
    eval_flags: tuple
    wanted: Wanted

    @classmethod
    def of(cls, args: argparse.Namespace) -> tuple:
        """(study, notes on what is left out for want of a flag); ValueError for what cannot be."""
        paths = {n: str(pathlib.Path(args.models) / f) for n, f in BASES.items() if args.models}
        bases = named(args.base, "--base") or paths
        if not bases:
            raise ValueError("the grid needs base models: --models DIR, or --base NAME=PATH")
        sources, local = named(args.source, "--source"), named(args.local, "--local")
        if args.seeds < 1:
            raise ValueError(f"--seeds {args.seeds}: at least one run of each kind")
        for amount in (*args.amounts, args.local_tokens):
            terminal.count(amount)
        data = [Data(s, f, a, ("--tokens", a)) for s, f in sources.items() for a in args.amounts]
        rows = ("--pack", "rows", "--warmup-fraction", "0.1")
        data += [Data(s, f, args.local_tokens, rows) for s, f in local.items()]
        notes = [] if data else ["no --source and no --local: only the base models are measured"]
        wanted, left_out = Wanted.of(args)
        study = cls(
            pathlib.Path(args.out),
            bases,
            data,
            args.seeds,
            mesh_of(args),
            tuple(shlex.split(args.train_flags)),
            tuple(shlex.split(args.eval_flags)),
            wanted,
        )
        return study, notes + left_out


def steps(args: argparse.Namespace) -> tuple:
    """All steps in order, and notes -> (list of Step, list of str)."""
    study, notes = Study.of(args)
    listed = []
    for base, path in study.bases.items():
        listed += measures(study, base, path, (path,), {"base": base, "role": "base"})
        for data in study.data:
            for seed in range(study.seeds):
                listed += imitation(study, base, path, data, seed)
    if study.wanted.files["teacher_predictions"]:
        listed += teacher(study)
    folders = {name: pathlib.Path(path).name for name, path in study.bases.items()}
    amounts = [d.amount for d in study.data for _ in range(study.seeds)]
    return listed, notes + predicted(folders, amounts, (*study.mesh, "8x1")[1 if study.mesh else 0])


def imitation(study: Study, base: str, path: str, data: Data, seed: int) -> list:
    """One imitation run and all its measures."""
    name = f"{base}-{data.source}-{data.amount}" + (f"-seed{seed}" if study.seeds > 1 else "")
    run = str(study.out / "runs" / name)
    argv = ("train.py", "--init", path, "--data", data.file, *data.flags, "--seed", str(seed))
    argv += (*study.mesh, "--out", run, *study.train_flags)
    labels = {
        "base": base,
        "role": "imitation",
        "amount": data.amount,
        "source": data.source,
        "seed": seed,
    }
    trained = Step(f"train-{name}", argv, run, "run", (path, data.file))
    return [trained, *measures(study, name, run, (run,), labels)]


def predicted(bases: dict[str, str], amounts: list[str], mesh: str) -> list:
    """Hours of the trainings of each of the paper's bases by `train.py --plan` -> lines.

    bases: {name: preset}.
    """
    lines = []
    for name, preset in bases.items():
        if preset not in STEP or not amounts:
            continue
        argv = ["train.py", "--plan", "--model", preset, "--mesh", mesh, "--steps", "1000"]
        asked, json_too = shlex.join(["python", *argv]), [sys.executable, *argv, "--json"]
        plan = subprocess.run(json_too, capture_output=True, text=True, check=False)
        if plan.returncode:
            last = (plan.stderr.strip().splitlines() or ["nothing"])[-1]
            lines.append(f"no hours for {name}: {asked} says {last}")
            continue
        devices = json.loads(plan.stdout)["devices"]
        hours = {device: devices[device]["hours_mfu_50"] for device in DEVICES}

        def span(tokens, preset=preset, hours=hours):
            thousands = tokens / STEP[preset] / 1000
            return " / ".join(f"{thousands * hours[d]:.2g}" for d in hours)

        each = "; ".join(f"{a} {span(terminal.count(a))}" for a in dict.fromkeys(amounts))
        lines.append(
            f"hours of training {name} on mesh {mesh} at 50 % MFU ({' / '.join(hours)}, by "
            f"{asked}): {each}; all {len(amounts)} {span(sum(map(terminal.count, amounts)))}"
        )
    return lines


def measures(
    study: Study, name: str, model: str, needs: tuple[str, ...], labels: dict
) -> list[Step]:
    """The steps that measure one model."""
    m = Measured(study.out, name, model, needs, labels, (*study.mesh, *study.eval_flags))
    return measure(study.wanted, m)


def teacher(study: Study) -> list:
    """The teacher's benchmarks from its predictions."""
    wanted = study.wanted
    folder = pathlib.Path(wanted.files["teacher_predictions"])
    given = {
        "mmlu": ("--data", wanted.files["mmlu"]),
        "nq": ("--data", wanted.files["nq_dev"]),
        "humaneval": ("--data", wanted.files["humaneval"], "--run-untrusted-code"),
    }
    steps = []
    for task in (t for t in given if t in wanted.tasks):
        file = str(folder / f"{task}.jsonl")
        m = Measured(study.out, "teacher", None, (file,), {"role": "teacher"})
        why = UNTRUSTED if task == "humaneval" and not wanted.code else None
        m.add(task, ("eval.py", task, *given[task], "--predictions", file), by_hand=why)
        steps += m.steps
    return steps
