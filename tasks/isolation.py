"""The inside of sandbox.py: a process that enters an isolation for good, then runs programs in
forks.

    python -m tasks.sandbox      # starts it, to try each level; it is not started by hand

A level is entered in two steps: what all programs share, once (`_enter`: namespaces, a private root
folder), and what cannot be taken back, in each program's own process (`_give_up`: limits, uid,
capabilities, Landlock, system calls). Left out: Windows; any isolation but limits on other systems
than Linux; a filter of system calls on other machines than x86_64 and aarch64.
"""

import gc
import json
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import types

from tasks import syscalls
from tasks.levels import INNER_TEMP, LINUX, become, enter, look_elsewhere, write
from tasks.syscalls import call, mount

TEMP_BYTES = 64 << 20  # of the temporary folder (levels below namespaces: of each file in it)
PROCESSES, THREADS, FILES = 64, 256, 64  # THREADS where a filter lets no process be started
TIMED_OUT = "timed out"

PRELOADED = (
    "abc bisect builtins cmath collections collections.abc copy dataclasses datetime decimal enum "
    "fractions functools hashlib heapq itertools math numbers operator random re statistics string "
    "textwrap time typing unicodedata"
)


def work(level: str, folder: str) -> None:
    """The worker's life: enter, say so, then a program a line until its stdin ends."""
    requests, replies = (os.dup(fd) for fd in (0, 1))
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)

    def reply(value):
        os.write(replies, json.dumps(value).encode() + b"\n")

    try:
        if LINUX:
            write("/proc/self/oom_score_adj", "1000")  # where memory runs out, programs go first
        for name in PRELOADED.split():
            __import__(name)
        isolation = enter(level, folder)
    except OSError as error:
        why = error.strerror or str(error)
        return reply({"error": f"{error.filename}: {why}" if error.filename else why})
    user = "an unused uid" if isolation.uid >= 0 else "your own user"
    reply({"user": user, "filtered": bool(isolation.machine), "uid": isolation.uid})
    gc.collect()
    gc.freeze()
    chunks = []
    while chunk := os.read(requests, 1 << 16):
        chunks.append(chunk)
        if not chunk.endswith(b"\n"):  # one request at a time
            continue
        request, chunks = json.loads(b"".join(chunks)), []
        try:
            verdict = _supervise(isolation, requests, folder, **request)
        except Exception as error:  # stderr goes nowhere: the caller hears of it
            verdict = {"error": f"{type(error).__name__}: {error}"}
        if verdict is None:
            break
        reply(verdict)
    if os.path.isdir(folder):  # in namespaces it is out of sight, and gone already
        remove_tree(folder)


def _supervise(isolation, requests, folder, program, timeout, memory):
    """Run one program in a fresh process -> the fields of its Verdict; None where the caller is
    gone."""
    told_r, told_w = os.pipe()
    nonce_r, nonce_w = os.pipe()
    inside = isolation.level == "namespaces"
    temp = os.path.join(folder, "program")
    if inside:  # for the next child, which is process 1 of its own namespace
        call("unshare", syscalls.CLONE_NEWPID)
    else:
        os.mkdir(temp, 0o700)
        if isolation.uid >= 0:
            os.chown(temp, isolation.uid, isolation.uid)
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        limits = _limits(isolation, memory, timeout)
        _run_program(isolation, temp, told_w, nonce_r, program, limits)
    os.close(told_w)
    os.close(nonce_r)
    if inside:
        call("setns", isolation.pid_namespace, syscalls.CLONE_NEWPID)
    nonce = os.urandom(16)  # only now: the child's memory is a copy of what was here before
    try:
        os.write(nonce_w, nonce)
    except BrokenPipeError:
        pass
    ready = wait_readable([told_r, requests], timeout)
    told = os.read(told_r, 4096) if told_r in ready else b""
    seconds = time.monotonic() - start
    status = _end(child)
    for fd in (told_r, nonce_w):
        os.close(fd)
    if not inside:
        remove_tree(temp)
    if requests in ready:
        return None
    passed, reason = _judged(told, nonce, status, bool(ready))
    return {"passed": passed, "reason": reason, "seconds": seconds}


def _judged(told, nonce, status, in_time):
    """(passed, reason) by what came through the pipe; OSError where the isolation failed."""
    if told[:16] == nonce:
        kind, text = told[16:17], told[17:].decode("utf-8", "replace")
        if kind == b"E":
            raise OSError(text)
        return kind == b"P", text
    if not in_time:
        return False, TIMED_OUT
    if told:
        return False, "wrote to the pipe of the verdict"
    if os.WIFSIGNALED(status):
        return False, f"killed by signal {os.WTERMSIG(status)} before its last line"
    return False, f"exited with status {os.WEXITSTATUS(status)} before its last line"


def wait_readable(fds: list[int], timeout: float) -> list[int]:
    """Those of `fds` that can be read, or have ended, within `timeout` seconds.

    Not select, which knows no descriptor from 1,024 on.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, _ in poll.poll(max(0.0, timeout) * 1000)]


def _end(child):
    """Kill the program with all it has started -> its wait status.

    In namespaces its whole process namespace goes with it, in landlock it is alone, in limits what
    it started becomes the worker's child when its parent dies (syscalls.PR_SET_CHILD_SUBREAPER).
    """
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return status
        # Something still runs. Killed one by one, a fork bomb would grow again as fast: all that
        # are seen are stopped first, and what is stopped counts towards RLIMIT_NPROC, so that in a
        # few rounds nothing is left to fork.
        stopped = set()
        while new := _descendants() - stopped:
            _signal(new, signal.SIGSTOP)
            stopped |= new
        _signal(stopped, signal.SIGKILL)


def _signal(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # its parent has let it go meanwhile
            pass


def end_all_of(uid: int) -> None:
    """Kill every process of a uid that only programs of one worker had, until none is left."""
    while True:
        pids = set()
        for name in filter(str.isdigit, os.listdir("/proc") if LINUX else ()):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    dead = file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
                if os.stat(f"/proc/{name}").st_uid == uid and not dead:
                    pids.add(int(name))
            except OSError:  # it has ended
                pass
        if not pids:
            return
        _signal(pids, signal.SIGSTOP)  # so that none forks while others are killed
        _signal(pids, signal.SIGKILL)
        time.sleep(0.01)


def _descendants():
    """Ids of this process's children and theirs, the dead ones not yet waited for included."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # the name in it may be any bytes
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found, parent = set(), {os.getpid()}
    while parent := {pid for pid, up in parents.items() if up in parent} - found:
        found |= parent
    return found


