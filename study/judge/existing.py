"""Judgements that others made: Vicuna's review files and AlpacaEval's annotations, read anew.

    python -m study.judge review review_gpt35_vicuna-7b.jsonl      # score sums, wins, ties, losses
    python -m study.judge annotations annotations.json.gz          # the same of AlpacaEval's

Left out: asking a judge (asking.py).
"""

import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from study import answers
from study.judge import replies, verdicts
from study.judge.asking import percent


def review(
    paths: Iterable[str | pathlib.Path], answer_paths: Iterable[str | pathlib.Path] = ()
) -> None:
    """Vicuna's review files: what each says, parsed anew and held against the recorded scores.

    answer_paths: the answers reviewed, for their names and lengths.
    """
    lengths, models = {}, {}
    for path in answer_paths:
        for _, row in answers.rows_of(path):
            lengths[row.get("answer_id")] = len(row.get("text") or "")
            models[row.get("answer_id")] = row.get("model_id")
    for path in paths:
        print("\n".join(review_lines(path, lengths, models)))


def review_lines(path: str | pathlib.Path, lengths: dict, models: dict) -> Iterator[str]:
    """What one review file says, as lines."""
    rows, read, differ = answers.rows_of(path), [], 0
    for place, row in rows:
        ids = row.get("answer1_id"), row.get("answer2_id")
        if not isinstance(row.get("text"), str) or not {"answer1_id", "answer2_id"} <= row.keys():
            raise ValueError(
                f'{path} {place} is no review: a row has "text", "answer1_id", "answer2_id" and '
                '"score"'
            )
        pair = replies.read_scores(row["text"])
        differ += "score" in row and (pair is None or list(pair) != row["score"])
        if pair is not None:
            read.append((pair, *ids))
    ids = [rows[0][1][k] for k in ("answer1_id", "answer2_id")]
    names = dict.fromkeys(answers.plain_name(models[i]) for i in ids if i in models)
    yield f"{path}" + (f" ({' / '.join(names)})" if names else "")
    sums = [sum(pair[k] for pair, _, _ in read) for k in (0, 1)]
    yield (
        f"  {len(rows)} reviews, {len(rows) - len(read)} unreadable, {differ} read otherwise than "
        f"recorded; score sums {sums[0]:.1f} / {sums[1]:.1f}"
    )
    each = [verdicts.of_scores(pair) for pair, _, _ in read]
    figures = verdicts.win_rate(each)
    yield (
        f"  first answer: win {figures['win']}, tie {figures['tie']}, lose {figures['lose']}; win "
        f"rate with ties as half {percent(figures)}"
    )
    measured = [
        (v, lengths[a], lengths[b])
        for v, (_, a, b) in zip(each, read, strict=True)
        if a in lengths and b in lengths
    ]
    if measured:
        yield f"  {length_line(measured)}"


def length_line(judged: list[tuple[float, int, int]]) -> str:
    """judged: [(verdict, length of its side, length of the other)] -> both figures of length."""
    controlled = verdicts.length_controlled(*zip(*judged, strict=True))
    # a weighted preference decides for the side it leans to
    leaning = [(0.5 if v == 0.5 else float(v > 0.5), a, b) for v, a, b in judged]
    longer = verdicts.position_and_length(leaning)["longer_answer"]
    return (
        f"length-controlled {percent(controlled)}; decided for the longer answer {percent(longer)}"
    )


def verdict_of(preference: Any, place: str) -> float | None:
    """AlpacaEval's preference as a verdict for the second model; None where there is none.

    1 is the first, 2 the second, 0 and 1.5 a tie; AlpacaEval 2's are weighted, anything between 1
    and 2.
    """
    if preference is None or preference != preference:
        return None
    number = isinstance(preference, (int, float)) and not isinstance(preference, bool)
    if not number or not (preference == 0 or 1 <= preference <= 2):
        raise ValueError(
            f"{place}: preference {preference!r} is none of 1 (first) to 2 (second), 0 and 1.5 "
            "(tie): mend the row"
        )
    return 0.5 if preference == 0 else float(preference) - 1


def annotations(path: str | pathlib.Path) -> None:
    """AlpacaEval's annotations: the win rate of the second model, as published, and its length."""
    pairs, rows = answers.read_pairs(path)
    judged = []
    for k, ((a, b), row) in enumerate(zip(pairs, rows, strict=True), 1):
        verdict = verdict_of(row.get("preference"), f"{path} row {k}")
        if verdict is not None:
            judged.append((verdict, len(b["output"]), len(a["output"])))
    if not judged:
        raise ValueError(f"{path} has no preference in any of its {len(rows)} rows")
    figures = verdicts.win_rate([v for v, _, _ in judged])
    weighted = sum(not math.isclose(v % 0.5, 0) for v, _, _ in judged)
    print(
        f"{pairs[0][1]['model']} against {pairs[0][0]['model']}: {len(judged)} rows, "
        f"{len(rows) - len(judged)} without a preference"
        + (f", {weighted} weighted (AlpacaEval 2)" if weighted else "")
    )
    win, tie = sum(v > 0.5 for v, _, _ in judged), sum(v == 0.5 for v, _, _ in judged)
    print(
        f"win {win}, tie {tie}, lose {len(judged) - win - tie}; win rate with ties "
        f"as half {100 * figures['score']:.2f} % ({percent(figures)})"
    )
    print(length_line(judged))
