"""The log of a run: one step late, without the time of evaluations, stopping at what is no number.

python -m pytest tests/training/test_log.py
"""

import json
import sys
import time
import types

import pytest

from training import log, picture, screen

SCALE = log.Scale(steps=4, tokens=100, flops=2e9, peak=None)


def metrics(loss=1.0, norm=1.0, loss_tokens=50.0, stop=0.0):
    values = {"loss": loss, "grad_norm": norm, "lr": 0.1, "loss_tokens": loss_tokens}
    return values | {"stop": stop}


def make(tmp_path, every=1, scale=SCALE, boards=()):
    return log.StepLog(tmp_path / "metrics.jsonl", scale, lambda s: [s, s + 1], every, boards)


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_a_step_is_written_when_the_next_is_under_way(tmp_path, capsys):
    step_log = make(tmp_path)
    step_log.push(1, metrics())
    assert lines_of(tmp_path) == []
    step_log.push(2, metrics(loss=0.5))
    assert [line["step"] for line in lines_of(tmp_path)] == [1]
    step_log.flush()
    assert [line["loss"] for line in lines_of(tmp_path)] == [1.0, 0.5]
    assert [row.split("  ")[0] for row in capsys.readouterr().out.splitlines()] == [
        "step 1/4",
        "step 2/4",
    ]


def test_what_is_measured_between_steps_is_no_steps_time(tmp_path):
    step_log = make(tmp_path)
    step_log.start_clock()
    time.sleep(0.02)
    step_log.push(1, metrics())
    step_log.fetch()
    time.sleep(0.3)  # a held-out loss
    step_log.flush(eval_loss=2.0)
    step_log.start_clock()
    step_log.push(2, metrics())
    step_log.flush()
    first, second = lines_of(tmp_path)
    assert first["eval_loss"] == 2.0 and "eval_loss" not in second
    assert first["ms"] < 250 and second["ms"] < 250
    assert first["tokens_per_s"] == pytest.approx(100 / first["ms"] * 1000, rel=1e-2)


def test_what_was_measured_before_training_stands_on_the_line_of_the_first_step(tmp_path):
    step_log = make(tmp_path)
    step_log.add(eval_loss_before=7.0)
    step_log.push(1, metrics())
    step_log.push(2, metrics())
    step_log.flush()
    first, second = lines_of(tmp_path)
    assert first["eval_loss_before"] == 7.0 and "eval_loss_before" not in second


def test_mfu_is_of_all_devices_and_null_where_no_peak_is_known(tmp_path):
    for peak in (None, 1e11):
        step_log = make(tmp_path, scale=SCALE._replace(peak=peak))
        time.sleep(0.02)
        step_log.push(1, metrics())
        step_log.flush()
    unknown, known = lines_of(tmp_path)
    assert unknown["mfu"] is None
    assert known["mfu"] == pytest.approx(2e9 / (known["ms"] / 1000 * 1e11), abs=1e-4)


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"norm": float("inf")}])
def test_what_is_no_number_stops_with_the_step_and_its_rows(tmp_path, bad):
    step_log = make(tmp_path)
    step_log.push(1, metrics())
    step_log.push(2, metrics(**bad))
    with pytest.raises(log.Diverged, match=r"step 2: .*; rows \[2, 3\]: .*step 1") as error:
        step_log.flush()
    assert (error.value.step, error.value.rows) == (2, [2, 3])
    assert [line["step"] for line in lines_of(tmp_path)] == [1]


def test_a_batch_without_loss_tokens_is_counted_and_said(tmp_path, capsys):
    step_log = make(tmp_path, every=100)
    step_log.push(1, metrics())
    step_log.push(2, metrics(loss=float("nan"), loss_tokens=0.0))
    step_log.push(3, metrics())
    step_log.flush()
    assert step_log.skipped == 1
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 and "SKIPPED: no loss token in this batch (1 so far)" in rows[1]


