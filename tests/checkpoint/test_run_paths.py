"""A run's checkpoints on odd paths and full disks: read back, or the user is told.

python -m pytest tests/checkpoint/test_run_paths.py
"""

import shutil

import jax
import jax.numpy as jnp
import pytest

from checkpoint import runs
from training import run

STATE = {"weights": {"w": jnp.arange(12.0).reshape(3, 4)}, "step": jnp.int32(3)}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE)


@pytest.mark.parametrize("name", ["a#b", "a%b", "a%20b", "a b", "ä'\"{}&;~:$HOME", "new\nline"])
def test_what_was_saved_below_an_odd_path_is_read_back(tmp_path, name):
    out = tmp_path / name
    run.check_place(out)
    saver = runs.Saver(out, 1)
    for step in (1, 2):
        saver.save(step, STATE, {"step": step})
    saver.confirm(2)
    state, meta = saver.restore(LIKE)
    saver.close()
    assert meta == {"step": 2} and (state["weights"]["w"] == STATE["weights"]["w"]).all()


@pytest.mark.parametrize("name", ["a[b]", "a[0-9]/run", "a*b", "a?b", "a\\b"])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(ValueError, match=r"Orbax cannot write below a path with .*: name another"):
        run.check_place(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_save_whose_arrays_are_not_there_is_not_said_to_be_saved(tmp_path):
    saver = runs.Saver(tmp_path / "run", 1)
    saver.save(1, STATE, {"step": 1})
    saver.wait()
    shutil.rmtree(runs.folder_of(tmp_path / "run", 1) / "state")
    with pytest.raises(ValueError, match="checkpoint of step 1 .* is damaged"):
        saver.confirm(1)
    saver.close()


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(28, "No space left on device"), "no space left on the disk"),
        (ValueError("RESOURCE_EXHAUSTED:\n [ENOSPC No space left]"), "no space left on the disk"),
        (RuntimeError("the\nserver went away"), "the server went away"),
    ],
)
def test_a_write_that_fails_is_one_line_with_the_step_that_is_whole(
    tmp_path, monkeypatch, error, reason
):
    saver = runs.Saver(tmp_path, 2)
    saver.save(7, STATE, {"step": 7})
    saver.wait()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(saver.manager, "save", fail)
    with pytest.raises(ValueError) as said:
        saver.save(8, STATE, {"step": 8})
    monkeypatch.undo()
    saver.close()
    text = str(said.value)
    assert reason in text and "goes on after step 7" in text and "\n" not in text


def test_the_checkpoint_of_least_held_out_loss_stays_beside_the_last(tmp_path):
    losses = {1: 3.0, 2: 1.5, 3: 2.0, 4: None, 5: 1.9}
    saver = runs.Saver(tmp_path, 1, best=True)
    for step in (1, 2, 3):
        saver.save(step, STATE, {"step": step, "eval_loss": losses[step]})
    saver.close()
    assert runs.steps(tmp_path) == [2, 3]
    saver = runs.Saver(tmp_path, 1, best=True)  # a start later the losses are read back
    for step in (4, 5):
        saver.save(step, STATE, {"step": step, "eval_loss": losses[step]})
    saver.close()
    assert runs.steps(tmp_path) == [2, 5]
    saver = runs.Saver(tmp_path, 1)
    saver.save(6, STATE, {"step": 6})
    saver.close()
    assert runs.steps(tmp_path) == [6]
