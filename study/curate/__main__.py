"""The imitation data: from raw downloads to a training set, how varied it is, what it gives away.

    python -m study.curate mix --sharegpt FILE... --hc3 FILE... --discord FILE... --out DIR
    python -m study.curate amounts DIR/mix.jsonl.gz --tokenizer T --tokens 0.3M 20M --out DIR
    python -m study.curate diversity FILE
    python -m study.curate leakage PROMPTS --train FILE --threshold 20
    python -m study.curate decontaminate FILE --prompts PROMPTS --out DIR

Only the command line is here: mix.py, sheet.py, amounts.py, diversity.py, leakage.py,
decontaminate.py, split.py, pairs.py.
Left out: synthesis (study.synthesize).
"""

import argparse
import os
import sys

from host import terminal
from study.curate import MENTIONS

WORKERS = "processes [default: one a core, one for little data]"


def parser() -> terminal.Parser:
    p = terminal.Parser(prog="python -m study.curate", description=__doc__.split("\n\n")[0])
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    mix_flags(commands)
    amounts_flags(commands)
    diversity_flags(commands)
    leakage_flags(commands)
    decontaminate_flags(commands)
    split_flags(commands)
    pairs_flags(commands)
    return p


def mix_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "mix",
        help="ShareGPT-Mix from raw downloads",
        description="ShareGPT-Mix: the paper's imitation data, every drop counted and shown.",
    )
    g = p.add_argument_group("what is read")
    for source, about in (
        ("sharegpt", "ShareGPT files (JSON, JSON lines, .gz); Markdown or early HTML exports"),
        ("hc3", "HC3 files; the ChatGPT answers are used, the people's are not"),
        ("discord", 'JSON lines {"input", "output"} or DiscordChatExporter JSON of a bot channel'),
    ):
        g.add_argument(f"--{source}", nargs="+", default=[], metavar="FILE", help=about)
    max_bad_flag(g)
    g = p.add_argument_group("what is dropped")
    g.add_argument(
        "--dedup",
        choices=("first", "all", "none"),
        default="first",
        help="same user query: the first one, or all of the dialogue's; ShareGPT and Discord "
        "[default %(default)s]",
    )
    g.add_argument(
        "--drop-mentions",
        action="store_true",
        help=f"Koala's filter: drop dialogues that mention {', '.join(MENTIONS)}",
    )
    g.add_argument("--keep-languages", action="store_true", help="do not drop what is not English")
    g = p.add_argument_group("what is written")
    g.add_argument(
        "--out", metavar="DIR", help="folder of mix.jsonl.gz, report.json, report.html (sheet.csv)"
    )
    g.add_argument(
        "--tokenizer", nargs="+", default=[], metavar="PATH", help="count tokens by these"
    )
    g.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="write sheet.csv, N dialogues drawn for the manual review; without sources from the "
        "mix that is in --out",
    )
    g.add_argument("--seed", type=int, default=0, help="of the draw [default %(default)s]")
    g.add_argument(
        "--table", metavar="SHEET", help="print Table 5 from a filled sheet, and do nothing else"
    )
    g.add_argument("--workers", type=int, metavar="N", help=WORKERS)


def amounts_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "amounts",
        help="nested subsets of a mix by tokens",
        description="Nested amounts of imitation data: prefixes of one shuffle of one mix.",
    )
    p.add_argument("mix", metavar="MIX", help="mix.jsonl.gz, or the folder it is in")
    p.add_argument("--tokenizer", required=True, metavar="PATH", help="by which tokens are counted")
    p.add_argument(
        "--tokens", nargs="+", required=True, metavar="N", help="such as 0.3M 1M 3M 20M 80M 150M"
    )
    p.add_argument("--seed", type=int, default=0, help="of the shuffle [default %(default)s]")
    p.add_argument("--out", required=True, metavar="DIR", help="folder of subsets, amounts.json")
    p.add_argument("--workers", type=int, metavar="N", help=WORKERS)


def diversity_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "diversity",
        help="BLEU of each query's most similar other query",
        description="For each user query (the first of each dialogue) the BLEU of the most "
        "similar other one. Two sets are compared at equal size (--sample).",
    )
    p.add_argument(
        "file",
        nargs="+",
        metavar="FILE",
        help="dialogues in any form, or Super-NaturalInstructions task files",
    )
    p.add_argument(
        "--all-turns", action="store_true", help="every user turn is a query, not the first alone"
    )
    p.add_argument("--sample", type=int, metavar="N", help="draw N queries")
    p.add_argument("--seed", type=int, default=0, help="of the draw [default %(default)s]")
    p.add_argument(
        "--closest", type=int, default=10, metavar="N", help="pairs to print [default %(default)s]"
    )
    search_flags(p)


def leakage_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "leakage",
        help="drop evaluation prompts that the training data gives away",
        description="Drops prompts whose BLEU against any user query of the training data is above "
        "the threshold, that are not English, or that are about code.",
    )
    p.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPTS",
        help="Koala's test set, Self-Instruct's user_oriented_instructions, AlpacaEval's, "
        "Vicuna's questions; JSON or JSON lines",
    )
    p.add_argument(
        "--train", nargs="+", required=True, metavar="FILE", help="dialogues; all user turns count"
    )
    threshold_flag(p, 20, "drop prompts with a higher BLEU")
    p.add_argument("--keep-languages", action="store_true", help="do not drop what is not English")
    p.add_argument("--keep-code", action="store_true", help="do not drop what is about code")
    search_flags(p)


