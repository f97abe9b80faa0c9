"""The command line of eval.py: each benchmark's own flags, those they share, what is out of range.

    python eval.py --help

Importing this costs no JAX. A task's Options are its part of the parsed flags.
"""

import argparse
import dataclasses
import pathlib
import shlex
from typing import Any, NamedTuple

from host.terminal import Parser, say
from tasks import generate, humaneval, loglik, mmlu, nq, perplexity
from text import TOKENIZER_PATHS

TASKS = {
    "generate": generate,
    "loglik": loglik,
    "perplexity": perplexity,
    "mmlu": mmlu,
    "nq": nq,
    "humaneval": humaneval,
}
PRESETS = "gpt2-xl, llama-7b, llama-13b, …"
# the least that a flag takes
LEAST = {
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
    "tokens": 1,
    "workers": 1,
}
# flags that every task of `run` gets
SHARED = (
    "model",
    "tokenizer",
    "model_preset",
    "mesh",
    "dtype",
    "batch",
    "limit",
    "seed",
    "checkpoints",
)
# what says where a result goes and what it is of, but is no setting of the measurement
NO_SETTINGS = (
    "task",
    "out",
    "model",
    "tokenizer",
    "checkpoints",
    "write_prompts",
    "run_untrusted_code",
    "template",  # the one in force is a setting of the task
)
UNSAID = ("self_test", "cut_at_code_end", "tokens")


class Source(NamedTuple):
    """Which model, and how it is opened."""

    model: str  # a model path
    tokenizer: str | None
    model_preset: str | None
    mesh: str | None
    dtype: str | None
    batch: int
    template: str | None  # of conversations, where the task has them


class Head(NamedTuple):
    """What a result says of its measurement before there is a score."""

    task: str
    settings: dict
    model: str | None  # a model path


def parser() -> argparse.ArgumentParser:
    """The parser of eval.py, a command a task."""
    p = Parser(
        prog="eval.py",
        description="Evaluate a model: any of "
        + ", ".join([*TASKS, "chat"])
        + "; several of them (run); the commands of a file (commands); or compare two results.",
        epilog="Each leaves --out with results.json, samples.jsonl and index.html; stopped, the "
        "same command goes on.",
    )
    commands = p.add_subparsers(dest="task", required=True, metavar="TASK")
    common = shared_flags()
    for name, task in TASKS.items():
        command = commands.add_parser(name, help=task.HELP, description=task.HELP, parents=[common])
        task.add_flags(command)
        if hasattr(task.Options, "predictions"):
            add_api_flags(command)
    text = "a conversation in the terminal"
    chat = commands.add_parser("chat", help=text, description=text, parents=[common])
    generate.add_template_flag(chat)
    generate.add_sampling_flags(chat, 0.7, 512)
    text = "several tasks on one model, and one table of their scores"
    add_run_flags(commands.add_parser("run", help=text, description=text, parents=[common]))
    text = "commands of a file, one a line, in one start; models of one shape are compiled once"
    listed = commands.add_parser("commands", help=text, description=text)
    listed.add_argument(
        "file", metavar="FILE", help="lines such as: nq --model M --data FILE --shots 3 --out DIR"
    )
    compare = commands.add_parser(
        "compare",
        help="paired difference of two result directories",
        description="The paired difference B - A on the same items, its interval, and McNemar's "
        "test.",
    )
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--seed", type=int, default=0, metavar="N")
    return p


def add_run_flags(command: argparse.ArgumentParser) -> None:
    """The flags of several tasks in one call."""
    add = command.add_argument_group("tasks").add_argument
    add(
        "tasks",
        nargs="+",
        metavar="TASK",
        help=f"of {', '.join(in_folder())}; with its own flags in quotes: 'mmlu --shots 0'",
    )
    add(
        "--data",
        required=True,
        metavar="DIR",
        help="a folder of the public benchmarks: mmlu/, nq_open/, humaneval/",
    )
    add(
        "--run-untrusted-code",
        action="store_true",
        help="agree that programs written by a model are run here (humaneval)",
    )


def in_folder() -> list[str]:
    """The tasks whose files are found in a folder of the public benchmarks."""
    return [name for name, task in TASKS.items() if hasattr(task, "flags_for")]


def commands_of(args: argparse.Namespace, out: str) -> list[list[str]]:
    """The command line of each task of `run`."""
    shared = []
    for name in SHARED:
        value = getattr(args, name)
        if value is not None:
            shared += [f"--{name.replace('_', '-')}", str(value)]
    commands = []
    for line in args.tasks:
        name, *own = shlex.split(line)
        if name not in in_folder():
            raise ValueError(f"{name} is no task of run: use {', '.join(in_folder())}")
        files = TASKS[name].flags_for(pathlib.Path(args.data))
        agreed = ["--run-untrusted-code"] * (args.run_untrusted_code and name == "humaneval")
        commands.append(
            [name, *shared, *files, *agreed, "--out", str(pathlib.Path(out) / name), *own]
        )
    names = [command[0] for command in commands]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{twice} is there twice: give it an eval.py call of its own")
    return commands


