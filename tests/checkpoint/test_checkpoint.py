"""Weights in and out: every format against files written by other means, damage at every byte, exact round trips, checkpoints that survive.

    python -m pytest tests/test_checkpoint.py --data DIR --live

Independent of checkpoint.py and formats.py: files are written here by the safetensors package, by struct, and by a re-statement of EasyLM's writer over msgpack; logits are
Hugging Face's stored ones (tests/make_references.py), and a float64 NumPy loop reads stories260K by itself. Sizes are odd on purpose.
"""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import make_references
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from checkpoint import easylm, export, huggingface, load, paths, runs
from checkpoint.__main__ import main as checkpoint
from checkpoint.mapping import half_split, order
from checkpoint.tensors import dense
from kernels.layers import rope_half, rope_interleaved, rope_table
from text import tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCES = ROOT / "tests" / "references"
LLAMA = model.Config("llama", 50, 24, 3, 4, 2, 8, 20, 64, 1e-5)
TIED = dataclasses.replace(LLAMA, tied=True, rope_scaling=(8.0, 1.0, 4.0, 32), theta=5e5)
GPT2 = model.Config("gpt2", 50, 20, 3, 4, 4, 5, 80, 32, 1e-5, tied=True)
CONFIGS = [LLAMA, TIED, GPT2]
NAMES = ["llama", "llama-tied", "gpt2"]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=NAMES)


def random_weights(config, seed=0):
    """{(name, layer): array}, true vocabulary, our layout."""
    rng, size, table = (
        np.random.default_rng(seed),
        model.sizes(config, padded=False),
        model.weight_table(config),
    )
    return {
        (n, layer): rng.normal(size=[size[d] for d in table[n].dims]).astype(np.float32)
        for n, layer in order(config)
    }


def stream(weights):
    return ((name, layer, x) for (name, layer), x in weights.items())


def collect(path, config, **more):
    return {(name, layer): x for name, layer, x in load.read_weights(str(path), config, **more)}


def assert_same(got, want):
    assert got.keys() == want.keys()
    for key in want:
        assert got[key].dtype == want[key].dtype and got[key].tobytes() == want[key].tobytes(), key


def hf_tensors(config, weights):
    """Hugging Face's names and layouts, written out by hand for both families: not read from the weight table."""
    out = {}
    if config.family == "llama":
        out["model.embed_tokens.weight"], out["model.norm.weight"] = (
            weights["embed", None],
            weights["final_norm", None],
        )
        if not config.tied:
            out["lm_head.weight"] = weights["head", None]
        parts = {
            "wq": "self_attn.q_proj",
            "wk": "self_attn.k_proj",
            "wv": "self_attn.v_proj",
            "wo": "self_attn.o_proj",
            "w1": "mlp.gate_proj",
            "w3": "mlp.up_proj",
            "w2": "mlp.down_proj",
        }
        for i in range(config.L):
            for ours, theirs in parts.items():
                out[f"model.layers.{i}.{theirs}.weight"] = weights[ours, i].T
            out[f"model.layers.{i}.input_layernorm.weight"] = weights["attn_norm", i]
            out[f"model.layers.{i}.post_attention_layernorm.weight"] = weights["mlp_norm", i]
    else:
        for ours, theirs in {
            "embed": "wte.weight",
            "pos": "wpe.weight",
            "final_norm": "ln_f.weight",
            "final_norm_b": "ln_f.bias",
        }.items():
            out[f"transformer.{theirs}"] = weights[ours, None]
        parts = {
            "attn_norm": "ln_1.weight",
            "attn_norm_b": "ln_1.bias",
            "wo": "attn.c_proj.weight",
            "bo": "attn.c_proj.bias",
            "mlp_norm": "ln_2.weight",
            "mlp_norm_b": "ln_2.bias",
        }
        parts |= {
            "w1": "mlp.c_fc.weight",
            "b1": "mlp.c_fc.bias",
            "w2": "mlp.c_proj.weight",
            "b2": "mlp.c_proj.bias",
        }
        for i in range(config.L):
            for ours, theirs in parts.items():
                out[f"transformer.h.{i}.{theirs}"] = weights[ours, i]
            for kind, theirs in (("w", "weight"), ("b", "bias")):
                out[f"transformer.h.{i}.attn.c_attn.{theirs}"] = np.concatenate(
                    [weights[kind + c, i] for c in "qkv"], axis=-1
                )
    return {n: np.ascontiguousarray(x) for n, x in out.items()}


def hf_folder(path, config, tensors, shards=1, **more):
    """A Hugging Face folder by the safetensors package. more: entries of config.json."""
    path.mkdir()
    names = list(tensors)
    files = {
        f"model-{i + 1:05}-of-{shards:05}.safetensors"
        if shards > 1
        else "model.safetensors": names[i::shards]
        for i in range(shards)
    }
    for file, those in files.items():
        safetensors.numpy.save_file(
            {n: tensors[n] for n in those}, path / file, metadata={"format": "pt"}
        )
    if shards > 1:
        (path / "model.safetensors.index.json").write_text(
            json.dumps(
                {"metadata": {}, "weight_map": {n: f for f, those in files.items() for n in those}}
            )
        )
    (path / "config.json").write_text(json.dumps(huggingface.write_config(config) | more))
    return str(path)


