"""llama.cpp's GGUF files: Config and tensors, of the families llama, qwen2 and qwen3.

Quantised tensors are taken apart by the gguf library, a few rows at a time, so that a slice of a
weight takes no more memory than in any other format. Left out: writing them, other architectures.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import model
from checkpoint.mapping import Place
from checkpoint.tensors import cut_short
from text import gguf_header
from text.gguf_header import Header, Info

FAMILIES = ("llama", "qwen2", "qwen3")
ROWS = 256  # of a quantised tensor that are taken apart at once
ROPE_FACTORS = "rope_freqs.weight"  # llama.cpp's form of Llama 3.1's RoPE scaling


class GgufTensor(NamedTuple):
    """Where a GGUF file keeps a tensor, and how."""

    path: str
    info: Info
    block: tuple[int, int]  # numbers in a block, bytes of it

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def row_bytes(self) -> int:
        return self.shape[-1] // self.block[0] * self.block[1]

    def rows(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        """Rows of a matrix (a vector is one row), cut to columns, float32."""
        import gguf

        kind = gguf.GGMLQuantizationType(self.info.type)
        size, width = self.block
        a, b = columns.start // size, -(-columns.stop // size)
        raw = np.memmap(self.path, np.uint8, "r", self.info.offset, (self.size(),))
        raw = raw.reshape(-1, self.row_bytes())[rows, a * width : b * width]
        out = gguf.quants.dequantize(np.ascontiguousarray(raw), kind).astype(np.float32)
        return out[:, columns.start - a * size : columns.stop - a * size]

    def size(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape[:-1]) * self.row_bytes()

    def read(self, place: Place, columns: np.ndarray | None) -> Callable[[tuple], np.ndarray]:
        """read(index) in our layout. columns: our order of the rows there, of RoPE's matrices."""

        def read(at):
            if len(self.shape) == 1:
                picked = at[0] if columns is None else columns[at[0]]
                return self.rows(np.arange(1), slice(0, self.shape[0]))[0][picked]
            rows_at, columns_at = at[::-1] if place.transposed else at
            rows = np.arange(self.shape[0]) if columns is None else columns
            rows, width = rows[rows_at], slice(*columns_at.indices(self.shape[1])[:2])
            out = np.empty((len(rows), width.stop - width.start), np.float32)
            for i in range(0, len(rows), ROWS):
                out[i : i + ROWS] = self.rows(rows[i : i + ROWS], width)
            return out.T if place.transposed else out

        return read


