"""study/verdicts.py: scores are read out of reviews and nothing else is; both orders; Newton
against scikit-learn; kappa against a plain loop.
"""

import json

import numpy as np
import pytest

from study.judge import replies, verdicts


@pytest.mark.parametrize(
    "text, want",
    [
        ("8 9\nBoth …", (8, 9)),
        ("\n 8.5, 9 \nwhy", (8.5, 9)),
        ("(7, 10)", (7, 10)),
        ("8/10 9/10\n", (8, 9)),
        ("10 0", (10, 0)),
        ("First, I solve it: (2, -2) and (10, 4).\nThe correct tuple output is (1, 4).", (1, 4)),
        ("f(2) = 39\nScores:\nAssistant 1: 1/10 (wrong)\nAssistant 2: 4/10", (1, 4)),
        (
            "Assistant 1:\nx = 6.\nAssistant 2: x = 2.\n**Assistant 1**: 3\n**Assistant 2**: 9.5",
            (3, 9.5),
        ),
        ("I would give Assistant 1 a score of 10 and Assistant 2 a score of 1.", (10, 1)),
        ("Thoughts.\n(6, 7)", (6, 7)),
        ("The tuple is (3, 4).\nOn reflection the scores are (5, 4).", (5, 4)),
        ("Assistant 1: 4\nAssistant 2: 4\nOn reflection:\nAssistant 1: 5\nAssistant 2: 4", (5, 4)),
        ("Assistant 1's score: 8 and Assistant 2's score: 6.", (8, 6)),
    ],
)
def test_scores_are_read(text, want):
    assert replies.read_scores(text) == want


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "Both are good.",
        "8\n9\n7",
        "11 12",
        "8 9 10",
        "From (2, 4) to (6, 8) it is far.",
        "Assistant 1: 8",
        "Assistant 1: 8 steps are right.\nAssistant 2: 3 steps are.",
        "The tuple is (3, 4).\nAssistant 1: 4\nAssistant 2: 3",
        "100 90",
        "Assistant 1: 1999 was a year.\nAssistant 2: 2000",
    ],
)
def test_what_is_no_pair_of_scores_or_contradicts_itself_gives_none(text):
    assert replies.read_scores(text) is None


@pytest.mark.parametrize(
    "text, want",
    [
        ("A is better. [[A]]", 1.0),
        ("[[A]] at first, but [[B]]", 0.0),
        ("[[tie]]", 0.5),
        ("[[C]]", 0.5),
        (" B. ", 0.0),
        ("Final verdict: A", 1.0),
        ("tie", 0.5),
        ("A is better", 1.0),
        ("A is what I would rather read, were it shorter", None),
        ("", None),
        (None, None),
        ("[[D]]", None),
        ("Both", None),
    ],
)
def test_choices_are_read_and_a_letter_somewhere_in_a_sentence_is_none(text, want):
    assert replies.read_choice(text) == want


def test_a_win_needs_both_orders_and_a_missing_one_leaves_no_verdict():
    assert verdicts.combined(1.0, 1.0) == 1 and verdicts.combined(0.0, 0.0) == 0
    assert (
        verdicts.combined(1.0, 0.0)
        == verdicts.combined(1.0, 0.5)
        == verdicts.combined(0.5, 0.5)
        == 0.5
    )
    assert verdicts.combined(None, 1.0) is None and verdicts.combined(0.0, None) is None


def test_position_and_length_count_decided_replies_and_unequal_lengths_only():
    found = verdicts.position_and_length(
        [(1.0, 9, 5), (1.0, 5, 5), (0.0, 3, 8), (0.5, 9, 1), (0.0, 9, 1)]
    )
    assert (found["first_position"]["score"], found["first_position"]["n"]) == (0.5, 4)
    assert (found["longer_answer"]["score"], found["longer_answer"]["n"]) == (
        pytest.approx(2 / 3),
        3,
    )


