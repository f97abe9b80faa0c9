"""Perplexity of a text, by windows that overlap, or of a packed directory's loss tokens.

python eval.py perplexity --model M --input text.txt --window 1024 --stride 512 --out DIR
"""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Iterator

from decoding.records import Request
from tasks import inputs, scores
from text import packed

HELP = "perplexity of a text, or of a packed directory's loss tokens"


@dataclasses.dataclass(frozen=True)
class Options:
    input: str
    window: int | None = None
    stride: int | None = None
    tokens: int | None = None
    limit: int | None = None
    seed: int = 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    rows = 'a text, or rows {"text": "…"}, .gz or not; - is standard input; or a packed directory'
    inputs.add_input_flag(parser, rows)
    add = parser.add_argument_group("windows").add_argument
    add("--window", type=int, metavar="T", help="tokens a window [default: the model's positions]")
    add(
        "--stride",
        type=int,
        metavar="T",
        help="tokens a window predicts, the others being context [default: half the window]",
    )
    add(
        "--tokens",
        type=int,
        metavar="N",
        help="only the first N tokens of a text's documents; the result says so [default: all]",
    )


class Task:
    """Requests over all that is to be predicted, each token once; the score is exp(nats/token)."""

    def __init__(self, options: Options, model):
        self.options, self.model, self.settings = options, model, {}
        positions = model.config.P
        self.window = min(options.window or positions, positions)
        self.stride = options.stride or max(self.window // 2, 1)
        if not 0 < self.stride < self.window:
            raise ValueError(
                f"--stride {self.stride} is not between 1 and --window {self.window} - 1: a window "
                "needs tokens it has seen before"
            )
        self.size = None  # bytes of the text
        self.requests = dict(self._packed() if packed.is_packed(options.input) else self._text())
        if not self.requests:
            raise ValueError(f"{options.input} has no token to predict: it needs loss tokens")
        self.ids = list(self.requests)
        self.settings["input_fingerprint"] = inputs.fingerprint(self.requests)

    def _packed(self) -> Iterator[tuple[str, Request]]:
        """The documents of each row, each with its loss tokens."""
        import numpy as np

        import data

        path, positions = self.options.input, self.model.config.P
        train, validation = data.open_dataset([path], self.model.tok)
        rows = validation or train
        self.settings["split"] = "validation" if validation else "train"
        for i in inputs.limited(range(len(rows)), self.options.limit, self.settings, "rows"):
            row = {n: x[0] for n, x in rows.rows([i]).items()}
            segment = row.get("segment", np.ones_like(row["tokens"]))
            for s in np.unique(segment[segment > 0]):
                ids, mask = row["tokens"][segment == s].tolist(), row["loss_mask"][segment == s]
                at = [k - 1 for k in range(1, len(ids)) if mask[k]]
                if at and at[-1] >= positions:
                    raise ValueError(
                        f"{path} row {i}: {len(ids)} tokens, the model has {positions} positions: "
                        "pack with a smaller --block"
                    )
                if at:
                    yield f"{i}/{s}", Request(ids, at, [[ids[k + 1]] for k in at])

    def _text(self) -> Iterator[tuple[str, Request]]:
        """Windows over each document; every token is predicted, so that bytes count whole."""
        documents = inputs.limited(
            read_documents(self.options.input), self.options.limit, self.settings, "documents"
        )
        encoded = self._first_tokens([self.model.tok.encode(text) for text in documents])
        self.size = sum(self._bytes(*pair) for pair in zip(documents, encoded, strict=False))
        self.settings |= {
            "window": self.window,
            "stride": self.stride,
            "context": f"windows of {self.window} tokens, each predicting the {self.stride} behind "
            "what came before",
        }
        for d, predicted in enumerate(encoded):
            ids = [self.model.tok.bos, *predicted]
            done = 1
            while done < len(ids):
                end = min(self.window if done == 1 else done + self.stride, len(ids))
                begin = max(end - self.window, 0)
                at = list(range(done - 1 - begin, end - 1 - begin))
                yield f"{d}/{done}", Request(ids[begin:end], at, [[i] for i in ids[done:end]])
                done = end

    def _first_tokens(self, documents: list[list[int]]) -> list[list[int]]:
        """The first --tokens of the documents, in order; all where there is no such flag."""
        left, total = self.options.tokens, sum(map(len, documents))
        if left is None or total <= left:
            return documents
        self.settings["sample"] = (
            f"the first {left:,} of {total:,} tokens (--tokens): not the whole text"
        )
        kept = []
        for ids in documents:
            kept.append(ids[:left])
            left -= len(kept[-1])
        return [ids for ids in kept if ids]

    def _bytes(self, text: str, ids: list[int]) -> int:
        """Bytes of the part of a text that is predicted: whole texts count as they were read."""
        read = text if self.options.tokens is None else self.model.tok.decode(ids)
        return len(read.encode())

    def compute(self, todo: list[str], folder: object) -> Iterator[dict]:
        """The items of `todo` as they are done, in any order."""
        for k, logp, _, _ in self.model.score([self.requests[name] for name in todo]):
            wanted = [ids[0] for ids in self.requests[todo[k]].want]
            yield {
                "id": todo[k],
                "tokens": len(logp),
                "nats": -float(logp.sum(dtype="float64")),
                "gold": self.model.tok.decode(wanted),
            }

    def summarise(self, items: list[dict]) -> dict:
        """Perplexity, and where the bytes are known nats and bits a byte."""
        tokens, nats = [i["tokens"] for i in items], sum(i["nats"] for i in items)
        each = [i["nats"] / i["tokens"] for i in items]
        low, high = scores.bootstrap(each, tokens, seed=self.options.seed)
        found = {
            "score": math.exp(nats / sum(tokens)),
            "unit": "a token" if self.size else "a loss token",
            "n": len(items),
            "interval": (math.exp(low), math.exp(high)),
            "tokens": sum(tokens),
            "nats": nats,
            "nats_per_token": nats / sum(tokens),
        }
        if not self.size:
            return found
        per_byte = nats / self.size
        return found | {
            "bytes": self.size,
            "nats_per_byte": per_byte,
            "bits_per_byte": per_byte / math.log(2),
        }


def read_documents(path: str) -> list[str]:
    """The texts of a file: its rows' "text" where it is .jsonl or .json, else the whole."""
    if not pathlib.Path(path).name.removesuffix(".gz").endswith((".jsonl", ".json")):
        documents = [inputs.clean(inputs.text_of(path))]
    else:
        documents = [row["text"] for _, row in inputs.json_rows(path, wrong_row)]
    if not any(documents):
        raise ValueError(f"{path} is empty: it needs text")
    return documents


def wrong_row(row: dict) -> str | None:
    """What is wrong with a row of documents, or None."""
    dialogue = next((k for k in ("conversations", "messages", "items") if k in row), None)
    if dialogue and "text" not in row:
        return (
            f'a dialogue ("{dialogue}") is no text: pack it (python data.py pack FILE --tokenizer T'
            " --out DIR), then --input DIR measures the loss tokens of its answers"
        )
    return inputs.needs_strings(row, "text")
