"""Questions of your own as benchmarks, and a teacher behind an endpoint as one that takes them.

    python -m study.grid.questions own questions.jsonl --shots 3 --out DIR
    python -m study.grid.questions answered nq --prompts PROMPTS --answers ASKED --out FILE

`own` reads rows {"question", "answer": "…" or ["…"]} (exact match) and {"question", "choices":
[four texts], "answer": a letter, a text or its number from 0}, mixed. It leaves shots.jsonl
and asked.jsonl for `eval.py nq`, and choices/ for `eval.py mmlu`: the first --shots rows of a kind
are the examples, and are not asked. `answered` makes of the prompts that eval.py --write-prompts
wrote, and of the answers that `study.answers ask` got, what --predictions reads. Left out: asking.
"""

import csv
import io
import pathlib
import re
import sys
from typing import NamedTuple

from host import files, terminal
from study import access, answers, rows
from tasks import inputs
from tasks.mmlu import LETTERS

SHOTS = 3
SUBJECT = "miscellaneous"  # MMLU's header names a subject, and takes its own alone
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
FORM = (
    'a row is {"question": "…", "answer": "…" or ["…"]}, or {"question": "…", "choices": [four '
    'texts], "answer": "B"}'
)


class Own(NamedTuple):
    """The rows of a file by kind: NQ's rows, and (question, four choices, letter)."""

    open: list[dict]
    choices: list[tuple]

    def asked(self, kind: str, shots: int) -> int:
        """How many questions of a kind are asked."""
        return max(0, len(getattr(self, kind)) - shots)


