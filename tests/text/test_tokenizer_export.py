"""Exports for Hugging Face: the same ids as transformers, live and stored.

    python -m pytest tests/text/test_tokenizer_export.py --data DIR --live

references/tokenizer.json (ids by transformers) is made by make_tokenizer_references.py.
"""

import json
import random

import pytest
from toy_tokenizers import (
    HERE,
    KINDS,
    REAL,
    REFERENCES,
    TEXTS,
    TRICKY,
    data_texts,
    digest,
    ordinary_ids,
    write_sentencepiece,
)

from text.tokenizer import ROLE_ASSISTANT, ROLE_USER, load
from text.tokenizer_export import write_hf


@pytest.fixture(scope="module")
def references():
    return json.loads(REFERENCES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_toy_ids_equal_the_ids_stored_from_transformers(toys, references, kind):
    stored = references["toys"][kind]
    assert toys[kind].fingerprint == stored["fingerprint"], (
        "the toy changed: make the references again"
    )
    assert [toys[kind].encode(text) for text in TEXTS] == stored["ids"]


@pytest.mark.parametrize("name", REAL)
def test_ids_of_all_the_data_equal_those_stored_from_transformers(data_dir, references, name):
    tok = load(data_dir / REAL[name])
    assert tok.fingerprint == references["real"][name]["fingerprint"] and not tok.normalises
    files = {file: digest(texts, tok.encode) for file, texts in data_texts(data_dir)}
    assert files == references["real"][name]["files"]


@pytest.mark.parametrize("name", REAL)
def test_all_the_data_comes_back(data_dir, name):
    tok = load(data_dir / REAL[name])
    for file, texts in data_texts(data_dir):
        for text in texts:
            assert tok.decode(tok.encode(text)) == text, (file, text[:60])
    for text in TRICKY:
        assert tok.decode(tok.encode(text)) == text and set(tok.encode(text)) <= ordinary_ids(tok)


def test_the_sizes_and_ends_of_the_real_tokenizers(data_dir):
    llama, gpt2, tok512 = (
        load(data_dir / path) for path in (*REAL.values(), "models/stories260K/tok512.model")
    )
    assert [
        (t.kind, t.base_size, t.bos, t.eos, t.user, t.assistant, t.normalises)
        for t in (llama, gpt2, tok512)
    ] == [
        ("sentencepiece", 32000, 1, 2, 32000, 32001, False),
        ("gpt2", 50257, 50256, 50256, 50257, 50258, False),
        ("sentencepiece", 512, 1, 2, 512, 513, True),
    ]
    assert load(data_dir / "models/stories260K").fingerprint == tok512.fingerprint


def auto_tokenizer(tok, folder, model_type, **kwargs):
    """What transformers makes of an exported directory."""
    from transformers import AutoTokenizer

    write_hf(tok, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, **kwargs)


def check_export(tok, hf, texts):
    """Ids of texts, the role tokens, bos and eos, and a whole row written as text."""
    plain = dict(add_special_tokens=False, split_special_tokens=True)
    for text in texts:
        assert hf.encode(text, **plain) == tok.encode(text), repr(text[:80])
    # The literal of a role token becomes the token there, the text around it stays.
    row = "".join(
        [hf.bos_token, ROLE_USER, " two  spaces\n", ROLE_ASSISTANT, "the hen's ", hf.eos_token]
    )
    assert hf.encode(row, add_special_tokens=False) == [
        tok.bos,
        tok.user,
        *tok.encode(" two  spaces\n"),
        tok.assistant,
        *tok.encode("the hen's "),
        tok.eos,
    ]
    assert hf.encode("the " + ROLE_USER, add_special_tokens=False) == [
        *tok.encode("the "),
        tok.user,
    ]
    assert (hf.bos_token_id, hf.eos_token_id, len(hf)) == (tok.bos, tok.eos, tok.size)
    assert hf.convert_tokens_to_ids([ROLE_USER, ROLE_ASSISTANT]) == [tok.user, tok.assistant]
    assert hf.encode("the") == ([] if tok.kind == "gpt2" else [tok.bos]) + tok.encode("the")
    assert hf.decode([tok.user, *tok.encode("the hen")], skip_special_tokens=True) == "the hen"


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_toy_gives_the_same_ids_in_transformers(live, tmp_path, toys, kind):
    hf = auto_tokenizer(toys[kind], tmp_path, "gpt2" if kind == "gpt2" else "llama")
    rng, parts = random.Random(0), TEXTS + [" ", "  ", "\n", "the", "hen", "aa", "<", "|>"]
    texts = TEXTS + ["".join(rng.choices(parts, k=rng.randrange(2, 9))) for _ in range(300)]
    check_export(toys[kind], hf, texts)
    assert load(tmp_path).fingerprint == toys[kind].fingerprint  # the folder serves us as well


@pytest.mark.parametrize("collapse, byte_fallback", [(True, True), (None, True), (False, False)])
def test_an_exported_model_that_normalises_gives_the_same_ids_in_transformers(
    live, tmp_path, collapse, byte_fallback
):
    tok = load(
        write_sentencepiece(tmp_path / "model", collapse=collapse, byte_fallback=byte_fallback)
    )
    hf = auto_tokenizer(tok, tmp_path / "hf", "llama")
    for text in TEXTS:
        assert hf.encode(text, add_special_tokens=False, split_special_tokens=True) == tok.encode(
            text
        ), repr(text)


def test_an_export_without_role_tokens_has_none(live, tmp_path, toys):
    tok = load(toys["gpt2"].files[0], roles=False)
    hf = auto_tokenizer(tok, tmp_path, "gpt2")
    assert len(hf) == tok.base_size and hf.encode(ROLE_USER) == tok.encode(ROLE_USER)


def test_the_sample_tokenizer_exports(live, tmp_path):
    tok = load(HERE.parent / "samples" / "tokenizer.model")
    check_export(tok, auto_tokenizer(tok, tmp_path, "llama"), TEXTS)


@pytest.mark.parametrize("name", REAL)
def test_exported_real_tokenizers_give_the_same_ids_in_transformers(live, data_dir, tmp_path, name):
    tok = load(data_dir / REAL[name])
    hf = auto_tokenizer(tok, tmp_path, {"llama": "llama", "gpt2": "gpt2"}[name])
    rng = random.Random(0)
    texts = [
        text
        for _, texts in data_texts(data_dir)
        for text in rng.sample(texts, min(len(texts), 200))
    ]
    # Characters of every kind between letters: both libraries' tables agree on what Unicode calls a
    # letter, a number.
    points = [*range(0x2581), *range(0x2582, 0x3000)]
    points += rng.sample([*range(0x3000, 0xD800), *range(0xE000, 0x110000)], 20000)
    check_export(tok, hf, TEXTS + texts + [f"a{chr(c)}b 1{chr(c)}{chr(c)}!" for c in points])


@pytest.mark.parametrize(
    "kind", [dict(model_type="unigram"), dict(model_type="bpe", user_defined_symbols=["<sep>"])]
)
def test_only_plain_bpe_is_written_for_hugging_face(tmp_path, kind):
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("the hen and the other hens went home\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "other"),
        vocab_size=30,
        hard_vocab_limit=False,
        minloglevel=2,
        **kind,
    )
    with pytest.raises(ValueError, match="other.model is not plain SentencePiece BPE"):
        write_hf(load(tmp_path / "other.model"), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
