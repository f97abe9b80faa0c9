"""Text from a model: sampling, stopping, shared prefixes, continuous batching over a cache of keys and values.

    python eval.py generate --model M --input prompts.jsonl --out DIR

Prompts wait in a queue; `batch` of them are in the cache, one a slot, and a slot that is done takes the next one. What all prompts begin with is read once. A prompt is
read (its last token left out) in rows that hold several prompts, its keys and values are copied to the slots of its samples, and from there on one program makes one
token for every slot, several times before it comes back to the host. `plain` is the slow reference: the whole row through the full forward for every token.

A sample depends on (seed, the prompt's index, the sample's number, the position) only: neighbours, batch size and mesh change it by rounding alone. Text comes from a
model and is untrusted: whoever prints it strips terminal escapes. Left out: beam search, repetition penalties, speculative decoding, several processes.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

import model
import sharding
from decoding import cache as cached
from sharding import DATA, TENSOR

READ = 512  # tokens of waiting prompts read in one go (a longer prompt alone)
CHUNK = 32  # tokens a slot between two looks of the host, at most
WORTH = 32  # tokens that prompts must share for a prefix of its own
TIE = 1e-4  # nats: where the best two tokens are closer than this, rounding may decide


class Output(NamedTuple):
    prompt: int  # index of the prompt, as in `names`
    sample: int  # 0 to n - 1
    ids: list  # the new ids, a stop id left out; the last one may have completed a stop string
    text: str  # their text, cut before the first stop string
    reason: str  # "stop", "length" (max_new) or "context" (the model's positions are full)
    gap: float  # greedy: the smallest difference between the best two logits of any step; inf otherwise


def bucket(n, least):
    """n rounded up to 1, 1.25, 1.5 or 1.75 times a power of two, at least `least`: few programs, little padding."""
    step = max(1 << max(n.bit_length() - 3, 0), 1)
    return max(-(-n // step) * step, least)


def completion(tok, prompt, ids, stops=()):
    """(text that `ids` add to `prompt`, whether a stop string cut it). Decoded behind the prompt's last token, so that a space between them stays."""
    head = tok.decode_bytes(prompt[-1:])
    text = tok.decode_bytes([*prompt[-1:], *ids])[len(head) :].decode("utf-8", "replace")
    cut = min((at for s in stops if (at := text.find(s)) >= 0), default=None)
    return (text, False) if cut is None else (text[:cut], True)


# -------------------------------------------------------------------------------------------------------------- sampling


def filtered(scores_BV, top_k, top_p):
    """Scores with all but the top_k best (0: all) and, of these, the fewest that hold top_p of the probability, at -inf. Hugging Face's order: temperature, k, p."""
    V = scores_BV.shape[1]
    sorted_BV = -jnp.sort(-scores_BV, axis=1)
    at_1V = jnp.arange(V)[None]
    kept_1V = at_1V < jnp.where(top_k > 0, top_k, V)
    p_BV = jax.nn.softmax(jnp.where(kept_1V, sorted_BV, -jnp.inf), axis=1)
    kept_BV = kept_1V & (
        (jnp.cumsum(p_BV, axis=1) - p_BV < top_p) | (top_p >= 1) | (at_1V == 0)
    )  # the mass before a token is under top_p; the first one stays
    worst_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=1, keepdims=True)
    return jnp.where(scores_BV >= worst_B1, scores_BV, -jnp.inf)


def pick(logits_BV, state, knobs, greedy, filters):
    """(next token [B] int32, gap between the best two logits [B] or inf). Static: greedy; filters: whether top_k or top_p cut anything."""
    best_B = jnp.argmax(logits_BV, axis=1).astype(jnp.int32)
    if greedy:
        others_BV = jnp.where(
            jnp.arange(logits_BV.shape[1])[None] == best_B[:, None], -jnp.inf, logits_BV
        )
        return best_B, jnp.max(logits_BV, axis=1) - jnp.max(others_BV, axis=1)
    scores_BV = logits_BV / knobs["temperature"]
    if filters:
        scores_BV = filtered(scores_BV, knobs["top_k"], knobs["top_p"])

    def noise(*path):
        key = functools.reduce(jax.random.fold_in, path, jax.random.key(knobs["seed"]))
        return jax.random.gumbel(key, scores_BV.shape[1:], jnp.float32)

    noise_BV = jax.vmap(noise)(state["prompt"], state["sample"], state["position"])
    return jnp.argmax(scores_BV + noise_BV, axis=1).astype(jnp.int32), jnp.full(
        best_B.shape, jnp.inf
    )  # the argmax with Gumbel noise is a sample of the softmax


