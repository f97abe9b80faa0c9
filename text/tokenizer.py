"""Text to ids and back: LLaMA's SentencePiece, GPT-2's and Llama-3's byte-pair encodings.

    python -m text.tokenizer PATH "some text"      # what PATH holds, and how it cuts the text

Two role tokens follow the vocabulary. Ids equal Hugging Face's (add_special_tokens=False). encode()
treats its argument as plain text and never gives a control, end-of-text or role id: "<|user|>"
typed by somebody is half a dozen ordinary tokens (injection). Left out: training a tokenizer,
WordPiece, Hugging Face's tokenizer.json as a source (its sibling files are read instead).
"""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from host import files, terminal
from text import byte_pairs
from text.byte_pairs import is_ranks
from text.pieces import SentencePiece, is_sentencepiece

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # GPT-2's files
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

    kind: "sentencepiece", "gpt2" or "llama3".
    base_size, size: ids of the original vocabulary; the same plus 2 with roles.
    bos, eos: ids. user, assistant: ids base_size and base_size + 1, or None.
    pieces: the UTF-8 of each id. special: ids that no text gives.
    files: paths; fingerprint: sha256 hex of their bytes.
    normalises: whether decode(encode(x)) != x for some ordinary text, found by trying.
    """

    def __init__(self, paths: list[Path], roles: bool = True):
        self.files, self.roles = [Path(path) for path in paths], roles
        self.contents = [path.read_bytes() for path in self.files]
        self.fingerprint = hashlib.sha256(b"".join(self.contents)).hexdigest()
        self.encoder = read_encoder(self.files, self.contents)
        self.kind, self.bos, self.eos = self.encoder.kind, self.encoder.bos, self.encoder.eos
        self.pieces, self.special = list(self.encoder.pieces), set(self.encoder.special)
        self.base_size = len(self.pieces)
        self.user, self.assistant = (self.base_size, self.base_size + 1) if roles else (None, None)
        if roles:
            self.special |= {self.base_size, self.base_size + 1}
            self.pieces += [ROLE_USER.encode(), ROLE_ASSISTANT.encode()]
        self.size = len(self.pieces)
        self.normalises = any(self.decode(self.encode(text)) != text for text in PROBES)

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

    def save(self, folder) -> None:
        """Copy the tokenizer's files, under their own names, each whole or not at all."""
        for file, content in zip(self.files, self.contents, strict=True):
            files.write_whole(Path(folder) / file.name, content)


def read_encoder(paths: list[Path], contents: list[bytes]) -> SentencePiece | byte_pairs.BytePairs:
    """What encodes with the tokenizer's files, told apart by content."""
    if len(paths) == 2:
        return byte_pairs.gpt2(paths, contents)
    if is_ranks(contents[0]):
        return byte_pairs.llama3(paths[0], contents[0])
    return SentencePiece(paths[0], contents[0])


def check_size(tok: Tokenizer, rows: int, what: str = "the model") -> None:
    """ValueError unless `what`, with embeddings for `rows` ids (no padding), fits the tokenizer.

    Roles or not.
    """
    if rows not in (tok.base_size, tok.size):
        raise ValueError(
            f"{what} has {rows} ids, tokenizer {tok.files[0]} has {tok.base_size} (with role "
            f"tokens {tok.base_size + 2}): name the tokenizer it was trained with by --tokenizer"
        )


# --- files ---


def load(path, roles: bool = True) -> Tokenizer:
    """The tokenizer in `path`: a file, or a folder with its files.

    A folder is Hugging Face's, a run's or a run's tokenizer/. Told apart by content: a
    SentencePiece model, Llama-3's ranks, or GPT-2's vocabulary (encoder.json, vocab.json) with its
    merges (vocab.bpe, merges.txt) beside it. With `roles` the two role tokens follow the
    vocabulary. ValueError, one line, if there is none or it is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"tokenizer {path} does not exist: name a tokenizer.model, or a folder holding one, or "
            "encoder.json + vocab.bpe (vocab.json + merges.txt)"
        )
    return Tokenizer(find_file(path) if path.is_file() else find_in_folder(path), roles)


def find_file(path: Path) -> list[Path]:
    """The files of the tokenizer that a file is, or is one half of."""
    if is_model(path):
        return [path]
    for pair in pairs_in(path.parent):
        if path in pair:
            return pair
    raise ValueError(
        f"tokenizer {path} is neither a SentencePiece model nor a file of ranks, nor one of the "
        "pairs encoder.json + vocab.bpe or vocab.json + merges.txt: name one of these"
    )


def find_in_folder(path: Path) -> list[Path]:
    """The files of a folder's tokenizer: [vocabulary, merges] or [model]."""
    for folder in (path, path / "tokenizer", path / "original"):
        named = folder / "tokenizer.model"
        models = [named] if named.is_file() else sorted(folder.glob("*.model"))
        candidates = [[file] for file in models if is_model(file)] + pairs_in(folder)[:1]
        if len(candidates) > 1:
            names = ", ".join("+".join(f.name for f in paths) for paths in candidates)
            raise ValueError(
                f"tokenizer {folder} holds {len(candidates)} tokenizers ({names}): name one of the "
                "files"
            )
        if candidates:
            return candidates[0]
    halves = {name for pair in PAIRS for name in pair} & {f.name for f in path.iterdir()}
    if halves:
        raise ValueError(
            f"tokenizer {path} holds {', '.join(sorted(halves))} without its other half: "
            "encoder.json goes with vocab.bpe, vocab.json with merges.txt"
        )
    only = " but tokenizer.json, which is not read" if (path / "tokenizer.json").is_file() else ""
    raise ValueError(
        f"tokenizer {path} holds no tokenizer{only}: it needs tokenizer.model, encoder.json + "
        "vocab.bpe or vocab.json + merges.txt (or name another with --tokenizer)"
    )


def is_model(path: Path) -> bool:
    """Whether a file is a SentencePiece model or Llama-3's ranks."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    return is_sentencepiece(head) or is_ranks(head)


def pairs_in(folder: Path) -> list[list[Path]]:
    """GPT-2's file pairs in a folder."""
    pairs = [[folder / name for name in pair] for pair in PAIRS]
    return [pair for pair in pairs if all(f.is_file() for f in pair)]


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
