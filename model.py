"""LLaMA's and GPT-2's families: initial weights, forward pass, loss, gradients.

    python model.py llama-7b          a preset's weight table

What a model is stands in families/ (sizes, presets, the weight table, the layout on a mesh) and is
handed on from here. Functions that take `weights` or `w` run inside shard_map on local shards, and
shapes in names are local to the rank. docs/backward.md explains the last part: what the backward
pass keeps, gathers and scatters, and when.

LETTERS  B batch  T query time  S key time  X tokens of a row as stored (T + 1)  D model  F ffn
         N heads  K kv heads  H head size  L layers  V vocab  P positions.  NH = N * H, KH = K * H.
"""

import argparse
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec
from jax.typing import DTypeLike

import sharding
from families.config import PRESETS, Config, gpt2, llama, preset
from families.layout import Layout, make_layout, replication_notes
from families.weights import Weight, parameter_count, shapes, sizes, weight_table
from kernels.attention import causal_attention, causal_mask, positions_of, reference_attention
from kernels.layers import (
    gelu_tanh,
    layer_norm,
    lookup,
    matmul,
    rms_norm,
    rope_half,
    rope_table,
    swiglu,
    tall_matmul,
)
from kernels.loss import head_cross_entropy, head_logits
from kernels.stack import Arrays, Stack, backward_layers, forward_layers
from sharding import DATA, TENSOR, TensorRegion

# handed on from families/, so that a model is one import
__all__ = ["PRESETS", "Config", "Layout", "Weight", "gpt2", "llama", "make_layout", "preset"]
__all__ += ["parameter_count", "replication_notes", "shapes", "sizes", "weight_table"]

# --- init ---


def initialise(config: Config, mesh: Mesh, layout: Layout, seed: int) -> Arrays:
    """Random float32 weights straight into their shards, the same numbers on every mesh.

    Embeddings N(0, 0.02); matrices N(0, 1 / fan-in), those that write to the residual stream
    divided by sqrt(2 L) as in GPT-2; norms 1; biases 0; padding rows 0.
    """
    shape_of, size, table = shapes(config), sizes(config), weight_table(config)

    def draw(key, name):
        row, shape = table[name], shape_of[name]
        if row.init in ("ones", "zeros"):
            return jnp.full(shape, float(row.init == "ones"), jnp.float32)
        fan_in = size[row.dims[1] if row.dims[0] == "V" else row.dims[0]]
        residual_std = (fan_in * 2 * config.L) ** -0.5
        std = {"embedding": 0.02, "matrix": fan_in**-0.5, "residual": residual_std}[row.init]
        x = jax.random.normal(key, shape, jnp.float32) * std
        if row.dims[0] == "V":
            x = jnp.where(jnp.arange(shape[0])[:, None] < config.V, x, 0)
        return x

    out = sharding.shardings(layout.stacked(config), mesh)
    keys = jax.random.split(jax.random.key(seed), len(shape_of))

    def draw_all(keys):
        return {name: draw(key, name) for key, name in zip(keys, shape_of, strict=True)}

    return jax.jit(draw_all, out_shardings=out)(keys)


# --- forward ---


class StepOptions(NamedTuple):
    """How a step is computed, none of which changes what is computed (beyond rounding)."""

    dtype: Any = jnp.float32  # activations and gathered weights
    grad_dtype: Any = jnp.float32  # gradients are reduced and kept in it
    loss_chunk: int = 1024  # tokens whose logits exist at once
    attention: str = "reference"  # reference, blockwise, cudnn, pallas
    remat: str = "full"  # what the backward pass computes again in a layer: all but SAVED[remat]
    prefetch: bool = False  # gather the next layer's weights beside this layer's work
    mlp_rows: int | None = None  # rows that the MLP takes at a time (None: all); with remat "full"
    unroll: bool = False  # no loop over the layers: no copies to and from stacks of residuals
    join: tuple[str, ...] = ("qkv", "13")  # matrices that are one product of them side by side
    tall: bool = False  # the MLP's second product by tall_matmul: faster on CPUs


class Program(NamedTuple):
    """What is fixed while a local program is traced."""

    config: Config
    layout: Layout
    options: StepOptions = StepOptions()
    sequence: bool = False  # norms and residuals are split along T over tensor
    packed: bool = False  # rows hold several segments

    def region(self, split: bool) -> sharding.TensorRegion:
        """How activations enter and exit a part of the layer; split: whether tensor splits it."""
        return sharding.tensor_region(split and self.layout.tensor > 1, self.sequence)


