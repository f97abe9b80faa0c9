"""Sources -> dialogues: every public form of chat data into ShareGPT's own, told apart by content and never by name.

    python -m text.dialogues SOURCE...      # the dialogues as JSON lines on stdout, counts and malformed rows on stderr

A dialogue is {"id": str, "conversations": [{"from": "human" | "gpt" | "system", "value": str}, ...]}; a document of
plain text, for language modelling, is {"id": str, "text": str}. Files are JSON lines, JSON lists or plain text, gzipped
or not; rows are read as a stream, so a file may be larger than memory (a plain text is one document and is read whole).
Left out: cleaning and filtering (study), parquet, Hugging Face's arrow.

A row is one of
  ShareGPT   {"conversations": [{"from", "value"}]}; also `items`; also `messages` with {"role", "content"}
  HC3        {"question", "chatgpt_answers": [str]}: a dialogue for each of the teacher's answers, none for the humans'
  Alpaca     {"instruction", "input", "output"}: the input follows the instruction after a blank line
  Koala      {"human_1", "gpt_1", "human_2", ...}, turns in the order of their numbers, the human first
  Baize      {"input": "... [|Human|] ... [|AI|] ..."}: what stands before the first mark is the recipe, not the
             dialogue; white space around a turn is the form's; an empty last human turn is dropped
  pairs      {"prompt", "completion"} or {"prompt", "response"}
  text       {"text": str}
"""

import codecs
import collections
import gzip
import hashlib
import json
import pathlib
import re
import sys
import zlib

SPEAKERS = {
    "human": "human",
    "user": "human",
    "gpt": "gpt",
    "assistant": "gpt",
    "chatgpt": "gpt",
    "model": "gpt",
    "system": "system",
    "developer": "system",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"))
CHUNK = 1 << 20  # bytes of rows handed on at once
SHOWN = 5  # malformed rows of a file that are reported one by one

BEGINS_JSON = re.compile(r'\s*(\[\s*[\[{\]]|\{\s*["}])')
# What gives JSON its shape: whole strings and brackets; a lone quote opens a string whose end is not read yet.
STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]', re.S)
BAIZE_MARK = re.compile(r"\[\|(Human|AI)\|\]")
KOALA_KEY = re.compile(r"(human|gpt)_(\d{1,9})")


# ---- files -----------------------------------------------------------------------------------------------------------


def is_tfds(path):
    """Whether the folder is a TFDS directory (of one version)."""
    return all(
        (pathlib.Path(path) / name).is_file() for name in ("dataset_info.json", "features.json")
    )


def source_files(paths):
    """The sources among `paths`, in order: files, TFDS directories, and what lies in folders (sorted, at any depth).

    In a folder, plain text counts only where its name ends in .txt or .txt.gz: a README beside the data is not data.
    What is passed over is returned too: (sources, passed over). ValueError, one line, where there is nothing to read.
    """
    found, passed = [], []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: name a file of dialogues, a folder of such files or a packed "
                "directory"
            )
        if path.is_file() or is_tfds(path):
            found.append(path)
            continue
        hidden = lambda p: any(part.startswith(".") for part in p.relative_to(path).parts)
        inside = sorted(p for p in path.rglob("*") if not hidden(p))
        tfds = [p for p in inside if p.is_dir() and is_tfds(p)]
        have = len(found)
        for p in inside:
            if p in tfds:
                found.append(p)
            elif p.is_file() and not any(folder in p.parents for folder in tfds):
                named_text = re.search(r"\.txt(\.gz)?$", p.name.lower())
                (
                    found
                    if p.stat().st_size and (named_text or _kind(_head(p)) != "text")
                    else passed
                ).append(p)
        if len(found) == have:
            raise ValueError(
                f"{path} holds no file of dialogues (JSON, JSON lines, .txt): name one that does"
            )
    return found, passed


def _open(path, raw):
    """The bytes of a file open as `raw`, gunzipped where they are gzip's."""
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(filename=str(path), fileobj=raw) if magic == b"\x1f\x8b" else raw


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
    """ "lines" (JSON lines), "values" (a JSON list, or objects one after another) or "text", from the first MiB of text.

    JSON lines: some line among the first 100 is an object from its first column on (so a broken first row misleads
    nobody; the inner lines of an indented list do not start there). A text that starts with "[Chorus]" is no JSON.
    """
    begins, lines = BEGINS_JSON.match(head) is not None, head.split("\n")
    if len(lines) == 1 and head.startswith("{") and begins and len(head) >= CHUNK // 4:
        return "lines"  # one row longer than what was looked at
    if not head.lstrip().startswith("[") and any(
        line.startswith("{") and _is_object(line) for line in lines[:100]
    ):
        return "lines"
    return "values" if begins else "text"


