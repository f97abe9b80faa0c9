"""Blockwise attention against the plain reference: value, every gradient, segments, ragged blocks,
memory; and the training step with either.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import model
import sharding
from kernels import stack
from kernels.attention import (
    blockwise_attention,
    causal_mask,
    pick_attention,
    positions_of,
    reference_attention,
)


def inputs(B, T, N, K, H, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))
    ]


@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (4, 1)])
@pytest.mark.parametrize("T, block", [(5, 8), (16, 8), (37, 8), (9, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_blockwise_equals_the_reference_in_value_and_every_gradient(heads, T, block, packed):
    q, k, v, g = inputs(2, T, *heads, 4)
    segment = (
        jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 3, (2, T)), axis=1), jnp.int32)
        if packed
        else None
    )
    mask = causal_mask(jnp.ones((2, T), jnp.int32) if segment is None else segment)

    def plain(q, k, v):
        return jnp.sum(reference_attention(q, k, v, mask) * g)

    def ours(q, k, v):
        return jnp.sum(blockwise_attention(q, k, v, segment, block) * g)

    (want, dwant), (got, dgot) = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (plain, ours)
    )
    np.testing.assert_allclose(
        got, want, rtol=1e-5, atol=1e-5
    )  # sums of some hundred float32 products in another order
    for name, a, b in zip("qkv", dgot, dwant, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"d{name}")


def test_blockwise_in_bfloat16_is_as_near_to_float32_as_the_reference():
    q, k, v, _ = inputs(1, 64, 4, 2, 16)
    mask = causal_mask(jnp.ones((1, 64), jnp.int32))
    exact = reference_attention(q, k, v, mask)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]

    def distance(x):
        return float(jnp.linalg.norm(x.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))

    ours = blockwise_attention(*half, None, 16)
    assert ours.dtype == jnp.bfloat16
    assert distance(ours) < 1.2 * distance(reference_attention(*half, mask)) < 0.02


def test_a_later_key_gets_no_gradient_from_an_earlier_query():
    q, k, v, _ = inputs(1, 24, 2, 2, 4)
    dk, dv = jax.grad(lambda k, v: jnp.sum(blockwise_attention(q, k, v, None, 8)[:, :11]), (0, 1))(
        k, v
    )
    assert (
        not np.any(dk[:, 11:])
        and not np.any(dv[:, 11:])
        and np.all(np.any(dv[:, :11], axis=(2, 3)))
    )


def test_a_key_of_another_document_has_a_gradient_of_exactly_zero():
    q, k, v, _ = inputs(2, 20, 2, 2, 6)
    segment = jnp.asarray(np.repeat([[1, 2], [1, 2]], [11, 9], axis=1), jnp.int32)
    dk, dv = jax.grad(
        lambda k, v: jnp.sum(blockwise_attention(q, k, v, segment, 8)[:, 12]), (0, 1)
    )(k, v)
    for d in (dk, dv):
        seen = np.abs(np.asarray(d)).max(axis=(0, 2, 3)) > 0
        assert seen.tolist() == [11 <= s <= 12 for s in range(20)]


def test_large_scores_do_not_overflow():
    q, k, v, g = inputs(2, 37, 3, 3, 6)
    out, vjp = jax.vjp(lambda q, k, v: blockwise_attention(q, k, v, None, 8), 1e4 * q, k, v)
    assert all(np.isfinite(x).all() for x in (out, *vjp(g)))


def test_blocks_above_the_diagonal_are_not_computed():
    """FLOPs of the traced products: 2 of them forward, 5 backward (the scores again), each over the
    blocks up to the diagonal.
    """
    T, block, N, K, H = 64, 8, 4, 2, 6
    q, k, v, g = inputs(2, T, N, K, H)
    flops = 0

    def walk(jaxpr, times):
        nonlocal flops
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                flops += (
                    times
                    * 2
                    * eqn.outvars[0].aval.size
                    * np.prod([eqn.invars[0].aval.shape[d] for d in contract])
                )
            for inner in jax.core.jaxprs_in_params(eqn.params):
                walk(inner, times * eqn.params.get("length", 1))

    walk(
        jax.make_jaxpr(
            jax.grad(
                lambda q, k, v: jnp.sum(blockwise_attention(q, k, v, None, block) * g), (0, 1, 2)
            )
        )(q, k, v).jaxpr,
        1,
    )
    assert flops == 7 * 2 * 2 * N * T * T * H * (T + block) / (2 * T)


def test_no_matrix_of_queries_by_keys_is_ever_in_memory():
    q, k, v, g = inputs(1, 1024, 4, 4, 8)
    mask = causal_mask(jnp.ones((1, 1024), jnp.int32))

    def memory(f):
        return (
            jax.jit(jax.grad(lambda q, k, v: jnp.sum(f(q, k, v) * g), (0, 1, 2)))
            .lower(q, k, v)
            .compile()
            .memory_analysis()
            .temp_size_in_bytes
        )

    plain, ours = (
        memory(lambda q, k, v: reference_attention(q, k, v, mask)),
        memory(lambda q, k, v: blockwise_attention(q, k, v, None)),
    )
    assert plain > 4 * 1024 * 1024 * 4 * 2  # the four heads' scores, twice at least
    assert ours < plain / 8, (ours, plain)


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
@pytest.mark.parametrize("attention", ["reference", "blockwise"])
def test_the_step_is_the_same_with_every_kernel_and_rematerialisation(attention, remat):
    config = model.llama(300, 24, 2, 6, 36, 64, 1e-5, K=2)
    mesh, layout = sharding.make_mesh(2, 2), model.make_layout(config, 2, 2)
    weights = model.initialise(config, mesh, layout, 0)
    rng = np.random.default_rng(0)
    token = rng.integers(0, 300, (4, 17)).astype(np.int32)
    weight = rng.random((4, 16)).astype(np.float32)
    specs = layout.stacked(config)

    def run(compute):
        def local(weights, token, weight):
            loss, gradients = model.loss_and_gradients(
                weights, token, None, weight, config, layout, compute
            )
            return jax.lax.psum(loss, "data"), gradients

        Spec = jax.sharding.PartitionSpec
        return jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=(specs, Spec("data"), Spec("data")),
                out_specs=(Spec(), specs),
                check_vma=False,
            )
        )(weights, token, weight)

    want, dwant = run(model.StepOptions(loss_chunk=10))
    got, dgot = run(model.StepOptions(loss_chunk=10, attention=attention, remat=remat))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    worst = max(
        (float(jnp.linalg.norm(dgot[n] - g) / jnp.linalg.norm(g)), n) for n, g in dwant.items()
    )
    assert worst[0] < 1e-5, worst


def every_way(config, T=17):
    """A function (compute, accumulate) -> (loss, gradients) of a small batch of packed rows on a
    2x2 mesh.
    """
    mesh, layout = sharding.make_mesh(2, 2), model.make_layout(config, 2, 2)
    weights = model.initialise(config, mesh, layout, 0)
    rng = np.random.default_rng(0)
    token = rng.integers(0, 300, (4, T)).astype(np.int32)
    segment = np.sort(rng.integers(0, 3, (4, T)), axis=1).astype(np.int32)
    weight = rng.random((4, T - 1)).astype(np.float32)
    specs, Spec = layout.stacked(config), jax.sharding.PartitionSpec

    def run(compute, accumulate=1):
        def local(weights, token, segment, weight):
            loss, gradients = 0.0, None
            for part in range(accumulate):
                rows = slice(part * len(token) // accumulate, (part + 1) * len(token) // accumulate)
                one, gradients = model.loss_and_gradients(
                    weights,
                    token[rows],
                    segment[rows],
                    weight[rows],
                    config,
                    layout,
                    compute,
                    into=gradients,
                )
                loss += one
            return jax.lax.psum(loss, "data"), gradients

        in_specs = (specs, Spec("data"), Spec("data"), Spec("data"))
        return jax.jit(
            jax.shard_map(
                local, mesh=mesh, in_specs=in_specs, out_specs=(Spec(), specs), check_vma=False
            )
        )(weights, token, segment, weight)

    return run


@pytest.mark.parametrize("L", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prefetch_rematerialisation_and_accumulation_change_no_gradient(family, L):
    """GPT-2's key biases are exempt: their gradient is zero in exact arithmetic."""
    config = (
        model.llama(300, 24, L, 6, 36, 64, 1e-5, K=2)
        if family == "llama"
        else model.gpt2(300, 24, L, 6, P=64)
    )
    run = every_way(config)
    want, dwant = run(model.StepOptions(loss_chunk=10))
    for compute, accumulate in [
        (model.StepOptions(loss_chunk=10, prefetch=True), 1),
        (model.StepOptions(loss_chunk=10, prefetch=True, remat="dots", attention="blockwise"), 2),
        (model.StepOptions(loss_chunk=10, remat="none"), 2),
        (model.StepOptions(loss_chunk=10, mlp_rows=1, join=()), 1),
        (model.StepOptions(loss_chunk=10, remat="dots", unroll=True, join=()), 1),
        (model.StepOptions(loss_chunk=10, remat="dots", join=("qkv",), tall=True), 1),
    ]:
        got, dgot = run(compute, accumulate)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        worst = max(
            (float(jnp.linalg.norm(dgot[n] - g) / jnp.linalg.norm(g)), n)
            for n, g in dwant.items()
            if n != "bk"
        )
        assert worst[0] < 1e-5, (worst, compute, accumulate)


