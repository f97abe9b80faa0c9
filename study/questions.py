"""Every question of a file asked of an endpoint: the answers in a form that the study reads.

    python -m study.answers ask questions.jsonl --endpoint http://localhost:8000/v1 \\
        --endpoint-model NAME --out out/answers

Leaves --out with answers.jsonl (AlpacaEval's rows, which are Alpaca's too: style, judge and rate
read them, and so does data.py), report.json and log.jsonl. Stopped or killed, the same command goes
on and asks nothing twice. Left out: the further turns of a question (counted), prices.
"""

import collections
import pathlib
from typing import Any, NamedTuple

from host import terminal
from study import access, rows

COUNTS = (
    "questions",
    "with_further_turns",
    "requests",
    "failed",
    "of_these_refused",
    "without_text",
    "kept",
    "cut_off",
    "filtered",
    "prompt_tokens",
    "completion_tokens",
)
SHOWN = 3  # reasons of failures


class Question(NamedTuple):
    """One question of a file. own_id: whether `id` is the file's own name of it."""

    id: str
    text: str
    row: dict
    own_id: bool = True
    further_turns: bool = False


class Asking(NamedTuple):
    """How questions are asked: a system text before each, answers to each, seed of the first."""

    system: str | None = None
    samples: int = 1
    seed: int | None = None

    def body(self, model: access.Model, text: str, k: int) -> dict:
        """The request for answer k; a seed makes equal requests differ at the endpoint too."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        seed = {} if self.seed is None else {"seed": self.seed + k}
        return model.body([*system, {"role": "user", "content": text}], draw=k, **seed)


class Reply(NamedTuple):
    """Answer k to a question: the endpoint's (study/endpoint.py)."""

    question: Question
    k: int
    answer: dict


def parse(row: Any, name: str) -> list:
    """[(id, whether it is the row's own, the human's turns, row)] of a raw row."""
    row = rows.parse_object(row)
    own = rows.own_id(row)
    return [(own or name, own is not None, rows.prompts_of(row, name), row)]


def read(paths: list, limit: int | None = None) -> list[Question]:
    """The questions of files in their order; ids that stand again get #2, #3, …"""
    if limit is not None:
        access.at_least("--limit", limit, 1)
    questions, seen = [], collections.Counter()
    for name, own, texts, row in rows.each(paths, parse):
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        questions.append(Question(unique, rows.clean(texts[0]), row, own, len(texts) > 1))
    again = sum(n - 1 for n in seen.values())
    if again:
        terminal.say(f"{again} questions have the id of another: they are named ID#2, ID#3, …")
    return questions[:limit]


def ask(
    questions: list[Question], asking: Asking, model: access.Model, endpoint: Any
) -> tuple[list[Reply], collections.Counter]:
    """(the replies that have a text, in the order of the questions; counts of all).

    Failures are said, with their reasons: the same command asks them again.
    """
    access.at_least("--samples", asking.samples, 1)
    asked = [(question, k) for question in questions for k in range(asking.samples)]
    bodies = [asking.body(model, question.text, k) for question, k in asked]
    answers, reasons = {}, collections.Counter()
    for index, answer in access.answers(endpoint, bodies, "answers", "answers"):
        answers[index] = answer
    counts = collections.Counter(dict.fromkeys(COUNTS, 0))
    counts["questions"] = len(questions)
    counts["with_further_turns"] = sum(question.further_turns for question in questions)
    replies = []
    for index, (question, k) in enumerate(asked):
        if counted(answers[index], counts):
            replies.append(Reply(question, k, answers[index]))
        elif answers[index]["error"]:
            reasons[answers[index]["error"]] += 1
    if reasons:
        first = "; ".join(f"{n} x {why}" for why, n in reasons.most_common(SHOWN))
        more = ", and others" if len(reasons) > SHOWN else ""
        terminal.say(
            f"{counts['failed']} requests failed ({first}{more}): the same command asks them again"
        )
    return replies, counts


def counted(answer: dict, counts: collections.Counter) -> bool:
    """Whether an answer has a text to keep; `counts` says what it was."""
    counts["requests"] += 1
    counts["prompt_tokens"] += answer["prompt_tokens"]
    counts["completion_tokens"] += answer["completion_tokens"]
    if answer["error"] is not None:
        counts["failed"] += 1
        counts["of_these_refused"] += answer.get("refused", False)
        return False
    counts["filtered"] += answer["finish"] == "content_filter"
    if not (answer["text"] or "").strip():
        counts["without_text"] += 1
        return False
    counts["cut_off"] += answer["finish"] == "length"
    counts["kept"] += 1
    return True


def settings_of(paths: list, asking: Asking, model: access.Model) -> dict:
    """What report.json says of a run."""
    return {
        "temperature": model.temperature,
        "max_tokens": model.max_tokens,
        **asking._asdict(),
        "prompts": [pathlib.Path(path).name for path in paths],
    }


def row_of(reply: Reply, model: access.Model, samples: int) -> dict:
    """A line of answers.jsonl; "sample" where there are several answers to a question."""
    question = reply.question
    kept = {name: question.row[name] for name in ("category", "dataset") if name in question.row}
    named = {"id": question.id} if question.own_id else {}
    said = {"instruction": question.text, "output": reply.answer["text"], "generator": model.name}
    return named | said | kept | ({"sample": reply.k} if samples > 1 else {})


def collect(
    paths: list,
    asking: Asking,
    model: access.Model,
    reach: access.Access,
    out: pathlib.Path,
    limit: int | None = None,
) -> None:
    """The command: ask every question, write the answers and the report."""
    questions = read(paths, limit)
    with reach.endpoint(out / "log.jsonl") as endpoint:
        replies, counts = ask(questions, asking, model, endpoint)
    lines = [row_of(reply, model, asking.samples) for reply in replies]
    settings = {"model": model.name, **settings_of(paths, asking, model), "limit": limit}
    access.write(out / "answers.jsonl", lines, settings, counts, endpoint)
