"""The server of the rating page: who may ask, what they get, how votes come in.

A rater never meets a name: the page, its addresses and its traffic carry the texts and an opaque
lease; which answer stands first is drawn anew for each showing and kept here. Requests and answers
are guarded by web/guard.py, and a rater is known by a same-site cookie. Left out: TLS (put a
reverse proxy before it, and name it with --name), payment.
"""

import functools
import hmac
import pathlib
import signal
import sys
from typing import NamedTuple

import flask
import waitress
from werkzeug.exceptions import BadRequest, HTTPException

from host import terminal
from study.rate.items import load_items, read_tokens
from web import guard
from web.markdown import render
from web.votes import Store

PAGE = pathlib.Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
SIDES = ("first", "second", "equal")
# A client that sends half a request holds a connection, not a thread, and not for long.
CONNECTIONS, SILENT_S = 1000, 20

shown = functools.lru_cache(maxsize=4096)(render)  # an item is met by several raters


class Pages:
    """The addresses of the page over one store.

    hosts: what a Host header may say. tokens: {token: rater}, or None where any name may enter.
    """

    def __init__(self, store: Store, hosts, tokens):
        self.store, self.hosts, self.tokens, self.guesses = store, hosts, tokens, guard.Guesses()

    # --- every request ---

    def check(self) -> tuple | None:
        """Refuse what does not come from the page itself."""
        request = flask.request
        refused = guard.refusal(
            request.method,
            request.headers.get("Host"),
            request.headers.get("Origin"),
            request.mimetype,
            self.hosts,
        )
        return refused and (flask.jsonify(error=refused[1]), refused[0])

    def field(self, name: str, longest: int = 200) -> str:
        """A text out of the request's JSON; 400 where there is none."""
        try:
            body = flask.request.get_json()
        except RecursionError:
            raise BadRequest("is nested too deeply") from None
        value = body.get(name) if isinstance(body, dict) else None
        if not isinstance(value, str) or len(value) > longest:
            raise BadRequest(f"needs {name}")
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair
            raise BadRequest(f"{name} is no text") from None
        return value

    def rater(self) -> str:
        """Who asks; 401 where nobody has entered."""
        name = self.store.rater(flask.request.cookies.get("rater"))
        if name is None or (self.tokens is not None and name not in self.tokens.values()):
            body = flask.jsonify(error="enter first", tokens=self.tokens is not None)
            flask.abort(flask.make_response(body, 401))
        return name

    # --- addresses ---

    def enter(self) -> flask.Response | tuple:
        given, address = self.field("name").strip(), flask.request.remote_addr
        if self.tokens is not None:
            if not self.guesses.allowed(address):
                return flask.jsonify(error="too many wrong tokens: wait a minute"), 429
            equal = (
                n for t, n in self.tokens.items() if hmac.compare_digest(t.encode(), given.encode())
            )
            name = next(equal, None)
            if name is None:
                self.guesses.wrong(address)
                return flask.jsonify(error="this token is not known"), 403
        else:
            name = "".join(c for c in given if c.isprintable())
            if not name:
                error = "a name is needed, so that nobody meets an item twice"
                return flask.jsonify(error=error), 400
        response = flask.jsonify(ok=True)
        response.set_cookie(
            "rater",
            self.store.enter(name),
            httponly=True,
            samesite="Strict",
            max_age=30 * 86400,
            secure=flask.request.headers["Origin"].startswith("https:"),
        )
        return response

    def next(self) -> flask.Response:
        name = self.rater()
        slot, progress = self.store.take(name), self.store.progress(name)
        state = {"done": progress["mine"], "left": progress["open"]}
        if slot is None:
            return flask.jsonify(state | {"item": None})
        texts = {side: slot[side] for side in "ab"}
        first = texts.pop(slot["first"])
        item = {
            "lease": slot["lease"],
            "instruction": slot["instruction"],
            "first": shown(first),
            "second": shown(*texts.values()),
        }
        return flask.jsonify(state | {"item": item, "hold_s": self.store.lease_s / 3})

    def vote(self) -> flask.Response | tuple:
        name, side = self.rater(), self.field("choice")
        if side not in SIDES:
            raise BadRequest("choice is first, second or equal")
        if not self.store.vote(name, self.field("lease"), side):
            return flask.jsonify(error="this item went to somebody else in the meantime"), 409
        progress = self.store.progress()
        line = f"\r{progress['votes']} of {progress['wanted']} votes, {progress['raters']} raters "
        print(line, end="", file=sys.stderr, flush=True)
        return flask.jsonify(ok=True)  # the vote is on disk

    def hold(self) -> flask.Response:
        return flask.jsonify(ok=self.store.hold(self.rater(), self.field("lease")))

    def leave(self) -> flask.Response:
        return flask.jsonify(ok=self.store.leave(self.rater(), self.field("lease")))


