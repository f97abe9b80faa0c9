"""Whole files, and JSON that somebody else wrote."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from host import files


def only(folder, *names):
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_a_file_is_written_whole_and_replaced_whole(tmp_path):
    files.write_whole(tmp_path / "a", "one é")
    files.write_whole(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two" and only(tmp_path, "a")
    files.write_json(tmp_path / "b" / "c.json", {"x": [1, math.nan]})
    assert (tmp_path / "b" / "c.json").read_text() == '{\n  "x": [\n    1,\n    null\n  ]\n}\n'
    assert os.stat(tmp_path / "a").st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    files.write_whole(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(tmp_path / "a", "half \ud800")
    with pytest.raises(KeyError), files.beside(tmp_path / "a", replace=True) as tmp:
        tmp.write_text("half")
        raise KeyError
    assert (tmp_path / "a").read_text() == "old" and only(tmp_path, "a")


def test_a_new_place_is_not_written_over(tmp_path):
    (tmp_path / "empty").mkdir()
    with files.beside(tmp_path / "empty", folder=True) as tmp:
        (tmp / "x").write_text("1")
    assert (tmp_path / "empty" / "x").read_text() == "1"
    for folder in (True, False):
        with pytest.raises(ValueError, match="is there already"):
            with files.beside(tmp_path / "empty", folder=folder):
                pass
    with files.beside(tmp_path / "deep" / "er", folder=True) as tmp:
        assert tmp.is_dir() and tmp.parent == tmp_path / "deep"
    assert only(tmp_path, "empty", "deep") and only(tmp_path / "deep", "er")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link is there already"):
        with files.beside(tmp_path / "link"):
            pass


KILLED = """
import os, signal, sys
from host import files
with files.beside(sys.argv[1], folder=sys.argv[2] == "folder", replace=True) as tmp:
    print(tmp, flush=True)
    sys.stdin.read() if len(sys.argv) > 3 else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_cleared_and_a_living_writers_is_not(tmp_path, kind):
    name = tmp_path / ("odd [name] *" + "x" * 230)
    command = [sys.executable, "-c", KILLED, str(name), kind]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with subprocess.Popen(
        [*command, "waits"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        tmp = living.stdout.readline().strip()
        assert only(tmp_path, os.path.basename(tmp))  # the dead one's is gone
        with files.beside(name, folder=kind == "folder", replace=True):
            assert os.path.exists(tmp)
        os.rmdir(name) if kind == "folder" else None
        living.stdin.close()
        assert living.wait(30) == 0
    assert only(tmp_path, name.name)


def test_one_process_fills_a_folder_and_the_others_find_it(tmp_path):
    filled, entered = [], threading.Event()
    (tmp_path / "x.tmp").mkdir()
    (tmp_path / "x.tmp" / "torn").write_text("left by a killed process")

    def work():
        with files.folder_once(tmp_path / "x") as folder:
            if folder:
                assert sorted(p.name for p in folder.iterdir()) == ["lock"]
                entered.wait(10)
                (folder / "a").write_text("1")
                filled.append(folder)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    entered.set()
    for thread in threads:
        thread.join()
    assert len(filled) == 1 and only(tmp_path, "x") and only(tmp_path / "x", "a")
    with pytest.raises(KeyError), files.folder_once(tmp_path / "y"):
        raise KeyError
    assert only(tmp_path, "x")


def test_a_lock_is_for_one_and_ends_with_its_file(tmp_path, monkeypatch):
    with open(tmp_path / "a", "w") as first, open(tmp_path / "a", "w") as second:
        assert files.lock(first) and not files.lock(second)
        first.close()
        assert files.lock(second)

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert files.lock(0)


def test_json_out_of_our_hands_is_json_and_utf8():
    value = {1: np.float32(0.5), "n": np.int64(3), "b": np.bool_(True), "inf": [math.inf, (2,)]}
    text = files.dumps(value | {"half": "\ud83d é"})
    assert json.loads(text) == {
        "1": 0.5, "n": 3, "b": True, "inf": [None, [2]], "half": "\ud83d é"
    }  # fmt: skip
    assert "é" in text and text.encode()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'{"a": 1,\n "b" 2}\n', ", line 2 is not JSON"),
        (b"", "is not JSON"),
        (b"[1]", "holds a list where an object was expected"),
        (b'"x"', "holds a string where an object was expected"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 10_000 + b"1" + b"}" * 10_000, "is nested too deeply"),
        (b"\xff{}", "is not text in UTF-8"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_a_json_file_that_is_none_is_one_line_with_its_name(tmp_path, content, reason):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        files.read_json(tmp_path / "run.json")
    assert str(tmp_path / "run.json") in str(error.value) and "\n" not in str(error.value)


def test_json_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"x": NaN}')
    assert math.isnan(files.read_json(tmp_path / "a", nan=True)["x"])
    (tmp_path / "a").write_text("[1]")
    assert files.read_json(tmp_path / "a", list) == files.read_json(tmp_path / "a", None) == [1]
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b")


def test_a_torn_last_line_is_cut_off_and_other_damage_is_named(tmp_path, capsys):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b'{"id": 1}\n{"id": 2}\n{"id": 3')
    assert files.json_lines(path, repair=False) == [{"id": 1}, {"id": 2}]
    assert path.read_bytes().endswith(b"3") and not capsys.readouterr().err
    assert files.json_lines(path) == [{"id": 1}, {"id": 2}]
    assert (
        path.read_bytes() == b'{"id": 1}\n{"id": 2}\n' and "1 torn line" in capsys.readouterr().err
    )
    for damage in (b"{\n", b"[1]\n", b"\xff\n", b"[" * 99_999 + b"\n"):
        path.write_bytes(b'{"id": 1}\n' + damage + b'{"id": 3}\n')
        with pytest.raises(ValueError, match="samples.jsonl, line 2 "):
            files.json_lines(path)


def test_a_folders_digest_is_that_of_its_files_one_after_another(tmp_path):
    (tmp_path / "b").write_text("two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "c").write_text("one ")
    (tmp_path.with_name("whole")).write_text("one two")
    assert files.sha256(tmp_path) == files.sha256(tmp_path.with_name("whole"))
