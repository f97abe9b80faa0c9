"""Sources -> the ids of every dialogue, one after another in a file: what packing reads at random.

For data.py; nothing to run. Dialogues without an answer are left out and counted. Left out: how a
dialogue becomes ids (data.tokenize_dialogue, handed in).
"""

import array
import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from host import terminal, workers
from text import tokenizer
from text.dialogues import (
    Dialogue,
    Malformed,
    continues,
    has_answer,
    parsed,
    peculiarities,
    piece_of,
    question_key,
    split_key,
)
from text.rows import Spill
from text.sources import raw_chunks

SMALL = 8 << 20  # bytes of sources below which starting workers takes longer than it saves

# (dialogue, tokenizer) -> (ids, loss mask); picklable, since worker processes call it
Encode = Callable[[Dialogue, tokenizer.Tokenizer], tuple[np.ndarray, np.ndarray]]


def spill(
    sources: list[pathlib.Path],
    tok: tokenizer.Tokenizer,
    encode: Encode,
    path: pathlib.Path,
    max_bad: float,
    n_workers: int | None,
) -> Spill:
    """Tokenize every dialogue that has an answer into the file `path`.

    The bytes are the same for any number of worker processes (None: by the sources' size).
    """
    sizes = [s.stat().st_size for s in sources]
    if n_workers is None:
        n_workers = (os.cpu_count() or 1) if sum(sizes) >= SMALL else 1
    lengths, keys, pieces = array.array("q"), array.array("q"), []
    counts = collections.Counter(rows=0, dialogues=0, malformed=0)
    progress = terminal.Progress("tokenizing", sum(sizes), "bytes")
    malformed = [Malformed(s, max_bad) for s in sources]
    jobs = (
        (number, s.name, chunk, at)
        for number, s in enumerate(sources)
        for chunk, at in raw_chunks(s)
    )
    if n_workers == 1:
        results = (_tokenize(job, tok, encode) for job in jobs)
    else:
        about = (tok.origin, encode)
        results = workers.ordered(_work, jobs, n_workers, _start_worker, about)
    last = 0
    with open(path, "wb") as file:
        for number, at, chunk in results:
            for done in malformed[last:number]:
                done.close()
            last = number
            malformed[number].add(chunk.rows, chunk.bad)
            file.write(chunk.ids)
            pieces += [(len(keys) + i, *piece) for i, piece in chunk.pieces]
            lengths.extend(chunk.lengths)
            keys.extend(chunk.keys)
            counts.update(chunk.counts, rows=chunk.rows, malformed=len(chunk.bad))
            progress(sum(sizes[:number]) + at)
    for done in malformed[last:]:
        done.close()
    progress.close()
    _split_false_pieces(keys, pieces)
    return Spill(path, np.array(lengths), np.array(keys), counts)


def _split_false_pieces(keys, pieces):
    """Give dialogues that only look like pieces of one the keys of their questions."""
    groups = collections.defaultdict(list)
    for piece in pieces:
        groups[keys[piece[0]]].append(piece)
    for group in groups.values():
        if not continues((n, turns, speaker) for _, n, turns, speaker, _ in group):
            for i, *_, key in group:
                keys[i] = key


@dataclasses.dataclass
class _Tokenized:
    """A chunk of raw rows, tokenized."""

    rows: int
    ids: bytes  # of int32, id * 2 + mask
    lengths: list[int]
    keys: list[int]
    pieces: list[tuple]  # (number in the chunk, (n, turns, first speaker, key of its questions))
    bad: list[tuple[str, str]]  # (place, reason) of the malformed rows
    counts: collections.Counter


def _start_worker(origin, encode):
    global _worker
    _worker = tokenizer.load(*origin), encode


def _work(job):
    return _tokenize(job, *_worker)


def _tokenize(job, tok, encode):
    """(number of the source, bytes of it read, _Tokenized) of a job (number, name, chunk,
    bytes)."""
    number, name, chunk, at = job
    ids, lengths, keys, pieces, bad, counts = [], [], [], [], [], collections.Counter()
    for dialogues in parsed(chunk, name, bad):
        counts["rows without an answer (skipped)"] += not dialogues
        for dialogue in dialogues:
            counts["dialogues"] += 1
            counts.update(peculiarities(dialogue))
            if not has_answer(dialogue):
                counts["dialogues without an answer to learn (skipped)"] += 1
                continue
            if piece := piece_of(dialogue["id"]):
                said = dialogue.get("conversations") or [{"from": ""}]
                about = (piece[1], len(said), said[0]["from"], question_key(dialogue))
                pieces.append((len(keys), about))
            tokens, mask = encode(dialogue, tok)
            ids.append((tokens * 2 + mask).astype(np.int32).tobytes())
            lengths.append(len(tokens))
            keys.append(split_key(dialogue))
    return number, at, _Tokenized(len(chunk), b"".join(ids), lengths, keys, pieces, bad, counts)
