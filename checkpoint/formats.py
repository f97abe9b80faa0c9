"""The weight files of other projects: Hugging Face's config.json and safetensors, EasyLM's streams, llama2.c's .bin.

Each format here is three things: the Config that the file states, an index of where its tensors lie, and (for the first
two) how it is written. Names and layouts are the file's own; checkpoint.py turns them into ours. Files are untrusted:
every span is held against the file's size before anything is read. No file is read whole: a Tensor is mapped into
memory when it is looked at. Left out: pickled PyTorch files (opening one can run code), quantised types, other
architectures.
"""

import contextlib
import json
import math
import mmap
import os
import pathlib
import shutil
import struct
from typing import NamedTuple

import ml_dtypes
import msgpack
import numpy as np

import model

# safetensors' names; U32 is for differences
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U32": np.uint32,
}
SHARD_BYTES = 5_000_000_000  # of one safetensors file, as Hugging Face cuts them
CHUNK_BYTES = 2**30  # flax cuts arrays of more bytes than this into pieces


class Tensor(NamedTuple):
    """Where a file keeps a tensor."""

    dtype: object
    shape: tuple
    parts: tuple  # (path, byte offset, elements), to be laid end to end: one, but for EasyLM's arrays over 1 GiB

    def view(self):
        """The tensor as numpy sees the file: pages are read where touched, and given back when the view goes."""
        flat = [np.memmap(path, self.dtype, "r", offset, (n,)) for path, offset, n in self.parts]
        return (flat[0] if len(flat) == 1 else np.concatenate(flat)).reshape(self.shape)


def cut_short(path, name, shape, dtype, held):
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return ValueError(
        f"{path} is truncated: of tensor {name}, expected {tuple(shape)} ({size} bytes), the file holds "
        f"{max(held, 0)} bytes: copy it again"
    )