def sequence_parallel(layout: Layout, T: int) -> bool:
    """Whether tensor splits norms and residuals along T: where it splits all else and T divides."""
    t = layout.tensor
    return t > 1 and layout.attention and layout.mlp and layout.vocab and T % t == 0


def split_layers(weights: Arrays, config: Config) -> tuple[Arrays, Arrays]:
    """weights -> (those of the layers, stacked; the others)."""
    table = weight_table(config)
    layers = {name: w for name, w in weights.items() if table[name].layered}
    return layers, {name: w for name, w in weights.items() if not table[name].layered}


def gather(shards: Arrays, layout: Layout, dtype: DTypeLike) -> Arrays:
    """name -> this tensor rank's whole weight in the compute dtype, from its data shard."""
    return {
        name: sharding.gather_weight(w, layout.specs[name], dtype, layout.stages)
        for name, w in shards.items()
    }


def rope_of(position_BT: jax.Array, config: Config) -> tuple | None:
    """(cos, sin) of the positions; None for GPT-2."""
    if config.family == "gpt2":
        return None
    return rope_table(position_BT, config.H, config.theta, config.rope_scaling)


def norm(x_BTD: jax.Array, w: Arrays, name: str, config: Config, region: TensorRegion) -> jax.Array:
    scale, bias = w[name], w.get(name + "_b")
    if bias is None:
        return rms_norm(x_BTD, region.replicated(scale), config.eps)
    return layer_norm(x_BTD, region.replicated(scale), region.replicated(bias), config.eps)


def embed_tokens(
    token_BT: jax.Array, position_BT: jax.Array, w: Arrays, program: Program
) -> jax.Array:
    """Token (and GPT-2's position) embeddings [B, T, D] in the dtype of w.

    Sequence-parallel: this rank's [B, T/t, D].
    """
    layout = program.layout
    region, split = program.region(layout.vocab), layout.vocab and layout.tensor > 1
    offset = lax.axis_index(TENSOR) * w["embed"].shape[0] if split else 0
    # each rank finds the tokens of its rows, the others give 0
    x_BTD = region.exit(lookup(w["embed"], token_BT - offset))
    if "pos" in w:
        if program.sequence:
            width = x_BTD.shape[1]
            start = lax.axis_index(TENSOR) * width
            position_BT = lax.dynamic_slice_in_dim(position_BT, start, width, axis=1)
        x_BTD = x_BTD + lookup(region.replicated(w["pos"]), position_BT)
    return x_BTD


def run_layer(
    x_BTD: jax.Array, w: Arrays, rope: tuple | None, attend: Callable, program: Program
) -> tuple[jax.Array, Any]:
    """One layer on local shards -> (x, cache): x + attention(norm(x)), then x + mlp(norm(x)).

    w: its weights, gathered over data. attend(q_BTNH, k_BTKH, v_BTKH) -> (out_BTNH, cache):
    attention over whatever keys there are; `cache` is passed through.
    """
    y_BTD, cache = attention_part(x_BTD, w, rope, attend, program)
    x_BTD = checkpoint_name(x_BTD + y_BTD, "matmul")
    mlp = functools.partial(mlp_part, w=w, program=program)
    rows = program.options.mlp_rows
    if rows is None or rows >= len(x_BTD) or len(x_BTD) % rows:
        return x_BTD + mlp(x_BTD), cache
    # Gate, up, their product and the gradients of all three are six times [B, T, F], most of a
    # layer's working set: they exist for `rows` rows at a time and are computed again in the
    # backward pass. The weights' gradients are summed in w's dtype.
    parts = x_BTD.reshape((-1, rows) + x_BTD.shape[1:])
    return x_BTD + lax.map(jax.checkpoint(mlp), parts).reshape(x_BTD.shape), cache


