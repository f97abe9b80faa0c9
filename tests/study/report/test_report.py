"""The report from result directories: labels, tables, figures, and what is missing."""

import hashlib
import json
import re
import types

import pytest

from study.report import __main__ as report
from study.report import overview, plots, points, tables
from study.report.page import page


def result(path, task, score, n=100, width=0.05, **more):
    path.mkdir(parents=True)
    (path / "results.json").write_text(
        json.dumps(
            {
                "task": task,
                "finished": True,
                "score": score,
                "n": n,
                "interval": [score - width, score + width],
                "settings": {},
                "model": "m",
            }
            | more
        )
    )


def grid(folder):
    """Two bases, two amounts, two sources, a teacher; one run planned and not there, one not
    finished.
    """
    plan = {}

    def add(name, labels, task, score, **more):
        plan[name] = labels | {"name": name}
        result(folder / name, task, score, **more)

    for k, base in enumerate(("7B", "13B")):
        add(
            f"{base}/nq",
            {"base": base, "role": "base"},
            "nq",
            0.17 + 0.03 * k,
            settings={"shots": 3},
        )
        add(f"{base}/mmlu", {"base": base}, "mmlu", 0.35 + 0.1 * k)
        for source in ("mix", "nq"):
            for amount in ("20M", "150M"):
                labels = {"base": base, "amount": amount, "source": source}
                add(
                    f"{base}-{source}-{amount}/nq",
                    labels,
                    "nq",
                    0.1 + 0.03 * k + 0.1 * (source == "nq"),
                    settings={"shots": 3},
                )
                if source == "mix":
                    add(f"{base}-{amount}/rate", labels, "rate", 0.6)
                    style = {
                        m: {"score": 0.5, "n": 10, "interval": [0.4, 0.6]}
                        for m in ("list", "summary", "unigram", "length")
                    }
                    add(
                        f"{base}-{amount}/style",
                        labels,
                        "style",
                        0.4,
                        metrics=style,
                        upper_bound={
                            "model": "t",
                            "metrics": style
                            | {"list": {"score": 0.83, "n": 9, "interval": [0.7, 0.9]}},
                        },
                    )
    add("teacher/nq", {"role": "teacher"}, "nq", 0.31, settings={"shots": 3})
    add("half/nq", {"base": "7B", "amount": "80M", "source": "mix"}, "nq", 0.1, finished=False)
    plan["gone/toxicity"] = {"base": "7B", "name": "toxicity of the base"}
    (folder / "grid.json").write_text(json.dumps({"preset": "test", "results": plan}))
    return folder


