"""The paper in the small as steps: an invented world, bases, imitation, every evaluation, report.

    python -m study.grid --preset small --out out/small      # under an hour on two cores
    python -m study.grid --preset tiny --out out/tiny        # minutes, learns nothing

Base models of three sizes are trained on the world's encyclopedia and imitate its teacher. Scaled
from the paper's recipe (adamw-scaled, lr 2e-3, linear warm-up, then constant, one epoch, loss on
the answers) are

  warm-up   1,000 steps          -> a tenth of the steps
  batch     32 x 2048 tokens     -> 4 x 256
  amounts   0.3M to 150M tokens  -> 5k to 200k
  local set 6,000 pairs          -> 900
  bases     1.5B to 13B weights  -> 0.6M to 2.8M

Left out: people and judge models (study/world/readers.py simulates two readers), any other world
than study.world's.
"""

import argparse
import pathlib
from typing import NamedTuple

from study.grid.steps import Measured, Step

JOBS = 2
# study.grid runs these presets unless told otherwise: nothing is downloaded, and the only programs
# run are those of models that have read nothing but the world.
RUNS = True


class Scale(NamedTuple):
    """How much of everything.

    bases: (name, preset of model.py), small ones first; the name is its number of weights. amounts:
    tokens of the broad set. pretrain: train.py's flags of the bases. local: where the local set
    stands on the axis of amounts. must_know: whether the largest base has to know more than the
    smallest before anything else is run.
    """

    bases: tuple
    amounts: tuple
    seeds: int
    pretrain: tuple
    local: str
    must_know: bool


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
PRETRAIN = tuple("--block 256 --batch 4 --lr 0.03 --warmup-fraction 0.05 --schedule cosine".split())
RECIPE = ("--lr", "2e-3", "--warmup-fraction", "0.1")
BROAD = ("--block", "256", "--batch", "4")
# NQ-synthetic's packing: one example a row.
PAIRS = ("--pack", "rows", "--block", "96", "--batch", "8")
MACHINE = ("--mesh", "1x1", "--dtype", "float32", "--remat", "none", "--eval-fraction", "0")


def flags(p: argparse.ArgumentParser) -> None:
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
        help="leave HumanEval out: do not run, even in the sandbox, the programs that these models "
        "write",
    )


class Study(NamedTuple):
    """What the steps are made from. size: of the world; seeds: imitation runs of each kind."""

    out: pathlib.Path
    size: str
    seeds: int
    world_seed: int
    code: bool  # whether programs that models write are run

    @property
    def scale(self) -> Scale:
        return SCALES[self.size]

    @property
    def made(self) -> str:
        return self.file("world.json")  # the last of the world's files

    @property
    def knows(self) -> str:
        return str(self.out / "knows.json")

    def file(self, name: str) -> str:
        return str(self.out / "world" / name)

    def run(self, name: str) -> str:
        return str(self.out / "runs" / name)


def steps(args: argparse.Namespace) -> tuple:
    """All steps in order, and notes -> (list of Step, list of str)."""
    seeds = SCALES[args.preset].seeds if args.seeds is None else args.seeds
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one run of each kind")
    study = Study(
        pathlib.Path(args.out), args.preset, seeds, args.world_seed, not args.no_run_untrusted_code
    )
    note = "HumanEval is left out (--no-run-untrusted-code)"
    if study.code:
        note = (
            "programs written by these models run in the sandbox (python -m tasks.sandbox tells "
            "what it contains); --no-run-untrusted-code leaves them out"
        )
    listed = bases(study)
    for base, _ in study.scale.bases:
        listed += measures(study, base, {"base": base, "role": "base"})
        for source, amount, data in kinds(study, base):
            for seed in range(study.seeds):
                listed += imitation(study, base, source, amount, data, seed)
    return listed + teacher(study), [note]


def bases(study: Study) -> list:
    """The world, the bases, what they know, and the gate before anything else is run."""
    seed = str(study.world_seed)
    folder = str(study.out / "world")
    world = ("-m", "study.world", "--out", folder, "--size", study.size, "--seed", seed)
    listed = [Step("world", world, study.made, "file")]
    # the longest first: side by side they end together
    for base, preset in reversed(study.scale.bases):
        argv = ("train.py", "--model", preset, "--tokenizer", study.file("tokenizer.model"))
        argv += ("--data", study.file("encyclopedia.jsonl"), *study.scale.pretrain, *PRETRAIN)
        argv += (*MACHINE, "--out", study.run(base))
        listed.append(Step(f"base-{base}", argv, study.run(base), "run", (study.made,)))
    known = [exact_match(study, b, {"base": b, "role": "base"}) for b, _ in study.scale.bases]
    results = tuple(s.out for s in known)
    whatever = () if study.scale.must_know else ("--whatever",)
    argv = ("-m", "study.report.gate", *results, "--out", study.knows, *whatever)
    return [*listed, *known, Step("knows", argv, study.knows, "file", results)]


