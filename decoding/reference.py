"""The slow reference of decoding: the whole row through the full forward for every token."""

from collections.abc import Callable, Container

import numpy as np


def plain(
    logits: Callable,
    prompts: list[list[int]],
    *,
    length: int,
    rows: int,
    stop: Container[int],
    max_new: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """Continue prompts (lists of ids) by full forwards -> lists of the new ids, no stop id.

    logits: (token [rows, length] int32) -> [rows, length, V] f32, causal. At most `rows` prompts at
    once. stop: ids that end a row. temperature 0 is greedy. A row also ends at max_new ids or where
    it fills `length`. Each prompt has its own random stream: a sample does not depend on its
    neighbours.
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
                # the argmax of logits + Gumbel noise is a sample of the softmax
                scores = scores / temperature + random[row].gumbel(size=scores.shape)
            new = int(np.argmax(scores))
            if new not in stop:
                token[row, ends[row]] = new
                ends[row] += 1
            if new in stop or ends[row] == length or ends[row] - len(prompts[row]) == max_new:
                live.discard(row)
    return [token[row, len(prompt) : ends[row]].tolist() for row, prompt in enumerate(prompts)]
