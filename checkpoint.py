"""Weights in and out: Hugging Face folders, EasyLM streams, llama2.c files, and this project's own runs (Orbax).

    python checkpoint.py convert RUN DST --to hf          a run, params::STREAM, llama2.c .bin or Hugging Face folder -> a Hugging Face folder
    python checkpoint.py diff BASE TUNED OUT              what may be published where the base may not (how Koala was released)
    python checkpoint.py recover BASE OUT TUNED           and back, bit for bit

A file is first indexed (where does each tensor lie) and checked whole: names, shapes, sizes. Then one tensor at a time is mapped into memory, and of it only the
slices that this process's devices hold. Left out: pickled PyTorch files (never opened: unpickling runs code), quantised weights, LoRA adapters, remote paths.
"""
import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import mmap
import os
import pathlib
import re
import shutil
import signal
import struct
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import tensorstore
from jax import lax
from jax.sharding import NamedSharding

import model
import sharding
import tokenizer

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "U32": np.uint32}  # safetensors' names
MODEL_PATHS = "a run directory, a Hugging Face folder, params::FILE (EasyLM) or a llama2.c .bin"
BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")  # no weights: files of older transformers carry them
BIN_ORDER = ["embed", "attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w1", "w2", "w3", "final_norm"]  # llama2.c; then two RoPE tables; then the head
SHARD_BYTES = 5_000_000_000  # of one safetensors file, as Hugging Face cuts them
CHUNK_BYTES = 2**30  # flax cuts arrays of more bytes than this into pieces

# ---------------------------------------------------------------------------------------------------------- model paths


def kind_of(path):
    """"run", "hf", "easylm" or "bin"; ValueError where `path` is no model path."""
    if path.startswith("params::"):
        if not os.path.isfile(file_of(path)):
            raise ValueError(f"{path}: there is no file {file_of(path)}")
        return "easylm"
    if "::" in path:
        raise ValueError(f"{path}: of EasyLM's forms only params::FILE is read: save the params alone (EasyLM's convert_checkpoint.py, with streaming)")
    place = pathlib.Path(path)
    if not place.exists():
        raise ValueError(f"{path} does not exist: a model is {MODEL_PATHS}")
    if place.is_dir():
        if (place / "run.json").exists():
            return "run"
        if (place / "config.json").exists():
            return "hf"
        raise ValueError(f"{path} holds neither run.json nor config.json: a model is {MODEL_PATHS}")
    with open(place, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or start[:1] == b"\x80" or place.suffix in (".pt", ".pth", ".pkl"):
        raise ValueError(f"{path} is a pickled PyTorch file, which can run code when it is opened: convert it to safetensors (transformers' save_pretrained) and name the folder")
    if place.suffix == ".bin":
        return "bin"
    hint = "name the folder it lies in" if place.suffix == ".safetensors" else f"for an EasyLM stream write params::{path}" if not place.suffix else "name one of these"
    raise ValueError(f"{path} is no model: a model is {MODEL_PATHS}: {hint}")


def file_of(path):
    return path.removeprefix("params::")


def model_config(path, preset=None, difference=False):
    """The Config of a model path; V is the rows that the file has. preset: for an EasyLM stream, whose file does not tell (one written here has FILE.json beside it).

    difference: whether the path must be the output of `diff` (True) or a model (False). ValueError, one line, for what is not supported.
    """
    kind = kind_of(path)
    if kind == "bin":
        return bin_config(path)
    if kind == "easylm":
        beside = pathlib.Path(file_of(path) + ".json")
        record = read_json(beside) if beside.exists() else {}
        check_difference(path, record, difference)
        if record:
            config = config_from(record["config"], beside)
        elif preset:
            config = model.preset(preset)
        else:
            raise ValueError(f"{path}: an EasyLM stream does not say what model it is: name its preset (train.py --model, eval.py and checkpoint.py --model-preset)")
        index = easylm_index(file_of(path))
        embed = index.get(model.weight_table(config)["embed"].easylm)
        return config if embed is None else dataclasses.replace(config, V=embed.shape[0])
    record = read_json(pathlib.Path(path) / ("run.json" if kind == "run" else "config.json"))
    check_difference(path, record, difference)
    return config_from(record.get("config"), path) if kind == "run" else hf_config(record, pathlib.Path(path) / "config.json")


def check_difference(path, record, wanted):
    if bool(record.get("difference")) != wanted:
        raise ValueError(f"{path} is no output of diff: recover takes BASE DIFF OUT" if wanted else f"{path} is a difference to a base model: `checkpoint.py recover BASE {path} OUT` gives the model")


def read_json(path):
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: copy it again")
    return value


def config_from(record, where):
    try:
        scaling = record["rope_scaling"]
        return model.Config(**record | {"rope_scaling": scaling and tuple(scaling)})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where}: its config is not one of this project ({error})") from None


