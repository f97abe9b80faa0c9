"""sandbox.py's filter of system calls: what it refuses, and alike on both machines."""

import os
import signal
import struct

import pytest
from sandboxes import FILTERED

from tasks import syscalls

pytest_plugins = ["sandboxes"]  # its fixtures
pytestmark = pytest.mark.usefixtures("subreaper")


def test_the_filter_knows_other_doors_to_the_kernel(contained):
    if not FILTERED[contained.level]:
        return
    call = (
        "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
        "assert l.syscall({}) >= 0, ctypes.get_errno()"
    )
    for what, code in (
        (
            "272 if __import__('os').uname().machine == 'x86_64' else 97, 0x10000000",
            1,
        ),  # unshare a user namespace
        ("425, 8, ctypes.create_string_buffer(200)", 38),
        ("434, 1, 0", 38),
        ("435, ctypes.create_string_buffer(88), 88", 38),
    ):
        verdict = contained.run(call.format(what))
        assert not verdict.passed and verdict.reason.startswith(f"AssertionError: {code} "), (
            what,
            verdict,
        )
    if os.uname().machine == "x86_64":
        assert contained.run(call.format("0x40000000 + 39")).reason.startswith(
            "AssertionError: 38 "
        )  # x32's getpid
        # i386's getpid
        machine_code = (
            "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\n"
            "m.write(bytes.fromhex('b814000000cd80c3'))\n"
        )
        verdict = contained.run(
            machine_code
            + "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
        )
        assert (
            not verdict.passed
            and verdict.reason == f"killed by signal {signal.SIGSYS} before its last line"
        ), verdict


def decide(code, machine, number, *args):
    """What a classic BPF program says of a system call: a slow interpreter of the few instructions
    that are used.
    """
    data = struct.pack("<iIQ6Q", number, machine, 0, *(args + (0,) * 6)[:6])
    at = value = 0
    while True:
        kind, yes, no, k = struct.unpack_from("HBBI", code, 8 * at)
        at += 1
        if kind == 0x20:
            value = struct.unpack_from("<I", data, k)[0]
        elif kind == 0x54:
            value &= k
        elif kind == 0x06:
            return {0x7FFF0000: "allow", 0x80000000: "kill"}.get(k, os.strerror(k & 0xFFFF))
        else:
            at += yes if {0x15: value == k, 0x35: value >= k, 0x45: value & k}[kind] else no


ORDINARY = {  # name: numbers on x86_64 and aarch64
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "mmap": (9, 222),
    "brk": (12, 214),
    "futex": (202, 98),
    "exit_group": (231, 94),
    "getpid": (39, 172),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "lseek": (8, 62),
    "rt_sigaction": (13, 134),
    "getrandom": (318, 278),
    "clock_nanosleep": (230, 115),
}


@pytest.mark.parametrize("machine", syscalls.ARCHITECTURES)
@pytest.mark.parametrize("by_path", [False, True])
def test_the_filter_decides_alike_on_both_machines(machine, by_path):
    column, arch = list(syscalls.ARCHITECTURES).index(machine), syscalls.ARCHITECTURES[machine]
    code, me, refused = syscalls.seccomp_filter(machine, 77, by_path), 77, "Operation not permitted"

    def says(numbers, *args):
        return decide(code, arch, numbers[column], *args)

    for numbers in syscalls.DENIED.values():
        assert numbers[column] is None or says(numbers) == refused
    for numbers in syscalls.DENIED_BY_PATH.values():
        assert numbers[column] is None or says(numbers) == (refused if by_path else "allow")
    assert all(says(numbers) == "allow" for numbers in ORDINARY.values())
    assert (
        says(syscalls.CLONE, 0x3D0F00) == "allow"
        and says(syscalls.CLONE, 17) == says(syscalls.CLONE, 0x4111) == refused
    )  # a thread; fork, vfork
    for call in (syscalls.KILL, syscalls.TGKILL):
        assert says(call, me) == "allow" and {
            says(call, other) for other in (0, 1, 76, (1 << 32) - 1)
        } == {refused}
    assert (
        says(syscalls.PRLIMIT64, 0) == says(syscalls.PRLIMIT64, me) == "allow"
        and says(syscalls.PRLIMIT64, 1) == refused
    )
    for call, commands in syscalls.SENDS_SIGNALS.items():
        assert {says(call, 3, c) for c in commands} == {refused} and {
            says(call, 3, c) for c in (1, 2, 3, 0x5401)
        } == {"allow"}
    assert says(syscalls.PRCTL, 1) == refused and says(syscalls.PRCTL, 15) == "allow"
    pairs = syscalls.SOCKETPAIR
    assert says(pairs, 1, 1) == says(pairs, 1, 1 | 0o2004000) == "allow"  # streams, flags or none
    assert says(pairs, 1, 2) == says(pairs, 2, 1) == says(pairs, 1, 5) == refused
    empties, writes = os.O_TRUNC, os.O_TRUNC | os.O_WRONLY | os.O_CREAT
    assert (
        says(syscalls.OPENAT, 0, 0, empties) == (refused if by_path else "allow")
        and says(syscalls.OPENAT, 0, 0, writes) == says(syscalls.OPENAT) == "allow"
    )
    assert (
        decide(code, arch, 435)
        == decide(code, arch, 425)
        == decide(code, arch, 10_000)
        == decide(code, arch, 0x40000000)
        == "Function not implemented"
    )
    assert (
        decide(code, 0x40000003, 20) == "kill"
        and decide(
            code, syscalls.ARCHITECTURES[{"x86_64": "aarch64", "aarch64": "x86_64"}[machine]], 39
        )
        == "kill"
    )
