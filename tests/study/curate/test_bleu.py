"""study.bleu is sacrebleu's sentence_bleu: on any text, on any pair, and its maximum by brute
force.
"""

import random
import time

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from study.curate import bleu
from text import dialogues

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ab.,-0 \n&;qampltgt<>\"'\u3000\x85é", max_size=60),
    st.sampled_from(
        ["<skipped>a", "&amp;quot; 1,000.5-3", "x-\ny", "...", "a.b,c", "9-9-9", "\x1f", ""]
    ),
)


def brute(queries, references=None):
    """Maximum by sacrebleu -> scores, and for each query the indices that reach it."""
    scores, at = [], []
    for i, q in enumerate(queries):
        found = {
            j: sacrebleu.sentence_bleu(q, [r]).score
            for j, r in enumerate(queries if references is None else references)
            if references is not None or j != i
        }
        scores.append(max(found.values()))
        at.append([j for j, s in found.items() if s >= scores[-1] * (1 - 1e-9)])
    return scores, at


def check(queries, references=None, **how):
    scores, index = bleu.nearest(queries, references, **how)
    wanted, at = brute(queries, references)
    np.testing.assert_allclose(scores, wanted, rtol=1e-9, atol=0)
    assert [int(k) for k in index] == [a[0] for a in at]  # the lowest of those that are equal


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_the_tokens_are_sacrebleus(text):
    assert bleu.tokenize(text) == Tokenizer13a()(text.rstrip()).split()


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS)
def test_one_pair_is_sacrebleus(a, b):
    assert bleu.sentence_bleu(a, b) == pytest.approx(
        sacrebleu.sentence_bleu(a, [b]).score, rel=1e-12, abs=0
    )


def words(rng, n, kinds):
    return " ".join(
        rng.choices(
            [f"w{k}" for k in range(kinds)], weights=[1 / (k + 1) for k in range(kinds)], k=n
        )
    )


@pytest.mark.parametrize("seed", range(6))
def test_the_nearest_is_that_of_brute_force(seed, monkeypatch):
    rng = random.Random(seed)
    monkeypatch.setattr(bleu, "ROWS", 7)
    monkeypatch.setattr(bleu, "COLUMNS", 11)
    monkeypatch.setattr(bleu, "DENSE", (0, 3, 10**9)[seed % 3])  # all sparse, both, all dense
    queries = [
        words(rng, rng.choice([0, 1, 2, 3, 4, 5, 8, 13, 40]), rng.choice([2, 5, 30]))
        for _ in range(45)
    ]
    check(queries + ["", " ", "z", "z z z z z z", "z z", "only here", queries[3]])
    check(queries, [words(rng, rng.choice([0, 1, 3, 6, 200]), 30) for _ in range(25)])


@pytest.mark.parametrize(
    "queries",
    [
        ["same text here"] * 5,
        ["", "", ""],
        ["a", "b"],
        ["a", "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 12],
        ["a b c a", "c a b c", "a b c d"],
        ["a a a a a a", "a a a", "a"],
    ],
)
def test_edges(queries):
    check(queries)
    check(queries[:1], queries)


def test_a_penalty_beyond_float32_still_finds_the_nearest():
    long = "a " + "b " * 600
    check(["a", long, long + "b", "c " * 300 + "a"])


def test_too_few_texts_are_named():
    for queries, references in ((["a"], None), ([], None), (["a"], [])):
        with pytest.raises(ValueError, match="nothing to compare"):
            bleu.nearest(queries, references)


def test_progress_reaches_the_number_of_pairs():
    seen = []
    bleu.nearest([f"query {i}" for i in range(600)], ["query 1", "other"], progress=seen.append)
    assert seen[-1] == 1200 and seen == sorted(seen)


def real(data_dir, n):
    queries = [
        next(t["value"] for t in d["conversations"] if t["from"] == "human")
        for f in (
            "dialogues/sharegpt_en.json.gz",
            "hc3/open_qa.jsonl.gz",
            "alpaca/alpaca_data.3000.json.gz",
        )
        for d in dialogues.read_dialogues(data_dir / f)
        if any(t["from"] == "human" for t in d["conversations"])
    ]
    return random.Random(1).sample(queries, n)


def test_real_queries_by_brute_force(data_dir):
    queries = sorted(real(data_dir, 500), key=len)
    queries = random.Random(2).sample(queries[:480], 110)  # without the longest: sacrebleu is slow
    check(queries)


def test_real_queries_of_all_lengths_against_the_slow_way(data_dir):
    queries = real(data_dir, 700)
    started = time.monotonic()
    scores, index = bleu.nearest(queries)
    assert time.monotonic() - started < 20
    for i in random.Random(3).sample(range(700), 12):
        found = [
            bleu.sentence_bleu(queries[i], q) if j != i else -1.0 for j, q in enumerate(queries)
        ]
        assert scores[i] == max(found) and found[index[i]] == max(found)
