"""Text to ids and back: LLaMA's SentencePiece, GPT-2's and Llama-3's byte-pair encodings, and two role tokens.

    python -m text.tokenizer PATH "some text"      # what PATH holds, and how it cuts the text

Ids equal Hugging Face's (add_special_tokens=False). encode() treats its argument as plain text and never gives a
control, end-of-text or role id: "<|user|>" typed by somebody is half a dozen ordinary tokens (injection). Left out:
training a tokenizer, WordPiece, Hugging Face's tokenizer.json as a source (its sibling files are read instead).
"""

import base64
import binascii
import hashlib
import json
import os
import pathlib
import re
import struct
import sys

ROLE_USER, ROLE_ASSISTANT = "<|user|>", "<|assistant|>"

# GPT-2's published pattern in an equivalent form that does not backtrack over runs of letters (tiktoken's r50k_base).
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# Llama 3's published pattern (its tokenizer.py); `\s++$` is added: takes in one go what `\s+(?!\S)` takes at an end.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s++$|\s+(?!\S)|\s+"
)
# Llama 3's 256 special tokens in the order of its own tokenizer.py, ids after the ranks' (3.1 renames some).
LLAMA3_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
]
ENDOFTEXT = "<|endoftext|>"
NORMAL = 1  # SentencePiece's kinds of piece: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte

# tiktoken's regular expressions overflow where `\s+(?!\S)` meets about 10^6 spaces in a row, so a long run of white
# space (the patterns' \s is Unicode's White_Space, written out: Python's \s is a little wider) is cut before its last
# character, where a piece ends in any case: `\s+(?!\S)` takes all but the last, which goes with what follows, and
# nothing looks back.
WHITE_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{1000,}")

# Ordinary text that a faithful tokenizer gives back unchanged.
PROBES = (
    "a  b",
    " a",
    "a ",
    "a\nb",
    "a\n\n b\t",
    "ﬁ Å ½",
    "e\u0301",
    "\u3000",
    "A\r\n",
    "你好",
    "\U0001f600",
    "\0\x7f",
)


# ---- files -----------------------------------------------------------------------------------------------------------


def load(path, roles=True):
    """The tokenizer in `path`: a file, or a folder with its files (Hugging Face's, a run's or a run's tokenizer/).

    Told apart by content: a SentencePiece model, Llama-3's ranks, or GPT-2's vocabulary (encoder.json, vocab.json) with
    its merges (vocab.bpe, merges.txt) beside it. With `roles` the two role tokens follow the vocabulary.
    ValueError, one line, if there is none or it is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(
            f"tokenizer {path} does not exist: name a tokenizer.model, or a folder holding one, or "
            "encoder.json + vocab.bpe (vocab.json + merges.txt)"
        )
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
        raise ValueError(
            f"tokenizer {path} is neither a SentencePiece model nor a file of ranks, nor one of the pairs "
            "encoder.json + vocab.bpe or vocab.json + merges.txt: name one of these"
        )
    for folder in (path, path / "tokenizer", path / "original"):
        named = folder / "tokenizer.model"
        models = [named] if named.is_file() else sorted(folder.glob("*.model"))
        models = [
            m
            for m in models
            if m.is_file() and (_is_sentencepiece(m.read_bytes()) or _is_ranks(m.read_bytes()))
        ]
        found = [[m] for m in models] + _pairs(folder)[:1]
        if len(found) > 1:
            names = ", ".join("+".join(f.name for f in files) for files in found)
            raise ValueError(
                f"tokenizer {folder} holds {len(found)} tokenizers ({names}): name one of the files"
            )
        if found:
            return found[0]
    have = {f.name for f in path.iterdir()} & {
        "encoder.json",
        "vocab.json",
        "vocab.bpe",
        "merges.txt",
    }
    if have:
        raise ValueError(
            f"tokenizer {path} holds {', '.join(sorted(have))} without its other half: encoder.json goes "
            "with vocab.bpe, vocab.json with merges.txt"
        )
    only = " but tokenizer.json, which is not read" if (path / "tokenizer.json").is_file() else ""
    raise ValueError(
        f"tokenizer {path} holds no tokenizer{only}: it needs tokenizer.model, encoder.json + vocab.bpe "
        "or vocab.json + merges.txt (or name another with --tokenizer)"
    )


def _pairs(folder):
    """GPT-2's file pairs in `folder`."""
    pairs = [
        [folder / "vocab.json", folder / "merges.txt"],
        [folder / "encoder.json", folder / "vocab.bpe"],
    ]
    return [pair for pair in pairs if all(f.is_file() for f in pair)]


