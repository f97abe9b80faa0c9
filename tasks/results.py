"""A result directory: append finished items, resume, close it with a summary and a page; pair two.

    results.json   task, score, n, 95 % interval, settings, model, seconds, items/s, and what the
                   task adds; "finished" is false while it runs
    samples.jsonl  one object an item: id, prompt, output, extracted, gold, verdict; in the order of
                   the input once finished
    index.html     the same to read (page.py)

An item is on disk before it counts as done, so a killed evaluation goes on where it was. Left out:
what a score is (each task's file).
"""

import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from host.files import dumps, json_lines, lock, read_json, write_json, write_whole
from host.terminal import printable
from tasks.page import page

if TYPE_CHECKING:
    import numpy as np

# settings that may differ between a run and its resumption: they do not change what is measured
Path = str | os.PathLike
FREE = ("batch", "mesh", "dtype", "workers")


def read_result(out: Path) -> dict:
    """results.json of a directory; ValueError where there is none, or no result in it."""
    path = pathlib.Path(out) / "results.json"
    try:
        result = read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{out} holds no results.json: name a result directory of eval.py"
        ) from None
    for name, is_right in FIELDS.items():
        if not is_right(result.get(name)):
            raise ValueError(f"{path} has {name} {short(result.get(name))}: restore the file")
    missing = [name for name in FIELDS if result.get("finished") and name not in result]
    if {"score", "n", "interval"} & set(missing):
        raise ValueError(f"{path} is finished without {missing[0]}: restore the file")
    return result


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that a float can hold."""
    return isinstance(value, (int, float)) and abs(value) < 1e300


def is_interval(value: Any) -> bool:
    """Whether a value of a file is (low, high)."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


# what results.json holds under these names, or no result is there
FIELDS = {
    "task": lambda v: isinstance(v, str),
    "settings": lambda v: v is None or isinstance(v, dict),
    "score": lambda v: v is None or is_number(v),
    "seconds": lambda v: v is None or is_number(v),
    "n": lambda v: v is None or is_number(v),
    "interval": lambda v: v is None or is_interval(v),
}


def read_items(path: pathlib.Path, repair: bool = False) -> dict:
    """id -> item of a samples.jsonl."""
    items = {}
    for number, item in enumerate(json_lines(path, repair=repair), 1):
        name = item.get("id")
        if not isinstance(name, (str, int)):
            raise ValueError(f"{path}, line {number} has id {short(name)}: restore the file")
        items[name] = item
    return items


