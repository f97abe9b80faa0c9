"""How the study's commands reach an endpoint: their flags, what these say, the loop over answers.

    from study import access
    access.add_flags(p.add_argument_group("judge"), "judge", replay="out")
    reach = access.of_flags(p.parse_args(), "judge")
    with reach.endpoint("out/requests.jsonl") as endpoint:
        for index, answer in access.answers(endpoint, bodies, "judge", "replies"): ...

Left out: requests, retries and the log (endpoint.py); what is asked (each command's own).
"""

import argparse
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from host import files, terminal
from study import rows

OWN_LOG = "answer from OUT/requests.jsonl alone and open no connection"
ANY_LOG = "answer from the log of an earlier run; no network"


class Model(NamedTuple):
    """A model at an endpoint, and how it is asked. max_tokens None: its own limit."""

    name: str
    temperature: float = 1.0
    max_tokens: int | None = None

    def body(self, messages: list[dict], **more: Any) -> dict:
        """One request. more: "seed", or "draw", which tells equal requests apart, unsent."""
        bound = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        asked = {"model": self.name, "messages": messages, "temperature": self.temperature}
        return asked | bound | more


class Access(NamedTuple):
    """How an endpoint is reached. who: its flag. replay: a log that answers; True: the own log."""

    who: str
    url: str | None
    key_file: str | None = None
    concurrency: int = 8
    timeout: float = 120
    retries: int = 6
    replay: str | bool | None = None

    def endpoint(self, log: str | pathlib.Path) -> Any:
        """The endpoint (endpoint.py) with its log; ValueError where neither URL nor log answers."""
        from study.endpoint import Endpoint

        if not self.replay and not self.url:
            raise ValueError(
                f"the {self.who} needs an endpoint: --{self.who} URL of an OpenAI-compatible one, "
                "or --replay with the log of an earlier run"
            )
        return Endpoint(
            self.url,
            self.replay if isinstance(self.replay, str) else log,
            key_file=self.key_file,
            concurrency=self.concurrency,
            timeout=self.timeout,
            retries=self.retries,
            replay=bool(self.replay),
        )


# --- flags ---


def add_flags(
    g: argparse._ArgumentGroup, who: str, required: bool = True, replay: str = "log"
) -> None:
    """The flags that `of_flags` reads. replay: of any "log", or of the one in --"out" alone."""
    g.add_argument(
        f"--{who}",
        metavar="URL",
        help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1",
    )
    g.add_argument(f"--{who}-model", metavar="NAME", required=required, help="its name there")
    g.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="a file with the key alone [default: the variable OPENAI_API_KEY]; written nowhere",
    )
    g.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests at once [%(default)s]"
    )
    g.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds for one try [%(default)s]"
    )
    g.add_argument(
        "--retries",
        type=int,
        default=6,
        metavar="N",
        help="further tries on 429, 5xx, time-outs and broken answers, each after twice the wait "
        "[default %(default)s]",
    )
    if replay == "log":
        g.add_argument("--replay", metavar="LOG", help=ANY_LOG)
    else:
        g.add_argument("--replay", action="store_true", help=OWN_LOG)


def add_sampling_flags(
    g: argparse._ArgumentGroup, temperature: float, max_tokens: int | None, whose: str
) -> None:
    """--temperature and --max-tokens. whose: where the defaults come from."""
    g.add_argument(
        "--temperature", type=float, default=temperature, metavar="X", help=f"[%(default)s{whose}]"
    )
    own = "the model's" if max_tokens is None else f"%(default)s{whose}"
    g.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help=f"longest answer [default: {own}]",
    )


def of_flags(args: argparse.Namespace, who: str) -> Access:
    """What the flags of add_flags say; the program's --{who} is `who`."""
    return Access(
        who,
        getattr(args, who),
        args.api_key_file,
        args.concurrency,
        args.timeout,
        args.retries,
        args.replay,
    )


def at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name} {value} is out of range: use {least} or more")


# --- the loop, and what is left of it ---


def answers(
    endpoint: Any,
    bodies: list[dict],
    what: str,
    unit: str,
    readable: Callable[[dict], object] | None = None,
) -> Iterator[tuple[int, dict]]:
    """(index, answer) of each request as Endpoint.ask_all gives them, with progress on stderr."""
    progress = terminal.Progress(what, len(bodies), unit)
    try:
        for done, (index, answer) in enumerate(endpoint.ask_all(bodies, readable), 1):
            yield index, answer
            if not answer.get("cached"):  # the log's come at once and say nothing of the pace
                progress(done)
    finally:
        progress.close()


def write(path: pathlib.Path, lines: list[dict], settings: dict, counts: dict, endpoint) -> None:
    """Write rows to `path` and report.json beside it, and print the report.

    The report is of the answers, not of when they came: a run in one go, an interrupted one and a
    replay give the same bytes.
    """
    files.write_whole(path, b"".join(map(rows.json_line, lines)))
    files.write_json(path.with_name("report.json"), {"settings": settings, **counts})
    for name, n in counts.items():
        print(f"{n:>12,} {name.replace('_', ' ')}")
    retried = [f"{n} {k}" for k, n in sorted(endpoint.counts.items()) if k.startswith("retried")]
    cached, new = endpoint.counts["cached"], endpoint.counts["asked"]
    print("; ".join([f"{cached:,} answers were in the log, {new:,} asked now", *retried]))
    print(path)
