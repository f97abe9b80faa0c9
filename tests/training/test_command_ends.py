"""How a training ends: refused, by an error, by NaN, or at its last step."""

import os
import re

import pytest
from commands import ROOT, SMALL, finish, metrics_of

import data
import train
from checkpoint import __main__ as checkpoint
from checkpoint import runs
from training import run

pytest_plugins = ["commands"]  # its fixtures
pytestmark = pytest.mark.usefixtures("devices")


def test_a_run_shorter_than_its_warm_up_warns_with_both_numbers(straight, tmp_path, capsys):
    assert "WARNING" not in straight[1]
    argv = [*map(str, SMALL), "--mesh", "1x1", "--warmup", "1000", "--steps", "2"]
    assert train.main([*argv, "--out", str(tmp_path / "short")]) == 0
    assert re.search(
        r"WARNING: 2 steps end within the warm-up of 1000: .*--warmup-fraction",
        capsys.readouterr().out,
    )


def test_truncated_weights_are_found_before_data_is_packed_and_leave_no_folder(
    straight, tmp_path, capsys, monkeypatch
):
    assert checkpoint.main(["convert", str(straight[0]), str(tmp_path / "hf"), "--to", "hf"]) == 0
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setattr(data, "open_dataset", lambda *a, **k: pytest.fail("data was packed"))
    capsys.readouterr()
    out = tmp_path / "deep" / "run"
    argv = ["--init", str(tmp_path / "hf"), "--data", "samples/dialogues.jsonl", "--out", str(out)]
    assert train.main([*argv, "--mesh", "1x1", "--dtype", "float32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "truncated" in error or "does not fit" in error, error
    assert not out.parent.exists()


def test_a_refusal_behind_the_packing_leaves_no_folder_either(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["--data", "samples/dialogues.jsonl", "--block", "32", "--mix-fraction", "0.5"]
    argv += ["--mix", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "a" / "run")]
    assert train.main([*argv, "--mesh", "1x1", "--dtype", "float32"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_an_error_in_the_loop_keeps_the_checkpoint_that_is_being_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"

    def confirm(saver, step):
        raise KeyError("a bug right after a save began")

    monkeypatch.setattr(runs.Saver, "confirm", confirm)
    argv = [*map(str, SMALL), "--mesh", "1x1", "--steps", "2", "--out", str(out)]
    with pytest.raises(KeyError):
        train.main(argv)
    assert runs.steps(out) == [2] and runs.is_whole(out, 2)
    assert len(metrics_of(out)) == 2


def test_a_second_training_into_one_folder_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    argv = [*map(str, SMALL), "--mesh", "1x1", "--steps", "2", "--out", str(out)]
    with run.claim(out):
        (out / "run.json").write_text("{}")
        assert train.main(argv) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"--out {out} is being trained into by process {os.getpid()} of" in error
        assert (out / "run.json").read_text() == "{}"


def test_the_end_of_a_run_shows_its_curve_its_losses_samples_and_what_to_type_next(
    tmp_path, user_home
):
    out = tmp_path / "run"
    arguments = ["--mesh", "2x1", "--steps", 12, "--eval-every", 6, "--samples", 1, "--out", out]
    text = finish(*arguments, home=user_home)
    rows = text.splitlines()
    assert [r.split()[0] for r in rows[:3]] == ["model", "mesh", "out"]
    steps = [r for r in rows if r.startswith("step ")]
    assert [r.split("/")[0].split()[1] for r in steps] == ["1", "6", "10", "12"]
    lines = metrics_of(out)
    before, after = lines[0]["eval_loss_before"], lines[-1]["eval_loss"]
    assert f"held-out loss {before:.4f} -> {after:.4f}; 12 steps" in text and after < before
    assert "eval_loss" in lines[5] and "eval_loss" not in lines[6]
    begin = next(i for i, r in enumerate(rows) if r.startswith("> "))
    assert rows[begin + 1].startswith("    ") and sum(r.startswith("> ") for r in rows) == 1
    assert {"curves.html"} <= {p.name for p in out.iterdir()}
    commands = [r.strip() for r in rows[rows.index("next") + 1 :]]
    assert [c.split()[1:3] for c in commands] == [
        ["eval.py", "chat"],
        ["eval.py", "mmlu"],
        ["-m", "checkpoint"],
    ]
    again = finish(
        *arguments, home=user_home
    )  # a run that is done says so again and trains nothing
    assert "after step 12" in again and "0 steps" in again
    assert metrics_of(out) == lines


def test_nan_stops_with_the_step_and_the_rows(tmp_path, user_home):
    text = finish(
        *SMALL,
        "--mesh",
        "1x1",
        "--steps",
        6,
        "--lr",
        "1e30",
        "--optimizer",
        "adamw",
        "--warmup",
        1,
        "--save-every",
        1,
        "--out",
        tmp_path / "run",
        home=user_home,
        code=2,
    )
    last = text.strip().splitlines()[-1]
    assert re.search(
        (
            r"train.py: step \d+: loss .*; rows \[\d+.*\]: the weights of step \d+ are "
            r"untouched.*lower --lr"
        ),
        last,
    ), last
