"""Finetune (or pre-train) a model: schedule, optimizers, the step, the loop. The flags are in flags.py.

    python train.py --mesh 8x1                                        the embedded sample dialogues, a tiny model, two minutes on two cores
    python train.py --init LLAMA --data mix.jsonl.gz --out RUN        the paper's recipe

Left out: pipeline parallelism, dropout (LLaMA has none, and GPT-2 is finetuned without), learning-rate groups, mixed float16 with loss scaling.
"""

import concurrent.futures
import dataclasses
import datetime
import functools
import json
import math
import os
import pathlib
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

import data
import model
import sharding
from checkpoint import paths, runs
from checkpoint.load import load_weights
from decoding import reference
from host.version import __version__
from kernels.attention import pick_attention
from sharding import DATA
from text import tokenizer
from training import flags, plan

# -------------------------------------------------------------------------------------------------------------- schedule


def learning_rate(count, *, lr, warmup, steps, schedule):
    """Learning rate of the step after `count` steps: linear from 0 over `warmup` steps, then constant, or down to 0 at `steps` along a cosine or a line.

    The schedule is read before the step, as optax does: the first step of a warm-up has rate 0. Works on Python and JAX numbers.
    """
    count = jnp.asarray(count, jnp.float32)
    rise = jnp.minimum(count / warmup, 1.0) if warmup else 1.0
    left = jnp.clip((steps - count) / max(steps - warmup, 1), 0.0, 1.0)
    fall = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * jnp.cos(jnp.pi * left)}[schedule]
    return lr * rise * fall


# ------------------------------------------------------------------------------------------------------------- optimizer


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """adamw-scaled: bias-corrected Adam whose update is multiplied by max(RMS(weight), 1e-3), which is how the paper's "gradients re-scaled by the magnitude of each
    weight" has an effect; easylm: what EasyLM's switch of that name runs (see `update`); adamw: plain. b2 is an exponent in easylm: decay 1 - t^-b2."""

    name: str
    b1: float
    b2: float
    weight_decay: float
    clip: float


def pooled(per_weight, specs):
    """name -> a shard's sums [L or 1] -> the same over the whole weights: one psum for all the weights that are split over the same axes."""
    groups = {}
    for name in per_weight:
        groups.setdefault(sharding.axes_of(specs[name]), []).append(name)
    out = {}
    for axes, names in groups.items():
        flat = jnp.concatenate([per_weight[n] for n in names])
        flat = lax.psum(flat, axes) if axes else flat
        sizes = np.cumsum([per_weight[n].shape[0] for n in names])[:-1]
        out |= dict(zip(names, jnp.split(flat, sizes), strict=True))
    return out


def squares(tree, table):
    """name -> sum of squares of each layer's matrix [L] (or [1]) in float32, this shard's part."""
    f32 = lambda x: x.astype(jnp.float32)
    return {
        n: jnp.sum(jnp.square(f32(x)), axis=tuple(range(1, x.ndim)))
        if table[n].layered
        else jnp.sum(jnp.square(f32(x)))[None]
        for n, x in tree.items()
    }


