"""The weights of any model path: checked whole, then read a slice at a time, in our layout.

    weights = load_weights("LLAMA-7B", config, mesh, layout)

Names and layouts in the files are mapping.py's; the files themselves are those of their own
modules.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from numpy.typing import DTypeLike

import model
import sharding
from checkpoint import easylm, gguf_file, llama2c, paths, runs, safetensors_files
from checkpoint.gguf_file import GgufTensor
from checkpoint.mapping import half_split, order, place, places
from checkpoint.names import file_names
from checkpoint.tensors import Tensor, dense, put

HEAD = "lm_head.weight"
DIFFERENT = "the file and its config (or preset) are of different models"

Read = Callable[[tuple], np.ndarray]  # read(index) -> that slice of a weight, in the file's dtype
View = Callable[[str, int | None], Read]  # view(name, layer) -> read


def open_weights(
    path: str | Path, config: model.Config, step: int | None = None, difference: bool = False
) -> tuple[model.Config, View, dict[str, int]]:
    """(config with the file's V, view, checksums) of a model path.

    checksums: of a run, name -> runs.bits_sum of the whole array; else empty. step: of a run (None:
    the last). ValueError unless every tensor, and nothing else, is there; it names both shapes.
    """
    kind, where = paths.kind_of(path), paths.file_of(path)
    if kind != "easylm":
        config = dataclasses.replace(config, V=paths.model_config(path, difference=difference).V)
    if kind == "run":
        return config, *run_view(path, config, runs.resolve_step(path, step))
    if kind == "bin":
        index = llama2c.index(where, config)
    elif kind == "gguf":
        index, kind = gguf_file.index(where), gguf_file.place_kind(where)
    elif kind == "easylm":
        index = easylm.index(where)
        config = paths.with_rows(config, index)
    else:
        index = hf_index(where, config)
    check_tensors(where, index, {p.name: p.shape for _, p in places(config, kind)}, difference)

    def view(name, layer):
        p = place(config, kind, name, layer)
        tensor = index[p.name]
        if isinstance(tensor, GgufTensor):
            return tensor.read(p, half_split(config, tensor.shape[0]) if p.interleaved else None)
        x = tensor.view()
        x = x.T if p.transposed else x
        x = x if p.part is None else x[..., p.part]
        if p.interleaved:
            columns = half_split(config, x.shape[1])
            return lambda at: x[at[0]][:, columns[at[1]]]
        return lambda at: x[at]

    return config, view, {}


def check(path: str | Path, preset: str | None = None) -> model.Config:
    """The Config of a model path whose weights are all there, by their headers alone.

    For a program to call before it does anything slow. ValueError as open_weights.
    """
    return open_weights(path, paths.model_config(path, preset))[0]


def hf_index(folder: str, config: model.Config) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder that are weights."""
    index = safetensors_files.index(folder)
    index = {n: t for n, t in index.items() if not safetensors_files.is_buffer(n)}
    if config.family == "gpt2" and not any(n.startswith("transformer.") for n in index):
        # GPT2Model's files leave it out
        index = {n if n == HEAD else f"transformer.{n}": t for n, t in index.items()}
    embed = index.get(file_names(config)["embed"].hf)
    if config.tied and embed is not None and is_copy(index.get(HEAD), embed):
        del index[HEAD]
    return index


def is_copy(tensor: Tensor | None, other: Tensor) -> bool:
    """Whether a tensor has the same bits as another."""
    if tensor is None or (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
        return False
    a, b = tensor.view(), other.view()
    return all(
        a[i : i + 4096].tobytes() == b[i : i + 4096].tobytes() for i in range(0, len(a), 4096)
    )


def check_tensors(
    where: str, index: dict, wanted: dict[str, tuple[int, ...]], difference: bool
) -> None:
    """ValueError unless the index has the wanted tensors, of their shapes, and no others."""
    for name, shape in wanted.items():
        if name not in index:
            hint = "copy the model whole"
            if "lm_head" in name:
                hint = (
                    "its config says that the output matrix is not the embedding: set "
                    "tie_word_embeddings true"
                )
            raise ValueError(f"{where} has no tensor {name}, expected {shape}: {hint}")
        if index[name].shape != shape:
            raise ValueError(
                f"{where}: tensor {name} has shape {index[name].shape}, expected {shape}: "
                f"{DIFFERENT}"
            )
        if index[name].dtype == np.uint32 and not difference:
            raise ValueError(
                f"{where}: tensor {name} is a difference to a base model: `recover` gives the model"
            )
    for name in index.keys() - wanted.keys():
        hint = DIFFERENT
        if "lm_head" in name:
            hint = (
                "its config says that the output matrix is the embedding: set tie_word_embeddings "
                "false"
            )
        raise ValueError(f"{where}: unexpected tensor {name} of shape {index[name].shape}: {hint}")


def run_view(run: str | Path, config: model.Config, step: int) -> tuple[View, dict[str, int]]:
    """open_weights' (view, checksums) of a run: slices of the stacked arrays in its checkpoint."""
    folder, shape_of, arrays = runs.folder_of(run, step), model.shapes(config), {}
    with runs.reading(run, step, "record"):
        sums = runs.record_of(run, step)["sums"]
    prefix = "weights."
    sums = {name.removeprefix(prefix): n for name, n in sums.items() if name.startswith(prefix)}
    for name in sums.keys() ^ shape_of.keys():
        raise ValueError(
            f"{folder}: either it or run.json has no weight {name}: they are of different models"
        )
    for name in shape_of:
        with runs.reading(run, step, name):
            arrays[name] = runs.open_array(run, step, prefix + name)
        if arrays[name].shape != shape_of[name]:
            raise ValueError(
                f"{folder}: tensor {name} has shape {arrays[name].shape}, expected "
                f"{shape_of[name]}: it and run.json are of different models"
            )

    def view(name, layer):
        array = arrays[name] if layer is None else arrays[name][layer]
        array = array[: config.V] if model.weight_table(config)[name].dims[0] == "V" else array

        def read(at):
            with runs.reading(run, step, name):
                return array[at].read().result()

        return read

    return view, sums


def read_weights(
    path: str | Path, config: model.Config, step: int | None = None, difference: bool = False
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """(name, layer or None, array) of every weight of a model path, one at a time, in `order`.

    In our layout, with the file's vocabulary rows, float32 (a difference: as stored).
    """
    config, view, sums = open_weights(path, config, step, difference)
    for name, layer in order(config):
        x = view(name, layer)((slice(None),) * len(model.weight_table(config)[name].dims))
        x = dense(x, x.dtype if difference else np.float32)
        if sums:
            sums[name] = (sums[name] - runs.bits_sum(x)) % 2**32
            if sums[name] and layer in (None, config.L - 1):
                raise other_checksum(path, step, name)
        yield name, layer, x


def load_weights(
    path: str | Path,
    config: model.Config,
    mesh: Mesh,
    layout: model.Layout,
    dtype: DTypeLike = jnp.float32,
    step: int | None = None,
    apart: bool = False,
) -> dict[str, Any]:
    """The weights of a model path straight into their shards, as model.initialise makes them.

    apart: a weight of the layers is a list of their arrays instead of a stack.

    On the host there is one device's slice of one layer of one weight at a time, in `dtype`; each
    process reads only the slices of its own devices. Where config.V exceeds the file's vocabulary
    (role tokens), the added rows are the mean of the file's rows; padding rows are zero.
    """
    file_config, view, sums = open_weights(path, config, step)
    if file_config.V > config.V:
        raise ValueError(
            f"{path} has {file_config.V} vocabulary rows, more than the {config.V} ids of the "
            "tokenizer: use the tokenizer it was made with"
        )
    shape_of, weights = model.shapes(config), {}
    spec = sharding.shardings(layout.stacked(config), mesh)
    for name, row in model.weight_table(config).items():
        if not row.layered:
            read = view(name, None)
            read = vocabulary_rows(read, file_config, config) if row.dims[0] == "V" else read
            weights[name] = put(read, shape_of[name], spec[name], dtype)
            continue
        layer_spec = NamedSharding(mesh, layout.specs[name])
        pieces = (
            put(view(name, layer), shape_of[name][1:], layer_spec, dtype)
            for layer in range(config.L)
        )
        if apart:
            weights[name] = list(pieces)
            continue
        blank, write = stack_of(shape_of[name], jnp.dtype(dtype), spec[name])
        weights[name] = blank()
        for layer, piece in enumerate(pieces):
            weights[name] = write(weights[name], piece, layer)
    if sums and file_config.V == config.V and dtype == jnp.float32:
        for name, n in jax.device_get(runs.bits_sums(weights)).items():
            if sums[name] != sum(map(int, n if isinstance(n, list) else [n])) % 2**32:
                raise other_checksum(path, step, name)
    return weights


def other_checksum(run: str | Path, step: int | None, name: str) -> ValueError:
    """The refusal of a run's array whose bits are not those that were saved."""
    return runs.damaged(run, runs.resolve_step(run, step), f"{name} has another checksum")


@functools.cache
def stack_of(
    shape: tuple[int, ...], dtype: np.dtype, spec: NamedSharding
) -> tuple[Callable, Callable]:
    """Jitted () -> zeros sharded by spec, and (stack, piece, layer) -> the stack with that layer.

    The layer is written in place.
    """
    blank = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=spec)

    def write(stack, piece, layer):
        return lax.dynamic_update_index_in_dim(stack, piece, layer, 0)

    return blank, jax.jit(write, donate_argnums=0, out_shardings=spec)


def vocabulary_rows(read: Read, file_config: model.Config, config: model.Config) -> Read:
    """read() of a [V, D] weight grown from the file's rows to the padded vocabulary.

    Added rows are the mean of the file's, padding rows are zero.
    """
    rows, mean_D = file_config.V, np.zeros(config.D)
    if config.V > rows:
        for a in range(0, rows, 4096):
            part = read((slice(a, min(a + 4096, rows)), slice(None)))
            mean_D += np.sum(part, axis=0, dtype=np.float64) / rows

    def grown(at):
        start, end, _ = at[0].indices(config.padded_vocab)
        columns = slice(*at[1].indices(config.D))
        out = np.zeros((end - start, columns.stop - columns.start), np.float32)
        old, new = max(rows - start, 0), max(config.V - start, 0)
        if old:
            out[:old] = read((slice(start, min(end, rows)), columns))
        out[old:new] = mean_D[None, columns]
        return out

    return grown
