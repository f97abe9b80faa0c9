"""sandbox.py: what programs try, at every level that this machine allows; the verdict is on the
program and nothing is left.
"""

import ctypes
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from sandboxes import CHECK, HERE, OWN_USER, RIGHT, ROOT, WRONG

from tasks import sandbox
from tasks.sandbox import LEVELS, Level, Verdict, Worker, WorkerLost, require, run, run_many
from tasks.scores import pass_at_k

pytest_plugins = ["sandboxes"]  # its fixtures
pytestmark = pytest.mark.usefixtures("subreaper")


# --- the plain thing ---


def test_a_right_solution_passes_and_a_wrong_one_fails_with_its_line(worker):
    assert worker.run(RIGHT + CHECK)[:2] == (True, "passed")
    passed, reason, seconds = worker.run(WRONG + CHECK)
    assert not passed and reason == "AssertionError: (line 5: assert f(1) == 2)" and 0 < seconds < 2


@pytest.mark.parametrize(
    "program, reason",
    [
        ("def f(:", "SyntaxError"),
        ("x = '\\ud800'\nraise Exception(x)", "Exception: ?"),
        ("a\0b", "ValueError|SyntaxError"),
        ("f()", "NameError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import numpy", "ModuleNotFoundError"),
        ("(" * 10000 + ")" * 10000, "SyntaxError|MemoryError|RecursionError"),
    ],
)
def test_a_broken_program_fails_with_its_exception(worker, program, reason):
    verdict = worker.run(program)
    assert not verdict.passed and any(verdict.reason.startswith(r) for r in reason.split("|")), (
        verdict
    )


def test_a_program_starts_with_nothing_of_ours_and_can_import_the_standard_library(
    worker, monkeypatch
):
    monkeypatch.setenv("SECRET", "x")
    program = (
        "import os, sys, json, ctypes, asyncio.events, xml.etree.ElementTree, sqlite3, "
        "threading, multiprocessing\n"
        "assert set(os.environ) == {'HOME', 'USER'} and os.listdir() == [] and sys.argv == ['']\n"
        "open('a', 'w').write('b'); assert open('a').read() == 'b'; os.mkdir('c'); "
        "os.rename('a', 'c/a')\n"
        "t = threading.Thread(target=print); t.start(); t.join()\n"
        "main = sys.modules['__main__']; assert not hasattr(main, 'run') and not "
        "hasattr(main, 'subprocess')\n"
        "assert __name__ == 'builtins'\n"
        "assert not {n.split('.')[0] for n in sys.modules} & {'tasks', 'host', 'numpy'}"
    )  # as where upstream executes it with empty globals
    for _ in range(2):  # and nothing of the program before
        assert worker.run(program, timeout=10).passed, worker.run(program, timeout=10)


ORDINARY = {
    "asyncio": "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
    "a pair of sockets": "import socket\na, b = socket.socketpair()\na.send(b'x')\n"
    "assert b.recv(1) == b'x'",
    "the home": "import pathlib, getpass\nassert pathlib.Path.home().is_dir()\ngetpass.getuser()",
    "packages": "import importlib.resources, json.tool, xml.dom.minidom, zoneinfo",
    "an absolute path": "import os\nopen(os.path.abspath('x'), 'w').write('y')",
}


@pytest.mark.parametrize("what", ORDINARY)
def test_a_right_solution_may_use_what_reaches_nobody(worker, what):
    assert worker.run(ORDINARY[what], timeout=10).passed, worker.run(ORDINARY[what], timeout=10)


def test_a_pair_of_sockets_is_no_way_to_others(contained):
    program = """
import socket
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try:
        socket.socketpair(socket.AF_UNIX, kind)
    except PermissionError:
        continue
    raise Exception(kind)
a, b = socket.socketpair()
for call in (lambda: a.connect("/run/x"), lambda: a.bind("y"), lambda: a.listen(), a.accept):
    try:
        call()
    except PermissionError:
        continue
    raise Exception(call)
"""
    assert contained.run(program).passed, contained.run(program)


