"""Should I imitate? Your base models, your teacher, your prompts: what imitation would give.

    python -m study.grid --preset own --base SMALL LARGE --teacher URL --teacher-model NAME \\
        --prompts prompts.jsonl --questions questions.jsonl --out DIR

The teacher is asked the prompts, less those that give an evaluation away; each base is trained on
its answers in nested amounts; base, imitations and teacher take the same benchmarks; the report
says what rises, what does not and what it cost. docs/own.md walks through it. What is asked of an
endpoint is counted first, and one that is not on this machine needs --yes. Left out: prices of
accelerators, choosing prompts.
"""

import argparse
import pathlib
import re
import shlex
import urllib.parse

from host.hub_name import is_hub_name
from study import access
from study.grid import questions, teacher
from study.grid.measured import (
    Wanted,
    benchmark_flags,
    benchmarks,
    measure,
    mesh_of,
    missing_flags,
    named,
    run_flags,
)
from study.grid.steps import Measured, Step, done
from study.grid.teacher import Asked, Teacher
from web.guard import LOOPBACK

RUNS = True
AMOUNTS = (125, 500, 2000)  # prompts; fewer where the file has fewer
PUBLIC = ("mmlu", "nq", "nq0", "humaneval")
ASKING = ("ask-", "judge-", "style-")  # names of steps that may ask an endpoint
USABLE = 0.9  # of the prompts: the filter takes some
# Answers are few beside the paper's: smaller steps, three passes.
RECIPE = ("--batch", "8", "--epochs", "3", "--warmup-fraction", "0.1")
NO_PROMPTS = (
    "the preset own needs --prompts FILE, what the teacher is asked: Koala's, Self-Instruct's and "
    "Vicuna's prompts are evaluation prompts and must not be trained on; take your users' "
    "questions, or alpaca_data.json's"
)


# --- flags ---


def flags(p: argparse.ArgumentParser) -> None:
    trained_flags(p.add_argument_group("who imitates whom"))
    asked_flags(p.add_argument_group("what the teacher is asked"))
    recipe_flags(p.add_argument_group("how it is trained"))
    measured_flags(p.add_argument_group("what is measured"))


def trained_flags(g: argparse._ArgumentGroup) -> None:
    add = g.add_argument
    add(
        "--base",
        nargs="+",
        default=[],
        metavar="MODEL",
        help="base models: a path, ORG/NAME or NAME=PATH; of several the name ends in the size, "
        "such as 135M",
    )
    add("--tokenizer", metavar="PATH", help="of bases that bring none")
    add("--teacher", metavar="URL_OR_MODEL", help="an OpenAI-compatible endpoint, or a model path")
    add("--teacher-model", metavar="NAME", help="its name at the endpoint")
    add("--api-key-file", metavar="FILE", help="its key [default: OPENAI_API_KEY]")


def asked_flags(g: argparse._ArgumentGroup) -> None:
    add = g.add_argument
    add("--prompts", nargs="+", metavar="FILE", help="as of study.answers ask; no evaluation's")
    add(
        "--amounts",
        type=int,
        nargs="+",
        metavar="N",
        help=f"prompts to train on, in nested amounts [default {' '.join(map(str, AMOUNTS))}, or "
        "what there is]",
    )
    add("--held-out", type=int, default=80, metavar="N", help="prompts to compare on [%(default)s]")
    add("--local", metavar="FILE", help="local imitation data, dialogues: trained whole")
    add("--against", nargs="+", default=[], metavar="FILE", help="further evaluations to spare")
    add("--max-tokens", type=int, default=256, metavar="N", help="of an answer [%(default)s]")
    add("--temperature", type=float, default=1.0, metavar="X", help="of the teacher [%(default)s]")
    add("--concurrency", type=int, default=8, metavar="N", help="requests at once [%(default)s]")
    add("--timeout", type=float, default=120, metavar="S", help="of one try [%(default)s]")
    add("--price", metavar="P,C", help="of a million prompt and completion tokens: 0.15,0.6")
    add("--yes", action="store_true", help="agree to what an endpoint elsewhere costs")
    add("--replay", metavar="DIR", help="the teacher's answers from the logs of an earlier --out")


