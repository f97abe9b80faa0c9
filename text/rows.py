"""The ids of many dialogues -> rows of one length, and the order in which they come.

For data.py, which has the files and the flags; nothing to run. Arrays in, arrays out. A token and
its mask bit are one int32 here, id * 2 + mask, and `read(i)` gives those of dialogue i, at least
two. A row is int32 [block + 1], padded with 0 (id 0, no loss): the model reads row[:-1] and
predicts row[1:] where the mask bit is set.
"""

import bisect
import collections
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

Read = Callable[[int], np.ndarray]  # number of a dialogue -> its int32, id * 2 + mask
Row = tuple[np.ndarray, np.ndarray | None]  # int32 [block + 1] each: id * 2 + mask, segment


@dataclasses.dataclass
class Spill:
    """The dialogues of all sources as ids: `read(i)` of the i-th, `lengths` and `keys` of all."""

    path: pathlib.Path
    lengths: np.ndarray  # int64 [n]
    keys: np.ndarray  # int64 [n]: the leakage keys of text/dialogues.py
    counts: collections.Counter  # rows, dialogues, malformed, and what is worth telling

    def __post_init__(self):
        self._starts = np.cumsum(self.lengths) - self.lengths
        empty = not len(self.lengths)  # a file that cannot be mapped
        self._ids = np.zeros(0, np.int32) if empty else np.memmap(self.path, np.int32, "r")

    def read(self, i: int) -> np.ndarray:
        """int32 [lengths[i]], id * 2 + mask."""
        return self._ids[self._starts[i] : self._starts[i] + self.lengths[i]]


# --- rows ---


def stream_rows(read: Read, order: Iterable[int], block: int) -> Iterator[Row]:
    """The dialogues one after another, cut into windows of block + 1 that overlap by one token.

    Yields (row, None); the last row is padded. The first token of a row is no target: it was one in
    the row before.
    """
    rest = np.zeros(0, np.int32)
    for i in order:
        rest = np.concatenate([rest, read(i)])
        while len(rest) > block:
            yield _row([rest[: block + 1]], block), None
            rest = rest[block:]
    if len(rest) > 1:
        yield _row([rest], block), None


def document_rows(
    read: Read, order: Iterable[int], lengths: np.ndarray, block: int
) -> Iterator[Row]:
    """Dialogues side by side where they fit best; yields (row, segment: from 1; 0 is padding).

    A dialogue longer than the row goes on in another as a segment of its own, which repeats one
    token as context.
    """
    pieces = [(i, at) for i in order for at in range(0, max(lengths[i] - 1, 1), block)]
    for group in best_fit(
        np.array([min(lengths[i] - at, block + 1) for i, at in pieces], np.int64), block + 1
    ):
        parts = [read(i)[at : at + block + 1] for i, at in (pieces[g] for g in group)]
        segment = np.repeat(np.arange(1, len(parts) + 1, dtype=np.int32), [len(p) for p in parts])
        yield _row(parts, block), np.pad(segment, (0, block + 1 - len(segment)))


def single_rows(read: Read, order: Iterable[int], block: int) -> Iterator[Row | None]:
    """One dialogue a row, cut at the block; None where no loss token comes before the cut."""
    for i in order:
        part = read(i)[: block + 1]
        row = _row([part], block)
        yield (
            (row, (np.arange(block + 1) < len(part)).astype(np.int32)) if (row & 1).any() else None
        )


def _row(parts, block):
    """The parts side by side, padded; the first token of a part is no target."""
    row, at = np.zeros(block + 1, np.int32), 0
    for part in parts:
        row[at : at + len(part)] = part
        row[at] &= ~1
        at += len(part)
    return row


def best_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Groups of indices of `lengths`, each at most `room` together.

    Longest first, into the fullest group that has room.
    """
    groups, by_room, rooms = [], {}, []  # by_room: room left -> groups; rooms: its keys, sorted
    for i in np.argsort(-lengths, kind="stable"):
        n = int(lengths[i])
        at = bisect.bisect_left(rooms, n)
        if at == len(rooms):
            groups.append([])
            group, left = groups[-1], room
        else:
            left = rooms[at]
            group = by_room[left].pop()
            if not by_room[left]:
                del rooms[at], by_room[left]
        group.append(int(i))
        left -= n
        if left and left not in by_room:
            bisect.insort(rooms, left)
        if left:
            by_room.setdefault(left, []).append(group)
    return groups


# --- order ---


def shuffled(n: int, *seeds: int) -> np.ndarray:
    """A permutation of range(n), int64, by the seeds alone.

    Not np.random's, which may change with numpy's version. Sorts the outputs of splitmix64 (Steele,
    Lea, Flood 2014).
    """
    state = np.zeros(1, np.uint64)
    for seed in seeds:
        state = _splitmix(state ^ np.uint64(seed % 2**64))
    return np.argsort(
        _splitmix(state + np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)),
        kind="stable",
    )


def _splitmix(x):
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def split_off(keys: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool [n], the validation dialogues: whole groups of equal split key, at least one.

    They are about the share `fraction` of the dialogues.
    """
    if not fraction:
        return np.zeros(len(keys), bool)
    _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    wanted, taken = max(round(fraction * len(keys)), 1), []
    for g in shuffled(len(sizes), seed, 1):
        if sizes[g] <= wanted:
            taken.append(g)
            wanted -= sizes[g]
    held = np.isin(group, taken)
    if not held.any() or held.all():
        raise ValueError(
            f"--eval-fraction {fraction:g} cannot be split off {len(keys):,} dialogues or texts "
            f"({len(sizes):,} with different questions): use --eval-fraction 0, or more data"
        )
    return held
