"""Our weights as other projects' files have them: names, transposes, fused parts, RoPE's order."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

import model
from checkpoint.names import file_names, gguf_name

HALF_SPLIT = ("hf", "gguf half-split")  # kinds of file whose RoPE has our order of pairs
Key = tuple[str, int | None]  # a weight of ours: its name, its layer or None


class Place(NamedTuple):
    """How a file of some kind keeps one weight of ours."""

    name: str  # there
    shape: tuple[int, ...]  # of the whole tensor there
    transposed: bool
    part: slice | None  # of the (untransposed) last axis: GPT-2's q, k, v are one tensor
    is_last_part: bool  # the last part, or the only one
    interleaved: bool  # RoPE rotates neighbouring columns there, half-split ones here


def place(config: model.Config, kind: str, name: str, layer: int | None) -> Place:
    """Where a file of some kind keeps the weight.

    kind: "hf", "easylm", "bin", "gguf" or "gguf half-split".
    """
    row, size = model.weight_table(config)[name], model.sizes(config, padded=False)
    file = file_names(config)[name]
    if kind == "easylm" and file.easylm is None:
        raise ValueError(f"EasyLM's models have no weight {name}: use --to hf")
    hf = file.hf.format(layer)
    if kind == "bin":
        name_in_file = f"{name}[{layer}]" if row.layered else name
        transposed = row.layered and len(row.dims) == 2
    elif kind == "easylm":
        name_in_file, transposed = (file.easylm or "").format(layer), file.easylm_transposed
    else:
        name_in_file, transposed = hf if kind == "hf" else gguf_name(hf), file.hf_transposed
    shape, part = tuple(size[d] for d in row.dims), None
    if file.part is not None:
        bounds = np.cumsum([0, size["NH"], size["KH"], size["KH"]]).tolist()
        part, shape = slice(*bounds[file.part : file.part + 2]), shape[:-1] + (bounds[3],)
    shape = shape[::-1] if transposed else shape
    interleaved = file.rope and kind not in HALF_SPLIT
    return Place(name_in_file, shape, transposed, part, file.part in (None, 2), interleaved)


def half_split(config: model.Config, width: int) -> np.ndarray:
    """Columns of an interleaved q or k (Meta's, EasyLM's, llama2.c's) in our order.

    A head's even columns come first, then its odd ones.
    """
    return np.arange(width).reshape(-1, config.H // 2, 2).swapaxes(1, 2).reshape(-1)


def order(config: model.Config) -> list[Key]:
    """Every weight of the model: embeddings, then layer by layer, then the rest, as files go."""
    table = model.weight_table(config)
    layered = [n for n in table if table[n].layered]
    outer: list[Key] = [(n, None) for n in table if not table[n].layered]
    first = [key for key in outer if key[0] in ("embed", "pos")]
    layers = [(n, layer) for layer in range(config.L) for n in layered]
    return first + layers + outer[len(first) :]


def places(config: model.Config, kind: str) -> Iterator[tuple[Key, Place]]:
    """(weight, its place) of every weight, in `order`."""
    for key in order(config):
        yield key, place(config, kind, *key)
