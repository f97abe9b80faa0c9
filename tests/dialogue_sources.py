"""Tokenizers and dialogues of our own for the tests of data.py, and what packed rows hold."""

import json
import re

import numpy as np
import pytest

from text import tokenizer
from text.byte_pairs import byte_alphabet

# --- tokenizers and dialogues of our own ---


@pytest.fixture(scope="module")
def toks(tmp_path_factory):
    """A SentencePiece model that keeps every text, and a byte-level BPE, each of some 300 ids."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizers")
    text = [
        "The quick brown fox says hello to the lazy dog.",
        "USER: hello there GPT: hello",
        "你好 world  \t ok",
    ] * 20
    (folder / "sp").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "sp" / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        bos_id=1,
        eos_id=2,
        unk_id=0,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (folder / "bpe").mkdir()
    letters, merges = byte_alphabet(), ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he"]
    tokens = [*letters, *(m.replace(" ", "") for m in merges), "<|endoftext|>"]
    (folder / "bpe" / "encoder.json").write_text(
        json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "bpe" / "vocab.bpe").write_text(
        "#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8"
    )
    found = {name: tokenizer.load(folder / name) for name in ("sp", "bpe")}
    assert not any(tok.normalises for tok in found.values())
    return found


def dialogue(i, turns=2, words=12):
    rng = np.random.default_rng(i)

    def say(who):
        return f"{who} {i} " + " ".join(
            rng.choice(["hello", "the", "fox", "dog  ", "\n", "你好", "quick"], words)
        )

    return {
        "id": f"dialogue {i}",
        "conversations": [{"from": who, "value": say(who)} for who in ("human", "gpt") * turns],
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """200 dialogues as JSON lines; each names its number in every turn."""
    path = tmp_path_factory.mktemp("source") / "talk.jsonl"
    path.write_text(
        "".join(json.dumps(dialogue(i, 1 + i % 3, 3 + i % 20)) + "\n" for i in range(200)),
        encoding="utf-8",
    )
    return path


def rows_of(folder, split="train"):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(folder)).as_data_source(split)
    return [source[i] for i in range(len(source))]


def numbers(folder, tok, split="train"):
    """The numbers of the dialogues that a packed directory of rows holds."""
    return [
        int(re.search(r"human (\d+)", tok.decode(row["tokens"].tolist()))[1])
        for row in rows_of(folder, split)
    ]
