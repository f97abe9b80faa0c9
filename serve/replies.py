"""The engine's events as OpenAI's answers: whole, or in chunks as they come.

For both addresses of serve/protocol.py; nothing to run. A choice's index is prompt * n + sample.
text_offset counts characters in the choice's own text. Left out: HTTP (serve/app.py).
"""

import codecs
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import Any

from serve.protocol import Model, Query
from serve.records import Delta, Echo, End, Event, TokenScore

REASONS = {"stop": "stop", "length": "length", "context": "length"}
LEAST = -9999.0  # stands for a log-probability of minus infinity, which JSON lacks


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return max(logprob, LEAST) if math.isfinite(logprob) else LEAST


class Spelling:
    """The tokens of one sample as texts: each as it reads behind the one before it.

    before: the id that stands before the first, if any. silent: how many of the next tokens are in
    no text (the start token before a prompt given as text).
    """

    def __init__(self, tok: Any, before: list[int], silent: int = 0):
        self.tok, self.before, self.silent = tok, before[-1:], silent
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.offset = 0

    def bytes_of(self, i: int) -> bytes:
        """What id i would add here."""
        head = self.tok.decode_bytes(self.before)
        return self.tok.decode_bytes([*self.before, i])[len(head) :]

    def text_of(self, i: int) -> str:
        return self.bytes_of(i).decode("utf-8", "replace")

    def go(self, i: int) -> None:
        """Stand behind id i."""
        if self.silent:
            self.silent -= 1
        else:
            self.offset += len(self.decoder.decode(self.bytes_of(i)))
        self.before = [i]

    # --- the two forms ---

    def completion(self, scores: Iterable[TokenScore], k: int) -> dict:
        """{"tokens", "token_logprobs", "top_logprobs", "text_offset"}."""
        out = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for score in scores:
            own = None if score.logprob is None else finite(score.logprob)
            top = {} if own is not None else None
            for i, logprob in (*score.top[:k], (score.id, own)) if own is not None else ():
                name = self.text_of(i)  # two ids may read the same: the likelier one stands
                top[name] = max(top.get(name, LEAST), finite(logprob))
            out["tokens"].append(self.text_of(score.id))
            out["token_logprobs"].append(own)
            out["top_logprobs"].append(top)
            out["text_offset"].append(self.offset)
            self.go(score.id)
        return out if k else out | {"top_logprobs": None}

    def chat(self, scores: Iterable[TokenScore], k: int) -> dict:
        """{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}."""
        content = []
        for score in scores:
            entry = self.entry(score.id, score.logprob)
            content.append(entry | {"top_logprobs": [self.entry(*t) for t in score.top[:k]]})
            self.go(score.id)
        return {"content": content, "refusal": None}

    def entry(self, i: int, logprob: float | None) -> dict:
        raw = self.bytes_of(i)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": finite(LEAST if logprob is None else logprob),
            "bytes": list(raw),
        }


