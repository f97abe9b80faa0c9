"""llama2.c's .bin, version 0: seven sizes, then float32 tensors one after the other.

Each weight of all layers comes before the next; before the head stand two RoPE tables.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import model
from checkpoint.mapping import place
from checkpoint.tensors import Tensor, cut_short

MOST, MOST_LAYERS = 2**24, 4096  # beyond what any model has
# fmt: off
ORDER = (
    "embed", "attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w1", "w2", "w3", "final_norm",
    "rope", "head",
)
# fmt: on


def read_config(path: str | Path) -> model.Config:
    """Config from the header; a negative vocabulary says that the output matrix is its own."""
    with open(path, "rb") as file:
        head = file.read(28)
    D, F, L, N, K, V, P = struct.unpack("<7i", head) if len(head) == 28 else (0,) * 7
    if D == 0x616B3432:
        raise ValueError(
            f"{path} is llama2.c's format of version {F}: only 0 is read, export it with --version "
            "0"
        )
    sizes = (D, F, L, N, K, abs(V), P)
    if min(sizes) < 1 or max(sizes) > MOST or D % N or N % K or D // N % 2 or L > MOST_LAYERS:
        raise ValueError(
            f"{path} is no llama2.c file: its first 28 bytes are not seven sizes (dim, hidden, "
            "layers, heads, kv heads, vocabulary, context): copy it again, or name another"
        )
    return model.Config("llama", abs(V), D, L, N, K, D // N, F, P, 1e-5, tied=V > 0)


def index(path: str, config: model.Config) -> dict[str, Tensor]:
    """name -> Tensor of the file; ValueError unless its size is exactly the config's."""
    size, at, tensors = os.path.getsize(path), 28, {}
    for name, shape in plan(config):
        n = math.prod(shape)
        if at + 4 * n > size:
            raise cut_short(path, name, shape, np.float32, size - at)
        tensors[name] = Tensor(np.dtype(np.float32), shape, ((path, at, n),))
        at += 4 * n
    if at != size:
        raise ValueError(
            f"{path} has {size} bytes, its header gives {at}: copy it again, or it is no llama2.c "
            "file"
        )
    del tensors["rope"]
    return tensors


def plan(config: model.Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every tensor of the file, in its order."""
    table = model.weight_table(config)
    for name in ORDER:
        if name == "rope":
            yield name, (2, config.P, config.H // 2)
        elif name in table:
            for layer in range(config.L) if table[name].layered else [None]:
                yield place(config, "bin", name, layer)[:2]
