"""Slots over one cache: samples are admitted while others run, and leave when they are done.

A Batch holds one sample a slot; a slot that is done takes the next waiting sample. A prompt is read
(its last token left out) in rows that hold several prompts, its keys and values are copied to the
slots of its samples, and from there on one program makes one token for every slot, several times
before it returns to the host. Each slot has its own settings (Sampling), so that requests of
different users can share a Batch.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from decoding.records import Output, Sampling
from decoding.saying import Saying
from text.tokenizer import Tokenizer

ROW = 512  # tokens of waiting prompts read in one go (a longer prompt alone)
CHUNK = 32  # tokens a slot between two looks of the host, at most
WATCHED = 8  # the same where a stop string or a reader waits for the text
Watch = Callable[[int, int, list[int]], None]  # prompt, sample, ids so far


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
    top: int = 0  # the likeliest tokens whose log-probabilities each place gives; 0: no scores
    echo: bool = False  # scores of the prompt's places too (a Pool's)
    owner: Any = None  # whose it is, for who admits samples of several requests


class Score(NamedTuple):
    """Log-probabilities of one place, in nats: of the raw logits, in float32."""

    logp: float  # the token's that stands there
    top: list  # (id, its log-probability), the likeliest first


@dataclasses.dataclass(eq=False)
class Slot:
    """A sample in the cache, and what it has said so far."""

    sample: Sample
    saying: Saying | None = None  # without it there is no text
    ids: list = dataclasses.field(default_factory=list)
    scores: list = dataclasses.field(default_factory=list)  # a Score an id, where top asks for it
    stop: tuple[int, "Score"] | None = None  # the stop id that ended it and its Score, likewise
    margin: float = math.inf
    # of a Pool's
    prompt_scores: list | None = None  # a Score for each token of the prompt but the first
    cached: int | None = None  # tokens of the prompt that were not read
    admitted: int | None = None  # when it got a slot

    @property
    def text_ids(self) -> list[int]:
        """Its prompt and what it has said."""
        return self.sample.prompt + self.ids

    @property
    def unscored(self) -> bool:
        """Whether scores of its prompt's places are asked for and not there yet."""
        return self.sample.echo and self.sample.top > 0 and self.prompt_scores is None

    @property
    def length(self) -> int:
        """Tokens of its prompt and of what it has said."""
        return len(self.sample.prompt) + len(self.ids)

    def take(self, news: "News", b: int, positions: int) -> str | None:
        """Add what slot b has made in one look of the host -> why the sample ends here, or None."""
        sample, before = self.sample, len(self.ids)
        stopped = cut = False
        new = news.ids[b]
        for i in new[new >= 0].tolist():
            if i in sample.sampling.stop_ids:
                stopped = True
                break
            self.ids.append(i)
            # the host looks every few tokens: those made after a stop string was complete are lost
            if self.saying and self.saying.add(i):
                cut = True
                break
        added = len(self.ids) - before
        self.margin = min(
            self.margin, float(np.min(news.margins[b, : added + stopped], initial=np.inf))
        )
        if sample.top:
            scores = scores_of(*(a[b, : added + stopped] for a in news.scores))
            self.scores += scores[:added]
            if stopped:
                self.stop = int(new[added]), scores[added]
        if stopped or cut:
            return "stop"
        if len(self.ids) < sample.room:
            return None
        return "context" if self.length == positions else "length"

    def output(self, reason: str) -> Output:
        name, number = self.sample.name, self.sample.number
        text = self.saying.text if self.saying else ""
        return Output(name, number, self.ids, text, reason, self.margin)


class News(NamedTuple):
    """What the device has made between two looks of the host; -1 where a slot made nothing."""

    ids: np.ndarray  # [B, CHUNK]
    margins: np.ndarray  # [B, CHUNK]
    scores: tuple  # logp [B, CHUNK], top ids and their logp [B, CHUNK, k]; () where none asks


