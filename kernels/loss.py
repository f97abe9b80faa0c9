"""Cross-entropy of the next token: the plain reference, and the chunked, vocabulary-parallel form.

Logits and loss are computed in float32 whatever the dtype of their inputs. tests/kernels holds both
to a float64 NumPy loop, in value and in every gradient.

LETTERS  those of model.py, and M tokens (B * T), C tokens of one chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def cross_entropy(logits_BTV: jax.Array, target_BT: jax.Array, weight_BT: jax.Array) -> jax.Array:
    """Sum over the tokens of weight * -log softmax(logits)[target], in nats, float32.

    The plain reference, with the logits whole.
    """
    logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    nll_BT = -jnp.take_along_axis(logp_BTV, target_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(weight_BT != 0, nll_BT, 0) * weight_BT)


def head_logits(
    x_MD: jax.Array, head_VD: jax.Array, vocab: int, offset: jax.Array | int
) -> jax.Array:
    """x head^T in float32 [M, V]; columns beyond the true vocabulary (padding rows) are -inf.

    offset: global index of the head's first row.
    """
    logits_MV = jnp.einsum("md,vd->mv", x_MD, head_VD, preferred_element_type=jnp.float32)
    if isinstance(offset, int) and offset + head_VD.shape[0] <= vocab:
        return logits_MV  # no padding: a pass over the logits saved
    column_1V = jnp.arange(head_VD.shape[0])[None, :] + offset
    return jnp.where(column_1V < vocab, logits_MV, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def head_cross_entropy(
    x_MD: jax.Array,
    head_VD: jax.Array,
    target_M: jax.Array,
    weight_M: jax.Array,
    vocab: int,
    axis: str | None,
    chunk: int,
) -> jax.Array:
    """cross_entropy(x head^T, target, weight), in chunks of `chunk` tokens.

    Inside shard_map, vocabulary-parallel over the mesh axis `axis` (None: whole head): x is whole
    on every rank of the axis, head is this rank's [V / t, D] rows. Only one chunk's logits exist at
    a time. The gradients of a chunk are taken while its logits are there (the loss is linear in
    what comes from above), so the backward pass only multiplies. The gradient of x is this rank's
    part: the caller sums it over `axis` (sharding.copy_in). The head's is accumulated in float32.
    """
    return _chunked(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, False)[0]


def _chunked(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, with_gradients):
    M, D = x_MD.shape
    rows = head_VD.shape[0]
    offset = lax.axis_index(axis) * rows if axis else 0
    over = (lambda x, reduce: reduce(x, axis)) if axis else (lambda x, reduce: x)
    chunks = -(-M // chunk)
    chunk = -(-M // chunks)  # as even as they can be: few tokens are computed in vain
    padding = chunks * chunk - M  # the last chunk is filled up with tokens of weight 0

    def in_chunks(a):
        a = jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1))
        return a.reshape((chunks, chunk) + a.shape[1:])

    def one_chunk(dhead_VD, inputs):
        x_CD, target_C, weight_C = inputs
        logits_CV = head_logits(x_CD, head_VD, vocab, offset)
        top_C1 = over(jnp.max(logits_CV, axis=1, keepdims=True), lax.pmax)
        e_CV = jnp.exp(logits_CV - top_C1)
        z_C1 = over(jnp.sum(e_CV, axis=1, keepdims=True), lax.psum)
        local_C1 = (target_C - offset)[:, None]
        mine_C1 = (local_C1 >= 0) & (local_C1 < rows)
        picked_C1 = jnp.take_along_axis(logits_CV, jnp.clip(local_C1, 0, rows - 1), axis=1)
        picked_C1 = over(jnp.where(mine_C1, picked_C1, 0), lax.psum)
        nll_C = (jnp.log(z_C1) + top_C1 - picked_C1)[:, 0]
        loss = jnp.sum(jnp.where(weight_C != 0, nll_C, 0) * weight_C)
        if not with_gradients:
            return dhead_VD, (loss, ())
        onehot_CV = jnp.arange(rows)[None, :] == local_C1
        dlogits_CV = (e_CV / z_C1 - onehot_CV) * weight_C[:, None]
        dlogits_CV = dlogits_CV.astype(x_CD.dtype)  # rounded once, as autodiff does at the matmul
        dx_CD = jnp.einsum("cv,vd->cd", dlogits_CV, head_VD)
        dhead_VD += jnp.einsum("cv,cd->vd", dlogits_CV, x_CD, preferred_element_type=jnp.float32)
        return dhead_VD, (loss, dx_CD)

    start = jnp.zeros((rows, D) if with_gradients else (), jnp.float32)
    inputs = in_chunks(x_MD), in_chunks(target_M), in_chunks(weight_M)
    dhead_VD, (losses, dx) = lax.scan(one_chunk, start, inputs)
    return jnp.sum(losses), (dx.reshape(-1, D)[:M], dhead_VD) if with_gradients else None


def _forward(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk):
    loss, gradients = _chunked(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, True)
    return loss, (gradients, jnp.zeros((0,), head_VD.dtype))  # the empty array carries the dtype


def _backward(vocab, axis, chunk, residuals, g):
    (dx_MD, dhead_VD), head = residuals
    return (dx_MD * g).astype(dx_MD.dtype), (dhead_VD * g).astype(head.dtype), None, None


head_cross_entropy.defvjp(_forward, _backward)