def application(store: Store, hosts: set[str], tokens: dict[str, str] | None = None) -> flask.Flask:
    """The WSGI application of Pages(store, hosts, tokens)."""
    app, pages = flask.Flask("rate", static_folder=None), Pages(store, hosts, tokens)
    app.config["MAX_CONTENT_LENGTH"] = 4096  # a vote is 100 bytes
    app.before_request(pages.check)

    @app.after_request
    def guarded(response):
        response.headers.update(guard.HEADERS)
        return response

    @app.errorhandler(HTTPException)
    def plain(error):
        return flask.jsonify(error=error.description), error.code

    @app.errorhandler(ValueError)
    def broken(error):  # the store cannot be read or written: the server's owner has to act
        terminal.say(f"study.rate: {terminal.printable(error, lines=False)}")
        return flask.jsonify(error="the votes cannot be kept just now"), 503

    for address, (name, kind) in FILES.items():
        text = (PAGE / name).read_text(encoding="utf-8")

        def page(text=text, kind=kind):
            return flask.Response(text, content_type=f"{kind}; charset=utf-8")

        app.add_url_rule(address, name, page)
    for method in (pages.enter, pages.next, pages.vote, pages.hold, pages.leave):
        app.add_url_rule(f"/{method.__name__}", view_func=method, methods=["POST"])
    return app


# --- the command ---


class Place(NamedTuple):
    """Where the page is served. names: further names under which it is opened."""

    host: str = "127.0.0.1"
    port: int = 8017
    tokens: str | None = None
    names: tuple = ()

    def check(self) -> None:
        """ValueError, one line, for a place that must not or cannot be served."""
        if self.host not in guard.LOOPBACK and not self.tokens:
            raise ValueError(
                f"--host {self.host} is reached by others: give --tokens FILE, one line `name "
                "token` a person, or serve 127.0.0.1"
            )
        if guard.is_wildcard(self.host) and not self.names:
            raise ValueError(
                f"--host {self.host or '(empty)'} serves every address: say with --name HOST under "
                "which names it is opened"
            )
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port} is out of range: use 0 (any) to 65535")

    def hosts(self, port: int | str) -> set:
        """What a Host header may say."""
        return guard.host_names(self.host, port, self.names)

    def address(self, port: int | str) -> str:
        """Where a browser goes."""
        name = self.names[0] if guard.is_wildcard(self.host) else self.host
        return f"http://{guard.spellings(name, port)[0]}/"


def serve(
    sources: dict,
    db: str | pathlib.Path,
    place: Place,
    raters: int = 3,
    lease_s: float = 600.0,
    gold_every: int = 10,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM. sources: the arguments of items.load_items."""
    place.check()
    limit = sources.get("limit")
    for name, value in (
        ("raters", raters),
        ("lease", lease_s),
        ("gold-every", gold_every),
        ("limit", limit),
    ):
        if value is not None and not 1 <= value < float("inf"):
            raise ValueError(f"--{name} {value} is out of range: use 1 or more")
    tokens = read_tokens(place.tokens) if place.tokens else None
    items, names, line = load_items(**sources)
    store = Store(db, items, names, raters, lease_s, gold_every)
    try:
        server = waitress.create_server(
            lambda *call: app(*call),
            host=place.host,
            port=place.port,
            threads=8,
            ident=None,
            max_request_body_size=4096,
            connection_limit=CONNECTIONS,
            channel_timeout=SILENT_S,
            cleanup_interval=5,
            asyncore_use_poll=True,  # select() cannot watch so many
        )
    except OSError as error:
        raise guard.port_refused(place.host, place.port, error) from None
    app = application(store, place.hosts(server.effective_port), tokens)
    progress, gold = store.progress(), sum("gold" in i for i in items)
    terminal.say(
        f"{line}; {gold} gold items; {progress['votes']} of {progress['wanted']} votes are there"
    )
    print(
        f"rating page: {place.address(server.effective_port)}   Ctrl-C stops it, the same command "
        f"goes on; results: python -m study.rate results --db {db}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, interrupt)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    terminal.say("\nstopped; every vote is kept")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
