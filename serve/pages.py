"""The addresses of the page at /: its three files, and what it asks of serve/talk.py.

Who may ask is checked before, in serve/app.py.
"""

import json
import pathlib
import time
from collections.abc import Callable, Iterator

import flask

from serve import body
from serve.body import Fields, Refusal, refuse
from serve.talk import LONGEST, Forgotten, Refused, Stream, Talks
from web import guard

PAGE = pathlib.Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
MOST_TOKENS, MOST_TEMPERATURE, MOST_SEED = 100_000, 2, 2**32 - 1
RATER = 64  # characters of who votes
LOOK_S, ALIVE_S = (
    0.25,
    10.0,
)  # how often it is looked whether the browser is there; said that we are


def add_to(app: flask.Flask, talks: Talks) -> list[str]:
    """Add the page to an application; its paths.

    Endpoint "file" has no secrets and needs no key.
    """
    pages = Pages(talks)
    files = {
        path: ((PAGE / name).read_bytes(), f"{kind}; charset=utf-8")
        for path, (name, kind) in FILES.items()
    }

    def guarded(response):
        response.headers.update(guard.HEADERS)
        return response

    def file():
        content, kind = files[flask.request.path]
        return guarded(flask.Response(content, content_type=kind))

    def page():
        answer = pages.post(flask.request.path, body.read(flask.request.get_data()))
        if isinstance(answer, dict):
            return guarded(flask.jsonify(answer))
        gone = flask.request.environ.get("waitress.client_disconnected", lambda: False)
        response = flask.Response(written(answer, gone), content_type="text/event-stream")
        response.headers["X-Accel-Buffering"] = "no"  # a proxy before it passes pieces on
        # also where the browser left before the first piece, and no generator ever ran
        response.call_on_close(answer.close)
        return guarded(response)

    for path in files:
        app.add_url_rule(path, "file", file, methods=["GET"], provide_automatic_options=False)
    for path in pages.posts:
        app.add_url_rule(path, "page", page, methods=["POST"], provide_automatic_options=False)
    return [*files, *pages.posts]


def written(stream: Stream, gone: Callable[[], bool]) -> Iterator[bytes]:
    """A Stream as server-sent events, until it ends or the browser is gone."""
    heard = time.monotonic()
    while not stream.done and not gone():
        events = stream.read(LOOK_S)
        now = time.monotonic()
        if events:
            heard = now
            yield b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
        elif now - heard > ALIVE_S:
            heard = now
            yield b": waiting\n\n"


class Pages:
    """What the page asks, all by POST with a JSON object; `posts` has the paths."""

    def __init__(self, talks: Talks):
        self.talks = talks
        self.posts: dict[str, Callable[[Fields], dict | Stream]] = {
            "/page/about": self.about,
            "/page/ask": self.ask,
            "/page/stop": self.stop,
            "/page/vote": self.vote,
            "/page/names": self.names,
            "/page/export": self.export,
        }

    def post(self, path: str, body: dict) -> dict | Stream:
        """The answer to one request; Refusal for what cannot be answered."""
        fields = Fields(body)
        try:
            return self.posts[path](fields)
        except Forgotten:
            message = "the server does not have this talk any more: begin a new one"
            raise Refusal(410, message) from None
        except Refused as error:
            raise Refusal(409, str(error)) from None
        except ValueError as error:
            raise Refusal(400, str(error)) from None

    def about(self, fields: Fields) -> dict:
        fields.done()
        return self.talks.about()

    def ask(self, fields: Fields) -> Stream:
        models = fields.take("models")
        if not isinstance(models, list) or not all(isinstance(m, str) for m in models):
            refuse("models", "is a list of names")
        question, system = fields.text("question", most=LONGEST), fields.text("system", "", LONGEST)
        parent, blind = fields.text("parent", None, RATER), fields.flag("blind", False)
        settings = {
            "temperature": fields.number("temperature", 0.7, 0, MOST_TEMPERATURE),
            "max_tokens": fields.whole("max_tokens", 512, 1, MOST_TOKENS),
            "seed": fields.whole("seed", None, 0, MOST_SEED),
        }
        fields.done()
        return self.talks.ask(question, models, parent, system, blind, settings)

    def stop(self, fields: Fields) -> dict:
        self.talks.stop(self._round(fields))
        return {"ok": True}

    def vote(self, fields: Fields) -> dict:
        choice, rater = fields.text("choice", most=RATER), fields.text("rater", "page", RATER)
        return self.talks.vote(self._round(fields), choice, rater.strip() or "page")

    def names(self, fields: Fields) -> dict:
        return self.talks.reveal(self._round(fields))

    def export(self, fields: Fields) -> dict:
        return {"rows": self.talks.export(self._round(fields))}

    def _round(self, fields):
        id = fields.text("round", most=RATER)
        fields.done()
        return id