def test_tables_figures_and_what_is_missing(tmp_path, capsys):
    result(grid(tmp_path / "g") / "stray", "mmlu", 0.3, settings={"sample": "the first 3"})
    assert report.main([str(tmp_path / "g"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        re.search(r"^7B base +17\.0 \(12\.0 to 22\.0\) +17$", said, re.M)
        and re.search(r"^13B \+ nq, 150M tokens +23\.0 .* 27$", said, re.M)
        and re.search(r"^teacher +31\.0 .* 31$", said, re.M)
    )
    assert not re.search(r"20M tokens +1.* 1[05]$", said, re.M), (
        "the paper's Table 1 stands beside the largest amount only"
    )
    assert re.search(r"the paper's +50 +40 +40\.4 +0\.51 +99$", said, re.M) and re.search(
        r"^teacher, a second sample +83\.0", said, re.M
    )
    assert (
        "toxicity of the base" in said
        and "half/nq (not finished)" in said
        and "1 results without labels" in said
        and "no results of judge" in said
    )
    assert not list((tmp_path / "out").glob("figure-[35].*")), "nothing of them was measured"
    for number in (1, 4):
        assert (tmp_path / f"out/figure-{number}.svg").read_bytes().startswith(b"<?xml") and (
            tmp_path / f"out/figure-{number}.png"
        ).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out/index.html").read_text()
    assert (
        text.count("data:image/svg+xml;base64,") == 4  # the first picture is there wide and tall
        and "http:" not in re.sub(r"base64,[^\"]*", "", text)
        and "<script" not in text
    )


def test_the_same_results_give_the_same_bytes(tmp_path):
    grid(tmp_path / "g")
    seen = []
    for out in ("one", "two"):
        assert report.main([str(tmp_path / "g"), "--out", str(tmp_path / out)]) == 0
        seen.append(
            {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / out).iterdir()}
        )
    assert seen[0] == seen[1] and len(seen[0]) == 11


def test_labels_are_given_by_hand_where_there_is_no_plan(tmp_path):
    result(tmp_path / "r/a", "mmlu", 0.3)
    result(tmp_path / "r/b", "mmlu", 0.4)
    given = dict(
        points.read_label(x)
        for x in (
            f"{tmp_path}/r/a=base=1.5B",
            f"{tmp_path}/r/b=base=tiny,size=260K,tokens=0.3M,seed=2",
        )
    )
    placed, missing, notes = points.gather([tmp_path / "r"], given)
    assert [
        (p["base"], p["size"], p["amount"], p["source"], p["seed"], p["role"]) for p in placed
    ] == [("1.5B", 1.5e9, None, None, 0, "base"), ("tiny", 260e3, 3e5, "mix", 2, "imitation")]
    assert missing == [] and notes == []
    text = json.loads((tmp_path / "r/a/results.json").read_text()) | {
        "settings": {"sample": "the first 3 of 9"}
    }
    (tmp_path / "r/a/results.json").write_text(json.dumps(text))
    assert points.gather([tmp_path / "r"], given)[2] == [
        f"mmlu: the first 3 of 9 (1 results, such as {tmp_path}/r/a)"
    ]


@pytest.mark.parametrize(
    "label",
    [
        "x",
        "x=base",
        "x=colour=red",
        "x=tokens=20M",
        "x=base=7B,role=king",
        "x=base=7B,tokens=many",
        "x=base=7B,seed=a",
    ],
)
def test_a_label_that_says_nothing_is_one_line(label, tmp_path, capsys):
    assert report.main([str(tmp_path), "--label", label, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "--label" in said and said.count("\n") == 1


def test_two_results_in_one_place_and_no_results_are_errors(tmp_path, capsys):
    for name in "ab":
        result(tmp_path / name, "mmlu", 0.3)
    given = {str(tmp_path / name): points.complete({"base": "7B"}, "x") for name in "ab"}
    with pytest.raises(ValueError, match="same labels"):
        points.gather([tmp_path], given)
    assert (
        report.main([str(tmp_path), "--out", str(tmp_path / "o")]) == 2
        and "no finished result" in capsys.readouterr().err
    )
    assert report.main([str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2


def test_seeds_share_a_row_and_show_their_range():
    seeds = [{"score": s, "interval": [0, 1]} for s in (0.2, 0.4)]
    assert (
        tables.cell(seeds) == "30.0 (20.0 to 40.0, 2 seeds)"
        and tables.cell(seeds[:1]) == "20.0 (0.0 to 100.0)"
        and tables.cell([]) == "-"
    )
    assert tables.cell([{"score": -0.114, "interval": None}], percent=False) == "-0.11"


def test_a_name_with_markup_is_drawn_as_it_is(tmp_path):
    point = {
        "measure": "mmlu",
        "shots": None,
        "score": 0.3,
        "n": 9,
        "interval": [0.2, 0.4],
        "path": "p",
        "size": 1e6,
        "amount": None,
        "source": None,
        "seed": 0,
        "role": "base",
        "world": None,
        "base": "<b>$\\bad$</b>",
    }
    look = plots.Look.of([point], {"mmlu": "M"}, {"mmlu": True}, tables.PAPER_NQ)
    svg, _ = plots.draw([[("mmlu", "size")]], [point], look, "s")
    assert b"<b>" not in svg
    table, none = (["a"], [["<b>"]]), (["a"], [])
    text = page([("T", table), ("W", table), ("U", table)], None, [], [], ["<i>"], ["<u>"])
    assert text.count("&lt;b&gt;") == 3 and "&lt;i&gt;" in text and "&lt;u&gt;" in text
    assert "<b>" not in text
    assert "No results" in page([("T", none), ("W", none), ("U", none)], None, [], [], [], [])


def test_parts_of_a_task_and_worlds_are_measures_and_points_of_their_own(tmp_path):
    plans = {}
    for world in (1, 2):
        for part, score in (("read", 0.6), ("told", 0.3), ("unread", 0.1), (None, 0.5)):
            name = f"w{world}/{part}"
            result(tmp_path / name, "nq" if part else "mmlu", score, settings={"shots": 3})
            own = {"base": "1M", "world": world, "name": name}
            plans[name] = own | ({"part": part} if part else {})
    result(tmp_path / "other", "nq", 0.5)
    plans["other"] = {"base": "1M", "part": "nobody's", "name": "other"}
    (tmp_path / "grid.json").write_text(json.dumps({"results": plans, "commits": ["abc", "def"]}))
    placed, missing, _ = points.gather([tmp_path], {})
    found = {(p["measure"], p["world"]): p["score"] for p in placed}
    scores = {"nq": 0.6, "nq_told": 0.3, "nq_unread": 0.1, "mmlu": 0.5}
    assert found == {(m, w): s for m, s in scores.items() for w in (1, 2)} and not missing
    assert points.commits_of([tmp_path]) == [f"{tmp_path} was run by the code of commit abc, def"]
    of = [p for p in placed if p["measure"] == "nq"]
    assert tables.cell(of) == "60.0 (60.0 to 60.0, 2 runs, 2 worlds)"
    head, rows = tables.table_of_facts([*of, of[0] | {"measure": "knows"}])
    assert len(head) == 3 and len(rows) == 1 and tables.table_of_facts(of) == ([], [])


def test_a_result_that_stands_alone_is_drawn_with_its_interval():
    drawn = []
    ax = types.SimpleNamespace(plot=lambda *a, **k: None, vlines=lambda *a, **k: drawn.append(a))
    alone, other = ({"score": s, "interval": [s - 0.1, s + 0.2], "seed": s} for s in (0.5, 0.7))
    alone["world"] = other["world"] = None
    bare = alone | {"interval": None}
    overview.curve(ax, {0: [alone], 5: [alone, other], 9: [bare]}, [0, 5, 9], color="red")
    assert drawn == [(0, 40, 70)]


def test_the_style_that_is_drawn_is_one_that_a_model_shows():
    def point(measure, low, score=0.3):
        return {"measure": measure, "score": score, "interval": None if low is None else [low, 1]}

    assert overview.style_shown([]) == "summary"
    floor = [point("summary", 0, 0), point("summary", 0), point("unigram", 0.2)]
    assert overview.style_shown(floor) == "unigram"
    assert overview.style_shown([*floor, point("list", 0)]) == "unigram"
    assert overview.style_shown([*floor, point("list", 0.1)]) == "list"
    assert overview.style_shown([*floor, point("summary", None)]) == "summary"
    assert overview.style_shown(floor[:2]) == "summary"
