"""The findings: differences over the same items, the rule for yes, no and unclear, what is at
chance, and the gate of the bases.
"""

import json

import numpy as np
import pytest

from study.report import findings, gate
from study.report import points as places


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


def point(path, base="1M", source=None, amount=None, seed=0, measure="nq", interval=(0.3, 0.7)):
    return {
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


def test_a_base_at_chance_is_left_out_and_named_and_alone_it_is_uninformative(tmp_path):
    low = (0.2, 0.3)
    points = [
        point(result(tmp_path / "a", "mmlu", right(0.25)), "1M", measure="mmlu", interval=low),
        point(result(tmp_path / "b", "mmlu", right(0.9)), "1M", "broad", 1e4, measure="mmlu"),
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
    assert claim == ["Knowledge rises with broad imitation", "no", "no", "", ""]
    assert measure[:3] == ["· MMLU", "", "no, it falls; 1M at chance, left out"]
    assert measure[3:] == ["-30.0 points", "-39.0 to -21.0"] and len(head) == len(measure)
    said = 'As in the paper: "knowledge rises with broad imitation" (the paper: no; here: no)'
    assert said in findings.ending(rows)


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
