"""study/style.py: what a list and a summary are, on both sides of each rule; overlap and
correlation against plain loops; the command from files to a page; tone through a fake judge.
"""

import json

import fake_judge
import numpy as np
import pytest

from study import style
from tasks import results

endpoint = fake_judge.endpoint  # a fixture


@pytest.mark.parametrize(
    "text",
    [
        "Here:\n1. one\n2. two",
        "1) one\n\nmore about one\n\n2) two",
        "(1) a\n(2) b",
        "1: a\n2: b",
        "a. x\nb. y",
        "**1.** x\n**2.** y",
        "### 1. x\ntext\n### 2. y",
        "Step 1: a\nStep 2: b",
        "1.\nfirst\n2.\nsecond",
        "1. a\n1. b",
        "- a\n- b",
        "* a\ntext\n* b",
        "• a\n• b",
        "First, open it. Second, close it.",
        "Firstly, a.\nSecondly, b.",
        "Do this: 1. cut 2. paste 3. save",
        "  - a\n  - b",
    ],
)
def test_lists(text):
    assert style.has_list(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One, two and three.",
        "1. alone",
        "- alone",
        "- a\n* b",
        "3.5 is less\n4.5 is more",
        "1. a\n7. b",
        "Roses are red\nViolets are blue",
        "First, open it and then close it.",
        "The First Second World War",
        "---\n\ntext\n\n---",
        "```\n- a\n- b\n1. a\n2. b\n```",
        "I was there in 1999. 2000 was better.",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "It is 1. 2 is not 3.",
        "Either 1. this or 2. that",
        "Second, a. First, b.",
        "* * *\n\n* * *",
    ],
)
def test_no_lists(text):
    assert not style.has_list(text)


@pytest.mark.parametrize(
    "text",
    [
        "A.\n\nOverall, it depends.",
        "A.\n\nIn conclusion, b.",
        "A.\n\nSo it goes. Ultimately, b.",
        "1. a\n2. b\n\nBy following these tips, you win.",
        "1. a\n2. b\nIn summary, do it.",
        "```\ncode\n```\n\nTo sum up, it runs.",
        "A.\n\nConclusion\nIt depends.",
        "A.\n\n**In short**, b.",
        "A.\n\nRemember, take breaks.",
        "A.\n\nThese are just a few ideas.",
    ],
)
def test_summaries(text):
    assert style.has_summary(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Overall, it depends.",
        "A. Overall, b.",
        "Overall, a.\n\nThen b.",
        "A.\n\nI hope this helps!",
        "A.\n\n- Overall: b",
        "A.\n\nB is overall better.",
        "A.\n\nOverall, b:\n```\ncode\n```",
        "A.\n\n1. a\n2. In summary, b",
    ],
)
def test_no_summaries(text):
    assert not style.has_summary(text)


def test_long_hostile_texts_are_read_in_no_time():
    import time

    begun = time.monotonic()
    for text in (
        "```" * 40_000,
        "- \n" * 40_000,
        "(" * 100_000,
        "1. " * 40_000,
        "* " * 60_000,
        "First " * 20_000,
        "by " * 40_000,
        " \n" * 50_000,
        "**1" * 30_000,
    ):
        style.has_list(text), style.has_summary(text)
    assert time.monotonic() - begun < 5


def test_unigram_overlap_is_the_f1_of_bags_of_words():
    assert style.unigram_overlap("The cat sat.", "the CAT ran, the end") == pytest.approx(
        2 * 2 / (3 + 5)
    )
    assert style.unigram_overlap("a a a", "a") == pytest.approx(2 * 1 / 4)
    assert (
        style.unigram_overlap("", "a") == 0
        and style.unigram_overlap("", "...") == 1
        and style.unigram_overlap("Ünï ça", "ünï") == pytest.approx(2 / 3)
    )


