"""Entering a level of isolation: an unused uid, namespaces, a private root folder.

For isolation.py; nothing to run. Left out: what each program gives up on top (isolation.give_up).
"""

import os
import platform
import resource
import shutil
import signal
import struct
import sys
import typing

from tasks import syscalls
from tasks.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    call,
    mount,
)

LINUX = sys.platform == "linux"
FIRST_UID = 2_000_000_000  # from here on, a worker's alone
# Of the standard library's folder, what no program is about.
UNUSED = ("site-packages", "test", "__pycache__", "config-*", "ensurepip", "idlelib", "turtledemo")
INNER_TEMP = "/program"  # the temporary folder in a private root; an interpreter may lie in /tmp
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class Isolation(typing.NamedTuple):
    """What a worker found when it entered its level."""

    level: str
    uid: int = -1  # the unused uid that programs take, or -1: they keep the worker's
    machine: str = ""  # for the filter of system calls; empty: none
    landlock: int = 0  # its version, 0: not used
    libraries: dict[str, int] = {}  # at landlock, folders to read: path -> the open folder
    devices: tuple[int, ...] = ()  # open files
    pid_namespace: int = -1  # the worker's own, an open file


def _libraries() -> list[str]:
    """Folders that the standard library and what it opens lie in, none inside another."""
    system = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
    paths = (*sys.path, os.path.join(sys.base_prefix, "lib"), *system)
    paths = [p for p in dict.fromkeys(paths) if os.path.isdir(p)]
    return [p for p in paths if not any(p.startswith(q.rstrip("/") + "/") for q in paths)]


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
    """A uid that nobody has, one a worker so that limits count apart; -1 if there is none for
    us."""
    # The second is for a container of 65,536 uids.
    for uid in (FIRST_UID + os.getpid(), 65_000 + os.getpid() % 500):
        if os.geteuid() == 0 and _in_child(lambda uid=uid: become(uid)):
            return uid
    return -1


def _fork_beyond_the_limit(uid):
    if uid >= 0:
        become(uid)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    if os.fork() == 0:
        os._exit(0)


def become(uid: int) -> None:
    """Take a uid, and the group of the same number, for good."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _private_root(folder):
    """Make a root folder, the only one there is: libraries, four devices and an empty folder.

    It can only be read.
    """
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("root", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in _libraries():
        os.makedirs(folder + path, exist_ok=True)
        mount(path, folder + path, None, MS_BIND | MS_REC)
    os.makedirs(folder + "/dev")
    os.mkdir(folder + INNER_TEMP)
    for path in DEVICES:
        os.close(os.open(folder + path, os.O_CREAT))
        mount(path, folder + path, None, MS_BIND)
    os.chdir(folder)
    call(syscalls.PIVOT_ROOT[platform.machine()], b".", b".")
    call("umount2", b".", syscalls.MNT_DETACH)
    os.chdir("/")
    # struct mount_attr; below /, whatever is mounted there
    read_only = struct.pack("4Q", 1 | MS_NOSUID, 0, 0, 0)
    call(syscalls.MOUNT_SETATTR, -100, b"/", 0x8000, read_only, len(read_only))


def _enter_namespaces(folder, uid):
    """Leave the caller's namespaces -> the open namespace of processes.

    It returns in a second process; the first waits for it. A root that is mapped into a user
    namespace owns root's files and is not bound by RLIMIT_NPROC: with an unused `uid` that one
    alone is mapped. The private root is made before, since this uid could not pass through a home
    like /root.
    """
    if platform.machine() not in syscalls.PIVOT_ROOT:
        raise OSError(f"not written for {platform.machine()}")
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)  # there is no /proc later
    kinds = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if uid >= 0:
        helper, start_map = _map_from_outside(uid)
        call("unshare", kinds)
        _private_root(folder)
        call("unshare", CLONE_NEWUSER | CLONE_NEWPID)
        os.close(start_map)
        if os.waitpid(helper, 0)[1]:
            raise OSError(f"uid {uid} cannot be mapped into a user namespace")
        become(uid)
    else:
        own, group = os.geteuid(), os.getegid()
        call("unshare", kinds | CLONE_NEWUSER | CLONE_NEWPID)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{own} {own} 1")
        write("/proc/self/gid_map", f"{group} {group} 1")
        _private_root(folder)
    process = os.fork()
    if process:
        # The second is process 1 of the new namespace: all that is started there ends with it.
        os.closerange(0, 3)
        _, status = os.waitpid(process, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    call("prctl", syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    namespace = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
    os.close(proc)
    return namespace


def _map_from_outside(uid):
    """(pid, pipe) of a process that maps `uid` for us, as root still, once the pipe is closed."""
    worker, (gone, left) = os.getpid(), os.pipe()
    helper = os.fork()
    if helper == 0:
        status = 1
        try:
            os.close(left)
            os.read(gone, 1)
            write(f"/proc/{worker}/uid_map", f"{uid} {uid} 1")
            write(f"/proc/{worker}/gid_map", f"{uid} {uid} 1")
            status = 0
        finally:
            os._exit(status)
    os.close(gone)
    return helper, left


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def enter(level: str, folder: str) -> Isolation:
    """Enter a level, for good. OSError says why it cannot be."""
    if level != "limits" and not LINUX:
        raise OSError(f"it needs Linux, this is {sys.platform}")
    uid, machine = _unused_uid(), platform.machine()
    if level == "limits":
        if _in_child(lambda: _fork_beyond_the_limit(uid)):
            raise OSError(
                "the number of processes cannot be limited for root: start it as another user"
            )
        if LINUX:  # what a program leaves behind is the worker's to end
            call("prctl", syscalls.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if uid >= 0:
            os.chmod(folder, 0o711)  # for programs' absolute paths
            _copy_libraries(os.path.join(folder, "library"), uid)
        return Isolation(level, uid)
    machine = machine if machine in syscalls.ARCHITECTURES else ""
    if level == "namespaces":
        pid_namespace = _enter_namespaces(folder, uid)
        return Isolation(level, uid, machine, pid_namespace=pid_namespace)
    if not machine:
        raise OSError(f"no filter of system calls is written for {platform.machine()}")
    os.chmod(folder, 0o711)  # for programs' absolute paths
    landlock = call(syscalls.LANDLOCK_CREATE_RULESET, None, 0, 1)  # asks for the version
    devices = tuple(os.open(p, os.O_RDONLY) for p in DEVICES)
    libraries = {p: os.open(p, os.O_RDONLY | os.O_DIRECTORY) for p in _libraries()}
    return Isolation(level, uid, machine, landlock, libraries, devices)


def _copy_libraries(folder, uid):
    """Copy the standard library from where `uid` may not read, such as a private home.

    An open folder handed to the program would let it read what else lies in that home.
    """
    left_out = shutil.ignore_patterns(*UNUSED)
    for number, path in enumerate(list(sys.path)):
        moved = sys.path[number] != path  # with the folder above it
        if not moved and os.path.isdir(path) and not _in_child(lambda p=path: _list_as(uid, p)):
            copy = os.path.join(folder, str(number))
            shutil.copytree(path, copy, ignore=left_out)
            look_elsewhere(path, copy)


def look_elsewhere(old: str, new: str) -> None:
    """Let Python find below the folder `new` what it would look for below `old`."""

    def move(path):
        return new + path[len(old) :] if (path + "/").startswith(old + "/") else path

    sys.path[:] = map(move, sys.path)
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__[:] = map(move, module.__path__)
    sys.path_importer_cache.clear()


def _list_as(uid, path):
    become(uid)
    os.listdir(path)