def hf_config(c, where):
    """Config from a Hugging Face config.json: LlamaForCausalLM and GPT-2; what would change the arithmetic and is not here raises."""
    def need(key, *allowed):
        if c.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{where}: {key} {c[key]!r} is not supported, only {' or '.join(map(repr, allowed))}")

    name = (c.get("architectures") or ["?"])[0]
    kind = {"LlamaForCausalLM": "llama", "GPT2LMHeadModel": "gpt2", "GPT2Model": "gpt2"}.get(name, c.get("model_type") if name == "?" else None)
    need("quantization_config", None)
    try:
        if kind == "llama":
            for key, *allowed in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False), ("partial_rotary_factor", 1.0, None)):
                need(key, *allowed)
            D, N = c["hidden_size"], c["num_attention_heads"]
            rope = (c.get("rope_parameters") or {}) | (c.get("rope_scaling") or {})
            rope_type, scaling = rope.get("rope_type", rope.get("type", "default")), None
            if rope_type == "llama3":
                original = rope.get("original_max_position_embeddings") or c["original_max_position_embeddings"]
                scaling = (float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), original)
            elif rope_type != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
                raise ValueError(f"{where}: RoPE of type {rope_type!r} {rope} is not supported, only 'default' and 'llama3'")
            theta = float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0)
            K, H = c.get("num_key_value_heads") or N, c.get("head_dim") or D // N
            return model.Config(
                "llama", c["vocab_size"], D, c["num_hidden_layers"], N, K, H, c["intermediate_size"], c.get("max_position_embeddings", 2048), c.get("rms_norm_eps", 1e-6),
                theta, scaling, bool(c.get("tie_word_embeddings", False)),
            )  # fmt: skip
        if kind == "gpt2":
            need("activation_function", "gelu_new", "gelu_pytorch_tanh")
            need("scale_attn_weights", True)
            need("scale_attn_by_inverse_layer_idx", False)
            need("add_cross_attention", False)
            D, N = c["n_embd"], c["n_head"]
            F, tied = c.get("n_inner") or 4 * D, bool(c.get("tie_word_embeddings", True))
            return model.Config("gpt2", c["vocab_size"], D, c["n_layer"], N, N, D // N, F, c.get("n_positions", 1024), c.get("layer_norm_epsilon", 1e-5), tied=tied)
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}: copy it again from where the model came from") from None
    raise ValueError(f"{where}: architecture {name} (model_type {c.get('model_type')}) is not supported, only LlamaForCausalLM, GPT2LMHeadModel and GPT2Model")


