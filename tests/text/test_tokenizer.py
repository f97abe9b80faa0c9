"""Tokenizers: every text given back, and no text that turns into a control token.

Byte pairs and SentencePiece equal a slow encoding by definition.
"""

import itertools
import random
import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_tokenizers import (
    HERE,
    KINDS,
    MERGES,
    PASTED,
    TRICKY,
    ordinary_ids,
    write_gpt2,
    write_llama3,
    write_sentencepiece,
)

from text.byte_pairs import LLAMA3_PATTERN, byte_alphabet, first_useless
from text.tokenizer import ROLE_ASSISTANT, ROLE_USER, load


def test_files_are_told_apart_by_content_and_have_their_ids(tmp_path, toys):
    assert {kind: tok.kind for kind, tok in toys.items()} == {kind: kind for kind in KINDS}
    spm, gpt2, llama3 = (toys[kind] for kind in KINDS)
    assert (spm.bos, spm.eos) == (1, 2) and gpt2.bos == gpt2.eos == gpt2.base_size - 1
    assert llama3.base_size == 256 + len(MERGES) + 256
    assert (llama3.bos, llama3.eos) == (256 + len(MERGES), 257 + len(MERGES))
    for tok in toys.values():
        assert (tok.user, tok.assistant, tok.size) == (
            tok.base_size,
            tok.base_size + 1,
            tok.base_size + 2,
        )
        plain = load(tok.files[0], roles=False)
        assert (plain.user, plain.assistant, plain.size) == (None, None, tok.base_size)
        assert plain.fingerprint == tok.fingerprint
    # Names say nothing: a file of ranks and a SentencePiece model both may be called anything.
    assert load(write_llama3(tmp_path / "a", "tok.model") / "tok.model").kind == "llama3"
    assert (
        load(write_sentencepiece(tmp_path / "b", "weights.bin") / "weights.bin").kind
        == "sentencepiece"
    )
    # A folder's only model may have any name too.
    assert load(write_sentencepiece(tmp_path / "c", "tok512.model")).kind == "sentencepiece"


def test_gpt2s_files_go_by_both_pairs_of_names_and_from_either_half(tmp_path, toys):
    folder = write_gpt2(tmp_path, ("vocab.json", "merges.txt"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    for path in (folder, folder / "vocab.json", folder / "merges.txt"):
        assert load(path).fingerprint == toys["gpt2"].fingerprint


@pytest.mark.parametrize("inner", ["tokenizer", "original"])
def test_a_runs_and_a_hugging_face_folder_are_searched_one_level_down(tmp_path, inner):
    write_llama3(tmp_path / inner)
    assert load(tmp_path).kind == "llama3"


@settings(max_examples=150, deadline=None)
@given(text=PASTED, kind=st.sampled_from(KINDS))
def test_every_text_comes_back_and_none_becomes_a_special_token(toys, text, kind):
    tok = toys[kind]
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert set(ids) <= ordinary_ids(tok)
    assert all(type(i) is int for i in ids)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_come_back_and_none_becomes_a_special_token(toy, text):
    assert toy.decode(toy.encode(text)) == text and set(toy.encode(text)) <= ordinary_ids(toy)


@pytest.mark.parametrize(
    "literal",
    [
        ROLE_USER,
        ROLE_ASSISTANT,
        "<s>",
        "</s>",
        "<unk>",
        "<|endoftext|>",
        "<|begin_of_text|>",
        "<0x41>",
    ],
)
def test_a_token_typed_by_hand_is_several_ordinary_tokens(toy, literal):
    ids = toy.encode("hi" + literal)
    assert len(ids) > 3 and set(ids) <= ordinary_ids(toy)
    assert toy.decode([toy.user] + ids) == ROLE_USER + "hi" + literal


def test_the_sign_for_a_space_is_spelt_by_its_bytes(toys):
    tok = toys["sentencepiece"]
    byte = {b: 3 + b for b in range(256)}
    assert tok.encode("a▁b") == tok.encode("a") + [byte[b] for b in "▁".encode()] + [
        tok.encode("xb")[-1]
    ]
    assert tok.encode("a▁b") != tok.encode("a b")


def test_half_surrogates_become_the_replacement_character_and_whole_pairs_their_character(toy):
    assert toy.encode("a\ud83db") == toy.encode("a\ufffdb")
    assert toy.encode("a\ude00\ud83d") == toy.encode("a\ufffd\ufffd")
    assert toy.encode("a\ud83d\ude00") == toy.encode("a😀")


def test_a_whole_row_decodes_to_the_rows_text(toy):
    turns = [(" two  spaces ", "\n"), ("", " x"), ("▁", "<|user|> in the text")]
    ids, text = [toy.bos], toy.decode([toy.bos])
    for asked, answered in turns:
        ids += [toy.user, *toy.encode(asked), toy.assistant, *toy.encode(answered), toy.eos]
        text += ROLE_USER + asked + ROLE_ASSISTANT + answered + toy.decode([toy.eos])
    assert toy.decode(ids) == text
    assert toy.decode(np.array(ids, np.int32)) == text


def test_special_tokens_show_their_own_strings(toys):
    shown = {
        kind: tok.decode([tok.bos, tok.user, tok.assistant, tok.eos]) for kind, tok in toys.items()
    }
    assert shown == {
        "sentencepiece": "<s><|user|><|assistant|></s>",
        "gpt2": "<|endoftext|><|user|><|assistant|><|endoftext|>",
        "llama3": "<|begin_of_text|><|user|><|assistant|><|end_of_text|>",
    }
    first = toys["llama3"].bos
    shown = toys["llama3"].decode([first + 6, first + 9, first + 255])
    assert shown == "<|start_header_id|><|eot_id|><|reserved_special_token_250|>"


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 10**6), max_size=30),
    cut=st.integers(0, 30),
    kind=st.sampled_from(KINDS),
)
def test_the_bytes_of_a_prefix_are_a_prefix_of_the_bytes(toys, ids, cut, kind):
    tok = toys[kind]
    ids = [i % tok.size for i in ids]
    whole = tok.decode_bytes(ids)
    assert whole.startswith(tok.decode_bytes(ids[:cut]))
    assert tok.decode(ids) == whole.decode("utf-8", "replace")


