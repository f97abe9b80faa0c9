"""A run's directory: where it can be, who has it, what it was started with, which steps it holds.

python -m pytest tests/training/test_run.py
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from training import flags, run


def record(tmp_path=None, **changes):
    settings, origin = flags.resolve(flags.parser().parse_args([]))
    settings = dataclasses.replace(settings, **changes)
    found = {
        "config": {"D": 8},
        "steps": 200,
        "warmup": 10,
        "data_fingerprint": ["a", "b", None],
        "init_fingerprint": None,
        "tokenizer_fingerprint": "t",
        "mesh": [8, 1],
    }
    return run.record_of(settings, origin, found)


# --- the place ---


@pytest.mark.parametrize(
    "make, name, why",
    [
        (lambda p: (p / "file").write_text(""), "file", r"is a file: name another"),
        (lambda p: (p / "file").write_text(""), "file/below", r"lies below .*file, which is no f"),
        (lambda p: (p / "link").symlink_to(p / "nowhere"), "link", r"is a link that leads nowhere"),
        (lambda p: None, "x" * 300, r"File name too long"),
        (lambda p: None, "x" * 300 + "/run", r"File name too long"),
    ],
)
def test_a_place_that_can_be_no_run_directory_is_refused(tmp_path, make, name, why):
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=why) as error:
        run.check_place(tmp_path / name)
    assert "\n" not in str(error.value) and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("target", [None, "nowhere", "checkpoints"])
def test_checkpoints_that_are_no_folder_are_refused(tmp_path, target):
    inner = tmp_path / "checkpoints"
    inner.symlink_to(target) if target else inner.write_text("")
    with pytest.raises(ValueError, match="checkpoints is no folder: remove it, or name another"):
        run.check_place(tmp_path)


@pytest.mark.parametrize("name", ["new", "deep/er/new", "."])
def test_a_place_that_is_free_or_a_folder_is_taken(tmp_path, name):
    run.check_place(tmp_path / name)


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 10**9)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="a checkpoint takes 12 GB, its disk has 10 GB left"):
        run.check_disk(tmp_path / "run", 12 * 10**9, 2)
    note = run.check_disk(tmp_path / "run", 4 * 10**9, 2)
    assert note and "2 checkpoints of 4 GB and one being written" in note
    assert run.check_disk(tmp_path / "run", 10**9, 2) is None


# --- who has it ---

HOLD = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from training import run
with run.claim(pathlib.Path({out!r})):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_training_is_refused_until_the_first_ends_or_is_killed(tmp_path):
    out = tmp_path / "run"
    code = HOLD.format(root=str(flags.ROOT), out=str(out))
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "mine\n"
    with pytest.raises(ValueError, match=f"trained into by process {first.pid} of") as error:
        with run.claim(out):
            pytest.fail("two hold one run directory")
    assert "\n" not in str(error.value)
    first.kill()
    first.wait()
    with run.claim(out):
        assert str(os.getpid()) in (out / run.LOCK).read_text()


def test_a_refused_start_leaves_no_folder_behind(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), run.claim(tmp_path / "there" / "a" / "b"):
        raise KeyError
    assert list((tmp_path / "there").iterdir()) == []
    with pytest.raises(KeyError), run.claim(tmp_path / "there" / "a"):
        (tmp_path / "there" / "a" / "run.json").write_text("{}")
        raise KeyError
    assert (tmp_path / "there" / "a" / "run.json").exists()


# --- what it was started with ---


def test_the_same_run_goes_on_and_another_is_refused_by_the_name_of_what_differs(tmp_path):
    run.begin(tmp_path, record(lr=0.06))
    run.begin(tmp_path, record(lr=0.06, mesh="4x2", keep=5, verbose=True))
    with pytest.raises(ValueError, match=r"holds a run with --lr 0.06, this one has 0.5: use the"):
        run.begin(tmp_path, record(lr=0.5))
    with pytest.raises(ValueError, match="with data_fingerprint"):
        run.begin(tmp_path, record(lr=0.06) | {"data_fingerprint": ["c", "b", None]})


def test_another_warm_up_is_another_run(tmp_path):
    run.begin(tmp_path, record(schedule="constant"))
    run.begin(tmp_path, record(schedule="constant", warmup=1000))  # it comes to as many steps
    with pytest.raises(ValueError, match="a warm-up of steps 10, this one has 20"):
        run.begin(tmp_path, record(schedule="constant") | {"warmup": 20})


def test_a_run_of_constant_rate_may_be_made_longer_another_not(tmp_path):
    constant = record(schedule="constant")
    run.begin(tmp_path, constant)
    run.begin(tmp_path, record(schedule="constant", steps=300) | {"steps": 300})
    run.begin(tmp_path / "cosine", record(steps=160))
    with pytest.raises(ValueError, match="--steps 160, this one has 300"):
        run.begin(tmp_path / "cosine", record(steps=300) | {"steps": 300})


def test_checkpoints_without_the_record_of_what_they_are_of_are_not_gone_on_with(tmp_path):
    (tmp_path / "checkpoints" / "40").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds checkpoints but no run.json"):
        run.begin(tmp_path, record())
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("damage", ["", "[1]", "{", "[" * 20000, '{"args": 3}'])
def test_a_damaged_record_is_refused_in_one_line(tmp_path, damage):
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(ValueError) as error:
        run.begin(tmp_path, record())
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


# --- its steps ---


def test_lines_after_the_checkpoint_and_torn_ones_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss": s / 2}) for s in (1, 2, 2, 3, 4)]
    path.write_text("\n".join([*lines[:3], "[]", '"x"', *lines[3:]]) + '\n{"step": 5, "lo')
    kept = run.cut_metrics(path, 3)
    assert [line["step"] for line in kept] == [1, 2, 3]
    assert path.read_text() == "".join(lines[i] + "\n" for i in (0, 1, 3))
    assert run.cut_metrics(tmp_path / "none.jsonl", 3) == []
