"""What raters meet: the pairs of answers, gold pairs among them, tokens.

Left out: who rates what when (web/votes.py), how an answer is shown (web/markdown.py).
"""

import pathlib
import re

from study import answers


def load_items(
    a: str | pathlib.Path,
    b: str | pathlib.Path,
    questions: str | pathlib.Path | None = None,
    gold: str | pathlib.Path | None = None,
    limit: int | None = None,
) -> tuple:
    """(items for web.votes.Store, {"a", "b": name}, a line that counts them) of two sources.

    gold: a file of gold pairs, or None.
    """
    sides = [answers.read(path, questions) for path in (a, b)]
    pairs, left = answers.pair(*sides)
    nameless = sum(not (x["instruction"] or y["instruction"]) for x, y in pairs)
    if nameless:
        raise ValueError(
            f"{nameless} of {len(pairs)} pairs have no instruction to show: give --questions FILE "
            "(Vicuna's question.jsonl)"
        )
    line = answers.counted(pairs, left)
    if limit and limit < len(pairs):
        line += f", the first {limit} taken (--limit)"
    items = [
        {
            "id": i,
            "instruction": x["instruction"] or y["instruction"],
            "a": x["output"],
            "b": y["output"],
        }
        for i, (x, y) in zip(answers.unique_ids(pairs), pairs, strict=True)
    ][:limit]
    names = {"a": answers.name_of(sides[0]), "b": answers.name_of(sides[1])}
    return items + (gold_items(gold) if gold else []), names, line


def gold_items(path: str | pathlib.Path) -> list:
    """Pairs whose answer is known: {"instruction", "better", "worse"} a row."""
    items = []
    for number, (place, row) in enumerate(answers.rows_of(path)):
        if not all(isinstance(row.get(k), str) for k in ("instruction", "better", "worse")):
            raise ValueError(
                f'{path} {place} is no gold item: it needs "instruction", "better" and "worse" '
                '(and "equal": true where neither is)'
            )
        items.append(
            {
                "id": f"gold {number}",
                "instruction": answers.clean(row["instruction"]),
                "a": answers.clean(row["better"]),
                "b": answers.clean(row["worse"]),
                "gold": "tie" if row.get("equal") is True else "a",
            }
        )
    return items


def read_tokens(path: str | pathlib.Path) -> dict:
    """{token: rater} of a file with one "name token" a line, each once.

    Tokens are 16 or more letters, digits, - and _.
    """
    tokens = {}
    for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = line.strip().rpartition(" ")
        known = token in tokens or name.strip() in tokens.values()
        if known or not name.strip() or not re.fullmatch(r"[A-Za-z0-9_-]{16,}", token):
            raise ValueError(
                f"{path} line {number}: a line is `name token`, each once, the token 16 or more of "
                "A-Z a-z 0-9 - _ (python -c 'import secrets; print(secrets.token_urlsafe(16))')"
            )
        tokens[token] = name.strip()
    if not tokens:
        raise ValueError(f"{path} holds no token: write one line `name token` a person")
    return tokens
