"""What a training step costs, without the hardware: memory, FLOPs, bytes over the wire, least time.

    python train.py --plan --model llama-13b --mesh 8x1              by hand, in a few seconds
    python train.py --plan --model llama-7b --steps 2289             also the hours of so many steps
    python train.py --plan v5p:2x2x2 --model llama-13b --mesh 8x1    and compiled for that topology
    python train.py --plan --json --model llama-13b                  the same figures, as JSON

No weight is allocated. Left out: what a program holds besides (XLA's own buffers, fragmentation,
the host), overlap (the floor takes the slower of arithmetic and wire), latency, several slices.
"""

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

import model
import sharding
from host import files
from sharding import DATA, TENSOR
from training.flags import Settings

GIB = 2**30
MOST = 1 << 20  # devices that a count by hand may be asked for


class Device(NamedTuple):
    """One accelerator from its vendor's data sheet."""

    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    wire: float  # bytes/s received from its neighbours: NVLink, or all ICI links together
    island: int = MOST  # devices that this wire joins: a GPU server; of TPUs one slice is assumed
    between: float = math.inf  # bytes/s that it can receive from other islands


# A TPU's "chip" is the device. NVLink and ICI are quoted both ways: half of it is what a device
# receives. Between servers: a network card each, as in DGX (A100: 200 Gb/s, H100 and H200: 400).
DEVICES = {
    "A100": Device(312e12, 80e9, 300e9, 8, 25e9),
    "H100": Device(989e12, 80e9, 450e9, 8, 50e9),
    "H200": Device(989e12, 141e9, 450e9, 8, 50e9),
    "v4": Device(275e12, 32 * GIB, 150e9),
    "v5e": Device(197e12, 16 * GIB, 100e9),
    "v5p": Device(459e12, 95 * GIB, 300e9),
}

# Peak FLOP/s by what JAX calls a device.
PEAKS = {name: DEVICES[name].flops for name in ("A100", "H100", "H200")} | {
    "TPU v4": DEVICES["v4"].flops,
    "TPU v5 lite": DEVICES["v5e"].flops,
    "TPU v5e": DEVICES["v5e"].flops,
    "TPU v5": DEVICES["v5p"].flops,
    "TPU v6": 918e12,
}

FLOPS_FORMULA = "6 * matmul weights + 6 * L * T * N * H a token (causal attention counted half)"


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOP/s of one device, or None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


# --- by hand ---


def shard_sizes(config: model.Config, layout: model.Layout) -> dict[str, tuple[int, int]]:
    """name -> (weights of one device's shard, all layers; one layer's gathered over data)."""
    out = {}
    for name, shape in model.shapes(config).items():
        split = sharding.axes_of(layout.specs[name])
        tensor = layout.tensor if TENSOR in split else 1
        layers = config.L if model.weight_table(config)[name].layered else 1
        total = math.prod(shape) // tensor
        out[name] = total // (layout.data if DATA in split else 1), total // layers
    return out


LATER = "logits chunk (before the peak, not added)"


