"""Training dialogues without those that ask what an evaluation asks: exact BLEU of each query
against its nearest evaluation prompt.

    python -m study.curate decontaminate mix.jsonl.gz --prompts NQ-open.dev.jsonl mmlu/ --out DIR

leakage.py drops prompts of the evaluation, as the paper does; a benchmark is asked whole, so that
here the training data goes instead. A dialogue goes where any of its queries scores above the
threshold. Writes kept.jsonl.gz (the dialogues as they were read) and report.json. Left out:
paraphrases, which BLEU does not see, and leakage into answers.
"""

import collections
import heapq
import os
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from host import files
from study import rows
from study.curate import queries
from tasks import mmlu

SHOWN = 20  # nearest pairs that report.json keeps


class Near(NamedTuple):
    """A query's nearest evaluation prompt: BLEU in percent, the file that holds it, its text."""

    score: float
    file: str
    prompt: str


def prompts_of(paths: Iterable[str | pathlib.Path], max_bad: float) -> list[tuple[str, str]]:
    """[(name of the file, prompt)] of evaluation files; a folder is MMLU's, all its test rows."""
    prompts = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            for subject in mmlu.list_subjects(path, "test"):
                asked = mmlu.read_questions(path, "test", subject)
                prompts += [(path.name, rows.clean(q.question)) for q in asked]
        else:
            read = rows.each([path], rows.prompt_of, max_bad)
            prompts += [(path.name, rows.clean(text)) for _, text, _ in read]
    if not prompts:
        raise ValueError("--prompts holds no evaluation prompt: name files that do")
    return prompts


def nearest(asked: Iterable[str], prompts: list[tuple[str, str]], threads: int) -> dict[str, Near]:
    """{query: its nearest evaluation prompt} of all different queries."""
    different = list(dict.fromkeys(asked))
    if not different:
        return {}
    texts = [text for _, text in prompts]
    scores, index = queries.search("decontaminate", different, texts, threads)
    pairs = zip(different, scores, index, strict=True)
    return {query: Near(float(score), *prompts[i]) for query, score, i in pairs}


def asked_in(dialogue: dict) -> list[str]:
    """The queries of a dialogue; blank ones are none."""
    turns = dialogue.get("conversations", [])
    said = (rows.clean(t["value"]) for t in turns if t["from"] == "human")
    return [text for text in said if text.strip()]


def run(
    paths: list[str],
    prompt_paths: list[str],
    threshold: float,
    out: str | pathlib.Path,
    max_bad: float,
    threads: int | None,
) -> dict[str, Any]:
    """The command; returns what report.json holds."""
    out = pathlib.Path(out)
    prompts = prompts_of(prompt_paths, max_bad)
    dialogues = list(rows.each(paths, rows.sourced, max_bad))
    asked = [asked_in(d) for d in dialogues]
    near = nearest((q for of in asked for q in of), prompts, threads or os.cpu_count() or 1)
    kept, dropped = [], collections.Counter()
    for dialogue, own in zip(dialogues, asked, strict=True):
        worst = max((near[q] for q in own), default=None)
        if worst and worst.score > threshold:
            dropped[worst.file] += 1
        else:
            kept.append(dialogue)
    if not kept:
        raise ValueError(
            f"none of {len(dialogues):,} dialogues is left: raise --threshold {threshold:g}"
        )
    closest = heapq.nlargest(SHOWN, near.items(), key=lambda item: item[1].score)
    report = {
        "dialogues": len(dialogues),
        "kept": len(kept),
        "dropped": dict(dropped),
        "threshold": threshold,
        "train": [pathlib.Path(p).name for p in paths],
        "prompts": dict(collections.Counter(name for name, _ in prompts)),
        "nearest": [{"query": query, **found._asdict()} for query, found in closest],
    }
    with rows.locked(out):
        with rows.gzip_whole(out / "kept.jsonl.gz") as stream:
            stream.writelines(map(rows.json_line, kept))
        files.write_whole(out / "report.json", files.dumps(report, indent=1) + "\n")
    each = "".join(f"; {n:,} near a prompt of {name}" for name, n in dropped.items())
    print(f"decontaminate: {len(kept):,} of {len(dialogues):,} dialogues kept{each}")
    print(f"{out / 'kept.jsonl.gz'}")
    return report