def bin_config(path):
    """Config from the header of a llama2.c .bin: seven int32; a negative vocabulary says that the output matrix is its own."""
    with open(path, "rb") as file:
        head = file.read(28)
    D, F, L, N, K, V, P = struct.unpack("<7i", head) if len(head) == 28 else (0,) * 7
    if D == 0x616B3432:
        raise ValueError(f"{path} is llama2.c's format of version {F}: only version 0 is read, export it with --version 0")
    if min(D, F, L, N, K, abs(V), P) < 1 or D % N or N % K:
        raise ValueError(f"{path} is no llama2.c file: its first 28 bytes are not seven sizes (dim, hidden, layers, heads, kv heads, vocabulary, context)")
    return model.Config("llama", abs(V), D, L, N, K, D // N, F, P, 1e-5, tied=V > 0)


# -------------------------------------------------------------------------------------------------------- where tensors lie


class Tensor(NamedTuple):
    """Where a file keeps a tensor: parts (path, byte offset, elements) laid end to end (one, but for EasyLM's arrays over 1 GiB)."""

    dtype: object
    shape: tuple
    parts: tuple

    def view(self):
        """The tensor as numpy sees the file: pages are read where they are touched, and given back when the view goes."""
        flat = [np.memmap(path, self.dtype, "r", offset, (n,)) for path, offset, n in self.parts]
        return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(self.shape)


def safetensors_index(folder):
    """name -> Tensor of a Hugging Face folder, one file or several. Headers are untrusted: every span is checked against the file."""
    folder = pathlib.Path(folder)
    listing = folder / "model.safetensors.index.json"
    if not listing.exists():
        if not (folder / "model.safetensors").exists():
            pickled = any(folder.glob("pytorch_model*.bin"))
            why = "only pickled PyTorch files, which can run code when opened: convert them with transformers' save_pretrained" if pickled else "copy the folder whole"
            raise ValueError(f"{folder} has neither model.safetensors nor model.safetensors.index.json: {why}")
        return safetensors_header(folder / "model.safetensors")
    places = read_json(listing).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(f, str) and f == os.path.basename(f) for f in places.values()):
        raise ValueError(f"{listing} has no weight_map of file names in this folder: copy it again")
    index = {}
    for file in sorted(set(places.values())):
        first = next(n for n, f in places.items() if f == file)
        if not (folder / file).exists():
            raise ValueError(f"{folder}: {file}, which should hold tensor {first}, is missing: copy it too")
        found = safetensors_header(folder / file)
        for name in [n for n, f in places.items() if f == file and n not in found] + [n for n in found if places.get(n) != file]:
            raise ValueError(f"{folder}: tensor {name}: {listing.name} and {file} disagree on whether it lies there: copy both again")
        index |= found
    return index


def safetensors_header(path):
    """name -> Tensor of one safetensors file: 8 bytes of length, JSON, then the data without gaps."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(size - 8, 100_000_000):
            raise ValueError(f"{path}: its header of {n} bytes does not fit its {size} bytes: truncated or no safetensors file, copy it again")
        try:
            header = json.loads(file.read(n))
            header.pop("__metadata__", None)
            spans = sorted((*t["data_offsets"], name, t["dtype"], tuple(t["shape"])) for name, t in header.items())
            good = all(type(x) is int and x >= 0 for a, b, _, _, shape in spans for x in (a, b, *shape))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good = False
    if not good:
        raise ValueError(f"{path}: its header is damaged: copy it again")
    index, at = {}, 0
    for start, end, name, dtype, shape in spans:
        if dtype not in DTYPES:
            raise ValueError(f"{path}: tensor {name} is of type {dtype}, only {', '.join(DTYPES)} are read: quantised weights are not supported")
        elements = int(np.prod(shape, dtype=object))
        bytes_ = elements * np.dtype(DTYPES[dtype]).itemsize
        if start != at or end - start != bytes_:
            raise ValueError(f"{path}: tensor {name} of shape {shape} needs {bytes_} bytes from byte {at}, its header says {start} to {end}: copy the file again")
        if 8 + n + end > size:
            held = max(size - 8 - n - start, 0)
            raise ValueError(f"{path} is truncated: of tensor {name}, expected {shape} ({bytes_} bytes), the file holds {held} bytes: copy it again")
        index[name], at = Tensor(DTYPES[dtype], shape, ((path, 8 + n + start, elements),)), end
    if 8 + n + at != size:
        raise ValueError(f"{path}: {size - 8 - n - at} bytes follow its last tensor: copy it again")
    return index


def easylm_index(path):
    """name -> Tensor of an EasyLM stream: msgpack pairs (key tuple, bytes), the bytes being flax's msgpack of one array.

    Source: EasyLM checkpoint.py `StreamingCheckpointer`, flax serialization.py. A leading "params" of the keys is dropped. Only headers are touched.
    """
    index, at, name = {}, 0, "the first"
    size = os.path.getsize(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else contextlib.nullcontext(b"") as data:
        try:
            if not size:
                raise ValueError
            while at < size:
                pair, at = unpack(data, at, msgpack.Unpacker.read_array_header)
                key, at = unpack(data, at)
                if pair != 2 or not isinstance(key, (list, tuple)) or not all(isinstance(k, str) for k in key):
                    raise ValueError
                name = "/".join(key[1:] if key[0] == "params" else key)
                start, at = blob(data, at)
                if name in index:
                    raise ValueError
                index[name] = flax_array(path, data, start)
                if at > size:
                    shape, last = index[name].shape, index[name].parts[-1][1]
                    raise EOFError(f"of tensor {name}, expected {shape} {np.dtype(index[name].dtype).name}, the file holds {max(size - last, 0)} bytes")
        except EOFError as error:
            raise ValueError(f"{path} is truncated: {error}: copy it again") from None
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, msgpack.UnpackException) as error:
            raise ValueError(f"{path} is truncated or no EasyLM stream of params at byte {at}, in or after {name}: copy it again") from None
    return index


def unpack(data, at, read=msgpack.Unpacker.unpack):
    """(value, where it ends) of the small msgpack object, or with `read` the container header, at byte `at`."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data[at : at + 4096])
    value = read(unpacker)
    return value, at + unpacker.tell()


