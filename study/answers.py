"""Answers of models in every public form -> one form, and two sets of them paired on the same instruction.

    python -m study.answers answer_vicuna-13b.jsonl answer_gpt35.jsonl     # what was read and how it pairs, counts only

A source is told apart by content and never by name:
  a result directory of `eval.py generate`: its samples.jsonl ("prompt", "output"; the file's own "id" or "question_id" where it had one)
  AlpacaEval   {"instruction", "output", "generator"}, a JSON list
  Vicuna       {"question_id", "text", "model_id"}, JSON lines; the texts of the questions from --questions, or from question.jsonl one folder up, where upstream keeps it
  Alpaca       {"instruction", "input", "output" or "response"}; pairs {"prompt", "completion", "response" or "output"}
  both at once {"instruction", "output_1", "output_2"} (AlpacaEval's annotations), {"instruction", "response1", "response2"} (PandaLM): read_pairs
Plain or .gz. Left out: conversations of several turns beyond their last question. Texts are untrusted: nothing here runs or prints them.
"""

import argparse
import collections
import hashlib
import json
import pathlib
import re
import sys

from tasks import results
from text import dialogues

LAST_TURN = re.compile(
    r"<\|user\|>((?:(?!<\|user\|>).)*)<\|assistant\|>\s*\Z", re.DOTALL
)  # the roles template, as eval.py generate records it
KOALA_TURN = re.compile(r"USER: ((?:(?!USER: ).)*?) ?GPT:\s*\Z", re.DOTALL)
OUTPUTS, NAMES = ("output", "response", "completion"), ("generator", "model_id", "model")
BOTH = (("output_1", "output_2"), ("response1", "response2"))


def rows_of(path):
    """[(place, dict)] of a file of JSON lines or of one JSON list, .gz or not. ValueError, one line, for what is neither."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path} {'is a folder without samples.jsonl' if path.is_dir() else 'does not exist'}: name a file of answers or a result directory of eval.py generate"
        )
    rows = []
    for chunk, _ in dialogues.raw_chunks(path):
        for place, row in chunk:
            if place == "the whole file":
                raise ValueError(f"{path} is plain text: answers are JSON lines or a JSON list")
            try:
                row = json.loads(row)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} {place} is not JSON ({error}): mend the row") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} {place} is not a JSON object: a row is one answer")
            rows.append((place, row))
    if not rows:
        raise ValueError(f"{path} is empty: it needs one answer a row")
    return rows


def clean(text):
    """Half a surrogate pair, which JSON may hold and UTF-8 may not, becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def printable(text):
    """A name out of a file for a terminal: without control characters, escapes among them."""
    return "".join(c for c in str(text) if c.isprintable())


def instruction_of(row):
    """The question of a row: "instruction" with its "input" behind a blank line, or "prompt" (a string, or an object with "text"); None where there is none."""
    text = row.get("instruction")
    if isinstance(text, str):
        given = row.get("input")
        return clean(f"{text}\n\n{given}" if isinstance(given, str) and given.strip() else text)
    text = row.get("prompt")
    text = text.get("text") if isinstance(text, dict) else text
    return clean(text) if isinstance(text, str) else None


def read_questions(path):
    """{question_id as str: {"text", "category"}} of Vicuna's question.jsonl."""
    found = {}
    for place, row in rows_of(path):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(
                f'{path} {place} is no question: a row is {{"question_id": 1, "text": "…", "category": "…"}}'
            )
        found[str(row["question_id"])] = {
            "text": clean(row["text"]),
            "category": row.get("category"),
        }
    return found


def read(path, questions=None):
    """[{"id": str, "instruction": str or None, "output": str, "model": str}] of a source, in its order, with "category" and "dataset" where the source has them.

    "own_id" tells whether "id" is the source's own name of the question (and not a row number), "sample" which of several answers to one prompt it is, "item"
    (of a result directory) its id there. questions: a path, or None. ValueError, one line, for a row that is no answer.
    """
    path = pathlib.Path(path)
    if (path / "samples.jsonl").is_file():
        return _read_result(path)
    rows = rows_of(path)
    if (
        questions is None
        and "question_id" in rows[0][1]
        and (beside := path.absolute().parent.parent / "question.jsonl").is_file()
    ):
        questions = beside
    asked = read_questions(questions) if questions else {}
    found = []
    for number, (place, row) in enumerate(rows):
        output = next(
            (row[n] for n in OUTPUTS if isinstance(row.get(n), str)),
            row.get("text") if "question_id" in row or "answer_id" in row else None,
        )
        if not isinstance(output, str):
            raise ValueError(
                f'{path} {place} is no answer: it needs "output" (or "response", "completion"), or "question_id" and "text"'
            )
        own = next(
            (str(row[n]) for n in ("question_id", "id") if isinstance(row.get(n), (str, int))), None
        )
        question = asked.get(own, {})
        if "question_id" in row and asked and not question:
            raise ValueError(
                f"{path} {place}: question_id {printable(own)} is not in {questions}: name the questions these answers were given to"
            )
        answer = {
            "id": own or str(number),
            "instruction": instruction_of(row) or question.get("text"),
            "output": clean(output),
            "model": printable(next((row[n] for n in NAMES if row.get(n)), path.name)),
            "own_id": own is not None,
            "sample": 0,
        }
        category = row.get("category") or question.get("category")
        found.append(
            answer
            | ({"category": category} if category else {})
            | ({"dataset": row["dataset"]} if "dataset" in row else {})
        )
    return found


