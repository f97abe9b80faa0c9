"""A tokenizer for Hugging Face: the files with which transformers' AutoTokenizer gives our ids."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

from host import files
from text.byte_pairs import LLAMA3_PATTERN, byte_alphabet, read_gpt2, read_ranks
from text.pieces import SentencePiece, fields
from text.templates import jinja
from text.tokenizer import Tokenizer
from text.tokenizer_json import vocabulary

NORMAL = 1  # SentencePiece's kinds of piece: 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte


def write_hf(tok: Tokenizer, folder: str | Path, template: str | None = None) -> None:
    """Write what transformers' AutoTokenizer.from_pretrained(folder) needs, and load() here.

    Beside the weights' config.json: tokenizer.json, tokenizer_config.json, and the originals under
    the names Hugging Face uses (tokenizer.model; vocab.json + merges.txt; original/tokenizer.model
    for Llama-3). The role tokens are added tokens with ids base_size and base_size + 1. There, as
    is the custom with Hugging Face, a special token's string inside a text *becomes* the token, so
    a whole row may be written as text; to get encode()'s reading of such a text, call the tokenizer
    with split_special_tokens=True. A bos is put in front for LLaMA and Llama-3, not for GPT-2, and
    never with add_special_tokens=False. U+2581 is a space there and three bytes here. template: the
    conversation's, of those of text/templates.py; None: the one that the folder brought. ValueError
    for a SentencePiece model that is not BPE.
    """
    folder = Path(folder)
    backend_of, names = {
        "sentencepiece": (sentencepiece_json, ["tokenizer.model"]),
        "gpt2": (gpt2_json, ["vocab.json", "merges.txt"]),
        "llama3": (llama3_json, ["original/tokenizer.model"]),
        "tokenizer.json": (json_of, []),
    }[tok.kind]
    backend = backend_of(tok)
    bos, eos = (tok.pieces[i].decode("utf-8", "replace") for i in (tok.bos, tok.eos))
    if tok.kind != "tokenizer.json":
        unk = backend["model"]["unk_token"]
        backend = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens(tok),
            **backend,
            "post_processor": post_processor(tok, bos),
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "unk_token": unk,
            "clean_up_tokenization_spaces": False,
        }
    else:
        config = {"clean_up_tokenization_spaces": False} | stated_config(tok)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
        config["bos_token"] = bos if tok.has_bos else None
    config["pad_token"] = pad_token(tok, config)
    config["add_bos_token"] = bool(tok.start)
    chat_template = jinja(template, tok) if template else tok.chat_template
    config.pop("chat_template", None)
    config |= {"chat_template": chat_template} if chat_template else {}
    for name, content in zip(names, tok.contents, strict=len(names) > 0):
        files.write_whole(folder / name, content)
    files.write_whole(folder / "tokenizer_config.json", json.dumps(config, indent=2))
    files.write_whole(folder / "tokenizer.json", json.dumps(backend, ensure_ascii=False))


def added_tokens(tok: Tokenizer) -> list[dict]:
    """tokenizer.json's list of the special tokens.

    An id of no token before one that has one gets a name: the library numbers them without gaps.
    """
    last = max(tok.special - tok.unused, default=-1)
    ids = [i for i in sorted(tok.special) if i not in tok.unused or i < last]

    def name(i):
        return tok.pieces[i].decode("utf-8", "replace") or f"<|unused_{i}|>"

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": i, "content": name(i), **flags, "special": True} for i in ids]


def pad_token(tok: Tokenizer, config: dict) -> str:
    """The folder's, else the unknown token, which no answer ends in, else the end token."""
    named = tok.settings.pad_token
    if named and tok.id_of(named) is not None:
        return named
    return config.get("unk_token") or config["eos_token"]


def stated_config(tok: Tokenizer) -> dict:
    """The folder's own tokenizer_config.json, without what tokenizer.json says better."""
    content = tok.settings.files.get("tokenizer_config.json")
    config = json.loads(content) if content else {}
    left_out = ("tokenizer_file", "name_or_path", "auto_map", "added_tokens_decoder", "backend")
    return {key: value for key, value in config.items() if key not in left_out}


def json_of(tok: Tokenizer) -> dict:
    """The folder's own tokenizer.json, with the tokens that it does not have."""
    data = json.loads(tok.contents[0])
    listed = {t["id"] for t in data["added_tokens"] or []} | set(vocabulary(data["model"]).values())
    more = [t for t in added_tokens(tok) if t["id"] not in listed]
    data["added_tokens"] = sorted((data["added_tokens"] or []) + more, key=lambda t: t["id"])
    return data


