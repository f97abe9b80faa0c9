"""Raw rows -> dialogues: every public form of chat data into ShareGPT's own, by what a row holds.

    python -m text.dialogues SOURCE...      # dialogues as JSON lines on stdout, the rest on stderr

A dialogue is {"id": str, "conversations": [{"from": "human" | "gpt" | "system", "value": str},
...]}; a document of plain text, for language modelling, is {"id": str, "text": str}. What a file of
rows may be: text/sources.py. Left out: cleaning and filtering (study).

A row is one of
  ShareGPT   {"conversations": [{"from", "value"}]}; also `items`; also `messages` with
             {"role", "content"}
  HC3        {"question", "chatgpt_answers": [str]}: a dialogue for each of the teacher's answers,
             none for the humans'
  Alpaca     {"instruction", "input", "output"}: the input follows the instruction after a blank
  line Koala      {"human_1", "gpt_1", "human_2", ...}, turns in the order of their numbers, the
  human first Baize      {"input": "... [|Human|] ... [|AI|] ..."}: what stands before the first
  mark is the
             recipe, not the dialogue; white space around a turn is the form's; an empty last human
             turn is dropped
  pairs      {"prompt", "completion"} or {"prompt", "response"}
  text       {"text": str}
"""

import collections
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from host import terminal
from text.sources import Chunk, Row, raw_chunks, source_files

SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "model": "gpt",
    "system": "system",
    "developer": "system",
}
LISTS = ("conversations", "conversation", "messages", "items")  # keys of a list of turns
PAIRS = (("prompt", "completion"), ("prompt", "response"))
SHOWN = 5  # malformed rows of a file that are reported one by one

BAIZE_MARK = re.compile(r"\[\|(Human|AI)\|\]")
KOALA_KEY = re.compile(r"(human|gpt)_(\d{1,9})")

Dialogue = dict[str, Any]


# --- rows ---


def parse_row(row: Row, name: str) -> list[Dialogue]:
    """The dialogues of one raw row (HC3 rows hold several, or none).

    `name` is the id where the row has none. ValueError, a reason without the place, for a malformed
    row.
    """
    row = parse_object(row)
    name = str(row["id"]) if isinstance(row.get("id"), (str, int)) else name
    for form in FORMS:
        if (dialogues := form(row, name)) is not None:
            return dialogues
    raise ValueError(
        f"no known form has the keys {_short(sorted(map(str, row)))}: convert it to ShareGPT's "
        '{"conversations": [{"from", "value"}]}'
    )


def parse_object(row: Row) -> dict:
    """A raw row as a dict; ValueError, a reason without the place, where it is none."""
    if not isinstance(row, dict):
        try:
            # surrogates in a str are bytes that were not UTF-8
            row = json.loads(row.decode() if isinstance(row, bytes) else row.encode().decode())
        except UnicodeError:
            raise ValueError("not UTF-8") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{_short(row)} is not an object")
    return row


# Each gives the dialogues of a row, or None where the row is of another form.


def _listed_form(row, name):
    for key in LISTS:
        if key in row:
            return [_dialogue(name, _listed(row[key], key))]
    return None


def _hc3_form(row, name):
    if not ("question" in row and "chatgpt_answers" in row):
        return None
    question, answers = _text(row, "question"), row["chatgpt_answers"]
    if not isinstance(answers, list):
        raise ValueError(f"chatgpt_answers is {_short(answers)}, not a list")
    names = [name] if len(answers) == 1 else [f"{name}.{k}" for k in range(len(answers))]
    return [
        _dialogue(n, [("human", question), ("gpt", _string(answer, "an answer"))])
        for n, answer in zip(names, answers, strict=True)
    ]


def _alpaca_form(row, name):
    if not ("instruction" in row and "output" in row):
        return None
    question = _text(row, "instruction")
    if row.get("input"):
        question = f"{question}\n\n{_text(row, 'input')}"
    return [_dialogue(name, [("human", question), ("gpt", _text(row, "output"))])]


def _koala_form(row, name):
    keys = sorted((int(m[2]), m[1] == "gpt", key) for key in row if (m := KOALA_KEY.fullmatch(key)))
    if not keys:
        return None
    while keys and row[keys[-1][2]] in (None, ""):  # rows of a fixed schema end in empty turns
        keys.pop()
    return [_dialogue(name, [("gpt" if gpt else "human", _text(row, key)) for _, gpt, key in keys])]


