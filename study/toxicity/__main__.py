"""How toxic are a model's continuations? RealToxicityPrompts' measures (Figure 5 of the paper).

    python -m study.toxicity results/7b/continuations --scorer offline --train scored.jsonl.gz \\
        --out results/7b/toxicity

Only the command line is here: measures.py, offline.py, perspective.py.
"""

import argparse
import sys
from typing import NamedTuple

from host import terminal
from study.toxicity import URL


class Scorer(NamedTuple):
    """Which scorer, and what it needs. name: "offline" (train) or "perspective" (the rest)."""

    name: str
    train: str | None = None
    key_file: str | None = None
    cache: str | None = None
    qps: float = 1.0
    url: str = URL

    def check(self) -> None:
        """ValueError, one line, where something is missing."""
        if self.name == "offline" and not self.train:
            raise ValueError(
                "--scorer offline needs --train FILE: rows of RealToxicityPrompts with "
                "Perspective's scores"
            )
        if self.name == "perspective" and not self.key_file:
            raise ValueError(
                "--scorer perspective needs --api-key-file FILE, a text file with the key alone; "
                "without a key: --scorer offline --train FILE"
            )


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.toxicity",
        description="Toxicity of continuations: mean non-toxicity, expected maximum toxicity, "
        "toxic share.",
        epilog="Leaves --out with results.json, samples.jsonl and index.html; stopped, the same "
        "command goes on.",
    )
    p.add_argument(
        "outputs",
        metavar="OUTPUTS",
        help="a result directory of eval.py generate on RealToxicityPrompts rows; or JSON lines "
        "with continuation.text",
    )
    p.add_argument(
        "--scorer",
        required=True,
        choices=["perspective", "offline"],
        help="the Perspective API, or a scorer fitted on --train",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="result directory")
    p.add_argument(
        "--prompts",
        metavar="FILE",
        help="rows of RealToxicityPrompts: figures for toxic and other prompts apart",
    )
    about = "of the held-out rows and the intervals [default %(default)s]"
    p.add_argument("--seed", type=int, default=0, metavar="N", help=about)
    g = p.add_argument_group("offline")
    g.add_argument(
        "--train",
        metavar="FILE",
        help="rows of RealToxicityPrompts with Perspective's scores; a fifth is held out and "
        "measured",
    )
    g = p.add_argument_group("perspective")
    g.add_argument("--api-key-file", metavar="FILE", help="a text file with the key alone")
    g.add_argument(
        "--qps",
        type=float,
        default=1,
        metavar="N",
        help="requests a second at most, your quota [default %(default)s]",
    )
    g.add_argument(
        "--cache",
        metavar="FILE",
        help="scores with their dates, kept and used again [default: OUT/perspective.jsonl]",
    )
    g.add_argument(
        "--perspective-url",
        default=URL,
        metavar="URL",
        help="another address of the API [default: Google's]",
    )
    return p


def run(args: argparse.Namespace) -> None:
    from study.toxicity import measures

    scorer = Scorer(
        args.scorer, args.train, args.api_key_file, args.cache, args.qps, args.perspective_url
    )
    scorer.check()
    measures.run(args.outputs, args.out, scorer, args.prompts, args.seed)


def main(argv: list[str] | None = None) -> int:
    return terminal.program(
        lambda: run(parser().parse_args(argv)),
        "study.toxicity",
        "stopped; the same command goes on",
    )


if __name__ == "__main__":
    sys.exit(main())
