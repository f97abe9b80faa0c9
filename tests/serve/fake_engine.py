"""An engine without a model: it says the prompt's bytes again, from their end, one a step.

For tests of the protocol and of the page, which then need no device and no compiler. A token is a
byte; ids from 256 are special. A step takes `step_s`; `queue` samples may wait.
"""

import threading
import time
import types

from serve.records import Ask, Busy, Counts, Delta, Echo, End, Failed, Ticket, TokenScore

BOS, EOS = 256, 257


END = 0  # the id that ends what it says


class FakeTokenizer:
    """Bytes as tokens."""

    size, bos, eos, special, unused = 258, BOS, EOS, {BOS, EOS}, set()
    pieces = [bytes([i]) for i in range(256)] + [b"<s>", b"</s>"]

    def encode(self, text):
        return list(text.encode())

    def decode_bytes(self, ids):
        return b"".join(self.pieces[i] for i in ids)

    def decode(self, ids):
        return self.decode_bytes(ids).decode("utf-8", "replace")


class FakeModel:
    """What the protocol asks of an opened model."""

    def __init__(self, positions=256, template="chatml"):
        self.tok, self.template = FakeTokenizer(), template
        self.config, self.start = types.SimpleNamespace(P=positions), [BOS]

    def chat_ids(self, conversation):
        said = "".join(f"{t['from']}: {t['value']}\n" for t in conversation)
        return [BOS, *self.tok.encode(said)]


class FakeEngine:
    """serve.records.Serving over FakeModels."""

    def __init__(self, models=None, batch=4, queue=8, step_s=0.002):
        self.models = models or {"fake": FakeModel()}
        self.batch, self.queue, self.step_s = batch, queue, step_s
        self.lock, self.stopping, self.ended = threading.Condition(), False, False
        self.waiting, self.running = [], []  # [ticket, prompt, sample, ids so far, text so far]
        self.asks: list[Ask] = []
        self.finished = self.abandoned = self.steps = 0

    def start(self):
        threading.Thread(target=self._loop, daemon=True).start()

    def submit(self, ask):
        n = ask.sampling.n
        with self.lock:
            if self.stopping or len(self.waiting) + len(ask.prompts) * n > self.queue:
                raise Busy("the queue is full")
            self.asks.append(ask)
            ticket = Ticket(ask)
            for p, ids in enumerate(ask.prompts):
                if ask.echo:
                    scores = None if ask.logprobs is None else [self._score(ask, i) for i in ids]
                    if scores:
                        scores[0] = TokenScore(ids[0], None)
                    ticket.put(Echo(p, ids, scores))
                self.waiting += [[ticket, p, s, [], ""] for s in range(n)]
            self.lock.notify()
        return ticket

    def stop(self, grace):
        with self.lock:
            self.stopping = True
        until = time.monotonic() + grace
        while time.monotonic() < until and (self.waiting or self.running):
            time.sleep(0.01)
        with self.lock:
            for ticket in {row[0] for row in self.waiting + self.running}:
                ticket.put(Failed("stopped", "the server has stopped"))
            self.waiting, self.running, self.ended = [], [], True

    def counts(self):
        return Counts(
            running=len(self.running),
            waiting=len(self.waiting),
            prompt_tokens=0,
            cached_tokens=0,
            new_tokens=0,
            finished=self.finished,
            abandoned=self.abandoned,
            steps=self.steps,
            cache_bytes=0,
        )

    def _score(self, ask, i):
        near = (i, *range(65, 85))[: ask.logprobs]
        top = tuple((j, -1.0 - k) for k, j in enumerate(near))
        return TokenScore(i, -1.0, top)

    def _loop(self):
        while not self.ended:
            time.sleep(self.step_s)
            with self.lock:
                for rows in (self.waiting, self.running):
                    left = [row for row in rows if not self._lost(row)]
                    self.abandoned += len(rows) - len(left)
                    rows[:] = left
                while self.waiting and len(self.running) < self.batch:
                    self.running.append(self.waiting.pop(0))
                self.steps += bool(self.running)
                self.running = [row for row in self.running if not self._step(row)]

    def _lost(self, row):
        ticket = row[0]
        late = time.monotonic() - ticket.submitted > ticket.ask.seconds
        if late and not ticket.cancelled:
            ticket.put(Failed("timeout", f"not done within {ticket.ask.seconds:g} seconds"))
            ticket.cancelled = True
        return ticket.cancelled

    def _step(self, row):
        """One token of a sample -> whether it ended."""
        ticket, p, s, ids, _ = row
        ask = ticket.ask
        prompt, sampling = ask.prompts[p], ask.sampling
        room = min(sampling.max_new, 256 - len(prompt))
        said = prompt[-1 - len(ids) % len(prompt)]
        ended = said == END and len(ids) < room
        if len(ids) < room and not ended:
            ids.append(said)
        text = FakeTokenizer().decode(ids)
        cut = min((text.find(t) for t in sampling.stop_strings if t in text), default=None)
        scores = None if ask.logprobs is None else [self._score(ask, i) for i in ids]
        text = text if cut is None else text[:cut]
        if ids and not ended:
            new = text[len(row[4]) :]
            ticket.put(Delta(p, s, ids[-1:], new, scores and scores[-1:]))
        row[4] = text
        if cut is None and len(ids) < room and not ended:
            return False
        reason = "length" if cut is None and not ended else "stop"
        stop = self._score(ask, END) if ended and ask.logprobs is not None else None
        ticket.put(End(p, s, reason, list(ids), text, scores, 0, stop))
        self.finished += 1
        return True
