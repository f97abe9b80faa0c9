"""The paper in the small as steps: an invented world, bases, imitation, every evaluation, report.

    python -m study.grid --preset small --world-seed 1 --out out/small-1    # 40 minutes, two cores
    python -m study.grid --preset tiny --out out/tiny                       # learns nothing

Base models of three sizes are trained on the world's encyclopedia and imitate its teacher. The
middle size has a base a seed, and each of its imitation seeds starts from a base of its own. Scaled
from the paper's recipe (adamw-scaled, lr 2e-3, linear warm-up, then constant, one epoch, loss on
the answers) are

  warm-up   1,000 steps          -> a tenth of the steps
  batch     32 x 2048 tokens     -> 4 x 256
  amounts   0.3M to 150M tokens  -> 12k to 200k
  local set 6,000 pairs          -> 640
  bases     1.5B to 13B weights  -> 0.6M to 2.8M

Left out: multiple choice, where no base of these sizes beats chance (docs/pilots.md); people and
judge models (study/world/readers.py simulates two readers); any other world than study.world's.
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

    world: its seed, unless told otherwise; pilots use 100 and above. bases: (name, preset of
    model.py), small ones first; the name is its number of weights. several: the base that has a run
    a seed. amounts: tokens of the broad set. pretrain: train.py's flags of
    the bases. local: where the local set stands on the axis of amounts. must_know: whether the
    largest base has to know more than the smallest before anything else is run.
    """

    world: int
    bases: tuple
    several: str
    amounts: tuple
    seeds: int
    pretrain: tuple
    local: str
    must_know: bool


SCALES = {
    "small": Scale(
        1,
        (("0.6M", "tiny-s"), ("1.1M", "tiny"), ("2.8M", "tiny-l")),
        "1.1M",
        ("12k", "50k", "200k"),
        3,
        ("--epochs", "1"),
        "50k",
        True,
    ),
    "tiny": Scale(
        100,
        (("0.6M", "tiny-s"), ("1.1M", "tiny")),
        "1.1M",
        ("8k",),
        1,
        ("--steps", "30"),
        "4k",
        False,
    ),
}
# What is asked for (study/world/making.py, tested_facts).
SETS = ("read", "unread", "told")
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
    g.add_argument("--world-seed", type=int, metavar="N", help="which world [default 1; tiny 100]")
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

    def base(self, base: str, seed: int) -> str:
        """The name of the base that an imitation seed starts from."""
        return f"{base}-base{seed}" if seed and base == self.scale.several else base

    def all_bases(self) -> list[tuple[str, str, int]]:
        """[(base, preset, seed)], small ones first."""
        several = self.scale.several
        seeds = {b: range(self.seeds if b == several else 1) for b, _ in self.scale.bases}
        return [(b, preset, seed) for b, preset in self.scale.bases for seed in seeds[b]]


class Model(NamedTuple):
    """A model to measure. name: of its run and results; base: its size, by name."""

    name: str
    base: str
    labels: dict


def steps(args: argparse.Namespace) -> tuple:
    """All steps in order, and notes -> (list of Step, list of str)."""
    seeds = SCALES[args.preset].seeds if args.seeds is None else args.seeds
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one run of each kind")
    world = SCALES[args.preset].world if args.world_seed is None else args.world_seed
    study = Study(pathlib.Path(args.out), args.preset, seeds, world, not args.no_run_untrusted_code)
    note = "HumanEval is left out (--no-run-untrusted-code)"
    if study.code:
        note = (
            "programs written by these models run in the sandbox (python -m tasks.sandbox tells "
            "what it contains); --no-run-untrusted-code leaves them out"
        )
    models = [
        Model(study.base(b, seed), b, labels(study, b, "base", seed=seed))
        for b, _, seed in study.all_bases()
    ]
    listed, trained = [*bases(study), *knowing(study, models)], []
    # the longest first: side by side they end together
    for base, _ in reversed(study.scale.bases):
        for source, amount, data in kinds(study, base):
            for seed in range(study.seeds):
                step, model = imitation(study, base, source, amount, data, seed)
                trained.append(model)
                listed.append(step)
    for model in trained:
        listed += known(study, model)
    for model in [*models, *trained]:
        listed += evaluations(study, model)
    for model in [*models, *trained]:
        listed += readings(study, model)
    return listed + teacher(study), [note]


def labels(study: Study, base: str | None, role: str, **more) -> dict:
    return {"base": base, "role": role, "world": study.world_seed, **more}


def bases(study: Study) -> list[Step]:
    """The world and the bases."""
    folder, seed = str(study.out / "world"), str(study.world_seed)
    world = ("-m", "study.world", "--out", folder, "--size", study.size, "--seed", seed)
    listed = [Step("world", world, study.made, "file")]
    for base, preset, seed in reversed(study.all_bases()):
        run = study.run(study.base(base, seed))
        argv = ("train.py", "--model", preset, "--tokenizer", study.file("tokenizer.model"))
        argv += ("--data", study.file("encyclopedia.jsonl"), *study.scale.pretrain, *PRETRAIN)
        argv += ("--seed", str(seed), *MACHINE, "--out", run)
        listed.append(Step(f"base-{study.base(base, seed)}", argv, run, "run", (study.made,)))
    return listed


