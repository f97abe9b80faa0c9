"""Text from a model: the compiled programs of decoding, and the driver for a list of prompts.

    python eval.py generate --model M --input prompts.jsonl --out DIR

`generate` reads once what all prompts begin with, and those of about one length share a Batch
(decoding/batch.py). Serving admits what comes while others run (decoding/pool.py).

Text comes from a model and is untrusted: whoever prints it strips terminal escapes. Left out: beam
search, repetition penalties, speculative decoding, several processes.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from decoding import cache
from decoding.batch import CHUNK, Batch, Prefix, Sample, Watch, bucket
from decoding.records import Output, Sampling, shared_length
from decoding.sampling import pick, token_scores
from sharding import DATA
from text.tokenizer import Tokenizer

WORTH = 32  # tokens that prompts must share for a prefix of its own
QUERIES = 64  # places of a prompt whose logits exist at once


# --- compiled programs ---


class Decoder:
    """The compiled programs that decode one model on one mesh.

    specs (and the weights of every call) are cache.for_decoding's. Each program is compiled once a
    shape: reading prompts for 64, 512, ... tokens a row, a step of all slots for each length of the
    cache.
    """

    def __init__(self, config, mesh, layout, specs, dtype=jnp.float32):
        self.config, self.mesh, self.layout, self.dtype = config, mesh, layout, dtype
        self.data, self.specs = layout.data, specs
        self.prefixes = cache.PrefixCache(
            config, mesh, layout, specs, dtype, pieces=(64, cache.BLOCK, 2 * cache.BLOCK)
        )
        self.cache_spec = [(cache.cache_spec(layout),) * 2] * config.L
        rows, prefix, replicated, by_data = self.cache_spec, self.prefixes.spec, Spec(), Spec(DATA)
        smap = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)

        @functools.partial(jax.jit, static_argnames="top")
        def read(weights, token, prefix_arrays, length, unused, top=0):
            local = functools.partial(self._read, top=top)
            in_specs = specs, by_data, prefix, replicated, replicated
            local = smap(local, in_specs=in_specs, out_specs=(rows, by_data))
            return local(weights, token, prefix_arrays, length, unused)

        @functools.partial(
            jax.jit,
            donate_argnums=1,
            static_argnames=("greedy", "filters", "top"),
            compiler_options=sharding.decoding_options(mesh),
        )
        def steps(weights, cache, state, bounds, greedy, filters, top=0):
            local = functools.partial(self._steps, greedy=greedy, filters=filters, top=top)
            in_specs = specs, rows, by_data, replicated
            local = smap(local, in_specs=in_specs, out_specs=(rows, by_data, by_data, by_data))
            return local(weights, cache, state, bounds)

        self.read, self.steps = read, steps
        place = smap(self._place, in_specs=(rows, rows, prefix, Spec(), by_data), out_specs=rows)
        self.place = jax.jit(place, donate_argnums=0)
        self.fetch = jax.jit(smap(self._fetch, in_specs=(rows, Spec()), out_specs=prefix))
        layer = cache.cache_spec(layout)

        @functools.partial(jax.jit, static_argnames="length")
        def resize(a, source, length):
            local = functools.partial(self._resize, length=length)
            return smap(local, in_specs=(layer, by_data), out_specs=layer)(a, source)

        self.resize = resize
        out = sharding.shardings(rows, mesh)
        self.empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=out)

    def _empty(self, size, length):
        """A cache of `size` slots and `length` positions."""
        shape = size, cache.cache_heads(self.config, self.layout), length, self.config.H
        return [
            (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
            for _ in range(self.config.L)
        ]

    def _read(self, weights, token, prefix, length, unused, top):
        """One row of prompts a rank, read behind the prefix -> (keys and values, scores).

        token: ids, position, tree and, with `top`, next (the id behind each) [1, T]. Keys and
        values: [1, K, T, H] a layer. scores: token_scores of what stands behind each place, or ().
        """
        seen = cache.visible(token["tree"], jnp.ones_like(token["tree"]))
        rows = cache.Rows(token["ids"], token["position"], seen)
        dims = self.config, self.layout, self.dtype
        x_1TD, new = cache.prefill(weights, rows, prefix, length, *dims)
        if not top:
            return new, ()
        outer = {n: w for n, w in weights.items() if n != "layers"}

        def some(x_and_next):
            x_QD, next_Q = x_and_next
            logits_QV = model.logits(x_QD[None], outer, *dims)[0]
            return token_scores(logits_QV, next_Q, unused, top)

        by_queries = jax.tree.map(
            lambda a: a[0].reshape(-1, QUERIES, *a.shape[2:]), (x_1TD, token["next"])
        )
        scores = lax.map(some, by_queries)
        return new, jax.tree.map(lambda a: a.reshape(1, -1, *a.shape[2:]), scores)

    def _place(self, kv, new, prefix, length, copies):
        """Copy what was read, behind its prefix, to slots.

        copies: slot, start [1, B], count [1].
        """
        T, S = new[0][0].shape[2], kv[0][0].shape[2]
        W, R = min(T, S), min(prefix[0][0].shape[1], S)
        new = [tuple(jnp.pad(a[0], ((0, 0), (0, W), (0, 0))) for a in layer) for layer in new]

        def copy(m, kv):
            slot, start = copies["slot"][0, m], copies["start"][0, m]

            def put(old, before, a):
                # A slot's whole row: the prefix, then W tokens from the prompt's first. What lies
                # behind the prompt is overwritten before it is seen.
                row = jnp.pad(before[:, :R], ((0, 0), (0, S - R + W), (0, 0)))
                own = lax.dynamic_slice_in_dim(a, start, W, axis=1)
                row = lax.dynamic_update_slice_in_dim(row, own, length, axis=1)[None, :, :S]
                return lax.dynamic_update_slice_in_dim(old, row.astype(old.dtype), slot, axis=0)

            return [tuple(map(put, *layer)) for layer in zip(kv, prefix, new, strict=True)]

        return lax.fori_loop(0, copies["count"][0], copy, kv)

    def prefill_slots(self, weights, kv, token, prefix, length, copies):
        """Read a row of prompts a rank behind the prefix, into slots -> the cache."""
        if token["tree"].any():
            new, _ = self.read(weights, token, prefix, length, np.zeros(0, np.int32))
        else:  # a prompt alone is a prefix
            new = self.empty(self.data, token["tree"].shape[1])
        return self.place(kv, new, prefix, length, copies)

    def _fetch(self, kv, slot):
        """One slot's keys and values as a prefix, the same on every data rank."""
        size = kv[0][0].shape[0]
        own = slot - lax.axis_index(DATA) * size

        def row(a):
            here = lax.dynamic_index_in_dim(a, jnp.clip(own, 0, size - 1), 0, keepdims=False)
            here = jnp.where((own >= 0) & (own < size), here, 0)
            # as long as attention behind a prefix reads at once, or several times that
            here = jnp.pad(here, ((0, 0), (0, -here.shape[1] % cache.BLOCK), (0, 0)))
            return lax.psum(here, DATA) if self.data > 1 else here

        return jax.tree.map(row, kv)

    def _resize(self, a, source, length):
        """Keys or values of one layer in other slots: row b is row source[b] of the rank's own."""
        kept = min(a.shape[2], length)
        a = jnp.take(a[:, :, :kept], source, axis=0)
        return jnp.pad(a, ((0, 0), (0, 0), (0, length - kept), (0, 0)))

    def _steps(self, weights, kv, state, bounds, greedy, filters, top):
        """Up to bounds["limit"] tokens for every live slot -> (cache, ids, margins, scores).

        ids, margins: [B, CHUNK], -1 where there is none. scores: token_scores of the ids with
        `top`, a CHUNK axis behind B, or (). Ends early when `patience` slots are done.
        """

        # the same on every rank: they must leave together
        def alive(live):
            return lax.psum(jnp.sum(live), DATA)

        outer = {n: w for n, w in weights.items() if n != "layers"}
        dims = self.config, self.layout, self.dtype

        def more(carry):
            i, count, *_ = carry
            return (i < bounds["limit"]) & (count > 0) & (begun - count < bounds["patience"])

        def step(carry):
            i, _, kv, state, out, margins, scores = carry
            x_B1D, kv = cache.decode_step(weights, state["token"], state["position"], kv, *dims)
            logits_BV = model.logits(x_B1D, outer, *dims)[:, 0]
            raw_BV = logits_BV
            if bounds["unused"].size:
                logits_BV = logits_BV.at[:, bounds["unused"]].set(-jnp.inf)
            new, margin = pick(logits_BV, state, greedy, filters)
            if top:
                scores = jax.tree.map(
                    lambda all_steps, a: lax.dynamic_update_slice_in_dim(
                        all_steps, a[:, None], i, axis=1
                    ),
                    scores,
                    token_scores(raw_BV, new, bounds["unused"], top),
                )
            live = state["live"]
            new_or_none = jnp.where(live, new, -1)[:, None]
            out = lax.dynamic_update_slice_in_dim(out, new_or_none, i, axis=1)
            margins = lax.dynamic_update_slice_in_dim(margins, margin[:, None], i, axis=1)
            left = state["left"] - live
            going = live & (left > 0) & ~jnp.any(new[:, None] == bounds["stop"][None], axis=1)
            state = state | {
                # a slot that is done writes its last keys and values again, and nothing else
                "token": jnp.where(going, new, state["token"]),
                "position": state["position"] + going,
                "left": left,
                "live": going,
            }
            return i + 1, alive(going), kv, state, out, margins, scores

        begun = alive(state["live"])
        B = state["token"].shape[0]
        out, margins = jnp.full((B, CHUNK), -1, jnp.int32), jnp.full((B, CHUNK), jnp.inf)
        scores = ()
        if top:
            likeliest = B, CHUNK, min(top, self.config.V)
            best = jnp.zeros(likeliest, jnp.int32), jnp.zeros(likeliest)
            scores = jnp.zeros((B, CHUNK)), *best
        start = jnp.int32(0), begun, kv, state, out, margins, scores
        _, _, kv, _, out, margins, scores = lax.while_loop(more, step, start)
        return kv, out, margins, scores

    def generate(
        self,
        weights: dict,
        prompts: list[list[int]],
        sampling: Sampling,
        tok: Tokenizer | None = None,
        batch: int = 16,
        names: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> Iterator[Output]:
        """Continue `prompts` (lists of ids shorter than the model's positions).

        Yields an Output for each sample as it is done, in any order. tok: without it `text` is
        empty and stop strings are not seen. names: the prompts' numbers, where these are part of
        more. watch(prompt, sample, ids so far) is called every few tokens. batch is rounded up to
        the data axis.
        """
        assert all(0 < len(p) < self.config.P for p in prompts) and sampling.max_new > 0
        names = range(len(prompts)) if names is None else names
        batch = -(-batch // self.data) * self.data
        samples = [
            Sample(p, name, s, sampling, min(sampling.max_new, self.config.P - len(p)))
            for p, name in zip(prompts, names, strict=True)
            for s in reversed(range(sampling.n))
        ]
        if not samples:
            return
        shared = functools.reduce(lambda a, b: a[: shared_length(a, b)], prompts)
        shared = shared[: min(map(len, prompts)) - 1]
        shared = shared if len(shared) >= WORTH or len(prompts) == 1 else []
        prefix = Prefix(self.prefixes.read(weights, shared), len(shared))
        for length, waiting in by_length(samples, batch, self.prefixes.positions):
            size = min(batch, -(-len(waiting) // self.data) * self.data)
            slots = Batch(self, weights, size, length, prefix, tok)
            waiting = waiting[::-1]
            while waiting or slots.busy:
                while waiting and slots.free:
                    slots.admit_prompts(waiting)
                yield from slots.advance(watch, patient=not waiting)


def by_length(
    samples: list[Sample], batch: int, positions: int
) -> Iterator[tuple[int, list[Sample]]]:
    """[(positions of a cache, samples that share it)]: the long ones first.

    A cache of another length is worth it for two batches of samples at least.
    """

    def total(s):
        return len(s.prompt) + s.room

    waiting, few = sorted(samples, key=total, reverse=True), 2 * batch
    while waiting:
        length = min(bucket(total(waiting[0]), 64), positions)
        enough = (k for k in range(few, len(waiting) - few + 1) if 2 * total(waiting[k]) <= length)
        end = next(enough, len(waiting))
        # those that may take most steps first, so that none of them is left over at the end
        yield length, sorted(waiting[:end], key=lambda s: -s.room)
        waiting = waiting[end:]
