"""GPT-2's and Llama-3's byte-pair encodings, read from their own files and run by tiktoken.

GPT-2: a vocabulary (encoder.json, vocab.json) and its merges (vocab.bpe, merges.txt). Llama-3: one
file of ranks. Left out: other pre-tokenizers, which only a tokenizer.json tells.
"""

import base64
import binascii
import json
import re
from pathlib import Path

# GPT-2's published pattern in an equivalent form that does not backtrack over runs of letters
# (tiktoken's r50k_base).
GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
)
# Llama 3's published pattern (its tokenizer.py); `\s++$` is added: it takes in one go what
# `\s+(?!\S)` takes at an end.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s++$|\s+(?!\S)|\s+"
)
# Llama 3's 256 special tokens in the order of its own tokenizer.py, ids after the ranks'
# (3.1 renames some).
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

# tiktoken's regular expressions overflow where `\s+(?!\S)` meets about 10^6 spaces in a row, so a
# long run of white space (the patterns' \s is Unicode's White_Space, written out: Python's \s is a
# little wider) is cut before its last character. A piece ends there in any case: `\s+(?!\S)` takes
# all but the last, which goes with what follows, and nothing looks back.
WHITE_RUN = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{1000,}")


class BytePairs:
    """A byte-pair encoding; made by gpt2() or llama3().

    kind "gpt2" | "llama3"; pieces: the bytes of each id; special: ids that no text gives.
    """

    strips = False  # decoding drops no leading space

    def __init__(self, kind: str, pattern: str, ranks: dict[bytes, int], file: Path):
        import tiktoken

        missing = [b for b in range(256) if bytes([b]) not in ranks]
        if missing:
            raise ValueError(
                f"tokenizer {file} lacks {len(missing)} of the 256 single bytes (first: "
                f"0x{missing[0]:02X}): it is not a byte-level encoding, name another"
            )
        self.kind = kind
        self.bpe = tiktoken.Encoding(
            "mynah", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self.pieces: list[bytes] = sorted(ranks, key=ranks.__getitem__)
        self.special: set[int] = set()
        self.bos: int | None = None
        self.eos: int | None = None
        self.id_of_rank: list[int] | None = None  # None: a token's id is its rank

    def encode(self, text: str) -> list[int]:
        """Ids of a text without half surrogates."""
        ids, start = [], 0
        if len(text) > 1000:
            for run in WHITE_RUN.finditer(text):
                end = run.end() - 1
                # Llama-3 takes line ends together with the blanks before them, without
                # overflowing: no cut near one.
                near_line_end = set(text[end - 1 : end + 1]) & {"\r", "\n"}
                if end + 1 < len(text) and (self.kind == "gpt2" or not near_line_end):
                    ids += self.bpe.encode_ordinary(text[start:end])
                    start = end
        ids += self.bpe.encode_ordinary(text[start:])
        return ids if self.id_of_rank is None else [self.id_of_rank[i] for i in ids]


def gpt2(files: list[Path], contents: list[bytes]) -> BytePairs:
    """GPT-2's encoding from its vocabulary and its merges."""
    vocab, _, ranks = read_gpt2(files, contents)
    encoder = BytePairs("gpt2", GPT2_PATTERN, ranks, files[0])
    encoder.bos = encoder.eos = vocab.get(ENDOFTEXT)
    byte_of = {c: b for b, c in enumerate(byte_alphabet())}
    pieces, id_of_rank = [b""] * len(vocab), [-1] * len(ranks)
    for token, i in vocab.items():
        content = bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else None
        if content in ranks:
            pieces[i], id_of_rank[ranks[content]] = content, i
        else:
            pieces[i] = token.encode()
            encoder.special.add(i)
    encoder.pieces = pieces
    # A vocabulary that numbers its tokens otherwise than by rank (special tokens first) is mapped.
    if id_of_rank != list(range(len(id_of_rank))):
        encoder.id_of_rank = id_of_rank
    return encoder


def llama3(file: Path, content: bytes) -> BytePairs:
    """Llama-3's encoding from its file of ranks."""
    ranks = read_ranks(file, content)
    encoder = BytePairs("llama3", LLAMA3_PATTERN, ranks, file)
    encoder.bos, encoder.eos = len(ranks), len(ranks) + 1
    encoder.pieces += [token.encode() for token in LLAMA3_SPECIAL]
    encoder.special = set(range(len(ranks), len(encoder.pieces)))
    return encoder


# --- files ---


def is_ranks(content: bytes) -> bool:
    """Whether the first line is Llama-3's `base64 rank`."""
    return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", content[:4096]) is not None


def read_ranks(file: Path, content: bytes) -> dict[bytes, int]:
    """The ranks of Llama-3's file: 0 to n - 1, each once."""
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"tokenizer {file} line {number} is not `base64 rank`: the file is damaged, "
                "fetch it again"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"tokenizer {file} has {len(ranks)} ranks that are not 0 to {len(ranks) - 1}: the file "
            "is damaged, fetch it again"
        )
    return ranks


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte (source: its encoder.py, bytes_to_unicode)."""
    shown = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def read_gpt2(
    files: list[Path], contents: list[bytes]
) -> tuple[dict[str, int], list[tuple[str, str]], dict[bytes, int]]:
    """GPT-2's two files -> (vocabulary as stored, merges, rank of each token's bytes).

    Tokens that neither are a single byte nor come of a merge are special ones and have no rank.
    """
    vocab, merges = read_vocabulary(files[0], contents[0]), read_merges(files[1], contents[1])
    alphabet = byte_alphabet()
    # Bytes rank in the order of their ids; a trained merge ranks by its line.
    order = sorted(alphabet, key=lambda c: vocab.get(c, -1)) + [a + b for a, b in merges]
    missing = next((token for token in order if token not in vocab), None)
    if missing is not None or len(set(order)) < len(order):
        what = "makes a token twice" if missing is None else f"makes {missing!r}, which it lacks"
        raise ValueError(
            f"tokenizer {files[0]} ({len(vocab)} tokens) does not fit {files[1].name}, which "
            f"{what}: take both files of one tokenizer"
        )
    useless = first_useless(merges)
    if useless is not None:
        raise ValueError(
            f"tokenizer {files[1]} joins {' '.join(merges[useless])!r} (merge {useless + 1}), "
            "which earlier merges never leave side by side: tiktoken and Hugging Face would not "
            "agree on it, use the file as it was trained"
        )
    byte_of = {c: b for b, c in enumerate(alphabet)}
    ranks = {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(order)}
    return vocab, merges, ranks


def read_vocabulary(file: Path, content: bytes) -> dict[str, int]:
    """GPT-2's encoder.json: every id once, no gaps."""
    try:
        vocab = json.loads(content)
    except (ValueError, RecursionError):
        vocab = None
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise ValueError(
            f"tokenizer {file} is not a JSON object of token: id as GPT-2's encoder.json is: fetch "
            "it again"
        )
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError(
            f"tokenizer {file} has {len(vocab)} ids that are not 0 to {len(vocab) - 1}: every id "
            "once, no gaps"
        )
    return vocab