def memory(
    config: model.Config,
    layout: model.Layout,
    options: model.StepOptions,
    *,
    batch: int,
    T: int,
    accumulate: int = 1,
    moment_dtype: Any = jnp.float32,
) -> dict[str, int]:
    """Bytes of one device at the peak of a step, line by line; `total` is the sum of all but LATER.

    batch: rows a step over all devices. The peak is in the backward pass, in a layer's gradient:
    the buffer of all gradients, every layer's kept values, the layer's weights gathered, their
    gradient in the compute dtype and in the one it is reduced in, and what the layer computes. The
    output matrix and its logits live before that: the larger of the two is taken.
    """
    size = shard_sizes(config, layout)
    c, g = jnp.dtype(options.dtype).itemsize, jnp.dtype(options.grad_dtype).itemsize
    shard = sum(s for s, _ in size.values())
    layered = {n for n, row in model.weight_table(config).items() if row.layered}
    layer = sum(gathered for n, (_, gathered) in size.items() if n in layered)
    rows = batch // accumulate // layout.data
    M = rows * T  # tokens of a micro-batch on this device
    residual, activations, kept = layer_values(config, layout, options, rows, T)
    gathered = layer * c * (2 if options.prefetch else 1)
    backward = layer * c + layer * (g if g != c else 0) // 2 + activations * c
    head = size["embed" if config.tied else "head"][1]
    V = config.padded_vocab // (layout.tensor if layout.vocab else 1)
    chunk = min(options.loss_chunk, M)
    logits = chunk * V * (4 + 4 + c)  # logits, their exponentials, their gradient
    loss = head * (c + 4) + logits + 2 * M * config.D * c
    lines = {
        "weights": 4 * shard,
        "moments": (jnp.dtype(moment_dtype).itemsize + 4) * shard,
        "gradients": g * shard,
        "saved activations": config.L * kept * c,
        "gathered layer": gathered,
        "working set": max(backward, loss - gathered),
    }
    at_peak = loss - gathered > backward
    lines["working set"] -= logits * at_peak
    total = sum(lines.values()) + logits * at_peak
    return lines | {"logits chunk" if at_peak else LATER: logits, "total": total}


def layer_values(
    config: model.Config, layout: model.Layout, options: model.StepOptions, rows: int, T: int
) -> tuple[int, int, int]:
    """Values on one device: (a residual [B, T, D], a layer's in its backward pass, those kept)."""
    t, M = layout.tensor, rows * T
    sequence = model.sequence_parallel(layout, T)
    residual = M * config.D // (t if sequence else 1)
    NH = config.N * config.H // (t if layout.attention else 1)
    KH = config.K * config.H // (t if layout.kv else 1)
    F = config.F // (t if layout.mlp else 1) * (2 if config.family == "llama" else 1)
    kept = {
        "full": residual,
        # matmul results: qkv, wo, gate and up, w2
        "dots": residual + M * (NH + 2 * KH + F) + 2 * residual,
        "none": 2 * residual + M * (4 * NH + 4 * KH + 3 * F) + 6 * residual,
    }[options.remat]
    # tokens that the MLP takes at a time
    mlp = M if options.mlp_rows is None else min(rows, options.mlp_rows) * T
    # a layer in its backward pass, activations with their gradients
    activations = 2 * residual + M * (2 * config.D + 3 * NH + 3 * KH) + mlp * 2 * F
    return residual, activations, kept


def wire(
    config: model.Config,
    layout: model.Layout,
    options: model.StepOptions,
    *,
    batch: int,
    T: int,
    accumulate: int = 1,
) -> dict[str, int]:
    """Bytes that one device receives in a step, by kind.

    A ring passes (n - 1) / n of the gathered array to each device; a sum over ranks that all keep
    costs twice that. FSDP's minimum: two gathers of the weights in the compute dtype (forward,
    backward) and one reduce-scatter of the gradients, each micro-batch. Over tensor: what enters
    and leaves each region, forward, again in the recomputed forward, and backward.
    """
    c, g = jnp.dtype(options.dtype).itemsize, jnp.dtype(options.grad_dtype).itemsize
    d, t = layout.data, layout.tensor
    table, size = model.weight_table(config), shard_sizes(config, layout)
    split = {n for n in table if sharding.dim_over(layout.specs[n], DATA) is not None}
    full = {n: size[n][1] * (config.L if table[n].layered else 1) for n in table}
    # embeddings and head are gathered once, layers twice
    gathered = sum(full[n] * (2 if table[n].layered else 1) for n in split)
    scattered = sum(full[n] for n in split)
    summed = sum(full[n] for n in table if n not in split)
    out = {
        "weights gathered": gathered * c * accumulate * (d - 1) // d,
        "gradients scattered": scattered * g * accumulate * (d - 1) // d,
        "gradients summed whole": 2 * summed * g * accumulate * (d - 1) // d,
    }
    if t > 1:
        # a gather or a reduce-scatter of one [B, T, D]
        one = batch // d * T * config.D * c * (t - 1) // t
        regions = layout.attention + layout.mlp
        # with prefetch the last layer's forward is still there: none of it is computed again
        repeated = config.L - options.prefetch
        if model.sequence_parallel(layout, T):
            # each region: a gather and a scatter forward, the reverse of both backward; computed
            # again: entering, and leaving attention; 4: embedding and output matrix
            again = {"full": 3, "dots": 2, "none": 0}[options.remat]
            units = config.L * regions * 4 + repeated * again + 4
        else:
            # a psum costs two units: leaving forward, entering backward, and leaving attention
            # computed again
            again = repeated * (options.remat == "full" and layout.attention)
            units = 2 * (config.L * regions * 2 + again + 2 * layout.vocab)
        out["activations over tensor"] = one * units
    return out


