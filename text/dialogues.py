"""Dialogues: read from every public form, which answers in them are learned, which belong together.

    python -m text.dialogues SOURCE...      # dialogues as JSON lines on stdout, the rest on stderr

A dialogue is {"id": str, "conversations": [{"from": "human" | "gpt" | "system", "value": str},
...]}, where "weight" 0 marks an answer that is context; a document of plain text, for language
modelling, is {"id": str, "text": str}. What a row may be: text/forms.py. What a file of rows may
be: text/sources.py. Left out: cleaning and filtering (study).
"""

import argparse
import collections
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from host import terminal
from text import forms
from text.forms import Dialogue, parse_row
from text.sources import Chunk, Row, raw_chunks, source_files

# Marks by which a dialogue was written into a text: its questions would be learned too.
TURN_MARKS = re.compile(
    r"### ?(Human|User|Instruction|Assistant|Response):|<\|im_start\|>|\[INST\]"
    r"|<\|(user|assistant)\|>|^(\n\n)?Human: |^USER: "
)
MARKED_TEXT = "texts with marks of turns in them (learned whole: make dialogues of them)"
SHOWN = 5  # malformed rows of a file that are reported one by one
PIECE = re.compile(r"([A-Za-z0-9]{7})_(\d{1,9})")  # ShareGPT's ids of pieces


# --- dialogues ---


def turns(dialogue: Dialogue, join_system: bool = True) -> list[tuple[str, str, bool]]:
    """[(speaker "human" | "gpt", text, learned)]: what the templates write, what is learned.

    A system text is joined to the human turn that follows it, by a blank line; where none follows
    at once it is a human turn of its own. Without join_system, "system" is a third speaker. An
    answer is learned where a human spoke before it and its weight is not 0: a piece cut out of a
    longer dialogue may begin with the assistant's turn, which is then context. Two turns in a row
    by one speaker stay two turns.
    """
    out, held, asked = [], [], False
    for turn in dialogue["conversations"]:
        if turn["from"] == "system" and not join_system:
            out.append(("system", turn["value"], False))
        elif turn["from"] == "system":
            held.append(turn["value"])
        elif turn["from"] == "human":
            out.append(("human", "\n\n".join([*held, turn["value"]]), False))
            held, asked = [], True
        else:
            out += [("human", "\n\n".join(held), False)] if held else []
            out.append(("gpt", turn["value"], asked and turn.get("weight") != 0))
            held = []
    return out + ([("human", "\n\n".join(held), False)] if held else [])


def has_answer(dialogue: Dialogue) -> bool:
    """Whether there is anything to learn: an answer to a human, or a text, that is not blank."""
    if "text" in dialogue:
        return bool(dialogue["text"].strip()) and dialogue.get("weight") != 0
    return any(learned and text.strip() for _, text, learned in turns(dialogue))


def peculiarities(dialogue: Dialogue) -> list[str]:
    """What is worth counting about a dialogue, a list of str."""
    if "text" in dialogue:
        return [MARKED_TEXT] if TURN_MARKS.search(dialogue["text"][:2000]) else []
    speakers = [t["from"] for t in dialogue["conversations"]]
    weights = [t.get("weight") for t in dialogue["conversations"]]
    spoken = [s for s in speakers if s != "system"]
    notes = [
        ("begins with the assistant (that turn is context)", spoken[:1] == ["gpt"]),
        ("has a system text (joined to the human turn after it)", "system" in speakers),
        (
            "one speaker twice in a row (kept as two turns)",
            any(a == b for a, b in zip(spoken, spoken[1:], strict=False)),
        ),
        ("ends with the human", spoken[-1:] == ["human"]),
        ("has answers that are not to be learned (context)", 0 in weights),
    ]
    return [note for note, holds in notes if holds]


def split_key(dialogue: Dialogue) -> int:
    """Leakage key, int64: dialogues with equal keys must land in the same split.

    Equal are the pieces that ShareGPT's dialogues were cut into (ids abcdefg_0, abcdefg_2, ...) and
    dialogues with the same questions (question_key). That ids look like pieces does not make them
    some: continues.
    """
    piece = piece_of(dialogue["id"])
    return _digest("piece\0" + piece[0]) if piece else question_key(dialogue)


def question_key(dialogue: Dialogue) -> int:
    """int64, equal for equal questions, such as exact copies and HC3's several answers to one."""
    asked = [t["value"] for t in dialogue.get("conversations", []) if t["from"] == "human"]
    if not asked and "text" in dialogue:
        asked = [dialogue["text"]]
    asked = asked or [t["value"] for t in dialogue["conversations"]]
    return _digest("asked\0" + "\0".join(asked))


