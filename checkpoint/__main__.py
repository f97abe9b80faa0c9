"""Weights in and out.

    python -m checkpoint convert RUN DST --to hf    a model path -> a Hugging Face folder
    python -m checkpoint diff BASE TUNED OUT        what may be published where the base may not
    python -m checkpoint recover BASE OUT TUNED     and back, bit for bit

A model path is a run directory, a Hugging Face folder, a .gguf file, params::FILE (an EasyLM
stream), a llama2.c .bin or ORG/NAME on the hub. Koala was published as a difference.
"""

import argparse
import contextlib
import signal
import sys

from checkpoint import MODEL_PATHS
from host import terminal


def parser() -> terminal.Parser:
    """The command's flags."""
    top = terminal.Parser(
        prog="python -m checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    for command, *model_paths in (
        ("convert", "src"),
        ("diff", "base", "tuned"),
        ("recover", "base", "diff"),
    ):
        sub = commands.add_parser(command)
        for path in model_paths:
            sub.add_argument(path, metavar=path.upper(), help=MODEL_PATHS)
        sub.add_argument(
            "dst", metavar="DST", help="where to write: a new path, or an empty folder"
        )
        sub.add_argument(
            "--to", choices=("hf", "easylm"), default="hf", help="what to write [default: hf]"
        )
        sub.add_argument(
            "--tokenizer",
            metavar="PATH",
            help="for --to hf [default: the one lying with the model]",
        )
        sub.add_argument(
            "--model-preset",
            metavar="NAME",
            help="of an EasyLM stream, which does not tell: llama-7b, … (`python model.py`)",
        )
        if command == "diff":
            sub.add_argument(
                "--float",
                action="store_true",
                help="tuned - base in float32, as Koala was released "
                "[default: difference of the bit patterns, from which recover is exact]",
            )
        else:
            sub.add_argument(
                "--dtype",
                choices=("float32", "bfloat16", "float16"),
                default="float32",
                help="[default: float32]",
            )
        if command == "convert":
            sub.add_argument(
                "--step",
                type=int,
                metavar="N",
                help="which checkpoint of a run [default: the last]",
            )
    return top


def run(argv: list[str] | None) -> None:
    """Parse the command and carry it out."""
    args = parser().parse_args(argv)
    from checkpoint import convert  # JAX is not imported to print help

    with contextlib.suppress(ValueError):  # outside the main thread there are no signals to take
        # so that nothing half-written stays
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    output = convert.Output(args.dst, args.to, getattr(args, "dtype", ""), args.tokenizer)
    if args.command == "convert":
        convert.convert(args.src, output, args.model_preset, args.step)
    elif args.command == "diff":
        convert.diff(args.base, args.tuned, output, args.model_preset, args.float)
    else:
        convert.recover(args.base, args.diff, output, args.model_preset)


def main(argv: list[str] | None = None) -> int:
    """The command's exit status."""
    return terminal.program(lambda: run(argv), "checkpoint")


if __name__ == "__main__":
    sys.exit(main())