def read_commands(path: str) -> list[tuple[int, argparse.Namespace]]:
    """[(number of its line, parsed command)] of a file of commands; empty lines are passed over."""
    texts = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    lines = [(number, shlex.split(text)) for number, text in enumerate(texts, 1) if text.strip()]
    if not lines:
        raise ValueError(f"{path} holds no command: write them one a line, without eval.py")
    for number, line in lines:
        if line[0] in ("chat", "commands"):
            raise ValueError(f"{path}, line {number}: {line[0]} is no command of a file: remove it")
    one = parser()
    return [(number, one.parse_args(line)) for number, line in lines]


def shared_flags() -> Parser:
    """The flags of every command but compare."""
    common = Parser(add_help=False)
    add = common.add_argument_group("model and devices").add_argument
    add(
        "--model",
        metavar="PATH",
        help="a run directory, a Hugging Face folder, a .gguf, params::FILE (EasyLM), a llama2.c "
        ".bin, or ORG/NAME on the hub",
    )
    add(
        "--tokenizer", metavar="PATH", help=f"{TOKENIZER_PATHS} [default: the one beside the model]"
    )
    add("--model-preset", metavar="PRESET", help=f"what an EasyLM stream is: {PRESETS}")
    add(
        "--mesh",
        metavar="DATAxTENSOR",
        help="Nx1: N replicas of the weights; 1xN: heads split over N [default: every device x 1]",
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of weights and activations [default: float32 on CPUs, else bfloat16]",
    )
    add(
        "--batch",
        type=int,
        default=16,
        metavar="N",
        help="texts generated at once; times 128 tokens when scoring [default %(default)s]",
    )
    add = common.add_argument_group("run").add_argument
    add("--out", metavar="DIR", help="result directory [default: a new one under out/]")
    add(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N items (mmlu: of each subject); the result says so",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of samples, shots and intervals [default %(default)s]",
    )
    add(
        "--checkpoints",
        choices=["all"],
        help="score every saved checkpoint of a run, each in OUT/step-N, and draw the curve",
    )
    return common


def add_api_flags(command: argparse.ArgumentParser) -> None:
    """The flags of benchmarks that a model without weights here can take part in."""
    add = command.add_argument_group("a model that has only an API").add_argument
    add("--write-prompts", metavar="FILE", help="write the prompts and stop")
    add(
        "--predictions",
        metavar="FILE",
        help='score answers given elsewhere: rows with a "prediction"',
    )


def options_of(args: argparse.Namespace) -> Any:
    """The Options of a parsed task."""
    options = TASKS[args.task].Options
    return options(**{f.name: getattr(args, f.name) for f in dataclasses.fields(options)})


def source_of(args: argparse.Namespace) -> Source:
    """The Source of a parsed task."""
    return Source(**{name: getattr(args, name, None) for name in Source._fields})  # type: ignore


def settings_of(args: argparse.Namespace) -> dict:
    """What of the command line belongs into a result."""
    # what is not asked for goes unsaid, as before there was such a flag
    left_out = {*NO_SETTINGS, *(n for n in UNSAID if not getattr(args, n, False))}
    return {name: value for name, value in vars(args).items() if name not in left_out}


def needs_model(args: argparse.Namespace) -> bool:
    """Whether a model answers: not where answers are given, or prompts are only written."""
    names = "predictions", "samples", "self_test", "write_prompts"
    return not any(getattr(args, name, None) for name in names)


def check(args: argparse.Namespace) -> None:
    """ValueError for what is out of range, or does not go together."""
    for name, least in LEAST.items():
        value = getattr(args, name, None)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} is out of range: use {least} or more")
    if args.seed >= 2**32:
        raise ValueError(f"--seed {args.seed} is out of range: use less than 2^32")
    if not 0 < getattr(args, "top_p", 1) <= 1:
        raise ValueError(f"--top-p {args.top_p} is out of range: use more than 0, at most 1")
    if getattr(args, "n", 1) > 1 and args.temperature == 0:
        say(f"note: --n {args.n} with --temperature 0 gives the same sample {args.n} times")
    if getattr(args, "template", None) and not getattr(args, "chat", True):
        raise ValueError(f"--template {args.template} needs --chat: without it nothing is a turn")
    if not args.model and needs_model(args):
        raise ValueError(
            f"{args.task} needs --model: a run directory, a Hugging Face folder, a .gguf, "
            "params::FILE, a llama2.c .bin or ORG/NAME on the hub"
        )
