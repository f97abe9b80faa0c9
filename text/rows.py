"""The ids of many dialogues -> rows of one length, and the order in which they come: arrays in, arrays out.

For data.py, which has the files and the flags; nothing to run. A token and its mask bit are one int32 here, id * 2 +
mask, and `read(i)` gives those of dialogue i, at least two. A row is int32 [block + 1], padded with 0 (id 0, no loss):
the model reads row[:-1] and predicts row[1:] where the mask bit is set.
"""

import bisect

import numpy as np

# ---- rows ------------------------------------------------------------------------------------------------------------


def stream_rows(read, order, block):
    """The dialogues one after another, cut into windows of block + 1 that overlap by one token; the last is padded.

    Yields (row int32 [block + 1], None). The first token of a row is no target: it was one in the row before.
    """
    rest = np.zeros(0, np.int32)
    for i in order:
        rest = np.concatenate([rest, read(i)])
        while len(rest) > block:
            yield _row([rest[: block + 1]], block), None
            rest = rest[block:]
    if len(rest) > 1:
        yield _row([rest], block), None


def document_rows(read, order, lengths, block):
    """Dialogues side by side where they fit best; yields (row, segment int32 [block + 1]: from 1; 0 is padding).

    A dialogue longer than the row goes on in another as a segment of its own, which repeats one token as context.
    """
    pieces = [(i, at) for i in order for at in range(0, max(lengths[i] - 1, 1), block)]
    for group in best_fit(
        np.array([min(lengths[i] - at, block + 1) for i, at in pieces], np.int64), block + 1
    ):
        parts = [read(i)[at : at + block + 1] for i, at in (pieces[g] for g in group)]
        segment = np.repeat(np.arange(1, len(parts) + 1, dtype=np.int32), [len(p) for p in parts])
        yield _row(parts, block), np.pad(segment, (0, block + 1 - len(segment)))


def single_rows(read, order, block):
    """One dialogue a row, cut at the block; None instead of (row, segment) where no loss token comes before the cut."""
    for i in order:
        part = read(i)[: block + 1]
        row = _row([part], block)
        yield (
            (row, (np.arange(block + 1) < len(part)).astype(np.int32)) if (row & 1).any() else None
        )


def _row(parts, block):
    """The parts side by side, padded; nothing comes before a part that its first token could be predicted from."""
    row, at = np.zeros(block + 1, np.int32), 0
    for part in parts:
        row[at : at + len(part)] = part
        row[at] &= ~1
        at += len(part)
    return row


def best_fit(lengths, room):
    """Groups of indices of `lengths`, each at most `room` together: longest first, into the fullest group with room."""
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


# ---- order -----------------------------------------------------------------------------------------------------------


def shuffled(n, *seeds):
    """A permutation of range(n), int64, by the seeds alone: not by numpy's version, as np.random's may be.

    Sorts the outputs of splitmix64 (Steele, Lea, Flood 2014).
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


def split_off(keys, fraction, seed):
    """bool [n], the validation dialogues: whole groups of equal split key, about the share `fraction`, at least one."""
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
