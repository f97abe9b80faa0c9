"""The arithmetic as pure functions: norms, RoPE, attention, activations, cross-entropy.

Nothing here knows of configs, weights' names or files. Every function is held to a float64 NumPy loop in tests/test_kernels.py, in value and in
every gradient. Norms, softmax, logits and loss are computed in float32 whatever the dtype of their inputs; results come back in the inputs' dtype.

LETTERS  B batch  T query time  S key time  D model  F ffn  N heads  K kv heads  G query heads a kv head (N / K)  H head size  V vocab  M tokens (B * T).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def rms_norm(x_BTD, scale_D, eps):
    """x / RMS(x) * scale over the last axis; float32 inside. Source: arXiv 1910.07467, as in LLaMA."""
    x = x_BTD.astype(jnp.float32)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    # Hugging Face rounds to the compute dtype before the scale; one rounding at the end loses less, and in float32 the two agree.
    return (y * broadcast_last(scale_D, x.ndim)).astype(x_BTD.dtype)


def layer_norm(x_BTD, scale_D, bias_D, eps):
    """(x - mean) / std * scale + bias over the last axis; float32 inside; the variance is the biased one."""
    x = x_BTD.astype(jnp.float32)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return (y * broadcast_last(scale_D, x.ndim) + broadcast_last(bias_D, x.ndim)).astype(
        x_BTD.dtype
    )


def broadcast_last(v_D, ndim):
    """A vector as [1, ..., 1, D] in float32: broadcasting is written out, since silent rank promotion hides mistakes."""
    return v_D.astype(jnp.float32).reshape((1,) * (ndim - 1) + v_D.shape)


# ------------------------------------------------------------------------------------------------------------------ RoPE


def rope_table(positions_BT, head_size, theta, scaling=None):
    """cos and sin [B, T, H/2] f32 of position * theta^(-2i/H), i the pair.

    scaling: None or (factor, low, high, original) as in Llama 3.1: wavelengths beyond original / low are stretched by `factor`, those below original / high
    are kept, and between them the two are blended linearly. Source: Hugging Face modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    frequency = theta ** -(jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    if scaling is not None:
        factor, low, high, original = scaling
        keep = (original * frequency / (2 * jnp.pi) - low) / (
            high - low
        )  # 1 at the short wavelengths, 0 at the long
        keep = jnp.clip(keep, 0.0, 1.0)
        frequency = frequency * (keep + (1 - keep) / factor)
    angle = positions_BT.astype(jnp.float32)[..., None] * frequency[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rope_half(x_BTNH, cos_BTh, sin_BTh):
    """Rotate the pairs (i, i + H/2): Hugging Face's layout, and the one this project's weights are in."""
    x = x_BTNH.astype(jnp.float32)
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def rope_interleaved(x_BTNH, cos_BTh, sin_BTh):
    """Rotate the neighbouring pairs (2i, 2i + 1): Meta's, EasyLM's and llama2.c's layout. checkpoint.py permutes such weights to half-split; this is its reference."""
    x = x_BTNH.astype(jnp.float32)
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    return (
        jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
        .reshape(x.shape)
        .astype(x_BTNH.dtype)
    )


# ------------------------------------------------------------------------------------------------------------- attention


def causal_mask(segment_BT):
    """[B, T, S] bool: key s is visible to query t where s <= t and both belong to one segment (a document of a packed row)."""
    T = segment_BT.shape[1]
    at = jnp.arange(T)
    return (at[None, :, None] >= at[None, None, :]) & (
        segment_BT[:, :, None] == segment_BT[:, None, :]
    )


def attention(q_BTNH, k_BSKH, v_BSKH, mask_BTS):
    """softmax(q k^T / sqrt(H)) v with grouped heads: query head n reads kv head n // G. The plain reference, a [T, S] matrix a head.

    mask_BTS bool (B may be 1): True where a key is visible; every query must see one key at least. Softmax in float32.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = (
        jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
        * H**-0.5
    )
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, -jnp.inf)
    p_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", p_BKGTS, v_BSKH).reshape(B, T, N, H)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT, block=128):
    """Causal `attention` without a [T, S] matrix: one block of queries at a time against the keys up to its end, so blocks above the diagonal are not computed.

    segment_BT int32 or None (one document a row). The backward pass keeps the output and the log of the softmax's sum, and computes each strip of probabilities
    again. A kv head and the G query heads it serves are one product, and one turn of a loop: the strips of one are all that is in memory, and in the CPU's cache.
    Any T: the last block is shorter. Softmax in float32.
    """
    return _blockwise_forward(q_BTNH, k_BTKH, v_BTKH, segment_BT, block)[0]


def _by_kv_head(x_BTNH, K):
    """[B, T, N, H] -> [B * K, T, G, H]."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B * K, T, N // K, H)


def _by_token(x_ZTGH, B):
    """[B * K, T, G, H] -> [B, T, N, H]."""
    Z, T, G, H = x_ZTGH.shape
    return x_ZTGH.reshape(B, Z // B, T, G, H).transpose(0, 2, 1, 3, 4).reshape(B, T, Z // B * G, H)


def _strips(T, block):
    """(start, end) of the blocks of queries; each sees the keys up to its own end."""
    return [(start, min(start + block, T)) for start in range(0, T, block)]


def _strip_scores(q_XGH, k_SH, start, segment_T):
    """Masked scores [X * G, S] f32 of the queries from `start` (X of them) against keys 0..S, S the end of the block."""
    X, G, H = q_XGH.shape
    S = k_SH.shape[0]
    scores_QS = (
        jnp.einsum("qh,sh->qs", q_XGH.reshape(X * G, H), k_SH, preferred_element_type=jnp.float32)
        * H**-0.5
    )
    visible_XS = (start + jnp.arange(X))[:, None] >= jnp.arange(S)[None, :]
    if segment_T is not None:
        visible_XS = visible_XS & (segment_T[start : start + X, None] == segment_T[None, :S])
    return jnp.where(visible_XS[:, None, :], scores_QS.reshape(X, G, S), -jnp.inf).reshape(X * G, S)


def _each_head(segment_BT, K):
    return () if segment_BT is None else (jnp.repeat(segment_BT, K, axis=0),)


def _blockwise_forward(q_BTNH, k_BTKH, v_BTKH, segment_BT, block):
    B, T, _, H = q_BTNH.shape
    K = k_BTKH.shape[2]

    def one(inputs):
        q_TGH, k_TH, v_TH, *segment = inputs
        outs, sums = [], []
        for start, end in _strips(T, block):
            scores_QS = _strip_scores(
                q_TGH[start:end], k_TH[:end], start, segment[0] if segment else None
            )
            top_Q1 = jnp.max(scores_QS, axis=1, keepdims=True)
            p_QS = jnp.exp(scores_QS - top_Q1)
            z_Q1 = jnp.sum(p_QS, axis=1, keepdims=True)
            out_QH = (
                jnp.einsum(
                    "qs,sh->qh",
                    p_QS.astype(v_TH.dtype),
                    v_TH[:end],
                    preferred_element_type=jnp.float32,
                )
                / z_Q1
            )
            outs.append(out_QH.astype(v_TH.dtype))
            sums.append(top_Q1 + jnp.log(z_Q1))
        return jnp.concatenate(outs).reshape(q_TGH.shape), jnp.concatenate(sums).reshape(
            q_TGH.shape[:2]
        )

    heads = (
        _by_kv_head(q_BTNH, K),
        _by_kv_head(k_BTKH, K)[:, :, 0],
        _by_kv_head(v_BTKH, K)[:, :, 0],
    )
    out_ZTGH, sum_ZTG = lax.map(one, heads + _each_head(segment_BT, K))
    out_BTNH, sum_ZTG = (
        checkpoint_name(_by_token(out_ZTGH, B), "attention"),
        checkpoint_name(sum_ZTG, "attention"),
    )  # model.KEPT
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, segment_BT, out_BTNH, sum_ZTG)


def _blockwise_backward(block, kept, g_BTNH):
    q_BTNH, k_BTKH, v_BTKH, segment_BT, out_BTNH, sum_ZTG = kept
    B, T, _, H = q_BTNH.shape
    K = k_BTKH.shape[2]

    def one(inputs):
        q_TGH, k_TH, v_TH, g_TGH, out_TGH, sum_TG, *segment = inputs
        # the sum over s of p * dp equals out . dout: no strip is needed for it
        dot_TG = jnp.sum(g_TGH.astype(jnp.float32) * out_TGH.astype(jnp.float32), axis=-1)
        dq, dk_TH, dv_TH = [], jnp.zeros((T, H), jnp.float32), jnp.zeros((T, H), jnp.float32)
        for start, end in _strips(T, block):
            q_QH, g_QH = q_TGH[start:end].reshape(-1, H), g_TGH[start:end].reshape(-1, H)
            p_QS = jnp.exp(
                _strip_scores(q_TGH[start:end], k_TH[:end], start, segment[0] if segment else None)
                - sum_TG[start:end].reshape(-1, 1)
            )
            dv_TH = dv_TH.at[:end].add(
                jnp.einsum(
                    "qs,qh->sh", p_QS.astype(g_QH.dtype), g_QH, preferred_element_type=jnp.float32
                )
            )
            dp_QS = jnp.einsum("qh,sh->qs", g_QH, v_TH[:end], preferred_element_type=jnp.float32)
            ds_QS = (p_QS * (dp_QS - dot_TG[start:end].reshape(-1, 1)) * H**-0.5).astype(q_QH.dtype)
            dq.append(jnp.einsum("qs,sh->qh", ds_QS, k_TH[:end]))
            dk_TH = dk_TH.at[:end].add(
                jnp.einsum("qs,qh->sh", ds_QS, q_QH, preferred_element_type=jnp.float32)
            )
        return (
            jnp.concatenate(dq).reshape(q_TGH.shape),
            dk_TH[:, None].astype(k_TH.dtype),
            dv_TH[:, None].astype(v_TH.dtype),
        )

    heads = (
        _by_kv_head(q_BTNH, K),
        _by_kv_head(k_BTKH, K)[:, :, 0],
        _by_kv_head(v_BTKH, K)[:, :, 0],
        _by_kv_head(g_BTNH, K),
        _by_kv_head(out_BTNH, K),
        sum_ZTG,
    )
    return *(_by_token(d, B) for d in lax.map(one, heads + _each_head(segment_BT, K))), None


blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)


def splash_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT):
    """Causal attention by the Pallas kernel that ships with jax for TPUs; inside shard_map. T and H must divide by 128; segment_BT int32 or None."""
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,  # not needed elsewhere, and slow to import
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, N, H = q_BTNH.shape[1:]
    size = next(s for s in (512, 256, 128) if T % s == 0)
    names = "block_q block_kv block_kv_compute block_q_dkv block_kv_dkv block_kv_dkv_compute block_q_dq block_kv_dq"
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, T))] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**dict.fromkeys(names.split(), size)),
        residual_checkpoint_name="attention",
    )
    heads_first = lambda x: x.swapaxes(1, 2)
    q, k, v = (
        heads_first(q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)),
        heads_first(k_BTKH),
        heads_first(v_BTKH),
    )
    if segment_BT is None:
        return heads_first(jax.vmap(kernel)(q, k, v))
    return heads_first(
        jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(q=s, kv=s)))(
            q, k, v, segment_BT
        )
    )


