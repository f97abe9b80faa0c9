"""What both commands of study.synthesize share: the teacher's settings, its endpoint, the files.

Left out: what is asked (pairs.py, answers.py), retries and the log (study/endpoint.py).
"""

import pathlib
from typing import NamedTuple

from host import files
from study import rows
from study.endpoint import Endpoint


class Teacher(NamedTuple):
    """How a teacher is asked. max_tokens None: its own limit."""

    model: str
    temperature: float = 1.0
    max_tokens: int | None = None

    def body(self, messages: list[dict], draw: int) -> dict:
        """One request; `draw` tells equal requests apart and is not sent."""
        more = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            **more,
            "draw": draw,
        }


class Access(NamedTuple):
    """How the endpoint is reached. replay: the log that answers instead, or None."""

    url: str
    replay: str | None = None
    key_file: str | None = None
    concurrency: int = 8
    timeout: float = 120
    retries: int = 6

    def endpoint(self, out: str | pathlib.Path) -> Endpoint:
        """The endpoint, with its log in the folder `out`."""
        if not self.replay and not self.url:
            raise ValueError(
                "a teacher is needed: --teacher URL of an OpenAI-compatible endpoint, or "
                "--replay LOG"
            )
        return Endpoint(
            self.url,
            self.replay or pathlib.Path(out) / "log.jsonl",
            replay=bool(self.replay),
            key_file=self.key_file,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
        )


def dialogue(name: str, query: str, answer: str, source: str) -> dict:
    turns = [{"from": "human", "value": query}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns, "source": source}


def at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} {value} is out of range: use {least} or more")


def finish(
    out: pathlib.Path, dialogues: list[dict], settings: dict, counts: dict, endpoint: Endpoint
) -> None:
    """Write the dialogues and the report, and print it.

    The report is of the answers, not of when they came: a run in one go, an interrupted one and a
    replay give the same bytes.
    """
    files.write_whole(out / "dialogues.jsonl", b"".join(map(rows.json_line, dialogues)))
    files.write_json(out / "report.json", {"settings": settings, **counts})
    for name, n in counts.items():
        print(f"{n:>12,} {name.replace('_', ' ')}")
    retried = [f"{n} {k}" for k, n in sorted(endpoint.counts.items()) if k.startswith("retried")]
    cached, new = endpoint.counts["cached"], endpoint.counts["asked"]
    print("; ".join([f"{cached:,} answers were in the log, {new:,} asked now", *retried]))
    print(out / "dialogues.jsonl")