def _is_sentencepiece(content):
    """Whether the bytes start as a SentencePiece ModelProto does: field 1, a piece, whose own field 1 is its text."""
    return len(content) > 4 and content[0] == 0x0A and content[2] == 0x0A


def _is_ranks(content):
    """Whether the first line is Llama-3's `base64 rank`."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:4096]) is not None


def _read_ranks(path, content):
    """The content of Llama-3's file of ranks -> dict bytes -> rank, ranks 0..n-1."""
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"tokenizer {path} line {number} is not `base64 rank`: the file is damaged, "
                "fetch it again"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"tokenizer {path} has {len(ranks)} ranks that are not 0 to {len(ranks) - 1}: the file is "
            "damaged, fetch it again"
        )
    return ranks


def byte_alphabet():
    """GPT-2's printable character for each byte, list of 256 str (source: its encoder.py, bytes_to_unicode)."""
    shown = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def _read_gpt2(paths, contents):
    """GPT-2's two files -> (vocabulary str -> id as stored, merges as pairs of str, ranks bytes -> rank).

    Tokens that neither are a single byte nor come of a merge are special ones and have no rank.
    """
    (vocab_path, merges_path), (vocab_json, merges_text) = paths, contents
    try:
        vocab = json.loads(vocab_json)
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise ValueError(
            f"tokenizer {vocab_path} is not a JSON object of token: id as GPT-2's encoder.json "
            "is: fetch it again"
        )
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(
            f"tokenizer {vocab_path} has {len(vocab)} ids that are not 0 to {len(vocab) - 1}: every id "
            "once, no gaps"
        )
    alphabet = byte_alphabet()
    byte_of = {c: b for b, c in enumerate(alphabet)}
    # Bytes rank in the order of their ids; a trained merge ranks by its line.
    order = sorted(alphabet, key=lambda c: vocab.get(c, -1))
    merges = []
    for number, line in enumerate(merges_text.decode("utf-8", "replace").split("\n"), 1):
        if not line.strip() or number == 1 and line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or any(c not in byte_of for part in pair for c in part):
            raise ValueError(
                f"tokenizer {merges_path} line {number} is not two parts in GPT-2's byte letters: "
                "fetch it again"
            )
        merges.append(tuple(pair))
    order += [a + b for a, b in merges]
    missing = next((token for token in order if token not in vocab), None)
    if missing is not None or len(set(order)) < len(order):
        what = "makes a token twice" if missing is None else f"makes {missing!r}, which it lacks"
        raise ValueError(
            f"tokenizer {vocab_path} ({len(vocab)} tokens) does not fit {merges_path.name}, which {what}: "
            "take both files of one tokenizer"
        )
    useless = _first_useless(merges)
    if useless is not None:
        raise ValueError(
            f"tokenizer {merges_path} joins {' '.join(merges[useless])!r} (merge {useless + 1}), which "
            "earlier merges never leave side by side: tiktoken and Hugging Face would not agree on it, "
            "use the file as it was trained"
        )
    return (
        vocab,
        merges,
        {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(order)},
    )


def _first_useless(merges):
    """Index of the first merge that cannot happen in the token it makes, or None.

    tiktoken joins any two neighbours whose union is a token, GPT-2 and Hugging Face only the pairs of the file. Where
    every merge can happen this is the same: before merge k its token stands as exactly the two parts of line k, so no
    other two parts can make it. To see that, step back in time over the parts that meet where the first ends and the
    second begins: none of them may join across that border before they have grown into the two.
    """
    pairs, rank, parts = {pair: k for k, pair in enumerate(merges)}, {}, {}
    for k, pair in enumerate(merges):
        rank[pair[0] + pair[1]], parts[pair[0] + pair[1]] = k, pair
    for k, (left, right) in enumerate(merges):
        while len(left) > 1 or len(right) > 1:
            if rank.get(left, -1) > rank.get(right, -1):
                until, left = rank[left], parts[left][1]
            else:
                until, right = (
                    rank[right] + 1,
                    parts[right][0],
                )  # + 1: of equal merges the left one happens first
            if pairs.get((left, right), until) < until:
                return k
    return None


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


