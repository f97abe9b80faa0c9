"""Answers of models in every public form -> one form, and two sets of them paired.

    python -m study.answers answer_vicuna-13b.jsonl answer_gpt35.jsonl     # how they pair, counts
    python -m study.answers ask questions.jsonl --endpoint URL --endpoint-model NAME --out DIR

A source is told apart by content and never by name:
  a result directory of `eval.py generate`: its samples.jsonl ("prompt", "output"; the file's own
    "id" or "question_id" where it had one)
  AlpacaEval   {"instruction", "output", "generator"}, a JSON list; or a folder whose answers.jsonl
    has such rows, as `ask` leaves it ("sample": which of several answers to one question)
  Vicuna       {"question_id", "text", "model_id"}, JSON lines; the texts of the questions from
    --questions, or from question.jsonl one folder up, where upstream keeps it
  Alpaca       {"instruction", "input", "output" or "response"}
  pairs        {"prompt", "completion", "response" or "output"}
  both at once {"instruction", "output_1", "output_2"} (AlpacaEval's annotations) or
    {"instruction", "response1", "response2"} (PandaLM): read_pairs
Plain or .gz. Left out: conversations of several turns beyond their last question. Texts are
untrusted: nothing here runs or prints them.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import Any

from host import files, terminal
from study import access, rows
from study.rows import clean
from tasks import results
from text.sources import raw_chunks

# The roles template, as eval.py generate records it.
LAST_TURN = re.compile(r"<\|user\|>((?:(?!<\|user\|>).)*)<\|assistant\|>\s*\Z", re.DOTALL)
KOALA_TURN = re.compile(r"USER: ((?:(?!USER: ).)*?) ?GPT:\s*\Z", re.DOTALL)
CHATML_TURN = re.compile(
    r"<\|im_start\|>user\n((?:(?!<\|im_start\|>).)*)<\|im_end\|>\n<\|im_start\|>assistant\n\Z",
    re.DOTALL,
)
LLAMA3_TURN = re.compile(
    r"user<\|end_header_id\|>\n\n((?:(?!<\|start_header_id\|>).)*)<\|eot_id\|>"
    r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n\Z",
    re.DOTALL,
)
TEMPLATES = LAST_TURN, KOALA_TURN, CHATML_TURN, LLAMA3_TURN
OUTPUTS, NAMES = ("output", "response", "completion"), ("generator", "model_id", "model")
BOTH = (("output_1", "output_2"), ("response1", "response2"))
Answer = dict[str, Any]


# --- reading ---


def rows_of(path: str | pathlib.Path) -> list[tuple[str, dict]]:
    """[(place, row)] of a file of JSON lines or of one JSON list, .gz or not.

    ValueError, one line, for what is neither.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        wrong = "is a folder without samples.jsonl" if path.is_dir() else "does not exist"
        raise ValueError(
            f"{path} {wrong}: name a file of answers, or a result directory of eval.py generate or "
            "of study.answers ask"
        )
    read = []
    for chunk, _ in raw_chunks(path):
        for place, row in chunk:
            if place == "the whole file":
                raise ValueError(f"{path} is plain text: answers are JSON lines or a JSON list")
            try:
                row = json.loads(row)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} {place} is not JSON ({error}): mend the row") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path} {place} is not a JSON object: a row is one answer")
            read.append((place, row))
    if not read:
        raise ValueError(f"{path} is empty: it needs one answer a row")
    return read


def plain_name(text: object) -> str:
    """A name out of a file as one line that a terminal shows and does not obey."""
    return terminal.printable(text, lines=False)


def instruction_of(row: dict) -> str | None:
    """The question of a row: its instruction, or "prompt" (a string, or {"text"}); None: none."""
    text = rows.instruction_of(row)
    if text is None:
        text = row.get("prompt")
        text = text.get("text") if isinstance(text, dict) else text
    return clean(text) if isinstance(text, str) else None


def own_name(row: dict, *names: str) -> str | None:
    """The row's own name of its question, or None."""
    return next((str(row[n]) for n in names if isinstance(row.get(n), (str, int))), None)


def read_questions(path: str | pathlib.Path) -> dict[str, dict]:
    """{question_id: {"text", "category"}} of Vicuna's question.jsonl."""
    questions = {}
    for place, row in rows_of(path):
        if "question_id" not in row or not isinstance(row.get("text"), str):
            raise ValueError(
                f'{path} {place} is no question: a row is {{"question_id": 1, "text": "…", '
                '"category": "…"}'
            )
        questions[str(row["question_id"])] = {
            "text": clean(row["text"]),
            "category": row.get("category"),
        }
    return questions


def source_file(path: pathlib.Path) -> pathlib.Path:
    """The file that `ask` left in its folder; any other path as it is."""
    return path / "answers.jsonl" if (path / "answers.jsonl").is_file() else path


