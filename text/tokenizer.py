"""Text to ids and back, with the tokenizer of any model.

    python -m text.tokenizer PATH "some text"      # what PATH holds, and how it cuts the text

SentencePiece models, Hugging Face's tokenizer.json, GPT-2's and Llama-3's byte-pair encodings, what
a GGUF file holds. Two role tokens follow the vocabulary. Ids equal Hugging Face's
(add_special_tokens=False). encode() treats its argument as plain text and never gives a control,
end-of-text or role id: "<|user|>" typed by somebody is half a dozen ordinary tokens (injection).
Left out: training a tokenizer.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from host import files, terminal
from text.tokenizer_files import Source, find

MOST_ADDED = 100_000  # ids that a folder may leave out before a token that it adds
ROLE_USER, ROLE_ASSISTANT = "<|user|>", "<|assistant|>"

# Ordinary text that a faithful tokenizer gives back unchanged.
# fmt: off
PROBES = (
    "a  b", " a", "a ", "a\nb", "a\n\n b\t", "ﬁ Å ½", "e\u0301", "\u3000", "A\r\n", "你好",
    "\U0001f600", "\0\x7f",
)
# fmt: on


class Tokenizer:
    """A tokenizer of any kind; made by load().

    kind: "sentencepiece", "gpt2", "llama3" or "tokenizer.json".
    base_size, size: rows of the original vocabulary; the same plus 2 with roles.
    bos, eos: ids; bos is eos where the tokenizer has none. eos_ids: all that end what a model says.
    start: what is put before a plain text. opening: what is put before a document in training.
    user, assistant: ids of the role tokens, or None.
    pieces: the UTF-8 of each id. special: ids that no text gives. unused: ids of no token at all,
    as where a model's vocabulary is padded.
    chat_template: the folder's (jinja), or None.
    files: paths; fingerprint: sha256 hex of all that decides ids.
    normalises: whether decode(encode(x)) != x for some ordinary text, found by trying.
    """

    origin: tuple[str, bool, int | None]  # load(*origin) loads the same

    def __init__(self, source: Source, roles: bool = True, rows: int | None = None):
        self.files, self.contents, settings = source.files, source.contents, source.settings
        self.settings, self.encoder = settings, source.encoder()
        self.kind, self.chat_template = self.encoder.kind, settings.chat_template
        self.pieces, self.special = list(self.encoder.pieces), set(self.encoder.special)
        self.unused: set[int] = set(getattr(self.encoder, "unused", ()))
        self.added = self._add_tokens(getattr(self.encoder, "added", {}) | settings.added)
        self.has_role_names = self._drop_role_names()
        self._pad(rows or settings.rows)
        self.base_size, self.roles = len(self.pieces), roles
        self.user, self.assistant = (self.base_size, self.base_size + 1) if roles else (None, None)
        if roles:
            self.special |= {self.base_size, self.base_size + 1}
            self.pieces += [ROLE_USER.encode(), ROLE_ASSISTANT.encode()]
        self.size = len(self.pieces)
        self._find_ends()
        self.fingerprint = self._fingerprint()
        self.normalises = any(self.decode(self.encode(text)) != text for text in PROBES)

    def _add_tokens(self, added: dict[str, int]) -> dict[str, int]:
        """Give the folder's added tokens their ids, where the tokenizer's file has none."""
        for token, i in sorted(added.items(), key=lambda entry: entry[1]):
            if i > len(self.pieces) + MOST_ADDED:
                raise ValueError(
                    f"tokenizer {self.files[0]} has {len(self.pieces)} ids, the folder gives the "
                    f"added token {token!r} the id {i}: copy the folder again"
                )
            while i >= len(self.pieces):
                self.unused.add(len(self.pieces))
                self.pieces.append(b"")
            if i in self.unused:
                self.pieces[i] = token.encode("utf-8", "replace")
                self.special.add(i)
                self.unused.discard(i)
            elif self.kind == "llama3" and i in self.special:  # 3.1 renames some of Llama 3's
                self.pieces[i] = token.encode("utf-8", "replace")
        return added

    def _drop_role_names(self) -> bool:
        """Whether the last two tokens are the role tokens, which then are no part of the base."""
        names = [ROLE_USER.encode(), ROLE_ASSISTANT.encode()]
        if self.pieces[-2:] != names:
            return False
        del self.pieces[-2:]
        self.special -= {len(self.pieces), len(self.pieces) + 1}
        return True

    def _pad(self, rows: int | None) -> None:
        """Ids of no token, up to a model's rows."""
        if rows and rows > len(self.pieces):
            self.unused |= set(range(len(self.pieces), rows))
            self.pieces += [b""] * (rows - len(self.pieces))
        self.special |= self.unused

    def _find_ends(self) -> None:
        """bos, eos, eos_ids, start and opening, as the folder says, else as the tokenizer does."""
        says = self.settings
        first, last = self.encoder.bos, self.encoder.eos
        bos = self._id("bos_token", says.bos_token, says.bos_id if first is None else first)
        ids = says.eos_ids if last is None else (last, *says.eos_ids)
        eos = self._id("eos_token", says.eos_token, ids[0] if ids else None)
        if eos is None:
            raise ValueError(
                f"tokenizer {self.files[0]} has no end token: name one as eos_token in a "
                "tokenizer_config.json beside it"
            )
        out = [i for i in says.eos_ids if not 0 <= i < self.size]
        if out:
            raise ValueError(
                f"tokenizer {self.files[0]} has {self.size} ids, the eos_token_id {out[0]} of "
                "generation_config.json or config.json is none of them: copy the folder again"
            )
        self.eos, self.eos_ids = eos, frozenset({eos, *says.eos_ids})
        self.bos, self.has_bos = (eos, False) if bos is None else (bos, True)
        adds_bos = says.add_bos
        if adds_bos is None:
            start = getattr(self.encoder, "start", None)
            adds_bos = self.kind != "gpt2" if start is None else bool(start)
        adds_bos = adds_bos and bos is not None
        self.start = [self.bos] if adds_bos else []
        # GPT-2 puts its end token between documents, and so before each
        self.opening = [self.bos] if adds_bos or bos == eos else []

    def _id(self, key: str, token: str | None, default: int | None) -> int | None:
        """The id of a token that the folder names, or the default where it names none."""
        if token is None:
            return default
        i = self.id_of(token)
        if i is None:
            raise ValueError(
                f"tokenizer {self.files[0]} has no token {token!r}, which the folder names as "
                f"{key}: copy the folder again"
            )
        return i

    def id_of(self, token: str) -> int | None:
        """The id of the token that is written so; of several, a special one."""
        wanted = token.encode("utf-8", "replace")
        ids = [i for i in sorted(self.special - self.unused) if self.pieces[i] == wanted]
        ids += [i for i, piece in enumerate(self.pieces) if piece == wanted] if not ids else []
        return ids[0] if ids else None

    def _fingerprint(self) -> str:
        """sha256 of the files, and of what the folder changes."""
        digest = hashlib.sha256(b"".join(self.contents))
        e = self.encoder
        own_start = [e.bos] if self.kind != "gpt2" else []
        changes = {
            "ends": [self.bos, self.eos] if (self.bos, self.eos) != (e.bos, e.eos) else None,
            "start": self.start if self.start != own_start else None,
            "added": {t: i for t, i in self.added.items() if len(e.pieces) <= i < self.base_size},
            # without role tokens, padding changes no id that is packed
            "rows": self.base_size if self.unused and self.roles else None,
        }
        changes = {key: value for key, value in changes.items() if value not in (None, {})}
        if changes:
            digest.update(json.dumps(changes, sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def warning(self) -> str | None:
        """One line for a program to print where the tokenizer does not give every text back."""
        if not self.normalises:
            return None
        return (
            f"tokenizer {self.files[0]} normalises: decoding does not give back double or edge "
            "spaces (or other characters) of some texts; train one with identity normalisation to "
            "keep them"
        )

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text; no bos or eos; never a control or role id, whatever it holds.

        Half a surrogate pair, which no encoding has a byte for, becomes U+FFFD; two halves in order
        become their character.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return self.encoder.encode(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 of the ids; special and role tokens as their own strings.

        Each run between special tokens is decoded apart: SentencePiece's dummy space at its head is
        dropped. The bytes of a prefix of the ids are a prefix of the bytes of all, so a stream may
        be printed as it grows. ValueError for an id outside the vocabulary.
        """
        out, is_head = [], True
        for i in ids:
            if not 0 <= i < self.size:
                raise ValueError(
                    f"id {i} is outside the tokenizer's {self.size} ids (0 to {self.size - 1}): "
                    "the ids or the model are another tokenizer's, name that one"
                )
            piece = self.pieces[i]
            if i in self.special:
                is_head = True
            else:
                if is_head and self.encoder.strips and piece.startswith(b" "):
                    piece = piece[1:]
                is_head = False
            out.append(piece)
        return b"".join(out)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids: decode(encode(x)) == x.

        Bytes that are not UTF-8 (a character cut in half) become U+FFFD.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, folder: str | Path) -> None:
        """Copy the tokenizer's files and the folder's word of them, each whole or not at all."""
        folder = Path(folder)
        for file, content in zip(self.files, self.contents, strict=True):
            files.write_whole(folder / file.name, content)
        for name, content in self.settings.files.items():
            files.write_whole(folder / name, content)
        if self.settings.eos_ids and "generation_config.json" not in self.settings.files:
            ends = {"eos_token_id": sorted(self.eos_ids)}  # as config.json says, which stays behind
            files.write_json(folder / "generation_config.json", ends)
        if self.unused:
            files.write_json(folder / "padding.json", {"rows": self.base_size})


def check_size(tok: Tokenizer, rows: int, what: str = "the model") -> None:
    """ValueError unless `what`, with embeddings for `rows` ids (no padding), fits the tokenizer.

    Roles or not.
    """
    if rows not in (tok.base_size, tok.base_size + 2 * (tok.roles or tok.has_role_names)):
        raise ValueError(
            f"{what} has {rows} ids, tokenizer {tok.files[0]} has {tok.base_size} (with role "
            f"tokens {tok.base_size + 2}): name the tokenizer it was trained with by --tokenizer"
        )


def load(path: str | Path, roles: bool = True, rows: int | None = None) -> Tokenizer:
    """The tokenizer in `path`: a file, or a folder with its files.

    A folder is Hugging Face's, a run's or a run's tokenizer/; a file is a SentencePiece model, a
    tokenizer.json, Llama-3's ranks, one of GPT-2's pair or a GGUF model. With `roles` the two role
    tokens follow the vocabulary. rows: of the model, where its vocabulary is padded beyond the
    tokenizer. ValueError, one line, if there is no tokenizer or it is damaged.
    """
    tok = Tokenizer(find(path), roles, rows)
    tok.origin = (str(path), roles, rows)
    return tok


# --- the program ---


def run(argv: list[str]) -> None:
    """Show what a path holds and how it cuts a text."""
    parser = terminal.Parser(
        prog="python -m text.tokenizer",
        description="What PATH holds, and how it cuts a text: one line a token, id and bytes.",
    )
    parser.add_argument("path", metavar="PATH", help="a tokenizer's file, or a folder with one")
    parser.add_argument("text", metavar="TEXT", help="taken as plain text")
    args = parser.parse_args(argv)
    tok = load(args.path)
    print(
        f"{tok.kind}, {tok.base_size} ids, bos {tok.bos}, eos {tok.eos}, "
        f"{ROLE_USER} {tok.user}, {ROLE_ASSISTANT} {tok.assistant}"
    )
    for i in tok.encode(args.text):
        print(i, tok.pieces[i])
    if tok.warning:
        terminal.say(f"tokenizer: {tok.warning}")


def main(argv: list[str] | None = None) -> int:
    """The program's exit status."""
    return terminal.program(lambda: run(sys.argv[1:] if argv is None else argv), "tokenizer")


if __name__ == "__main__":
    sys.exit(main())
