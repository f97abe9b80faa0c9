"""EasyLM's streams: msgpack pairs (key tuple, bytes), the bytes flax's msgpack of one array.

A leading "params" of keys is dropped. Reading touches headers only; writing copies no array.
Source: EasyLM checkpoint.py `StreamingCheckpointer`, flax serialization.py.
"""

import math
import mmap
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from checkpoint.tensors import DTYPES, Tensor, cut_short

CHUNK_BYTES = 2**30  # flax cuts arrays of more bytes than this into pieces
BLOBS = {  # msgpack's codes: lengths of 1, 2, 4 bytes
    "bin": b"\xc4\xc5\xc6",
    "ext": b"\xc7\xc8\xc9",
    "str": b"\xd9\xda\xdb",
}

# --- reading ---


def index(path: str) -> dict[str, Tensor]:
    """name -> Tensor of a stream."""
    size, tensors, at, name = os.path.getsize(path), {}, 0, "the first"
    try:
        if not size:
            raise ValueError("empty")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            while at < size:
                pair, at = unpack(data, at, msgpack.Unpacker.read_array_header)
                key, at = unpack(data, at)
                strings = isinstance(key, (list, tuple)) and all(isinstance(k, str) for k in key)
                if pair != 2 or not strings:
                    raise ValueError("no pair of key and bytes")
                name = "/".join(key[1:] if key[0] == "params" else key)
                start, at = blob(data, at)
                tensor = flax_array(path, data, start)
                _, last, n = tensor.parts[-1]
                elements = sum(n for *_, n in tensor.parts)
                ends_here = last + n * tensor.dtype.itemsize == at
                if name in tensors or not ends_here or elements != math.prod(tensor.shape):
                    raise ValueError("twice, or of a length that does not fit its shape")
                if at > size:
                    raise cut_short(path, name, tensor.shape, tensor.dtype, size - last)
                tensors[name] = tensor
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        RecursionError,
        OverflowError,
        msgpack.UnpackException,
    ) as error:
        if "is truncated" in str(error):
            raise
        raise ValueError(
            f"{path} is truncated, damaged or no EasyLM stream of params (byte {at}, at or after "
            f"tensor {name}; {error}): copy it again"
        ) from None
    return tensors


def unpack(data: mmap.mmap, at: int, read: Callable = msgpack.Unpacker.unpack) -> tuple[Any, int]:
    """(value, where it ends) of a small msgpack object at byte `at`; with `read`, of a header."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data[at : at + 4096])
    value = read(unpacker)
    return value, at + unpacker.tell()


def blob(data: mmap.mmap, at: int) -> tuple[int, int]:
    """(start, end) of the payload of the bin, ext or str object at byte `at`, which is not read."""
    for kind, codes in BLOBS.items():
        if (power := codes.find(data[at])) >= 0:
            start = at + 1 + (1 << power)
            size = int.from_bytes(data[at + 1 : start], "big")
            start += kind == "ext"  # one byte of type
            return start, start + size
    raise ValueError("no bytes where bytes were due")


def flax_array(path: str, data: mmap.mmap, at: int, is_chunk: bool = False) -> Tensor:
    """The Tensor of flax's msgpack of one array.

    An ext object of (shape, dtype name, bytes), or a map of several for an array over 1 GiB.
    """
    if data[at] >> 4 != 8:  # no small map
        start, _ = blob(data, at)
        if data[at] not in BLOBS["ext"] or data[start - 1] != 1:
            raise ValueError("not an array")
        _, at = unpack(data, start, msgpack.Unpacker.read_array_header)
        shape, at = unpack(data, at)
        dtype, at = unpack(data, at)
        dtype = np.dtype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
        start, end = blob(data, at)
        if dtype not in [np.dtype(d) for d in DTYPES.values()]:
            raise ValueError(f"of type {dtype}")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"of shape {shape}")
        return Tensor(dtype, tuple(shape), ((path, start, (end - start) // dtype.itemsize),))
    if is_chunk:
        raise ValueError("chunks of chunks")
    fields, at = unpack(data, at, msgpack.Unpacker.read_map_header)
    shape, parts = None, []
    for _ in range(fields):
        key, at = unpack(data, at)
        if key != "chunks":
            value, at = unpack(data, at)
            shape = tuple(value[str(i)] for i in range(len(value))) if key == "shape" else shape
            continue
        count, at = unpack(data, at, msgpack.Unpacker.read_map_header)
        for _ in range(count):  # flax writes them in order, from "0" up
            _, at = unpack(data, at)
            parts.append(flax_array(path, data, at, is_chunk=True))
            at = blob(data, at)[1]
    if shape is None:
        raise ValueError("chunks without a shape")
    return Tensor(parts[0].dtype, shape, tuple(p for part in parts for p in part.parts))


# --- writing ---


def write(path: str | Path, arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write (name, array) pairs as EasyLM's StreamingCheckpointer does, headers by hand."""
    with open(path, "wb") as file:
        for name, x in arrays:
            pieces = flax_pieces(x)
            size = sum(len(head) + flat.nbytes for head, flat in pieces)
            if size >= 2**32:
                raise ValueError(
                    f"tensor {name} of shape {x.shape} is over 4 GiB, more than a msgpack object "
                    "holds: use --dtype bfloat16, or --to hf"
                )
            file.write(b"\x92" + packed(("params", *name.split("/"))) + blob_header("bin", size))
            for head, flat in pieces:
                file.write(head)
                file.write(flat.view(np.uint8).data)


def packed(value: Any) -> bytes:
    """msgpack's bytes of a small value."""
    content = msgpack.packb(value)
    assert content is not None
    return content


def blob_header(kind: str, size: int) -> bytes:
    """The head of a msgpack bin or ext object with `size` bytes of payload."""
    power = next(p for p in range(3) if size < 256 ** (1 << p))
    return BLOBS[kind][power : power + 1] + size.to_bytes(1 << power, "big")


def flax_pieces(x: np.ndarray) -> list[tuple[bytes, np.ndarray]]:
    """flax's msgpack of an array as (header, the flat data that follows it); several over 1 GiB."""
    flat = x.reshape(-1)

    def piece(shape, flat):
        inner = b"\x93" + packed(shape) + packed(x.dtype.name)
        inner += blob_header("bin", flat.nbytes)
        return blob_header("ext", len(inner) + flat.nbytes) + b"\x01" + inner, flat

    if x.nbytes <= CHUNK_BYTES:
        return [piece(x.shape, flat)]
    step = CHUNK_BYTES // x.itemsize
    chunks = [piece(c.shape, c) for c in (flat[i : i + step] for i in range(0, x.size, step))]
    shape = {str(i): n for i, n in enumerate(x.shape)}
    fields = ("__msgpack_chunked_array__", True, "shape", shape, "chunks")
    head = b"\x83" + b"".join(map(packed, fields))
    head += msgpack.Packer().pack_map_header(len(chunks))
    return [(head * (i == 0) + packed(str(i)) + h, c) for i, (h, c) in enumerate(chunks)]