def decontaminate_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "decontaminate",
        help="drop training dialogues that ask what an evaluation asks",
        description="Drops dialogues of which any user query has a BLEU above the threshold "
        "against an evaluation prompt. leakage drops the prompts instead.",
    )
    p.add_argument("file", nargs="+", metavar="FILE", help="dialogues")
    prompts_flag(p)
    threshold_flag(p, 20, "drop dialogues with a higher BLEU")
    split_out_flags(p)
    threads_flag(p)


def split_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "split",
        help="held-out dialogues apart from those to train on",
        description="Splits dialogues off, whole; those that ask the same fall on one side.",
    )
    p.add_argument("file", nargs="+", metavar="FILE", help="dialogues")
    p.add_argument("--n", type=int, required=True, metavar="N", help="dialogues held out")
    p.add_argument("--source", metavar="NAME", help="of the held-out dialogues [default: any]")
    p.add_argument("--seed", type=int, default=0, help="of the draw [default %(default)s]")
    split_out_flags(p)


def pairs_flags(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "pairs",
        help="local imitation: pairs of NQ-open's training file",
        description="Questions of NQ-open's training file with their first answers, as dialogues.",
    )
    p.add_argument("file", nargs="+", metavar="FILE", help="NQ-open.train.jsonl")
    prompts_flag(p)
    p.add_argument("--n", type=int, default=6000, metavar="N", help="pairs [default %(default)s]")
    p.add_argument("--seed", type=int, default=0, help="of the draw [default %(default)s]")
    threshold_flag(p, 40, "drop questions with a higher BLEU")
    split_out_flags(p)
    threads_flag(p)


def prompts_flag(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--prompts",
        nargs="+",
        required=True,
        metavar="PROMPTS",
        help="evaluation files: NQ-open.dev.jsonl, HumanEval.jsonl.gz, Vicuna's questions, ...; a "
        "folder is MMLU's",
    )


def threshold_flag(p: argparse.ArgumentParser, percent: int, about: str) -> None:
    about += " [default %(default)s]"
    p.add_argument("--threshold", type=float, default=percent, metavar="PERCENT", help=about)


def split_out_flags(p: argparse.ArgumentParser) -> None:
    max_bad_flag(p)
    p.add_argument("--out", required=True, metavar="DIR", help="folder of what is written")


def max_bad_flag(p: argparse._ActionsContainer) -> None:
    p.add_argument(
        "--max-bad-rows",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of malformed rows above which a file is refused [default %(default)s]",
    )


def search_flags(p: argparse.ArgumentParser) -> None:
    max_bad_flag(p)
    threads_flag(p)
    p.add_argument("--out", metavar="DIR", help="folder for the report [default: new under out/]")


def threads_flag(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--threads", type=int, default=os.cpu_count(), metavar="N", help="[default: one a core]"
    )


# Each command imports what it needs only when it runs: --help costs no NumPy.


def run_mix(args: argparse.Namespace) -> None:
    from study.curate import mix, sheet

    if args.table:
        print(sheet.table(args.table))
        return
    if not args.out:
        raise ValueError("mix needs --out DIR to write to (or --table SHEET to read)")
    if args.sample is not None and args.sample < 1:
        raise ValueError(f"--sample {args.sample}: at least one dialogue has to be drawn")
    sources = {s: getattr(args, s) for s in mix.SOURCES if getattr(args, s)}
    rules = mix.Rules(args.dedup, args.drop_mentions, args.keep_languages)
    review = sheet.Draw(args.sample, args.seed) if args.sample else None
    mix.run(sources, args.out, rules, args.tokenizer, args.max_bad_rows, args.workers, review)


def run_amounts(args: argparse.Namespace) -> None:
    from study.curate import amounts

    summary = amounts.subsets(
        args.mix, args.tokenizer, args.tokens, args.seed, args.out, args.workers
    )
    print(*amounts.lines(summary), sep="\n")


def run_diversity(args: argparse.Namespace) -> None:
    from study.curate import diversity

    diversity.run(
        args.file,
        diversity.Draw(args.all_turns, args.sample, args.seed),
        args.out,
        args.closest,
        args.max_bad_rows,
        args.threads,
    )


def run_leakage(args: argparse.Namespace) -> None:
    from study.curate import leakage

    leakage.run(
        args.prompts,
        args.train,
        leakage.Rules(args.threshold, args.keep_languages, args.keep_code),
        args.out,
        args.max_bad_rows,
        args.threads,
    )


def run_decontaminate(args: argparse.Namespace) -> None:
    from study.curate import decontaminate

    how = (args.threshold, args.out, args.max_bad_rows, args.threads)
    decontaminate.run(args.file, args.prompts, *how)


def run_split(args: argparse.Namespace) -> None:
    from study.curate import split

    at_least_one(args.n)
    split.run(args.file, args.n, args.source, args.seed, args.out, args.max_bad_rows)


def run_pairs(args: argparse.Namespace) -> None:
    from study.curate import pairs

    at_least_one(args.n)
    how = (args.threshold, args.seed, args.out, args.max_bad_rows, args.threads)
    pairs.run(args.file, args.prompts, args.n, *how)


def at_least_one(n: int) -> None:
    if n < 1:
        raise ValueError(f"--n {n}: at least one")


RUN = {
    "mix": run_mix,
    "amounts": run_amounts,
    "diversity": run_diversity,
    "leakage": run_leakage,
    "decontaminate": run_decontaminate,
    "split": run_split,
    "pairs": run_pairs,
}


def run(args: argparse.Namespace) -> None:
    RUN[args.command](args)


def main(argv: list[str] | None = None) -> int:
    return terminal.program(lambda: run(parser().parse_args(argv)), "study.curate")


if __name__ == "__main__":
    sys.exit(main())
