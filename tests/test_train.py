"""train.py: schedules, optimizers against optax, the step on every mesh, accumulation."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
import train
from kernels import stack
from training import batches, start

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLAMA = model.llama(300, 24, 2, 6, 36, 64, 1e-5)
CONFIGS = {
    "mha": LLAMA,
    "gqa": dataclasses.replace(LLAMA, N=8, K=2, H=4),
    "gpt2": model.gpt2(300, 24, 2, 6, P=64),
}
OPTIMIZERS = ["adamw-scaled", "easylm", "adamw"]


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / (np.linalg.norm(np.asarray(b)) + 1e-30)


# --- schedule ---


@pytest.mark.parametrize("name", ["constant", "cosine", "linear"])
def test_schedules_equal_optax(name):
    lr, warmup, steps = 2e-3, 10, 40
    after = {
        "constant": optax.constant_schedule(lr),
        "cosine": optax.cosine_decay_schedule(lr, steps - warmup),
        "linear": optax.linear_schedule(lr, 0, steps - warmup),
    }[name]
    theirs = optax.join_schedules([optax.linear_schedule(0, lr, warmup), after], [warmup])
    ours = [
        float(train.learning_rate(s, lr=lr, warmup=warmup, steps=steps, schedule=name))
        for s in range(steps)
    ]
    np.testing.assert_allclose(ours, [float(theirs(s)) for s in range(steps)], rtol=1e-5, atol=1e-9)
    assert ours[0] == 0 and ours[warmup] == pytest.approx(lr)


# --- optimizer ---


def optax_twin(name, lr, b1, b2, decay, mask):
    """What optax computes for each mode, from its own parts; easylm as EasyLM chains them (decay
    after Adafactor, by the schedule).
    """
    if name == "adamw":
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(lr, b1, b2, 1e-8, weight_decay=decay, mask=mask),
        )
    if name == "adamw-scaled":
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(b1, b2, 1e-8),
            optax.scale_by_param_block_rms(1e-3),
            optax.add_decayed_weights(decay, mask),
            optax.scale_by_learning_rate(lr),
        )
    adafactor = optax.adafactor(
        lr,
        factored=False,
        clipping_threshold=None,
        decay_rate=b2,
        multiply_by_parameter_scale=True,
        momentum=b1,
        dtype_momentum=jnp.float32,
    )
    scheduled_decay = optax.chain(
        optax.add_decayed_weights(decay), optax.scale_by_schedule(lambda s: -lr(s))
    )
    zero = optax.chain(optax.scale(0.0), scheduled_decay)

    def update(gradients, state, params):
        first, second = state[1], state[2]
        clipped, clip_state = optax.clip_by_global_norm(1.0).update(gradients, state[0], params)
        a, first = adafactor.update(clipped, first, params)
        b, second = zero.update(clipped, second, params)
        return jax.tree.map(jnp.add, a, b), (clip_state, first, second)

    return optax.GradientTransformation(
        lambda p: (optax.clip_by_global_norm(1.0).init(p), adafactor.init(p), zero.init(p)), update
    )


def random_gradients(config, shapes, key, s):
    """Of step s: zero on padding rows, of a norm that is clipped at some steps only."""
    table, out = model.weight_table(config), {}
    for i, (n, shape) in enumerate(shapes.items()):
        g = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), s), shape)
        g = g * 0.002 * (1 + s % 7)
        real = jnp.arange(shape[0])[:, None] < config.V
        out[n] = jnp.where(real, g, 0) if table[n].dims[0] == "V" else g
    return out


def layers_apart(config, tree):
    """{(name, layer or None): weight without padding rows} of stacked weights."""
    table = model.weight_table(config)

    def real(n, x):
        return x[: config.V] if table[n].dims[0] == "V" else x

    layered = {(n, i): real(n, x[i]) for n, x in tree.items() if table[n].layered
               for i in range(config.L)}  # fmt: skip
    return layered | {(n, None): real(n, x) for n, x in tree.items() if not table[n].layered}


@pytest.mark.parametrize("mesh_shape", [(1, 1), (4, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sixty_steps_of_each_optimizer_equal_optax_with_stacked_layers(name, mesh_shape):
    config = CONFIGS["gpt2"]  # matrices, vectors, zeros (the RMS floor) and padding rows
    mesh = sharding.make_mesh(*mesh_shape)
    layout = model.make_layout(config, *mesh_shape)
    table = model.weight_table(config)
    b1, b2, decay = 0.9, 0.95, 0.1
    opt = train.Optimizer(name, b1, b2, decay, 1.0)
    schedule = functools.partial(
        train.learning_rate, lr=2e-2, warmup=5, steps=60, schedule="cosine"
    )
    specs = layout.stacked(config)
    weights = model.initialise(config, mesh, layout, 0)

    def local(state, gradients):
        lr = schedule(state["step"])
        return train.update(state, gradients, lr, jnp.array(True), config, layout.specs, opt)

    state_specs = {"weights": specs, "m": specs, "v": specs, "step": Spec()}
    ours = jax.jit(
        jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(state_specs, specs),
            out_specs=(state_specs, Spec()),
            check_vma=False,
        )
    )

    apart = functools.partial(layers_apart, config)
    theirs_w = apart(jax.tree.map(np.asarray, weights))
    twin = optax_twin(name, schedule, b1, b2, decay, {k: table[k[0]].decay for k in theirs_w})
    twin_state = twin.init(theirs_w)
    twin_step = jax.jit(
        lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*twin.update(g, s, p))
    )
    make = jax.jit(functools.partial(random_gradients, config, jax.tree.map(jnp.shape, weights)))
    m, v = (jax.tree.map(jnp.zeros_like, weights) for _ in range(2))
    state = {"weights": weights, "m": m, "v": v, "step": jnp.int32(0)}
    clipped = set()
    for s in range(60):
        g = jax.tree.map(np.asarray, make(jax.random.key(1), s))
        state, norm = ours(state, g)
        clipped.add(bool(norm > 1))
        theirs_w, twin_state = twin_step(apart(g), twin_state, theirs_w)
    assert clipped == {True, False}
    assert int(state["step"]) == 60
    weights = state["weights"]
    mine = apart(jax.tree.map(np.asarray, weights))
    worst = max((relative(mine[k], theirs_w[k]), k) for k in mine)
    assert worst[0] < 1e-5, worst
    assert not np.any(np.asarray(weights["embed"])[config.V :]), "padding rows stay zero"


# --- step ---


def random_batches(count, B=16, T=16, V=300, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            "tokens": rng.integers(0, V, (B, T + 1)).astype(np.int32),
            "loss_mask": (rng.random((B, T + 1)) < 0.5).astype(np.int8),
        }


def train_few(
    config,
    mesh_shape,
    name="adamw-scaled",
    accumulate=1,
    loss_mean="token",
    rows=None,
    moment_dtype="float32",
    warmup=2,
):
    """(losses, metrics of the last step, weights) after the steps of `rows` from the weights of
    seed 0. mesh_shape: data, tensor, and the stages of a gather where there are several.
    """
    ranks, stages = mesh_shape[:2], tuple(mesh_shape[2:])
    mesh, layout = sharding.make_mesh(*ranks), model.make_layout(config, *ranks, stages=stages)
    state = start.new_state(
        model.initialise(config, mesh, layout, 0),
        start.state_like(config, mesh, layout, jnp.dtype(moment_dtype)),
    )
    schedule = functools.partial(
        train.learning_rate, lr=1e-2, warmup=warmup, steps=10, schedule="constant"
    )
    step = train.make_step(
        config,
        mesh,
        layout,
        model.StepOptions(loss_chunk=50),
        train.Optimizer(name, 0.9, 0.95, 0.1, 1.0),
        schedule,
        loss_mean,
    )
    losses, got = [], None
    for batch in rows if rows is not None else random_batches(5):
        data = batches.device_batch(
            lambda i, batch=batch: {k: v[i] for k, v in batch.items()},
            np.arange(len(batch["tokens"])),
            accumulate,
            mesh,
        )
        state, got = step(state, data)
        losses.append(float(got["loss"]))
    return losses, {k: float(x) for k, x in got.items()}, jax.tree.map(np.asarray, state["weights"])


@functools.lru_cache
def one_device(config_name, name):
    with jax.default_matmul_precision("highest"):
        return train_few(CONFIGS[config_name], (1, 1), name)


def every_model_and_optimizer():
    """All pairs; `make test` takes each model with the default and one with every optimizer."""
    for config_name in CONFIGS:
        for name in OPTIMIZERS:
            often = name == "adamw-scaled" or config_name == "gqa"
            yield pytest.param(config_name, name, marks=[] if often else pytest.mark.slow)


@pytest.mark.parametrize("mesh_shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("config_name, name", every_model_and_optimizer())
def test_five_steps_on_every_mesh_equal_one_device(config_name, name, mesh_shape):
    losses, _, weights = one_device(config_name, name)
    with jax.default_matmul_precision("highest"):
        got, _, sharded = train_few(CONFIGS[config_name], mesh_shape, name)
    np.testing.assert_allclose(got, losses, rtol=1e-5)
    # GPT-2's key biases have gradient zero in exact arithmetic: what Adam makes of the rounding
    # differs
    worst = max((relative(sharded[n], w), n) for n, w in weights.items() if n != "bk")
    assert worst[0] < 1e-5, worst


@functools.lru_cache
def three_steps(mesh_shape, rings=()):
    with jax.default_matmul_precision("highest"):
        return train_few(LLAMA, (*mesh_shape, *rings), rows=random_batches(3))


@pytest.mark.parametrize(
    "mesh_shape, rings", [((8, 1), (4, 2)), ((8, 1), (2, 4)), ((4, 2), (2, 2))]
)
def test_three_steps_with_weights_gathered_in_rings_equal_those_gathered_at_once(mesh_shape, rings):
    losses, _, weights = three_steps(mesh_shape)
    got, _, ringed = three_steps(mesh_shape, rings)
    np.testing.assert_allclose(got, losses, rtol=1e-6)
    worst = max((relative(ringed[n], w), n) for n, w in weights.items())
    assert worst[0] < 1e-6, worst


@pytest.mark.parametrize("loss_mean", ["token", "row"])
def test_accumulation_equals_the_big_batch(loss_mean):
    rows = list(random_batches(3))
    for batch in rows:
        batch["loss_mask"][:9] = (
            # micro-batches with very different numbers of loss tokens: a mean of means would differ
            0
        )
        batch["loss_mask"][9, 3] = 1
    whole, _, w1 = train_few(LLAMA, (2, 1), rows=rows, loss_mean=loss_mean)
    parts, _, w2 = train_few(LLAMA, (2, 1), rows=rows, loss_mean=loss_mean, accumulate=4)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert max(relative(w2[n], w1[n]) for n in w1) < 1e-5


def test_the_row_mean_is_easylms_and_the_token_mean_is_not():
    (batch,) = random_batches(1)
    batch["loss_mask"][:3] = 0
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(LLAMA, 1, 1)
    logits = np.asarray(
        model.make_logits(LLAMA, mesh, layout)(
            model.initialise(LLAMA, mesh, layout, 0), batch["tokens"][:, :-1]
        ),
        np.float64,
    )
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(logp, batch["tokens"][:, 1:, None], -1)[..., 0]
    mask = batch["loss_mask"][:, 1:].astype(np.float64)
    row = np.mean(
        (nll * mask).sum(1) / np.maximum(mask.sum(1), 1e-10)
    )  # EasyLM's cross_entropy_loss_and_accuracy: a row without loss tokens counts 0
    token = (nll * mask).sum() / mask.sum()
    assert abs(row - token) > 0.1
    assert train_few(LLAMA, (2, 1), rows=[batch], loss_mean="row")[0][0] == pytest.approx(
        row, rel=1e-5
    )
    assert train_few(LLAMA, (2, 1), rows=[batch], loss_mean="token")[0][0] == pytest.approx(
        token, rel=1e-5
    )


def test_a_batch_without_loss_tokens_changes_nothing_and_is_not_nan():
    first, empty = random_batches(2)
    empty["loss_mask"][:] = 0
    _, _, after_one = train_few(LLAMA, (2, 1), rows=[first], warmup=0)
    losses, metrics, after_both = train_few(LLAMA, (2, 1), rows=[first, empty], warmup=0)
    assert losses[1] == 0 and metrics["loss_tokens"] == 0
    assert all(np.array_equal(after_one[n], after_both[n]) for n in after_one)


def test_a_step_that_is_not_finite_leaves_the_weights_as_they_were():
    (first,) = random_batches(1)
    mesh, layout = sharding.make_mesh(2, 1), model.make_layout(LLAMA, 2, 1)
    weights = model.initialise(LLAMA, mesh, layout, 0)
    weights["wo"] = weights["wo"].at[0, 0, 0].set(jnp.inf)
    before = jax.tree.map(np.asarray, weights)
    state = start.new_state(weights, start.state_like(LLAMA, mesh, layout, jnp.float32))
    step = train.make_step(
        LLAMA,
        mesh,
        layout,
        model.StepOptions(loss_chunk=50),
        train.Optimizer("adamw", 0.9, 0.95, 0.0, 1.0),
        lambda s: jnp.float32(0.1),
        "token",
    )
    state, metrics = step(
        state,
        batches.device_batch(lambda i: {k: v[i] for k, v in first.items()}, np.arange(16), 1, mesh),
    )
    assert not np.isfinite(float(metrics["loss"]))
    assert all(np.array_equal(before[n], np.asarray(state["weights"][n])) for n in before)


def test_a_bfloat16_first_moment_stays_close_to_float32():
    _, _, exact = train_few(LLAMA, (2, 1))
    _, _, rounded = train_few(LLAMA, (2, 1), moment_dtype="bfloat16")
    distance = max(relative(rounded[n], exact[n]) for n in exact)
    assert 0 < distance < 2e-3


@pytest.mark.parametrize("remat", ["dots", "none"])
def test_no_gathered_weight_is_kept_for_the_backward_pass(remat, monkeypatch):
    config = model.llama(300, 24, 2, 6, 40, 64, 1e-5)
    layout, kept = model.make_layout(config, 1, 1), []
    forward = stack.layer_forward
    monkeypatch.setattr(
        stack,
        "layer_forward",
        lambda *a: (out := forward(*a), kept.extend(x.shape for x in out[1].arrays))[0],
    )
    specs = layout.stacked(config)

    def local(weights, token, weight):
        return model.loss_and_gradients(
            weights, token, None, weight, config, layout, model.StepOptions(remat=remat)
        )

    f = jax.shard_map(
        local,
        mesh=sharding.make_mesh(1, 1),
        in_specs=(specs, Spec(), Spec()),
        out_specs=(Spec(), specs),
        check_vma=False,
    )

    def f32(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    jax.eval_shape(
        f,
        {n: f32(*s) for n, s in model.shapes(config).items()},
        jax.ShapeDtypeStruct((2, 12), jnp.int32),
        f32(2, 11),
    )
    assert (2, 11, 24) in kept, kept
    assert not any(shape in ((24, 72), (24, 24), (24, 80), (24, 40), (40, 24)) for shape in kept), (
        kept
    )


def test_each_process_reads_only_its_rows():
    mesh = sharding.make_mesh(4, 2)
    asked = []

    def read(indices):
        asked.extend(indices.tolist())
        return {"tokens": np.tile(indices[:, None], (1, 5)).astype(np.int32)}

    batch = batches.device_batch(read, np.arange(100, 116), 2, mesh)
    assert sorted(asked) == list(range(100, 116)), "each row once, though two tensor ranks hold it"
    assert np.asarray(batch["tokens"])[:, :, 0].tolist() == [
        list(range(100, 108)),
        list(range(108, 116)),
    ]
