"""The paper's experiment on a real model and real dialogues, as steps: curate, train, measure.

    python -m study.grid --preset real --base SmolLM2-135M=smollm2.gguf --sharegpt sharegpt.json \\
        --hc3 hc3.jsonl --nq-train NQ-open.train.jsonl --nq-dev NQ-open.dev.jsonl --out DIR

Broad imitation is ShareGPT and HC3 in nested amounts, local imitation is NQ-open's own training
pairs, mixed is the largest amount with as many rows of plain text. No dialogue is trained on that
asks what an evaluation asks. Held-out dialogues are split off first; by their loss one of three
learning rates is chosen (rate.py), before any benchmark is asked. The rest is the paper's recipe,
with the warm-up a tenth of the steps. Left out: people, several bases or seeds (paper.py has them).
"""

import argparse
import pathlib
import shlex
from typing import NamedTuple

from host import terminal
from host.hub_name import is_hub_name
from study.grid import real_facts
from study.grid.measured import TASKS, Wanted, measure, measured_flags, mesh_of, run_flags
from study.grid.steps import Measured, Step

RUNS = True
AMOUNTS = ("20k", "60k", "180k")
RATES = (2e-3, 6e-4, 2e-4)  # the paper's, and a third and a tenth of it
MEASURED = tuple(t for t in TASKS if t not in ("judge", "rate"))
RECIPE = tuple("--warmup-fraction 0.1 --eval-fraction 0 --samples 0".split())
# a run of an hour is saved on its way; without an accelerator train.py takes float32 by itself
MACHINE = tuple("--remat dots --save-every 20 --keep 1".split())
PAIRS = tuple("--pack rows --block 48".split())  # NQ-synthetic's packing: one example a row
PAIRS_A_STEP = 32
ONE_SHAPE = "real"
SHORT_ANSWER = ("--max-new-tokens", "16")


def flags(p: argparse.ArgumentParser) -> None:
    trained_flags(p.add_argument_group("what is trained"))
    how_flags(p.add_argument_group("how it is computed"))
    g = p.add_argument_group("what is measured")
    measured_flags(g, MEASURED, "offline")
    g.add_argument("--wikitext", metavar="FILE", help="a text whose perplexity is measured")
    g.add_argument(
        "--wikitext-tokens",
        default="20k",
        metavar="N",
        help="of its beginning [default %(default)s]",
    )
    g.add_argument(
        "--limit",
        nargs="+",
        default=[],
        metavar="TASK=N",
        help="only the first N items of a task (mmlu: of each subject): nq=1000 humaneval=40",
    )


def trained_flags(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--base",
        required=True,
        metavar="[NAME=]PATH",
        help="the base model, a path or ORG/NAME; its name in the report ends in its size",
    )
    g.add_argument("--sharegpt", nargs="+", default=[], metavar="FILE", help="ShareGPT's files")
    g.add_argument("--hc3", nargs="+", default=[], metavar="FILE", help="HC3's files")
    g.add_argument(
        "--plain",
        metavar="FILE",
        help="plain text to mix in, another one than --wikitext; without it there is no mixed "
        "imitation",
    )
    g.add_argument(
        "--amounts",
        nargs="+",
        default=list(AMOUNTS),
        metavar="N",
        help=f"tokens of broad imitation [default {' '.join(AMOUNTS)}]",
    )
    about = "pairs of --nq-train for local imitation; 0: none [default %(default)s]"
    g.add_argument("--pairs", type=int, default=4000, metavar="N", help=about)
    g.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=list(RATES),
        metavar="X",
        help="learning rates to choose among, tried on the middle amount [default "
        f"{' '.join(f'{r:g}' for r in RATES)}]",
    )
    about = "dialogues held out for the choice and the loss [default %(default)s]"
    g.add_argument("--held-out", type=int, default=24, metavar="N", help=about)
    about = "how conversations are written, in training and in asking [default %(default)s]"
    choices = ["chatml", "llama3", "roles", "koala"]
    g.add_argument("--template", default="chatml", choices=choices, help=about)
    g.add_argument("--block", type=int, default=512, metavar="T", help="[default %(default)s]")
    about = "rows a step [default %(default)s]"
    g.add_argument("--batch", type=int, default=4, metavar="B", help=about)
    g.add_argument("--seed", type=int, default=0, metavar="N", help="[default %(default)s]")