def recipe_flags(g: argparse._ArgumentGroup) -> None:
    about = f'runs of each kind, by "{" ".join(RECIPE)}" [%(default)s]'
    g.add_argument("--seeds", type=int, default=1, metavar="N", help=about)
    run_flags(g)


def measured_flags(g: argparse._ArgumentGroup) -> None:
    add = g.add_argument
    add("--questions", metavar="FILE", help=questions.FORM.replace("%", "%%"))
    about = "examples, the first rows of each kind [%(default)s]"
    add("--question-shots", type=int, default=questions.SHOTS, metavar="K", help=about)
    benchmark_flags(g)
    add("--limit", type=int, metavar="N", help="first N questions of each (MMLU: of a subject)")
    add("--judge", metavar="URL", help="a third model's endpoint [default: no judge]")
    add("--judge-model", metavar="NAME", help="the model there")
    add("--judge-key-file", metavar="FILE", help="its key")


# --- what the flags say ---


def is_url(text: str | None) -> bool:
    return bool(text) and str(text).startswith(("http://", "https://"))


def is_paid(url: str | None) -> bool:
    """Whether an endpoint is not on this machine."""
    return is_url(url) and urllib.parse.urlsplit(str(url)).hostname not in LOOPBACK


def model_path(path: str, flag: str) -> str:
    """A model path that is there, or a name on the hub."""
    if not (is_hub_name(path) or pathlib.Path(path.removeprefix("params::")).exists()):
        raise ValueError(f"{flag} {path} does not exist: name a model path, or ORG/NAME on the hub")
    return path


def bases_of(texts: list[str]) -> dict[str, str]:
    """{name: path}; a path without a name is named after its last part."""
    pairs = []
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals:
            stem = pathlib.PurePath(text).name.removesuffix(".bin").removesuffix(".gguf")
            name, path = re.sub(r"[^A-Za-z0-9.]", ".", stem), text
        pairs.append(f"{name}={model_path(path, '--base')}")
    bases = named(pairs, "--base")
    if not bases:
        raise ValueError("the preset own needs --base MODEL, what is to imitate")
    sizeless = [n for n in bases if not re.search(r"\d[kKmMbB]$", n)]
    if len(bases) > 1 and sizeless:
        raise ValueError(
            f"--base {sizeless[0]}: of several bases each name ends in the size: write "
            f"135M={bases[sizeless[0]]}"
        )
    return bases


