"""Weights out: a Hugging Face folder or an EasyLM stream, one tensor in memory at a time."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

import model
from checkpoint import easylm, huggingface, safetensors_files
from checkpoint.mapping import half_split, order, place, places
from checkpoint.paths import file_of
from checkpoint.tensors import dense
from host import files
from text import templates, tokenizer_export
from text.tokenizer import Tokenizer

Weights = Iterable[tuple[str, int | None, np.ndarray]]  # as load.read_weights gives them


def file_arrays(
    config: model.Config, kind: str, weights: Weights, dtype: DTypeLike
) -> Iterator[tuple[str, np.ndarray]]:
    """(name in the file, array) of weights in `order`: as the file has them, cast."""
    parts = {}
    for (name, layer, x), due in zip(weights, order(config), strict=True):
        assert (name, layer) == due, f"{name} {layer} came where {due} was due"
        p = place(config, kind, name, layer)
        if p.interleaved:
            x = x[:, np.argsort(half_split(config, x.shape[1]))]
        if p.part is not None:
            parts.setdefault(p.name, []).append(x)
            if not p.is_last_part:
                continue
            x = np.concatenate(parts.pop(p.name), axis=-1)
        x = x.T if p.transposed else x
        with np.errstate(over="ignore"):
            y = dense(x, dtype)
        if y.dtype == np.float16 and not np.array_equal(np.isinf(x), np.isinf(y)):
            raise ValueError(
                f"tensor {p.name} holds numbers beyond float16's 65504: use --dtype bfloat16 or "
                "float32"
            )
        yield p.name, y


def write_hf(
    dst: str | Path,
    config: model.Config,
    weights: Weights,
    tok: Tokenizer | None,
    dtype: Any = np.float32,
    marks: dict[str, Any] | None = None,
    shard_bytes: int = safetensors_files.SHARD_BYTES,
    template: str | None = None,
) -> None:
    """A Hugging Face folder: config.json, safetensors in shards, tokenizer files (tok None: none).

    marks: more entries for config.json, taken when the weights are through. template: of
    conversations (None: roles where the tokenizer has role tokens, else the folder's own).
    """
    plan = [(p.name, p.shape) for _, p in places(config, "hf") if p.is_last_part]
    with files.beside(dst, folder=True) as tmp:
        arrays = file_arrays(config, "hf", weights, dtype)
        safetensors_files.write(tmp, plan, arrays, dtype, shard_bytes)
        if tok is not None:
            template = template or ("roles" if tok.roles else None)
        ends = {} if tok is None else end_ids(tok, template)
        record = huggingface.write_config(config) | ends
        record |= {"torch_dtype": np.dtype(dtype).name} | (marks or {})
        files.write_json(tmp / "config.json", record)
        files.write_json(tmp / "generation_config.json", ends)
        if tok is not None:
            tokenizer_export.write_hf(tok, tmp, template)


def end_ids(tok: Tokenizer, template: str | None) -> dict[str, Any]:
    """The ids that start and end a text, as config.json has them: several ends are a list."""
    of_template = templates.needed(tok, template)[-1:] if template else []
    ends = [tok.eos, *sorted((tok.eos_ids | set(of_template)) - {tok.eos})]
    return {
        "bos_token_id": tok.bos if tok.has_bos else None,
        "eos_token_id": ends if len(ends) > 1 else ends[0],
    }


def write_easylm(
    dst: str | Path,
    config: model.Config,
    weights: Weights,
    dtype: Any = np.float32,
    marks: dict[str, Any] | None = None,
) -> None:
    """An EasyLM stream, read there as params::DST, and DST.json beside it with the config.

    With that, no preset is needed here.
    """
    dst = file_of(dst)
    with files.beside(f"{dst}.json") as record, files.beside(dst) as tmp:
        easylm.write(tmp, file_arrays(config, "easylm", weights, dtype))
        stated = {"config": dataclasses.asdict(config), "dtype": np.dtype(dtype).name}
        files.write_json(record, stated | (marks or {}))