# ----------------------------------------------------------------------------------------------------------- activations


def swiglu(gate, up):
    """silu(gate) * up, the sigmoid in float32."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def gelu_tanh(x):
    """GPT-2's GELU: the tanh approximation, not the erf."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


# ------------------------------------------------------------------------------------------------------------- embedding


@jax.custom_vjp
def lookup(table_VD, index_BT):
    """table[index] [B, T, D]; an index outside the table gives 0 (another rank holds that row). The table's gradient is summed in float32 and rounded once."""
    V = table_VD.shape[0]
    inside_BT = (index_BT >= 0) & (index_BT < V)
    return jnp.where(inside_BT[..., None], table_VD[jnp.clip(index_BT, 0, V - 1)], 0)


def _lookup_forward(table_VD, index_BT):
    return lookup(table_VD, index_BT), (index_BT, jnp.zeros((table_VD.shape[0], 0), table_VD.dtype))


def _lookup_backward(kept, g_BTD):
    index_BT, like = kept
    V = like.shape[0]
    # negative indices would count from the end: every index outside goes to row V, which mode="drop" leaves out
    index_BT = jnp.where((index_BT >= 0) & (index_BT < V), index_BT, V)
    dtable_VD = (
        jnp.zeros((V, g_BTD.shape[-1]), jnp.float32)
        .at[index_BT]
        .add(g_BTD.astype(jnp.float32), mode="drop")
    )
    return dtable_VD.astype(like.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


# --------------------------------------------------------------------------------------------------------- cross-entropy


def cross_entropy(logits_BTV, target_BT, weight_BT):
    """Sum over the tokens of weight * -log softmax(logits)[target], in nats, float32: the plain reference, with the logits whole."""
    logp_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32), axis=-1)
    nll_BT = -jnp.take_along_axis(logp_BTV, target_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(weight_BT != 0, nll_BT, 0) * weight_BT)


