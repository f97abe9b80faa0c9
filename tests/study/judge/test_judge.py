"""study/judge.py through a fake endpoint over real HTTP: both orders, cache, resume, replay, errors
and unreadable replies counted; existing reviews, annotations and human votes.
"""

import json
import re

import fake_judge
import pytest

from host.files import json_lines
from study.judge import __main__ as judge
from study.judge import prompts
from tasks import results

endpoint = fake_judge.endpoint  # a fixture


def parts(text):
    """(question, first answer, second answer) of a request in Vicuna's form."""
    return re.search(
        (
            r"\[Question\]\n(.*?)\n\n\[The Start of Assistant 1's Answer\]\n(.*?)\n\n\[The "
            r"End.*?\[The Start of Assistant 2's Answer\]\n(.*?)\n\n\[The End"
        ),
        text,
        re.S,
    ).groups()


QUALITY = {"good": 9, "fair": 6, "poor": 3}


def by_quality(text):
    _, a, b = parts(text)
    return f"{QUALITY[a.split()[0]]} {QUALITY[b.split()[0]]}\nBecause."


def files(tmp_path, a, b, category=None):
    for name, outputs in (("a", a), ("b", b)):
        rows = [
            {"instruction": f"question {i}", "output": o, "generator": f"model-{name}"}
            | ({"category": category} if category else {})
            for i, o in enumerate(outputs)
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def run(
    tmp_path,
    endpoint_,
    *more,
    a=("good", "poor", "fair", "good long"),
    b=("poor", "good", "fair", "fair"),
):
    return judge.main(
        [
            *files(tmp_path, a, b),
            "--judge",
            endpoint_.url,
            "--judge-model",
            "j",
            "--out",
            str(tmp_path / "r"),
            *more,
        ]
    )


def test_both_orders_are_asked_and_a_consistent_judge_gives_wins_ties_and_losses(
    tmp_path, endpoint, capsys
):
    e = endpoint(by_quality)
    assert run(tmp_path, e, "--price", "30,60") == 0
    found, items = (
        results.read_result(tmp_path / "r"),
        json_lines(tmp_path / "r" / "samples.jsonl"),
    )
    assert [i["verdict"] for i in items] == [1.0, 0.0, 0.5, 1.0] and (
        found["win"],
        found["tie"],
        found["lose"],
    ) == (2, 1, 1)
    assert (
        found["score"] == 0.625
        and found["orders_agree"]["score"] == 1
        and found["flipped"]["score"] == 0
        and found["first_position"]["score"] == 0.5
    )
    assert found["longer_answer"] == {
        "score": 1.0,
        "n": 2,
        "interval": found["longer_answer"]["interval"],
    }  # only "good long" against "fair" differ in length
    assert found["tokens"] == {"prompt_tokens": 700, "completion_tokens": 70, "asked": 7} and found[
        "cost"
    ] == pytest.approx(
        (700 * 30 + 70 * 60) / 1e6
    )  # fair against fair is one request in both orders
    assert (
        found["mean_scores"] == {"A": (9 + 3 + 6 + 9) / 4, "B": (3 + 9 + 6 + 6) / 4}
        and len(e.asked) == 7
    )
    assert {(parts(b["messages"][-1]["content"])[1:]) for b in e.asked} >= {
        ("good", "poor"),
        ("poor", "good"),
    }
    assert (
        "win 2, tie 1, lose 1" in capsys.readouterr().out
        and (tmp_path / "r" / "index.html").exists()
    )


def test_a_judge_who_always_likes_the_first_is_all_ties_and_flipped(tmp_path, endpoint):
    assert run(tmp_path, endpoint(lambda text: "9 1")) == 0
    found = results.read_result(tmp_path / "r")
    assert (
        found["tie"] == 4
        and found["score"] == 0.5
        and found["flipped"]["score"] == 1
        and found["orders_agree"]["score"] == 0
        and found["first_position"]["score"] == 1
    )


def test_the_same_command_again_asks_nothing_and_replay_needs_no_endpoint(tmp_path, endpoint):
    e = endpoint(by_quality)
    assert run(tmp_path, e) == 0
    before = (tmp_path / "r" / "samples.jsonl").read_text()
    assert run(tmp_path, e) == 0 and len(e.asked) == 7
    e.close()
    assert run(tmp_path, e, "--replay") == 0
    assert (tmp_path / "r" / "samples.jsonl").read_text() == before
    assert results.read_result(tmp_path / "r")["tokens"]["from_log"] == 7


def test_a_run_that_stops_half_way_goes_on_and_pays_for_nothing_twice(tmp_path, endpoint, capsys):
    e = endpoint(lambda text: 401 if len(e.asked) == 4 else by_quality(text))
    assert run(tmp_path, e, "--concurrency", "1") == 2
    assert (
        "refuses" in capsys.readouterr().err
        and results.read_result(tmp_path / "r")["finished"] is False
        and "seconds" in results.read_result(tmp_path / "r")
    )
    assert (
        len(json_lines(tmp_path / "r" / "samples.jsonl")) == 1 and len(e.asked) == 4
    )  # three answers: one whole pair
    assert run(tmp_path, e, "--concurrency", "1") == 0 and len(e.asked) == 4 + 4
    found = results.read_result(tmp_path / "r")
    assert found["finished"] and (found["win"], found["tie"], found["lose"]) == (2, 1, 1)


def test_what_cannot_be_read_or_fails_is_counted_and_never_a_tie_and_is_asked_again(
    tmp_path, endpoint, capsys
):
    bad = {"on": True}

    def answer(text):
        question, a, b = parts(text)
        if question == "question 0" and a == "good":
            return "I like both."
        if question == "question 1" and bad["on"]:
            return 400
        return by_quality(text)

    e = endpoint(answer)
    assert run(tmp_path, e) == 0
    found = results.read_result(tmp_path / "r")
    assert (found["n"], found["without_verdict"], found["errors"], found["unreadable"]) == (
        2,
        2,
        2,
        1,
    ) and (found["win"], found["tie"], found["lose"]) == (1, 1, 0)
    assert "2 of 4 pairs have no verdict" in capsys.readouterr().err
    items = {i["id"]: i for i in json_lines(tmp_path / "r" / "samples.jsonl")}
    assert (
        len(items) == 4
        and items["0"]["verdict"] is None
        and items["0"]["forward"]["text"] == "I like both."
    )
    bad["on"] = False
    asked = len(e.asked)
    assert run(tmp_path, e) == 0
    found = results.read_result(tmp_path / "r")
    # the two that failed, and the one that could not be read
    assert len(e.asked) == asked + 3 and (
        found["n"],
        found["errors"],
        found["unreadable"],
        found["lose"],
    ) == (3, 0, 1, 1)


def test_a_reply_that_could_not_be_read_is_asked_again_by_the_next_run(tmp_path, endpoint, capsys):
    able = {"now": False}
    e = endpoint(lambda text: by_quality(text) if able["now"] else "I am unable to judge this.")
    assert run(tmp_path, e) == 0
    found = results.read_result(tmp_path / "r")
    assert (found["n"], found["without_verdict"]) == (0, 4) and found["unreadable"] == 8
    able["now"], asked = True, len(e.asked)
    assert run(tmp_path, e) == 0
    found = results.read_result(tmp_path / "r")
    assert (found["n"], found["without_verdict"], found["unreadable"]) == (4, 0, 0)
    assert len(e.asked) == 2 * asked
    assert run(tmp_path, e) == 0 and len(e.asked) == 2 * asked, "what can be read is not paid twice"
    assert run(tmp_path, e, "--replay") == 0
    assert results.read_result(tmp_path / "r")["n"] == 4, "the last reply of a request counts"


def test_a_plain_choice_is_read_too_and_an_answer_that_looks_like_a_placeholder_stays_as_it_is(
    tmp_path, endpoint
):
    seen = []

    def answer(text):
        seen.append(text)
        return (
            "So. [[A]]"
            if text.index("{answer_2} {question}") < text.index("[The Start of Answer B]")
            else "[[B]]"
        )

    assert (
        run(
            tmp_path,
            endpoint(answer),
            "--style",
            "abtie",
            a=["{answer_2} {question}"],
            b=["other-text"],
        )
        == 0
    )
    assert results.read_result(tmp_path / "r")["win"] == 1 and all(
        t.count("other-text") == 1 for t in seen
    )


@pytest.mark.parametrize(
    "category, said",
    [
        ("coding", "coding abilities"),
        ("math", "Python tuple"),
        ("writing", "level of details"),
        (None, "level of details"),
    ],
)
def test_the_prompt_follows_the_category(category, said):
    a = {"instruction": "q", "output": "x"} | ({"category": category} if category else {})
    style = prompts.Style("vicuna", prompts.read_prompts(None), "j", 0.2, 1024)
    body = style.body(a, {"instruction": "q", "output": "y"})
    assert (
        said in body["messages"][1]["content"]
        and body["messages"][0] == {"role": "system", "content": prompts.SYSTEM}
        and body["temperature"] == 0.2
    )


def three_votes():
    """Four rows of PandaLM's form: two answers and three people's votes on them."""
    answers = (("good", "poor"), ("poor", "good"), ("fair", "fair"), ("poor", "good"))
    votes = [(1, 1, 2), (2, 2, 2), (0, 1, 2), (1, 1, 1)]
    return [
        {"idx": i, "instruction": f"q{i}", "input": "", "response1": a, "response2": b}
        | {"annotator1": v[0], "annotator2": v[1], "annotator3": v[2], "cmp_key": "m-1_m-2"}
        for i, ((a, b), v) in enumerate(zip(answers, votes, strict=True))
    ]


def test_one_file_with_both_answers_is_judged_and_compared_with_its_people(
    tmp_path, endpoint, capsys
):
    path, out, table = (str(tmp_path / name) for name in ("votes.json", "r", "a.json"))
    (tmp_path / "votes.json").write_text(json.dumps(three_votes()))
    e = endpoint(by_quality)
    assert judge.main([path, "--judge", e.url, "--judge-model", "j", "--out", out]) == 0
    capsys.readouterr()
    assert judge.main(["agreement", out, "--human", path, "--json", table]) == 0
    out = capsys.readouterr().out
    assert (
        "4 items have both verdicts" in out
        and "n 4, accuracy 0.750" in out
        and "n 3, accuracy 0.667" in out
    )  # right on 0, 1, 2 (no majority: a tie), wrong on 3
    assert (
        json.loads((tmp_path / "a.json").read_text())["agreement"][
            "the same where neither is a tie"
        ]["n"]
        == 3
    )
    assert judge.main(["agreement", "humans", "--human", path]) == 0
    out = capsys.readouterr().out
    assert (
        "annotator1 and annotator2: n 4, accuracy 0.750" in out
        and "annotator3 and the majority of the others: n 4, accuracy 0.500" in out
    )
    assert (
        "annotator1 and the majority of the others: n 4, accuracy 0.750" in out
    )  # two who differ have no majority: a tie
    assert (
        judge.main(["agreement", "longer", "--human", path]) == 0
        and "n 4, accuracy 0.250" in capsys.readouterr().out
    )


def test_existing_judgements_are_read_and_a_review_that_differs_from_its_record_is_counted(
    tmp_path, capsys
):
    rows = [("9 5\nx", [9, 5]), ("6 7", [6, 7]), ("8 8", [8, 7]), ("no scores", [1, 1])]
    (tmp_path / "review.jsonl").write_text(
        "".join(
            json.dumps({"text": t, "score": s, "answer1_id": f"a{i}", "answer2_id": f"b{i}"}) + "\n"
            for i, (t, s) in enumerate(rows)
        )
    )
    (tmp_path / "answers.jsonl").write_text(
        "".join(
            json.dumps({"answer_id": f"{k}{i}", "model_id": k * 3, "text": "x" * n}) + "\n"
            for i in range(4)
            for k, n in (("a", 9), ("b", 5))
        )
    )
    assert (
        judge.main(
            ["review", str(tmp_path / "review.jsonl"), "--answers", str(tmp_path / "answers.jsonl")]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "(aaa / bbb)" in out
        and "4 reviews, 1 unreadable, 2 read otherwise than recorded; score sums 23.0 / 20.0" in out
        and "win 1, tie 1, lose 1" in out
        and "for the longer answer 50.0%" in out
    )
    preferences = [1, 1, 2, 0, 1.5, None, 1]
    (tmp_path / "annotations.json").write_text(
        json.dumps(
            [
                {
                    "instruction": "q",
                    "output_1": "long",
                    "output_2": "s",
                    "generator_1": "g",
                    "generator_2": "h",
                    "preference": p,
                }
                for p in preferences
            ]
        )
    )
    assert judge.main(["annotations", str(tmp_path / "annotations.json")]) == 0
    out = capsys.readouterr().out
    assert (
        "h against g: 6 rows, 1 without a preference" in out
        and "win 1, tie 2, lose 3; win rate with ties as half 33.33 %" in out
        and "for the longer answer 75.0%" in out
    )


def test_a_judge_is_compared_with_a_rating_by_people_over_the_same_ids(tmp_path, capsys):
    for task, verdicts in (
        ("judge", {"0": 1.0, "1": 0.0, "2": None, "3": 1.0}),
        ("rate", {"0": 1.0, "1": 1.0, "2": 0.0, "4": 0.5}),
    ):
        r = results.Result(tmp_path / task, task, {})
        for i, v in verdicts.items():
            r.add({"id": i, "verdict": v})
        r.finish(list(verdicts), {})
    assert (
        judge.main(["agreement", str(tmp_path / "judge"), "--human", str(tmp_path / "rate")]) == 0
    )
    out = capsys.readouterr().out
    assert (
        "2 items have both verdicts; 1 of the judge's have none, 1 are the judge's only, 2 "
        "the people's only"
    ) in out and "n 2, accuracy 0.500" in out
    assert (
        judge.main(["agreement", "humans", "--human", str(tmp_path / "rate")]) == 2
        and "votes of each person" in capsys.readouterr().err
    )


def test_mistakes_are_one_line_and_status_2(tmp_path, endpoint, capsys):
    a, b = files(tmp_path, ["good"], ["poor"])
    out = ["--judge-model", "j", "--out", str(tmp_path / "r")]
    for argv, said in (
        ([a, b, *out], "--judge URL"),
        ([a, b, *out, "--replay"], "does not exist"),
        ([a, *out, "--judge", "http://x/v1"], "holds no pair"),
        ([a, b, *out, "--judge", "http://x/v1", "--limit", "0"], "--limit 0"),
        ([a, b, *out, "--judge", "http://x/v1", "--prompts", a], "is no prompt"),
        (["review", a], "is no review"),
        (["annotations", a], "holds no pair"),
        (["agreement", str(tmp_path), "--human", a], "holds no votes"),
    ):
        assert judge.main(argv) == 2, argv
        error = capsys.readouterr().err.strip().split("\n")[-1]
        assert said in error and error.startswith("study.judge: "), (argv, error)
    assert not (tmp_path / "r" / "results.json").exists()


def test_the_prompts_built_in_are_those_of_the_file(data_dir):
    assert prompts.read_prompts(data_dir / "vicuna_eval/prompt.jsonl") == prompts.read_prompts(None)


def test_real_reviews_give_the_published_sums(data_dir, capsys):
    paths = sorted(map(str, (data_dir / "vicuna_eval/review").rglob("*.jsonl")))
    answers_ = sorted(map(str, (data_dir / "vicuna_eval/answer").glob("*.jsonl")))
    assert judge.main(["review", *paths, "--answers", *answers_]) == 0
    out = capsys.readouterr().out
    for sums in (
        "525.0 / 605.0",
        "583.0 / 684.5",
        "660.0 / 630.0",
        "688.0 / 604.0",
        "513.0 / 677.5",
    ):
        assert sums in out
    assert (
        out.count(" 0 unreadable, 0 read otherwise than recorded") == 5
        and "(gpt-3.5-turbo:20230327 / vicuna-7b:20230322-fp16)" in out
    )
    assert "win 52, tie 16, lose 12" in out and "decided for the longer answer 94.7%" in out


def test_the_real_annotations_give_the_published_win_rate(data_dir, capsys):
    assert (
        judge.main(
            ["annotations", str(data_dir / "alpaca_eval/text_davinci_001/annotations.json.gz")]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "804 rows, 1 without a preference" in out and "15.17 %" in out


def test_real_human_votes_agree_among_themselves_more_than_length_does(data_dir, capsys):
    path = str(data_dir / "human_preferences/pandalm_testset.200.json")
    assert (
        judge.main(["agreement", "humans", "--human", path]) == 0
        and judge.main(["agreement", "longer", "--human", path]) == 0
    )
    out = capsys.readouterr().out
    assert (
        "annotator1 and annotator2: n 200, accuracy 0.860" in out
        and "longer and the majority of people: n 200, accuracy 0.575" in out
    )


def test_weighted_annotations_of_alpaca_eval_2(tmp_path, capsys):
    preferences = [1.0000048889, 1.9999, 1.37, 2.0, 1.0, 1.5, 0, None]
    rows = [
        {
            "instruction": f"q{i}",
            "output_1": "baseline " + "x" * i,
            "generator_1": "gpt4_1106_preview",
            "output_2": "ours " + "y" * (9 - i),
            "generator_2": "mine",
            "preference": p,
        }
        for i, p in enumerate(preferences)
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert judge.main(["annotations", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    known = [1.5 if p == 0 else p for p in preferences if p is not None]
    mean = 100 * (sum(known) / len(known) - 1)  # alpaca_eval's own rule
    assert f"ties as half {mean:.2f} %" in said and "7 rows, 1 without" in said
    assert "3 weighted" in said and "win 2, tie 2, lose 3" in said
    for wrong in (0.5, 2.5, "2", True, -1):
        rows[0]["preference"] = wrong
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert judge.main(["annotations", str(tmp_path / "a.json")]) == 2, wrong
        assert "row 1: preference" in capsys.readouterr().err
