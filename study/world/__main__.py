"""An invented world from a seed, as files: what the small study is made of.

    python -m study.world --out DIR                  # about 1.2M tokens; --size tiny for a tenth

Only the command line is here: making.py.
"""

import sys

from host import terminal

SIZES = ("small", "tiny")  # making.SIZES says what they hold


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.world",
        description="Write an invented world: encyclopedia, a teacher's answers, benchmarks, "
        "tokenizer.",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the files")
    p.add_argument("--size", default="small", choices=SIZES, help="[default %(default)s]")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="[default %(default)s]")
    return p


def main(argv: list[str] | None = None) -> int:
    def run():
        args = parser().parse_args(argv)
        from study.world import making

        making.make(args.out, args.size, args.seed)

    return terminal.program(run, "study.world")


if __name__ == "__main__":
    sys.exit(main())
