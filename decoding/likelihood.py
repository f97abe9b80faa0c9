"""How likely a model finds given tokens: requests packed into rows, what they share computed once.

    python eval.py loglik --model M --input FILE --out DIR

Requests that begin alike form a group. A large group's beginning, such as the five shots of a
subject, is read once into a cache that all its rows see. A small group is laid into a row as tree:
the trunk once, the branches behind it, each branch blind to the others. Rows hold as many trees as
fit, so padding is little and the shapes, hence compilations, few.
Left out: sharing on several levels (a group has one beginning).
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as Spec

import model
from decoding import cache
from decoding.batch import bucket
from decoding.records import Request, shared_length
from decoding.sampling import margin
from sharding import DATA
from text.rows import best_fit

ROW = 256  # tokens a row, at least
QUERIES = 128  # places whose logits exist at once


class Tree(NamedTuple):
    """Requests of one row that share their beginning."""

    trunk: list  # ids
    branches: list  # (request's index, ids behind the trunk)

    def size(self) -> int:
        return len(self.trunk) + sum(len(ids) for _, ids in self.branches)


def groups(keys: list[list[int]]) -> list[tuple[int, list[int]]]:
    """[(depth, [indices of keys])]: a partition of the keys into groups that share `depth` ids.

    Of the partitions whose groups hold every key that begins so, it is the one that saves the most
    ids, (members - 1) * depth summed. In sorted order such groups are the intervals of the array of
    neighbours' common prefixes, which nest. Bottom up, each is either one group or what its
    children are.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    # open intervals: [depth, first, saved by the children, their groups (depth, first, end)]
    stack = [[0, 0, 0, []]]
    for i in range(1, len(order) + 1):
        depth = shared_length(keys[order[i - 1]], keys[order[i]]) if i < len(order) else 0
        first, saved, parts = i - 1, 0, []
        while stack[-1][0] > depth:
            d, first, below, parts = stack.pop()
            saved = d * (i - first - 1)
            if saved >= below:
                parts = [(d, first, i)]
            else:
                saved = below
            if stack[-1][0] >= depth:
                stack[-1][2] += saved
                stack[-1][3] += parts
                saved, parts = 0, []
        if stack[-1][0] < depth:
            stack.append([depth, first, saved, parts])
    partition, at = [], 0
    for d, first, end in stack[0][3]:
        partition += [(0, [i]) for i in order[at:first]] + [(d, order[first:end])]
        at = end
    return partition + [(0, [i]) for i in order[at:]]


def batch_requests(
    requests: list[Request], tokens: int, share: bool = True
) -> list[tuple[list[int], list[Tree]]]:
    """[(prefix ids, [Tree])] of the requests, the pair with an empty prefix last.

    Each pair is computed by itself. tokens: how many are computed at once.
    """
    # a place that is asked for, and what follows, is the request's own
    keys = [r.ids[: r.at[0]] for r in requests]
    jobs, loose = [], []
    for depth, members in groups(keys) if share else [(0, [i]) for i in range(len(requests))]:
        trunk = requests[members[0]].ids[:depth]
        branches = [(i, requests[i].ids[depth:]) for i in members]
        if depth * (len(members) - 1) > tokens:
            jobs.append((trunk, [Tree([], [b]) for b in branches]))
            continue
        branches.sort(key=lambda b: -len(b[1]))
        room = max(bucket(depth + len(branches[0][1]), ROW), 2 * ROW)
        while branches:  # as many branches to a tree as a row holds
            tree = Tree(trunk, [branches.pop(0)])
            left = room - tree.size()
            for b in list(branches):
                if len(b[1]) <= left:
                    tree.branches.append(b)
                    branches.remove(b)
                    left -= len(b[1])
            loose.append(tree)
    return jobs + ([([], loose)] if loose else [])


