"""The addresses of a server: who may ask, what is answered, what is counted and logged.

    application(engine, Settings(...)) -> a WSGI application for serve/server.py

Clients that change something say so in JSON, and no answer allows other sites (CORS): a page from
elsewhere can neither use the server nor read from it. Left out: TLS, users, quotas.
"""

import dataclasses
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
from werkzeug.exceptions import HTTPException

from host.terminal import printable, say
from serve import body, metrics, pages, protocol
from serve.body import Refusal
from serve.records import Busy, Delta, End, Failed, Serving, Ticket
from serve.replies import Reply
from serve.talk import Talks
from web.votes import Store

LOOK_S = 0.25  # how often a request that waits looks whether its client is still there
ALIVE_S = 10.0  # how often a stream without news says that it lives
RETRY_S = 2  # after which a refused client may ask again
GONE = 499  # the log's status for a client that hung up
OPEN = ("/health",)  # needs no key
WHY = {"timeout": 503, "stopped": 503, "error": 500}  # Failed.reason -> status


@dataclasses.dataclass
class Settings:
    """What the addresses need to know. hosts: what a Host header may say, None for anything.

    votes: where the page's are kept.
    """

    hosts: set[str] | None
    key: str | None = None
    limits: protocol.Limits = dataclasses.field(default_factory=protocol.Limits)
    connections: Callable[[], int] = lambda: 0
    votes: Store | None = None
    stopping: bool = False


class Exchange:
    """What the log and the counters want of the request under way."""

    def __init__(self):
        self.started, self.first = time.monotonic(), None
        self.model, self.usage, self.gone, self.failed = None, None, False, None


class Service:
    """The addresses over one engine."""

    def __init__(self, engine: Serving, settings: Settings):
        self.engine, self.settings = engine, settings
        self.metrics = metrics.Metrics(engine.models)
        self.created = int(time.time())
        self.paths: set[str] = set()  # of our own, for the counters

    # --- every request ---

    def begin(self) -> None:
        """Refuse who may not ask."""
        flask.g.exchange = Exchange()
        request, settings = flask.request, self.settings
        host = request.headers.get("Host", "").lower()
        if settings.hosts is not None and host not in settings.hosts:
            raise Refusal(421, "this address is not served here: check the Host header")
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise Refusal(403, "requests from pages of other sites are not served")
        page = request.method in ("GET", "HEAD") and request.endpoint == "file"
        if settings.key and not page and request.path not in OPEN:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
            if not hmac.compare_digest(given, settings.key.encode()):
                raise Refusal(401, "this server needs its API key", code="invalid_api_key")
        if request.method == "POST":
            if settings.stopping:
                raise Refusal(503, "the server is stopping", retry_s=RETRY_S)
            if request.mimetype != "application/json" or "Content-Encoding" in request.headers:
                raise Refusal(415, "the body is not plain application/json: say so in Content-Type")

    def end(self, response: flask.Response) -> flask.Response:
        """Count and log the answer when its last byte is handed over."""
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        exchange, request = flask.g.exchange, flask.request
        method, path = request.method, request.path

        def done():
            status = GONE if exchange.gone else exchange.failed or response.status_code
            known = path if path in self.paths else "other"
            self.metrics.request(known, status)
            tokens = ""
            if exchange.usage:
                used = exchange.usage
                tokens = f" {used.prompt}+{used.new} tokens"
                self.metrics.used(exchange.model, used.prompt, used.new)
            ms = 1000 * (time.monotonic() - exchange.started)
            say(f"{method} {printable(path, lines=False)[:200]} {status}{tokens} {ms:.0f} ms")

        response.call_on_close(done)
        return response

    def refused(self, error: Refusal) -> flask.Response:
        response = flask.jsonify(error.body())
        response.status_code = error.status
        response.headers.update(error.headers)
        return response

    def unknown(self, error: HTTPException) -> flask.Response:
        """Addresses and methods that are not served, in the same form."""
        status = error.code or 500
        messages = {404: "there is nothing at this address", 405: "use another method here"}
        response = self.refused(Refusal(status, messages.get(status, error.description or "no")))
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    # --- what is asked ---

    def health(self) -> tuple[dict, int]:
        """Whether requests are taken."""
        return ({"status": "stopping"}, 503) if self.settings.stopping else ({"status": "ok"}, 200)

    def models(self) -> dict:
        """The list of models."""
        return {"object": "list", "data": [self.about(name) for name in self.engine.models]}

    def model(self, name: str) -> dict:
        """One of the list."""
        if name not in self.engine.models:
            raise Refusal(404, "this model is not served here", "model", "model_not_found")
        return self.about(name)

    def about(self, name: str) -> dict:
        """A model as OpenAI lists it, and what else a client may want to know."""
        model = self.engine.models[name]
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "mynah",
            "max_model_len": model.config.P,
            "chat": model.template is not None,
        }

    def measured(self) -> flask.Response:
        """/metrics."""
        counts, gauges = self.engine.counts(), {}
        for name, said in (
            ("running", "Samples in slots."),
            ("waiting", "Samples without a slot."),
            ("cache_bytes", "Keys and values on the devices."),
        ):
            gauges[f"mynah_{name}"] = "gauge", said, getattr(counts, name)
        for name, said in (
            ("cached_tokens", "Prompt tokens that were in a cache."),
            ("finished", "Samples that had their end."),
            ("abandoned", "Samples that were cancelled, failed or ran out of time."),
            ("steps", "Decode steps."),
        ):
            gauges[f"mynah_{name}_total"] = "counter", said, getattr(counts, name)
        gauges["mynah_connections"] = "gauge", "Open connections.", self.settings.connections()
        text = self.metrics.text(gauges)
        return flask.Response(text, content_type=metrics.CONTENT_TYPE)

    # --- what is generated ---

    def completions(self) -> flask.Response:
        return self.answer(protocol.completion)

    def chat(self) -> flask.Response:
        return self.answer(protocol.chat)

    def answer(self, read: Callable) -> flask.Response:
        """Ask the engine what the body says, and answer whole or in a stream."""
        exchange = flask.g.exchange
        query = read(body.read(flask.request.get_data()), self.engine.models, self.settings.limits)
        name = query.ask.model
        reply = Reply(query, self.engine.models[name])
        try:
            ticket = self.engine.submit(query.ask)
        except Busy as error:
            raise Refusal(503, str(error) or "the server is busy", retry_s=RETRY_S) from None
        except ValueError as error:
            raise Refusal(400, str(error)) from None
        exchange.model, exchange.usage = name, reply.usage
        gone = flask.request.environ.get("waitress.client_disconnected", lambda: False)
        events = self.events(ticket, exchange, gone)
        if query.stream:
            response = flask.Response(stream(reply, events), content_type="text/event-stream")
            response.headers["X-Accel-Buffering"] = "no"  # a proxy before it passes pieces on
            # also where the client left before the first piece, and no generator ever ran
            response.call_on_close(ticket.cancel)
            return response
        try:
            for event in events:
                if isinstance(event, Failed):
                    raise failure(event)
                reply.add(event)
        finally:
            ticket.cancel()
        if exchange.gone:
            return flask.Response(status=GONE)
        return flask.jsonify(reply.whole())

    def events(self, ticket: Ticket, exchange: Exchange, gone: Callable[[], bool]) -> Iterator[Any]:
        """The ticket's events while the client is there; None where nothing has come for long."""
        heard = time.monotonic()
        while not ticket.done:
            news = ticket.wait(LOOK_S)
            if gone():
                exchange.gone = True
                return
            now = time.monotonic()
            for event in news:
                if exchange.first is None and isinstance(event, Delta | End):
                    exchange.first = now
                    self.metrics.first_token(exchange.model, now - exchange.started)
                if isinstance(event, Failed):
                    exchange.failed = WHY.get(event.reason, 500)
                yield event
            if news:
                heard = now
            elif now - heard > ALIVE_S:
                heard = now
                yield None