BLOBS = {"bin": b"\xc4\xc5\xc6", "ext": b"\xc7\xc8\xc9", "str": b"\xd9\xda\xdb"}  # with lengths of 1, 2, 4 bytes


def blob(data, at):
    """(start, end) of the payload of the bin, ext or str object at byte `at`, without reading it."""
    for kind, codes in BLOBS.items():
        if (width := codes.find(data[at])) >= 0:
            width = 1 << width
            start = at + 1 + width
            return start + (kind == "ext"), start + (kind == "ext") + int.from_bytes(data[at + 1 : start], "big")
    raise ValueError


def flax_array(path, data, at):
    """The Tensor of flax's msgpack of one array: an ext object (shape, dtype name, bytes), or a map of several where the array is over 1 GiB."""
    if data[at] >> 4 != 8:  # no map
        if data[at] not in BLOBS["ext"] or data[blob(data, at)[0] - 1] != 1:
            raise ValueError
        _, at = unpack(data, blob(data, at)[0], msgpack.Unpacker.read_array_header)
        shape, at = unpack(data, at)
        dtype, at = unpack(data, at)
        dtype = np.dtype({"bfloat16": jnp.bfloat16}.get(dtype, dtype))
        start, end = blob(data, at)
        elements = int(np.prod(shape, dtype=object))
        if dtype not in [np.dtype(d) for d in DTYPES.values()] or elements * dtype.itemsize != end - start:
            raise ValueError
        return Tensor(dtype, tuple(shape), ((path, start, elements),))
    fields, at = unpack(data, at, msgpack.Unpacker.read_map_header)
    parts = []
    for _ in range(fields):
        key, at = unpack(data, at)
        if key == "chunks":
            count, at = unpack(data, at, msgpack.Unpacker.read_map_header)
            for _ in range(count):  # in order: flax writes them from "0" up
                _, at = unpack(data, at)
                parts.append(flax_array(path, data, at))
                at = blob(data, at)[1]
        else:
            value, at = unpack(data, at)
            shape = tuple(value[str(i)] for i in range(len(value))) if key == "shape" else shape
    return Tensor(parts[0].dtype, shape, tuple(p for part in parts for p in part.parts))


def bin_index(path, config):
    """name -> Tensor of a llama2.c .bin: float32 after the header, weights one after the other, each [out, in] and stacked over layers."""
    size, at = os.path.getsize(path), 28
    index, shapes = {}, {n: (1,) + s if not model.weight_table(config)[n].layered else s for n, s in model.shapes(config, padded=False).items()}
    for name in BIN_ORDER + ["head"] * (not config.tied):
        if name == "head":
            at += config.P * config.H * 4  # the RoPE tables
        for layer, (file_name, transposed, _, shape) in enumerate(file_tensor(config, "bin", name, l) for l in range(shapes[name][0])):
            elements = int(np.prod(shape))
            if at + 4 * elements > size:
                raise ValueError(f"{path} is truncated: of tensor {file_name}, expected {shape} ({4 * elements} bytes), the file holds {max(size - at, 0)} bytes: copy it again")
            index[file_name] = Tensor(np.float32, shape, ((path, at, elements),))
            at += 4 * elements
    if config.tied:
        at += config.P * config.H * 4
    if at != size:
        raise ValueError(f"{path} has {size} bytes, its header's sizes give {at}: copy it again")
    return index