def read_merges(file: Path, content: bytes) -> list[tuple[str, str]]:
    """The pairs of GPT-2's vocab.bpe, in the order of its lines."""
    merges, letters = [], set(byte_alphabet())
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
        if not line.strip() or number == 1 and line.startswith("#version"):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not set(pair[0] + pair[1]) <= letters:
            raise ValueError(
                f"tokenizer {file} line {number} is not two parts in GPT-2's byte letters: fetch "
                "it again"
            )
        merges.append((pair[0], pair[1]))
    return merges


def first_useless(merges: list[tuple[str, str]]) -> int | None:
    """Index of the first merge that cannot happen in the token it makes, or None.

    tiktoken joins any two neighbours whose union is a token, GPT-2 and Hugging Face only the pairs
    of the file. Where every merge can happen this is the same: before merge k its token stands as
    exactly the two parts of line k, so no other two parts can make it. To see that, step back in
    time over the parts that meet where the first ends and the second begins: none of them may join
    across that border before they have grown into the two.
    """
    pairs, rank, parts = {pair: k for k, pair in enumerate(merges)}, {}, {}
    for k, pair in enumerate(merges):
        rank[pair[0] + pair[1]], parts[pair[0] + pair[1]] = k, pair
    for k, (left, right) in enumerate(merges):
        while len(left) > 1 or len(right) > 1:
            if rank.get(left, -1) > rank.get(right, -1):
                until, left = rank[left], parts[left][1]
            else:  # + 1: of equal merges the left one happens first
                until, right = rank[right] + 1, parts[right][0]
            if pairs.get((left, right), until) < until:
                return k
    return None
