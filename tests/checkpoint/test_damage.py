"""Damaged, foreign and lying files: each refused in one line that names what is wrong."""

import dataclasses
import json
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
from foreign import (
    LLAMA,
    assert_same,
    bin_file,
    collect,
    easylm_file,
    easylm_tensors,
    hf_folder,
    hf_tensors,
    random_weights,
    refusal,
)

import model
from checkpoint import huggingface, paths


@pytest.mark.parametrize("form", ["hf", "easylm", "bin"])
def test_a_file_cut_at_any_byte_is_refused(form, tmp_path):
    config = dataclasses.replace(LLAMA, D=16, F=8, H=4, L=1, V=20)
    weights = random_weights(config)
    if form == "hf":
        path = hf_folder(tmp_path / "m", config, hf_tensors(config, weights))
        file = pathlib.Path(path) / "model.safetensors"
    elif form == "easylm":
        path = easylm_file(tmp_path / "m", easylm_tensors(config, weights))
        file = tmp_path / "m"
    else:
        path = bin_file(tmp_path / "m.bin", config, weights)
        file = tmp_path / "m.bin"
    content = file.read_bytes()
    named = 0
    for size in [
        *range(0, 90),
        *range(90, len(content), 37),
        *range(len(content) - 20, len(content)),
    ]:
        file.write_bytes(content[:size])
        line = refusal(path, config)
        assert any(
            hint in line for hint in ("copy it again", "copy the model whole", "no llama2.c file")
        ), line
        named += "tensor" in line and "expected (" in line
    assert (
        named > 20
    )  # cut within the data: the tensor, the shape it should have, and what there is
    file.write_bytes(content + b"\0")
    refusal(path, config)
    file.write_bytes(content)
    assert_same(collect(path, config), weights)


def test_shapes_and_names_that_do_not_fit_are_named_with_both_shapes(tmp_path):
    tensors = hf_tensors(LLAMA, random_weights(LLAMA))
    q, embed, head = (
        "model.layers.1.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    )

    def without(name):
        return {n: x for n, x in tensors.items() if n != name}

    cases = {
        "shape": (
            tensors | {q: tensors[q][:31]},
            {},
            f"tensor {q} has shape (31, 24), expected (32, 24)",
        ),
        "missing": (without(q), {}, f"has no tensor {q}, expected (32, 24)"),
        "extra": (
            tensors | {"model.layers.3.mlp.up_proj.weight": tensors[q]},
            {},
            "unexpected tensor model.layers.3.mlp.up_proj.weight of shape (32, 24)",
        ),
        "bias": (
            tensors | {q[:-6] + "bias": tensors[q][0]},
            {},
            "unexpected tensor model.layers.1.self_attn.q_proj.bias of shape (24,)",
        ),
        "vocabulary": (
            tensors,
            {"vocab_size": 51},
            f"tensor {embed} has shape (50, 24), expected (51, 24)",
        ),
        "tied": (
            tensors,
            {"tie_word_embeddings": True},
            f"unexpected tensor {head} of shape (50, 24): its config says that the output matrix "
            "is the embedding",
        ),
        "untied": (
            without(head),
            {},
            f"has no tensor {head}, expected (50, 24): its config says that the output matrix is "
            "not the embedding",
        ),
        "integers": (tensors | {q: tensors[q].astype(np.int8)}, {}, f"tensor {q} is of type I8"),
        "layers": (
            tensors,
            {"num_hidden_layers": 4},
            "has no tensor model.layers.3.input_layernorm.weight, expected (24,)",
        ),
    }
    for name, (those, changes, says) in cases.items():
        path = hf_folder(tmp_path / name, LLAMA, those, 2, **changes)
        line = refusal(path, paths.model_config(path))
        assert says in line, line


def test_tensors_of_a_stream_that_do_not_fit_are_named_with_both_shapes(tmp_path, monkeypatch):
    monkeypatch.setitem(model.PRESETS, "mine", LLAMA)
    tensors = easylm_tensors(LLAMA, random_weights(LLAMA))
    w2, wte = (
        ("params", "transformer", "h", "2", "feed_forward", "w2", "kernel"),
        ("params", "transformer", "wte", "embedding"),
    )
    for name, those, says in (
        (
            "shape",
            tensors | {w2: tensors[w2].T.copy()},
            "tensor transformer/h/2/feed_forward/w2/kernel has shape (24, 20), expected (20, 24)",
        ),
        (
            "missing",
            {k: x for k, x in tensors.items() if k != wte},
            "has no tensor transformer/wte/embedding, expected (50, 24)",
        ),
        (
            "rows",
            tensors | {wte: tensors[wte][:49]},
            "tensor lm_head/kernel has shape (24, 50), expected (24, 49)",
        ),
        (
            "moments",
            tensors | {("opt_state", "mu"): np.ones(3, np.float32)},
            "unexpected tensor opt_state/mu of shape (3,)",
        ),
    ):
        path = easylm_file(tmp_path / f"{name}.stream", those)
        line = refusal(path, paths.model_config(path, "mine"))
        assert says in line, line
    path = easylm_file(tmp_path / "twice", tensors)
    (tmp_path / "twice").write_bytes((tmp_path / "twice").read_bytes() * 2)
    assert "twice" in refusal(path, LLAMA)


def lie(file, change):
    """Rewrite a safetensors header by change(header)."""
    content = file.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    change(header)
    header = json.dumps(header).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + n :])


