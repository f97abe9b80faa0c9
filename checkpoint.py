"""Weights in and out: Hugging Face folders, EasyLM streams, llama2.c files, and this project's own runs (Orbax).

    python checkpoint.py convert RUN DST --to hf          a run, params::STREAM, llama2.c .bin or Hugging Face folder -> a Hugging Face folder
    python checkpoint.py diff BASE TUNED OUT              what may be published where the base may not (how Koala was released)
    python checkpoint.py recover BASE OUT TUNED           and back, bit for bit

A model is first indexed and checked whole: names, shapes, sizes (formats.py). Then one tensor at a time is mapped into memory, and of it only the slices are read that
this process's devices hold. Left out: pickled PyTorch files (never opened: unpickling runs code), quantised weights, LoRA adapters, remote paths.
"""
import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import signal
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from jax import lax
from jax.sharding import NamedSharding

import formats
import model
import sharding
import tokenizer

MODEL_PATHS = "a run directory, a Hugging Face folder, params::FILE (an EasyLM stream) or a llama2.c .bin"
BUFFERS = re.compile(r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$")  # no weights: files of older transformers carry them
BIN_ORDER = ("embed", "attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "w1", "w2", "w3", "final_norm", "rope", "head")  # llama2.c's; "rope": two tables

# ---------------------------------------------------------------------------------------------------------- model paths


def file_of(path):
    return str(path).removeprefix("params::")


def kind_of(path):
    """"run", "hf", "easylm" or "bin"; ValueError where `path` is no model path."""
    path = str(path)
    place = pathlib.Path(file_of(path))
    if "::" in str(place):
        raise ValueError(f"{path}: of EasyLM's forms only params::FILE is read: save the params alone, streaming (EasyLM's convert_checkpoint.py)")
    if not place.exists():
        raise ValueError(f"{place} does not exist: a model is {MODEL_PATHS}")
    if path.startswith("params::"):
        if place.is_dir():
            raise ValueError(f"{path}: {place} is a folder: name the stream in it")
        return "easylm"
    if place.is_dir():
        kind = "run" if (place / "run.json").exists() else "hf" if (place / "config.json").exists() else None
        if kind is None:
            raise ValueError(f"{path} holds neither run.json nor config.json: a model is {MODEL_PATHS}")
        return kind
    with open(place, "rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80" or place.suffix in (".pt", ".pth", ".pkl"):
        raise ValueError(f"{path} is a pickled PyTorch file, which can run code when opened: convert it to safetensors (transformers' save_pretrained), name the folder")
    if place.suffix != ".bin":
        hint = "name the folder it lies in" if place.suffix == ".safetensors" else f"for an EasyLM stream write params::{path}"
        raise ValueError(f"{path} is none of {MODEL_PATHS}: {hint}")
    return "bin"


def config_from(record, where):
    """Config from dataclasses.asdict of one, as run.json has it."""
    try:
        return model.Config(**record | {"rope_scaling": record["rope_scaling"] and tuple(record["rope_scaling"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where} has no config of this project ({error}): copy it again") from None


def about(path):
    """The JSON that says what a model path is: run.json, config.json, an EasyLM stream's FILE.json where this project wrote it; {} where there is none."""
    kind, place = kind_of(path), pathlib.Path(file_of(path))
    place = {"run": place / "run.json", "hf": place / "config.json"}.get(kind, pathlib.Path(f"{place}.json"))
    return formats.read_json(place) if kind != "bin" and place.exists() else {}


def model_config(path, preset=None, difference=False):
    """The Config of a model path; its V is the file's. preset: for an EasyLM stream, which does not tell (one written here does, in FILE.json).

    difference: `path` may be what `diff` wrote. ValueError, one line, for what is no model or not supported.
    """
    kind, record = kind_of(path), about(path)
    if record.get("difference") and not difference:
        raise ValueError(f"{path} is a difference to a base model: python checkpoint.py recover BASE {path} OUT gives the model")
    if kind == "bin":
        return formats.bin_config(path)
    if kind == "hf":
        config = formats.hf_config(record, pathlib.Path(path) / "config.json")
        wrong = [k for k in "VDLNKHFP" if type(getattr(config, k)) is not int or getattr(config, k) < 1]
        if wrong:
            raise ValueError(f"{path}: config.json gives {getattr(config, wrong[0])!r} for one of its sizes: copy it again from where the model came from")
        return config
    if record:
        return config_from(record.get("config"), path)
    if not preset:
        raise ValueError(f"{path} does not say what model it is: name its preset (--model-preset; train.py: --model), one of {', '.join(model.PRESETS)}")
    config = model.preset(preset)
    embed = formats.easylm_index(file_of(path)).get(model.weight_table(config)["embed"].easylm)
    return config if embed is None else dataclasses.replace(config, V=embed.shape[0])


# ---------------------------------------------------------------------------------------- our weights as the files have them


class Place(NamedTuple):
    """How a file of some kind keeps one weight of ours."""

    name: str  # there
    shape: tuple  # of the whole tensor there
    transposed: bool
    part: slice | None  # of the last axis of the tensor (not transposed): q, k or v of GPT-2, which are one there
    closes: bool  # the last part, or the only one
    interleaved: bool  # its columns are rotated by RoPE in neighbouring pairs there, in half-split pairs here


def place(config, kind, name, layer):
    row, size = model.weight_table(config)[name], model.sizes(config, padded=False)
    there, transposed = {
        "hf": (row.hf.format(layer), row.hf_transposed),
        "easylm": (row.easylm.format(layer), row.easylm_transposed),
        "bin": (f"{name}[{layer}]" if row.layered else name, row.layered and len(row.dims) == 2),
    }[kind]
    shape, part = tuple(size[d] for d in row.dims), None
    if row.part is not None:
        bounds = np.cumsum([0, size["NH"], size["KH"], size["KH"]]).tolist()
        part, shape = slice(*bounds[row.part : row.part + 2]), shape[:-1] + (bounds[3],)
    return Place(there, shape[::-1] if transposed else shape, transposed, part, row.part in (None, 2), row.rope and kind != "hf")


def half_split(config, width):
    """Columns of an interleaved (Meta's, EasyLM's, llama2.c's) query or key matrix in half-split order: within each head the even ones, then the odd ones."""
    return np.arange(width).reshape(-1, config.H // 2, 2).swapaxes(1, 2).reshape(-1)


def order(config):
    """(name, layer or None) of every weight: layer by layer, as files go."""
    table = model.weight_table(config)
    layered, outer = [n for n in table if table[n].layered], [(n, None) for n in table if not table[n].layered]
    first = [o for o in outer if o[0] in ("embed", "pos")]
    return first + [(n, layer) for layer in range(config.L) for n in layered] + outer[len(first) :]


def bin_plan(config):
    """[(name, shape)] of a llama2.c file: each weight of all layers, then the next."""
    table, plan = model.weight_table(config), []
    for name in BIN_ORDER:
        if name == "rope":
            plan.append(("the RoPE tables", (2, config.P, config.H // 2)))
        elif name in table:
            plan += [place(config, "bin", name, layer)[:2] for layer in (range(config.L) if table[name].layered else [None])]
    return plan


# ---------------------------------------------------------------------------------------------------------------- reading


def open_weights(path, config, step=None, difference=False):
    """(config with the file's V, view, checksums): ValueError, naming the tensor and both shapes, unless every tensor is there and nothing else.

    view(name, layer) -> read; read(index) -> that slice of the weight in our layout and the file's dtype. checksums: of a run, name -> bits_sum of the whole array; else
    empty. step: of a run, which checkpoint (None: the last).
    """
    kind, where = kind_of(path), file_of(path)
    if kind != "easylm":
        config = dataclasses.replace(config, V=model_config(path, difference=difference).V)
    if kind == "run":
        return config, *run_view(path, config, resolve_step(path, step))
    if kind == "bin":
        index = formats.bin_index(path, bin_plan(config))
        del index["the RoPE tables"]
    else:
        index = formats.safetensors_index(path) if kind == "hf" else formats.easylm_index(where)
    prefix = ""
    if kind == "hf":
        index = {n: t for n, t in index.items() if not BUFFERS.search("." + n)}
        prefix = "transformer." if config.family == "gpt2" and not any(n.startswith("transformer.") for n in index) else ""  # GPT2Model's files leave it out
    if kind == "easylm" and (embed := index.get(model.weight_table(config)["embed"].easylm)):
        config = dataclasses.replace(config, V=embed.shape[0])

    wanted = {p.name.removeprefix(prefix): p.shape for p in (place(config, kind, *o) for o in order(config))}
    for name, shape in wanted.items():
        if name not in index:
            hint = "its config says that the output matrix is not the embedding: set tie_word_embeddings true, or copy the file that has it" if "lm_head" in name else "copy the model whole"
            raise ValueError(f"{where} has no tensor {name}, expected {shape}: {hint}")
        if index[name].shape != shape:
            raise ValueError(f"{where}: tensor {name} has shape {index[name].shape}, expected {shape}: the file and its config (or preset) are of different models")
        if index[name].dtype == np.uint32 and not difference:
            raise ValueError(f"{where}: tensor {name} is a difference to a base model: python checkpoint.py recover BASE {path} OUT gives the model")
    for name in index.keys() - wanted.keys():
        hint = "its config says that the output matrix is the embedding: set tie_word_embeddings false" if "lm_head" in name else "the file and its config (or preset) are of different models"
        raise ValueError(f"{where}: unexpected tensor {name} of shape {index[name].shape}: {hint}")

    def view(name, layer):
        p = place(config, kind, name, layer)
        x = index[p.name.removeprefix(prefix)].view()
        x = x.T if p.transposed else x
        x = x if p.part is None else x[..., p.part]
        if p.interleaved:
            columns = half_split(config, x.shape[1])
            return lambda at: x[at[0]][:, columns[at[1]]]
        return lambda at: x[at]

    return config, view, {}


def read_weights(path, config, step=None, difference=False):
    """(name, layer or None, array) of every weight of a model path, one at a time, in `order`: our layout, the file's vocabulary rows, float32 (a difference: as stored)."""
    config, view, sums = open_weights(path, config, step, difference)
    for name, layer in order(config):
        x = view(name, layer)((slice(None),) * len(model.weight_table(config)[name].dims))
        x = np.array(x, x.dtype if difference else np.float32, order="C")
        if sums:
            sums[name] = (sums[name] - bits_sum(x)) % 2**32
            if sums[name] and layer in (None, config.L - 1):
                raise damaged(path, resolve_step(path, step), f"tensor {name} has not the checksum it was saved with")
        yield name, layer, x


def load(path, config, mesh, layout, dtype=jnp.float32, step=None):
    """The weights of a model path straight into their shards: name -> array, as model.initialise makes them.

    On the host there is one device's slice of one layer of one weight at a time, in `dtype`; each process reads only the slices of its own devices. Where config.V
    exceeds the file's vocabulary (role tokens), the added rows are the mean of the file's rows; padding rows are zero.
    """
    there, view, sums = open_weights(path, config, step)
    if there.V > config.V:
        raise ValueError(f"{path} has {there.V} vocabulary rows, more than the {config.V} ids of the tokenizer: use the tokenizer it was made with")
    whole, weights = model.shapes(config), {}
    spec = sharding.shardings(layout.stacked(config), mesh)
    for name, row in model.weight_table(config).items():
        if not row.layered:
            read = view(name, None)
            weights[name] = put(vocabulary_rows(read, there, config) if row.dims[0] == "V" else read, whole[name], spec[name], dtype)
            continue
        blank, write = stack_of(whole[name], jnp.dtype(dtype), spec[name])
        stack = blank()
        for layer in range(config.L):
            stack = write(stack, put(view(name, layer), whole[name][1:], NamedSharding(mesh, layout.specs[name]), dtype), layer)
        weights[name] = stack
    if sums and there.V == config.V and dtype == jnp.float32:
        wrong = [name for name, want in jax.device_get(bits_sums(weights)).items() if sums[name] != want]
        if wrong:
            raise damaged(path, resolve_step(path, step), f"tensor {wrong[0]} has not the checksum it was saved with")
    return weights


@functools.cache
def stack_of(shape, dtype, spec):
    """Two jitted functions: () -> zeros sharded by spec; (stack, piece, layer) -> the stack with that layer written, in place."""
    blank = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=spec)
    return blank, jax.jit(lambda stack, piece, layer: lax.dynamic_update_index_in_dim(stack, piece, layer, 0), donate_argnums=0, out_shardings=spec)


def put(read, shape, spec, dtype):
    """An array of `shape` sharded by `spec`, read slice by slice; on the host there is one slice at a time, whatever the number of devices."""
    holders = {}  # a slice -> the devices that hold it
    for device, index in spec.addressable_devices_indices_map(shape).items():
        holders.setdefault(tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True)), []).append(device)
    pieces = []
    for bounds, devices in holders.items():
        piece = np.array(read(tuple(slice(*b) for b in bounds)), dtype, order="C")  # a copy: never the file's own pages under a device array
        pieces += [jax.device_put(piece, device) for device in devices]
        jax.block_until_ready(pieces[-len(devices) :])
    return jax.make_array_from_single_device_arrays(shape, spec, pieces)


def vocabulary_rows(read, there, config):
    """read() of a [V, D] weight grown from the file's rows to the padded vocabulary: added tokens get the mean of the file's rows, padding zero."""
    mean_D = np.zeros(config.D)
    if config.V > there.V:
        for a in range(0, there.V, 4096):
            mean_D += np.sum(read((slice(a, min(a + 4096, there.V)), slice(None))), axis=0, dtype=np.float64) / there.V

    def grown(at):
        (start, end, _), columns = at[0].indices(config.padded_vocab), slice(*at[1].indices(config.D))
        out = np.zeros((end - start, columns.stop - columns.start), np.float32)
        old, new = max(there.V - start, 0), max(config.V - start, 0)
        if old:
            out[:old] = read((slice(start, min(end, there.V)), columns))
        out[old:new] = mean_D[None, columns]
        return out

    return grown


def fingerprint(path, step=None):
    """sha256 over a model's files: names, sizes and 64 blocks of each (a small file whole), so that 13B weights take a second."""
    kind, where = kind_of(path), pathlib.Path(file_of(path))
    files = [where]
    if kind == "run":
        where = checkpoint_dir(path, resolve_step(path, step))
        files = sorted(p for p in where.rglob("*") if p.is_file())
    elif kind == "hf":
        files = [where / "config.json", *sorted(where.glob("*.safetensors"))]
    digest, block = hashlib.sha256(), 65536
    for file in files:
        size = file.stat().st_size
        digest.update(f"{'' if file == where else file.relative_to(where)} {size}\n".encode())
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
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()) if folder.is_dir() else []


def resolve_step(run, step=None):
    there = steps(run)
    if not there:
        raise ValueError(f"{run} has no whole checkpoint: train it first")
    if step is not None and step not in there:
        raise ValueError(f"{run} has no checkpoint of step {step}: there are {', '.join(map(str, there))}")
    return there[-1] if step is None else step


def run_array(folder, name):
    """The array `name` of Orbax's store of a checkpoint, opened for reading slices."""
    spec = {"driver": "zarr", "kvstore": {"driver": "ocdbt", "base": f"file://{folder}/state/", "path": f"{name}/"}}
    return tensorstore.open(spec, context=tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**28}}), open=True, read=True).result()


def run_record(run, step):
    """What Saver.save wrote beside the arrays of a checkpoint: {"meta": ..., "sums": {array: bits_sum}}."""
    try:
        record = json.loads((checkpoint_dir(run, step) / "meta" / "metadata").read_text(encoding="utf-8"))
        return {"meta": record["meta"], "sums": dict(record["sums"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(run, step, f"meta: {error}") from None


def run_view(run, config, step):
    """open_weights' (view, checksums) of a run: slices of the stacked arrays, straight from Orbax's store (Saver.save makes each layer a chunk)."""
    folder, whole, stores = checkpoint_dir(run, step), model.shapes(config), {}
    sums = {name.removeprefix("weights."): n for name, n in run_record(run, step)["sums"].items() if name.startswith("weights.")}
    if sums.keys() != whole.keys():
        raise ValueError(f"{folder}: it holds the weights {', '.join(sums)}, expected {', '.join(whole)}: run.json and the checkpoint are of different models")
    for name in whole:
        try:
            stores[name] = run_array(folder, f"weights.{name}")
        except ValueError as error:
            raise damaged(run, step, f"tensor {name}: {error}") from None
        if stores[name].shape != whole[name]:
            raise ValueError(f"{folder}: tensor {name} has shape {stores[name].shape}, expected {whole[name]}: run.json and the checkpoint are of different models")

    def view(name, layer):
        store = stores[name] if layer is None else stores[name][layer]
        store = store[: config.V] if model.weight_table(config)[name].dims[0] == "V" else store

        def read(at):
            try:
                return store[at].read().result()
            except ValueError as error:
                raise damaged(run, step, f"tensor {name}: {error}") from None

        return read

    return view, sums


def bits_sum(x):
    """Sum modulo 2^32 of the bit patterns of a numpy array, as an int: the same whatever the mesh, and one flipped bit changes it."""
    return int(np.sum(np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}"), dtype=np.uint32))


@jax.jit
def bits_sums(tree):
    """bits_sum of every array of a tree of sharded arrays, uint32, where they are."""
    unsigned = {2: jnp.uint16, 4: jnp.uint32}
    return jax.tree.map(lambda x: jnp.sum(lax.bitcast_convert_type(x, unsigned[x.dtype.itemsize]), dtype=jnp.uint32), tree)


def whole(run, step):
    """Whether all of a checkpoint can be read and is what was saved."""
    try:
        for name, want in run_record(run, step)["sums"].items():
            store = run_array(checkpoint_dir(run, step), name)
            slices = range(store.shape[0]) if store.rank > 1 else [...]
            if sum(bits_sum(store[i].read().result()) for i in slices) % 2**32 != want:
                return False
        return True
    except ValueError:
        return False


def damaged(run, step, error):
    """The ValueError for a checkpoint that cannot be read: says which earlier one can."""
    earlier = next((s for s in reversed(steps(run)) if s < step and whole(run, s)), None)
    remedy = f"step {earlier} is whole, remove this folder to go on from it" if earlier is not None else "no earlier one is whole, start again"
    return ValueError(f"the checkpoint of step {step} in {checkpoint_dir(run, step)} is damaged ({' '.join(str(error).split())[:200]}): {remedy}")


def named(tree):
    """[(name, leaf)] of a tree of dicts, named as Orbax names its arrays."""
    return [(jax.tree_util.keystr(path, simple=True, separator="."), x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


class Saver:
    """A run's checkpoints: saved in the background, whole or not at all, the last `keep` of them kept (0 or None: all)."""

    def __init__(self, run_dir, keep=None):
        import orbax.checkpoint as ocp  # half a second that readers need not wait

        self.run, self.ocp = pathlib.Path(run_dir).resolve(), ocp
        options = ocp.CheckpointManagerOptions(max_to_keep=keep or None, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.run / "checkpoints", options=options)

    def save(self, step, state, meta):
        """Start saving a tree of dicts of arrays; returns when they are copied, so that they may be donated. meta: what JSON holds."""
        ocp = self.ocp
        chunked = jax.tree.map(lambda x: ocp.SaveArgs(shard_axes=(0,) if x.ndim > 2 else ()), state)  # a layer a chunk: run_view reads no other
        record = {"meta": meta, "sums": {name: int(n) for name, n in named(jax.device_get(bits_sums(state)))}}
        self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state, save_args=chunked), meta=ocp.args.JsonSave(record)), force=True)

    def restore(self, state_like, step=None):
        """(state, meta) of a step (None: the last), checked against the checksums it was saved with. state_like: ShapeDtypeStructs with shardings, of any mesh.

        Read as the weights of other models are, slice by slice: Orbax's own restore floods stderr where a file is damaged, and lets a flipped bit pass.
        """
        step = resolve_step(self.run, step)
        folder, record, leaves = checkpoint_dir(self.run, step), run_record(self.run, step), []
        wanted = dict(named(state_like))
        other = next(iter(wanted.keys() ^ record["sums"].keys()), None)
        for name, x in wanted.items() if other is None else ():
            try:
                store = run_array(folder, name)
                if (store.shape, store.dtype.numpy_dtype) != (x.shape, x.dtype):
                    other = f"{name} ({store.dtype.name} {store.shape}, expected {x.dtype.name} {x.shape})"
                    break
                leaves.append(put(lambda at, store=store: store[at].read().result(), x.shape, x.sharding, x.dtype))
            except ValueError as error:
                raise damaged(self.run, step, f"{name}: {error}") from None
        if other is not None:
            raise ValueError(f"{folder} holds another state than this run's, {other} differs: use the flags it was made with")
        state = jax.tree.unflatten(jax.tree.structure(state_like), leaves)
        for name, n in named(jax.device_get(bits_sums(state))):
            if n != record["sums"][name]:
                raise damaged(self.run, step, f"{name} has not the checksum it was saved with")
        return state, record["meta"]

    def steps(self):
        return steps(self.run)

    def wait(self):
        self.manager.wait_until_finished()

    def close(self):
        self.manager.close()


# ---------------------------------------------------------------------------------------------------------------- writing


def file_arrays(config, kind, weights, dtype):
    """(name in the file, array) from (name, layer, array) in `order`: q, k and v joined, dimensions and RoPE's columns as the file has them, cast."""
    joined = {}
    for (name, layer, x), due in zip(weights, order(config), strict=True):
        assert (name, layer) == due, f"{name} {layer} came where {due} was due"
        p = place(config, kind, name, layer)
        if p.interleaved:
            x = x[:, np.argsort(half_split(config, x.shape[1]))]
        if p.part is not None:
            joined.setdefault(p.name, []).append(x)
            if not p.closes:
                continue
            x = np.concatenate(joined.pop(p.name), axis=-1)
        with np.errstate(over="ignore"):
            y = np.ascontiguousarray(x.T if p.transposed else x).astype(dtype, copy=False)
        if y.dtype == np.float16 and not np.array_equal(np.isinf(x), np.isinf(y.T if p.transposed else y)):
            raise ValueError(f"tensor {p.name} holds numbers beyond float16's 65504: use --dtype bfloat16 or float32")
        yield p.name, y


def write_hf(dst, config, weights, tok, dtype=np.float32, marks=None, shard_bytes=formats.SHARD_BYTES):
    """A Hugging Face folder: config.json, safetensors (in shards), tokenizer files (tok None: none). One tensor is in memory at a time.

    weights: (name, layer, array) as read_weights gives them. marks: a dict of more entries for config.json, read when the weights are through.
    """
    plan = [p[:2] for p in (place(config, "hf", *o) for o in order(config)) if p.closes]
    with formats.beside(dst, folder=True) as tmp:
        tmp.mkdir()
        formats.write_safetensors(tmp, plan, file_arrays(config, "hf", weights, dtype), dtype, shard_bytes)
        ends = {} if tok is None else {"bos_token_id": tok.bos, "eos_token_id": tok.eos}
        formats.write_json(tmp / "config.json", formats.hf_record(config) | ends | {"torch_dtype": np.dtype(dtype).name} | (marks or {}))
        formats.write_json(tmp / "generation_config.json", ends)
        if tok is not None:
            tokenizer.write_hf(tok, tmp)


def write_easylm(dst, config, weights, dtype=np.float32, marks=None):
    """An EasyLM stream, read there as params::DST, and DST.json beside it with the config, so that no preset is needed here."""
    dst = file_of(dst)
    with formats.beside(f"{dst}.json") as record, formats.beside(dst) as tmp:
        formats.write_easylm_stream(tmp, file_arrays(config, "easylm", weights, dtype))
        formats.write_json(record, {"config": dataclasses.asdict(config), "dtype": np.dtype(dtype).name} | (marks or {}))


# --------------------------------------------------------------------------------------------------------------- programs


def pairs(base, base_config, other, config, difference=False):
    """(name, layer, base array, other array) of two model paths; the base's vocabulary is grown by rows of zeros: added tokens have no base."""
    there, wanted = model.shapes(dataclasses.replace(base_config, V=config.V), padded=False), model.shapes(config, padded=False)
    for name in there | wanted:
        if there.get(name) != wanted.get(name):
            raise ValueError(f"{base} and {other} are of different models: {name} has shape {there.get(name)} in the one, {wanted.get(name)} in the other")
    if base_config.V > config.V:
        raise ValueError(f"{base} has {base_config.V} vocabulary rows, {other} only {config.V}: the base comes first")
    both = zip(read_weights(base, base_config), read_weights(other, config, difference=difference), strict=True)
    for (name, layer, b), (_, _, x) in both:
        yield name, layer, np.concatenate([b, np.zeros((len(x) - len(b), b.shape[1]), b.dtype)]) if len(b) < len(x) else b, x


def subtract(base, base_config, tuned, config, floats, marks):
    """The weights of `diff`; marks["difference"] is there when they are through.

    Differences are those of float32's bit patterns, modulo 2^32, so that the tuned weights come back as they were: with floats, base + (tuned - base) loses bits of a
    tuned number much smaller than its base. floats: tuned - base all the same, as Koala was released.
    """
    of = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, t in pairs(base, base_config, tuned, config):
        of["base"].update(b.data)
        of["tuned"].update(t.data)
        yield name, layer, t - b if floats else t.view(np.uint32) - b.view(np.uint32)
    marks["difference"] = {"form": "float32" if floats else "float32 bit patterns, modulo 2^32"} | {f"{n}_sha256": d.hexdigest() for n, d in of.items()}
    if not floats:
        marks["model_type"] = "difference"  # transformers would take the bit patterns for weights


def add(base, base_config, diff, config, record):
    """The weights of `recover`: base + difference, in the form that the file's dtype tells; ValueError at the end where they are not those that `diff` saw."""
    of = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, d in pairs(base, base_config, diff, config, difference=True):
        t = (b.view(np.uint32) + d).view(np.float32) if d.dtype == np.uint32 else b + d.astype(np.float32)
        of["base"].update(b.data)
        of["tuned"].update(t.data)
        yield name, layer, t
    if not record:
        return say(f"note: {diff} does not say what its base was (Koala's and Vicuna's do not): base + difference, unchecked")
    if of["base"].hexdigest() != record["base_sha256"]:
        raise ValueError(f"{base} is not the base that {diff} was made with (its weights have another sha256): use that one")
    same = of["tuned"].hexdigest() == record["tuned_sha256"]
    if not same and record["form"] != "float32":
        raise ValueError(f"{diff} is damaged (base + difference has not the sha256 of the tuned weights): copy it again")
    say("equal to the tuned weights bit for bit" if same else "equal to the tuned weights up to the rounding of base + difference in float32")


def find_tokenizer(src, named, config, dst):
    """The tokenizer that goes with a model path, with roles where its vocabulary has them; None, said on stderr, where there is none."""
    kind, where = kind_of(src), pathlib.Path(file_of(src))
    where = named or {"run": where / "tokenizer", "hf": where}.get(kind, where.parent)
    try:
        tok = tokenizer.load(str(where), roles=False)
    except ValueError as error:
        if named:
            raise
        return say(f"note: {dst} gets no tokenizer files, --tokenizer names some ({error})")
    tokenizer.check_size(tok, config.V - 2 * (config.V == tok.base_size + 2), src)
    return tokenizer.load(str(where), roles=config.V > tok.base_size)


def say(text):
    print(text, file=sys.stderr, flush=True)


def progress(weights, config):
    """The same weights, with a line on stderr of how far they are: twice a second on a terminal, every ten seconds elsewhere."""
    total, done, started, terminal = model.parameter_count(config), 0, time.time(), sys.stderr.isatty()
    shown = started
    for name, layer, x in weights:
        yield name, layer, x
        done += x.size
        now = time.time()
        if now - shown > (0.5 if terminal else 10):
            shown = now
            line = f"{done / total:4.0%}  {name if layer is None else f'{name} of layer {layer}'}  eta {(now - started) * (total - done) / done:.0f} s"
            print(f"\r{line:<60}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print(f"\r{'':<60}\r", end="", file=sys.stderr)


def run(args):
    marks, source = {}, {"convert": "src", "diff": "tuned", "recover": "diff"}[args.command]
    source = getattr(args, source)
    config = model_config(source, args.model_preset, difference=args.command == "recover")
    dtype = jnp.dtype(args.dtype)
    if args.command == "convert":
        weights = read_weights(source, config, args.step)
    else:
        base_config = model_config(args.base, args.model_preset)
        if args.command == "diff":
            dtype = np.dtype(np.float32 if args.float else np.uint32)
            weights = subtract(args.base, base_config, source, config, args.float, marks)
        else:
            weights = add(args.base, base_config, source, config, about(source).get("difference"))
    weights = progress(weights, config)
    if args.to == "hf":
        write_hf(args.dst, config, weights, find_tokenizer(source, args.tokenizer, config, args.dst), dtype, marks)
    else:
        write_easylm(args.dst, config, weights, dtype, marks)
    print(f"{'params::' * (args.to == 'easylm')}{file_of(args.dst)}: {model.parameter_count(config):,} weights, {dtype.name}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command, *paths in (("convert", "src", "dst"), ("diff", "base", "tuned", "dst"), ("recover", "base", "diff", "dst")):
        sub = commands.add_parser(command)
        for path in paths:
            sub.add_argument(path, metavar=path.upper(), help="where to write: a new path, or an empty folder" if path == "dst" else MODEL_PATHS)
        sub.add_argument("--to", choices=("hf", "easylm"), default="hf", help="Hugging Face folder or EasyLM stream [default: hf]")
        sub.add_argument("--tokenizer", metavar="PATH", help="for --to hf [default: the one lying with the model]")
        sub.add_argument("--model-preset", metavar="NAME", help="what an EasyLM stream holds: " + ", ".join(model.PRESETS))
        sub.set_defaults(dtype="float32")
        if command == "diff":
            sub.add_argument("--float", action="store_true", help="tuned - base in float32, as Koala was released [default: of bit patterns, recovered exactly]")
        else:
            sub.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written [default: float32]")
        if command == "convert":
            sub.add_argument("--step", type=int, metavar="N", help="which checkpoint of a run [default: the last]")
    args = parser.parse_args(argv)
    with contextlib.suppress(ValueError):  # not the main thread: no signals to take
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what is half-written is removed
    try:
        run(args)
    except (ValueError, OSError) as error:
        say(f"checkpoint.py: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
