"""A run's own checkpoints: any mesh, kills in the middle of a save, every kind of damage named with
the last whole step.

python -m pytest tests/checkpoint/test_run_checkpoints.py
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from foreign import LLAMA, ROOT, collect, mesh_of
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from checkpoint import load, runs


def state_on(data, tensor, config, seed=0):
    """A state as train.py keeps it, with bfloat16 first moments."""
    mesh, layout = mesh_of(data, tensor), model.make_layout(config, data, tensor)
    spec = sharding.shardings(layout.stacked(config), mesh)
    weights = model.initialise(config, mesh, layout, seed)

    def other(dtype, k):
        return {
            n: jax.device_put(np.asarray(x * k).astype(dtype), spec[n]) for n, x in weights.items()
        }

    return {
        "weights": weights,
        "m": other(ml_dtypes.bfloat16, 0.3),
        "v": other(np.float32, 0.7),
        "step": jax.device_put(jnp.int32(5), NamedSharding(mesh, Spec())),
    }


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def on_host(state):
    return jax.tree.map(np.array, state)


def equal(a, b):
    return jax.tree.all(
        jax.tree.map(
            lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(),
            a,
            b,
        )
    )


def test_a_checkpoint_comes_back_bit_for_bit_on_any_mesh(tmp_path):
    state = state_on(8, 1, LLAMA)
    saver = runs.Saver(tmp_path, 2)
    saver.save(5, state, {"step": 5, "seed": 3})
    saver.wait()
    for data, tensor in ((8, 1), (2, 4), (1, 1)):
        there = like(state_on(data, tensor, LLAMA, 1))
        got, meta = saver.restore(there)
        assert meta == {"step": 5, "seed": 3} and equal(got, state)
        assert jax.tree.all(
            jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), got, there)
        )
    saver.close()


def test_a_state_may_be_donated_as_soon_as_save_returns_and_old_steps_go(tmp_path):
    state = state_on(8, 1, dataclasses.replace(LLAMA, D=256, F=512, L=4))
    step = jax.jit(
        lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state), donate_argnums=0
    )
    saver, kept = runs.Saver(tmp_path, 2), {}
    for s in range(1, 5):
        kept[s] = on_host(state)
        saver.save(s, state, {"step": s})
        state = step(state)  # overwrites the buffers while they are being written
    saver.wait()
    assert saver.steps() == [3, 4]
    for s in (3, 4):
        got, meta = saver.restore(like(state), s)
        assert meta == {"step": s} and equal(got, kept[s])
    with pytest.raises(ValueError, match="has no checkpoint of step 2: there are 3, 4"):
        saver.restore(like(state), 2)
    saver.close()


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import jax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
import ml_dtypes
from checkpoint import runs

state = {{"weights": {{f"w{{i}}": jnp.full((4, 500, 1000), i + 1.0) for i in range(3)}}}}
saver = runs.Saver({run!r}, 3)
saver.save(1, state, {{"step": 1}})
saver.wait()

def die(event, args):  # all that this name stands for is written, and about to get it
    if event == "os.rename" and os.path.basename(os.fspath(args[1])) == {when!r}:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(die)
saver.save(2, state, {{"step": 2}})
saver.wait()
"""


