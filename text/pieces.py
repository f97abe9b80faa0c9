"""SentencePiece models, LLaMA's tokenizer.model: run by its own library, described for the export.

Left out: training one (study/world/making.py does).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

USER_DEFINED = 4  # a kind of piece: 1 normal, 2 unknown, 3 control, 5 unused, 6 byte


class SentencePiece:
    """A SentencePiece model. pieces: the bytes of each id; special: ids that no text gives.

    strips: the first piece of a text begins with a space that was not there.
    """

    kind = "sentencepiece"

    def __init__(self, file: Path, content: bytes):
        import sentencepiece

        content = without_spoken(content)
        self.model = sentencepiece.SentencePieceProcessor()
        self.inside = sentencepiece.SentencePieceProcessor()
        try:
            self.model.load_from_serialized_proto(content)
            # The same model without the dummy space before a text (normalizer_spec.
            # add_dummy_prefix = false, appended: a protobuf message written twice is merged).
            # It encodes what follows a U+2581 inside a text.
            self.inside.load_from_serialized_proto(content + b"\x1a\x02\x18\x00")
        except RuntimeError as error:
            why = str(error).splitlines()[0][:80]
            raise ValueError(
                f"tokenizer {file} is not a whole SentencePiece model ({why}): fetch it again"
            ) from None
        model = self.model
        n = model.vocab_size()
        self.bos, self.eos = model.bos_id(), model.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise ValueError(
                f"tokenizer {file} has bos id {self.bos} and eos id {self.eos}, both are needed: "
                "train it with bos_id and eos_id"
            )
        texts = [model.id_to_piece(i) for i in range(n)]
        self.pieces: list[bytes] = [
            bytes([int(text[3:5], 16)])
            if model.is_byte(i)
            else text.replace("\u2581", " ").encode()
            for i, text in enumerate(texts)
        ]
        self.pieces[model.unk_id()] = model.decode([model.unk_id()]).encode()
        self.special = {i for i in range(n) if model.is_control(i)}
        self.byte_ids = {b: i for i, b in enumerate(self.pieces) if model.is_byte(i)}
        first = model.encode("a")
        self.strips = bool(first) and self.pieces[first[0]].startswith(b" ")

    def encode(self, text: str) -> list[int]:
        """Ids of a text without half surrogates.

        U+2581, SentencePiece's own sign for a space, is spelt by its three bytes (Hugging Face
        reads it as a space). A leading space of the text is kept: the dummy space comes before it,
        as in LLaMA's published tokenizer.json. (transformers 5.23, given a bare tokenizer.model,
        drops that space and ranks merges by id instead of by score.)
        """
        if "\u2581" not in text or len(self.byte_ids) < 256:
            return self.model.encode(text)
        first, *rest = text.split("\u2581")
        ids = self.model.encode(first)
        sign = [self.byte_ids[bytes([b])] for b in "\u2581".encode()]
        for part in rest:
            ids += sign + self.inside.encode(part)
        return ids


def without_spoken(content: bytes) -> bytes:
    """The model with its user-defined pieces as control pieces, which no text gives.

    Such a piece (kind 4) is found in any text; chat models keep their <|im_start|> so. Those of
    white space alone, or of one character, stay: they stand for nothing else.
    """
    out = []
    for number, value in fields(content) if b"\x18\x04" in content else ():
        if number == 1:
            piece = dict(fields(value))
            text = piece[1].decode("utf-8", "replace").strip(" \n\t▁")
            if piece.get(3) == USER_DEFINED and len(text) > 1:
                value = value.replace(b"\x18\x04", b"\x18\x03")
        out.append(bytes([number << 3 | 2]) + length(value) + value)
    return b"".join(out) or content


def length(value: bytes) -> bytes:
    """The length of a protobuf field, as it is written before it."""
    n, out = len(value), b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def is_sentencepiece(content: bytes) -> bool:
    """Whether the bytes start as a ModelProto: field 1, a piece, whose own field 1 is its text."""
    return len(content) > 4 and content[0] == 0x0A and content[2] == 0x0A


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a protobuf message's fields: int of a varint, bytes of the others."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            value |= (message[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if message[at - 1] < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            yield key >> 3, message[at : at + size]
            at += size
