"""OpenAI's requests as the engine's: POST /v1/completions and /v1/chat/completions.

`completion` and `chat` read a body into a Query. Whatever would change the answer and is not done
here is refused by name; FREE lists the fields that change nothing and are let through. Left out:
tools, images, audio, grammars, penalties, biases of logits.
"""

import dataclasses
import secrets
from typing import Any, Protocol

from decoding.records import Sampling
from serve.body import MISSING, Fields, Refusal, int_of, refuse, short, text_of
from serve.records import MOST_TOP, Ask

MOST_N, MOST_STOPS, LONGEST_STOP, MOST_MESSAGES = 128, 32, 1000, 10_000
LONGEST_PIECE = 256  # bytes of a token, at most: what is longer than the model in these is refused
# They say who asks and what is kept; the answer is the same.
FREE = ("user", "metadata", "safety_identifier", "prompt_cache_key")
SPEAKERS = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt"}


class Model(Protocol):
    """What is used here of decoding.opened.Opened."""

    tok: Any
    config: Any
    template: str | None

    @property
    def start(self) -> list[int]: ...

    def chat_ids(self, conversation: list[dict]) -> list[int]: ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    prompt_tokens: int | None = None  # of one prompt; None: what the model's positions hold
    samples: int = 256  # prompts times n
    seconds: float = 600.0


@dataclasses.dataclass(frozen=True)
class Query:
    """A request understood: what the engine is asked, and how the answer is written."""

    ask: Ask
    chat: bool
    texts: list[str | None]  # of the prompts, as they came; None where they came as ids
    stream: bool
    include_usage: bool


# --- what both have ---


def model_of(fields: Fields, models: dict[str, Model]) -> tuple[str, Model]:
    """The model that a request names; 404 for another."""
    name = fields.text("model")
    if name not in models:
        raise Refusal(
            404,
            f"the model {short(name)} is not served here: use {' or '.join(map(short, models))}",
            "model",
            "model_not_found",
        )
    return name, models[name]


def sampling_of(fields: Fields, max_new: int) -> Sampling:
    """temperature, top_p, top_k, n, seed, stop."""
    seed = fields.whole("seed", None, -(2**63), 2**63 - 1)
    stops = fields.take("stop", [])
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        refuse("stop", f"is a text or a list of at most {MOST_STOPS} texts")
    for stop in stops:
        if not text_of(stop, "stop", LONGEST_STOP):
            refuse("stop", "holds an empty text: leave it out")
    return Sampling(
        max_new=max_new,
        temperature=fields.number("temperature", 1.0, 0, 2),
        top_k=max(fields.whole("top_k", 0, -1), 0),
        top_p=fields.number("top_p", 1.0, 0, 1),
        seed=secrets.randbits(32) if seed is None else seed % 2**32,
        n=fields.whole("n", 1, 1, MOST_N),
        stop_strings=tuple(stops),
    )


def refuse_others(fields: Fields) -> None:
    """Let through what changes nothing, refuse the rest by name."""
    for name in FREE:
        fields.take(name, None)
    for name in ("frequency_penalty", "presence_penalty"):
        fields.only(name, 0)
    fields.only("logit_bias", {})
    fields.only("store", False)
    fields.only("service_tier", "auto", "default")
    fields.done()


def stream_of(fields: Fields) -> tuple[bool, bool]:
    """(stream, stream_options.include_usage)."""
    stream, options = fields.flag("stream", False), fields.take("stream_options", None)
    if options is None:
        return stream, False
    if not stream or not isinstance(options, dict):
        refuse("stream_options", "is an object that goes with stream: true")
    options = Fields(options, "stream_options")
    include_usage = options.flag("include_usage", False)
    options.only("include_obfuscation", False)
    options.done()
    return stream, include_usage


def check_room(
    prompts: list[list[int]], sampling: Sampling, model: Model, limits: Limits, param: str
) -> None:
    """400 for prompts that are too long or too many."""
    positions = model.config.P
    most = min(limits.prompt_tokens or positions, positions - (sampling.max_new > 0))
    for ids in prompts:
        if len(ids) > most:
            refuse(
                param,
                f"has {len(ids):,} tokens: at most {most:,} of this model's {positions:,} positions"
                " are served as a prompt",
                "context_length_exceeded",
            )
    samples = len(prompts) * sampling.n
    if samples > limits.samples:
        refuse("n", f"times the prompts is {samples:,}: at most {limits.samples:,}")


def check_length(text: str, model: Model, param: str) -> None:
    """400 for a text that no tokenizer could fit, before time is spent on it."""
    if len(text) > model.config.P * LONGEST_PIECE:
        refuse(
            param,
            f"has {len(text):,} characters: too long for this model's {model.config.P:,} positions",
            "context_length_exceeded",
        )


# --- completions ---