def read_config(path: str | Path) -> model.Config:
    """Config from the metadata; ValueError, one line, for another architecture."""
    header = gguf_header.read(path)
    meta, where = header.metadata, Path(path)
    family = meta.get("general.architecture")
    if family not in FAMILIES:
        raise ValueError(
            f"{where}: general.architecture {family!r} is not supported, only "
            f"{', '.join(FAMILIES)}: use a model of one of these"
        )

    def size(key: str, default: Any = None) -> int:
        value = meta.get(f"{family}.{key}", default)
        if type(value) is not int or not 0 < value < 2**31:
            raise ValueError(f"{where}: {family}.{key} is {value!r}, no size: copy it again")
        return value

    D, N = size("embedding_length"), size("attention.head_count")
    H = size("attention.key_length", D // N)
    embed = header.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise ValueError(f"{where} has no matrix token_embd.weight: copy it again")
    check_rope(meta, family, where, H)
    biases = {"qkv_bias": "blk.0.attn_q.bias", "out_bias": "blk.0.attn_output.bias"}
    flags = {flag: True for flag, name in biases.items() if name in header.tensors}
    if "blk.0.attn_q_norm.weight" in header.tensors:
        flags["qk_norm"] = True
    eps = meta.get(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)
    theta = meta.get(f"{family}.rope.freq_base", 10000.0)
    if type(eps) is not float or type(theta) is not float:
        raise ValueError(f"{where}: epsilon {eps!r} and freq_base {theta!r} are no numbers")
    return model.Config(
        "llama",
        V=embed.shape[0],
        D=D,
        L=size("block_count"),
        N=N,
        K=size("attention.head_count_kv", N),
        H=H,
        F=size("feed_forward_length"),
        P=positions(meta, family, size),
        eps=float(f"{eps:.6g}"),  # a float32, whose decimals are the author's
        theta=theta,
        rope_scaling=rope_scaling(meta, family, header, where),
        tied="output.weight" not in header.tensors,
        **flags,
    )


def positions(meta: dict[str, Any], family: str, size: Callable) -> int:
    """The model's positions: at most its sliding window, beyond which it attends otherwise."""
    window = meta.get(f"{family}.attention.sliding_window")
    n = size("context_length")
    return min(n, window) if type(window) is int and window > 0 else n


def check_rope(meta: dict[str, Any], family: str, where: Path, H: int) -> None:
    """ValueError for a RoPE that is not here."""
    turned = meta.get(f"{family}.rope.dimension_count", H)
    if turned != H:
        raise ValueError(
            f"{where}: {family}.rope.dimension_count {turned!r} of heads of {H} is not supported: "
            "use a model that rotates whole heads"
        )


def rope_scaling(meta: dict[str, Any], family: str, header: Header, where: Path) -> tuple | None:
    """Config.rope_scaling: linear's factor, or Llama 3.1's four out of the stored factors."""
    kind = meta.get(f"{family}.rope.scaling.type", "none")
    factor = meta.get(f"{family}.rope.scaling.factor", 0.0)
    if kind == "linear":
        return (float(factor),)
    if kind not in ("none", ""):
        raise ValueError(
            f"{where}: {family}.rope.scaling.type {kind!r} is not supported, only linear: use a "
            "model without it"
        )
    if ROPE_FACTORS not in header.tensors:
        return None
    # What converters store is the result of the formula; its largest number is the factor, and the
    # others are those of every Llama 3.1 and 3.2. The stored numbers are held against the formula.
    stored = tensor(path := str(where), header.tensors[ROPE_FACTORS], ROPE_FACTORS)
    factors = stored.rows(np.arange(1), slice(0, stored.shape[-1]))[0].astype(np.float64)
    scaling = (float(factors.max()), 1.0, 4.0, 8192)
    theta = meta.get(f"{family}.rope.freq_base", 10000.0)
    if not np.allclose(factors, llama3_factors(len(factors), theta, *scaling), rtol=1e-3):
        raise ValueError(
            f"{path}: its {ROPE_FACTORS} are not Llama 3.1's, which alone are supported: use "
            "another model"
        )
    return scaling


def llama3_factors(
    n: int, theta: float, factor: float, low: float, high: float, original: float
) -> np.ndarray:
    """What Llama 3.1 divides the n frequencies of RoPE by."""
    wavelength = 2 * np.pi * theta ** (np.arange(n) / n)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def index(path: str) -> dict[str, GgufTensor]:
    """name -> GgufTensor of the file; ValueError where it ends within one."""
    tensors, size = {}, os.path.getsize(path)
    for name, info in gguf_header.read(path).tensors.items():
        if name == ROPE_FACTORS:
            continue
        tensors[name] = tensor(path, info, name)
        if info.offset + tensors[name].size() > size:
            held = size - info.offset
            raise cut_short(path, name, info.shape, np.float32, held)
    return tensors


def tensor(path: str, info: Info, name: str) -> GgufTensor:
    """One tensor; ValueError where its type is not to be taken apart."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(info.type)
        block = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise ValueError(f"{path}: tensor {name} is of an unknown type {info.type}") from None
    if not info.shape or info.shape[-1] % block[0] or math.prod(info.shape) < 1:
        raise ValueError(f"{path}: tensor {name} of shape {info.shape} has no whole blocks")
    try:
        gguf.quants.dequantize(np.zeros((1, block[1]), np.uint8), kind)
    except NotImplementedError:
        raise ValueError(
            f"{path}: tensor {name} is of type {kind.name}, which the gguf library does not take "
            "apart: use another quantisation"
        ) from None
    return GgufTensor(path, info, (int(block[0]), int(block[1])))


def place_kind(path: str | Path) -> str:
    """mapping's kind of file: converters interleave the rows of q and k of llama, not of qwen."""
    family = gguf_header.read(path).metadata.get("general.architecture")
    return "gguf" if family == "llama" else "gguf half-split"
