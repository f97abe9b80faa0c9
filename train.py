"""Finetune (or pre-train) a model: schedule, optimizers, the step, the loop.

    python train.py --mesh 8x1                                    a tiny model, sample dialogues
    python train.py --init LLAMA --data mix.jsonl.gz --out RUN    the paper's recipe

What it needs around the loop (flags, plan, run directory, log, batches) is in training/. Left out:
pipeline parallelism, dropout (LLaMA has none, and GPT-2 is finetuned without), learning-rate
groups, mixed float16 with loss scaling.
"""

import signal

from training import flags

if __name__ == "__main__":  # before JAX is imported, which takes seconds
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of an import
    ARGS = flags.parser().parse_args()

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec
from jax.typing import ArrayLike

import model
import sharding
from checkpoint import paths
from decoding.opened import open_model
from decoding.records import Sampling
from host import terminal
from model import Config, Layout, StepOptions
from sharding import DATA
from training import batches, plan, screen
from training.flags import Settings
from training.start import Run, State, start, state_like, step_options
from training.stop import leave, signals

Arrays = dict[str, jax.Array]
Specs = dict[str, Spec]

# --- schedule ---


def learning_rate(count: ArrayLike, *, lr: float, warmup: int, steps: int, schedule: str) -> Array:
    """Learning rate of the step after `count` steps.

    Linear from 0 over `warmup` steps, then constant, or down to 0 at `steps` by a cosine or a line.
    The schedule is read before the step, as optax does: a warm-up's first step has rate 0.
    """
    count = jnp.asarray(count, jnp.float32)
    rise = jnp.minimum(count / warmup, 1.0) if warmup else 1.0
    left = jnp.clip((steps - count) / max(steps - warmup, 1), 0.0, 1.0)
    fall = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left)}[schedule]
    return lr * rise * fall


# --- optimizer ---


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """adamw-scaled: Adam's update times max(RMS(weight), 1e-3); easylm: see `adafactor`; adamw.

    adamw-scaled is how the paper's "gradients re-scaled by the magnitude of each weight" has an
    effect. b2 is an exponent in easylm: decay 1 - t^-b2.
    """

    name: str
    b1: float
    b2: float
    weight_decay: float
    clip: float


def psum_by_axes(sums: Arrays, specs: Specs) -> Arrays:
    """name -> a shard's sums [L or 1] -> those of the whole weights; one psum a set of axes."""
    groups = {}
    for name in sums:
        groups.setdefault(sharding.axes_of(specs[name]), []).append(name)
    out = {}
    for axes, names in groups.items():
        flat = jnp.concatenate([sums[n] for n in names])
        flat = lax.psum(flat, axes) if axes else flat
        sizes = np.cumsum([sums[n].shape[0] for n in names])[:-1]
        out |= dict(zip(names, jnp.split(flat, sizes), strict=True))
    return out


def layer_square_sums(tree: Arrays, table: dict[str, model.Weight]) -> Arrays:
    """name -> sum of squares of each layer's matrix [L] (or [1]) in float32, this shard's part."""
    out = {}
    for name, x in tree.items():
        square = jnp.square(x.astype(jnp.float32))
        layered = table[name].layered
        out[name] = (
            jnp.sum(square, axis=tuple(range(1, x.ndim))) if layered else jnp.sum(square)[None]
        )
    return out


def rms_of(weights: Arrays, config: Config, specs: Specs) -> Arrays:
    """name -> RMS of each layer's whole matrix, no padding row, at least 1e-3, to be broadcast."""
    table, size = model.weight_table(config), model.sizes(config, padded=False)
    out = {}
    for name, s in psum_by_axes(layer_square_sums(weights, table), specs).items():
        rms = jnp.sqrt(s / math.prod(size[d] for d in table[name].dims))
        lead = (-1,) if table[name].layered else (1,)
        out[name] = jnp.maximum(rms, 1e-3).reshape(lead + (1,) * (weights[name].ndim - 1))
    return out


def adam(g: Array, m: Array, v: Array, t: Array, opt: Optimizer) -> tuple[Array, Array, Array]:
    """(direction, first moment, second moment) of bias-corrected Adam at step t, from 1."""
    m = opt.b1 * m + (1 - opt.b1) * g
    v = opt.b2 * v + (1 - opt.b2) * g * g
    return m / (1 - opt.b1**t) / (jnp.sqrt(v / (1 - opt.b2**t)) + 1e-8), m, v


