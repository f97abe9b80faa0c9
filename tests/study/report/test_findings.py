"""The findings: differences over the same items, the rule for yes, no and unclear, what is at
chance, and the gate of the bases.
"""

import json

import numpy as np
import pytest

from study.report import findings, gate, intervals
from study.report import points as places
from tasks import scores


def result(path, task, verdicts, interval=(0.3, 0.7), **more):
    """A finished result whose items have these verdicts -> its path."""
    path.mkdir(parents=True)
    (path / "results.json").write_text(
        json.dumps(
            {
                "task": task,
                "finished": True,
                "score": float(np.mean(verdicts)),
                "n": len(verdicts),
                "interval": interval,
                "settings": {"shots": 3},
            }
            | more
        )
    )
    (path / "samples.jsonl").write_text(
        "".join(
            json.dumps({"id": str(i), "verdict": bool(v), "gold": 1}) + "\n"
            for i, v in enumerate(verdicts)
        )
    )
    return path


def point(
    path, base="1M", source=None, amount=None, seed=0, measure="nq", interval=(0.3, 0.7), world=None
):
    return {
        "part": None,
        "world": world,
        "measure": measure,
        "shots": 3,
        "base": base,
        "size": places.count_of(base),
        "source": source,
        "amount": amount,
        "seed": seed,
        "role": "imitation" if source else "base",
        "path": str(path),
        "score": 0.5,
        "n": 100,
        "interval": interval,
    }


def right(share, n=100):
    return [i < round(share * n) for i in range(n)]


@pytest.mark.parametrize(
    "base, imitation, verdict",
    [(0.5, 0.8, "yes"), (0.8, 0.5, "no, it falls"), (0.5, 0.5, "no"), (0.5, 0.52, "unclear")],
)
def test_the_rule(base, imitation, verdict, tmp_path):
    points = [
        point(result(tmp_path / "a", "nq", right(base))),
        point(result(tmp_path / "b", "nq", right(imitation)), source="broad", amount=1e4),
    ]
    found = {r["claim"]: r for r in findings.compute(points)}["knowledge"]
    assert (
        found["verdict"] == verdict
        and found["difference"] == pytest.approx(imitation - base)
        and found["n"] == 100
    )


def test_seeds_are_averaged_bases_pooled_and_the_largest_amount_stands_for_the_data(tmp_path):
    points = []
    for k, base in enumerate(("1M", "2M")):
        points.append(point(result(tmp_path / f"{base}", "nq", right(0.2)), base))
        for amount, shares in ((1e4, (0.9, 0.9)), (2e4, (0.4 + 0.2 * k, 0.6 + 0.2 * k))):
            points += [
                point(
                    result(tmp_path / f"{base}-{amount}-{s}", "nq", right(share)),
                    base,
                    "broad",
                    amount,
                    s,
                )
                for s, share in enumerate(shares)
            ]
    found = {r["claim"]: r for r in findings.compute(points)}
    assert found["knowledge"]["difference"] == pytest.approx((0.5 + 0.7) / 2 - 0.2)
    assert found["base"]["difference"] == 0 and found["base"]["verdict"] == "no"


def test_from_chance_to_above_it_is_a_rise(tmp_path):
    points = [
        point(result(tmp_path / "a", "nq", right(0)), interval=(0, 0.03)),
        point(result(tmp_path / "b", "nq", right(0.3)), source="local", amount=1e4),
    ]
    found = {r["claim"]: r for r in findings.compute(points)}["local"]
    assert found["verdict"] == "yes" and found["left_out"] == []


def test_where_both_are_at_chance_a_base_is_left_out_and_alone_it_is_uninformative(tmp_path):
    low = (0.2, 0.3)
    points = [
        point(result(tmp_path / "a", "mmlu", right(0.25)), "1M", measure="mmlu", interval=low),
        point(
            result(tmp_path / "b", "mmlu", right(0.25)),
            "1M",
            "broad",
            1e4,
            measure="mmlu",
            interval=low,
        ),
    ]
    alone = {r["claim"]: r for r in findings.compute(points)}["knowledge"]
    assert alone["verdict"] == "uninformative" and alone["left_out"] == ["1M"]
    points += [
        point(result(tmp_path / "c", "mmlu", right(0.6)), "2M", measure="mmlu"),
        point(result(tmp_path / "d", "mmlu", right(0.3)), "2M", "broad", 1e4, measure="mmlu"),
    ]
    both = {r["claim"]: r for r in findings.compute(points)}["knowledge"]
    assert (
        both["difference"] == pytest.approx(-0.3)
        and both["verdict"] == "no, it falls"
        and both["left_out"] == ["1M"]
    )
    rows = findings.compute(points)
    head, lines = findings.table(rows, {m: t[0] for m, t in places.MEASURES.items()})
    claim, measure = (next(x for x in lines if word in x[0]) for word in ("Knowledge", "MMLU"))
    assert claim == ["Knowledge rises with broad imitation", "", "", "no", "no"]
    assert measure == [
        "· MMLU",
        "-30.0 points",
        "-39.0 to -21.0",
        "no, it falls; 1M at chance, left out",
        "",
    ]
    assert len(head) == len(measure)
    assert '"knowledge rises with broad imitation" (no)' in findings.ending(rows)[0]


