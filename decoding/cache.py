"""The forward with cached keys and values: prefill behind a prefix, decode steps, their weights.

Everything here runs inside shard_map on local shards, as model.py does, with weights whole over
data (model.make_layout with fsdp False). No gradients.
A cache holds kv heads before positions, [B, K, S, H], so that the keys of a head are contiguous. On
CPUs the products of one query are twenty times as fast as with heads behind positions.

LETTERS as in model.py; S is the room of a cache.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as Spec
from jax.typing import DTypeLike

import model
import sharding
from decoding.records import shared_length
from sharding import DATA, TENSOR

BLOCK = 256  # positions of a prefix that attention behind it reads at once
# attention within a row goes by so many queries at least, in so many parts at most
STRIP, STRIPS = 128, 4


def cache_heads(config: model.Config, layout: model.Layout) -> int:
    """Kv heads of a cache, all ranks together.

    Where there are fewer than ranks, each rank keeps the one that its queries read.
    """
    return layout.tensor if layout.attention and not layout.kv else config.K


def cache_spec(layout: model.Layout, rows: bool = True) -> Spec:
    """Spec of one layer's cached keys or values [B, K, S, H].

    rows False: of a prefix [K, S, H], the same on every data rank.
    """
    heads = TENSOR if layout.attention and layout.tensor > 1 else None
    return Spec(DATA, heads) if rows else Spec(heads)


# what `run_layer` multiplies at once
JOINED = {"wqkv": ("wq", "wk", "wv"), "bqkv": ("bq", "bk", "bv"), "w13": ("w1", "w3")}


def for_decoding(
    weights: dict, config: model.Config, mesh: jax.sharding.Mesh, layout: model.Layout
) -> tuple[dict, dict]:
    """The weights as decoding reads them fastest -> ({"layers": a dict a layer, others}, specs).

    A scan copies each layer out of the stack, and `run_layer` lays q, k, v (gate, up) side by side.
    Either costs as much as the multiplication for one token. So the layers are separate arrays and
    these matrices are joined, once; each rank joins its own shards.

    weights: stacked, or of load_weights with `apart`. It is emptied, a layer of a weight at a time.
    """
    stacked, table = layout.stacked(config), model.weight_table(config)
    groups = {n: tuple(m for m in parts if m in table) for n, parts in JOINED.items()}
    groups = {n: parts for n, parts in groups.items() if len(parts) > 1}
    joined = {part for parts in groups.values() for part in parts}
    groups |= {n: (n,) for n in table if table[n].layered and n not in joined}
    layers, specs = [{} for _ in range(config.L)], {}
    for name, parts in groups.items():
        # split where one of them is: the ranks' arrays differ then
        spec = Spec(*max((stacked[n] for n in parts), key=lambda s: len(sharding.axes_of(s)))[1:])
        in_specs = tuple(Spec(*stacked[n][1:]) for n in parts)

        def beside(*w):
            return jnp.concatenate(w, axis=-1)

        join = jax.jit(
            jax.shard_map(beside, mesh=mesh, in_specs=in_specs, out_specs=spec, check_vma=False)
        )
        pieces = [weights.pop(n) for n in parts]
        for i, layer in enumerate(layers):
            layer[name] = join(*(w[i] for w in pieces))
            for w in pieces:
                if isinstance(w, list):
                    w[i] = None
            jax.block_until_ready(layer[name])
        specs[name] = spec
    outer = {n: weights.pop(n) for n in list(weights)}
    outer_specs = {n: stacked[n] for n in outer}
    return outer | {"layers": layers}, outer_specs | {"layers": [specs] * config.L}


def over_layers(
    body: Callable,
    x_BTD: jax.Array,
    weights: dict,
    each: tuple | list,
    config: model.Config,
    layout: model.Layout,
    dtype: DTypeLike,
) -> tuple[jax.Array, tuple | list]:
    """x, y = body(x, a layer's weights, a layer's item of `each`) through the layers -> (x, ys).

    Stacked weights are scanned, and `each` and ys have a leading layer axis. Weights of
    `for_decoding` are unrolled, and these two are lists.
    """
    if "layers" not in weights:
        layers, _ = model.split_layers(weights, config)
        return lax.scan(
            lambda x, item: body(x, model.gather(item[0], layout, dtype), item[1]),
            x_BTD,
            (layers, each),
        )
    t, H, ys = layout.tensor, config.H, []
    NH, KH = config.N * H // (t if layout.attention else 1), config.K * H // (t if layout.kv else 1)
    for w, item in zip(weights["layers"], each, strict=True):
        w = dict(w)
        for name in [n for n in JOINED if n in w]:
            joined = w.pop(name)
            ends = [joined.shape[-1] // 2] if name == "w13" else [NH, NH + KH]
            # `run_layer` joins them again: XLA sees that it is the same array
            w |= dict(zip(JOINED[name], jnp.split(joined, ends, axis=-1), strict=True))
        x_BTD, y = body(x_BTD, w, item)
        ys.append(y)
    return x_BTD, ys


def visible(tree_BT: jax.Array, branch_BT: jax.Array) -> jax.Array:
    """[B, T, T] bool: a token sees those before it in its tree's trunk (branch 0) and own branch.

    Trees are texts that share their beginning; rows hold several.
    """
    at = jnp.arange(tree_BT.shape[1])

    def same(a):
        return a[:, :, None] == a[:, None, :]

    return (
        (at[None, :, None] >= at[None, None, :])
        & same(tree_BT)
        & (same(branch_BT) | (branch_BT[:, None, :] == 0))
    )


def attend_within(
    q_BTKGH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visible_BTT: jax.Array
) -> tuple[jax.Array, ...]:
    """A row's own visible keys attended, unfinished -> (maximum, sum, output) [B, K, T, G, X].

    In float32. It goes by strips of queries, each of which leaves out the tokens behind it.
    """
    T, parts = q_BTKGH.shape[1], []
    strip = max(-(-T // STRIPS), STRIP)
    for start in range(0, T, strip):
        end = min(start + strip, T)
        k_BSKH, v_BSKH = k_BTKH[:, :end], v_BTKH[:, :end]
        scores_BKTGS = jnp.einsum(
            "btkgh,bskh->bktgs", q_BTKGH[:, start:end], k_BSKH, preferred_element_type=jnp.float32
        )
        seen_BTS = visible_BTT[:, start:end, :end]
        scores_BKTGS = jnp.where(seen_BTS[:, None, :, None], scores_BKTGS, -jnp.inf)
        top_BKTG1 = jnp.max(scores_BKTGS, axis=-1, keepdims=True)
        e_BKTGS = jnp.exp(scores_BKTGS - top_BKTG1)
        out_BKTGH = jnp.einsum(
            "bktgs,bskh->bktgh",
            e_BKTGS.astype(v_BSKH.dtype),
            v_BSKH,
            preferred_element_type=jnp.float32,
        )
        parts.append((top_BKTG1, jnp.sum(e_BKTGS, axis=-1, keepdims=True), out_BKTGH))
    return tuple(jnp.concatenate(strips, axis=2) for strips in zip(*parts, strict=True))


def attend_after(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    visible_BTT: jax.Array,
    prefix: tuple[jax.Array, jax.Array],
    length: jax.Array | int,
    block: int = BLOCK,
) -> jax.Array:
    """Attention over a row's own visible keys and the first `length` of a prefix -> [B, T, N, H].

    visible_BTT: no token sees one that comes later in its row. prefix: (k_KSH, v_KSH), which all
    rows see. It is read by blocks with a running softmax in float32, as many blocks as `length`
    fills: one program serves every length.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    kp_KSH, vp_KSH = prefix
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H) * H**-0.5

    # [B, K, T, G, X] -> K, all queries of that head, X
    def flat(a):
        return jnp.moveaxis(a, 1, 0).reshape(K, B * T * (N // K), -1)

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

    start = tuple(map(flat, attend_within(q_BTKGH, k_BTKH, v_BTKH, visible_BTT)))
    _, sum_KM1, out_KMH = lax.fori_loop(0, (length + block - 1) // block, more, start)
    out_KBTGH = (out_KMH / sum_KM1).reshape(K, B, T, N // K, H)
    return jnp.moveaxis(out_KBTGH, 0, 2).reshape(B, T, N, H).astype(q_BTNH.dtype)


class Rows(NamedTuple):
    """New tokens that are read behind a prefix."""

    token_BT: jax.Array
    position_BT: jax.Array  # in the text, prefix included
    visible_BTT: jax.Array  # which of the new tokens a token sees


def prefill(
    weights: dict,
    rows: Rows,
    prefix: tuple | list,
    length: jax.Array | int,
    config: model.Config,
    layout: model.Layout,
    dtype: DTypeLike,
) -> tuple[jax.Array, tuple | list]:
    """Rows of new tokens behind a common prefix -> (final hidden [B, T, D], their keys and values).

    Keys and values: each layer's [B, K, T, H]. prefix: each layer's (k, v) [K, S, H], S a multiple
    of BLOCK, of which the first `length` are valid (0: no prefix).
    """
    _, outer = model.split_layers({n: w for n, w in weights.items() if n != "layers"}, config)
    outer = model.gather(outer, layout, dtype)
    program, rope = model.Program(config, layout), model.rope_of(rows.position_BT, config)
    x_BTD = model.embed_tokens(rows.token_BT, rows.position_BT, outer, program)

    def body(x_BTD, w, before):
        def attend(q, k, v):
            return attend_after(q, k, v, rows.visible_BTT, before, length), (
                jnp.swapaxes(k, 1, 2),
                jnp.swapaxes(v, 1, 2),
            )

        return model.run_layer(x_BTD, w, rope, attend, program)

    x_BTD, new = over_layers(body, x_BTD, weights, prefix, config, layout, dtype)
    return model.final_hidden(x_BTD, outer, program), new


def write(old_BKSH: jax.Array, new_BKH: jax.Array, position_B: jax.Array) -> jax.Array:
    """A cache with new keys or values at each row's position; none where that is beyond it.

    Head by head: of one row's heads at once, XLA's CPU compiler makes an update that it repeats for
    each of its users, on copies of the whole cache.
    """
    B, K = new_BKH.shape[:2]
    row_B1, head_1K = jnp.arange(B)[:, None], jnp.arange(K)[None]
    return old_BKSH.at[row_B1, head_1K, position_B[:, None]].set(new_BKH, mode="drop")


def decode_step(
    weights: dict,
    token_B: jax.Array,
    position_B: jax.Array,
    cache: tuple | list,
    config: model.Config,
    layout: model.Layout,
    dtype: DTypeLike,
) -> tuple[jax.Array, tuple | list]:
    """One token more in every row -> (final hidden [B, 1, D], cache).

    weights: of for_decoding. cache: a (k, v) [B, K, S, H] a layer; a row sees its positions up to
    this one.
    """
    outer = model.gather({n: w for n, w in weights.items() if n != "layers"}, layout, dtype)
    position_B1 = position_B[:, None]
    program, rope = model.Program(config, layout), model.rope_of(position_B1, config)
    x_B1D = model.embed_tokens(token_B[:, None], position_B1, outer, program)

    def body(x_B1D, w, kv):
        def attend(q_B1NH, k_B1KH, v_B1KH):
            k_BKSH, v_BKSH = (
                write(old, new[:, 0], position_B)
                for old, new in zip(kv, (k_B1KH, v_B1KH), strict=True)
            )
            B, K, S, H = k_BKSH.shape
            # keys first: XLA's CPU compiler lays the second operand out anew, here the small one
            scores_BKSG = jnp.einsum(
                "bksh,bkgh->bksg",
                k_BKSH,
                q_B1NH.reshape(B, K, -1, H),
                preferred_element_type=jnp.float32,
            )
            scores_BKGS = jnp.swapaxes(scores_BKSG, 2, 3) * H**-0.5
            scores_BKGS = jnp.where(
                (jnp.arange(S)[None] <= position_B1)[:, None, None], scores_BKGS, -jnp.inf
            )
            p_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(v_BKSH.dtype)
            return jnp.einsum("bkgs,bksh->bkgh", p_BKGS, v_BKSH).reshape(q_B1NH.shape), (
                k_BKSH,
                v_BKSH,
            )

        return model.run_layer(x_B1D, w, rope, attend, program)

    x_B1D, cache = over_layers(body, x_B1D, weights, cache, config, layout, dtype)
    return model.final_hidden(x_B1D, outer, program), cache


class PrefixCache:
    """Keys and values of what many texts begin with; the last prefix is kept for the next call.

    specs: of the weights, stacked or for_decoding's. pieces: how many tokens one program reads, in
    ascending order; all but the last piece of a prefix are of the largest size.
    """

    def __init__(self, config, mesh, layout, specs, dtype=jnp.float32, pieces=(BLOCK,)):
        self.config, self.mesh, self.layout, self.dtype = config, mesh, layout, dtype
        self.pieces, self.unrolled = pieces, "layers" in specs
        self.positions = -(-config.P // BLOCK) * BLOCK  # of a cache, at most
        most = self.positions + pieces[-1]  # a prefix's last piece may reach past them
        # positions of the arrays of a prefix: few sizes, since each is a program
        self.rooms = [n for k in range(16) if (n := BLOCK * 4**k) < most] + [most]
        one = cache_spec(layout, False)
        if self.unrolled:
            self.spec = [(one,) * 2] * config.L
        else:
            self.spec = (Spec(None, *one),) * 2
        smap = functools.partial(jax.shard_map, mesh=mesh, check_vma=False, out_specs=self.spec)
        self._read = jax.jit(smap(self._read_piece, in_specs=(specs, Spec(), self.spec, Spec())))
        self._put = jax.jit(
            smap(self._put_piece, in_specs=(self.spec, self.spec, Spec())), donate_argnums=0
        )
        self.kept = None  # (weights, ids, arrays, their room) of the last prefix

    def _read_piece(self, weights, token_T, prefix, length):
        one_1T = jnp.ones_like(token_T)[None]
        position_1T = length + jnp.arange(token_T.shape[0], dtype=jnp.int32)[None]
        rows = Rows(token_T[None], position_1T, visible(one_1T, one_1T))
        dims = self.config, self.layout, self.dtype
        _, new = prefill(weights, rows, prefix, length, *dims)
        return jax.tree.map(lambda a: a.squeeze(-4), new)

    def _put_piece(self, prefix, new, length):
        def put(old, new):
            at = old.ndim - 2
            return lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), length, axis=at)

        return jax.tree.map(put, prefix, new)

    def extend(
        self, weights: dict, token_T: np.ndarray, prefix: tuple | list, length: np.int32
    ) -> tuple | list:
        """The prefix, which is given away, with T more tokens, of which the last may be padding.

        It is read by one program and written by another: within one, XLA would copy it.
        """
        return self._put(prefix, self._read(weights, token_T, prefix, length), length)

    def empty(self, room: int) -> tuple | list:
        """Each layer's keys and values of a prefix of up to `room` tokens, none read yet."""
        shape = cache_heads(self.config, self.layout), room, self.config.H
        shape = shape if self.unrolled else (self.config.L, *shape)

        def is_spec(s):
            return isinstance(s, Spec)

        def zeros():
            return jax.tree.map(lambda _: jnp.zeros(shape, self.dtype), self.spec, is_leaf=is_spec)

        return jax.jit(zeros, out_shardings=sharding.shardings(self.spec, self.mesh))()

    def read(self, weights: dict, ids: list[int]) -> tuple | list:
        """Each layer's keys and values of `ids`; valid until the next call.

        Whole pieces that the last call has read already (with these very weights) are not read
        again, so the arrays are the same to the last bit whether they were there or not.
        """
        if not ids:
            return self.empty(BLOCK)
        most = self.pieces[-1]
        needed = -(-len(ids) // most) * most
        room = next(n for n in self.rooms if n >= needed)
        arrays, at = None, 0
        if self.kept and self.kept[0] is weights and self.kept[3] >= room:
            _, before, arrays, room = self.kept
            at = shared_length(before, ids) // most * most
        if arrays is None:
            arrays = self.empty(room)
        self.kept = None  # the arrays are given away piece by piece
        while at < len(ids):
            left = len(ids) - at
            piece = np.zeros(next((n for n in self.pieces if n >= left), most), np.int32)
            part = ids[at : at + len(piece)]
            piece[: len(part)] = part
            arrays = self.extend(weights, piece, arrays, np.int32(at))
            at += len(part)
        self.kept = weights, list(ids), arrays, room
        return arrays