def fsdp_minimum(
    config: model.Config, layout: model.Layout, options: model.StepOptions, accumulate: int = 1
) -> int:
    """Bytes received a step by FSDP at its best.

    Two gathers of all weights in the compute dtype, one reduce-scatter of the gradients in theirs.
    """
    c, g = jnp.dtype(options.dtype).itemsize, jnp.dtype(options.grad_dtype).itemsize
    table = model.weight_table(config)
    full = sum(
        gathered * (config.L if table[name].layered else 1)
        for name, (_, gathered) in shard_sizes(config, layout).items()
    )
    return full * (2 * c + g) * accumulate * (layout.data - 1) // layout.data


def model_flops(config: model.Config, tokens: int, T: int) -> int:
    """Model FLOPs of a training step over `tokens` tokens in rows of T.

    6 * matmul weights + 6 * L * T * NH a token: forward 2 FLOPs a multiply-add, backward twice
    that. Matmul weights are all but embeddings (the output matrix counts, tied or not), norms and
    biases. Attention's two products are counted whole at 4 * T * NH a token and layer forward, then
    halved for causality, times 3. Rematerialisation is not counted.
    """
    size = model.sizes(config, padded=False)
    matmul = sum(
        math.prod(size[d] for d in row.dims) * (config.L if row.layered else 1)
        for row in model.weight_table(config).values()
        if row.init in ("matrix", "residual")
    )
    if config.tied:
        matmul += config.V * config.D
    return tokens * (6 * matmul + 6 * config.L * T * config.N * config.H)


def hardware_flops(config: model.Config, options: model.StepOptions, tokens: int, T: int) -> float:
    """Model FLOPs and what rematerialisation adds: `full` computes every layer's forward again."""
    flops = model_flops(config, tokens, T)
    head = 6 * config.V * config.D * tokens
    return flops + (flops - head) / 3 * (options.remat == "full")