def _is_object(text):
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def raw_chunks(path):
    """The rows of one source, not parsed: yields (list of (place, row), bytes of the file read so far).

    place: "line 7" or "row 7, line 90"; row: bytes or str of JSON, or a dict. parse_row makes dialogues of it. Chunks
    hold about a MiB. ValueError, one line, for a file that cannot be read on.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        yield from _tfds_chunks(path)
        return
    kind = _kind(_head(path))
    with open(path, "rb") as raw, _damage_named(path):
        stream = _open(path, raw)
        if kind == "text":
            content = stream.read()
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                byte = f"byte {error.start} is 0x{content[error.start]:02x}"
                raise ValueError(
                    f"{path} is neither JSON nor text in UTF-8 ({byte}): convert it, or name another "
                    "file"
                ) from None
            if not text.strip():
                raise ValueError(f"{path} is empty: name a file with dialogues or text")
            yield [("the whole file", {"text": text})], raw.tell()
            return
        rows = _lines(stream) if kind == "lines" else _values(path, stream)
        chunk, size = [], 0
        for place, row in rows:
            chunk.append((place, row))
            size += len(row)
            if size >= CHUNK:
                yield chunk, raw.tell()
                chunk, size = [], 0
        yield chunk, raw.tell()


def _lines(stream):
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.isspace():
            yield f"line {number}", line


def _values(path, stream):
    """(place, text) of each element of a JSON list, or of the objects that follow one another, read as a stream.

    Elements are found by their brackets, so a malformed one does not hide the next. What lies between two elements and
    is no comma is given as an element too. ValueError where one never closes: what follows cannot be told from it.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    text, at, start, line = (
        "",
        0,
        0,
        1,
    )  # `text` is read up to `at`; the open element or gap is from `start` on `line`
    depth = base = row = 0  # base 1 inside the list

    def take(end):
        """[(place, text)] from `start` to `end`, which becomes the next start; none where only commas lie there."""
        nonlocal row, start, line
        piece = text[start:end].strip().strip(",").strip()
        row += bool(piece)
        taken = [(f"row {row}, line {line}", piece)] if piece else []
        start, line = end, line + text.count("\n", start, end)
        return taken

    while True:
        more = stream.read(max(CHUNK, len(text)))
        text += decode(more, final=not more)
        for found in STRUCTURE.finditer(text, at):
            mark = found[0]
            if mark == '"':
                break
            at = found.end()
            if mark in "{[":
                if depth == base:
                    yield from take(found.start())
                    if mark == "[" and depth == row == 0:
                        base, start = 1, at
                depth += 1
            elif mark in "}]":
                depth -= 1
                if depth == base:
                    yield from take(at)
                elif depth < base:  # the end of the list
                    yield from take(found.start())
                    start, depth, base = at, 0, 0
        if not more:
            break
        text, at, start = text[start:], at - start, 0
    if depth > base or base == 1:
        raise ValueError(
            f"{path} does not close after row {row} (line {line}): the file is cut off or damaged from "
            "there on; fetch it again, or make it JSON lines, where one bad row can be skipped"
        )
    yield from take(len(text))