def adafactor(
    g: Array, m: Array, v: Array, t: Array, opt: Optimizer, lr: Array, scale: Array
) -> tuple[Array, Array]:
    """(first moment, second moment) of what EasyLM runs; the first is what the weight loses.

    EasyLM's `adamw` with multiply_by_parameter_scale is optax.adafactor unfactored: b2 is an
    exponent, momentum averages scaled updates and is not corrected.
    """
    b2 = 1 - t**-opt.b2
    v = b2 * v + (1 - b2) * (g * g + 1e-30)
    return opt.b1 * m + (1 - opt.b1) * (lr * g * lax.rsqrt(v) * scale), v


def update(state: State, gradients: Arrays, lr: Array, ok: Array, config: Config, specs: Specs,
           opt: Optimizer) -> tuple[State, Array]:  # fmt: skip
    """One step of the optimizer on shards -> (state, global gradient norm).

    Where `ok` and the norm are not sound, weights and moments stay. m keeps its dtype.
    """
    table, weights = model.weight_table(config), state["weights"]
    sums = psum_by_axes(layer_square_sums(gradients, table), specs)
    norm = jnp.sqrt(sum(jnp.sum(s) for s in sums.values()))
    ok = ok & jnp.isfinite(norm)
    shrink = jnp.where(norm < opt.clip, 1.0, opt.clip / norm)
    t = (state["step"] + 1).astype(jnp.float32)
    scale = rms_of(weights, config, specs) if opt.name != "adamw" else {}
    new = {"weights": {}, "m": {}, "v": {}, "step": state["step"] + 1}
    for name, p in weights.items():
        g = gradients[name].astype(jnp.float32) * shrink
        m0, v0 = state["m"][name].astype(jnp.float32), state["v"][name]
        if opt.name == "easylm":
            m1, v1 = adafactor(g, m0, v0, t, opt, lr, scale[name])
            p1 = p - m1 - lr * opt.weight_decay * p
        else:
            u, m1, v1 = adam(g, m0, v0, t, opt)
            if opt.name == "adamw-scaled":
                # the update, not the gradient: scaling that would cancel in m / sqrt(v)
                u = u * scale[name]
            p1 = p - lr * u - lr * (opt.weight_decay if table[name].decay else 0.0) * p
        new["weights"][name] = jnp.where(ok, p1, p)
        new["m"][name] = jnp.where(ok, m1, m0).astype(state["m"][name].dtype)
        new["v"][name] = jnp.where(ok, v1, v0)
    return new, norm


# --- the step ---


def token_weights(mask_ABT: Array, loss_mean: str) -> tuple[Array, Array]:
    """(weights [A, B, T] of the loss, the number of loss tokens of the global batch).

    token: 1 / loss tokens of the batch. row: EasyLM's 1 / (rows * loss tokens of the row).
    """
    mask_ABT = mask_ABT.astype(jnp.float32)
    count = lax.psum(jnp.sum(mask_ABT), DATA)
    if loss_mean == "token":
        return mask_ABT / jnp.maximum(count, 1.0), count
    rows = lax.psum(mask_ABT.shape[0] * mask_ABT.shape[1], DATA)
    of_row = jnp.sum(mask_ABT, axis=2, keepdims=True)
    return mask_ABT / jnp.maximum(of_row, 1.0) / rows, count


def batch_gradients(weights: Arrays, batch: Arrays, weight_ABT: Array, config: Config,
                    layout: Layout, options: StepOptions) -> tuple[Array, Arrays]:  # fmt: skip
    """(loss, gradients) of this data rank's rows, a micro-batch at a time."""

    def micro(i, into=None):
        segment_BX = batch["segment"][i] if "segment" in batch else None
        rows = batch["tokens"][i], segment_BX, weight_ABT[i]
        return model.loss_and_gradients(weights, *rows, config, layout, options, into=into)

    if weight_ABT.shape[0] == 1:
        return micro(0)

    def add(carry, i):  # one buffer of gradients, whatever the number of micro-batches
        loss, gradients = micro(i, into=carry[1])
        return (carry[0] + loss, gradients), None

    zeros = {n: jnp.zeros(w.shape, options.grad_dtype) for n, w in weights.items()}
    start = (jnp.zeros((), jnp.float32), zeros)
    return lax.scan(add, start, jnp.arange(weight_ABT.shape[0]))[0]