def file_tensor(config, kind, name, layer):
    """How a file of this kind keeps weight `name`: (its name there, transposed, slice of the last axis or None, its whole shape there)."""
    row, size = model.weight_table(config)[name], model.sizes(config, padded=False)
    file_name, transposed = {
        "hf": (row.hf.format(layer), row.hf_transposed),
        "easylm": (row.easylm.format(layer), row.easylm_transposed),
        "bin": (f"{name}[{layer}]" if row.layered else name, row.layered and len(row.dims) == 2),
    }[kind]
    shape, part = tuple(size[d] for d in row.dims), None
    if row.part is not None:  # q, k and v in one
        at = [0, size["NH"], size["NH"] + size["KH"], size["NH"] + 2 * size["KH"]]
        part, shape = slice(at[row.part], at[row.part + 1]), shape[:-1] + (at[3],)
    return file_name, transposed, part, shape[::-1] if transposed else shape


def half_split(config, width):
    """Columns of an interleaved (Meta's, EasyLM's, llama2.c's) query or key matrix in half-split order: within each head the even ones, then the odd ones."""
    return np.arange(width).reshape(-1, config.H // 2, 2).swapaxes(1, 2).reshape(-1)


def order(config):
    """(name, layer or None) of every weight, layer by layer: the order of files."""
    table = model.weight_table(config)
    layered = [n for n in table if table[n].layered]
    outer = [(n, None) for n in table if not table[n].layered]
    first = [o for o in outer if o[0] in ("embed", "pos")]
    return first + [(n, layer) for layer in range(config.L) for n in layered] + outer[len(first) :]


# ---------------------------------------------------------------------------------------------------------------- reading


def open_weights(path, config, step=None, difference=False):
    """(config of the file, view): every tensor is there and has its shape, or ValueError naming it.

    view(name, layer) -> read(index) -> numpy array in the file's dtype, our layout, of that slice of the weight (vocabulary rows: those of the file). config: V may differ.
    """
    kind = kind_of(path)
    where = file_of(path)
    if kind == "easylm":
        index = easylm_index(where)
        embed = index.get(model.weight_table(config)["embed"].easylm)
        config = config if embed is None else dataclasses.replace(config, V=embed.shape[0])
    else:
        config = dataclasses.replace(config, V=model_config(path, difference=difference).V)
    if kind == "run":
        return config, functools.partial(run_view, path, config, resolve_step(path, step))
    index = index if kind == "easylm" else safetensors_index(path) if kind == "hf" else bin_index(path, config)
    base = ""
    if kind == "hf":
        index = {n: t for n, t in index.items() if not BUFFERS.search("." + n)}
        base = "transformer." if config.family == "gpt2" else "model."
        base = "" if any(n.startswith(base) for n in index) else base  # GPT2Model's files leave the prefix out
    wanted = {}
    for name, layer in order(config):
        file_name, _, _, shape = file_tensor(config, kind, name, layer)
        wanted[file_name.removeprefix(base)] = shape
    head = "lm_head" in " ".join(set(wanted) ^ set(index))
    for name, shape in wanted.items():
        if name not in index:
            hint = "its config says that the output matrix is its own (tie_word_embeddings false): set it true, or copy the file that has it" if head and "lm_head" in name else "copy the model again"
            raise ValueError(f"{where} has no tensor {name}, expected {shape}: {hint}")
        if index[name].shape != shape:
            raise ValueError(f"{where}: tensor {name} has shape {index[name].shape}, expected {shape}: the file and its config (or preset) are of different models")
        if (index[name].dtype == np.uint32) and not difference:
            raise ValueError(f"{where}: tensor {name} holds bit patterns of a difference: `checkpoint.py recover BASE DIFF OUT` gives the model")
    for name in index:
        if name not in wanted:
            hint = "its config says that the output matrix is the embedding (tie_word_embeddings true): set it false" if "lm_head" in name else "a model of another kind, or with parts that are not supported"
            raise ValueError(f"{where}: unexpected tensor {name} of shape {index[name].shape}: {hint}")

    def view(name, layer):
        file_name, transposed, part, _ = file_tensor(config, kind, name, layer)
        x = index[file_name.removeprefix(base)].view()
        x = x.T if transposed else x
        x = x if part is None else x[..., part]
        if kind != "hf" and model.weight_table(config)[name].rope:
            columns = half_split(config, x.shape[1])
            return lambda at: x[at[0]][:, columns[at[1]]]
        return lambda at: x[at]

    return config, view


def run_view(path, config, step, name, layer):
    """open_weights' view for a run: one layer's slice of the stacked array, straight from the chunks of Orbax's store (a chunk holds one layer)."""
    place = checkpoint_dir(path, step)
    try:
        store = tensorstore.open(
            {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{place / 'state'}/", "path": f"weights.{name}/"}},
            context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**29}}), open=True, read=True,
        ).result()  # fmt: skip
    except ValueError as error:
        raise broken(path, step, error) from None
    row = model.weight_table(config)[name]
    shape = (config.L,) * row.layered + tuple(model.sizes(config)[d] for d in row.dims)
    if store.shape != shape:
        raise ValueError(f"{place}: tensor {name} has shape {store.shape}, expected {shape}: run.json and the checkpoint are of different models")
    store = store if layer is None else store[layer]
    store = store[: config.V] if row.dims[0] == "V" else store

    def read(at):
        try:
            return store[at].read().result()
        except ValueError as error:
            raise broken(path, step, error) from None

    return read


