"""Serve models by OpenAI's protocol.

python -m serve --model out/run
python -m serve --model BASE IMITATION TEACHER.gguf --name base imitation teacher
"""

import argparse
import json
import shlex
import sys
import time
from typing import TYPE_CHECKING

from host import terminal
from host.terminal import say
from serve import flags

if TYPE_CHECKING:
    from serve.engine import Engine


def run(args: argparse.Namespace) -> int:
    """Open the models, serve them until stopped."""
    place, bounds = flags.place_of(args), flags.bounds_of(args)
    names = flags.names_of(args.model, args.name)
    from serve import app, protocol, server
    from web.votes import Store

    sockets = server.Server(place, bounds)  # a port that is taken is said before the models load
    settings = app.Settings(
        place.hosts(sockets.number),
        place.key,
        protocol.Limits(bounds.prompt_tokens, bounds.queue, bounds.seconds),
        lambda: len(sockets.active_channels),
        Store(args.votes, [], per_item=1) if args.votes else None,
    )
    engine = open_engine(args, names, bounds.queue)

    def stop():
        settings.stopping = True
        say(f"\nstopping: running requests get {args.grace:g} seconds, Ctrl-C ends at once")
        engine.stop(args.grace)

    server.stop_on_signals(sockets, stop)
    sockets.open(app.application(engine, settings))
    chat = engine.models[names[0]].template is not None
    say(ready(place.address(sockets.number), names[0], chat, bool(place.key)))
    sockets.run_until_finished()
    say("stopped")
    return 0


def open_engine(args: argparse.Namespace, names: list[str], queue: int) -> "Engine":
    """The models opened, read and compiled, each with a line on how long it took."""
    from serve.engine import Engine, open_models

    for name, path in zip(names, args.model, strict=True):
        say(f"opening {name}: {path}")
    paths, started = dict(zip(names, args.model, strict=True)), time.monotonic()
    how = args.tokenizer, args.template, args.mesh, args.dtype, args.batch
    models = open_models(paths, *how)
    for name, model in models.items():
        if model.template:
            say(f"{name}: conversations are written in the template: {model.need_template()}")
        else:
            say(f"{name}: no chat template, so chats are refused: name one with --template")
    engine = Engine(models, args.batch, queue)
    engine.start()
    say(f"weights read in {time.monotonic() - started:.1f} s")
    for name in models:
        started = time.monotonic()
        engine.warm(name)
        say(f"{name}: first tokens after {time.monotonic() - started:.1f} s of compiling")
    return engine


def ready(address: str, name: str, chat: bool, key: bool) -> str:
    """Where it is served, and a line to try."""
    path, body = "completions", {"model": name, "prompt": "Once upon a time"}
    if chat:
        messages = [{"role": "user", "content": "Hi"}]
        path, body = "chat/completions", {"model": name, "messages": messages}
    return (
        f"serving {address}/ (Ctrl-C stops it); to try it:\n"
        f"curl {address}/v1/{path} -H 'Content-Type: application/json'"
        + " -H 'Authorization: Bearer KEY'" * key
        + f" -d {shlex.quote(json.dumps(body))}"
    )


def main(argv: list[str] | None = None) -> int:
    args = flags.parser().parse_args(argv)
    return terminal.program(lambda: run(args), "python -m serve")


if __name__ == "__main__":
    sys.exit(main())
