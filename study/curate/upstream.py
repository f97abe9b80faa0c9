"""The upstream files of ShareGPT-Mix -> whole, clean dialogues: read, joined, cleaned, and keyed.

Used by mix.py. ShareGPT and HC3 rows are read by text/dialogues.py, Discord's JSON lines
{"input", "output"} here, a bot's exported channel by discord.py. Left out: which dialogues are kept
(mix.py).
"""

import itertools
import json
import pathlib
import unicodedata
from collections.abc import Callable, Iterator

from study.curate import discord, html_text
from text import dialogues, forms
from text.sources import raw_chunks, source_files

# --- reading ---


def read(
    path: str | pathlib.Path,
    source: str,
    counts: dict,
    max_bad: float = 0.01,
    progress: Callable[[int], object] | None = None,
) -> Iterator[dict]:
    """Yields the dialogues of one file, {"id", "conversations"}; those of HC3 also have "topic".

    counts: a Counter that receives rows, malformed, and what is worth telling. Malformed rows are
    reported on stderr and skipped. ValueError, one line, for a file that cannot be read or has too
    many malformed rows.
    """
    for file in source_files([path])[0]:
        malformed = dialogues.Malformed(file, max_bad)
        for chunk, at in raw_chunks(file):
            bad, messages = [], counts["Discord messages"]

            def parse(row, name, bad=bad):
                if source == "discord":
                    return _discord(row, name, bad, counts)
                return _row(row, name, source, counts)

            for read in dialogues.parsed(chunk, file.name, bad, parse):
                yield from read
            # each Discord message may be malformed
            malformed.add(len(chunk) + counts["Discord messages"] - messages, bad)
            counts.update({"rows": len(chunk), "malformed": len(bad)})
            if progress:
                progress(at)
        malformed.close()


def _object(row):
    """The row as parsed JSON, or as it is where parse_row has more to say about it."""
    if isinstance(row, dict):
        return row
    try:
        # what is not UTF-8 fails here
        return json.loads(row.encode() if isinstance(row, str) else row)
    except (ValueError, RecursionError):
        return row


def _row(row, name, source, counts):
    value = _object(row)
    read = forms.parse_row(value if isinstance(value, dict) else row, name)
    if any("text" in d for d in read):
        raise ValueError("it is plain text, not a dialogue")
    if source == "hc3":
        if not read:
            counts["rows without a ChatGPT answer"] += 1
        topic = value.get("source") if isinstance(value.get("source"), str) else name.split(".")[0]
        read = [d | {"topic": topic} for d in read]
    return read


def _discord(row, name, bad, counts):
    value = _object(row)
    if not isinstance(value, dict):
        return _row(row, name, "discord", counts)
    if isinstance(value.get("messages"), list) and ("channel" in value or "guild" in value):
        return discord.dialogues_of(value, name, bad, counts)
    if "input" in value and "output" in value and "instruction" not in value:
        for key in ("input", "output"):
            if not isinstance(value[key], str):
                raise ValueError(f"{key} is {str(value[key])[:60]!r}, not a string")
        turns = [
            {"from": "human", "value": value["input"]},
            {"from": "gpt", "value": value["output"]},
        ]
        return [{"id": str(value.get("id", name)), "conversations": turns}]
    return _row(row, name, "discord", counts)


# --- pieces ---


def join(pieces: list[dict], notes: dict) -> list[dict]:
    """Pieces [dialogue] of one `<id>` -> whole dialogues, mostly one. notes: a Counter.

    n counts turns: FastChat cut long dialogues and named each piece by its first turn. Pieces are
    some only where they continue one another (text/dialogues.py's continues); medical_0 to
    medical_199 are 200 dialogues. Equal pieces count once. Where pieces are missing between two, a
    gap, an answer that has lost its question is taken out: joined, it would become part of the
    answer before it.
    """
    if len(pieces) == 1:
        return pieces
    numbered = {}
    for piece in pieces:
        n = dialogues.piece_of(piece["id"])[1]
        if n not in numbered:
            numbered[n] = piece
        elif numbered[n]["conversations"] == piece["conversations"]:
            notes["pieces that were there twice"] += 1
        else:
            return pieces  # two dialogues under one id: nothing says which belong together
    ns = sorted(numbered)
    turns_of = {n: numbered[n]["conversations"] for n in ns}
    first = {n: turns[0]["from"] if turns else "" for n, turns in turns_of.items()}
    if not dialogues.continues((n, len(turns_of[n]), first[n]) for n in ns):
        return list(numbered.values())
    turns = list(turns_of[ns[0]])
    for before, n in itertools.pairwise(ns):
        more = turns_of[n]
        if before + len(turns_of[before]) < n:
            notes["gaps between pieces"] += 1
            if first[n] == "gpt":
                notes["answers after a gap, without their question, taken out"] += 1
                more = more[1:]
        turns += more
    notes["pieces joined"] += len(ns)
    return [{**numbered[ns[0]], "conversations": turns}]


# --- cleaning ---


def clean(dialogue: dict, notes: dict) -> dict:
    """HTML -> Markdown, "Copy code" and empty turns gone, neighbours by one speaker merged."""
    queries, turns, given = "", [], dialogue["conversations"]
    exported = any(
        "<" in t["value"] and html_text.is_export(t["value"], t["from"])
        for t in given
        if t["from"] == "gpt"
    )
    for turn in given:
        value = turn["value"]
        if turn["from"] == "human":
            value = html_text.pager(value) if exported else value
            queries += value + "\n"
        text = html_text.text(value, turn["from"], queries)
        notes["turns with HTML or 'Copy code' made Markdown"] += text != value
        if not text.strip():
            notes["empty turns taken out"] += 1
        elif turns and all(turns[-1].get(k) == turn.get(k) for k in ("from", "weight")):
            notes["turns merged with the one before"] += 1
            turns[-1]["value"] += "\n\n" + text
        else:  # its weight 0 marks an answer that is context, and stays
            turns.append({**turn, "value": text})
    return {**dialogue, "conversations": turns}


def normalised(query: str) -> str:
    """A query for comparison: NFKC, case folded, white space collapsed, no closing . ? ! , ; :"""
    return " ".join(unicodedata.normalize("NFKC", query).casefold().split()).rstrip(".?!,;: …")


def query_key(dialogue: dict, which: str) -> str | None:
    """What two dialogues with the same user query share, a str, or None.

    which: "first" query or "all" of them. A dialogue whose beginning is missing is compared by all
    its queries, and by the answer it opens with: its first query is often just "continue".
    """
    turns = [t for t in dialogue["conversations"] if t["from"] != "system"]
    queries = [normalised(t["value"]) for t in turns if t["from"] == "human"]
    if not queries:
        return None
    piece = dialogues.piece_of(dialogue["id"])
    if turns[0]["from"] != "human":
        return "\0".join([turns[0]["value"], *queries])
    headless = piece and piece[1] > 0
    return "\0".join(queries) if which == "all" or headless else queries[0]
