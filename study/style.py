"""Does a model write like its teacher? Table 2 of the paper.

Measured are lists, closing summaries, unigram overlap, lengths and tone against the teacher's
answers to the same questions.

    python -m study.style answer_vicuna-13b.jsonl --teacher answer_gpt35.jsonl --out DIR

What a list and a summary are stands at has_list and has_summary: the paper does not say, so its
figures are marks to stand beside and not to be equalled. Tone needs a judge (--judge) and is left
out, and said so, without one. Left out: answers that do not pair (counted), languages other than
English (the closing phrases are English).
"""

import collections
import html
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from host import files, terminal
from study import access, answers
from tasks import results, scores
from tasks.page import page as result_page

FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
# 1. 1) (1) 1: a. a) **1.** Step 1: ; the text may follow on the next line, as in the base model's
# lists
NUMBERED = re.compile(
    r"^\s*(?:#{1,6}\s+)?(?:\*\*|__)?(?:(?P<word>[A-Z][a-z]+) )?\(?(?P<number>\d{1,3}|(?<![A-Za-z] "
    r")[A-Za-z](?=[.)]))(?:[.)](?!\d)|(?<=\d):)(?:\*\*|__)?(?:\s|$)"
)
BULLET = re.compile(r"^\s*(?P<mark>[-*+•‣◦▪●·–—])\s+\S")
RULE = re.compile(r"^\s*([-*_])(\s*\1){2,}\s*$")
INLINE = re.compile(r"(?:(?<=\s)|^)\(?(\d{1,2})[.)]\s+(?=\S)")
ORDINALS = re.compile(r"(?:^|(?<=[.!?:;]\s)|(?<=\n))(?:\*\*)?(First|Second|Third)(?:ly)?\b(?!-)")

CLOSING = re.compile(
    r"(?:^|(?<=[.!?]\s))[\"'*_#\s]*(?:"
    r"overall\b|(?:in|as a) (?:summary|conclusion|short|essence|brief|closing|a nutshell|sum)\b|to "
    r"(?:sum(?: it)? up|summari[sz]e|conclude|wrap up|recap)\b|summing "
    r"up|summary\b|conclusion\b|tl;?dr"
    r"|all in all|ultimately|in the end\b|all (?:of )?these\b|these are (?:just |only )?(?:a "
    r"few|some)\b|by (?:\w+ly )?\w+ing (?:all )?(?:of )?(?:these|those|the above|this)\b"
    r"|with (?:all )?(?:of )?these\b|remember[,:]? |so, in "
    r")",
    re.IGNORECASE,
)


def has_list(text: str) -> bool:
    """Whether an answer holds a list, outside fenced code.

    Ours (the paper gives no definition); any of

      numbered  two lines, the second numbered like the first or one higher: "1.", "1)", "(1)",
                "1:", "a.", "**1.**", "Step 1:"; other lines may stand between
      bulleted  two lines that begin with the same mark of -*+•‣◦▪●·–— and white space; a ruled
                line (---) is none
      plain     "First… Second…" with each word at the beginning of a sentence, or 1. 2. 3. (three,
                from 1 on) within one paragraph

    Not a list: short lines without a mark (poems, addresses), "a, b and c" in a sentence, tables,
    code.
    """
    text = FENCE.sub("", text)
    last, marks = {}, collections.Counter()
    for line in text.split("\n"):
        if numbered := NUMBERED.match(line):
            kind, number = _number(numbered)
            if kind in last and number - last[kind] in (0, 1):
                return True
            last[kind] = number
        elif (bullet := BULLET.match(line)) and not RULE.match(line):
            marks[bullet["mark"]] += 1
            if marks[bullet["mark"]] == 2:
                return True
        if _counts_to_three(line):
            return True
    ordinals = [m[1] for m in ORDINALS.finditer(text)]
    return "First" in ordinals and "Second" in ordinals[ordinals.index("First") :]


def _number(numbered):
    """(kind, number) of an item: "Step 1" and "1" are two kinds, letters a third."""
    digits = numbered["number"].isdigit()
    number = int(numbered["number"]) if digits else ord(numbered["number"].lower())
    return numbered["word"] or digits, number


def _counts_to_three(line):
    """Whether 1. 2. 3. stand within one paragraph."""
    want = 1
    for inline in INLINE.finditer(line):
        want += int(inline[1]) == want
    return want > 3


