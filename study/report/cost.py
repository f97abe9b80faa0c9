"""What a grid of the preset own cost: requests, tokens and minutes, out of what its steps left.

    python -m study.report GRID --out DIR      # what says it

Left out: money (prices are the user's), the minutes of steps that leave no time (seconds each).
"""

import datetime
import itertools
import json
import pathlib
from typing import NamedTuple

from host import files

PAUSE = 300  # seconds without an answer after which a run was not asking


class Cost(NamedTuple):
    """Sums over a grid. asked: of the teacher, requests, prompt and answer tokens; of which
    training: those whose answers are trained on; the minutes of asking, training and measuring.
    """

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    asking: float = 0.0
    runs: int = 0
    trained_tokens: int = 0
    training: float = 0.0
    results: int = 0
    measuring: float = 0.0
    judged: int = 0


def of_endpoint(folder: pathlib.Path) -> tuple[int, int, int, float]:
    """(requests, prompt tokens, answer tokens, seconds) of what study.answers ask left."""
    counts = files.read_json(folder / "report.json")
    dates = [
        datetime.datetime.fromisoformat(row["answer"]["date"])
        for row in files.json_lines(folder / "log.jsonl", repair=False)
    ]
    gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(sorted(dates))]
    seconds = sum(gap for gap in gaps if gap < PAUSE)
    return counts["requests"], counts["prompt_tokens"], counts["completion_tokens"], seconds


def of_model(folder: pathlib.Path) -> tuple[int, int, int, float]:
    """The same of a teacher that was opened by eval.py generate."""
    result = files.read_json(folder / "results.json")
    items = list(files.json_lines(folder / "samples.jsonl", repair=False))
    prompt, answer = (sum(i.get(k) or 0 for i in items) for k in ("prompt_tokens", "tokens"))
    return len(items), prompt, answer, float(result.get("seconds") or 0)


def of_runs(folder: pathlib.Path) -> tuple[int, int, float]:
    """(trainings, tokens trained on, seconds) below a folder of runs."""
    runs, tokens, ms = 0, 0, 0.0
    for path in sorted(folder.glob("*/metrics.jsonl")):
        rows = list(files.json_lines(path, repair=False))
        runs += 1
        tokens += sum(r.get("tokens") or 0 for r in rows)
        ms += sum(r.get("ms") or 0 for r in rows)
    return runs, tokens, ms / 1000


def of_grid(folder: pathlib.Path) -> Cost:
    """The cost of one grid."""
    asked = [0, 0, 0, 0.0]
    for path in sorted((folder / "teacher").glob("*/")):
        read = of_endpoint if (path / "log.jsonl").is_file() else of_model
        if (path / "log.jsonl").is_file() or (path / "results.json").is_file():
            asked = [a + b for a, b in zip(asked, read(path), strict=True)]
    runs, tokens, training = of_runs(folder / "runs")
    results, measuring, judged = 0, 0.0, 0
    for path in sorted((folder / "results").glob("*/*/results.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        results += 1
        measuring += float(report.get("seconds") or 0)
        log = path.with_name("requests.jsonl")
        judged += sum(1 for _ in files.json_lines(log, repair=False)) if log.is_file() else 0
    requests, prompt, answer, seconds = asked
    trained = (runs, tokens, training / 60)
    teacher = (int(requests), int(prompt), int(answer), seconds / 60)
    return Cost(*teacher, *trained, results, measuring / 60, judged)


def sentence(cost: Cost) -> str:
    """A cost in words."""
    judge = f" A judge was asked {cost.judged:,} times." if cost.judged else ""
    return (
        f"The teacher gave {cost.requests:,} answers ({cost.prompt_tokens:,} prompt tokens, "
        f"{cost.answer_tokens:,} answer tokens) in {cost.asking:.1f} minutes. {cost.runs} "
        f"trainings on {cost.trained_tokens:,} tokens took {cost.training:.1f} minutes, and "
        f"{cost.results} measurements {cost.measuring:.1f} minutes.{judge}"
    )
