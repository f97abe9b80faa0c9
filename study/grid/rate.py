"""The learning rate of a grid, chosen once by the loss on held-out dialogues.

    python -m study.grid.rate choose HELDOUT... --out rate.json   # results of eval.py perplexity
    python -m study.grid.rate train rate.json --init M --data D --out RUN    # train.py at that rate
    python -m study.grid.rate take rate.json --out RUN            # the run that was tried with it

The rule: of the runs tried, the one with the least mean loss a held-out token; of two with the same
loss, the smaller rate. No benchmark is read. Left out: how many rates, and which (real.py).
"""

import argparse
import os
import pathlib
import sys

from host import files, terminal
from tasks import results


def candidate(folder: str | pathlib.Path) -> dict:
    """What a result of eval.py perplexity on a run says: its rate, loss, interval and run."""
    result = results.read_result(folder)
    if result.get("task") != "perplexity" or result.get("finished") is not True:
        raise ValueError(
            f"{folder} is no finished result of eval.py perplexity on held-out dialogues: run it"
        )
    run = result.get("model")
    try:
        rate = files.read_json(pathlib.Path(str(run)) / "run.json")["args"]["lr"]
    except (OSError, KeyError, TypeError):
        raise ValueError(f"{folder} measured {run}, which is no run of train.py") from None
    keys = ("nats_per_token", "tokens")
    return {"lr": rate, "run": run, "heldout": str(folder)} | {k: result[k] for k in keys}


def choose(folders: list[str], out: str | pathlib.Path) -> dict:
    """Write the chosen rate and all candidates to a file -> what it holds."""
    tried = sorted(map(candidate, folders), key=lambda c: c["lr"])
    if len({c["tokens"] for c in tried}) > 1:
        raise ValueError(
            f"{', '.join(folders)} are of different held-out tokens: measure them anew"
        )
    best = min(tried, key=lambda c: (c["nats_per_token"], c["lr"]))
    chosen = {"lr": best["lr"], "run": best["run"], "candidates": tried}
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out, chosen)
    for c in tried:
        mark = "  <- chosen" if c is best else ""
        print(f"lr {c['lr']:g}: {c['nats_per_token']:.4f} nats a held-out token{mark}")
    return chosen


def chosen_in(path: str | pathlib.Path) -> dict:
    """A file that `choose` wrote."""
    chosen = files.read_json(path)
    if not isinstance(chosen.get("lr"), float) or not isinstance(chosen.get("run"), str):
        raise ValueError(f"{path} names no rate: python -m study.grid.rate choose writes it")
    return chosen


def train(path: str, argv: list[str]) -> None:
    """Become train.py with the chosen rate: signals and exit status are its own."""
    lr = chosen_in(path)["lr"]
    program = pathlib.Path(__file__).resolve().parents[2] / "train.py"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(program), *argv, "--lr", f"{lr:g}"])


def take(path: str, out: str | pathlib.Path) -> None:
    """Name the run that was tried with the chosen rate, by a link beside the other runs."""
    out, run = pathlib.Path(out), pathlib.Path(chosen_in(path)["run"])
    if not (run / "run.json").is_file():
        raise ValueError(f"{run} is not there any more: train it again")
    if out.exists() or out.is_symlink():
        if out.is_symlink() and out.resolve() == run.resolve():
            return
        raise ValueError(f"{out} is there: remove it, or name another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.symlink_to(os.path.relpath(run, out.parent), target_is_directory=True)


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.grid.rate",
        description="Choose a learning rate by the loss on held-out dialogues, and train with it.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    c = commands.add_parser("choose", help="the rate of least held-out loss, into a JSON file")
    about = "results of eval.py perplexity on held-out dialogues, one a run"
    c.add_argument("results", nargs="+", metavar="RESULT", help=about)
    c.add_argument("--out", required=True, metavar="FILE")
    c = commands.add_parser("train", help="train.py at the chosen rate", add_help=False)
    c.add_argument("file", metavar="FILE", help="what choose wrote")
    c.add_argument("argv", nargs=argparse.REMAINDER, help="train.py's flags, without --lr")
    c = commands.add_parser("take", help="a link to the run that was tried with the chosen rate")
    c.add_argument("file", metavar="FILE", help="what choose wrote")
    c.add_argument("--out", required=True, metavar="RUN", help="name of the link")
    return p


def main(argv: list[str] | None = None) -> int:
    def run():
        args = parser().parse_args(argv)
        if args.command == "choose":
            choose(args.results, args.out)
        elif args.command == "train":
            train(args.file, args.argv)
        else:
            take(args.file, args.out)

    return terminal.program(run, "study.grid.rate")


if __name__ == "__main__":
    sys.exit(main())
