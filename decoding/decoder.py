"""Text from a model: stopping, shared prefixes, continuous batching over a cache.

    python eval.py generate --model M --input prompts.jsonl --out DIR

`generate` is the driver for a list of prompts. What all of them begin with is read once, and those
of about one length share a Batch. A Batch holds one sample a slot; a slot that is done takes the
next waiting sample. A prompt is read (its last token left out) in rows that hold several prompts,
its keys and values are copied to the slots of its samples, and from there on one program makes one
token for every slot, several times before it returns to the host.

Each slot has its own settings (Sampling), so that requests of different users can share a Batch.
Text comes from a model and is untrusted: whoever prints it strips terminal escapes. Left out: beam
search, repetition penalties, speculative decoding, several processes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as Spec

import model
import sharding
from decoding import cache
from decoding.records import Output, Sampling, completion, shared_length
from decoding.sampling import pick
from sharding import DATA
from text.tokenizer import Tokenizer

ROW = 512  # tokens of waiting prompts read in one go (a longer prompt alone)
CHUNK = 32  # tokens a slot between two looks of the host, at most
WATCHED = 8  # the same where a stop string or a reader waits for the text
Watch = Callable[[int, int, list[int]], None]  # prompt, sample, ids so far
WORTH = 32  # tokens that prompts must share for a prefix of its own


def bucket(n: int, least: int) -> int:
    """n rounded up to 1, 1.25, 1.5 or 1.75 times a power of two, at least `least`.

    Few programs, little padding.
    """
    step = max(1 << max(n.bit_length() - 3, 0), 1)
    return max(-(-n // step) * step, least)


class Prefix(NamedTuple):
    """What all prompts of a Batch begin with, as PrefixCache.read gives it."""

    arrays: list
    length: int


class Sample(NamedTuple):
    """One continuation that waits for a slot."""

    prompt: list  # ids
    name: int  # the prompt's number: part of the random key
    number: int  # 0 to n - 1, another part of it
    sampling: Sampling
    room: int  # new tokens, at most


@dataclasses.dataclass
class Slot:
    """A sample in the cache, and what it has said so far."""

    sample: Sample
    ids: list = dataclasses.field(default_factory=list)
    text: str = ""
    margin: float = math.inf

    def take(
        self, new: list[int], margins: np.ndarray, tok: Tokenizer | None, positions: int
    ) -> str | None:
        """Add the ids of one look of the host -> why the sample ends here, or None."""
        sample, before = self.sample, len(self.ids)
        strings = sample.sampling.stop_strings
        self.ids += new
        stopped = bool(new) and new[-1] in sample.sampling.stop_ids
        if stopped:
            self.ids.pop()
        self.text, cut = completion(tok, sample.prompt, self.ids, strings) if tok else ("", False)
        # The host looks every few tokens: drop those made after the stop string was complete.
        while cut and completion(tok, sample.prompt, self.ids[:-1], strings)[1]:
            self.ids.pop()
            stopped = False
        if cut:
            self.text = completion(tok, sample.prompt, self.ids, strings)[0]
        seen = margins[: len(self.ids) - before + stopped]
        self.margin = min(self.margin, float(np.min(seen, initial=np.inf)))
        if stopped or cut:
            return "stop"
        if len(self.ids) < sample.room:
            return None
        return "context" if len(sample.prompt) + len(self.ids) == positions else "length"

    def output(self, reason: str) -> Output:
        name, number = self.sample.name, self.sample.number
        return Output(name, number, self.ids, self.text, reason, self.margin)


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
        self.prefixes = cache.PrefixCache(config, mesh, layout, specs, dtype, pieces=(64, 256))
        rows = [(cache.cache_spec(layout),) * 2] * config.L
        self.cache_spec, replicated, by_data = rows, Spec(), Spec(DATA)
        smap = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        prefill = smap(
            self._prefill_slots,
            in_specs=(specs, rows, by_data, self.prefixes.spec, replicated, by_data),
            out_specs=rows,
        )
        self.prefill_slots = jax.jit(prefill, donate_argnums=1)

        @functools.partial(
            jax.jit,
            donate_argnums=1,
            static_argnames=("greedy", "filters"),
            compiler_options=sharding.decoding_options(mesh),
        )
        def steps(weights, cache, state, bounds, greedy, filters):
            local = functools.partial(self._steps, greedy=greedy, filters=filters)
            in_specs = specs, rows, by_data, replicated
            local = smap(local, in_specs=in_specs, out_specs=(rows, by_data, by_data))
            return local(weights, cache, state, bounds)

        self.steps = steps
        out = sharding.shardings(rows, mesh)
        self.empty = jax.jit(self._empty, static_argnums=(0, 1), out_shardings=out)

    def _empty(self, size, length):
        """A cache of `size` slots and `length` positions."""
        shape = size, cache.cache_heads(self.config, self.layout), length, self.config.H
        return [
            (jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
            for _ in range(self.config.L)
        ]

    def _prefill_slots(self, weights, kv, token, prefix, length, copies):
        """Read one row of prompts behind the prefix and copy their keys and values to slots.

        token: ids, position, tree [1, T]. copies: slot, start [1, B], count [1].
        """
        T, S = token["ids"].shape[1], kv[0][0].shape[2]
        W = min(T, S)
        seen = cache.visible(token["tree"], jnp.ones_like(token["tree"]))
        rows = cache.Rows(token["ids"], token["position"], seen)
        dims = self.config, self.layout, self.dtype
        _, new = cache.prefill(weights, rows, prefix, length, *dims)
        new = [tuple(jnp.pad(a[0], ((0, 0), (0, W), (0, 0))) for a in layer) for layer in new]

        def copy(m, kv):
            slot, start = copies["slot"][0, m], copies["start"][0, m]

            def put(old, before, a):
                # A slot's whole row: the prefix, then W tokens from the prompt's first. What lies
                # behind the prompt is overwritten before it is seen.
                row = jnp.pad(before[:, :S], ((0, 0), (0, W), (0, 0)))
                own = lax.dynamic_slice_in_dim(a, start, W, axis=1)
                row = lax.dynamic_update_slice_in_dim(row, own, length, axis=1)[None, :, :S]
                return lax.dynamic_update_slice_in_dim(old, row.astype(old.dtype), slot, axis=0)

            return [tuple(map(put, *layer)) for layer in zip(kv, prefix, new, strict=True)]

        return lax.fori_loop(0, copies["count"][0], copy, kv)

    def _steps(self, weights, kv, state, bounds, greedy, filters):
        """Up to bounds["limit"] tokens for every live slot -> (cache, new ids, their margins).

        ids, margins: [B, CHUNK], -1 where there is none. Ends early when `patience` slots are done.
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
            i, _, kv, state, out, margins = carry
            x_B1D, kv = cache.decode_step(weights, state["token"], state["position"], kv, *dims)
            logits_BV = model.logits(x_B1D, outer, *dims)[:, 0]
            if bounds["unused"].size:
                logits_BV = logits_BV.at[:, bounds["unused"]].set(-jnp.inf)
            new, margin = pick(logits_BV, state, greedy, filters)
            live = state["live"]
            new_or_none = jnp.where(live, new, -1)[:, None]
            out = lax.dynamic_update_slice_in_dim(out, new_or_none, i, axis=1)
            margins = lax.dynamic_update_slice_in_dim(margins, margin[:, None], i, axis=1)
            left = state["left"] - live
            going = live & (left > 0) & ~jnp.any(new[:, None] == bounds["stop"][None], axis=1)
            state = state | {
                "token": jnp.where(live, new, state["token"]),
                "position": state["position"] + going,
                "left": left,
                "live": going,
            }
            return i + 1, alive(going), kv, state, out, margins

        begun = alive(state["live"])
        B = state["token"].shape[0]
        out, margins = jnp.full((B, CHUNK), -1, jnp.int32), jnp.full((B, CHUNK), jnp.inf)
        start = jnp.int32(0), begun, kv, state, out, margins
        _, _, kv, _, out, margins = lax.while_loop(more, step, start)
        return kv, out, margins

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


