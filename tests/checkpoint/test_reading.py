"""Every format is read: against files written by other means, onto every mesh.

Logits are Hugging Face's stored ones (tests/make_references.py).
"""

import dataclasses
import json

import jax.numpy as jnp
import make_references
import ml_dtypes
import numpy as np
import pytest
from foreign import (
    GPT2,
    LLAMA,
    REFERENCES,
    TIED,
    assert_same,
    bin_file,
    collect,
    each_config,
    easylm_file,
    easylm_tensors,
    hf_folder,
    hf_tensors,
    mesh_of,
    random_weights,
    run_folder,
)

import model
import sharding
from checkpoint import huggingface, load, paths
from checkpoint.mapping import half_split
from checkpoint.tensors import dense
from kernels.layers import rope_half, rope_interleaved, rope_table


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


@pytest.mark.parametrize("apart", [True, False])
def test_layers_apart_are_those_of_the_stacks_and_their_checksums_are_compared(
    apart, tmp_path, monkeypatch
):
    weights = random_weights(LLAMA)
    run = run_folder(tmp_path / "run", LLAMA, weights)
    mesh, layout = mesh_of(1, 2), model.make_layout(LLAMA, 1, 2, False)
    got = load.load_weights(run, LLAMA, mesh, layout, apart=apart)
    for name, row in model.weight_table(LLAMA).items():
        for i in range(LLAMA.L if row.layered else 0):
            np.testing.assert_array_equal(got[name][i], weights[name, i])
        assert isinstance(got[name], list) == (apart and row.layered)
    record = load.runs.record_of(run, 7)
    record["sums"]["weights.wo"] += 1
    monkeypatch.setattr(load.runs, "record_of", lambda *_: record)
    with pytest.raises(ValueError, match="wo has another checksum"):
        load.load_weights(run, LLAMA, mesh, layout, apart=apart)


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

    def heads(w):
        return (x @ w).reshape(1, 7, 3, H)

    columns = half_split(model.Config("llama", 8, 24, 1, 3, 3, H, 4, 8, 1e-5), 3 * H)

    def score(rotate, a, b):
        turned = rotate(heads(a), cos, sin), rotate(heads(b), cos, sin)
        return jnp.einsum("btnh,bsnh->bnts", *turned)

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
