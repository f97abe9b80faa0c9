"""The thread that owns the devices: requests come in, their samples share a Pool, events go out.

Each model has a Pool and its own queue; models with work take turns, a look each. A look lets out
who is cancelled or out of time, reads waiting prompts for half a second, and makes a few tokens for
every running sample: as many as take LOOK seconds, so that who comes meanwhile waits no longer.
Requests of one model are let in by turns, a sample each: a long list does not keep out a short
question.

log-probabilities are of the raw logits at temperature 1, as OpenAI's and vLLM's are by default.
"""

import collections
import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Iterable

from decoding import memory
from decoding.batch import Sample, Score, Slot
from decoding.cache import BLOCK
from decoding.opened import Opened, open_model
from decoding.pool import Pool
from decoding.records import Sampling
from host.terminal import say
from serve.records import MOST_TOP, Ask, Busy, Counts, Delta, Echo, End, Failed, Ticket, TokenScore

LOOK = 0.1  # seconds of decoding between two looks at who has come or gone, about
MOST_STEPS = 32  # tokens a look, at most
READS = 8  # rows of prompts that one look reads while slots are free, at most,
READING = 0.5  # and seconds after which it reads no further


@dataclasses.dataclass(eq=False)
class Voice:
    """One sample of a request on its way: what of it has been sent."""

    job: "Job"
    ids: int = 0
    text: int = 0


class Job:
    """A ticket and those of its samples that wait."""

    def __init__(self, ticket: Ticket, waiting: list[Slot]):
        self.ticket, self.waiting = ticket, collections.deque(waiting)
        self.echoed: set[int] = set()  # prompts
        self.left = len(waiting)  # samples without their End
        self.deadline = ticket.submitted + ticket.ask.seconds


def token_scores(ids: Iterable[int], scores: list[Score], k: int) -> list[TokenScore]:
    """The records of tokens and their scores, with the k likeliest each."""
    return [
        TokenScore(i, score.logp, tuple(score.top[:k]))
        for i, score in zip(ids, scores, strict=True)
    ]