def _read_result(path):
    """The answers of a result directory of eval.py generate."""
    head = results.read_result(path)
    if head.get("task") != "generate":
        raise ValueError(
            f"{path} is a result of {head.get('task')}: answers are results of eval.py generate"
        )
    if not head.get("finished"):
        raise ValueError(f"{path} is not finished: run the same eval.py generate again, it goes on")
    found = []
    for item in results.read_lines(path / "samples.jsonl", repair=False):
        prompt, row = item["prompt"], item.get("row", {})
        turn = LAST_TURN.search(prompt) or KOALA_TURN.search(prompt)
        number, _, sample = str(item["id"]).partition("/")
        own = row.get("question_id", row.get("id"))
        found.append(
            {
                "id": number if own is None else str(own),
                "instruction": clean(turn[1] if turn else prompt),
                "output": clean(item["output"]),
                "model": printable(head.get("model") or path.name),
                "own_id": own is not None,
                "sample": int(sample or 0),
                "item": str(item["id"]),
            }
        )
    return found


def read_pairs(path):
    """[(answer, answer)] of a file with both answers in a row, and the rows themselves -> (pairs, rows). ValueError where it is no such file."""
    pairs, kept = [], []
    for number, (place, row) in enumerate(rows_of(path)):
        row = row | {
            n: str(row[n]) for b in BOTH for n in b if isinstance(row.get(n), (bool, int, float))
        }  # PandaLM's file has the answer "True" as true, three times
        names = next((b for b in BOTH if all(isinstance(row.get(n), str) for n in b)), None)
        if names is None or instruction_of(row) is None:
            raise ValueError(
                f'{path} {place} holds no pair: it needs "instruction" and "output_1", "output_2" (AlpacaEval) or "response1", "response2" (PandaLM)'
            )
        own = next(
            (
                str(row[n])
                for n in ("id", "idx", "question_id")
                if isinstance(row.get(n), (str, int))
            ),
            None,
        )
        models = row.get("generator_1"), row.get("generator_2")
        if not all(models):
            models = (
                str(row.get("cmp_key", "")).split("_")
                if str(row.get("cmp_key", "")).count("_") == 1
                else ("first", "second")
            )
        pairs.append(
            tuple(
                {
                    "id": own or str(number),
                    "instruction": instruction_of(row),
                    "output": clean(row[n]),
                    "model": printable(m),
                    "own_id": own is not None,
                    "sample": 0,
                }
                for n, m in zip(names, models, strict=True)
            )
        )
        kept.append(row)
    return pairs, kept


def same(text):
    """An instruction as it is compared: white space collapsed."""
    return None if text is None else " ".join(text.split())


def pair(a, b):
    """Two lists of answers -> (pairs [(answer of a, answer of b)] in a's order, counts of what is left out {what: n}).

    Paired by id where every row on both sides has one of its own and some id is on both, else by the instruction; equal instructions in the order in which they
    stand. Several samples of one prompt: the first of each side. An id with two different instructions is left out. ValueError where nothing pairs.
    """
    left = collections.Counter()
    first = []
    for side in (a, b):
        first.append([x for x in side if x["sample"] == 0])
        left["further samples"] += len(side) - len(first[-1])
    a, b = first
    by_id = all(x["own_id"] for x in (*a, *b)) and not {x["id"] for x in a}.isdisjoint(
        x["id"] for x in b
    )
    key = (lambda x: x["id"]) if by_id else (lambda x: same(x["instruction"]))
    there = collections.defaultdict(collections.deque)
    for y in b:
        if key(y) is not None:
            there[key(y)].append(y)
    pairs, used = [], 0
    for x in a:
        if not there.get(key(x)):
            left["only in the first"] += 1
            continue
        y, used = there[key(x)].popleft(), used + 1
        if (
            x["instruction"] is not None
            and y["instruction"] is not None
            and same(x["instruction"]) != same(y["instruction"])
        ):
            left["same id, other instruction"] += 1
        else:
            pairs.append((x, y))
    left["only in the second"] = len(b) - used
    if not pairs:
        raise ValueError(
            f"no answer of the first ({len(a)}, {name_of(a)}) pairs with one of the second ({len(b)}, {name_of(b)}): they need the same ids or the same instructions (--questions for Vicuna's)"
        )
    return pairs, {k: n for k, n in left.items() if n}


def unique_ids(pairs):
    """An id for each pair: the first answer's, with #2, #3, … where it stands again."""
    seen, names = collections.Counter(), []
    for x, _ in pairs:
        seen[x["id"]] += 1
        names.append(x["id"] if seen[x["id"]] == 1 else f"{x['id']}#{seen[x['id']]}")
    assert len(set(names)) == len(names)
    return names


def name_of(answers):
    """The model that most of the answers name."""
    return collections.Counter(x["model"] for x in answers).most_common(1)[0][0]


def counted(pairs, left, what="pairs"):
    """One line for people: how many pairs, and what was left out of them."""
    return f"{len(pairs)} {what}" + "".join(f", {n} {k}" for k, n in left.items())


def fingerprint(path):
    """sha256 of a source's content: of the file, or of a result directory's samples."""
    path = pathlib.Path(path)
    with open(path / "samples.jsonl" if path.is_dir() else path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def main(argv=None):
    p = argparse.ArgumentParser(
        prog="answers.py",
        description="What two sets of answers hold and how they pair; counts only.",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="a result directory of eval.py generate, AlpacaEval JSON, Vicuna JSON lines, Alpaca rows; .gz or not",
    )
    p.add_argument("b", metavar="B", help="the same")
    p.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl [default: one folder up from its answers]",
    )
    args = p.parse_args(argv)
    try:
        a, b = (read(path, args.questions) for path in (args.a, args.b))
        print(
            f"{name_of(a)}: {len(a)} answers, {name_of(b)}: {len(b)} answers: {counted(*pair(a, b))}"
        )
    except ValueError as error:
        print(f"answers.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