def read_json(path):
    """The object in a JSON file; ValueError where it is damaged."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: copy it again")
    return value


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def beside(dst, folder=False):
    """A path beside `dst` to write to; renamed to dst when all went well, removed when not.

    ValueError where dst is there; with `folder`, an empty folder may be.
    """
    dst = pathlib.Path(dst)
    if dst.exists() and not (folder and dst.is_dir() and not any(dst.iterdir())):
        raise ValueError(f"{dst} is there already: name another, or remove it")
    dst.parent.mkdir(parents=True, exist_ok=True)
    tmp = dst.with_name(f".{dst.name}.{os.getpid()}.tmp")
    try:
        yield tmp
        os.replace(tmp, dst)
    except BaseException:
        shutil.rmtree(tmp) if tmp.is_dir() else tmp.unlink(missing_ok=True)
        raise


# --------------------------------------------------------------------------------------------------------- Hugging Face


def hf_config(c, where):
    """Config from the object in a config.json: of a LLaMA or GPT-2, without anything that would change the arithmetic.

    ValueError for what is not here. `where` is the file's name.
    """

    def need(key, *allowed):
        if c.get(key, allowed[0]) not in allowed:
            only = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{where}: {key} {c[key]!r} is not supported, only {only}: use a model without it"
            )

    name = (c.get("architectures") or [None])[0]
    families = {"LlamaForCausalLM": "llama", "GPT2LMHeadModel": "gpt2", "GPT2Model": "gpt2"}
    family = families.get(name, c.get("model_type") if name is None else None)
    if family not in ("llama", "gpt2"):
        raise ValueError(
            f"{where}: architecture {name or c.get('model_type')} is not supported: use a "
            "LlamaForCausalLM, GPT2LMHeadModel or GPT2Model"
        )
    need("quantization_config", None)
    damage = "copy it again from where the model came from"
    theta, scaling = 10000.0, None
    try:
        if family == "gpt2":
            need("activation_function", "gelu_new", "gelu_pytorch_tanh")
            need("scale_attn_weights", True)
            need("scale_attn_by_inverse_layer_idx", False)
            need("add_cross_attention", False)
            D, L, N, P = c["n_embd"], c["n_layer"], c["n_head"], c.get("n_positions", 1024)
            K, H, F, eps = N, D // N, c.get("n_inner") or 4 * D, c.get("layer_norm_epsilon", 1e-5)
        else:
            need("hidden_act", "silu")
            need("attention_bias", False)
            need("mlp_bias", False)
            D, L, N = c["hidden_size"], c["num_hidden_layers"], c["num_attention_heads"]
            K, H, F = (
                c.get("num_key_value_heads") or N,
                c.get("head_dim") or D // N,
                c["intermediate_size"],
            )
            P, eps = c.get("max_position_embeddings", 2048), c.get("rms_norm_eps", 1e-6)
            rope = (c.get("rope_parameters") or {}) | (
                c.get("rope_scaling") or {}
            )  # transformers 5's, and the older
            theta = float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0)
            kind, turned = (
                rope.get("rope_type", rope.get("type", "default")),
                rope.get("partial_rotary_factor"),
            )
            if (
                kind not in ("default", "llama3")
                or (turned or c.get("partial_rotary_factor") or 1.0) != 1.0
            ):
                raise ValueError(
                    f"{where}: RoPE of type {kind!r} ({rope}) is not supported, only all of 'default' and "
                    "'llama3': use a model without it"
                )
            if kind == "llama3":
                original = (
                    rope.get("original_max_position_embeddings")
                    or c["original_max_position_embeddings"]
                )
                scaling = (
                    *(float(rope[k]) for k in ("factor", "low_freq_factor", "high_freq_factor")),
                    original,
                )
        sizes = dict(V=c["vocab_size"], D=D, L=L, N=N, K=K, H=H, F=F, P=P)
        for letter, n in sizes.items():
            if type(n) is not int or n < 1:
                raise ValueError(f"{where} gives {n!r} for a size ({letter}): {damage}")
        tied = bool(c.get("tie_word_embeddings", family == "gpt2"))
        return model.Config(
            family, **sizes, eps=float(eps), theta=theta, rope_scaling=scaling, tied=tied
        )
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}: {damage}") from None
    except TypeError as error:
        raise ValueError(f"{where} has a value of the wrong type ({error}): {damage}") from None


def hf_record(config):
    """config.json of a Config: what hf_config reads, and transformers 4 and 5."""
    c = config
    if c.family == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": c.V,
            "n_embd": c.D,
            "n_layer": c.L,
            "n_head": c.N,
            "n_inner": c.F,
            "n_positions": c.P,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": c.eps,
            "tie_word_embeddings": c.tied,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    scaling = None
    if c.rope_scaling:
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = {"rope_type": "llama3"} | dict(zip(keys, c.rope_scaling, strict=True))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.V,
        "hidden_size": c.D,
        "intermediate_size": c.F,
        "num_hidden_layers": c.L,
        "num_attention_heads": c.N,
        "num_key_value_heads": c.K,
        "head_dim": c.H,
        "hidden_act": "silu",
        "max_position_embeddings": c.P,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "rope_scaling": scaling,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": c.tied,
    }


def safetensors_index(folder):
    """name -> Tensor of a Hugging Face folder, one file or several."""
    folder = pathlib.Path(folder)
    listing = folder / "model.safetensors.index.json"
    if not listing.exists():
        if (folder / "model.safetensors").exists():
            return safetensors_header(folder / "model.safetensors")
        why = "copy the folder whole"
        if any(folder.glob("pytorch_model*.bin")):
            why = "its pickled PyTorch files can run code when opened: convert them with transformers' save_pretrained"
        raise ValueError(f"{folder} has neither model.safetensors nor {listing.name}: {why}")
    places = read_json(listing).get("weight_map")
    local = lambda file: isinstance(file, str) and file == os.path.basename(file)
    if not isinstance(places, dict) or not all(map(local, places.values())):
        raise ValueError(f"{listing} has no weight_map of file names in this folder: copy it again")
    index, by_file = (
        {},
        {
            file: [n for n, f in places.items() if f == file]
            for file in sorted(set(places.values()))
        },
    )
    for file, listed in by_file.items():
        if not (folder / file).exists():
            others = " and others" * (len(listed) > 1)
            raise ValueError(
                f"{folder} lacks {file}, which should hold tensor {listed[0]}{others}: copy it too"
            )
    for file, listed in by_file.items():
        found = safetensors_header(folder / file)
        for name in set(found) ^ set(listed):
            raise ValueError(
                f"{folder}: {listing.name} and {file} disagree on whether tensor {name} lies there: copy "
                "both again"
            )
        index |= found
    return index


def safetensors_header(path):
    """name -> Tensor of one safetensors file: 8 bytes of length, JSON, then the data without gaps or overlaps."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(size - 8, 100_000_000):
            raise ValueError(
                f"{path}: its header of {n} bytes does not fit its {size} bytes: truncated or no "
                "safetensors file, copy it again"
            )
        try:
            header = json.loads(file.read(n))
            header.pop("__metadata__", None)
            spans = sorted(
                (*t["data_offsets"], name, t["dtype"], tuple(t["shape"]))
                for name, t in header.items()
            )
            good = all(
                type(x) is int and x >= 0 for a, b, _, _, shape in spans for x in (a, b, *shape)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            good = False
    if not good:
        raise ValueError(f"{path}: its header is damaged: copy it again")
    index, at = {}, 0
    for start, end, name, dtype, shape in spans:
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name} is of type {dtype}: only {', '.join(DTYPES)} are read, use the "
                "model's unquantised files"
            )
        elements = math.prod(shape)
        need = elements * np.dtype(DTYPES[dtype]).itemsize
        if start != at or end - start != need:
            raise ValueError(
                f"{path}: tensor {name} of shape {shape} takes {need} bytes from byte {at} of the data, "
                f"its header says {start} to {end}: copy it again"
            )
        if 8 + n + end > size:
            raise cut_short(path, name, shape, DTYPES[dtype], size - 8 - n - start)
        index[name], at = Tensor(DTYPES[dtype], shape, ((path, 8 + n + start, elements),)), end
    if 8 + n + at != size:
        raise ValueError(f"{path}: {size - 8 - n - at} bytes follow its last tensor: copy it again")
    return index