def _run_program(isolation, temp, told, nonce, program, limits):
    """In the child: give up everything, run the program, report. Never returns.

    All that is used after the program is held in local names, which it cannot rebind; that it can
    find them by walking frames is one of the things REMAINS says.
    """
    write, read, leave, getpid, own_id = os.write, os.read, os._exit, os.getpid, os.getpid()
    try:
        try:
            _give_up(isolation, temp, limits, keep={told, nonce})
        except BaseException as error:
            why = f"E{type(error).__name__} on entering the sandbox: {error}"
            write(told, read(nonce, 16) + why.encode("utf-8", "replace")[:1000])
            leave(1)
        try:
            exec(compile(program, "<program>", "exec", dont_inherit=True), {})
            result = b"Ppassed"
        except BaseException as error:
            result = b"F" + _describe(error, program)
        if getpid() == own_id:  # a copy of the process does not speak for it
            write(told, read(nonce, 16) + result)
    finally:
        leave(0)


def _limits(isolation, memory, timeout):
    """{limit of the resource module: value} of a program."""
    tasks = THREADS if isolation.machine else PROCESSES
    alone = isolation.uid >= 0 or isolation.level == "namespaces"
    return {
        "CORE": 0,
        "CPU": math.ceil(timeout) + 1,
        "FSIZE": TEMP_BYTES,
        "NOFILE": FILES,
        "NPROC": tasks if alone else tasks + _threads(),
        "AS": memory,
    }


def _give_up(isolation, temp, limits, keep):
    """Limits, then the isolation's last steps, which cannot be taken back."""
    os.setsid()
    if isolation.level == "namespaces":
        call("unshare", syscalls.CLONE_NEWNS)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        mount("temp", INNER_TEMP, "tmpfs", flags, f"size={TEMP_BYTES},nr_inodes=4096,mode=700")
        temp = INNER_TEMP
    os.chdir(temp)
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    if isolation.level != "namespaces" and isolation.uid >= 0:
        become(isolation.uid)
    hidden = _open_hidden_libraries(isolation)
    if LINUX:
        # After the uid, whose change forgets it.
        call("prctl", syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        call("prctl", syscalls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # No capability is left, whoever we are.
        call("capset", struct.pack("II", 0x20080522, 0), bytes(24))
    if isolation.landlock:
        writable = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        readable, devices = isolation.libraries.values(), isolation.devices
        syscalls.install_landlock(isolation.landlock, readable, [writable], devices)
    for fd in range(3, 64):
        if fd not in keep and fd not in hidden:
            try:
                os.close(fd)
            except OSError:
                pass
    os.environ.clear()
    os.environ.update(HOME=temp, USER="program")
    for name in [n for n in sys.modules if n.split(".")[0] == "tasks"]:
        del sys.modules[name]
    sys.argv, sys.modules["__main__"] = [""], types.ModuleType("__main__")
    if isolation.machine:
        syscalls.install_filter(isolation.machine, by_path=isolation.level == "landlock")


def _open_hidden_libraries(isolation):
    """Open folders of the library that the program's user cannot reach: its home is private.

    sys.path names them by their descriptors. Only where Landlock lets nothing else be read.
    """
    hidden = []
    for path, fd in isolation.libraries.items():
        if not os.access(path, os.R_OK | os.X_OK):
            hidden.append(fd)
            look_elsewhere(path, f"/proc/self/fd/{fd}")
    return hidden


def _threads():
    """How many threads this user has: RLIMIT_NPROC counts them all."""
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc") if LINUX else ()):
        try:
            count += (
                len(os.listdir(f"/proc/{name}/task"))
                if os.stat(f"/proc/{name}").st_uid == os.getuid()
                else 0
            )
        except OSError:
            pass
    return count


def _describe(error, program):
    """One line about an exception, with the program's line it came from; its __str__ is the
    program's, so beware."""
    try:
        text, number, trace = f"{type(error).__name__}: {error}", 0, error.__traceback__
        while trace:
            if trace.tb_frame.f_code.co_filename == "<program>":
                number = trace.tb_lineno
            trace = trace.tb_next
        if number:
            text += f" (line {number}: {program.splitlines()[number - 1].strip()[:200]})"
        return " ".join(text.split())[:800].encode("utf-8", "replace")
    except BaseException:
        return b"an exception that cannot be shown"


def remove_tree(folder: str) -> None:
    """Remove a folder that a program filled: however deep, and whatever its permissions.

    No recursion, and no path that could become too long.
    """
    os.chmod(folder, 0o700)
    here, names = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), []
    while True:
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.name, 0o700, dir_fd=here)
                    there = os.open(
                        entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here
                    )
                    names.append(entry.name)
                    break
                os.unlink(entry.name, dir_fd=here)
            else:
                there = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
                if names:
                    os.rmdir(names.pop(), dir_fd=there)
                else:
                    os.close(there)
                    os.close(here)
                    return os.rmdir(folder)
        os.close(here)
        here = there
