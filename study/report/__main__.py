"""The paper's Tables 1 and 2 and Figures 1, 3, 4 and 5 from result directories.

    python -m study.report out/grid --out out/report      # grid.json has the labels
    python -m study.report r/base r/20m --label r/base=base=7B \\
        --label r/20m=base=7B,tokens=20M,source=mix --out report

What a label says stands in points.py. Seeds are dots, the line goes through their means; intervals
are the results' own. Grey: the paper's own figures, as far as they are published as numbers (its
two tables). Left out: the figures' data that the paper shows as curves only.
"""

import sys

from host import terminal


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.report",
        description="The paper's Tables 1 and 2 and Figures 1, 3, 4, 5 from result directories, "
        "and what they say.",
        epilog="Leaves in --out: index.html (all in one), figure-N.png and .svg, tables.txt, "
        "report.json (every number).",
    )
    p.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="result directories, or folders that hold them (and grid.json, at any depth)",
    )
    p.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="PATH=base=7B,tokens=20M,source=mix",
        help="labels of a result that is in no grid.json; also size, seed, "
        "role=base|imitation|teacher",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    return p


def main(argv: list[str] | None = None) -> int:
    def run():
        args = parser().parse_args(argv)
        from study.report import writing

        writing.report(args.results, args.label, args.out)

    return terminal.program(run, "study.report")


if __name__ == "__main__":
    sys.exit(main())
