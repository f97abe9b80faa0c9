"""train.py: schedules, optimizers against optax, the step on every mesh, accumulation, the command
line, stopping and resuming.
"""

import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as Spec

import model
import sharding
import train
from checkpoint import runs
from kernels import stack
from text import tokenizer
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

    def gradient(key, s):
        """Random gradients, zero on padding rows, of a norm that is clipped at some steps and not
        at others.
        """
        out = {}
        for i, (n, w) in enumerate(weights.items()):
            g = (
                jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), s), w.shape)
                * 0.002
                * (1 + s % 7)
            )
            out[n] = (
                jnp.where(jnp.arange(w.shape[0])[:, None] < config.V, g, 0)
                if table[n].dims[0] == "V"
                else g
            )
        return out

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

    def apart(tree):
        return {
            (n, i): x[i][: config.V] if table[n].dims[0] == "V" else x[i]
            for n, x in tree.items()
            for i in range(config.L)
            if table[n].layered
        } | {
            (n, None): x[: config.V] if table[n].dims[0] == "V" else x
            for n, x in tree.items()
            if not table[n].layered
        }

    theirs_w = apart(jax.tree.map(np.asarray, weights))
    twin = optax_twin(name, schedule, b1, b2, decay, {k: table[k[0]].decay for k in theirs_w})
    twin_state = twin.init(theirs_w)
    twin_step = jax.jit(
        lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*twin.update(g, s, p))
    )
    make = jax.jit(gradient)
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
    compute=None,
    moment_dtype="float32",
    lr=1e-2,
    warmup=2,
    rings=(),
):
    """(losses, metrics of the last step, weights) after the steps of `rows` from the weights of
    seed 0.
    """
    mesh, layout = (
        sharding.make_mesh(*mesh_shape),
        model.make_layout(config, *mesh_shape, stages=rings),
    )
    state = start.new_state(
        model.initialise(config, mesh, layout, 0),
        start.state_like(config, mesh, layout, jnp.dtype(moment_dtype)),
    )
    schedule = functools.partial(
        train.learning_rate, lr=lr, warmup=warmup, steps=10, schedule="constant"
    )
    step = train.make_step(
        config,
        mesh,
        layout,
        compute or model.StepOptions(loss_chunk=50),
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


@pytest.mark.parametrize("mesh_shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("config_name", list(CONFIGS))
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
        return train_few(LLAMA, mesh_shape, rows=random_batches(3), rings=rings)


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


# --- command line ---


def command(*arguments, home, **kwargs):
    env = os.environ | {"HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(*arguments, home, code=0):
    process = command(*arguments, home=home)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


STEPS = 80  # long enough to be killed ten times on the way
SMALL = [
    "--data",
    ROOT / "samples" / "dialogues.jsonl",
    "--model",
    "tiny",
    "--block",
    "32",
    "--batch",
    "8",
    "--dtype",
    "float32",
    "--lr",
    "0.01",
    "--warmup",
    "4",
    "--eval-fraction",
    "0",
]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home of the tests' own, so that the compilation cache of one run serves the next."""
    return tmp_path_factory.mktemp("home")


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_weights(out):
    """Every array of the last checkpoint, moments included, on one device."""
    config = json.loads((out / "run.json").read_text())["config"]
    config = model.Config(**config)
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
    saver = runs.Saver(str(out))
    state, meta = saver.restore(start.state_like(config, mesh, layout, jnp.float32))
    saver.close()
    assert meta["step"] == int(state["step"]) == max(m["step"] for m in metrics_of(out))
    return {
        jax.tree_util.keystr(k): np.asarray(x)
        for k, x in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mesh", "8x2"], r"--mesh 8x2 needs 16 devices, JAX sees 8: use --mesh 8x1 or 4x2"),
        (["--mesh", "eight"], r"--mesh eight is not DATAxTENSOR"),
        (["--model", "llama-9b"], r"--model llama-9b is not a preset: use one of gpt2, "),
        (["--data", "nowhere.jsonl"], r"nowhere\.jsonl"),
        (["--init", "nowhere", "--data", "x"], r"nowhere"),
        (
            ["--model", "tiny-gpt2", "--block", "1025", "--data", "samples/dialogues.jsonl"],
            r"--block 1025 is longer than the 512 positions of the model: use --block 512 or less",
        ),
        (
            ["--batch", "7", "--mesh", "2x1"],
            r"--batch 7 does not divide by 2 data ranks x 1 micro-batches: use --batch 6",
        ),
        (["--init", "samples"], r"--init without --data"),
        (["--mix", "x"], r"--mix without --mix-fraction"),
        (["--lr", "-1"], r"--lr -1.0 is out of range"),
        (
            ["--coordinator", "localhost:1"],
            r"--coordinator localhost:1 needs --processes N and --process I",
        ),
    ],
)
def test_what_a_user_gets_wrong_answers_in_one_line(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), error
    assert "Traceback" not in error and not (tmp_path / "run").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for wanted in (
        "model:",
        "data:",
        "optimization:",
        "devices and numbers:",
        "output:",
        "paper 2048, quickstart 256",
        "paper 0.002",
    ):
        assert wanted in text, wanted


@pytest.fixture(scope="session")
def straight(tmp_path_factory, home):
    """One run that nobody disturbs, a checkpoint every 4 steps."""
    out = tmp_path_factory.mktemp("straight") / "run"
    text = finish(
        *SMALL,
        "--mesh",
        "2x1",
        "--steps",
        STEPS,
        "--save-every",
        4,
        "--log-every",
        1,
        "--verbose",
        "--out",
        out,
        home=home,
    )
    return out, text


def test_a_run_leaves_what_the_design_says(straight):
    out, text = straight
    assert {p.name for p in out.iterdir()} >= {
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer",
    }
    record = json.loads((out / "run.json").read_text())
    assert (
        record["args"]["batch"] == 8
        and record["versions"]["jax"] == jax.__version__
        and record["config"]["V"] == tokenizer.load(str(out / "tokenizer")).size
    )
    lines = metrics_of(out)
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
    assert (
        set(lines[0])
        >= {"step", "loss", "lr", "grad_norm", "loss_share", "tokens", "ms", "tokens_per_s", "mfu"}
        and lines[0]["mfu"] is None
    )
    assert (
        lines[0]["lr"] == 0
        and lines[4]["lr"] == pytest.approx(0.01)
        and lines[0]["tokens"] == 8 * 32
    )
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert sum(line.startswith("step ") for line in text.splitlines()) == STEPS
    assert "2 virtual CPU devices" in text and "no --init" in text


@pytest.fixture(scope="session")
def killed(straight, tmp_path_factory, home):
    """The same run killed ten times: before the first checkpoint, three times within a save, six
    times at random steps; then left to finish.
    """
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = [
        *SMALL,
        "--mesh",
        "2x1",
        "--steps",
        STEPS,
        "--save-every",
        4,
        "--out",
        out,
        "--log-every",
        1,
    ]
    rng = random.Random(0)
    kinds = ["before", *rng.sample(["save"] * 3 + ["step"] * 6, 9)]
    hits = dict.fromkeys(kinds, 0)
    checkpoints = out / "checkpoints"

    def unfinished():
        return (
            {(p.name, p.stat().st_ino) for p in checkpoints.glob("*tmp*")}
            if checkpoints.exists()
            else set()
        )

    for kind in kinds:
        for _ in range(
            5
        ):  # a save of a tiny model takes milliseconds: one that was missed is tried again
            left_behind = unfinished()
            process = command(*arguments, home=home)
            seen = rng.randint(4, 10) if kind == "step" else 1
            for line in process.stdout:
                seen -= line.startswith("step ")
                if not seen:
                    break
            while kind == "save" and process.poll() is None and not unfinished() - left_behind:
                pass
            alive = process.poll() is None
            process.kill()
            process.communicate()
            caught = alive and (kind != "save" or bool(unfinished() - left_behind))
            if caught or not alive:
                break
        assert caught, f"{kind}: the run ended before it was killed"
        assert kind != "before" or not any(p.name.isdigit() for p in checkpoints.glob("*")), (
            "the first kill came before the first checkpoint"
        )
        hits[kind] += 1
    text = finish(*arguments, home=home)
    return out, hits, text


def metrics_of_partial(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_killed_ten_times_and_started_again_the_weights_are_bit_for_bit_the_same(straight, killed):
    out, hits, text = killed
    assert hits == {"before": 1, "save": 3, "step": 6}, hits
    assert "resuming" in text
    want, got = final_weights(straight[0]), final_weights(out)
    assert want.keys() == got.keys() and len(want) > 30
    different = [k for k in want if not np.array_equal(want[k], got[k])]
    assert not different

    def drop(m):
        return {k: v for k, v in m.items() if k not in ("ms", "tokens_per_s")}

    assert [drop(m) for m in metrics_of(out)] == [drop(m) for m in metrics_of(straight[0])], (
        "every step once, with the same numbers"
    )


def test_resumed_on_another_mesh_the_losses_agree(straight, tmp_path, home):
    out = tmp_path / "run"
    finish(*SMALL, "--mesh", "2x1", "--steps", 8, "--save-every", 4, "--out", out, home=home)
    text = finish(
        *SMALL, "--mesh", "1x2", "--steps", STEPS, "--save-every", 4, "--out", out, home=home
    )
    assert "after step 8" in text
    np.testing.assert_allclose(
        [m["loss"] for m in metrics_of(out)],
        [m["loss"] for m in metrics_of(straight[0])],
        rtol=1e-5,
    )


def test_sigterm_saves_and_the_same_command_goes_on(straight, tmp_path, home):
    out = tmp_path / "run"
    arguments = [*SMALL, "--mesh", "2x1", "--steps", STEPS, "--save-every", 0, "--out", out]
    process = command(*arguments, home=home)
    while len(metrics_of_partial(out)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "stopped by signal" in text and 3 <= len(metrics_of(out)) < STEPS
    finish(*arguments, home=home)
    want, got = final_weights(straight[0]), final_weights(out)
    assert all(np.array_equal(want[k], got[k]) for k in want)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--seed", "1"], "--seed 0"),
        (["--optimizer", "adamw"], "--optimizer adamw-scaled"),
        (["--block", "16"], "--block 32"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    straight, change, message, capsys, home, monkeypatch
):
    monkeypatch.setenv("HOME", str(home))
    before = (straight[0] / "run.json").read_bytes()
    assert (
        train.main(
            [
                *map(str, SMALL),
                "--mesh",
                "2x1",
                "--steps",
                str(STEPS),
                "--save-every",
                "4",
                "--out",
                str(straight[0]),
                *change,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "use the same value, or another --out" in error
    assert (straight[0] / "run.json").read_bytes() == before


def test_a_tokenizer_that_does_not_match_the_weights_is_refused_with_both_sizes(
    straight, tmp_path, capsys
):
    shutil.copytree(straight[0], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    size = record["config"]["V"] - 2
    record["config"]["V"] = 999
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert (
        train.main(
            [
                "--init",
                str(tmp_path / "run"),
                "--data",
                "samples/dialogues.jsonl",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"{tmp_path / 'run'} has 999 ids, tokenizer {tmp_path / 'run' / 'tokenizer'}/"
        f"tokenizer.model has {size} (with role tokens {size + 2}): name the tokenizer"
    ) in error


def test_a_run_is_a_start_for_another_with_plain_text_mixed_in(straight, tmp_path, home):
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(
            json.dumps(
                {
                    "text": (
                        f"The lighthouse number {n} stands on a rock of its own, far from "
                        "the others. "
                    )
                    * 3
                }
            )
            + "\n"
            for n in range(60)
        )
    )
    arguments = [
        "--data",
        ROOT / "samples" / "dialogues.jsonl",
        "--init",
        straight[0],
        "--block",
        32,
        "--batch",
        8,
        "--dtype",
        "float32",
        "--warmup",
        0,
        "--lr",
        0.001,
        "--eval-fraction",
        0,
        "--steps",
        4,
        "--mesh",
        "2x1",
        "--save-every",
        0,
    ]
    finish(*arguments, "--out", tmp_path / "alone", home=home)
    finish(
        *arguments, "--mix", text, "--mix-fraction", 0.25, "--out", tmp_path / "mixed", home=home
    )
    alone, mixed = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "mixed")
    assert alone[0]["loss"] < metrics_of(straight[0])[0]["loss"] - 1, "the weights came along"

    def share(lines):
        return sum(m["loss_share"] for m in lines)

    assert share(mixed) > share(alone) + 0.1, "all tokens of the text carry loss"


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


def test_two_processes_of_four_devices_give_the_losses_of_one_of_eight(tmp_path, home):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    arguments = [*SMALL, "--steps", 4, "--mesh", "4x2", "--save-every", 0]
    finish(*arguments, "--out", tmp_path / "one", home=home)
    both = [
        command(
            *arguments,
            "--out",
            tmp_path / "two",
            "--coordinator",
            f"127.0.0.1:{port}",
            "--processes",
            2,
            "--process",
            i,
            home=home,
        )
        for i in range(2)
    ]
    texts = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert "step 1/4" in texts[0] and "step 1/4" not in texts[1], "one process speaks"
    np.testing.assert_allclose(
        [m["loss"] for m in metrics_of(tmp_path / "two")],
        [m["loss"] for m in metrics_of(tmp_path / "one")],
        rtol=1e-5,
    )
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert max(relative(two[k], one[k]) for k in one if "weights" in k) < 1e-5


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


def test_a_run_shorter_than_its_warm_up_warns_with_both_numbers(straight):
    text = straight[1]
    assert "WARNING" not in text
    ours = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, '.'); import train; sys.exit(train.main(sys.argv[1:]))",
            *map(str, SMALL),
            "--warmup",
            "1000",
            "--steps",
            "2",
            "--out",
            str(straight[0].parent / "short"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(straight[0].parent)},
    )
    assert ours.returncode == 0, ours.stderr
    assert re.search(
        r"WARNING: 2 steps end within the warm-up of 1000: .*--warmup-fraction", ours.stdout
    )


def test_nan_stops_with_the_step_and_the_rows(tmp_path, home):
    text = finish(
        *SMALL,
        "--mesh",
        "1x1",
        "--steps",
        6,
        "--lr",
        "1e30",
        "--optimizer",
        "adamw",
        "--warmup",
        1,
        "--save-every",
        1,
        "--out",
        tmp_path / "run",
        home=home,
        code=2,
    )
    last = text.strip().splitlines()[-1]
    assert re.search(
        (
            r"train.py: step \d+: loss .*; rows \[\d+.*\]: the weights of step \d+ are "
            r"untouched.*lower --lr"
        ),
        last,
    ), last