def read(path: str | pathlib.Path, questions: str | pathlib.Path | None = None) -> list[Answer]:
    """[{"id", "instruction" (or None), "output", "model"}] of a source, in its order.

    Also "category" and "dataset" where the source has them. "own_id" tells whether "id" is the
    source's own name of the question (and not a row number), "sample" which of several answers to
    one prompt it is, "item" (of a result directory) its id there. questions: a path, or None.
    ValueError, one line, for a row that is no answer.
    """
    path = pathlib.Path(path)
    if (path / "samples.jsonl").is_file():
        return _read_result(path)
    path = source_file(path)
    given = rows_of(path)
    beside = path.absolute().parent.parent / "question.jsonl"
    if questions is None and "question_id" in given[0][1] and beside.is_file():
        questions = beside
    texts = read_questions(questions) if questions else {}
    answers = []
    for number, (place, row) in enumerate(given):
        name = own_name(row, "question_id", "id")
        if "question_id" in row and texts and name not in texts:
            raise ValueError(
                f"{path} {place}: question_id {plain_name(name)} is not in {questions}: name the "
                "questions these answers were given to"
            )
        answers.append(_answer(row, number, name, texts.get(name, {}), f"{path} {place}"))
        answers[-1]["model"] = plain_name(next((row[n] for n in NAMES if row.get(n)), path.name))
    return answers


def _answer(row, number, name, question, place):
    output = next((row[n] for n in OUTPUTS if isinstance(row.get(n), str)), None)
    if output is None and ("question_id" in row or "answer_id" in row):
        output = row.get("text")
    if not isinstance(output, str):
        raise ValueError(
            f'{place} is no answer: it needs "output" (or "response", "completion"), or '
            '"question_id" and "text"'
        )
    answer = {
        "id": name or str(number),
        "instruction": instruction_of(row) or question.get("text"),
        "output": clean(output),
        "model": "",
        "own_id": name is not None,
        "sample": row["sample"] if isinstance(row.get("sample"), int) else 0,
    }
    category = row.get("category") or question.get("category")
    if category:
        answer["category"] = category
    if "dataset" in row:
        answer["dataset"] = row["dataset"]
    return answer


def _read_result(path):
    """The answers of a result directory of eval.py generate."""
    head = results.read_result(path)
    if head.get("task") != "generate":
        raise ValueError(
            f"{path} is a result of {head.get('task')}: answers are results of eval.py generate"
        )
    if not head.get("finished"):
        raise ValueError(f"{path} is not finished: run the same eval.py generate again, it goes on")
    answers = []
    for item in files.json_lines(path / "samples.jsonl", repair=False):
        prompt, row = item["prompt"], item.get("row", {})
        turn = next(filter(None, (t.search(prompt) for t in TEMPLATES)), None)
        number, _, sample = str(item["id"]).partition("/")
        own = row.get("question_id", row.get("id"))
        answers.append(
            {
                "id": number if own is None else str(own),
                "instruction": clean(turn[1] if turn else prompt),
                "output": clean(item["output"]),
                "model": plain_name(head.get("model") or path.name),
                "own_id": own is not None,
                "sample": int(sample or 0),
                "item": str(item["id"]),
            }
        )
    return answers


def read_pairs(path: str | pathlib.Path) -> tuple[list[tuple[Answer, Answer]], list[dict]]:
    """([(answer, answer)], the rows) of a file with both answers in a row.

    ValueError, one line, where it is no such file.
    """
    pairs, given = [], []
    for number, (place, row) in enumerate(rows_of(path)):
        # PandaLM's file has the answer "True" as true, three times
        numbers = {n: row.get(n) for both in BOTH for n in both}
        row |= {n: str(v) for n, v in numbers.items() if isinstance(v, (bool, int, float))}
        names = next((b for b in BOTH if all(isinstance(row.get(n), str) for n in b)), None)
        if names is None or instruction_of(row) is None:
            raise ValueError(
                f'{path} {place} holds no pair: it needs "instruction" and "output_1", "output_2" '
                '(AlpacaEval) or "response1", "response2" (PandaLM)'
            )
        own = own_name(row, "id", "idx", "question_id")
        pairs.append(
            tuple(
                {
                    "id": own or str(number),
                    "instruction": instruction_of(row),
                    "output": clean(row[n]),
                    "model": plain_name(m),
                    "own_id": own is not None,
                    "sample": 0,
                }
                for n, m in zip(names, models_of(row), strict=True)
            )
        )
        given.append(row)
    return pairs, given


def models_of(row: dict) -> tuple:
    """The names of both models of a row with two answers."""
    models = row.get("generator_1"), row.get("generator_2")
    key = str(row.get("cmp_key", ""))
    if all(models):
        return models
    return tuple(key.split("_")) if key.count("_") == 1 else ("first", "second")


# --- pairing ---


def same(text: str | None) -> str | None:
    """An instruction as it is compared: white space collapsed."""
    return None if text is None else " ".join(text.split())


