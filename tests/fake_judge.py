"""A fake judge over real HTTP, for every test that asks one."""

import http.server
import json
import threading

import pytest


class FakeEndpoint:
    """An OpenAI-compatible server here; answer(user text) -> a reply's text, or an int status."""

    def __init__(self, answer):
        self.asked, outer = [], self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                text = answer(body["messages"][-1]["content"])
                status, found = (
                    (text, {"error": {"message": "no"}})
                    if isinstance(text, int)
                    else (
                        200,
                        {
                            "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                            "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                        },
                    )
                )
                raw = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(request):
    made = []

    def start(answer):
        made.append(FakeEndpoint(answer))
        return made[-1]

    yield start
    for e in made:
        e.close()
