"""Tokenizers: the same ids as Hugging Face, every text given back, and no text that turns into a control token.

    python -m pytest tests/test_tokenizer.py                     # hermetic: three toy tokenizers in the real formats
    python -m pytest tests/test_tokenizer.py --data DIR --live   # LLaMA's and GPT-2's own, against transformers

references/tokenizer.json (ids by transformers) is made by make_tokenizer_references.py.
"""

import base64
import gzip
import hashlib
import json
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from host import files
from text import tokenizer
from text.byte_pairs import LLAMA3_PATTERN, byte_alphabet, first_useless
from text.tokenizer import ROLE_ASSISTANT, ROLE_USER, load
from text.tokenizer_export import write_hf

HERE = pathlib.Path(__file__).resolve().parents[1]
REFERENCES = HERE / "references" / "tokenizer.json"
KINDS = ("sentencepiece", "gpt2", "llama3")

TEXTS = [
    "the hen",
    " the  hen ",
    "   the",
    "the\n\nhen\n",
    "\tthe\t\t hen",
    "a" * 9,
    " " * 9,
    " " * 16 + "x",
    "\n \n  the",
    "\r\n\r\nhen \r\n",
    "the hen's, they'll; THE HEN'S THEY'LL",
    "the'llama'Same",
    "12 123 1234 12345",
    "hen!!! ???\n\n",
    "Größe naïve e\u0301",
    "你好，世界",
    "😀👩‍👩‍👧 hen",
    "\0\x01\x7f the",
    "\u00a0the\u3000hen\u2028",
    ROLE_USER,
    ROLE_ASSISTANT + "the",
    "<s>the</s>",
    "<unk><0x41><|endoftext|><|begin_of_text|><|end_of_text|>",
    "",
    "the " * 5 + "hen" * 5,
    "def f(x):\n    return x\n\n\n",
    "\ufeff\ufffd the",
    "٣٤٥ ½ ²",
    "hhhheeeennnn  then",
]
TRICKY = TEXTS + [
    "\u2581",
    "\u2581\u2581the",
    " \u2581 ",
    "a\u2581b \u2581 hen\u2581",
    "\n\u2581\t",
]


# ---- toy tokenizers in the real files' formats -----------------------------------------------------------------------

MERGES = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġt", "he"),
    ("he", "n"),
    ("e", "n"),
    ("Ġ", "Ġ"),
    ("ĠĠ", "ĠĠ"),
    ("Ċ", "Ċ"),
    ("a", "a"),
    ("aa", "aa"),
    ("t", "he"),
    ("'", "s"),
    ("1", "2"),
    ("12", "3"),
    ("!", "!"),
    ("Ã", "¶"),
    ("ä", "½"),
    ("ä½", "ł"),
    ("Ġ", "hen"),
    ("l", "l"),
    ("n", "n"),
    ("ll", "a"),
    ("S", "a"),
]


def write_gpt2(folder, names=("encoder.json", "vocab.bpe"), end=None):
    """GPT-2's two files: the byte alphabet, MERGES and <|endoftext|> (the last id, or `end`)."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(byte_alphabet())
    order = letters + [a + b for a, b in MERGES]
    order.insert(len(order) if end is None else end, "<|endoftext|>")
    (folder / names[0]).write_text(
        json.dumps({token: i for i, token in enumerate(order)}), encoding="utf-8"
    )
    (folder / names[1]).write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8"
    )
    return folder


def write_llama3(folder, name="tokenizer.model"):
    """Llama-3's file of ranks: bytes, then what MERGES make."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_of = {c: b for b, c in enumerate(byte_alphabet())}
    tokens = [bytes([b]) for b in range(256)] + [
        bytes(byte_of[c] for c in a + b) for a, b in MERGES
    ]
    lines = [base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens)]
    (folder / name).write_bytes(b"".join(lines))
    return folder


