"""Majority, agreement, and the result directory of votes."""

import csv
import json

import krippendorff
import numpy as np
import pytest

from study.rate import __main__ as rate
from study.rate import preference


def vote(item, rater, choice, **more):
    return {
        "item": item,
        "rater": rater,
        "choice": choice,
        "gold": None,
        "seconds": 2.0,
        "instruction": "q",
        "a": "1",
        "b": "2",
        "source": item,
    } | more


def test_the_majority_of_three_decides_and_none_is_a_tie():
    votes = [vote("i", r, c) for r, c in zip("xyz", ("a", "a", "b"), strict=True)] + [
        vote("j", r, c) for r, c in zip("xyz", ("a", "tie", "b"), strict=True)
    ]
    votes += [vote("k", r, c) for r, c in zip("xyz", ("b", "b", "b"), strict=True)] + [
        vote("l", "x", "a")
    ]
    found, items = preference.summary(votes)
    assert (
        found["win"],
        found["tie"],
        found["lose"],
        found["no_majority"],
        found["incomplete_items"],
    ) == (1, 1, 1, 1, 1)
    assert found["score"] == pytest.approx(2 / 3) and found["standard_deviation"] == pytest.approx(
        np.std([1, 1, 0], ddof=1)
    )
    assert found["standard_error"] == pytest.approx(np.std([1, 1, 0], ddof=1) / 3**0.5) and [
        i["verdict"] for i in items
    ] == [1, 0.5, 0]


def test_alpha_is_the_krippendorff_packages_on_ragged_ratings():
    rng = np.random.default_rng(1)
    for _trial in range(20):
        table = rng.integers(0, 3, size=(4, 15)).astype(float)
        table[1] = np.where(rng.random(15) < 0.7, table[0], table[1])
        table[rng.random(table.shape) < 0.25] = np.nan
        units = [[int(x) for x in column if not np.isnan(x)] for column in table.T]
        assert preference.alpha_ordinal(units) == pytest.approx(
            krippendorff.alpha(table, level_of_measurement="ordinal", value_domain=[0, 1, 2]),
            abs=1e-12,
        )


def test_alpha_of_full_agreement_is_one_and_of_no_variation_none():
    assert preference.alpha_ordinal([[0, 0], [2, 2, 2], [1, 1]]) == 1
    assert (
        preference.alpha_ordinal([[1, 1], [1, 1]]) is None
        and preference.alpha_ordinal([[1]]) is None
    )


def test_raters_below_the_gold_share_are_left_out_and_named():
    votes = [vote("i", r, "a") for r in "xyz"] + [vote("i", "bad", "b")]
    votes += [vote("g", "bad", "b", gold="a"), vote("g", "x", "a", gold="a")]
    found, _ = preference.summary(votes, min_gold=0.5)
    assert (
        found["raters_left_out"] == ["bad"]
        and found["votes"] == 3
        and found["gold"] == {"bad": [0, 1], "x": [1, 1]}
        and found["n"] == 1
    )
    assert preference.summary(votes)[0]["votes"] == 4


def test_too_few_votes_are_an_error_of_one_line():
    with pytest.raises(ValueError, match="no item has 3 votes"):
        preference.summary([vote("i", "x", "a")])


def test_a_cell_that_a_spreadsheet_would_run_is_made_text():
    rows = list(
        csv.reader(
            preference.csv_text(
                [vote("i", "=HYPERLINK(1)", "a", voted=-1.5), vote("i", "@x", "a", source="+1")]
            ).splitlines()
        )
    )
    assert (
        rows[1][2] == "'=HYPERLINK(1)" and rows[1][7] == "-1.500" and rows[2][1:3] == ["'+1", "'@x"]
    )


def test_the_result_directory_holds_what_the_report_reads(tmp_path, capsys):
    rows = [
        {
            "idx": n,
            "instruction": "<script>q</script>",
            "response1": "x",
            "response2": "y",
            "annotator1": 1,
            "annotator2": n % 3,
            "annotator3": 1,
        }
        for n in range(9)
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    assert (
        rate.main(["results", "--votes", str(tmp_path / "v.json"), "--out", str(tmp_path / "out")])
        == 0
    )
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert (
        found["task"] == "rate"
        and found["finished"]
        and found["win"] == 9
        and found["score"] == 1
        and found["settings"]["teacher"] == "second"
    )
    assert (
        "<script>q" not in (tmp_path / "out/index.html").read_text()
        and len((tmp_path / "out/votes.csv").read_text().splitlines()) == 28
    )
    assert "win 9, tie 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, says",
    [
        (["results"], "needs --db"),
        (["results", "--votes", "nowhere.json"], "nowhere.json"),
        (["results", "--votes", __file__], "holds no votes"),
        (["results", "--votes", __file__, "--min-gold", "2"], "--min-gold"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(argv, says, capsys):
    assert rate.main(argv) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_pandalms_majority_counts(data_dir):
    votes, per_item = preference.read_votes(data_dir / "human_preferences/pandalm_testset.200.json")
    found, _ = preference.summary(votes, per_item)
    assert (found["win"], found["tie"], found["lose"], found["votes"]) == (88, 23, 89, 600)
    table = np.array([[preference.VALUES[v["choice"]] for v in votes[r::3]] for r in range(3)])
    assert found["alpha_ordinal"] == pytest.approx(
        krippendorff.alpha(table, level_of_measurement="ordinal", value_domain=[0, 1, 2])
    )
