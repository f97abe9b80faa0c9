"""Sources -> raw rows: files told apart by content and never by name, read as a stream.

For text/dialogues.py, which makes dialogues of the rows; nothing to run. A source is a file of JSON
lines, of a JSON list, of JSON objects one after another, or of plain text, gzipped or not, or a
TFDS directory. A file may be larger than memory (a plain text is one row and is read whole). Left
out: parquet, Hugging Face's arrow.
"""

import codecs
import gzip
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Iterable, Iterator

from text import lookalikes, packed

CHUNK = 1 << 20  # bytes of rows handed on at once
LONGEST_ROW = 64 << 20  # bytes; longer ones are damage, or made to take all memory
DEEPEST, MOST_BLANK = 100_000, 1_000_000  # brackets within brackets; blank lines in a row
MOST_EXPANDED, UNMEASURED = 300, 256 << 20  # gzip gives text tenfold, and spaces a thousandfold
# What lies beside the data in a folder of Hugging Face's.
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")

BEGINS_JSON = re.compile(r'\s*(\[\s*[\[{\]]|\{\s*["}])')
# A line that is a dialogue: the list of its turns.
BEGINS_TURNS = re.compile(r'[ \t]*\[[ \t]*\{[ \t]*"(?:role|from|content|value)"[ \t]*:')
# What gives JSON its shape: whole strings and brackets; a lone quote opens a string whose end is
# not read yet.
STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]', re.S)

Row = bytes | str | dict  # of JSON, or parsed already
Chunk = list[tuple[str, Row]]  # (place: "line 7" or "row 7, line 90"; row)


# --- files ---


def source_files(
    paths: Iterable[str | os.PathLike],
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """(sources, passed over) among `paths`: files, TFDS directories, and what lies in folders.

    Sources keep the order of `paths`; a folder's are sorted, at any depth. In a folder, plain text
    counts only where its name ends in .txt or .txt.gz: a README beside the data is not data, nor is
    METADATA.
    ValueError, one line, where there is nothing to read.
    """
    sources, passed = [], []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: name a file of dialogues, a folder of such files or a "
                "packed directory"
            )
        if path.is_file() or packed.is_tfds(path):
            sources.append(path)
            continue
        inside, over = _files_in(path)
        if not inside:
            tables = any(p.suffix in (".parquet", ".arrow") for p in over)
            how = "convert its parquet or arrow files (to_json)" if tables else "name one that does"
            raise ValueError(f"{path} holds no file of dialogues (JSON, JSON lines, .txt): {how}")
        sources += inside
        passed += over
    return sources, passed


def _files_in(folder):
    """(sources, passed over) below a folder; hidden files are neither."""
    hidden = re.compile(r"(^|/)\.")
    inside = folder.rglob("*")
    inside = sorted(p for p in inside if not hidden.search(p.relative_to(folder).as_posix()))
    tfds = [p for p in inside if p.is_dir() and packed.is_tfds(p)]
    sources, passed = list(tfds), []
    for p in inside:
        if p.is_file() and not any(up in p.parents for up in tfds):
            named_data = lookalikes.suffix(p) in (".txt", ".json", ".jsonl", ".ndjson")
            is_data = named_data or _kind(_head(p)) != "text"
            is_source = p.stat().st_size and p.name not in METADATA and is_data
            (sources if is_source else passed).append(p)
    return sorted(sources), passed


def _open(path, raw):
    """The bytes of a file open as `raw`, gunzipped where they are gzip's."""
    magic = raw.read(2)
    raw.seek(0)
    return io.BufferedReader(_Gunzipped(path, raw), CHUNK) if magic == b"\x1f\x8b" else raw