def step_time_bounds(
    config: model.Config,
    layout: model.Layout,
    options: model.StepOptions,
    device: Device,
    *,
    batch: int,
    T: int,
    accumulate: int = 1,
    mfu: float | None = None,
) -> tuple[float, float]:
    """Seconds of (arithmetic, wire) of one step; no step is shorter than the longer.

    mfu: arithmetic runs as slow as that (model FLOPs / peak); None: at the peak. Beyond an island a
    ring enters it once for all of its ranks, each through its own network card: the data ranks of
    an island take their common bytes together.
    """
    n, tokens = layout.data * layout.tensor, batch * T
    flops = hardware_flops(config, options, tokens, T)
    if mfu is not None:
        flops = model_flops(config, tokens, T) / mfu
    received = wire(config, layout, options, batch=batch, T=T, accumulate=accumulate)
    total, over_tensor = sum(received.values()), received.get("activations over tensor", 0)
    link = total / device.wire
    if n > device.island:
        together = max(device.island // layout.tensor, 1)
        across = over_tensor / device.between if layout.tensor > device.island else 0
        link = max(link, (total - over_tensor) / (together * device.between) + across)
    return flops / n / device.flops, link


def hours(steps: int, *args: Any, **kwargs: Any) -> float:
    """Hours that `steps` steps take at least; the other arguments as for `step_time_bounds`.

    Start-up, compiling, held-out losses and checkpoints come on top.
    """
    return steps * max(step_time_bounds(*args, **kwargs)) / 3600


# --- the report ---


def figures(
    config: model.Config,
    layout: model.Layout,
    options: model.StepOptions,
    *,
    batch: int,
    T: int,
    accumulate: int = 1,
    moment_dtype: Any = jnp.float32,
    steps: int | None = None,
) -> dict:
    """Everything that --plan counts by hand, ready for JSON: bytes, FLOPs, seconds, hours.

    steps: of the whole training, None where not asked for.
    """
    sizes = dict(batch=batch, T=T, accumulate=accumulate)
    count = memory(config, layout, options, **sizes, moment_dtype=moment_dtype)
    tokens, n = batch * T, layout.data * layout.tensor
    flops = model_flops(config, tokens, T)
    devices = {}
    for name, device in DEVICES.items():
        work, link = step_time_bounds(config, layout, options, device, **sizes)
        floor = max(work, link)
        row = devices[name] = {
            "fits": count["total"] < device.memory,
            "arithmetic_s": work,
            "wire_s": link,
            "floor_s": floor,
            "mfu_at_most": flops / n / device.flops / floor,
            "tokens_per_s": tokens / floor / n,
        }
        for key, mfu in (("hours", None), ("hours_mfu_50", 0.5), ("hours_mfu_40", 0.4)):
            if steps:
                row[key] = hours(steps, config, layout, options, device, **sizes, mfu=mfu)
    return {
        "weights": model.parameter_count(config),
        "model": {"family": config.family} | {x: getattr(config, x) for x in "LDNKFV"},
        "mesh": [layout.data, layout.tensor],
        "notes": model.replication_notes(config, layout),
        "rows": batch,
        "block": T,
        "tokens": tokens,
        "accumulate": accumulate,
        "dtype": jnp.dtype(options.dtype).name,
        "grad_dtype": jnp.dtype(options.grad_dtype).name,
        "moment_dtype": jnp.dtype(moment_dtype).name,
        "remat": options.remat,
        "prefetch": bool(options.prefetch),
        "memory": count,
        "model_flops": flops,
        "computed_flops": hardware_flops(config, options, tokens, T),
        "received": wire(config, layout, options, **sizes),
        "fsdp_minimum": fsdp_minimum(config, layout, options, accumulate),
        "steps": steps,
        "devices": devices,
    }


def lines(f: dict) -> list[str]:
    """`figures` as the lines that --plan prints."""
    m, received = f["model"], f["received"]
    out = [
        f"{f['weights']:,} weights ({m['family']}: L {m['L']}, D {m['D']}, "
        f"heads {m['N']}/{m['K']}, F {m['F']}, V {m['V']})",
        f"step: {f['rows']} rows of {f['block']} = {f['tokens']:,} tokens in {f['accumulate']} "
        f"micro-batch{'es' * (f['accumulate'] > 1)}; mesh {f['mesh'][0]}x{f['mesh'][1]}; "
        f"{f['dtype']} compute, gradients {f['grad_dtype']}, first moment {f['moment_dtype']}, "
        f"remat {f['remat']}, prefetch {'on' if f['prefetch'] else 'off'}",
        *(f"note: {text}" for text in f["notes"]),
        "",
        "memory of one device, counted by hand          GiB",
        *(f"  {name:<42} {value / GIB:5.2f}" for name, value in f["memory"].items()),
        "",
        f"model FLOPs a step  {f['model_flops'] / 1e12:,.1f} T = {FLOPS_FORMULA}",
        f"computed a step     {f['computed_flops'] / 1e12:,.1f} T with what is computed again",
        "",
        "received by one device a step                  GiB",
        *(f"  {name:<38} {value / GIB:9.2f}" for name, value in received.items() if value),
        f"  {'total':<38} {sum(received.values()) / GIB:9.2f}",
        f"  {'FSDP minimum over data':<38} {f['fsdp_minimum'] / GIB:9.2f}",
        "",
        "no step is shorter than   fits    arithmetic s     wire s    floor s   MFU at most   "
        "tokens/s a device",
    ]
    for name, d in f["devices"].items():
        out.append(
            f"  {name:<22} {'yes' if d['fits'] else 'no':>6} {d['arithmetic_s']:>15.3f} "
            f"{d['wire_s']:>10.3f} {d['floor_s']:>10.3f} {d['mfu_at_most']:>12.1%} "
            f"{d['tokens_per_s']:>17,.0f}"
        )
    if f["steps"]:
        out += ["", f"hours of {f['steps']:,} steps      at least   at MFU 50 %   at MFU 40 %"]
        for name, d in f["devices"].items():
            out.append(
                f"  {name:<22} {d['hours']:>8.2f} {d['hours_mfu_50']:>13.2f} "
                f"{d['hours_mfu_40']:>13.2f}"
            )
    return out


# --- a topology ---


def topology_devices(name: str) -> list:
    """The devices of a TPU topology such as v5p:2x2x2, none of which need be there.

    ValueError where libtpu is missing or does not know it.
    """
    # no TPU is used: do not look for one, nor lock out another program that has one
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError(
            f"--plan {name} compiles with libtpu, which is not installed: "
            'pip install "jax[tpu]", or use --plan alone for the count by hand'
        ) from None
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--plan {name} is no TPU topology that libtpu knows, or libtpu did not start "
            f"({str(error).splitlines()[0][:120]}): use e.g. v5p:2x2x2, v5e:2x4, v4:2x2x1"
        ) from None


