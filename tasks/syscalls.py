"""System calls for the sandbox: which are refused (seccomp), which files are reached (Landlock).

For isolation.py; nothing to run. A process that installs a filter or a ruleset keeps it for good.
Left out: filters for other machines than x86_64 and aarch64 (the second is tested by interpreting
the filter, not on such a machine).
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446


def call(name: str | int, *args: Any) -> int:
    """A C library function, or a system call by number, with OSError where it fails."""
    result = libc.syscall(name, *args) if isinstance(name, int) else getattr(libc, name)(*args)
    if result < 0:
        code, what = ctypes.get_errno(), name if isinstance(name, str) else f"system call {name}"
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def mount(
    source: str | None,
    target: str,
    kind: str | None = None,
    flags: int = 0,
    options: str | None = None,
) -> None:
    """mount(2)."""
    call(
        "mount",
        *(t.encode() if t is not None else None for t in (source, target, kind)),
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )


# System calls refused with EPERM, (x86_64, aarch64); None where the machine has none. Those
# numbered from 424 on, the same everywhere and younger than 2019 (io_uring, pidfd_*, clone3, the
# new mount calls, ...), are refused with ENOSYS, after which the C library takes the older call.
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
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
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
# What Landlock does not govern, or not in its first versions; where the root folder is private they
# may be had.
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
CLONE, KILL, TGKILL, PRLIMIT64 = (56, 220), (62, 129), (234, 131), (302, 261)
FCNTL, IOCTL, SOCKETPAIR, PRCTL = (72, 25), (16, 29), (53, 199), (157, 167)
AF_UNIX = SOCK_STREAM = 1
OPEN, OPENAT = (2, None), (257, 56)
CLONE_THREAD = 0x00010000
# F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP, TIOCSTI: signals to other processes, keys
# to a terminal
SENDS_SIGNALS = {FCNTL: (8, 10, 15), IOCTL: (0x8901, 0x8902, 0x5412)}


LOAD, EQUAL, AT_LEAST, ANY_BIT, MASK, GIVE = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, KILL_PROCESS = (GIVE, 0, 0, 0x7FFF0000), (GIVE, 0, 0, 0x80000000)
REFUSE, UNKNOWN = (GIVE, 0, 0, 0x00050000 | errno.EPERM), (GIVE, 0, 0, 0x00050000 | errno.ENOSYS)
# Offset of an argument's lower half; both machines are little-endian.
LOW = [16 + 8 * i for i in range(6)]

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand


def seccomp_filter(machine: str, pid: int, by_path: bool) -> bytes:
    """The seccomp program (classic BPF) of a process `pid`, in the terms of linux/seccomp.h.

    by_path: also refuse what Landlock leaves open. A foreign calling convention kills the process.
    """
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, 4),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        KILL_PROCESS,
        (LOAD, 0, 0, 0),
        (AT_LEAST, 0, 1, 424),
        UNKNOWN,  # x86_64's x32 numbers, from 2^30 on, are among them
    ]
    for numbers, decision in _rules(pid, by_path):
        if numbers[column] is not None:
            code += [(EQUAL, 0, len(decision), numbers[column]), *decision]
    code.append(ALLOW)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _rules(pid: int, by_path: bool) -> Iterator[tuple[tuple, list[Instruction]]]:
    """(numbers of a system call, the instructions that decide about it; they end in a return)."""
    for numbers in [*DENIED.values(), *(DENIED_BY_PATH.values() if by_path else ())]:
        yield numbers, [REFUSE]
    yield CLONE, [(LOAD, 0, 0, LOW[0]), (ANY_BIT, 0, 1, CLONE_THREAD), ALLOW, REFUSE]
    # A pair of connected streams reaches nobody; asyncio wakes itself by one. A datagram socket
    # could be sent on to any address.
    stream = [(LOAD, 0, 0, LOW[1]), (MASK, 0, 0, 0xF), (EQUAL, 0, 1, SOCK_STREAM)]
    yield SOCKETPAIR, [(LOAD, 0, 0, LOW[0]), (EQUAL, 0, 4, AF_UNIX), *stream, ALLOW, REFUSE]
    # A program that took this back would outlive a worker that is killed.
    yield PRCTL, [(LOAD, 0, 0, LOW[0]), (EQUAL, 0, 1, PR_SET_PDEATHSIG), REFUSE, ALLOW]
    for numbers in (KILL, TGKILL):
        yield numbers, [(LOAD, 0, 0, LOW[0]), (EQUAL, 0, 1, pid), ALLOW, REFUSE]
    own = [(EQUAL, 1, 0, 0), (EQUAL, 0, 1, pid)]
    yield PRLIMIT64, [(LOAD, 0, 0, LOW[0]), *own, ALLOW, REFUSE]
    for numbers, commands in SENDS_SIGNALS.items():
        n = len(commands)
        tests = [(EQUAL, n - i, 0, command) for i, command in enumerate(commands)]
        yield numbers, [(LOAD, 0, 0, LOW[1]), *tests, ALLOW, REFUSE]
    if by_path:  # Landlock's first two versions let a file be emptied by opening it to read
        for numbers, flags in ((OPEN, LOW[1]), (OPENAT, LOW[2])):
            mask = (MASK, 0, 0, os.O_TRUNC | os.O_ACCMODE)
            yield numbers, [(LOAD, 0, 0, flags), mask, (EQUAL, 0, 1, os.O_TRUNC), REFUSE, ALLOW]


def install_filter(machine: str, by_path: bool) -> None:
    """Refuse system calls in this process from now on."""
    code = seccomp_filter(machine, os.getpid(), by_path)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))  # struct sock_fprog
    call("prctl", PR_SET_SECCOMP, 2, program, 0, 0)


def install_landlock(
    version: int, readable: Iterable[int], writable: Iterable[int], devices: Iterable[int]
) -> None:
    """Nothing but these files: open folders with what lies below them, and open devices."""
    execute, write, read, list_ = 1 << 0, 1 << 1, 1 << 2, 1 << 3
    make = 0b1111111110000  # also removing
    governed = execute | write | read | list_ | make
    refer, truncate, ioctl = (version >= 2) << 13, (version >= 3) << 14, (version >= 5) << 15
    governed |= refer | truncate | ioctl
    network, scopes = [3] * (version >= 4), [3] * (version >= 6)  # signals and abstract sockets
    fields = [governed, *network, *scopes]
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = call(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    files = write | read | governed & 1 << 14  # what can be said of a file that is no folder
    for fds, rights in (
        (readable, read | list_),
        (writable, governed & ~(execute | 1 << 15)),
        (devices, files),
    ):
        for fd in fds:
            call(LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", rights, fd), 0)
    call(LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)
