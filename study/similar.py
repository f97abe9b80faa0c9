"""How varied the queries of a data set are, and which evaluation prompts it gives away: exact BLEU against the most similar query.

    python -m study.curate diversity mix.jsonl.gz --out out/diversity
    python -m study.curate leakage koala_test_set.jsonl --train mix.jsonl.gz --threshold 20 --out out/leakage

diversity: for each user query (the first of each dialogue) the BLEU of the most similar other one. Writes report.json, samples.jsonl (every query with its nearest) and
index.html (the closest pairs). Super-NaturalInstructions task files are read too: a query is the definition, a blank line, the input. Two sets are compared at equal size
(--sample). leakage: drops the prompts whose BLEU against any user query of the training data is above the threshold, that are not English (language.py; a short one that says
nothing stays), or that are about code (a rule on words). Writes kept.jsonl (the rows as they were read), report.json and index.html. Left out: paraphrases, which BLEU does not
see, and leakage into answers.
"""

import collections
import html
import json
import os
import pathlib
import random
import re
import sys

import numpy as np

import data
from study import bleu
from tasks import results
from text import dialogues

SHOWN = 500  # pairs on the page
CLIP = 4000  # characters of a text on the page
# What makes a prompt one about code: a fenced block; two lines that look like source; or, at least once in 120 words, a programming language or tool by name or a word that only
# programmers use so (an article of 1,600 words that says "code" once is no prompt about code).
PASSING = 120
CODE = re.compile(
    r"\b(?:python|javascript|typescript|java|golang|php|sql|mysql|sqlite|html5?|css|bash|matlab|kotlin|verilog|numpy|pandas|pytorch|tensorflow|react(?:js|\.js)|node\.?js|jquery|django|docker|"
    r"kubernetes|leetcode|regex|json|xml|yaml|github|vba)\b|(?<![\w+])(?:c\+\+|c#)|\b(?:rust|ruby|perl|swift|scala|haskell|r) (?:code|program|script|function)\b|"
    r"(?<!dress )(?<!zip )(?<!area )(?<!bar)(?<!postal )(?<!promo )(?<!morse )(?<!moral )(?<!tax )(?<!genetic )\bcode\b(?! of (?:conduct|ethics|honou?r|law))|"
    r"\b(?:coding|pseudo-?code|source code|codebase|programming|programmer|(?:computer|software) program|write a program|compiler|debug(?:ging)?|regular expressions?|"
    r"(?:write|implement|create|define) (?:an? |the )?(?:\w+ ){0,2}(?:function|algorithm|script to|api|class that)|data structures?|stack trace|unit tests?|linked list|binary search)\b",
    re.I,
)
SOURCE = re.compile(
    r"^\s*(?:def \w+\(|class \w+[:({]|import \w+|from \w+ import|#include|public (?:static|class|void)|(?:var|let|const) \w+ =|SELECT .+ FROM|return .*;$|.*[;{}]\s*$)",
    re.M,
)


def is_code(text):
    """Whether a prompt is about code, by the rule above."""
    return (
        "```" in text
        or len(SOURCE.findall(text)) >= 2
        or PASSING * len(CODE.findall(text)) >= max(len(text.split()), 1)
    )


# ---------------------------------------------------------------------------------------------------------------- reading


def rows(paths, parse, max_bad=0.01):
    """What parse(row, name) gives (a list; ValueError for a malformed row) for every row of the files, one after another; malformed ones are said, counted, and refused over a share."""
    sources, passed = dialogues.source_files(paths)
    for path in passed:
        print(f"{path}: neither JSON nor .txt, passed over", file=sys.stderr)
    for source in sources:
        malformed = dialogues.Malformed(source, max_bad)
        for chunk, _ in dialogues.raw_chunks(source):
            bad = []
            for place, row in chunk:
                try:
                    found = parse(row, f"{pathlib.Path(source).name} {place}")
                except ValueError as error:
                    bad.append((place, str(error)))
                    continue
                yield from found
            malformed.add(len(chunk), bad)
        malformed.close()


