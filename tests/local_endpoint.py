"""A local OpenAI-compatible endpoint that behaves as a test tells it to.

    with LocalEndpoint(lambda body, nth: answer("Hi")) as server: Endpoint(server.url, log)

The function gets the request's JSON and how often this very body was asked before, and returns one
of the forms below.
"""

import collections
import http.server
import json
import socket
import threading
import time


def answer(text, finish="stop", prompt_tokens=10, completion_tokens=5):
    return 200, json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": finish,
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
            },
        }
    )


def status(code, message="no", **headers):
    return code, json.dumps({"error": {"message": message, "type": "error", "code": None}}), headers


def half(text="Hello"):
    """The connection ends in the middle of the announced body."""
    return "half", answer(text)[1]


def slow(seconds, text="late"):
    return "slow", answer(text)[1], seconds


def drip(seconds, text="drop by drop"):
    """A byte now and then: no single read times out."""
    return "drip", answer(text)[1], seconds


class LocalEndpoint:
    """A thread with a server on a free port of this machine; `requests` holds (body, headers by
    lower-case name) of all that came.
    """

    def __init__(self, behave):
        self.requests, seen, lock = [], collections.Counter(), threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    nth = seen[raw]
                    seen[raw] += 1
                    outer.requests.append(
                        (json.loads(raw), {k.lower(): v for k, v in self.headers.items()})
                    )
                kind, body, *more = behave(json.loads(raw), nth)
                if kind == "slow":
                    time.sleep(more[0])
                raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body
                try:
                    self.send_response(kind if isinstance(kind, int) else 200)
                    for name, value in (more[0] if isinstance(kind, int) and more else {}).items():
                        self.send_header(name.replace("_", "-"), str(value))
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    if kind == "half":
                        self.wfile.write(raw[: len(raw) // 2])
                        self.close_connection = True
                    elif kind == "drip":
                        for k in range(len(raw)):
                            self.wfile.write(raw[k : k + 1])
                            self.wfile.flush()
                            time.sleep(more[0] / len(raw))
                    else:
                        self.wfile.write(raw)
                except OSError:
                    pass  # the client has gone

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self):
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class RawServer:
    """A server that sends what `behave(connection)` sends, after the request's first bytes."""

    def __init__(self, behave):
        self.socket, self.behave = socket.create_server(("127.0.0.1", 0)), behave
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        try:
            connection.recv(65536)
            self.behave(connection)
        except OSError:
            pass  # the client has gone
        finally:
            connection.close()

    def __exit__(self, *_):
        self.socket.close()
