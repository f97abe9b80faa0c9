"""How varied the queries of a data set are: exact BLEU of each query's most similar other one.

    python -m study.curate diversity mix.jsonl.gz --out out/diversity

Writes report.json, samples.jsonl (every query with its nearest) and index.html (the closest pairs).
Two sets are compared at equal size (--sample). Left out: paraphrases, which BLEU does not see.
"""

import collections
import json
import pathlib
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from host import files
from study.curate import bleu, queries
from study.curate.nearest_page import bars, clipped, folder, histogram, one_line
from tasks.page import page as result_page

SHOWN = 500  # pairs on the page


class Draw(NamedTuple):
    """Which queries are compared: every user turn, or the first; `sample` of them, or all."""

    all_turns: bool = False
    sample: int | None = None
    seed: int = 0


def with_copies(texts: list[str], threads: int) -> tuple:
    """bleu.nearest of texts among which are copies.

    -> (scores, index, the scores of the different texts among each other: copies count once there).
    """
    places = {}
    for i, text in enumerate(texts):
        places.setdefault(text, []).append(i)
    different, first = list(places), [p[0] for p in places.values()]
    once, near = np.array([]), None
    if len(different) > 1:
        once, near = queries.search("diversity", different, None, threads)
    scores, index = np.empty(len(texts)), np.empty(len(texts), np.int64)
    for k, (text, copies) in enumerate(places.items()):
        other = [(once[k], first[near[k]])] if near is not None else []
        itself = bleu.sentence_bleu(text, text) if len(copies) > 1 else 0.0
        for i in copies:
            both = list(other)
            if len(copies) > 1:
                both.append((itself, copies[1] if i == copies[0] else copies[0]))
            scores[i] = max(s for s, _ in both)
            index[i] = min(j for s, j in both if s >= scores[i] * (1 - 1e-12))
    return scores, index, once


def drawn(pairs: list[tuple[str, str]], draw: Draw) -> list[tuple[str, str]]:
    """The queries that are compared, in their order."""
    if draw.sample is None:
        return pairs
    if not 2 <= draw.sample <= len(pairs):
        raise ValueError(f"--sample {draw.sample} of {len(pairs)} queries: use 2 to {len(pairs)}")
    chosen = random.Random(draw.seed).sample(range(len(pairs)), draw.sample)
    return [pairs[i] for i in sorted(chosen)]


def closest(scores: np.ndarray, index: np.ndarray, texts: list[str]) -> list[int]:
    """The indices of the closest pairs, each once. Copies are counted, not shown."""
    pairs, seen = [], set()
    for i in np.argsort(-scores, kind="stable"):
        i, j = int(i), int(index[i])
        if texts[i] != texts[j] and (min(i, j), max(i, j)) not in seen:
            seen.add((min(i, j), max(i, j)))
            pairs.append(i)
    return pairs


def run(
    paths: list[str],
    draw: Draw,
    out: str | pathlib.Path | None,
    shown: int,
    max_bad: float,
    threads: int,
) -> None:
    """The command: compare, write the report, print it with the `shown` closest pairs."""
    counts = collections.Counter()
    pairs = drawn(queries.read(paths, draw.all_turns, max_bad, counts), draw)
    if len(pairs) < 2:
        raise ValueError(
            f"{' '.join(map(str, paths))} holds {len(pairs)} user queries: name files with two or "
            "more"
        )
    texts = [q for _, q in pairs]
    scores, index, once = with_copies(texts, threads)
    items = [
        {"id": name, "bleu": float(s), "query": q, "nearest": texts[j], "nearest_id": pairs[j][0]}
        for (name, q), s, j in zip(pairs, scores, index, strict=True)
    ]
    nearest = [items[i] for i in closest(scores, index, texts)]
    report = {
        "task": "diversity",
        "score": float(scores.mean()),
        "unit": "% BLEU of the most similar other query, mean",
        "n": len(pairs),
        "interval": None,
        "median": float(np.median(scores)),
        "histogram": histogram(scores),
        "queries that are copies of another": sum(
            n for n in collections.Counter(texts).values() if n > 1
        ),
        "mean where copies count once": float(once.mean()) if len(once) else None,
        "different queries": len(once) or 1,
        "read": dict(counts),
        "settings": {"files": [pathlib.Path(f).name for f in paths], **draw._asdict()},
    }
    out = folder(out, "diversity")
    files.write_whole(out / "samples.jsonl", "".join(files.dumps(i) + "\n" for i in items))
    heading = report | {"model": ", ".join(report["settings"]["files"])}
    page = result_page(
        json.loads(files.dumps(heading)),
        [clipped(i) for i in nearest[:SHOWN]],
        bars(report["histogram"]),
    )
    files.write_whole(out / "index.html", page)
    files.write_json(out / "report.json", report)
    print("".join(f"{n:,} {what}\n" for what, n in counts.items() if n), end="")
    print(*lines(report, once), sep="\n")
    for item in nearest[:shown]:
        print(f"  {item['bleu']:.1f} %  {one_line(item['query'])}")
        print(f"{'':10}{one_line(item['nearest'])}")
    print(out / "index.html")


def lines(report: dict, once: np.ndarray) -> Iterator[str]:
    """The figures as lines for people. once: the scores where copies count once."""
    n, copies = report["n"], report["queries that are copies of another"]
    yield (
        f"diversity: BLEU of the most similar other query: mean {report['score']:.2f} %, median "
        f"{report['median']:.2f} %, n {n:,}; {copies:,} are copies of another"
    )
    if copies and len(once):
        yield (
            f"  where copies count once: mean {once.mean():.2f} %, median {np.median(once):.2f} %, "
            f"n {len(once):,}"
        )
    most = max(report["histogram"].values())
    for name, count in report["histogram"].items():
        yield f"  {name:>6} % {count:>8,} {count / n:6.1%} {'#' * round(50 * count / most)}"