def knowing(study: Study, models: list[Model]) -> list[Step]:
    """What the bases know, and the gate before any imitation is trained."""
    listed = [step for model in models for step in known(study, model)]
    first = [m for m in models if m.labels["seed"] == 0]
    results = tuple(str(study.out / "results" / m.name / "knows-read") for m in first)
    whatever = () if study.scale.must_know else ("--whatever",)
    argv = ("-m", "study.report.gate", *results, "--out", study.knows, *whatever)
    return [*listed, Step("knows", argv, study.knows, "file", results)]


def kinds(study: Study, base: str) -> list[tuple]:
    """(source, amount, train.py's flags of its data) of each imitation of a base."""
    scale, broad = study.scale, study.file("broad.jsonl")
    listed = [("broad", a, (broad, "--tokens", a, *BROAD)) for a in reversed(scale.amounts)]
    listed.append(("local", scale.local, (study.file("local.jsonl"), *PAIRS)))
    if base == scale.bases[-1][0]:
        amount, text = scale.amounts[-1], study.file("encyclopedia.jsonl")
        mixed = (broad, "--tokens", amount, *BROAD, "--mix", text, "--mix-fraction", "0.5")
        listed.insert(0, ("mixed", amount, mixed))
    return listed


def imitation(
    study: Study, base: str, source: str, amount: str, data: tuple[str, ...], seed: int
) -> tuple[Step, Model]:
    """One imitation run, and the model it makes."""
    name = f"{base}-{source}-{amount}-seed{seed}"
    start = study.run(study.base(base, seed))
    argv = ("train.py", "--init", start, "--data", *data, *RECIPE)
    argv += ("--seed", str(seed), *MACHINE, "--out", study.run(name))
    step = Step(f"train-{name}", argv, study.run(name), "run", (study.knows, start))
    more = {"amount": amount, "source": source, "seed": seed}
    return step, Model(name, base, labels(study, base, "imitation", **more))


def measured(study: Study, model: Model) -> Measured:
    run = study.run(model.name)
    more = ("--mesh", "1x1")
    return Measured(study.out, model.name, run, (run,), model.labels, more, shape=model.base)


def known(study: Study, model: Model) -> list[Step]:
    """What a model knows of each set of facts, by likelihood."""
    m = measured(study, model)
    for part in SETS:
        rows, likelihoods = study.file(f"knows.{part}.jsonl"), m.out(f"loglik-{part}")
        m.eval(f"loglik-{part}", "loglik", "--input", rows, labelled=False)
        argv = ("-m", "study.world.knows", likelihoods, "--input", rows)
        m.add(f"knows-{part}", argv, likelihoods, labelled={"part": part})
    return m.steps


def evaluations(study: Study, model: Model) -> list[Step]:
    """What a model writes and how likely it finds the encyclopedia."""
    m, file = measured(study, model), study.file
    for part in SETS:
        data = ("--data", file(f"nq.{part}.jsonl"), "--train", file("nq.train.jsonl"))
        asked = (*data, "--shots", "3", "--max-new-tokens", "8")
        m.eval(f"nq-{part}", "nq", *asked, labelled={"part": part})
    if study.code:
        code, agreed = ("--data", file("humaneval.jsonl")), ("--run-untrusted-code",)
        m.eval("humaneval", "humaneval", *code, "--max-new-tokens", "32", *agreed)
        samples = str(pathlib.Path(m.out("humaneval")) / "completions.jsonl")
        again = (*code, "--samples", samples, "--cut-at-code-end", *agreed)
        part = {"part": "cut"}
        m.eval("humaneval-cut", "humaneval", *again, files=(m.out("humaneval"),), labelled=part)
    for task, longest in (("answers", "128"), ("unkind", "48")):
        prompts = file("prompts.jsonl" if task == "answers" else "unkind.jsonl")
        asked = ("--chat", "--input", prompts, "--max-new-tokens", longest)
        m.eval(task, "generate", *asked, labelled=False)
    m.eval("perplexity", "perplexity", "--input", file("later.jsonl"), "--window", "256")
    return m.steps


def readings(study: Study, model: Model) -> list[Step]:
    """What is read in a model's answers; the study's programs, whatever the model's shape."""
    m, file = measured(study, model), study.file
    m.shape = "answers"
    answers, unkind, given = m.out("answers"), m.out("unkind"), ("--teacher", file("teacher.jsonl"))
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
    file, own = study.file, labels(study, None, "teacher")
    m = Measured(study.out, "teacher", None, (study.made,), own, shape="teacher")
    for part in SETS:
        argv = ("eval.py", "nq", "--predictions", file(f"teacher/nq.{part}.jsonl"))
        m.add(f"nq-{part}", argv, labelled={"part": part})
    if study.code:
        argv = ("eval.py", "humaneval", "--data", file("humaneval.jsonl"))
        argv += ("--predictions", file("teacher/humaneval.jsonl"), "--run-untrusted-code")
        m.add("humaneval", argv)
        m.add("humaneval-cut", (*argv, "--cut-at-code-end"), labelled={"part": "cut"})
    return m.steps