def write_sentencepiece(folder, name="tokenizer.model", collapse=False, byte_fallback=True):
    """A SentencePiece BPE model written by hand as LLaMA's is: <unk>, <s>, </s>, bytes, pieces by falling score, then
    characters; runs of spaces score lowest, so they join last. `collapse` is remove_extra_whitespaces, as in tok512
    (None: unsaid).
    """

    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    def field(
        number, value
    ):  # bool and int as varint, float as 32 bits, str and bytes with their length
        if isinstance(value, int):
            return varint(number << 3) + varint(int(value))
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        value = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(value)) + value

    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    if byte_fallback:
        pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [("▁" * 2, -1e9, 1), ("▁" * 4, -1e9 - 64, 1)]
    for i, piece in enumerate(
        [
            "▁t",
            "he",
            "▁the",
            "en",
            "hen",
            "aa",
            "aaaa",
            "▁h",
            "▁hen",
            "'s",
            "12",
            "ll",
            "▁<",
            "<|",
            "|>",
            "▁a",
        ]
    ):
        pieces.append((piece, -float(i), 1))
    pieces += [
        (c, -100.0 - i, 1) for i, c in enumerate("▁abdefhilnorstuwxy0123456789.,;:!?'<>|/()你好")
    ]
    trainer = field(3, 2) + field(35, byte_fallback) + field(40, 0) + field(41, 1) + field(42, 2)
    normalizer = (
        field(1, "identity") + field(3, True) + (b"" if collapse is None else field(4, collapse))
    )
    model = b"".join(
        field(1, field(1, text) + field(2, score) + field(3, kind)) for text, score, kind in pieces
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model + field(2, trainer) + field(3, normalizer))
    return folder


WRITERS = {"sentencepiece": write_sentencepiece, "gpt2": write_gpt2, "llama3": write_llama3}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """dict kind -> Tokenizer with role tokens."""
    root = tmp_path_factory.mktemp("toys")
    return {kind: load(write(root / kind)) for kind, write in WRITERS.items()}


@pytest.fixture(params=KINDS)
def toy(request, toys):
    return toys[request.param]


def ordinary_ids(tok):
    """Ids that plain text may turn into."""
    if tok.kind == "sentencepiece":
        return set(range(3, tok.base_size))
    return set(range(tok.base_size)) - set(range(tok.bos, tok.base_size))


# Text as people paste it: any character but half surrogates, and often what could be taken for a token.
PASTED = st.lists(
    st.one_of(
        st.text(max_size=6), st.sampled_from(TRICKY + [" ", "  ", "\n", "<", "|", "|>", "user"])
    ),
    max_size=8,
).map("".join)


# ---- what a tokenizer promises ---------------------------------------------------------------------------------------


def test_files_are_told_apart_by_content_and_have_their_ids(tmp_path, toys):
    assert {kind: tok.kind for kind, tok in toys.items()} == dict(zip(KINDS, KINDS))
    spm, gpt2, llama3 = (toys[kind] for kind in KINDS)
    assert (spm.bos, spm.eos) == (1, 2) and gpt2.bos == gpt2.eos == gpt2.base_size - 1
    assert llama3.base_size == 256 + len(MERGES) + 256
    assert (llama3.bos, llama3.eos) == (256 + len(MERGES), 257 + len(MERGES))
    for kind, tok in toys.items():
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


# ---- slow references -------------------------------------------------------------------------------------------------


