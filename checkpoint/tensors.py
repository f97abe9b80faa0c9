"""Tensors in files: where one lies, and its slices onto devices.

A Tensor is mapped into memory when it is looked at, and its pages are given back when the view
goes. One record serves safetensors, EasyLM's streams and llama2.c's files alike, transposed and cut
without a copy; safetensors' own safe_open would copy each slice once more, and serve only the first
of them.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding
from numpy.typing import DTypeLike

# safetensors' names; U32 is for differences
DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U32": np.uint32,
}


class Tensor(NamedTuple):
    """Where a file keeps a tensor."""

    dtype: Any
    shape: tuple[int, ...]
    # (path, byte offset, elements), to be laid end to end: one, but for EasyLM's arrays over 1 GiB
    parts: tuple[tuple[str | Path, int, int], ...]

    def view(self) -> np.ndarray:
        """The tensor as numpy sees the file: pages are read where touched."""
        flat = [np.memmap(path, self.dtype, "r", offset, (n,)) for path, offset, n in self.parts]
        return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(self.shape)


def cut_short(
    path: str | Path, name: str, shape: tuple[int, ...], dtype: DTypeLike, held: int
) -> ValueError:
    """The refusal of a file that ends within a tensor, of which it holds so many bytes."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return ValueError(
        f"{path} is truncated: of tensor {name}, expected {tuple(shape)} ({size} bytes), the file "
        f"holds {max(held, 0)} bytes: copy it again"
    )


def put(
    read: Callable[[tuple[slice, ...]], np.ndarray],
    shape: tuple[int, ...],
    spec: NamedSharding,
    dtype: DTypeLike,
) -> jax.Array:
    """An array sharded by spec from read(index); the host holds one slice of it at a time."""
    holders = {}  # a slice -> the devices that hold it
    for device, index in spec.addressable_devices_indices_map(shape).items():
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    pieces = []
    for bounds, devices in holders.items():
        piece = dense(read(tuple(slice(*b) for b in bounds)), dtype)
        pieces += [jax.device_put(piece, device) for device in devices]
        jax.block_until_ready(pieces[-len(devices) :])
    return jax.make_array_from_single_device_arrays(shape, spec, pieces)


def dense(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """A copy of x in C order, never a file's own pages.

    A transposed view is copied 64 columns at a time, which is twice as fast.
    """
    if x.ndim != 2 or x.strides[0] > x.strides[1]:
        return np.array(x, dtype, order="C")
    out = np.empty(x.shape, dtype)
    for at in range(0, x.shape[1], 64):
        out[:, at : at + 64] = x[:, at : at + 64]
    return out
