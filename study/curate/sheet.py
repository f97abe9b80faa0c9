"""The manual review of a mix: a sheet of drawn dialogues to fill in, and Table 5 from it.

    python -m study.curate mix --out DIR --sample 50      # a sheet for the manual review, filled in
    python -m study.curate mix --table DIR/sheet.csv      # ... becomes Table 5

Left out: judging the answers, which is a person's work.
"""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from host import files, terminal
from study.curate import mix_report
from text.rows import shuffled
from text.sources import raw_chunks

COLUMNS = ("number", "id", "source", "turns", "query", "answer", "suggested", "category", "quality")
FORMULA = ("=", "+", "-", "@", "\t", "\uff1d", "\uff0b", "\uff0d", "\uff20")
SHEET = "name the sheet that --sample wrote"


class Draw(NamedTuple):
    """How many dialogues are drawn, by which seed."""

    number: int
    seed: int = 0


def read_mix(path: str | pathlib.Path) -> Iterator[dict]:
    """The dialogues of a mix, one JSON object a line; ValueError, one line, for anything else."""
    path = pathlib.Path(path)
    path = path / "mix.jsonl.gz" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"{path} is not there: name a mix.jsonl.gz, or the folder that curate mix wrote"
        )
    for chunk, _ in raw_chunks(path):
        for place, row in chunk:
            try:
                value = json.loads(row)
                fits = isinstance(value["conversations"], list) and isinstance(value["id"], str)
            except (ValueError, TypeError, KeyError, RecursionError):
                fits = False
            if not fits:
                raise ValueError(f"{path} {place} is no dialogue of a mix: make the mix again")
            yield value


def refuse_filled(path: pathlib.Path) -> None:
    """ValueError where the sheet at `path` was filled in: a person's work is not written over."""
    if path.exists() and any(
        row["category"].strip() or row["quality"].strip() for row in read_sheet(path)
    ):
        raise ValueError(f"{path} is filled in already: move it, or name another --out")


def cell(value: object) -> str:
    """Text as a cell that a spreadsheet shows and never computes.

    = + - @ in front are defused by an apostrophe, control characters are taken out.
    """
    value = "".join(c for c in str(value) if c in "\n\t" or c.isprintable())
    return f"'{value}" if value.lstrip()[:1] in FORMULA and value.strip() else value


def clip(text: str) -> str:
    return text if len(text) <= 2000 else text[:2000] + " […]"


def sample(mix: str | pathlib.Path, path: str | pathlib.Path, draw: Draw) -> tuple:
    """Writes the sheet of the dialogues drawn; returns (drawn, dialogues of the mix)."""
    total = sum(1 for _ in read_mix(mix))
    wanted = {int(i): k for k, i in enumerate(shuffled(total, draw.seed, 3)[: draw.number])}
    drawn = []
    for i, dialogue in enumerate(read_mix(mix)):
        if i not in wanted:
            continue
        turns = dialogue["conversations"]
        first = {
            who: next((t["value"] for t in turns if t["from"] == who), "")
            for who in ("human", "gpt")
        }
        drawn.append(
            (
                wanted[i],
                dialogue["id"],
                dialogue.get("source", ""),
                len(turns),
                clip(first["human"]),
                clip(first["gpt"]),
                mix_report.category(first["human"]),
                "",
                "",
            )
        )
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for k, row in enumerate(sorted(drawn), 1):
        writer.writerow([cell(v) for v in (k, *row[1:])])
    # the mark at the beginning is what tells Excel that it is UTF-8
    files.write_whole(path, text.getvalue().encode("utf-8-sig", "replace"))
    return len(drawn), total


def read_sheet(path: str | pathlib.Path) -> list:
    """The rows of a sheet as dicts; ValueError, one line, for what is none.

    Cells are parted by commas, or by semicolons or tabs as spreadsheets of some countries save.
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {SHEET}") from None
    head = text.split("\n", 1)[0]
    lines = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        columns = lines.fieldnames or []
        missing = [c for c in ("number", "category", "quality") if c not in columns]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}: {SHEET}")
        return [{k: v or "" for k, v in row.items() if k} for row in lines]
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV ({error}): {SHEET}") from None


def grade_of(text: str, place: str) -> float | None:
    """A quality from 1 to 5, or None where the cell is empty."""
    text = text.strip().replace(",", ".")
    if not text:
        return None
    try:
        grade = float(text)
    except ValueError:
        grade = 0.0
    if not 1 <= grade <= 5:
        raise ValueError(
            f"{place}: quality {text[:20]!r} is not a number from 1 to 5: mend the cell"
        )
    return grade


def table(path: str | pathlib.Path) -> str:
    """Table 5 as text: each category's count and share of those reviewed, and the mean quality."""
    groups, empty, grades = collections.defaultdict(list), 0, []
    for k, row in enumerate(read_sheet(path), 1):
        category = " ".join(row["category"].split())
        if not category:
            empty += 1
            continue
        grade = grade_of(row["quality"], f"{path} row {k}")
        groups[category.casefold()].append((category, grade))
        grades.append(grade)
    if not groups:
        raise ValueError(
            f"{path} has no category filled in: fill the columns category and quality, then run "
            "again"
        )

    def mean(values):
        known = [v for v in values if v is not None]
        return f"{sum(known) / len(known):.2f}" if known else "-"

    n = len(grades)
    lines = [f"{'category':<32}{'n':>5}{'share':>8}{'quality':>9}"]
    for group in sorted(groups.values(), key=lambda g: (-len(g), g[0][0].casefold())):
        name = terminal.printable(group[0][0], lines=False)[:31]
        share = f"{len(group) / n:>8.1%}"
        lines.append(f"{name:<32}{len(group):>5}{share}{mean(g for _, g in group):>9}")
    lines.append(f"{'all':<32}{n:>5}{1:>8.0%}{mean(grades):>9}")
    return "\n".join(lines + ([f"{empty} rows without a category are left out"] if empty else []))
