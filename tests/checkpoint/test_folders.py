"""Folders as people have them: what their files disagree on, what is padded, what is hostile.

python -m pytest tests/checkpoint/test_folders.py
python -m pytest tests/checkpoint/test_folders.py --live       # families against transformers
"""

import dataclasses
import json
import shutil
import struct
import time

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from foreign import (
    GPT2,
    LLAMA,
    ROOT,
    TIED,
    assert_same,
    collect,
    hf_folder,
    hf_tensors,
    our_logits,
    random_weights,
    run_folder,
    stream,
    their_logits,
)

from checkpoint import export, huggingface, load, paths, vocabulary
from checkpoint.__main__ import main
from decoding.opened import open_model
from decoding.records import Sampling
from text import tokenizer

SAMPLE = ROOT / "samples" / "tokenizer.model"
N = 1024  # its ids


def refusal(function, *args):
    with pytest.raises(ValueError) as caught:
        function(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# --- weights ---


def test_a_tied_head_that_is_saved_too_must_be_the_embedding(tmp_path):
    weights = random_weights(TIED)
    tensors = hf_tensors(TIED, weights)
    embed = tensors["model.embed_tokens.weight"]
    path = hf_folder(tmp_path / "same", TIED, tensors | {"lm_head.weight": embed.copy()})
    assert_same(collect(path, TIED), weights)
    other = embed.copy()
    other[7, 3] = np.nextafter(other[7, 3], 9, dtype=np.float32)
    path = hf_folder(tmp_path / "other", TIED, tensors | {"lm_head.weight": other})
    assert "unexpected tensor lm_head.weight" in refusal(load.check, path)
    gpt2 = random_weights(GPT2)
    tensors = {n.removeprefix("transformer."): x for n, x in hf_tensors(GPT2, gpt2).items()}
    path = hf_folder(tmp_path / "gpt2", GPT2, tensors | {"lm_head.weight": tensors["wte.weight"]})
    assert_same(collect(path, GPT2), gpt2)


def test_model_safetensors_is_taken_whatever_an_index_beside_it_says(tmp_path):
    weights = random_weights(LLAMA)
    path = hf_folder(tmp_path / "m", LLAMA, hf_tensors(LLAMA, weights))
    stale = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert_same(collect(path, LLAMA), weights)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float32, np.int64])
def test_gpt2_s_masks_of_any_type_are_no_weights(dtype, tmp_path):
    weights = random_weights(GPT2)
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 4, 4), dtype) for i in range(GPT2.L)}
    masks |= {f"transformer.{name}": x for name, x in masks.items()}
    path = hf_folder(tmp_path / "m", GPT2, hf_tensors(GPT2, weights) | masks)
    assert_same(collect(path, GPT2), weights)


