"""The files that evaluations read and the prompts they write: text, rows, fingerprints. No JAX.

What a user can mend raises ValueError with the file and the row. Half a surrogate pair, which no
UTF-8 file can hold, is read as U+FFFD, so that one bad row stops nothing.
"""

import argparse
import gzip
import hashlib
import json
import os
import pathlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable
from typing import Any

from host.files import dumps, write_whole
from host.terminal import say

HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs
DEPTH = 100  # of a row: what is nested deeper is no row, and would end later in a traceback
Path = str | os.PathLike
Check = Callable[[dict], str | None]


def text_of(path: Path) -> str:
    """The text of a file, .gz or not, or of standard input (`-`)."""
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read()
        else:
            raw = pathlib.Path(path).read_bytes()
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: name a file, or - for standard input") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: name a file in it") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): fetch it again") from None


def json_rows(
    path: Path, check: Check | None = None, whole_characters: bool = True
) -> list[tuple[str, dict]]:
    """[(place, row)] of a file of JSON lines or one JSON list.

    place is "FILE row N", for messages. check(row) -> None, or what is wrong with it.
    whole_characters: half a surrogate pair becomes U+FFFD.
    """
    text = text_of(path)
    is_list = text.lstrip()[:1] == "["
    values = (
        _load(text, f"{path} begins as a JSON list but is none", "mend it, or ")
        if is_list
        else (text.split("\n"))
    )
    rows = []
    for number, value in enumerate(values, 1):
        if not is_list and not value.strip():
            continue
        place = f"{path} row {number}"
        row = value if is_list else _load(value, f"{place} is not JSON")
        if isinstance(row, str) and is_list:
            row = _load(row, f"{place} is not JSON")
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object: write one object a line")
        try:
            row = clean(row) if whole_characters else bounded(row)
        except RecursionError:
            raise ValueError(f"{place} is nested too deeply: write one object a line") from None
        wrong = check(row) if check else None
        if wrong:
            raise ValueError(f"{place}: {wrong}")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{path} is empty: it needs one JSON object a line")
    return rows


def _load(text: str, wrong: str, remedy: str = "") -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{wrong} (nested too deeply): {remedy}write one object a line") from None
    except ValueError as error:
        raise ValueError(f"{wrong} ({error}): {remedy}write one object a line") from None


def clean(
    value: Any, text: Callable[[str], str] = lambda s: HALVES.sub("\ufffd", s), depth: int = 0
) -> Any:
    """A JSON value with U+FFFD for each half of a surrogate pair; RecursionError beyond DEPTH."""
    if isinstance(value, str):
        return text(value)
    if depth > DEPTH:
        raise RecursionError
    if isinstance(value, list):
        return [clean(v, text, depth + 1) for v in value]
    if isinstance(value, dict):
        return {text(k): clean(v, text, depth + 1) for k, v in value.items()}
    return value


def bounded(value: Any) -> Any:
    """A JSON value as it is; RecursionError beyond DEPTH."""
    return clean(value, text=str)


def needs_strings(row: dict, *names: str) -> str | None:
    """What is wrong with a row that needs these names with strings, or None."""
    for name in names:
        if not isinstance(row.get(name), str):
            wrong = "missing" if name not in row else "not a string"
            return f"{name!r} is {wrong}: a row needs " + ", ".join(f'"{n}": "…"' for n in names)
    return None


def limited(rows: Any, limit: int | None, settings: dict, what: str = "items") -> Any:
    """The first `limit` rows; the settings then say that the result is of a sample."""
    if limit and limit < len(rows):
        total = len(rows)
        settings["sample"] = f"the first {limit} of {total} {what} (--limit): not the whole set"
        return rows[:limit]
    return rows


def add_input_flag(parser: argparse.ArgumentParser, rows: str) -> Callable:
    """--input, in a group of its own -> what adds to that group. rows: what is read."""
    add = parser.add_argument_group("input").add_argument
    add("--input", required=True, metavar="FILE", help=rows)
    return add


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value: a result goes on only with the very input it began with."""
    return hashlib.sha256(dumps(value, sort_keys=True).encode()).hexdigest()


# --- a model that has only an API ---


def read_predictions(path: Path, wanted: Iterable[str]) -> dict[str, str]:
    """id -> prediction from rows {"id", "prediction"}; every wanted one must be there."""

    def check(row):
        return needs_strings(row, "prediction") or (None if "id" in row else '"id" is missing')

    rows = {str(row["id"]): row["prediction"] for _, row in json_rows(path, check)}
    wanted = list(wanted)
    missing = [i for i in wanted if i not in rows]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(wanted)} questions (first: {missing[0]}): "
            "answer all that --write-prompts gave, or use --limit"
        )
    return {i: rows[i] for i in wanted}


def write_prompts(path: Path, rows: Iterable[dict]) -> None:
    """Write the prompts for a model that has only an API."""
    lines = [dumps(row) + "\n" for row in rows]
    write_whole(path, "".join(lines))
    say(
        f"wrote {len(lines)} prompts to {path}: answer them as rows with the same names and a "
        '"prediction", then --predictions FILE'
    )
