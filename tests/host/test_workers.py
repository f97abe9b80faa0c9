"""The ordered pool of worker processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from host import workers

factor = 1


def times(n):
    time.sleep(0.02 * (n % 3))
    return os.getpid(), n * factor


def set_factor(value):
    global factor
    factor = value


def end(n):
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(n):
    raise ValueError(f"job {n}")


@pytest.mark.parametrize("n", [1, 3])
def test_results_come_in_the_order_of_the_jobs(n):
    taken = []
    jobs = (taken.append(i) or i for i in range(40))
    results = workers.ordered(times, jobs, n, set_factor, (7,))
    first = next(results)
    assert first[1] == 0 and len(taken) <= 3 * n + 1
    rest = [first, *results]
    assert [value for _, value in rest] == [7 * i for i in range(40)]
    pids = {pid for pid, _ in rest}
    assert pids == {os.getpid()} if n == 1 else os.getpid() not in pids and len(pids) <= n
    set_factor(1)


def test_a_killed_worker_is_one_line_and_an_error_is_the_jobs_own():
    with pytest.raises(ValueError, match="killed.*use --workers 1"):
        list(workers.ordered(end, range(9), 2))
    with pytest.raises(ValueError, match="job 0"):
        list(workers.ordered(refuse, range(9), 2))


# the child of a child, deep in one call of C that lets no other thread run
STUCK = """
import os, re, sys
from host import workers
def stuck(path):
    with open(path, "a") as f: f.write(f"{os.getpid()}\\n")
    re.match("(a*)*b", "a" * 40)
if __name__ == "__main__":
    list(workers.ordered(stuck, [sys.argv[1]] * 4, 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
def test_workers_end_with_their_parent(tmp_path):
    script, pids = tmp_path / "stuck.py", tmp_path / "pids"
    script.write_text(STUCK)
    root = pathlib.Path(workers.__file__).parents[1]
    command = [sys.executable, str(script), str(pids)]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(root)})
    deadline = time.monotonic() + 60
    while not pids.exists() or pids.read_text().count("\n") < 2:
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    alive = [int(pid) for pid in pids.read_text().split()]
    while alive:
        assert time.monotonic() < deadline, alive
        alive = [pid for pid in alive if running(pid)]
        time.sleep(0.05)


def running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