class Scorer:
    """The compiled programs that score one model on one mesh; weights are checkpoint.load's."""

    def __init__(self, config, mesh, layout, dtype=jnp.float32):
        self.config, self.layout, self.dtype, self.data = config, layout, dtype, layout.data
        specs, rows = layout.stacked(config), Spec(DATA)
        self.prefixes = cache.PrefixCache(config, mesh, layout, specs, dtype)
        in_specs = specs, rows, rows, self.prefixes.spec, Spec()
        local = jax.shard_map(
            self._score, mesh=mesh, in_specs=in_specs, out_specs=rows, check_vma=False
        )
        self.compiled = jax.jit(local)
        self.computed = 0  # tokens of requests that went through the model, padding not counted

    def _score(self, weights, rows, queries, prefix, length):
        """The first `count` of (logp [R * T, C] f32, best id, margin) of what is asked for.

        rows: ids, position, tree, branch [R, T]. queries: at [R * T] (flat places), want
        [R * T, C], count [1].
        """
        dims = self.config, self.layout, self.dtype
        seen = cache.visible(rows["tree"], rows["branch"])
        read = cache.Rows(rows["ids"], rows["position"], seen)
        x_BTD, _ = cache.prefill(weights, read, prefix, length, *dims)
        x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
        _, outer = model.split_layers(weights, self.config)
        M, C = queries["want"].shape

        def some(i, out):
            def take(a):
                return lax.dynamic_slice_in_dim(a, i * QUERIES, QUERIES)

            logits = model.logits(x_MD[take(queries["at"])][None], outer, *dims)[0]
            wanted = jnp.take_along_axis(logits, take(queries["want"]), axis=1)
            logp = wanted - jax.nn.logsumexp(logits, axis=1, keepdims=True)
            parts = logp, *margin(logits)

            def put(o, p):
                return lax.dynamic_update_slice_in_dim(o, p, i * QUERIES, axis=0)

            return tuple(map(put, out, parts))

        start = jnp.zeros((M, C), jnp.float32), jnp.zeros(M, jnp.int32), jnp.zeros(M, jnp.float32)
        return lax.fori_loop(0, (queries["count"][0] + QUERIES - 1) // QUERIES, some, start)

    def score(
        self, weights: dict, requests: list[Request], batch: int = 16, share: bool = True
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields (index, logp [places, C], best ids [places], margin [places]) in any order.

        logp: float32, nats. margin: between the best two. batch: times 128 tokens are computed at
        once (a longer request alone). share False: every request by itself, to compare with. At
        most P ids a request.
        """
        assert all(r.at and r.at[-1] < len(r.ids) <= self.config.P for r in requests)
        tokens = max(batch * 128, ROW)
        for shared, trees in batch_requests(requests, tokens, share):
            prefix = self.prefixes.read(weights, shared)
            self.computed += len(shared)
            for T, members in classes([t.size() for t in trees], one=bool(shared)):
                rows = [
                    [trees[members[i]] for i in group]
                    for group in best_fit(np.array([trees[m].size() for m in members]), T)
                ]
                most = max(tokens // (T * self.data), 1) * self.data
                while rows:
                    R = self.data
                    while R < min(len(rows), most):
                        R = min(2 * R, most)
                    row, queries, where = self._arrays(requests, rows[:R], (R, T), len(shared))
                    length = np.int32(len(shared))
                    logp, best, margins = map(
                        np.asarray, self.compiled(weights, row, queries, prefix, length)
                    )
                    for index, to in where:
                        yield index, logp[to], best[to], margins[to]
                    rows = rows[R:]

    def _arrays(self, requests, rows, shape, length):
        """The arrays of _score for the trees of `rows`: R rows of T tokens, padded.

        -> (rows, queries, [(request's index, slice of its answers)]).
        """
        R, T = shape
        per_rank = R // self.data
        row = {key: np.zeros((R, T), np.int32) for key in ("ids", "position", "tree", "branch")}
        C = len(requests[rows[0][0].branches[0][0]].want[0])
        at_of = np.zeros((self.data, per_rank * T), np.int32)
        want = np.zeros((self.data, per_rank * T, C), np.int32)
        count = np.zeros(self.data, np.int32)
        where = []
        for r, trees in enumerate(rows):
            rank, at = r // per_rank, 0
            for tree, (trunk, branches) in enumerate(trees, 1):
                for branch, (index, ids) in enumerate([(None, trunk), *branches]):
                    to = slice(at, at + len(ids))
                    begin = length + (len(trunk) if branch else 0)
                    row["ids"][r, to], row["tree"][r, to], row["branch"][r, to] = ids, tree, branch
                    row["position"][r, to] = begin + np.arange(len(ids))
                    if branch:
                        k, request = count[rank], requests[index]
                        n = len(request.at)
                        own = np.array(request.at) - begin
                        at_of[rank, k : k + n] = (r % per_rank) * T + at + own
                        want[rank, k : k + n] = request.want
                        count[rank] += n
                        first = rank * per_rank * T + k
                        where.append((index, slice(first, first + n)))
                    at += len(ids)
            self.computed += at
        queries = {"at": at_of.reshape(-1), "want": want.reshape(-1, C), "count": count}
        return row, queries, where


def classes(sizes: list[int], one: bool) -> list[tuple[int, list[int]]]:
    """[(row length, indices)]: trees that go into rows of one length, the longest first.

    one: all in one class (rows behind one prefix: few, and each length is a program).
    """
    if one:
        return [(row_length(max(sizes)), list(range(len(sizes))))]
    by_length = {}
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        by_length.setdefault(row_length(sizes[i]), []).append(i)
    return list(by_length.items())


@functools.cache
def row_length(size: int) -> int:
    """A multiple of 128 of at least ROW, an eighth to a quarter above `size` at most."""
    return -(-bucket(size, ROW) // 128) * 128
