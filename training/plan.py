"""What a training step costs, without the hardware: memory line by line, FLOPs, bytes over the wire, the time below which no step can be; and XLA's own figures for a TPU.

    python train.py --plan --model llama-13b --mesh 8x1                 counted by hand: any machine, a few seconds, no weight is allocated
    python train.py --plan --model llama-7b --steps 2289                also the hours of so many steps
    python train.py --plan v5p:2x2x2 --model llama-13b --mesh 8x1       and compiled for that TPU topology (pip install "jax[tpu]"; no TPU is needed)

Left out: what a program holds besides (XLA's own buffers, fragmentation, the host), overlap (the floor takes the slower of arithmetic and wire), latency, several slices.
"""

import collections
import math
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from sharding import DATA, TENSOR

GIB = 2**30
MOST = 1 << 20  # devices that a count by hand may be asked for


class Device(NamedTuple):
    """One accelerator from its vendor's data sheet."""

    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    wire: (
        float  # bytes/s that it can receive from its neighbours: NVLink, or all ICI links together
    )
    island: int = MOST  # devices that this wire joins: a GPU server; of TPUs one slice is assumed
    between: float = math.inf  # bytes/s that it can receive from other islands


# A TPU's "chip" is the device. NVLink and ICI are quoted both ways: half of it is what a device receives. Between servers: a network card each, as in DGX
# (A100: 200 Gb/s, H100 and H200: 400).
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