def _tfds_chunks(path):
    """The rows of a TFDS directory (its train split, or all there are) whose features are one of the forms."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(path))
    if "tokens" in builder.info.features:
        raise ValueError(f"{path} is packed already: give it to train.py --data as it is, alone")
    for split in ["train"] if "train" in builder.info.splits else sorted(builder.info.splits):
        source = builder.as_data_source(split)
        for start in range(0, len(source), 256):
            rows = source.__getitems__(list(range(start, min(start + 256, len(source)))))
            yield [(f"{split} row {start + i}", _plain(row)) for i, row in enumerate(rows)], 0


def _plain(value):
    """What TFDS gives, as JSON would: str for bytes, lists for arrays, a list of dicts for the dict of a sequence."""
    if isinstance(value, dict):
        value = {k: _plain(v) for k, v in value.items()}
        columns = list(value.values())
        if (
            columns
            and set(value) <= {"from", "value", "role", "content"}
            and all(isinstance(c, list) for c in columns)
        ):
            return [dict(zip(value, row)) for row in zip(*columns)]
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return (
        [_plain(v) for v in value]
        if hasattr(value, "__len__") and not isinstance(value, str)
        else value
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


def parse_row(row, name):
    """The dialogues of one raw row, a list (HC3 rows hold several, or none); `name` is the id where the row has none.

    ValueError, a reason without the place, for a malformed row.
    """
    if not isinstance(row, dict):
        try:
            # surrogates in a str are bytes that were not UTF-8
            row = row.decode() if isinstance(row, bytes) else row.encode().decode()
            row = json.loads(row)
        except UnicodeError:
            raise ValueError("not UTF-8") from None
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{_short(row)} is not an object")
    name = str(row["id"]) if isinstance(row.get("id"), (str, int)) else name
    for key in ("conversations", "conversation", "messages", "items"):
        if key in row:
            return [_dialogue(name, _listed(row[key], key))]
    if "question" in row and "chatgpt_answers" in row:
        answers = row["chatgpt_answers"]
        if not isinstance(answers, list):
            raise ValueError(f"chatgpt_answers is {_short(answers)}, not a list")
        asked, single = _text(row, "question"), len(answers) == 1
        return [
            _dialogue(
                name if single else f"{name}.{k}",
                [("human", asked), ("gpt", _string(answer, "an answer"))],
            )
            for k, answer in enumerate(answers)
        ]
    if "instruction" in row and "output" in row:
        asked, more = _text(row, "instruction"), _text(row, "input") if row.get("input") else ""
        return [
            _dialogue(
                name,
                [("human", f"{asked}\n\n{more}" if more else asked), ("gpt", _text(row, "output"))],
            )
        ]
    keys = sorted((int(m[2]), m[1] == "gpt", key) for key in row if (m := KOALA_KEY.fullmatch(key)))
    if keys:
        while keys and row[keys[-1][2]] in (None, ""):  # rows of a fixed schema end in empty turns
            keys.pop()
        return [
            _dialogue(name, [("gpt" if gpt else "human", _text(row, key)) for _, gpt, key in keys])
        ]
    if isinstance(row.get("input"), str) and BAIZE_MARK.search(row["input"]):
        parts = BAIZE_MARK.split(row["input"])[1:]
        turns = [
            ("human" if who == "Human" else "gpt", text.strip())
            for who, text in zip(parts[::2], parts[1::2])
        ]
        return [_dialogue(name, turns[:-1] if turns[-1] == ("human", "") else turns)]
    for prompt, answer in PAIRS:
        if prompt in row and answer in row:
            return [_dialogue(name, [("human", _text(row, prompt)), ("gpt", _text(row, answer))])]
    if "text" in row:
        return [{"id": name, "text": _text(row, "text")}]
    raise ValueError(
        f"no known form has the keys {_short(sorted(map(str, row)))}: convert it to ShareGPT's "
        '{"conversations": [{"from", "value"}]}'
    )


def _listed(turns, key):
    """(speaker, text) of a list of {"from", "value"} or {"role", "content"}."""
    if not isinstance(turns, list):
        raise ValueError(f"{key} is {_short(turns)}, not a list of turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number} is {_short(turn)}, not an object")
        who, text = ("from", "value") if "from" in turn else ("role", "content")
        if who not in turn or text not in turn:
            keys = _short(sorted(map(str, turn)))
            raise ValueError(
                f"turn {number} has the keys {keys}, not from and value (or role and content)"
            )
        speaker = SPEAKERS.get(turn[who].strip().lower()) if isinstance(turn[who], str) else None
        if speaker is None:
            raise ValueError(
                f"turn {number} is by {_short(turn[who])}: speakers are {', '.join(SPEAKERS)}"
            )
        value = turn[text]
        if isinstance(value, list) and all(
            isinstance(p, dict) and p.get("type") == "text" for p in value
        ):
            value = "".join(_text(part, "text") for part in value)
        yield speaker, _string(value, f"turn {number}")


def _dialogue(name, turns):
    turns = [{"from": speaker, "value": text} for speaker, text in turns]
    if not turns:
        raise ValueError("no turns")
    return {"id": name, "conversations": turns}


def _text(row, key):
    return _string(row.get(key), key)


def _string(value, what):
    if not isinstance(value, str):
        raise ValueError(f"{what} is {_short(value)}, not a string")
    return value


def _short(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)
    return repr(text[:60] + "…" if len(text) > 60 else text)


# ---- dialogues -------------------------------------------------------------------------------------------------------


def turns(dialogue):
    """[(speaker "human" | "gpt", text, learned)] of a dialogue: what the templates write, which answers are learned.

    A system text is joined to the human turn that follows it, by a blank line; where none follows at once it is a human
    turn of its own. An answer is learned where a human spoke before it: a piece cut out of a longer dialogue may begin
    with the assistant's turn, which is then context. Two turns in a row by one speaker stay two turns.
    """
    out, held, asked = [], [], False
    for turn in dialogue["conversations"]:
        if turn["from"] == "system":
            held.append(turn["value"])
        elif turn["from"] == "human":
            out.append(("human", "\n\n".join([*held, turn["value"]]), False))
            held, asked = [], True
        else:
            out += [("human", "\n\n".join(held), False)] if held else []
            out.append(("gpt", turn["value"], asked))
            held = []
    return out + ([("human", "\n\n".join(held), False)] if held else [])


def has_answer(dialogue):
    """Whether there is anything to learn: an answer, not blank, after a human's turn; or a text that is not blank."""
    if "text" in dialogue:
        return bool(dialogue["text"].strip())
    return any(learned and text.strip() for _, text, learned in turns(dialogue))


