"""The safetensors files of a Hugging Face folder: an index of their tensors, and writing them.

Files are untrusted: every span is held against the file's size before anything is read. Left out:
quantised types.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from checkpoint.tensors import DTYPES, Tensor, cut_short
from host import files

SHARD_BYTES = 5_000_000_000  # of one file, as Hugging Face cuts them
LISTING = "model.safetensors.index.json"

# of older transformers: no weights
BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")

# --- reading ---


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that older transformers saved and computes anew: no weight."""
    return BUFFERS.search(name) is not None


def index(folder: str | Path) -> dict[str, Tensor]:
    """name -> Tensor of a Hugging Face folder, one file or several."""
    folder = Path(folder)
    listing = folder / LISTING
    # transformers takes model.safetensors where it is there, whatever an index beside it says
    if (folder / "model.safetensors").exists():
        return header(folder / "model.safetensors")
    if not listing.exists():
        why = "copy the folder whole"
        if any(folder.glob("pytorch_model*.bin")):
            why = (
                "its pickled PyTorch files can run code when opened: convert them with "
                "transformers' save_pretrained"
            )
        raise ValueError(f"{folder} has neither model.safetensors nor {LISTING}: {why}")
    listed = names_by_file(listing)
    for file, names in listed.items():
        if not (folder / file).exists():
            others = " and others" * (len(names) > 1)
            raise ValueError(
                f"{folder} lacks {file}, which should hold tensor {names[0]}{others}: copy it too"
            )
    tensors = {}
    for file, names in listed.items():
        held = header(folder / file)
        for name in set(held) ^ set(names):
            raise ValueError(
                f"{folder}: {LISTING} and {file} disagree on whether tensor {name} lies there: "
                "copy both again"
            )
        tensors |= held
    return tensors


def names_by_file(listing: Path) -> dict[str, list[str]]:
    """The tensors that the index of a sharded folder says to lie in each of its files."""
    weight_map = files.read_json(listing).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and file == os.path.basename(file) for file in weight_map.values()
    ):
        raise ValueError(f"{listing} has no weight_map of file names in this folder: copy it again")
    return {
        file: [n for n, f in weight_map.items() if f == file]
        for file in sorted(set(weight_map.values()))
    }


def header(path: Path) -> dict[str, Tensor]:
    """name -> Tensor of one file: 8 bytes of length, JSON, then the data, no gaps or overlaps."""
    n, entries = read_header(path)
    size, tensors, at = path.stat().st_size, {}, 0
    for start, end, name, dtype, shape in entries:
        if dtype not in DTYPES and is_buffer(name):
            at = end
            continue
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name} is of type {dtype}: only {', '.join(DTYPES)} are read, use "
                "the model's unquantised files"
            )
        elements = math.prod(shape)
        need = elements * np.dtype(DTYPES[dtype]).itemsize
        if start != at or end - start != need:
            raise ValueError(
                f"{path}: tensor {name} of shape {shape} takes {need} bytes from byte {at} of the "
                f"data, its header says {start} to {end}: copy it again"
            )
        if 8 + n + end > size:
            raise cut_short(path, name, shape, DTYPES[dtype], size - 8 - n - start)
        tensors[name], at = Tensor(DTYPES[dtype], shape, ((path, 8 + n + start, elements),)), end
    if 8 + n + at != size:
        raise ValueError(f"{path}: {size - 8 - n - at} bytes follow its last tensor: copy it again")
    return tensors


def read_header(path: Path) -> tuple[int, list[tuple[int, int, str, str, tuple[int, ...]]]]:
    """(length of the header, (start, end, name, dtype, shape) of each tensor in file order)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(size - 8, 100_000_000):
            raise ValueError(
                f"{path}: its header of {n} bytes does not fit its {size} bytes: truncated or no "
                "safetensors file, copy it again"
            )
        try:
            entries = json.loads(file.read(n))
            entries.pop("__metadata__", None)
            spans = sorted(
                (*t["data_offsets"], name, t["dtype"], tuple(t["shape"]))
                for name, t in entries.items()
            )
            good = all(
                type(x) is int and x >= 0 for a, b, _, _, shape in spans for x in (a, b, *shape)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good, spans = False, []
    if not good:
        raise ValueError(f"{path}: its header is damaged: copy it again")
    return n, spans


# --- writing ---


def write(
    folder: Path,
    plan: list[tuple[str, tuple[int, ...]]],
    arrays: Iterable[tuple[str, np.ndarray]],
    dtype: DTypeLike,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors into model.safetensors, or into shards of at most shard_bytes and their index.

    plan: (name, shape) of each; arrays: (name, array) in the same order. Headers, which come first
    in a file, follow from the plan: one tensor is in memory at a time.
    """
    dtype, arrays = np.dtype(dtype), iter(arrays)
    shards = cut(plan, dtype, shard_bytes)
    for file_name, shard in shards.items():
        head = json.dumps({"__metadata__": {"format": "pt"}} | shard).encode()
        head += b" " * (-len(head) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name, entry in shard.items():
                given, x = next(arrays)
                assert (given, x.shape, x.dtype) == (name, entry["shape"], dtype), (
                    f"{given} came where {name} was due"
                )
                file.write(x.view(np.uint8).data)
    assert next(arrays, None) is None
    if len(shards) > 1:
        total = sum(math.prod(shape) for _, shape in plan) * dtype.itemsize
        weight_map = {name: file_name for file_name, shard in shards.items() for name in shard}
        listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files.write_json(folder / LISTING, listing)


def cut(
    plan: list[tuple[str, tuple[int, ...]]], dtype: np.dtype, shard_bytes: int
) -> dict[str, dict[str, dict]]:
    """File name -> the entries of its header, of a plan cut into files of at most shard_bytes."""
    letter = next(n for n, d in DTYPES.items() if np.dtype(d) == dtype)
    shards, at = [], shard_bytes
    for name, shape in plan:
        size = math.prod(shape) * dtype.itemsize
        if not shards or at + size > shard_bytes:
            shards.append({})
            at = 0
        shards[-1][name] = {"dtype": letter, "shape": shape, "data_offsets": (at, at + size)}
        at += size
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = names if len(shards) > 1 else ["model.safetensors"]
    return dict(zip(names, shards, strict=True))
