"""Text to ids and back: LLaMA's SentencePiece, GPT-2's and Llama-3's byte-pair encodings, and two role tokens behind them.

    python tokenizer.py PATH "some text"      # what PATH holds, and how it cuts the text

Ids equal Hugging Face's (add_special_tokens=False). encode() treats its argument as plain text and never gives a control,
end-of-text or role id: "<|user|>" typed by somebody is seven or so ordinary tokens (injection). Left out: training a
tokenizer, WordPiece, Hugging Face's tokenizer.json as a source (its sibling files are read instead).
"""
import base64
import binascii
import bisect
import hashlib
import json
import os
import pathlib
import re
import sys

ROLE_USER, ROLE_ASSISTANT = "<|user|>", "<|assistant|>"

# GPT-2's published pattern in an equivalent form that does not backtrack over runs of letters (tiktoken's r50k_base).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# Llama 3's published pattern (its tokenizer.py); `\s++$` is added: it takes what `\s+(?!\S)` takes at the end, in one go.
LLAMA3_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                  r"|\s*[\r\n]+|\s++$|\s+(?!\S)|\s+")
# Llama 3's 256 special tokens in the order of its own tokenizer.py, ids from the number of ranks on.
LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
                  "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
                  *(f"<|reserved_special_token_{i}|>" for i in range(5, 251))]
ENDOFTEXT = "<|endoftext|>"

# tiktoken's regular expressions overflow where `\s+(?!\S)` meets about 10^6 spaces in a row, so a long run of white space
# (the patterns' \s is Unicode's White_Space, written out: Python's \s is a little wider) is cut before its last character,
# where a piece ends in any case: `\s+(?!\S)` takes all but the last, which goes with what follows, and nothing looks back.
WHITE_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{1000,}")

# Ordinary text that a faithful tokenizer gives back unchanged.
PROBES = ("a  b", " a", "a ", "a\nb", "a\n\n b\t", "ﬁ Å ½", "e\u0301", "\u3000", "A\r\n", "你好", "\U0001f600", "\0\x7f")


# ---- files --------------------------------------------------------------------------------------------------------------------

def load(path, roles=True):
    """The tokenizer in `path`: a file, or a folder that holds its files (Hugging Face's, a run's or a run's tokenizer/).

    Told apart by content: a SentencePiece model, Llama-3's ranks, or GPT-2's vocabulary (encoder.json, vocab.json) with
    its merges (vocab.bpe, merges.txt) beside it. With `roles` the two role tokens follow the vocabulary.
    ValueError, one line, if there is none or it is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"tokenizer {path} does not exist: name a tokenizer.model, or a folder holding one, or "
                         "encoder.json + vocab.bpe (vocab.json + merges.txt)")
    return Tokenizer(_find(path), roles)


def _find(path):
    """The files of the tokenizer at `path`, in the order (vocabulary, merges) or (model,)."""
    if path.is_file():
        content = path.read_bytes()
        if _is_sentencepiece(content) or _is_ranks(content):
            return [path]
        # One half of GPT-2's pair was named: the other lies beside it.
        for pair in _pairs(path.parent):
            if path in pair:
                return pair
        raise ValueError(f"tokenizer {path} is neither a SentencePiece model nor a file of ranks, nor one of the pairs "
                         "encoder.json + vocab.bpe or vocab.json + merges.txt: name one of these")
    for folder in (path, path / "tokenizer", path / "original"):
        named = folder / "tokenizer.model"
        models = [named] if named.is_file() else sorted(folder.glob("*.model"))
        models = [m for m in models if m.is_file() and (_is_sentencepiece(m.read_bytes()) or _is_ranks(m.read_bytes()))]
        found = [[m] for m in models] + _pairs(folder)[:1]
        if len(found) > 1:
            names = ", ".join("+".join(f.name for f in files) for files in found)
            raise ValueError(f"tokenizer {folder} holds {len(found)} tokenizers ({names}): name one of the files")
        if found:
            return found[0]
    have = {f.name for f in path.iterdir()} & {"encoder.json", "vocab.json", "vocab.bpe", "merges.txt"}
    if have:
        raise ValueError(f"tokenizer {path} holds {', '.join(sorted(have))} without its other half: encoder.json goes "
                         "with vocab.bpe, vocab.json with merges.txt")
    raise ValueError(f"tokenizer {path} holds no tokenizer: it needs tokenizer.model, encoder.json + vocab.bpe or "
                     "vocab.json + merges.txt (or name another with --tokenizer)")


def _pairs(folder):
    """GPT-2's file pairs in `folder`."""
    pairs = [[folder / "vocab.json", folder / "merges.txt"], [folder / "encoder.json", folder / "vocab.bpe"]]
    return [pair for pair in pairs if all(f.is_file() for f in pair)]