def write_safetensors(folder, plan, arrays, dtype, shard_bytes=SHARD_BYTES):
    """Write tensors into model.safetensors, or into shards of at most shard_bytes and their index.

    plan: [(name, shape)]; arrays: (name, array) in the same order. Headers, which come first in a file, follow from the
    plan: one tensor is in memory at a time.
    """
    dtype = np.dtype(dtype)
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
    arrays = iter(arrays)
    for file_name, shard in zip(names, shards, strict=True):
        header = json.dumps({"__metadata__": {"format": "pt"}} | shard).encode()
        header += b" " * (-len(header) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, entry in shard.items():
                given, x = next(arrays)
                assert (given, x.shape, x.dtype) == (name, entry["shape"], dtype), (
                    f"{given} came where {name} was due"
                )
                file.write(x.view(np.uint8).data)
    assert next(arrays, None) is None
    if len(shards) > 1:
        total = sum(math.prod(shape) for _, shape in plan) * dtype.itemsize
        where = {
            name: file_name
            for file_name, shard in zip(names, shards, strict=True)
            for name in shard
        }
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": where},
        )


# --------------------------------------------------------------------------------------------------------------- EasyLM

BLOBS = {
    "bin": b"\xc4\xc5\xc6",
    "ext": b"\xc7\xc8\xc9",
    "str": b"\xd9\xda\xdb",
}  # msgpack: lengths of 1, 2, 4 bytes


def easylm_index(path):
    """name -> Tensor of an EasyLM stream: msgpack pairs (key tuple, bytes), the bytes flax's msgpack of one array.

    A leading "params" of keys is dropped. Only headers are touched. Source: EasyLM checkpoint.py
    `StreamingCheckpointer`, flax serialization.py.
    """
    size, index, at, name = os.path.getsize(path), {}, 0, "the first"
    try:
        if not size:
            raise ValueError("empty")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            while at < size:
                pair, at = unpack(data, at, msgpack.Unpacker.read_array_header)
                key, at = unpack(data, at)
                if (
                    pair != 2
                    or not isinstance(key, (list, tuple))
                    or not all(isinstance(k, str) for k in key)
                ):
                    raise ValueError("no pair of key and bytes")
                name = "/".join(key[1:] if key[0] == "params" else key)
                start, at = blob(data, at)
                tensor = flax_array(path, data, start)
                _, last, n = tensor.parts[-1]
                elements = sum(n for *_, n in tensor.parts)
                if (
                    name in index
                    or last + n * tensor.dtype.itemsize != at
                    or elements != math.prod(tensor.shape)
                ):
                    raise ValueError("twice, or of a length that does not fit its shape")
                if at > size:
                    raise cut_short(path, name, tensor.shape, tensor.dtype, size - last)
                index[name] = tensor
    except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
        if "is truncated" in str(error):
            raise
        raise ValueError(
            f"{path} is truncated, damaged or no EasyLM stream of params (byte {at}, at or after tensor "
            f"{name}; {error}): copy it again"
        ) from None
    return index


def unpack(data, at, read=msgpack.Unpacker.unpack):
    """(value, where it ends) of the small msgpack object (or with `read` only the container's header) at byte `at`."""
    unpacker = msgpack.Unpacker(raw=False)
    unpacker.feed(data[at : at + 4096])
    value = read(unpacker)
    return value, at + unpacker.tell()