@pytest.mark.parametrize("n, seed", [(20, 0), (80, 1), (400, 2)])
def test_newton_gives_what_scikit_learn_gives_with_ties_as_half(n, seed):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(seed)
    x = rng.normal(0.7, 1, n)
    y = np.where(rng.random(n) < 1 / (1 + np.exp(0.5 - 1.5 * x)), 1.0, 0.0)
    y[rng.random(n) < 0.2] = 0.5
    weights = np.stack([np.ones(n), rng.integers(0, 4, n)])
    got = verdicts.logistic(x, y, weights)
    for row, w in zip(got, weights, strict=True):
        theirs = LogisticRegression(C=1 / verdicts.RIDGE, tol=1e-10, max_iter=10_000).fit(
            np.tile(x, 2)[:, None],
            np.repeat([1, 0], n),
            sample_weight=np.concatenate([w * y, w * (1 - y)]),
        )
        assert row == pytest.approx(
            [theirs.intercept_[0], theirs.coef_[0, 0]], abs=1e-4
        )  # their solver's tolerance


def test_a_judge_who_looks_at_length_alone_is_half_when_lengths_are_equal():
    for mean in (150, -80, 0):  # whoever is longer mostly
        d = np.random.default_rng(0).normal(mean, 100, 600)
        y = (np.random.default_rng(2).random(600) < 1 / (1 + np.exp(-0.03 * d))).astype(float)
        found = verdicts.length_controlled(y, d + 1000, np.full(600, 1000), resamples=300)
        assert found["interval"][0] < 0.5 < found["interval"][1] and (
            mean == 0 or abs(y.mean() - 0.5) > 0.2
        )
        assert found["slope"] == pytest.approx(0.03 * d.std(), rel=0.3)


def test_where_length_decides_everything_the_fit_is_finite():
    d = np.array([-30.0, -20, -10, 10, 20, 30])
    found = verdicts.length_controlled((d > 0).astype(float), d, np.zeros(6), resamples=300)
    assert found["score"] == pytest.approx(0.5) and 0 < found["slope"] < 100


def test_without_length_differences_or_losses_the_controlled_rate_is_the_plain_one():
    assert verdicts.length_controlled([1, 0, 0, 0.5], [5, 5, 5, 5], [5, 5, 5, 5], resamples=50)[
        "score"
    ] == pytest.approx(1.5 / 4)
    assert verdicts.length_controlled([1, 1, 1], [5, 9, 2], [5, 1, 4], resamples=50)["score"] == 1.0
    assert verdicts.length_controlled([0, 0], [5, 9], [5, 1], resamples=50)["interval"] == (
        0.0,
        0.0,
    )
    assert verdicts.length_controlled([], [], [])["score"] is None


def test_kappa_and_accuracy_agree_with_a_plain_loop():
    rng = np.random.default_rng(5)
    a = rng.choice([0.0, 0.5, 1.0], 150, p=[0.5, 0.1, 0.4])
    b = np.where(rng.random(150) < 0.6, a, rng.choice([0.0, 0.5, 1.0], 150))
    found = verdicts.agreement(a, b)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / 150
    chance = sum((a == v).mean() * (b == v).mean() for v in (0.0, 0.5, 1.0))
    assert found["accuracy"][0] == pytest.approx(observed) and found["kappa"][0] == pytest.approx(
        (observed - chance) / (1 - chance)
    )
    assert (
        found["kappa"][1][0] < found["kappa"][0] < found["kappa"][1][1]
        and found["accuracy"][1][0] < observed < found["accuracy"][1][1]
    )
    assert sum(map(sum, found["confusion"])) == 150 and found["confusion"][0][2] == int(
        ((a == 0) & (b == 1)).sum()
    )
    from sklearn.metrics import cohen_kappa_score

    assert found["kappa"][0] == pytest.approx(
        cohen_kappa_score((2 * a).astype(int), (2 * b).astype(int))
    )


def test_agreement_of_one_verdict_alone_has_no_kappa_and_of_nothing_is_an_error():
    assert verdicts.agreement([1.0, 1.0], [1.0, 1.0])["kappa"] == (None, None)
    with pytest.raises(ValueError, match="the same ids"):
        verdicts.agreement([], [])


def test_every_real_review_gives_the_recorded_scores(data_dir):
    rows = [
        json.loads(line)
        for path in sorted((data_dir / "vicuna_eval/review").rglob("*.jsonl"))
        for line in path.open()
    ]
    assert len(rows) == 400
    assert [
        i["review_id"] for i in rows if replies.read_scores(i["text"]) != tuple(i["score"])
    ] == []