class Result:
    """An evaluation being written to `out`.

    settings (JSON values) and model (a path or a fingerprint, or None) are what a resumed run must
    share: a ValueError names the first that differs (FREE may). `done`: id -> item of what was
    finished before. add(item) puts one more on disk. finish(order, found) closes it.
    """

    def __init__(self, out, task: str, settings: dict, model=None):
        self.out, self.started = pathlib.Path(out), time.time()
        self.head = json.loads(dumps({"task": task, "settings": settings, "model": model}))
        self.samples = self.out / "samples.jsonl"
        self.done, self.before, self.finished = {}, 0.0, False
        if (self.out / "results.json").exists():
            old = read_result(self.out)
            self._refuse_another(old)
            self.before, self.finished = old.get("seconds") or 0.0, bool(old.get("finished"))
            if self.samples.exists():
                self.done = read_items(self.samples, repair=True)
        else:
            if self.samples.exists():
                raise ValueError(
                    f"{self.out} holds samples.jsonl without results.json: name another --out, or "
                    "remove it"
                )
            self.out.mkdir(parents=True, exist_ok=True)
            self._write({"finished": False, "score": None})
        self.resumed = len(self.done)
        self.file, self.synced = self._locked(), time.monotonic()

    def _locked(self):
        """samples.jsonl open to append, with a lock that ends with this process."""
        file = open(self.samples, "a", encoding="utf-8")
        if not lock(file):
            file.close()
            raise ValueError(
                f"another process is writing to {self.out}: wait for it, or name another --out"
            )
        return file

    def _write(self, more):
        write_json(self.out / "results.json", self.head | more)

    def _refuse_another(self, old):
        for name in ("task", "model"):
            if old.get(name) != self.head[name]:
                raise ValueError(
                    f"{self.out} holds a result with {name} {old.get(name)}, this one has "
                    f"{self.head[name]}: name another --out"
                )
        was, now = old.get("settings") or {}, self.head["settings"]
        for name in [*now, *(n for n in was if n not in now)]:
            if name not in FREE and was.get(name) != now.get(name):
                raise ValueError(
                    f"{self.out} holds a result with {name} {short(was.get(name))}, this one has "
                    f"{short(now.get(name))}: use the same, or another --out"
                )

    def add(self, item: dict) -> None:
        """Append one finished item, with a unique "id"; flushed when this returns."""
        assert item["id"] not in self.done, item["id"]
        item = json.loads(dumps(item))
        self.file.write(dumps(item) + "\n")
        self.file.flush()
        if time.monotonic() - self.synced > 1:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()
        self.done[item["id"]] = item

    def finish(self, order: Iterable, found: dict) -> dict:
        """Write the three files -> results.json as a dict.

        order: all ids as in the input. found: score, n, interval (low, high) and what the task
        adds.
        """
        self.file.close()
        missing = [i for i in order if i not in self.done]
        assert not missing, f"unfinished: {missing[:5]}"
        items = [self.done[i] for i in order]
        seconds = time.time() - self.started
        new = len(items) - self.resumed
        result = self.head | {
            "finished": True,
            "score": None,
            "n": len(items),
            "interval": None,
            **found,
            "seconds": round(self.before + seconds, 3),
            "items_per_s": round(new / seconds, 3) if new > 0 else None,
        }
        result = json.loads(dumps(result))
        write_whole(self.samples, "".join(dumps(i) + "\n" for i in items))
        write_whole(self.out / "index.html", page(result, items))
        write_json(self.out / "results.json", result)
        return result

    def pause(self) -> None:
        """Close without finishing: what is done stays, and the time it took."""
        self.file.close()
        seconds = round(self.before + time.time() - self.started, 3)
        self._write({"finished": False, "score": None, "seconds": seconds})


def short(value: Any, width: int = 80) -> str:
    """A value of a foreign file in one printable line."""
    text = printable(json.dumps(value, ensure_ascii=False), lines=False)
    return text if len(text) <= width else text[: width - 1] + "…"


# --- two results ---


def pair(a: Path, b: Path, metric: str = "verdict") -> "tuple[str, np.ndarray, np.ndarray, dict]":
    """Two result directories of one task over the same items.

    -> (task, values of a [n], values of b [n] float64, settings that differ {name: [a, b]}). Items
    are paired by id, in a's order. ValueError where tasks, items or gold answers differ, or where
    an item has no number under `metric`.
    """
    import numpy as np

    heads, items = [read_result(p) for p in (a, b)], []
    for path, head in zip((a, b), heads, strict=True):
        if not head.get("finished"):
            raise ValueError(f"{path} is not finished: run the same evaluation again, it goes on")
        items.append(read_items(pathlib.Path(path) / "samples.jsonl"))
    if heads[0]["task"] != heads[1]["task"]:
        raise ValueError(
            f"{a} is a result of {heads[0]['task']}, {b} of {heads[1]['task']}: compare two of one "
            "task"
        )
    unpaired = items[0].keys() ^ items[1].keys()
    if unpaired:
        raise ValueError(
            f"{a} and {b} are over different items ({len(unpaired)} are in one only, "
            f"{sorted(map(str, unpaired))[0]} among them): run both with the same data and --limit"
        )
    other = [i for i in items[0] if items[0][i].get("gold") != items[1][i].get("gold")]
    if other:
        raise ValueError(
            f"{a} and {b} have different gold answers for {other[0]}: run both on the same data"
        )
    values = []
    for path, rows in zip((a, b), items, strict=True):
        if any(not isinstance(rows[i].get(metric), (bool, int, float)) for i in items[0]):
            raise ValueError(
                f"{path} has no number under {metric!r} in its items: there is nothing to compare"
            )
        values.append(np.array([float(rows[i][metric]) for i in items[0]]))
    settings = [(h.get("settings") or {}) | {"model": h.get("model")} for h in heads]
    differ = {
        n: [s.get(n) for s in settings]
        for n in {**settings[0], **settings[1]}
        if settings[0].get(n) != settings[1].get(n)
    }
    return heads[0]["task"], values[0], values[1], differ
