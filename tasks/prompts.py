"""The published benchmarks as text: their files, read and checked, and their prompts as their authors wrote them.

    python -c "import prompts; print(prompts.mmlu_prompt('world_history', [], prompts.Question('', 'Who?', ['a', 'b', 'c', 'd'], 'A', '')))"

What a user can mend raises ValueError with the file and the row. Left out: what runs a model (eval), what scores an answer (scores). No JAX.
"""

import csv
import gzip
import io
import json
import pathlib
import random
import re
import sys
import zlib
from typing import NamedTuple

LETTERS = "ABCD"


def text_of(path):
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


def json_rows(path, check=None):
    """[(place, row)] of a file of JSON lines or one JSON list; place is "FILE row N" for messages. check(row) -> None, or what is wrong with it."""
    text = text_of(path)
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        found = (
            list(enumerate(json.loads(text), 1))
            if text.lstrip()[:1] == "["
            else [(i, line) for i, line in lines]
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} begins as a JSON list but is none ({error}): mend it, or write one object a line"
        ) from None
    rows = []
    for i, row in found:
        place = f"{path} row {i}"
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{place} is not JSON ({error}): write one object a line"
                ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{place} is not a JSON object: write one object a line")
        wrong = check(row) if check else None
        if wrong:
            raise ValueError(f"{place}: {wrong}")
        rows.append((place, row))
    if not rows:
        raise ValueError(f"{path} is empty: it needs one JSON object a line")
    return rows


def strings(row, *names):
    """What is wrong with a row that needs these names with strings, or None."""
    for name in names:
        if not isinstance(row.get(name), str):
            return (
                f"{name!r} is {'missing' if name not in row else 'not a string'}: a row needs "
                + ", ".join(f'"{n}": "…"' for n in names)
            )
    return None


# ------------------------------------------------------------------------------------------------------------------ MMLU


class Question(NamedTuple):
    id: str  # subject/row, rows from 0
    question: str
    choices: list  # of four
    letter: str  # the right one
    place: str  # file and row, for messages


def mmlu_file(folder, split, subject):
    """The Questions of FOLDER/SPLIT/SUBJECT_SPLIT.csv: no header, `question,A,B,C,D,letter`, kept as written (pandas would turn 1.0 and None into other things)."""
    path = pathlib.Path(folder) / split / f"{subject}_{split}.csv"
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist: --data takes the folder of the original CSV files, with dev/ val/ test/ in it"
            + ("; the shots are in dev/ (or use --shots 0)" if split == "dev" else "")
        )
    questions = []
    try:
        for i, row in enumerate(csv.reader(io.StringIO(text_of(path), newline=""), strict=True)):
            place = f"{path} row {i + 1}"
            if len(row) != 6:
                raise ValueError(
                    f"{place} has {len(row)} columns: a row is question,A,B,C,D,letter"
                )
            if row[5] not in list(LETTERS):
                raise ValueError(f"{place}: the answer is {row[5]!r}: it must be A, B, C or D")
            questions.append(Question(f"{subject}/{i}", row[0], row[1:5], row[5], place))
    except csv.Error as error:
        raise ValueError(
            f"{path} row {len(questions) + 1} is not CSV ({error}): fetch it again"
        ) from None
    if not questions:
        raise ValueError(f"{path} is empty: fetch it again, or leave the subject out (--subjects)")
    return questions


def mmlu_subjects(folder, split, wanted=None):
    """The subjects of FOLDER/SPLIT in order, or those of `wanted` (a list of names)."""
    files = sorted((pathlib.Path(folder) / split).glob(f"*_{split}.csv"))
    there = [f.name.removesuffix(f"_{split}.csv") for f in files]
    if not there:
        raise ValueError(
            f"{pathlib.Path(folder) / split} holds no *_{split}.csv: --data takes the folder of the original CSV files, with dev/ val/ test/ in it"
        )
    for name in wanted or ():
        if name not in there:
            raise ValueError(
                f"--subjects {name}: {pathlib.Path(folder) / split} has {len(there)} subjects, {', '.join(there[:3])}, …, not this one"
            )
    return [s for s in there if s in wanted] if wanted else there


def mmlu_example(q, answered):
    """One question; with its letter where it is a shot."""
    text = (
        q.question
        + "".join(
            f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, q.choices, strict=True)
        )
        + "\nAnswer:"
    )
    return f"{text} {q.letter}\n\n" if answered else text


def mmlu_prompt(subject, shots, q):
    """The original prompt (hendrycks/test, evaluate.py), with its two spaces behind "about"."""
    name = "".join(f" {word}" for word in subject.split("_"))
    return (
        f"The following are multiple choice questions (with answers) about {name}.\n\n"
        + "".join(mmlu_example(s, True) for s in shots)
        + mmlu_example(q, False)
    )


def letter_in(text):
    """The letter that a free answer gives, or None: "B", "(B) …", "The answer is B."; a letter that only stands somewhere in a sentence does not count."""
    found = (
        re.match(r"\s*\(?([A-D])(?![A-Za-z'’])", text)
        if not re.match(r"\s*A [a-z]", text)
        else None
    )
    found = found or re.search(r"\b[Aa]nswer(?:\s+is|\s*:)+\s*\**\(?([A-D])(?![A-Za-z'’])", text)
    return found[1] if found else None


# ----------------------------------------------------------------------------------------------------- Natural Questions


def nq_row(row):
    """What is wrong with a row of NQ-open, or None."""
    answers = row.get("answer")
    if not (isinstance(answers, list) and answers and all(isinstance(a, str) for a in answers)):
        return '"answer" is not a list of one string or more: a row is {"question": "…", "answer": ["…"]}'
    return strings(row, "question")


def nq_shots(path, count, seed):
    """`count` training pairs (question, its first answer) drawn by the seed."""
    rows = json_rows(path, nq_row)
    if len(rows) < count:
        raise ValueError(
            f"{path} has {len(rows)} rows, fewer than --shots {count}: use fewer shots or another file"
        )
    return [
        (row["question"], row["answer"][0]) for _, row in random.Random(seed).sample(rows, count)
    ]


def nq_prompt(shots, question):
    """`Answer these questions:`, the shots, and the question with its answer left open. The questions of NQ-open have no question mark: one is added."""
    ask = lambda q: f"Q: {q.strip().rstrip('?')}?\nA:"
    return (
        "Answer these questions:\n\n"
        + "".join(f"{ask(q)} {a}\n\n" for q, a in shots)
        + ask(question)
    )


# ------------------------------------------------------------------------------------------------------------- HumanEval


def humaneval_problems(path):
    """The problems in order: dicts with task_id, prompt, entry_point, canonical_solution, test."""
    problems = [
        row
        for _, row in json_rows(
            path,
            lambda r: strings(r, "task_id", "prompt", "entry_point", "canonical_solution", "test"),
        )
    ]
    twice = len(problems) - len({p["task_id"] for p in problems})
    if twice:
        raise ValueError(f"{path} has {twice} task_ids twice: fetch it again")
    return problems
