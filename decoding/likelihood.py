"""How likely a model finds given tokens: requests packed into rows, what they share computed once.

    python eval.py loglik --model M --input FILE --out DIR

A request is a text, the places in it whose next token is asked for, and the candidates at each. Requests that begin alike form a group. A large group's beginning, such as the five shots of a subject, is read once into a cache that all its rows see; a small one is laid into a row as a
tree: the trunk once, the branches behind it, each branch blind to the others. Rows hold as many trees as fit, so padding is little and the shapes, hence compilations, few.
Left out: sharing on several levels (a group has one beginning).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

import model
from decoding import cache as cached
from decoding.generate import bucket, common
from sharding import DATA
from text.rows import best_fit

ROW = 256  # tokens a row, at least
ASKED = 128  # places whose logits exist at once


class Request(NamedTuple):
    ids: list  # the text from its start
    at: list  # places in it, ascending: the token behind each is asked for
    want: list  # at each place, the candidates' ids: the same number in all requests


class Tree(NamedTuple):
    trunk: list  # ids
    branches: list  # (request's index, ids behind the trunk)

    def size(self):
        return len(self.trunk) + sum(len(ids) for _, ids in self.branches)


def groups(keys):
    """[(depth, [indices of keys])]: a partition of the keys into groups that share `depth` ids: of those whose groups hold every key that begins so, the one that saves the
    most ids, (members - 1) * depth summed.

    In sorted order such groups are the intervals of the array of neighbours' common prefixes, which nest. Bottom up, each is either one group or what its children are.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    stack = [
        [0, 0, 0, []]
    ]  # open intervals: [depth, first, saved by the children, the children's groups (depth, first, end)]
    for i in range(1, len(order) + 1):
        depth = common(keys[order[i - 1]], keys[order[i]]) if i < len(order) else 0
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
    found, at = [], 0
    for d, first, end in stack[0][3]:
        found += [(0, [i]) for i in order[at:first]] + [(d, order[first:end])]
        at = end
    return found + [(0, [i]) for i in order[at:]]