def interleaved(w, H):
    """Columns of half-split heads as neighbouring pairs: index by index."""
    out = np.empty_like(w)
    for head in range(w.shape[1] // H):
        for i in range(H // 2):
            for j in range(2):
                out[:, head * H + 2 * i + j] = w[:, head * H + j * (H // 2) + i]
    return out


def easylm_tensors(config, weights):
    """EasyLM's key tuples and layouts for LLaMA, written out by hand."""
    out = {
        ("params", "transformer", "wte", "embedding"): weights["embed", None],
        ("params", "transformer", "ln_f", "kernel"): weights["final_norm", None],
    }
    if not config.tied:
        out["params", "lm_head", "kernel"] = weights["head", None].T
    for i in range(config.L):
        at = ("params", "transformer", "h", str(i))
        for c in "qkvo":
            w = weights["w" + c, i]
            out[*at, "attention", "w" + c, "kernel"] = interleaved(w, config.H) if c in "qk" else w
        for c in ("w1", "w2", "w3"):
            out[*at, "feed_forward", c, "kernel"] = weights[c, i]
        out[*at, "attention_norm", "kernel"], out[*at, "ffn_norm", "kernel"] = (
            weights["attn_norm", i],
            weights["mlp_norm", i],
        )
    return out


def flax_bytes(x, chunk=2**30):
    """flax.serialization.to_bytes of one array, restated."""

    def ext(a):
        return msgpack.ExtType(
            1, msgpack.packb((a.shape, a.dtype.name, a.tobytes("C")), use_bin_type=True)
        )

    if x.nbytes <= chunk:
        return msgpack.packb(x, default=ext, strict_types=True)
    n, flat = chunk // x.itemsize, x.reshape(-1)
    pieces = {str(k): flat[i : i + n] for k, i in enumerate(range(0, x.size, n))}
    tree = {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): s for i, s in enumerate(x.shape)},
        "chunks": pieces,
    }
    return msgpack.packb(tree, default=ext, strict_types=True)


def flax_array(data):
    """flax.serialization.msgpack_restore of one array, restated."""

    def hook(code, inner):
        assert code == 1
        shape, name, buffer = msgpack.unpackb(inner, raw=True)
        return np.frombuffer(
            buffer, ml_dtypes.bfloat16 if name == b"bfloat16" else np.dtype(name.decode())
        ).reshape(shape)

    tree = msgpack.unpackb(data, ext_hook=hook, raw=False)
    if not isinstance(tree, dict):
        return tree
    order = lambda d: [d[str(i)] for i in range(len(d))]
    return np.concatenate(order(tree["chunks"])).reshape(order(tree["shape"]))


def easylm_file(path, tensors, chunk=2**30):
    """EasyLM's StreamingCheckpointer.save_checkpoint, restated."""
    packer = msgpack.Packer()
    path.write_bytes(
        b"".join(packer.pack((key, flax_bytes(x, chunk))) for key, x in tensors.items())
    )
    return f"params::{path}"


def read_easylm(path):
    """EasyLM's StreamingCheckpointer.load_checkpoint, restated."""
    with open(path, "rb") as file:
        return {
            tuple(key): flax_array(value)
            for key, value in msgpack.Unpacker(file, read_size=83886080, max_buffer_size=0)
        }


def bin_file(path, config, weights):
    """A llama2.c file, version 0."""
    table, c = model.weight_table(config), config
    with open(path, "wb") as file:
        file.write(struct.pack("<7i", c.D, c.F, c.L, c.N, c.K, c.V if c.tied else -c.V, c.P))
        for name in (
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
        ):
            for layer in range(c.L) if table[name].layered else [None]:
                x = weights[name, layer]
                x = interleaved(x, c.H) if name in ("wq", "wk") else x
                file.write(np.ascontiguousarray(x.T if name[0] == "w" else x).tobytes())
        file.write(np.full((2, c.P, c.H // 2), 7, np.float32).tobytes())
        if not c.tied:
            file.write(weights["head", None].tobytes())
    return str(path)


def mesh_of(data, tensor):
    return sharding.make_mesh(data, tensor, jax.devices()[: data * tensor])


# ---------------------------------------------------------------------------------------------------------------- reading


@each_config
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_hugging_face_folders_are_read_in_every_dtype_in_one_file_or_several(
    config, dtype, tmp_path
):
    dtype = jnp.dtype(dtype)
    weights = {key: x.astype(dtype).astype(np.float32) for key, x in random_weights(config).items()}
    tensors = {n: x.astype(dtype) for n, x in hf_tensors(config, weights).items()}
    for shards in (1, 3):
        path = hf_folder(tmp_path / str(shards), config, tensors, shards)
        assert paths.model_config(path) == config
        assert_same(collect(path, config), weights)


@pytest.mark.parametrize("case", list(make_references.CASES))
def test_hugging_face_s_own_weights_give_its_logits(case, tmp_path):
    with np.load(REFERENCES / f"model_{case}.npz", allow_pickle=False) as file:
        want, token_BT, fields = file["logits"], file["tokens"], json.loads(str(file["config"]))
        tensors = {n: file[n] for n in file.files if "." in n}
    config = model.Config(
        **fields | {"rope_scaling": fields["rope_scaling"] and tuple(fields["rope_scaling"])}
    )
    path = hf_folder(tmp_path / "hf", config, tensors, 2)
    assert paths.model_config(path) == config
    mesh, layout = mesh_of(1, 1), model.make_layout(config, 1, 1)
    got = model.make_logits(config, mesh, layout)(
        load.load_weights(path, config, mesh, layout), token_BT
    )
    np.testing.assert_allclose(got, want, atol=2e-4)


@each_config
def test_loading_gives_every_mesh_the_same_numbers_in_its_own_shards(config, tmp_path):
    weights = random_weights(config)
    path = hf_folder(tmp_path / "hf", config, hf_tensors(config, weights))
    for data, tensor, fsdp in ((8, 1, True), (2, 4, True), (1, 8, True), (4, 2, False)):
        mesh, layout = mesh_of(data, tensor), model.make_layout(config, data, tensor, fsdp)
        got = load.load_weights(path, config, mesh, layout)
        spec = sharding.shardings(layout.stacked(config), mesh)
        for name, row in model.weight_table(config).items():
            want = (
                np.stack([weights[name, i] for i in range(config.L)])
                if row.layered
                else weights[name, None]
            )
            if row.dims[0] == "V":
                want = np.pad(want, ((0, config.padded_vocab - config.V), (0, 0)))
            assert got[name].shape == model.shapes(config)[name] and got[name].dtype == jnp.float32
            assert got[name].sharding.is_equivalent_to(spec[name], got[name].ndim), (
                name,
                got[name].sharding,
            )
            np.testing.assert_array_equal(got[name], want, err_msg=f"{name} on {data}x{tensor}")


@pytest.mark.parametrize("form", ["hf", "easylm", "bin", "run"])
def test_role_tokens_get_the_mean_row_and_padding_stays_zero(form, tmp_path):
    config, weights = LLAMA, random_weights(LLAMA)
    path = {
        "hf": lambda: hf_folder(tmp_path / "m", config, hf_tensors(config, weights)),
        "easylm": lambda: easylm_file(tmp_path / "m", easylm_tensors(config, weights)),
        "bin": lambda: bin_file(tmp_path / "m.bin", config, weights),
        "run": lambda: run_folder(tmp_path / "m", config, weights),
    }[form]()
    grown = dataclasses.replace(config, V=config.V + 2)
    mesh, layout = mesh_of(4, 2), model.make_layout(grown, 4, 2)
    got = load.load_weights(path, grown, mesh, layout)
    for name in ("embed", "head"):
        rows = np.asarray(got[name])
        np.testing.assert_array_equal(rows[: config.V], weights[name, None])
        mean = weights[name, None].mean(0, dtype=np.float64).astype(np.float32)
        np.testing.assert_array_equal(rows[config.V : config.V + 2], np.stack([mean, mean]))
        assert rows.shape == (128, config.D) and not rows[config.V + 2 :].any()
    with pytest.raises(ValueError, match=r"has 50 vocabulary rows, more than the 49"):
        load.load_weights(path, dataclasses.replace(config, V=49), mesh, layout)


def test_weights_can_be_loaded_in_bfloat16(tmp_path):
    weights = random_weights(LLAMA)
    path = hf_folder(tmp_path / "hf", LLAMA, hf_tensors(LLAMA, weights))
    got = load.load_weights(
        path, LLAMA, mesh_of(2, 1), model.make_layout(LLAMA, 2, 1), jnp.bfloat16
    )
    assert all(x.dtype == jnp.bfloat16 for x in got.values())
    np.testing.assert_array_equal(got["w1"][1], weights["w1", 1].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_easylm_streams_are_read_with_and_without_params_in_float32_bfloat16_and_chunks(
    config, tmp_path, monkeypatch
):
    weights = random_weights(config)
    monkeypatch.setitem(model.PRESETS, "mine", config)
    for i, (dtype, chunk, drop) in enumerate(
        (("float32", 2**30, 0), ("bfloat16", 2**30, 1), ("float32", 100, 0), ("float16", 250, 1))
    ):
        rounded = {key: x.astype(jnp.dtype(dtype)).astype(np.float32) for key, x in weights.items()}
        tensors = {
            key[drop:]: np.ascontiguousarray(x.astype(jnp.dtype(dtype)))
            for key, x in easylm_tensors(config, weights).items()
        }
        path = easylm_file(tmp_path / f"stream{i}", tensors, chunk)
        assert paths.model_config(path, "mine") == config
        assert_same(collect(path, config), rounded)
    grown = {
        key: np.concatenate([x, x[:2]])
        if "wte" in key
        else np.concatenate([x, x[:, :2]], 1)
        if "lm_head" in key
        else x
        for key, x in easylm_tensors(config, weights).items()
    }
    assert (
        paths.model_config(easylm_file(tmp_path / "grown", grown), "mine").V == config.V + 2
    )  # a preset does not know of added tokens


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_llama2c_files_are_read_tied_and_untied(config, tmp_path):
    config = dataclasses.replace(config, H=config.D // config.N, rope_scaling=None, theta=10000.0)
    weights = random_weights(config)
    path = bin_file(tmp_path / "m.bin", config, weights)
    assert paths.model_config(path) == config
    assert_same(collect(path, config), weights)


def test_interleaved_columns_rotated_in_pairs_score_as_ours_rotated_in_halves():
    rng, H = np.random.default_rng(0), 8
    x, wq, wk = (
        rng.normal(size=s).astype(np.float32) for s in ((1, 7, 24), (24, 3 * H), (24, 3 * H))
    )
    cos, sin = rope_table(jnp.arange(7)[None], H, 10000.0)
    heads = lambda w: (x @ w).reshape(1, 7, 3, H)
    columns = half_split(model.Config("llama", 8, 24, 1, 3, 3, H, 4, 8, 1e-5), 3 * H)
    score = lambda rotate, a, b: jnp.einsum(
        "btnh,bsnh->bnts", rotate(heads(a), cos, sin), rotate(heads(b), cos, sin)
    )
    want = score(rope_interleaved, wq, wk)
    np.testing.assert_allclose(score(rope_half, wq[:, columns], wk[:, columns]), want, atol=1e-4)
    assert (
        np.abs(score(rope_half, wq, wk) - want).max() > 1
    )  # and without the permutation they do not


def test_transposed_views_are_copied_whole():
    x = np.arange(130 * 200, dtype=np.float32).reshape(200, 130)
    for view in (x, x.T, x.T[5:90, 3:140], x[:, 7], x.reshape(2, 100, 130)):
        got = dense(view, np.float64)
        assert got.flags.c_contiguous and got.dtype == np.float64 and not np.shares_memory(got, x)
        np.testing.assert_array_equal(got, view)


def test_buffers_are_ignored_and_gpt2_needs_no_prefix(tmp_path):
    weights = random_weights(GPT2)
    tensors = {n.removeprefix("transformer."): x for n, x in hf_tensors(GPT2, weights).items()}
    tensors |= {f"h.{i}.attn.bias": np.ones((1, 1, 8, 8), np.float32) for i in range(3)} | {
        f"h.{i}.attn.masked_bias": np.float32([-1e4]) for i in range(3)
    }
    path = hf_folder(tmp_path / "gpt2", GPT2, tensors, architectures=["GPT2Model"])
    assert_same(collect(path, GPT2), weights)
    weights = random_weights(LLAMA)
    tensors = hf_tensors(LLAMA, weights) | {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(3)
    }
    assert_same(collect(hf_folder(tmp_path / "llama", LLAMA, tensors), LLAMA), weights)


def test_configs_of_both_transformers_generations_are_understood():
    base = huggingface.write_config(LLAMA)
    old = base | {
        "rope_theta": 5e5,
        "rope_scaling": {
            "type": "llama3",
            "factor": 8,
            "low_freq_factor": 1,
            "high_freq_factor": 4,
            "original_max_position_embeddings": 32,
        },
        "tie_word_embeddings": True,
    }
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    assert huggingface.read_config(old, "c") == huggingface.read_config(new, "c") == TIED
    plain = {
        k: v
        for k, v in base.items()
        if k
        not in (
            "head_dim",
            "num_key_value_heads",
            "rope_theta",
            "rope_scaling",
            "tie_word_embeddings",
        )
    }
    assert huggingface.read_config(plain, "c") == dataclasses.replace(LLAMA, K=4, H=6)
    gpt2 = huggingface.write_config(GPT2) | {"n_inner": None}
    del gpt2["tie_word_embeddings"]
    assert huggingface.read_config(gpt2, "c") == GPT2


@pytest.mark.parametrize(
    "base, change, says",
    [
        (LLAMA, {"architectures": ["Gemma2ForCausalLM"]}, "Gemma2ForCausalLM is not supported"),
        (LLAMA, {"architectures": None, "model_type": "phi3"}, "phi3 is not supported"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE of type 'yarn'"),
        (
            LLAMA,
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "RoPE of type 'dynamic'",
        ),
        (
            LLAMA,
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        (LLAMA, {"attention_bias": "yes"}, "attention_bias 'yes' is not supported"),
        (LLAMA, {"mlp_bias": 1}, "mlp_bias 1 is not supported"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"hidden_size": None}, "gives None for a size (D)"),
        (LLAMA, {"num_hidden_layers": 0}, "gives 0 for a size (L)"),
        (LLAMA, {"num_attention_heads": "4"}, "gives '4' for a size (N)"),
        (LLAMA, {"hidden_size": [24]}, "for a size (D)"),
        (LLAMA, {"rms_norm_eps": None}, "wrong type"),
        (LLAMA, {"num_key_value_heads": 3}, "do not divide"),
        (GPT2, {"activation_function": "relu"}, "activation_function 'relu'"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2, {"n_layer": ...}, "lacks 'n_layer'"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(base, change, says, tmp_path):
    record = {k: v for k, v in (huggingface.write_config(base) | change).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError) as caught:
        paths.model_config(str(tmp_path))
    assert says in str(caught.value) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------------- damage


def refusal(path, config):
    """The line with which reading a model path is refused."""
    with pytest.raises(ValueError) as caught:
        for _ in load.read_weights(str(path), config):
            pass
    line = str(caught.value)
    assert "\n" not in line and ": " in line, line
    return line


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


def test_shapes_and_names_that_do_not_fit_are_named_with_both_shapes(tmp_path, monkeypatch):
    weights = random_weights(LLAMA)
    tensors = hf_tensors(LLAMA, weights)
    q, embed, head = (
        "model.layers.1.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    )
    without = lambda name: {n: x for n, x in tensors.items() if n != name}
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
            f"unexpected tensor {head} of shape (50, 24): its config says that the output matrix is the embedding",
        ),
        "untied": (
            without(head),
            {},
            f"has no tensor {head}, expected (50, 24): its config says that the output matrix is not the embedding",
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
    monkeypatch.setitem(model.PRESETS, "mine", LLAMA)
    tensors = easylm_tensors(LLAMA, weights)
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
            "lacks model-00009-of-00003.safetensors, which should hold tensor model.norm.weight: copy it too",
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


# ---------------------------------------------------------------------------------------------------------------- writing


def word_tokenizer(folder, size):
    """A tokenizer of `size` ids in GPT-2's files: 256 bytes would be too many for these models, so the vocabulary is cut; good for its files, not for text."""
    folder.mkdir()
    shutil.copy(ROOT / "samples" / "tokenizer.model", folder)
    tok = tokenizer.load(str(folder))
    assert tok.size == size, tok.size
    return tok


@each_config
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writing_then_reading_gives_the_same_weights_in_every_format(config, dtype, tmp_path):
    dtype = jnp.dtype(dtype)
    weights = {key: x.astype(dtype).astype(np.float32) for key, x in random_weights(config).items()}
    export.write_hf(tmp_path / "hf", config, stream(weights), None, dtype)
    export.write_hf(tmp_path / "shards", config, stream(weights), None, dtype, shard_bytes=4000)
    export.write_easylm(tmp_path / "stream", config, stream(weights), dtype)
    for path in (tmp_path / "hf", tmp_path / "shards", f"params::{tmp_path / 'stream'}"):
        assert paths.model_config(str(path)) == config
        assert_same(collect(path, config), weights)
    tensors = {n: x.astype(dtype) for n, x in hf_tensors(config, weights).items()}
    read = lambda folder: {
        n: x
        for file in folder.glob("*.safetensors")
        for n, x in safetensors.numpy.load_file(file).items()
    }
    for folder in (tmp_path / "hf", tmp_path / "shards"):
        got = read(folder)
        assert got.keys() == tensors.keys() and all(
            got[n].dtype == dtype and np.array_equal(got[n], tensors[n]) for n in tensors
        )
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    listing = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert listing["weight_map"].keys() == tensors.keys() and listing["metadata"][
        "total_size"
    ] == sum(x.nbytes for x in tensors.values())
    limit = lambda file: (
        max(4000, max(x.nbytes for x in safetensors.numpy.load_file(file).values())) + 4000
    )  # a tensor over the limit has its own file
    assert all(file.stat().st_size <= limit(file) for file in files)


@pytest.mark.parametrize("chunk", [2**30, 250])
def test_easylm_reads_what_is_written_for_it(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(easylm, "CHUNK_BYTES", chunk)
    for dtype in ("float32", "bfloat16", "float16"):
        weights = random_weights(LLAMA)
        export.write_easylm(tmp_path / dtype, LLAMA, stream(weights), jnp.dtype(dtype))
        got, want = read_easylm(tmp_path / dtype), easylm_tensors(LLAMA, weights)
        assert got.keys() == want.keys()
        for key in want:
            assert got[key].dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(
                got[key], want[key].astype(jnp.dtype(dtype)), err_msg=str(key)
            )
        theirs = b"".join(msgpack.packb((key, flax_bytes(got[key], chunk))) for key in got)
        assert (tmp_path / dtype).read_bytes() == theirs  # byte for byte what msgpack itself packs


def run_folder(path, config, weights, step=7):
    """A run directory with one checkpoint, as train.py leaves it (as far as a model path goes)."""
    mesh, layout = mesh_of(4, 2), model.make_layout(config, 4, 2)
    spec = sharding.shardings(layout.stacked(config), mesh)
    table, stacked = model.weight_table(config), {}
    for name, row in table.items():
        x = (
            np.stack([weights[name, i] for i in range(config.L)])
            if row.layered
            else weights[name, None]
        )
        x = np.pad(x, ((0, config.padded_vocab - config.V), (0, 0))) if row.dims[0] == "V" else x
        stacked[name] = jax.device_put(x, spec[name])
    saver = runs.Saver(path, 3)
    saver.save(
        step,
        {
            "weights": stacked,
            "m": jax.tree.map(lambda x: x * 2, stacked),
            "step": jax.device_put(jnp.int32(step), NamedSharding(mesh, Spec())),
        },
        {"step": step},
    )
    saver.close()
    (path / "run.json").write_text(json.dumps({"config": dataclasses.asdict(config)}))
    return str(path)


def test_convert_takes_a_run_with_its_tokenizer_through_every_format(tmp_path, capsys):
    tok = word_tokenizer(
        tmp_path / "tok", tokenizer.load(str(ROOT / "samples" / "tokenizer.model")).size
    )
    config = dataclasses.replace(LLAMA, V=tok.size, L=2)
    weights = random_weights(config)
    path = run_folder(tmp_path / "run", config, weights)
    tok.save(str(tmp_path / "run" / "tokenizer"))
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    assert (
        checkpoint(["convert", str(tmp_path / "hf"), str(tmp_path / "stream"), "--to", "easylm"])
        == 0
    )
    assert (
        checkpoint(
            [
                "convert",
                f"params::{tmp_path / 'stream'}",
                str(tmp_path / "again"),
                "--tokenizer",
                str(tmp_path / "tok"),
            ]
        )
        == 0
    )
    for there in (path, tmp_path / "hf", f"params::{tmp_path / 'stream'}", tmp_path / "again"):
        assert_same(collect(there, config), weights)
    record = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert record["vocab_size"] == tok.size and (
        record["bos_token_id"],
        record["eos_token_id"],
    ) == (tok.bos, tok.eos)
    assert (
        tokenizer.load(str(tmp_path / "hf")).fingerprint
        == tokenizer.load(str(tmp_path / "again")).fingerprint
        == tok.fingerprint
    )
    ids = {
        t["content"]: t["id"]
        for t in json.loads((tmp_path / "hf" / "tokenizer.json").read_text())["added_tokens"]
    }
    assert ids["<|user|>"] == tok.size - 2 and ids["<|assistant|>"] == tok.size - 1
    assert "weights, float32" in capsys.readouterr().out


def test_convert_refuses_in_one_line_and_leaves_nothing_half_written(tmp_path, capsys):
    weights = random_weights(LLAMA)
    weights["w2", 2][3, 4] = (
        70000.0  # beyond float16, in the last layer: found when most is written
    )
    source = hf_folder(tmp_path / "hf", LLAMA, hf_tensors(LLAMA, weights))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    for args, says in (
        (
            ["convert", source, tmp_path / "out", "--dtype", "float16"],
            "tensor model.layers.2.mlp.down_proj.weight holds numbers beyond float16",
        ),
        (
            ["convert", source, tmp_path / "out", "--dtype", "float16", "--to", "easylm"],
            "tensor transformer/h/2/feed_forward/w2/kernel holds numbers beyond float16",
        ),
        (["convert", source, tmp_path / "full"], "is there already"),
        (["convert", source, tmp_path / "file", "--to", "easylm"], "is there already"),
        (["convert", source, tmp_path / "empty", "--to", "easylm"], "is there already"),
        (["convert", source, tmp_path / "out", "--tokenizer", tmp_path / "nowhere"], "nowhere"),
        (
            [
                "convert",
                source,
                tmp_path / "out",
                "--tokenizer",
                ROOT / "samples" / "tokenizer.model",
            ],
            "has 50 ids",
        ),
        (["convert", tmp_path / "nowhere", tmp_path / "out"], "does not exist"),
        (["diff", source, tmp_path / "nowhere", tmp_path / "out"], "does not exist"),
    ):
        assert checkpoint([str(a) for a in args]) == 2
        lines = [
            line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")
        ]
        assert len(lines) == 1 and lines[0].startswith("checkpoint: ") and says in lines[0], lines
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert checkpoint(["convert", source, str(tmp_path / "empty")]) == 0  # an empty folder will do
    assert_same(collect(tmp_path / "empty", LLAMA), weights)


def test_a_conversion_that_is_terminated_leaves_nothing(tmp_path):
    config = dataclasses.replace(LLAMA, V=3000, D=256, F=700)
    source = hf_folder(tmp_path / "hf", config, hf_tensors(config, random_weights(config)))
    slow = (
        "import sys, time\n"
        "from checkpoint import export\n"
        "from checkpoint.__main__ import main\n"
        "arrays = export.file_arrays\n"
        "def one_by_one(*args):\n"
        "    for item in arrays(*args):\n"
        "        yield item\n"
        "        print(item[0], flush=True), time.sleep(0.2)\n"
        "export.file_arrays = one_by_one\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", slow, "convert", source, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    child.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


# ------------------------------------------------------------------------------------------------------ diff and recover


def awkward(config, seed):
    """Weights with every kind of float32: tiny, huge, zeros of both signs, subnormals, infinities."""
    weights = random_weights(config, seed)
    rng = np.random.default_rng(seed + 100)
    for x in weights.values():
        x *= 10.0 ** rng.integers(-12, 3, size=x.shape)
        flat = x.reshape(-1)
        flat[rng.integers(0, flat.size, 6)] = np.float32([0.0, -0.0, 1e-42, -3e-45, np.inf, 3.4e38])
    return weights


@each_config
@pytest.mark.parametrize("to", ["hf", "easylm"])
def test_recover_gives_the_tuned_weights_back_bit_for_bit(config, to, tmp_path, capsys):
    tuned_config = dataclasses.replace(
        config, V=config.V + 2
    )  # role tokens, which the base does not have
    base, tuned = awkward(config, 1), awkward(tuned_config, 2)
    base_path = hf_folder(tmp_path / "base", config, hf_tensors(config, base))
    tuned_path = run_folder(tmp_path / "tuned", tuned_config, tuned)
    spell = lambda name: f"params::{tmp_path / name}" if to == "easylm" else str(tmp_path / name)
    assert checkpoint(["diff", base_path, tuned_path, spell("diff"), "--to", to]) == 0
    assert checkpoint(["recover", base_path, spell("diff"), spell("back"), "--to", to]) == 0
    assert "bit for bit" in capsys.readouterr().err
    assert_same(collect(spell("back"), tuned_config), tuned)
    added = {
        k: x
        for k, x in collect(spell("diff"), tuned_config, difference=True).items()
        if k[0] in ("embed", "head")
    }
    assert all(
        np.array_equal(x[-2:].view(np.float32), tuned[k][-2:]) for k, x in added.items()
    )  # added rows as they are
    for use in (
        ["convert", spell("diff"), spell("x")],
        ["diff", base_path, spell("diff"), spell("x")],
    ):
        assert checkpoint(use) == 2
        assert "is a difference to a base model" in capsys.readouterr().err


def test_float_differences_are_koala_s_and_come_back_to_rounding(tmp_path, capsys, monkeypatch):
    base, tuned = random_weights(LLAMA, 1), random_weights(LLAMA, 2)
    paths = [
        hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, w))
        for n, w in (("base", base), ("tuned", tuned))
    ]
    assert checkpoint(["diff", *paths, str(tmp_path / "diff"), "--float"]) == 0
    got = collect(tmp_path / "diff", LLAMA, difference=True)
    assert_same(got, {key: tuned[key] - base[key] for key in base})
    assert checkpoint(["recover", paths[0], str(tmp_path / "diff"), str(tmp_path / "back")]) == 0
    assert "up to float32 rounding" in capsys.readouterr().err
    for key, x in collect(
        tmp_path / "back", LLAMA
    ).items():  # |error| <= one ulp of the largest number met
        np.testing.assert_allclose(
            x,
            tuned[key],
            rtol=0,
            atol=float(np.abs(base[key]).max() + np.abs(tuned[key]).max()) * 2.0**-23,
        )
    # what EasyLM's own diff_checkpoint.py writes says nothing of its base
    monkeypatch.setitem(model.PRESETS, "mine", LLAMA)
    koala = easylm_file(
        tmp_path / "koala",
        {
            k: a - b
            for (k, a), b in zip(
                easylm_tensors(LLAMA, tuned).items(),
                easylm_tensors(LLAMA, base).values(),
                strict=True,
            )
        },
    )
    assert (
        checkpoint(["recover", paths[0], koala, str(tmp_path / "back2"), "--model-preset", "mine"])
        == 0
    )
    assert "unchecked" in capsys.readouterr().err
    assert_same(collect(tmp_path / "back2", LLAMA), collect(tmp_path / "back", LLAMA))


def test_recover_refuses_another_base_and_a_damaged_difference(tmp_path, capsys):
    paths = {
        n: hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, random_weights(LLAMA, i)))
        for i, n in enumerate(("base", "tuned", "other"))
    }
    smaller = dataclasses.replace(LLAMA, F=12)
    hf_folder(tmp_path / "smaller", smaller, hf_tensors(smaller, random_weights(smaller)))
    assert checkpoint(["diff", paths["base"], paths["tuned"], str(tmp_path / "diff")]) == 0
    shutil.copytree(tmp_path / "diff", tmp_path / "bad")
    content = bytearray((tmp_path / "bad" / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "bad" / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    for base, diff, says in (
        ("other", "diff", "is not the base"),
        ("base", "bad", "is damaged"),
        ("smaller", "diff", "w1 has shape (3, 24, 12) in the one, (3, 24, 20) in the other"),
    ):
        assert (
            checkpoint(
                ["recover", str(tmp_path / base), str(tmp_path / diff), str(tmp_path / "out")]
            )
            == 2
        )
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


# ----------------------------------------------------------------------------------------------------------------- own runs


def test_runs_without_a_checkpoint_or_of_another_config_are_refused(tmp_path):
    path = run_folder(tmp_path / "run", LLAMA, random_weights(LLAMA))
    assert collect(path, LLAMA, step=7).keys() == random_weights(LLAMA).keys()
    with pytest.raises(ValueError, match="has no checkpoint of step 6: there are 7"):
        collect(path, LLAMA, step=6)
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"config": dataclasses.asdict(dataclasses.replace(LLAMA, F=21))})
    )
    assert "tensor w1 has shape (3, 24, 20), expected (3, 24, 21)" in refusal(
        path, paths.model_config(path)
    )
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {"family": "llama"}}))
    assert "no config of this project" in refusal(path, LLAMA)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "7")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": dataclasses.asdict(LLAMA)}))
    assert "has no whole checkpoint" in refusal(path, LLAMA)


def test_a_fingerprint_tells_models_apart_and_is_that_of_the_content(tmp_path):
    weights = random_weights(LLAMA)
    a = hf_folder(tmp_path / "a", LLAMA, hf_tensors(LLAMA, weights))
    shutil.copytree(a, tmp_path / "b")
    assert paths.fingerprint(a) == paths.fingerprint(tmp_path / "b")
    weights["w1", 1][0, 0] += 1
    c = hf_folder(tmp_path / "c", LLAMA, hf_tensors(LLAMA, weights))
    assert paths.fingerprint(a) != paths.fingerprint(c)
    run = run_folder(tmp_path / "run", LLAMA, weights)
    first = paths.fingerprint(run)
    assert first == paths.fingerprint(run, 7) != paths.fingerprint(c)
    run_folder(tmp_path / "run", LLAMA, weights, step=8)
    assert paths.fingerprint(run, 7) == first != paths.fingerprint(run)


# ------------------------------------------------------------------------------------------------- memory, several hosts


def test_loading_takes_little_more_host_memory_than_one_slice():
    """300 MB in three shards onto 8x1: beyond the weights themselves (on CPU the shards are host memory too) at most 64 MB, the largest tensor being 33 MB."""
    out = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "load_memory.py"), "--megabytes", "300"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert out.returncode == 0, out.stderr
    got = json.loads(out.stdout.splitlines()[-1])
    assert got["weights_mb"] >= 290 and got["mesh"] == "8x1" and got["shards"] >= 3
    assert got["beyond_mb"] < 64, got


HOST = """
import sys, json
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/checkpoint"]
import jax
import jax.numpy as jnp
from test_checkpoint import *
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize("127.0.0.1:{port}", num_processes=2, process_id={i})
weights, read = random_weights(LLAMA), []
mesh, layout = sharding.make_mesh(8, 1), model.make_layout(LLAMA, 8, 1)
device_put = jax.device_put
jax.device_put = lambda x, device=None, **k: (read.append(np.asarray(x).nbytes), device_put(x, device, **k))[1]
got = load.load_weights({path!r}, LLAMA, mesh, layout)
jax.device_put = device_put
for name, x in got.items():
    want = np.stack([weights[name, i] for i in range(LLAMA.L)]) if (name, 0) in weights else weights[name, None]
    want = np.pad(want, [(0, n - m) for n, m in zip(x.shape, want.shape)])
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, want[shard.index], err_msg=name)
whole = sum(x.nbytes for n, x in got.items() if layout.specs[n] != Spec() and sharding.axes_of(layout.specs[n]))
assert sum(read) <= whole / 2 + sum(4 * x.nbytes for n, x in got.items() if not sharding.axes_of(layout.specs[n]))
saver = runs.Saver({run!r}, 2)
saver.save(1, {{"weights": got}}, {{"step": 1}})
saver.wait()
there = {{n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in got.items()}}
back, meta = saver.restore({{"weights": there}})
for name in got:
    for a, b in zip(got[name].addressable_shards, back["weights"][name].addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
saver.close()
print("good", saver.steps(), meta)
"""


def test_two_processes_load_and_save_their_own_shards(tmp_path):
    path = hf_folder(tmp_path / "hf", LLAMA, hf_tensors(LLAMA, random_weights(LLAMA)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = [
        HOST.format(root=str(ROOT), port=port, i=i, path=path, run=str(tmp_path / "run"))
        for i in range(2)
    ]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", c],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for c in code
    ]
    for host in hosts:
        out, err = host.communicate(timeout=240)
        assert "good [1] {'step': 1}" in out, err[-3000:]
    run_config = {"config": dataclasses.asdict(LLAMA)}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run_config))
    assert_same(collect(tmp_path / "run", LLAMA), random_weights(LLAMA))


# -------------------------------------------------------------------------------------------------------------- real files


def llama2c_logits(path, tokens):
    """Logits [T, V] of stories260K's tokens in float64 from the file itself: interleaved RoPE, one token at a time, nothing of this project."""
    raw = open(path, "rb").read()
    D, F, L, N, K, V, S = struct.unpack("<7i", raw[:28])
    H, flat, at = D // N, np.frombuffer(raw, "<f4", offset=28).astype(np.float64), 0

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return flat[at - int(np.prod(shape)) : at].reshape(shape)

    embed, attn_norm = take(V, D), take(L, D)
    wq, wk, wv, wo = take(L, D, D), take(L, K * H, D), take(L, K * H, D), take(L, D, D)
    mlp_norm, w1, w2, w3, final = take(L, D), take(L, F, D), take(L, D, F), take(L, F, D), take(D)
    norm = lambda x, g: x / np.sqrt((x * x).mean() + 1e-5) * g
    keys, values, out = [[] for _ in range(L)], [[] for _ in range(L)], []
    for t, token in enumerate(tokens):
        turn = np.exp(1j * t * 10000.0 ** (-np.arange(0, H, 2) / H))
        rotate = lambda v: (v.reshape(-1, H // 2, 2) @ [1, 1j]) * turn
        x = embed[token]
        for l in range(L):
            h = norm(x, attn_norm[l])
            q = rotate(wq[l] @ h)
            keys[l].append(rotate(wk[l] @ h))
            values[l].append((wv[l] @ h).reshape(K, H))
            heads = []
            for n in range(N):
                score = np.array(
                    [(q[n] * k[n * K // N].conj()).real.sum() for k in keys[l]]
                ) / np.sqrt(H)
                p = np.exp(score - score.max())
                heads.append((p / p.sum()) @ np.array([v[n * K // N] for v in values[l]]))
            x = x + wo[l] @ np.concatenate(heads)
            h = norm(x, mlp_norm[l])
            gate = w1[l] @ h
            x = x + w2[l] @ (gate / (1 + np.exp(-gate)) * (w3[l] @ h))
        out.append(embed @ norm(x, final))
    return np.array(out)


def test_stories260k_writes_its_expected_text_and_agrees_with_a_float64_loop(data_dir):
    folder = data_dir / "models" / "stories260K"
    path = str(folder / "stories260K.bin")
    config, tok = (
        paths.model_config(path),
        tokenizer.load(str(folder / "tok512.model"), roles=False),
    )
    mesh, layout = mesh_of(1, 1), model.make_layout(config, 1, 1)
    weights, logits = (
        load.load_weights(path, config, mesh, layout),
        model.make_logits(config, mesh, layout),
    )
    ids = np.full((1, 257), tok.bos, np.int32)
    for t in range(256):
        ids[0, t + 1] = int(np.argmax(logits(weights, ids)[0, t]))
    assert tok.bos not in ids[0, 1:]
    assert (
        tok.decode(ids[0, 1:].tolist()) + "\n" == (folder / "greedy_expected.txt").read_text()
    )  # run.c ends its line
    want = llama2c_logits(path, ids[0, :60])
    np.testing.assert_allclose(
        logits(weights, ids)[0, :60], want, atol=1e-4
    )  # float32 against float64; logits to about 20


def test_stories260k_survives_conversion_to_hugging_face_and_easylm(data_dir, tmp_path):
    path = str(data_dir / "models" / "stories260K" / "stories260K.bin")
    config = paths.model_config(path)
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    assert (
        checkpoint(["convert", str(tmp_path / "hf"), str(tmp_path / "stream"), "--to", "easylm"])
        == 0
    )
    for there in (tmp_path / "hf", f"params::{tmp_path / 'stream'}"):
        assert_same(collect(there, config), collect(path, config))
    assert tokenizer.load(str(tmp_path / "hf"), roles=False).base_size == 512


def test_tiny_gpt2_loads(data_dir, tmp_path):
    path = str(data_dir / "models" / "tiny-gpt2")
    config = paths.model_config(path)
    assert (config.V, config.D, config.L, config.N, config.P, config.tied) == (
        50257,
        2,
        2,
        2,
        1024,
        True,
    )
    mesh, layout = mesh_of(8, 1), model.make_layout(config, 8, 1)
    got = load.load_weights(path, config, mesh, layout)
    with safetensors.safe_open(pathlib.Path(path) / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        find = lambda end: file.get_tensor(next(n for n in names if n.endswith(end)))
        np.testing.assert_array_equal(got["embed"][: config.V], find("wte.weight"))
        np.testing.assert_array_equal(got["wk"][1], find("h.1.attn.c_attn.weight")[:, 2:4])
        np.testing.assert_array_equal(got["bv"][0], find("h.0.attn.c_attn.bias")[4:])
    assert (
        checkpoint(
            [
                "convert",
                path,
                str(tmp_path / "hf"),
                "--tokenizer",
                str(data_dir / "tokenizers" / "gpt2"),
            ]
        )
        == 0
    )
    assert_same(collect(tmp_path / "hf", config), collect(path, config))


# ------------------------------------------------------------------------------------------------------------------- live


def their_logits(path, token_BT):
    import torch
    from transformers import AutoModelForCausalLM

    theirs, loading = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(
        loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    ), loading
    with torch.no_grad():
        return theirs.eval()(torch.from_numpy(token_BT).long()).logits.numpy()


def our_logits(path, token_BT):
    config = paths.model_config(str(path))
    mesh, layout = mesh_of(2, 2), model.make_layout(config, 2, 2)
    return np.asarray(
        model.make_logits(config, mesh, layout)(
            load.load_weights(str(path), config, mesh, layout), token_BT
        )
    )


@pytest.mark.parametrize("case", list(make_references.CASES))
def test_what_transformers_saves_and_what_it_loads_give_its_logits(case, live, tmp_path):
    import torch

    torch.manual_seed(0)
    theirs = make_references.hugging_face(make_references.CASES[case])
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    token_BT = np.random.default_rng(0).integers(0, 37, (2, 23)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(token_BT).long()).logits.numpy()
    np.testing.assert_allclose(our_logits(tmp_path / "theirs", token_BT), want, atol=2e-4)
    assert checkpoint(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    np.testing.assert_allclose(their_logits(str(tmp_path / "ours"), token_BT), want, atol=1e-5)
    assert (
        checkpoint(
            ["convert", str(tmp_path / "theirs"), str(tmp_path / "half"), "--dtype", "bfloat16"]
        )
        == 0
    )
    np.testing.assert_allclose(
        their_logits(str(tmp_path / "half"), token_BT),
        our_logits(tmp_path / "half", token_BT),
        atol=2e-4,
    )


def test_an_exported_run_with_roles_gives_transformers_our_logits_and_our_ids(live, tmp_path):
    from transformers import AutoTokenizer

    tok = tokenizer.load(str(ROOT / "samples" / "tokenizer.model"))
    config = dataclasses.replace(TIED, V=tok.size)
    path = run_folder(tmp_path / "run", config, random_weights(config))
    tok.save(str(tmp_path / "run" / "tokenizer"))
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    token_BT = np.array(
        [[tok.bos, tok.user, 5, 9, tok.assistant, 77, tok.eos], list(range(100, 107))], np.int32
    )
    np.testing.assert_allclose(
        their_logits(str(tmp_path / "hf"), token_BT), our_logits(path, token_BT), atol=2e-4
    )
    assert their_logits(str(tmp_path / "hf"), token_BT).shape[-1] == tok.size
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("Who made it?", add_special_tokens=False).input_ids == tok.encode("Who made it?")
    assert theirs.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]) == [tok.user, tok.assistant]
    assert theirs.eos_token_id == tok.eos


def test_a_difference_is_not_loaded_as_a_model_by_transformers(live, tmp_path):
    paths = [
        hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, random_weights(LLAMA, i)))
        for i, n in enumerate(("base", "tuned"))
    ]
    assert checkpoint(["diff", *paths, str(tmp_path / "diff")]) == 0
    with pytest.raises(ValueError, match="difference"):
        their_logits(str(tmp_path / "diff"), np.zeros((1, 3), np.int32))


def test_tiny_gpt2_gives_transformers_logits(live, data_dir, tmp_path):
    path = data_dir / "models" / "tiny-gpt2"
    token_BT = np.random.default_rng(0).integers(0, 50257, (2, 30)).astype(np.int32)
    np.testing.assert_allclose(
        our_logits(path, token_BT), their_logits(str(path), token_BT), atol=2e-4
    )