def peculiarities(dialogue):
    """What is worth counting about a dialogue, a list of str."""
    if "text" in dialogue:
        return []
    speakers = [t["from"] for t in dialogue["conversations"]]
    spoken = [s for s in speakers if s != "system"]
    notes = [
        ("begins with the assistant (that turn is context)", spoken[:1] == ["gpt"]),
        ("has a system text (joined to the human turn after it)", "system" in speakers),
        (
            "one speaker twice in a row (kept as two turns)",
            any(a == b for a, b in zip(spoken, spoken[1:])),
        ),
        ("ends with the human", spoken[-1:] == ["human"]),
    ]
    return [note for note, holds in notes if holds]


def split_key(dialogue):
    """An int64, the same for dialogues of which one in training gives another in validation away.

    Those are the pieces that ShareGPT's dialogues were cut into (ids abcdefg_0, abcdefg_2, ...) and dialogues with the
    same questions, such as exact copies and HC3's several answers to one question.
    """
    piece = re.fullmatch(r"([A-Za-z0-9]{7})_\d+", dialogue["id"])
    asked = [t["value"] for t in dialogue.get("conversations", []) if t["from"] == "human"]
    if not (piece or asked):
        asked = (
            [dialogue["text"]]
            if "text" in dialogue
            else [t["value"] for t in dialogue["conversations"]]
        )
    same = "piece\0" + piece[1] if piece else "asked\0" + "\0".join(asked)
    digest = hashlib.blake2b(same.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


class Malformed:
    """Counts the rows of one file, reports the first malformed ones on stderr, and stops where they are too many."""

    def __init__(self, path, max_bad):
        self.path, self.max_bad, self.rows, self.bad, self.first = path, max_bad, 0, 0, None

    def add(self, rows, bad):
        """`rows` rows were read, of which `bad` [(place, reason)] are malformed."""
        self.rows += rows
        for place, reason in bad:
            self.bad += 1
            self.first = self.first or f"{place}: {reason}"
            if self.bad <= SHOWN:
                print(f"{self.path} {place}: {reason}; skipped", file=sys.stderr)

    def close(self):
        if self.bad > SHOWN:
            print(f"{self.path}: {self.bad - SHOWN:,} more malformed rows skipped", file=sys.stderr)
        if self.bad > self.max_bad * self.rows:
            share = f"{self.bad:,} of {self.rows:,} rows are malformed ({self.bad / self.rows:.1%})"
            raise ValueError(
                f"{self.path}: {share}, over --max-bad-rows {self.max_bad:g} (first: {self.first}): mend "
                "them, or raise --max-bad-rows to skip them"
            )


def read_dialogues(path, max_bad=0.01, counts=None):
    """The dialogues of a file, folder or TFDS directory, one after another.

    counts: a Counter that receives "rows", "dialogues" and "malformed". Malformed rows are reported on stderr and
    skipped; ValueError, one line, after the last row of a file where they are more than the share `max_bad`.
    """
    counts = collections.Counter() if counts is None else counts
    sources, passed = source_files([path])
    for p in passed:
        print(f"{p}: neither JSON nor .txt, passed over", file=sys.stderr)
    for source in sources:
        malformed = Malformed(source, max_bad)
        for chunk, _ in raw_chunks(source):
            bad = []
            for place, row in chunk:
                try:
                    found = parse_row(row, f"{source.name} {place}")
                except ValueError as error:
                    bad.append((place, str(error)))
                    continue
                counts["dialogues"] += len(found)
                yield from found
            malformed.add(len(chunk), bad)
            counts.update(rows=len(chunk), malformed=len(bad))
        malformed.close()


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"]) else 2
    counts = collections.Counter()
    try:
        for path in argv:
            for dialogue in read_dialogues(path, counts=counts):
                print(json.dumps(dialogue))
    except ValueError as error:
        print(f"dialogues.py: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0
    print(", ".join(f"{n:,} {what}" for what, n in counts.items()), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
