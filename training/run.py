"""A run's directory: who may write there, what it was started with, which of its steps are there.

For train.py; nothing to run. A run directory holds run.json, metrics.jsonl, checkpoints/ and
tokenizer/. Left out: the checkpoints themselves (checkpoint/runs.py).
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from host import files
from host.version import __version__
from training.flags import RESUMABLE, Settings

LOCK = ".lock"
GLOBBED = set("*?[]\\")  # Orbax takes paths for patterns, TensorStore takes \\ for /

# --- the place ---


def check_place(out: pathlib.Path) -> None:
    """ValueError where `out` can be no run directory. Nothing is made."""
    try:
        os.lstat(out)
        if not out.is_dir():
            kind = "a file" if out.exists() else "a link that leads nowhere"
            raise ValueError(f"--out {out} is {kind}: name another, or remove it")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # a name that is too long, a parent that may not be searched
        raise ValueError(f"--out {out}: {error.strerror}: name another") from None
    for inner in (out / "checkpoints", out / "tokenizer"):
        if os.path.lexists(inner) and not inner.is_dir():
            raise ValueError(f"{inner} is no folder: remove it, or name another --out")
    if odd := sorted(GLOBBED & set(str(out.resolve()))):
        raise ValueError(
            f"--out {out}: Orbax cannot write below a path with {' '.join(odd)}: name another"
        )
    parent = next(p for p in (out, *out.absolute().parents) if os.path.lexists(p))
    if not parent.is_dir():
        raise ValueError(f"--out {out} lies below {parent}, which is no folder: name another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: {parent} may not be written to: name another place")


def check_disk(out: pathlib.Path, checkpoint_bytes: int, keep: int) -> str | None:
    """ValueError where no checkpoint fits onto the disk; a note where not all that are kept."""
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    size, room = (f"{n / 1e9:,.3g} GB" for n in (checkpoint_bytes, free))
    if free < checkpoint_bytes:
        raise ValueError(
            f"--out {out}: a checkpoint takes {size}, its disk has {room} left: make room, or name "
            "another place"
        )
    if free < (keep + 1) * checkpoint_bytes:  # the new one is written before the oldest is removed
        return (
            f"the disk of {out} has {room} left; {keep} checkpoints of {size} and one being "
            "written need more: use a smaller --keep"
        )
    return None


@contextlib.contextmanager
def claim(out: pathlib.Path) -> Iterator[None]:
    """Make `out`, and let nobody else train there within the block. A crash releases it.

    Folders made here go again where the block ends before `start` wrote run.json.
    ValueError where somebody else trains there.
    """
    made = [p for p in (out, *out.absolute().parents) if not p.exists()]
    out.mkdir(parents=True, exist_ok=True)
    lock = open(out / LOCK, "a+", encoding="utf-8")
    if not files.lock(lock):
        lock.seek(0)
        owner = lock.read().strip() or "another process"
        lock.close()
        raise ValueError(
            f"--out {out} is being trained into by {owner}: wait for it, or name another --out"
        )
    try:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        lock.flush()
        yield
    finally:
        if not (out / "run.json").exists():
            (out / LOCK).unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
        lock.close()


# --- what it was started with ---


def record_of(settings: Settings, origin: dict[str, str], found: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds. found: what settings, model and data led to, by name."""
    record = {
        "args": dataclasses.asdict(settings),
        "args_from": origin,
        **found,
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "mynah": __version__},
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return json.loads(files.dumps(record))  # tuples become lists, as they will come back


def check_same_run(old: dict[str, Any], new: dict[str, Any], out: pathlib.Path) -> None:
    """A run goes on only as the run it was: one line naming the first setting that differs."""
    free = set(RESUMABLE)
    if new["args"]["schedule"] == "constant":
        free |= {"steps", "epochs"}  # the rate of a step does not depend on how many there are
    args = old.get("args")
    if not isinstance(args, dict):
        raise ValueError(f"{out / 'run.json'} holds no settings: restore it, or name another --out")
    pairs = [
        (f"--{n.replace('_', '-')}", args.get(n), v)
        for n, v in new["args"].items()
        if n not in free
    ]
    fingerprints = ("data_fingerprint", "init_fingerprint", "tokenizer_fingerprint")
    pairs += [(n, old.get(n), new[n]) for n in ("config", *fingerprints)]
    pairs.append(("a warm-up of steps", old.get("warmup"), new["warmup"]))
    if "steps" not in free:
        pairs.append(("the number of steps", old.get("steps"), new["steps"]))
    for name, was, now in pairs:
        if was != now:
            raise ValueError(
                f"--out {out} holds a run with {name} {was}, this one has {now}: use the same "
                "value, or another --out"
            )


def begin(out: pathlib.Path, record: dict[str, Any]) -> None:
    """Write run.json, or find there the same run. ValueError where another run is there."""
    path = out / "run.json"
    if path.exists():
        check_same_run(files.read_json(path), record, out)
    elif (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise ValueError(
            f"--out {out} holds checkpoints but no run.json, which says what they are of: restore "
            "it, or name another --out"
        )
    files.write_json(path, record)


# --- its steps ---


def cut_metrics(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Keep the lines of metrics.jsonl up to `step`, each once; -> them.

    A resumed run writes the later ones again. A line torn by a kill is of a later step, since lines
    are written before their checkpoint.
    """
    if not path.exists():
        return []
    lines = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            lines.setdefault(line["step"], (text, line))
        except (ValueError, KeyError, TypeError):
            continue
    kept = [lines[s] for s in sorted(lines) if s <= step]
    files.write_whole(path, "".join(text + "\n" for text, _ in kept))
    return [line for _, line in kept]