def how_flags(g: argparse._ArgumentGroup) -> None:
    run_flags(g)
    g.add_argument(
        "--gflops",
        type=float,
        default=real_facts.GFLOPS,
        metavar="X",
        help="what the machine computes a second, for the estimate of minutes [default "
        "%(default)s, two cores]",
    )


class Study(NamedTuple):
    """What the steps are made from: the flags, read and checked."""

    out: pathlib.Path
    base: str
    path: str
    args: argparse.Namespace
    wanted: Wanted
    train: tuple
    eval: tuple

    @classmethod
    def of(cls, args: argparse.Namespace) -> tuple["Study", list[str]]:
        """(study, notes on what is left out); ValueError for what cannot be."""
        base, path = real_facts.named_base(args.base)
        amounts = [terminal.count(a) for a in args.amounts]
        if amounts != sorted(set(amounts)):
            raise ValueError(f"--amounts {' '.join(args.amounts)}: each once, the smallest first")
        if not args.sharegpt and not args.hc3:
            raise ValueError("the mix needs dialogues: --sharegpt FILE..., --hc3 FILE..., or both")
        if args.pairs < 0 or args.held_out < 1 or len(set(args.rates)) != len(args.rates):
            raise ValueError(
                f"--pairs {args.pairs}, --held-out {args.held_out}, --rates "
                f"{' '.join(f'{r:g}' for r in args.rates)}: at least 0, at least 1, each once"
            )
        limits = limits_of(args.limit)
        own = {"nq": SHORT_ANSWER, "nq0": SHORT_ANSWER}
        for task, n in limits.items():
            result = {"style": "answers", "toxicity": "continuations"}.get(task, task)
            own[result] = (*own.get(result, ()), "--limit", str(n))
        wanted, notes = Wanted.of(args, flags=own, template=args.template)
        machine = mesh_of(args)
        train = (*machine, *RECIPE, *MACHINE, "--seed", str(args.seed))
        study = cls(
            pathlib.Path(args.out),
            base,
            path,
            args,
            wanted,
            (*train, *shlex.split(args.train_flags)),
            (*machine, "--batch", "32", *shlex.split(args.eval_flags)),
        )
        if not study.evaluation_files:
            raise ValueError("nothing to ask: --nq-dev, --mmlu, --humaneval or --prompts")
        return study, notes + study.left_out()

    @property
    def evaluation_files(self) -> list[str]:
        """The files whose prompts nobody may train on."""
        a = self.args
        return [f for f in (a.nq_dev, a.mmlu, a.humaneval, a.prompts) if f]

    @property
    def local(self) -> bool:
        return bool(self.args.pairs and self.args.nq_train and self.args.nq_dev)

    @property
    def middle(self) -> str:
        """The amount on which learning rates are tried."""
        return self.args.amounts[len(self.args.amounts) // 2]

    @property
    def base_files(self) -> tuple[str, ...]:
        """The base, where it is a path and not a name on the hub."""
        return () if is_hub_name(self.path) else (self.path,)

    @property
    def rate(self) -> str:
        return str(self.out / "rate.json")

    def left_out(self) -> list[str]:
        notes = []
        if self.args.pairs and not self.local:
            notes.append("local imitation is left out: it needs --nq-train, --nq-dev")
        if not self.args.plain:
            notes.append("mixed imitation is left out: it needs --plain")
        if not self.args.wikitext:
            notes.append("perplexity is left out: it needs --wikitext")
        return notes

    def data(self, name: str) -> str:
        return str(self.out / "data" / name)

    def run(self, name: str) -> str:
        return str(self.out / "runs" / name)


def limits_of(texts: list[str]) -> dict[str, int]:
    """{task: items} of TASK=N texts."""
    limits = {}
    for text in texts:
        task, _, n = text.partition("=")
        if task not in MEASURED or not n.isdigit() or int(n) < 1:
            raise ValueError(f"--limit {text}: write TASK=N, the task one of {', '.join(MEASURED)}")
        limits[task] = int(n)
    return limits


class Model(NamedTuple):
    """A model to measure. path: where it is; needs: what it waits for."""

    name: str
    path: str
    needs: tuple
    labels: dict


def steps(args: argparse.Namespace) -> tuple[list[Step], list[str]]:
    """All steps in order, and notes. A model is measured as soon as it is there."""
    study, notes = Study.of(args)
    base = Model(study.base, study.path, (*study.base_files, study.rate), {"role": "base"})
    listed = [*data_steps(study), *rate_steps(study), *measures(study, base)]
    for kind in kinds(study):
        step, model = imitation(study, kind)
        listed += [step, *measures(study, model)]
    return listed, notes + real_facts.minutes(study, listed)


def about(args: argparse.Namespace) -> list[str]:
    """What the report has to say of the base and the data, as far as they are there."""
    return real_facts.lines(Study.of(args)[0])


# --- data ---


def data_steps(study: Study) -> list[Step]:
    """The mix without what evaluations ask, held-out dialogues, the amounts, the pairs."""
    a, mix, clear = study.args, study.data("mix"), study.data("decontaminated")
    sources = tuple(
        f for s in ("sharegpt", "hc3") if getattr(a, s) for f in (f"--{s}", *getattr(a, s))
    )
    files, prompts = (*a.sharegpt, *a.hc3), tuple(study.evaluation_files)
    made, kept = f"{mix}/mix.jsonl.gz", f"{clear}/kept.jsonl.gz"
    split, seed = study.data("split"), ("--seed", str(a.seed))
    held = ("--n", str(a.held_out), *(("--source", "sharegpt") if a.sharegpt else ()))
    listed = [
        curate("mix", (*sources, "--out", mix), made, files),
        curate(
            "decontaminate", (made, "--prompts", *prompts, "--out", clear), kept, (made, *prompts)
        ),
        curate("split", (kept, *held, *seed, "--out", split), f"{split}/train.jsonl.gz", (kept,)),
    ]
    train, heldout = f"{split}/train.jsonl.gz", f"{split}/heldout.jsonl.gz"
    block = ("--block", str(a.block))
    listed.append(pack(study, "heldout", heldout, train, ("--pack", "documents", *block)))
    for amount in a.amounts:
        how = ("--pack", "stream", *block, "--tokens", amount)
        listed.append(pack(study, f"broad-{amount}", train, train, how))
    if study.local:
        pairs = study.data("pairs")
        drawn = (a.nq_train, "--prompts", a.nq_dev, "--n", str(a.pairs), *seed, "--out", pairs)
        made = f"{pairs}/pairs.jsonl.gz"
        listed.append(curate("pairs", drawn, made, (a.nq_train, a.nq_dev)))
        listed.append(pack(study, "local", made, made, PAIRS))
    return listed


def curate(command: str, argv: tuple, out: str, needs: tuple) -> Step:
    return Step(command, ("-m", "study.curate", command, *argv), out, "file", tuple(needs))


def pack(study: Study, name: str, source: str, needs: str, how: tuple) -> Step:
    """A packed directory. Every amount has one seed, so that the smaller begins the larger."""
    argv = ("data.py", "pack", source, "--tokenizer", study.path, "--template", study.args.template)
    argv += (*how, "--seed", str(study.args.seed), "--out", study.data(name))
    return Step(f"pack-{name}", argv, study.data(name), "file", (needs, *study.base_files))


# --- the learning rate ---


def rate_steps(study: Study) -> list[Step]:
    """The middle amount at each rate, the held-out loss of each run, and the choice."""
    listed, results, packed = [], [], study.data(f"broad-{study.middle}")
    for rate in study.args.rates:
        name = f"rate-{rate:g}"
        run = study.run(name)
        argv = ("train.py", "--init", study.path, "--data", packed, *broad_batch(study))
        argv += (*study.train, "--lr", f"{rate:g}", "--out", run)
        listed.append(Step(f"train-{name}", argv, run, "run", (packed, *study.base_files)))
        m = measured(study, Model(name, run, (run,), {}))
        held_out(study, m, labelled=False)
        listed += m.steps
        results.append(m.out("heldout"))
    argv = ("-m", "study.grid.rate", "choose", *results, "--out", study.rate)
    return [*listed, Step("rate", argv, study.rate, "file", tuple(results))]


def broad_batch(study: Study) -> tuple:
    return ("--batch", str(study.args.batch))


# --- imitation ---


class Kind(NamedTuple):
    """One kind of imitation. flags: train.py's, of its data."""

    source: str
    amount: str
    flags: tuple
    needs: tuple


def kinds(study: Study) -> list[Kind]:
    """All kinds; those of one step's length and less come first, the longest last."""
    a, listed = study.args, []
    for amount in sorted(a.amounts, key=lambda x: (x != study.middle, terminal.count(x))):
        packed = study.data(f"broad-{amount}")
        listed.append(Kind("broad", amount, (packed, *broad_batch(study)), (packed,)))
    if study.local:
        packed = study.data("local")
        amount = str(a.pairs * real_facts.PAIR_TOKENS)
        data = (packed, "--batch", str(PAIRS_A_STEP))
        listed.insert(1, Kind("local", amount, data, (packed,)))
    if a.plain:
        packed = study.data(f"broad-{a.amounts[-1]}")
        data = (packed, "--mix", a.plain, "--mix-fraction", "0.5", *broad_batch(study))
        listed.append(Kind("mixed", a.amounts[-1], data, (packed, a.plain)))
    return listed


def imitation(study: Study, kind: Kind) -> tuple[Step, Model]:
    """One imitation run at the chosen rate, and the model it makes."""
    name = f"{study.base}-{kind.source}" + f"-{kind.amount}" * (kind.source == "broad")
    run, rate = study.run(name), ("-m", "study.grid.rate")
    if kind.source == "broad" and kind.amount == study.middle:
        tried = tuple(study.run(f"rate-{r:g}") for r in study.args.rates)
        step = Step(
            f"train-{name}",
            (*rate, "take", study.rate, "--out", run),
            run,
            "run",
            (study.rate, *tried),
        )
    else:
        argv = (*rate, "train", study.rate, "--init", study.path, "--data", *kind.flags)
        argv += (*study.train, "--out", run)
        needs = (study.rate, *study.base_files, *kind.needs)
        step = Step(f"train-{name}", argv, run, "run", needs)
    labels = {"role": "imitation", "amount": kind.amount, "source": kind.source}
    return step, Model(name, run, (run,), labels)


# --- measures ---


def measured(study: Study, model: Model) -> Measured:
    labels = {"base": study.base, "seed": study.args.seed, **model.labels}
    where = (study.out, model.name, model.path, model.needs, labels)
    return Measured(*where, study.eval, shape=ONE_SHAPE)


def held_out(study: Study, m: Measured, labelled: bool | dict) -> None:
    packed = study.data("heldout")
    m.eval("heldout", "perplexity", "--input", packed, files=(packed,), labelled=labelled)


def measures(study: Study, model: Model) -> list[Step]:
    """All that is measured of one model."""
    m, a = measured(study, model), study.args
    held_out(study, m, {"part": "heldout"})
    if a.wikitext:
        window = ("--window", str(a.block), "--tokens", str(terminal.count(a.wikitext_tokens)))
        text = ("--input", a.wikitext, *window)
        m.eval("perplexity", "perplexity", *text, files=(a.wikitext,))
    return measure(study.wanted, m)
