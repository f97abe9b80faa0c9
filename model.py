"""LLaMA and GPT-2: configs, the weight table, initialisation, the forward pass, and the loss of a batch with its gradients.

`python model.py llama-7b` prints a preset's weight table. Everything about a weight (shape, how it is split over the mesh, initialiser, decay) stands in its one row of `weight_table`; a weight without a row raises.

The functions that take `weights` run inside shard_map on local shards (`layout` says what is split); the gradient is taken there, by hand over the stack of layers:
the forward scan keeps each layer's input only, the reverse scan gathers the layer again, takes its vjp, and scatters its weight gradient at once.

LETTERS  B batch  T query time  S key time  D model  F ffn  N heads  K kv heads  H head size  L layers  V vocab  P positions.  NH = N * H, KH = K * H.
Shapes in names are local to the rank.
"""

import argparse
import dataclasses
import functools
import math
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as Spec

import sharding
from kernels.attention import causal_attention, causal_mask, positions_of, reference_attention
from kernels.layers import gelu_tanh, layer_norm, lookup, rms_norm, rope_half, rope_table, swiglu
from kernels.loss import head_cross_entropy, head_logits
from sharding import DATA, TENSOR

# ---------------------------------------------------------------------------------------------------------------- config


@dataclasses.dataclass(frozen=True)
class Config:
    """A model's sizes, by letter. V is the true vocabulary; arrays are padded to `padded_vocab`. rope_scaling: see rope_table."""

    family: str  # "llama" or "gpt2"
    V: int
    D: int
    L: int
    N: int
    K: int
    H: int
    F: int
    P: int  # positions the model was made for; for GPT-2 the rows of its position table
    eps: float
    theta: float = 10000.0
    rope_scaling: tuple | None = None
    tied: bool = False

    def __post_init__(self):
        if self.family not in ("llama", "gpt2"):
            raise ValueError(f"model family {self.family!r} is not one of llama, gpt2")
        if self.N % self.K:
            raise ValueError(
                f"{self.N} heads do not divide by {self.K} key/value heads: every kv head serves the same number of heads"
            )
        if self.family == "llama" and self.H % 2:
            raise ValueError(f"head size {self.H} is odd: RoPE rotates pairs")

    @property
    def padded_vocab(self):
        """V rounded up to a multiple of 128, on every mesh alike. The rows beyond V stay zero and are outside RMS, softmax, sampling and export."""
        return -(-self.V // 128) * 128


def llama(V, D, L, N, F, P, eps, K=None, theta=10000.0):
    return Config("llama", V, D, L, N, K or N, D // N, F, P, eps, theta)


def gpt2(V, D, L, N, P=1024):
    return Config("gpt2", V, D, L, N, N, D // N, 4 * D, P, 1e-5, tied=True)


PRESETS = {
    "gpt2": gpt2(50257, 768, 12, 12),
    "gpt2-medium": gpt2(50257, 1024, 24, 16),
    "gpt2-large": gpt2(50257, 1280, 36, 20),
    "gpt2-xl": gpt2(50257, 1600, 48, 25),
    "llama-7b": llama(32000, 4096, 32, 32, 11008, 2048, 1e-6),
    "llama-13b": llama(32000, 5120, 40, 40, 13824, 2048, 1e-6),
    "llama-30b": llama(32000, 6656, 60, 52, 17920, 2048, 1e-6),
    "llama-65b": llama(32000, 8192, 80, 64, 22016, 2048, 1e-5),
    "llama-2-7b": llama(32000, 4096, 32, 32, 11008, 4096, 1e-5),
    "llama-2-13b": llama(32000, 5120, 40, 40, 13824, 4096, 1e-5),
    "llama-2-70b": llama(32000, 8192, 80, 64, 28672, 4096, 1e-5, K=8),
    "llama-3-8b": llama(128256, 4096, 32, 32, 14336, 8192, 1e-5, K=8, theta=500000.0),
    "llama-3-70b": llama(128256, 8192, 80, 64, 28672, 8192, 1e-5, K=8, theta=500000.0),
    "tiny-s": llama(512, 96, 3, 6, 264, 512, 1e-5),
    "tiny": llama(512, 128, 4, 8, 352, 512, 1e-5),
    "tiny-l": llama(512, 192, 5, 8, 528, 512, 1e-5),
    "tiny-gpt2": gpt2(512, 128, 4, 8, P=512),
}


def preset(name):
    """The Config of a preset's name; ValueError with the names there are."""
    if name not in PRESETS:
        raise ValueError(f"--model {name} is not a preset: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


# ----------------------------------------------------------------------------------------------------------------- table


class Weight(NamedTuple):
    """One weight: everything that is known of it. `sizes` turns the letters of its dimensions into numbers."""

    dims: tuple  # letters of its dimensions, without the layer axis
    layered: bool  # stacked over the L layers on a leading axis
    data: int  # the dimension split over "data"
    tensor: int | None  # the dimension split over "tensor", in whole heads where it is NH or KH
    init: (
        str  # "embedding", "matrix", "residual" (it writes to the residual stream), "ones", "zeros"
    )
    decay: bool  # decays in adamw-scaled and adamw (easylm decays everything, as EasyLM does)


def weight_table(config: Config) -> dict[str, Weight]:
    """name -> Weight of every weight of the model, in the order of the forward pass.

    Matrices that write to the residual stream are split over data on their major dimension: a reduce-scatter on the
    minor one becomes an all-reduce on TPUs.
    """
    llama, gpt2 = config.family == "llama", config.family == "gpt2"
    # fmt: off
    rows = {  # name: dims, layered, data, tensor, init, decay; which models have it
        "embed": (("V", "D"), False, 1, 0, "embedding", True, True),
        "pos": (("P", "D"), False, 1, None, "embedding", True, gpt2),
        "attn_norm": (("D",), True, 0, None, "ones", False, True),
        "attn_norm_b": (("D",), True, 0, None, "zeros", False, gpt2),
        "wq": (("D", "NH"), True, 0, 1, "matrix", True, True),
        "bq": (("NH",), True, 0, 0, "zeros", False, gpt2),
        "wk": (("D", "KH"), True, 0, 1, "matrix", True, True),
        "bk": (("KH",), True, 0, 0, "zeros", False, gpt2),
        "wv": (("D", "KH"), True, 0, 1, "matrix", True, True),
        "bv": (("KH",), True, 0, 0, "zeros", False, gpt2),
        "wo": (("NH", "D"), True, 0, 0, "residual", True, True),
        "bo": (("D",), True, 0, None, "zeros", False, gpt2),
        "mlp_norm": (("D",), True, 0, None, "ones", False, True),
        "mlp_norm_b": (("D",), True, 0, None, "zeros", False, gpt2),
        "w1": (("D", "F"), True, 0, 1, "matrix", True, True),
        "b1": (("F",), True, 0, 0, "zeros", False, gpt2),
        "w3": (("D", "F"), True, 0, 1, "matrix", True, llama),
        "w2": (("F", "D"), True, 0, 0, "residual", True, True),
        "b2": (("D",), True, 0, None, "zeros", False, gpt2),
        "final_norm": (("D",), False, 0, None, "ones", False, True),
        "final_norm_b": (("D",), False, 0, None, "zeros", False, gpt2),
        "head": (("V", "D"), False, 1, 0, "matrix", True, not config.tied),
    }
    # fmt: on
    return {name: Weight(*row) for name, (*row, present) in rows.items() if present}


def sizes(config, padded=True):
    """letter -> number; V padded or true."""
    return {
        "V": config.padded_vocab if padded else config.V,
        "D": config.D,
        "F": config.F,
        "P": config.P,
        "NH": config.N * config.H,
        "KH": config.K * config.H,
    }


def shapes(config, padded=True):
    """name -> shape of the whole weight, with its leading layer axis where it is layered."""
    size = sizes(config, padded)
    return {
        n: (config.L,) * row.layered + tuple(size[d] for d in row.dims)
        for n, row in weight_table(config).items()
    }


def parameter_count(config):
    """Number of weights, padding rows left out."""
    return sum(math.prod(s) for s in shapes(config, padded=False).values())


# ---------------------------------------------------------------------------------------------------------------- layout


class Layout(NamedTuple):
    """How a model lies on a mesh: static facts that the local program branches on."""

    specs: dict  # name -> PartitionSpec, without the layer axis
    data: int  # size of the data axis
    tensor: int  # size of the tensor axis
    attention: bool  # heads split over tensor
    kv: bool  # key/value heads split over tensor; else (attention split, fewer kv heads than ranks) each rank takes the head it needs
    mlp: bool
    vocab: bool
    rings: tuple  # the groups in which data ranks gather weights (sharding.rings), () is all at once: how weights travel, not what each rank holds

    def stacked(self, config):
        """name -> spec of the whole array, layer axis included."""
        return {
            n: Spec(None, *self.specs[n]) if row.layered else self.specs[n]
            for n, row in weight_table(config).items()
        }


def make_layout(config, data, tensor, fsdp=True, rings=()):
    """The Layout of a config on a mesh of data x tensor. fsdp False: weights are whole along data (replicas, for evaluation). rings: sharding.rings of the mesh."""
    N, K = config.N, config.K
    attention = N % tensor == 0 and (K % tensor == 0 or tensor % K == 0)
    kv = attention and K % tensor == 0
    mlp, vocab = config.F % tensor == 0, config.padded_vocab % tensor == 0
    splits = {"NH": attention, "KH": kv, "F": mlp, "V": vocab}
    size = sizes(config)
    specs = {}
    for name, row in weight_table(config).items():
        split = row.tensor is not None and tensor > 1 and splits[row.dims[row.tensor]]
        shape = tuple(size[d] for d in row.dims)
        spec = sharding.partition(shape, row.tensor, row.data, (data, tensor), split)
        if not fsdp:
            spec = Spec(
                *(TENSOR if split and dim == row.tensor else None for dim in range(len(shape)))
            )
        specs[name] = spec
    return Layout(specs, data, tensor, attention, kv, mlp, vocab, rings)


def replication_notes(config, layout):
    """Lines that say what the mesh could not split: for the start-up table."""
    lines, t = [], layout.tensor
    if t > 1 and not layout.attention:
        lines.append(
            f"attention replicated over tensor: {config.N} heads ({config.K} key/value) do not divide over {t} ranks"
        )
    elif t > 1 and not layout.kv:
        lines.append(f"key/value heads replicated over tensor: {config.K} heads for {t} ranks")
    if t > 1 and not layout.mlp:
        lines.append(f"MLP replicated over tensor: F {config.F} does not divide by {t}")
    if t > 1 and not layout.vocab:
        lines.append(
            f"vocabulary replicated over tensor: {config.padded_vocab} rows do not divide by {t}"
        )
    whole = [n for n, s in layout.specs.items() if sharding.dim_over(s, DATA) is None]
    if layout.data > 1 and whole:
        lines.append(f"replicated over data (not divisible by {layout.data}): {', '.join(whole)}")
    return lines


# ------------------------------------------------------------------------------------------------------------------ init


def initialise(config, mesh, layout, seed):
    """Random float32 weights straight into their shards, the same numbers on every mesh.

    Embeddings N(0, 0.02); matrices N(0, 1 / fan-in), those that write to the residual stream divided by sqrt(2 L) as in GPT-2; norms 1; biases 0; padding rows 0.
    """
    whole, size, table = shapes(config), sizes(config), weight_table(config)

    def make(key, name):
        row, shape = table[name], whole[name]
        if row.init in ("ones", "zeros"):
            return jnp.full(shape, float(row.init == "ones"), jnp.float32)
        fan_in = size[row.dims[1] if row.dims[0] == "V" else row.dims[0]]
        std = {
            "embedding": 0.02,
            "matrix": fan_in**-0.5,
            "residual": (fan_in * 2 * config.L) ** -0.5,
        }[row.init]
        x = jax.random.normal(key, shape, jnp.float32) * std
        return (
            jnp.where(jnp.arange(shape[0])[:, None] < config.V, x, 0) if row.dims[0] == "V" else x
        )

    out = sharding.shardings(layout.stacked(config), mesh)
    keys = jax.random.split(jax.random.key(seed), len(whole))
    return jax.jit(
        lambda keys: {n: make(k, n) for k, n in zip(keys, whole, strict=True)}, out_shardings=out
    )(keys)


# --------------------------------------------------------------------------------------------------------------- forward


class Regions(NamedTuple):
    """How activations enter and leave a tensor-parallel region, and how weights outside of one are used."""

    enter: callable  # -> [B, T, D] whole
    leave: callable  # partial [B, T, D] -> summed (sequence-parallel: this rank's [B, T/t, D])
    shared: callable  # a replicated weight: sequence-parallel ranks use it on different tokens, so its gradient is summed


def regions(split, sequence):
    same = lambda x: x
    if not split:
        return Regions(
            same, same, same
        )  # every rank computes the same thing: nothing to send, gradients agree already
    if sequence:
        return Regions(
            lambda x: sharding.gather_in(x, 1),
            lambda x: sharding.scatter_out(x, 1),
            sharding.copy_in,
        )
    return Regions(sharding.copy_in, sharding.sum_out, same)


def sequence_parallel(layout, T):
    """Whether norms and residuals are split along T over the tensor axis: where everything else is split and T divides."""
    return (
        layout.tensor > 1
        and layout.attention
        and layout.mlp
        and layout.vocab
        and T % layout.tensor == 0
    )


def norm(x_BTD, scale, bias, config, shared):
    if config.family == "llama":
        return rms_norm(x_BTD, shared(scale), config.eps)
    return layer_norm(x_BTD, shared(scale), shared(bias), config.eps)


def embed(token_BT, position_BT, w, config, layout, sequence):
    """Token (and GPT-2's position) embeddings [B, T, D] in the dtype of w; sequence-parallel: this rank's [B, T/t, D]."""
    region = regions(layout.vocab and layout.tensor > 1, sequence)
    offset = (
        lax.axis_index(TENSOR) * w["embed"].shape[0] if layout.vocab and layout.tensor > 1 else 0
    )
    x_BTD = region.leave(
        lookup(w["embed"], token_BT - offset)
    )  # each rank finds the tokens of its rows, the others give 0
    if config.family == "gpt2":
        if sequence:
            width = x_BTD.shape[1]
            position_BT = lax.dynamic_slice_in_dim(
                position_BT, lax.axis_index(TENSOR) * width, width, axis=1
            )
        x_BTD = x_BTD + lookup(region.shared(w["pos"]), position_BT)
    return x_BTD


def block(x_BTD, w, rope, attend, config, layout, sequence, join=True, mlp_rows=None):
    """One layer on local shards: x + attention(norm(x)), then x + mlp(norm(x)).

    w: this layer's weights, gathered over data. rope: (cos, sin) or None. attend(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, kept): attention over whatever keys there
    are; `kept` is passed through (a cache). join: q, k, v and gate, up as one product each, from weights laid side by side. mlp_rows: the
    MLP takes that many rows at a time (where that divides B), computing its inner activations again in the backward pass. Returns (x_BTD, kept).
    """
    H = config.H
    region = regions(layout.attention and layout.tensor > 1, sequence)
    h_BTD = checkpoint_name(
        region.enter(norm(x_BTD, w["attn_norm"], w.get("attn_norm_b"), config, region.shared)),
        "normed",
    )
    wk, wv = w["wk"], w["wv"]
    joined = lambda *parts: jnp.concatenate(
        parts, axis=-1
    )  # one matmul; the optimizer sees each weight

    def product(h, *parts):
        return (
            checkpoint_name(h @ joined(*parts), "product")
            if join
            else joined(*(checkpoint_name(h @ part, "product") for part in parts))
        )

    if (
        layout.attention and not layout.kv
    ):  # fewer kv heads than ranks: compute the one head that this rank's queries read
        head = lax.axis_index(TENSOR) * config.K // layout.tensor
        wk, wv = (
            lax.dynamic_slice_in_dim(sharding.copy_in(m), head * H, H, axis=1) for m in (wk, wv)
        )
    qkv_BTX = product(h_BTD, w["wq"], wk, wv)
    if config.family == "gpt2":
        qkv_BTX = qkv_BTX + joined(w["bq"], w["bk"], w["bv"])[None, None]
    NH, KH = w["wq"].shape[1], wk.shape[1]
    q, k, v = jnp.split(qkv_BTX, [NH, NH + KH], axis=2)
    heads = lambda z: z.reshape(z.shape[:2] + (-1, H))
    q_BTNH, k_BTKH, v_BTKH = heads(q), heads(k), heads(v)
    if rope is not None:
        q_BTNH, k_BTKH = rope_half(q_BTNH, *rope), rope_half(k_BTKH, *rope)
    out_BTNH, kept = attend(
        checkpoint_name(q_BTNH, "turned"), checkpoint_name(k_BTKH, "turned"), v_BTKH
    )
    # [B, T, NH/t] @ [NH/t, D]: partial over tensor -> summed by leave()
    y_BTD = region.leave(out_BTNH.reshape(out_BTNH.shape[:2] + (NH,)) @ w["wo"])
    if config.family == "gpt2":
        y_BTD = y_BTD + region.shared(w["bo"])[None, None]
    x_BTD = checkpoint_name(x_BTD + y_BTD, "product")

    def mlp(x_BTD):
        region = regions(layout.mlp and layout.tensor > 1, sequence)
        h_BTD = checkpoint_name(
            region.enter(norm(x_BTD, w["mlp_norm"], w.get("mlp_norm_b"), config, region.shared)),
            "normed",
        )
        if config.family == "llama":
            gate_BTF, up_BTF = jnp.split(product(h_BTD, w["w1"], w["w3"]), 2, axis=2)
            return region.leave(checkpoint_name(swiglu(gate_BTF, up_BTF), "turned") @ w["w2"])
        h_BTF = checkpoint_name(h_BTD @ w["w1"] + w["b1"][None, None], "product")
        return (
            region.leave(checkpoint_name(gelu_tanh(h_BTF), "turned") @ w["w2"])
            + region.shared(w["b2"])[None, None]
        )

    if mlp_rows is None or mlp_rows >= len(x_BTD) or len(x_BTD) % mlp_rows:
        return x_BTD + mlp(x_BTD), kept
    # gate, up, their product and the gradients of all three are six times [B, T, F], most of a layer's working set. The weights' gradients are summed in w's dtype
    parts = x_BTD.reshape((-1, mlp_rows) + x_BTD.shape[1:])
    return x_BTD + lax.map(jax.checkpoint(mlp), parts).reshape(x_BTD.shape), kept


def rope_of(position_BT, config):
    return (
        rope_table(position_BT, config.H, config.theta, config.rope_scaling)
        if config.family == "llama"
        else None
    )


def split_layers(weights, config):
    """weights -> (those of the layers, stacked; the others)."""
    table = weight_table(config)
    return {n: w for n, w in weights.items() if table[n].layered}, {
        n: w for n, w in weights.items() if not table[n].layered
    }


def gather(shards, layout, dtype):
    """name -> this tensor rank's whole weight in the compute dtype, from its data shard."""
    return {
        n: sharding.gather_weight(w, layout.specs[n], dtype, layout.rings)
        for n, w in shards.items()
    }


def final_hidden(x_BTD, w, config, layout, sequence):
    """The last norm, whole along T: what the output matrix is applied to. Enters the vocabulary-parallel region."""
    region = regions(layout.vocab and layout.tensor > 1, sequence)
    return region.enter(norm(x_BTD, w["final_norm"], w.get("final_norm_b"), config, region.shared))


def hidden(weights, token_BT, config, layout, dtype):
    """The last hidden states [B, T, D] of whole rows, no cache: the plain forward, for evaluation and as the reference."""
    layers, outer = split_layers(weights, config)
    outer = gather(outer, layout, dtype)
    segment_BT = jnp.ones_like(token_BT)
    position_BT = positions_of(segment_BT)
    mask, rope = causal_mask(segment_BT), rope_of(position_BT, config)
    x_BTD = embed(token_BT, position_BT, outer, config, layout, False)
    attend = lambda q, k, v: (reference_attention(q, k, v, mask), None)

    def body(x_BTD, shards):
        return block(x_BTD, gather(shards, layout, dtype), rope, attend, config, layout, False)

    x_BTD, _ = lax.scan(body, x_BTD, layers)
    return final_hidden(x_BTD, outer, config, layout, False)


def whole_logits(x_BTD, weights, config, layout, dtype):
    """Logits [B, T, V] f32 over the true vocabulary, the same on every tensor rank. x: from final_hidden."""
    name = "embed" if config.tied else "head"
    head_VD = gather({name: weights[name]}, layout, dtype)[name]
    split = layout.vocab and layout.tensor > 1
    B, T, D = x_BTD.shape
    offset = lax.axis_index(TENSOR) * head_VD.shape[0] if split else 0
    logits_MV = head_logits(x_BTD.reshape(B * T, D), head_VD, config.V, offset)
    if split:
        logits_MV = lax.all_gather(logits_MV, TENSOR, axis=1, tiled=True)
    return logits_MV[:, : config.V].reshape(B, T, config.V)


def make_logits(config, mesh, layout, dtype=jnp.float32):
    """A jitted function (weights, token_BT) -> logits [B, T, V] f32; B must divide by the data axis."""

    def local(weights, token_BT):
        return whole_logits(
            hidden(weights, token_BT, config, layout, dtype), weights, config, layout, dtype
        )

    specs = layout.stacked(config)
    return jax.jit(
        jax.shard_map(
            local, mesh=mesh, in_specs=(specs, Spec(DATA)), out_specs=Spec(DATA), check_vma=False
        )
    )


# ------------------------------------------------------------------------------------------------------------------ loss


class Compute(NamedTuple):
    """How a step is computed, none of which changes what is computed (beyond rounding)."""

    dtype: object = jnp.float32  # activations and gathered weights
    grad_dtype: object = jnp.float32  # gradients are reduced and kept in it
    loss_chunk: int = 1024  # tokens whose logits exist at once
    attention: str = "reference"  # reference, blockwise, cudnn, pallas
    remat: str = "full"  # what the backward pass computes again in a layer: see KEPT
    prefetch: bool = False  # the next layer's weights are gathered while this layer computes: one layer's weights more in memory
    mlp_rows: int | None = (
        None  # rows that the MLP takes at a time (None: all); only with remat "full"
    )
    join: bool = True  # q, k, v as one product, and gate, up: faster on CPUs; apart there is no joined copy of the gathered weights in memory


# remat -> names (given in `block` and in the attention kernels) of what is kept of a layer besides its input
KEPT = {
    "full": (),
    "dots": ("product", "attention"),
    "none": ("product", "attention", "normed", "turned"),
}


def layer_forward(layer, x_BTD, w, shared, remat):
    """(y, what the backward pass keeps of layer(x, w, *shared), how to put the vjp together again).

    Never kept: a gathered weight, which would make every device hold the whole model, and `shared`, which all layers have (RoPE, segments): both are there again.
    """
    if remat == "full":
        return layer(x_BTD, w, *shared), [x_BTD], None
    policy = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
    y_BTD, vjp = jax.vjp(lambda x, w: jax.checkpoint(layer, policy=policy)(x, w, *shared), x_BTD, w)
    leaves, tree = jax.tree.flatten(vjp)
    there = jax.tree.leaves((w, shared))
    slots = [next((i for i, value in enumerate(there) if value is leaf), None) for leaf in leaves]
    return (
        y_BTD,
        [leaf for leaf, slot in zip(leaves, slots, strict=True) if slot is None],
        (tree, slots),
    )


def layer_backward(layer, kept, again, w, shared, dy_BTD):
    """(gradient of x, gradients of the weights) from what layer_forward kept and said, and the weights gathered again."""
    if again is None:
        return jax.vjp(lambda x, w: layer(x, w, *shared), kept[0], w)[1](dy_BTD)
    tree, slots = again
    there, kept = jax.tree.leaves((w, shared)), iter(kept)
    return jax.tree.unflatten(
        tree, [next(kept) if slot is None else there[slot] for slot in slots]
    )(dy_BTD)


def loss_and_gradients(
    weights, token_BX, segment_BX, weight_BT, config, layout, compute, gradients=True, into=None
):
    """Weighted next-token loss of this data rank's rows, in nats, and the gradient of the sum over all ranks, in shards.

    token_BX int32 [B, T + 1]; segment_BX the same or None (one document a row); weight_BT f32 [B, T]: weight of predicting token_BX[:, 1:] (0 off the mask; the caller
    divides by the number of loss tokens of the global batch). into: gradients of earlier micro-batches, to which these are added in place, layer by layer: there is one
    buffer. Returns (loss f32: this data rank's part; name -> gradient shard or None).
    """
    token_BT, target_BT = token_BX[:, :-1], token_BX[:, 1:]
    segment_BT = jnp.ones_like(token_BT) if segment_BX is None else segment_BX[:, :-1]
    position_BT = positions_of(segment_BT)
    sequence = sequence_parallel(layout, token_BT.shape[1])
    shared = (rope_of(position_BT, config), segment_BT)
    layers, outer = split_layers(weights, config)
    whole = functools.partial(gather, layout=layout, dtype=compute.dtype)
    scatter = lambda grads: {
        n: sharding.scatter_gradient(g, layout.specs[n], compute.grad_dtype, layout.rings)
        for n, g in grads.items()
    }
    first_names = [n for n in ("embed", "pos") if n in outer]
    last_names = [n for n in outer if n not in first_names] + ["embed"] * config.tied
    final = config.L - 1

    def first(w):
        return embed(token_BT, position_BT, w, config, layout, sequence)

    def layer(x_BTD, w, rope, segment_BT):
        attend = lambda q, k, v: (
            causal_attention(q, k, v, segment_BT, segment_BX is not None, compute.attention),
            None,
        )
        return block(
            x_BTD, w, rope, attend, config, layout, sequence, compute.join, compute.mlp_rows
        )[0]

    def last(x_BTD, w):
        x_BTD = final_hidden(x_BTD, w, config, layout, sequence)
        head_VD = w["embed" if config.tied else "head"]
        axis = TENSOR if layout.vocab and layout.tensor > 1 else None
        flat = lambda a: a.reshape((-1,) + a.shape[2:])
        return head_cross_entropy(
            flat(x_BTD),
            head_VD,
            flat(target_BT),
            flat(weight_BT),
            config.V,
            axis,
            compute.loss_chunk,
        )

    def fetch(i, x_BTD):
        """Layer i's weights, gathered. Where they are cast, a shard depends on the scan's carry: XLA would otherwise cast the whole stack outside the loop and keep it."""
        shards = {n: lax.dynamic_index_in_dim(w, i, keepdims=False) for n, w in layers.items()}
        if compute.dtype != jnp.float32:
            nudge = jnp.where(
                jnp.abs(x_BTD[0, 0, 0].astype(jnp.float32)) > 3e38, 1e-30, 0.0
            )  # 0, and no NaN from a NaN, but XLA cannot know
            shards = {n: w + nudge for n, w in shards.items()}
        return whole(shards)

    first_w = whole({n: outer[n] for n in first_names})
    if not gradients:
        x_BTD, _ = lax.scan(
            lambda x, i: (layer(x, fetch(i, x), *shared), None),
            first(first_w),
            jnp.arange(config.L),
        )
        return last(x_BTD, whole({n: outer[n] for n in last_names})), None

    again = None

    def forward(x_BTD, w):
        nonlocal again  # the same for every layer
        x_BTD, kept, again = layer_forward(layer, x_BTD, w, shared, compute.remat)
        return x_BTD, kept

    x_BTD, first_vjp = jax.vjp(first, first_w)
    if compute.prefetch:  # carried: the weights of the layer to come. The last layer's stay for its backward pass, so L gathers forward and L backward, none in vain

        def ahead(carry, i):
            x_BTD, w = carry
            w_next = fetch(i + 1, x_BTD)
            x_BTD, kept = forward(x_BTD, w)
            return (x_BTD, w_next), kept

        (x_BTD, w), kept_L = lax.scan(ahead, (x_BTD, fetch(0, x_BTD)), jnp.arange(final))
        x_BTD, kept = forward(x_BTD, w)
    else:
        x_BTD, kept_L = lax.scan(lambda x, i: forward(x, fetch(i, x)), x_BTD, jnp.arange(config.L))
    loss, last_vjp = jax.vjp(last, x_BTD, whole({n: outer[n] for n in last_names}))
    dx_BTD, dlast = last_vjp(jnp.ones_like(loss))
    tied = dlast.pop("embed") if config.tied else None
    # scattered before the layers' backward pass, not when the compiler likes: until then the output matrix's whole float32 gradient is held
    dx_BTD, dlast = lax.optimization_barrier((dx_BTD, scatter(dlast)))

    def add(sums, i, dw):
        """Layer i's gradients into the stack. Without the barrier the TPU compiler fuses the sum into the reduce-scatter, and crashes on v5p."""
        part = scatter(dw)
        if into is not None:
            part = lax.optimization_barrier(part)
            part = {
                n: lax.dynamic_index_in_dim(sums[n], i, keepdims=False) + g for n, g in part.items()
            }
        return {n: lax.dynamic_update_index_in_dim(sums[n], g, i, 0) for n, g in part.items()}

    sums = {
        n: jnp.zeros(w.shape, compute.grad_dtype) if into is None else into[n]
        for n, w in layers.items()
    }
    if compute.prefetch:

        def back(carry, item):
            dx_BTD, w, sums = carry
            kept, i = item
            w_next = fetch(jnp.maximum(i - 1, 0), dx_BTD)
            dx_BTD, dw = layer_backward(layer, kept, again, w, shared, dx_BTD)
            return (dx_BTD, w_next, add(sums, i, dw)), None

        w_next = fetch(max(final - 1, 0), dx_BTD)
        dx_BTD, dw = layer_backward(layer, kept, again, w, shared, dx_BTD)
        (dx_BTD, _, sums), _ = lax.scan(
            back, (dx_BTD, w_next, add(sums, final, dw)), (kept_L, jnp.arange(final)), reverse=True
        )
    else:

        def back(carry, item):
            dx_BTD, sums = carry
            kept, i = item
            dx_BTD, dw = layer_backward(layer, kept, again, fetch(i, dx_BTD), shared, dx_BTD)
            return (dx_BTD, add(sums, i, dw)), None

        (dx_BTD, sums), _ = lax.scan(
            back, (dx_BTD, sums), (kept_L, jnp.arange(config.L)), reverse=True
        )
    (dfirst,) = first_vjp(dx_BTD)
    if config.tied:
        dfirst["embed"] = dfirst["embed"].astype(compute.grad_dtype) + tied.astype(
            compute.grad_dtype
        )
    ends = scatter(dfirst) | dlast
    return loss, sums | (ends if into is None else {n: into[n] + g for n, g in ends.items()})


def main(argv=None):
    parser = argparse.ArgumentParser(description="Print a preset's weight table.")
    parser.add_argument("preset", help=", ".join(PRESETS))
    args = parser.parse_args(argv)
    try:
        config = preset(args.preset)
    except ValueError as error:
        print(f"model.py: {error}", file=sys.stderr)
        return 2
    for name, shape in shapes(config).items():
        row = weight_table(config)[name]
        print(
            f"{name:<13} {str(shape):<24} {' x '.join(('L',) * row.layered + row.dims):<12} {row.init}"
        )
    print(f"{parameter_count(config):,} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
