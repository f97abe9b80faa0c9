"""Meshes, specs and collectives; and that loss and every gradient are the same on every mesh.

    python -m pytest tests/test_sharding.py

Eight virtual CPU devices (tests/conftest.py). What several steps and the optimizers make of it:
tests/test_train.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as Spec
from numerics import differences, normal

import model
import sharding
from sharding import DATA, TENSOR

# Compiling is most of this file's time: without XLA's fusion emitters the steps below compile five
# times as fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


# --- collectives ---


def check_pair(local, whole, arrays, specs):
    """The gradient of `local`, taken inside shard_map over 4 tensor ranks, against differences of
    the plain `whole`.
    """

    def both(*arrays):
        return jax.value_and_grad(local, argnums=tuple(range(len(arrays))))(*arrays)

    mesh = sharding.make_mesh(1, 4)
    sharded = jax.shard_map(
        both, mesh=mesh, in_specs=specs, out_specs=(Spec(), specs), check_vma=False
    )
    value, gradients = jax.jit(sharded)(*(jnp.asarray(a, jnp.float32) for a in arrays))
    np.testing.assert_allclose(value, whole(*arrays), rtol=1e-5)
    for which, gradient in enumerate(gradients):
        expected = differences(whole, arrays, which)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_copy_in_and_sum_out_have_the_gradients_of_the_whole_program():
    """A column split, a non-linearity and a row split, twice: each one's gradient passes through
    the other's.
    """

    def local(x, w, u):
        enter, leave = sharding.copy_in, sharding.sum_out
        y = x + leave(jnp.tanh(enter(x) @ w) @ u)
        return jnp.sum(jnp.sin(y + leave(jnp.tanh(enter(y) @ w) @ u)))

    def whole(x, w, u):
        y = x + np.tanh(x @ w) @ u
        return np.sum(np.sin(y + np.tanh(y @ w) @ u))

    arrays = [normal(3, 5), normal(5, 8, seed=1), normal(8, 5, seed=2)]
    check_pair(local, whole, arrays, (Spec(), Spec(None, TENSOR), Spec(TENSOR, None)))


@pytest.mark.parametrize("dim", [0, 1])
def test_gather_in_and_scatter_out_have_the_gradients_of_the_whole_program(dim):
    """Between the regions each rank holds its slice of `dim`; a replicated scale is used there on
    different elements, so its gradient is summed by copy_in.
    """

    def local(x, s, w, u, v):
        y = x + sharding.scatter_out(
            jnp.tanh(sharding.gather_in(x * sharding.copy_in(s), dim) @ w) @ u, dim
        )
        return jnp.sum(
            jnp.sin(sharding.sum_out(sharding.gather_in(y * sharding.copy_in(s), dim) @ v))
        )

    def whole(x, s, w, u, v):
        y = x + np.tanh((x * s) @ w) @ u
        v = v.reshape(4, 3, 2).sum(
            axis=0
        )  # each rank multiplies by its own [3, 2], and the results are summed
        return np.sum(np.sin((y * s) @ v))

    shapes = (4, 8, 3), (1, 1, 3), (3, 8), (8, 3), (12, 2)
    arrays = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    slices = Spec(TENSOR) if dim == 0 else Spec(None, TENSOR)
    check_pair(
        local,
        whole,
        arrays,
        (slices, Spec(), Spec(None, TENSOR), Spec(TENSOR, None), Spec(TENSOR, None)),
    )


@pytest.mark.parametrize("stages", [(), (2, 2)])
@pytest.mark.parametrize(
    "spec",
    [
        Spec(DATA, TENSOR),
        Spec(TENSOR, DATA),
        Spec((TENSOR, DATA), None),
        Spec(None, TENSOR),
        Spec(None, None),
    ],
)
def test_weights_are_gathered_over_data_and_their_gradients_summed_into_shards(spec, stages):
    weight = normal(8, 12).astype(np.float32)
    mesh = sharding.make_mesh(4, 2)
    over_tensor = Spec(
        *(TENSOR if sharding.dim_over(spec, TENSOR) == dim else None for dim in range(2))
    )

    def local(shard):
        whole = sharding.gather_weight(shard, spec, jnp.float32, stages)
        gradient = whole * (
            1 + jax.lax.axis_index(DATA)
        )  # 1, 2, 3, 4 times the weight on the data ranks: 10 in all
        half = sharding.gather_weight(shard, spec, jnp.bfloat16, stages)
        return whole, half, sharding.scatter_gradient(gradient, spec, jnp.float32, stages)

    out = (over_tensor, over_tensor, spec)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    whole, half, gradient = jax.jit(sharded)(weight)
    np.testing.assert_array_equal(whole, weight)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, weight.astype(jnp.bfloat16))
    np.testing.assert_allclose(gradient, 10 * weight, rtol=1e-6)


# --- the same on any mesh ---

LLAMA = model.Config("llama", V=130, D=24, L=3, N=8, K=8, H=4, F=40, P=16, eps=1e-5)


GPT2 = model.Config("gpt2", V=130, D=24, L=3, N=8, K=8, H=3, F=96, P=16, eps=1e-5, tied=True)

CASES = {
    "llama": LLAMA,
    "llama_grouped": dataclasses.replace(LLAMA, N=16, H=2),
    "llama_few_kv": dataclasses.replace(LLAMA, K=2),  # 2 kv heads: fewer than 4 or 8 ranks
    "llama_tied": dataclasses.replace(LLAMA, K=4, tied=True),
    "gpt2": GPT2,
    "gpt2_5_heads": dataclasses.replace(
        GPT2, N=5, K=5, H=4, D=20, F=80
    ),  # no mesh splits 5 heads, nor 8 ranks D
    "llama_odd_ffn": dataclasses.replace(LLAMA, F=42, V=100),
    "llama_3_heads": dataclasses.replace(LLAMA, N=3, K=3, F=42, V=100),
    "qwen2": dataclasses.replace(LLAMA, K=2, tied=True, qkv_bias=True),
    "qwen3": dataclasses.replace(LLAMA, K=4, H=6, qk_norm=True),
    "llama_biased": dataclasses.replace(
        LLAMA, K=2, qkv_bias=True, out_bias=True, mlp_bias=True, rope_scaling=(4.0,)
    ),
}

MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]


def random_weights(config):
    """Larger than an initialisation's, norms and biases too, so that every gradient counts; padding
    rows zero.
    """
    weights, table = {}, model.weight_table(config)
    for seed, (name, shape) in enumerate(model.shapes(config).items()):
        noise = normal(*shape, seed=seed)
        row = table[name]
        if len(row.dims) == 1:
            noise = 0.3 * noise + (row.init == "ones")
        else:
            noise *= 1.0 if row.init == "embedding" else min(shape[-2:]) ** -0.5
        if row.dims[0] == "V":
            noise[config.V :] = 0
        weights[name] = noise.astype(np.float32)
    return weights


PLAIN = model.StepOptions(loss_chunk=5)

AS_TRAINED = PLAIN._replace(attention="blockwise", remat="dots", prefetch=True)


@functools.cache
def loss_and_gradients(case, T, data, tensor, compute=PLAIN, stages=(), major=False):
    """Of 8 rows of T + 1 tokens in up to three documents, by chunks of 5 tokens; two rows have no
    loss at all.
    """
    config = CASES[case]
    mesh, layout = (
        sharding.make_mesh(data, tensor),
        model.make_layout(config, data, tensor, stages=stages, major=major),
    )
    random = np.random.RandomState(7)
    token = random.randint(0, config.V, (8, T + 1)).astype(np.int32)
    segment = np.sort(random.randint(1, 4, (8, T + 1)), axis=1).astype(np.int32)
    weight = (random.rand(8, T) * (random.rand(8, T) > 0.3)).astype(np.float32)
    weight[[2, 7]] = 0

    def local(weights, token, segment, weight):
        loss, gradients = model.loss_and_gradients(
            weights, token, segment, weight, config, layout, compute
        )
        return jax.lax.psum(loss, DATA), gradients

    specs = layout.stacked(config)
    rows = Spec(DATA)
    in_specs, out_specs = (specs, rows, rows, rows), (Spec(), specs)
    with jax.default_matmul_precision("highest"):
        sharded = jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        step = jax.jit(sharded, compiler_options=QUICK)
        loss, gradients = step(random_weights(config), token, segment, weight / weight.sum())
    return float(loss), {
        name: np.asarray(gradient, np.float64) for name, gradient in gradients.items()
    }


def assert_same_as_one_device(case, T, data, tensor, compute=PLAIN, tolerance=1e-5, major=False):
    """1e-5 in relative Frobenius norm for float32 sums in another order (7e-7 measured).

    GPT-2's key biases are exempt: they shift all of a query's scores alike, so their gradient is
    zero in exact arithmetic and rounding here.
    """
    expected, reference = loss_and_gradients(case, T, 1, 1)
    loss, gradients = loss_and_gradients(case, T, data, tensor, compute, major=major)
    assert abs(loss - expected) <= tolerance / 10 * expected
    assert gradients.keys() == model.weight_table(CASES[case]).keys()
    exempt = {"bk"} if CASES[case].family == "gpt2" else set()
    for name in gradients.keys() - exempt:
        size = np.linalg.norm(reference[name])
        assert size > 1e-4, f"{name}'s gradient is so small that the comparison says nothing"
        distance = np.linalg.norm(gradients[name] - reference[name]) / size
        assert distance <= tolerance, f"{name} differs by {distance:.1e}"
    if exempt:
        assert np.linalg.norm(gradients["bk"]) < tolerance * np.linalg.norm(gradients["bq"])


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh[0]}x{mesh[1]}")
@pytest.mark.parametrize(
    "case",
    [
        "llama",
        "llama_grouped",
        "llama_few_kv",
        "llama_tied",
        "gpt2",
        "gpt2_5_heads",
        "qwen2",
        "qwen3",
        "llama_biased",
    ],
)
def test_loss_and_every_gradient_are_those_of_one_device(case, mesh):
    assert_same_as_one_device(case, 8, *mesh)


@pytest.mark.parametrize(
    "case, T, mesh",
    [
        (
            "llama_few_kv",
            7,
            (2, 4),
        ),  # T does not divide by tensor: activations are whole between the regions
        ("llama_tied", 7, (4, 2)),
        ("gpt2", 7, (1, 8)),
        ("llama_odd_ffn", 8, (2, 4)),  # attention and vocabulary split, the MLP whole
        ("llama_biased", 7, (2, 4)),
        ("qwen3", 7, (1, 8)),
        ("llama_3_heads", 9, (2, 3)),  # attention and MLP split, the vocabulary's 128 rows whole
    ],
    ids=lambda value: f"{value[0]}x{value[1]}" if isinstance(value, tuple) else str(value),
)
def test_loss_and_every_gradient_are_those_of_one_device_where_only_a_part_is_split(case, T, mesh):
    assert not model.sequence_parallel(model.make_layout(CASES[case], *mesh), T)
    assert_same_as_one_device(case, T, *mesh)


@pytest.mark.parametrize("case, mesh", [("llama_few_kv", (2, 4)), ("gpt2_5_heads", (4, 2))])
def test_blockwise_attention_kept_products_and_prefetched_weights_change_nothing_on_a_mesh(
    case, mesh
):
    assert_same_as_one_device(case, 8, *mesh, AS_TRAINED)


@pytest.mark.parametrize(
    "case, mesh, stages",
    [
        ("llama", (8, 1), (2, 4)),
        ("llama_tied", (8, 1), (4, 2)),
        ("gpt2", (8, 1), (2, 2, 2)),
        ("llama_few_kv", (4, 2), (2, 2)),
    ],
)
def test_stages_change_neither_loss_nor_gradients(case, mesh, stages):
    """1e-6: float32 sums over the ranks in another order, 3e-7 measured."""
    loss, gradients = loss_and_gradients(case, 8, *mesh)
    staged_loss, staged = loss_and_gradients(case, 8, *mesh, stages=stages)
    assert abs(staged_loss - loss) <= 1e-6 * loss
    for name in gradients.keys() - {"bk"}:
        assert np.linalg.norm(staged[name] - gradients[name]) <= 1e-6 * np.linalg.norm(
            gradients[name]
        ), name


@pytest.mark.parametrize("case, mesh", [("llama_tied", (2, 1)), ("gpt2", (4, 2))])
def test_weights_split_on_their_first_dimension_as_a_cpu_computes_change_nothing(case, mesh):
    layout = model.make_layout(CASES[case], *mesh, major=True)
    assert sharding.dim_over(layout.specs["embed"], DATA) == 0
    as_on_cpus = PLAIN._replace(attention="blockwise", remat="dots", join=("qkv",), tall=True)
    assert_same_as_one_device(case, 8, *mesh, as_on_cpus, major=True)


def test_bfloat16_on_a_mesh_stays_close_to_float32_on_one_device():
    """Activations travel in bfloat16 too.

    5 %: as tests/test_model.py measures for one device, with larger matrices.
    """
    assert_same_as_one_device(
        "llama_few_kv", 8, 2, 4, AS_TRAINED._replace(dtype=jnp.bfloat16), tolerance=5e-2
    )


def test_the_cases_above_are_the_ones_they_claim_to_be():
    def layout(case, tensor):
        return model.make_layout(CASES[case], 8 // tensor, tensor)

    for tensor in (2, 4, 8):
        for case in ("llama", "llama_grouped", "llama_tied", "gpt2", "llama_few_kv"):
            assert model.sequence_parallel(layout(case, tensor), 8)
        assert not layout("gpt2_5_heads", tensor).attention and layout("gpt2_5_heads", tensor).mlp
        assert (
            layout("llama_few_kv", tensor).kv == (tensor == 2)
            and layout("llama_few_kv", tensor).attention
        )
    assert sharding.axes_of(layout("gpt2_5_heads", 1).specs["attn_norm"]) == ()
    odd, three = layout("llama_odd_ffn", 4), model.make_layout(CASES["llama_3_heads"], 2, 3)
    assert (odd.attention, odd.mlp, odd.vocab) == (True, False, True)
    assert (three.attention, three.mlp, three.vocab) == (True, True, False)


@pytest.mark.parametrize("case, mesh", [("llama_few_kv", (2, 4)), ("gpt2_5_heads", (8, 1))])
def test_initial_weights_are_the_same_on_every_mesh(case, mesh):
    config = CASES[case]

    def weights(data, tensor):
        layout = model.make_layout(config, data, tensor)
        mesh = sharding.make_mesh(data, tensor)
        made = model.initialise(config, mesh, layout, seed=3)
        for name, spec in layout.stacked(config).items():
            assert made[name].sharding.is_equivalent_to(
                jax.NamedSharding(mesh, spec), made[name].ndim
            )
        return made

    expected = weights(1, 1)
    for name, weight in weights(*mesh).items():
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)