# --- continuous batching ---


class Batch:
    """B slots over one cache of S positions, to which samples are admitted while others run."""

    def __init__(self, decoder: Decoder, weights, size, length, prefix: Prefix, tok=None):
        self.decoder, self.weights, self.prefix, self.tok = decoder, weights, prefix, tok
        self.slots: list[Slot | None] = [None] * size
        self.kv = decoder.empty(size, length)
        dtypes = {"seed": np.uint32, "temperature": np.float32, "top_p": np.float32, "live": bool}
        names = ("token", "position", "left", "prompt", "sample", "top_k", *dtypes)
        self.state = {name: np.zeros(size, dtypes.get(name, np.int32)) for name in names}
        per_rank = size // decoder.data
        # slots in turn over the ranks, so that a few prompts are spread over them
        self.turn = [r * per_rank + k for k in range(per_rank) for r in range(decoder.data)]

    @property
    def busy(self) -> bool:
        return any(self.slots)

    @property
    def free(self) -> bool:
        return not all(self.slots)

    def admit_prompts(self, waiting: list[Sample]) -> None:
        """Waiting samples (taken from the end of the list) into free slots.

        As many as one row a rank has room for; a prompt longer than that alone.
        """
        data, length = self.decoder.data, self.prefix.length
        per_rank = len(self.slots) // data
        rows = [[] for _ in range(data)]  # each rank's prompts, behind the prefix, but the last id
        copies = {name: np.zeros((data, per_rank), np.int32) for name in ("slot", "start")}
        copies["count"] = np.zeros(data, np.int32)
        starts, full = [{} for _ in range(data)], set()
        for b in self.turn:
            rank = b // per_rank
            if self.slots[b] is not None or rank in full or not waiting:
                continue
            sample = waiting[-1]
            part, used = sample.prompt[length:-1], sum(map(len, rows[rank]))
            if sample.name not in starts[rank]:
                if used and used + len(part) > ROW:
                    full.add(rank)
                    continue
                starts[rank][sample.name] = used
                rows[rank].append(part)
            waiting.pop()
            m = copies["count"][rank]
            copies["slot"][rank, m] = b % per_rank
            copies["start"][rank, m] = starts[rank][sample.name]
            copies["count"][rank] += 1
            self.occupy(b, sample)
        token = rows_of_prompts(rows, length)
        self.kv = self.decoder.prefill_slots(
            self.weights, self.kv, token, self.prefix.arrays, np.int32(length), copies
        )

    def occupy(self, b: int, sample: Sample) -> None:
        """Put a sample whose keys and values are being read into slot b."""
        self.slots[b] = Slot(sample)
        values = {
            "token": sample.prompt[-1],
            "position": len(sample.prompt) - 1,
            "left": sample.room,
            "prompt": sample.name,
            "sample": sample.number,
            "live": True,
        }
        for name in ("temperature", "top_k", "top_p", "seed"):
            values[name] = getattr(sample.sampling, name)
        for name, value in values.items():
            self.state[name][b] = value

    def release(self, b: int) -> None:
        """Free slot b, whether its sample is finished or abandoned."""
        self.slots[b], self.state["live"][b] = None, False

    def advance(self, watch: Watch | None = None, patient: bool = True) -> Iterator[Output]:
        """A few tokens for every live slot; yields the Outputs that they finish.

        patient: no sample waits, so slots may stand idle until all are done.
        """
        running = [slot.sample.sampling for slot in self.slots if slot]
        looking = watch or any(s.stop_strings for s in running)
        size = len(self.slots)
        bounds = {
            "limit": np.int32(WATCHED if looking else CHUNK),
            # slots that may stand idle before others are let in
            "patience": np.int32(size if patient else max(size // 8, 1)),
            "stop": np.array(sorted(frozenset().union(*(s.stop_ids for s in running))) or [-2]),
        }
        bounds["stop"] = bounds["stop"].astype(np.int32)
        # ids of no token, where a vocabulary is padded beyond its tokenizer
        bounds["unused"] = np.array(sorted(getattr(self.tok, "unused", ())), np.int32)
        how = {"greedy": all(s.greedy for s in running), "filters": any(s.filters for s in running)}
        self.kv, out, margins = self.decoder.steps(self.weights, self.kv, self.state, bounds, **how)
        out, margins = np.asarray(out), np.asarray(margins)
        for b, slot in enumerate(self.slots):
            if slot is None:
                continue
            new = out[b][out[b] >= 0].tolist()
            reason = slot.take(new, margins[b], self.tok, self.decoder.config.P)
            sample = slot.sample
            self.state["left"][b] = sample.room - len(slot.ids)
            if reason:
                self.release(b)
                yield slot.output(reason)
            else:
                self.state["token"][b] = slot.ids[-1]
                self.state["position"][b] = len(sample.prompt) + len(slot.ids) - 1
            if watch:
                watch(sample.name, sample.number, slot.ids)


def rows_of_prompts(rows: list[list[list[int]]], length: int) -> dict[str, np.ndarray]:
    """Each rank's prompts laid into one row of T tokens: ids, position, tree [ranks, T]."""
    longest = max(sum(map(len, row)) for row in rows)
    T = 64 if longest <= 64 else ROW if longest <= ROW else bucket(longest, ROW)
    token = {key: np.zeros((len(rows), T), np.int32) for key in ("ids", "position", "tree")}
    for rank, row in enumerate(rows):
        at = 0
        for tree, part in enumerate(row, 1):
            to = slice(at, at + len(part))
            token["ids"][rank, to] = part
            token["position"][rank, to] = length + np.arange(len(part))
            token["tree"][rank, to] = tree
            at += len(part)
    return token
