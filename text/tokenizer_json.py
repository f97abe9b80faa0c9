"""Hugging Face's tokenizer.json: any model in it, run by their `tokenizers` library.

Text is never a token that was added: the library looks for added tokens in plain text, so they are
taken out of the copy that encodes, but for those of white space alone, which stand for nothing
else.
"""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from text.byte_pairs import LLAMA3_PATTERN, byte_alphabet, read_merges, read_vocabulary
from text.tokenizer_settings import record

# a name that nobody can guess, for a special token in the copy that encodes
UNSPOKEN = secrets.token_hex(16)


class JsonEncoder:
    """A tokenizer.json. pieces: the bytes of each id; special: ids that no text gives.

    strips: the first piece of a text begins with a space that was not there. start: what the
    library puts before a text. added: name -> id of the added tokens.
    """

    kind = "tokenizer.json"

    def __init__(self, file: Path, content: bytes):
        self.file, data = file, record(content, str(file))
        try:
            added = {
                t["content"]: (t["id"], bool(t["special"])) for t in data["added_tokens"] or []
            }
            vocab = vocabulary(data["model"])
            self.backend = build(mute(data, added))
            self.backend.encode_special_tokens = True
            self.backend.no_truncation()
            self.backend.no_padding()
        except Exception as error:  # the library raises Exception itself
            why = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            raise ValueError(
                f"tokenizer {file} is no tokenizer.json that the tokenizers library reads ({why}): "
                "copy it again"
            ) from None
        self.added = {token: i for token, (i, _) in added.items()}
        self.bos = self.eos = None
        spoken = made_by_merges(data["model"])
        self.special = {i for token, (i, _) in added.items() if token.strip()}
        self.special -= {i for token, (i, _) in added.items() if token in spoken}
        names = {i: token for token, i in vocab.items()} | {i: t for t, i in self.added.items()}
        self.pieces = [b""] * (max(names, default=-1) + 1)
        self.unused = {i for i in range(len(self.pieces)) if i not in names}
        to_bytes, self.strips = reader_of_pieces(data)
        for i, token in names.items():
            is_added = token in self.added
            self.pieces[i] = token.encode("utf-8", "replace") if is_added else to_bytes(token)
        plain = self.backend.encode("a", add_special_tokens=False).ids
        full = self.backend.encode("a", add_special_tokens=True).ids
        at = next((k for k in range(len(full)) if full[k : k + len(plain)] == plain), 0)
        self.start: list[int] = full[:at]

    def encode(self, text: str) -> list[int]:
        """Ids of a text without half surrogates."""
        return self.backend.encode(text, add_special_tokens=False).ids


def build(data: dict[str, Any]) -> Any:
    """The library's tokenizer of a tokenizer.json."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps(data))


def vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Token -> id of the model in a tokenizer.json: an object, or Unigram's list."""
    vocab = model["vocab"]
    return vocab if isinstance(vocab, dict) else {token: i for i, (token, _) in enumerate(vocab)}


def mute(data: dict[str, Any], added: dict[str, tuple[int, bool]]) -> dict[str, Any]:
    """The same without tokens that a text could spell: what encodes plain text.

    Added tokens, but for white space, get names that no text holds: in the list (whose ids follow
    from all that stands in it) and in the model's vocabulary, where a Unigram or WordPiece model
    would still find them. What merges make out of ordinary text is ordinary text.
    """
    data, model = dict(data), dict(data["model"])
    spoken, vocab = made_by_merges(model), model["vocab"]
    hidden = {
        token: f"{UNSPOKEN}{i}"
        for token, (i, is_special) in added.items()
        if (token.strip() or is_special) and token not in spoken
    }
    data["added_tokens"] = [
        t | {"content": hidden.get(t["content"], t["content"])}
        for t in data.get("added_tokens") or []
        if t["content"] not in spoken
    ]
    if isinstance(vocab, dict):
        model["vocab"] = {hidden.get(token, token): i for token, i in vocab.items()}
        if model.get("unk_token") in hidden:
            model["unk_token"] = hidden[model["unk_token"]]
    else:
        model["vocab"] = [[hidden.get(token, token), score] for token, score in vocab]
    data["model"] = model
    return data


def made_by_merges(model: dict[str, Any]) -> set[str]:
    """Tokens that merges make out of ordinary text, although they are listed as added too."""
    return {a + b for a, b in map(pair, model.get("merges") or [])}


def pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge, which older files write as one string."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def reader_of_pieces(data: dict[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """(token -> its bytes, whether a leading space is dropped), by the decoder in the file."""
    decoder = data.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type"): step for step in steps if isinstance(step, dict)}
    if "ByteLevel" in kinds:
        byte_of = {c: b for b, c in enumerate(byte_alphabet())}

        def spelt(token):
            known = all(c in byte_of for c in token)
            return bytes(byte_of[c] for c in token) if known else token.encode("utf-8", "replace")

        return spelt, False

    def spaced(token):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode("utf-8", "replace")

    if "Metaspace" in kinds:
        scheme = kinds["Metaspace"].get("prepend_scheme", "always")
        return spaced, scheme != "never" and kinds["Metaspace"].get("add_prefix_space", True)
    if "Replace" in kinds:
        return spaced, "Strip" in kinds
    if "WordPiece" in kinds:
        prefix = kinds["WordPiece"].get("prefix", "##")

        def joined(token):
            continues = token.startswith(prefix)
            return (token[len(prefix) :] if continues else " " + token).encode("utf-8", "replace")

        return joined, True
    return lambda token: token.encode("utf-8", "replace"), False


# --- the files that it may stand for ---


def is_gpt2(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts text as GPT-2 does."""
    cut, model = data.get("pre_tokenizer") or {}, data.get("model") or {}
    return (
        data.get("normalizer") is None
        and model.get("type") == "BPE"
        and cut.get("type") == "ByteLevel"
        and not cut.get("add_prefix_space", True)
        and cut.get("use_regex", True)
        and not any(model.get(key) for key in ("dropout", "ignore_merges", "byte_fallback"))
        and not any(model.get(k) for k in ("continuing_subword_prefix", "end_of_word_suffix"))
    )


def is_pair(data: dict[str, Any], files: list[Path]) -> bool:
    """Whether a tokenizer.json is the encoding of GPT-2's two files, which tiktoken runs faster."""
    if not is_gpt2(data):
        return False
    try:
        vocab = read_vocabulary(files[0], files[0].read_bytes())
        merges = read_merges(files[1], files[1].read_bytes())
    except ValueError:
        return False
    beyond = {t["content"]: t["id"] for t in data["added_tokens"] if t["id"] < len(vocab)}
    known = vocabulary(data["model"]) | beyond
    return known == vocab and [pair(m) for m in data["model"]["merges"]] == merges


def is_llama3(data: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts text as Llama-3 does."""
    cut = data.get("pre_tokenizer") or {}
    patterns = [
        step.get("pattern", {}).get("Regex")
        for step in cut.get("pretokenizers", [])
        if step.get("type") == "Split"
    ]
    return data.get("normalizer") is None and patterns == [LLAMA3_PATTERN.replace(r"\s++$|", "")]
