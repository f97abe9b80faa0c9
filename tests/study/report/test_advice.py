"""The advice of the preset own: by the verdicts alone, and what a grid cost."""

import json

import pytest

from study.report import advice, cost
from study.report.points import MEASURES

TITLES = {m: t[0] for m, t in MEASURES.items()}


def row(claim, measure, verdict, difference=0.1):
    known = verdict != "uninformative"
    return {
        "claim": claim,
        "measure": measure,
        "verdict": verdict,
        "difference": difference if known else None,
        "interval": (difference - 0.02, difference + 0.02) if known else None,
    }


STYLE = row("style", "unigram", "yes")


@pytest.mark.parametrize(
    "rows, says",
    [
        ([STYLE, row("knowledge", "nq_own", "no")], "Imitate for the manner"),
        ([STYLE, row("knowledge", "nq", "no, it falls", -0.2)], "Broad imitation cost knowledge"),
        ([row("style", "unigram", "unclear")], "Do not imitate with this base"),
        ([STYLE, row("knowledge", "mmlu", "yes")], "Imitation raised knowledge here"),
        ([row("local", "nq_own", "yes")], "Imitate for the narrow task"),
    ],
)
def test_the_verdict_follows_from_what_rises(rows, says):
    assert says in advice.verdict(rows)


def test_what_rises_falls_and_is_at_chance_is_listed_apart():
    rows = [STYLE, row("knowledge", "nq", "no, it falls", -0.2)]
    rows += [row("knowledge", "mmlu_own", "uninformative"), row("style", "list", "unclear")]
    text = "\n".join(advice.gains(rows, TITLES))
    for part in (
        "What rises by imitation, in points of 100 with 95 % intervals: unigram overlap with the "
        "teacher +10.0 points (+8.0 to +12.0).",
        "What falls: Natural Questions, exact match -20.0 points (-22.0 to -18.0).",
        "cannot be told from so few items: a list where the teacher has one",
        "told apart from guessing in: Your questions, choices.",
    ):
        assert part in text
    assert "does not rise" not in text


def test_what_a_grid_cost_is_added_up(tmp_path):
    asked, opened = tmp_path / "teacher/train", tmp_path / "teacher/heldout"
    for folder in (asked, opened, tmp_path / "runs/a", tmp_path / "results/a/nq"):
        folder.mkdir(parents=True)
    counts = {"requests": 3, "prompt_tokens": 30, "completion_tokens": 60}
    (asked / "report.json").write_text(json.dumps(counts))
    minutes = ("10:00:00", "10:01:00", "12:00:00", "12:00:30")  # a pause of two hours is no asking
    dates = [{"answer": {"date": f"2026-01-01T{m}+00:00"}} for m in minutes]
    (asked / "log.jsonl").write_text("".join(json.dumps(d) + "\n" for d in dates))
    (opened / "results.json").write_text('{"seconds": 30}')
    (opened / "samples.jsonl").write_text('{"tokens": 5, "prompt_tokens": 7}\n' * 2)
    (tmp_path / "runs/a/metrics.jsonl").write_text('{"tokens": 100, "ms": 6000}\n' * 10)
    (tmp_path / "results/a/nq/results.json").write_text('{"seconds": 90}')
    found = cost.of_grid(tmp_path)
    assert found[:4] == (5, 44, 70, 2.0) and found[4:9] == (1, 1000, 1.0, 1, 1.5)
    assert "The teacher gave 5 answers (44 prompt tokens, 70 answer" in cost.sentence(found)