@pytest.mark.parametrize("when", ["state", "2"])
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_whole_one(when, tmp_path):
    folder = tmp_path / "checkpoints"
    child = subprocess.run(
        [sys.executable, "-c", KILLED.format(root=str(ROOT), run=str(tmp_path), when=when)],
        capture_output=True,
        text=True,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert list(folder.glob("2*tmp*/state*")) and not (folder / "2").exists()
    assert runs.steps(tmp_path) == [1]
    saver = runs.Saver(tmp_path, 3)
    assert saver.steps() == [1]
    got, meta = saver.restore(
        {
            "weights": {
                f"w{i}": jax.ShapeDtypeStruct(
                    (4, 500, 1000), jnp.float32, sharding=NamedSharding(mesh_of(1, 1), Spec())
                )
                for i in range(3)
            }
        }
    )
    assert meta == {"step": 1} and all(
        bool((got["weights"][f"w{i}"] == i + 1).all()) for i in range(3)
    )
    saver.save(2, got, {"step": 2})  # where the torn one lies
    saver.close()
    assert saver.steps() == [1, 2] and not list(folder.glob("*tmp*"))


HARMS = {
    "cut": lambda place: [
        os.truncate(p, p.stat().st_size // 20) for p in place.rglob("ocdbt.process_0/d/*")
    ],  # the parts written first are those in use
    "gone": lambda place: shutil.rmtree(place / "state" / "ocdbt.process_0" / "d"),
    "tree": lambda place: [os.truncate(p, p.stat().st_size - 1) for p in place.glob("state/d/*")],
    "manifest": lambda place: os.truncate(place / "state" / "manifest.ocdbt", 20),
    "meta": lambda place: os.truncate(place / "meta" / "metadata", 10),
    "bits": lambda place: [
        p.write_bytes(bytes(b ^ (i % 97 == 50) for i, b in enumerate(p.read_bytes())))
        for p in place.rglob("ocdbt.process_0/d/*")
    ],
}


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A run with checkpoints of steps 1, 2 and 3, the last two of which may be harmed in a copy."""
    path, state = tmp_path_factory.mktemp("run"), state_on(4, 2, LLAMA)
    saver = runs.Saver(path, 5)
    for s in (1, 2, 3):
        saver.save(s, state, {"step": s})
    saver.close()
    (path / "run.json").write_text(json.dumps({"config": dataclasses.asdict(LLAMA)}))
    return path, state


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_refused_with_its_step_and_the_last_whole_one(
    harm, three_checkpoints, tmp_path, capfd
):
    source, state = three_checkpoints
    run = tmp_path / "run"
    shutil.copytree(source, run)
    mesh, layout = mesh_of(4, 2), model.make_layout(LLAMA, 4, 2)
    saver = runs.Saver(run, 5)
    for s, earlier in ((3, 2), (2, 1)):
        HARMS[harm](run / "checkpoints" / str(s))
        capfd.readouterr()
        readers = [
            lambda s=s: saver.restore(like(state), s),
            lambda s=s: load.load_weights(str(run), LLAMA, mesh, layout, step=s),
            lambda s=s: collect(run, LLAMA, step=s),
        ]
        for read in readers:
            with pytest.raises(ValueError) as caught:
                read()
            line = str(caught.value)
            assert (
                line.startswith(
                    f"the checkpoint of step {s} in {run / 'checkpoints' / str(s)} is damaged ("
                )
                and f"step {earlier} is whole" in line
                and "\n" not in line
            ), line
        assert capfd.readouterr().err == ""  # nothing beside the line
    got, meta = saver.restore(like(state), 1)
    assert equal(got, state) and meta == {"step": 1}
    HARMS[harm](run / "checkpoints" / "1")
    with pytest.raises(ValueError, match="no earlier one is whole, start again"):
        saver.restore(like(state), 1)
    saver.close()


@pytest.mark.slow
def test_a_single_flipped_bit_anywhere_in_use_is_found(three_checkpoints, tmp_path):
    source, state = three_checkpoints
    run = tmp_path / "run"
    shutil.copytree(source, run)
    saver, rng, found = runs.Saver(run, 5), np.random.default_rng(0), 0
    file = max(run.glob("checkpoints/3/state/d/*"), key=lambda p: p.stat().st_size)
    files = [file, *run.glob("checkpoints/3/state/ocdbt.process_0/d/*")]
    for file in files:
        content = file.read_bytes()
        for at in rng.integers(0, len(content), 6):
            file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
            try:
                assert equal(saver.restore(like(state), 3)[0], state)  # a byte that no array uses
            except ValueError as error:
                found += "step 3" in str(error) and "step 2 is whole" in str(error)
        file.write_bytes(content)
    assert found > 3
    saver.close()


def test_another_state_than_was_saved_is_not_called_damage(three_checkpoints):
    path, state = three_checkpoints
    saver = runs.Saver(path, 5)
    for other, says in (
        ({n: x for n, x in state.items() if n != "v"}, "v."),
        (state | {"extra": state["v"]}, "extra."),
        (state | {"m": state["v"]}, "bfloat16 (3, 24), expected float32 (3, 24)"),
    ):
        with pytest.raises(ValueError) as caught:
            saver.restore(like(other))
        assert says in str(caught.value) and "another state than this run's" in str(caught.value)
    saver.close()
