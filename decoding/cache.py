"""The forward with cached keys and values, for evaluation: rows behind a common prefix, one token more a row, weights laid out for decoding.

Everything here runs inside shard_map on local shards, as model.py does, with weights whole over data (model.make_layout with fsdp False). A cache holds kv heads before
positions, [B, K, S, H], so that a head's keys lie together: on CPUs the products of one query are twenty times as fast as with heads behind positions. No gradients.

LETTERS as in model.py; S is the room of a cache.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

import model
import sharding
from sharding import DATA, TENSOR


def cache_heads(config, layout):
    """Kv heads of a cache, all ranks together: where there are fewer than ranks, each rank keeps the one that its queries read."""
    return layout.tensor if layout.attention and not layout.kv else config.K


def cache_spec(layout, rows=True):
    """Spec of one layer's cached keys or values [B, K, S, H] (rows False: [K, S, H], the same on every data rank)."""
    heads = TENSOR if layout.attention and layout.tensor > 1 else None
    return P(DATA, heads) if rows else P(heads)


TOGETHER = {
    "wqkv": ("wq", "wk", "wv"),
    "bqkv": ("bq", "bk", "bv"),
    "w13": ("w1", "w3"),
}  # what `block` multiplies at once


def for_decoding(weights, config, mesh, layout):
    """The weights as decoding wants them, where reading them is all the time: {"layers": a dict a layer, and the others}; `weights` is emptied on the way.

    A scan copies each layer out of the stack, and `block` lays q, k, v (gate, up) side by side: both would cost as much as the multiplication for one token. So the layers
    are apart and these matrices joined, once; each rank joins what it holds. Returns (weights, their specs).
    """
    stacked, table = layout.stacked(config), model.weight_table(config)
    groups = {n: tuple(m for m in parts if m in table) for n, parts in TOGETHER.items()}
    groups = {n: parts for n, parts in groups.items() if len(parts) > 1}
    groups |= {
        n: (n,)
        for n in table
        if table[n].layered and not any(n in parts for parts in groups.values())
    }
    layers, specs = [{} for _ in range(config.L)], {}
    for name, parts in groups.items():
        spec = max(
            (stacked[n] for n in parts), key=lambda s: len(sharding.axes_of(s))
        )  # split where one of them is: the ranks' arrays differ then
        spec = P(*spec[1:])

        def apart(*w, spec=spec):
            cut = lambda *w: [jnp.concatenate([m[i] for m in w], axis=-1) for i in range(config.L)]
            return jax.shard_map(
                cut,
                mesh=mesh,
                in_specs=tuple(stacked[n] for n in parts),
                out_specs=spec,
                check_vma=False,
            )(*w)

        for layer, w in zip(layers, jax.jit(apart)(*(weights.pop(n) for n in parts)), strict=True):
            layer[name] = w
        specs[name] = spec
    outer = {n: weights.pop(n) for n in list(weights)}
    return outer | {"layers": layers}, {n: stacked[n] for n in outer} | {
        "layers": [specs] * config.L
    }


