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


def parser(command: str) -> terminal.Parser:
    about = __doc__.split("\n\n")
    p = terminal.Parser(
        prog="python -m study.synthesize" + (" answers" if command == "answers" else ""),
        description=about[0],
        epilog=about[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    teacher_flags(p.add_argument_group("teacher"))
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


def teacher_flags(g: argparse._ArgumentGroup) -> None:
    g.add_argument(
        "--teacher",
        metavar="URL",
        default="",
        help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1",
    )
    g.add_argument("--teacher-model", metavar="NAME", required=True, help="its name there")
    g.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="a file with the key alone [default: the variable OPENAI_API_KEY]; written nowhere",
    )
    g.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="[%(default)s, the paper's]"
    )
    g.add_argument(
        "--max-tokens", type=int, metavar="N", help="longest answer [default: the teacher's]"
    )
    g.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at once [%(default)s]"
    )
    g.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds for one try [%(default)s]"
    )
    g.add_argument(
        "--retries",
        type=int,
        default=6,
        metavar="N",
        help="further tries on 429, 5xx, time-outs and broken answers, each after twice the wait "
        "[default %(default)s]",
    )
    g.add_argument(
        "--replay", metavar="LOG", help="answer from the log of an earlier run; no network"
    )


def run(command: str, args: argparse.Namespace) -> None:
    from study.synthesize.teacher import Access, Teacher

    teacher = Teacher(args.teacher_model, args.temperature, args.max_tokens)
    access = Access(
        args.teacher, args.replay, args.api_key_file, args.concurrency, args.timeout, args.retries
    )
    from study import rows
    from study.synthesize import answers, pairs

    with rows.locked(args.out) as out:
        if command == "answers":
            prompts = answers.Prompts(args.prompts, args.system, args.samples)
            answers.collect(prompts, teacher, access, out)
        else:
            pairs.synthesize(args.n, args.seeds, args.exclude, args.seed, teacher, access, out)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = "answers" if argv[:1] == ["answers"] else "pairs"

    def parse_and_run():
        run(command, parser(command).parse_args(argv[command == "answers" :]))

    return terminal.program(parse_and_run, "study.synthesize", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