def _digest(text):
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def piece_of(name: str) -> tuple[str, int] | None:
    """(id of the dialogue, n) of what may be a piece's id `<id>_<n>`, else None."""
    match = PIECE.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def continues(pieces: Iterable[tuple[int, int, str]]) -> bool:
    """Whether dialogues whose ids look like pieces of one are that: each (n, turns, first speaker).

    n counts turns, so a piece ends before the next begins; where it does not, the next still
    continues it if it opens with an answer. medical_0, medical_1, ... of two turns each are no
    pieces.
    """
    pieces = sorted(pieces)
    return all(
        n + turns <= later or (n < later and speaker == "gpt")
        for (n, turns, _), (later, _, speaker) in zip(pieces, pieces[1:], strict=False)
    )


# --- reading ---


class Malformed:
    """The malformed rows of one file: counted, the first ones reported, refused over a share."""

    def __init__(self, path: str | os.PathLike, max_bad: float):
        self.path, self.max_bad, self.rows, self.bad, self.first = path, max_bad, 0, 0, None

    def add(self, rows: int, bad: list[tuple[str, str]]) -> None:
        """`rows` rows were read, of which `bad` [(place, reason)] are malformed."""
        self.rows += rows
        for place, reason in bad:
            self.bad += 1
            self.first = self.first or f"{place}: {reason}"
            if self.bad <= SHOWN:
                terminal.say(
                    terminal.printable(f"{self.path} {place}: {reason}; skipped", lines=False)
                )

    def close(self) -> None:
        """After the last row: ValueError where the malformed rows are more than the share
        max_bad."""
        if self.bad > SHOWN:
            terminal.say(f"{self.path}: {self.bad - SHOWN:,} more malformed rows skipped")
        if self.bad > self.max_bad * self.rows:
            share = f"{self.bad:,} of {self.rows:,} rows are malformed ({self.bad / self.rows:.1%})"
            raise ValueError(
                f"{self.path}: {share}, over --max-bad-rows {self.max_bad:g} (first: "
                f"{self.first}): mend them, or raise --max-bad-rows to skip them"
            )


def parsed(
    chunk: Chunk,
    name: str,
    bad: list[tuple[str, str]],
    parse: Callable[[Row, str], list] = parse_row,
) -> Iterator[list]:
    """parse(row, "NAME PLACE") of each row of a chunk; (place, reason) of malformed ones go to
    `bad`."""
    for place, row in chunk:
        try:
            dialogues = parse(row, f"{name} {place}")
        except ValueError as error:
            bad.append((place, str(error)))
        else:
            yield dialogues


def each_row(
    paths: Iterable[str | os.PathLike],
    parse: Callable[[Row, str], list] = parse_row,
    max_bad: float = 0.01,
    counts: collections.Counter | None = None,
) -> Iterator[list]:
    """What parse(row, name) gives, a list, for every row of the sources one after another.

    Malformed rows (ValueError of `parse`) are reported on stderr and skipped; ValueError, one line,
    after the last row of a file where they are more than the share `max_bad`. counts receives
    "rows" and "malformed".
    """
    counts = collections.Counter() if counts is None else counts
    sources, passed = source_files(paths)
    for path in passed:
        terminal.say(f"{path}: no data (JSON, JSON lines, .txt), passed over")
    for source in sources:
        malformed = Malformed(source, max_bad)
        for chunk, _ in raw_chunks(source):
            bad = []
            yield from parsed(chunk, source.name, bad, parse)
            malformed.add(len(chunk), bad)
            counts.update(rows=len(chunk), malformed=len(bad))
        malformed.close()


def read_dialogues(
    path: str | os.PathLike, max_bad: float = 0.01, counts: collections.Counter | None = None
) -> Iterator[Dialogue]:
    """The dialogues of a file, folder or TFDS directory, one after another.

    counts: a Counter that receives "rows", "dialogues" and "malformed". Malformed rows as in
    each_row.
    """
    counts = collections.Counter() if counts is None else counts
    for dialogues in each_row([path], max_bad=max_bad, counts=counts):
        counts["dialogues"] += len(dialogues)
        yield from dialogues


def main(argv: list[str] | None = None) -> int:
    return terminal.program(lambda: _print_dialogues(argv), "text.dialogues")


def _print_dialogues(argv):
    parser = terminal.Parser(
        prog="python -m text.dialogues",
        description="Print the dialogues of files as JSON lines, and on stderr what was skipped.",
        epilog=forms.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, or folders of them")
    counts = collections.Counter()
    for path in parser.parse_args(argv).sources:
        for dialogue in read_dialogues(path, counts=counts):
            print(json.dumps(dialogue))
    terminal.say(", ".join(f"{n:,} {what}" for what, n in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
