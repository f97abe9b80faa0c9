"""Batches: each row once, on the right devices, made ahead; prompts cut out of packed rows.

python -m pytest tests/training/test_batches.py
"""

import threading
import types

import jax
import numpy as np
import pytest

import sharding
from training import batches


class Rows:
    """A data set of n rows whose tokens are the row's number."""

    columns = {"tokens": 5, "loss_mask": 5}

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def rows(self, indices):
        indices = np.asarray(indices)
        return {
            "tokens": np.tile(indices[:, None], (1, 5)).astype(np.int32),
            "loss_mask": np.ones((len(indices), 5), np.int8),
        }


def test_steps_count_from_one():
    source = batches.Source(Rows(10), None, 0.0, 4, 1, seed=3)
    first = source.rows_of(1) + source.rows_of(2) + source.rows_of(3)
    assert sorted(first[:10]) == list(range(10)), "the first epoch begins with step 1"


def test_a_batch_is_what_it_was_announced_to_be():
    mesh = sharding.make_mesh(2, 1)
    source = batches.Source(Rows(10), None, 0.0, 8, 2, seed=0)
    like, batch = source.batch_like(mesh), source.batch_of(1, mesh)
    shape = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
    assert jax.tree.map(shape, like, is_leaf=lambda x: hasattr(x, "dtype")) == jax.tree.map(
        shape, batch
    )


def test_held_out_rows_come_in_order_each_once_and_padding_has_no_loss():
    mesh = sharding.make_mesh(2, 1)
    parts = list(batches.held_out(Rows(7), 4, mesh))
    tokens = np.concatenate([np.asarray(p["tokens"])[0, :, 0] for p in parts])
    mask = np.concatenate([np.asarray(p["loss_mask"])[0, :, 0] for p in parts])
    assert tokens.tolist() == [0, 1, 2, 3, 4, 5, 6, 0] and mask.tolist() == [1] * 7 + [0]


def test_the_next_batch_is_made_while_this_one_is_used():
    made, used = [], threading.Event()

    def make(s):
        made.append(s)
        if s == 2:
            used.set()
        return s * 10

    with batches.prefetch(make, range(1, 4)) as ahead:
        assert next(ahead) == (1, 10)
        assert used.wait(5), "batch 2 is made while batch 1 is used"
        assert list(ahead) == [(2, 20), (3, 30)] and made == [1, 2, 3]
    with batches.prefetch(make, []) as ahead:
        assert list(ahead) == []


def test_an_error_of_the_thread_is_raised_where_the_batch_is_taken():
    def make(s):
        if s == 2:
            raise ValueError("row 7 is damaged")
        return s

    with pytest.raises(ValueError, match="row 7"), batches.prefetch(make, range(1, 4)) as ahead:
        assert next(ahead) == (1, 1)
        next(ahead)


def test_prompts_end_where_learning_begins_and_hold_one_document():
    tok = types.SimpleNamespace(bos=1, opening=[1])
    rows = [
        ([1, 5, 6, 7, 8, 9, 9, 9], [0, 0, 0, 0, 0, 1, 1, 1]),
        ([9, 9, 1, 5, 1, 6, 7, 8], [1, 1, 0, 0, 0, 0, 0, 1]),  # its second document is too short
        ([1, 5, 6, 7, 8, 2, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0]),  # nothing is learned
        ([3, 1, 4, 5, 6, 7, 8, 8], [1, 0, 0, 0, 0, 0, 1, 1]),
    ]

    class Packed(Rows):
        def rows(self, indices):
            tokens, mask = zip(*(rows[i] for i in indices), strict=True)
            return {"tokens": np.array(tokens), "loss_mask": np.array(mask)}

    assert batches.prompts_of(Packed(4), tok, 5, 8) == [[1, 5, 6, 7, 8], [1, 4, 5, 6, 7]]
    assert batches.prompts_of(Packed(4), tok, 1, 8) == [[1, 5, 6, 7, 8]]
    assert batches.prompts_of(Packed(4), tok, 5, 5) == []