def failure(event: Failed) -> Refusal:
    """The answer to a request that failed under way."""
    status = WHY.get(event.reason, 500)
    return Refusal(
        status, event.message, code=event.reason, retry_s=RETRY_S if status == 503 else None
    )


def stream(reply: Reply, events: Iterator[Any]) -> Iterator[bytes]:
    """Server-sent events of a reply."""
    for chunk in reply.first():
        yield data(chunk)
    for event in events:
        if event is None:
            yield b": waiting\n\n"
        elif isinstance(event, Failed):
            yield data(failure(event).body())
            return
        else:
            for chunk in reply.pieces(event):
                yield data(chunk)
    for chunk in reply.last():
        yield data(chunk)
    yield b"data: [DONE]\n\n"


def data(value: dict) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, allow_nan=False).encode() + b"\n\n"


def application(engine: Serving, settings: Settings) -> flask.Flask:
    """The WSGI application over an engine that runs."""
    app, service = flask.Flask("serve", static_folder=None), Service(engine, settings)
    app.json.sort_keys = False
    app.url_map.merge_slashes = False  # else a redirect, to wherever Host says
    app.before_request(service.begin)
    app.after_request(service.end)
    app.register_error_handler(Refusal, service.refused)
    app.register_error_handler(HTTPException, service.unknown)
    for path, method, view in (
        ("/health", "GET", service.health),
        ("/metrics", "GET", service.measured),
        ("/v1/models", "GET", service.models),
        ("/v1/models/<path:name>", "GET", service.model),
        ("/v1/completions", "POST", service.completions),
        ("/v1/chat/completions", "POST", service.chat),
    ):
        app.add_url_rule(
            path, view.__name__, view, methods=[method], provide_automatic_options=False
        )
        service.paths.add(path)
    talks = app.extensions["talks"] = Talks(engine, settings.votes, settings.limits)
    service.paths.update(pages.add_to(app, talks))
    return app