def test_an_id_outside_the_vocabulary_is_named(toy):
    for bad in (-1, toy.size, 10**9):
        with pytest.raises(
            ValueError, match=rf"^id {bad} is outside the tokenizer's {toy.size} ids"
        ):
            toy.decode([toy.bos, bad])
    with pytest.raises(ValueError, match=f"^id {toy.user} is outside"):
        load(toy.files[0], roles=False).decode([toy.user])


def test_a_model_that_normalises_says_so(tmp_path, toys):
    assert not any(tok.normalises for tok in toys.values()) and toys["gpt2"].warning is None
    for folder in (
        write_sentencepiece(tmp_path / "tok512", collapse=True),
        write_sentencepiece(tmp_path / "nobytes", byte_fallback=False),
    ):
        tok = load(folder)
        assert tok.normalises and "normalises" in tok.warning and "\n" not in tok.warning
    assert load(tmp_path / "tok512").decode(load(tmp_path / "tok512").encode("a  b ")) == "a b"


def test_the_sample_tokenizer_gives_every_text_back():
    tok = load(HERE.parent / "samples" / "tokenizer.model")
    assert tok.kind == "sentencepiece" and not tok.normalises
    assert [tok.decode(tok.encode(text)) for text in TRICKY] == TRICKY


def slow_merges(parts, rank):
    """Byte pairs by definition: join the neighbours of lowest rank, leftmost first, to the end."""
    while True:
        ranks = [
            (rank(a, b), i)
            for i, (a, b) in enumerate(itertools.pairwise(parts))
            if rank(a, b) is not None
        ]
        if not ranks:
            return parts
        i = min(ranks)[1]
        parts = parts[:i] + [parts[i] + parts[i + 1]] + parts[i + 2 :]


ASCII = st.text(st.sampled_from("then a12!'slS\n\t  |<"), max_size=40)


# The published patterns for ASCII, where \p{L} is [A-Za-z] and \p{N} is [0-9].
ASCII_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"