def over_layers(body, x_BTD, weights, each, config, layout, dtype):
    """x, kept = body(x, one layer's weights, one layer's item of `each`) through the layers; -> (x, what was kept).

    Stacked weights are scanned, `each` and what is kept have a leading layer axis; weights of `for_decoding` are unrolled, and these two are lists.
    """
    if "layers" not in weights:
        layers, _ = model.split_layers(weights, config)
        return lax.scan(
            lambda x, item: body(x, model.gather(item[0], layout, dtype), item[1]),
            x_BTD,
            (layers, each),
        )
    t, H, kept = layout.tensor, config.H, []
    NH, KH = config.N * H // (t if layout.attention else 1), config.K * H // (t if layout.kv else 1)
    for w, item in zip(weights["layers"], each, strict=True):
        w = dict(w)
        for name in [n for n in TOGETHER if n in w]:
            joined = w.pop(name)
            ends = [joined.shape[-1] // 2] if name == "w13" else [NH, NH + KH]
            w |= dict(
                zip(TOGETHER[name], jnp.split(joined, ends, axis=-1), strict=True)
            )  # `block` joins them again: XLA sees that it is the same array
        x_BTD, y = body(x_BTD, w, item)
        kept.append(y)
    return x_BTD, kept


def visible(tree_BT, branch_BT):
    """[B, T, T] bool: a token sees those before it in its tree, of the trunk (branch 0) and of its own branch. Trees are texts that share their beginning; rows hold several."""
    at = jnp.arange(tree_BT.shape[1])
    same = lambda a: a[:, :, None] == a[:, None, :]
    return (
        (at[None, :, None] >= at[None, None, :])
        & same(tree_BT)
        & (same(branch_BT) | (branch_BT[:, None, :] == 0))
    )


def attend_after(q_BTNH, k_BTKH, v_BTKH, visible_BTT, prefix, length, block=256):
    """kernels.attention over a row's own visible keys and the first `length` of a prefix (k_KSH, v_KSH) that all rows see: [B, T, N, H].

    The prefix goes by blocks with a running softmax in float32, as many blocks as `length` fills: one program for every length.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    kp_KSH, vp_KSH = prefix
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    flat = lambda a: jnp.moveaxis(a, 1, 0).reshape(
        K, B * T * (N // K), -1
    )  # [B, K, T, G, X] -> K, all queries of that head, X
    scores_BKTGS = jnp.einsum(
        "btkgh,bskh->bktgs", q_BTKGH, k_BTKH, preferred_element_type=jnp.float32
    )
    scores_BKTGS = jnp.where(visible_BTT[:, None, :, None], scores_BKTGS, -jnp.inf)
    top_BKTG1 = jnp.max(scores_BKTGS, axis=-1, keepdims=True)
    e_BKTGS = jnp.exp(scores_BKTGS - top_BKTG1)
    out_BKTGH = jnp.einsum(
        "bktgs,bskh->bktgh",
        e_BKTGS.astype(v_BTKH.dtype),
        v_BTKH,
        preferred_element_type=jnp.float32,
    )
    q_KMH = flat(jnp.swapaxes(q_BTKGH, 1, 2))

    def more(i, state):
        top_KM1, sum_KM1, out_KMH = state
        k, v = (lax.dynamic_slice_in_dim(a, i * block, block, axis=1) for a in (kp_KSH, vp_KSH))
        scores_KMS = jnp.einsum("kmh,ksh->kms", q_KMH, k, preferred_element_type=jnp.float32)
        scores_KMS = jnp.where(
            (i * block + jnp.arange(block) < length)[None, None], scores_KMS, -jnp.inf
        )
        new_KM1 = jnp.maximum(top_KM1, jnp.max(scores_KMS, axis=-1, keepdims=True))
        e_KMS, shrink_KM1 = jnp.exp(scores_KMS - new_KM1), jnp.exp(top_KM1 - new_KM1)
        out_KMH = out_KMH * shrink_KM1 + jnp.einsum(
            "kms,ksh->kmh", e_KMS.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return new_KM1, sum_KM1 * shrink_KM1 + jnp.sum(e_KMS, axis=-1, keepdims=True), out_KMH

    start = flat(top_BKTG1), flat(jnp.sum(e_BKTGS, axis=-1, keepdims=True)), flat(out_BKTGH)
    _, sum_KM1, out_KMH = lax.fori_loop(0, (length + block - 1) // block, more, start)
    out_KBTGH = (out_KMH / sum_KM1).reshape(K, B, T, N // K, H)
    return jnp.moveaxis(out_KBTGH, 0, 2).reshape(B, T, N, H).astype(q_BTNH.dtype)


def read(weights, token_BT, position_BT, visible_BTT, prefix, length, config, layout, dtype):
    """Rows of new tokens behind a common prefix -> (final hidden [B, T, D], each layer's keys and values of the new tokens [B, K, T, H]).

    position_BT: place in the text, prefix included. prefix: each layer's (k, v) [K, S, H], S a multiple of 256, of which the first `length` hold (0: no prefix).
    """
    _, outer = model.split_layers({n: w for n, w in weights.items() if n != "layers"}, config)
    outer = model.gather(outer, layout, dtype)
    rope = model.rope_of(position_BT, config)
    x_BTD = model.embed(token_BT, position_BT, outer, config, layout, False)

    def body(x_BTD, w, before):
        def attend(q, k, v):
            return attend_after(q, k, v, visible_BTT, before, length), (
                jnp.swapaxes(k, 1, 2),
                jnp.swapaxes(v, 1, 2),
            )

        return model.block(x_BTD, w, rope, attend, config, layout, False)

    x_BTD, kept = over_layers(body, x_BTD, weights, prefix, config, layout, dtype)
    return model.final_hidden(x_BTD, outer, config, layout, False), kept


def read_next(weights, token_B, position_B, cache, config, layout, dtype):
    """One token more in every row -> (final hidden [B, 1, D], cache). weights: of for_decoding. cache: a (k, v) [B, K, S, H] a layer; a row sees its positions up to this one."""
    outer = model.gather({n: w for n, w in weights.items() if n != "layers"}, layout, dtype)
    position_B1 = position_B[:, None]
    rope = model.rope_of(position_B1, config)
    x_B1D = model.embed(token_B[:, None], position_B1, outer, config, layout, False)
    row_B = jnp.arange(token_B.shape[0])

    def body(x_B1D, w, kv):
        def attend(q_B1NH, k_B1KH, v_B1KH):
            k_BKSH, v_BKSH = (
                old.at[row_B, :, position_B].set(new[:, 0], mode="drop")
                for old, new in zip(kv, (k_B1KH, v_B1KH), strict=True)
            )
            B, K, S, H = k_BKSH.shape
            scores_BKGS = (
                jnp.einsum(
                    "bkgh,bksh->bkgs",
                    q_B1NH.reshape(B, K, -1, H),
                    k_BKSH,
                    preferred_element_type=jnp.float32,
                )
                * H**-0.5
            )
            scores_BKGS = jnp.where(
                (jnp.arange(S)[None] <= position_B1)[:, None, None], scores_BKGS, -jnp.inf
            )
            p_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(v_BKSH.dtype)
            return jnp.einsum("bkgs,bksh->bkgh", p_BKGS, v_BKSH).reshape(q_B1NH.shape), (
                k_BKSH,
                v_BKSH,
            )

        return model.block(x_B1D, w, rope, attend, config, layout, False)

    x_B1D, cache = over_layers(body, x_B1D, weights, cache, config, layout, dtype)
    return model.final_hidden(x_B1D, outer, config, layout, False), cache


def make_prefix(config, mesh, layout, specs, dtype=jnp.float32):
    """(empty(S) -> each layer's keys and values of a prefix of up to S tokens; jitted extend(weights, token_T, prefix, length) -> prefix with T more tokens, in place).

    specs: of the weights, stacked or for_decoding's. The last tokens may be padding: whoever reads the prefix says how long it is.
    """
    unrolled = "layers" in specs
    spec = (
        [(cache_spec(layout, False),) * 2] * config.L
        if unrolled
        else (P(None, *cache_spec(layout, False)),) * 2
    )

    def empty(S):
        shape = (cache_heads(config, layout), S, config.H)
        make = lambda: jax.tree.map(
            lambda _: jnp.zeros(shape if unrolled else (config.L, *shape), dtype),
            spec,
            is_leaf=lambda s: isinstance(s, P),
        )
        return jax.jit(make, out_shardings=sharding.shardings(spec, mesh))()

    def local(weights, token_T, prefix, length):
        one_1T = jnp.ones_like(token_T)[None]
        position_1T = length + jnp.arange(token_T.shape[0], dtype=jnp.int32)[None]
        _, new = read(
            weights,
            token_T[None],
            position_1T,
            visible(one_1T, one_1T),
            prefix,
            length,
            config,
            layout,
            dtype,
        )
        put = lambda old, new: lax.dynamic_update_slice_in_dim(
            old, new.squeeze(-4).astype(old.dtype), length, axis=old.ndim - 2
        )
        return jax.tree.map(put, prefix, new)

    return empty, jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(specs, P(), spec, P()), out_specs=spec, check_vma=False
        ),
        donate_argnums=2,
    )
