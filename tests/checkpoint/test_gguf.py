"""GGUF files: written here by the gguf library, taken apart by it, in every order of RoPE.

python -m pytest tests/checkpoint/test_gguf.py
"""

import dataclasses
import struct

import gguf
import numpy as np
import pytest
from foreign import ROOT, collect, interleaved, mesh_of, random_weights
from gguf import GGMLQuantizationType as Kind

import model
from checkpoint import gguf_file, load, paths
from checkpoint.__main__ import main
from text import tokenizer
from text.byte_pairs import byte_alphabet

SAMPLE = ROOT / "samples" / "tokenizer.model"
MERGES = ["Ġ t", "h e", "Ġt he", "he n", "1 2", "l l"]
NAMES = {
    "wq": "attn_q.weight",
    "wk": "attn_k.weight",
    "wv": "attn_v.weight",
    "wo": "attn_output.weight",
    "w1": "ffn_gate.weight",
    "w2": "ffn_down.weight",
    "w3": "ffn_up.weight",
    "attn_norm": "attn_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "bq": "attn_q.bias",
    "bk": "attn_k.bias",
    "bv": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(byte_alphabet())]
TOKENS += ["".join(merge.split(" ")) for merge in MERGES]
LLAMA = model.Config("llama", len(TOKENS), 64, 2, 4, 2, 16, 96, 128, 1e-5, theta=5e4, tied=True)
QWEN2 = dataclasses.replace(LLAMA, tied=False, qkv_bias=True)
QWEN3 = dataclasses.replace(LLAMA, qk_norm=True, H=32)
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}


def add_tokenizer(writer, pre="smollm"):
    """A "gpt2" tokenizer of llama.cpp."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")


def write(path, family, weights, kinds=None, pre="smollm"):
    """A GGUF file. kinds: our name of a weight -> how it is quantised; else float32."""
    c = FAMILIES[family]
    writer = gguf.GGUFWriter(str(path), family)
    writer.add_block_count(c.L)
    writer.add_embedding_length(c.D)
    writer.add_head_count(c.N)
    writer.add_head_count_kv(c.K)
    writer.add_key_length(c.H)
    writer.add_feed_forward_length(c.F)
    writer.add_context_length(c.P)
    writer.add_rope_freq_base(c.theta)
    writer.add_layer_norm_rms_eps(c.eps)
    add_tokenizer(writer, pre)
    for (name, layer), x in weights.items():
        if family == "llama" and name in ("wq", "wk"):
            x = interleaved(x, c.H)
        x = np.ascontiguousarray(x.T if name[0] == "w" else x)
        kind = (kinds or {}).get(name, Kind.F32)
        there = NAMES[name] if layer is None else f"blk.{layer}.{NAMES[name]}"
        writer.add_tensor(there, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewritten(path, pre, eot):
    """A tokenizer alone, without a word on bos, whose turns end otherwise than its texts."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(eot)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_whole_in_our_order(family, tmp_path):
    config = FAMILIES[family]
    weights = random_weights(config)
    path = write(tmp_path / "m.gguf", family, weights)
    assert paths.model_config(path) == load.check(path) == config
    got = collect(path, config)
    assert got.keys() == weights.keys()
    for key in weights:
        np.testing.assert_array_equal(got[key], weights[key], err_msg=str(key))


