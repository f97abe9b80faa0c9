"""Several processes: who is missing is said, and what differs is named before the first step.

python -m pytest tests/training/test_processes.py
"""

import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from training import flags, processes


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_all_go_when_all_have_come():
    at, gone = f"127.0.0.1:{free_port()}", []

    def come(i):
        processes.gather(at, 3, i)
        gone.append(i)

    threads = [threading.Thread(target=come, args=(i,)) for i in (2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(1.0)
    assert gone == [], "process 1 has not come"
    come(1)
    for thread in threads:
        thread.join(10)
    assert sorted(gone) == [0, 1, 2]


def test_who_is_missing_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(processes, "WAIT", 2.0)
    monkeypatch.setattr(processes, "EVERY", 0.5)
    at = f"127.0.0.1:{free_port()}"
    present = threading.Thread(
        target=lambda: pytest.raises(ValueError, processes.gather, at, 4, 2), daemon=True
    )
    present.start()
    with pytest.raises(ValueError, match=r"process 1, 3 of 4 did not come to port") as error:
        processes.gather(at, 4, 0)
    assert "\n" not in str(error.value)
    assert "waiting for process 1, 3 of 4" in capsys.readouterr().err
    present.join(10)


def test_a_process_0_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(processes, "WAIT", 0.5)
    with pytest.raises(ValueError, match="process 0 did not answer at --coordinator 127.0.0.1:"):
        processes.gather(f"127.0.0.1:{free_port()}", 2, 1)


def test_strangers_at_the_port_do_not_count():
    port, done = free_port(), threading.Event()

    def lead():
        processes.gather(f"127.0.0.1:{port}", 2, 0)
        done.set()

    thread = threading.Thread(target=lead)
    thread.start()
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            break
        except OSError:
            continue
    assert not done.wait(0.5)
    processes.gather(f"127.0.0.1:{port}", 2, 1)
    thread.join(10)
    assert done.is_set()


@pytest.mark.parametrize("at", ["node0", "node0:", ":1", "node0:x", "node0:99999"])
def test_a_coordinator_that_is_no_address_is_refused(at):
    with pytest.raises(ValueError, match="is not HOST:PORT: use e.g. node0:1234"):
        processes.gather(at, 2, 0)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--processes", "2"], "--processes without --coordinator: name where process 0 listens"),
        (["--process", "0"], "--process without --coordinator"),
        (["--coordinator", "auto"], "--coordinator without --out: name the folder"),
    ],
)
def test_half_a_description_of_several_processes_is_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        flags.resolve(flags.parser().parse_args(argv))


def test_what_differs_between_processes_is_named():
    digests = np.zeros((3, 2, 2), np.uint32)
    assert processes.differing(["--seed", "steps"], digests) == ""
    digests[2, 0] = 1
    assert processes.differing(["--seed", "steps"], digests) == "--seed (process 2 from process 0)"


def test_two_processes_of_different_seeds_are_refused_before_the_first_step(tmp_path):
    command = [sys.executable, "train.py", "--steps", "2", "--mesh", "2x1", "--out"]
    command += [tmp_path / "run", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [*map(str, command), "--process", str(i), "--seed", str(i), "--save-every", "1"],
            cwd=flags.ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    texts = [p.communicate(timeout=300) for p in both]
    assert [p.returncode for p in both] == [2, 2], texts
    for out, err in texts:
        last = err.strip().splitlines()[-1]
        assert "the processes of this run differ in --seed (process 1 from process 0)" in last
        assert "Traceback" not in err and "step " not in out
    assert not (tmp_path / "run").exists()
