"""The slow references of decoding: full forwards for every token, a text decoded at its end."""

from collections.abc import Callable, Container

import numpy as np

from text.tokenizer import Tokenizer


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


def completion(tok: Tokenizer, prompt: list, ids: list, stops: tuple = ()) -> tuple[str, bool]:
    """(text that `ids` add to `prompt`, whether a stop string cut it).

    Decoded behind the prompt's last token, so that a space between them stays.
    """
    head = tok.decode_bytes(prompt[-1:])
    text = tok.decode_bytes([*prompt[-1:], *ids])[len(head) :].decode("utf-8", "replace")
    cut = min((at for s in stops if (at := text.find(s)) >= 0), default=None)
    return (text, False) if cut is None else (text[:cut], True)
