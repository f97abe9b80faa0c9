"""Files that are whole or not there, and JSON that somebody else wrote.

For every other module; nothing to run. What is written goes into a file or folder beside its place,
which is renamed into it once all of it is on disk. A killed program may leave such a file behind;
the next write of the same name clears it away. Left out: what the files mean.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from host import terminal

KINDS = {dict: "an object", list: "a list", None: "JSON"}

# --- writing ---


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write text or bytes; whoever looks finds the whole file, or what was there before."""
    content = content.encode() if isinstance(content, str) else content
    with beside(path, replace=True) as tmp, open(tmp, "wb") as file:
        file.write(content)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as indented JSON (`dumps`), whole or not at all."""
    write_whole(path, dumps(value, indent=2) + "\n")


def dumps(value: Any, **kwargs) -> str:
    """JSON as standards have it, which UTF-8 can hold.

    NaN and infinities, which are not JSON, become null. Numbers of numpy become numbers. Half a
    surrogate pair, which UTF-8 has not, stays the escape that it was read from.
    """

    def plain(x):
        if isinstance(x, dict):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        if hasattr(x, "dtype") and getattr(x, "shape", None) == ():
            x = x.item()
        return None if isinstance(x, float) and not math.isfinite(x) else x

    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, **kwargs)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


@contextlib.contextmanager
def beside(
    dst: str | os.PathLike, folder: bool = False, replace: bool = False
) -> Iterator[pathlib.Path]:
    """A new file (an empty folder where `folder`) beside `dst`, which becomes dst where the block
    ends without error.

    On any error it is removed. ValueError where dst is there and not to be replaced; an empty
    folder may be there.
    """
    dst = pathlib.Path(dst)
    if not replace and os.path.lexists(dst):
        if not (folder and dst.is_dir() and not any(dst.iterdir())):
            raise ValueError(f"{dst} is there already: name another, or remove it")
    dst.parent.mkdir(parents=True, exist_ok=True)
    tmp, lock = _locked(dst, folder)
    try:
        yield tmp
        if tmp.is_file():
            _sync(tmp)
        os.replace(tmp, dst)
    except BaseException:
        _remove(tmp)
        raise
    finally:
        os.close(lock)


def check_place(path: str | os.PathLike) -> None:
    """ValueError, one line, where no folder can be made or written at `path`."""
    path = pathlib.Path(os.path.abspath(path))
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > 240:  # what is written beside it has a longer name
        raise ValueError(f"{str(path)[:60]}… has a name of {longest} bytes: use a shorter one")
    for above in (path, *path.parents):
        if os.path.lexists(above):
            break
    if above.is_symlink() and not above.exists():
        raise ValueError(
            f"{above} is a link to what is not there: name another place, or remove it"
        )
    if not above.is_dir():
        raise ValueError(f"{above} is a file and no folder: name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{above} cannot be written to: name another place")


@contextlib.contextmanager
def folder_once(dst: str | os.PathLike) -> Iterator[pathlib.Path | None]:
    """A folder beside `dst` to fill, which becomes dst where the block ends without error; None
    where dst is there.

    One process at a time: others wait, and find dst. What a killed process left is cleared.
    """
    import fcntl

    dst = pathlib.Path(dst)
    tmp = dst.with_name(dst.name + ".tmp")
    while not dst.exists():
        tmp.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(tmp / "lock", "a")  # a file: a network's file system locks no folder
        except FileNotFoundError:
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_same(lock.fileno(), tmp / "lock"):
                continue  # renamed or cleared by the process that had it
            if dst.exists():
                shutil.rmtree(tmp)
                break
            try:
                for old in set(tmp.iterdir()) - {tmp / "lock"}:
                    _remove(old)
                yield tmp
                os.rename(tmp, dst)
            except BaseException:
                _remove(tmp)
                raise
            (dst / "lock").unlink()
            return
    yield None


def lock(file: Any) -> bool:
    """Lock an open file or descriptor until it is closed or its process ends; False where another
    has it.

    A network's file system may know no locks: then nothing is locked, and that is no error.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _locked(dst, folder):
    """(a new path beside dst, a descriptor whose lock says that its writer lives); clears what dead
    writers left."""
    import fcntl

    prefix = f".{dst.name[:100]}."
    for old in dst.parent.glob(_literal(prefix) + "*.tmp"):
        with contextlib.suppress(OSError):
            access = os.O_RDONLY if old.is_dir() else os.O_RDWR
            fd = os.open(old, access | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                _remove(old)
            finally:
                os.close(fd)
    while True:
        if folder:
            tmp = tempfile.mkdtemp(".tmp", prefix, dst.parent)
            fd = os.open(tmp, os.O_RDONLY)
        else:
            fd, tmp = tempfile.mkstemp(".tmp", prefix, dst.parent)
        with contextlib.suppress(OSError):  # a network's file system locks no folder
            fcntl.flock(fd, fcntl.LOCK_EX)
        os.chmod(tmp, (0o777 if folder else 0o666) & ~_umask())
        if _is_same(fd, tmp):  # and was not cleared before it was locked
            return pathlib.Path(tmp), fd
        os.close(fd)


def _umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _literal(name):
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_same(fd, path):
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _sync(path):
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- reading ---


def read_json(path: str | os.PathLike, expect: type | None = dict, nan: bool = False) -> Any:
    """The value of a JSON file, of the type `expect` (dict, list; None: any).

    ValueError in one line with file, line and what was expected; also for NaN unless `nan`, for
    what is nested too deeply and for what is not UTF-8. A file that is not there stays
    FileNotFoundError.
    """
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start:,}) where {KINDS[expect]} was "
            "expected: restore the file"
        ) from None
    return _loads(text, str(path), expect, nan)


def json_lines(
    path: str | os.PathLike, expect: type | None = dict, repair: bool = True, nan: bool = False
) -> list:
    """The values of a JSON lines file.

    A torn last line, left by a kill within a write, is cut off the file where `repair` and passed
    over where not. Any other damage is a ValueError with file and line.
    """
    raw = pathlib.Path(path).read_bytes()
    values, good = [], 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            value = _loads(line.decode(), f"{path}, line {number}", expect, nan)
            if not line.endswith(b"\n"):
                raise ValueError
        except ValueError as error:
            if good + len(line) < len(raw):
                if isinstance(error, UnicodeDecodeError):
                    error = ValueError(f"{path}, line {number} is not text in UTF-8")
                raise ValueError(f"{error}, or name another --out") from None
            if repair:
                os.truncate(path, good)
                terminal.say(f"{path}: 1 torn line at its end (a kill within a write) was cut off")
            break
        values.append(value)
        good += len(line)
    return values


def _loads(text, where, expect, nan):
    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    try:
        value = json.loads(text, parse_constant=None if nan else refuse)
    except json.JSONDecodeError as error:
        at = f", line {error.lineno}" if "\n" in text.rstrip() else ""
        raise ValueError(f"{where}{at} is not JSON ({error.msg}): restore the file") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply: restore the file") from None
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error}): restore the file") from None
    if expect is not None and not isinstance(value, expect):
        article = {dict: "an object", list: "a list", str: "a string"}.get(type(value), "a value")
        raise ValueError(
            f"{where} holds {article} where {KINDS[expect]} was expected: restore the file"
        )
    return value


def sha256(path: str | os.PathLike) -> str:
    """Of a file, or of the files of a folder one after another in the order of their names, in
    hexadecimal."""
    path, digest = pathlib.Path(path), hashlib.sha256()
    for part in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        with open(part, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
