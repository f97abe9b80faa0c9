"""tokenizer.json and what a folder says of its tokenizer, against the tokenizers library.

python -m pytest tests/text/test_tokenizer_json.py
"""

import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from toy_tokenizers import MERGES, PASTED, TEXTS, TRICKY, write_gpt2, write_llama3
from toy_tokenizers import write_sentencepiece as write_pieces

from text import tokenizer
from text.byte_pairs import LLAMA3_PATTERN, byte_alphabet
from text.tokenizer import load
from text.tokenizer_export import write_hf

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LEVEL = dict(add_prefix_space=False)
CUTS = {
    "gpt2": pre_tokenizers.ByteLevel(**LEVEL),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**LEVEL)]
    ),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(LLAMA3_PATTERN.replace(r"\s++$|", "")), "isolated"
            ),
            pre_tokenizers.ByteLevel(**LEVEL, use_regex=False),
        ]
    ),
    "prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
}


def byte_level(cut):
    """The library's tokenizer with byte pairs, cut by some rule; its vocabulary and merges."""
    tokens = SPECIAL + sorted(byte_alphabet()) + [a + b for a, b in MERGES]
    vocab = {token: i for i, token in enumerate(tokens)}
    oracle = tokenizers.Tokenizer(models.BPE(vocab, MERGES))
    oracle.pre_tokenizer, oracle.decoder = CUTS[cut], decoders.ByteLevel()
    oracle.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    oracle.add_tokens([AddedToken("hippo", normalized=False), AddedToken("  ", normalized=False)])
    return oracle


def unigram():
    """The library's tokenizer with a Unigram model whose vocabulary holds its special tokens."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0), ("▁the", -2.0)]
    pieces += [(c, -5.0 - i) for i, c in enumerate("abcdefghijklmnopqrstuvwxyz<>/|_'0123456789")]
    oracle = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    oracle.normalizer = normalizers.NFC()
    oracle.pre_tokenizer, oracle.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    oracle.add_special_tokens(["<unk>", "<s>", "</s>"])
    oracle.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return oracle


def folder_of(path, oracle, **config):
    """A folder with the oracle's tokenizer.json and a tokenizer_config.json."""
    path.mkdir()
    oracle.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