def make_step(config: Config, mesh: Mesh, layout: Layout, options: StepOptions, opt: Optimizer,
              schedule: Callable, loss_mean: str) -> Any:  # fmt: skip
    """The jitted training step: (state, batch) -> (state, metrics); state is donated.

    batch: tokens and loss_mask (and segment) [A, B, T + 1], A micro-batches. metrics: loss,
    grad_norm, lr, loss_tokens, stop (any process wants to stop).
    """
    specs = layout.stacked(config)
    state_specs = {"weights": specs, "m": specs, "v": specs, "step": Spec()}

    def local(state, batch):
        weight_ABT, loss_tokens = token_weights(batch["loss_mask"][:, :, 1:], loss_mean)
        loss, gradients = batch_gradients(
            state["weights"], batch, weight_ABT, config, layout, options
        )
        loss = lax.psum(loss, DATA)
        lr = schedule(state["step"])
        ok = (loss_tokens > 0) & jnp.isfinite(loss)
        state, norm = update(state, gradients, lr, ok, config, layout.specs, opt)
        stop = lax.pmax(jnp.max(batch["stop"]), DATA)
        metrics = {"loss": loss, "grad_norm": norm, "lr": lr, "loss_tokens": loss_tokens}
        return state, metrics | {"stop": stop}

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=sharding.compiler_options(mesh))
    def step(state, batch):
        in_specs = (state_specs, {n: Spec(None, DATA) for n in batch})
        out_specs = (state_specs, Spec())
        return jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(state, batch)

    return step


def make_eval_step(config: Config, mesh: Mesh, layout: Layout, options: StepOptions) -> Any:
    """Jitted (weights, batch of one micro-batch) -> (sum of the loss in nats, loss tokens)."""

    def local(weights, batch):
        weight_BT = batch["loss_mask"][0, :, 1:].astype(jnp.float32)
        segment_BX = batch["segment"][0] if "segment" in batch else None
        rows = batch["tokens"][0], segment_BX, weight_BT
        loss = model.batch_loss(weights, *rows, config, layout, options)
        return lax.psum(loss, DATA), lax.psum(jnp.sum(weight_BT), DATA)

    @functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
    def step(weights, batch):
        in_specs = (layout.stacked(config), {n: Spec(None, DATA) for n in batch})
        return jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=Spec(), check_vma=False
        )(weights, batch)

    return step


# --- a run ---


def lower_step(settings: Settings, like: State, rows: dict[str, jax.ShapeDtypeStruct],
               length: tuple[int, int], config: Config, mesh: Mesh, layout: Layout,
               options: StepOptions) -> Any:  # fmt: skip
    """The training step lowered for a state and rows like these. length: steps, warm-up."""
    s, (steps, warmup) = settings, length
    opt = Optimizer(s.optimizer, s.b1, s.b2, s.weight_decay, s.clip)
    schedule = functools.partial(
        learning_rate, lr=s.lr, warmup=warmup, steps=steps, schedule=s.schedule
    )
    step = make_step(config, mesh, layout, options, opt, schedule, s.loss_mean)
    return step.lower(like, rows)


def compile_steps(run: Run) -> tuple[Any, Any]:
    """(the training step, the held-out step or None), so that no step's time is compiling."""
    s, config, mesh, layout = run.settings, run.config, run.mesh, run.layout
    like = state_like(config, mesh, layout, jnp.dtype(s.moment_dtype))
    rows, length = run.source.batch_like(mesh), (run.steps, run.warmup)
    step = lower_step(s, like, rows, length, config, mesh, layout, run.options).compile()
    if not run.held_out:
        return step, None
    rows = batches.batch_like(run.held_out.columns, run.eval_batch, 1, mesh)
    eval_step = make_eval_step(config, mesh, layout, run.options)
    return step, eval_step.lower(like["weights"], rows).compile()


