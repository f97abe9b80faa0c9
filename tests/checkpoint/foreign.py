"""Weight files as other projects write them, made by other means than ours, and their readers.

By the safetensors package, by struct, by a re-statement of EasyLM's writer over msgpack. Sizes are
odd on purpose.
"""

import dataclasses
import json
import pathlib
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from checkpoint import huggingface, load, paths, runs
from checkpoint.mapping import order

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
    """Hugging Face's names and layouts, by hand for both families, not from our table."""
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

    def order(d):
        return [d[str(i)] for i in range(len(d))]

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
        for name in "embed attn_norm wq wk wv wo mlp_norm w1 w2 w3 final_norm".split():
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


def refusal(path, config):
    """The line with which reading a model path is refused."""
    with pytest.raises(ValueError) as caught:
        for _ in load.read_weights(str(path), config):
            pass
    line = str(caught.value)
    assert "\n" not in line and ": " in line, line
    return line


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
