"""Weights in and out: Hugging Face folders, EasyLM streams, llama2.c files, and this project's own runs.

    python -m checkpoint convert RUN DST --to hf      a model path (a run, params::STREAM, ...) -> a Hugging Face folder
    python -m checkpoint diff BASE TUNED OUT          what may be published where the base may not (as Koala was)
    python -m checkpoint recover BASE OUT TUNED       and back, bit for bit

A model is first indexed and checked whole: names, shapes, sizes (formats.py; of a run, store.py). Then one tensor at a
time is mapped into memory, and of it only the slices are read that this process's devices hold. Left out: pickled
PyTorch files (never opened: unpickling runs code), quantised weights, LoRA adapters, remote paths.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import re
import signal
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding

import model
import sharding
from checkpoint import formats
from checkpoint import runs as store
from checkpoint.names import file_names
from text import tokenizer

MODEL_PATHS = (
    "a run directory, a Hugging Face folder, params::FILE (an EasyLM stream) or a llama2.c .bin"
)
BUFFERS = re.compile(
    r"\.(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias)$"
)  # of older transformers: no weights
BIN_ORDER = (
    "embed",
    "attn_norm",
    "wq",
    "wk",
    "wv",
    "wo",
    "mlp_norm",
    "w1",
    "w2",
    "w3",
    "final_norm",
    "rope",
    "head",
)
DIFFERENT = "the file and its config (or preset) are of different models"

# ---------------------------------------------------------------------------------------------------------- model paths


def file_of(path):
    return str(path).removeprefix("params::")


def kind_of(path):
    """Which of "run", "hf", "easylm", "bin" a model path is; ValueError where it is none."""
    path, place = str(path), pathlib.Path(file_of(path))
    if "::" in str(place):
        raise ValueError(
            f"{path}: of EasyLM's forms only params::FILE is read: save the params alone, streaming"
        )
    if not place.exists():
        raise ValueError(f"{place} does not exist: a model is {MODEL_PATHS}")
    if path.startswith("params::"):
        if place.is_dir():
            raise ValueError(f"{path}: {place} is a folder: name the stream in it")
        return "easylm"
    if place.is_dir():
        kind = (
            "run"
            if (place / "run.json").exists()
            else "hf"
            if (place / "config.json").exists()
            else None
        )
        if kind is None:
            raise ValueError(
                f"{path} holds neither run.json nor config.json: a model is {MODEL_PATHS}"
            )
        return kind
    with open(place, "rb") as file:
        start = file.read(2)
    if start == b"PK" or start[:1] == b"\x80" or place.suffix in (".pt", ".pth", ".pkl"):
        raise ValueError(
            f"{path} is a pickled PyTorch file, which can run code when opened: convert it to safetensors "
            "(transformers' save_pretrained) and name the folder"
        )
    if place.suffix != ".bin":
        hint = (
            "name its folder"
            if place.suffix == ".safetensors"
            else f"for an EasyLM stream write params::{path}"
        )
        raise ValueError(f"{path} is none of {MODEL_PATHS}: {hint}")
    return "bin"


def about(path):
    """The JSON that says what a model path is: run.json, config.json, FILE.json of a stream written here; else {}."""
    kind, place = kind_of(path), pathlib.Path(file_of(path))
    place = {"run": place / "run.json", "hf": place / "config.json"}.get(
        kind, pathlib.Path(f"{place}.json")
    )
    return formats.read_json(place) if kind != "bin" and place.exists() else {}


def model_config(path, preset=None, difference=False):
    """The Config of a model path; its V is the file's. ValueError, one line, for what is no model or not supported.

    preset: for an EasyLM stream, which does not tell (one written here does). difference: `diff` may have written it.
    """
    kind, record = kind_of(path), about(path)
    if record.get("difference") and not difference:
        raise ValueError(
            f"{path} is a difference to a base model: `recover BASE {path} OUT` gives the model"
        )
    if kind == "bin":
        return formats.bin_config(path)
    if kind == "hf":
        return formats.hf_config(record, pathlib.Path(path) / "config.json")
    if record:
        try:  # dataclasses.asdict of a Config
            fields = record["config"]
            return model.Config(
                **fields
                | {"rope_scaling": fields["rope_scaling"] and tuple(fields["rope_scaling"])}
            )
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"{path} has no config of this project ({error}): copy it again"
            ) from None
    if not preset:
        raise ValueError(
            f"{path} does not say what model it is: name its preset (--model-preset; train.py: --model), "
            f"one of {', '.join(model.PRESETS)}"
        )
    return with_rows(model.preset(preset), formats.easylm_index(file_of(path)))


def with_rows(config, index):
    """The config with the vocabulary rows of an EasyLM stream."""
    embed = index.get(file_names(config)["embed"].easylm)
    return config if embed is None else dataclasses.replace(config, V=embed.shape[0])


# ----------------------------------------------------------------------------------- our weights as the files have them


class Place(NamedTuple):
    """How a file of some kind keeps one weight of ours."""

    name: str  # there
    shape: tuple  # of the whole tensor there
    transposed: bool
    part: (
        slice | None
    )  # of the (untransposed) last axis there: GPT-2's q, k or v, which are one tensor
    closes: bool  # the last part, or the only one
    interleaved: bool  # RoPE rotates neighbouring columns there, half-split ones here


def place(config, kind, name, layer):
    row, size = model.weight_table(config)[name], model.sizes(config, padded=False)
    file = file_names(config)[name]
    if kind == "easylm" and file.easylm is None:
        raise ValueError(f"EasyLM's models have no weight {name}: use --to hf")
    there, transposed = {
        "hf": (file.hf.format(layer), file.hf_transposed),
        "easylm": ((file.easylm or "").format(layer), file.easylm_transposed),
        "bin": (f"{name}[{layer}]" if row.layered else name, row.layered and len(row.dims) == 2),
    }[kind]
    shape, part = tuple(size[d] for d in row.dims), None
    if file.part is not None:
        bounds = np.cumsum([0, size["NH"], size["KH"], size["KH"]]).tolist()
        part, shape = slice(*bounds[file.part : file.part + 2]), shape[:-1] + (bounds[3],)
    shape = shape[::-1] if transposed else shape
    return Place(there, shape, transposed, part, file.part in (None, 2), file.rope and kind != "hf")


def half_split(config, width):
    """Columns of an interleaved (Meta's, EasyLM's, llama2.c's) q or k in our order: a head's even, then the odd."""
    return np.arange(width).reshape(-1, config.H // 2, 2).swapaxes(1, 2).reshape(-1)


def order(config):
    """(name, layer or None) of every weight: layer by layer, as files go."""
    table = model.weight_table(config)
    layered, outer = (
        [n for n in table if table[n].layered],
        [(n, None) for n in table if not table[n].layered],
    )
    first = [o for o in outer if o[0] in ("embed", "pos")]
    return first + [(n, layer) for layer in range(config.L) for n in layered] + outer[len(first) :]


def bin_plan(config):
    """[(name, shape)] of a llama2.c file: each weight of all layers, then the next; before the head two RoPE tables."""
    table, plan = model.weight_table(config), []
    for name in BIN_ORDER:
        if name == "rope":
            plan.append((name, (2, config.P, config.H // 2)))
        elif name in table:
            plan += [
                place(config, "bin", name, i)[:2]
                for i in (range(config.L) if table[name].layered else [None])
            ]
    return plan


# -------------------------------------------------------------------------------------------------------------- reading


def open_weights(path, config, step=None, difference=False):
    """(config with the file's V, view, checksums), or ValueError unless every tensor, and nothing else, is there.

    view(name, layer) -> read; read(index) -> that slice of the weight, in our layout and the file's dtype. checksums:
    of a run, name -> store.bits_sum of the whole array; else empty. step: of a run (None: the last). The message names
    the tensor and both shapes.
    """
    kind, where = kind_of(path), file_of(path)
    if kind != "easylm":
        config = dataclasses.replace(config, V=model_config(path, difference=difference).V)
    if kind == "run":
        return config, *run_view(path, config, store.resolve_step(path, step))
    index, prefix = (
        {"hf": formats.safetensors_index, "easylm": formats.easylm_index}.get(kind, lambda _: {})(
            where
        ),
        "",
    )
    if kind == "bin":
        index = formats.bin_index(path, bin_plan(config))
        del index["rope"]
    if kind == "hf":
        index = {n: t for n, t in index.items() if not BUFFERS.search("." + n)}
        if config.family == "gpt2" and not any(n.startswith("transformer.") for n in index):
            prefix = "transformer."  # GPT2Model's files leave it out
    if kind == "easylm":
        config = with_rows(config, index)

    wanted = {
        p.name.removeprefix(prefix): p.shape
        for p in (place(config, kind, *o) for o in order(config))
    }
    for name, shape in wanted.items():
        if name not in index:
            hint = "copy the model whole"
            if "lm_head" in name:
                hint = "its config says that the output matrix is not the embedding: set tie_word_embeddings true"
            raise ValueError(f"{where} has no tensor {name}, expected {shape}: {hint}")
        if index[name].shape != shape:
            raise ValueError(
                f"{where}: tensor {name} has shape {index[name].shape}, expected {shape}: {DIFFERENT}"
            )
        if index[name].dtype == np.uint32 and not difference:
            raise ValueError(
                f"{where}: tensor {name} is a difference to a base model: `recover` gives the model"
            )
    for name in index.keys() - wanted.keys():
        hint = DIFFERENT
        if "lm_head" in name:
            hint = "its config says that the output matrix is the embedding: set tie_word_embeddings false"
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


def run_view(run, config, step):
    """open_weights' (view, checksums) of a run: slices of the stacked arrays, from Orbax's store."""
    folder, whole, arrays = store.folder_of(run, step), model.shapes(config), {}
    with store.reading(run, step, "record"):
        sums = store.record_of(run, step)["sums"]
    sums = {
        name.removeprefix("weights."): n for name, n in sums.items() if name.startswith("weights.")
    }
    for name in sums.keys() ^ whole.keys():
        raise ValueError(
            f"{folder}: either it or run.json has no weight {name}: they are of different models"
        )
    for name in whole:
        with store.reading(run, step, name):
            arrays[name] = store.open_array(run, step, f"weights.{name}")
        if arrays[name].shape != whole[name]:
            raise ValueError(
                f"{folder}: tensor {name} has shape {arrays[name].shape}, expected {whole[name]}: it and "
                "run.json are of different models"
            )

    def view(name, layer):
        array = arrays[name] if layer is None else arrays[name][layer]
        array = array[: config.V] if model.weight_table(config)[name].dims[0] == "V" else array

        def read(at):
            with store.reading(run, step, name):
                return array[at].read().result()

        return read

    return view, sums


def read_weights(path, config, step=None, difference=False):
    """(name, layer or None, array) of every weight of a model path, one at a time, in `order`.

    In our layout, with the file's vocabulary rows, float32 (a difference: as stored).
    """
    config, view, sums = open_weights(path, config, step, difference)
    for name, layer in order(config):
        x = view(name, layer)((slice(None),) * len(model.weight_table(config)[name].dims))
        x = store.dense(x, x.dtype if difference else np.float32)
        if sums:
            sums[name] = (sums[name] - store.bits_sum(x)) % 2**32
            if sums[name] and layer in (None, config.L - 1):
                raise store.damaged(
                    path, store.resolve_step(path, step), f"{name} has another checksum"
                )
        yield name, layer, x


def load(path, config, mesh, layout, dtype=jnp.float32, step=None):
    """The weights of a model path straight into their shards: name -> array, as model.initialise makes them.

    On the host there is one device's slice of one layer of one weight at a time, in `dtype`; each process reads only
    the slices of its own devices. Where config.V exceeds the file's vocabulary (role tokens), the added rows are the
    mean of the file's rows; padding rows are zero.
    """
    there, view, sums = open_weights(path, config, step)
    if there.V > config.V:
        raise ValueError(
            f"{path} has {there.V} vocabulary rows, more than the {config.V} ids of the tokenizer: use "
            "the tokenizer it was made with"
        )
    whole, weights = model.shapes(config), {}
    spec = sharding.shardings(layout.stacked(config), mesh)
    for name, row in model.weight_table(config).items():
        if not row.layered:
            read = view(name, None)
            read = vocabulary_rows(read, there, config) if row.dims[0] == "V" else read
            weights[name] = store.put(read, whole[name], spec[name], dtype)
            continue
        blank, write = stack_of(whole[name], jnp.dtype(dtype), spec[name])
        weights[name], one = blank(), NamedSharding(mesh, layout.specs[name])
        for layer in range(config.L):
            piece = store.put(view(name, layer), whole[name][1:], one, dtype)
            weights[name] = write(weights[name], piece, layer)
    if sums and there.V == config.V and dtype == jnp.float32:
        for name, n in jax.device_get(store.bits_sums(weights)).items():
            if sums[name] != n:
                raise store.damaged(
                    path, store.resolve_step(path, step), f"{name} has another checksum"
                )
    return weights


@functools.cache
def stack_of(shape, dtype, spec):
    """Jitted () -> zeros sharded by spec, and (stack, piece, layer) -> the stack with that layer written, in place."""
    blank = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=spec)
    write = lambda stack, piece, layer: lax.dynamic_update_index_in_dim(stack, piece, layer, 0)
    return blank, jax.jit(write, donate_argnums=0, out_shardings=spec)


def vocabulary_rows(read, there, config):
    """read() of a [V, D] weight grown from the file's rows to the padded vocabulary: the mean of them, then zeros."""
    mean_D = np.zeros(config.D)
    if config.V > there.V:
        for a in range(0, there.V, 4096):
            mean_D += (
                np.sum(
                    read((slice(a, min(a + 4096, there.V)), slice(None))), axis=0, dtype=np.float64
                )
                / there.V
            )

    def grown(at):
        (start, end, _), columns = (
            at[0].indices(config.padded_vocab),
            slice(*at[1].indices(config.D)),
        )
        out = np.zeros((end - start, columns.stop - columns.start), np.float32)
        old, new = max(there.V - start, 0), max(config.V - start, 0)
        if old:
            out[:old] = read((slice(start, min(end, there.V)), columns))
        out[old:new] = mean_D[None, columns]
        return out

    return grown


def fingerprint(path, step=None):
    """sha256 over a model's files: names, sizes and 64 blocks of each (small files whole); 13B take a second."""
    kind, where = kind_of(path), pathlib.Path(file_of(path))
    files = [where]
    if kind == "run":
        where = store.folder_of(path, store.resolve_step(path, step))
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


# -------------------------------------------------------------------------------------------------------------- writing


def file_arrays(config, kind, weights, dtype):
    """(name in the file, array) from (name, layer, array) in `order`: q, k, v joined, as the file has them, cast."""
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
        x = x.T if p.transposed else x
        with np.errstate(over="ignore"):
            y = store.dense(x, dtype)
        if y.dtype == np.float16 and not np.array_equal(np.isinf(x), np.isinf(y)):
            raise ValueError(
                f"tensor {p.name} holds numbers beyond float16's 65504: use --dtype bfloat16 or float32"
            )
        yield p.name, y


def write_hf(
    dst, config, weights, tok, dtype=np.float32, marks=None, shard_bytes=formats.SHARD_BYTES
):
    """A Hugging Face folder: config.json, safetensors in shards, tokenizer files; one tensor in memory at a time.

    weights: (name, layer, array) as read_weights gives them. tok: None for no tokenizer files. marks: a dict of more
    entries for config.json, taken when the weights are through.
    """
    plan = [p[:2] for p in (place(config, "hf", *o) for o in order(config)) if p.closes]
    with formats.beside(dst, folder=True) as tmp:
        tmp.mkdir()
        formats.write_safetensors(
            tmp, plan, file_arrays(config, "hf", weights, dtype), dtype, shard_bytes
        )
        ends = {} if tok is None else {"bos_token_id": tok.bos, "eos_token_id": tok.eos}
        about = (
            formats.hf_record(config) | ends | {"torch_dtype": np.dtype(dtype).name} | (marks or {})
        )
        formats.write_json(tmp / "config.json", about)
        formats.write_json(tmp / "generation_config.json", ends)
        if tok is not None:
            tokenizer.write_hf(tok, tmp)


def write_easylm(dst, config, weights, dtype=np.float32, marks=None):
    """An EasyLM stream, read there as params::DST, and DST.json beside it with the config: no preset is needed here."""
    dst = file_of(dst)
    with formats.beside(f"{dst}.json") as record, formats.beside(dst) as tmp:
        formats.write_easylm_stream(tmp, file_arrays(config, "easylm", weights, dtype))
        about = {"config": dataclasses.asdict(config), "dtype": np.dtype(dtype).name}
        formats.write_json(record, about | (marks or {}))


# ------------------------------------------------------------------------------------------------------------- programs


def pairs(base, base_config, other, config, difference=False):
    """(name, layer, base array, other array) of two model paths; added tokens have no base and face rows of zeros."""
    there = model.shapes(dataclasses.replace(base_config, V=config.V), padded=False)
    wanted = model.shapes(config, padded=False)
    for name in there | wanted:
        if there.get(name) != wanted.get(name):
            raise ValueError(
                f"{base} and {other} are of different models: {name} has shape {there.get(name)} in the "
                f"one, {wanted.get(name)} in the other"
            )
    if base_config.V > config.V:
        raise ValueError(
            f"{base} has {base_config.V} vocabulary rows, {other} only {config.V}: the base comes first"
        )
    both = zip(
        read_weights(base, base_config),
        read_weights(other, config, difference=difference),
        strict=True,
    )
    for (name, layer, b), (_, _, x) in both:
        if len(b) < len(x):
            b = np.concatenate([b, np.zeros((len(x) - len(b), b.shape[1]), b.dtype)])
        yield name, layer, b, x


def subtract(base, base_config, tuned, config, floats, marks):
    """The weights of `diff`; marks["difference"] is there when they are through.

    Differences are those of float32's bit patterns, modulo 2^32, so that the tuned weights come back as they were: with
    floats, base + (tuned - base) loses bits of a tuned number much smaller than its base. floats: tuned - base all the
    same, as Koala was released.
    """
    of = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, t in pairs(base, base_config, tuned, config):
        of["base"].update(b.data)
        of["tuned"].update(t.data)
        yield name, layer, t - b if floats else t.view(np.uint32) - b.view(np.uint32)
    marks["difference"] = {f"{n}_sha256": digest.hexdigest() for n, digest in of.items()}
    marks["difference"]["form"] = "float32" if floats else "float32 bit patterns, modulo 2^32"
    if not floats:
        marks["model_type"] = "difference"  # transformers would take the bit patterns for weights


def add(base, base_config, diff, config, record):
    """The weights of `recover`: base + difference, in the form that the file's dtype tells.

    ValueError at the end where they are not the weights that `diff` saw.
    """
    of = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, d in pairs(base, base_config, diff, config, difference=True):
        t = (
            (b.view(np.uint32) + d).view(np.float32)
            if d.dtype == np.uint32
            else b + d.astype(np.float32)
        )
        of["base"].update(b.data)
        of["tuned"].update(t.data)
        yield name, layer, t
    if not record:
        return say(
            f"note: {diff} does not say what its base was (Koala's does not): base + difference, unchecked"
        )
    if of["base"].hexdigest() != record["base_sha256"]:
        raise ValueError(
            f"{base} is not the base that {diff} was made with (its sha256 is another): use that one"
        )
    same = of["tuned"].hexdigest() == record["tuned_sha256"]
    if not same and record["form"] != "float32":
        raise ValueError(
            f"{diff} is damaged: base + difference has not the sha256 of the tuned weights: copy it again"
        )
    say(
        "equal to the tuned weights "
        + ("bit for bit" if same else "up to float32 rounding of base + difference")
    )


def find_tokenizer(src, named, config, dst):
    """The tokenizer of a model path, with roles where the vocabulary has them; None, and a note, where none lies."""
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
    """The same weights, with a line on stderr of how far they are: twice a second on a terminal, else every 10 s."""
    total, done, started, terminal = (
        model.parameter_count(config),
        0,
        time.time(),
        sys.stderr.isatty(),
    )
    shown = started
    for name, layer, x in weights:
        yield name, layer, x
        done += x.size
        now = time.time()
        if now - shown > (0.5 if terminal else 10):
            shown, left = now, (now - started) * (total - done) / done
            line = f"{done / total:4.0%}  {name if layer is None else f'{name} of layer {layer}'}  eta {left:.0f} s"
            print(
                f"\r{line:<60}" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
    if terminal:
        print(f"\r{'':<60}\r", end="", file=sys.stderr)


def run(args):
    source, marks, dtype = getattr(args, args.source), {}, jnp.dtype(args.dtype)
    config = model_config(source, args.model_preset, difference=args.command == "recover")
    if args.command == "convert":
        weights = read_weights(source, config, args.step)
    else:
        base_config = model_config(args.base, args.model_preset)
        if args.command == "diff":
            dtype = np.dtype(np.float32 if args.float else np.uint32)
            weights = subtract(args.base, base_config, source, config, args.float, marks)
        else:
            weights = add(args.base, base_config, source, config, about(source).get("difference"))
    weights, dst = progress(weights, config), file_of(args.dst)
    if args.to == "hf":
        write_hf(
            dst, config, weights, find_tokenizer(source, args.tokenizer, config, dst), dtype, marks
        )
    else:
        write_easylm(dst, config, weights, dtype, marks)
    name = f"params::{dst}" if args.to == "easylm" else dst
    print(f"{name}: {model.parameter_count(config):,} weights, {dtype.name}")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, *paths in (
        ("convert", "src"),
        ("diff", "base", "tuned"),
        ("recover", "base", "diff"),
    ):
        sub = commands.add_parser(command)
        for path in paths:
            sub.add_argument(path, metavar=path.upper(), help=MODEL_PATHS)
        sub.add_argument(
            "dst", metavar="DST", help="where to write: a new path, or an empty folder"
        )
        sub.add_argument(
            "--to", choices=("hf", "easylm"), default="hf", help="what to write [default: hf]"
        )
        sub.add_argument(
            "--tokenizer",
            metavar="PATH",
            help="for --to hf [default: the one lying with the model]",
        )
        sub.add_argument(
            "--model-preset",
            metavar="NAME",
            help="of an EasyLM stream: " + ", ".join(model.PRESETS),
        )
        sub.set_defaults(source=paths[-1], dtype="float32")
        if command == "diff":
            sub.add_argument(
                "--float",
                action="store_true",
                help="tuned - base in float32, as Koala was released "
                "[default: difference of the bit patterns, from which recover is exact]",
            )
        else:
            sub.add_argument(
                "--dtype", choices=("float32", "bfloat16", "float16"), help="[default: float32]"
            )
        if command == "convert":
            sub.add_argument(
                "--step",
                type=int,
                metavar="N",
                help="which checkpoint of a run [default: the last]",
            )
    args = parser.parse_args(argv)
    with contextlib.suppress(ValueError):  # outside the main thread there are no signals to take
        signal.signal(
            signal.SIGTERM, lambda number, _: sys.exit(128 + number)
        )  # so that nothing half-written stays
    try:
        run(args)
    except (ValueError, OSError) as error:
        say(f"checkpoint.py: {error}")
        return 2
    return 0