def update(weights, m, v, gradients, count, lr, ok, config, specs, opt):
    """One step of the optimizer on shards -> (weights, m, v, global gradient norm). Where `ok` and the norm are not sound, nothing changes.

    count: steps before this one. RMS of a weight is over each layer's whole matrix (all shards, padding rows not counted). m keeps its dtype.
    """
    table, size = model.weight_table(config), model.sizes(config, padded=False)
    norm = jnp.sqrt(sum(jnp.sum(s) for s in pooled(squares(gradients, table), specs).values()))
    ok = ok & jnp.isfinite(norm)
    shrink = jnp.where(norm < opt.clip, 1.0, opt.clip / norm)
    t = (count + 1).astype(jnp.float32)
    if opt.name != "adamw":
        mean_square = pooled(squares(weights, table), specs)
        rms = {
            n: jnp.sqrt(s / math.prod(size[d] for d in table[n].dims))
            for n, s in mean_square.items()
        }
    new = {}
    for name, p in weights.items():
        row = table[name]
        g = gradients[name].astype(jnp.float32) * shrink
        m0, v0 = m[name].astype(jnp.float32), v[name]
        if opt.name != "adamw":
            scale = jnp.maximum(rms[name], 1e-3).reshape(
                ((-1,) if row.layered else (1,)) + (1,) * (p.ndim - 1)
            )
        if opt.name == "easylm":
            # EasyLM's `adamw` with multiply_by_parameter_scale is optax.adafactor unfactored: b2 is an exponent, momentum averages scaled updates and is not corrected.
            b2 = 1 - t**-opt.b2
            v1 = b2 * v0 + (1 - b2) * (g * g + 1e-30)
            m1 = opt.b1 * m0 + (1 - opt.b1) * (lr * g * lax.rsqrt(v1) * scale)
            p1 = p - m1 - lr * opt.weight_decay * p
        else:
            m1 = opt.b1 * m0 + (1 - opt.b1) * g
            v1 = opt.b2 * v0 + (1 - opt.b2) * g * g
            u = m1 / (1 - opt.b1**t) / (jnp.sqrt(v1 / (1 - opt.b2**t)) + 1e-8)
            if opt.name == "adamw-scaled":
                u = (
                    u * scale
                )  # the update, not the gradient: scaling the gradient would cancel in m / sqrt(v)
            p1 = p - lr * u - lr * (opt.weight_decay if row.decay else 0.0) * p
        new[name] = (
            jnp.where(ok, p1, p),
            jnp.where(ok, m1, m0).astype(m[name].dtype),
            jnp.where(ok, v1, v0),
        )
    return *({n: x[i] for n, x in new.items()} for i in range(3)), norm


# ------------------------------------------------------------------------------------------------------------------ step


def token_weights(mask, loss_mean):
    """Weights [A, B, T] of the loss: 1 / loss tokens of the global batch, or EasyLM's 1 / (rows * loss tokens of the row). Also the number of loss tokens."""
    mask = mask.astype(jnp.float32)
    count = lax.psum(jnp.sum(mask), DATA)
    if loss_mean == "token":
        return mask / jnp.maximum(count, 1.0), count
    rows = lax.psum(mask.shape[0] * mask.shape[1], DATA)
    return mask / jnp.maximum(jnp.sum(mask, axis=2, keepdims=True), 1.0) / rows, count


def make_step(config, mesh, layout, compute, opt, schedule, loss_mean):
    """The jitted training step: (state, batch) -> (state, metrics). batch: tokens and loss_mask (and segment) [A, B, T + 1], A micro-batches; state is donated.

    metrics: loss, grad_norm, lr, loss_tokens, stop (any process wants to stop).
    """
    specs = layout.stacked(config)
    state_specs = {"weights": specs, "m": specs, "v": specs, "step": Spec()}

    def local(state, batch):
        weights = state["weights"]
        weight_ABT, loss_tokens = token_weights(batch["loss_mask"][:, :, 1:], loss_mean)
        segment = batch.get("segment")

        def micro(i, into=None):
            rows = batch["tokens"][i], None if segment is None else segment[i], weight_ABT[i]
            return model.loss_and_gradients(weights, *rows, config, layout, compute, into=into)

        if weight_ABT.shape[0] == 1:
            loss, gradients = micro(0)
        else:

            def add(carry, i):  # one buffer of gradients, whatever the number of micro-batches
                loss, gradients = micro(i, into=carry[1])
                return (carry[0] + loss, gradients), None

            zero = (
                jnp.zeros((), jnp.float32),
                {n: jnp.zeros(w.shape, compute.grad_dtype) for n, w in weights.items()},
            )
            (loss, gradients), _ = lax.scan(add, zero, jnp.arange(weight_ABT.shape[0]))
        loss = lax.psum(loss, DATA)
        lr = schedule(state["step"])
        ok = (loss_tokens > 0) & jnp.isfinite(loss)
        weights, m, v, norm = update(
            weights,
            state["m"],
            state["v"],
            gradients,
            state["step"],
            lr,
            ok,
            config,
            layout.specs,
            opt,
        )
        metrics = {
            "loss": loss,
            "grad_norm": norm,
            "lr": lr,
            "loss_tokens": loss_tokens,
            "stop": lax.pmax(jnp.max(batch["stop"]), DATA),
        }
        return {"weights": weights, "m": m, "v": v, "step": state["step"] + 1}, metrics

    @functools.partial(jax.jit, donate_argnums=0, compiler_options=sharding.compiler_options(mesh))
    def step(state, batch):
        in_specs = (state_specs, {n: Spec(None, DATA) for n in batch})
        return jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=(state_specs, Spec()), check_vma=False
        )(state, batch)

    return step


