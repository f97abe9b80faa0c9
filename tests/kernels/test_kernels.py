"""Every kernel against a slow float64 NumPy loop, its gradients against differences of that loop.

    python -m pytest tests/kernels/test_kernels.py

TOLERANCE: the kernels compute in float32 (rounding 6e-8 an operation, some tens of operations
deep), the loops in float64, where central differences with a step of 1e-5 are good to 1e-9. 5e-6 of
the largest element holds for values and gradients alike, and a wrong formula misses it by orders of
magnitude. Sizes are odd and unequal: B 2, T 5, D 12, 6 heads, 3 or 1 kv heads of 4.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numerics import differences, normal

from kernels.attention import causal_mask, reference_attention
from kernels.layers import (
    gelu_tanh,
    layer_norm,
    lookup,
    rms_norm,
    rope_half,
    rope_interleaved,
    rope_table,
    swiglu,
    tall_matmul,
)

B, T, D, V = 2, 5, 12, 13

TOLERANCE = 5e-6

BF16 = (
    2.0**-8
)  # half a unit in the last place of bfloat16's eight significant bits, relative: one rounding


def assert_near(ours, reference, tolerance=TOLERANCE):
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference)
    assert ours.shape == reference.shape
    assert np.abs(ours - reference).max() <= tolerance * np.abs(reference).max(), (
        np.abs(ours - reference).max() / np.abs(reference).max()
    )


def check(kernel, loop, *arrays):
    """kernel(*arrays) equals loop(*arrays), and so do the gradients by every array of a random
    weighting of the result.
    """
    expected = np.asarray(loop(*arrays))
    weighting = normal(*expected.shape, seed=99)

    def ours(*f32):
        y, vjp = jax.vjp(kernel, *f32)
        return y, vjp(jnp.asarray(weighting, jnp.float32))

    y, gradients = jax.jit(ours)(*(jnp.asarray(a, jnp.float32) for a in arrays))
    assert_near(y, expected)
    for which, gradient in enumerate(gradients):
        assert_near(
            gradient, differences(lambda *a: np.sum(loop(*a) * weighting), list(arrays), which)
        )


# --- the loops ---


def rms_norm_loop(x, scale, eps):
    y = np.zeros_like(x)
    for b, t in np.ndindex(*x.shape[:2]):
        square = sum(v * v for v in x[b, t]) / x.shape[2]
        for d in range(x.shape[2]):
            y[b, t, d] = x[b, t, d] / math.sqrt(square + eps) * scale[d]
    return y


def layer_norm_loop(x, scale, bias, eps):
    y = np.zeros_like(x)
    for b, t in np.ndindex(*x.shape[:2]):
        mean = sum(x[b, t]) / x.shape[2]
        variance = sum((v - mean) ** 2 for v in x[b, t]) / x.shape[2]
        for d in range(x.shape[2]):
            y[b, t, d] = (x[b, t, d] - mean) / math.sqrt(variance + eps) * scale[d] + bias[d]
    return y


def frequency_loop(H, theta, scaling):
    """The angle by which each pair turns a position.

    Llama 3.1's scaling is written with wavelengths, as in its release.
    """
    frequencies = []
    for i in range(H // 2):
        frequency = theta ** (-2 * i / H)
        if scaling is not None and len(scaling) == 1:
            frequency /= scaling[0]
        elif scaling is not None:
            factor, low, high, original = scaling
            wavelength = 2 * math.pi / frequency
            if wavelength > original / low:
                frequency /= factor
            elif wavelength >= original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        frequencies.append(frequency)
    return frequencies


def rope_loop(x, positions, theta, pair):
    """pair(i, H) -> the two channels that turn together as a complex number."""
    y, H = np.zeros_like(x), x.shape[3]
    for b, t, n in np.ndindex(*x.shape[:3]):
        for i, frequency in enumerate(frequency_loop(H, theta, None)):
            first, second = pair(i, H)
            turned = complex(x[b, t, n, first], x[b, t, n, second]) * np.exp(
                1j * positions[b, t] * frequency
            )
            y[b, t, n, first], y[b, t, n, second] = turned.real, turned.imag
    return y


def half(i, H):
    return i, i + H // 2


def interleaved(i, H):
    return 2 * i, 2 * i + 1


def attention_loop(q, k, v, segment):
    B, T, N, H = q.shape
    group = N // k.shape[2]
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(B, T, N):
        seen = [s for s in range(t + 1) if segment[b, s] == segment[b, t]]
        score = [float(q[b, t, n] @ k[b, s, n // group]) / math.sqrt(H) for s in seen]
        e = [math.exp(x - max(score)) for x in score]
        for s, weight in zip(seen, e, strict=False):
            out[b, t, n] += weight / sum(e) * v[b, s, n // group]
    return out


# --- norms ---


def test_rms_norm_equals_the_loop_in_value_and_gradients():
    check(
        lambda x, s: rms_norm(x, s, 0.1),
        lambda x, s: rms_norm_loop(x, s, 0.1),
        normal(B, T, D),
        1 + normal(D, seed=1),
    )


def test_layer_norm_equals_the_loop_in_value_and_gradients():
    arrays = 0.5 + normal(B, T, D), 1 + normal(D, seed=1), normal(D, seed=2)
    check(
        lambda x, s, b: layer_norm(x, s, b, 0.1),
        lambda x, s, b: layer_norm_loop(x, s, b, 0.1),
        *arrays,
    )


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_norms_of_bfloat16_take_their_statistics_in_float32(offset):
    """Over 3,000 channels a bfloat16 sum would stall; and after an offset of 100 a bfloat16
    difference from the mean keeps a digit. Allowed: the one rounding of the result.
    """
    x = jnp.asarray(offset + normal(1, 2, 3000), jnp.bfloat16)
    scale, bias = (
        jnp.asarray(1 + 0.1 * normal(3000, seed=1), jnp.bfloat16),
        jnp.asarray(normal(3000, seed=2), jnp.bfloat16),
    )
    x64, scale64, bias64 = (np.asarray(a, np.float64) for a in (x, scale, bias))
    for ours, reference in [
        (rms_norm(x, scale, 1e-5), rms_norm_loop(x64, scale64, 1e-5)),
        (layer_norm(x, scale, bias, 1e-5), layer_norm_loop(x64, scale64, bias64, 1e-5)),
    ]:
        assert ours.dtype == jnp.bfloat16
        assert np.all(
            np.abs(np.asarray(ours, np.float64) - reference) <= BF16 * np.abs(reference) + 1e-4
        )


# --- RoPE ---

POSITIONS = np.array([[0, 1, 2, 3, 4], [0, 1, 0, 7, 30]])


@pytest.mark.parametrize("kernel, pair", [(rope_half, half), (rope_interleaved, interleaved)])
def test_rope_turns_each_pair_as_a_complex_number_does(kernel, pair):
    def ours(x):
        return kernel(x, *rope_table(jnp.asarray(POSITIONS), 8, 100.0))

    check(ours, lambda x: rope_loop(x, POSITIONS, 100.0, pair), normal(B, T, 3, 8))


def test_permuting_the_channels_turns_one_rope_into_the_other():
    x = jnp.asarray(normal(B, T, 3, 8), jnp.float32)
    table = rope_table(jnp.asarray(POSITIONS), 8, 100.0)
    to_half = [2 * i for i in range(4)] + [
        2 * i + 1 for i in range(4)
    ]  # interleaved (0 1)(2 3)... -> the firsts of all pairs, then the seconds
    np.testing.assert_array_equal(
        rope_interleaved(x, *table)[..., to_half], rope_half(x[..., to_half], *table)
    )
    assert not np.allclose(rope_interleaved(x, *table), rope_half(x, *table), atol=0.1)


@pytest.mark.parametrize("scaling", [None, (4.0,), (8.0, 1.0, 4.0, 256), (4.0, 2.0, 32.0, 8192)])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_rope_table_equals_the_loop_with_and_without_scaling(theta, scaling):
    """To 1e-5 in the angle a position: float32 keeps 6e-8 of an angle up to 30 turns long."""
    positions = np.array([[0, 1, 2, 30]])
    cos, sin = rope_table(jnp.asarray(positions), 16, theta, scaling)
    for t, (i, frequency) in itertools.product(
        range(4), enumerate(frequency_loop(16, theta, scaling))
    ):
        angle = positions[0, t] * frequency
        assert abs(cos[0, t, i] - math.cos(angle)) < 1e-5 and abs(
            sin[0, t, i] - math.sin(angle)
        ) < 1e-5 * max(1, angle)


def test_llama_3_1_scaling_keeps_blends_and_stretches():
    """The case of the stored references: of four wavelengths one is kept, one blended and two
    stretched by the whole factor (each read off the angle at position 1).
    """

    def angle(scaling):
        return np.arctan2(
            *reversed(
                [
                    np.asarray(a, np.float64)[0, 0]
                    for a in rope_table(jnp.ones((1, 1), int), 8, 500000.0, scaling)
                ]
            )
        )

    ratio = angle((8.0, 1.0, 4.0, 256)) / angle(None)
    np.testing.assert_allclose(ratio[[0, 2, 3]], [1, 1 / 8, 1 / 8], rtol=1e-5)
    assert 1 / 8 < ratio[1] < 1


# --- attention ---

ONE_SEGMENT = np.ones((B, T), int)


SEGMENTS = np.array(
    [[1, 1, 2, 2, 2], [1, 2, 2, 0, 0]]
)  # the second row ends in padding (segment 0)


@pytest.mark.parametrize("kv_heads", [1, 3, 6])
def test_attention_equals_the_loop_in_value_and_gradients(kv_heads):
    segment = np.array([ONE_SEGMENT[0], SEGMENTS[1]])
    arrays = (
        normal(B, T, 6, 4),
        normal(B, T, kv_heads, 4, seed=1),
        normal(B, T, kv_heads, 4, seed=2),
    )
    mask = causal_mask(jnp.asarray(segment))
    check(
        lambda q, k, v: reference_attention(q, k, v, mask),
        lambda q, k, v: attention_loop(q, k, v, segment),
        *arrays,
    )


def attention_gradients(segment):
    """Gradients by k and v of the first row's output at each query position: two of [query, key,
    ...].
    """
    q, k, v = (jnp.asarray(normal(B, T, heads, 4, seed=heads), jnp.float32) for heads in (6, 3, 3))
    mask, weighting = (
        causal_mask(jnp.asarray(segment)),
        jnp.asarray(normal(6, 4, seed=5), jnp.float32),
    )

    def f(query, k, v):
        return jnp.sum(reference_attention(q, k, v, mask)[0, query] * weighting)

    gradients = jax.jit(jax.vmap(jax.grad(f, argnums=(1, 2)), in_axes=(0, None, None)))(
        jnp.arange(T), k, v
    )
    return [np.asarray(g[:, 0]) for g in gradients]


def test_a_later_key_has_a_gradient_of_exactly_zero():
    dk, dv = attention_gradients(ONE_SEGMENT)
    for query, key in np.ndindex(T, T):
        assert np.any(dv[query, key] != 0) == (key <= query)
        assert np.any(dk[query, key] != 0) == (
            key <= query and query > 0
        )  # the first query sees one key: softmax of one has no gradient by k


def test_a_key_of_another_document_has_a_gradient_of_exactly_zero():
    dk, dv = attention_gradients(SEGMENTS)
    for query, key in np.ndindex(T, T):
        assert np.any(dv[query, key] != 0) == (
            key <= query and SEGMENTS[0, key] == SEGMENTS[0, query]
        )
        assert np.all(dk[query, key] == 0) or SEGMENTS[0, key] == SEGMENTS[0, query]


def test_attention_of_bfloat16_has_its_scores_and_softmax_in_float32():
    """A query's scores are about 60, and 1 apart from each other: rounded to bfloat16 they would
    move by 0.2, and the result by a tenth. Allowed: the rounding of the probabilities and that of
    the result.
    """
    q = 8 * normal(B, T, 6, 64)
    k = 8 * normal(1, 1, 3, 64, seed=1) + 0.1 * normal(B, T, 3, 64, seed=2)
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, normal(B, T, 3, 64, seed=3)))
    ours = reference_attention(q, k, v, causal_mask(jnp.asarray(ONE_SEGMENT)))
    reference = attention_loop(*(np.asarray(a, np.float64) for a in (q, k, v)), ONE_SEGMENT)
    assert ours.dtype == jnp.bfloat16
    assert (
        np.abs(np.asarray(ours, np.float64) - reference).max()
        <= 2 * BF16 * np.abs(np.asarray(v, np.float64)).max()
    )


# --- activations ---


def test_swiglu_equals_the_loop_in_value_and_gradients():
    check(
        swiglu,
        np.vectorize(lambda g, u: g / (1 + math.exp(-g)) * u),
        2 * normal(B, T, D),
        normal(B, T, D, seed=1),
    )


def test_tall_matmul_equals_the_loop_in_value_and_gradients():
    check(tall_matmul, lambda x, w: x @ w, normal(B, T, D), normal(D, 3, seed=1))


def test_gelu_is_the_tanh_one_in_value_and_gradient():
    check(
        gelu_tanh,
        np.vectorize(
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        ),
        2 * normal(B, T, D),
    )


def test_activations_of_bfloat16_are_rounded_once():
    x, y = (jnp.asarray(3 * normal(B, T, 100, seed=seed), jnp.bfloat16) for seed in (0, 1))
    x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
    gelu = np.vectorize(
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    )
    for ours, reference in [
        (swiglu(x, y), x64 / (1 + np.exp(-x64)) * y64),
        (gelu_tanh(x), gelu(x64)),
    ]:
        assert ours.dtype == jnp.bfloat16
        assert np.all(
            np.abs(np.asarray(ours, np.float64) - reference) <= BF16 * np.abs(reference) + 1e-5
        )


# --- lookup ---


def test_lookup_equals_the_loop_and_an_index_outside_the_table_gives_zero_and_no_gradient():
    index = np.array(
        [[0, 3, 3, 12, -1], [13, 5, 3, -13, 40]]
    )  # of 13 rows; negative ones must not count from the end

    def loop(table):
        out = np.zeros((B, T, D))
        for b, t in np.ndindex(B, T):
            if 0 <= index[b, t] < V:
                out[b, t] = table[index[b, t]]
        return out

    check(lambda table: lookup(table, jnp.asarray(index)), loop, normal(V, D))


def test_lookup_of_bfloat16_sums_its_gradient_in_float32():
    """A thousand ones for one row: summed in bfloat16 they stall at 256."""
    table, index = jnp.zeros((3, 2), jnp.bfloat16), jnp.ones((1, 1000), int)
    gradient = jax.grad(lambda t: jnp.sum(lookup(t, index).astype(jnp.float32)))(table)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient, np.float32), [[0, 0], [1000, 1000], [0, 0]])