def head_logits(x_MD, head_VD, vocab, offset):
    """x head^T in float32 [M, V]; columns beyond the true vocabulary (padding rows of the head) are -inf. offset: global index of the head's first row."""
    logits_MV = jnp.einsum("md,vd->mv", x_MD, head_VD, preferred_element_type=jnp.float32)
    column_1V = jnp.arange(head_VD.shape[0])[None, :] + offset
    return jnp.where(column_1V < vocab, logits_MV, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def head_cross_entropy(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk):
    """cross_entropy(x head^T, target, weight), vocabulary-parallel over the mesh axis `axis` (None: whole head), in chunks of `chunk` tokens.

    Inside shard_map: x whole on every rank of the axis, head this rank's [V / t, D] rows. Only one chunk's logits exist at a time: the gradients of the chunk are taken
    while its logits are there (the loss is linear in what comes from above), so the backward pass only multiplies. The gradient of x is this rank's part: the caller
    sums it over `axis` (sharding.copy_in). The head's gradient is accumulated in float32.
    """
    return _head_cross_entropy(
        x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, with_gradients=False
    )[0]


def _head_cross_entropy(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, with_gradients):
    M, D = x_MD.shape
    rows = head_VD.shape[0]
    offset = lax.axis_index(axis) * rows if axis else 0
    over = (lambda x, reduce: reduce(x, axis)) if axis else (lambda x, reduce: x)
    chunks = -(-M // chunk)
    chunk = -(-M // chunks)  # as even as they can be: few tokens are computed in vain
    padded = chunks * chunk - M  # the last chunk is filled up with tokens of weight 0
    pad = lambda a: jnp.pad(a, ((0, padded),) + ((0, 0),) * (a.ndim - 1)).reshape(
        (chunks, chunk) + a.shape[1:]
    )

    def one(dhead_VD, inputs):
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
        dlogits_CV = ((e_CV / z_C1 - onehot_CV) * weight_C[:, None]).astype(
            x_CD.dtype
        )  # rounded once, as autodiff does at the matmul
        dx_CD = jnp.einsum("cv,vd->cd", dlogits_CV, head_VD)
        dhead_VD += jnp.einsum("cv,cd->vd", dlogits_CV, x_CD, preferred_element_type=jnp.float32)
        return dhead_VD, (loss, dx_CD)

    start = jnp.zeros((rows, D) if with_gradients else (), jnp.float32)
    dhead_VD, (losses, dx) = lax.scan(one, start, (pad(x_MD), pad(target_M), pad(weight_M)))
    return jnp.sum(losses), (dx.reshape(-1, D)[:M], dhead_VD) if with_gradients else None


def _head_cross_entropy_forward(x_MD, head_VD, target_M, weight_M, vocab, axis, chunk):
    loss, gradients = _head_cross_entropy(
        x_MD, head_VD, target_M, weight_M, vocab, axis, chunk, with_gradients=True
    )
    return loss, (gradients, jnp.zeros((0,), head_VD.dtype))


def _head_cross_entropy_backward(vocab, axis, chunk, kept, g):
    (dx_MD, dhead_VD), head = kept
    return (dx_MD * g).astype(dx_MD.dtype), (dhead_VD * g).astype(head.dtype), None, None


head_cross_entropy.defvjp(_head_cross_entropy_forward, _head_cross_entropy_backward)