@pytest.mark.parametrize(
    "remat, join, names",
    [
        ("full", ("qkv", "13"), 0),
        ("dots", ("qkv", "13"), 6),
        ("none", ("qkv", "13"), 11),
        ("dots", ("qkv",), 7),
        ("dots", (), 9),
    ],
)
def test_what_a_layer_keeps_holds_neither_weights_nor_what_all_layers_share(remat, join, names):
    """dots: x, qkv, attention's output and log-sum, the residual between, gate and up; none: also
    both normed inputs, q and k turned, the activation. Apart, q and k are kept as turned only.
    """
    config = model.llama(300, 24, 1, 6, 36, 64, 1e-5)
    options = model.StepOptions(join=join)
    program = model.Program(config, model.make_layout(config, 1, 1), options)
    weights = {
        n: jnp.ones(s[1:])
        for n, s in model.shapes(config).items()
        if model.weight_table(config)[n].layered
    }
    segment = jnp.ones((2, 16), jnp.int32)
    shared = (model.rope_of(positions_of(segment), config), segment)

    def layer(x, w, rope, segment):
        def attend(q, k, v):
            return (blockwise_attention(q, k, v, segment, 8), None)

        return model.run_layer(x, w, rope, attend, program)[0]

    _, residuals = jax.eval_shape(
        lambda x: stack.layer_forward(layer, x, weights, shared, remat), jnp.ones((2, 16, 24))
    )
    kept = residuals.arrays
    assert len(kept) == max(names, 1), [k.shape for k in kept]
    assert not {k.shape for k in kept} & (
        {w.shape for w in weights.values()} | {s.shape for s in jax.tree.leaves(shared)}
    )


def test_a_gpu_takes_cudnn_for_16_bit_types_only():
    def pick(asked, platform, dtype):
        return pick_attention(asked, platform, dtype, 2048, 64)

    assert pick("auto", "gpu", "bfloat16") == pick("cudnn", "gpu", "bfloat16") == "cudnn"
    assert pick("auto", "gpu", "float32") == pick("auto", "cpu", "bfloat16") == "blockwise"
    with pytest.raises(ValueError, match="needs an NVIDIA GPU and --dtype bfloat16"):
        pick("cudnn", "gpu", "float32")
