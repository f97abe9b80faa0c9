"""What a file is that holds no JSON and would be taken for plain text, though nobody meant it as
text.

For text/sources.py; nothing to run. Trained on as it stands, such a file teaches a model a web
page, or the punctuation of another format. Left out: a look at more than the beginning.
"""

import pathlib
import re

POINTER = "version https://git-lfs.github.com/spec/"
MAGIC = {
    b"PAR1": "parquet",
    b"ARROW1": "Hugging Face's arrow",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"%PDF": "PDF",
    b"SQLite format": "an SQLite database",
    b"\x80\x04\x95": "a Python pickle",
}
# The beginning in small letters -> what it looks like. The first two kinds are never meant as text;
# the others are, where the file is named .txt.
NEVER = (
    (POINTER, "a git-lfs pointer: `git lfs pull` fetches the file itself"),
    (r"<!doctype html|<html\b", "a web page (HTML): fetch the file itself"),
)
MESSAGE = re.compile(
    r"((entry|repository|file|page|revision) )?not found|404|access (denied|to )|forbidden|"
    r"unauthorized|internal server error|invalid (username|credentials)|too many requests"
)
UNLESS_TXT = (
    (r"[\[(]?\s*\{\s*'", "Python dicts: write them as JSON (json.dumps)"),
    (r"\[\s*[\"\d-]", 'a JSON list of strings or numbers: make each an object, {"text": ...}'),
    (r"[\[{]", "damaged JSON: fetch it again"),
    (r"<", "markup (XML, HTML): convert it"),
)
COLUMNS = {
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "response",
    "question",
    "answer",
}


def suffix(path: pathlib.Path) -> str:
    """The end of a file's name, in small letters, without .gz."""
    return pathlib.Path(path.name.lower().removesuffix(".gz")).suffix


def refuse_no_text(path: pathlib.Path, head: str) -> None:
    """ValueError, one line, where the beginning of a file that is no JSON is no plain text
    either."""
    raw, begins = head[:16].encode("utf-8", "surrogateescape"), head[:2000].lstrip("\ufeff \t\r\n")
    begins, kind = begins.lower(), suffix(path)
    for magic, what in MAGIC.items():
        if raw.startswith(magic):
            raise ValueError(f"{path} is {what}, which is not read: convert it to JSON lines")
    if "\0" in head:
        raise ValueError(
            f"{path} is neither JSON nor text (zero bytes: an archive, or text in UTF-16): unpack "
            "or convert it"
        )
    for pattern, what in NEVER + (() if kind == ".txt" else UNLESS_TXT):
        if re.match(pattern, begins):
            hint = (
                "" if (pattern, what) in NEVER else ", or name it .txt where it is a text to learn"
            )
            raise ValueError(f"{path} looks like {what}{hint}")
    if len(head) < 300 and MESSAGE.match(begins):
        raise ValueError(f"{path} looks like a server's message and no data: fetch the file again")
    first = {column.strip(' "') for column in re.split("[,;\t]", begins.split("\n")[0].strip())}
    if kind in (".csv", ".tsv") or (kind != ".txt" and len(first & COLUMNS) > 1):
        raise ValueError(f"{path} looks like a table (CSV): convert its rows to JSON lines")
    if kind in (".json", ".jsonl", ".ndjson"):
        raise ValueError(
            f"{path} is named {kind} and holds no JSON: fetch it again, or name it .txt where it "
            "is a text to learn"
        )
