"""A stack of layers forward and backward by hand, against jax.grad of a plain loop over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from kernels import stack

B, T, D = 2, 5, 3


def layer(x_BTD, w, scale_BT1):
    """A toy with a product that may be saved and a nonlinearity that is computed again."""
    h_BTD = checkpoint_name(x_BTD @ w["a"], "matmul")
    return x_BTD + scale_BT1 * jnp.tanh(h_BTD + w["b"][None, None])


def arrays(L):
    random = np.random.RandomState(L)

    def draw(*shape):
        return jnp.asarray(random.randn(*shape), jnp.float32)

    return draw(B, T, D), {"a": draw(L, D, D), "b": draw(L, D)}, draw(B, T, 1), draw(B, T, D)


def by_hand(x_BTD, weights, scale_BT1, g_BTD, remat, prefetch, start=0.0):
    """(output, gradient of x, gradients of the weights) and the layers fetched while tracing."""
    L, fetched = len(weights["b"]), []

    def fetch(i, x_BTD):
        fetched.append(i)
        return {name: w[i] for name, w in weights.items()}

    def add(sums, i, dw):
        return {name: sums[name].at[i].add(g) for name, g in dw.items()}

    layers = stack.Stack(L, fetch, layer, (scale_BT1,))
    y_BTD, tape = stack.forward_layers(x_BTD, layers, remat, prefetch)
    sums = {name: jnp.full(w.shape, start) for name, w in weights.items()}
    dx_BTD, sums = stack.backward_layers(g_BTD, sums, add, tape, layers)
    return y_BTD, dx_BTD, sums, tape


def plain(x_BTD, weights, scale_BT1):
    for i in range(len(weights["b"])):
        x_BTD = layer(x_BTD, {name: w[i] for name, w in weights.items()}, scale_BT1)
    return x_BTD


@pytest.mark.parametrize("L", [1, 2, 4])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_output_and_gradients_are_those_of_a_plain_loop(remat, prefetch, L):
    """3e-5 of gradients up to 7: float32, the same operations in another order."""
    x_BTD, weights, scale_BT1, g_BTD = arrays(L)
    want, vjp = jax.vjp(lambda x, w: plain(x, w, scale_BT1), x_BTD, weights)
    dx, dweights = vjp(g_BTD)
    run = jax.jit(lambda *a: by_hand(*a, remat, prefetch)[:3])
    y_BTD, dx_BTD, sums = run(x_BTD, weights, scale_BT1, g_BTD)
    np.testing.assert_allclose(y_BTD, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dx_BTD, dx, rtol=1e-5, atol=3e-5)
    for name, gradient in dweights.items():
        np.testing.assert_allclose(sums[name], gradient, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("prefetch", [False, True])
def test_gradients_are_added_to_what_is_in_the_sums(prefetch):
    x_BTD, weights, scale_BT1, g_BTD = arrays(3)
    none = by_hand(x_BTD, weights, scale_BT1, g_BTD, "full", prefetch)[2]
    some = by_hand(x_BTD, weights, scale_BT1, g_BTD, "full", prefetch, start=2.0)[2]
    for name in none:
        np.testing.assert_allclose(some[name], none[name] + 2, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("remat, count", [("full", 1), ("dots", 2)])
def test_residuals_are_the_input_and_what_is_saved_and_no_weight(remat, count, prefetch):
    x_BTD, weights, scale_BT1, g_BTD = arrays(4)
    tape = by_hand(x_BTD, weights, scale_BT1, g_BTD, remat, prefetch)[3]
    residuals = tape.residuals_L.arrays
    assert [r.shape for r in residuals] == [(4 - prefetch, B, T, D)] * count
    assert (tape.w_last is not None) == prefetch == (tape.last is not None)
    np.testing.assert_array_equal(residuals[0][0], x_BTD)