def test_correlation_agrees_with_numpy_and_its_interval_with_a_loop():
    rng = np.random.default_rng(3)
    x = rng.normal(size=40) * 100 + 1e4
    y = x + rng.normal(size=40) * 80
    r, (low, high) = style.pearson(x, y, resamples=4000)
    assert low < r < high and r == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    drawn = [np.corrcoef(x[i], y[i])[0, 1] for i in rng.integers(0, 40, (2000, 40))]
    assert (low, high) == pytest.approx(
        np.quantile(drawn, [0.025, 0.975]), abs=0.02
    )  # two samples of the same distribution
    assert style.pearson([1, 1], [1, 2]) == (None, None) and style.pearson([1], [2]) == (None, None)


def answer_file(path, outputs, model):
    path.write_text(
        json.dumps(
            [
                {"instruction": f"q{i}", "output": o, "generator": model}
                for i, o in enumerate(outputs)
            ]
        )
    )
    return str(path)


TEACHER = ["1. a\n2. b\n\nOverall, c.", "1. a\n2. b", "plain text here", "A.\n\nOverall, d."]
OURS = ["1. a\n2. b", "no list", "- a\n- b", "A.\n\nOverall, d."]


def test_shares_are_conditional_on_the_teacher(tmp_path, capsys):
    a, b = (
        answer_file(tmp_path / "a.json", OURS, "ours"),
        answer_file(tmp_path / "b.json", TEACHER, "teacher"),
    )
    assert style.main([a, "--teacher", b, "--teacher2", b, "--out", str(tmp_path / "r")]) == 0
    found = results.read_result(tmp_path / "r")
    m = found["metrics"]
    assert (m["list"]["score"], m["list"]["n"]) == (0.5, 2) and (
        m["list_without"]["score"],
        m["list_without"]["n"],
    ) == (0.5, 2)
    assert (m["summary"]["score"], m["summary"]["n"]) == (0.5, 2) and m["summary_without"][
        "score"
    ] == 0
    assert (
        m["unigram"]["n"] == 4
        and 0 < m["unigram"]["score"] < 1
        and m["unigram"]["interval"][0] < m["unigram"]["score"] < m["unigram"]["interval"][1]
    )
    top = found["upper_bound"]["metrics"]
    assert top["list"]["score"] == top["summary"]["score"] == top["unigram"]["score"] == 1 and top[
        "length"
    ]["score"] == pytest.approx(1)
    assert top["list"]["interval"][0] < 0.5  # two of two is not certainty
    assert (
        found["tone"] == "left out: no judge"
        and "tone" not in m
        and "left out: no judge" in capsys.readouterr().out
    )
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "results.json",
        "samples.jsonl",
        "index.html",
    }
    page = (tmp_path / "r" / "index.html").read_text()
    assert "upper bound" in page and "left out: no judge" in page
    assert (
        style.main([a, "--teacher", b, "--teacher2", b, "--out", str(tmp_path / "r")]) == 0
    )  # again over the finished one


def test_the_upper_bound_is_over_the_questions_of_the_model(tmp_path, capsys):
    a, b = (
        answer_file(tmp_path / "a.json", OURS[:2], "ours"),
        answer_file(tmp_path / "b.json", TEACHER, "teacher"),
    )
    assert style.main([a, "--teacher", b, "--teacher2", b, "--out", str(tmp_path / "r")]) == 0
    found = results.read_result(tmp_path / "r")
    assert found["upper_bound"]["metrics"]["unigram"]["n"] == found["n"] == 2 and found["counts"][
        "teacher2"
    ] == {"pairs": 2, "only in the first": 2}


