"""Which of two answers does a strong model prefer? Every pair is asked in both orders.

    python -m study.judge A B --judge URL --judge-model gpt-4 --out results/7b/judge
    python -m study.judge review review_gpt35_vicuna-7b.jsonl
    python -m study.judge annotations annotations.json.gz
    python -m study.judge agreement results/7b/judge --human votes.json

A is under test, B the teacher. Only the command line is here: asking.py, existing.py, agreement.py.
"""

import argparse
import sys

from host import terminal
from study import access


def price(text: str) -> tuple:
    try:
        prices = tuple(float(x) for x in text.split(","))
    except ValueError:
        prices = ()
    if len(prices) != 2 or not min(prices) >= 0:
        raise argparse.ArgumentTypeError(
            f"{text} is not PROMPT,COMPLETION: two prices of a million tokens, such as 30,60"
        )
    return prices


def judge_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.judge",
        description="A strong model's preference between two sets of answers, asked in both "
        "orders.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Other commands: review FILES (Vicuna's reviews), annotations FILE (AlpacaEval's), "
        "agreement VERDICTS --human FILE; each has its --help.\n"
        "Leaves --out with results.json, samples.jsonl, index.html and requests.jsonl; stopped, "
        "the same command goes on.",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="answers under test: a result directory of eval.py generate, AlpacaEval JSON, Vicuna "
        "JSON lines; or, alone, a file with both answers in a row (PandaLM, AlpacaEval's "
        "annotations)",
    )
    p.add_argument("b", metavar="B", nargs="?", help="the teacher's answers to the same questions")
    judge_flags(p.add_argument_group("judge"))
    g = p.add_argument_group("run")
    g.add_argument("--out", required=True, metavar="DIR", help="result directory")
    g.add_argument("--limit", type=int, metavar="N", help="only the first N pairs")
    seed_flag(g)
    return p


def judge_flags(g: argparse._ArgumentGroup) -> None:
    access.add_flags(g, "judge", replay="out")
    g.add_argument(
        "--style",
        choices=["vicuna", "abtie"],
        default="vicuna",
        help="scores from 1 to 10, as Vicuna's evaluation; or A, B or tie [default %(default)s]",
    )
    g.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts in the form of Vicuna's prompt.jsonl [default: its three, built in; by the "
        "question's category]",
    )
    g.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl [default: one folder up from its answers]",
    )
    access.add_sampling_flags(g, 0.2, 1024, ", Vicuna's")
    g.add_argument(
        "--price",
        type=price,
        metavar="PROMPT,COMPLETION",
        help="of a million tokens, in any currency: the result then says the cost",
    )


def seed_flag(p: argparse._ActionsContainer) -> None:
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the intervals [default %(default)s]"
    )


def review_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.judge review",
        description="Score sums and wins of Vicuna's review files, parsed anew.",
    )
    p.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="review JSON lines: text, score, answer1_id, answer2_id",
    )
    p.add_argument(
        "--answers",
        nargs="+",
        default=[],
        metavar="FILE",
        help="the answers reviewed: adds names, the share of longer answers and the "
        "length-controlled win rate",
    )
    return p


def annotations_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.judge annotations",
        description="Win rate of AlpacaEval's annotations: as published, and length-controlled.",
    )
    p.add_argument("file", metavar="FILE", help="annotations JSON, .gz or not")
    return p


def agreement_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.judge agreement",
        description="A judge's verdicts against people's: accuracy and Cohen's kappa over win, tie "
        "and lose, with bootstrap intervals.",
    )
    p.add_argument(
        "verdicts",
        metavar="VERDICTS",
        help="a result directory of study.judge; or `longer`: the longer answer wins; or `humans`: "
        "every person against the others",
    )
    p.add_argument(
        "--human",
        required=True,
        metavar="FILE",
        help="PandaLM's votes (annotator1, annotator2, …), or a result directory of study.rate; "
        "the majority counts, without one it is a tie",
    )
    p.add_argument("--json", metavar="FILE", help="also write the figures there")
    seed_flag(p)
    return p


def judge_command(argv: list[str]) -> None:
    args = judge_parser().parse_args(argv)
    from study.judge import asking, prompts

    if args.limit is not None:
        access.at_least("--limit", args.limit, 1)
    sources = asking.Sources(args.a, args.b, args.questions, args.limit)
    style = prompts.Style(
        args.style,
        prompts.read_prompts(args.prompts),
        args.judge_model,
        args.temperature,
        args.max_tokens,
    )
    reach = access.of_flags(args, "judge")
    asking.judge(sources, style, reach, args.out, args.seed, args.price)


def review_command(argv: list[str]) -> None:
    args = review_parser().parse_args(argv)
    from study.judge import existing

    existing.review(args.files, args.answers)


def annotations_command(argv: list[str]) -> None:
    args = annotations_parser().parse_args(argv)
    from study.judge import existing

    existing.annotations(args.file)


def agreement_command(argv: list[str]) -> None:
    args = agreement_parser().parse_args(argv)
    from study.judge import agreement

    agreement.agreement(args.verdicts, args.human, args.json, args.seed)


COMMANDS = {
    "review": review_command,
    "annotations": annotations_command,
    "agreement": agreement_command,
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    named = bool(argv) and argv[0] in COMMANDS

    def run():
        COMMANDS[argv[0]](argv[1:]) if named else judge_command(argv)

    return terminal.program(run, "study.judge", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