def test_lines_are_printed_every_so_many_steps_and_written_every_step(tmp_path, capsys):
    step_log = make(tmp_path, every=3, scale=SCALE._replace(steps=8))
    for s in range(1, 9):
        step_log.push(s, metrics())
    step_log.flush()
    printed = [row.split("/")[0] for row in capsys.readouterr().out.splitlines()]
    assert printed == ["step 1", "step 3", "step 6", "step 8"]
    assert [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_the_rest_is_estimated_by_the_median_step():
    line = {"step": 10, "loss": 1, "lr": 1, "grad_norm": 1, "loss_share": 1, "ms": 90_000}
    text = log.step_line(line | {"tokens_per_s": 1, "mfu": None}, 70, typical_ms=1000)
    assert text.endswith("eta 1:00") and "90000 ms" in text


def test_a_wish_to_stop_is_known_when_its_step_is_fetched(tmp_path):
    step_log = make(tmp_path)
    step_log.push(1, metrics(stop=1.0))
    assert not step_log.stop
    step_log.push(2, metrics())
    assert step_log.stop


class Board:
    def __init__(self):
        self.scalars, self.closed = [], False

    def __call__(self, step, scalars):
        self.scalars.append((step, scalars))

    def close(self):
        self.closed = True


def test_boards_get_the_scalars_of_each_step(tmp_path):
    board = Board()
    step_log = make(tmp_path, boards=(board,))
    step_log.push(1, metrics())
    step_log.flush(eval_loss=3.0)
    step_log.close()
    (step, scalars), closed = board.scalars[0], board.closed
    assert step == 1 and scalars["eval_loss"] == 3.0 and scalars["loss"] == 1.0 and closed


@pytest.mark.parametrize("flag, package", [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_said_before_anything_is_opened(monkeypatch, flag, package):
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    wanted = {"tensorboard": False, "wandb": False} | {flag: True}
    with pytest.raises(ValueError, match=f"--{flag} needs the package {package}"):
        log.check_boards(**wanted)
    log.check_boards(tensorboard=False, wandb=False)


def test_weights_and_biases_gets_the_runs_name_settings_and_scalars(monkeypatch, tmp_path):
    calls = []

    class Run:
        def log(self, scalars, step):
            calls.append((step, scalars))

        def finish(self):
            calls.append("finished")

    fake = types.SimpleNamespace(init=lambda **how: calls.append(how) or Run())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    board = log.WandB(tmp_path / "7b", {"args": {"lr": 0.1}})
    board(3, {"loss": 1.5})
    board.close()
    assert calls[0]["name"] == "7b" and calls[0]["resume"] == "allow"
    assert calls[0]["config"] == {"args": {"lr": 0.1}}
    assert calls[1:] == [(3, {"loss": 1.5}), "finished"]


# --- the picture ---


def curve(n=200):
    lines = [{"step": s, "loss": 5 / s + 1, "lr": 0.1, "loss_share": 1.0} for s in range(1, n + 1)]
    lines[0]["eval_loss_before"] = 6.0
    lines[-1]["eval_loss"] = 2.0
    return lines


def test_the_plot_falls_as_the_loss_does():
    title, *rows, axis = picture.plot(curve())
    assert title.strip() == "loss" and axis.split() == ["1", "200", "steps"]
    marks = [[i for i, c in enumerate(row[9:]) if c != chr(0x2800)] for row in rows]
    assert marks[0][0] == 0 and marks[-1][-1] == picture.WIDTH - 1
    assert all(marks), "no row between the highest and the lowest point is empty"
    assert float(rows[0].split()[0]) > float(rows[-1].split()[0]) > 1
    assert picture.plot(curve(7)) == []


def test_the_page_has_the_curves_and_the_losses_before_and_after(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in curve()))
    assert "curves.html" in picture.draw(tmp_path, "a <run>")
    text = (tmp_path / "curves.html").read_text()
    assert "a &lt;run&gt;" in text and "<run>" not in text
    assert "6.0000 before, 2.0000 after" in text and text.count("<polyline") > 6
    assert "nan" not in text.lower()


def test_a_run_of_one_step_has_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(curve(1)[0]) + "\n")
    assert picture.draw(tmp_path, "run") == [] and not (tmp_path / "curves.html").exists()


def test_the_summary_says_the_held_out_loss_before_and_after(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in curve()))
    assert screen.summary(tmp_path, 200, 65)[-1] == (
        "held-out loss 6.0000 -> 2.0000; 200 steps, 1:05 in all"
    )


def test_replies_are_compact_and_printable():
    lines = screen.replies([("word " * 60, "a\x1b[2Jb\n\n" + "c " * 2000)])
    assert lines[0].startswith("> word") and lines[0].endswith("...") and len(lines[0]) < 100
    assert (
        lines[1] == r"    a\x1b[2Jb" and lines[-1] == "    ..." and len(lines) == 2 + screen.REPLY
    )