# --------------------------------------------------------------------------------------------------------------- decoder


class Decoder:
    """The compiled programs that decode one model on one mesh; `specs` (and the weights) from cached.for_decoding.

    Each program is compiled once a shape: reading a prompt for 128, 512, ... tokens a row, a step of all slots for each length of the cache.
    """

    def __init__(self, config, mesh, layout, specs, dtype=jnp.float32):
        self.config, self.mesh, self.layout, self.dtype = config, mesh, layout, dtype
        self.data, self.specs = layout.data, specs
        self.prefix_room = (
            -(-config.P // 256) * 256 + 256
        )  # the last piece of a prefix may reach past the end
        self.empty, self.extend = cached.make_prefix(config, mesh, layout, specs, dtype)
        self.kept = None  # (weights, ids, arrays) of the last prefix: the next may begin with it
        rows, flat = (
            [(cached.cache_spec(layout),) * 2] * config.L,
            [(cached.cache_spec(layout, False),) * 2] * config.L,
        )
        self.cache_spec = rows
        smap = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
        self.fill = jax.jit(
            smap(self._fill, in_specs=(specs, rows, P(DATA), flat, P(), P(DATA)), out_specs=rows),
            donate_argnums=1,
        )

        @functools.partial(jax.jit, donate_argnums=1, static_argnames=("greedy", "filters"))
        def steps(weights, cache, state, knobs, greedy, filters):
            local = functools.partial(self._steps, greedy=greedy, filters=filters)
            return smap(
                local, in_specs=(specs, rows, P(DATA), P()), out_specs=(rows, P(DATA), P(DATA))
            )(weights, cache, state, knobs)

        self.steps = steps

    def _fill(self, weights, cache, token, prefix, length, copies):
        """Read one row of prompts behind the prefix and copy their keys and values to slots. token: ids, position, tree [1, T]; copies: slot, start [1, B], count [1]."""
        T, S = token["ids"].shape[1], cache[0][0].shape[2]
        W = min(T, S)
        seen = cached.visible(token["tree"], jnp.ones_like(token["tree"]))
        _, new = cached.read(
            weights,
            token["ids"],
            token["position"],
            seen,
            prefix,
            length,
            self.config,
            self.layout,
            self.dtype,
        )
        new = [tuple(jnp.pad(a[0], ((0, 0), (0, W), (0, 0))) for a in kv) for kv in new]

        def copy(m, cache):
            def put(
                old, before, a
            ):  # a slot's whole row: the prefix, then W tokens from the prompt's first (what lies behind the prompt is overwritten before it is seen)
                row = jnp.pad(before[:, :S], ((0, 0), (0, W), (0, 0)))
                row = lax.dynamic_update_slice_in_dim(
                    row,
                    lax.dynamic_slice_in_dim(a, copies["start"][0, m], W, axis=1),
                    length,
                    axis=1,
                )
                return lax.dynamic_update_slice_in_dim(
                    old, row[None, :, :S].astype(old.dtype), copies["slot"][0, m], axis=0
                )

            return [tuple(map(put, *layer)) for layer in zip(cache, prefix, new, strict=True)]

        return lax.fori_loop(0, copies["count"][0], copy, cache)

    def _steps(self, weights, cache, state, knobs, greedy, filters):
        """Up to knobs["limit"] tokens for every live slot -> (cache, new ids [B, CHUNK], -1 where none, their gaps); ends early when `patience` slots are done."""
        alive = lambda live: lax.psum(
            jnp.sum(live), DATA
        )  # the same on every rank: they must leave together
        outer = {n: w for n, w in weights.items() if n != "layers"}

        def more(carry):
            i, count, *_ = carry
            return (i < knobs["limit"]) & (count > 0) & (begun - count < knobs["patience"])

        def step(carry):
            i, _, cache, state, out, gap = carry
            x_B1D, cache = cached.read_next(
                weights,
                state["token"],
                state["position"],
                cache,
                self.config,
                self.layout,
                self.dtype,
            )
            logits_BV = model.whole_logits(x_B1D, outer, self.config, self.layout, self.dtype)[:, 0]
            new, step_gap = pick(logits_BV, state, knobs, greedy, filters)
            live = state["live"]
            out = lax.dynamic_update_slice_in_dim(out, jnp.where(live, new, -1)[:, None], i, axis=1)
            gap = lax.dynamic_update_slice_in_dim(gap, step_gap[:, None], i, axis=1)
            left = state["left"] - live
            going = live & (left > 0) & ~jnp.any(new[:, None] == knobs["stop"][None], axis=1)
            state = state | {
                "token": jnp.where(live, new, state["token"]),
                "position": state["position"] + going,
                "left": left,
                "live": going,
            }
            return i + 1, alive(going), cache, state, out, gap

        begun = alive(state["live"])
        B = state["token"].shape[0]
        start = (
            jnp.int32(0),
            begun,
            cache,
            state,
            jnp.full((B, CHUNK), -1, jnp.int32),
            jnp.full((B, CHUNK), jnp.inf),
        )
        _, _, cache, _, out, gap = lax.while_loop(more, step, start)
        return cache, out, gap

    def prefix(self, weights, ids):
        """Each layer's keys and values of `ids`, computed as far as the last call did not; valid until the next call."""
        kept = (
            self.kept
            if self.kept and self.kept[0] is weights
            else (weights, [], self.empty(self.prefix_room))
        )
        arrays, at = kept[2], common(kept[1], ids)
        self.kept = None  # the arrays are given away piece by piece
        while at < len(ids):
            T = 256 if len(ids) - at > 64 else 64
            piece = np.zeros(T, np.int32)
            part = ids[at : at + T]
            piece[: len(part)] = part
            arrays = self.extend(weights, piece, arrays, np.int32(at))
            at += len(part)
        self.kept = weights, list(ids), arrays
        return arrays

    def generate(
        self,
        weights,
        prompts,
        *,
        max_new,
        stop=(),
        stop_strings=(),
        tok=None,
        n=1,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=0,
        batch=16,
        names=None,
        watch=None,
    ):
        """Continue `prompts` (lists of ids, each shorter than the model's positions), n samples each; yields an Output as each is done, in any order.

        stop: ids that end a row; stop_strings need tok, without which `text` is empty. names: the prompts' indices, where these are part of more. watch(prompt, sample, ids
        so far): called every few tokens. batch is rounded up to the data axis.
        """
        names = range(len(prompts)) if names is None else names
        batch = -(-batch // self.data) * self.data
        assert all(0 < len(p) < self.config.P for p in prompts) and max_new > 0
        knobs = {
            "temperature": np.float32(temperature),
            "top_k": np.int32(top_k),
            "top_p": np.float32(top_p),
            "seed": np.uint32(seed),
            "stop": np.array(sorted(stop) or [-2], np.int32),
        }
        room = lambda p: min(max_new, self.config.P - len(p))
        waiting = sorted(
            ((len(p) + room(p), -i, s) for i, p in enumerate(prompts) for s in range(n)),
            reverse=True,
        )  # long ones first
        if not waiting:
            return
        shared = functools.reduce(lambda a, b: a[: common(a, b)], prompts)[
            : min(map(len, prompts)) - 1
        ]
        shared = shared if len(shared) >= WORTH or len(prompts) == 1 else []
        prefix = self.prefix(weights, shared)
        while waiting:
            S = min(bucket(waiting[0][0], 64), self.prefix_room - 256)
            few = 2 * batch  # a cache of another length is worth it for this many samples
            end = next(
                (
                    k
                    for k, w in enumerate(waiting)
                    if 2 * w[0] <= S and k >= few and len(waiting) - k >= few
                ),
                len(waiting),
            )
            longest_first = sorted(
                waiting[:end], key=lambda w: -room(prompts[-w[1]])
            )  # those that may take most steps, so that none of them is left over at the end
            run = [(prompts[-i], names[-i], s) for _, i, s in longest_first]
            waiting = waiting[end:]
            B = min(batch, -(-len(run) // self.data) * self.data)
            how = dict(
                greedy=temperature == 0, filters=temperature > 0 and (top_k > 0 or top_p < 1)
            )
            yield from self._run(
                weights, run, room, prefix, len(shared), S, B, knobs, how, stop_strings, tok, watch
            )

    def _run(
        self, weights, waiting, room, prefix, length, S, B, knobs, how, stop_strings, tok, watch
    ):
        """generate's samples that share one cache of B slots and S positions."""
        heads, per_rank = cached.cache_heads(self.config, self.layout), B // self.data
        spec = jax.tree.map(
            lambda s: jax.NamedSharding(self.mesh, s),
            self.cache_spec,
            is_leaf=lambda s: isinstance(s, P),
        )
        zeros = lambda: jnp.zeros((B, heads, S, self.config.H), self.dtype)
        cache = jax.jit(
            lambda: [(zeros(), zeros()) for _ in range(self.config.L)], out_shardings=spec
        )()
        state = {
            name: np.zeros(B, np.int32)
            for name in ("token", "position", "left", "prompt", "sample")
        } | {"live": np.zeros(B, bool)}
        slots = [None] * B  # (prompt, name, sample, new ids, gap)
        waiting = waiting[::-1]
        # slots in turn over the ranks, so that a few prompts are spread over them
        turn = [r * per_rank + k for k in range(per_rank) for r in range(self.data)]
        while waiting or any(slots):
            while waiting and not all(slots):
                cache = self._admit(
                    weights, cache, state, slots, waiting, turn, room, prefix, length
                )
            knobs["limit"] = np.int32(8 if stop_strings or watch else CHUNK)
            knobs["patience"] = np.int32(
                max(B // 8, 1) if waiting else B
            )  # slots that may stand idle before others are let in
            cache, out, gap = self.steps(weights, cache, state, knobs, **how)
            out, gap = np.asarray(out), np.asarray(gap)
            for b, slot in enumerate(slots):
                if slot is None:
                    continue
                prompt, name, sample, ids, least = slot
                before, new = len(ids), out[b][out[b] >= 0].tolist()
                ids += new
                stopped = bool(new) and new[-1] in knobs["stop"]
                if stopped:
                    ids.pop()
                text, cut = completion(tok, prompt, ids, stop_strings) if tok else ("", False)
                while (
                    cut and completion(tok, prompt, ids[:-1], stop_strings)[1]
                ):  # tokens behind the one that completed a stop string: as many as the host looked late
                    ids.pop()
                    stopped = False
                text = completion(tok, prompt, ids, stop_strings)[0] if cut else text
                least = min(
                    least, float(np.min(gap[b, : len(ids) - before + stopped], initial=np.inf))
                )
                slots[b] = prompt, name, sample, ids, least
                state["left"][b] = room(prompt) - len(ids)
                if stopped or cut or state["left"][b] == 0:
                    reason = (
                        "stop"
                        if stopped or cut
                        else "context"
                        if len(prompt) + len(ids) == self.config.P
                        else "length"
                    )
                    slots[b], state["live"][b] = None, False
                    yield Output(name, sample, ids, text, reason, least)
                else:
                    state["token"][b], state["position"][b] = ids[-1], len(prompt) + len(ids) - 1
                if watch:
                    watch(name, sample, ids)

    def _admit(self, weights, cache, state, slots, waiting, turn, room, prefix, length):
        """Waiting samples into free slots, as many as one row a rank has room for (a prompt longer than that alone)."""
        per_rank = len(slots) // self.data
        rows = [
            [] for _ in range(self.data)
        ]  # each rank's prompts: (ids behind the prefix but the last, start)
        copies = {
            "slot": np.zeros((self.data, per_rank), np.int32),
            "start": np.zeros((self.data, per_rank), np.int32),
            "count": np.zeros(self.data, np.int32),
        }
        starts, full = [{} for _ in range(self.data)], set()
        for b in turn:
            rank = b // per_rank
            if slots[b] is not None or rank in full or not waiting:
                continue
            prompt, name, sample = waiting[-1]
            part, used = prompt[length:-1], sum(map(len, rows[rank]))
            if name not in starts[rank]:
                if used and used + len(part) > READ:
                    full.add(rank)
                    continue
                starts[rank][name] = used
                rows[rank].append(part)
            waiting.pop()
            m = copies["count"][rank]
            copies["slot"][rank, m], copies["start"][rank, m], copies["count"][rank] = (
                b % per_rank,
                starts[rank][name],
                m + 1,
            )
            slots[b] = prompt, name, sample, [], float("inf")
            values = {
                "token": prompt[-1],
                "position": len(prompt) - 1,
                "left": room(prompt),
                "prompt": name,
                "sample": sample,
                "live": True,
            }
            for key, value in values.items():
                state[key][b] = value
        longest = max(sum(map(len, row)) for row in rows)
        T = 64 if longest <= 64 else 512 if longest <= 512 else bucket(longest, 512)
        token = {key: np.zeros((self.data, T), np.int32) for key in ("ids", "position", "tree")}
        for rank, row in enumerate(rows):
            at = 0
            for tree, part in enumerate(row, 1):
                to = slice(at, at + len(part))
                token["ids"][rank, to], token["position"][rank, to], token["tree"][rank, to] = (
                    part,
                    length + np.arange(len(part)),
                    tree,
                )
                at += len(part)
        return self.fill(weights, cache, token, prefix, np.int32(length), copies)


# ---------------------------------------------------------------------------------------------------------------- memory


def bytes_needed(config, data, tensor, dtype, batch, length):
    """(bytes of weights, bytes of cache) on one device of a mesh data x tensor: replicas of the weights over data, heads over tensor."""
    layout = model.make_layout(config, data, tensor, fsdp=False)
    size = np.dtype(dtype).itemsize
    split = lambda spec: tensor if TENSOR in sharding.axes_of(spec) else 1
    weights = sum(
        int(np.prod(s)) // split(layout.specs[n]) for n, s in model.shapes(config).items()
    )
    heads = cached.cache_heads(config, layout) // (tensor if layout.attention else 1)
    return weights * size, 2 * config.L * -(-batch // data) * heads * length * config.H * size


def device_room(mesh):
    """Bytes that a device may hold: its own memory's limit, or its share of this host's free memory; None where neither is known."""
    device = mesh.devices.flat[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return (
                int(re.search(r"MemAvailable:\s+(\d+) kB", file.read())[1])
                * 1024
                // mesh.devices.size
            )
    except (OSError, TypeError):
        return None


def check_fit(config, data, tensor, dtype, batch, length, room):
    """ValueError, one line, where weights and cache do not fit `room` bytes a device; it names the mesh, batch or dtype that would."""
    need = lambda d, t, dtype=dtype, batch=batch: sum(
        bytes_needed(config, d, t, dtype, batch, length)
    )
    if room is None or need(data, tensor) <= 0.9 * room:  # a tenth for activations
        return
    GB = lambda n: f"{n / 1e9:.1f} GB"
    devices = data * tensor
    meshes = [
        f"--mesh {devices // t}x{t} ({GB(need(devices // t, t))})"
        for t in range(tensor + 1, devices + 1)
        if devices % t == 0 and need(devices // t, t) <= 0.9 * room
    ]
    smaller = [
        f"--batch {b} ({GB(need(data, tensor, batch=b))})"
        for b in (batch >> k for k in range(1, batch.bit_length()))
        if need(data, tensor, batch=b) <= 0.9 * room
    ]
    half = (
        [f"--dtype bfloat16 ({GB(need(data, tensor, 'bfloat16'))})"]
        if np.dtype(dtype).itemsize == 4 and need(data, tensor, jnp.bfloat16) <= 0.9 * room
        else []
    )
    fits = next((t for t in (2**k for k in range(1, 12)) if need(1, t) <= 0.9 * room), None)
    remedies = meshes[:1] + smaller[:1] + half or [
        f"more devices (1x{fits} would do)"
        if fits
        else "a smaller model: no number of such devices holds this one"
    ]
    weights, cache = bytes_needed(config, data, tensor, dtype, batch, length)
    raise ValueError(
        f"--mesh {data}x{tensor} puts {GB(weights)} of weights and {GB(cache)} of cache (--batch {batch}) on each device, which has {GB(room)}: use {' or '.join(remedies)}"
    )


def common(a, b):
    """How many ids two lists share at their beginning."""
    end = min(len(a), len(b))
    return next((i for i in range(end) if a[i] != b[i]), end)


def plain(logits, prompts, *, length, rows, stop, max_new, temperature=0.0, seed=0):
    """Continue prompts (lists of ids) by full forwards -> lists of the new ids, the stop id left out.

    logits: (token [rows, length] int32) -> [rows, length, V] f32, causal. At most `rows` prompts at once. stop: ids that end a row. temperature 0 is greedy.
    A row also ends at max_new ids or where it fills `length`. Each prompt has its own random stream: a sample does not depend on its neighbours.
    """
    assert len(prompts) <= rows and all(0 < len(p) < length for p in prompts)
    token = np.zeros((rows, length), np.int32)
    ends = [len(p) for p in prompts]
    for row, prompt in enumerate(prompts):
        token[row, : len(prompt)] = prompt
    random = [np.random.default_rng((seed, row)) for row in range(len(prompts))]
    live = set(range(len(prompts)))
    while live:
        last = np.asarray(logits(token))[np.arange(len(prompts)), np.array(ends) - 1]
        for row in sorted(live):
            scores = last[row].astype(np.float64)
            if temperature > 0:
                scores = scores / temperature + random[row].gumbel(
                    size=scores.shape
                )  # argmax of logits + Gumbel noise is a sample of the softmax
            new = int(np.argmax(scores))
            if new not in stop:
                token[row, ends[row]] = new
                ends[row] += 1
            if new in stop or ends[row] == length or ends[row] - len(prompts[row]) == max_new:
                live.discard(row)
    return [token[row, len(prompt) : ends[row]].tolist() for row, prompt in enumerate(prompts)]
