"""Workers of every isolation level of this machine, and what tells that a program left nothing."""

import os
import pathlib
import tempfile
import time

import pytest

from tasks import isolation, sandbox, syscalls
from tasks.sandbox import LEVELS, Worker

HERE = [name for name in LEVELS if sandbox.available(name)[0]]

CONTAINED = [name for name in HERE if name != "limits"] or HERE[-1:]

ROOT = os.path.dirname(os.path.abspath(sandbox.__file__))

OWN_USER = [name for name in HERE if sandbox.available(name)[0].user == "your own user"]

FILTERED = {name: sandbox.available(name)[0].filtered for name in HERE}

WRONG = "def f(x):\n    return x\n"

RIGHT = "def f(x):\n    return x + 1\n"

CHECK = "\ndef check(f):\n    assert f(1) == 2\n    assert f(5) == 6\n\ncheck(f)"


@pytest.fixture(scope="module")
def subreaper():
    """Whatever a program leaves behind, however it hides, becomes a child of this process, where it
    is seen.
    """
    if isolation.LINUX:
        syscalls.call("prctl", syscalls.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    if isolation.LINUX:
        syscalls.call("prctl", syscalls.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def nothing_left():
    before = set(isolation._descendants())
    yield
    deadline = time.monotonic() + 5
    while left := set(isolation._descendants()) - before:
        for pid in left:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.01)


@pytest.fixture
def victim():
    """A folder with a file in it, open to everybody so that no permission does the sandbox's work;
    in the end as before.
    """
    with tempfile.TemporaryDirectory() as above:
        folder = pathlib.Path(above) / "home"
        folder.mkdir()
        (folder / "file").write_text("precious")
        for path, mode in ((above, 0o755), (folder, 0o777), (folder / "file", 0o666)):
            os.chmod(path, mode)

        def state():
            return [
                (str(p), os.stat(p).st_mode, os.stat(p).st_mtime_ns, p.is_dir() or p.read_text())
                for p in (folder, *sorted(folder.iterdir()))
            ]

        before = state()
        yield folder
        assert state() == before


@pytest.fixture(scope="module", params=HERE)
def worker(request):
    """One worker for all tests of a level: that it goes on working is part of what is tested."""
    with Worker(request.param) as worker:
        worker.level = request.param
        yield worker
        assert worker.run("pass").passed
        assert not os.path.isdir(worker.folder) or set(os.listdir(worker.folder)) <= {"library"}


@pytest.fixture(scope="module", params=CONTAINED)
def contained(request):
    """A worker of a level that also keeps files and the network away."""
    with Worker(request.param) as worker:
        worker.level = request.param
        yield worker
        assert worker.run("pass").passed