def _is_sentencepiece(content):
    """Whether the bytes are a SentencePiece ModelProto: a first field 1 (a piece), itself a message that starts with its string."""
    return len(content) > 4 and content[0] == 0x0A and content[2] == 0x0A


def _is_ranks(content):
    """Whether the first line is Llama-3's `base64 rank`."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:4096]) is not None


def _read_ranks(path):
    """Llama-3's file of ranks -> dict bytes -> rank, ranks 0..n-1."""
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"tokenizer {path} line {number} is not `base64 rank`: the file is damaged, fetch it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"tokenizer {path} has {len(ranks)} ranks that are not 0 to {len(ranks) - 1}: the file is damaged, fetch it again")
    return ranks


def byte_alphabet():
    """GPT-2's printable character for each of the 256 bytes, list of str by byte (source: its encoder.py, bytes_to_unicode)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def _read_gpt2(vocab_path, merges_path):
    """GPT-2's two files -> (dict bytes -> rank, dict bytes -> id, dict special token str -> id, the merges)."""
    try:
        vocab = json.loads(vocab_path.read_text(encoding="utf-8"))
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise ValueError(f"tokenizer {vocab_path} is not a JSON object of token: id as GPT-2's encoder.json is: fetch it again")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(f"tokenizer {vocab_path} has {len(vocab)} ids that are not 0 to {len(vocab) - 1}: every id once, no gaps")
    alphabet = byte_alphabet()
    byte_of = {c: b for b, c in enumerate(alphabet)}
    # Bytes rank in the order of their ids; a trained merge ranks by its line.
    order = sorted(alphabet, key=lambda c: vocab.get(c, -1))
    merges = []
    for number, line in enumerate(merges_path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip() or number == 1 and line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or any(c not in byte_of for part in pair for c in part):
            raise ValueError(f"tokenizer {merges_path} line {number} is not two parts in GPT-2's byte letters: fetch it again")
        merges.append(tuple(pair))
    order += [a + b for a, b in merges]
    missing = next((token for token in order if token not in vocab), None)
    if missing is not None or len(set(order)) < len(order):
        what = f"lacks {missing!r}, which {merges_path.name} makes" if missing is not None else f"does not fit {merges_path.name}, which makes a token twice"
        raise ValueError(f"tokenizer {vocab_path} ({len(vocab)} tokens) {what}: the two files are of different tokenizers")
    to_bytes = {token: bytes(byte_of[c] for c in token) for token in order}
    ranks = {to_bytes[token]: rank for rank, token in enumerate(order)}
    special = {token: i for token, i in vocab.items() if token not in to_bytes}
    return ranks, {to_bytes[token]: vocab[token] for token in order}, special, merges


# ---- the tokenizer ------------------------------------------------------------------------------------------------------------

class Tokenizer:
    """One of the three tokenizers; made by load().

    kind "sentencepiece" | "gpt2" | "llama3"; base_size ids of the original vocabulary; size the same plus 2 with roles;
    bos, eos ids; user, assistant ids base_size and base_size + 1, or None; files (paths); fingerprint (sha256 hex of the
    files' bytes); normalises: whether decode(encode(x)) != x for some ordinary text, found by trying.
    """

    def __init__(self, files, roles=True):
        self.files, self.roles = [pathlib.Path(f) for f in files], roles
        self._content = {f.name: f.read_bytes() for f in self.files}
        self.fingerprint = hashlib.sha256(b"".join(self._content.values())).hexdigest()
        first = next(iter(self._content.values()))
        if len(self.files) == 2:
            self._init_gpt2()
        elif _is_ranks(first):
            self._init_llama3()
        else:
            self._init_sentencepiece(first)
        self.base_size = len(self._bytes)
        self.user, self.assistant = (self.base_size, self.base_size + 1) if roles else (None, None)
        if roles:
            self._bytes += [ROLE_USER.encode(), ROLE_ASSISTANT.encode()]
            self._special |= {self.user, self.assistant}
        self.size = len(self._bytes)
        self.normalises = any(self.decode(self.encode(text)) != text for text in PROBES)

    def _init_sentencepiece(self, content):
        import sentencepiece
        self.kind = "sentencepiece"
        self._model, self._inside = sentencepiece.SentencePieceProcessor(), sentencepiece.SentencePieceProcessor()
        try:
            self._model.load_from_serialized_proto(content)
            # The same model without the dummy space before a text (normalizer_spec.add_dummy_prefix = false, appended: a
            # protobuf message written twice is merged): it encodes what follows a U+2581 inside a text.
            self._inside.load_from_serialized_proto(content + b"\x1a\x02\x18\x00")
        except RuntimeError as error:
            raise ValueError(f"tokenizer {self.files[0]} is not a whole SentencePiece model ({str(error).splitlines()[0][:80]}): fetch it again") from None
        model = self._model
        n = model.vocab_size()
        self.bos, self.eos = model.bos_id(), model.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise ValueError(f"tokenizer {self.files[0]} has bos id {self.bos} and eos id {self.eos}, both are needed: train it with bos_id and eos_id")
        pieces = [model.id_to_piece(i) for i in range(n)]
        self._bytes = [bytes([int(p[3:5], 16)]) if model.is_byte(i) else p.replace("\u2581", " ").encode() for i, p in enumerate(pieces)]
        self._bytes[model.unk_id()] = model.decode([model.unk_id()]).encode()
        self._special = {i for i in range(n) if model.is_control(i)}
        self._byte_ids = {b: i for i, b in enumerate(self._bytes) if model.is_byte(i)}
        self._strips = bool(model.encode("a")) and self._bytes[model.encode("a")[0]].startswith(b" ")

    def _init_gpt2(self):
        ranks, ids, special, _ = _read_gpt2(*self.files)
        if ENDOFTEXT not in special:
            raise ValueError(f"tokenizer {self.files[0]} has no {ENDOFTEXT}, GPT-2's start and end: add it as the last id")
        self.kind, self.bos, self.eos = "gpt2", special[ENDOFTEXT], special[ENDOFTEXT]
        self._init_bpe(GPT2_PATTERN, ranks)
        self._bytes = [None] * (len(ids) + len(special))
        for token, i in [*ids.items(), *((t.encode(), i) for t, i in special.items())]:
            self._bytes[i] = token
        self._special = set(special.values())
        # tiktoken's ids are ranks; a vocabulary that numbers its tokens otherwise (special tokens first) is mapped.
        by_rank = [ids[token] for token in ranks]
        self._ids = None if by_rank == list(range(len(by_rank))) else by_rank

    def _init_llama3(self):
        ranks = _read_ranks(self.files[0])
        self.kind, self.bos, self.eos = "llama3", len(ranks), len(ranks) + 1
        self._init_bpe(LLAMA3_PATTERN, ranks)
        self._bytes = sorted(ranks, key=ranks.get) + [t.encode() for t in LLAMA3_SPECIAL]
        self._special = set(range(len(ranks), len(ranks) + 256))
        self._ids = None

    def _init_bpe(self, pattern, ranks):
        import tiktoken
        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing:
            raise ValueError(f"tokenizer {self.files[0]} lacks {len(missing)} of the 256 single bytes (first: 0x{missing[0]:02X}): not a byte-level encoding")
        self._bpe = tiktoken.Encoding("mynah", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._strips = False

    @property
    def warning(self):
        """One line for a program to print once where the tokenizer does not give every text back, else None."""
        if self.normalises:
            return (f"tokenizer {self.files[0]} normalises: decoding does not give back double or edge spaces (or other "
                    "characters) of some texts; train one with identity normalisation to keep them")

    def encode(self, text):
        """Ids of one piece of text, list of int; no bos or eos; never a control or role id, whatever the text holds.

        Half a surrogate pair, which no encoding has a byte for, becomes U+FFFD; two halves in order become their
        character. U+2581, SentencePiece's own sign for a space, is spelt by its three bytes (Hugging Face reads it as a
        space). A leading space of the text is kept: SentencePiece's dummy space comes before it.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if self.kind == "sentencepiece":
            if "\u2581" not in text or len(self._byte_ids) < 256:
                return self._model.encode(text)
            first, *rest = text.split("\u2581")
            ids = self._model.encode(first)
            for part in rest:
                ids += [self._byte_ids[bytes([b])] for b in "\u2581".encode()] + self._inside.encode(part)
            return ids
        ids, start = [], 0
        if len(text) > 1000:
            for run in WHITE_RUN.finditer(text):
                end = run.end() - 1
                # Llama-3 takes line ends together with the blanks before them, without overflowing: no cut near one.
                if end + 1 < len(text) and (self.kind == "gpt2" or not set(text[end - 1:end + 1]) & {"\r", "\n"}):
                    ids += self._bpe.encode_ordinary(text[start:end])
                    start = end
        ids += self._bpe.encode_ordinary(text[start:])
        return ids if self._ids is None else [self._ids[i] for i in ids]

    def decode_bytes(self, ids):
        """UTF-8 of the ids, bytes; special and role tokens as their own strings.

        Each run between special tokens is decoded apart: SentencePiece's dummy space at its head is dropped. The bytes of
        a prefix of the ids are a prefix of the bytes of all, so a stream may be printed as it grows.
        ValueError for an id outside the vocabulary.
        """
        out, head = [], True
        for i in ids:
            if not 0 <= i < self.size:
                raise ValueError(f"id {i} is outside the tokenizer's {self.size} ids (0 to {self.size - 1}): the ids or the model are another tokenizer's")
            piece = self._bytes[i]
            if i in self._special:
                head = True
            else:
                if head and self._strips and piece.startswith(b" "):
                    piece = piece[1:]
                head = False
            out.append(piece)
        return b"".join(out)

    def decode(self, ids):
        """Text of the ids; bytes that are not UTF-8 (a character cut in half) become U+FFFD. decode(encode(x)) == x."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, folder):
        """Copy the tokenizer's files, under their own names and each whole or not at all, into `folder`."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._content.items():
            _write(folder / name, content)


def check_size(tok, rows, what="the model"):
    """ValueError unless `rows` (ids that `what` has embeddings for, padding not counted) fit the tokenizer, with or without roles."""
    if rows not in (tok.base_size, tok.size):
        raise ValueError(f"{what} has {rows} ids, tokenizer {tok.files[0]} has {tok.base_size} (with role tokens {tok.base_size + 2}): "
                         "name the tokenizer it was trained with by --tokenizer")


def _write(path, content):
    tmp = path.with_name(path.name + f".{os.getpid()}.tmp")
    tmp.write_bytes(content)
    os.replace(tmp, path)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 2 or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"]) else 2
    try:
        tok = load(argv[0])
    except ValueError as error:
        print(f"tokenizer.py: {error}", file=sys.stderr)
        return 2
    ids = tok.encode(argv[1])
    print(f"{tok.kind}, {tok.base_size} ids, bos {tok.bos}, eos {tok.eos}, {ROLE_USER} {tok.user}, {ROLE_ASSISTANT} {tok.assistant}")
    for i in ids:
        print(i, tok.decode_bytes([i]))
    if tok.warning:
        print(f"tokenizer.py: {tok.warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