@pytest.mark.parametrize(
    "record, change",
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 40}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64}),
        ("qwen3", {"attention_bias": False}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ],
)
def test_families_are_a_few_flags_of_one(record, change, tmp_path):
    names = {"mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
    base = huggingface.write_config(LLAMA) | {
        "architectures": [f"{names[record]}ForCausalLM"],
        "model_type": record,
    }
    config = huggingface.read_config(base | change, "c")
    want = {
        "mistral": {"P": change.get("sliding_window") or LLAMA.P},
        "qwen2": {"qkv_bias": True},
        "qwen3": {"qk_norm": True},
        "llama": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    }[record]
    if "rope_scaling" in change:
        want = {"rope_scaling": (4.0,)}
    assert config == dataclasses.replace(LLAMA, **want)
    # and out again, and its weights too
    again = huggingface.read_config(huggingface.write_config(config), "c")
    assert again == config
    weights = random_weights(config)
    export.write_hf(tmp_path / "hf", config, stream(weights), None)
    assert paths.model_config(tmp_path / "hf") == config
    assert_same(collect(tmp_path / "hf", config), weights)
    if record != "llama" or "rope_scaling" not in change:
        return
    assert load.check(tmp_path / "hf") == config


def test_what_easylm_cannot_hold_is_refused(tmp_path):
    config = dataclasses.replace(LLAMA, qkv_bias=True)
    says = refusal(export.write_easylm, tmp_path / "s", config, stream(random_weights(config)))
    assert "EasyLM's models have no weight bq: use --to hf" in says


@pytest.mark.parametrize(
    "change, says",
    [
        ({"num_hidden_layers": 10**7}, "gives 10000000 for a size (L)"),
        ({"num_attention_heads": 0}, "wrong type"),
        ({"num_attention_heads": 0, "head_dim": 8}, "gives 0 for a size (N)"),
        ({"num_key_value_heads": -2}, "for a size (K)"),
        ({"hidden_size": 24.0}, "for a size (D)"),
        ({"hidden_size": "24"}, "wrong type"),
        ({"hidden_size": True}, "gives True for a size (D)"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'"),
        ({"architectures": [["x"]]}, "no list of names"),
        ({"architectures": {"a": 1}}, "no list of names"),
        ({"rope_scaling": "linear"}, "wrong type"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_theta": [1]}, "wrong type"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"vocab_size": 2**40}, "for a size (V)"),
        ({"rms_norm_eps": {}}, "wrong type"),
        ({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True}, "use_sliding_window"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": "4"}, "sliding_window is '4'"),
        ({"architectures": ["\x1b[2JForCausalLM"]}, "is not supported"),
    ],
)
def test_a_hostile_config_is_refused_in_one_line(change, says, tmp_path, capsys):
    record = huggingface.write_config(LLAMA) | change
    if record.get("head_dim") == 8 and "head_dim" not in change:
        record.pop("head_dim")
    (tmp_path / "config.json").write_text(json.dumps(record))
    started = time.monotonic()
    assert says in refusal(paths.model_config, tmp_path)
    assert time.monotonic() - started < 2
    assert main(["convert", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_hostile_sizes_of_a_bin_and_maps_in_maps_of_a_stream_are_refused_at_once(tmp_path):
    for sizes in ((24, 20, 2**31 - 1, 4, 2, 50, 64), (1, 1, 10**6, 1, 1, 1, 1), (2**30,) * 7):
        (tmp_path / "m.bin").write_bytes(struct.pack("<7i", *sizes) + bytes(4000))
        started = time.monotonic()
        assert "no llama2.c file" in refusal(load.check, tmp_path / "m.bin")
        assert time.monotonic() - started < 2
    deep = (
        msgpack.packb(("params", "a")) + b"\xc6\xff\xff\xff\xff" + b"\x81\xa6chunks\x81\xa10" * 5000
    )
    (tmp_path / "s").write_bytes(b"\x92" + deep)
    assert "copy it again" in refusal(load.check, f"params::{tmp_path / 's'}", "llama-7b")


def test_truncated_weights_are_found_by_their_headers(tmp_path):
    path = hf_folder(tmp_path / "m", LLAMA, hf_tensors(LLAMA, random_weights(LLAMA)))
    assert load.check(path) == LLAMA
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "is truncated: of tensor" in refusal(load.check, path)


# --- vocabularies ---


def model_folder(path, rows, **files):
    """A Hugging Face folder of `rows` rows with the sample tokenizer (1,024 ids)."""
    config = dataclasses.replace(LLAMA, V=rows, L=1, P=128)
    hf_folder(path, config, hf_tensors(config, random_weights(config)))
    shutil.copy(SAMPLE, path / "tokenizer.model")
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path, config


def test_padding_rows_are_never_sampled(tmp_path, capsys):
    path, config = model_folder(tmp_path / "m", N + 64)
    tok = vocabulary.model_tokenizer(path, config)
    assert (tok.base_size, tok.roles, len(tok.unused)) == (N + 64, False, 64)
    assert (
        "64 rows more than its tokenizer has ids: they are never sampled" in capsys.readouterr().err
    )
    head = safetensors.numpy.load_file(path / "model.safetensors")
    best = head["lm_head.weight"]
    best[N:] = 100 * best[:64]  # the padding rows would win nearly always
    safetensors.numpy.save_file(head, path / "model.safetensors", metadata={"format": "pt"})
    opened = open_model(str(path), mesh="2x2", batch=4)
    for sampling in (Sampling(20), Sampling(20, temperature=5.0, seed=1)):
        for output in opened.generate([[1, 5, 9], [1, 40]], sampling):
            assert output.ids and max(output.ids) < N


def test_one_row_more_is_the_token_that_added_tokens_names(tmp_path):
    path, config = model_folder(tmp_path / "m", N + 1, added_tokens={"[PAD]": N})
    tok = vocabulary.model_tokenizer(path, config)
    assert tok.base_size == N + 1 and tok.decode([N]) == "[PAD]" and not tok.unused
    assert not tok.roles and N not in tok.encode("[PAD]")


def test_two_rows_more_are_role_tokens_only_where_the_folder_says_so(tmp_path):
    path, config = model_folder(tmp_path / "plain", N + 2)
    tok = vocabulary.model_tokenizer(path, config)
    assert not tok.roles and tok.unused == {N, N + 1}
    foreign = {"<pad>": N, "<sep>": N + 1}
    path, config = model_folder(tmp_path / "foreign", N + 2, added_tokens=foreign)
    tok = vocabulary.model_tokenizer(path, config)
    assert not tok.roles and tok.decode([N, N + 1]) == "<pad><sep>"
    named = {"<|user|>": N, "<|assistant|>": N + 1}
    path, config = model_folder(tmp_path / "named", N + 2, added_tokens=named)
    tok = vocabulary.model_tokenizer(path, config)
    assert tok.roles and (tok.user, tok.assistant, tok.base_size) == (N, N + 1, N)


def test_role_tokens_survive_every_form_on_top_of_a_padded_vocabulary(tmp_path):
    config = dataclasses.replace(LLAMA, V=N + 64 + 2, L=1)
    path = run_folder(tmp_path / "run", config, random_weights(config))
    tok = tokenizer.load(SAMPLE, roles=True, rows=N + 64)
    tok.save(tmp_path / "run" / "tokenizer")
    record = {"config": dataclasses.asdict(config), "roles": True}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for src, dst, to in (("run", "hf", "hf"), ("hf", "stream", "easylm"), ("stream", "hf2", "hf")):
        name = f"params::{tmp_path / src}" if src == "stream" else str(tmp_path / src)
        more = ["--tokenizer", f"{path}/tokenizer"] if src == "stream" else []
        assert main(["convert", name, str(tmp_path / dst), "--to", to, *more]) == 0
    for name in ("run", "hf", "hf2"):
        there = vocabulary.model_tokenizer(tmp_path / name, config)
        assert there.roles and (there.user, there.size) == (N + 64, N + 66), name


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    for rows in (N - 1, N + 200, 4 * N, 32000):
        path, config = model_folder(tmp_path / str(rows), rows)
        says = refusal(vocabulary.model_tokenizer, path, config)
        assert f"has {rows} ids" in says and f"has {N} " in says


def test_all_end_tokens_end_what_is_said_and_stay_in_an_export(tmp_path):
    ends = {"bos_token_id": 1, "eos_token_id": [2, 401]}
    path, config = model_folder(tmp_path / "m", N, generation_config=ends)
    opened = open_model(str(path), mesh="1x1", batch=1)
    assert opened.stop_ids == {2, 401}
    (free,) = opened.generate([[1, 5, 9]], Sampling(30))
    third = free.ids[2]
    ends = {"bos_token_id": 1, "eos_token_id": [2, third]}
    (path / "generation_config.json").write_text(json.dumps(ends))
    opened = open_model(str(path), mesh="1x1", batch=1)
    (output,) = opened.generate([[1, 5, 9]], Sampling(30))
    assert output.reason == "stop" and third not in output.ids and len(output.ids) <= 2
    assert main(["convert", str(path), str(tmp_path / "hf")]) == 0
    for name in ("config", "generation_config"):
        there = json.loads((tmp_path / "hf" / f"{name}.json").read_text())
        assert there["eos_token_id"] == [2, third] and there["bos_token_id"] == 1


def test_the_end_of_a_template_is_an_end_token_of_the_export(tmp_path):
    config = dataclasses.replace(LLAMA, V=N + 2, L=1)
    tokens = {"<|im_start|>": N, "<|im_end|>": N + 1}
    path = run_folder(tmp_path / "run", config, random_weights(config))
    folder = tmp_path / "run" / "tokenizer"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps(tokens))
    record = {"config": dataclasses.asdict(config), "roles": False, "args": {"template": "chatml"}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert main(["convert", path, str(tmp_path / "hf")]) == 0
    there = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert there["eos_token_id"] == [2, N + 1]
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert "<|im_start|>" in config["chat_template"]


def test_no_bos_is_put_where_the_folder_wants_none(tmp_path):
    path, config = model_folder(tmp_path / "m", N, tokenizer_config={"add_bos_token": False})
    opened = open_model(str(path), mesh="1x1", batch=1)
    assert opened.start == [] and opened.tok.opening == []
    assert main(["convert", str(path), str(tmp_path / "hf")]) == 0
    assert vocabulary.model_tokenizer(tmp_path / "hf", config).start == []


# --- families against transformers ---

SMALL = dict(
    vocab_size=37, hidden_size=24, intermediate_size=20, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
THEIRS = {
    "mistral": ("MistralConfig", dict(head_dim=8, sliding_window=None)),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", dict(head_dim=8)),
    "biases": ("LlamaConfig", dict(attention_bias=True, mlp_bias=True)),
    "linear": ("LlamaConfig", dict(rope_parameters=dict(
        rope_type="linear", rope_theta=1e4, factor=4.0))),
    "llama3": ("LlamaConfig", dict(tie_word_embeddings=True, head_dim=8, rope_parameters=dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32))),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", THEIRS)
def test_what_transformers_saves_and_loads_gives_its_logits(case, dtype, live, tmp_path):
    import torch
    import transformers

    name, more = THEIRS[case]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SMALL | more)
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    theirs = theirs.to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs")
    token_BT = np.random.default_rng(0).integers(0, 37, (2, 23)).astype(np.int32)
    want = their_logits(str(tmp_path / "theirs"), token_BT)  # in float32 again
    np.testing.assert_allclose(our_logits(tmp_path / "theirs", token_BT), want, atol=2e-4)
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    np.testing.assert_allclose(their_logits(str(tmp_path / "ours"), token_BT), want, atol=2e-5)
