"""Which evaluation prompts the training data gives away: exact BLEU against the nearest user query.

    python -m study.curate leakage koala_test_set.jsonl --train mix.jsonl.gz --out DIR

Drops the prompts whose BLEU against any user query of the training data is above the threshold,
that are not English (language.py; a short one that says nothing stays), or that are about code (a
rule on words). Writes kept.jsonl (the rows as they were read), report.json and index.html. Left
out: paraphrases, which BLEU does not see, and leakage into answers.
"""

import collections
import json
import pathlib
import re
from typing import NamedTuple

from host import files
from study import rows
from study.curate import language, queries
from study.curate.nearest_page import bars, clipped, folder, histogram
from tasks.page import page as result_page

# What makes a prompt one about code: a fenced block; two lines that look like source; or, at least
# once in 120 words, a programming language or tool by name or a word that only programmers use so
# (an article of 1,600 words that says "code" once is no prompt about code).
PASSING = 120
CODE = re.compile(
    r"\b(?:python|javascript|typescript|java|golang|php|sql|mysql|sqlite|html5?|css|bash|matlab|"
    r"kotlin|verilog|numpy|pandas|pytorch|tensorflow|react(?:js|\.js)|node\.?js|jquery|django|"
    r"docker|kubernetes|leetcode|regex|json|xml|yaml|github|vba)\b|(?<![\w+])(?:c\+\+|c#)|"
    r"\b(?:rust|ruby|perl|swift|scala|haskell|r) (?:code|program|script|function)\b|"
    r"(?<!dress )(?<!zip )(?<!area )(?<!bar)(?<!postal )(?<!promo )(?<!morse )(?<!moral )"
    r"(?<!tax )(?<!genetic )\bcode\b(?! of (?:conduct|ethics|honou?r|law))|"
    r"\b(?:coding|pseudo-?code|source code|codebase|programming|programmer|"
    r"(?:computer|software) program|write a program|compiler|debug(?:ging)?|regular expressions?|"
    r"(?:write|implement|create|define) (?:an? |the )?(?:\w+ ){0,2}"
    r"(?:function|algorithm|script to|api|class that)|"
    r"data structures?|stack trace|unit tests?|linked list|binary search)\b",
    re.I,
)
SOURCE = re.compile(
    r"^[^\S\n]*+(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import|#include|"
    r"public (?:static|class|void)|(?:var|let|const) \w+ =|SELECT .+ FROM|return .*;$|"
    r".*[;{}]\s*$)",
    re.M,
)


class Rules(NamedTuple):
    """Which prompts are dropped: BLEU above `threshold` percent; other languages; code."""

    threshold: float = 20
    keep_languages: bool = False
    keep_code: bool = False


def is_code(text: str) -> bool:
    """Whether a prompt is about code, by the rule above."""
    return (
        "```" in text
        or len(SOURCE.findall(text)) >= 2
        or PASSING * len(CODE.findall(text)) >= max(len(text.split()), 1)
    )


def reasons(text: str, score: float, rules: Rules) -> list:
    """Why a prompt is dropped, a list; empty where it is kept."""
    dialogue = {"conversations": [{"from": "human", "value": text}]}
    tests = (
        (f"BLEU above {rules.threshold:g} %", score > rules.threshold),
        ("not English", not rules.keep_languages and not language.is_english(dialogue)),
        ("about code", not rules.keep_code and is_code(text)),
    )
    return [reason for reason, holds in tests if holds]


def item_of(
    name: str, text: str, score: float, dropped: list[str], nearest: tuple[str, str]
) -> dict:
    """One prompt with the nearest (id, query) of the training data."""
    return {
        "id": name,
        "bleu": score,
        "dropped": "; ".join(dropped) or None,
        "prompt": text,
        "nearest": nearest[1],
        "nearest_id": nearest[0],
    }


def run(
    prompt_paths: list[str],
    train_paths: list[str],
    rules: Rules,
    out: str | pathlib.Path | None,
    max_bad: float,
    threads: int,
) -> None:
    """The command: compare, write what is kept and the report, print the counts."""
    counts = collections.Counter()
    prompts = [
        (name, rows.clean(text), row)
        for name, text, row in rows.each(prompt_paths, rows.prompt_of, max_bad)
    ]
    train = queries.read(train_paths, True, max_bad, counts)
    if not prompts or not train:
        raise ValueError(
            f"{len(prompts)} prompts against {len(train)} training queries: name files that hold "
            "some"
        )
    scores, index = queries.search(
        "leakage", [text for _, text, _ in prompts], [q for _, q in train], threads
    )
    items, why = [], collections.Counter()
    for (name, text, _), score, j in zip(prompts, scores, index, strict=True):
        dropped = reasons(text, score, rules)
        why.update(dropped)
        items.append(item_of(name, text, float(score), dropped, train[j]))
    kept = [row for item, (_, _, row) in zip(items, prompts, strict=True) if not item["dropped"]]
    report = {
        "task": "leakage",
        "score": len(kept),
        "unit": f"of {len(prompts)} prompts kept",
        "n": len(prompts),
        "interval": None,
        "dropped": len(prompts) - len(kept),
        "reasons": dict(why),
        "read": dict(counts),
        "settings": {
            "prompts": [pathlib.Path(f).name for f in prompt_paths],
            "train": [pathlib.Path(f).name for f in train_paths],
            **rules._asdict(),
        },
    }
    out = folder(out, "leakage")
    files.write_whole(out / "kept.jsonl", b"".join(map(rows.json_line, kept)))
    order = sorted(items, key=lambda i: (i["dropped"] is None, -i["bleu"]))
    heading = report | {"model": ", ".join(report["settings"]["prompts"])}
    page = result_page(
        json.loads(files.dumps(heading)), [clipped(i) for i in order], bars(histogram(scores))
    )
    files.write_whole(out / "index.html", page)
    files.write_json(out / "report.json", report | {"prompts": items})
    print("".join(f"{n:,} {what}\n" for what, n in counts.items() if n), end="")
    print(
        f"leakage: {len(kept)} of {len(prompts)} prompts kept, {report['dropped']} dropped"
        + "".join(f"; {n} {r}" for r, n in why.items())
        + (" (some for two reasons)" if why.total() > report["dropped"] else "")
    )
    print(f"{out / 'kept.jsonl'}, {out / 'index.html'}")