def as_object(row):
    """A raw row as a dict; ValueError, a reason, where it is none."""
    if not isinstance(row, dict):
        try:
            row = json.loads(row if isinstance(row, bytes) else row.encode())
        except (UnicodeError, RecursionError, ValueError) as error:
            raise ValueError(f"not JSON ({type(error).__name__})") from None
    if not isinstance(row, dict):
        raise ValueError("not an object")
    return row


def query_rows(all_turns, counts):
    """A parse for `rows`: [(id, user query)] of a dialogue's row, or of a task of Super-NaturalInstructions."""

    def parse(row, name):
        if isinstance(row, dict) or b'"Instances"' in (
            row if isinstance(row, bytes) else row.encode("utf-8", "replace")
        ):
            task = as_object(row)
            if "Definition" in task and "Instances" in task:
                return instances(task, name)
        out = []
        for d in dialogues.parse_row(row, name):
            said = [t["value"] for t in d.get("conversations", []) if t["from"] == "human"]
            said = said if all_turns else said[:1]
            asked = [
                (d["id"] + (f" turn {k}" if all_turns else ""), q)
                for k, q in enumerate(said)
                if q.strip()
            ]
            counts["dialogues"] += 1
            counts["blank queries passed over"] += len(said) - len(asked)
            counts["without a user query, passed over"] += not said
            out += asked
        return out

    def instances(task, name):
        definition, found = task["Definition"], task["Instances"]
        definition = (
            "\n".join(definition)
            if isinstance(definition, list) and all(isinstance(x, str) for x in definition)
            else definition
        )
        if (
            not isinstance(definition, str)
            or not isinstance(found, list)
            or not all(isinstance(x, dict) and isinstance(x.get("input"), str) for x in found)
        ):
            raise ValueError(
                'a task of Super-NaturalInstructions is {"Definition": [str], "Instances": [{"input": str, …}]}'
            )
        counts["tasks"] += 1
        return [
            (str(x.get("id", f"{name} instance {k}")), f"{definition}\n\n{x['input']}")
            for k, x in enumerate(found)
        ]

    return parse


def read_queries(paths, all_turns, max_bad, counts):
    found = list(rows(paths, query_rows(all_turns, counts), max_bad))
    counts["queries"] += len(found)
    return found


def prompt_of(row, name):
    """A parse for `rows`: [(id, prompt, row)] of Koala's test set, Self-Instruct's, AlpacaEval's, Vicuna's, or a dialogue."""
    row = as_object(row)
    name = str(
        next(
            (
                row[k]
                for k in ("id", "question_id", "prompt_id")
                if isinstance(row.get(k), (str, int))
            ),
            name,
        )
    )
    if isinstance(row.get("prompt"), str):
        return [(name, row["prompt"], row)]
    if isinstance(row.get("instruction"), str):
        first = (
            row["instances"][0]
            if isinstance(row.get("instances"), list)
            and row["instances"]
            and isinstance(row["instances"][0], dict)
            else row
        )
        more = first.get("input")
        return [
            (
                name,
                row["instruction"]
                + (f"\n\n{more}" if isinstance(more, str) and more.strip() else ""),
                row,
            )
        ]
    for key in ("text", "question"):
        if isinstance(row.get(key), str):
            return [(name, row[key], row)]
    said = [
        t["value"]
        for d in dialogues.parse_row(row, name)
        for t in d.get("conversations", [])
        if t["from"] == "human"
    ]
    if not said:
        raise ValueError("no prompt in it")
    return [(name, said[0], row)]


# ---------------------------------------------------------------------------------------------------------------- commands


