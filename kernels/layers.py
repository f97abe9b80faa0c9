"""Norms, RoPE, activations and the embedding lookup, as pure functions.

All but the lookup compute in float32 and return the dtype of their input.
tests/kernels holds each to a float64 NumPy loop, in value and in every gradient.

LETTERS  those of model.py, and h pairs of a head (H / 2).
"""

import jax
import jax.numpy as jnp
from jax import lax

# --- products ---


def matmul(x_BTD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x @ w -> [B, T, F], as one product of B * T rows.

    The gradient of w then sums over one dimension. Over two, XLA's CPU compiler lays out the
    transpose of the gradient in memory first, and multiplies it at half the speed.
    """
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    return (x_MD @ w_DF).reshape(x_BTD.shape[:-1] + (w_DF.shape[-1],))


@jax.custom_vjp
def tall_matmul(x_BTF: jax.Array, w_FD: jax.Array) -> jax.Array:
    """matmul for a w with more rows than columns, on CPUs: w's gradient is made transposed.

    x^T g with few columns runs there at two thirds of the speed of g^T x.
    """
    return matmul(x_BTF, w_FD)


def _tall_forward(x_BTF, w_FD):
    return matmul(x_BTF, w_FD), (x_BTF, w_FD)


def _tall_backward(residuals, g_BTD):
    x_BTF, w_FD = residuals
    g_MD, x_MF = g_BTD.reshape(-1, g_BTD.shape[-1]), x_BTF.reshape(-1, x_BTF.shape[-1])
    # the barrier keeps XLA from folding the transpose into the product again
    dw_FD = lax.optimization_barrier(g_MD.T @ x_MF).T
    return (g_MD @ w_FD.T).reshape(x_BTF.shape), dw_FD


tall_matmul.defvjp(_tall_forward, _tall_backward)


# --- norms ---


def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """x / RMS(x) * scale over the last axis. Source: arXiv 1910.07467, as in LLaMA."""
    x = x_BTD.astype(jnp.float32)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    # Hugging Face rounds to the compute dtype before the scale. One rounding at the end loses less,
    # and in float32 the two agree.
    return (y * broadcast_last(scale_D, x.ndim)).astype(x_BTD.dtype)


def layer_norm(x_BTD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last axis; the variance is the biased one."""
    x = x_BTD.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    y = y * broadcast_last(scale_D, x.ndim) + broadcast_last(bias_D, x.ndim)
    return y.astype(x_BTD.dtype)


def broadcast_last(v_D: jax.Array, ndim: int) -> jax.Array:
    """A vector as [1, ..., 1, D] in float32: silent rank promotion would hide mistakes."""
    return v_D.astype(jnp.float32).reshape((1,) * (ndim - 1) + v_D.shape)


# --- RoPE ---


def rope_table(
    positions_BT: jax.Array, head_size: int, theta: float, scaling: tuple | None = None
) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, H/2] f32 of position * theta^(-2i/H), i the pair.

    scaling: None, or (factor,): all wavelengths are stretched by `factor` ("linear"), or (factor,
    low, high, original) as in Llama 3.1: wavelengths beyond original / low are stretched, those
    below original / high are kept, and between them the two are blended linearly. Source: Hugging
    Face modeling_rope_utils.py, `_compute_linear_scaling_rope_parameters` and `.._llama3_..`.
    """
    frequency = theta ** -(jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is not None and len(scaling) == 1:
        frequency = frequency / scaling[0]
    elif scaling is not None:
        factor, low, high, original = scaling
        # 1 at the short wavelengths, 0 at the long
        keep = (original * frequency / (2 * jnp.pi) - low) / (high - low)
        keep = jnp.clip(keep, 0.0, 1.0)
        frequency = frequency * (keep + (1 - keep) / factor)
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rope_half(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + H/2): Hugging Face's layout, which this project's weights are in."""
    x = x_BTNH.astype(jnp.float32)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def rope_interleaved(x_BTNH: jax.Array, cos_BTh: jax.Array, sin_BTh: jax.Array) -> jax.Array:
    """Rotate the neighbouring pairs (2i, 2i + 1): the layout of Meta, EasyLM and llama2.c.

    checkpoint/ permutes such weights to half-split; this is its reference.
    """
    x = x_BTNH.astype(jnp.float32)
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    pairs = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return pairs.reshape(x.shape).astype(x_BTNH.dtype)


# --- activations ---


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GPT-2's GELU: the tanh approximation, not the erf."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


# --- embedding ---


@jax.custom_vjp
def lookup(table_VD: jax.Array, index_BT: jax.Array) -> jax.Array:
    """table[index] [B, T, D]; an index outside the table gives 0 (another rank holds that row).

    The table's gradient is summed in float32 and rounded once.
    """
    V = table_VD.shape[0]
    inside_BT = (index_BT >= 0) & (index_BT < V)
    return jnp.where(inside_BT[..., None], table_VD[jnp.clip(index_BT, 0, V - 1)], 0)


def _lookup_forward(table_VD, index_BT):
    # the empty array carries V and the dtype
    return lookup(table_VD, index_BT), (index_BT, jnp.zeros((table_VD.shape[0], 0), table_VD.dtype))


def _lookup_backward(residuals, g_BTD):
    index_BT, like = residuals
    V = like.shape[0]
    # Negative indices would count from the end. Every index outside becomes row V, which
    # mode="drop" leaves out.
    index_BT = jnp.where((index_BT >= 0) & (index_BT < V), index_BT, V)
    zeros_VD = jnp.zeros((V, g_BTD.shape[-1]), jnp.float32)
    dtable_VD = zeros_VD.at[index_BT].add(g_BTD.astype(jnp.float32), mode="drop")
    return dtable_VD.astype(like.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)
