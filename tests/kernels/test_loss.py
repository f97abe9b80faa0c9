"""Cross-entropy against a slow loop in float64, in value and in every gradient."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec
from numerics import differences, normal
from test_kernels import BF16, B, D, T, V, assert_near, check

import sharding
from kernels.loss import cross_entropy, head_cross_entropy, head_logits


def cross_entropy_loop(logits, target, weight):
    total = 0.0
    for index in np.ndindex(*target.shape):
        row = logits[index]
        top = max(row)
        total += weight[index] * (
            top + math.log(sum(math.exp(x - top) for x in row)) - row[target[index]]
        )
    return total


TARGET = np.random.RandomState(3).randint(0, V, (B, T))


WEIGHT = np.array([[0.2, 0, 1, 0.5, 0], [0, 0.3, 0.3, 0, 2]])


def test_cross_entropy_equals_the_loop_in_value_and_gradient():
    check(
        lambda x: cross_entropy(x, jnp.asarray(TARGET), jnp.asarray(WEIGHT)),
        lambda x: cross_entropy_loop(x, TARGET, WEIGHT),
        3 * normal(B, T, V),
    )


def test_cross_entropy_of_bfloat16_logits_is_taken_in_float32():
    logits = jnp.asarray(20 * normal(B, T, V), jnp.bfloat16)
    ours = cross_entropy(logits, jnp.asarray(TARGET), jnp.asarray(WEIGHT))
    assert ours.dtype == jnp.float32
    assert_near(ours, cross_entropy_loop(np.asarray(logits, np.float64), TARGET, WEIGHT))


def test_a_token_of_weight_zero_adds_nothing_even_where_its_loss_is_infinite():
    logits = jnp.asarray([[[0.0, -jnp.inf, 0.0], [1.0, 2.0, 3.0]]])
    loss = cross_entropy(logits, jnp.asarray([[1, 2]]), jnp.asarray([[0.0, 1.0]]))
    assert_near(loss, cross_entropy_loop(np.array([[1.0, 2, 3]]), np.array([2]), np.array([1.0])))


HIDDEN, HEAD = (
    normal(B * T, D),
    normal(16, D, seed=1),
    # 16 rows, of which the first `vocab` are the vocabulary and the others padding
)

FLAT_WEIGHT = jnp.asarray(WEIGHT.reshape(-1), jnp.float32)


def head_target(vocab):
    return np.minimum(TARGET.reshape(-1), vocab - 1)


@functools.cache
def head_reference(vocab):
    """Value of the loop and its gradients by the hidden states and the head."""

    def loop(x, head):
        return cross_entropy_loop(x @ head[:vocab].T, head_target(vocab), WEIGHT.reshape(-1))

    return (
        loop(HIDDEN, HEAD),
        differences(loop, [HIDDEN, HEAD], 0),
        differences(loop, [HIDDEN, HEAD], 1),
    )


def head_kernel(x, head, vocab, axis, chunk, weight=FLAT_WEIGHT):
    return head_cross_entropy(x, head, jnp.asarray(head_target(vocab)), weight, vocab, axis, chunk)


def assert_head(loss, gradients, vocab, factor):
    expected, dx, dhead = head_reference(vocab)
    assert_near(loss, factor * expected)
    assert_near(gradients[0], factor * dx)
    assert_near(gradients[1], factor * dhead)
    assert np.all(np.asarray(gradients[1])[vocab:] == 0)  # padding rows: exactly


@pytest.mark.parametrize("chunk", [1, 3, 10, 1024])  # of 10 tokens
def test_head_cross_entropy_equals_the_loop_whatever_the_chunk(chunk):
    def f(x, head):
        return 0.7 * head_kernel(x, head, V, None, chunk)

    loss, gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(
        jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    )
    assert_head(loss, gradients, V, 0.7)
    np.testing.assert_array_equal(
        jax.jit(f)(jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)), loss
    )  # without gradients: another path


def test_a_vocabulary_without_padding_is_not_masked():
    x_MD, head_VD = jnp.ones((2, 3)), jnp.ones((5, 3))

    def masked(vocab):
        return "select" in str(jax.make_jaxpr(lambda x: head_logits(x, head_VD, vocab, 0))(x_MD))

    assert masked(4) and not masked(5)
    assert np.isneginf(head_logits(x_MD, head_VD, 4, 0)[:, 4]).all()


def test_head_cross_entropy_with_every_weight_zero_is_zero_with_zero_gradients():
    def f(x, head):
        return head_kernel(x, head, V, None, 4, jnp.zeros(10))

    loss, gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(
        jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    )
    assert loss == 0 and all(np.all(np.asarray(g) == 0) for g in gradients)


@pytest.mark.parametrize(
    "vocab", [13, 7]
)  # of 16 rows, 4 a rank: with 7 two ranks hold nothing but padding
def test_head_cross_entropy_over_four_ranks_equals_the_plain_one_in_value_and_gradients(vocab):
    def local(x, head):
        return jax.value_and_grad(
            lambda x, head: 0.7 * head_kernel(sharding.copy_in(x), head, vocab, sharding.TENSOR, 3),
            argnums=(0, 1),
        )(x, head)

    rows = Spec(sharding.TENSOR)
    sharded = jax.shard_map(
        local,
        mesh=sharding.make_mesh(1, 4),
        in_specs=(Spec(), rows),
        out_specs=(Spec(), (Spec(), rows)),
        check_vma=False,
    )
    loss, gradients = jax.jit(sharded)(
        jnp.asarray(HIDDEN, jnp.float32), jnp.asarray(HEAD, jnp.float32)
    )
    assert_head(loss, gradients, vocab, 0.7)


def test_head_cross_entropy_of_bfloat16_has_logits_and_loss_in_float32_and_its_gradients_near():
    """Logits of about 50.

    The loss has no rounding of its own (products of two bfloat16 are exact in float32); the logits'
    gradient is rounded once on the way to each product.
    """
    x, head = (
        jnp.asarray(4 * normal(10, 100), jnp.bfloat16),
        jnp.asarray(normal(16, 100, seed=1), jnp.bfloat16),
    )
    x64, head64 = np.asarray(x, np.float64), np.asarray(head, np.float64)
    loss, gradients = jax.jit(
        jax.value_and_grad(lambda x, head: head_kernel(x, head, V, None, 4), argnums=(0, 1))
    )(x, head)
    assert loss.dtype == jnp.float32
    logits = x64 @ head64[:V].T
    assert_near(loss, cross_entropy_loop(logits, head_target(V), WEIGHT.reshape(-1)))
    p = np.exp(logits - logits.max(1, keepdims=True))
    dlogits = (p / p.sum(1, keepdims=True) - np.eye(V)[head_target(V)]) * WEIGHT.reshape(-1, 1)
    for ours, reference in zip(
        gradients, (dlogits @ head64[:V], np.pad(dlogits.T @ x64, ((0, 3), (0, 0)))), strict=False
    ):
        assert ours.dtype == jnp.bfloat16
        assert_near(ours, reference, 2 * BF16)