def flags(commands):
    """Adds the sub-commands diversity and leakage to argparse's sub-parsers."""
    about = __doc__.split("\n\n")[2].split("leakage: ")
    p = commands.add_parser(
        "diversity",
        help="BLEU of each query's most similar other query",
        description=about[0].removeprefix("diversity: "),
    )
    p.add_argument(
        "file",
        nargs="+",
        metavar="FILE",
        help="dialogues in any form that dialogues.py reads, or Super-NaturalInstructions task files",
    )
    p.add_argument(
        "--all-turns",
        action="store_true",
        help="every user turn is a query, not the first of each dialogue only",
    )
    p.add_argument(
        "--sample", type=int, metavar="N", help="draw N queries: sets are compared at equal size"
    )
    p.add_argument("--seed", type=int, default=0, help="of the draw [default %(default)s]")
    p.add_argument(
        "--closest", type=int, default=10, metavar="N", help="pairs to print [default %(default)s]"
    )
    p.set_defaults(run=diversity)
    p = commands.add_parser(
        "leakage",
        help="drop evaluation prompts that the training data gives away",
        description=about[1],
    )
    p.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPTS",
        help="Koala's test set, Self-Instruct's user_oriented_instructions, AlpacaEval's, Vicuna's questions; JSON or JSON lines",
    )
    p.add_argument(
        "--train",
        nargs="+",
        required=True,
        metavar="FILE",
        help="the training dialogues, all user turns of which count",
    )
    p.add_argument(
        "--threshold",
        type=float,
        default=20,
        metavar="PERCENT",
        help="drop prompts with a higher BLEU [default %(default)s]",
    )
    p.add_argument("--keep-languages", action="store_true", help="do not drop what is not English")
    p.add_argument("--keep-code", action="store_true", help="do not drop what is about code")
    p.set_defaults(run=leakage)
    for p in commands.choices["diversity"], commands.choices["leakage"]:
        p.add_argument(
            "--max-bad-rows",
            type=float,
            default=0.01,
            metavar="SHARE",
            help="share of malformed rows of a file above which it is refused [default %(default)s]",
        )
        p.add_argument(
            "--threads", type=int, default=os.cpu_count(), metavar="N", help="[default: one a core]"
        )
        p.add_argument(
            "--out", metavar="DIR", help="folder for the report [default: a new one under out/]"
        )


def search(what, queries, references, threads):
    """bleu.nearest with a line of progress."""
    if threads < 1:
        raise ValueError(f"--threads {threads} is out of range: use 1 or more")
    bar = data.Progress(
        what, len(queries) * len(queries if references is None else references), "pairs"
    )
    try:
        return bleu.nearest(queries, references, threads, bar)
    finally:
        bar.close()


def with_copies(texts, threads):
    """bleu.nearest of texts among which are copies -> scores, index, and the scores of the different texts among each other (copies count once there)."""
    places = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    different, first = list(places), [p[0] for p in places.values()]
    once, near = (
        search("diversity", different, None, threads)
        if len(different) > 1
        else (np.array([]), None)
    )
    scores, index = np.empty(len(texts)), np.empty(len(texts), np.int64)
    for k, (text, where) in enumerate(places.items()):
        found = [(once[k], first[near[k]])] if near is not None else []
        same = bleu.sentence_bleu(text, text) if len(where) > 1 else 0.0
        for i in where:
            both = found + (
                [(same, where[1] if i == where[0] else where[0])] if len(where) > 1 else []
            )
            scores[i] = max(s for s, _ in both)
            index[i] = min(j for s, j in both if s >= scores[i] * (1 - 1e-12))
    return scores, index, once