def make_eval_step(config, mesh, layout, compute):
    """Jitted (weights, batch) -> (sum of the loss over the loss tokens, in nats; their number), over one micro-batch [1, B, T + 1]."""

    def local(weights, batch):
        weight_BT = batch["loss_mask"][0, :, 1:].astype(jnp.float32)
        segment = batch["segment"][0] if "segment" in batch else None
        loss = model.batch_loss(
            weights, batch["tokens"][0], segment, weight_BT, config, layout, compute
        )
        return lax.psum(loss, DATA), lax.psum(jnp.sum(weight_BT), DATA)

    @functools.partial(jax.jit, compiler_options=sharding.compiler_options(mesh))
    def step(weights, batch):
        in_specs = (layout.stacked(config), {n: Spec(None, DATA) for n in batch})
        return jax.shard_map(
            local, mesh=mesh, in_specs=in_specs, out_specs=Spec(), check_vma=False
        )(weights, batch)

    return step


def state_like(config, mesh, layout, moment_dtype):
    """The state's arrays as ShapeDtypeStructs with their shardings: weights and second moment float32, first moment in moment_dtype."""
    spec, shape = sharding.shardings(layout.stacked(config), mesh), model.shapes(config)
    like = lambda dtype: {
        n: jax.ShapeDtypeStruct(s, dtype, sharding=spec[n]) for n, s in shape.items()
    }
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, Spec()))
    return {
        "weights": like(jnp.float32),
        "m": like(moment_dtype),
        "v": like(jnp.float32),
        "step": step,
    }


def new_state(weights, like):
    """The state before the first step, its zeros made where they belong (a step compiled for one placement would be compiled again for another)."""
    rest = {name: like[name] for name in ("m", "v", "step")}
    make = jax.jit(
        lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), rest),
        out_shardings=jax.tree.map(lambda s: s.sharding, rest),
    )
    return {"weights": weights} | make()


# ------------------------------------------------------------------------------------------------------------------ data


def device_batch(read, indices, accumulate, mesh, stop=False):
    """Rows `indices` [B] (-1: a row of padding) as device arrays [A, B / A, T + 1]; each process reads only the rows its devices hold.

    read: indices [n] -> dict of arrays [n, T + 1].
    """
    grid = indices.reshape(accumulate, -1)
    spec = NamedSharding(mesh, Spec(None, DATA))
    parts = {}  # the columns of one data rank -> its rows, read once though tensor ranks share them
    for index in spec.addressable_devices_indices_map(grid.shape).values():
        columns = range(*index[1].indices(grid.shape[1]))
        if columns not in parts:
            wanted = grid[:, columns.start : columns.stop].reshape(-1)
            rows = read(np.maximum(wanted, 0))
            rows = {
                n: np.where((wanted >= 0)[:, None], x, 0).astype(x.dtype) for n, x in rows.items()
            }
            rows["stop"] = np.full((len(wanted), 1), stop, np.int32)
            parts[columns] = {n: x.reshape(accumulate, len(columns), -1) for n, x in rows.items()}
    first = next(iter(parts.values()))
    return {
        name: jax.make_array_from_callback(
            grid.shape + x.shape[2:],
            spec,
            lambda index, name=name: parts[range(*index[1].indices(grid.shape[1]))][name],
        )
        for name, x in first.items()
    }