def attention_part(
    x_BTD: jax.Array, w: Arrays, rope: tuple | None, attend: Callable, program: Program
) -> tuple[jax.Array, Any]:
    config, layout, H = program.config, program.layout, program.config.H
    region = program.region(layout.attention)
    h_BTD = checkpoint_name(region.enter(norm(x_BTD, w, "attn_norm", config, region)), "norm")
    qkv = {name: w[name] for name in ("wq", "wk", "wv", "bq", "bk", "bv") if name in w}
    if layout.attention and not layout.kv:
        # fewer kv heads than ranks: compute the one head that this rank's queries read
        start = lax.axis_index(TENSOR) * config.K // layout.tensor * H
        for name in qkv.keys() - {"wq", "bq"}:
            m = sharding.copy_in(qkv[name])
            qkv[name] = lax.dynamic_slice_in_dim(m, start, H, axis=m.ndim - 1)
    parts = project(h_BTD, qkv, "qkv", program.options.join)
    NH = qkv["wq"].shape[1]
    q_BTNH, k_BTKH, v_BTKH = (part.reshape(part.shape[:2] + (-1, H)) for part in parts)
    if config.qk_norm:
        q_BTNH = rms_norm(q_BTNH, region.within(w["q_norm"]), config.eps)
        k_BTKH = rms_norm(k_BTKH, region.within(w["k_norm"]), config.eps)
    if rope is not None:
        q_BTNH, k_BTKH = rope_half(q_BTNH, *rope), rope_half(k_BTKH, *rope)
    # Products that are apart are not saved themselves, but what RoPE makes of them.
    saved = "rope" if "qkv" in program.options.join or config.qk_norm else "matmul"
    q_BTNH, k_BTKH = checkpoint_name(q_BTNH, saved), checkpoint_name(k_BTKH, saved)
    out_BTNH, cache = attend(q_BTNH, k_BTKH, v_BTKH)
    # [B, T, NH/t] @ [NH/t, D]: partial over tensor -> summed by exit()
    y_BTD = region.exit(matmul(out_BTNH.reshape(out_BTNH.shape[:2] + (NH,)), w["wo"]))
    if "bo" in w:
        y_BTD = y_BTD + region.replicated(w["bo"])[None, None]
    return y_BTD, cache


def mlp_part(x_BTD: jax.Array, w: Arrays, program: Program) -> jax.Array:
    config, region = program.config, program.region(program.layout.mlp)
    h_BTD = checkpoint_name(region.enter(norm(x_BTD, w, "mlp_norm", config, region)), "norm")
    if config.family == "llama":
        gate_BTF, up_BTF = project(h_BTD, w, "13", program.options.join)
        inner_BTF = swiglu(gate_BTF, up_BTF)
    else:
        h_BTF = matmul(h_BTD, w["w1"]) + w["b1"][None, None]
        inner_BTF = gelu_tanh(checkpoint_name(h_BTF, "matmul"))
    down = tall_matmul if program.options.tall else matmul
    y_BTD = region.exit(down(checkpoint_name(inner_BTF, "activation"), w["w2"]))
    if "b2" in w:
        y_BTD = y_BTD + region.replicated(w["b2"])[None, None]
    return y_BTD


def project(h_BTD: jax.Array, w: Arrays, letters: str, join: tuple) -> list[jax.Array]:
    """[h @ w + b] of the matrices `letters`; in join: one product of the weights side by side."""
    matrices = [w["w" + letter] for letter in letters]
    biases = [w["b" + letter] for letter in letters if "b" + letter in w]
    if letters not in join:
        parts = [checkpoint_name(matmul(h_BTD, m), "matmul") for m in matrices]
        if biases:
            parts = [y + b[None, None] for y, b in zip(parts, biases, strict=True)]
        return parts
    y = checkpoint_name(matmul(h_BTD, jnp.concatenate(matrices, axis=-1)), "matmul")
    if biases:
        y = y + jnp.concatenate(biases, axis=-1)[None, None]
    ends = itertools.accumulate(m.shape[1] for m in matrices[:-1])
    return jnp.split(y, list(ends), axis=2)


def final_hidden(x_BTD: jax.Array, w: Arrays, program: Program) -> jax.Array:
    """The last norm, whole along T: what the output matrix is applied to.

    Enters the vocabulary-parallel region.
    """
    region = program.region(program.layout.vocab)
    return region.enter(norm(x_BTD, w, "final_norm", program.config, region))


def forward(
    weights: Arrays, token_BT: jax.Array, config: Config, layout: Layout, dtype: DTypeLike
) -> jax.Array:
    """The last hidden states [B, T, D] of whole rows, without a cache.

    The plain forward pass, for evaluation and as the reference.
    """
    program = Program(config, layout)
    layers, outer = split_layers(weights, config)
    outer = gather(outer, layout, dtype)
    segment_BT = jnp.ones_like(token_BT)
    position_BT = positions_of(segment_BT)
    mask, rope = causal_mask(segment_BT), rope_of(position_BT, config)

    def attend(q_BTNH, k_BTKH, v_BTKH):
        return reference_attention(q_BTNH, k_BTKH, v_BTKH, mask), None

    def body(x_BTD, shards):
        return run_layer(x_BTD, gather(shards, layout, dtype), rope, attend, program)

    x_BTD, _ = lax.scan(body, embed_tokens(token_BT, position_BT, outer, program), layers)
    return final_hidden(x_BTD, outer, program)