def plan(
    settings: Settings,
    config: model.Config,
    options_of: Callable[[str, int], model.StepOptions],
    lower: Callable,
) -> tuple[dict, str | None]:
    """(`figures` of the run that `settings` describe, the label of what was compiled or None).

    options_of(platform, data ranks) -> model.StepOptions. lower(mesh, layout, options, T) -> the
    lowered step, called for a topology alone, whose figures stand under "compiled".
    """
    topology = settings.plan if settings.plan != "hand" else None
    devices = topology_devices(topology) if topology else None
    data, tensor = sharding.parse_mesh(settings.mesh, len(devices) if devices else MOST)
    if settings.mesh is None:
        data, tensor = (len(devices) if devices else 8), 1
    T, unit = min(settings.block, config.P), data * settings.accumulate
    if settings.batch % unit:
        raise ValueError(
            f"--batch {settings.batch} does not divide by {data} data ranks x "
            f"{settings.accumulate} micro-batches: use a multiple of {unit}"
        )
    mesh = sharding.make_mesh(data, tensor, devices) if devices else None
    stages = sharding.gather_stages(mesh) if mesh else ()
    layout = model.make_layout(config, data, tensor, stages=stages)
    options = options_of("gpu" if settings.attention == "cudnn" and not topology else "tpu", data)
    sizes: dict[str, Any] = dict(
        batch=settings.batch, T=T, accumulate=settings.accumulate, steps=settings.steps
    )
    moment_dtype = jnp.dtype(settings.moment_dtype)
    counted = figures(config, layout, options, **sizes, moment_dtype=moment_dtype)
    if not mesh:
        return counted, None
    from bench import compiled  # it reads programs of XLA, which nothing else here does

    program = lower(mesh, layout, options, T)
    label = f"{topology}, {settings.model or settings.init}, {data}x{tensor}"
    return counted | {"compiled": compiled.figures(program, mesh.devices.size)}, label


def show(
    settings: Settings,
    config: model.Config,
    options_of: Callable[[str, int], model.StepOptions],
    lower: Callable,
) -> None:
    """Print the plan: a table, or JSON with --json. Arguments as for `plan`."""
    counted, label = plan(settings, config, options_of, lower)
    if settings.json:
        print(files.dumps(counted, indent=2))
        return
    print(*lines(counted), sep="\n")
    if label:
        from bench import compiled

        print("", *compiled.lines(counted["compiled"], label), sep="\n")
