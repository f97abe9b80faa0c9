"""train.py as a process of its own, for the tests of the command, and one run that they share."""

import fcntl
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments, home, **kwargs):
    env = os.environ | {"HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(*arguments, home, code=0):
    process = command(*arguments, home=home)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


STEPS = 80  # long enough to be killed ten times on the way

SMALL = [
    "--data",
    ROOT / "samples" / "dialogues.jsonl",
    "--model",
    "tiny",
    "--block",
    "32",
    "--batch",
    "8",
    "--dtype",
    "float32",
    "--lr",
    "0.01",
    "--warmup",
    "4",
    "--eval-fraction",
    "0",
]


STRAIGHT = ["--mesh", "2x1", "--steps", STEPS, "--save-every", 4, "--log-every", 1, "--verbose"]


@pytest.fixture(scope="session")
def user_home(tmp_path_factory):
    """A home of the tests' own, so that the compilation cache of one run serves the next; the
    workers of pytest -n share it.
    """
    top = tmp_path_factory.getbasetemp()
    top = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    (top / "home").mkdir(exist_ok=True)
    return top / "home"


@pytest.fixture(scope="session")
def devices():
    """The devices of this process, before a command run in it asks for fewer."""
    return jax.devices()


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def straight(user_home):
    """(out, what it said) of one run that nobody disturbs, a checkpoint every 4 steps.

    The workers of pytest -n share it.
    """
    out, said = user_home.parent / "straight" / "run", user_home.parent / "straight.txt"
    with open(user_home.parent / "straight.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            said.write_text(finish(*SMALL, *STRAIGHT, "--out", out, home=user_home))
    return out, said.read_text()
