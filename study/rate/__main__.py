"""Blind pairwise rating: a page on which people choose the better answer, and what they chose.

    python -m study.rate A B --db votes.sqlite                 # serves http://127.0.0.1:8017/
    python -m study.rate results --db votes.sqlite --out DIR   # majority, intervals; DIR/votes.csv
    python -m study.rate results --votes testset-v1.json       # the same of PandaLM's votes

A is under test, B the teacher, in any form that study/answers.py reads, paired on the same
instruction. The same command goes on. Only the command line is here: server.py, preference.py.
"""

import argparse
import sys

from host import terminal


def rating_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.rate",
        description="Serve a page on which people choose the better of two answers, names hidden; "
        "or, as `results`, say what their votes say.",
        epilog="results: python -m study.rate results --help. Keys on the page: 1 or left, 2 or "
        "right, 0 equal.",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="answers under test: a result directory of eval.py generate, AlpacaEval JSON, Vicuna "
        "JSONL, ...",
    )
    p.add_argument("b", metavar="B", help="the teacher's answers")
    p.add_argument(
        "--db",
        required=True,
        metavar="FILE",
        help="SQLite file of the votes; made where it is not there, gone on with where it is",
    )
    p.add_argument(
        "--questions", metavar="FILE", help="Vicuna's question.jsonl, where answers lack questions"
    )
    p.add_argument(
        "--raters",
        type=int,
        default=3,
        metavar="N",
        help="different raters an item [default %(default)s, the paper's]",
    )
    p.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    add_attention_flags(p)
    add_server_flags(p)
    return p


def add_attention_flags(p: argparse.ArgumentParser) -> None:
    """How items are handed to raters, and how attention is checked."""
    p.add_argument(
        "--gold",
        metavar="FILE",
        help='attention checks, JSON lines {"instruction", "better", "worse"}; every rater meets '
        "them among the others",
    )
    p.add_argument(
        "--gold-every",
        type=int,
        default=10,
        metavar="N",
        help="one gold item in N items of a rater [default %(default)s]",
    )
    p.add_argument(
        "--lease",
        type=float,
        default=600,
        metavar="S",
        help="seconds after which an item that nobody touches may go to another rater [default "
        "%(default)g]",
    )


def add_server_flags(p: argparse.ArgumentParser) -> None:
    """Where the page is served, and to whom."""
    p.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="other than loopback demands --tokens [default %(default)s]",
    )
    p.add_argument(
        "--port", type=int, default=8017, metavar="N", help="0: any free one [default %(default)s]"
    )
    p.add_argument(
        "--tokens", metavar="FILE", help="one line `name token` a person: only they can rate"
    )
    p.add_argument(
        "--name",
        nargs="+",
        default=[],
        metavar="HOST",
        help="further names under which the page is opened (a proxy's, or with --host 0.0.0.0)",
    )


def results_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.rate results",
        description="Majority, win / tie / lose, intervals, agreement, time.",
    )
    p.add_argument(
        "--db", metavar="FILE", help="votes of the rating page, or of a talk (serve --votes)"
    )
    p.add_argument(
        "--pair",
        nargs=2,
        metavar=("A", "B"),
        help="of a talk with more than two models: only the votes on these two",
    )
    p.add_argument(
        "--votes",
        metavar="FILE",
        help="votes in PandaLM's form instead: annotator1, annotator2, ... (0 equal, 1 first, "
        "2 second)",
    )
    p.add_argument(
        "--min-gold",
        type=float,
        default=0.0,
        metavar="X",
        help="leave out raters with less than this share of their gold items right [default "
        "%(default)s]",
    )
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the bootstrap [default %(default)s]"
    )
    p.add_argument(
        "--out", metavar="DIR", help="also write results.json, samples.jsonl, index.html, votes.csv"
    )
    return p


def run_rating(args: argparse.Namespace) -> None:
    from study.rate import server

    place = server.Place(args.host, args.port, args.tokens, tuple(args.name))
    sources = {
        "a": args.a,
        "b": args.b,
        "questions": args.questions,
        "gold": args.gold,
        "limit": args.limit,
    }
    server.serve(sources, args.db, place, args.raters, args.lease, args.gold_every)


def run_results(args: argparse.Namespace) -> None:
    from study.rate import preference

    if bool(args.db) == bool(args.votes):
        raise ValueError(
            "results needs --db FILE (votes of this program) or --votes FILE (PandaLM's form), and "
            "not both"
        )
    if not 0 <= args.min_gold <= 1:
        raise ValueError(f"--min-gold {args.min_gold} is out of range: use a share from 0 to 1")
    preference.report(args.db, args.votes, args.min_gold, args.seed, args.out, args.pair)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)

    def parse_and_run():
        if argv[:1] == ["results"]:
            run_results(results_parser().parse_args(argv[1:]))
        else:
            run_rating(rating_parser().parse_args(argv))

    return terminal.program(parse_and_run, "study.rate")


if __name__ == "__main__":
    sys.exit(main())
