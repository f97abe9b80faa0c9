"""Causal attention: the plain reference, the blockwise form, and the kernels of GPUs and TPUs.

`pick_attention` says which of them runs where, `causal_attention` runs it. Softmax is computed in
float32; results come back in the dtype of the values. tests/kernels holds the reference to a
float64 NumPy loop and the others to the reference, in value and in every gradient.

LETTERS  those of model.py, and G query heads a kv head (N / K), X queries of one strip,
         Q rows of a strip's scores (X * G), Z kv heads of the batch (B * K).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name


def causal_mask(segment_BT: jax.Array) -> jax.Array:
    """[B, T, S] bool: key s is visible to query t where s <= t and both are of one segment.

    A segment is a document of a packed row.
    """
    T = segment_BT.shape[1]
    at = jnp.arange(T)
    return (at[None, :, None] >= at[None, None, :]) & (
        segment_BT[:, :, None] == segment_BT[:, None, :]
    )


def positions_of(segment_BT: jax.Array) -> jax.Array:
    """Position of each token within its segment, [B, T] int32."""
    T = segment_BT.shape[1]
    at = jnp.arange(T, dtype=jnp.int32)[None, :]
    starts = jnp.concatenate(
        [jnp.ones_like(segment_BT[:, :1], bool), segment_BT[:, 1:] != segment_BT[:, :-1]], axis=1
    )
    return at - lax.cummax(jnp.where(starts, at, 0), axis=1)


def reference_attention(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v with grouped heads: query head n reads kv head n // G.

    The plain reference, with a [T, S] matrix a head. mask_BTS bool (B may be 1): True where a key
    is visible; every query must see one key at least.
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


# --- blockwise ---


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blockwise_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BT: jax.Array | None,
    block: int = 128,
) -> jax.Array:
    """Causal attention without a [T, S] matrix: a block of queries against the keys up to its end.

    Blocks above the diagonal are not computed. segment_BT int32 or None (one document a row). Any
    T: the last block is shorter. The backward pass keeps the output and the log of the softmax's
    sum, and computes each strip of probabilities again. A kv head and the G query heads it serves
    are one product and one turn of a loop, so the strips of one are all that is in memory, and in
    the CPU's cache.
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
    """Masked scores [X * G, S] f32 of the X queries from `start` against keys 0..S.

    S is the end of the block.
    """
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

    def one_head(inputs):
        q_TGH, k_TH, v_TH, *segment = inputs
        outs, sums = [], []
        for start, end in _strips(T, block):
            scores_QS = _strip_scores(
                q_TGH[start:end], k_TH[:end], start, segment[0] if segment else None
            )
            top_Q1 = jnp.max(scores_QS, axis=1, keepdims=True)
            p_QS = jnp.exp(scores_QS - top_Q1)
            z_Q1 = jnp.sum(p_QS, axis=1, keepdims=True)
            product_QH = jnp.einsum(
                "qs,sh->qh", p_QS.astype(v_TH.dtype), v_TH[:end], preferred_element_type=jnp.float32
            )
            outs.append((product_QH / z_Q1).astype(v_TH.dtype))
            sums.append(top_Q1 + jnp.log(z_Q1))
        out_TGH = jnp.concatenate(outs).reshape(q_TGH.shape)
        return out_TGH, jnp.concatenate(sums).reshape(q_TGH.shape[:2])

    heads = (
        _by_kv_head(q_BTNH, K),
        _by_kv_head(k_BTKH, K)[:, :, 0],
        _by_kv_head(v_BTKH, K)[:, :, 0],
    )
    out_ZTGH, sum_ZTG = lax.map(one_head, heads + _each_head(segment_BT, K))
    # the names let model.SAVED keep both, so that the forward pass is not run again
    out_BTNH = checkpoint_name(_by_token(out_ZTGH, B), "attention")
    sum_ZTG = checkpoint_name(sum_ZTG, "attention")
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, segment_BT, out_BTNH, sum_ZTG)


