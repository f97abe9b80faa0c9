"""Log-likelihood of texts behind prefixes.

python eval.py loglik --model M --input FILE --out DIR      # rows {"prefix": "…", "text": "…"}
"""

import argparse
import dataclasses
from collections.abc import Iterator

from decoding.records import Request
from tasks import inputs, scores

HELP = "log-likelihood of texts behind prefixes"


@dataclasses.dataclass(frozen=True)
class Options:
    input: str
    limit: int | None = None
    seed: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    inputs.add_input_flag(
        parser, 'rows {"prefix": "…", "text": "…"}, .gz or not; - is standard input'
    )


class Task:
    """The rows of --input; the score is nats a token."""

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        rows = inputs.json_rows(
            options.input, lambda row: inputs.needs_strings(row, "prefix", "text")
        )
        rows = inputs.limited(rows, options.limit, self.settings)
        self.requests = [self.request(place, row) for place, row in rows]
        self.rows = [row for _, row in rows]
        self.ids = [str(i) for i in range(len(rows))]
        self.settings["input_fingerprint"] = inputs.fingerprint(self.rows)

    def request(self, place: str, row: dict) -> Request:
        ids, begin = self.model.split_tokens(row["prefix"], row["text"])
        positions = self.model.config.P
        if begin == len(ids):
            raise ValueError(f'{place}: "text" has no token of its own: it must not be empty')
        if len(ids) > positions:
            raise ValueError(
                f"{place}: prefix and text have {len(ids)} tokens, the model {positions} positions:"
                " shorten the prefix"
            )
        return Request(ids, list(range(begin - 1, len(ids) - 1)), [[i] for i in ids[begin:]])

    def compute(self, todo: list[str], folder: object) -> Iterator[dict]:
        """The items of `todo` as they are done, in any order."""
        for k, logp, best, margins in self.model.score([self.requests[int(t)] for t in todo]):
            i = int(todo[k])
            text = self.rows[i]["text"]
            yield {
                "id": str(i),
                "prompt": self.rows[i]["prefix"],
                "gold": text,
                "loglik": float(logp.sum(dtype="float64")),
                "tokens": len(best),
                "bytes": len(text.encode()),
                "greedy": [[k] for k in best] == self.requests[i].want,
                "gap": float(margins.min()),
            }

    def summarise(self, items: list[dict]) -> dict:
        """Nats a token over all texts, and how many texts are the greedy continuation."""
        tokens = [i["tokens"] for i in items]
        nats = [-i["loglik"] / i["tokens"] for i in items]
        return {
            "score": scores.mean(nats, tokens),
            "unit": "nats a token",
            "n": len(items),
            "interval": scores.bootstrap(nats, tokens, seed=self.options.seed),
            "tokens": sum(tokens),
            "bytes": sum(i["bytes"] for i in items),
            "loglik": sum(i["loglik"] for i in items),
            "greedy": scores.share([i["greedy"] for i in items]),
        }
