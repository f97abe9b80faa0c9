"""What passes between a model opened for use and who uses it: requests, settings, outputs. No JAX.

A benchmark states its requests in these records, so that reading its files and scoring its
answers needs no device. Ids are those of the model's own tokenizer.
"""

import dataclasses
import math
from typing import NamedTuple

TIE_NATS = 1e-4  # where the best two tokens are closer than this, rounding may decide


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a prompt is continued; the defaults are greedy decoding of one sample."""

    max_new: int  # tokens
    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # only the top_k likeliest tokens; 0: all
    top_p: float = 1.0  # only the fewest tokens that hold top_p of the probability
    seed: int = 0
    n: int = 1  # samples of each prompt
    stop_ids: frozenset = frozenset()  # ids that end a sample
    stop_strings: tuple = ()  # a sample's text ends before the first of these

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether top_k or top_p cut anything."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1)


class Output(NamedTuple):
    """One finished sample."""

    prompt: int  # index of the prompt, as in `names`
    sample: int  # 0 to n - 1
    ids: list  # the new ids, a stop id left out; the last one may have completed a stop string
    text: str  # their text, cut before the first stop string
    reason: str  # "stop", "length" (max_new) or "context" (the model's positions are full)
    margin: float  # greedy: the smallest margin of the best two logits of any step; inf otherwise


class Request(NamedTuple):
    """A text of which some next tokens' log-probabilities are asked for."""

    ids: list  # the text from its start
    at: list  # places in it, ascending: the token behind each is asked for
    want: list  # at each place, the candidates' ids: the same number in all requests


def shared_length(a: list, b: list) -> int:
    """How many ids two lists share at their beginning."""
    end, at, step = min(len(a), len(b)), 0, 256
    while at + step <= end and a[at : at + step] == b[at : at + step]:
        at += step  # a list compares many ids at once
    return next((i for i in range(at, end) if a[i] != b[i]), end)


def finite(x: float) -> float | None:
    """A number for JSON, which has no infinity."""
    return float(x) if math.isfinite(x) else None
