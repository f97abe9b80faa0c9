"""What decoding puts on a device, and whether it fits: planned before it is spent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

import model
import sharding
from decoding.cache import cache_heads
from sharding import TENSOR

SHARE = 0.9  # of a device's memory for weights and cache, the rest for activations


def bytes_needed(
    config: model.Config, data: int, tensor: int, dtype: DTypeLike, batch: int, length: int
) -> tuple[int, int]:
    """(bytes of weights, bytes of cache) on one device of a mesh data x tensor.

    The weights are replicas over data; heads are split over tensor.
    """
    layout = model.make_layout(config, data, tensor, fsdp=False)
    size = np.dtype(dtype).itemsize

    def split(spec):
        return tensor if TENSOR in sharding.axes_of(spec) else 1

    shapes = model.shapes(config).items()
    weights = sum(int(np.prod(shape)) // split(layout.specs[name]) for name, shape in shapes)
    heads = cache_heads(config, layout) // (tensor if layout.attention else 1)
    return weights * size, 2 * config.L * -(-batch // data) * heads * length * config.H * size


def device_room(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that a device may hold, or None where that is not known.

    An accelerator's own limit; of CPU devices, their share of this host's free memory.
    """
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
        return int(free[1]) * 1024 // mesh.devices.size if free else None
    except OSError:
        return None


def check_fit(
    config: model.Config,
    data: int,
    tensor: int,
    dtype: DTypeLike,
    batch: int,
    length: int,
    room: float | None,
    taken: int = 0,
) -> None:
    """ValueError where weights and cache do not fit `room` bytes a device.

    It names the mesh, batch or dtype that would. taken: bytes of other models.
    """

    def need(d, t, dtype=dtype, batch=batch):
        return sum(bytes_needed(config, d, t, dtype, batch, length))

    if room is None:
        return

    def fits(*mesh, **other):
        return taken + need(*mesh, **other) <= SHARE * room

    if fits(data, tensor):
        return

    def GB(n):
        return f"{n / 1e9:.1f} GB"

    devices = data * tensor
    wider = ((devices // t, t) for t in range(tensor + 1, devices + 1) if devices % t == 0)
    meshes = [f"--mesh {d}x{t} ({GB(need(d, t))})" for d, t in wider if fits(d, t)]
    batches = (batch >> k for k in range(1, batch.bit_length()))
    smaller = [
        f"--batch {b} ({GB(need(data, tensor, batch=b))})"
        for b in batches
        if fits(data, tensor, batch=b)
    ]
    half = []
    if np.dtype(dtype).itemsize == 4 and fits(data, tensor, dtype=jnp.bfloat16):
        half = [f"--dtype bfloat16 ({GB(need(data, tensor, jnp.bfloat16))})"]
    enough = next((t for t in (2**k for k in range(1, 12)) if fits(1, t)), None)
    remedies = meshes[:1] + smaller[:1] + half or [
        f"more devices (1x{enough} would do)"
        if enough
        else "a smaller model: no number of such devices holds this one"
    ]
    weights, cache = bytes_needed(config, data, tensor, dtype, batch, length)
    cached = f" and {GB(cache)} of cache (--batch {batch}, {length:,} positions)" if length else ""
    others = f" beside {GB(taken)} of other models" if taken else ""
    raise ValueError(
        f"--mesh {data}x{tensor} puts {GB(weights)} of weights{cached}{others} on each device, "
        f"which has {GB(room)}: use " + " or ".join(remedies)
    )