def amounts_of(given: list[int] | None, prompts: int, held_out: int) -> list[int]:
    """The amounts in rising order; without a flag what the prompts allow."""
    if given:
        for amount in given:
            access.at_least("--amounts", amount, 1)
        if max(given) + held_out > prompts:
            raise ValueError(
                f"--amounts {max(given)} and --held-out {held_out} need more than the {prompts} "
                "prompts of --prompts: name smaller ones, or more prompts"
            )
        return sorted(set(given))
    most = min(AMOUNTS[-1], int(USABLE * prompts) - held_out)
    if most < 4:
        raise ValueError(
            f"--prompts holds {prompts} prompts, too few beside --held-out {held_out}: name more, "
            "or hold out fewer"
        )
    return sorted({max(1, most * amount // AMOUNTS[-1]) for amount in AMOUNTS})


def teacher_of(args: argparse.Namespace) -> Teacher:
    """The teacher of the flags; ValueError where there is none."""
    if not args.teacher:
        raise ValueError("the preset own needs --teacher, who is imitated: a URL or a model path")
    for name, least in (("max_tokens", 1), ("held_out", 2), ("seeds", 1), ("question_shots", 0)):
        access.at_least(f"--{name.replace('_', '-')}", getattr(args, name), least)
    if is_url(args.teacher) != bool(args.teacher_model):
        raise ValueError(
            f"--teacher {args.teacher}: an endpoint needs --teacher-model NAME, and a model path "
            "has none"
        )
    reach = ("--concurrency", str(args.concurrency), "--timeout", str(args.timeout))
    reach += ("--api-key-file", args.api_key_file) if args.api_key_file else ()
    if not is_url(args.teacher):
        model_path(args.teacher, "--teacher")
        reach = evals_of(args)
    how = args.temperature, args.max_tokens, reach, args.replay
    return Teacher(pathlib.Path(args.out), args.teacher, args.teacher_model, *how)


def evals_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Further flags of every eval.py."""
    return (*mesh_of(args), *shlex.split(args.eval_flags))


class Plan:
    """The flags, read and checked, and what the steps are made from."""

    def __init__(self, args: argparse.Namespace):
        if not args.prompts:
            raise ValueError(NO_PROMPTS)
        from study.questions import read

        self.args, self.out = args, pathlib.Path(args.out)
        self.bases, self.teacher = bases_of(args.base), teacher_of(args)
        self.prompts = [q.text for q in read(args.prompts)]
        self.amounts = amounts_of(args.amounts, len(self.prompts), args.held_out)
        self.own = questions.Own([], [])
        if args.questions:
            self.own = questions.read(args.questions, args.question_shots)
        tokenizer = ("--tokenizer", args.tokenizer) if args.tokenizer else ()
        self.evals = evals_of(args)
        self.trains = (*mesh_of(args), *tokenizer, *RECIPE, *shlex.split(args.train_flags))
        self.tokenizer = tokenizer
        self.local = local_size(args.local) if args.local else 0
        self.wanted, self.notes = self.measured()

    def file(self, *parts: str) -> str:
        return str(self.out.joinpath(*parts))

    def measured(self) -> tuple[Wanted, list[str]]:
        """What measured.py's functions measure, and notes on what is left out."""
        args, notes, tasks = self.args, [], ["style", "rate"]
        args.toxicity_scorer = "offline"
        chosen = {
            "mmlu": args.mmlu,
            "nq": args.nq_train,
            "nq0": args.nq_dev and not args.nq_train,
            "humaneval": args.humaneval,
            "judge": args.judge,
            "toxicity": args.toxicity_prompts,
        }
        for task in (task for task, given in chosen.items() if given):
            lacking = missing_flags(task, args)
            if lacking:
                raise ValueError(f"{task} also needs --{lacking[0].replace('_', '-')}")
            tasks.append(task)
        if not (self.own.open or self.own.choices or {*PUBLIC} & {*tasks}):
            notes.append(
                "nothing asks what the models know: --questions FILE, --mmlu, --nq-dev or "
                "--humaneval"
            )
        files = {"prompts": self.file("prompts", "heldout.jsonl")}
        files |= {"teacher": self.teacher.folder("heldout")}
        files |= {"teacher2": self.teacher.folder("again"), "api_key_file": args.judge_key_file}
        limit = ("--limit", str(args.limit)) if args.limit else ()
        flags = dict.fromkeys((*PUBLIC, "questions", "choices"), limit)
        flags |= {"answers": ("--max-new-tokens", str(args.max_tokens))}
        code = args.run_untrusted_code
        return Wanted(self.out, tasks, vars(args) | files, code, flags), notes

    def own_questions(self, m: Measured) -> None:
        """The steps that ask a model the questions of --questions."""
        k, made = str(self.args.question_shots), (self.file("questions", "questions.json"),)
        told = {"files": made, "labelled": {"part": "own"}}
        if self.own.open:
            data = ("--data", self.file("questions", "asked.jsonl"), "--shots", k)
            data += ("--train", self.file("questions", "shots.jsonl")) if int(k) else ()
            m.eval("questions", "nq", *data, **told)
        if self.own.choices:
            data = ("--data", self.file("questions", "choices"), "--shots", k)
            m.eval("choices", "mmlu", *data, **told)


def local_size(path: str) -> int:
    """How many dialogues a file of local data has."""
    from study import rows
    from text import forms

    n = sum(1 for _ in rows.each([path], forms.parse_row))
    if not n:
        raise ValueError(f"--local {path} holds no dialogue")
    return n


# --- the steps ---


def steps(args: argparse.Namespace) -> tuple[list[Step], list[str]]:
    """All steps in order, and notes."""
    plan = Plan(args)
    prepared = [*asked(plan), *nested(plan), *local_data(plan)]
    trainings, models = [], []
    for name, path in plan.bases.items():
        models += measures(plan, name, path, base(name), ())
        for run, argv, out, labels in imitations(plan, name, path):
            trainings.append(Step(f"train-{run}", argv, out, "run", (labels.pop("data"),)))
            models += measures(plan, run, out, labels, (out,))
    of_teacher = teachers(plan)
    listed = [*prepared, *of_teacher, *trainings, *models]
    return listed, money(plan, listed)


def base(name: str) -> dict:
    return {"base": name, "role": "base", "unit": "answers"}


def asked(plan: Plan) -> list[Step]:
    """The questions of one's own, the prompts, and the teacher's answers to them."""
    args, listed = plan.args, []
    needs = (*args.prompts, *args.against)
    needs += tuple(filter(None, (args.nq_dev, args.mmlu, args.humaneval)))
    if args.questions:
        made = plan.file("questions", "questions.json")
        argv = ("-m", "study.grid.questions", "own", args.questions)
        argv += ("--shots", str(args.question_shots), "--out", plan.file("questions"))
        listed.append(Step("questions", argv, made, "file", (args.questions,)))
        needs += (made,)
    evaluations = evaluation_flags(plan)
    made = plan.file("prompts", "heldout.jsonl")
    argv = ("-m", "study.grid.prompts", "split", *args.prompts, "--held-out", str(args.held_out))
    argv += ("--amounts", *map(str, plan.amounts), *evaluations, "--out", plan.file("prompts"))
    listed.append(Step("prompts", argv, made, "file", needs))
    train, ask = plan.file("prompts", "train.jsonl"), plan.teacher.ask
    return [
        *listed,
        ask("train", train, (made,), 1),
        ask("heldout", made, (made,), 1),
        ask("again", made, (made,), 2),
    ]


def evaluation_flags(plan: Plan) -> tuple[str, ...]:
    """Whose questions the training prompts must not give away."""
    args = plan.args
    against = [*args.against, *filter(None, (args.nq_dev, args.mmlu, args.humaneval))]
    against += [plan.file("questions", "asked.jsonl")] if plan.own.open else []
    against += [plan.file("questions", "choices")] if plan.own.choices else []
    return ("--against", *against) if against else ()


def nested(plan: Plan) -> list[Step]:
    """The teacher's answers as data, a file an amount."""
    listed, source = [], plan.teacher.folder("train")
    for amount in plan.amounts:
        out = plan.file("data", f"{amount}.jsonl")
        argv = ("-m", "study.grid.prompts", "nested", source, "--first", str(amount))
        argv += ("--prompts", plan.file("prompts", "train.jsonl"), "--out", out)
        listed.append(Step(f"data-{amount}", argv, out, "file", (source,)))
    return listed


def local_data(plan: Plan) -> list[Step]:
    if not plan.local:
        return []
    out, needs = plan.file("data", "local.jsonl"), (plan.args.local,)
    needs += (plan.file("questions", "questions.json"),) if plan.args.questions else ()
    argv = ("-m", "study.grid.prompts", "local", plan.args.local, *evaluation_flags(plan))
    return [Step("data-local", (*argv, "--out", out), out, "file", needs)]


def imitations(plan: Plan, name: str, path: str) -> list[tuple]:
    """(run, arguments, folder, labels and "data") of each training of a base."""
    kinds = [("broad", n, plan.file("data", f"{n}.jsonl"), ()) for n in plan.amounts]
    if plan.local:
        rows = ("--pack", "rows")
        kinds.append(("local", plan.local, plan.file("data", "local.jsonl"), rows))
    listed = []
    for source, amount, data, more in kinds:
        for seed in range(plan.args.seeds):
            run = f"{name}-{source}-{amount}" + (f"-seed{seed}" if plan.args.seeds > 1 else "")
            argv = ("train.py", "--init", path, "--data", data, *more, "--seed", str(seed))
            argv += ("--out", plan.file("runs", run), *plan.trains)
            labels = base(name) | {"role": "imitation", "amount": str(amount), "source": source}
            listed.append(
                (run, argv, plan.file("runs", run), labels | {"seed": seed, "data": data})
            )
    return listed


def measures(plan: Plan, name: str, model: str, labels: dict, needs: tuple[str, ...]) -> list[Step]:
    """The steps that measure one model of ours."""
    tokenizer = plan.tokenizer if labels["role"] == "base" else ()  # a run brings its own
    shape = f"{labels['base']} {labels['role']}"
    m = Measured(plan.out, name, model, needs, labels, (*plan.evals, *tokenizer), shape)
    m.flags = plan.wanted.flags
    plan.own_questions(m)
    return measure(plan.wanted, m)


def teachers(plan: Plan) -> list[Step]:
    """The steps that ask the teacher the same questions."""
    who = plan.teacher
    own = {"role": "teacher"}
    m = Measured(plan.out, "teacher", who.where, (), own, plan.evals, shape="teacher")
    m.flags = plan.wanted.flags
    plan.own_questions(m)
    benchmarks(plan.wanted, m)
    return teacher.ask_benchmarks(who, m.steps) if who.name else m.steps


# --- money ---


def money(plan: Plan, listed: list[Step]) -> list[str]:
    """Notes on what endpoints are asked; ValueError where that costs and nobody agreed."""
    args, notes, paid = plan.args, list(plan.notes), []
    price = None
    if args.price:
        from study.judge.__main__ import price as parse

        try:
            price = parse(args.price)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--price {error}") from None
    undone = {s.name for s in listed if s.name.startswith(ASKING) and not done(s)}
    if plan.teacher.name and not args.replay:
        if any(name.startswith("ask-") for name in undone):
            notes.append(teacher.said(args.teacher, asked_of_teacher(plan, undone), price))
            paid += notes[-1:] if is_paid(args.teacher) else []
    judged = sum(not name.startswith("ask-") for name in undone)
    if "judge" in plan.wanted.tasks and judged:
        notes.append(teacher.said(args.judge, [asked_of_judge(plan, judged)], None))
        paid += notes[-1:] if is_paid(args.judge) else []
    if paid and not args.yes and args.run is not False:
        raise ValueError("; ".join(paid) + ": agree with --yes, or see the commands with --no-run")
    return notes


def asked_of_teacher(plan: Plan, undone: set[str]) -> list[Asked]:
    """The requests to the teacher that no log answers yet, by kind."""
    args, listed = plan.args, []
    held = args.held_out
    kinds = [("train", plan.amounts[-1], "to train on"), ("heldout", held, "held out")]
    kinds.append(("again", held, "held out, a second time"))
    for part, n, what in kinds:
        if f"ask-{part}" in undone:
            tokens = teacher.mean_tokens(plan.prompts, n)
            listed.append(Asked(what, n, tokens, n * args.max_tokens))
    m = Measured(plan.out, "teacher", "TEACHER", (), {})
    m.flags = plan.wanted.flags
    benchmarks(plan.wanted, m)
    listed += teacher.asked_of_own(plan.own, args.question_shots, args.limit, undone)
    for step in m.steps:
        name = step.name.removesuffix("-teacher")
        if f"ask-{name}" in undone:
            texts = teacher.prompts_of(step)
            n, longest = len(texts), teacher.BRIEF[step.argv[1]][0]
            listed.append(Asked(f"of {name}", n, teacher.tokens_of(texts), n * longest))
    return listed


def asked_of_judge(plan: Plan, judged: int) -> Asked:
    """What the judge is asked in so many steps: a pair in both orders, or the tone of both."""
    n = 2 * judged * plan.args.held_out
    each = teacher.mean_tokens(plan.prompts, 1) + 2 * plan.args.max_tokens + teacher.JUDGED[0]
    return Asked("to compare answers and rate their tone", n, n * each, n * teacher.JUDGED[1])
