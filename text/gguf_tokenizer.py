"""The tokenizer inside a GGUF file, as the files that a folder would hold.

"gpt2" becomes a tokenizer.json, "llama" a SentencePiece model; the rest of the metadata becomes
tokenizer_config.json. Left out: the other kinds of llama.cpp, which are refused by name.
"""

import json
import struct
from pathlib import Path
from typing import Any

from text import gguf_header

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of token; 2 unknown, 5 unused, 6 byte
ID = "tokenizer.ggml."
LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = ("llama-bpe", "llama3")
QWEN2_CUT = LLAMA3_CUT.replace(r"\p{N}{1,3}", r"\p{N}")


def read(path: str | Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """(all files of the tokenizer, those of them that are settings), name -> content."""
    meta = gguf_header.read(path).metadata
    kind = meta.get(ID + "model")
    tokens, kinds = list_of(meta, "tokens", str), list_of(meta, "token_type", int)
    if not tokens or len(tokens) != len(kinds):
        raise ValueError(
            f"{path} holds no tokenizer ({ID}tokens and token_type): name one with --tokenizer"
        )
    if kind == "gpt2":
        name, content = "tokenizer.json", byte_level_json(meta, path)
    elif kind == "llama":
        name, content = "tokenizer.model", sentencepiece_model(meta, path)
    else:
        raise ValueError(
            f"{path}: {ID}model {kind!r} is not supported, only 'gpt2' and 'llama': name a "
            "tokenizer with --tokenizer"
        )
    settings = {"tokenizer_config.json": json.dumps(config(meta), indent=2).encode()}
    ends = [meta.get(f"{ID}{key}_token_id") for key in ("eos", "eot", "eom")]
    ends = [i for i in ends if type(i) is int and 0 <= i < len(tokens)]
    if len(set(ends)) > 1:  # Llama 3 ends a turn otherwise than a text
        record = {"eos_token_id": sorted(set(ends))}
        settings["generation_config.json"] = json.dumps(record).encode()
    return {name: content} | settings, settings


def list_of(meta: dict[str, Any], name: str, kind: type) -> list:
    """A list of the metadata; empty where it is none, or of something else."""
    values = meta.get(ID + name)
    good = isinstance(values, list) and all(type(value) is kind for value in values)
    return values if good and values else []


def config(meta: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json of a GGUF's metadata."""
    tokens = meta[ID + "tokens"]
    out = {}
    for key in ("bos", "eos", "padding"):
        i = meta.get(f"{ID}{key}_token_id")
        if type(i) is int and 0 <= i < len(tokens):
            out[f"{'pad' if key == 'padding' else key}_token"] = tokens[i]
    if isinstance(meta.get(ID + "add_bos_token"), bool):
        out["add_bos_token"] = meta[ID + "add_bos_token"]
    elif meta.get(ID + "pre") in LLAMA3:  # as llama.cpp takes it where nothing is said
        out["add_bos_token"] = True
    if isinstance(meta.get("tokenizer.chat_template"), str):
        out["chat_template"] = meta["tokenizer.chat_template"]
    return out


def split(cut: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts by a regular expression."""
    return {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}


def byte_level_json(meta: dict[str, Any], path: str | Path) -> bytes:
    """tokenizer.json of a "gpt2" tokenizer, whose pre-tokenizer `pre` names."""
    pre = meta.get(ID + "pre", "gpt-2")
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = {
        "gpt-2": [level | {"use_regex": True}],
        "smollm": [{"type": "Digits", "individual_digits": True}, level | {"use_regex": True}],
        "llama-bpe": [split(LLAMA3_CUT), level | {"use_regex": False}],
        "llama3": [split(LLAMA3_CUT), level | {"use_regex": False}],
        "qwen2": [split(QWEN2_CUT), level | {"use_regex": False}],
    }.get(pre)
    if steps is None:
        raise ValueError(
            f"{path}: {ID}pre {pre!r} is not supported, only gpt-2, smollm, llama-bpe and qwen2: "
            "name a tokenizer.json with --tokenizer"
        )
    merges = list_of(meta, "merges", str)
    if not merges or not all(" " in merge for merge in merges):
        raise ValueError(f"{path} holds no merges ({ID}merges): name a tokenizer with --tokenizer")
    tokens, kinds = meta[ID + "tokens"], meta[ID + "token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **flags, "special": kind == CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in merges],
        "ignore_merges": pre in LLAMA3,
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": level | {"use_regex": True},
        "model": model,
    }
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace")


def sentencepiece_model(meta: dict[str, Any], path: str | Path) -> bytes:
    """A SentencePiece model of a "llama" tokenizer: its tokens, scores and kinds."""
    tokens, kinds = meta[ID + "tokens"], meta[ID + "token_type"]
    scores = list_of(meta, "scores", float)
    if len(scores) != len(tokens):
        raise ValueError(f"{path} holds no scores ({ID}scores): name a tokenizer with --tokenizer")
    pieces = [
        field(1, field(1, token) + field(2, score) + field(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    ]
    ids = [meta.get(f"{ID}{name}_token_id", i) for i, name in enumerate(("unknown", "bos", "eos"))]
    prefix = meta.get(ID + "add_space_prefix", True)
    if not all(type(i) is int and 0 <= i < len(tokens) for i in ids) or type(prefix) is not bool:
        raise ValueError(f"{path} has special tokens {ids} that are none: copy it again")
    trainer = field(3, 2) + field(35, 1)  # model_type BPE, byte_fallback
    trainer += b"".join(field(40 + k, i) for k, i in enumerate(ids))
    normalizer = field(1, "identity") + field(3, int(prefix)) + field(4, 0)
    return b"".join(pieces) + field(2, trainer) + field(3, normalizer)


def field(number: int, value: int | float | str | bytes) -> bytes:
    """A protobuf field: int as varint, float as 32 bits, str and bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    value = value.encode("utf-8", "replace") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(n: int) -> bytes:
    """A protobuf number."""
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])