def blob(data, at):
    """(start, end) of the payload of the bin, ext or str object at byte `at`, without reading it."""
    for kind, codes in BLOBS.items():
        if (power := codes.find(data[at])) >= 0:
            start = at + 1 + (1 << power)
            size = int.from_bytes(data[at + 1 : start], "big")
            start += kind == "ext"  # one byte of type
            return start, start + size
    raise ValueError("no bytes where bytes were due")


def flax_array(path, data, at):
    """The Tensor of flax's msgpack of one array: an ext object of (shape, dtype name, bytes), or a map of several."""
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
        return Tensor(dtype, tuple(shape), ((path, start, (end - start) // dtype.itemsize),))
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
            parts.append(flax_array(path, data, at))
            at = blob(data, at)[1]
    return Tensor(parts[0].dtype, shape, tuple(p for part in parts for p in part.parts))


def write_easylm_stream(path, arrays):
    """Write (name, array) pairs as EasyLM's StreamingCheckpointer does: headers by hand, so that no array is copied."""
    with open(path, "wb") as file:
        for name, x in arrays:
            pieces = flax_pieces(x)
            size = sum(len(head) + flat.nbytes for head, flat in pieces)
            if size >= 2**32:
                raise ValueError(
                    f"tensor {name} of shape {x.shape} is over 4 GiB, more than a msgpack object holds: "
                    "use --dtype bfloat16, or --to hf"
                )
            file.write(
                b"\x92" + msgpack.packb(("params", *name.split("/"))) + blob_header("bin", size)
            )
            for head, flat in pieces:
                file.write(head)
                file.write(flat.view(np.uint8).data)


def blob_header(kind, size):
    power = next(p for p in range(3) if size < 256 ** (1 << p))
    return BLOBS[kind][power : power + 1] + size.to_bytes(1 << power, "big")


def flax_pieces(x):
    """flax's msgpack of an array as [(header, the flat data that follows it), ...], several where it is over 1 GiB."""
    flat = x.reshape(-1)

    def one(shape, flat):
        inner = (
            b"\x93"
            + msgpack.packb(shape)
            + msgpack.packb(x.dtype.name)
            + blob_header("bin", flat.nbytes)
        )
        return blob_header("ext", len(inner) + flat.nbytes) + b"\x01" + inner, flat

    if x.nbytes <= CHUNK_BYTES:
        return [one(x.shape, flat)]
    step = CHUNK_BYTES // x.itemsize
    chunks = [one(c.shape, c) for c in (flat[i : i + step] for i in range(0, x.size, step))]
    shape = {str(i): n for i, n in enumerate(x.shape)}
    head = b"\x83" + b"".join(
        map(msgpack.packb, ("__msgpack_chunked_array__", True, "shape", shape, "chunks"))
    )
    head += msgpack.Packer().pack_map_header(len(chunks))
    return [(head * (i == 0) + msgpack.packb(str(i)) + h, c) for i, (h, c) in enumerate(chunks)]


# ------------------------------------------------------------------------------------------------------------- llama2.c


def bin_config(path):
    """Config from the header of a llama2.c .bin: seven int32; a negative vocabulary: the output matrix is its own."""
    with open(path, "rb") as file:
        head = file.read(28)
    D, F, L, N, K, V, P = struct.unpack("<7i", head) if len(head) == 28 else (0,) * 7
    if D == 0x616B3432:
        raise ValueError(
            f"{path} is llama2.c's format of version {F}: only 0 is read, export it with --version 0"
        )
    if min(D, F, L, N, K, abs(V), P) < 1 or D % N or N % K or D // N % 2:
        raise ValueError(
            f"{path} is no llama2.c file: its first 28 bytes are not seven sizes (dim, hidden, layers, "
            "heads, kv heads, vocabulary, context): copy it again, or name another"
        )
    return model.Config("llama", abs(V), D, L, N, K, D // N, F, P, 1e-5, tied=V > 0)


def bin_index(path, plan):
    """name -> Tensor of a llama2.c .bin: float32 tensors one after the other. plan: [(name, shape)] in that order."""
    size, at, index = os.path.getsize(path), 28, {}
    for name, shape in plan:
        n = math.prod(shape)
        if at + 4 * n > size:
            raise cut_short(path, name, shape, np.float32, size - at)
        index[name] = Tensor(np.dtype(np.float32), shape, ((path, at, n),))
        at += 4 * n
    if at != size:
        raise ValueError(
            f"{path} has {size} bytes, its header gives {at}: copy it again, or it is no llama2.c file"
        )
    return index
