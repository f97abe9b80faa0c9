"""What passes between the protocol and the engine: a request, its events, its ticket. No JAX.

    ticket = engine.submit(Ask("base", [ids], Sampling(max_new=64), logprobs=None))
    while not ticket.done:
        for event in ticket.wait(0.5):  # nothing for half a second: []
            ...  # an Echo a prompt where asked for, Deltas, one End a sample; or one Failed, last
    ticket.cancel()  # at any time: its slots are freed, nothing more comes

Prompts and samples are numbered from 0 within the request. Samples of one request come in any
order, the Deltas of one sample in theirs. The texts of a sample's Deltas, joined, are its End's
text; so are ids and scores.
"""

import dataclasses
import math
import queue
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from decoding.records import Sampling

MOST_TOP = 20  # of `Ask.logprobs`


class Busy(Exception):
    """The queue is full, or the engine is stopping: the same request may do later."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """One request: `sampling.n` samples behind each prompt.

    sampling.max_new may be 0 with echo. A sample's random numbers depend on seed, prompt, sample
    and position alone.
    """

    model: str  # a name of the engine's models
    prompts: list[list[int]]  # ids, at least one each
    sampling: Sampling  # the model's own ends are added to its stop ids
    logprobs: int | None = None  # of every token its own, and the k best; 0 to MOST_TOP
    echo: bool = False  # an Echo for each prompt
    seconds: float = math.inf  # from submit to the end, at most


# --- events ---


class TokenScore(NamedTuple):
    """How likely a token was: log-probabilities in nats, float32, at temperature 1, unfiltered."""

    id: int
    logprob: float | None  # None: a text's first token, behind which nothing stands
    top: tuple[tuple[int, float], ...] = ()  # the k likeliest (id, logprob), best first


class Echo(NamedTuple):
    """A prompt read back, before its first Delta."""

    prompt: int
    ids: list[int]
    scores: list[TokenScore] | None  # None: no logprobs were asked for


class Delta(NamedTuple):
    """What a sample has said since its last Delta.

    text is whole characters and never the beginning of a stop string that may yet complete; so it
    may lag behind ids.
    """

    prompt: int
    sample: int
    ids: list[int]
    text: str
    scores: list[TokenScore] | None


class End(NamedTuple):
    """A finished sample, whole."""

    prompt: int
    sample: int
    reason: str  # "stop", "length" (max_new) or "context" (the model's positions are full)
    ids: list[int]  # a stop id left out; the last one may have completed a stop string
    text: str  # cut before the first stop string
    scores: list[TokenScore] | None
    cached: int  # tokens of the prompt that were in a cache and not read again
    stop: TokenScore | None = None  # of the stop id that ended it, where logprobs were asked for


class Failed(NamedTuple):
    """The whole request's end: nothing more comes of it."""

    reason: str  # "timeout" (Ask.seconds), "stopped" (the engine's end) or "error"
    message: str


Event = Echo | Delta | End | Failed


# --- a request under way ---


class Ticket:
    """The asker's end of a request: its events as they come.

    The engine calls put and reads `cancelled`; the asker calls all else.
    """

    def __init__(self, ask: Ask):
        self.ask, self.submitted = ask, time.monotonic()
        self.cancelled = self.done = False  # done: nothing comes after what `wait` has given
        self.left = len(ask.prompts) * ask.sampling.n  # samples without their End
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Hand an event to the asker."""
        self._events.put(event)

    def wait(self, seconds: float) -> list[Event]:
        """What has come since; [] where nothing has within `seconds`."""
        events = []
        try:
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for event in events:
            self.left -= isinstance(event, End)
            self.done = self.done or isinstance(event, Failed)
        self.done = self.done or self.left == 0
        return events

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self.cancelled = self.done = True

    def __iter__(self) -> Iterator[Event]:
        """All events to the end, however long that takes."""
        while not self.done:
            yield from self.wait(1)


@dataclasses.dataclass(frozen=True)
class Counts:
    """What an engine has done since its start, and what it does now; for /metrics."""

    running: int  # samples in slots
    waiting: int  # samples without a slot yet
    prompt_tokens: int  # of all admitted prompts
    cached_tokens: int  # of these, not read again
    new_tokens: int  # made
    finished: int  # samples that had their End
    abandoned: int  # samples that were cancelled, failed or ran out of time
    steps: int  # decode steps, all models together
    cache_bytes: int  # of keys and values on the devices, at most


class Serving(Protocol):
    """What the protocol calls of serve.engine.Engine.

    Engine(models, batch, queue) takes {name: Opened}, as serve.engine.open_models gives it.
    """

    models: dict  # name: Opened (its tok, chat_ids, template, config.P, start)

    def start(self) -> None:
        """Start the thread that owns the devices."""
        ...

    def submit(self, ask: Ask) -> Ticket:
        """Busy where the queue is full; ValueError for what no waiting would make fit."""
        ...

    def stop(self, grace: float) -> None:
        """No new requests; running ones get `grace` seconds, then they fail. Returns when done."""
        ...

    def counts(self) -> Counts:
        """How it stands."""
        ...