def diversity(args):
    counts = collections.Counter()
    queries = read_queries(args.file, args.all_turns, args.max_bad_rows, counts)
    if args.sample is not None:
        if not 2 <= args.sample <= len(queries):
            raise ValueError(
                f"--sample {args.sample} of {len(queries)} queries: use 2 to {len(queries)}"
            )
        queries = [
            queries[i]
            for i in sorted(random.Random(args.seed).sample(range(len(queries)), args.sample))
        ]
    if len(queries) < 2:
        raise ValueError(
            f"{' '.join(args.file)} holds {len(queries)} user queries: name files with two or more"
        )
    texts = [q for _, q in queries]
    scores, index, once = with_copies(texts, args.threads)
    items = [
        {"id": name, "bleu": float(s), "query": q, "nearest": texts[j], "nearest_id": queries[j][0]}
        for (name, q), s, j in zip(queries, scores, index, strict=True)
    ]
    bins = np.histogram(np.minimum(scores, 100), np.arange(0, 101, 10))[
        0
    ].tolist()  # the last one holds 100 too
    pairs, seen = [], set()
    for i in np.argsort(
        -scores, kind="stable"
    ):  # identical queries are counted, not shown: there is nothing to read
        j = int(index[i])
        if texts[i] != texts[j] and (min(i, j), max(i, j)) not in seen:
            seen.add((min(i, j), max(i, j)))
            pairs.append(items[i])
    copies = sum(n for n in collections.Counter(texts).values() if n > 1)
    found = {
        "task": "diversity",
        "score": float(scores.mean()),
        "unit": "% BLEU of the most similar other query, mean",
        "n": len(queries),
        "interval": None,
        "median": float(np.median(scores)),
        "histogram": {f"{10 * k}-{10 * k + 10}": n for k, n in enumerate(bins)},
        "queries that are copies of another": copies,
        "mean where copies count once": float(once.mean()) if len(once) else None,
        "different queries": len(once) or 1,
        "read": dict(counts),
        "settings": {
            "files": [pathlib.Path(f).name for f in args.file],
            "all_turns": args.all_turns,
            "sample": args.sample,
            "seed": args.seed,
        },
    }
    out = folder(args.out, "diversity")
    results.write_beside(out / "samples.jsonl", "".join(results.dumps(i) + "\n" for i in items))
    results.write_beside(
        out / "index.html",
        results.page(
            json.loads(results.dumps(found | {"model": ", ".join(found["settings"]["files"])})),
            [clipped(i) for i in pairs[:SHOWN]],
            bars(found["histogram"]),
        ),
    )
    results.write_beside(out / "report.json", results.dumps(found, indent=2) + "\n")
    print("".join(f"{n:,} {what}\n" for what, n in counts.items() if n), end="")
    print(
        f"diversity: BLEU of the most similar other query: mean {scores.mean():.2f} %, median {np.median(scores):.2f} %, n {len(queries):,}; {copies:,} are copies of another"
    )
    if copies and len(once):
        print(
            f"  where copies count once: mean {once.mean():.2f} %, median {np.median(once):.2f} %, n {len(once):,}"
        )
    for name, n in found["histogram"].items():
        print(f"  {name:>6} % {n:>8,} {n / len(queries):6.1%} {'#' * round(50 * n / max(bins))}")
    for item in pairs[: args.closest]:
        print(
            f"  {item['bleu']:.1f} %  {one_line(item['query'])}\n{'':10}{one_line(item['nearest'])}"
        )
    print(f"{out / 'index.html'}")