def letter_of(answer: object, choices: list[str]) -> str | None:
    """Which of the choices an answer names: a letter, its number from 0, or its text."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < 4:
        return LETTERS[answer]
    if isinstance(answer, str) and choices.count(answer) == 1:
        return LETTERS[choices.index(answer)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS:
        return answer.strip().upper()
    return None


def wrong_row(row: dict) -> str | None:
    """What is wrong with a row of questions, or None."""
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        return f'"question" is missing or no text: {FORM}'
    if choices is None:
        golds = answer if isinstance(answer, list) else [answer]
        texts = golds and all(isinstance(g, str) and g.strip() for g in golds)
        return None if texts else f'"answer" is no text and no list of texts: {FORM}'
    four = isinstance(choices, list) and all(isinstance(c, str) for c in choices)
    if not four or len(choices) != 4 or len(set(choices)) != 4:
        return f'"choices" are not four different texts: {FORM}'
    if letter_of(answer, choices) is None:
        return f'"answer" {answer!r} names none of the choices: {FORM}'
    return None


def read(path: str, shots: int) -> Own:
    """The rows of a file; ValueError where a kind has no more than the shots."""
    own = Own([], [])
    for _, row in inputs.json_rows(path, wrong_row):
        question, answer = row["question"].strip(), row["answer"]
        if row.get("choices") is None:
            golds = answer if isinstance(answer, list) else [answer]
            own.open.append({"question": question, "answer": golds})
        else:
            letter = letter_of(answer, row["choices"])
            own.choices.append((question, row["choices"], letter))
    for kind in Own._fields:
        n = len(getattr(own, kind))
        if 0 < n < shots + 2:
            what = "questions with choices" if kind == "choices" else "questions"
            raise ValueError(
                f"{path} has {n} {what}, and the first {shots} are examples (--question-shots): "
                "write more, or use fewer examples"
            )
    return own


def write_own(path: str, shots: int, out: str | pathlib.Path) -> None:
    """The command `own`."""
    questions, out = read(path, shots), pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if questions.open:
        for name, part in (("shots", slice(shots)), ("asked", slice(shots, None))):
            lines = b"".join(map(rows.json_line, questions.open[part]))
            files.write_whole(out / f"{name}.jsonl", lines)
    for name, part in (("dev", slice(shots)), ("test", slice(shots, None))):
        if questions.choices[part]:
            folder = out / "choices" / name
            folder.mkdir(parents=True, exist_ok=True)
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            writer.writerows((q, *four, letter) for q, four, letter in questions.choices[part])
            files.write_whole(folder / f"{SUBJECT}_{name}.csv", text.getvalue())
    counts = {f"asked with {kind} answer": questions.asked(kind, shots) for kind in Own._fields}
    files.write_json(out / "questions.json", {"file": path, "shots": shots} | counts)
    print(*(f"{n} {what}" for what, n in counts.items()), f"{shots} of each are examples", sep=", ")


# --- a teacher behind an endpoint ---


def code_of(text: str, prompt: str, entry_point: str) -> dict:
    """What a chat model wrote for a problem of HumanEval: a whole program, or what follows.

    The first block of code counts, all of the text where there is none.
    """
    block = FENCE.search(text)
    code = block[1] if block else text
    if entry_point and re.search(rf"^def {re.escape(entry_point)}\b", code, re.MULTILINE):
        head = prompt.partition(f"def {entry_point}")[0]  # its imports and helpers
        return {"solution": f"{head}\n{code}"}
    return {"completion": code}


def prediction_of(task: str, row: dict, text: str) -> dict:
    """The row that eval.py TASK --predictions reads."""
    if task == "humaneval":
        point = re.findall(r"^def (\w+)", row["prompt"], re.MULTILINE)
        return {"task_id": row["task_id"]} | code_of(text, row["prompt"], (point or [""])[-1])
    if task == "nq":
        said = text.strip().splitlines()
        return row | {"prediction": said[0].removeprefix("A:").strip() if said else ""}
    return row | {"prediction": text}


def answered(task: str, prompts: str, source: str, out: str) -> None:
    """The command `answered`: questions without an answer get an empty one, and are counted."""
    asked = [row for _, row in inputs.json_rows(prompts)]
    given = {}
    for answer in answers.read(source):
        given.setdefault(answers.same(answer["instruction"]), answer["output"])
    said = [given.get(answers.same(rows.clean(row["prompt"]))) for row in asked]
    if not any(said):
        raise ValueError(f"{source} answers none of the prompts of {prompts}: ask again")
    lines = [prediction_of(task, row, text or "") for row, text in zip(asked, said, strict=True)]
    files.write_whole(out, b"".join(map(rows.json_line, lines)))
    missing = sum(text is None for text in said)
    print(f"{len(lines)} predictions, {missing} questions without an answer count as wrong: {out}")


# --- command line ---


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.grid.questions",
        description="Questions of your own for eval.py, and an endpoint's answers to benchmarks.",
    )
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = "a file of questions with answers or choices -> what eval.py nq and mmlu read"
    c = commands.add_parser("own", help=text, description=text)
    c.add_argument("file", metavar="FILE", help=FORM.replace("%", "%%"))
    c.add_argument(
        "--shots", type=int, default=SHOTS, metavar="K", help="examples [default %(default)s]"
    )
    c.add_argument("--out", required=True, metavar="DIR", help="folder of what eval.py reads")
    text = "an endpoint's answers to a benchmark's prompts -> what eval.py --predictions reads"
    c = commands.add_parser("answered", help=text, description=text)
    c.add_argument("task", choices=["mmlu", "nq", "humaneval"])
    c.add_argument("--prompts", required=True, metavar="FILE", help="of eval.py --write-prompts")
    c.add_argument("--answers", required=True, metavar="DIR", help="of study.answers ask")
    c.add_argument("--out", required=True, metavar="FILE", help="the predictions")
    return p


def main(argv: list[str] | None = None) -> int:
    def run():
        args = parser().parse_args(argv)
        if args.command == "own":
            access.at_least("--shots", args.shots, 0)
            return write_own(args.file, args.shots, args.out)
        return answered(args.task, args.prompts, args.answers, args.out)

    return terminal.program(run, "study.grid.questions")


if __name__ == "__main__":
    sys.exit(main())