def read_weights(path, config, step=None, difference=False):
    """(name, layer or None, array) of every weight of a model path, one at a time in `order`: our layout, the file's vocabulary rows, float32 (a difference: as stored)."""
    config, view = open_weights(path, config, step, difference)
    for name, layer in order(config):
        read = view(name, layer)
        x = read((slice(None),) * len(model.weight_table(config)[name].dims))
        yield name, layer, np.array(x, x.dtype if difference else np.float32)


def load(path, config, mesh, layout, dtype=jnp.float32, step=None):
    """The weights of a model path straight into their shards: name -> array as model.initialise makes them.

    One layer of one weight is on the host at a time, and of it only one device's slice in `dtype`; each process reads its own slices alone. Where config.V exceeds the
    file's vocabulary (role tokens), the added rows are the mean of the file's rows; padding rows are zero. step: of a run, which checkpoint (None: the last).
    """
    there, view = open_weights(path, config, step)
    if there.V > config.V:
        raise ValueError(f"{path} has {there.V} vocabulary rows, more than the {config.V} ids of the tokenizer: use the tokenizer it was made with")
    table, whole, weights = model.weight_table(config), model.shapes(config), {}
    spec = sharding.shardings(layout.stacked(config), mesh)
    for name, row in table.items():
        if not row.layered:
            read = view(name, None)
            read = vocabulary_rows(read, there, config) if row.dims[0] == "V" else read
            weights[name] = put(read, whole[name], spec[name], dtype)
            continue
        piece_spec = NamedSharding(mesh, layout.specs[name])
        stack = jax.jit(functools.partial(jnp.zeros, whole[name], dtype), out_shardings=spec[name])()
        for layer in range(config.L):
            stack = write_layer(spec[name])(stack, put(view(name, layer), whole[name][1:], piece_spec, dtype), layer)
        weights[name] = stack
    return weights


@functools.cache
def write_layer(spec):
    """A jitted (stack, piece, layer) -> stack, in place."""
    return jax.jit(lambda stack, piece, layer: lax.dynamic_update_index_in_dim(stack, piece, layer, 0), donate_argnums=0, out_shardings=spec)


def put(read, shape, spec, dtype):
    """An array of `shape` sharded by `spec`, read slice by slice; on the host there is one slice at a time, whatever the number of devices."""
    holders = {}  # a slice -> the devices that hold it
    for device, index in spec.addressable_devices_indices_map(shape).items():
        holders.setdefault(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)), []).append(device)
    pieces = []
    for bounds, devices in holders.items():
        piece = np.array(read(tuple(slice(*b) for b in bounds)), dtype)  # a copy: never the file's own pages under a device array
        pieces += [jax.device_put(piece, device) for device in devices]
        jax.block_until_ready(pieces[-len(devices) :])
    return jax.make_array_from_single_device_arrays(shape, spec, pieces)


