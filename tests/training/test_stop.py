"""Signals: at once while nothing is lost, else after the step; a thread answers for compiled code.

python -m pytest tests/training/test_stop.py
"""

import signal
import subprocess
import sys
import time

import pytest

from training import flags

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from training.stop import signals
try:
    with signals() as stop:
        {phase}
        print("ready", flush=True)
        {work}
except KeyboardInterrupt:
    print("interrupted", stop.number, flush=True)
"""
LOOP = (
    "end = time.monotonic() + {n}\n        while time.monotonic() < end and not stop.number: pass"
)


def start(work, phase="pass"):
    code = PROGRAM.format(root=str(flags.ROOT), work=work, phase=phase)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_a_signal_is_answered_by_cleaning_up(number):
    process = start("time.sleep(20)")
    begin = time.monotonic()
    for _ in range(5):
        process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == (f"interrupted {number}\n", "", 0)
    assert time.monotonic() - begin < 5


def test_a_main_thread_that_cannot_answer_is_answered_for():
    """A C function that goes on after a signal, as compiling does: read() of a pipe, restarted."""
    work = (
        "import ctypes, os, signal\n"
        "        signal.siginterrupt(signal.SIGINT, False)\n"
        "        buffer, end = ctypes.create_string_buffer(1), os.pipe()[0]\n"
        "        ctypes.CDLL(None).read(end, buffer, 1)"
    )
    process = start(work)
    time.sleep(0.3)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "train.py: interrupted\n" and out == ""
    assert time.monotonic() - begin < 5


def test_within_the_loop_a_signal_asks_and_five_of_them_ask_once():
    process = start(LOOP.format(n=20) + "\n        print(stop.number)", "stop.after_step()")
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == (f"{int(signal.SIGTERM)}\n", 0)
    assert err.count("stopping after this step") == 1 and "Traceback" not in err


def test_a_second_ctrl_c_leaves_at_once():
    process = start("time.sleep(30)", "stop.after_step()")
    process.send_signal(signal.SIGINT)
    time.sleep(1.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "left at once: the same command goes on" in err