def slow_merges(parts, rank):
    """Byte-pair encoding by definition: join the neighbours of lowest rank(a, b), leftmost first, until none joins."""
    while True:
        ranks = [
            (rank(a, b), i)
            for i, (a, b) in enumerate(zip(parts, parts[1:]))
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
        rank = lambda a, b: MERGES.index((a, b)) if (a, b) in MERGES else None
    else:  # any two that make a token
        rank = lambda a, b: ids.get(a + b)
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
    """Against trying each: the token of merge k, by the merges before it, must stand as the two parts of line k."""

    def tried(merges):
        for k, (a, b) in enumerate(merges):
            if slow_merges(
                list(a + b), lambda x, y: merges.index((x, y)) if (x, y) in merges[:k] else None
            ) != [a, b]:
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


# ---- size ------------------------------------------------------------------------------------------------------------


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


# ---- files -----------------------------------------------------------------------------------------------------------


def test_save_copies_the_files_and_nothing_else(tmp_path, toy):
    for _ in range(2):  # the second time over what is there
        toy.save(tmp_path / "run" / "tokenizer")
    copies = list((tmp_path / "run" / "tokenizer").iterdir())
    assert {f.name: f.read_bytes() for f in copies} == {f.name: f.read_bytes() for f in toy.files}
    assert load(tmp_path / "run").fingerprint == toy.fingerprint
    assert (
        toy.fingerprint == hashlib.sha256(b"".join(f.read_bytes() for f in toy.files)).hexdigest()
    )


def test_a_failing_save_leaves_the_old_file(tmp_path, toy, monkeypatch):
    target = tmp_path / toy.files[0].name
    target.write_text("old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        toy.save(tmp_path)
    assert target.read_text() == "old" and [f.name for f in tmp_path.iterdir()] == [target.name]


def test_a_tokenizer_travels_to_another_process(toy):
    again = pickle.loads(pickle.dumps(toy))
    assert [again.encode(text) for text in TRICKY] == [
        toy.encode(text) for text in TRICKY
    ] and again.size == toy.size


def damage(folder, case):
    """One way to be wrong -> the path to load."""
    if case == "no such path":
        return folder / "nowhere"
    if case == "empty folder":
        return folder
    if case == "one half":
        (write_gpt2(folder) / "vocab.bpe").unlink()
        return folder
    if case == "one half named":
        (write_gpt2(folder) / "vocab.bpe").unlink()
        return folder / "encoder.json"
    if case == "only tokenizer.json":
        (folder / "tokenizer.json").write_text("{}")
        return folder
    if case == "other text":
        (folder / "tokenizer.model").write_text("hello\n")
        return folder / "tokenizer.model"
    if case == "cut model":
        path = write_sentencepiece(folder) / "tokenizer.model"
        path.write_bytes(path.read_bytes()[:-60])
    if case == "two models":
        write_sentencepiece(folder, "a.model")
        write_llama3(folder, "b.model")
    if case == "model and pair":
        write_sentencepiece(write_gpt2(folder))
    if case == "bad rank line":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(path.read_bytes() + b"!!! x\n")
    if case == "missing rank":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(
            b"".join(
                path.read_bytes().splitlines(True)[:-3] + path.read_bytes().splitlines(True)[-1:]
            )
        )
    if case == "missing byte":
        path = write_llama3(folder) / "tokenizer.model"
        path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:200]))
    if case == "not json":
        (write_gpt2(folder) / "encoder.json").write_text("{")
    if case == "json list":
        (write_gpt2(folder) / "encoder.json").write_text("[1, 2]")
    if case == "binary merges":
        (write_gpt2(folder) / "vocab.bpe").write_bytes(b"\xff\xfe\x00")
    if case == "other merges":
        with (write_gpt2(folder) / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("z z\n")
    if case == "useless merge":
        write_gpt2(folder)
        vocab = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        vocab["hll"] = len(vocab)
        vocab["hel"] = len(
            vocab
        )  # "hel" starts as h e l: he joins first, and then there is no (h, el)
        vocab["el"] = len(vocab)
        (folder / "encoder.json").write_text(json.dumps(vocab), encoding="utf-8")
        with (folder / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("h ll\ne l\nh el\n")
    if case == "merge twice":
        with (write_gpt2(folder) / "vocab.bpe").open("a", encoding="utf-8") as file:
            file.write("h e\n")
    if case in ("id gap", "no end of text"):
        path = write_gpt2(folder) / "encoder.json"
        vocab = json.loads(path.read_text(encoding="utf-8"))
        if case == "id gap":
            vocab["<|endoftext|>"] += 5
        else:
            del vocab["<|endoftext|>"]
        path.write_text(json.dumps(vocab), encoding="utf-8")
    return folder


CASES = {
    "no such path": "does not exist",
    "empty folder": "holds no tokenizer",
    "one half": "other half",
    "one half named": "name one of these",
    "only tokenizer.json": "tokenizer.json is no tokenizer.json that",
    "other text": "neither a SentencePiece model",
    "cut model": "not a whole SentencePiece model",
    "two models": r"2 tokenizers \(a.model, b.model\)",
    "model and pair": "2 tokenizers",
    "bad rank line": f"line {257 + len(MERGES)} ",
    "missing rank": "not 0 to",
    "missing byte": "single bytes",
    "not json": "not a JSON object",
    "json list": "not a JSON object",
    "binary merges": "line 1 is not",
    "other merges": "makes 'zz', which it lacks",
    "merge twice": "twice",
    "useless merge": r"'h el' .merge 26.",
    "id gap": "no gaps",
    "no end of text": "no end token",
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_user_can_mend_is_one_line_with_the_path(tmp_path, capfd, case):
    path = damage(tmp_path, case)
    with pytest.raises(ValueError, match=CASES[case]) as error:
        load(path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    capfd.readouterr()
    assert tokenizer.main([str(path), "text"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err == f"tokenizer: {error.value}\n"


def test_a_vocabulary_of_another_size_is_refused_with_both_numbers(toy):
    tokenizer.check_size(toy, toy.base_size)
    tokenizer.check_size(toy, toy.size)
    rule = rf"tokenizer .* has {toy.base_size} \(with role tokens {toy.base_size + 2}\)"
    with pytest.raises(ValueError, match="^weights.npz has 32000 ids, " + rule):
        tokenizer.check_size(toy, 32000, "weights.npz")


def test_the_command_shows_each_token(toy, capsys):
    assert tokenizer.main([str(toy.files[0]), "the \x1b[31m"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith(f"{toy.kind}, {toy.base_size} ids") and "\x1b" not in out
    assert [int(line.split()[0]) for line in out.splitlines()[1:]] == toy.encode("the \x1b[31m")


def test_the_command_without_a_text_says_how_it_is_used(capsys):
    with pytest.raises(SystemExit) as stopped:
        tokenizer.main(["somewhere"])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "TEXT" in err and "--help" in err


def test_importing_and_encoding_needs_no_jax(toys):
    code = (
        "import sys; from text import tokenizer; tokenizer.load(sys.argv[1]).encode('x'); "
        "sys.exit(any(m in sys.modules for m in ('jax', 'torch', 'transformers')))"
    )
    for tok in toys.values():
        assert (
            subprocess.run(
                [sys.executable, "-c", code, str(tok.files[0])], cwd=HERE.parent
            ).returncode
            == 0
        )


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


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


def data_texts(folder):
    """(file name, texts) of every file in text/ and dialogues/: the strings of JSON, each file of plain text whole."""

    def strings(value):
        if isinstance(value, str):
            yield value
        for inner in (
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        ):
            yield from strings(inner)

    for path in sorted([*(folder / "text").iterdir(), *(folder / "dialogues").iterdir()]):
        content = (
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        ).decode()
        if ".json" not in path.name:
            yield path.name, [content]
        else:
            rows = (
                [json.loads(line) for line in content.splitlines()]
                if ".jsonl" in path.name
                else json.loads(content)
            )
            yield path.name, list(strings(rows))


def digest(texts, encode):
    """(number of ids, sha256 of the ids of all texts, each text closed by -1, as little-endian int32)."""
    count, sha = 0, hashlib.sha256()
    for text in texts:
        ids = encode(text)
        count += len(ids)
        sha.update(np.array([*ids, -1], "<i4").tobytes())
    return [count, sha.hexdigest()]


REAL = {"llama": "tokenizers/llama", "gpt2": "tokenizers/gpt2"}


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
    # Characters of every kind between letters: both libraries' tables agree on what Unicode calls a letter, a number.
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
