"""The flags of `python -m serve`, checked, and the records they become.

Imports nothing heavy, so that --help is there at once.
"""

import argparse
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import NamedTuple

from host.terminal import Parser, say
from web.guard import LOOPBACK, host_names, is_wildcard, spellings

SHORTEST_KEY = 16  # characters: one that is guessed in no lifetime


class Place(NamedTuple):
    """Where models are served. names: further host names under which clients reach it."""

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    key: str | None = None

    def check(self) -> None:
        """ValueError, one line, for a place that must not or cannot be served."""
        if self.host not in LOOPBACK and not self.key:
            raise ValueError(
                f"--host {self.host or '(empty)'} is reached by others: give --api-key-file FILE "
                "with a key, or serve 127.0.0.1"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} is out of range: use 0 (any) to 65535")

    def hosts(self, port: int) -> set[str] | None:
        """What a Host header may say; None: anything, since every request needs the key."""
        if is_wildcard(self.host) and not self.names:
            return None
        return host_names(self.host, port, self.names)

    def address(self, port: int) -> str:
        """http://HOST:PORT as a client on this machine, or by the first of names, writes it."""
        host = "127.0.0.1" if is_wildcard(self.host) else self.host
        return f"http://{spellings((*self.names, host)[0], port)[0]}"


class Bounds(NamedTuple):
    """What a server takes on, at most."""

    queue: int = 256  # samples that wait for a slot
    prompt_tokens: int | None = None  # of one prompt; None: what the model's positions hold
    seconds: float = 600.0  # of one request, its wait included
    connections: int = 256
    body_bytes: int = 4 << 20
    header_bytes: int = 16 << 10
    sending_seconds: float = 20.0  # that a client may take to send a request

    def check(self) -> None:
        for name, value in self._asdict().items():
            if value is not None and not 1 <= value < float("inf"):
                raise ValueError(
                    f"--{name.replace('_', '-')} {value} is out of range: use 1 or more"
                )


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    p = Parser(
        prog="python -m serve",
        description="Serve models by OpenAI's protocol, and a page to talk to them.",
        epilog="Ctrl-C ends it: no new requests, running ones get --grace seconds. docs/serve.md "
        "has clients, limits and security.",
    )
    add = p.add_argument_group("models").add_argument
    add(
        "--model",
        nargs="+",
        required=True,
        metavar="PATH",
        help="a run, a Hugging Face folder, a .gguf file, a .bin, or a name on the hub; several "
        "take turns",
    )
    add(
        "--name",
        nargs="+",
        metavar="N",
        help="what clients call each of them [default: the last part of its path]",
    )
    add("--tokenizer", metavar="PATH", help="[default: the one beside each model]")
    add(
        "--template",
        choices=["roles", "koala", "chatml", "llama3"],
        help="how conversations are written [default: each model's own]",
    )
    add("--mesh", metavar="DxT", help="data x tensor [default: every device x 1]")
    add(
        "--dtype", choices=["float32", "bfloat16"], help="[default: float32 on CPUs, else bfloat16]"
    )
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="texts of a model that grow at once [default %(default)s]",
    )
    _add_place(p)
    _add_bounds(p)
    return p


def _add_place(p: argparse.ArgumentParser) -> None:
    place = Place()
    add = p.add_argument_group("place").add_argument
    add("--host", default=place.host, metavar="H", help="[default %(default)s: this machine alone]")
    add(
        "--port",
        type=int,
        default=place.port,
        metavar="N",
        help="0: any free one [default %(default)s]",
    )
    add(
        "--host-name",
        nargs="+",
        default=(),
        metavar="HOST",
        help="further names under which clients reach it, as behind a proxy",
    )
    add(
        "--api-key-file",
        metavar="FILE",
        help="requests need the key in this file; demanded for any host but this machine",
    )
    add(
        "--votes",
        metavar="FILE",
        help="keep the page's votes in this SQLite file, in the form of study.rate",
    )


def _add_bounds(p: argparse.ArgumentParser) -> None:
    bounds = Bounds()
    add = p.add_argument_group("bounds").add_argument
    for name, kind, said in (
        ("queue", int, "samples that wait for their turn"),
        ("prompt-tokens", int, "tokens of one prompt [default: the model's positions]"),
        ("seconds", float, "from a request's arrival to its end"),
        ("connections", int, "connections at once"),
        ("body-bytes", int, "bytes of a request's body"),
        ("header-bytes", int, "bytes of its headers"),
        ("sending-seconds", float, "seconds that a client may take to send a request"),
    ):
        default = getattr(bounds, name.replace("-", "_"))
        shown = "" if default is None else f" [default {default:,}]"
        add(f"--{name}", type=kind, default=default, metavar="N", help=said + shown)
    add(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="what running requests get when it is stopped [default %(default)g]",
    )


# --- what they become ---


def place_of(args: argparse.Namespace) -> Place:
    """The checked Place of a command line."""
    key = read_key(args.api_key_file) if args.api_key_file else None
    place = Place(args.host, args.port, tuple(args.host_name), key)
    place.check()
    return place


def bounds_of(args: argparse.Namespace) -> Bounds:
    """The checked Bounds of a command line."""
    bounds = Bounds(*(getattr(args, name) for name in Bounds._fields))
    bounds.check()
    if not 0 <= args.grace < float("inf"):
        raise ValueError(f"--grace {args.grace} is out of range: use 0 or more seconds")
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch} is out of range: use 1 or more")
    return bounds


def names_of(paths: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """What clients call the models, each another name."""
    if names and len(names) != len(paths):
        raise ValueError(
            f"--name names {len(names)} models, --model {len(paths)}: give one name for each"
        )
    names = list(names or map(short_name, paths))
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > 200:
            raise ValueError(f"--name {name!r} is no name: use up to 200 printable characters")
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name}: tell them apart with --name")
    return names


def short_name(path: str) -> str:
    """The last part of a path, without the ending of a weight file."""
    name = pathlib.PurePath(path.rpartition("::")[2]).name or pathlib.Path(path).resolve().name
    return name.removesuffix(".gguf").removesuffix(".bin") or name


def read_key(path: str) -> str:
    """The key in a file that holds nothing else; says so where others may read it."""
    try:
        key = pathlib.Path(path).read_text(encoding="ascii").strip()
        mode = os.stat(path).st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--api-key-file {path} cannot be read ({type(error).__name__}): name a text file with "
            "the key alone"
        ) from None
    if len(key.split()) != 1 or not key.isprintable() or len(key) < SHORTEST_KEY:
        raise ValueError(
            f"--api-key-file {path} does not hold one key of {SHORTEST_KEY} characters or more: "
            "make one with `openssl rand -hex 24`"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        say(f"note: others on this machine may read {path}: chmod 600 it")
    return key