def has_summary(text: str) -> bool:
    """Whether an answer closes with a summary: its last paragraph is prose, another paragraph
    stands before it, and one of its sentences begins with a closing phrase (CLOSING). Ours.

    Paragraphs are what blank lines part; also a last line of prose right behind a list. Prose:
    neither an item of a list nor code. One phrase alone on the line before ("Conclusion") counts as
    its beginning. "I hope this helps" is no summary, nor is a single paragraph that ends with
    "Overall, …".
    """
    text = text.strip()
    code = FENCE.search(text)
    while code and code.end() < len(text):
        code = FENCE.search(text, code.end())
    if code:
        return False  # it ends with code
    paragraphs = [p for p in re.split(r"\n[ \t]*\n", FENCE.sub("\n\n", text)) if p.strip()]
    if not paragraphs:
        return False
    lines = [line for line in paragraphs[-1].split("\n") if line.strip()]
    item = [bool(NUMBERED.match(line) or BULLET.match(line)) for line in lines]
    if any(
        item
    ):  # prose that follows a list without a blank line; nothing where an item is the last line
        begin = len(item) - item[::-1].index(True)
        lines, before = lines[begin:], True
    else:
        before = len(paragraphs) > 1 or "```" in text
    return before and CLOSING.search(" ".join(line.strip() for line in lines)) is not None


def words(text: str) -> list[str]:
    """Lower-case words (letters, digits, _ of any script), punctuation dropped; an apostrophe
    parts, as in ROUGE.
    """
    return re.findall(r"\w+", text.lower())


def unigram_overlap(ours: str, teacher: str) -> float:
    """F1 of two answers' words as bags, 0 to 1: ROUGE-1 without stemming (Lin 2004, ROUGE: A
    Package for Automatic Evaluation of Summaries, section 2). 1 where both have no word, 0 where
    one has none.
    """
    a, b = collections.Counter(words(ours)), collections.Counter(words(teacher))
    return 2 * (a & b).total() / (a.total() + b.total()) if a or b else 1.0


