"""rows.py: every packing keeps each token it says it keeps; the orders are fixed for good."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from text.rows import (
    _splitmix,
    best_fit,
    document_rows,
    shuffled,
    single_rows,
    split_off,
    stream_rows,
)

# Dialogues of 2 to 40 distinct ids from 1 on, loss on some, never on the first.
LENGTHS, BLOCK = st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 17)


def coded(lengths):
    """Dialogues whose ids count on, so that each token is known by its id: list of int32, id * 2 +
    mask.
    """
    starts = np.cumsum([0, *lengths]) + 1
    return [
        np.arange(a, b, dtype=np.int32) * 2 + (np.arange(a, b) % 3 > 0) * (np.arange(a, b) > a)
        for a, b in zip(starts, starts[1:], strict=False)
    ]


def targets(row):
    """Ids with loss in a row."""
    return (row >> 1)[(row & 1) == 1].tolist()


@given(LENGTHS, BLOCK)
@settings(max_examples=100, deadline=None)
def test_stream_covers_each_token_exactly_once_as_a_target(lengths, block):
    parts = coded(lengths)
    whole = np.concatenate(parts)
    rows = [
        row
        for row, segment in stream_rows(lambda i: parts[i], range(len(parts)), block)
        if segment is None
    ]
    assert all(
        row.shape == (block + 1,) and row.dtype == np.int32 and not row[0] & 1 for row in rows
    )
    predicted = np.concatenate(
        [row[1:] for row in rows]
    )  # the first token of all is predicted from nothing
    assert (predicted[: len(whole) - 1] == whole[1:]).all() and not predicted[
        len(whole) - 1 :
    ].any()
    assert len(rows) == -(-(len(whole) - 1) // block)
    assert all(a[-1] >> 1 == b[0] >> 1 for a, b in zip(rows, rows[1:], strict=False))


@given(LENGTHS, BLOCK)
@settings(max_examples=100, deadline=None)
def test_documents_cover_every_token_and_keep_each_dialogue_in_a_segment(lengths, block):
    parts = coded(lengths)
    learned, neighbours = [], set()
    for row, segment in document_rows(lambda i: parts[i], list(range(len(parts))), lengths, block):
        assert row.shape == segment.shape == (block + 1,)
        used = np.flatnonzero(segment)
        assert used.tolist() == list(range(len(used))) and not row[len(used) :].any()
        assert set(np.diff(segment[used]).tolist()) <= {0, 1} and segment[0] == 1
        learned += targets(row)
        ids = row >> 1
        neighbours |= {
            (int(ids[t]), int(ids[t + 1])) for t in range(block) if segment[t] == segment[t + 1] > 0
        }
        assert np.bincount(segment[used])[1:].min() > 1  # one token alone predicts nothing
        starts = [0, *(np.flatnonzero(np.diff(segment)) + 1)]
        assert not (row[starts] & 1).any()
    whole = np.concatenate(parts)
    assert sorted(learned) == targets(
        whole
    )  # each exactly once, also where a dialogue goes on in another row
    assert neighbours == {
        (int(a), int(b))
        for part in parts
        for a, b in zip(part[:-1] >> 1, part[1:] >> 1, strict=False)
    }


@given(LENGTHS, BLOCK)
@settings(max_examples=100, deadline=None)
def test_single_rows_hold_one_dialogue_each_cut_at_the_block(lengths, block):
    parts = coded(lengths)
    for part, found in zip(
        parts, single_rows(lambda i: parts[i], range(len(parts)), block), strict=True
    ):
        head = part[: block + 1]
        assert (found is None) == (not targets(head))
        if found:
            row, segment = found
            assert row[: len(head)].tolist() == head.tolist() and not row[len(head) :].any()
            assert segment.tolist() == [1] * len(head) + [0] * (block + 1 - len(head))


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 30))
@settings(max_examples=100, deadline=None)
def test_best_fit_equals_the_plain_search_for_the_fullest_group_with_room(lengths, room):
    groups = []
    for n in sorted(lengths, reverse=True):
        open_groups = [g for g in groups if sum(g) + n <= room]
        if open_groups:
            max(open_groups, key=sum).append(n)
        else:
            groups.append([n])
    found = best_fit(np.array(lengths, np.int64), room)
    assert sorted(i for g in found for i in g) == list(range(len(lengths)))
    assert sorted(sum(lengths[i] for i in g) for g in found) == sorted(map(sum, groups))


def test_orders_are_permutations_fixed_for_good():
    # Written down once: another order would change which dialogues a run that is resumed or
    # repeated trains on.
    assert shuffled(8, 0, 0).tolist() == [0, 7, 2, 5, 4, 6, 3, 1]
    assert (
        _splitmix(np.array([1234567], np.uint64)) == 6457827717110365317
    )  # splitmix64's published first output
    assert sorted(shuffled(1000, 3, 1).tolist()) == list(range(1000))
    orders = [tuple(shuffled(50, *seeds)) for seeds in ((0,), (1,), (0, 0), (0, 1), (1, 0), (-1,))]
    assert len(set(orders)) == len(orders)
    assert shuffled(0, 1).tolist() == []
    drift = np.mean([shuffled(100, seed) for seed in range(400)], axis=0)
    assert (
        abs(drift - 49.5).max() < 8
    )  # the mean of 400 uniform draws has a standard deviation of 1.44


@given(
    st.lists(st.integers(0, 50), min_size=10, max_size=200),
    st.sampled_from([0.02, 0.1, 0.3]),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_validation_is_made_of_whole_groups(keys, fraction, seed):
    keys = np.array(keys, np.int64)
    wanted = max(round(fraction * len(keys)), 1)
    if np.unique(keys, return_counts=True)[1].min() > wanted or len(set(keys.tolist())) == 1:
        with pytest.raises(ValueError, match="--eval-fraction"):
            split_off(keys, fraction, seed)
        return
    held = split_off(keys, fraction, seed)
    assert 0 < held.sum() <= wanted
    assert not set(keys[held].tolist()) & set(keys[~held].tolist())
    assert (split_off(keys, fraction, seed) == held).all()


def test_no_fraction_holds_nothing_out():
    assert not split_off(np.array([1, 2]), 0, 0).any()