def grid_of(tmp_path, shares, measures=("nq",), worlds=(None,)):
    """Points of two bases, 1M and 2M, and their imitations with the least and the most data.

    shares(base, amount, measure, world) -> the share of items that are right; amount 0: the base.
    """
    points = []
    for world in worlds:
        for base in ("1M", "2M"):
            for amount in (0, 1e4, 2e4):
                for m in measures:
                    path = tmp_path / f"{world}-{base}-{amount}-{m}"
                    made = result(path, "nq", right(shares(base, amount, m, world)))
                    source = "broad" if amount else None
                    points.append(point(made, base, source, amount or None, measure=m, world=world))
    return points


def test_a_better_base_stands_against_more_data_over_read_and_unread_facts_as_one(tmp_path):
    def shares(base, amount, measure, world):
        if measure == "nq_unread":
            return 0.1
        return {("2M", 1e4): 0.8, ("1M", 2e4): 0.4}.get((base, amount), 0.5)

    points = grid_of(tmp_path, shares, ("nq", "nq_unread"))
    found = [r for r in findings.compute(points) if r["claim"] == "better"]
    assert [r["measure"] for r in found] == ["nq+nq_unread"] and found[0]["n"] == 200
    assert found[0]["difference"] == pytest.approx(0.2) and found[0]["verdict"] == "yes"
    gap = [r for r in findings.compute(points) if r["claim"] == "gap"]
    assert [(r["measure"], r["verdict"], r["left_out"]) for r in gap] == [("nq_unread", "no", [])]
    shown = {m: t[0] for m, t in places.MEASURES.items()}
    name = "· Natural Questions, exact match, and of facts never read"
    assert name in [line[0] for line in findings.table(points and found, shown)[1]]


def test_worlds_are_pooled_each_has_a_line_and_one_that_differs_makes_it_unclear(tmp_path):
    gains = {1: 0.3, 2: 0.4, 3: 0.35}

    def shares(base, amount, measure, world):
        return 0.4 + (gains[world] if amount else 0)

    points = grid_of(tmp_path / "same", shares, worlds=(1, 2, 3))
    found = {r["claim"]: r for r in findings.compute(points)}["knowledge"]
    assert found["difference"] == pytest.approx(0.35) and found["n"] == 300
    assert [(w["world"], round(w["difference"], 3)) for w in found["worlds"]] == [
        (1, 0.3),
        (2, 0.4),
        (3, 0.35),
    ]
    assert found["verdict"] == "yes"
    alone = found["worlds"][0]["interval"]
    assert found["interval"][1] - found["interval"][0] > 0.8 * (alone[1] - alone[0])
    head, lines = findings.table_of_worlds([found], {"nq": "NQ (%)"})
    assert head == ["Claim and measure", "world 1", "world 2", "world 3"]
    assert lines[0][0] == "Knowledge rises with broad imitation: NQ"
    assert lines[0][1].startswith("+30.0 points (+21.0 to")
    gains[3] = -0.01
    points = grid_of(tmp_path / "other", shares, worlds=(1, 2, 3))
    other = {r["claim"]: r for r in findings.compute(points)}["knowledge"]
    assert other["difference"] == pytest.approx(0.23) and other["verdict"] == "unclear"


def test_the_mixed_interval_covers_new_worlds():
    """Worlds drawn from a known mean: the interval holds it about as often as it says."""
    dice, holds = np.random.default_rng(7), 0
    for k in range(120):
        centres = dice.normal(0.2, 0.05, size=3)
        worlds = [dice.normal(c, 0.4, size=80) for c in centres]
        low, high = intervals.mixed(worlds, seed=k)
        holds += low <= 0.2 <= high
    assert holds / 120 > 0.88
    same = [np.full(10, 0.3), np.full(10, 0.3)]
    assert intervals.mixed(same) == pytest.approx((0.3, 0.3))
    assert intervals.mixed(worlds[:1]) == pytest.approx(scores.bootstrap(worlds[0]))


def test_items_pair_by_name_not_by_place(tmp_path):
    a, b = result(tmp_path / "a", "nq", right(0.5)), result(tmp_path / "b", "nq", right(0.5))
    lines = (b / "samples.jsonl").read_text().splitlines()
    (b / "samples.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    found = {
        r["claim"]: r for r in findings.compute([point(a), point(b, source="broad", amount=1e4)])
    }["knowledge"]
    assert found["interval"] == (0, 0), "reversed order is no difference"


def test_the_gate_lets_pass_only_bases_that_differ(tmp_path, capsys):
    small, large = (
        result(tmp_path / "s", "nq", right(0.2)),
        result(tmp_path / "l", "nq", right(0.6)),
    )
    assert gate.main([str(small), str(large), "--out", str(tmp_path / "k.json")]) == 0
    assert json.loads((tmp_path / "k.json").read_text())["largest minus smallest"][
        "difference"
    ] == pytest.approx(0.4)
    capsys.readouterr()
    assert gate.main([str(large), str(small), "--out", str(tmp_path / "no.json")]) == 2
    said = capsys.readouterr().err
    assert (
        "does not know more" in said
        and said.count("\n") == 1
        and not (tmp_path / "no.json").exists()
    )
    assert (
        gate.main([str(large), str(small), "--out", str(tmp_path / "no.json"), "--whatever"]) == 0
    )
    assert gate.main([str(large), "--out", "x"]) == 2