def pearson(x: scores.Numbers, y: scores.Numbers, resamples: int = 10_000, seed: int = 0) -> tuple:
    """Pearson's r of x [n] and y [n] and its 95 % bootstrap interval over pairs -> (r, (low,
    high)); (None, None) where one side does not vary.
    """
    import numpy as np

    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, None
    columns = np.stack([np.ones_like(x), x - x.mean(), y - y.mean()])
    columns = np.stack(
        [columns[1], columns[2], columns[1] ** 2, columns[2] ** 2, columns[1] * columns[2]], 1
    )  # [n, 5]: sums of these give r

    def r_of(means):
        mx, my, xx, yy, xy = np.moveaxis(means, -1, 0)
        return (xy - mx * my) / np.sqrt(np.maximum((xx - mx**2) * (yy - my**2), 1e-300))

    rng, drawn, n = np.random.default_rng(seed), [], len(x)
    step = max(1, (1 << 20) // n)
    for start in range(0, resamples, step):
        drawn.append(r_of(columns[rng.integers(0, n, (min(step, resamples - start), n))].mean(1)))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return float(r_of(columns.mean(0))), (float(low), float(high))


def share(values: Sequence[float], seed: int = 0) -> dict:
    """A mean of booleans or numbers with its interval; None where there are none."""
    if not values:
        return {"score": None, "n": 0, "interval": None}
    # Drawing again from none of 25 gives none each time, an interval of no width: Wilson's then.
    if len(set(values)) == 1 and isinstance(values[0], bool):
        interval = scores.wilson(sum(values), len(values))
    else:
        interval = scores.bootstrap(values, seed=seed)
    return {"score": scores.mean(values), "n": len(values), "interval": interval}


def measure(items: list[dict], seed: int = 0) -> dict:
    """The figures of Table 2 from items as compare() makes them.

    -> {name: {"score", "n", "interval"}}; shares from 0 to 1, r from -1 to 1, "tone" only where
    items have it. NAME_without: where the teacher has none, which imitation does not explain.
    """
    figures = {}
    for name in ("list", "summary"):
        has = [i[name] for i in items if i[f"teacher_{name}"]]
        without = [i[name] for i in items if not i[f"teacher_{name}"]]
        figures[name], figures[f"{name}_without"] = share(has, seed), share(without, seed)
        figures[f"{name}_ours"] = share([i[name] for i in items], seed)
        figures[f"{name}_teacher"] = share([i[f"teacher_{name}"] for i in items], seed)
    figures["unigram"] = share([i["unigram"] for i in items], seed)
    ours, theirs = [i["words"] for i in items], [i["teacher_words"] for i in items]
    r, interval = pearson(ours, theirs, seed=seed)
    figures["length"] = {"score": r, "n": len(items), "interval": interval}
    if any("tone" in i for i in items):
        figures["tone"] = share([i["tone"] for i in items if i["tone"] is not None], seed)
    return figures


def compare(pairs: list[tuple[answers.Answer, answers.Answer]]) -> list:
    """One item a pair of (our answer, the teacher's)."""
    return [
        {
            "id": name,
            "prompt": x["instruction"],
            "output": x["output"],
            "gold": y["output"],
            "unigram": unigram_overlap(x["output"], y["output"]),
            "list": has_list(x["output"]),
            "teacher_list": has_list(y["output"]),
            "summary": has_summary(x["output"]),
            "teacher_summary": has_summary(y["output"]),
            "words": len(words(x["output"])),
            "teacher_words": len(words(y["output"])),
        }
        for name, (x, y) in zip(answers.unique_ids(pairs), pairs, strict=True)
    ]


# --- tone ---

TONE = """\
Below are a question and an answer to it. Is the answer written in an authoritative tone, that is: \
confident, factual and sure of itself, as an expert would write? \
Judge the tone alone, not whether what is said is true. Reply with one word, Yes or No.

[Question]
{question}

[Answer]
{answer}"""


def read_tone(text: str) -> bool | None:
    """True, False, or None where a reply is neither yes nor no."""
    word = re.match(r"\W*(yes|no)\b", text or "", re.IGNORECASE)
    return word[1].lower() == "yes" if word else None


def add_tone(items: list[dict], endpoint: Any, judge_model: str) -> dict:
    """Ask the judge about every answer -> counts of what came back.

    Items get "tone": True, False or None (an error, or a reply that is neither).
    """
    counts, tokens = collections.Counter(), collections.Counter()
    judge, bodies = access.Model(judge_model, 0, 4), []
    for item in items:
        text = TONE.format(question=item["prompt"] or "", answer=item["output"])
        bodies.append(judge.body([{"role": "user", "content": text}]))
    for k, reply in access.answers(endpoint, bodies, "tone", "replies"):
        tone = None if reply["error"] else read_tone(reply["text"])
        items[k]["tone"] = tone
        what = "errors" if reply["error"] else "unreadable" if tone is None else "judged"
        counts[what] += 1
        tokens.update({n: reply[n] or 0 for n in ("prompt_tokens", "completion_tokens")})
    return dict(counts) | dict(tokens)


# --- result ---

ROWS = {
    "list": "teacher has a list: ours too",
    "summary": "teacher closes with a summary: ours too",
    "unigram": "unigram overlap (ROUGE-1 F1)",
    "length": "length, Pearson's r",
    "tone": "authoritative tone (judge)",
    "list_without": "teacher has no list: ours has",
    "summary_without": "teacher has no summary: ours has",
}


def shown(figure: dict, name: str) -> str:
    """One figure in words, with its interval."""
    if figure["score"] is None:
        return f"- (n {figure['n']})"
    digits = ".2f" if name == "length" else ".1%"
    text = f"{figure['score']:{digits}}"
    if not figure["interval"]:
        return text
    low, high = figure["interval"]
    return f"{text} ({low:{digits}} to {high:{digits}}, n {figure['n']})"


def rows_of(columns: dict[str, dict]) -> list:
    """[[label, a figure a column]] of Table 2. columns: {title: figures}."""
    left_out = "left out: no judge"
    return [
        [label, *(shown(m[name], name) if name in m else left_out for m in columns.values())]
        for name, label in ROWS.items()
    ]


def table(columns: dict[str, dict]) -> str:
    """The figures as lines of text."""
    lines = [["", *columns], *rows_of(columns)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )


def html_table(columns: dict[str, dict]) -> str:
    """The same as an HTML table."""

    def cells(row, tag):
        opened = f'<{tag} style="text-align: left">'
        return "".join(f"{opened}{html.escape(cell)}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows_of(columns))
    return f"<table><tr>{cells(['', *columns], 'th')}</tr>{body}</table>"


class Judge(NamedTuple):
    """The judge of the tone: how it is reached, and its name there."""

    reach: access.Access
    model: str

    def add_tone(self, items: list[dict], log: str | pathlib.Path) -> dict:
        with self.reach.endpoint(log) as endpoint:
            return add_tone(items, endpoint, self.model)


def run(
    sources: dict,
    questions: str | pathlib.Path | None,
    out: str | pathlib.Path,
    seed: int,
    judge: Judge | None = None,
) -> None:
    """The command. sources: {"model", "teacher" and perhaps "teacher2": path}; judge: or None."""
    read = {k: answers.read(path, questions) for k, path in sources.items()}
    names = {k: answers.name_of(x) for k, x in read.items()}
    out, teacher = pathlib.Path(out), read.pop("teacher")
    settings = {
        "teacher": names["teacher"],
        "judge_model": judge.model if judge else None,
        "seed": seed,
        "fingerprints": {k: answers.fingerprint(p) for k, p in sources.items()},
    }
    columns, counts, tone, items = {}, {}, {}, {}
    for k, ours in read.items():  # "model" is the first
        pairs, left = answers.pair(ours, teacher)
        terminal.say(f"{names[k]} and {names['teacher']}: {answers.counted(pairs, left)}")
        items[k] = compare(pairs)
        if k == "model":
            teacher = [y for _, y in pairs]  # the upper bound is over the model's questions
            result = results.Result(out, "style", settings, names["model"])
        if judge:
            tone[k] = judge.add_tone(items[k], out / "requests.jsonl")
            said = ", ".join(f"{n} {what}" for what, n in tone[k].items())
            terminal.say(f"tone of {names[k]}: {said}")
        columns[k], counts[k] = measure(items[k], seed), {"pairs": len(pairs)} | left
    for item in items["model"]:
        if item["id"] in result.done:  # a tone that failed last time may be there now
            result.done[item["id"]] = json.loads(files.dumps(item))
        else:
            result.add(item)
    summary = {
        "score": columns["model"]["unigram"]["score"],
        "interval": columns["model"]["unigram"]["interval"],
        "unit": "unigram overlap",
        "metrics": columns["model"],
        "counts": counts,
        "tone": tone if judge else "left out: no judge",
    }
    if "teacher2" in columns:
        summary["upper_bound"] = {"model": names["teacher2"], "metrics": columns["teacher2"]}
    order = [i["id"] for i in items["model"]]
    summary = result.finish(order, summary)
    titled = {
        names[k] + (" (upper bound)" if k == "teacher2" else ""): m for k, m in columns.items()
    }
    page = result_page(summary, [result.done[i] for i in order], html_table(titled))
    files.write_whole(out / "index.html", page)
    print(f"against {names['teacher']}:\n{table(titled)}\n{out / 'index.html'}")


# --- command ---


def parser() -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.style",
        description="How far a model's answers are in its teacher's style (Table 2 of the paper), "
        "each figure with a bootstrap interval.",
        epilog="Leaves --out with results.json, samples.jsonl and index.html. What a list and a "
        "summary are: the docstrings of has_list and has_summary.",
    )
    p.add_argument(
        "outputs",
        metavar="MODEL_OUTPUTS",
        help="the model's answers: a result directory of eval.py generate, AlpacaEval JSON, Vicuna "
        "JSON lines; .gz or not",
    )
    p.add_argument(
        "--teacher", required=True, metavar="OUTPUTS", help="the teacher's, to the same questions"
    )
    p.add_argument(
        "--teacher2",
        metavar="OUTPUTS",
        help="a second sample of the teacher: the upper bound, measured like the model",
    )
    p.add_argument(
        "--questions",
        metavar="FILE",
        help="Vicuna's question.jsonl [default: one folder up from its answers]",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="result directory")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the intervals [default %(default)s]"
    )
    about = "asked for the tone of every answer; without one tone is left out"
    access.add_flags(p.add_argument_group("tone", about), "judge", required=False, replay="out")
    return p


def main(argv: list[str] | None = None) -> int:
    def parse_and_run():
        args = parser().parse_args(argv)
        if bool(args.judge) != bool(args.judge_model):
            raise ValueError(
                "--judge and --judge-model go together: name the endpoint and the model there, or "
                "neither"
            )
        judge = None
        if args.judge:
            judge = Judge(access.of_flags(args, "judge"), args.judge_model)
        sources = {"model": args.outputs, "teacher": args.teacher}
        if args.teacher2:
            sources["teacher2"] = args.teacher2
        run(sources, args.questions, args.out, args.seed, judge)

    return terminal.program(parse_and_run, "study.style", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
