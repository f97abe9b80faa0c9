"""sandbox.py: programs that attack time and space, others and the verdict; nothing comes of it."""

import os
import socket
import sys

import pytest
from sandboxes import CHECK, FILTERED, HERE, OWN_USER, RIGHT, ROOT, WRONG

from tasks import sandbox
from tasks.sandbox import Worker

pytest_plugins = ["sandboxes"]  # its fixtures
pytestmark = pytest.mark.usefixtures("subreaper")


# --- attacks: time and space ---


def test_an_endless_loop_times_out(worker, nothing_left):
    for program in (
        "while True: pass",
        "import time\ntime.sleep(100)",
        "import signal, os\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        (
            "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\nwhile True: pass"
        ),
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ):
        verdict = worker.run(program, timeout=0.15)
        assert verdict.timed_out and not verdict.passed and 0.15 <= verdict.seconds < 2, (
            program,
            verdict,
        )


def test_a_fork_bomb_ends(worker, nothing_left):
    programs = [
        "import os\nwhile True: os.fork()",
        (
            "import os\nwhile True:\n    try:\n        os.fork()\n        os.setsid()\n"
            "    except OSError: pass"
        ),
        (
            "import os\nwhile True:\n    try:\n        if os.fork() == 0:\n"
            "            os.setsid()\n            if os.fork(): os._exit(0)\n"
            "    except OSError: pass"
        ),
        (
            "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable or 'sh', "
            "'-c', 'sleep 100'], start_new_session=True)"
        ),
    ]
    for program in programs:
        assert not worker.run(program, timeout=0.3).passed
        if FILTERED[worker.level]:
            assert "PermissionError" in worker.run("import os\nos.fork()").reason
    assert worker.run(RIGHT + CHECK).passed


def test_what_a_program_leaves_in_another_session_is_ended_with_it(worker, nothing_left, tmp_path):
    program = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        time.sleep(100)\n    os._exit(0)\nos.wait()"
    )
    verdict = worker.run(program)
    assert verdict.passed != FILTERED[worker.level], (
        verdict
    )  # with the filter there is no second process at all


def test_ten_gigabytes_of_memory_are_refused(worker, nothing_left):
    for program in (
        "x = bytearray(10 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 24))",
        "import mmap\nx = mmap.mmap(-1, 10 << 30)",
        "x = 'a' * (10 << 30)",
    ):
        verdict = worker.run(program, timeout=10, memory=1 << 28)
        assert not verdict.passed and (
            "MemoryError" in verdict.reason or "Cannot allocate" in verdict.reason
        ), verdict
    if FILTERED[worker.level]:  # memory that is not counted as the process's
        for program in (
            "import os\nos.memfd_create('x')",
            (
                "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
                "assert l.shmget(0, 1 << 20, 0o1600) >= 0, ctypes.get_errno()"
            ),
        ):
            assert not worker.run(program).passed


def test_a_file_of_ten_gigabytes_is_refused(worker, nothing_left):
    for program in (
        "f = open('f', 'wb')\nwhile True: f.write(bytes(1 << 22))",
        "open('f', 'wb').truncate(10 << 30)",
        "import os\nos.posix_fallocate(os.open('f', os.O_CREAT | os.O_RDWR), 0, 10 << 30)",
    ):
        verdict = worker.run(program, timeout=10)
        assert not verdict.passed and "OSError" in verdict.reason, verdict
    if worker.level == "namespaces":  # the folder as a whole is limited too
        assert (
            "No space left"
            in worker.run(
                (
                    "for i in range(20):\n    f = open(str(i), 'wb'); f.write(bytes(8 << 20)); "
                    "f.close()"
                ),
                timeout=10,
            ).reason
        )
        assert (
            "No space left"
            in worker.run("for i in range(10000): open(str(i), 'w').close()", timeout=10).reason
        )