@pytest.mark.parametrize(
    "name",
    [
        "shape",
        "offsets",
        "overlap",
        "beyond",
        "negative",
        "float",
        "huge",
        "not_json",
        "list",
        "deep",
        "null",
    ],
)
def test_a_safetensors_header_that_lies_is_refused(name, tmp_path):
    path = pathlib.Path(hf_folder(tmp_path / "m", LLAMA, hf_tensors(LLAMA, random_weights(LLAMA))))
    file, w = path / "model.safetensors", "model.norm.weight"
    body = file.read_bytes()
    if name == "huge":
        file.write_bytes((2**63).to_bytes(8, "little") + body[8:])
    elif name == "not_json":
        file.write_bytes(body[:8] + b"\xff" + body[9:])
    elif name == "overlap":  # two tensors on one span, and a hole in the middle: the sizes add up
        first, second = (f"model.layers.{i}.input_layernorm.weight" for i in (0, 1))
        lie(file, lambda header: header[second].update(data_offsets=header[first]["data_offsets"]))
    elif name in ("list", "deep"):
        header = b"[]" if name == "list" else b"[" * 50_000
        file.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        change = {
            "shape": {"shape": [25]},
            "offsets": {"data_offsets": [0, 4]},
            "beyond": {"data_offsets": [10**9, 10**9 + 96]},
            "negative": {"shape": [-24]},
            "float": {"shape": [24.0]},
            "null": {"data_offsets": None},
        }[name]
        lie(file, lambda header: header[w].update(change))
    assert "copy it again" in refusal(path, LLAMA)


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    path = pathlib.Path(
        hf_folder(tmp_path / "m", LLAMA, hf_tensors(LLAMA, random_weights(LLAMA)), 3)
    )
    listing = path / "model.safetensors.index.json"
    whole = json.loads(listing.read_text())
    for change, says in (
        (
            {"model.norm.weight": "model-00009-of-00003.safetensors"},
            "lacks model-00009-of-00003.safetensors, which should hold tensor model.norm.weight: "
            "copy it too",
        ),
        (
            {"model.norm.weight": "../../m.safetensors"},
            "no weight_map of file names in this folder",
        ),
        (
            {"ghost.weight": "model-00001-of-00003.safetensors"},
            "disagree on whether tensor ghost.weight",
        ),
    ):
        listing.write_text(json.dumps(whole | {"weight_map": whole["weight_map"] | change}))
        assert says in refusal(path, LLAMA)
    listing.write_text(json.dumps(whole)[:-30])
    assert "is not JSON" in refusal(path, LLAMA)
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        paths.model_config(str(path))


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (str(Bomb.at),))


def test_pickled_files_are_refused_and_never_opened(tmp_path):
    Bomb.at = tmp_path / "went off"
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "b.bin").write_bytes(b"PK\x03\x04 a zip, as torch.save writes")
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Bomb(), protocol=0))
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(huggingface.write_config(LLAMA)))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    for path in (tmp_path / "a.bin", tmp_path / "b.bin", tmp_path / "c.pt", folder):
        line = refusal(path, LLAMA)
        assert "can run code" in line and "save_pretrained" in line
    refusal(f"params::{tmp_path / 'a.bin'}", LLAMA)
    assert not Bomb.at.exists()


def test_what_is_no_model_path_is_refused_with_what_would_be(tmp_path):
    (tmp_path / "stream").write_bytes(b"x")
    (tmp_path / "m.safetensors").write_bytes(b"x")
    (tmp_path / "v1.bin").write_bytes(struct.pack("<7i", 0x616B3432, 1, 1, 1, 1, 1, 1))
    (tmp_path / "text.bin").write_bytes(b"a text, not a model, of some length")
    easylm_file(tmp_path / "good", easylm_tensors(LLAMA, random_weights(LLAMA)))
    for path, says in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "neither run.json nor config.json"),
        (tmp_path / "stream", "write params::"),
        (tmp_path / "m.safetensors", "name its folder"),
        (f"params::{tmp_path}", "name the stream"),
        (f"params::{tmp_path}/none", "does not exist"),
        (f"trainstate::{tmp_path}/stream", "only params::FILE"),
        (f"params::{tmp_path}/good", "--model-preset"),
        (tmp_path / "v1.bin", "version 1"),
        (tmp_path / "text.bin", "no llama2.c file"),
    ):
        with pytest.raises(ValueError, match=says):
            paths.model_config(str(path))
    with pytest.raises(ValueError, match="--model 8b is not a preset"):
        paths.model_config(f"params::{tmp_path}/good", "8b")
