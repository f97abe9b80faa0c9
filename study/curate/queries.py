"""The user queries of a data set, as diversity and leakage compare them, and the search itself.

Read are dialogues in every form of text/dialogues.py, and task files of Super-NaturalInstructions,
where a query is the definition, a blank line, the input. Left out: what a query is worth.
"""

import pathlib
from collections.abc import Callable, Iterable

from host import terminal
from study import rows
from study.curate import bleu
from text import forms


def parse_with(all_turns: bool, counts: dict) -> Callable[[str | bytes | dict, str], list]:
    """A parse for rows.each: [(id, user query)] of a dialogue's row, or of a task.

    all_turns: every user turn, not the first of each dialogue alone. counts: a Counter.
    """

    def parse(row, name):
        encoded = row.encode("utf-8", "replace") if isinstance(row, str) else row
        if isinstance(row, dict) or b'"Instances"' in encoded:
            task = rows.parse_object(row)
            if "Definition" in task and "Instances" in task:
                counts["tasks"] += 1
                return instances(task, name)
        queries = []
        for d in forms.parse_row(row, name):
            queries += _queries(d, all_turns, counts)
        return queries

    return parse


def _queries(dialogue, all_turns, counts):
    turns = [t["value"] for t in dialogue.get("conversations", []) if t["from"] == "human"]
    turns = turns if all_turns else turns[:1]
    queries = [
        (dialogue["id"] + (f" turn {k}" if all_turns else ""), rows.clean(text))
        for k, text in enumerate(turns)
        if text.strip()
    ]
    counts["dialogues"] += 1
    counts["blank queries passed over"] += len(turns) - len(queries)
    counts["without a user query, passed over"] += not turns
    return queries


def instances(task: dict, name: str) -> list:
    """[(id, query)] of a task of Super-NaturalInstructions; ValueError for another form."""
    definition, given = task["Definition"], task["Instances"]
    if isinstance(definition, list) and all(isinstance(x, str) for x in definition):
        definition = "\n".join(definition)
    inputs = isinstance(given, list) and all(
        isinstance(x, dict) and isinstance(x.get("input"), str) for x in given
    )
    if not isinstance(definition, str) or not inputs:
        raise ValueError(
            'a task of Super-NaturalInstructions is {"Definition": [str], '
            '"Instances": [{"input": str, …}]}'
        )
    return [
        (str(x.get("id", f"{name} instance {k}")), f"{definition}\n\n{x['input']}")
        for k, x in enumerate(given)
    ]


def read(
    paths: Iterable[str | pathlib.Path], all_turns: bool, max_bad: float, counts: dict
) -> list:
    """[(id, query)] of all files."""
    queries = list(rows.each(paths, parse_with(all_turns, counts), max_bad))
    counts["queries"] += len(queries)
    return queries


def search(what: str, queries: list[str], references: list[str] | None, threads: int) -> tuple:
    """bleu.nearest with a line of progress."""
    if threads < 1:
        raise ValueError(f"--threads {threads} is out of range: use 1 or more")
    pairs = len(queries) * len(queries if references is None else references)
    progress = terminal.Progress(what, pairs, "pairs")
    try:
        return bleu.nearest(queries, references, threads, progress)
    finally:
        progress.close()