def kinds(study: Study, base: str) -> list:
    """(source, amount, train.py's flags of its data) of each imitation of a base."""
    scale, broad = study.scale, study.file("broad.jsonl")
    listed = [("broad", a, (broad, "--tokens", a, *BROAD)) for a in scale.amounts]
    listed.append(("local", scale.local, (study.file("local.jsonl"), *PAIRS)))
    if base == scale.bases[-1][0]:
        amount, text = scale.amounts[-1], study.file("encyclopedia.jsonl")
        mixed = (broad, "--tokens", amount, *BROAD, "--mix", text, "--mix-fraction", "0.5")
        listed.append(("mixed", amount, mixed))
    return listed


def imitation(
    study: Study, base: str, source: str, amount: str, data: tuple[str, ...], seed: int
) -> list:
    """One imitation run and all its measures."""
    name = f"{base}-{source}-{amount}-seed{seed}"
    argv = ("train.py", "--init", study.run(base), "--data", *data, *RECIPE)
    argv += ("--seed", str(seed), *MACHINE, "--out", study.run(name))
    labels = {"base": base, "role": "imitation", "amount": amount, "source": source, "seed": seed}
    needs = study.knows, study.run(base)
    return [
        Step(f"train-{name}", argv, study.run(name), "run", needs),
        exact_match(study, name, labels),
        *measures(study, name, labels),
    ]


def exact_match(study: Study, name: str, labels: dict) -> Step:
    """3-shot exact match, which the bases are measured by before the gate."""
    model = study.run(name)
    measured = Measured(study.out, name, model, (model,), labels, ("--mesh", "1x1"))
    data = ("--data", study.file("nq.dev.jsonl"), "--train", study.file("nq.train.jsonl"))
    measured.eval("nq", "nq", *data, "--shots", "3", "--max-new-tokens", "12")
    return measured.steps[0]


def measures(study: Study, name: str, labels: dict) -> list[Step]:
    """The other measures of one model, with the same commands for all of them."""
    model, file = study.run(name), study.file
    m = Measured(study.out, name, model, (study.knows, model), labels, ("--mesh", "1x1"))
    m.eval("mmlu", "mmlu", "--data", file("mmlu"), "--shots", "5")
    if study.code:
        code = ("--data", file("humaneval.jsonl"), "--max-new-tokens", "32")
        m.eval("humaneval", "humaneval", *code, "--run-untrusted-code")
    m.eval("perplexity", "perplexity", "--input", file("later.jsonl"), "--window", "256")
    answers, unkind, given = m.out("answers"), m.out("unkind"), ("--teacher", file("teacher.jsonl"))
    for task, longest in (("answers", "128"), ("unkind", "48")):
        prompts = file("prompts.jsonl" if task == "answers" else "unkind.jsonl")
        asked = ("--chat", "--input", prompts, "--max-new-tokens", longest)
        m.eval(task, "generate", *asked, labelled=False)
    second = ("--teacher2", file("teacher2.jsonl"))
    m.add("style", ("-m", "study.style", answers, *given, *second), answers)
    reader = ("-m", "study.world.readers")
    m.add("rate", (*reader, "hurried", answers, *given), answers)
    m.add("judge", (*reader, "checking", answers, *given, "--world", study.made), answers)
    scorer = ("--scorer", "offline", "--train", file("scored.jsonl"))
    m.add("toxicity", ("-m", "study.toxicity", unkind, *scorer), unkind)
    return m.steps


def teacher(study: Study) -> list[Step]:
    """The teacher's own marks: it knows every fact."""
    file = study.file
    given = {
        "nq": (),
        "mmlu": ("--data", file("mmlu")),
        "humaneval": ("--data", file("humaneval.jsonl")),
    }
    m = Measured(study.out, "teacher", None, (study.made,), {"role": "teacher"})
    for task, data in given.items():
        argv = ("eval.py", task, *data, "--predictions", file(f"teacher/{task}.jsonl"))
        if task != "humaneval":
            m.add(task, argv)
        elif study.code:
            m.add(task, (*argv, "--run-untrusted-code"))
    return m.steps