def held_out_loss(run: Run, eval_step: Callable, weights: Arrays) -> float:
    """Mean loss over the loss tokens of the held-out rows, in nats."""
    assert run.held_out is not None
    total = count = 0.0
    for batch in batches.held_out(run.held_out, run.eval_batch, run.mesh):
        loss, tokens = eval_step(weights, batch)
        total, count = total + float(loss), count + float(tokens)
    return total / max(count, 1.0)


def fit(run: Run, state: State) -> int:
    """Train to the last step, or to where the user stops -> the step that is saved."""
    s = run.first
    if run.first >= run.steps:
        return s
    step, eval_step = compile_steps(run)
    if eval_step and not run.first:
        run.log.add(eval_loss_before=held_out_loss(run, eval_step, state["weights"]))
    run.log.start_clock()
    with batches.prefetch(run.batch_of, range(run.first + 1, run.steps + 1)) as ahead:
        for s, batch in ahead:
            state, metrics = step(state, batch)
            run.log.push(s, metrics)
            run.stop.after_step()
            stop = run.log.stop or run.stops_now
            eval_due, save_due = run.due(s)
            if eval_due or save_due or stop:
                run.log.fetch()
                measure = eval_due and eval_step
                loss = held_out_loss(run, eval_step, state["weights"]) if measure else None
                run.log.flush(eval_loss=loss)  # a checkpoint's metrics are on disk when it is
                run.saver.save(s, state, {"step": s, "eval_loss": loss})
                run.log.start_clock()
                if stop or run.log.stop:
                    break
    run.saver.confirm(s)
    return s


def finish(run: Run, step: int) -> int:
    """Say how the run ended and what to do next -> exit status."""
    if step < run.steps:
        run.say(screen.stopped(run.out, step))
        return 128 + (run.stop.number or signal.SIGTERM)
    run.stop.at_once()  # everything is saved
    if jax.process_index() == 0:
        run.say(*screen.summary(run.out, step - run.first, time.time() - run.started))
        if run.settings.samples and run.held_out and jax.process_count() == 1:
            run.say(*screen.replies(replies(run)))
        run.say(*screen.saved(run.out, step))
    return 0


def replies(run: Run) -> list[tuple[str, str]]:
    """(prompt, greedy reply) of the first held-out prompts, by the model as it was saved."""
    s, half, tok = run.settings, run.settings.block // 2, run.tok
    prompts = batches.prompts_of(run.held_out, tok, s.samples, half) if run.held_out else []
    mesh = f"{run.layout.data}x{run.layout.tensor}"
    try:
        opened = open_model(str(run.out), mesh=mesh, dtype=s.dtype, batch=max(len(prompts), 1))
        outputs = sorted(opened.generate(prompts, Sampling(max_new=half)))
    except ValueError as error:  # a mesh that trains a model may lack the room for a whole copy
        return [("no samples", str(error))]
    return [(screen.prompt_text(prompts[o.prompt], tok, s.template), o.text) for o in outputs]


def train(settings: Settings, origin: dict[str, str]) -> int:
    """A whole training -> exit status."""
    with signals() as stop:
        try:
            with start(settings, origin, stop) as (run, state):
                step = fit(run, state)
                del state  # samples need the room
                return finish(run, step)
        except KeyboardInterrupt:
            terminal.say("train.py: interrupted")
            return 128 + (stop.number or signal.SIGINT)


def show_plan(settings: Settings) -> None:
    """--plan: what a step would cost; nothing is trained."""
    s = settings
    config = paths.model_config(s.init, s.model) if s.init else model.preset(s.model or "llama-7b")

    def lower(mesh, layout, options, T):
        like = state_like(config, mesh, layout, jnp.dtype(s.moment_dtype))
        columns = {"tokens": T + 1, "loss_mask": T + 1}
        rows = batches.batch_like(columns, s.batch, s.accumulate, mesh)
        return lower_step(s, like, rows, (1, s.warmup), config, mesh, layout, options)

    plan.show(s, config, functools.partial(step_options, s, config), lower)


def run(argv: list[str] | None = None) -> int:
    settings, origin = flags.resolve(flags.parser().parse_args(argv))
    if settings.plan is None:
        return train(settings, origin)
    show_plan(settings)
    return 0


def main(argv: list[str] | None = None) -> int:
    return terminal.program(functools.partial(run, argv), "train.py")


if __name__ == "__main__":
    leave(main(), alone=ARGS.coordinator is None)