def ahead(make, steps):
    """Yield make(s) for s in steps, the next one being made in a thread meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        steps = iter(steps)
        pending = [pool.submit(make, s) for s in [next(steps, None)] if s is not None]
        while pending:
            current = pending.pop()
            result = current.result()
            pending = [pool.submit(make, s) for s in [next(steps, None)] if s is not None]
            yield result


def held_out_loss(eval_step, weights, dataset, batch, mesh):
    """Mean loss over the loss tokens of a data set, in nats; its rows in order, the last batch filled up with padding."""
    total = count = 0.0
    for start in range(0, len(dataset), batch):
        indices = np.arange(start, start + batch)
        part = eval_step(
            weights,
            device_batch(dataset.rows, np.where(indices < len(dataset), indices, -1), 1, mesh),
        )
        total, count = total + float(part[0]), count + float(part[1])
    return total / max(count, 1.0)


# --------------------------------------------------------------------------------------------------------------- samples


def sample_replies(weights, config, mesh, layout, tok, dataset, count, dtype, length):
    """(prompt text, reply text) pairs: greedy replies to the first prompts of a held-out data set, cut out of its rows by their loss masks."""
    prompts = []
    for row in range(len(dataset)):
        got = dataset.rows(np.array([row]))
        tokens, mask = got["tokens"][0], got["loss_mask"][0]
        starts = np.flatnonzero(tokens == tok.bos)
        for start in starts:
            first = np.flatnonzero(mask[start:])
            if (
                len(first)
                and 4 < first[0] < length // 2
                and not np.any(tokens[start + 1 : start + first[0]] == tok.bos)
            ):
                prompts.append(tokens[start : start + first[0]].tolist())
                break
        if len(prompts) == count:
            break
    if not prompts:
        return []
    rows = -(-len(prompts) // layout.data) * layout.data
    forward = model.make_logits(config, mesh, layout, dtype)
    spec = NamedSharding(mesh, Spec(DATA))
    replies = reference.plain(
        lambda token: forward(weights, jax.device_put(token, spec)),
        prompts,
        length=length,
        rows=rows,
        stop={tok.eos},
        max_new=length // 2,
    )
    return [(tok.decode(p), tok.decode(r)) for p, r in zip(prompts, replies, strict=True)]


def printable(text):
    """Untrusted text for a terminal: control characters, escapes among them, become visible marks."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------------------------------------------- run


def write_json(path, value):
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def cut_metrics(path, step):
    """Keep the lines of metrics.jsonl up to `step`, each once: a resumed run writes the later ones again."""
    if not path.exists():
        return
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            kept.setdefault(json.loads(line)["step"], line)
        except (ValueError, KeyError, TypeError):
            continue  # a line torn by a kill; its step is past the checkpoint, since lines are written first
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(kept[s] + "\n" for s in sorted(kept) if s <= step), encoding="utf-8")
    os.replace(beside, path)


def check_same_run(old, new, out):
    """A run goes on only as the run it was: one line naming the first setting that differs."""
    free = set(flags.RESUMABLE)
    if new["args"]["schedule"] == "constant" and new["args"]["warmup_fraction"] is None:
        free |= {"steps", "epochs"}  # the rate of a step does not depend on how many there are
    pairs = [
        (f"--{n.replace('_', '-')}", old["args"].get(n), v)
        for n, v in new["args"].items()
        if n not in free
    ]
    pairs += [
        (n, old.get(n), new[n])
        for n in ("config", "data_fingerprint", "init_fingerprint", "tokenizer_fingerprint")
    ]
    if "steps" not in free:
        pairs.append(("the number of steps", old.get("steps"), new["steps"]))
    for name, was, now in pairs:
        if was != now:
            raise ValueError(
                f"--out {out} holds a run with {name} {was}, this one has {now}: use the same value, or another --out"
            )


