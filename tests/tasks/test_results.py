"""A result directory that resumes, repairs a torn line, refuses another run's settings and pairs
with another; a page that shows text as text."""

import json
import re

import numpy as np
import pytest

from tasks import page, results

NASTY = (
    "</script><script>alert(1)</script><!-- \u2028\u2029 \x1b[31m & <img src=x onerror=alert(2)>"
)


def item(n, **more):
    return {
        "id": n,
        "prompt": f"question {n}",
        "output": f"answer {n}",
        "extracted": "a",
        "gold": "a" if n % 2 else "b",
        "verdict": bool(n % 2),
    } | more


def finished(path, verdicts, settings=None, model="m", task="nq", gold="x"):
    r = results.Result(path, task, settings or {"shots": 3}, model)
    for n, v in enumerate(verdicts):
        r.add({"id": n, "verdict": v, "gold": gold})
    return r.finish(
        range(len(verdicts)), {"score": float(np.mean(verdicts)), "interval": (0.1, 0.9)}
    )


def test_a_finished_result_holds_what_the_design_says_in_the_order_of_the_input(tmp_path):
    r = results.Result(tmp_path / "r", "nq", {"shots": 3, "seed": 0}, "model")
    for n in (3, 1, 2, 0):
        r.add(item(n))
    result = r.finish(
        [0, 1, 2, 3],
        {
            "score": 0.5,
            "interval": (0.2, 0.8),
            "by_subject": {"law": np.float32(0.5)},
            "odd": float("nan"),
        },
    )
    assert result == json.loads((tmp_path / "r" / "results.json").read_text())
    assert (
        result["task"] == "nq"
        and result["n"] == 4
        and result["interval"] == [0.2, 0.8]
        and result["settings"] == {"shots": 3, "seed": 0}
    )
    assert (
        result["finished"]
        and result["seconds"] > 0
        and result["items_per_s"] > 0
        and result["by_subject"]["law"] == 0.5
        and result["odd"] is None
    )
    assert [
        json.loads(x)["id"] for x in (tmp_path / "r" / "samples.jsonl").read_text().splitlines()
    ] == [0, 1, 2, 3]
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "results.json",
        "samples.jsonl",
        "index.html",
    }


def test_an_interrupted_result_goes_on_and_a_torn_last_line_is_done_again(tmp_path):
    out = tmp_path / "r"
    r = results.Result(out, "nq", {"shots": 3})
    r.add(item(0)), r.add(item(1))
    with open(out / "samples.jsonl", "a") as f:
        f.write('{"id": 2, "prompt": "torn')  # what a kill within a write leaves
    assert json.loads((out / "results.json").read_text())["finished"] is False
    with pytest.raises(ValueError, match="another process is writing to .*: wait for it"):
        results.Result(out, "nq", {"shots": 3})
    r.file.close()  # as a kill does
    again = results.Result(out, "nq", {"shots": 3})
    assert list(again.done) == [0, 1] and again.resumed == 2
    again.add(item(2))
    again.finish([0, 1, 2], {"score": 1 / 3, "interval": (0, 1)})
    assert [i["id"] for i in results.json_lines(out / "samples.jsonl")] == [0, 1, 2]


def test_a_whole_line_without_its_newline_is_torn_too(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 0}\n{"id": 1}')
    assert results.json_lines(path) == [{"id": 0}] and path.read_text() == '{"id": 0}\n'


def test_damage_in_the_middle_is_named_and_nothing_is_cut(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 0}\nnot json\n{"id": 2}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2 is not JSON"):
        results.json_lines(path)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    "task, settings, model, message",
    [
        ("mmlu", {"shots": 3}, "m", "task nq, this one has mmlu"),
        ("nq", {"shots": 5}, "m", "shots 3, this one has 5"),
        ("nq", {"shots": 3}, "other", "model m, this one has other"),
        ("nq", {"shots": 3, "chat": True}, "m", "chat null, this one has true"),
    ],
)
def test_another_evaluation_in_the_same_folder_is_refused(tmp_path, task, settings, model, message):
    finished(tmp_path / "r", [1, 0])
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}
    with pytest.raises(ValueError, match=re.escape(message)):
        results.Result(tmp_path / "r", task, settings, model)
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}