def test_endless_output_goes_nowhere(worker, nothing_left, capfd):
    for program in (
        "while True: print('x' * 10000)",
        "import sys\nwhile True: sys.stderr.write('x' * 10000)",
        "import os\nwhile True: os.write(1, b'x' * 10000); os.write(2, b'x' * 10000)",
    ):
        assert worker.run(program, timeout=0.15).timed_out
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("level", HERE)
def test_the_temporary_folder_is_removed_whatever_is_in_it(level, nothing_left, monkeypatch):
    # deeper than recursion goes
    deep = (
        "import os\nfor i in range(1200):\n    os.mkdir('d'); os.chdir('d')\nopen('f', 'w').close()"
    )
    locked = (
        "import os\nos.mkdir('a'); os.mkdir('a/b'); open('a/b/f', 'w').close(); "
        "os.symlink('/', 'a/s')\n"
        "try:\n    os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)\n"
        "except PermissionError: pass"
    )
    if os.path.isdir("/dev/shm"):  # removing folders takes milliseconds each on some disks
        monkeypatch.setattr("tempfile.tempdir", "/dev/shm")
    with Worker(level) as worker:
        assert worker.run(deep, timeout=20).passed and worker.run(locked).passed
        assert not os.path.isdir(worker.folder) or set(os.listdir(worker.folder)) <= {"library"}
    assert not os.path.exists(worker.folder)


def test_threads_that_never_end_do_not_keep_a_program_alive(worker, nothing_left):
    threads = (
        "import threading\ndef spin():\n    while True: pass\n"
        "for _ in range(3): threading.Thread(target=spin).start()\n"
    )
    verdict = worker.run(RIGHT + threads + CHECK)
    assert verdict.passed and verdict.seconds < 2.5
    assert not worker.run(WRONG + threads + CHECK).passed
    assert not worker.run(
        (
            "import threading, time\nwhile True: threading.Thread(target=time.sleep, "
            "args=(100,)).start()"
        ),
        timeout=5,
        memory=1 << 28,
    ).passed


# --- attacks: on other processes, files, the network ---


@pytest.mark.parametrize(
    "call",
    [
        "os.kill(os.getppid(), 9)",
        "os.killpg(0, 9)",
        "os.kill(0, 9)",
        "os.kill(-1, 9)",
        "os.kill(os.getppid(), signal.SIGSTOP)",
        "[os.kill(p, 9) for p in range(2, 70000)]",
    ],
)
def test_a_program_cannot_signal_its_parent_or_anybody_else(worker, nothing_left, call):
    if worker.level == "limits" and worker.level in OWN_USER and call != "os.killpg(0, 9)":
        # not contained there, as the level says: it would end the user's own processes, this test
        # among them
        return
    program = (
        f"import os, signal\nfor _ in range(3):\n    try: {call}\n    except OSError: pass\n"
        "while True: pass"
    )
    verdict = worker.run(program, timeout=0.2)
    assert not verdict.passed and (verdict.timed_out or "signal 9" in verdict.reason)
    assert worker.process.poll() is None and worker.run(RIGHT + CHECK).passed


@pytest.mark.parametrize(
    "call",
    [
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
        "fcntl.fcntl(0, 10, 9)",
        "resource.prlimit(os.getppid() or 1 << 20, resource.RLIMIT_CPU, (1, 1))",
        "os.sched_setaffinity(os.getppid() or 1 << 20, {0})",
    ],
)
def test_a_program_cannot_change_another_process_in_round_about_ways(contained, call):
    verdict = contained.run(f"import os, fcntl, resource\n{call}")
    assert not verdict.passed and (
        "PermissionError" in verdict.reason if FILTERED[contained.level] else True
    ), verdict