class Usage:
    """Tokens read and made for one request."""

    def __init__(self, query: Query):
        self.prompt = sum(map(len, query.ask.prompts))
        self.new = 0
        self.cached: dict[int, int] = {}  # of each prompt, by the sample that found fewest

    def add(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.new += len(event.ids)
        elif isinstance(event, End):
            self.cached[event.prompt] = min(
                event.cached, self.cached.get(event.prompt, event.cached)
            )

    def body(self) -> dict:
        """{"prompt_tokens", "completion_tokens", "total_tokens", …}."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.new,
            "total_tokens": self.prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": sum(self.cached.values())},
        }


class Reply:
    """The answer to one query, written in OpenAI's form."""

    def __init__(self, query: Query, model: Model):
        self.query, self.model, self.usage = query, model, Usage(query)
        self.created = int(time.time())
        kind = "chatcmpl" if query.chat else "cmpl"
        self.id = f"{kind}-{secrets.token_hex(12)}"
        self.echoes: dict[int, Echo] = {}
        self.ends: dict[int, End] = {}
        self.spellings: dict[int, Spelling] = {}

    # --- parts ---

    def index(self, prompt: int, sample: int) -> int:
        return prompt * self.query.ask.sampling.n + sample

    def spelling(self, prompt: int, sample: int) -> Spelling:
        """How the next token of a sample reads."""
        index, ask = self.index(prompt, sample), self.query.ask
        if index not in self.spellings:
            ids, text = ask.prompts[prompt], self.query.texts[prompt]
            # what was put before a prompt given as text is no part of that text
            silent = 0 if text is None else len(self.model.start) or int(not text)
            before, silent = ([], silent) if ask.echo else (ids, 0)
            self.spellings[index] = Spelling(self.model.tok, before, silent)
        return self.spellings[index]

    def logprobs(self, prompt: int, sample: int, scores: list[TokenScore] | None) -> dict | None:
        k = self.query.ask.logprobs
        if k is None or scores is None:
            return None
        spelling = self.spelling(prompt, sample)
        return spelling.chat(scores, k) if self.query.chat else spelling.completion(scores, k)

    def stop(self, end: End) -> list[TokenScore]:
        """The end token's score, which a completion lists, with its own empty text.

        OpenAI's completions do, and lm-eval takes the last score off as the made token's.
        """
        return [end.stop] if end.stop and not self.query.chat else []

    def echoed(self, echo: Echo) -> str:
        """The prompt as the answer repeats it."""
        text = self.query.texts[echo.prompt]
        return self.model.tok.decode(echo.ids) if text is None else text

    def head(self, kind: str) -> dict:
        """What every object of this answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.query.ask.model,
            "system_fingerprint": None,
        }

    # --- whole ---

    def add(self, event: Event) -> None:
        """Take an event into the whole answer."""
        self.usage.add(event)
        if isinstance(event, Echo):
            self.echoes[event.prompt] = event
        elif isinstance(event, End):
            self.ends[self.index(event.prompt, event.sample)] = event

    def whole(self) -> dict:
        """The answer, after all samples' ends."""
        kind = "chat.completion" if self.query.chat else "text_completion"
        choices = [self.choice(index, end) for index, end in sorted(self.ends.items())]
        return self.head(kind) | {"choices": choices, "usage": self.usage.body()}

    def choice(self, index: int, end: End) -> dict:
        scores, text = end.scores, end.text
        if scores is not None:
            scores = [*scores, *self.stop(end)]
        if end.prompt in self.echoes:
            echo = self.echoes[end.prompt]
            text = self.echoed(echo) + text
            scores = None if scores is None else [*(echo.scores or []), *scores]
        choice = {
            "index": index,
            "logprobs": self.logprobs(end.prompt, end.sample, scores),
            "finish_reason": REASONS[end.reason],
        }
        if self.query.chat:
            message = {"role": "assistant", "content": text, "refusal": None}
            return choice | {"message": message}
        return choice | {"text": text}

    # --- in chunks ---

    def chunk(self, choices: list[dict], usage: dict | None = None) -> dict:
        kind = "chat.completion.chunk" if self.query.chat else "text_completion"
        said = {"usage": usage} if self.query.include_usage else {}
        return self.head(kind) | {"choices": choices} | said

    def piece(
        self, index: int, text: str, logprobs: dict | None = None, reason: str | None = None
    ) -> dict:
        """A chunk with one choice."""
        choice = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        if not self.query.chat:
            return self.chunk([choice | {"text": text}])
        return self.chunk([choice | {"delta": {} if reason else {"content": text}}])

    def first(self) -> Iterator[dict]:
        """What a stream opens with: in a chat, who speaks."""
        if self.query.chat:
            for index in range(self.query.ask.sampling.n):
                delta = {"role": "assistant", "content": "", "refusal": None}
                choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                yield self.chunk([choice])

    def pieces(self, event: Event) -> Iterator[dict]:
        """The chunks of one event."""
        self.usage.add(event)
        if isinstance(event, Echo):
            for sample in range(self.query.ask.sampling.n):
                logprobs = self.logprobs(event.prompt, sample, event.scores)
                yield self.piece(self.index(event.prompt, sample), self.echoed(event), logprobs)
        elif isinstance(event, Delta):
            logprobs = self.logprobs(event.prompt, event.sample, event.scores)
            if event.text or logprobs:
                yield self.piece(self.index(event.prompt, event.sample), event.text, logprobs)
        elif isinstance(event, End):
            index = self.index(event.prompt, event.sample)
            scores = self.stop(event)
            logprobs = self.logprobs(event.prompt, event.sample, scores) if scores else None
            yield self.piece(index, "", logprobs, REASONS[event.reason])

    def last(self) -> Iterator[dict]:
        """What a stream ends with, where asked for: the usage."""
        if self.query.include_usage:
            yield self.chunk([], self.usage.body())