def logits(
    x_BTD: jax.Array, weights: Arrays, config: Config, layout: Layout, dtype: DTypeLike
) -> jax.Array:
    """Logits [B, T, V] f32 over the true vocabulary, on every tensor rank; x: of final_hidden."""
    name = "embed" if config.tied else "head"
    head_VD = gather({name: weights[name]}, layout, dtype)[name]
    split = layout.vocab and layout.tensor > 1
    B, T, D = x_BTD.shape
    offset = lax.axis_index(TENSOR) * head_VD.shape[0] if split else 0
    logits_MV = head_logits(x_BTD.reshape(B * T, D), head_VD, config.V, offset)
    if split:
        logits_MV = lax.all_gather(logits_MV, TENSOR, axis=1, tiled=True)
    return logits_MV[:, : config.V].reshape(B, T, config.V)


def make_logits(
    config: Config, mesh: Mesh, layout: Layout, dtype: DTypeLike = jnp.float32
) -> Callable:
    """A jitted (weights, token_BT) -> logits [B, T, V] f32; B must divide by the data axis."""

    def local(weights, token_BT):
        x_BTD = forward(weights, token_BT, config, layout, dtype)
        return logits(x_BTD, weights, config, layout, dtype)

    specs = layout.stacked(config), Spec(DATA)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=Spec(DATA), check_vma=False)
    return jax.jit(sharded)


# --- loss; docs/backward.md explains its gradient ---


def fetch_layer(layers: Arrays, program: Program, i: jax.Array | int, x_BTD: jax.Array) -> Arrays:
    """Layer i's weights, gathered over data from the stacked shards."""
    shards = {name: lax.dynamic_index_in_dim(w, i, keepdims=False) for name, w in layers.items()}
    if program.options.dtype != jnp.float32:
        # XLA would cast the whole stack outside the loop and keep it, so a shard is made to depend
        # on the loop's carry. The sum is 0, and no NaN from a NaN, but XLA cannot know.
        nudge = jnp.where(jnp.abs(x_BTD[0, 0, 0].astype(jnp.float32)) > 3e38, 1e-30, 0.0)
        shards = {name: w + nudge for name, w in shards.items()}
    return gather(shards, program.layout, program.options.dtype)


def train_layer(
    program: Program, x_BTD: jax.Array, w: Arrays, rope: tuple | None, segment_BT: jax.Array
) -> jax.Array:
    """run_layer with causal attention over whole rows."""
    kernel = program.options.attention

    def attend(q_BTNH, k_BTKH, v_BTKH):
        out = causal_attention(q_BTNH, k_BTKH, v_BTKH, segment_BT, program.packed, kernel)
        return out, None

    return run_layer(x_BTD, w, rope, attend, program)[0]


class Rows(NamedTuple):
    """One micro-batch of this data rank."""

    token_BT: jax.Array
    target_BT: jax.Array
    weight_BT: jax.Array
    position_BT: jax.Array
    segment_BT: jax.Array


def rows_of(token_BX: jax.Array, segment_BX: jax.Array | None, weight_BT: jax.Array) -> Rows:
    token_BT, target_BT = token_BX[:, :-1], token_BX[:, 1:]
    segment_BT = jnp.ones_like(token_BT) if segment_BX is None else segment_BX[:, :-1]
    return Rows(token_BT, target_BT, weight_BT, positions_of(segment_BT), segment_BT)


def stack_of(layers: Arrays, rows: Rows, program: Program) -> Stack:
    return Stack(
        program.config.L,
        functools.partial(fetch_layer, layers, program),
        functools.partial(train_layer, program),
        (rope_of(rows.position_BT, program.config), rows.segment_BT),
        program.options.unroll,
    )


def end_weights(outer: Arrays, config: Config) -> tuple[Arrays, Arrays]:
    """The weights outside the layers -> (embed_tokens', output_loss's); tied ones are in both."""
    first = {name: w for name, w in outer.items() if name in ("embed", "pos")}
    last = {name: w for name, w in outer.items() if name not in first}
    return first, last | ({"embed": outer["embed"]} if config.tied else {})


def output_loss(x_BTD: jax.Array, w: Arrays, rows: Rows, program: Program) -> jax.Array:
    """Weighted cross-entropy of the last layer's output, summed over this data rank's rows."""
    config, layout = program.config, program.layout
    x_BTD = final_hidden(x_BTD, w, program)
    x_MD = x_BTD.reshape(-1, config.D)
    head_VD = w["embed" if config.tied else "head"]
    axis = TENSOR if layout.vocab and layout.tensor > 1 else None
    target_M, weight_M = rows.target_BT.reshape(-1), rows.weight_BT.reshape(-1)
    chunk = program.options.loss_chunk
    return head_cross_entropy(x_MD, head_VD, target_M, weight_M, config.V, axis, chunk)


