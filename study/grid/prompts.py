"""The prompts that a teacher is asked, and what it answered, as data that grows by amounts.

    python -m study.grid.prompts split prompts.jsonl --held-out 80 --amounts 125 500 2000 \\
        --against NQ-open.dev.jsonl mmlu/ --out DIR        # train.jsonl, heldout.jsonl
    python -m study.grid.prompts nested ANSWERS --prompts DIR/train.jsonl --first 500 \\
        --out 500.jsonl
    python -m study.grid.prompts local pairs.jsonl --against NQ-open.dev.jsonl --out local.jsonl

What is trained on gives no evaluation away: public evaluation prompts are known by fingerprint
(study/curate/known.py), and what is near a question of --against is dropped (BLEU, as in
study.curate leakage). Left out: asking (study.answers ask, eval.py generate).
"""

import argparse
import collections
import pathlib
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from host import files, terminal
from study import access, rows
from study.curate import known
from text import forms

THRESHOLD = 20.0  # percent of BLEU, the paper's of its evaluation prompts
MALFORMED = 0.01  # share of an evaluation's rows
SHUFFLE = 11  # of the stream of random numbers that orders the prompts


class Evaluation(NamedTuple):
    """What a training prompt must not give away. texts: {name of a file: its questions}."""

    texts: dict[str, list[str]]
    threshold: float = THRESHOLD


def evaluation_of(paths: list[str], threshold: float) -> Evaluation:
    """The questions of evaluation files in any form; a folder is MMLU's."""
    from study.curate import decontaminate

    texts = {}
    for name, text in decontaminate.prompts_of(paths, MALFORMED) if paths else ():
        texts.setdefault(name, []).append(text)
    return Evaluation(texts, threshold)


def near(prompts: list[str], references: list[str], what: str, threshold: float) -> list[bool]:
    """Which prompts have a BLEU above the threshold against any of the references."""
    if not prompts or not references:
        return [False] * len(prompts)
    from study.curate import queries

    scores, _ = queries.search(f"leakage, {what}", prompts, references, 1)
    return [bool(score > threshold) for score in scores]


class Filter:
    """Texts less those that give an evaluation away. dropped: {reason: how many}."""

    def __init__(self, evaluation: Evaluation):
        self.evaluation, self.dropped = evaluation, collections.Counter()

    def __call__(self, texts: list[str]) -> list[int]:
        """The numbers of the texts that are kept, in order."""
        kept, seen = [], set()
        for number, text in enumerate(texts):
            same, whose = " ".join(text.split()), known.name_of(text)
            if not same or same in seen:
                self.dropped["repeated" if same else "blank"] += 1
            elif whose:
                self.dropped[f"evaluation prompts of {whose}, not to be trained on"] += 1
            else:
                kept.append(number)
            seen.add(same)
        for name, references in self.evaluation.texts.items():
            kept = self.far(texts, kept, references, name)
        return kept

    def far(self, texts: list[str], kept: list[int], references: list[str], what: str) -> list[int]:
        """Those of `kept` that are near none of the references."""
        threshold = self.evaluation.threshold
        close = near([texts[k] for k in kept], references, what, threshold)
        if n := sum(close):
            self.dropped[f"near a question of {what} (BLEU above {threshold:g} %)"] += n
        return [k for k, too_near in zip(kept, close, strict=True) if not too_near]


# --- the prompts ---


def split(
    paths: list[str],
    evaluation: Evaluation,
    held_out: int,
    amounts: list[int],
    seed: int,
    out: str | pathlib.Path,
) -> None:
    """The command: held-out prompts, and those that the teacher is asked to be imitated."""
    from study import questions
    from text.rows import shuffled

    given = questions.read(paths)
    order = [given[i] for i in shuffled(len(given), seed, SHUFFLE)]
    texts, sieve = [q.text for q in order], Filter(evaluation)
    kept = sieve(texts)
    held, rest = kept[:held_out], kept[held_out:]
    rest = sieve.far(texts, rest, [texts[k] for k in held], "the held-out prompts")
    wanted = max(amounts)
    dropped = dict(sieve.dropped.most_common())
    if len(held) < held_out or len(rest) < wanted:
        said = "".join(f"; {n} {why}" for why, n in dropped.items())
        raise ValueError(
            f"{', '.join(paths)}: of {len(given)} prompts {len(rest)} are left to train on beside "
            f"{len(held)} held out, fewer than --amounts {wanted} and --held-out {held_out}"
            f"{said}: name smaller amounts, or more prompts"
        )
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_prompts(out / "train.jsonl", [texts[k] for k in rest[:wanted]], "t")
    counts = {"prompts": len(given), **dropped, "held out": held_out}
    counts |= {"to be asked for training": wanted, "left over": len(rest) - wanted}
    settings = {"prompts": [pathlib.Path(p).name for p in paths], "seed": seed}
    settings |= {"evaluations": {name: len(t) for name, t in evaluation.texts.items()}}
    settings |= {"threshold": evaluation.threshold}
    files.write_json(out / "prompts.json", {"settings": settings, "counts": counts})
    write_prompts(out / "heldout.jsonl", [texts[k] for k in held], "h")  # last: all is there
    print("".join(f"{n:>12,} {name}\n" for name, n in counts.items()) + str(out))