def test_the_home_and_the_checkout_stay_as_they_are(contained, nothing_left, victim):
    reach = [
        f"import shutil\nshutil.rmtree({str(victim)!r})",
        f"open({str(victim / 'file')!r}, 'w')",
        f"open({str(victim / 'new')!r}, 'w')",
        f"import os\nos.open({str(victim / 'file')!r}, os.O_TRUNC)",
        f"import os\nos.truncate({str(victim / 'file')!r}, 0)",
        f"import os\nos.chmod({str(victim)!r}, 0)",
        f"import os\nos.utime({str(victim / 'file')!r})",
        f"import os\nos.rename({str(victim / 'file')!r}, 'x')",
        f"import os\nos.link({str(victim / 'file')!r}, 'x')",
        f"open({str(victim / 'file')!r}).read()",
        f"import os\nos.symlink({str(victim)!r}, 's'); open('s/new', 'w')",
        "open('/new', 'w')",
        f"open({os.path.join(ROOT, '.sandbox-was-here')!r}, 'w')",
        "open('../../new', 'w')",
        "import os\nos.listdir('/home')",
        "open('/etc/passwd')",
        "import os\nopen(os.__file__, 'a')",
        "open('/proc/self/mem')" if contained.level == "namespaces" else "open('/proc/1/cmdline')",
        "open('/dev/shm/new', 'w')",
        "open('/var/tmp/new', 'w')",
    ]
    if os.path.exists("/dev/kmsg"):
        reach.append("open('/dev/kmsg')")
    for program in reach:
        verdict = contained.run(program)
        assert not verdict.passed and "Error" in verdict.reason, (program, verdict)
    assert not os.path.exists(os.path.join(ROOT, ".sandbox-was-here"))


def test_an_in_process_guard_undone_through_subclasses_reaches_nothing(
    contained, nothing_left, victim
):
    undo = (
        "import os\nos.system = None\n"
        "w = [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == "
        "'_wrap_close'][0]\n"
        f"try:\n    w.__init__.__globals__['popen']('rm -rf {victim}').read()\n"
        "except OSError: pass\n"
        f"try:\n    w.__init__.__globals__['unlink']({str(victim / 'file')!r})\n"
        "except OSError: pass\n"
    )
    assert not contained.run(undo + WRONG + CHECK).passed
    assert contained.run(undo + RIGHT + CHECK).passed


def test_nothing_is_sent_not_even_to_loopback(contained, nothing_left):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as box,
    ):
        box.bind(("127.0.0.1", 0))
        server.settimeout(0.1), box.settimeout(0.1)
        programs = [
            (
                "import socket\nsocket.create_connection(('127.0.0.1', "
                f"{server.getsockname()[1]}), 1).send(b'x')"
            ),
            (
                "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', "
                f"{box.getsockname()})"
            ),
            "import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
            "import socket\nsocket.getaddrinfo('example.com', 80)",
            (
                "import urllib.request\n"
                f"urllib.request.urlopen('http://127.0.0.1:{server.getsockname()[1]}/', "
                "timeout=1)"
            ),
        ]
        for program in programs:
            verdict = contained.run(program)
            assert not verdict.passed and "rror" in verdict.reason, (program, verdict)
        for listener in (server.accept, lambda: box.recv(1)):
            with pytest.raises(TimeoutError):
                listener()


# --- attacks: on the verdict ---

LEAVE_EARLY = [
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "raise SystemExit",
    "import sys\nsys.exit('passed')",
    "raise KeyboardInterrupt",
    "import os\nos.abort()",
    "import os\nos.kill(os.getpid(), 15)\nos.kill(os.getpid(), 9)\nos._exit(0)",
    "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "import os\nos.execv('/bin/true', ['true'])",
    "import os\nos.fork() and os._exit(0)",
    "import os\nos.fork() or os._exit(0)\nos.wait()",
]


@pytest.mark.parametrize("completion", LEAVE_EARLY)
def test_leaving_before_the_tests_is_a_fail(worker, nothing_left, completion):
    assert not worker.run(completion + "\n" + WRONG + CHECK).passed
    assert not worker.run("def f(x):\n    " + completion.replace("\n", "\n    ") + CHECK).passed