def batch_loss(
    weights: Arrays,
    token_BX: jax.Array,
    segment_BX: jax.Array | None,
    weight_BT: jax.Array,
    config: Config,
    layout: Layout,
    options: StepOptions,
) -> jax.Array:
    """The loss of loss_and_gradients, without gradients."""
    rows = rows_of(token_BX, segment_BX, weight_BT)
    sequence = sequence_parallel(layout, weight_BT.shape[1])
    program = Program(config, layout, options, sequence, segment_BX is not None)
    layers, outer = split_layers(weights, config)
    first, last = end_weights(outer, config)
    w = gather(first, layout, options.dtype)
    x_BTD = embed_tokens(rows.token_BT, rows.position_BT, w, program)
    stack = stack_of(layers, rows, program)
    x_BTD, _ = forward_layers(x_BTD, stack, remat="full", prefetch=False)
    return output_loss(x_BTD, gather(last, layout, options.dtype), rows, program)


def loss_and_gradients(
    weights: Arrays,
    token_BX: jax.Array,
    segment_BX: jax.Array | None,
    weight_BT: jax.Array,
    config: Config,
    layout: Layout,
    options: StepOptions,
    into: Arrays | None = None,
) -> tuple[jax.Array, Arrays]:
    """Weighted next-token loss of this data rank's rows, in nats, and its gradient in shards.

    token_BX int32; segment_BX the same or None (one document a row); weight_BT f32: the weight of
    predicting token_BX[:, 1:] (0 off the mask; the caller divides by the loss tokens of the global
    batch). into: gradients of earlier micro-batches, to which these are added in place, layer by
    layer: there is one buffer. Returns (loss f32: this data rank's part; name -> shard of the
    gradient of the sum over all ranks).
    """
    rows = rows_of(token_BX, segment_BX, weight_BT)
    sequence = sequence_parallel(layout, weight_BT.shape[1])
    program = Program(config, layout, options, sequence, segment_BX is not None)
    layers, outer = split_layers(weights, config)
    stack = stack_of(layers, rows, program)
    first, last = (gather(shards, layout, options.dtype) for shards in end_weights(outer, config))

    def embed(w):
        return embed_tokens(rows.token_BT, rows.position_BT, w, program)

    x_BTD, embed_vjp = jax.vjp(embed, first)
    x_BTD, tape = forward_layers(x_BTD, stack, options.remat, options.prefetch)
    loss, output_vjp = jax.vjp(lambda x, w: output_loss(x, w, rows, program), x_BTD, last)
    dx_BTD, dlast = output_vjp(jnp.ones_like(loss))
    dtied = dlast.pop("embed") if config.tied else None
    # Scattered here, not when the compiler likes: until then the output matrix's whole float32
    # gradient is held.
    dx_BTD, dlast = lax.optimization_barrier((dx_BTD, scatter(dlast, program)))

    def add(sums, i, dw):
        """Layer i's gradients into the stack."""
        dw = scatter(dw, program)
        if into is not None:
            # else the TPU compiler fuses the sum into the reduce-scatter, and crashes on v5p
            dw = lax.optimization_barrier(dw)
            dw = {
                n: lax.dynamic_index_in_dim(sums[n], i, keepdims=False) + g for n, g in dw.items()
            }
        return {n: lax.dynamic_update_index_in_dim(sums[n], g, i, 0) for n, g in dw.items()}

    zeros = {name: jnp.zeros(w.shape, options.grad_dtype) for name, w in layers.items()}
    sums = zeros if into is None else {name: into[name] for name in layers}
    dx_BTD, sums = backward_layers(dx_BTD, sums, add, tape, stack)
    (dfirst,) = embed_vjp(dx_BTD)
    if dtied is not None:
        g = options.grad_dtype
        dfirst["embed"] = dfirst["embed"].astype(g) + dtied.astype(g)
    ends = scatter(dfirst, program) | dlast
    return loss, sums | (ends if into is None else {n: into[n] + g for n, g in ends.items()})


def scatter(gradients: Arrays, program: Program) -> Arrays:
    """name -> this data rank's shard of the sum of the ranks' gradients."""
    layout, dtype = program.layout, program.options.grad_dtype
    return {
        name: sharding.scatter_gradient(g, layout.specs[name], dtype, layout.stages)
        for name, g in gradients.items()
    }


def main(argv: list[str] | None = None) -> int:
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
        dims = " x ".join(("L",) * row.layered + row.dims)
        print(f"{name:<13} {str(shape):<24} {dims:<12} {row.init}")
    print(f"{parameter_count(config):,} weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
