"""Toy tokenizers in the real files' formats, texts that are hard for them, the real texts."""

import base64
import gzip
import hashlib
import json
import pathlib
import struct

import numpy as np
from hypothesis import strategies as st

from text.byte_pairs import byte_alphabet
from text.tokenizer import ROLE_ASSISTANT, ROLE_USER

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


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def field(number, value):
    """A field of protobuf: bool and int as varint, float as 32 bits, str and bytes by length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(int(value))
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_sentencepiece(folder, name="tokenizer.model", collapse=False, byte_fallback=True):
    """A SentencePiece BPE model written by hand as LLaMA's is.

    <unk>, <s>, </s>, bytes, pieces by falling score, then
    characters; runs of spaces score lowest, so they join last. `collapse` is
    remove_extra_whitespaces, as in tok512 (None: unsaid).
    """
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    if byte_fallback:
        pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [("▁" * 2, -1e9, 1), ("▁" * 4, -1e9 - 64, 1)]
    words = "▁t he ▁the en hen aa aaaa ▁h ▁hen 's 12 ll ▁< <| |> ▁a".split()
    pieces += [(piece, -float(i), 1) for i, piece in enumerate(words)]
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


def ordinary_ids(tok):
    """Ids that plain text may turn into."""
    if tok.kind == "sentencepiece":
        return set(range(3, tok.base_size))
    return set(range(tok.base_size)) - set(range(tok.bos, tok.base_size))


# Text as people paste it: any character but half surrogates, and often what could be taken for a
# token.
PASTED = st.lists(
    st.one_of(
        st.text(max_size=6), st.sampled_from(TRICKY + [" ", "  ", "\n", "<", "|", "|>", "user"])
    ),
    max_size=8,
).map("".join)


def data_texts(folder):
    """(file name, texts) of text/ and dialogues/: strings of JSON, plain text whole."""

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
    """(number of ids, sha256 of all ids as little-endian int32, each text closed by -1)."""
    count, sha = 0, hashlib.sha256()
    for text in texts:
        ids = encode(text)
        count += len(ids)
        sha.update(np.array([*ids, -1], "<i4").tobytes())
    return [count, sha.hexdigest()]


REAL = {"llama": "tokenizers/llama", "gpt2": "tokenizers/gpt2"}
