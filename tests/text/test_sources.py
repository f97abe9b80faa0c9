"""sources.py, lookalikes.py: files are told apart by content, what is no data is refused."""

import collections
import gzip
import json
import time

import pytest

from text import sources
from text.dialogues import read_dialogues

ROW = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1e08\nsize 642231412\n"
CSV = 'instruction,input,output\n"Say 0","","0"\n'
PYTHON = "{'conversations': [{'from': 'human', 'value': 'Hi'}]}\n" * 3
STRINGS = json.dumps(["a document", "another"])
HTML = "<!DOCTYPE html>\n<html><head><title>Access denied</title></head></html>\n"


def read(path):
    return list(read_dialogues(path))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "name, text, words",
    [
        ("x.json", POINTER, "a git-lfs pointer"),
        ("x.txt", POINTER, "a git-lfs pointer"),
        ("x", HTML, "a web page"),
        ("x.jsonl", HTML.lower(), "a web page"),
        ("x.jsonl", "Entry not found", "a server's message"),
        ("x", "404: Not Found\n", "a server's message"),
        ("x.jsonl", PYTHON, "Python dicts"),
        ("x.json", STRINGS, "a JSON list of strings"),
        ("x", "[1, 2, 3]", "a JSON list of strings or numbers"),
        ("x.csv", CSV, "a table"),
        ("x", CSV, "a table"),
        ("x.tsv", "a\tb\n", "a table"),
        ("x.xml", "<row>a</row>", "markup"),
        ("x", "{broken: json}", "damaged JSON"),
        ("x.jsonl", "Hello.\n", "is named .jsonl and holds no JSON"),
        ("x", b"PAR1\x15\x04", "parquet"),
        ("x.tar", b"a.jsonl\0\0\0000644\0", "zero bytes"),
        ("x.txt", "[]".encode("utf-16"), "zero bytes"),
        ("x.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", "zstandard"),
    ],
)
def test_what_is_no_data_is_refused_with_what_it_looks_like(tmp_path, name, text, words, zipped):
    content = text if isinstance(text, bytes) else text.encode()
    path = tmp_path / (name + ".gz" if zipped else name)
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(ValueError, match=words) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["[Chorus]\nla la\n", "{\\bf TeX} and more", "<b>bold</b>", "[1] a reference\n", CSV, STRINGS],
)
def test_what_is_named_txt_is_a_text_as_it_stands(tmp_path, text):
    (tmp_path / "x.txt").write_text(text)
    assert [d["text"] for d in read(tmp_path / "x.txt")] == [text]


@pytest.mark.parametrize("name", ["x", "x.md", "notes.text"])
def test_plain_text_of_another_name_is_a_text_where_it_is_named_itself(tmp_path, name):
    (tmp_path / name).write_text("Not found in any book, this.\n" * 20)
    assert len(read(tmp_path / name)) == 1


def test_a_folder_cloned_from_the_hub_is_read_for_its_data(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "data" / "._train.jsonl").write_bytes(b"\0\5\x16\7")
    for name in ("dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json"):
        (tmp_path / name).write_text('{"default": {"splits": {}}}')
    (tmp_path / ".gitattributes").write_text("*.json filter=lfs")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    assert len(read(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "dataset_infos.json: no data" in said and "README.md: no data" in said


def test_a_folder_of_parquet_files_says_what_to_do(tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1\x15\x04PAR1")
    with pytest.raises(ValueError, match="convert its parquet"):
        read(tmp_path)


def test_a_pointer_in_place_of_a_folders_data_is_not_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "b.jsonl").write_text(POINTER)
    with pytest.raises(ValueError, match="b.jsonl looks like a git-lfs pointer"):
        read(tmp_path)


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    "text, n",
    [
        ("".join(json.dumps(TURNS) + "\n" for _ in range(5)), 5),
        ("\ufeff" + "\n\n".join(json.dumps(TURNS) for _ in range(5)), 5),
        (json.dumps(TURNS), 1),
        (json.dumps([TURNS] * 5), 5),
        (json.dumps([TURNS] * 5, indent=1), 5),
        (json.dumps([{"messages": TURNS}] * 5), 5),
    ],
)
def test_lines_and_lists_of_turns_are_told_apart(tmp_path, text, n):
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    found = read(tmp_path / "x.jsonl")
    assert len(found) == n and all(len(d["conversations"]) == 2 for d in found)


# --- files made to take all memory, or minutes ---


@pytest.mark.parametrize("start", [b"", b'{"text": "', b'[{"text": "', b'{"text": "a"}\n'])
@pytest.mark.parametrize("byte", [b" ", b"\0", b"\n", b"["])
def test_a_file_blown_up_by_gzip_is_refused_early(tmp_path, monkeypatch, start, byte):
    monkeypatch.setattr(sources, "UNMEASURED", 4 << 20)
    monkeypatch.setattr(sources, "LONGEST_ROW", 8 << 20)
    monkeypatch.setattr(sources, "MOST_BLANK", 100_000)
    with gzip.open(tmp_path / "x.jsonl.gz", "wb") as file:
        file.write(start)
        for _ in range(24):
            file.write(byte * (1 << 20))
    started = time.monotonic()
    with pytest.raises(ValueError) as error:
        read(tmp_path / "x.jsonl.gz")
    assert "\n" not in str(error.value) and str(tmp_path / "x.jsonl.gz") in str(error.value)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("before, after", [("", "\n"), ("[", "]"), (" ", " ")])
def test_a_row_longer_than_any_dialogue_is_refused_where_it_stands(
    tmp_path, monkeypatch, before, after
):
    monkeypatch.setattr(sources, "LONGEST_ROW", 3 << 20)
    row = json.dumps({"text": "ab" * (2 << 20)})
    (tmp_path / "x.json").write_text(before + row + after)
    with pytest.raises(ValueError, match="is longer than 3 MiB"):
        read(tmp_path / "x.json")


def test_text_that_compresses_well_is_still_read(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        for _ in range(30_000):
            file.write(json.dumps(ROW) + "\n")
    counts = collections.Counter()
    list(read_dialogues(tmp_path / "x.jsonl.gz", counts=counts))
    assert counts["dialogues"] == 30_000
