"""scores.py: each scorer against a slow reference or a published value."""

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.humaneval import STOPS as HUMANEVAL_STOPS
from tasks.nq import STOPS_LLAMA as NQ_STOPS_LLAMA
from tasks.nq import short_answer
from tasks.scores import (
    bootstrap,
    cut_at,
    exact_match,
    expected_calibration_error,
    mcnemar,
    normalise,
    paired_bootstrap,
    pass_at_k,
    token_f1,
    wilson,
)

# --- text ---


@pytest.mark.parametrize(
    "text, plain",
    [
        ("The U.S. of  A.", "us of"),
        ("An apple,\ta day", "apple day"),
        ("Theory the a Anthem", "theory anthem"),
        ("the", ""),
        ("co-op", "coop"),
        ("14 December\n1972 UTC", "14 december 1972 utc"),
        ("Beyoncé “The Queen”", "beyoncé “ queen”"),
    ],
)
def test_normalising_drops_case_punctuation_articles_and_spare_space(text, plain):
    assert normalise(text) == plain


def test_exact_match_takes_any_gold_answer_and_nothing_near_it():
    golds = ["Wilhelm Conrad Röntgen", "the X-ray man"]
    assert exact_match("wilhelm conrad röntgen.", golds) and exact_match("X-Ray Man!", golds)
    assert not exact_match("Röntgen", golds) and not exact_match("", golds)


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall_with_repeats_counted():
    assert token_f1("the cat cat sat", ["cat sat sat"]) == pytest.approx(
        2 / 3
    )  # shared: cat, sat; 3 and 3 words
    assert token_f1("Barack Obama", ["Obama", "Barack Hussein Obama"]) == pytest.approx(
        0.8
    )  # better than 2/3
    assert (
        token_f1("", ["the"]) == 1.0
        and token_f1("", ["x"]) == 0.0
        and token_f1("x", ["the"]) == 0.0
        and token_f1("y", ["x"]) == 0.0
    )


@given(
    st.lists(st.sampled_from("abcd xyz"), max_size=9),
    st.lists(st.sampled_from("bcd xyz"), min_size=1, max_size=9),
)
@settings(deadline=None)
def test_token_f1_agrees_with_precision_and_recall_counted_one_by_one(got, gold):
    got, gold = [w for w in got if w not in "a "], [w for w in gold if w not in "a "]
    left, shared = list(gold), 0
    for word in got:
        if word in left:
            left.remove(word)
            shared += 1
    expected = float(got == gold) if not got or not gold else 0.0
    if shared:
        precision, recall = shared / len(got), shared / len(gold)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(" ".join(got), [" ".join(gold)]) == pytest.approx(expected)


def test_an_answer_ends_at_a_newline_and_with_llamas_rule_at_a_full_stop_or_comma():
    output = " U.S. troops, mostly \n\nQ: next?"
    assert (
        short_answer(output) == "U.S. troops, mostly"
        and short_answer(output, NQ_STOPS_LLAMA) == "U"
    )
    assert short_answer("\nParis") == "" and short_answer("Paris") == "Paris"


def test_a_completion_ends_at_the_first_stop_string_and_keeps_what_only_looks_like_one():
    body = "    # inner comment\n    if x:\n        print(x)\n    return x\n"
    for stop in HUMANEVAL_STOPS:
        assert cut_at(body + stop + " more\nclass", HUMANEVAL_STOPS) == body
    assert cut_at(body, HUMANEVAL_STOPS) == body and cut_at("", HUMANEVAL_STOPS) == ""
    assert (
        cut_at("ab\nif\nclass", ("\nclass", "\nif")) == "ab"
    )  # the earliest in the text, not the first in the list


def test_calibration_error_agrees_with_a_loop_over_bins():
    rng = np.random.default_rng(0)
    confidence = np.concatenate(
        [rng.random(500), [0.0, 1.0, 0.2, 0.4]]
    )  # the edges too: bins are (low, high]
    correct = rng.random(504) < confidence**2
    expected = 0.0
    for i in range(10):
        inside = [
            (p, c)
            for p, c in zip(confidence, correct, strict=False)
            if i < p * 10 <= i + 1 or (i == 0 and p == 0)
        ]
        if inside:
            expected += (
                len(inside)
                / 504
                * abs(np.mean([c for _, c in inside]) - np.mean([p for p, _ in inside]))
            )
    assert expected_calibration_error(confidence, correct, bins=10) == pytest.approx(
        expected, abs=1e-12
    )
    assert expected_calibration_error([0.5, 0.6], [1, 0], bins=2) == pytest.approx(
        0.55
    )  # .5 is the first bin's upper edge
    assert (
        expected_calibration_error([1.0, 1.0], [1, 1]) == 0.0
        and expected_calibration_error([1.0, 1.0], [0, 0]) == 1.0
    )


# --- programs ---