class _Gunzipped(io.RawIOBase):
    """A gzip file, until it turns out to hold next to nothing, blown up."""

    def __init__(self, path, raw):
        self.path, self.raw, self.size = path, raw, 0
        self.gzip = gzip.GzipFile(filename=str(path), fileobj=raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = self.gzip.read(len(buffer))
        self.size += len(data)
        if self.size > max(UNMEASURED, MOST_EXPANDED * self.raw.tell()):
            raise ValueError(
                f"{self.path} unpacks to over {MOST_EXPANDED} times its size: it is no data, but "
                "blown-up blanks; leave it out, or give it unpacked"
            )
        buffer[: len(data)] = data
        return len(data)


def _head(path):
    """The first MiB of text of a file; ValueError for a broken gzip file."""
    with open(path, "rb") as raw, _damage_named(path):
        return codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode(
            _open(path, raw).read(CHUNK)
        )


class _damage_named:
    """A broken gzip stream, as a ValueError that names the file."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, (EOFError, gzip.BadGzipFile, zlib.error)):
            raise ValueError(
                f"{self.path} is a damaged gzip file ({error}): fetch it again"
            ) from None


def _kind(head):
    """ "lines" (JSON lines), "values" (a JSON list, or objects one after another) or "text".

    From the first MiB of text. JSON lines: some line among the first 100 is an object from its
    first column on (so a broken first row misleads nobody; the inner lines of an indented list do
    not start there). A text that starts with "[Chorus]" is no JSON.
    """
    begins, lines = BEGINS_JSON.match(head) is not None, head.split("\n")
    first = next((line for line in lines if line.strip()), "")
    if BEGINS_TURNS.match(first) and (len(first) == len(head) >= CHUNK // 4 or _is(list, first)):
        return "lines"
    if len(lines) == 1 and head.startswith("{") and begins and len(head) >= CHUNK // 4:
        return "lines"  # one row longer than what was looked at
    if not head.lstrip().startswith("[") and any(
        line.startswith("{") and _is(dict, line) for line in lines[:100]
    ):
        return "lines"
    return "values" if begins else "text"


def _is(kind, text):
    try:
        return isinstance(json.loads(text), kind)
    except (ValueError, RecursionError):
        return False


def raw_chunks(path: str | os.PathLike) -> Iterator[tuple[Chunk, int]]:
    """The rows of one source, not parsed: yields (chunk, bytes of the file read so far).

    A chunk holds about a MiB of rows. ValueError, one line, for a file that cannot be read on.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        yield from _tfds_chunks(path)
        return
    head = _head(path)
    kind = _kind(head)
    if kind == "text":
        lookalikes.refuse_no_text(path, head)
    with open(path, "rb") as raw, _damage_named(path):
        stream = _open(path, raw)
        if kind == "text":
            yield [("the whole file", {"text": _whole_text(path, stream)})], raw.tell()
            return
        rows = _lines(path, stream) if kind == "lines" else _values(path, stream)
        chunk, size = [], 0
        for place, row in rows:
            chunk.append((place, row))
            size += len(row)
            if size >= CHUNK:
                yield chunk, raw.tell()
                chunk, size = [], 0
        yield chunk, raw.tell()


def _whole_text(path, stream):
    content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise ValueError(
            f"{path} is neither JSON nor text in UTF-8 ({byte}): convert it, or name another file"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty: name a file with dialogues or text")
    return text


def _lines(path, stream):
    number = blank = 0
    while line := stream.readline(LONGEST_ROW + 1):
        number += 1
        if len(line) > LONGEST_ROW:
            raise _too_long(path, f"line {number}")
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        blank = blank + 1 if line.isspace() else 0
        if not blank:
            yield f"line {number}", line
        elif blank > MOST_BLANK:
            raise ValueError(f"{path} line {number}: {blank:,} blank lines: fetch the file again")


def _too_long(path, place):
    return ValueError(
        f"{path} {place} is longer than {LONGEST_ROW >> 20} MiB: no dialogue is, fetch the file "
        "again or split the row"
    )


def _values(path, stream):
    """(place, text) of each element of a JSON list, or of the objects that follow one another.

    Read as a stream. Elements are found by their brackets, so a malformed one does not hide the
    next. What lies between two elements and is no comma is given as an element too. ValueError
    where one never closes: what follows cannot be told from it.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    # `text` is read up to `at`; the open element or gap is from `start` on `line`
    text, at, start, line = "", 0, 0, 1
    depth = base = row = 0  # base 1 inside the list

    def take(end):
        """[(place, text)] from `start` to `end`, which becomes the next start; none where only
        commas lie there."""
        nonlocal row, start, line
        piece = text[start:end].strip().strip(",").strip()
        row += bool(piece)
        taken = [(f"row {row}, line {line}", piece)] if piece else []
        start, line = end, line + text.count("\n", start, end)
        return taken

    while True:
        if len(text) > LONGEST_ROW:
            raise _too_long(path, f"row {row + 1} (line {line})")
        more = stream.read(max(CHUNK, len(text)))
        text += decode(more, final=not more)
        for match in STRUCTURE.finditer(text, at):
            mark = match[0]
            if mark == '"':
                break
            at = match.end()
            if mark in "{[":
                if depth == base:
                    yield from take(match.start())
                    if mark == "[" and depth == row == 0:
                        base, start = 1, at
                depth += 1
                if depth > DEEPEST:
                    raise ValueError(
                        f"{path} row {row + 1} (line {line}) is nested {depth:,} deep: take it out"
                    )
            elif mark in "}]":
                depth -= 1
                if depth == base:
                    yield from take(at)
                elif depth < base:  # the end of the list
                    yield from take(match.start())
                    start, depth, base = at, 0, 0
        if not more:
            break
        text, at, start = text[start:], at - start, 0
    if depth > base or base == 1:
        raise ValueError(
            f"{path} does not close after row {row} (line {line}): the file is cut off or damaged "
            "from there on; fetch it again, or make it JSON lines, where one bad row can be skipped"
        )
    yield from take(len(text))


def _tfds_chunks(path):
    """The rows of a TFDS directory (its train split, or all there are) in one of the forms."""
    if packed.is_packed(path):
        raise ValueError(f"{path} is packed already: give it to train.py --data as it is, alone")
    names = list(packed.splits(path))
    for split in ["train"] if "train" in names else sorted(names):
        records = packed.Records(path, split)
        for start in range(0, len(records), 256):
            rows = records.items(range(start, min(start + 256, len(records))))
            numbered = enumerate(map(packed.plain, rows), start)
            yield [(f"{split} row {i}", row) for i, row in numbered], 0
