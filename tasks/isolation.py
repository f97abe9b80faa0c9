"""The inside of sandbox.py: a process that enters an isolation for good, then runs untrusted programs, each in a fork.

    python -m tasks.sandbox      # starts it, to try each level; nobody imports it and it is not started by hand

A level is entered in two steps: what all programs share, once (`_enter`: namespaces, a private root folder), and what
cannot be taken back, in each program's own process (`_give_up`: limits, uid, capabilities, Landlock, system calls).
Left out: Windows; any isolation but limits on other systems than Linux; a filter of system calls on other machines than
x86_64 and aarch64 (the second is tested by interpreting the filter, not on such a machine).
"""

import ctypes
import errno
import gc
import json
import math
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
import types
import typing

TEMP_BYTES = 64 << 20  # of the temporary folder (levels below namespaces: of each file in it)
PROCESSES, FILES = 64, 64
INNER_TEMP = "/program"  # where the temporary folder is in a private root; not /tmp, where an interpreter may lie
TIMED_OUT = "timed out"
LINUX = sys.platform == "linux"

# ---- system calls ----------------------------------------------------------------------------------------------------

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR, LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = (
    442,
    444,
    445,
    446,
)


def _call(name, *args):
    """A C library function, or a system call by number, with OSError where it fails."""
    result = libc.syscall(name, *args) if isinstance(name, int) else getattr(libc, name)(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(
            code, f"{name if isinstance(name, str) else f'system call {name}'}: {os.strerror(code)}"
        )
    return result


def _mount(source, target, kind=None, flags=0, options=None):
    _call(
        "mount",
        *(t.encode() if t is not None else None for t in (source, target, kind)),
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )


# System calls refused with EPERM, (x86_64, aarch64); None where the machine has none. Those numbered from 424 on, the
# same everywhere and younger than 2019 (io_uring, pidfd_*, clone3, the new mount calls, ...), are refused with ENOSYS,
# after which the C library takes the older call.
DENIED = {
    # other processes: none is started, signalled, looked into or changed
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    # the network, and what outlives a process or is not counted as its memory
    "socket": (41, 198),
    "socketpair": (53, 199),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # the kernel's less trodden paths
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "io_setup": (206, 0),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "syslog": (103, 116),
}
# What Landlock does not govern, or not in its first versions; where the root folder is private they may be had.
DENIED_BY_PATH = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "truncate": (76, 45),
}
# Those that are refused for some arguments only.
CLONE, KILL, TGKILL, PRLIMIT64, FCNTL, IOCTL = (
    (56, 220),
    (62, 129),
    (234, 131),
    (302, 261),
    (72, 25),
    (16, 29),
)
OPEN, OPENAT = (2, None), (257, 56)
CLONE_THREAD = 0x00010000
# F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP, TIOCSTI: signals to other processes, keys to a terminal
SENDS_SIGNALS = {FCNTL: (8, 10, 15), IOCTL: (0x8901, 0x8902, 0x5412)}