def vocabulary_rows(read, there, config):
    """read() of a [V, D] weight grown from the file's rows to the padded vocabulary: added tokens get the mean of the file's rows, padding zero."""
    mean_D = 0
    if config.V > there.V:
        chunks = range(0, there.V, 4096)
        mean_D = sum(np.sum(read((slice(a, min(a + 4096, there.V)), slice(None))), axis=0, dtype=np.float64) for a in chunks) / there.V

    def grown(at):
        start, end = at[0].start, at[0].stop
        columns = slice(*at[1].indices(config.D))
        out = np.zeros((end - start, columns.stop - columns.start), np.float32)
        out[: max(there.V - start, 0)] = read((slice(min(start, there.V), min(end, there.V)), columns))
        if config.V > there.V:
            out[max(there.V - start, 0) : max(config.V - start, 0)] = mean_D[columns]
        return out

    return grown


def fingerprint(path, step=None):
    """sha256 of a model's files: names, sizes, and 64 blocks of each (small files whole), so that a 13B model takes a second."""
    kind, place = kind_of(path), pathlib.Path(file_of(path))
    if kind == "run":
        folder = checkpoint_dir(path, resolve_step(path, step))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
    else:
        folder = place if kind == "hf" else place.parent
        files = [place] if kind != "hf" else [place / "config.json", *sorted(place.glob("*.safetensors"))]
    digest, block = hashlib.sha256(), 65536
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder) if kind in ('run', 'hf') else ''} {size}\n".encode())
        with open(file, "rb") as f:
            for i in range(64):
                f.seek(max(size - block, 0) * i // 63)
                digest.update(f.read(block))
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- own runs


def checkpoint_dir(run, step):
    return pathlib.Path(run).resolve() / "checkpoints" / str(step)


def steps(run):
    """The steps of a run's whole checkpoints, in order. Orbax writes under another name and renames at the end: an unfinished one does not count."""
    folder = pathlib.Path(run) / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / "state").is_dir()) if folder.is_dir() else []


def resolve_step(run, step=None):
    there = steps(run)
    if not there or (step is not None and step not in there):
        what = f"no checkpoint of step {step}" if there else "no whole checkpoint"
        raise ValueError(f"{run} has {what}: " + (f"there are {', '.join(map(str, there))}" if there else "train it first"))
    return there[-1] if step is None else step


def broken(run, step, error):
    """The ValueError for a checkpoint that cannot be read."""
    why = " ".join(str(error).split())[:160]
    earlier = [s for s in steps(run) if s < step]
    remedy = f"remove that folder to go on from step {earlier[-1]}" if earlier else "there is no earlier one: start again"
    return ValueError(f"checkpoint of step {step} in {checkpoint_dir(run, step)} is damaged ({why}): {remedy}")


class Saver:
    """A run's checkpoints: saved in the background, whole or not at all, the last `keep` of them kept (0 or None: all)."""

    def __init__(self, run_dir, keep=None):
        import orbax.checkpoint as ocp

        self.run, self.ocp = pathlib.Path(run_dir).resolve(), ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.run / "checkpoints", options=options)

    def save(self, step, state, meta):
        """Start saving; returns when the arrays are copied, so that they may be donated. meta: what JSON holds."""
        ocp = self.ocp
        # one layer a chunk: a reader of one layer reads no other
        args = jax.tree.map(lambda x: ocp.SaveArgs(shard_axes=(0,) if x.ndim > 1 else ()), state)
        self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state, save_args=args), meta=ocp.args.JsonSave(meta)), force=True)

    def steps(self):
        return steps(self.run)

    def restore(self, state_like, step=None):
        """(state, meta) of a step (None: the last). state_like: ShapeDtypeStructs with shardings, of any mesh."""
        ocp, step = self.ocp, resolve_step(self.run, step)
        try:
            got = self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(state_like), meta=ocp.args.JsonRestore()))
        except Exception as error:  # Orbax raises many kinds
            raise broken(self.run, step, error) from error
        return got["state"], got["meta"]

    def wait(self):
        self.manager.wait_until_finished()

    def close(self):
        self.manager.close()