def _blockwise_backward(block, residuals, g_BTNH):
    q_BTNH, k_BTKH, v_BTKH, segment_BT, out_BTNH, sum_ZTG = residuals
    B, T, _, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    f32_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def one_head(inputs):
        q_TGH, k_TH, v_TH, g_TGH, dot_TG, sum_TG, *segment = inputs
        # [H, T], from products with H rows: those with S rows run at half the speed on CPUs
        dq, dk_HT, dv_HT = [], jnp.zeros((H, T), jnp.float32), jnp.zeros((H, T), jnp.float32)
        for start, end in _strips(T, block):
            q_QH, g_QH = q_TGH[start:end].reshape(-1, H), g_TGH[start:end].reshape(-1, H)
            scores_QS = _strip_scores(
                q_TGH[start:end], k_TH[:end], start, segment[0] if segment else None
            )
            p_QS = jnp.exp(scores_QS - sum_TG[start:end].reshape(-1, 1))
            dv_HT = dv_HT.at[:, :end].add(f32_product("qh,qs->hs", g_QH, p_QS.astype(g_QH.dtype)))
            dp_QS = f32_product("qh,sh->qs", g_QH, v_TH[:end])
            ds_QS = (p_QS * (dp_QS - dot_TG[start:end].reshape(-1, 1)) * H**-0.5).astype(q_QH.dtype)
            dq.append(jnp.einsum("qs,sh->qh", ds_QS, k_TH[:end]))
            dk_HT = dk_HT.at[:, :end].add(f32_product("qh,qs->hs", q_QH, ds_QS))
        return (
            jnp.concatenate(dq).reshape(q_TGH.shape),
            dk_HT.T[:, None].astype(k_TH.dtype),
            dv_HT.T[:, None].astype(v_TH.dtype),
        )

    # the sum over s of p * dp equals out . dout: no strip is needed for it
    dot_BTN1 = jnp.sum(
        g_BTNH.astype(jnp.float32) * out_BTNH.astype(jnp.float32), axis=-1, keepdims=True
    )
    heads = (
        _by_kv_head(q_BTNH, K),
        _by_kv_head(k_BTKH, K)[:, :, 0],
        _by_kv_head(v_BTKH, K)[:, :, 0],
        _by_kv_head(g_BTNH, K),
        _by_kv_head(dot_BTN1, K)[..., 0],
        sum_ZTG,
    )
    gradients = lax.map(one_head, heads + _each_head(segment_BT, K))
    return *(_by_token(gradient, B) for gradient in gradients), None


blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)


# --- accelerators ---


def splash_attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segment_BT: jax.Array | None
) -> jax.Array:
    """Causal attention by the Pallas kernel that ships with jax for TPUs; inside shard_map.

    T and H must divide by 128. segment_BT int32 or None.
    """
    # not needed elsewhere, and slow to import
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    T, N, H = q_BTNH.shape[1:]
    size = next(s for s in (512, 256, 128) if T % s == 0)
    names = """block_q block_kv block_kv_compute block_q_dkv block_kv_dkv block_kv_dkv_compute
        block_q_dq block_kv_dq"""
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((T, T))] * N),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash.BlockSizes(**dict.fromkeys(names.split(), size)),
        residual_checkpoint_name="attention",
    )
    q_BNTH = (q_BTNH * jnp.asarray(H**-0.5, q_BTNH.dtype)).swapaxes(1, 2)
    k_BKTH, v_BKTH = k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2)
    if segment_BT is None:
        return jax.vmap(kernel)(q_BNTH, k_BKTH, v_BKTH).swapaxes(1, 2)

    def one_row(q_NTH, k_KTH, v_KTH, segment_T):
        return kernel(q_NTH, k_KTH, v_KTH, splash.SegmentIds(q=segment_T, kv=segment_T))

    return jax.vmap(one_row)(q_BNTH, k_BKTH, v_BKTH, segment_BT).swapaxes(1, 2)


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segment_BT: jax.Array,
    packed: bool,
    kernel: str,
) -> jax.Array:
    """Attention of whole rows by one of the kernels; packed: the rows hold several segments."""
    if kernel == "cudnn":
        # cuDNN takes 16-bit types only, and segments as a mask of all pairs, one for all heads.
        mask_B1TS = causal_mask(segment_BT)[:, None] if packed else None
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, mask=mask_B1TS, is_causal=True, implementation="cudnn"
        )
    if kernel == "pallas":
        return splash_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT if packed else None)
    if kernel == "reference":
        return reference_attention(q_BTNH, k_BTKH, v_BTKH, causal_mask(segment_BT))
    return blockwise_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT if packed else None)


def pick_attention(requested: str, platform: str, dtype: str, T: int, H: int) -> str:
    """The kernel that `auto` means on this platform, or the one requested.

    T, H: what pallas must fit. ValueError where the requested kernel cannot run.
    """
    fits = T % 128 == 0 and H % 128 == 0
    cudnn = platform == "gpu" and dtype == "bfloat16"
    if requested == "auto":
        if platform == "tpu" and fits:
            return "pallas"
        return "cudnn" if cudnn else "blockwise"
    if requested == "cudnn" and not cudnn:
        raise ValueError(
            "--attention cudnn needs an NVIDIA GPU and --dtype bfloat16, "
            f"here is {platform} and {dtype}: use --attention auto"
        )
    if requested == "pallas" and (platform != "tpu" or not fits):
        raise ValueError(
            "--attention pallas needs a TPU, a block and a head size that divide by 128, "
            f"here is {platform}, {T} and {H}: use --attention auto"
        )
    return requested