def pair(a: list[Answer], b: list[Answer]) -> tuple[list[tuple[Answer, Answer]], dict[str, int]]:
    """([(answer of a, answer of b)] in a's order, {what is left out: n}).

    Paired by id where every row on both sides has one of its own and some id is on both, else by
    the instruction; equal instructions in the order in which they stand. Several samples of one
    prompt: the first of each side. An id with two different instructions is left out. ValueError
    where nothing pairs.
    """
    left = collections.Counter({"further samples": 0})
    left["further samples"] = sum(x["sample"] != 0 for x in (*a, *b))
    a, b = ([x for x in side if x["sample"] == 0] for side in (a, b))
    shared = not {x["id"] for x in a}.isdisjoint(x["id"] for x in b)
    by_id = shared and all(x["own_id"] for x in (*a, *b))

    def key(x):
        return x["id"] if by_id else same(x["instruction"])

    waiting = collections.defaultdict(collections.deque)
    for y in b:
        if key(y) is not None:
            waiting[key(y)].append(y)
    pairs, used = [], 0
    for x in a:
        if not waiting.get(key(x)):
            left["only in the first"] += 1
            continue
        y, used = waiting[key(x)].popleft(), used + 1
        questions = same(x["instruction"]), same(y["instruction"])
        if None not in questions and questions[0] != questions[1]:
            left["same id, other instruction"] += 1
        else:
            pairs.append((x, y))
    left["only in the second"] = len(b) - used
    if not pairs:
        raise ValueError(
            f"no answer of the first ({len(a)}, {name_of(a)}) pairs with one of the second "
            f"({len(b)}, {name_of(b)}): they need the same ids or the same instructions "
            "(--questions for Vicuna's)"
        )
    return pairs, {k: n for k, n in left.items() if n}


def unique_ids(pairs: list[tuple[Answer, Answer]]) -> list[str]:
    """An id for each pair: the first answer's, with #2, #3, … where it stands again."""
    seen, names = collections.Counter(), []
    for x, _ in pairs:
        seen[x["id"]] += 1
        names.append(x["id"] if seen[x["id"]] == 1 else f"{x['id']}#{seen[x['id']]}")
    assert len(set(names)) == len(names)
    return names


def name_of(answers: Iterable[Answer]) -> str:
    """The model that most of the answers name."""
    return collections.Counter(x["model"] for x in answers).most_common(1)[0][0]


def counted(pairs: list, left: dict[str, int], what: str = "pairs") -> str:
    """One line for people: how many pairs, and what was left out of them."""
    return ", ".join([f"{len(pairs)} {what}", *(f"{n} {k}" for k, n in left.items())])


def fingerprint(path: str | pathlib.Path) -> str:
    """sha256 of a source's content: of the file, or of a result directory's samples."""
    path = source_file(pathlib.Path(path))
    return files.sha256(path / "samples.jsonl" if path.is_dir() else path)


# --- command ---


def report(paths: list, questions: str | pathlib.Path | None) -> None:
    """Print how two sources pair."""
    a, b = (read(path, questions) for path in paths)
    print(f"{name_of(a)}: {len(a)} answers, {name_of(b)}: {len(b)} answers: {counted(*pair(a, b))}")


def pairing_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.answers",
        description="What two sets of answers hold and how they pair; counts only.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="another command:\n    ask   every question of a file, of an endpoint (ask --help)",
    )
    p.add_argument(
        "a",
        metavar="A",
        help="a result directory of eval.py generate or of ask, AlpacaEval JSON, Vicuna JSON "
        "lines, Alpaca rows; .gz or not",
    )
    p.add_argument("b", metavar="B", help="the same")
    p.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl [default: one folder up from its answers]",
    )
    return p


def asking_parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.answers ask",
        description="Every question of a file asked of an endpoint; the answers in a form that "
        "style, judge, rate and data.py read.",
        epilog="Leaves --out with answers.jsonl, report.json and log.jsonl; stopped or killed, "
        "the same command goes on and asks nothing twice.",
    )
    p.add_argument(
        "prompts",
        nargs="+",
        metavar="FILE",
        help="rows with a prompt, an instruction (and input), a text, a question or turns; or "
        "dialogues; of several turns the first is asked",
    )
    g = p.add_argument_group("endpoint")
    access.add_flags(g, "endpoint")
    access.add_sampling_flags(g, 1.0, None, "")
    g = p.add_argument_group("asking")
    g.add_argument("--system", metavar="TEXT", help="a system message before each question")
    g.add_argument(
        "--samples", type=int, default=1, metavar="N", help="answers to each [%(default)s]"
    )
    g.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="sent with the first answer to a question, N + 1 with the second, … [default: none]",
    )
    g.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder of answers, report.json and log.jsonl"
    )
    return p


def pairing_command(argv: list[str]) -> None:
    args = pairing_parser().parse_args(argv)
    report([args.a, args.b], args.questions)


def asking_command(argv: list[str]) -> None:
    args = asking_parser().parse_args(argv)
    from study import questions

    model = access.Model(args.endpoint_model, args.temperature, args.max_tokens)
    asking = questions.Asking(args.system, args.samples, args.seed)
    reach = access.of_flags(args, "endpoint")
    with rows.locked(args.out) as out:
        questions.collect(args.prompts, asking, model, reach, out, args.limit)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    named = argv[:1] == ["ask"]

    def run():
        asking_command(argv[1:]) if named else pairing_command(argv)

    return terminal.program(run, "study.answers", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