def test_another_input_into_the_same_folder_is_refused_in_one_line(tmp_path, capsys):
    a, b = (
        answer_file(tmp_path / "a.json", OURS, "ours"),
        answer_file(tmp_path / "b.json", TEACHER, "teacher"),
    )
    c = answer_file(tmp_path / "c.json", OURS[::-1], "ours")
    assert style.main([a, "--teacher", b, "--out", str(tmp_path / "r")]) == 0
    assert style.main([c, "--teacher", b, "--out", str(tmp_path / "r")]) == 2
    assert (
        style.main(
            [a, "--teacher", b, "--out", str(tmp_path / "s"), "--judge", "http://localhost:1/v1"]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert "fingerprints" in error and "--judge-model" in error and "Traceback" not in error


class FakeJudge:
    """Says Yes to answers with "sure" in them, fails on "broken", mumbles on "odd"."""

    def ask_all(self, bodies, readable=None):
        for k, body in enumerate(bodies):
            text = body["messages"][0]["content"]
            reply = {
                "text": "Yes." if "sure" in text.split("[Answer]")[1] else "no",
                "error": None,
                "prompt_tokens": 10,
                "completion_tokens": 1,
                "cached": False,
            }
            reply |= (
                {"text": None, "error": "status 500"}
                if "broken" in text
                else {"text": "Hm"}
                if "odd" in text
                else {}
            )
            yield k, reply


def test_tone_is_the_share_of_yes_and_what_failed_is_counted_and_left_out():
    items = [{"prompt": "q", "output": o} for o in ("sure", "surely", "well", "broken", "odd")]
    counts = style.add_tone(items, FakeJudge(), "m")
    assert [i["tone"] for i in items] == [True, True, False, None, None]
    assert counts == {
        "judged": 3,
        "errors": 1,
        "unreadable": 1,
        "prompt_tokens": 50,
        "completion_tokens": 5,
    }
    figures = style.measure(
        [
            i
            | {
                "list": False,
                "teacher_list": False,
                "summary": False,
                "teacher_summary": False,
                "unigram": 0.5,
                "words": n,
                "teacher_words": n,
            }
            for n, i in enumerate(items)
        ]
    )
    assert (
        figures["tone"]["n"] == 3
        and figures["tone"]["score"] == pytest.approx(2 / 3)
        and figures["list"] == {"score": None, "n": 0, "interval": None}
    )


def test_tone_over_http_is_asked_once_for_model_and_upper_bound_and_replayed_without_a_connection(
    tmp_path, endpoint
):
    e = endpoint(
        lambda text: "Yes" if "list" in text.split("[Answer]")[1] or "Overall" in text else "No"
    )
    a, b = (
        answer_file(tmp_path / "a.json", OURS, "ours"),
        answer_file(tmp_path / "b.json", TEACHER, "teacher"),
    )
    argv = [
        a,
        "--teacher",
        b,
        "--teacher2",
        b,
        "--out",
        str(tmp_path / "r"),
        "--judge",
        e.url,
        "--judge-model",
        "j",
    ]
    assert style.main(argv) == 0
    found = results.read_result(tmp_path / "r")
    assert (
        found["metrics"]["tone"]["score"] == 0.5
        and found["upper_bound"]["metrics"]["tone"]["score"] == 0.5
        and len(e.asked) == 7
    )  # one answer is on both sides
    e.close()
    assert (
        style.main([*argv, "--replay"]) == 0
        and results.read_result(tmp_path / "r")["metrics"]["tone"] == found["metrics"]["tone"]
    )


def test_on_real_answers_imitation_models_are_nearer_to_the_teacher_than_the_base(
    data_dir, tmp_path
):
    folder, found = data_dir / "vicuna_eval/answer", {}
    for name in ("vicuna-13b", "vicuna-7b-20230322-fp16", "alpaca-13b", "llama-13b"):
        assert (
            style.main(
                [
                    str(folder / f"answer_{name}.jsonl"),
                    "--teacher",
                    str(folder / "answer_gpt35.jsonl"),
                    "--out",
                    str(tmp_path / name),
                ]
            )
            == 0
        )
        found[name] = results.read_result(tmp_path / name)["metrics"]
    order = ["vicuna-13b", "vicuna-7b-20230322-fp16", "alpaca-13b", "llama-13b"]
    assert [round(found[n]["unigram"]["score"], 2) for n in order] == [
        0.48,
        0.47,
        0.35,
        0.29,
    ]  # the README's table
    assert sorted(order, key=lambda n: -found[n]["length"]["score"]) == order
    assert (
        found["vicuna-13b"]["list"]["score"] > found["llama-13b"]["list"]["score"]
        and found["llama-13b"]["summary"]["score"] == 0
    )
