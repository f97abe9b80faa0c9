"""Do larger bases know more? The gate of the small grid, before any imitation is trained.

    python -m study.report.gate GRID/results/S/nq GRID/results/L/nq --out FILE

Left out: what a grid found (findings.py).
"""

import pathlib
import sys

from host import files, terminal
from tasks import results, scores


def gate(folders: list, out: str | pathlib.Path, whatever: bool = False) -> None:
    """Write FILE with the bases' scores and their paired differences.

    ValueError where the largest base does not know more than the smallest.
    """
    if len(folders) < 2:
        raise ValueError(f"{folders[0]} alone: name two result directories or more")
    heads, steps = [results.read_result(f) for f in folders], []
    for a, b in zip(folders, folders[1:], strict=False):
        d, (low, high) = scores.paired_bootstrap(*results.pair(a, b)[1:3])
        steps.append({"from": str(a), "to": str(b), "difference": d, "interval": (low, high)})
    d, (low, high) = scores.paired_bootstrap(*results.pair(folders[0], folders[-1])[1:3])
    for folder, head in zip(folders, heads, strict=True):
        bounds = "{:.1%} to {:.1%}".format(*head["interval"])
        print(f"{folder}: {head['score']:.1%} ({bounds}, n {head['n']})")
    points = f"{100 * low:+.1f} to {100 * high:+.1f}"
    print(f"largest minus smallest {100 * d:+.1f} points ({points}, paired bootstrap)")
    if low <= 0 and not whatever:
        raise ValueError(
            f"{folders[-1]} does not know more than {folders[0]} ({points} points): the study "
            "needs bases that differ; train them longer, or --whatever"
        )
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    kept = ("score", "interval", "n")
    comparison = {
        "scores": [
            {"path": str(f), **{k: h[k] for k in kept}} for f, h in zip(folders, heads, strict=True)
        ],
        "steps": steps,
        "largest minus smallest": {"difference": d, "interval": (low, high)},
    }
    files.write_whole(out, files.dumps(comparison, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    p = terminal.Parser(
        prog="python -m study.report.gate",
        description="Do larger base models know more? Compare their exact match on the same "
        "questions; status 2 where the largest does not beat the smallest.",
    )
    p.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="result directories of eval.py nq, the smallest base first, two or more",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the comparison, JSON")
    p.add_argument("--whatever", action="store_true", help="write it whatever comes out")

    def run():
        args = p.parse_args(argv)
        gate(args.results, args.out, args.whatever)

    return terminal.program(run, "study.report.gate")


if __name__ == "__main__":
    sys.exit(main())
