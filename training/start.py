"""What is opened before the first step: devices, model, data, run directory, weights.

For train.py; nothing to run. Cheap checks come first: what would end a run is found before data is
packed and weights are read. What was opened is closed when the block ends, however it ends.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

import data
import model
import sharding
from checkpoint import paths, runs
from checkpoint.load import load_weights
from host import terminal
from kernels.attention import pick_attention
from text.tokenizer import Tokenizer
from training import batches, checks, log, plan, processes, screen
from training import run as run_directory
from training.flags import Settings
from training.stop import Stop

DETERMINISTIC = " --xla_gpu_deterministic_ops=true"
State = dict[str, Any]  # weights, m, v: name -> array; step: how many were taken


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that is open."""

    settings: Settings
    out: pathlib.Path
    config: model.Config
    tok: Tokenizer
    mesh: Mesh
    layout: model.Layout
    options: model.StepOptions
    source: batches.Source
    held_out: data.Dataset | None
    steps: int
    warmup: int
    first: int  # steps that were taken before this start
    saver: runs.Saver
    log: log.StepLog
    stop: Stop
    say: Callable[..., None]  # print lines, on one of the processes
    started: float  # time.time()

    def batch_of(self, step: int) -> dict[str, jax.Array]:
        return self.source.batch_of(step, self.mesh, stop=self.stop.number is not None)

    @property
    def stops_now(self) -> bool:
        """Several processes agree on the step by a flag that travels with the batch instead."""
        return self.stop.number is not None and jax.process_count() == 1

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether after a step the held-out loss is measured, and the state is saved."""
        s, last = self.settings, step == self.steps
        save = last or bool(s.save_every and step % s.save_every == 0)
        measure = last or bool(s.eval_every and step % s.eval_every == 0)
        return measure or (save and s.keep_best), save

    @property
    def eval_batch(self) -> int:
        """Rows of a batch of held-out rows: a micro-batch, or less where there are fewer."""
        micro_batch, ranks = self.settings.batch // self.settings.accumulate, self.layout.data
        rows = min(micro_batch, max(len(self.held_out or ()), 1))
        return -(-rows // ranks) * ranks


class Setup(NamedTuple):
    """What is known of a run before its data."""

    settings: Settings  # with the block that the model allows
    out: pathlib.Path
    config: model.Config
    tok: Tokenizer
    mesh: Mesh
    layout: model.Layout
    options: model.StepOptions
    notes: list[str]


def set_up(settings: Settings, origin: dict[str, str]) -> Setup:
    """Start the devices, open model and tokenizer, and check all that is cheap to check.

    origin: flag -> where its value came from; one that the devices decide is noted there.
    """
    log.check_boards(settings.tensorboard, settings.wandb)
    out = pathlib.Path(settings.out or terminal.new_out(default_name(settings)))
    run_directory.check_place(out)
    if settings.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + DETERMINISTIC
    processes.gather(settings.coordinator, settings.processes, settings.process)
    mesh, note = sharding.start_devices(
        settings.mesh,
        settings.coordinator,
        settings.processes,
        settings.process,
        rows=settings.batch // settings.accumulate,
    )
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if on_cpu and origin["dtype"] == "paper":  # CPUs take longer in bfloat16, to be less exact
        settings = dataclasses.replace(settings, dtype="float32")
        origin["dtype"] = "no accelerator"
    sharding.use_precision_of(settings.dtype)
    config, tok = checks.resolve_model(settings)
    block, block_note = checks.fit_block(settings, origin["block"], config)
    settings = dataclasses.replace(settings, block=block)
    ranks, tensor = (mesh.shape[a] for a in mesh.axis_names)
    checks.check_batch(settings.batch, settings.accumulate, ranks)
    options = step_options(settings, config, mesh.devices.flat[0].platform, ranks)
    disk_note = run_directory.check_disk(out, state_bytes(config, settings), settings.keep)
    stages = sharding.gather_stages(mesh)
    layout = model.make_layout(config, ranks, tensor, stages=stages, major=on_cpu)
    notes = [note, block_note, disk_note, *model.replication_notes(config, layout)]
    return Setup(settings, out, config, tok, mesh, layout, options, [n for n in notes if n])


@contextlib.contextmanager
def start(settings: Settings, origin: dict[str, str], stop: Stop) -> Iterator[tuple[Run, State]]:
    """(the run, its state before the next step). origin: flag -> where its value came from."""
    started = time.time()
    setup = set_up(settings, origin)
    settings, out, config, tok, mesh, layout, options, notes = setup
    speaks = jax.process_index() == 0
    say = screen.say if speaks else screen.silent
    say(*screen.opening(settings, origin, config, mesh, options, out))
    say(*(f"note: {text}" for text in notes))
    with contextlib.ExitStack() as opened:
        if speaks:
            opened.enter_context(run_directory.claim(out))
        source, held_out = open_data(settings, tok)
        steps, warmup = length(settings, len(source.train))
        say(*screen.about_steps(settings, len(source.train), held_out, steps, warmup))
        record = record_of(setup, origin, source, held_out, (steps, warmup))
        processes.agree(record)
        if speaks:
            run_directory.begin(out, record)
            tok.save(str(out / "tokenizer"))
        saver = runs.Saver(str(out), settings.keep, settings.keep_best)
        opened.callback(saver.close)
        state = open_state(settings, config, mesh, layout, saver)
        first = int(state["step"])
        if first:
            say(f"resuming {out} after step {first}")
        metrics = out / "metrics.jsonl" if speaks else None
        if metrics:
            run_directory.cut_metrics(metrics, first)
        boards = open_boards(settings, out, record) if speaks else ()
        tokens = settings.batch * settings.block
        flops = plan.model_flops(config, tokens, settings.block)
        if settings.verbose:
            say(screen.about_flops(config, mesh, tokens, settings.block))
        scale = log.Scale(steps, tokens, flops, device_peak(mesh))
        step_log = log.StepLog(metrics, scale, source.rows_of, settings.log_every, boards)
        opened.callback(step_log.close)
        run = Run(
            settings, out, config, tok, mesh, layout, options, source, held_out, steps, warmup,
            first, saver, step_log, stop, say, started,
        )  # fmt: skip
        try:
            yield run, state
        except log.Diverged as error:
            saver.wait()  # a save under way is finished, not lost
            raise ValueError(
                f"{error}, the last checkpoint is step {max(saver.steps(), default=0)}: lower --lr "
                "or --clip, or take these rows out"
            ) from None


def open_boards(settings: Settings, out: pathlib.Path, record: dict[str, Any]) -> tuple:
    """Where else the curves go."""
    boards = [log.TensorBoard(out)] if settings.tensorboard else []
    return (*boards, *([log.WandB(out, record)] if settings.wandb else []))


def record_of(
    setup: Setup,
    origin: dict[str, str],
    source: batches.Source,
    held_out: data.Dataset | None,
    length: tuple[int, int],
) -> dict[str, Any]:
    """What run.json holds. length: steps and steps of warm-up."""
    init, datasets = setup.settings.init, (source.train, held_out, source.mix)
    found = {
        "config": dataclasses.asdict(setup.config),
        "steps": length[0],
        "warmup": length[1],
        "data_fingerprint": [d.fingerprint if d is not None else None for d in datasets],
        "init_fingerprint": paths.fingerprint(init) if init else None,
        "tokenizer_fingerprint": setup.tok.fingerprint,
        "roles": setup.tok.roles,  # whether the last two rows are the role tokens
        "mesh": [setup.layout.data, setup.layout.tensor],
    }
    return run_directory.record_of(setup.settings, origin, found)


def default_name(settings: Settings) -> str:
    return str(settings.model) if settings.init is None else pathlib.Path(settings.init).name


def device_peak(mesh: Mesh) -> float | None:
    """FLOP/s of all devices together, None where not known."""
    peak = plan.peak_flops(mesh.devices.flat[0].device_kind)
    return peak and peak * mesh.devices.size


def step_options(
    settings: Settings, config: model.Config, platform: str, data_ranks: int
) -> model.StepOptions:
    """How a step is computed, as far as the flags and the platform decide it."""
    s = settings
    kernel = pick_attention(s.attention, platform, s.dtype, s.block, config.H)
    # TPUs: without it the compiled schedule has products beside 83 % of the gathered bytes,
    # forward and backward; with it beside 69 and 8 % (--plan v5p:2x2x2)
    prefetch = s.prefetch if s.prefetch is not None else platform == "gpu" and data_ranks > 1
    roomy = platform == "gpu" and s.remat != "full"
    return model.StepOptions(
        jnp.dtype(s.dtype),
        jnp.dtype(s.grad_dtype),
        loss_chunk=4096 if roomy else 1024,
        attention=kernel,
        remat=s.remat,
        prefetch=prefetch,
        unroll=roomy and data_ranks == 1,
        # lean where memory is dear; on a CPU one product of all rows is faster
        mlp_rows=1 if platform != "cpu" and s.remat == "full" else None,
        join=("qkv",) if platform == "cpu" else (),
        tall=platform == "cpu",
    )


# --- data ---


def open_data(settings: Settings, tok: Tokenizer) -> tuple[batches.Source, data.Dataset | None]:
    """(what the batches are taken from, the held-out rows or None); packs what is not packed."""
    s = settings
    how = dict(template=s.template, pack=s.pack, block=s.block, seed=s.seed, max_bad=s.max_bad_rows)
    fraction = 0.0 if s.eval_data else s.eval_fraction
    main: dict[str, Any] = dict(tokens=s.tokens, eval_fraction=fraction, **how)
    train, held_out = data.open_dataset(s.data, tok, **main)
    if not len(train):
        raise ValueError(
            f"--data {' '.join(s.data)} gives no row of {s.block} tokens: use more data or a "
            "smaller --block"
        )
    others: dict[str, Any] = dict(tokens=None, eval_fraction=0.0, **how)
    if s.eval_data:
        held_out, _ = data.open_dataset([s.eval_data], tok, **others)
    mix = data.open_dataset(s.mix, tok, **others)[0] if s.mix else None
    source = batches.Source(train, mix, s.mix_fraction, s.batch, s.accumulate, s.seed)
    return source, held_out


def length(settings: Settings, rows: int) -> tuple[int, int]:
    """(steps, steps of warm-up) of a training on `rows` rows."""
    s, steps = settings, settings.steps
    if steps is None:
        assert s.epochs is not None  # flags.resolve leaves one of the two
        own_rows = s.batch * (1 - s.mix_fraction)  # of a step, those that are not mixed in
        steps = max(math.ceil(s.epochs * rows / own_rows - 1e-9), 1)
    if s.warmup_fraction is None:
        return steps, s.warmup
    return steps, min(s.warmup, int(s.warmup_fraction * steps))


# --- state ---


def state_bytes(config: model.Config, settings: Settings) -> int:
    """Bytes of a checkpoint: float32 weights, two moments."""
    moment = jnp.dtype(settings.moment_dtype).itemsize
    return (4 + moment + 4) * model.parameter_count(config)


def state_like(config: model.Config, mesh: Mesh, layout: model.Layout, moment_dtype: Any) -> State:
    """The state's arrays as ShapeDtypeStructs with their shardings.

    Weights and second moment are float32, the first moment is moment_dtype.
    """
    place, shapes = sharding.shardings(layout.stacked(config), mesh), model.shapes(config)

    def like(dtype):
        return {
            n: jax.ShapeDtypeStruct(shape, dtype, sharding=place[n]) for n, shape in shapes.items()
        }

    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, Spec()))
    arrays = {"weights": jnp.float32, "m": moment_dtype, "v": jnp.float32}
    return {name: like(dtype) for name, dtype in arrays.items()} | {"step": step}


def new_state(weights: dict[str, jax.Array], like: State) -> State:
    """The state before the first step, its zeros made where they belong."""
    rest = {name: like[name] for name in ("m", "v", "step")}
    make = jax.jit(
        lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), rest),
        out_shardings=jax.tree.map(lambda s: s.sharding, rest),
    )
    return {"weights": weights} | make()


def open_state(
    settings: Settings, config: model.Config, mesh: Mesh, layout: model.Layout, saver: runs.Saver
) -> State:
    """The state of the last checkpoint, or one of initial weights."""
    like = state_like(config, mesh, layout, jnp.dtype(settings.moment_dtype))
    if saver.steps():
        return saver.restore(like)[0]
    if settings.init:
        weights = load_weights(settings.init, config, mesh, layout)
    else:
        weights = model.initialise(config, mesh, layout, settings.seed)
    return new_state(weights, like)