def duration(seconds):
    seconds = int(seconds)
    return (
        f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if seconds >= 3600
        else f"{seconds // 60}:{seconds % 60:02}"
    )


def new_out(name):
    n = 1
    while (path := pathlib.Path("out") / f"{name}-{n}").exists():
        n += 1
    return str(path)


def resolve_model(args, say):
    """(config with the tokenizer's vocabulary, tokenizer, V of the initial weights or None)."""
    if args.init:
        file_config = paths.model_config(args.init, args.model)
    else:
        file_config = None
    where = args.tokenizer or (args.init.split("::", 1)[-1] if args.init else None)
    path = pathlib.Path(where)
    if args.tokenizer is None:
        if path.is_file():
            path = path.parent
        if (path / "tokenizer").is_dir():
            path = path / "tokenizer"
    roles = args.template == "roles"
    tok = tokenizer.load(str(path), roles=roles)
    config = file_config or model.preset(args.model)
    if file_config is not None:
        if file_config.V not in (tok.base_size, tok.base_size + 2):
            raise ValueError(
                f"--tokenizer {path} has {tok.base_size} tokens (+ 2 roles) but the weights of {args.init} have {file_config.V}: use the tokenizer the model was made with"
            )
        if file_config.V == tok.base_size + 2 and not roles:
            tok = tokenizer.load(str(path), roles=True)  # the weights have the role tokens already
    config = dataclasses.replace(config, V=tok.size)
    return config, tok


def planned(args):
    """--plan: what a step would cost, nothing trained."""
    config = (
        paths.model_config(args.init, args.model)
        if args.init
        else model.preset(args.model or "llama-7b")
    )
    opt = Optimizer(args.optimizer, args.b1, args.b2, args.weight_decay, args.clip)

    def lower(mesh, layout, compute, batch):
        step = make_step(
            config,
            mesh,
            layout,
            compute,
            opt,
            functools.partial(
                learning_rate, lr=args.lr, warmup=args.warmup, steps=1, schedule="constant"
            ),
            args.loss_mean,
        )
        return step.lower(state_like(config, mesh, layout, jnp.dtype(args.moment_dtype)), batch)

    return plan.show(args, config, functools.partial(compute_of, args, config), lower)


def compute_of(args, config, platform, data_size, packed=False):
    """What of model.StepOptions the flags and the platform decide."""
    kernel = pick_attention(args.attention, platform, args.dtype, args.block, config.H, packed)
    # TPUs: without it the compiled schedule has products beside 83 % of the gathered bytes, forward and backward; with it beside 69 and 8 % (--plan v5p:2x2x2)
    prefetch = args.prefetch if args.prefetch is not None else platform == "gpu" and data_size > 1
    mlp_rows = (
        1 if platform != "cpu" and args.remat == "full" else None
    )  # lean where memory is dear; on a CPU one product of all rows is faster
    dtypes = jnp.dtype(args.dtype), jnp.dtype(args.grad_dtype)
    return model.StepOptions(
        *dtypes,
        attention=kernel,
        remat=args.remat,
        prefetch=prefetch,
        mlp_rows=mlp_rows,
        join=platform == "cpu",
    )


