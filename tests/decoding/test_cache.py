"""What the cache holds and how large it is, apart from what decoding makes of it.

python -m pytest tests/decoding/test_cache.py
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import test_decoder

from decoding import cache, sampling
from decoding.records import Sampling


@pytest.mark.parametrize("positions", [[2], [3, 0], [4], [1, 7]])
def test_keys_are_written_at_each_rows_position_and_nowhere_beyond_the_cache(positions):
    B = len(positions)
    old = np.random.RandomState(0).randn(B, 2, 4, 3).astype(np.float32)
    new = np.random.RandomState(1).randn(B, 2, 3).astype(np.float32)
    want = old.copy()
    for b, at in enumerate(positions):
        if at < 4:
            want[b, :, at] = new[b]
    got = cache.write(jnp.asarray(old), jnp.asarray(new), jnp.array(positions, jnp.int32))
    np.testing.assert_array_equal(got, want)


def test_a_prefix_takes_room_by_its_length_in_few_sizes():
    config, mesh, layout, weights, *_ = test_decoder.made("gqa")
    specs, long = layout.stacked(config), dataclasses.replace(config, P=5000)
    assert cache.PrefixCache(long, mesh, layout, specs).rooms == [256, 1024, 4096, 5376]
    prefixes = cache.PrefixCache(config, mesh, layout, specs, pieces=(16, 64))

    def room(ids):
        return prefixes.read(weights, ids)[0].shape[-2]

    assert prefixes.rooms == [256, 320] and [room([]), room([5] * 90)] == [256, 256]
    assert prefixes.kept and prefixes.kept[1] == [5] * 90
    room([])  # leaves what is kept
    assert prefixes.kept[1] == [5] * 90


def test_a_lone_prompt_is_a_prefix_and_no_row_of_padding_is_read(monkeypatch):
    *_, apart, programs = test_decoder.made("gqa")
    monkeypatch.setattr(programs, "read", lambda *a, **k: pytest.fail("a row was read"))
    (out,) = programs.generate(apart, [test_decoder.PROMPTS[2]], Sampling(9))
    assert out.ids == test_decoder.plain("gqa", (tuple(test_decoder.PROMPTS[2]),), 9, ())[0]


def test_of_equal_logits_the_first_id_is_the_likeliest():
    logits = np.random.RandomState(0).randint(0, 9, (40, 30)).astype(np.float32)
    logits[3] = -np.inf
    best, top = sampling.likeliest(jnp.asarray(logits))
    np.testing.assert_array_equal(best, logits.argmax(axis=1))
    np.testing.assert_array_equal(top, logits.max(axis=1))
