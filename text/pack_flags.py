"""The command line of data.py.

    python data.py pack --help

Apart from data.py, so that --help costs no NumPy.
"""

import argparse

from host import terminal
from text import TOKENIZER_PATHS, templates

TEMPLATES, PACKS = tuple(templates.TEMPLATES), ("stream", "documents", "rows")


def parser() -> argparse.ArgumentParser:
    p = terminal.Parser(
        prog="data.py",
        description="Dialogues -> ids and loss masks -> packed rows on disk.",
        epilog="data.py pack --help and data.py show --help say more.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="pack|show")
    _pack_flags(
        commands.add_parser(
            "pack",
            help="sources -> a packed directory",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            description="Tokenize dialogues, pack them into rows of block + 1 ids with a mask.",
            epilog=PACK_EPILOG,
        )
    )
    c = commands.add_parser(
        "show",
        help="print a row, loss tokens coloured",
        description="Print a row of a packed directory, loss tokens in green.",
    )
    add = c.add_argument
    add("dir", metavar="DIR", help="a packed directory")
    add("--row", type=int, default=0, metavar="N", help="from 0 [default 0]")
    add("--split", default="train", metavar="NAME", help="train or validation [default train]")
    add("--tokenizer", metavar="PATH", help="[default: the copy in DIR/tokenizer]")
    return p


PACK_EPILOG = """\
Sources are told apart by content: ShareGPT, chat messages, HC3, Alpaca, Koala, Baize, {"text"}
rows, plain text, TFDS directories; JSON, JSON lines, gzipped or not (`python -m text.dialogues
--help` lists the forms). The paper (arXiv 2305.15717) packs into blocks of 2048 tokens, loss on the
assistant's text only, and compares 0.3M to 150M tokens of the same mix.

example: python data.py pack sharegpt.json.gz hc3/ --tokenizer llama/ --tokens 20M \\
             --eval-fraction 0.02 --out mix20M"""


def _pack_flags(c):
    sources = "files, or folders of them (there plain text counts only where named .txt)"
    c.add_argument("sources", nargs="+", metavar="SOURCE", help=sources)
    out = "the directory to write, whole or not at all"
    c.add_argument("--out", required=True, metavar="DIR", help=out)
    add = c.add_argument_group("dialogue -> ids").add_argument
    path = f"{TOKENIZER_PATHS}; DIR gets a copy"
    add("--tokenizer", required=True, metavar="PATH", help=path)
    template = (
        "roles: special tokens before each turn (the paper's); koala: BEGINNING OF CONVERSATION: "
        "USER: ... GPT: as text; chatml, llama3: where the tokenizer has their tokens [default "
        "roles]"
    )
    add("--template", choices=TEMPLATES, default="roles", help=template)
    add = c.add_argument_group("ids -> rows").add_argument
    packing = (
        "stream: concatenate and cut (the paper's); documents: whole dialogues side by side where "
        "they fit best, attention within each; rows: one dialogue a row, cut at the block [default "
        "stream]"
    )
    add("--pack", choices=PACKS, default="stream", help=packing)
    block = (
        "tokens to predict in a row, which holds T + 1 [default and paper 2048; GPT-2 allows 1024]"
    )
    add("--block", type=int, default=2048, metavar="T", help=block)
    add = c.add_argument_group("how much, and which").add_argument
    tokens = (
        "tokens of the train split before packing, at most: 300000, 0.3M, 20M; the amounts of one "
        "seed are nested [paper 0.3M to 150M; default all]"
    )
    add("--tokens", metavar="N", help=tokens)
    held = "share of the dialogues for the split validation, the same for any --tokens [default 0]"
    add("--eval-fraction", type=float, default=0.0, metavar="X", help=held)
    bad = "stop where more than this share of a file's rows is malformed [default 0.01]"
    add("--max-bad-rows", dest="max_bad", type=float, default=0.01, metavar="X", help=bad)
    seed = "of the dialogues' order and split [default 0]"
    add("--seed", type=int, default=0, metavar="N", help=seed)
    processes = (
        "processes that tokenize; any number gives the same bytes [default: the cores; 1 for small "
        "sources]"
    )
    c.add_argument("--workers", type=int, metavar="N", help=processes)
