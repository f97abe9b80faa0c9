"""Rows of files, in and out: every row of any source, the prompt that a row asks, a row as a line.

    python -c "from study import rows; print(*rows.each(['prompts.jsonl'], rows.prompt_of))"

Left out: what a dialogue may look like (text/dialogues.py), answers of models (answers.py).
"""

import contextlib
import gzip
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from host import files
from text import dialogues, forms


def clean(text: str) -> str:
    """Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def json_line(value: Any) -> bytes:
    """A value as one line of JSON, bytes; half a surrogate pair becomes an escape."""
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return files.dumps(value).encode() + b"\n"


@contextlib.contextmanager
def gzip_whole(path: str | pathlib.Path) -> Iterator[gzip.GzipFile]:
    """A gzip stream that becomes `path` when the block ends; same content, same bytes."""
    with files.beside(path, replace=True) as beside, open(beside, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as stream:
            yield stream


@contextlib.contextmanager
def locked(folder: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder, made and alone: ValueError where another run writes to it.

    The lock is on the folder itself: nothing is left behind, and a crash releases it.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not files.lock(descriptor):
            raise ValueError(
                f"{folder} is being written by another run: wait for it, or name another --out"
            )
        yield folder
    finally:
        os.close(descriptor)


def each(
    paths: Iterable[str | pathlib.Path], parse: Callable[[Any, str], list], max_bad: float = 0.01
) -> Iterator[Any]:
    """What parse(row, name), a list, gives for every row of the files, one after another.

    Malformed rows as in text/dialogues.py's each_row.
    """
    for parsed in dialogues.each_row(paths, parse, max_bad):
        yield from parsed


def parse_object(row: forms.Row) -> dict:
    """A raw row as a dict; ValueError, a reason without the place, where it is none."""
    value = forms.parse_json(row)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def instruction_of(row: dict) -> str | None:
    """ "instruction" with its input behind a blank line, or None.

    The input is the row's own ("input"), or the first of Self-Instruct's "instances".
    """
    if not isinstance(row.get("instruction"), str):
        return None
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else row
    given = first.get("input") if isinstance(first, dict) else row.get("input")
    if isinstance(given, str) and given.strip():
        return f"{row['instruction']}\n\n{given}"
    return row["instruction"]


def own_id(row: dict) -> str | None:
    """The row's own name of its prompt, or None."""
    ids = ("id", "question_id", "prompt_id")
    return next((str(row[k]) for k in ids if isinstance(row.get(k), (str, int))), None)


def prompts_of(row: dict, name: str) -> list[str]:
    """What a human says in a row of a public evaluation, or in a dialogue, turn by turn.

    Read are Koala's test set, Self-Instruct's, AlpacaEval's, Vicuna's, MT-bench's,
    RealToxicityPrompts' and NQ's questions. ValueError, a reason without the place, for others.
    """
    prompt = row.get("prompt")
    prompt = prompt.get("text") if isinstance(prompt, dict) else prompt
    instruction = instruction_of(row)
    for text in (prompt, instruction, row.get("text"), row.get("question")):
        if isinstance(text, str):
            return [text]
    turns = row.get("turns")
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        return turns
    queries = [
        turn["value"]
        for dialogue in forms.parse_row(row, name)
        for turn in dialogue.get("conversations", [])
        if turn["from"] == "human"
    ]
    if not queries:
        raise ValueError("no prompt in it")
    return queries


def prompt_of(row: dict, name: str) -> list:
    """A parse for `each`: [(id, first prompt, row)] of a row."""
    row = parse_object(row)
    return [(own_id(row) or name, prompts_of(row, name)[0], row)]


def sourced(row: forms.Row, name: str) -> list[dict]:
    """A parse for `each`: the dialogues of a row, with the source that study.curate mix gave it."""
    value = forms.parse_json(row)
    given = {"source": value["source"]} if isinstance(value, dict) and "source" in value else {}
    return [dialogue | given for dialogue in forms.parse_row(value, name)]


def dialogue(name: str, query: str, answer: str, source: str) -> dict:
    """A dialogue of one question, in ShareGPT's form."""
    turns = [{"from": "human", "value": query}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, "source": source}