def leakage(args):
    from study import language

    counts = collections.Counter()
    prompts = list(rows(args.prompts, prompt_of, args.max_bad_rows))
    train = read_queries(args.train, True, args.max_bad_rows, counts)
    if not prompts or not train:
        raise ValueError(
            f"{len(prompts)} prompts against {len(train)} training queries: name files that hold some"
        )
    scores, index = search(
        "leakage", [p for _, p, _ in prompts], [q for _, q in train], args.threads
    )
    items, why = [], collections.Counter()
    for (name, text, row), score, j in zip(prompts, scores, index, strict=True):
        reasons = [
            r
            for r, holds in (
                (f"BLEU above {args.threshold:g} %", score > args.threshold),
                (
                    "not English",
                    not args.keep_languages
                    and not language.is_english(
                        {"conversations": [{"from": "human", "value": text}]}
                    ),
                ),
                ("about code", not args.keep_code and is_code(text)),
            )
            if holds
        ]
        why.update(reasons)
        items.append(
            {
                "id": name,
                "bleu": float(score),
                "dropped": "; ".join(reasons) or None,
                "prompt": text,
                "nearest": train[j][1],
                "nearest_id": train[j][0],
            }
        )
    kept = [row for item, (_, _, row) in zip(items, prompts, strict=True) if not item["dropped"]]
    found = {
        "task": "leakage",
        "score": len(kept),
        "unit": f"of {len(prompts)} prompts kept",
        "n": len(prompts),
        "interval": None,
        "dropped": len(prompts) - len(kept),
        "reasons": dict(why),
        "read": dict(counts),
        "settings": {
            "prompts": [pathlib.Path(f).name for f in args.prompts],
            "train": [pathlib.Path(f).name for f in args.train],
            "threshold": args.threshold,
            "keep_languages": args.keep_languages,
            "keep_code": args.keep_code,
        },
    }
    out = folder(args.out, "leakage")
    results.write_beside(
        out / "kept.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    )
    order = sorted(items, key=lambda i: (i["dropped"] is None, -i["bleu"]))
    heading = json.loads(results.dumps(found | {"model": ", ".join(found["settings"]["prompts"])}))
    bins = np.histogram(np.minimum(scores, 100), np.arange(0, 101, 10))[0].tolist()
    results.write_beside(
        out / "index.html",
        results.page(
            heading,
            [clipped(i) for i in order],
            bars({f"{10 * k}-{10 * k + 10}": n for k, n in enumerate(bins)}),
        ),
    )
    results.write_beside(
        out / "report.json", results.dumps(found | {"prompts": items}, indent=2) + "\n"
    )
    print("".join(f"{n:,} {what}\n" for what, n in counts.items() if n), end="")
    print(
        f"leakage: {len(kept)} of {len(prompts)} prompts kept, {len(prompts) - len(kept)} dropped"
        + "".join(f"; {n} {r}" for r, n in why.items())
        + (" (some for two reasons)" if why.total() > len(prompts) - len(kept) else "")
    )
    print(f"{out / 'kept.jsonl'}, {out / 'index.html'}")


# ------------------------------------------------------------------------------------------------------------------- pages


def folder(out, task):
    n = 1
    while out is None and (pathlib.Path("out") / f"{task}-{n}").exists():
        n += 1
    out = pathlib.Path(out or pathlib.Path("out") / f"{task}-{n}")
    out.mkdir(parents=True, exist_ok=True)
    return out


def one_line(text, width=110):
    """For the terminal: no line ends, no control characters, escapes among them."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(text[: 4 * width].split()))
    return text if len(text) <= width else text[: width - 1] + "…"


def clipped(item):
    """An item for the page: BLEU first, long texts cut."""
    cut = lambda v: (
        f"{v[:CLIP]}… ({len(v):,} characters)"
        if isinstance(v, str) and len(v) > CLIP
        else round(v, 3)
        if isinstance(v, float)
        else v
    )
    return {k: cut(v) for k, v in item.items()}


def bars(histogram, width=720, row=24):
    """A histogram {label: count} as an SVG."""
    most, parts = max(histogram.values()) or 1, []
    for k, (label, n) in enumerate(histogram.items()):
        y = k * row
        parts.append(
            f'<text x="64" y="{y + 16}" text-anchor="end">{html.escape(label)} %</text><rect x="72" y="{y + 3}" width="{(width - 160) * n / most:.1f}" height="{row - 6}" fill="#2563a8"/>'
            f'<text x="{78 + (width - 160) * n / most:.1f}" y="{y + 16}">{n:,}</text>'
        )
    return (
        f'<p>BLEU of the nearest query, how many have it:</p><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * len(histogram)}" role="img" style="max-width:{width}px" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">{"".join(parts)}</svg>'
    )