def completion(body: dict, models: dict[str, Model], limits: Limits) -> Query:
    """A body of POST /v1/completions."""
    fields = Fields(body)
    name, model = model_of(fields, models)
    texts, prompts = prompts_of(fields.take("prompt"), model)
    echo = fields.flag("echo", False)
    max_new = fields.whole("max_tokens", 16, 0 if echo else 1)
    sampling = sampling_of(fields, max_new)
    logprobs = fields.whole("logprobs", None, 0, MOST_TOP)
    stream, include_usage = stream_of(fields)
    fields.only("best_of", sampling.n)
    refuse_others(fields)
    check_room(prompts, sampling, model, limits, "prompt")
    ask = Ask(name, prompts, sampling, logprobs, echo, limits.seconds)
    return Query(ask, False, texts, stream, include_usage)


def prompts_of(value: Any, model: Model) -> tuple[list[str | None], list[list[int]]]:
    """(texts, ids) of a prompt: a text, ids, or a list of either."""
    one = isinstance(value, str) or (
        isinstance(value, list) and any(isinstance(v, int | float) for v in value)
    )
    values = [value] if one else value
    if not isinstance(values, list) or not values:
        refuse("prompt", "is a text, a list of texts, a list of ids or a list of such lists")
    texts: list[str | None] = []
    prompts: list[list[int]] = []
    for value in values:
        if isinstance(value, list):
            texts.append(None)
            prompts.append(ids_of(value, model))
            continue
        text = text_of(value, "prompt")
        check_length(text, model, "prompt")
        texts.append(text)
        prompts.append(model.start + model.tok.encode(text) or [model.tok.bos])
    return texts, prompts


def ids_of(value: list, model: Model) -> list[int]:
    """A prompt of ids, all of them tokens."""
    if not value:
        refuse("prompt", "is an empty list of ids: at least one is needed")
    unused = model.tok.unused
    ids = [int_of(i, "prompt", 0, model.tok.size - 1) for i in value]
    if not unused.isdisjoint(ids):
        refuse("prompt", f"holds the id {min(unused.intersection(ids))}, which is no token")
    return ids


# --- chat ---


def chat(body: dict, models: dict[str, Model], limits: Limits) -> Query:
    """A body of POST /v1/chat/completions."""
    fields = Fields(body)
    name, model = model_of(fields, models)
    turns = turns_of(fields.take("messages"))
    if model.template is None:
        refuse(
            "model",
            f"{short(name)} does not say how conversations are written: serve it with --template, "
            "or use /v1/completions",
        )
    older, newer = (fields.whole(k, None, 1) for k in ("max_tokens", "max_completion_tokens"))
    if older is not None and newer is not None and older != newer:
        refuse("max_tokens", "differs from max_completion_tokens: give one of them")
    max_new = next((m for m in (newer, older) if m is not None), model.config.P)
    sampling = sampling_of(fields, max_new)
    wanted = fields.flag("logprobs", False)
    top = fields.whole("top_logprobs", None, 0, MOST_TOP)
    if top is not None and not wanted:
        refuse("top_logprobs", "needs logprobs: true")
    stream, include_usage = stream_of(fields)
    fields.only("response_format", {"type": "text"})
    fields.only("modalities", ["text"])
    fields.only("tools", [])
    fields.only("tool_choice", "none", "auto")
    refuse_others(fields)
    for turn in turns:
        check_length(turn["value"], model, "messages")
    try:
        ids = model.chat_ids(turns)
    except ValueError as error:  # the model's own template does not take these turns
        raise Refusal(400, str(error), "messages") from None
    check_room([ids], sampling, model, limits, "messages")
    ask = Ask(name, [ids], sampling, (top or 0) if wanted else None, False, limits.seconds)
    return Query(ask, True, [None], stream, include_usage)


def turns_of(messages: Any) -> list[dict[str, str]]:
    """Turns {"from", "value"} of messages."""
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        refuse("messages", f"is a list of 1 to {MOST_MESSAGES:,} messages")
    turns = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            refuse(where, "is no object with role and content")
        fields = Fields(message, where)
        role = fields.text("role")
        if role not in SPEAKERS:
            refuse(f"{where}.role", f"is {short(role)}: use {', '.join(SPEAKERS)}")
        content = fields.take("content", MISSING)
        turns.append({"from": SPEAKERS[role], "value": content_of(content, f"{where}.content")})
        fields.done()
    return turns


def content_of(content: Any, where: str) -> str:
    """The text of a message: a string, or parts of type text."""
    if isinstance(content, str):
        return text_of(content, where)
    if not isinstance(content, list) or not content:
        refuse(where, "is a text or a list of parts of type text")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict):
            refuse(f"{where}[{number}]", 'is no part {"type": "text", "text": …}')
        fields = Fields(part, f"{where}[{number}]")
        kind = fields.text("type")
        if kind != "text":
            refuse(f"{where}[{number}].type", f"is {short(kind)}: only text is supported")
        texts.append(fields.text("text"))
        fields.done()
    return "".join(texts)