def write_prompts(path: pathlib.Path, texts: Iterable[str], letter: str) -> None:
    lines = [rows.json_line({"id": f"{letter}{n}", "prompt": t}) for n, t in enumerate(texts)]
    files.write_whole(path, b"".join(lines))


# --- the answers ---


def nested(source: str, prompts: str, first: int, out: str | pathlib.Path) -> None:
    """The command: the answers to the first prompts as dialogues; more of them begin the same."""
    from study import answers

    asked = [(name, text) for name, text, _ in rows.each([prompts], rows.prompt_of)][:first]
    if first > len(asked):
        raise ValueError(
            f"{prompts} holds {len(asked)} prompts, fewer than --first {first}: split more of them "
            "into another folder"
        )
    said = {a["id"]: a for a in answers.read(source)}
    there = [x for x in asked if x[0] in said and said[x[0]]["output"].strip()]
    if not there:
        raise ValueError(f"{source} answers none of the first {first} prompts: ask again")
    lines = [
        rows.json_line(rows.dialogue(name, text, said[name]["output"], said[name]["model"]))
        for name, text in there
    ]
    files.write_whole(out, b"".join(lines))
    print(f"{len(lines)} answers to {first} prompts, {first - len(lines)} without one: {out}")


def local(paths: list[str], evaluation: Evaluation, out: str | pathlib.Path) -> None:
    """The command: dialogues whose first question gives no evaluation away."""
    read = [d for d in rows.each(paths, forms.parse_row) if first_question(d)]
    sieve = Filter(evaluation)
    kept = sieve([first_question(d) for d in read])
    if not kept:
        raise ValueError(f"{', '.join(paths)}: no dialogue is left, of {len(read)}")
    files.write_whole(out, b"".join(rows.json_line(read[k]) for k in kept))
    counts = {"dialogues": len(read), **dict(sieve.dropped.most_common()), "kept": len(kept)}
    print("".join(f"{n:>12,} {name}\n" for name, n in counts.items()) + str(out))


def first_question(dialogue: dict[str, Any]) -> str:
    """What the human says first, or ""."""
    turns = dialogue.get("conversations", [])
    return next((rows.clean(t["value"]) for t in turns if t["from"] == "human"), "")


# --- command line ---


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.grid.prompts",
        description="Prompts for a teacher without those that give an evaluation away, and its "
        "answers as data, more of it beginning with less.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "held-out prompts, and those to train on"
    c = commands.add_parser("split", help=text, description=text)
    c.add_argument("prompts", nargs="+", metavar="FILE", help="as of study.answers ask")
    c.add_argument("--held-out", type=int, default=80, metavar="N", help="[default %(default)s]")
    about = "prompts to train on, each number beginning the next"
    c.add_argument("--amounts", type=int, nargs="+", required=True, metavar="N", help=about)
    evaluation_flags(c)
    c.add_argument("--seed", type=int, default=0, metavar="N", help="of the order [%(default)s]")
    c.add_argument("--out", required=True, metavar="DIR", help="folder of both, and of counts")
    text = "a teacher's answers to the first prompts, as dialogues"
    c = commands.add_parser("nested", help=text, description=text)
    c.add_argument("answers", metavar="ANSWERS", help="of study.answers ask or eval.py generate")
    c.add_argument("--prompts", required=True, metavar="FILE", help="train.jsonl, that was asked")
    c.add_argument("--first", type=int, required=True, metavar="N", help="of the prompts")
    c.add_argument("--out", required=True, metavar="FILE", help="the dialogues")
    text = "local imitation data without what gives an evaluation away"
    c = commands.add_parser("local", help=text, description=text)
    c.add_argument("dialogues", nargs="+", metavar="FILE", help="dialogues in any form")
    evaluation_flags(c)
    c.add_argument("--out", required=True, metavar="FILE", help="the dialogues")
    return p


def evaluation_flags(c: argparse.ArgumentParser) -> None:
    c.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation files, or MMLU's folder: what is near a question of theirs is dropped",
    )
    c.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="PERCENT",
        help="BLEU above which a prompt is near a question [default %(default)g]",
    )


def run(args: argparse.Namespace) -> None:
    for name, least in (("held_out", 2), ("seed", 0), ("first", 1)):
        if hasattr(args, name):
            access.at_least(f"--{name.replace('_', '-')}", getattr(args, name), least)
    for amount in getattr(args, "amounts", ()):
        access.at_least("--amounts", amount, 1)
    if args.command == "nested":
        return nested(args.answers, args.prompts, args.first, args.out)
    evaluation = evaluation_of(args.against, args.threshold)
    if args.command == "local":
        return local(args.dialogues, evaluation, args.out)
    return split(args.prompts, evaluation, args.held_out, args.amounts, args.seed, args.out)


def main(argv: list[str] | None = None) -> int:
    return terminal.program(lambda: run(parser().parse_args(argv)), "study.grid.prompts")


if __name__ == "__main__":
    sys.exit(main())