class Tokenizer:
    """One of the three tokenizers; made by load().

    kind "sentencepiece" | "gpt2" | "llama3"; base_size ids of the original vocabulary; size the same plus 2 with roles;
    bos, eos ids; user, assistant ids base_size and base_size + 1, or None; files (paths); fingerprint (sha256 hex of
    the files' bytes); normalises: whether decode(encode(x)) != x for some ordinary text, found by trying.
    """

    def __init__(self, files, roles=True):
        self.files, self.roles = [pathlib.Path(f) for f in files], roles
        self._contents = [f.read_bytes() for f in self.files]
        self.fingerprint = hashlib.sha256(b"".join(self._contents)).hexdigest()
        if len(self.files) == 2:
            self._init_gpt2()
        elif _is_ranks(self._contents[0]):
            self._init_llama3()
        else:
            self._init_sentencepiece(self._contents[0])
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
        self._model, self._inside = (
            sentencepiece.SentencePieceProcessor(),
            sentencepiece.SentencePieceProcessor(),
        )
        try:
            self._model.load_from_serialized_proto(content)
            # The same model without the dummy space before a text (normalizer_spec.add_dummy_prefix = false, appended:
            # a protobuf message written twice is merged): it encodes what follows a U+2581 inside a text.
            self._inside.load_from_serialized_proto(content + b"\x1a\x02\x18\x00")
        except RuntimeError as error:
            why = str(error).splitlines()[0][:80]
            raise ValueError(
                f"tokenizer {self.files[0]} is not a whole SentencePiece model ({why}): "
                "fetch it again"
            ) from None
        model = self._model
        n = model.vocab_size()
        self.bos, self.eos = model.bos_id(), model.eos_id()
        if self.bos < 0 or self.eos < 0:
            raise ValueError(
                f"tokenizer {self.files[0]} has bos id {self.bos} and eos id {self.eos}, both are needed: "
                "train it with bos_id and eos_id"
            )
        pieces = [model.id_to_piece(i) for i in range(n)]
        self._bytes = [
            bytes([int(piece[3:5], 16)])
            if model.is_byte(i)
            else piece.replace("\u2581", " ").encode()
            for i, piece in enumerate(pieces)
        ]
        self._bytes[model.unk_id()] = model.decode([model.unk_id()]).encode()
        self._special = {i for i in range(n) if model.is_control(i)}
        self._byte_ids = {b: i for i, b in enumerate(self._bytes) if model.is_byte(i)}
        self._strips = bool(model.encode("a")) and self._bytes[model.encode("a")[0]].startswith(
            b" "
        )

    def _init_gpt2(self):
        vocab, _, ranks = _read_gpt2(self.files, self._contents)
        if ENDOFTEXT not in vocab:
            raise ValueError(
                f"tokenizer {self.files[0]} has no {ENDOFTEXT}, GPT-2's start and end: add it "
                "as the last id"
            )
        self.kind, self.bos, self.eos = "gpt2", vocab[ENDOFTEXT], vocab[ENDOFTEXT]
        self._init_bpe(GPT2_PATTERN, ranks)
        letters = {c: b for b, c in enumerate(byte_alphabet())}
        self._bytes, ids = [None] * len(vocab), [None] * len(ranks)
        for token, i in vocab.items():
            content = bytes(letters[c] for c in token) if all(c in letters for c in token) else None
            if content in ranks:
                self._bytes[i], ids[ranks[content]] = content, i
            else:
                self._bytes[i] = token.encode()
                self._special.add(i)
        # tiktoken's ids are ranks; a vocabulary that numbers its tokens otherwise (special tokens first) is mapped.
        self._ids = None if ids == list(range(len(ids))) else ids

    def _init_llama3(self):
        ranks = _read_ranks(self.files[0], self._contents[0])
        self.kind, self.bos, self.eos = "llama3", len(ranks), len(ranks) + 1
        self._init_bpe(LLAMA3_PATTERN, ranks)
        self._bytes = sorted(ranks, key=ranks.get) + [t.encode() for t in LLAMA3_SPECIAL]
        self._special = set(range(len(ranks), len(ranks) + len(LLAMA3_SPECIAL)))

    def _init_bpe(self, pattern, ranks):
        import tiktoken

        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing:
            raise ValueError(
                f"tokenizer {self.files[0]} lacks {len(missing)} of the 256 single bytes (first: "
                f"0x{missing[0]:02X}): it is not a byte-level encoding, name another"
            )
        self._bpe = tiktoken.Encoding(
            "mynah", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self._strips, self._ids, self._special = False, None, set()

    @property
    def warning(self):
        """One line for a program to print once where the tokenizer does not give every text back, else None."""
        if self.normalises:
            return (
                f"tokenizer {self.files[0]} normalises: decoding does not give back double or edge spaces (or "
                "other characters) of some texts; train one with identity normalisation to keep them"
            )

    def encode(self, text):
        """Ids of one piece of text, list of int; no bos or eos; never a control or role id, whatever the text holds.

        Half a surrogate pair, which no encoding has a byte for, becomes U+FFFD; two halves in order become their
        character. U+2581, SentencePiece's own sign for a space, is spelt by its three bytes (Hugging Face reads it as a
        space). A leading space of the text is kept: SentencePiece's dummy space comes before it, as in LLaMA's
        published tokenizer.json. (transformers 5.23, given a bare tokenizer.model, drops that space and ranks merges by
        id instead of by score.)
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
                ids += [
                    self._byte_ids[bytes([b])] for b in "\u2581".encode()
                ] + self._inside.encode(part)
            return ids
        ids, start = [], 0
        if len(text) > 1000:
            for run in WHITE_RUN.finditer(text):
                end = run.end() - 1
                # Llama-3 takes line ends together with the blanks before them, without overflowing: no cut near one.
                if end + 1 < len(text) and (
                    self.kind == "gpt2" or not set(text[end - 1 : end + 1]) & {"\r", "\n"}
                ):
                    ids += self._bpe.encode_ordinary(text[start:end])
                    start = end
        ids += self._bpe.encode_ordinary(text[start:])
        return ids if self._ids is None else [self._ids[i] for i in ids]

    def decode_bytes(self, ids):
        """UTF-8 of the ids, bytes; special and role tokens as their own strings.

        Each run between special tokens is decoded apart: SentencePiece's dummy space at its head is dropped. The bytes
        of a prefix of the ids are a prefix of the bytes of all, so a stream may be printed as it grows.
        ValueError for an id outside the vocabulary.
        """
        out, head = [], True
        for i in ids:
            if not 0 <= i < self.size:
                raise ValueError(
                    f"id {i} is outside the tokenizer's {self.size} ids (0 to {self.size - 1}): the ids "
                    "or the model are another tokenizer's, name that one"
                )
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
        for file, content in zip(self.files, self._contents):
            _write(pathlib.Path(folder) / file.name, content)


def check_size(tok, rows, what="the model"):
    """ValueError unless `what`, with embeddings for `rows` ids (no padding), fits the tokenizer, roles or not."""
    if rows not in (tok.base_size, tok.size):
        raise ValueError(
            f"{what} has {rows} ids, tokenizer {tok.files[0]} has {tok.base_size} (with role tokens "
            f"{tok.base_size + 2}): name the tokenizer it was trained with by --tokenizer"
        )


def _write(path, content):
    """The bytes into `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        tmp.write_bytes(content)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


# ---- for Hugging Face ------------------------------------------------------------------------------------------------


def write_hf(tok, folder):
    """Write what transformers' AutoTokenizer.from_pretrained(folder) needs to give our ids, and the files load() reads.

    Beside the weights' config.json: tokenizer.json, tokenizer_config.json, and the originals under the names Hugging
    Face uses (tokenizer.model; vocab.json + merges.txt; original/tokenizer.model for Llama-3). The role tokens are
    added tokens with ids base_size and base_size + 1. There, as is the custom with Hugging Face, a special token's
    string inside a text *becomes* the token, so a whole row may be written as text; to get encode()'s reading of such a
    text, call the tokenizer with split_special_tokens=True. A bos is put in front for LLaMA and Llama-3, not for GPT-2,
    and never with add_special_tokens=False. U+2581 is a space there and three bytes here. ValueError for a
    SentencePiece model that is not BPE.
    """
    folder = pathlib.Path(folder)
    backend, names = {
        "sentencepiece": (_sentencepiece_json, ["tokenizer.model"]),
        "gpt2": (_gpt2_json, ["vocab.json", "merges.txt"]),
        "llama3": (_llama3_json, ["original/tokenizer.model"]),
    }[tok.kind]
    backend = backend(tok)
    bos, eos = tok._bytes[tok.bos].decode(), tok._bytes[tok.eos].decode()
    if tok.kind == "gpt2":
        after = {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        }
    else:
        start = {"SpecialToken": {"id": bos, "type_id": 0}}
        a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        after = {
            "type": "TemplateProcessing",
            "single": [start, a],
            "pair": [start, a, b],
            "special_tokens": {bos: {"id": bos, "ids": [tok.bos], "tokens": [bos]}},
        }
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    added = [{"id": i, "content": tok._bytes[i].decode(), **flags} for i in sorted(tok._special)]
    backend = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **backend,
        "post_processor": after,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": backend["model"]["unk_token"],
        "clean_up_tokenization_spaces": False,
    }
    for name, content in zip(names, tok._contents):
        _write(folder / name, content)
    _write(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    _write(folder / "tokenizer.json", json.dumps(backend, ensure_ascii=False).encode())


def _bpe_json(vocab, merges, **more):
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


def _sentencepiece_json(tok):
    """tokenizer.json's parts for a SentencePiece BPE model: what its normaliser does, in Hugging Face's terms."""
    fields = list(
        _fields(tok._contents[0])
    )  # field 1: one a piece; 2: how it was trained; 3: how it normalises
    trainer, normalizer = (
        {k: v for n, spec in fields if n == number for k, v in _fields(spec)} for number in (2, 3)
    )
    pieces = [
        dict(_fields(piece)) for n, piece in fields if n == 1
    ]  # 1: text; 2: score, float32; 3: kind
    kinds = [piece.get(3, NORMAL) for piece in pieces]
    if trainer.get(3, 1) != 2 or trainer.get(24, 0) or not set(kinds) <= {NORMAL, 2, 3, 6}:
        raise ValueError(
            f"tokenizer {tok.files[0]} is not plain SentencePiece BPE (unigram, or with user-defined or "
            "unused pieces): it cannot be written for Hugging Face, use one trained with model_type=bpe"
        )
    texts = [piece[1].decode() for piece in pieces]
    score = {
        text: struct.unpack("<f", piece.get(2, bytes(4)))[0] for text, piece in zip(texts, pieces)
    }
    known = {text: i for i, (text, kind) in enumerate(zip(texts, kinds)) if kind == NORMAL}
    # SentencePiece joins the neighbours whose union scores best, whatever the two parts: every split of every piece.
    merges = []
    for piece in sorted(known, key=lambda text: -score[text]):
        parts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        parts = [part for part in parts if part[0] in known and part[1] in known]
        merges += sorted(parts, key=lambda part: (known[part[0]], known[part[1]]))
    steps = []
    if normalizer.get(2):
        steps.append(
            {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(normalizer[2]).decode(),
            }
        )
    if normalizer.get(4, 1):  # remove_extra_whitespaces
        steps += [
            {"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if tok._strips:
        steps.append({"type": "Prepend", "prepend": "\u2581"})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    back = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    back += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tok._strips else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _bpe_json(
            {text: i for i, text in enumerate(texts)},
            merges,
            unk_token=texts[tok._model.unk_id()],
            fuse_unk=True,
            byte_fallback=len(tok._byte_ids) == 256,
        ),
    }


def _gpt2_json(tok):
    vocab, merges, _ = _read_gpt2(tok.files, tok._contents)
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
        "model": _bpe_json(vocab, merges),
    }


def _llama3_json(tok):
    """Ranks -> merges: every way to split a token in two tokens, by rank (source: transformers' TikTokenConverter)."""
    ranks, letters = _read_ranks(tok.files[0], tok._contents[0]), byte_alphabet()
    shown = lambda token: "".join(letters[b] for b in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
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
        "model": _bpe_json({shown(t): r for t, r in ranks.items()}, merges, ignore_merges=True),
    }


def _fields(message):
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


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(argv) != 2:
        print(
            f"tokenizer.py: {len(argv)} arguments, it takes two: PATH and a text", file=sys.stderr
        )
        return 2
    try:
        tok = load(argv[0])
    except ValueError as error:
        print(f"tokenizer.py: {error}", file=sys.stderr)
        return 2
    ids = tok.encode(argv[1])
    print(
        f"{tok.kind}, {tok.base_size} ids, bos {tok.bos}, eos {tok.eos}, "
        f"{ROLE_USER} {tok.user}, {ROLE_ASSISTANT} {tok.assistant}"
    )
    for i in ids:
        print(i, tok._bytes[i])
    if tok.warning:
        print(f"tokenizer.py: {tok.warning}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