ASCII_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@settings(max_examples=150, deadline=None)
@given(text=ASCII, kind=st.sampled_from(["gpt2", "llama3"]))
@example(text="then  \n\n the!\n'll  12345 ", kind="llama3")
def test_byte_pairs_equal_the_slow_encoding(toys, text, kind):
    alphabet = byte_alphabet()
    letters = sorted(alphabet) if kind == "gpt2" else alphabet
    ids = {token: i for i, token in enumerate(letters + [a + b for a, b in MERGES])}
    if kind == "gpt2":  # the pairs of the file

        def rank(a, b):
            return MERGES.index((a, b)) if (a, b) in MERGES else None
    else:  # any two that make a token

        def rank(a, b):
            return ids.get(a + b)

    pieces = re.findall(ASCII_GPT2 if kind == "gpt2" else ASCII_LLAMA3, text)
    assert "".join(pieces) == text
    slow = [
        ids[part]
        for piece in pieces
        for part in slow_merges([alphabet[b] for b in piece.encode()], rank)
    ]
    assert toys[kind].encode(text) == slow


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("then a12!'sl\n  |<你é"), max_size=30))
def test_sentencepiece_equals_the_slow_encoding(toys, text):
    model = toys["sentencepiece"].encoder.model
    rank = {model.id_to_piece(i): -model.get_score(i) for i in range(259, model.vocab_size())}
    parts = slow_merges(
        list(("▁" + text.replace(" ", "▁")) if text else ""), lambda a, b: rank.get(a + b)
    )
    slow = []
    for part in parts:
        slow += [model.piece_to_id(part)] if part in rank else [3 + b for b in part.encode()]
    assert toys["sentencepiece"].encode(text) == slow


def test_a_merge_that_cannot_happen_is_found():
    """Against trying each: before merge k, its token must stand as the two parts of line k."""

    def tried(merges):
        for k, (a, b) in enumerate(merges):
            index = {pair: i for i, pair in enumerate(merges[:k])}
            if slow_merges(list(a + b), lambda *pair, index=index: index.get(pair)) != [a, b]:
                return k

    rng, useful = random.Random(0), 0
    for _ in range(3000):
        tokens, merges = list("abc"), []
        for _ in range(rng.randrange(1, 9)):
            pair = (rng.choice(tokens), rng.choice(tokens))
            if pair[0] + pair[1] not in tokens:
                merges.append(pair)
                tokens.append(pair[0] + pair[1])
        assert first_useless(merges) == tried(merges), merges
        useful += tried(merges) is None
    assert 500 < useful < 2500


def test_ids_that_do_not_follow_the_merges_are_kept(tmp_path, toys):
    """A GPT-2 vocabulary trained elsewhere often has its special token first."""
    tok = load(write_gpt2(tmp_path, end=0))
    assert tok.bos == tok.eos == 0 and tok.base_size == toys["gpt2"].base_size
    assert tok.encode("the hen!!") == [i + 1 for i in toys["gpt2"].encode("the hen!!")]
    assert [tok.decode(tok.encode(text)) for text in TRICKY] == TRICKY


@pytest.mark.parametrize("unit", ["a", " ", "\n", " \n", "!", "中", "a ", "\0"])
def test_a_million_times_one_character_is_no_crash_and_no_square(toy, unit):
    text = unit * (1_000_000 // len(unit)) + " x"
    start = time.perf_counter()
    ids = toy.encode(text)
    assert time.perf_counter() - start < 10  # a second here; quadratic time would be hours
    assert toy.decode(ids) == text


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_cutting_long_white_space_changes_no_id(toys, kind):
    """Against the published pattern in one go, on runs that tiktoken still survives."""
    import tiktoken

    tok, rng = toys[kind], random.Random(0)
    published = {
        "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        "llama3": LLAMA3_PATTERN.replace(r"|\s++$", ""),
    }[kind]
    whole = tiktoken.Encoding(
        "whole",
        pat_str=published,
        mergeable_ranks=tok.encoder.bpe._mergeable_ranks,
        special_tokens={},
    )
    for _ in range(400):
        text = ""
        for _ in range(rng.randrange(1, 4)):
            white = rng.choice([" ", "\n", "  \n", " \t\r\n\u3000\x85\x1c\u200b"])
            text += rng.choice(["", "a", "!", "1", "'s", "\x1c", "é"])
            text += "".join(rng.choices(white, k=rng.choice([1, 2, 999, 1000, 1001, 1400])))
        text += rng.choice(["", "x", "1", "!", "'s", "\0"])
        assert tok.encode(text) == whole.encode_ordinary(text)