def test_a_copy_of_the_process_does_not_speak_for_it(worker, nothing_left):
    assert not worker.run(
        "import os\nif os.fork():\n    os.wait(); os._exit(0)\n" + RIGHT + CHECK
    ).passed


def test_closed_or_replaced_streams_change_no_verdict(worker, nothing_left):
    for change in (
        "import sys\nsys.stdout.close(); sys.stderr.close()",
        "import os\nos.close(0); os.close(1); os.close(2)",
        "import sys\nsys.stdout = sys.stderr = None",
        (
            "import sys\nclass Out:\n    def write(self, s): raise SystemExit\n"
            "    flush = write\nsys.stdout = sys.stderr = Out()"
        ),
        "import os\nos.dup2(os.open('out', os.O_CREAT | os.O_WRONLY), 1)\nprint('passed')",
    ):
        assert worker.run(change + "\n" + RIGHT + CHECK).passed, change
        assert not worker.run(change + "\n" + WRONG + CHECK).passed, change
    assert not worker.run("import os\nos.closerange(0, 100)\n" + WRONG + CHECK).passed


def test_input_that_waits_on_stdin_finds_it_empty(worker, nothing_left):
    verdict = worker.run("x = input('enter a number')")
    assert not verdict.passed and verdict.reason.startswith("EOFError") and verdict.seconds < 2
    assert worker.run("import sys\nassert sys.stdin.read() == ''").passed


def test_patching_the_check_or_the_assertions_does_not_help(worker, nothing_left):
    patches = [
        "check = lambda f: None",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})",
        "import sys\nsys.excepthook = lambda *a: None\nsys.unraisablehook = lambda *a: None",
        "import os, sys\nos.write = os._exit = os.read = lambda *a: 0\nsys.exit = print",
        (
            "import builtins\nbuiltins.exec = builtins.compile = builtins.BaseException = "
            "lambda *a: None"
        ),
        "print('passed')\nprint('Ppassed', flush=True)",
        "__debug__ = 0" if sys.version_info < (3,) else "globals()['__debug__'] = False",
        "import threading\nthreading.excepthook = print",
        "import gc\ngc.disable()",
        "import faulthandler",
        "import sys\nsys.setrecursionlimit(10 ** 6)",
        "class E(Exception):\n    def __str__(self): raise SystemExit",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)",
    ]
    for patch in patches:
        assert not worker.run(patch + "\n" + WRONG + CHECK).passed, patch
        assert worker.run(patch + "\n" + RIGHT + CHECK).passed, patch


def test_a_program_that_writes_to_every_pipe_fails(worker, nothing_left):
    noise = (
        "import os\nfor fd in range(3, 64):\n"
        "    try: os.write(fd, b'Ppassed' + bytes(16) + b'Ppassed')\n"
        "    except OSError: pass\n"
    )
    verdict = worker.run(noise + RIGHT + CHECK)
    assert not verdict.passed and verdict.reason == "wrote to the pipe of the verdict"
    assert worker.run(RIGHT + CHECK).passed


def test_an_exception_that_cannot_be_shown_or_never_ends_is_still_a_fail(worker, nothing_left):
    program = "class E(BaseException):\n    def __str__(self):\n        {}\nraise E"
    assert worker.run(program.format("os = __import__('os'); os._exit(0)")).passed is False
    assert (
        worker.run(program.format("raise SystemExit")).reason == "an exception that cannot be shown"
    )
    assert worker.run(program.format("while True: pass"), timeout=0.2).timed_out
    assert len(worker.run("raise Exception('x' * 10 ** 6)").reason) < 1000
    assert "\n" not in worker.run("raise Exception('a\\nb')").reason


def test_what_remains_is_what_the_file_says_remains(worker):
    always = (
        "class Always:\n    __eq__ = lambda self, other: True\ndef f(x):\n    return Always()\n"
    )
    assert worker.run(always + CHECK).passed and "__eq__" in sandbox.REMAINS