def peak_flops(device_kind):
    """Peak FLOP/s of one device, or None where it is not known (a CPU)."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


# ----------------------------------------------------------------------------------------------------------- by hand


def shard_sizes(config, layout):
    """name -> (weights of one device's shard, weights of one layer gathered over data), layers included in the first."""
    out = {}
    for name, shape in model.shapes(config).items():
        split = sharding.axes_of(layout.specs[name])
        tensor = layout.tensor if TENSOR in split else 1
        layers = config.L if model.weight_table(config)[name].layered else 1
        total = math.prod(shape) // tensor
        out[name] = total // (layout.data if DATA in split else 1), total // layers
    return out


LATER = "logits chunk (before the peak, not added)"


def memory(config, layout, compute, *, batch, T, accumulate=1, moment_dtype=jnp.float32):
    """What one device holds at the peak of a step -> dict line -> bytes, in the order of the printed table; `total` is the sum of all but LATER.

    batch: rows a step over all devices. The peak is in the backward pass, in a layer's gradient: all gradients' buffer, every layer's kept values, the layer's weights
    gathered, their gradient in the compute dtype and in the one it is reduced in, and what the layer computes. The output matrix and its logits live before that: the
    larger of the two is taken.
    """
    size = shard_sizes(config, layout)
    c, g = jnp.dtype(compute.dtype).itemsize, jnp.dtype(compute.grad_dtype).itemsize
    shard = sum(s for s, _ in size.values())
    layered = {n for n, row in model.weight_table(config).items() if row.layered}
    layer = sum(whole for n, (_, whole) in size.items() if n in layered)
    rows, t = batch // accumulate // layout.data, layout.tensor
    M = rows * T  # tokens of a micro-batch on this device
    sequence = model.sequence_parallel(layout, T)
    residual = M * config.D // (t if sequence else 1)  # one [B, T, D] of the residual stream
    NH, KH = (
        config.N * config.H // (t if layout.attention else 1),
        config.K * config.H // (t if layout.kv else 1),
    )
    F = config.F // (t if layout.mlp else 1) * (2 if config.family == "llama" else 1)
    kept = {  # values a layer
        "full": residual,
        "dots": residual
        + M * (NH + 2 * KH + F)
        + 2 * residual,  # matmul results: qkv, wo, gate and up, w2
        "none": 2 * residual + M * (4 * NH + 4 * KH + 3 * F) + 6 * residual,
    }[compute.remat]
    mlp = (
        M if compute.mlp_rows is None else min(rows, compute.mlp_rows) * T
    )  # tokens that the MLP takes at a time
    inside = (
        2 * residual + M * (2 * config.D + 3 * NH + 3 * KH) + mlp * 2 * F
    )  # a layer in its backward pass, activations with their gradients
    gathered = layer * c * (2 if compute.prefetch else 1)
    backward = layer * c + layer * (g if g != c else 0) // 2 + inside * c
    head = size["embed" if config.tied else "head"][1]
    chunk = min(compute.loss_chunk, M)
    V = config.padded_vocab // (t if layout.vocab else 1)
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


def wire(config, layout, compute, *, batch, T, accumulate=1):
    """Bytes that one device receives in a step -> dict kind -> bytes.

    A ring passes (n - 1) / n of the gathered array to each device; a sum over ranks that all keep costs twice that. FSDP's minimum: two gathers of the weights in the
    compute dtype (forward, backward) and one reduce-scatter of the gradients, each micro-batch. Over tensor: what enters and leaves each region, forward, again in
    the recomputed forward, and backward.
    """
    c, g, d, t = (
        jnp.dtype(compute.dtype).itemsize,
        jnp.dtype(compute.grad_dtype).itemsize,
        layout.data,
        layout.tensor,
    )
    table, size = model.weight_table(config), shard_sizes(config, layout)
    split = {n for n in table if sharding.dim_over(layout.specs[n], DATA) is not None}
    whole = {n: size[n][1] * (config.L if table[n].layered else 1) for n in table}
    twice = sum(
        whole[n] * (2 if table[n].layered else 1) for n in split
    )  # embeddings and head are gathered once
    out = {
        "weights gathered": twice * c * accumulate * (d - 1) // d,
        "gradients scattered": sum(whole[n] for n in split) * g * accumulate * (d - 1) // d,
        "gradients summed whole": 2
        * sum(whole[n] for n in table if n not in split)
        * g
        * accumulate
        * (d - 1)
        // d,
    }
    if t > 1:
        one = (
            batch // d * T * config.D * c * (t - 1) // t
        )  # a gather or a reduce-scatter of one [B, T, D]
        regions = layout.attention + layout.mlp
        repeated = (
            config.L - compute.prefetch
        )  # with prefetch the last layer's forward is still there: nothing of it is computed again
        if model.sequence_parallel(
            layout, T
        ):  # each region: a gather and a scatter forward, the reverse of both backward; computed again: entering, and leaving attention
            units = (
                config.L * regions * 4
                + repeated * {"full": 3, "dots": 2, "none": 0}[compute.remat]
                + 4
            )  # 4: embedding and output matrix
        else:  # a psum costs two units: leaving forward, entering backward, and leaving attention computed again
            units = 2 * (
                config.L * regions * 2
                + repeated * (compute.remat == "full" and layout.attention)
                + 2 * layout.vocab
            )
        out["activations over tensor"] = one * units
    return out


def fsdp_minimum(config, layout, compute, accumulate=1):
    """Bytes received a step by FSDP at its best: two gathers of all weights in the compute dtype and one reduce-scatter of the gradients in theirs."""
    c, g = jnp.dtype(compute.dtype).itemsize, jnp.dtype(compute.grad_dtype).itemsize
    table = model.weight_table(config)
    whole = sum(
        n[1] * (config.L if table[name].layered else 1)
        for name, n in shard_sizes(config, layout).items()
    )
    return whole * (2 * c + g) * accumulate * (layout.data - 1) // layout.data


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


def hardware_flops(config, compute, tokens, T):
    """Model FLOPs and what rematerialisation adds: full computes every layer's forward again, the others nothing that counts."""
    flops = model_flops(config, tokens, T)
    head = 6 * config.V * config.D * tokens
    return flops + (flops - head) / 3 * (compute.remat == "full")


def seconds(config, layout, compute, device, *, batch, T, accumulate=1, mfu=None):
    """(of arithmetic, on the wire) of one step; no step is shorter than the longer. device: a Device. mfu: arithmetic runs as slow as that (model FLOPs / peak); None: at the peak.

    Beyond an island a ring enters it once for all of its ranks, each through its own network card: the data ranks of an island take their common bytes together.
    """
    n, tokens = layout.data * layout.tensor, batch * T
    work = (
        (
            hardware_flops(config, compute, tokens, T)
            if mfu is None
            else model_flops(config, tokens, T) / mfu
        )
        / n
        / device.flops
    )
    received = wire(config, layout, compute, batch=batch, T=T, accumulate=accumulate)
    total, over_tensor = sum(received.values()), received.get("activations over tensor", 0)
    link = total / device.wire
    if n > device.island:
        together = max(device.island // layout.tensor, 1)
        link = max(
            link,
            (total - over_tensor) / (together * device.between)
            + (over_tensor / device.between if layout.tensor > device.island else 0),
        )
    return work, link


def hours(steps, *args, **kwargs):
    """Hours that `steps` steps take at least; the other arguments as for `seconds`. Start-up, compiling, held-out losses and checkpoints come on top."""
    return steps * max(seconds(*args, **kwargs)) / 3600


def report(
    config, layout, compute, *, batch, T, accumulate=1, moment_dtype=jnp.float32, steps=None
):
    """The lines of --plan, by hand. steps: of the whole training, None where not asked for."""
    d, t = layout.data, layout.tensor
    tokens = batch * T
    lines = [
        f"{model.parameter_count(config):,} weights ({config.family}: L {config.L}, D {config.D}, heads {config.N}/{config.K}, F {config.F}, V {config.V})",
        (
            f"step: {batch} rows of {T} = {tokens:,} tokens in {accumulate} micro-batch{'es' * (accumulate > 1)}; mesh {d}x{t}; {jnp.dtype(compute.dtype).name} compute, "
            f"gradients {jnp.dtype(compute.grad_dtype).name}, first moment {jnp.dtype(moment_dtype).name}, remat {compute.remat}, prefetch {'on' if compute.prefetch else 'off'}"
        ),
        "",
        "memory of one device, counted by hand          GiB",
    ]
    count = memory(
        config, layout, compute, batch=batch, T=T, accumulate=accumulate, moment_dtype=moment_dtype
    )
    lines += [f"  {name:<42} {value / GIB:5.2f}" for name, value in count.items()]
    flops = model_flops(config, tokens, T)
    done = hardware_flops(config, compute, tokens, T)
    lines += [
        "",
        f"model FLOPs a step  {flops / 1e12:,.1f} T = {FLOPS_FORMULA}",
        f"computed a step     {done / 1e12:,.1f} T with what is computed again",
    ]
    received = wire(config, layout, compute, batch=batch, T=T, accumulate=accumulate)
    lines += ["", "received by one device a step                  GiB"] + [
        f"  {name:<38} {value / GIB:9.2f}" for name, value in received.items() if value
    ]
    lines += [
        f"  {'total':<38} {sum(received.values()) / GIB:9.2f}",
        f"  {'FSDP minimum over data':<38} {fsdp_minimum(config, layout, compute, accumulate) / GIB:9.2f}",
    ]
    lines += [
        "",
        "no step is shorter than   fits    arithmetic s     wire s    floor s   MFU at most   tokens/s a device",
    ]
    for name, device in DEVICES.items():
        work, link = seconds(
            config, layout, compute, device, batch=batch, T=T, accumulate=accumulate
        )
        floor = max(work, link)
        lines.append(
            f"  {name:<22} {'yes' if count['total'] < device.memory else 'no':>6} {work:>15.3f} {link:>10.3f} {floor:>10.3f} {flops / (d * t) / device.flops / floor:>12.1%}"
            f" {tokens / floor / (d * t):>17,.0f}"
        )
    if steps:
        lines += ["", f"hours of {steps:,} steps      at least   at MFU 50 %   at MFU 40 %"]
        for name, device in DEVICES.items():
            took = [
                hours(
                    steps,
                    config,
                    layout,
                    compute,
                    device,
                    batch=batch,
                    T=T,
                    accumulate=accumulate,
                    mfu=mfu,
                )
                for mfu in (None, 0.5, 0.4)
            ]
            lines.append(f"  {name:<22} {took[0]:>8.2f} {took[1]:>13.2f} {took[2]:>13.2f}")
    return lines


# ------------------------------------------------------------------------------------------ what a compiled program does

BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "f64": 8,
    "s64": 8,
    "u64": 8,
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)


class Instruction(NamedTuple):
    name: str
    type: str
    op: str
    rest: str  # operands and attributes


def computations(text):
    """Optimised HLO text -> (name -> its instructions in the order of the schedule, name of the entry)."""
    out, current, entry = {}, None, None
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
            current = re.match(r"(?:ENTRY )?%?([\w.-]+)", line).group(1)
            entry = current if line.startswith("ENTRY") else entry
            out[current] = []
        elif current and (found := INSTRUCTION.match(line)):
            out[current].append(Instruction(*found.groups()))
    return out, entry


def arrays(type_text):
    """Bytes of each array of an HLO type, tuples flattened."""
    found = re.findall(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]", type_text)
    return [BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in found]


def group_size(rest):
    """Devices of a collective's groups: written out, or as iota `[groups,size]<=[...]`; 0 where not said (all of them)."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found.group(1).count(",") + 1
    found = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    return int(found.group(1)) if found else 0


def channel(instruction):
    """The number by which a collective is known in whatever fusions name it (1 is shared by those that need none); None where it has none."""
    found = re.search(r"channel_id=(\d+)", instruction.rest)
    return found and found.group(1)


def trip_count(instruction, program):
    """Turns of a `while`: XLA's own note, else the constant that its condition compares with."""
    if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', instruction.rest):
        return int(found.group(1))
    names, constants = [re.search(r"condition=%?([\w.-]+)", instruction.rest).group(1)], []
    for name in names:
        for i in program[name]:
            constants += (
                [int(n) for n in re.findall(r"^(\d+)\)", i.rest)]
                if i.op == "constant" and i.type.startswith("s32[]")
                else []
            )
            names += CALLED.findall(i.rest)
    return max(constants, default=1)


def kind_of(instruction, program):
    """The collective that an instruction starts, by itself or wrapped (async, or TPU's reduce-scatter: a fusion of an all-reduce with a slice); else None."""
    op = instruction.op.removesuffix("-start")
    if op in COLLECTIVES:
        return op
    if instruction.op == "fusion" and "kind=kCustom" in instruction.rest:
        inside = [i.op for name in CALLED.findall(instruction.rest) for i in program.get(name, ())]
        if "all-reduce" in inside and any(op in inside for op in ("dynamic-slice", "slice")):
            return "reduce-scatter"
    return None


def received(text, devices):
    """Bytes that one device receives in a run of a compiled program -> kind of collective -> (bytes, how many run). Loops count as often as they turn.

    v5e's compiler spreads one collective over several fusions (its start, steps beside products, its end), each of which names it: within fusions a channel counts once a turn.
    In a ring: a gather passes (n - 1) / n of its result, a reduce-scatter (n - 1) times its result, an all-reduce both.
    """
    program, entry = computations(text)
    out = collections.defaultdict(lambda: [0.0, 0])

    def walk(name, times, seen, fused=False):
        for i in program.get(name, ()):
            kind = kind_of(i, program)
            if kind and fused:
                if channel(i) in seen:
                    continue
                seen.add(channel(i))
            if kind:
                inside = (
                    next(
                        (
                            j
                            for c in CALLED.findall(i.rest)
                            for j in program.get(c, ())
                            if j.op == "all-reduce"
                        ),
                        None,
                    )
                    if i.op == "fusion"
                    else None
                )
                n = group_size((inside or i).rest) or devices
                size = arrays((inside or i).type)
                if i.op in (
                    "all-gather-start",
                    "collective-permute-start",
                    "reduce-scatter-start",
                ):  # (operands, results)
                    size = size[len(size) // 2 :] if len(size) % 2 == 0 else size[1:2]
                share = {
                    "all-gather": (n - 1) / n,
                    "all-reduce": 2 * (n - 1) / n,
                    "reduce-scatter": n - 1,
                    "collective-permute": 1,
                    "all-to-all": (n - 1) / n,
                }[kind]
                share = (
                    (n - 1) / n if inside else share
                )  # the fused all-reduce's own type is the whole gradient
                out[kind][0] += times * share * sum(size)
                out[kind][1] += times
            elif i.op == "while":
                walk(
                    re.search(r"body=%?([\w.-]+)", i.rest).group(1),
                    times * trip_count(i, program),
                    set(),
                )
            elif i.op not in ("async-done", "async-update"):
                for called in CALLED.findall(i.rest):
                    walk(called, times, seen, i.op == "fusion")

    walk(entry, 1, set())
    return {kind: tuple(v) for kind, v in out.items()}


def overlap(text):
    """Of every loop body with gathers: (its name, gathers, those that run beside other work, those with a matrix product between their start and their end, the share of the
    gathered bytes that these last ones bring): norms are gathers too, of next to nothing."""
    program, _ = computations(text)

    def inside(i, test, seen=()):
        """Instructions for which test holds: i, or those that it calls."""
        called = [c for c in CALLED.findall(i.rest) if c not in seen]
        return [i] * test(i) + [
            k for c in called for j in program.get(c, ()) for k in inside(j, test, (*seen, *called))
        ]

    product = lambda i: (
        i.op in ("dot", "convolution") or (i.op == "custom-call" and "tpu_custom_call" in i.rest)
    )
    gather = lambda i: i.op in ("all-gather", "all-gather-start")
    result = lambda i: max(
        arrays(i.type), default=0
    )  # of a start's tuple the larger: what is gathered
    bodies = {
        m
        for body in program.values()
        for i in body
        if i.op == "while"
        for m in re.findall(r"body=%?([\w.-]+)", i.rest)
    }
    out = []
    for name in program:
        if name not in bodies:
            continue
        total = beside = covered = 0
        bytes_total, bytes_covered = 0, 0
        pending, sizes = {}, {}  # name of the start, or channel -> products so far; its bytes
        for i in program[name]:
            operands = set(re.findall(r"%([\w.-]+)", i.rest.split("), ")[0]))
            fused = {channel(j) for j in inside(i, gather)} if i.op == "fusion" else set()
            if (
                fused and not fused & pending.keys()
            ):  # v5e: one gather is a fusion that starts it, others that go on with it beside a product, and one that ends it
                total, pending = total + 1, pending | dict.fromkeys(fused, 0)
                sizes |= {channel(j): result(j) for j in inside(i, gather)}
            elif i.op.endswith("-done") or (fused and not inside(i, product)):
                for start in (fused or operands) & pending.keys():
                    beside += bool(fused)
                    hidden = pending.pop(start) > 0
                    covered, bytes_covered = covered + hidden, bytes_covered + hidden * sizes[start]
            elif i.op.endswith("-start") and inside(i, gather):
                total, beside = total + 1, beside + 1
                pending[i.name], sizes[i.name] = 0, max(result(j) for j in inside(i, gather))
            elif gather(i):
                total, bytes_total = total + 1, bytes_total + result(i)
            elif inside(i, product):  # a product, or a loop of products over parts of the batch
                pending = {n: count + 1 for n, count in pending.items()}
        bytes_total += sum(sizes.values())
        if total:
            out.append((name, total, beside, covered, bytes_covered / max(bytes_total, 1)))
    return out


def compiled(lowered, mesh, label):
    """Compile a lowered step for devices that need not be there -> lines: XLA's memory of one device, bytes by kind of collective, gathers beside products."""
    program = lowered.compile()
    devices = mesh.devices.size
    use, text = program.memory_analysis(), program.as_text()
    lines = [
        f"aot peak {use.peak_memory_in_bytes / GIB:.1f} GiB per device ({label})",
        f"  arguments {use.argument_size_in_bytes / GIB:.2f} GiB, temporaries {use.temp_size_in_bytes / GIB:.2f} GiB, peak {use.peak_memory_in_bytes / GIB:.2f} GiB",
        "received by one device a step, compiled        GiB   collectives",
    ]
    by_kind = received(text, devices)
    lines += [
        f"  {kind:<38} {size / GIB:9.2f} {count:>13,}"
        for kind, (size, count) in sorted(by_kind.items())
    ]
    lines.append(f"  {'total':<38} {sum(size for size, _ in by_kind.values()) / GIB:9.2f}")
    for name, total, beside, covered, share in overlap(text):
        lines.append(
            f"  loop {name}: {total} gathers, {beside} asynchronous, {covered} with matrix products between start and end ({share:.0%} of the bytes)"
        )
    return lines


# ------------------------------------------------------------------------------------------------------------------ --plan


def topology_devices(name):
    """The devices of a TPU topology such as v5p:2x2x2, none of which need be there. ValueError where libtpu is missing or does not know it."""
    # no TPU is used: do not look for one, nor lock out another program that has one
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError(
            f'--plan {name} compiles with libtpu, which is not installed: pip install "jax[tpu]", or use --plan alone for the count by hand'
        ) from None
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--plan {name} is no TPU topology that libtpu knows, or libtpu did not start ({str(error).splitlines()[0][:120]}): use e.g. v5p:2x2x2, v5e:2x4, v4:2x2x1"
        ) from None


def show(args, config, compute_of, lower, say=print):
    """Print the plan of a step. args: train.py's resolved flags. compute_of(platform, data ranks) -> model.StepOptions. lower(mesh, layout, compute, batch) -> the lowered step, called for a topology alone. Returns 0."""
    where = args.plan if args.plan != "hand" else None
    devices = topology_devices(where) if where else None
    data, tensor = sharding.parse_mesh(args.mesh, len(devices) if devices else MOST)
    if args.mesh is None:
        data, tensor = (len(devices) if devices else 8), 1
    T = min(args.block, config.P)
    if args.batch % (data * args.accumulate):
        raise ValueError(
            f"--batch {args.batch} does not divide by {data} data ranks x {args.accumulate} micro-batches: use a multiple of {data * args.accumulate}"
        )
    mesh = sharding.make_mesh(data, tensor, list(devices)) if where else None
    layout = model.make_layout(
        config, data, tensor, stages=sharding.gather_stages(mesh) if where else ()
    )
    compute = compute_of("gpu" if args.attention == "cudnn" and not where else "tpu", data)
    for line in report(
        config,
        layout,
        compute,
        batch=args.batch,
        T=T,
        accumulate=args.accumulate,
        moment_dtype=jnp.dtype(args.moment_dtype),
        steps=args.steps,
    ):
        say(line)
    if where:
        rows = NamedSharding(mesh, Spec(None, DATA))
        like = lambda width, dtype: jax.ShapeDtypeStruct(
            (args.accumulate, args.batch // args.accumulate, width), dtype, sharding=rows
        )
        batch = {
            "tokens": like(T + 1, jnp.int32),
            "loss_mask": like(T + 1, jnp.int8),
            "stop": like(1, jnp.int32),
        }
        say("")
        for line in compiled(
            lower(mesh, layout, compute, batch),
            mesh,
            f"{where}, {args.model or args.init}, {data}x{tensor}",
        ):
            say(line)
    return 0