def _baize_form(row, name):
    if not (isinstance(row.get("input"), str) and BAIZE_MARK.search(row["input"])):
        return None
    parts = BAIZE_MARK.split(row["input"])[1:]
    turns = [
        ("human" if who == "Human" else "gpt", text.strip())
        for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    return [_dialogue(name, turns[:-1] if turns[-1] == ("human", "") else turns)]


def _pair_form(row, name):
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            return [_dialogue(name, [("human", _text(row, prompt)), ("gpt", _text(row, answer))])]
    return None


def _text_form(row, name):
    return [{"id": name, "text": _text(row, "text")}] if "text" in row else None


FORMS = (
    _listed_form, _hc3_form, _alpaca_form, _koala_form, _baize_form, _pair_form, _text_form
)  # fmt: skip


def _listed(turns, key):
    """(speaker, text) of a list of {"from", "value"} or {"role", "content"}."""
    if not isinstance(turns, list):
        raise ValueError(f"{key} is {_short(turns)}, not a list of turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} is {_short(turn)}, not an object")
        who, text = ("from", "value") if "from" in turn else ("role", "content")
        if who not in turn or text not in turn:
            keys = _short(sorted(map(str, turn)))
            raise ValueError(
                f"turn {number} has the keys {keys}, not from and value (or role and content)"
            )
        speaker = SPEAKERS.get(turn[who].strip().lower()) if isinstance(turn[who], str) else None
        if speaker is None:
            raise ValueError(
                f"turn {number} is by {_short(turn[who])}: speakers are {', '.join(SPEAKERS)}"
            )
        value = turn[text]
        if isinstance(value, list) and all(
            isinstance(p, dict) and p.get("type") == "text" for p in value
        ):
            value = "".join(_text(part, "text") for part in value)
        yield speaker, _string(value, f"turn {number}")


def _dialogue(name, turns):
    turns = [{"from": speaker, "value": text} for speaker, text in turns]
    if not turns:
        raise ValueError("no turns")
    return {"id": name, "conversations": turns}


def _text(row, key):
    return _string(row.get(key), key)


def _string(value, what):
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}, not a string")
    return value


def _short(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    return repr(text[:60] + "…" if len(text) > 60 else text)


# --- dialogues ---


def turns(dialogue: Dialogue, join_system: bool = True) -> list[tuple[str, str, bool]]:
    """[(speaker "human" | "gpt", text, learned)]: what the templates write, which answers are
    learned.

    Without join_system, "system" is a third speaker. With it a system text is joined to the human turn that follows it, by a blank line; where none follows
    at once it is a human turn of its own. An answer is learned where a human spoke before it: a
    piece cut out of a longer dialogue may begin with the assistant's turn, which is then context.
    Two turns in a row by one speaker stay two turns.
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
            out.append(("gpt", turn["value"], asked))
            held = []
    return out + ([("human", "\n\n".join(held), False)] if held else [])


def has_answer(dialogue: Dialogue) -> bool:
    """Whether there is anything to learn: an answer to a human, or a text, that is not blank."""
    if "text" in dialogue:
        return bool(dialogue["text"].strip())
    return any(learned and text.strip() for _, text, learned in turns(dialogue))


def peculiarities(dialogue: Dialogue) -> list[str]:
    """What is worth counting about a dialogue, a list of str."""
    if "text" in dialogue:
        return []
    speakers = [t["from"] for t in dialogue["conversations"]]
    spoken = [s for s in speakers if s != "system"]
    notes = [
        ("begins with the assistant (that turn is context)", spoken[:1] == ["gpt"]),
        ("has a system text (joined to the human turn after it)", "system" in speakers),
        (
            "one speaker twice in a row (kept as two turns)",
            any(a == b for a, b in zip(spoken, spoken[1:], strict=False)),
        ),
        ("ends with the human", spoken[-1:] == ["human"]),
    ]
    return [note for note, holds in notes if holds]


def split_key(dialogue: Dialogue) -> int:
    """Leakage key, int64: dialogues with equal keys must land in the same split.

    Equal are the pieces that ShareGPT's dialogues were cut into (ids abcdefg_0, abcdefg_2, ...) and
    dialogues with the same questions, such as exact copies and HC3's several answers to one
    question.
    """
    piece = re.fullmatch(r"([A-Za-z0-9]{7})_\d+", dialogue["id"])
    asked = [t["value"] for t in dialogue.get("conversations", []) if t["from"] == "human"]
    if not (piece or asked):
        asked = (
            [dialogue["text"]]
            if "text" in dialogue
            else [t["value"] for t in dialogue["conversations"]]
        )
    same = "piece\0" + piece[1] if piece else "asked\0" + "\0".join(asked)
    digest = hashlib.blake2b(same.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


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
        terminal.say(f"{path}: neither JSON nor .txt, passed over")
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
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"]) else 2
    return terminal.program(lambda: _print_dialogues(argv), "text.dialogues")


def _print_dialogues(paths):
    counts = collections.Counter()
    for path in paths:
        for dialogue in read_dialogues(path, counts=counts):
            print(json.dumps(dialogue))
    terminal.say(", ".join(f"{n:,} {what}" for what, n in counts.items()))


if __name__ == "__main__":
    sys.exit(main())