def run(args):
    started = time.time()
    source = flags.resolve(args)
    if args.plan is not None:
        return planned(args)
    if args.deterministic:
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    mesh, note = sharding.start_devices(args.mesh, args.coordinator, args.processes, args.process)
    sharding.use_precision_of(args.dtype)
    main_process = jax.process_index() == 0
    say = functools.partial(print, flush=True) if main_process else lambda *a, **k: None

    # model and data
    config, tok = resolve_model(args, say)
    if source["block"] in ("paper", "quickstart"):
        args.block = min(args.block, config.P)
    if args.block > config.P:
        if config.family == "gpt2":
            raise ValueError(
                f"--block {args.block} is longer than the {config.P:,} positions of the model: use --block {config.P} or less"
            )
        say(
            f"note: --block {args.block} is longer than the {config.P:,} positions the model was made for: RoPE extrapolates badly"
        )
    data_size, tensor_size = (mesh.shape[a] for a in mesh.axis_names)
    if args.batch % (data_size * args.accumulate):
        unit = data_size * args.accumulate
        raise ValueError(
            f"--batch {args.batch} does not divide by {data_size} data ranks x {args.accumulate} micro-batches: use --batch {max(args.batch // unit, 1) * unit} or a smaller mesh"
        )
    out = pathlib.Path(
        args.out or new_out(args.model if args.init is None else pathlib.Path(args.init).name)
    )
    flags.print_flags(args, source, say)
    say(
        f"jax {jax.__version__}, {mesh.devices.size} x {mesh.devices.flat[0].device_kind}, mesh {data_size}x{tensor_size} (data x tensor), {jax.process_count()} process(es)"
    )
    if note:
        say(f"note: {note}")
    settings = dict(
        template=args.template,
        pack=args.pack,
        block=args.block,
        seed=args.seed,
        max_bad=args.max_bad_rows,
    )
    train_set, held_out = data.open_dataset(
        args.data,
        tok,
        tokens=args.tokens,
        eval_fraction=0.0 if args.eval_data else args.eval_fraction,
        **settings,
    )
    if args.eval_data:
        held_out, _ = data.open_dataset(
            [args.eval_data], tok, tokens=None, eval_fraction=0.0, **settings
        )
    mix_set = None
    if args.mix:
        mix_set, _ = data.open_dataset(args.mix, tok, tokens=None, eval_fraction=0.0, **settings)
    if not len(train_set):
        raise ValueError(
            f"--data {' '.join(args.data)} gives no row of {args.block} tokens: use more data or a smaller --block"
        )
    steps = args.steps or max(
        math.ceil(args.epochs * len(train_set) / (args.batch * (1 - args.mix_fraction)) - 1e-9), 1
    )
    warmup = (
        args.warmup
        if args.warmup_fraction is None
        else min(args.warmup, int(args.warmup_fraction * steps))
    )
    say(
        f"data: {len(train_set):,} rows of {args.block} tokens, {len(held_out) if held_out else 0:,} held out; {steps:,} steps of {args.batch} rows = {steps * args.batch / len(train_set):.2f} epochs"
    )
    if steps <= warmup:
        say(
            f"WARNING: {steps} steps end within the warm-up of {warmup}: the learning rate never passes {args.lr * max(steps - 1, 0) / max(warmup, 1):.2g} of {args.lr:g}. "
            f"Use --warmup-fraction 0.1, more data, or more --epochs"
        )

    layout = model.make_layout(config, data_size, tensor_size, stages=sharding.gather_stages(mesh))
    say(
        f"model: {config.family}, {model.parameter_count(config):,} weights, vocabulary {config.V} (padded to {config.padded_vocab})"
    )
    for line in model.replication_notes(config, layout):
        say(f"note: {line}")

    # a run that is there already goes on
    record = {
        "args": {k: v for k, v in vars(args).items()},
        "config": dataclasses.asdict(config),
        "steps": steps,
        "warmup": warmup,
        "data_fingerprint": [
            d.fingerprint if d is not None else None for d in (train_set, held_out, mix_set)
        ],
        "init_fingerprint": paths.fingerprint(args.init) if args.init else None,
        "tokenizer_fingerprint": tok.fingerprint,
        "mesh": [data_size, tensor_size],
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "mynah": __version__},
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    record = json.loads(json.dumps(record))  # tuples become lists, as they will come back
    if (out / "run.json").exists():
        check_same_run(json.loads((out / "run.json").read_text(encoding="utf-8")), record, out)
    if main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "run.json", record)
        tok.save(str(out / "tokenizer"))

    saver = runs.Saver(str(out), keep=args.keep)
    like = state_like(config, mesh, layout, jnp.dtype(args.moment_dtype))
    if saver.steps():
        state, _ = saver.restore(like)
        say(f"resuming {out} after step {int(state['step'])}")
    else:
        weights = (
            load_weights(args.init, config, mesh, layout)
            if args.init
            else model.initialise(config, mesh, layout, args.seed)
        )
        state = new_state(weights, like)
    first = int(state["step"])
    if main_process:
        cut_metrics(out / "metrics.jsonl", first)

    compute = compute_of(
        args, config, mesh.devices.flat[0].platform, data_size, packed=args.pack != "stream"
    )
    say(
        f"attention: {compute.attention}"
        + ", next layer's weights gathered ahead" * compute.prefetch
    )
    opt = Optimizer(args.optimizer, args.b1, args.b2, args.weight_decay, args.clip)
    schedule = functools.partial(
        learning_rate, lr=args.lr, warmup=warmup, steps=steps, schedule=args.schedule
    )
    step = make_step(config, mesh, layout, compute, opt, schedule, args.loss_mean)
    eval_step = make_eval_step(config, mesh, layout, compute)
    eval_batch = (
        -(-min(args.batch // args.accumulate, max(len(held_out or ()), 1)) // data_size) * data_size
    )
    evaluate = lambda: (
        held_out_loss(eval_step, state["weights"], held_out, eval_batch, mesh) if held_out else None
    )

    flops = plan.model_flops(config, args.batch * args.block, args.block)
    peak = plan.peak_flops(mesh.devices.flat[0].device_kind)
    if peak:
        say(
            f"MFU = model FLOPs a step / (ms * {mesh.devices.size} devices * {peak / 1e12:.0f} TFLOP/s); {plan.FLOPS_FORMULA} = {flops / 1e12:.2f} TFLOP a step"
        )
    else:
        say(
            f"MFU: no peak known for {mesh.devices.flat[0].device_kind}; model FLOPs a step {flops / 1e9:.1f} G ({plan.FLOPS_FORMULA})"
        )

    # stop on SIGTERM and Ctrl-C after the current step; the processes agree through a flag that travels with the batch
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: asked.append(n) if not asked else sys.exit(128 + n))

    def rows_of(s):
        """(read, indices) of the batch of step s (from 0): a pure function of (data, seed, s)."""
        if mix_set is None:
            return train_set.rows, data.batch_indices(len(train_set), args.batch, args.seed, s)
        return data.mixed(train_set, mix_set, args.batch, args.mix_fraction, args.seed, s)

    def make(s):
        return device_batch(*rows_of(s), args.accumulate, mesh, stop=bool(asked))

    before = evaluate() if first < steps else None
    if before is not None:
        say(
            f"held-out loss {before:.4f} {'before training' if first == 0 else f'after step {first}'}"
        )
    board = tensorboard(out) if args.tensorboard and main_process else None
    skipped = 0
    lines = open(out / "metrics.jsonl", "a", encoding="utf-8") if main_process else None
    clock = time.perf_counter()
    compiled = False

    def report(s, metrics, eval_loss=None):
        """Fetch the metrics of step s (from 1), which waits for the device, and write them; True where the run must stop."""
        nonlocal clock, skipped, compiled
        got = {n: float(x) for n, x in metrics.items()}
        now = time.perf_counter()
        ms, clock = (now - clock) * 1000, now
        empty = got["loss_tokens"] == 0
        if not empty and not (math.isfinite(got["loss"]) and math.isfinite(got["grad_norm"])):
            saver.wait()  # a save under way is finished, not lost
            last = max(saver.steps(), default=0)
            saver.close()
            rows = rows_of(s - 1)[1].tolist()
            raise ValueError(
                f"step {s}: loss {got['loss']}, gradient norm {got['grad_norm']}; rows {rows}: the weights of step {s - 1} are untouched, the last checkpoint is "
                f"step {last}: lower --lr or --clip, or take these rows out"
            )
        tokens = args.batch * args.block
        line = {
            "step": s,
            "loss": got["loss"],
            "lr": got["lr"],
            "grad_norm": got["grad_norm"],
            "loss_share": got["loss_tokens"] / tokens,
            "tokens": tokens,
            "ms": round(ms, 3),
            "tokens_per_s": round(tokens / ms * 1000, 1),
            "mfu": round(flops / (ms / 1000 * mesh.devices.size * peak), 4) if peak else None,
        }
        text = (
            f"step {s:>{len(str(steps))}}/{steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  grad norm {line['grad_norm']:.3f}  loss share {line['loss_share']:.2f}  "
            f"{ms:.0f} ms  {line['tokens_per_s']:,.0f} tokens/s  MFU {'-' if line['mfu'] is None else format(line['mfu'], '.1%')}  eta {duration((steps - s) * ms / 1000)}"
        )
        if empty:
            skipped += 1
            text += f"  SKIPPED: no loss token in this batch ({skipped} so far)"
        if eval_loss is not None:
            line["eval_loss"] = eval_loss
            text += f"  held-out loss {eval_loss:.4f}"
        say(text)
        if lines:
            lines.write(json.dumps(line) + "\n")
            lines.flush()
        if board:
            for name in ("loss", "lr", "grad_norm", "loss_share", "tokens_per_s", "eval_loss"):
                if name in line:
                    board.add_scalar(name, line[name], s)
        return got["stop"] > 0

    pending = None  # metrics are fetched a step late, so that the device never waits for the host
    stop = False
    s = first
    after = before
    for batch in ahead(make, range(first, steps)):
        state, metrics = step(state, batch)
        s += 1
        if pending:
            stop = report(*pending)
        pending = (s, metrics)
        stop = stop or bool(
            asked and jax.process_count() == 1
        )  # several processes agree on the step through the batch's flag
        eval_due = s == steps or (args.eval_every and s % args.eval_every == 0)
        save_due = s == steps or (args.save_every and s % args.save_every == 0)
        if eval_due or save_due or stop:
            after = evaluate() if eval_due else None
            stop = (
                report(*pending, after) or stop
            )  # before the save: a checkpoint's metrics are on disk when it is
            pending = None
            saver.save(s, state, {"step": s})
            if stop and s < steps:
                break
    saver.wait()
    for file in (lines, board):
        if file:
            file.close()
    if s < steps:
        saver.close()
        say(
            f"stopped by signal after step {s}; saved to {out}: the same command with --out {out} goes on"
        )
        return 128 + (asked[0] if asked else signal.SIGTERM)
    if before is not None and after is not None and first < steps:
        say(
            f"held-out loss {before:.4f} -> {after:.4f} in {steps - first} steps, {duration(time.time() - started)} in all"
            + (f"; {skipped} steps skipped" if skipped else "")
        )
    if args.samples and held_out:
        for prompt, reply in sample_replies(
            state["weights"],
            config,
            mesh,
            layout,
            tok,
            held_out,
            args.samples,
            compute.dtype,
            args.block,
        ):
            say("-" * 80 + f"\n{printable(prompt)}\n>>> {printable(reply)}")
        say("-" * 80)
    saver.close()
    say(f"saved to {out}: run.json, metrics.jsonl, checkpoints/{s}, tokenizer/")
    return 0


def tensorboard(out):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError(
            "--tensorboard needs the package tensorboardX: pip install tensorboardX, or leave the flag out (metrics.jsonl has it all)"
        ) from None
    return SummaryWriter(str(out / "tensorboard"))


def main(argv=None):
    args = flags.parser().parse_args(argv)
    try:
        return run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