class Lane:
    """One model: its queue and its Pool. Its methods run in the engine's thread."""

    def __init__(self, opened: Opened, batch: int):
        self.opened, self.batch = opened, batch
        self.decoder, self.weights = opened.decoder()
        data, length = opened.layout.data, opened.length or opened.config.P
        self.capacity = -(-batch // data) * data * -(-length // BLOCK) * BLOCK
        self.jobs: list[Job] = []
        self.finished = self.abandoned = 0
        self.seconds: dict = {}  # of a step, by the cache's shape
        self.counters: list = []  # of its pools, those given up too
        self.broken = False  # the pool is to be made anew
        self.pool = self._pool()

    def _pool(self) -> Pool:
        pool = Pool(self.decoder, self.weights, self.opened.tok, self.batch, self.capacity)
        self.counters.append(pool.counter)
        return pool

    @property
    def running(self) -> int:
        return sum(slot is not None for slot in self.pool.slots)

    @property
    def waiting(self) -> int:
        return sum(len(job.waiting) for job in self.jobs)

    def total(self, name: str) -> int:
        """A counter of all its pools."""
        return sum(getattr(counter, name) for counter in self.counters)

    def job_of(self, ticket: Ticket) -> Job:
        """A request's samples, as the Pool takes them; checked by Engine.submit."""
        ask = ticket.ask
        top = 0 if ask.logprobs is None else 1 if ask.logprobs <= 1 else MOST_TOP
        stops = ask.sampling.stop_ids | self.opened.stop_ids
        sampling = dataclasses.replace(ask.sampling, stop_ids=stops)
        job = Job(ticket, [])
        for at, prompt in enumerate(ask.prompts):
            room = min(sampling.max_new, self.pool.longest - len(prompt))
            for number in range(sampling.n):
                sample = Sample(prompt, at, number, sampling, room, top, ask.echo, Voice(job))
                job.waiting.append(self.pool.slot_of(sample))
        job.left = len(job.waiting)
        return job

    # --- one look ---

    def look(self) -> None:
        """Let go, read, and say a few tokens."""
        if self.broken:
            self.pool, self.broken = self._pool(), False
        self._let_go()
        waiting, steps = self._in_turn(), self._steps()
        left = self.pool.fit(waiting, steps)
        for slot in reversed(left):
            slot.sample.owner.job.waiting.appendleft(slot)
        began = time.monotonic()
        for _ in range(READS):
            waits = self.pool.readers or (waiting and self.pool.free)
            if not waits or time.monotonic() - began > READING:
                break
            self._admit(waiting)
            waiting = self._in_turn()
        self._say(steps)

    def _let_go(self) -> None:
        now = time.monotonic()
        for job in list(self.jobs):
            if job.ticket.cancelled:
                self.drop(job, None)
            elif now > job.deadline:
                seconds = job.ticket.ask.seconds
                self.drop(job, Failed("timeout", f"not finished within {seconds:g} seconds"))

    def drop(self, job: Job, failed: Failed | None) -> None:
        """End a request before its samples are done; its slots are free."""
        for b, slot in enumerate(self.pool.slots):
            if slot and slot.sample.owner.job is job:
                self.pool.release(b)
        self.abandoned += job.left
        self.jobs.remove(job)
        if failed:
            job.ticket.put(failed)

    def _in_turn(self) -> list[Slot]:
        """The waiting samples, one of each request after another."""
        queues = [iter(job.waiting) for job in self.jobs if job.waiting]
        turns = []
        while queues and len(turns) < 64:
            queues = [queue for queue in queues if self._next(queue, turns)]
        return turns

    @staticmethod
    def _next(queue: Iterable, turns: list) -> bool:
        slot = next(queue, None)
        if slot is not None:
            turns.append(slot)
        return slot is not None

    def _admit(self, waiting: list[Slot]) -> None:
        reading = [self.pool.slots[b] for b in self.pool.readers]
        admitted = self.pool.admit(waiting)
        for slot in admitted:
            slot.sample.owner.job.waiting.remove(slot)
        still = {id(self.pool.slots[b]) for b in self.pool.readers}
        for slot in reading + admitted:
            if id(slot) not in still:
                self._read(slot)

    def _read(self, slot: Slot) -> None:
        """A prompt has been read: its echo, and its end where no more was asked for."""
        job, sample = slot.sample.owner.job, slot.sample
        ask = job.ticket.ask
        if ask.echo and sample.name not in job.echoed:
            job.echoed.add(sample.name)
            scores = None
            if ask.logprobs is not None:
                scores = [TokenScore(sample.prompt[0], None)]
                scores += token_scores(sample.prompt[1:], slot.prompt_scores, ask.logprobs)
            job.ticket.put(Echo(sample.name, sample.prompt, scores))
        if sample.room == 0:
            self.pool.release(self.pool.slots.index(slot))
            self._finish(slot, "length")

    def _steps(self) -> int:
        """Tokens that each running sample may say in about LOOK seconds."""
        seconds = self.seconds.get((len(self.pool.slots), self.pool.length))
        return min(max(int(LOOK / seconds), 1), MOST_STEPS) if seconds else 1

    def _say(self, limit: int) -> None:
        pool = self.pool
        shape = len(pool.slots), pool.length
        seconds = self.seconds.get(shape)
        began, before = time.perf_counter(), pool.counter.steps
        for slot, reason in pool.say_on(limit):
            self._send(slot, reason)
            if reason:
                self._finish(slot, reason)
        steps = pool.counter.steps - before
        if steps:  # the first time a program is compiled: the least counts
            each = (time.perf_counter() - began) / steps
            self.seconds[shape] = min(each, 1.1 * (seconds or each))

    def _send(self, slot: Slot, reason: str | None) -> None:
        """A Delta of what is new and may be shown."""
        voice, sample, saying = slot.sample.owner, slot.sample, slot.saying
        ask = voice.job.ticket.ask
        text = slot.saying.text if reason else saying.said[: saying.safe]
        ids, news = slot.ids[voice.ids :], text[voice.text :]
        scores = None
        if ask.logprobs is not None:
            scores = token_scores(ids, slot.scores[voice.ids :], ask.logprobs)
        voice.ids, voice.text = len(slot.ids), len(text)
        if ids or news:
            voice.job.ticket.put(Delta(sample.name, sample.number, ids, news, scores))

    def _finish(self, slot: Slot, reason: str) -> None:
        job, sample = slot.sample.owner.job, slot.sample
        ask = job.ticket.ask
        if (
            reason == "length"
            and slot.length == self.pool.longest
            and sample.room < ask.sampling.max_new
        ):
            reason = "context"
        scores = stop = None
        if ask.logprobs is not None:
            scores = token_scores(slot.ids, slot.scores, ask.logprobs)
            if slot.stop:
                stop = token_scores(slot.stop[:1], [slot.stop[1]], ask.logprobs)[0]
        said = reason, slot.ids, slot.saying.text, scores
        job.ticket.put(End(sample.name, sample.number, *said, slot.cached or 0, stop))
        self.finished += 1
        job.left -= 1
        if not job.left:
            self.jobs.remove(job)

    def recover(self, error: BaseException) -> None:
        """After an exception in a look: those in slots fail, the others go on in a new Pool."""
        inside = {slot.sample.owner.job for slot in self.pool.slots if slot}
        if not inside:  # the prompts that were being read
            inside = {slot.sample.owner.job for slot in self._in_turn()}
        self.broken, self.pool.kv = True, []  # the cache may have been given away
        text = f"the model failed: {type(error).__name__}: {error}"
        for job in inside & set(self.jobs):
            self.drop(job, Failed("error", text))


def open_models(
    paths: dict[str, str],
    tokenizer: str | None = None,
    template: str | None = None,
    mesh: str | None = None,
    dtype: str | None = None,
    batch: int = 32,
    length: int | None = None,
) -> dict[str, Opened]:
    """Open the models of paths by name, their memory planned together.

    length: positions a sample that the plan has room for, batch times; by default as many as the
    models have, or as fit. ValueError, with the number, where all together do not fit.
    """
    models: dict[str, Opened] = {}

    def planned(positions):
        sizes = [
            memory.bytes_needed(
                o.config, *o.mesh.devices.shape, o.dtype, batch, min(positions, o.config.P)
            )
            for o in models.values()
        ]
        return sum(map(sum, sizes))

    least = length or BLOCK
    for name, path in paths.items():
        models[name] = open_model(path, tokenizer, None, mesh, dtype, batch, least, planned(least))
        models[name].use_template(template)
    if length is None:
        room = memory.device_room(next(iter(models.values())).mesh)
        length = longest = max(o.config.P for o in models.values())
        while room and length > BLOCK and planned(length) > memory.SHARE * room:
            length //= 2
        if length < longest:
            say(f"note: memory for {batch} x {length} positions; longer samples take several slots")
    for o in models.values():
        o.length = min(length, o.config.P)
    return models


class Engine:
    """The models of a server, and the thread that runs them.

    models: name -> Opened, as open_models gives them. batch: samples at once, of each model. queue:
    samples that may wait, all models together. A sample longer than the length that a model's
    memory was planned for takes several slots.
    """

    def __init__(self, models: dict[str, Opened], batch: int = 32, queue: int = 1024):
        self.models, self.batch, self.queue = models, batch, queue
        self.lanes: dict[str, Lane] = {}
        self._inbox: list[Ticket] = []
        self._changed = threading.Condition()
        self._deadline: float | None = None  # of a stop
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load the models and start the thread; returns when requests can be answered."""
        for name, opened in self.models.items():
            self.lanes[name] = Lane(opened, self.batch)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def warm(self, model: str) -> None:
        """Compile what the first questions need: two lengths of prompts, greedy and drawn."""
        for kind, size in enumerate((60, 120)):
            prompt = [kind] * min(size, self.positions(model) - 2)
            for event in self.submit(Ask(model, [prompt], Sampling(2, temperature=float(kind)))):
                if isinstance(event, Failed):
                    raise RuntimeError(event.message)

    def positions(self, model: str) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.lanes[model].pool.longest

    def submit(self, ask: Ask) -> Ticket:
        """Queue a request.

        Busy where the queue is full or the engine stops; ValueError for what no waiting would make
        fit.
        """
        self._check(ask)
        samples = len(ask.prompts) * ask.sampling.n
        with self._changed:
            if self._deadline is not None:
                raise Busy("the server is stopping")
            waiting = sum(len(t.ask.prompts) * t.ask.sampling.n for t in self._inbox)
            waiting += sum(lane.waiting for lane in self.lanes.values())
            if waiting + samples > self.queue:
                raise Busy(f"{waiting} samples wait already, {self.queue} may")
            ticket = Ticket(ask)
            self._inbox.append(ticket)
            self._changed.notify()
        return ticket

    def _check(self, ask: Ask) -> None:
        if ask.model not in self.models:
            raise ValueError(f"no model {ask.model!r}: use {', '.join(self.models)}")
        sampling, lane = ask.sampling, self.lanes[ask.model]
        samples = len(ask.prompts) * sampling.n
        if not 0 < samples <= self.queue:
            raise ValueError(f"{samples} samples: 1 to {self.queue} a request")
        least = 0 if ask.echo else 1
        if sampling.max_new < least:
            raise ValueError(f"{sampling.max_new} new tokens: {least} or more")
        if ask.logprobs is not None and not 0 <= ask.logprobs <= MOST_TOP:
            raise ValueError(f"{ask.logprobs} log-probabilities a token: 0 to {MOST_TOP}")
        most = lane.pool.longest - (sampling.max_new > 0)
        size = lane.opened.config.V
        for prompt in ask.prompts:
            if not 0 < len(prompt) <= most:
                raise ValueError(f"a prompt of {len(prompt)} tokens: 1 to {most} fit")
            if not all(0 <= i < size for i in prompt):
                raise ValueError(f"a prompt has ids outside the model's {size} (0 to {size - 1})")

    def counts(self) -> Counts:
        """How it stands."""
        lanes = list(self.lanes.values())

        def total(name):
            return sum(lane.total(name) for lane in lanes)

        return Counts(
            running=sum(lane.running for lane in lanes),
            waiting=sum(lane.waiting for lane in lanes) + len(self._inbox),
            prompt_tokens=total("prompt"),
            cached_tokens=total("cached"),
            new_tokens=total("new"),
            finished=sum(lane.finished for lane in lanes),
            abandoned=sum(lane.abandoned for lane in lanes),
            steps=total("steps"),
            cache_bytes=sum(a.nbytes for lane in lanes for layer in lane.pool.kv for a in layer),
        )

    def stop(self, grace: float) -> None:
        """No new requests; running ones get `grace` seconds, then they fail."""
        with self._changed:
            self._deadline = time.monotonic() + grace
            self._changed.notify()
        if self._thread:
            self._thread.join()

    # --- the thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._busy() or self._deadline is not None):
                    self._changed.wait()
                tickets, self._inbox = self._inbox, []
                for ticket in tickets:
                    lane = self.lanes[ticket.ask.model]
                    lane.jobs.append(lane.job_of(ticket))
            if self._deadline is not None:
                if not self._busy():
                    return
                if time.monotonic() > self._deadline:
                    self._fail_all()
                    return
            for lane in self.lanes.values():
                if lane.jobs:
                    self._look(lane)

    def _busy(self) -> bool:
        return any(lane.jobs for lane in self.lanes.values())

    def _look(self, lane: Lane) -> None:
        try:
            lane.look()
        except Exception as error:  # one request's trouble is not the others'
            traceback.print_exc(file=sys.stderr)
            lane.recover(error)

    def _fail_all(self) -> None:
        for lane in self.lanes.values():
            for job in list(lane.jobs):
                lane.drop(job, Failed("stopped", "the server has stopped"))
