"""Blockwise attention against the plain reference: value, every gradient, segments, ragged blocks, memory; and the training step with either."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels
import model
import sharding


def inputs(B, T, N, K, H, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in ((B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H))]


@pytest.mark.parametrize("heads", [(3, 3), (6, 2), (4, 1)])
@pytest.mark.parametrize("T, block", [(5, 8), (16, 8), (37, 8), (9, 1)])
@pytest.mark.parametrize("packed", [False, True])
def test_blockwise_equals_the_reference_in_value_and_every_gradient(heads, T, block, packed):
    q, k, v, g = inputs(2, T, *heads, 4)
    segment = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 3, (2, T)), axis=1), jnp.int32) if packed else None
    mask = kernels.causal_mask(jnp.ones((2, T), jnp.int32) if segment is None else segment)
    plain = lambda q, k, v: jnp.sum(kernels.attention(q, k, v, mask) * g)
    ours = lambda q, k, v: jnp.sum(kernels.blockwise_attention(q, k, v, segment, block) * g)
    (want, dwant), (got, dgot) = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v) for f in (plain, ours))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # sums of some hundred float32 products in another order
    for name, a, b in zip("qkv", dgot, dwant, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"d{name}")


def test_blockwise_in_bfloat16_is_as_near_to_float32_as_the_reference():
    q, k, v, _ = inputs(1, 64, 4, 2, 16)
    mask = kernels.causal_mask(jnp.ones((1, 64), jnp.int32))
    exact = kernels.attention(q, k, v, mask)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    distance = lambda x: float(jnp.linalg.norm(x.astype(jnp.float32) - exact) / jnp.linalg.norm(exact))
    ours = kernels.blockwise_attention(*half, None, 16)
    assert ours.dtype == jnp.bfloat16
    assert distance(ours) < 1.2 * distance(kernels.attention(*half, mask)) < 0.02


def test_a_later_key_gets_no_gradient_from_an_earlier_query():
    q, k, v, _ = inputs(1, 24, 2, 2, 4)
    dk, dv = jax.grad(lambda k, v: jnp.sum(kernels.blockwise_attention(q, k, v, None, 8)[:, :11]), (0, 1))(k, v)
    assert not np.any(dk[:, 11:]) and not np.any(dv[:, 11:]) and np.all(np.any(dv[:, :11], axis=(2, 3)))


def test_a_key_of_another_document_has_a_gradient_of_exactly_zero():
    q, k, v, _ = inputs(2, 20, 2, 2, 6)
    segment = jnp.asarray(np.repeat([[1, 2], [1, 2]], [11, 9], axis=1), jnp.int32)
    dk, dv = jax.grad(lambda k, v: jnp.sum(kernels.blockwise_attention(q, k, v, segment, 8)[:, 12]), (0, 1))(k, v)
    for d in (dk, dv):
        seen = np.abs(np.asarray(d)).max(axis=(0, 2, 3)) > 0
        assert seen.tolist() == [11 <= s <= 12 for s in range(20)]


def test_large_scores_do_not_overflow():
    q, k, v, g = inputs(2, 37, 3, 3, 6)
    out, vjp = jax.vjp(lambda q, k, v: kernels.blockwise_attention(q, k, v, None, 8), 1e4 * q, k, v)
    assert all(np.isfinite(x).all() for x in (out, *vjp(g)))


def test_blocks_above_the_diagonal_are_not_computed():
    """FLOPs of the traced products: 2 of them forward, 5 backward (the scores again), each over the blocks up to the diagonal."""
    T, block, N, K, H = 64, 8, 4, 2, 6
    q, k, v, g = inputs(2, T, N, K, H)
    flops = 0

    def walk(jaxpr, times):
        nonlocal flops
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                flops += times * 2 * eqn.outvars[0].aval.size * np.prod([eqn.invars[0].aval.shape[d] for d in contract])
            for inner in jax.core.jaxprs_in_params(eqn.params):
                walk(inner, times * eqn.params.get("length", 1))

    walk(jax.make_jaxpr(jax.grad(lambda q, k, v: jnp.sum(kernels.blockwise_attention(q, k, v, None, block) * g), (0, 1, 2)))(q, k, v).jaxpr, 1)
    assert flops == 7 * 2 * 2 * N * T * T * H * (T + block) / (2 * T)


def test_no_matrix_of_queries_by_keys_is_ever_in_memory():
    q, k, v, g = inputs(1, 1024, 4, 4, 8)
    mask = kernels.causal_mask(jnp.ones((1, 1024), jnp.int32))
    memory = lambda f: jax.jit(jax.grad(lambda q, k, v: jnp.sum(f(q, k, v) * g), (0, 1, 2))).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes
    plain, ours = memory(lambda q, k, v: kernels.attention(q, k, v, mask)), memory(lambda q, k, v: kernels.blockwise_attention(q, k, v, None))
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
            loss, gradients = model.loss_and_gradients(weights, token, None, weight, config, layout, compute)
            return jax.lax.psum(loss, "data"), gradients

        P = jax.sharding.PartitionSpec
        return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(specs, P("data"), P("data")), out_specs=(P(), specs), check_vma=False))(weights, token, weight)

    want, dwant = run(model.Compute(loss_chunk=10))
    got, dgot = run(model.Compute(loss_chunk=10, attention=attention, remat=remat))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    worst = max((float(jnp.linalg.norm(dgot[n] - g) / jnp.linalg.norm(g)), n) for n, g in dwant.items())
    assert worst[0] < 1e-5, worst