def post_processor(tok: Tokenizer, bos: str) -> dict:
    """What puts a bos in front of a text, where one is put."""
    if not tok.start:
        return {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }
    start = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [start, a],
        "pair": [start, a, b],
        "special_tokens": {bos: {"id": bos, "ids": [tok.bos], "tokens": [bos]}},
    }


def bpe_json(vocab: dict[str, int], merges: list[tuple[str, str]], **more: Any) -> dict:
    """tokenizer.json's BPE model."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    } | more


def sentencepiece_json(tok: Tokenizer) -> dict:
    """tokenizer.json's parts for a SentencePiece BPE model."""
    encoder = tok.encoder
    assert isinstance(encoder, SentencePiece)
    # field 1: one a piece; 2: how it was trained; 3: how it normalises
    parts = list(fields(tok.contents[0]))
    trainer, normalizer = (
        {k: v for n, spec in parts if n == number for k, v in fields(spec)} for number in (2, 3)
    )
    pieces = [dict(fields(piece)) for n, piece in parts if n == 1]  # 1: text; 2: score; 3: kind
    kinds = [piece.get(3, NORMAL) for piece in pieces]
    if trainer.get(3, 1) != 2 or trainer.get(24, 0) or not set(kinds) <= {NORMAL, 2, 3, 6}:
        raise ValueError(
            f"tokenizer {tok.files[0]} is not plain SentencePiece BPE (unigram, or with "
            "user-defined or unused pieces): it cannot be written for Hugging Face, use one "
            "trained with model_type=bpe"
        )
    texts = [piece[1].decode() for piece in pieces]
    back = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if encoder.strips:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": normalizer_steps(normalizer, encoder.strips),
        },
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": bpe_json(
            {text: i for i, text in enumerate(texts)},
            merges_of(texts, pieces),
            unk_token=texts[encoder.model.unk_id()],
            fuse_unk=True,
            byte_fallback=len(encoder.byte_ids) == 256,
        ),
    }


def merges_of(texts: list[str], pieces: list[dict]) -> list[tuple[str, str]]:
    """Merges that join as SentencePiece does, from the fields of its pieces.

    It joins the neighbours whose union scores best, whatever the two parts: every split of every
    piece.
    """
    score = {
        text: struct.unpack("<f", piece.get(2, bytes(4)))[0]
        for text, piece in zip(texts, pieces, strict=True)
    }
    known = {text: i for i, text in enumerate(texts) if pieces[i].get(3, NORMAL) == NORMAL}
    merges = []
    for piece in sorted(known, key=lambda text: -score[text]):
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        parts = [part for part in parts if part[0] in known and part[1] in known]
        merges += sorted(parts, key=lambda part: (known[part[0]], known[part[1]]))
    return merges


def normalizer_steps(normalizer: dict, strips: bool) -> list[dict]:
    """tokenizer.json's normalizers for the fields of a SentencePiece NormalizerSpec."""
    steps = []
    if normalizer.get(2):
        charsmap = base64.b64encode(normalizer[2]).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if normalizer.get(4, 1):  # remove_extra_whitespaces
        steps += [
            {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if strips:
        steps.append({"type": "Prepend", "prepend": "\u2581"})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    return steps


def gpt2_json(tok: Tokenizer) -> dict:
    """tokenizer.json's parts for GPT-2's encoding."""
    vocab, merges, _ = read_gpt2(tok.files, tok.contents)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": bpe_json(vocab, merges),
    }


def llama3_json(tok: Tokenizer) -> dict:
    """tokenizer.json's parts for Llama-3's encoding.

    Ranks -> merges: every way to split a token in two tokens, by rank (source: transformers'
    TikTokenConverter).
    """
    ranks, letters = read_ranks(tok.files[0], tok.contents[0]), byte_alphabet()

    def shown(token):
        return "".join(letters[b] for b in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        parts = [part for part in parts if part[0] in ranks and part[1] in ranks]
        merges += [
            (shown(a), shown(b))
            for a, b in sorted(parts, key=lambda part: (ranks[part[0]], ranks[part[1]]))
        ]
    split = {
        "type": "Split",
        "pattern": {"Regex": LLAMA3_PATTERN.replace(r"\s++$|", "")},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": bpe_json({shown(t): r for t, r in ranks.items()}, merges, ignore_merges=True),
    }
