"""likelihood.py: packed, shared and tree-shaped scoring against the full forward of each request by
itself; the grouping against every other grouping.

python -m pytest tests/test_likelihood.py
"""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

import model
import sharding
from decoding import likelihood
from decoding.records import Request, shared_length

LLAMA = model.llama(300, 24, 2, 6, 36, 400, 1e-5)
CONFIGS = {
    "gqa": dataclasses.replace(LLAMA, N=8, K=2, H=4),
    "gpt2": model.gpt2(300, 24, 2, 6, P=400),
}


def requests():
    """Twenty questions behind 200 shared tokens; five contexts of four continuations each; texts of
    their own, one as long as the model's positions.
    """
    random = np.random.RandomState(0)

    def draw(size):
        return random.randint(0, 300, size).tolist()

    found, shots = [], draw(200)
    for _ in range(20):
        ids = shots + draw(random.randint(5, 80))
        found.append(Request(ids, [len(ids) - 1], [draw(2)]))
    for _ in range(5):
        context = draw(random.randint(30, 100))
        for _ in range(4):
            ids = context + draw(random.randint(1, 6)) + [5]
            found.append(
                Request(
                    ids,
                    list(range(len(context) - 1, len(ids) - 1)),
                    [[i, 1] for i in ids[len(context) :]],
                )
            )
    for size in (1, 399, 400):
        ids = draw(size)
        at = sorted(random.choice(size, min(size, 200), replace=False).tolist())
        found.append(Request(ids, at, [draw(2) for _ in at]))
    return found


@functools.cache
def reference(name):
    """(weights, log-probabilities [requests, 400, 300]) by the full forward, four requests at a
    time.
    """
    config = CONFIGS[name]
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1, fsdp=False)
    weights = {
        n: np.asarray(w) * (3 if w.ndim == 3 else 1)
        for n, w in model.initialise(config, mesh, layout, 0).items()
    }
    token = np.zeros((44, 400), np.int32)
    for row, request in enumerate(requests()):
        token[row, : len(request.ids)] = request.ids
    forward = model.make_logits(config, mesh, layout)
    return weights, np.concatenate(
        [
            np.asarray(jax.nn.log_softmax(forward(weights, token[i : i + 4])))
            for i in range(0, 44, 4)
        ]
    )


@pytest.mark.parametrize(
    "name, data, tensor, share",
    [("gqa", 1, 1, True), ("gqa", 1, 1, False), ("gqa", 2, 2, True), ("gpt2", 1, 1, True)],
)
def test_every_request_gets_what_the_full_forward_gives_it_alone(name, data, tensor, share):
    """To 1e-4 of log-probabilities down to -12: float32, summed in another order; shared beginnings
    are computed once (counted).
    """
    config, wanted = CONFIGS[name], requests()
    weights, logp = reference(name)
    scorer = likelihood.Scorer(
        config,
        sharding.make_mesh(data, tensor),
        model.make_layout(config, data, tensor, fsdp=False),
    )
    got = {index: found for index, *found in scorer.score(weights, wanted, batch=8, share=share)}
    assert sorted(got) == list(range(len(wanted)))
    for index, request in enumerate(wanted):
        ours, best, gap = got[index]
        here = logp[index, request.at]
        np.testing.assert_allclose(
            ours, np.take_along_axis(here, np.array(request.want), axis=1), atol=1e-4, rtol=0
        )
        two = np.sort(here, axis=1)[:, -2:]
        np.testing.assert_allclose(gap, two[:, 1] - two[:, 0], atol=1e-4, rtol=0)
        assert all(
            best[two[:, 1] - two[:, 0] > 1e-4] == here.argmax(axis=1)[two[:, 1] - two[:, 0] > 1e-4]
        )
    alone = sum(len(r.ids) for r in wanted)
    once = (
        200
        + sum(len(r.ids) - 200 for r in wanted[:20])
        + sum(len(wanted[20 + 4 * g].at) + wanted[20 + 4 * g].at[0] for g in range(5))
        + 800
    )
    assert (
        (alone == scorer.computed)
        if not share
        else once <= scorer.computed < once + 5 * 3 * 7 < alone / 2
    )  # each further continuation is at most seven tokens


def best_saving(keys):
    """The most ids that any partition saves whose groups hold every key that begins as they do: all
    partitions tried.
    """

    def depth(group):
        return len(
            functools.reduce(lambda a, b: a[: shared_length(a, b)], [keys[i] for i in group])
        )

    def closed(group):
        return len(group) == 1 or {
            i for i, k in enumerate(keys) if k[: depth(group)] == keys[group[0]][: depth(group)]
        } == set(group)

    def partitions(rest):
        if not rest:
            yield []
            return
        for size in range(len(rest)):
            for others in itertools.combinations(rest[1:], size):
                group = [rest[0], *others]
                if closed(group):
                    yield from (
                        [group, *more] for more in partitions([i for i in rest if i not in group])
                    )

    return max(sum((len(g) - 1) * depth(g) for g in p) for p in partitions(list(range(len(keys)))))


def test_groups_are_a_partition_that_saves_the_most():
    random = np.random.RandomState(0)
    for _ in range(150):
        keys = [
            random.randint(0, 2, random.randint(0, 6)).tolist() for _ in range(random.randint(1, 7))
        ]
        found = likelihood.groups(keys)
        assert sorted(i for _, members in found for i in members) == list(range(len(keys)))
        assert all(
            keys[i][:depth] == keys[members[0]][:depth] and len(keys[i]) >= depth
            for depth, members in found
            for i in members
        )
        assert sum((len(members) - 1) * depth for depth, members in found) == best_saving(keys), (
            keys
        )


def test_ten_thousand_nested_beginnings_are_grouped_without_recursion():
    keys = [[1] * (i % 2000) for i in range(2000)]
    assert sorted(i for _, members in likelihood.groups(keys) for i in members) == list(range(2000))


def test_a_large_group_becomes_a_prefix_and_a_small_one_trees_that_fit_a_row():
    jobs = likelihood.batch_requests(requests(), tokens=1024)
    assert [len(prefix) for prefix, _ in jobs] == [200, 0]
    assert sorted(t.size() for t in jobs[0][1]) == sorted(len(r.ids) - 200 for r in requests()[:20])
    loose = jobs[1][1]
    assert sorted(i for t in loose for i, _ in t.branches) == list(range(20, 43))
    assert [len(t.branches) for t in loose if t.trunk] == [4] * 5
    for size in (1, 255, 256, 257, 600, 700, 1000, 2047):
        assert (
            size <= likelihood.row_length(size) <= max(size * 1.25 + 128, likelihood.ROW)
            and likelihood.row_length(size) % 128 == 0
        )