@pytest.mark.parametrize("n", [1, 5, 20])
def test_pass_at_k_agrees_with_human_evals_product_and_with_drawing_every_subset(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            product = (
                1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))
            )  # human-eval's own form
            assert pass_at_k(n, c, k) == pytest.approx(product, abs=1e-12)
    if n == 5:
        for c, k in itertools.product(range(6), range(1, 6)):
            subsets = list(itertools.combinations([i < c for i in range(5)], k))
            assert pass_at_k(5, c, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def test_pass_at_k_is_exact_at_many_samples_and_refuses_too_few():
    assert (
        pass_at_k(100_000, 1, 1) == 1e-5
        and pass_at_k(6, 3, 1) == 0.5
        and pass_at_k(7, 0, 3) == 0.0
        and pass_at_k(200, 3, 100) == pytest.approx(1 - math.comb(197, 100) / math.comb(200, 100))
    )
    with pytest.raises(
        ValueError, match="pass@10 needs at least 10 samples of each problem, there are 2"
    ):
        pass_at_k(2, 1, 10)


# --- intervals and tests ---


@pytest.mark.parametrize(
    "hits, n, low, high",
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_equals_the_published_values(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilsons_interval_solves_its_own_equation_and_is_whole_where_nothing_is_known():
    for end in wilson(7, 30, confidence=0.9):
        assert abs(7 / 30 - end) / math.sqrt(end * (1 - end) / 30) == pytest.approx(
            1.6448536, abs=1e-6
        )
    assert wilson(0, 0) == (0.0, 1.0) and wilson(9, 9)[1] == 1.0 and wilson(0, 9)[0] == 0.0


def slow_bootstrap(values, weights, resamples):
    rng, means = np.random.default_rng(99), []
    for _ in range(resamples):
        drawn = [rng.integers(len(values)) for _ in values]
        means.append(sum(values[i] * weights[i] for i in drawn) / sum(weights[i] for i in drawn))
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["many values", "few values", "weighted"])
def test_the_bootstrap_agrees_with_one_that_draws_item_by_item(kind):
    rng = np.random.default_rng(1)
    n = 150
    values = (
        rng.integers(0, 3, n).astype(float) if kind == "few values" else rng.exponential(size=n)
    )
    weights = rng.integers(1, 50, n) if kind == "weighted" else np.ones(n)
    got = bootstrap(values, weights if kind == "weighted" else None)
    # The ends of 2,000 slow resamples scatter by about 4 % of the width; three times that is the
    # tolerance.
    slow = slow_bootstrap(values, weights, 2000)
    assert got == pytest.approx(slow, abs=0.12 * (slow[1] - slow[0]))
    assert (
        got
        == bootstrap(values, weights if kind == "weighted" else None)
        != bootstrap(values, weights if kind == "weighted" else None, seed=1)
    )


def test_the_bootstrap_of_a_proportion_is_near_wilsons_and_covers_the_truth_as_often_as_it_says():
    hits = np.arange(400) < 140
    assert bootstrap(hits) == pytest.approx(wilson(140, 400), abs=0.005)
    rng = np.random.default_rng(5)
    covered = [
        low <= 0.3 <= high
        for low, high in (
            bootstrap(rng.random(200) < 0.3, resamples=1000, seed=i) for i in range(400)
        )
    ]
    assert 0.92 <= np.mean(covered) <= 0.98  # 95 % of 400 has a standard error of 1.1 %


def test_an_interval_of_no_items_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        bootstrap([])


def test_the_paired_bootstrap_uses_the_pairs():
    rng = np.random.default_rng(2)
    a = rng.normal(size=300)
    b = a + 0.1 + rng.normal(size=300) * 0.1
    difference, (low, high) = paired_bootstrap(a, b)
    assert difference == pytest.approx(np.mean(b) - np.mean(a)) and low < difference < high
    assert high - low == pytest.approx(
        2 * 1.96 * np.std(b - a) / math.sqrt(300), rel=0.1
    )  # a tenth of the unpaired width
    assert paired_bootstrap(b, a)[0] == -difference


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (2, 9), (9, 2), (6, 6), (0, 12)])
def test_mcnemars_p_agrees_with_every_way_the_coins_can_fall(only_a, only_b):
    a = [1] * only_a + [0] * only_b + [1, 0] * 20
    b = [0] * only_a + [1] * only_b + [1, 0] * 20
    n, fewer = only_a + only_b, min(only_a, only_b)
    outcomes = [
        sum(coins) for coins in itertools.product((0, 1), repeat=n)
    ]  # every way n fair coins can fall
    assert mcnemar(a, b) == (
        only_a,
        only_b,
        pytest.approx(np.mean([min(x, n - x) <= fewer for x in outcomes])),
    )


def test_mcnemars_p_of_a_published_table_and_of_thousands_of_items():
    assert mcnemar([1] * 5 + [0] * 15, [0] * 5 + [1] * 15)[2] == pytest.approx(
        0.04138947
    )  # R: binom.test(5, 20)
    p = mcnemar(np.arange(14042) < 6800, np.arange(14042) >= 6800)[2]
    z = (7021 - 6800 - 0.5) / math.sqrt(14042 / 4)
    assert p == pytest.approx(
        math.erfc(z / math.sqrt(2)), rel=2e-3
    )  # the normal approximation, continuity corrected
    assert 0 < mcnemar(np.zeros(1000), np.ones(1000))[2] < 1e-300


# --- real data ---


def test_the_golds_of_natural_questions_match_themselves_and_score_an_f1_of_one(data_dir):
    rows = [
        json.loads(line)
        for line in open(data_dir / "nq_open" / "NQ-open.dev.jsonl", encoding="utf-8")
    ]
    assert len(rows) == 3610
    assert all(
        exact_match(f"The {a.upper()} !", r["answer"]) or a.upper().lower() != a.lower()
        for r in rows
        for a in r["answer"]
    )
    assert all(token_f1(a, r["answer"]) == 1.0 for r in rows for a in r["answer"])
    assert sum(exact_match("yes", r["answer"]) for r in rows) < 10


def test_canonical_solutions_hold_no_stop_string(data_dir):
    problems = [
        json.loads(line) for line in gzip.open(data_dir / "humaneval" / "HumanEval.jsonl.gz", "rt")
    ]
    cut = [
        p["task_id"]
        for p in problems
        if cut_at(p["canonical_solution"], HUMANEVAL_STOPS) != p["canonical_solution"]
    ]
    assert cut == []
