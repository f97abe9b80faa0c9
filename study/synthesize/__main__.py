"""NQ-synthetic, written by a teacher; and the teacher's answers to given prompts.

    python -m study.synthesize --teacher http://localhost:8000/v1 --teacher-model NAME --n 6000 \\
        --out out/nq-synthetic
    python -m study.synthesize answers --prompts FILE --teacher URL --teacher-model NAME --out DIR

The teacher is any OpenAI-compatible chat endpoint (pip install openai). Writes dialogues.jsonl
(train.py and data.py read it), report.json and log.jsonl: every request with its answer. Stopped,
the same command goes on and asks nothing twice; --replay LOG repeats a run without a network, byte
for byte. Left out: whether an answer is true; prices (tokens are counted).
"""

import argparse
import sys

from host import terminal
from study import access


def parser(command: str) -> terminal.Parser:
    about = __doc__.split("\n\n")
    p = terminal.Parser(
        prog="python -m study.synthesize" + (" answers" if command == "answers" else ""),
        description=about[0],
        epilog=about[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    g = p.add_argument_group("teacher")
    access.add_flags(g, "teacher")
    access.add_sampling_flags(g, 1.0, None, ", the paper's")
    if command == "answers":
        g = p.add_argument_group("prompts")
        g.add_argument(
            "--prompts",
            nargs="+",
            required=True,
            metavar="FILE",
            help="rows with a prompt, an instruction (and input), a text or a question; or "
            "dialogues, whose first user turn is asked",
        )
        g.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
        g.add_argument(
            "--samples", type=int, default=1, metavar="N", help="answers to each [%(default)s]"
        )
    else:
        g = p.add_argument_group("pairs")
        g.add_argument(
            "--n",
            type=int,
            default=6000,
            metavar="N",
            help="pairs to make [%(default)s, the paper's]",
        )
        g.add_argument(
            "--seeds",
            metavar="FILE",
            help='JSON lines {"question", "answer"} [default: the ten of the paper]',
        )
        g.add_argument(
            "--exclude",
            nargs="+",
            metavar="FILE",
            help="evaluation files (such as NQ-open.dev.jsonl) whose questions are dropped",
        )
        g.add_argument(
            "--seed", type=int, default=0, metavar="N", help="of the pairs shown [%(default)s]"
        )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder of dialogues, report.json and log.jsonl"
    )
    return p


def pairs_command(argv: list[str]) -> None:
    args = parser("pairs").parse_args(argv)
    from study import rows
    from study.synthesize import pairs

    teacher = access.Model(args.teacher_model, args.temperature, args.max_tokens)
    reach = access.of_flags(args, "teacher")
    with rows.locked(args.out) as out:
        pairs.synthesize(args.n, args.seeds, args.exclude, args.seed, teacher, reach, out)


def answers_command(argv: list[str]) -> None:
    args = parser("answers").parse_args(argv)
    from study import questions, rows
    from study.synthesize import answers

    teacher = access.Model(args.teacher_model, args.temperature, args.max_tokens)
    reach = access.of_flags(args, "teacher")
    asking = questions.Asking(args.system, args.samples)
    with rows.locked(args.out) as out:
        answers.collect(args.prompts, asking, teacher, reach, out)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    named = argv[:1] == ["answers"]

    def run():
        answers_command(argv[1:]) if named else pairs_command(argv)

    return terminal.program(run, "study.synthesize", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