def scores_of(logp: np.ndarray, ids: np.ndarray, values: np.ndarray) -> list[Score]:
    """A Score for each place, from arrays [places], [places, k], [places, k]."""
    rows = zip(logp.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [Score(p, list(zip(i, v, strict=True))) for p, i, v in rows]


class Programs(Protocol):
    """What a Batch needs of decoding.decoder.Decoder."""

    config: Any
    data: int  # ranks of the data axis
    empty: Callable  # (slots, positions) -> a cache
    prefill_slots: Callable
    steps: Callable


class Batch:
    """B slots over one cache of S positions, to which samples are admitted while others run."""

    def __init__(
        self, decoder: Programs, weights, size, length, prefix: Prefix, tok: Tokenizer | None = None
    ):
        self.decoder, self.weights, self.prefix, self.tok = decoder, weights, prefix, tok
        self.slots: list[Slot | None] = [None] * size
        self.kv = decoder.empty(size, length)
        dtypes = {"seed": np.uint32, "temperature": np.float32, "top_p": np.float32, "live": bool}
        names = ("token", "position", "left", "prompt", "sample", "top_k", *dtypes)
        # ids of no token, where a vocabulary is padded beyond its tokenizer
        self.unused = np.array(sorted(getattr(tok, "unused", ())), np.int32)
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
            self.occupy(b, self.slot_of(sample))
        token = rows_of_prompts(rows, length)
        self.kv = self.decoder.prefill_slots(
            self.weights, self.kv, token, self.prefix.arrays, np.int32(length), copies
        )

    def slot_of(self, sample: Sample) -> Slot:
        """A slot's content for a sample that has said nothing yet."""
        stops = sample.sampling.stop_strings
        return Slot(sample, Saying(self.tok, sample.prompt, stops) if self.tok else None)

    def occupy(self, b: int, slot: Slot) -> None:
        """Put a sample whose keys and values are being read into slot b."""
        self.slots[b], sample = slot, slot.sample
        values = {"prompt": sample.name, "sample": sample.number, "live": True}
        for name in ("temperature", "top_k", "top_p", "seed"):
            values[name] = getattr(sample.sampling, name)
        for name, value in values.items():
            self.state[name][b] = value
        self.go_on(b)

    def release(self, b: int) -> None:
        """Free slot b, whether its sample is finished or abandoned."""
        self.slots[b], self.state["live"][b] = None, False

    def run(self, limit: int, patience: int) -> News:
        """Up to `limit` tokens for every live slot; ends early when `patience` slots are done."""
        live = self.state["live"]
        running = [slot.sample for slot, here in zip(self.slots, live, strict=True) if here]
        settings = [sample.sampling for sample in running]
        ends = frozenset().union(*(s.stop_ids for s in settings))
        bounds = {
            "limit": np.int32(limit),
            "patience": np.int32(patience),
            "stop": ends_array(ends),
            "unused": self.unused,
        }
        how = {
            "greedy": all(s.greedy for s in settings),
            "filters": any(s.filters for s in settings),
            "top": max((sample.top for sample in running), default=0),
        }
        self.kv, *news = self.decoder.steps(self.weights, self.kv, self.state, bounds, **how)
        ids, margins, scores = news
        return News(np.asarray(ids), np.asarray(margins), tuple(map(np.asarray, scores)))

    def go_on(self, b: int) -> None:
        """Let slot b go on behind what it has said."""
        slot = self.slots[b]
        self.state["left"][b] = slot.sample.room - len(slot.ids)
        self.state["token"][b] = (slot.ids or slot.sample.prompt)[-1]
        self.state["position"][b] = slot.length - 1

    def advance(self, watch: Watch | None = None, patient: bool = True) -> Iterator[Output]:
        """A few tokens for every live slot; yields the Outputs that they finish.

        patient: no sample waits, so slots may stand idle until all are done.
        """
        looking = watch or any(s.sample.sampling.stop_strings for s in self.slots if s)
        size = len(self.slots)
        # slots that may stand idle before others are let in
        patience = size if patient else max(size // 8, 1)
        news = self.run(WATCHED if looking else CHUNK, patience)
        for b, slot in enumerate(self.slots):
            if slot is None:
                continue
            reason = slot.take(news, b, self.decoder.config.P)
            self.go_on(b)
            if reason:
                self.release(b)
                yield slot.output(reason)
            if watch:
                watch(slot.sample.name, slot.sample.number, slot.ids)


def ends_array(ends: frozenset) -> np.ndarray:
    """Ids that end a sample, filled up with ids of nothing: few lengths, few programs."""
    return np.array(sorted(ends) + [-2] * (8 - len(ends) % 8), np.int32)


def rows_of_prompts(
    rows: list[list[list[int]]], length: int, widths: tuple = (64, ROW)
) -> dict[str, np.ndarray]:
    """Each rank's prompts laid into one row of T tokens: ids, position, tree [ranks, T].

    T is one of `widths`, or more where a prompt is longer than all of them.
    """
    longest = max(sum(map(len, row)) for row in rows)
    T = next((width for width in widths if longest <= width), bucket(longest, ROW))
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