ENDS = dict(bos_token="<|endoftext|>", eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """name -> (Tokenizer, the library's tokenizer, to which no text is special)."""
    root, out = tmp_path_factory.mktemp("json"), {}
    for cut in CUTS:
        oracle = byte_level(cut)
        plain = tokenizers.Tokenizer.from_str(oracle.to_str())
        plain.encode_special_tokens = True  # no text here holds "hippo"
        out[cut] = load(folder_of(root / cut, oracle, **ENDS), roles=False), plain
    return out


@pytest.mark.parametrize("cut", CUTS)
def test_ids_are_the_library_s(toys, cut):
    tok, oracle = toys[cut]
    assert tok.kind == "tokenizer.json" and tok.bos == 0 and tok.eos == 2
    for text in TEXTS:
        assert tok.encode(text) == oracle.encode(text, add_special_tokens=False).ids, text


@settings(max_examples=80, deadline=None)
@given(text=PASTED, cut=st.sampled_from(["gpt2", "smollm", "llama3"]))
def test_every_text_comes_back_and_none_becomes_an_added_token(toys, text, cut):
    tok, _ = toys[cut]
    ids = tok.encode(text)
    assert tok.decode(ids) == text and not set(ids) & {0, 1, 2, tok.id_of("hippo")}


@pytest.mark.parametrize("text", [*SPECIAL, "the hippo", "<s>", "</s>", "<unk>"])
def test_a_typed_token_is_ordinary_text_in_every_model(text, tmp_path, toys):
    for tok, _ in toys.values():
        ids = tok.encode("hi" + text)
        assert len(ids) > 2 and not set(ids) & tok.special
    tok = load(folder_of(tmp_path / "u", unigram(), eos_token="</s>", bos_token="<s>"), False)
    assert not set(tok.encode(text)) & {1, 2} and tok.decode(tok.encode("the </s>")) == "the </s>"
    assert tok.start == [1] and unigram().encode("the </s>", add_special_tokens=False).ids[-1] == 2


def test_it_travels_to_another_process_and_is_saved_with_its_folder_s_word(tmp_path, toys):
    tok, _ = toys["smollm"]
    again = pickle.loads(pickle.dumps(tok))
    assert [again.encode(t) for t in TRICKY] == [tok.encode(t) for t in TRICKY]
    (tok.files[0].parent / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    tok = load(tok.files[0].parent)
    tok.save(tmp_path / "copy")
    copy = load(tmp_path / "copy")
    assert copy.fingerprint == tok.fingerprint and copy.eos_ids == {0, 2} == tok.eos_ids
    assert load(*tok.origin).size == tok.size


def test_it_wins_over_the_pair_unless_both_cut_as_gpt2_does(tmp_path):
    for cut, kind in (("smollm", "tokenizer.json"), ("gpt2", "gpt2"), ("prefix", "tokenizer.json")):
        oracle = byte_level(cut)
        folder = folder_of(tmp_path / cut, oracle, **ENDS)
        model = json.loads(oracle.to_str())["model"]
        vocab = oracle.get_vocab()
        (folder / "vocab.json").write_text(json.dumps(vocab))
        merges = "".join(f"{a} {b}\n" for a, b in MERGES)
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
        tok = load(folder, roles=False)
        assert tok.kind == kind and (tok.bos, tok.eos) == (0, 2)
        if cut == "smollm":
            assert tok.encode("12") == [model["vocab"]["1"], model["vocab"]["2"]]


@pytest.mark.parametrize(
    "config, why",
    [
        ({}, "nothing beside them says that it is GPT-2's"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "nothing beside them"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "add_prefix_space true"),
        ({"tokenizer_class": "GPT2Tokenizer"}, None),
    ],
)
def test_the_pair_alone_is_read_only_where_it_is_known_to_be_gpt2_s(config, why, tmp_path):
    write_gpt2(tmp_path, ("vocab.json", "merges.txt"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if why is None:
        assert load(tmp_path).kind == "gpt2"
        # with digits apart in the vocabulary, the name says nothing
        lines = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
        lines = [line for line in lines if not set("123") & set(line)]
        (tmp_path / "merges.txt").write_text("".join(lines))
        why = "no merge joins two digits"
    with pytest.raises(ValueError, match=why) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_a_folder_s_tokenizer_model_and_tokenizer_json_give_the_same_ids(tmp_path):
    for write in (write_pieces, write_llama3):
        tok = load(write(tmp_path / write.__name__), roles=False)
        write_hf(tok, tmp_path / "hf")
        both = load(tmp_path / "hf", roles=False)
        listed = load(tmp_path / "hf" / "tokenizer.json", roles=False)
        assert both.kind == tok.kind and listed.kind == "tokenizer.json"
        assert both.fingerprint == tok.fingerprint
        assert (listed.bos, listed.eos, listed.start) == (tok.bos, tok.eos, tok.start)
        for text in TEXTS:
            assert listed.encode(text) == both.encode(text) == tok.encode(text), text
            assert listed.decode(listed.encode(text)) == text
        shutil.rmtree(tmp_path / "hf")


# --- the folder's word ---


def said(tmp_path, **contents):
    """A folder with a SentencePiece model and some JSON files -> its tokenizer."""
    folder = write_pieces(tmp_path / f"f{len(list(tmp_path.iterdir()))}")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load(folder, roles=False)


def test_start_and_end_tokens_are_what_the_folder_says(tmp_path):
    plain = said(tmp_path)
    n = plain.base_size
    assert (plain.start, plain.opening, plain.eos_ids) == ([1], [1], {2})
    no_bos = said(tmp_path, tokenizer_config={"add_bos_token": False})
    assert (no_bos.start, no_bos.opening, no_bos.bos) == ([], [], 1)
    assert no_bos.fingerprint != plain.fingerprint  # packed with one, not to be read with the other
    ends = said(tmp_path, generation_config={"eos_token_id": [2, 7]})
    assert (ends.eos, ends.eos_ids) == (2, {2, 7}) and ends.fingerprint == plain.fingerprint
    added = {"<|im_start|>": n, "<|im_end|>": n + 1}
    chat = said(tmp_path, added_tokens=added, special_tokens_map={"eos_token": "<|im_end|>"})
    assert (chat.base_size, chat.eos, chat.eos_ids) == (n + 2, n + 1, {n + 1})
    assert chat.decode([n]) == "<|im_start|>" and n not in chat.encode("<|im_start|>")
    entry = {str(n): {"content": "<pad>", "special": True}}
    pad = said(tmp_path, tokenizer_config={"added_tokens_decoder": entry, "pad_token": "<pad>"})
    assert pad.base_size == n + 1 and pad.id_of("<pad>") == n and not pad.unused
    config = said(tmp_path, config={"eos_token_id": [2, 9], "model_type": "llama"})
    assert config.eos_ids == {2, 9}


@pytest.mark.parametrize(
    "contents, says",
    [
        ({"tokenizer_config": {"eos_token": "<nowhere>"}}, "no token '<nowhere>'"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token is 5, no token"),
        ({"tokenizer_config": {"add_bos_token": "no"}}, "add_bos_token is 'no', no bool"),
        ({"tokenizer_config": []}, "holds no JSON object"),
        ({"added_tokens": {"<a>": "x"}}, "added_tokens.json: <a> is 'x', no int"),
        ({"added_tokens": {"<a>": 10**9}}, "the id 1000000000: copy the folder"),
        ({"generation_config": {"eos_token_id": 10**6}}, "the eos_token_id 1000000"),
        ({"generation_config": {"eos_token_id": {"a": 1}}}, "no ids"),
    ],
)
def test_a_folder_s_word_that_cannot_be_is_refused_in_one_line(contents, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        said(tmp_path, **contents)
    assert "\n" not in str(caught.value)


def test_rows_beyond_the_tokenizer_are_ids_of_no_token(tmp_path):
    folder = write_pieces(tmp_path / "m")
    n = load(folder, roles=False).base_size
    padded = load(folder, roles=False, rows=n + 9)  # no id that is packed differs
    assert padded.fingerprint == load(folder, roles=False).fingerprint
    tok = load(folder, roles=True, rows=n + 9)
    assert (tok.base_size, tok.user, tok.size) == (n + 9, n + 9, n + 11)
    assert tok.unused == set(range(n, n + 9)) and tok.decode([n, n + 8]) == ""
    tok.save(tmp_path / "copy")
    assert load(tmp_path / "copy").size == tok.size
    assert load(tmp_path / "copy").fingerprint == tok.fingerprint != load(folder).fingerprint


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"model": {}}', "[" * 9999, '{"model": {"type": "BPE"}}', "\0"]
)
def test_a_damaged_tokenizer_json_is_refused_in_one_line(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_user_defined_pieces_are_not_found_in_text(tmp_path):
    """Chat models keep <|im_start|> as a user-defined piece, which SentencePiece finds anywhere."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("the hen and the other hens went home <|im_end|> again\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="bpe",
        user_defined_symbols=["<|im_start|>"], hard_vocab_limit=False, byte_fallback=True,
        minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tok = load(tmp_path / "m.model", roles=False)
    i = theirs.piece_to_id("<|im_start|>")
    assert i in theirs.encode("a <|im_start|> b") and i not in tok.encode("a <|im_start|> b")
    assert i in tok.special and tok.encode("the other hen") == theirs.encode("the other hen")


def test_the_command_names_every_kind(toys, capsys):
    tok, _ = toys["smollm"]
    assert tokenizer.main([str(tok.files[0]), "12"]) == 0
    assert capsys.readouterr().out.startswith("tokenizer.json, ")


def test_ids_of_the_real_model_equal_the_library_s(smollm2, data_dir):
    """Over all of text/ and dialogues/, against BPE with digits apart, put together here."""
    import gguf
    from toy_tokenizers import data_texts

    reader = gguf.GGUFReader(str(smollm2))
    tokens, merges = (
        reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges")
    )
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]
    )
    oracle = tokenizers.Tokenizer(model)
    oracle.pre_tokenizer = CUTS["smollm"]
    tok, count = load(smollm2, roles=False), 0
    for name, texts in data_texts(data_dir):
        for text in texts:
            ids = tok.encode(text)
            count += len(ids)
            assert ids == oracle.encode(text, add_special_tokens=False).ids, (name, text[:60])
    assert count > 1_000_000 and np.max(ids) < 49152
