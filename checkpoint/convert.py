"""The command's work: convert a model path, publish a tuned model as a difference, recover it."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import model
from checkpoint import export, paths, vocabulary
from checkpoint.export import Weights
from checkpoint.load import read_weights
from host.terminal import Progress, say
from text import tokenizer
from text.tokenizer import Tokenizer


class Output(NamedTuple):
    """Where to write, and how."""

    dst: str
    to: str  # "hf" or "easylm"
    dtype: str
    tokenizer: str | None  # None: the one lying with the model


def convert(src: str, output: Output, preset: str | None, step: int | None) -> None:
    """Write any model path in the form that is asked for."""
    config = paths.model_config(src, preset)
    write(src, config, read_weights(src, config, step), output, {})


def diff(base: str, tuned: str, output: Output, preset: str | None, floats: bool) -> None:
    """Write tuned - base; floats: in float32, as Koala was released."""
    config, base_config = paths.model_config(tuned, preset), paths.model_config(base, preset)
    marks = {}
    weights = subtract((base, base_config), (tuned, config), floats, marks)
    write(tuned, config, weights, output._replace(dtype="float32" if floats else "uint32"), marks)


def recover(base: str, difference: str, output: Output, preset: str | None) -> None:
    """Write base + difference."""
    config = paths.model_config(difference, preset, difference=True)
    base_config = paths.model_config(base, preset)
    weights = add((base, base_config), (difference, config))
    write(difference, config, weights, output, {})


def write(
    source: str, config: model.Config, weights: Weights, output: Output, marks: dict[str, Any]
) -> None:
    """Write weights with their progress on stderr, and say on stdout what was written."""
    weights, dst, dtype = progress(weights, config), paths.file_of(output.dst), output.dtype
    if output.to == "hf":
        tok = find_tokenizer(source, output.tokenizer, config, dst)
        template = vocabulary.trained_template(source, tok)
        more = {"marks": marks, "template": template}
        export.write_hf(dst, config, weights, tok, jnp.dtype(dtype), **more)
        print(f"{dst}: {model.parameter_count(config):,} weights, {dtype}")
    else:
        marks |= vocabulary.roles_mark(source, config, output.tokenizer)
        export.write_easylm(dst, config, weights, jnp.dtype(dtype), marks)
        print(f"params::{dst}: {model.parameter_count(config):,} weights, {dtype}")


def progress(weights: Weights, config: model.Config) -> Iterator[tuple]:
    """The same weights, with how far they are on stderr."""
    shown, done = Progress("converting", model.parameter_count(config), "weights"), 0
    for name, layer, x in weights:
        yield name, layer, x
        done += x.size
        shown(done)
    if sys.stderr.isatty():
        shown.close()


def find_tokenizer(src: str, named: str | None, config: model.Config, dst: str) -> Tokenizer | None:
    """The tokenizer of a model path; None, and a note, where none lies there."""
    try:
        tokenizer.load(vocabulary.place_of(src, named), roles=False)
    except ValueError as error:
        if named:
            raise
        say(f"note: {dst} gets no tokenizer files, --tokenizer names some ({error})")
        return None
    return vocabulary.model_tokenizer(src, config, named)


# --- differences ---

Model = tuple[str, model.Config]  # a model path and its config


def pairs(base: Model, other: Model, difference: bool = False) -> Iterator[tuple]:
    """(name, layer, base array, other array) of two models.

    Added tokens have no base and face rows of zeros.
    """
    (base_path, base_config), (other_path, config) = base, other
    grown = dataclasses.replace(base_config, V=config.V)
    shapes = [model.shapes(c, padded=False) for c in (grown, config)]
    for name in shapes[0] | shapes[1]:
        in_base, in_other = (s.get(name) for s in shapes)
        if in_base != in_other:
            raise ValueError(
                f"{base_path} and {other_path} are of different models: {name} has shape {in_base} "
                f"in the one, {in_other} in the other"
            )
    if base_config.V > config.V:
        raise ValueError(
            f"{base_path} has {base_config.V} vocabulary rows, {other_path} only {config.V}: the "
            "base comes first"
        )
    base_weights = read_weights(base_path, base_config)
    other_weights = read_weights(other_path, config, difference=difference)
    for (name, layer, b), (_, _, x) in zip(base_weights, other_weights, strict=True):
        if len(b) < len(x):
            b = np.concatenate([b, np.zeros((len(x) - len(b), b.shape[1]), b.dtype)])
        yield name, layer, b, x


def subtract(base: Model, tuned: Model, floats: bool, marks: dict[str, Any]) -> Iterator[tuple]:
    """The weights of `diff`; marks["difference"] is there when they are through.

    Differences are those of float32's bit patterns, modulo 2^32, so that the tuned weights come
    back as they were: with floats, base + (tuned - base) loses bits of a tuned number much smaller
    than its base. floats: tuned - base all the same.
    """
    digests = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, t in pairs(base, tuned):
        digests["base"].update(b.data)
        digests["tuned"].update(t.data)
        yield name, layer, t - b if floats else t.view(np.uint32) - b.view(np.uint32)
    marks["difference"] = {f"{n}_sha256": digest.hexdigest() for n, digest in digests.items()}
    marks["difference"]["form"] = "float32" if floats else "float32 bit patterns, modulo 2^32"
    if not floats:
        marks["model_type"] = "difference"  # transformers would take the bit patterns for weights


def add(base: Model, difference: Model) -> Iterator[tuple]:
    """The weights of `recover`: base + difference, in the form that the file's dtype tells.

    ValueError at the end where they are not the weights that `diff` saw.
    """
    record = paths.record_of(difference[0]).get("difference")
    digests = {"base": hashlib.sha256(), "tuned": hashlib.sha256()}
    for name, layer, b, d in pairs(base, difference, difference=True):
        if d.dtype == np.uint32:
            t = (b.view(np.uint32) + d).view(np.float32)
        else:
            t = b + d.astype(np.float32)
        digests["base"].update(b.data)
        digests["tuned"].update(t.data)
        yield name, layer, t
    path = difference[0]
    if not record:
        say(
            f"note: {path} does not say what its base was (Koala's does not): base + difference, "
            "unchecked"
        )
        return
    if digests["base"].hexdigest() != record["base_sha256"]:
        raise ValueError(
            f"{base[0]} is not the base that {path} was made with (its sha256 is another): use "
            "that one"
        )
    same = digests["tuned"].hexdigest() == record["tuned_sha256"]
    if not same and record["form"] != "float32":
        raise ValueError(
            f"{path} is damaged: base + difference has not the sha256 of the tuned weights: copy "
            "it again"
        )
    how = "bit for bit" if same else "up to float32 rounding of base + difference"
    say(f"equal to the tuned weights {how}")