def _filter(machine, pid, by_path):
    """The seccomp program (classic BPF, bytes) of a process `pid`: its own words in linux/seccomp.h's terms.

    by_path: also refuse what Landlock leaves open. A foreign calling convention kills the process.
    """
    column = list(ARCHITECTURES).index(machine)
    load, equal, at_least, any_bit, mask, give = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, refuse, unknown, kill = (
        0x7FFF0000,
        0x00050000 | errno.EPERM,
        0x00050000 | errno.ENOSYS,
        0x80000000,
    )
    low = [
        16 + 8 * i for i in range(6)
    ]  # offset of an argument's lower half; both machines are little-endian
    code = [
        (load, 0, 0, 4),
        (equal, 1, 0, ARCHITECTURES[machine]),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
    ]

    def when(numbers, *then):
        """For this system call, `then` decides; it must end in a return."""
        if numbers[column] is not None:
            code.extend([(equal, 0, len(then), numbers[column]), *then])

    code += [
        (at_least, 0, 1, 424),
        (give, 0, 0, unknown),
    ]  # x86_64's x32 numbers, from 2^30 on, are among them
    for numbers in [*DENIED.values(), *(DENIED_BY_PATH.values() if by_path else ())]:
        when(numbers, (give, 0, 0, refuse))
    when(
        CLONE,
        (load, 0, 0, low[0]),
        (any_bit, 0, 1, CLONE_THREAD),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    )
    for numbers in (KILL, TGKILL):
        when(
            numbers,
            (load, 0, 0, low[0]),
            (equal, 0, 1, pid),
            (give, 0, 0, allow),
            (give, 0, 0, refuse),
        )
    when(
        PRLIMIT64,
        (load, 0, 0, low[0]),
        (equal, 1, 0, 0),
        (equal, 0, 1, pid),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    )
    for numbers, commands in SENDS_SIGNALS.items():
        when(
            numbers,
            (load, 0, 0, low[1]),
            *((equal, len(commands) - i, 0, c) for i, c in enumerate(commands)),
            (give, 0, 0, allow),
            (give, 0, 0, refuse),
        )
    if (
        by_path
    ):  # Landlock's first two versions let a file that may be read be emptied by opening it
        for numbers, flags in ((OPEN, low[1]), (OPENAT, low[2])):
            when(
                numbers,
                (load, 0, 0, flags),
                (mask, 0, 0, os.O_TRUNC | os.O_ACCMODE),
                (equal, 0, 1, os.O_TRUNC),
                (give, 0, 0, refuse),
                (give, 0, 0, allow),
            )
    code.append((give, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _install_filter(machine, by_path):
    code = _filter(machine, os.getpid(), by_path)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))  # struct sock_fprog
    _call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def _install_landlock(version, readable, writable, devices):
    """Files: `readable` and `writable` are open folders, with what lies below; `devices` open files. Nothing else."""
    execute, write, read, list_, make = (
        1 << 0,
        1 << 1,
        1 << 2,
        1 << 3,
        0b1111111110000,
    )  # make: also removing
    governed = execute | write | read | list_ | make
    governed |= (
        (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    )  # refer, truncate, ioctl
    attributes = (
        [governed] + [3] * (version >= 4) + [3] * (version >= 6)
    )  # the network; signals and abstract sockets
    attributes = struct.pack(f"{len(attributes)}Q", *attributes)
    rules = _call(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    files = write | read | governed & 1 << 14  # what can be said of a file that is no folder
    for fds, rights in (
        (readable, read | list_),
        (writable, governed & ~(execute | 1 << 15)),
        (devices, files),
    ):
        for fd in fds:
            _call(LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", rights, fd), 0)
    _call(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


# ---- the worker: this file run with --worker, outside of the caller's process ---------------------------------------

PRELOADED = (
    "abc bisect builtins cmath collections collections.abc copy dataclasses datetime decimal enum fractions "
    "functools hashlib heapq itertools math numbers operator random re statistics string textwrap time typing "
    "unicodedata"
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class _Isolation(typing.NamedTuple):
    """What a worker found when it entered its level."""

    level: str
    uid: int  # the unused uid that programs take, or -1: they keep the worker's
    machine: str  # for the filter of system calls; empty: none
    landlock: int  # its version, 0: not used
    libraries: dict  # folders to read: path -> the open folder
    devices: tuple  # open files
    pid_namespace: int  # the worker's own, an open file, or -1


def _libraries():
    """Folders that the standard library and its shared libraries are read from, none inside another."""
    found = [
        p
        for p in (
            *sys.path,
            os.path.join(sys.base_prefix, "lib"),
            "/usr/lib",
            "/usr/lib64",
            "/lib",
            "/lib64",
        )
        if os.path.isdir(p)
    ]
    return [
        p for p in dict.fromkeys(found) if not any(p.startswith(q.rstrip("/") + "/") for q in found)
    ]


def _in_child(attempt):
    """Whether a function runs in a child without an OSError."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _unused_uid():
    """A uid that nobody has and that we may take, one a worker so that limits count apart; -1 if there is none."""
    for uid in (
        2_000_000_000 + os.getpid(),
        65_000 + os.getpid() % 500,
    ):  # the second: in a container of 65,536 uids
        if os.geteuid() == 0 and _in_child(lambda: _become(uid)):
            return uid
    return -1


def _fork_beyond_the_limit(uid):
    if uid >= 0:
        _become(uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    if os.fork() == 0:
        os._exit(0)


def _become(uid):
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _private_root(folder):
    """Make a root folder of the libraries, four devices and an empty folder, read-only, and the only one there is."""
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("root", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _libraries():
        os.makedirs(folder + path, exist_ok=True)
        _mount(path, folder + path, None, MS_BIND | MS_REC)
    os.makedirs(folder + "/dev")
    os.mkdir(folder + INNER_TEMP)
    for path in DEVICES:
        os.close(os.open(folder + path, os.O_CREAT))
        _mount(path, folder + path, None, MS_BIND)
    os.chdir(folder)
    _call(PIVOT_ROOT[platform.machine()], b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    read_only = struct.pack(
        "4Q", 1 | MS_NOSUID, 0, 0, 0
    )  # struct mount_attr; below /, whatever is mounted there
    _call(MOUNT_SETATTR, -100, b"/", 0x8000, read_only, len(read_only))


def _enter_namespaces(folder, uid):
    """Leave the caller's namespaces -> the open namespace of processes, in a second process; the first never returns.

    A root that is mapped into a user namespace owns root's files and is not bound by RLIMIT_NPROC: with an unused `uid`
    that one alone is mapped. The private root is made before, since this uid could not pass through a home like /root.
    """
    if platform.machine() not in PIVOT_ROOT:
        raise OSError(f"not written for {platform.machine()}")
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # there is no /proc later
    kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if uid >= 0:
        worker, (gone, left) = os.getpid(), os.pipe()
        helper = os.fork()  # writes the map from outside, where root is still root
        if helper == 0:
            status = 1
            try:
                os.close(left)
                os.read(gone, 1)
                _write(f"/proc/{worker}/uid_map", f"{uid} {uid} 1")
                _write(f"/proc/{worker}/gid_map", f"{uid} {uid} 1")
                status = 0
            finally:
                os._exit(status)
        os.close(gone)
        _call("unshare", kinds)
        _private_root(folder)
        _call("unshare", CLONE_NEWUSER | CLONE_NEWPID)
        os.close(left)
        if os.waitpid(helper, 0)[1]:
            raise OSError(f"uid {uid} cannot be mapped into a user namespace")
        _become(uid)
    else:
        own, group = os.geteuid(), os.getegid()
        _call("unshare", kinds | CLONE_NEWUSER | CLONE_NEWPID)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{own} {own} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
        _private_root(folder)
    process = os.fork()
    if (
        process
    ):  # the second is process 1 of the new namespace: all that is started there ends with it
        os.closerange(0, 3)
        _, status = os.waitpid(process, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    return namespace


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


def _enter(level, folder):
    """Enter a level, for good -> _Isolation. OSError says why it cannot be."""
    if level != "limits" and not LINUX:
        raise OSError(f"it needs Linux, this is {sys.platform}")
    uid = _unused_uid()
    if level == "limits":
        if _in_child(lambda: _fork_beyond_the_limit(uid)):
            raise OSError(
                "the number of processes cannot be limited for root: start it as another user"
            )
        if LINUX:
            _call(
                "prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
            )  # what a program leaves behind is the worker's to end
    machine = (
        platform.machine() if level != "limits" and platform.machine() in ARCHITECTURES else ""
    )
    landlock, libraries, devices, pid_namespace = 0, {}, (), -1
    if level == "landlock":
        if not machine:
            raise OSError(f"no filter of system calls is written for {platform.machine()}")
        landlock = _call(LANDLOCK_CREATE_RULESET, None, 0, 1)  # asks for the version
        devices = tuple(os.open(p, os.O_RDONLY) for p in DEVICES)
    if level == "namespaces":
        pid_namespace = _enter_namespaces(folder, uid)
    else:
        libraries = {p: os.open(p, os.O_RDONLY | os.O_DIRECTORY) for p in _libraries()}
    return _Isolation(level, uid, machine, landlock, libraries, devices, pid_namespace)


def _work(level, folder):
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
            _write("/proc/self/oom_score_adj", "1000")  # where memory runs out, programs go first
        for name in PRELOADED.split():
            __import__(name)
        isolation = _enter(level, folder)
    except OSError as error:
        why = error.strerror or str(error)
        return reply({"error": f"{error.filename}: {why}" if error.filename else why})
    reply(
        {
            "user": "an unused uid" if isolation.uid >= 0 else "your own user",
            "filtered": bool(isolation.machine),
        }
    )
    gc.collect()
    gc.freeze()
    rest = b""
    while True:
        chunk = os.read(requests, 1 << 16)
        if not chunk:
            break
        rest += chunk
        if rest.endswith(b"\n"):  # one request at a time
            request, rest = json.loads(rest), b""
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
    """Run one program in a fresh process -> the fields of its Verdict, or None where the caller has gone."""
    told_r, told_w = os.pipe()
    nonce_r, nonce_w = os.pipe()
    inside = isolation.level == "namespaces"
    temp = os.path.join(folder, "program")
    if not inside:
        os.mkdir(temp, 0o700)
        if isolation.uid >= 0:
            os.chown(temp, isolation.uid, isolation.uid)
    if inside:
        _call(
            "unshare", CLONE_NEWPID
        )  # for the next child, which is process 1 of its own namespace
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_program(isolation, temp, told_w, nonce_r, program, timeout, memory)
    os.close(told_w)
    os.close(nonce_r)
    if inside:
        _call("setns", isolation.pid_namespace, CLONE_NEWPID)
    nonce = os.urandom(16)  # only now: the child's memory is a copy of what was here before
    try:
        os.write(nonce_w, nonce)
    except BrokenPipeError:
        pass
    ready = select.select([told_r, requests], [], [], timeout)[0]
    told = os.read(told_r, 4096) if told_r in ready else b""
    seconds = time.monotonic() - start
    status = _end(child)
    for fd in (told_r, nonce_w):
        os.close(fd)
    if not inside:
        remove_tree(temp)
    if requests in ready:
        return None
    if told[:16] == nonce:
        kind, text = told[16:17], told[17:].decode("utf-8", "replace")
        if kind == b"E":
            raise OSError(text)
        return {"passed": kind == b"P", "reason": text, "seconds": seconds}
    if not ready:
        reason = TIMED_OUT
    elif told:
        reason = "wrote to the pipe of the verdict"
    elif os.WIFSIGNALED(status):
        reason = f"killed by signal {os.WTERMSIG(status)} before its last line"
    else:
        reason = f"exited with status {os.WEXITSTATUS(status)} before its last line"
    return {"passed": False, "reason": reason, "seconds": seconds}


def _end(child):
    """Kill the program with all it has started -> its wait status.

    In namespaces its whole process namespace goes with it, in landlock it is alone, in limits what it started becomes
    the worker's child when its parent dies (PR_SET_CHILD_SUBREAPER).
    """
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return status
        # Something still runs. Killed one by one, a fork bomb would grow again as fast: all that are seen are stopped
        # first, and what is stopped counts towards RLIMIT_NPROC, so that in a few rounds nothing is left to fork.
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


def _descendants():
    """Ids of this process's children and theirs, the dead ones not yet waited for included."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            pass
    found, parent = set(), {os.getpid()}
    while parent := {pid for pid, up in parents.items() if up in parent} - found:
        found |= parent
    return found


def _run_program(isolation, temp, told, nonce, program, timeout, memory):
    """In the child: give up everything, run the program, report. Never returns.

    All that is used after the program is held in local names, which it cannot rebind; that it can find them by walking
    frames is one of the things REMAINS says.
    """
    write, read, leave, getpid, own_id = os.write, os.read, os._exit, os.getpid, os.getpid()
    try:
        try:
            _give_up(isolation, temp, memory, timeout, keep={told, nonce})
        except BaseException as error:
            write(
                told,
                read(nonce, 16)
                + f"E{type(error).__name__} on entering the sandbox: {error}".encode()[:1000],
            )
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


def _give_up(isolation, temp, memory, timeout, keep):
    """Limits, then the isolation's last steps, which cannot be taken back."""
    os.setsid()
    if isolation.level == "namespaces":
        _call("unshare", CLONE_NEWNS)
        _mount(
            "temp",
            INNER_TEMP,
            "tmpfs",
            MS_NOSUID | MS_NODEV,
            f"size={TEMP_BYTES},nr_inodes=4096,mode=700",
        )
        temp = INNER_TEMP
    os.chdir(temp)
    alone = isolation.uid >= 0 or isolation.level == "namespaces"
    processes = PROCESSES if alone else PROCESSES + _threads()
    for name, value in (
        ("CORE", 0),
        ("CPU", math.ceil(timeout) + 1),
        ("FSIZE", TEMP_BYTES),
        ("NOFILE", FILES),
        ("NPROC", processes),
        ("AS", memory),
    ):
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (value, value))
    if isolation.level != "namespaces" and isolation.uid >= 0:
        _become(isolation.uid)
    hidden = {p: fd for p, fd in isolation.libraries.items() if not os.access(p, os.R_OK | os.X_OK)}
    for (
        path,
        fd,
    ) in hidden.items():  # a private home is in the way: an open folder can still be read through
        sys.path = [
            f"/proc/self/fd/{fd}" + p[len(path) :] if (p + "/").startswith(path + "/") else p
            for p in sys.path
        ]
    if LINUX:
        _call(
            "prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
        )  # after the uid, whose change forgets it
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(
            "capset", struct.pack("II", 0x20080522, 0), bytes(24)
        )  # no capability is left, whoever we are
    if isolation.landlock:
        writable = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        _install_landlock(
            isolation.landlock, isolation.libraries.values(), [writable], isolation.devices
        )
    for fd in range(3, 64):
        if fd not in keep and fd not in hidden.values():
            try:
                os.close(fd)
            except OSError:
                pass
    os.environ.clear()
    sys.argv, sys.modules["__main__"] = [""], types.ModuleType("__main__")
    if isolation.machine:
        _install_filter(isolation.machine, by_path=isolation.level == "landlock")


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
    """One line about an exception, with the program's line it came from; its __str__ is the program's, so beware."""
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


def remove_tree(folder):
    """Remove a folder that a program filled, however deep (no recursion, no long path) and whatever its permissions."""
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


if __name__ == "__main__":
    _work(*sys.argv[1:])
