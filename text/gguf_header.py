"""The head of a GGUF file: its metadata and where its tensors lie.

Every count and length is held against the file's size. That, and a hundredth of the time, is why it
is not the gguf library's reader: it takes three seconds for a vocabulary of 50,000 tokens, and a
file of 40 bytes can make it loop for ever. Taking quantised numbers apart is the library's.
Source: ggml's docs/gguf.md.
"""

import functools
import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = b"GGUF"
# fmt: off
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}
# fmt: on
STRING, ARRAY = 8, 9


class Info(NamedTuple):
    """Where a tensor lies. shape: of the numbers, outermost first."""

    shape: tuple[int, ...]
    type: int  # ggml's number of a quantisation
    offset: int  # in the file


class Header(NamedTuple):
    """The head of a file."""

    metadata: dict[str, Any]
    tensors: dict[str, Info]


def is_gguf(path: str | Path) -> bool:
    """Whether a file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def read(path: str | Path) -> Header:
    """The head of a GGUF file; ValueError, one line, where it is damaged."""
    stat = os.stat(path)
    return _read(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(2)
def _read(path, size, _):
    if size < 24:
        raise ValueError(f"{path} is truncated: {size} bytes are no GGUF file: copy it again")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = Reader(data)
        try:
            return reader.header()
        except (struct.error, IndexError, ValueError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} is truncated, damaged or no GGUF file of version 2 or 3 (byte "
                f"{reader.at}: {error}): copy it again"
            ) from None


class Reader:
    """A place in the bytes of a file."""

    def __init__(self, data):
        self.data, self.at = data, 4

    def header(self) -> Header:
        """Read the file's head."""
        if self.data[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self.number("<I")) not in (2, 3):
            raise ValueError(f"version {version}")
        n_tensors, n_entries = self.number("<Q"), self.number("<Q")
        metadata = {}
        for _ in range(self.count(n_entries, 12)):
            name = self.text()
            metadata[name] = self.value(self.number("<I"))
        infos = {}
        for _ in range(self.count(n_tensors, 24)):
            name, n_dims = self.text(), self.number("<I")
            if n_dims > 4 or name in infos:
                raise ValueError(f"tensor {name[:80]!r} of {n_dims} dimensions, or twice")
            shape = tuple(self.number("<Q") for _ in range(n_dims))[::-1]
            infos[name] = Info(shape, self.number("<I"), self.number("<Q"))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20:
            raise ValueError(f"general.alignment {alignment!r}")
        start = -(-self.at // alignment) * alignment
        tensors = {n: i._replace(offset=start + i.offset) for n, i in infos.items()}
        return Header(metadata, tensors)

    def number(self, form: str) -> Any:
        """One number."""
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self, n: int, least: int) -> int:
        """n things of at least so many bytes each, if the file can hold them."""
        if n * least > len(self.data) - self.at:
            raise ValueError(f"{n} entries are more than the file holds")
        return n

    def text(self) -> str:
        """A string."""
        n = self.count(self.number("<Q"), 1)
        self.at += n
        return self.data[self.at - n : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of some kind: a number, a string, or a list of one of these."""
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY or depth > 3:
            raise ValueError(f"a value of kind {kind}")
        inner, n = self.number("<I"), self.number("<Q")
        if inner in SCALARS:
            form = SCALARS[inner]
            width = struct.calcsize(form)
            n = self.count(n, width)
            self.at += n * width
            return list(struct.unpack_from(f"<{n}{form[1]}", self.data, self.at - n * width))
        return [self.value(inner, depth + 1) for _ in range(self.count(n, 8))]