HOSTILE = {
    "deep": "[" * 30_000,
    "list": "[1]",
    "settings": '{"task": "nq", "settings": [1], "finished": true}',
    "seconds": '{"task": "nq", "settings": {}, "seconds": "\\u001b[31m"}',
    "score": '{"task": "nq", "settings": {}, "score": {"a": 1}}',
    "nan": '{"task": "nq", "settings": {}, "score": NaN}',
    "text": "git-lfs pointer",
    "no task": '{"settings": {}, "finished": true, "score": 1, "n": 1, "interval": null}',
    "no n": '{"task": "nq", "settings": {}, "finished": true, "score": 1, "interval": null}',
    "interval": '{"task": "nq", "settings": {}, "n": 1, "score": 1, "interval": true}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_foreign_results_json_is_one_line(tmp_path, case):
    finished(tmp_path / "r", [1, 0])
    (tmp_path / "r" / "results.json").write_text(HOSTILE[case])
    for use in (
        lambda: results.Result(tmp_path / "r", "nq", {"shots": 3}, "m"),
        lambda: results.pair(tmp_path / "r", tmp_path / "r"),
    ):
        with pytest.raises(ValueError, match=r"results\.json") as error:
            use()
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "line", ["[" * 30_000, "3", '{"verdict": 1}', '{"id": [1]}', '{"id": 0, "verdict": NaN}']
)
def test_a_foreign_samples_jsonl_is_one_line_with_its_number(tmp_path, line):
    finished(tmp_path / "r", [1, 0])
    with open(tmp_path / "r" / "samples.jsonl", "a") as file:
        file.write(line + '\n{"id": 9}\n')
    for use in (
        lambda: results.Result(tmp_path / "r", "nq", {"shots": 3}, "m"),
        lambda: results.pair(tmp_path / "r", tmp_path / "r"),
    ):
        with pytest.raises(ValueError, match=r"samples\.jsonl, line 3") as error:
            use()
        assert str(error.value).isprintable()


def test_what_does_not_change_the_measurement_may_change(tmp_path):
    finished(tmp_path / "r", [1, 0], {"shots": 3, "batch": 8})
    assert results.Result(tmp_path / "r", "nq", {"shots": 3, "batch": 1}, "m").finished


def test_a_pair_has_the_same_items_and_names_the_settings_that_differ(tmp_path):
    finished(tmp_path / "a", [1, 0, 0, 1], {"shots": 0})
    finished(tmp_path / "b", [1, 1, 0, 0], {"shots": 3}, "tuned")
    task, a, b, differ = results.pair(tmp_path / "a", tmp_path / "b")
    assert task == "nq" and a.tolist() == [1, 0, 0, 1] and b.tolist() == [1, 1, 0, 0]
    assert differ == {"shots": [0, 3], "model": ["m", "tuned"]}


def test_results_that_cannot_be_paired_are_refused(tmp_path):
    finished(tmp_path / "a", [1, 0])
    finished(tmp_path / "b", [1, 0, 1])
    finished(tmp_path / "c", [1, 0], task="mmlu")
    finished(tmp_path / "d", [1, 0], gold="y")
    results.Result(tmp_path / "e", "nq", {"shots": 3}, "m").pause()
    for other, message in (
        ("b", "different items (1 are in one only"),
        ("c", "compare two of one task"),
        ("d", "different gold answers"),
        ("e", "is not finished"),
        ("f", "holds no results.json"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            results.pair(tmp_path / "a", tmp_path / other)


def test_the_page_carries_a_models_text_as_data_and_never_as_markup(tmp_path):
    r = results.Result(tmp_path / "r", "nq", {"note": NASTY}, NASTY)
    r.add(item(0, output=NASTY, prompt=NASTY))
    r.finish([0], {"score": 0.0, "interval": (0, 1)})
    text = (tmp_path / "r" / "index.html").read_text()
    assert (
        text.count("<script") == 2
        and text.count("</script>") == 2
        and "<img" not in text
        and "<!--" not in text
    )
    assert "\u2028" not in text.split('type="application/json">')[1]
    data = text.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(data)["items"][0]["output"] == NASTY
    assert "innerHTML" not in text and "http" not in re.sub(r"http-equiv", "", text), (
        "nothing is fetched"
    )


def test_a_curve_draws_every_point_and_its_interval():
    points = [
        {"step": s, "tokens": s * 1e6, "score": v, "interval": [v - 0.1, v + 0.1]}
        for s, v in ((0, 0.2), (100, 0.4), (300, 0.35))
    ]
    svg = page.curve_svg(points, "nq <score>")
    assert (
        svg.count("<circle") == 3
        and svg.count('stroke="#2563a8" stroke-width="2" opacity=".5"') == 3
        and "&lt;score&gt;" in svg
        and "300M tokens" in svg
    )
    ys = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert ys[1] < ys[2] < ys[0], "higher scores stand higher"