def plan(requests, tokens, share=True):
    """[(prefix ids, [Tree])] of the requests: each pair is computed by itself, the one with an empty prefix last. tokens: how many are computed at once."""
    keys = [
        r.ids[: r.at[0]] for r in requests
    ]  # a place that is asked for, and what follows, is the request's own
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
    """The compiled programs that score one model on one mesh; weights as checkpoint.load gives them (stacked layers)."""

    def __init__(self, config, mesh, layout, dtype=jnp.float32):
        self.config, self.layout, self.dtype, self.data = config, layout, dtype, layout.data
        specs = layout.stacked(config)
        self.room = -(-config.P // 256) * 256
        self.empty, self.extend = cached.make_prefix(config, mesh, layout, specs, dtype)
        spec = (P(None, *cached.cache_spec(layout, False)),) * 2
        row, out = P(DATA), P(DATA)
        smap = jax.shard_map(
            self._score,
            mesh=mesh,
            in_specs=(specs, row, row, spec, P()),
            out_specs=out,
            check_vma=False,
        )
        self.compiled = jax.jit(smap)
        self.computed = 0  # tokens of requests that went through the model, padding not counted

    def _score(self, weights, rows, asked, prefix, length):
        """rows: ids, position, tree, branch [R, T]; asked: at [R * T] (flat places), want [R * T, C], count [1] -> (logp [R * T, C] f32, best id, gap), the first `count` of them."""
        x_BTD, _ = cached.read(
            weights,
            rows["ids"],
            rows["position"],
            cached.visible(rows["tree"], rows["branch"]),
            prefix,
            length,
            self.config,
            self.layout,
            self.dtype,
        )
        x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
        _, outer = model.split_layers(weights, self.config)
        M, C = asked["want"].shape

        def some(i, out):
            take = lambda a: lax.dynamic_slice_in_dim(a, i * ASKED, ASKED)
            logits = model.whole_logits(
                x_MD[take(asked["at"])][None], outer, self.config, self.layout, self.dtype
            )[0]
            logp = jnp.take_along_axis(logits, take(asked["want"]), axis=1) - jax.nn.logsumexp(
                logits, axis=1, keepdims=True
            )
            best = jnp.argmax(logits, axis=1).astype(jnp.int32)
            others = jnp.where(jnp.arange(logits.shape[1])[None] == best[:, None], -jnp.inf, logits)
            parts = logp, best, jnp.max(logits, axis=1) - jnp.max(others, axis=1)
            return tuple(
                lax.dynamic_update_slice_in_dim(o, p, i * ASKED, axis=0)
                for o, p in zip(out, parts, strict=True)
            )

        start = jnp.zeros((M, C), jnp.float32), jnp.zeros(M, jnp.int32), jnp.zeros(M, jnp.float32)
        return lax.fori_loop(0, (asked["count"][0] + ASKED - 1) // ASKED, some, start)

    def score(self, weights, requests, batch=16, share=True):
        """Yields (index, logp [places, C] float32 in nats, best ids [places], gap [places] between the best two) of each request, in any order.

        batch: times 128 tokens are computed at once (a longer request alone). share False: every request by itself, to compare with. At most P ids a request.
        """
        assert all(r.at and r.at[-1] < len(r.ids) <= self.config.P for r in requests)
        tokens = max(batch * 128, ROW)
        for shared, trees in plan(requests, tokens, share):
            prefix = self.prefix(weights, shared)
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
                    yield from self._batch(weights, requests, rows[:R], R, T, prefix, len(shared))
                    rows = rows[R:]

    def prefix(self, weights, ids):
        arrays, at = self.empty(self.room), 0
        self.computed += len(ids)
        while at < len(ids):
            piece = np.zeros(min(256, self.room - at), np.int32)
            part = ids[at : at + len(piece)]
            piece[: len(part)] = part
            arrays = self.extend(weights, piece, arrays, np.int32(at))
            at += len(piece)
        return arrays

    def _batch(self, weights, requests, rows, R, T, prefix, length):
        """Score the trees of `rows`, R rows of T tokens with what fills them up."""
        per_rank = R // self.data
        row = {key: np.zeros((R, T), np.int32) for key in ("ids", "position", "tree", "branch")}
        C = len(requests[rows[0][0].branches[0][0]].want[0])
        asked = {
            "at": np.zeros((self.data, per_rank * T), np.int32),
            "want": np.zeros((self.data, per_rank * T, C), np.int32),
            "count": np.zeros(self.data, np.int32),
        }
        where = []  # (request, rank, its first asked place there)
        for r, trees in enumerate(rows):
            rank, at = r // per_rank, 0
            for tree, (trunk, branches) in enumerate(trees, 1):
                for branch, (index, ids) in enumerate([(None, trunk), *branches]):
                    to = slice(at, at + len(ids))
                    begin = length + (len(trunk) if branch else 0)
                    row["ids"][r, to], row["tree"][r, to], row["branch"][r, to] = ids, tree, branch
                    row["position"][r, to] = begin + np.arange(len(ids))
                    if branch:
                        k, request = asked["count"][rank], requests[index]
                        n = len(request.at)
                        asked["at"][rank, k : k + n] = (
                            (r % per_rank) * T + at + np.array(request.at) - begin
                        )
                        asked["want"][rank, k : k + n] = request.want
                        asked["count"][rank] += n
                        where.append((index, rank, k, n))
                    at += len(ids)
            self.computed += at
        flat = {
            "at": asked["at"].reshape(-1),
            "want": asked["want"].reshape(-1, C),
            "count": asked["count"],
        }
        logp, best, gap = (
            np.asarray(a) for a in self.compiled(weights, row, flat, prefix, np.int32(length))
        )
        for index, rank, k, n in where:
            to = slice(rank * per_rank * T + k, rank * per_rank * T + k + n)
            yield index, logp[to], best[to], gap[to]


def classes(sizes, one):
    """[(row length, indices)]: trees that go into rows of one length, the longest first. one: all in one class (rows behind one prefix: few, and each length is a program)."""
    if one:
        return [(row_length(max(sizes)), list(range(len(sizes))))]
    found = {}
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found.setdefault(row_length(sizes[i]), []).append(i)
    return list(found.items())


@functools.cache
def row_length(size):
    """A multiple of 128 of at least ROW, an eighth to a quarter above `size` at most."""
    return -(-bucket(size, ROW) // 128) * 128
