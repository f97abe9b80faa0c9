"""A server of the tests on a free port of this machine, over any engine, real or fake.

with LocalServer(FakeEngine()) as server: server.post("/v1/completions", {...})
"""

import contextlib
import http.client
import json
import socket
import threading
import time

from serve import app, flags, protocol
from serve.server import Server


class LocalServer:
    """engine: started here and stopped at the end."""

    def __init__(self, engine, key=None, limits=None, votes=None, **bounds):
        self.engine, bounds = engine, flags.Bounds(**bounds)
        place = flags.Place(port=0, key=key)
        self.sockets = Server(place, bounds)
        self.port = self.sockets.number
        self.settings = app.Settings(
            place.hosts(self.port),
            key,
            limits or protocol.Limits(bounds.prompt_tokens, bounds.queue, bounds.seconds),
            lambda: len(self.sockets.active_channels),
            votes,
        )
        self.app = app.application(engine, self.settings)
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self.engine.start()
        self.sockets.open(self.app)
        self.thread = threading.Thread(target=self.sockets.run_until_finished, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.engine.stop(0)
        self.sockets.finish()
        self.thread.join(10)
        self.sockets.task_dispatcher.shutdown()
        self.sockets.close()
        assert not self.thread.is_alive()

    def ask(self, method, path, body=None, headers=()):
        """(status, headers by lower-case name, body) of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            named = {k.lower(): v for k, v in response.getheaders()}
            return response.status, named, response.read()
        finally:
            connection.close()

    def get(self, path):
        status, _, raw = self.ask("GET", path)
        return status, json.loads(raw)

    def post(self, path, body, headers=()):
        """(status, JSON) of a POST."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"Content-Type": "application/json"}
        status, _, raw = self.ask("POST", path, raw, kind | dict(headers))
        return status, json.loads(raw)

    def stream(self, path, body):
        """The chunks of a stream; it must end in [DONE]."""
        raw = json.dumps(body | {"stream": True}).encode()
        _, named, said = self.ask("POST", path, raw, {"Content-Type": "application/json"})
        assert named["content-type"] == "text/event-stream", said
        events = [e for e in said.decode().split("\n\n") if e and not e.startswith(":")]
        assert all(e.startswith("data: ") for e in events)
        assert events[-1] == "data: [DONE]"
        return [json.loads(e[6:]) for e in events[:-1]]

    def raw(self, sent, seconds=10):
        """(status, all that came back) of bytes on a connection of their own; status 0: nothing."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as sock:
            with contextlib.suppress(ConnectionError):  # it may be refused before all is sent
                sock.sendall(sent)
            came = b""
            with contextlib.suppress(ConnectionError):
                while part := sock.recv(65536):
                    came += part
        return int(came.split()[1]) if came else 0, came

    def open(self, body, path="/v1/completions"):
        """A socket on which a request was sent."""
        raw = json.dumps(body).encode()
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        sock.sendall(head.encode() + raw)
        return sock


def wait_for(condition, seconds=10.0):
    """The seconds until `condition()` holds; an assertion where it does not."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it never came"
        time.sleep(0.005)
    return time.monotonic() - started
