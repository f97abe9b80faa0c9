"""Rows of a data set as device arrays: the batch of a step, made while the step before it runs.

For train.py; nothing to run. Steps are numbered from 1, and the batch of step s is a pure function
of (data, seed, s). Left out: what a row is (data.py).
"""

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

import data
from sharding import DATA
from text.tokenizer import Tokenizer

DTYPES = {"tokens": jnp.int32, "loss_mask": jnp.int8, "segment": jnp.int32, "stop": jnp.int32}


class Source(NamedTuple):
    """What the batches of a run are taken from, and how."""

    train: data.Dataset
    mix: data.Dataset | None  # plain text mixed in
    mix_fraction: float  # its share of the rows
    batch: int  # rows a step, over all devices
    accumulate: int  # micro-batches a step
    seed: int

    def rows(self, step: int) -> tuple[Callable, np.ndarray]:
        """(read: indices -> dict of arrays, the indices [B] of step `step`)."""
        if self.mix is None:
            indices = data.batch_indices(len(self.train), self.batch, self.seed, step)
            return self.train.rows, indices
        return data.mixed(self.train, self.mix, self.batch, self.mix_fraction, self.seed, step)

    def rows_of(self, step: int) -> list[int]:
        return self.rows(step)[1].tolist()

    def batch_of(self, step: int, mesh: Mesh, stop: bool = False) -> dict[str, jax.Array]:
        """The batch of step `step` on the devices."""
        return device_batch(*self.rows(step), self.accumulate, mesh, stop)

    def batch_like(self, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and places of `batch_of`, for a step that is compiled before there is a batch."""
        return batch_like(self.train.columns, self.batch, self.accumulate, mesh)


def batch_like(columns: dict[str, int], batch: int, accumulate: int, mesh: Mesh) -> dict[str, Any]:
    """What `device_batch` makes of `batch` rows. columns: name -> ids a row."""
    place = NamedSharding(mesh, Spec(None, DATA))
    rows = accumulate, batch // accumulate
    return {
        name: jax.ShapeDtypeStruct((*rows, width), DTYPES[name], sharding=place)
        for name, width in {**columns, "stop": 1}.items()
    }


def device_batch(
    read: Callable, indices: np.ndarray, accumulate: int, mesh: Mesh, stop: bool = False
) -> dict[str, jax.Array]:
    """Rows `indices` [B] (-1: a row of padding) as device arrays [A, B / A, T + 1].

    Each process reads only the rows that its devices hold. read: indices [n] -> dict of arrays
    [n, T + 1]. stop: this process wants to stop; it travels with the rows to all others.
    """
    grid = indices.reshape(accumulate, -1)
    place = NamedSharding(mesh, Spec(None, DATA))
    parts = {}  # the columns of one data rank -> its rows, read once though tensor ranks share them
    for index in place.addressable_devices_indices_map(grid.shape).values():
        assert index is not None
        columns = range(*index[1].indices(grid.shape[1]))
        if columns not in parts:
            wanted = grid[:, columns.start : columns.stop].reshape(-1)
            rows = read(np.maximum(wanted, 0))
            rows = {
                n: np.where((wanted >= 0)[:, None], x, 0).astype(x.dtype) for n, x in rows.items()
            }
            rows["stop"] = np.full((len(wanted), 1), stop, np.int32)
            parts[columns] = {n: x.reshape(accumulate, len(columns), -1) for n, x in rows.items()}
    first = next(iter(parts.values()))
    return {
        name: jax.make_array_from_callback(
            grid.shape + x.shape[2:],
            place,
            lambda at, name=name: parts[range(*at[1].indices(grid.shape[1]))][name],  # type: ignore
        )
        for name, x in first.items()
    }


def held_out(dataset: data.Dataset, batch: int, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """All rows of a data set in order, the last batch filled up with rows of padding."""
    for start in range(0, len(dataset), batch):
        indices = np.arange(start, start + batch)
        yield device_batch(dataset.rows, np.where(indices < len(dataset), indices, -1), 1, mesh)


def prompts_of(dataset: data.Dataset, tok: Tokenizer, count: int, longest: int) -> list[list[int]]:
    """The first `count` prompts of a data set, at most one a row, cut out by their loss masks.

    A prompt begins where a document does and ends where the first learned token is. Where documents
    do not begin with a token of their own, it begins with the first special token behind an answer.
    """
    prompts = []
    for row in range(len(dataset)):
        arrays = dataset.rows([row])
        tokens, mask = arrays["tokens"][0], arrays["loss_mask"][0]
        opening = tok.opening[0] if tok.opening else None
        if opening is not None:
            starts = np.flatnonzero(tokens == opening)
        else:
            special = np.flatnonzero(np.isin(tokens, list(tok.special)) & (mask == 0))
            ends = np.flatnonzero((mask[:-1] == 1) & (mask[1:] == 0)) + 1
            firsts = np.searchsorted(special, ends)
            starts = special[firsts[firsts < len(special)]]
        for start in starts:
            learned = np.flatnonzero(mask[start:])
            n = int(learned[0]) if len(learned) else 0
            if 4 < n < longest and opening not in tokens[start + 1 : start + n].tolist():
                prompts.append(tokens[start : start + n].tolist())
                break
        if len(prompts) == count:
            break
    return prompts


@contextlib.contextmanager
def prefetch(make: Callable[[int], Any], steps: Iterable[int]) -> Iterator[Iterator[Any]]:
    """An iterator over (s, make(s)) for s in steps, the next one being made in a thread meanwhile.

    Leaving the block, by an error too, ends the thread.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield _ahead(pool, make, steps)


def _ahead(pool, make, steps):
    pending = None
    for s in steps:
        current, pending = pending, (s, pool.submit(make, s))
        if current:
            yield current[0], current[1].result()
    if pending:
        yield pending[0], pending[1].result()