def test_a_worker_serves_a_caller_with_more_than_a_thousand_open_files(nothing_left):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("this system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(opened) > 1024 and run("pass", level=HERE[0]).passed
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("level", [n for n in HERE if n != "limits" or n not in OWN_USER])
def test_a_program_does_not_outlive_its_worker_by_giving_its_signal_back(level, nothing_left):
    program = """
import ctypes, os, signal
ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
try:
    os.fork()
except OSError:
    pass
while True: pass
"""
    with Worker(level) as worker:
        threading.Timer(0.5, os.kill, (worker.process.pid, signal.SIGKILL)).start()
        with pytest.raises(WorkerLost):
            worker.run(program, timeout=60)


def test_a_worker_that_cannot_be_started_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sandbox.sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(OSError):
        Worker(HERE[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("limits" not in HERE, reason="needs a level at which processes can be started")
def test_a_process_whose_name_is_no_text_is_ended_like_any_other(nothing_left):
    program = """
import ctypes, os, time
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).prctl(15, b"\\xff\\xfe) (", 0, 0, 0)
    time.sleep(60)
"""
    with Worker("limits") as worker:
        for _ in range(2):
            assert worker.run(program).passed


def test_shared_memory_of_others_is_out_of_reach(contained):
    libc = ctypes.CDLL(None, use_errno=True)
    segment = libc.shmget(0, 4096, 0o1666)
    queue = libc.msgget(0, 0o1666)
    if min(segment, queue) < 0:
        pytest.skip("no System V shared memory here")
    try:
        program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
assert libc.shmat({segment}, None, 0) == ctypes.c_void_p(-1).value and ctypes.get_errno() == 1
for call in (lambda: libc.shmctl({segment}, 0, None), lambda: libc.msgctl({queue}, 0, None),
             lambda: libc.msgsnd({queue}, b"12345678x", 1, 2048), lambda: libc.semctl(0, 0, 12, 0)):
    assert call() == -1 and ctypes.get_errno() == 1, ctypes.get_errno()
"""
        assert contained.run(program).passed, contained.run(program)
    finally:
        libc.shmctl(segment, 0, None)
        libc.msgctl(queue, 0, None)


@pytest.mark.skipif("limits" not in HERE, reason="needs the level limits")
def test_no_folder_is_handed_to_a_program_that_it_could_look_around_from():
    program = """
import os, stat
for fd in range(64):
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        continue
    assert not stat.S_ISDIR(mode), os.readlink(f"/proc/self/fd/{fd}")
import xml.dom.minidom, importlib.resources
"""
    verdict = run(program, level="limits")
    assert verdict.passed, verdict


def test_the_order_of_sets_does_not_differ_between_workers():
    program = "raise Exception(''.join({chr(97 + i) * 3 for i in range(20)}))"
    assert len({run(program, level=HERE[0]).reason for _ in range(3)}) == 1


# --- many programs ---


def test_the_verdicts_are_in_order_and_the_same_at_any_number_of_workers():
    programs = [RIGHT + CHECK if i % 3 else WRONG + CHECK for i in range(24)] + [
        "while True: pass",
        "raise Exception('last')",
    ]
    told = []
    results = [
        [
            v[:2]
            for v in run_many(
                programs,
                workers=n,
                timeout=0.5,
                progress=lambda done, total: told.append((done, total)),
            )
        ]
        for n in (1, 2, 5)
    ]
    assert results[0] == results[1] == results[2]
    assert [passed for passed, _ in results[0]] == [i % 3 != 0 for i in range(24)] + [False, False]
    assert results[0][-2:] == [
        (False, "timed out"),
        (False, "Exception: last (line 1: raise Exception('last'))"),
    ]
    assert told[-1] == (27, 27) and (26, 26) in told  # the one that timed out was run again
    assert run_many([]) == []


class FakeWorker:
    """Times out on 'slow' unless alone, loses itself on 'deadly' the first time."""

    running, lost, runs = set(), set(), []

    def __init__(self, level):
        pass

    def run(self, program, timeout, memory):
        FakeWorker.runs.append(program)
        FakeWorker.running.add(threading.get_ident())
        if program.startswith("deadly") and (
            program == "deadly always" or program not in FakeWorker.lost
        ):
            FakeWorker.lost.add(program)
            raise WorkerLost("it ended")
        busy = threading.current_thread() is not threading.main_thread()
        if program == "stop" and busy:
            raise OSError("the isolation failed")
        return (
            Verdict(False, "timed out", timeout)
            if program == "endless" or program == "slow" and busy
            else Verdict(True, "passed", 0.1)
        )

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_what_timed_out_or_lost_its_worker_is_run_once_more_alone(monkeypatch):
    monkeypatch.setattr(sandbox, "Worker", FakeWorker)
    FakeWorker.runs.clear(), FakeWorker.lost.clear()
    verdicts = run_many(
        ["slow", "fine", "endless", "deadly", "deadly always"], workers=2, level="limits"
    )
    assert [v.passed for v in verdicts] == [True, True, False, True, False]
    assert verdicts[2].timed_out and verdicts[4].reason == "took its worker down: it ended"
    assert sorted(FakeWorker.runs) == sorted(
        ["slow", "fine", "endless", "deadly", "deadly always"]
        + ["slow", "endless", "deadly", "deadly always"]
    )


def test_isolation_that_fails_midway_stops_everything_and_gives_no_verdict(monkeypatch):
    monkeypatch.setattr(sandbox, "Worker", FakeWorker)
    with pytest.raises(OSError, match="the isolation failed"):
        run_many(["fine", "stop", "fine"], workers=2, level="limits")


@pytest.mark.parametrize("level", HERE)
def test_a_killed_worker_takes_its_program_with_it_and_is_told_apart_from_a_verdict(
    level, nothing_left
):
    with Worker(level) as worker:
        threading.Timer(0.2, os.kill, (worker.process.pid, signal.SIGKILL)).start()
        with pytest.raises(WorkerLost):
            worker.run("while True: pass", timeout=60)


@pytest.mark.parametrize("level", HERE)
def test_a_killed_caller_leaves_nothing_running_and_no_folder(level, nothing_left, tmp_path):
    code = (
        "import sys, tempfile; sys.path.insert(0, sys.argv[1]); tempfile.tempdir = "
        "sys.argv[2]; import sandbox\n"
        "with sandbox.Worker(sys.argv[3]) as worker: print(1, flush=True); "
        "worker.run('while True: pass', timeout=60)"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, ROOT, str(tmp_path), level], stdout=subprocess.PIPE
    )
    assert caller.stdout.readline() == b"1\n"
    time.sleep(0.1)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 5
    while list(tmp_path.iterdir()):
        assert time.monotonic() < deadline, list(tmp_path.iterdir())
        time.sleep(0.01)


# --- levels ---


def test_a_minimum_that_the_machine_does_not_reach_is_refused_in_one_line(monkeypatch):
    assert require("limits").name == HERE[-1] and "Not contained" in str(require("limits"))
    monkeypatch.setattr(
        sandbox,
        "probe",
        lambda: Level(
            "landlock", "your own user", True, {"namespaces": "unshare: Operation not permitted"}
        ),
    )
    assert (
        require("landlock").name == "landlock"
        and "namespaces does not work here: unshare: Operation not permitted."
        in str(require("landlock"))
    )
    with pytest.raises(
        ValueError,
        match=(
            r"--isolation namespaces does not work here \(unshare: Operation not "
            r"permitted\), the strongest is landlock: .*--isolation landlock$"
        ),
    ):
        require("namespaces")
    with pytest.raises(
        ValueError, match="--isolation docker is not a level: use limits, landlock, namespaces"
    ):
        require("docker")


def test_a_level_that_cannot_be_entered_or_does_not_hold_says_why_and_leaves_nothing(
    monkeypatch, nothing_left
):
    monkeypatch.setattr(sandbox, "available", sandbox.available.__wrapped__)  # not remembered
    monkeypatch.setattr(sandbox, "CANARY", "raise Exception('/home can be read')")
    for name in set(HERE) - {"limits"}:
        assert sandbox.available(name) == (
            None,
            (
                "it does not hold: Exception: /home can be read (line 1: raise Exception('/home "
                "can be read'))"
            ),
        )
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    assert sandbox.available("limits") == (None, "its worker did not start: it ended")
    assert sandbox.main([]) == 2


def test_the_command_prints_every_level_with_what_it_does_not_contain(capsys):
    assert sandbox.main([]) == 0
    printed = capsys.readouterr().out
    assert (
        all(contains in printed and lacks in printed for contains, lacks in LEVELS.values())
        and sandbox.REMAINS in printed
        and HERE[-1] in printed
    )


# --- real programs ---


def humaneval(data_dir):
    with gzip.open(data_dir / "humaneval" / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("level", HERE)
def test_all_164_canonical_solutions_pass(data_dir, level):
    problems = humaneval(data_dir)
    verdicts = run_many(
        [
            p["prompt"]
            + p["canonical_solution"]
            + "\n"
            + p["test"]
            + "\n"
            + f"check({p['entry_point']})"
            for p in problems
        ],
        level=level,
    )
    assert (
        len(verdicts) == 164
        and [
            (p["task_id"], v.reason)
            for p, v in zip(problems, verdicts, strict=False)
            if not v.passed
        ]
        == []
    )


def test_an_empty_body_passes_none_of_the_164(data_dir):
    verdicts = run_many(
        [
            p["prompt"] + "    pass\n" + p["test"] + "\n" + f"check({p['entry_point']})"
            for p in humaneval(data_dir)
        ]
    )
    assert not any(v.passed for v in verdicts)


def test_upstreams_example_samples_give_one_half(data_dir):
    [problem] = [
        json.loads(line) for line in open(data_dir / "humaneval" / "example_problem.jsonl")
    ]
    samples = [
        json.loads(line)["completion"]
        for line in open(data_dir / "humaneval" / "example_samples.jsonl")
    ]
    verdicts = run_many(
        [
            problem["prompt"]
            + s
            + "\n"
            + problem["test"]
            + "\n"
            + f"check({problem['entry_point']})"
            for s in samples
        ],
        timeout=1.0,
    )
    assert [v.passed for v in verdicts] == [False, False, False, True, True, True] and verdicts[
        1
    ].timed_out
    assert pass_at_k(len(verdicts), sum(v.passed for v in verdicts), 1) == 0.5