def test_quantised_tensors_are_taken_apart_slice_by_slice(tmp_path):
    kinds = {"wq": Kind.Q8_0, "w2": Kind.Q4_1, "embed": Kind.F16, "wo": Kind.BF16, "w1": Kind.Q5_0}
    weights = random_weights(LLAMA)
    path = write(tmp_path / "m.gguf", "llama", weights, kinds)
    want = {}
    for (name, layer), x in weights.items():
        kind = kinds.get(name, Kind.F32)
        y = interleaved(x, LLAMA.H) if name == "wq" else x
        y = np.ascontiguousarray(y.T if name[0] == "w" else y)
        y = gguf.quants.dequantize(gguf.quants.quantize(y, kind), kind)
        y = y.T if name[0] == "w" else y
        if name == "wq":  # back again, index by index
            z = np.empty_like(y)
            for head in range(LLAMA.N):
                for i in range(LLAMA.H // 2):
                    for j in range(2):
                        at = head * LLAMA.H
                        z[:, at + j * (LLAMA.H // 2) + i] = y[:, at + 2 * i + j]
            y = z
        want[name, layer] = y
    for data, tensor in ((1, 1), (4, 2)):
        mesh, layout = mesh_of(data, tensor), model.make_layout(LLAMA, data, tensor)
        got = load.load_weights(path, LLAMA, mesh, layout)
        for name, layer in weights:
            x = got[name] if layer is None else got[name][layer]
            x = np.asarray(x)[: LLAMA.V] if name == "embed" else np.asarray(x)
            np.testing.assert_array_equal(x, want[name, layer], err_msg=f"{name} {data}x{tensor}")


def test_its_tokenizer_is_that_of_its_metadata(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", random_weights(LLAMA))
    tok = tokenizer.load(path, roles=False)
    assert (tok.bos, tok.eos, tok.start, tok.base_size) == (1, 2, [], len(TOKENS))
    text = "the hen 12 3 <|im_start|>\n"
    ids = tok.encode(text)
    assert tok.decode(ids) == text and not set(ids) & {0, 1, 2}
    one, two = (TOKENS.index(c) for c in "12")
    assert tok.encode("12") == [one, two]  # smollm's digits stand apart, though a merge joins them
    other = write(tmp_path / "o.gguf", "llama", random_weights(LLAMA), pre="gpt-2")
    assert tokenizer.load(other, roles=False).encode("12") == [TOKENS.index("12")]
    assert tok.chat_template and "im_start" in tok.chat_template
    llama3 = tokenizer.load(rewritten(tmp_path / "l.gguf", "llama-bpe", eot=1), roles=False)
    assert (
        llama3.start == [0]
        and llama3.eos_ids == {1, 2}
        and llama3.encode("12") == [TOKENS.index("12")]
    )
    unknown = write(tmp_path / "u.gguf", "llama", random_weights(LLAMA), pre="tekken")
    with pytest.raises(ValueError, match="pre 'tekken' is not supported"):
        tokenizer.load(unknown)


def test_a_sentencepiece_tokenizer_comes_back_out_of_its_pieces(tmp_path):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(SAMPLE))
    ids = range(theirs.vocab_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([theirs.id_to_piece(i) for i in ids])
    writer.add_token_scores([theirs.get_score(i) for i in ids])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tok, plain = (tokenizer.load(p, roles=False) for p in (tmp_path / "m.gguf", SAMPLE))
    assert (tok.kind, tok.bos, tok.eos, tok.start) == ("sentencepiece", 1, 2, [1])
    for text in ("Who made it?", "  two  spaces\n", "</s> <s>", "Größe 你好 \u2581", ""):
        assert tok.encode(text) == plain.encode(text) and tok.decode(tok.encode(text)) == text
    tok.save(tmp_path / "copy")
    assert tokenizer.load(tmp_path / "copy", roles=False).encode("Who?") == plain.encode("Who?")


def test_it_converts_to_a_hugging_face_folder_with_the_same_weights_and_ids(tmp_path, capsys):
    path = write(tmp_path / "m.gguf", "qwen2", random_weights(QWEN2))
    assert main(["convert", str(path), str(tmp_path / "hf")]) == 0, capsys.readouterr().err
    config = paths.model_config(tmp_path / "hf")
    assert config == QWEN2
    got, want = collect(tmp_path / "hf", config), collect(path, QWEN2)
    assert all(np.array_equal(got[key], want[key]) for key in want)
    a, b = (tokenizer.load(p, roles=False) for p in (path, tmp_path / "hf"))
    text = "the hen, 123 then <|im_end|>"
    assert a.encode(text) == b.encode(text) and (a.eos, a.start) == (b.eos, b.start)
    assert a.chat_template == b.chat_template


def refusal(path):
    with pytest.raises(ValueError) as caught:
        load.check(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf", "llama", random_weights(LLAMA))
    content = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 60), *range(60, len(content), 9973), len(content) - 1]:
        cut.write_bytes(content[:size])
        line = refusal(cut)
        assert "copy it again" in line, line


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**60),
        struct.pack("<4sIQQ", b"GGUF", 9, 0, 0),
        # an array of 2^62 bytes, of 2^40 arrays
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 0, 2**62),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 2**40),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63),
    ],
)
def test_counts_that_lie_are_refused_at_once(head, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(head + bytes(100))
    assert "GGUF" in refusal(path)


def test_foreign_files_and_architectures_are_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "gemma3")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "general.architecture 'gemma3' is not supported" in refusal(tmp_path / "m.gguf")
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "does not begin as a GGUF file does" in refusal(tmp_path / "x.gguf")


def test_llama_3_1_s_factors_are_told_from_others():
    want = (8.0, 1.0, 4.0, 8192)
    factors = gguf_file.llama3_factors(64, 5e5, *want)
    assert factors[0] == 1 and factors[-1] == 8 and np.all(np.diff(factors) >= 0)
    # by the definition in transformers' modeling_rope_utils, one frequency at a time
    for i in (0, 20, 30, 36, 63):
        wavelength = 2 * np.pi * 5e5 ** (i / 64)
        if wavelength < 8192 / 4:
            factor = 1
        elif wavelength > 8192:
            factor = 8
        else:
            smooth = (8192 / wavelength - 1) / 3
            factor = 1 / ((1 - smooth) / 8 + smooth)
        assert factors[i] == pytest.approx(factor)
