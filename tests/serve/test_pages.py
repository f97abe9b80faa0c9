"""The page's addresses over a socket: files and policy, what is refused, streams, hang-ups."""

import json
import re
import socket

import pytest
from local_server import LocalServer, wait_for
from scripted_engine import ScriptedEngine

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def server():
    engine = ScriptedEngine(
        {"a": lambda turns: ["Hi ", "**you**"], "b": lambda turns: ["on "] * 5000}
    )
    engine.pause = 0.002
    with LocalServer(engine) as server:
        yield server


def events(raw):
    return [json.loads(e[6:]) for e in raw.decode().split("\n\n") if e.startswith("data: ")]


def test_the_files_have_a_policy_and_no_inline_script(server):
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ):
        status, headers, raw = server.ask("GET", path)
        assert status == 200 and headers["content-type"] == f"{kind}; charset=utf-8"
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy and "'unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and raw
    page = server.ask("GET", "/")[2].decode()
    assert not re.search(r"<script[^>]*>[^<]|\son\w+=|style=|https?:", page)


def test_a_question_is_answered_in_a_stream(server):
    ask = {"question": "q", "models": ["a"], "temperature": 0, "max_tokens": 9, "seed": 3}
    status, headers, raw = server.ask("POST", "/page/ask", json.dumps(ask).encode(), JSON)
    assert status == 200 and headers["content-type"] == "text/event-stream"
    first, *_, last = events(raw)
    assert first["names"] == ["a"] and first["seed"] == 3
    assert last["html"] == "<p>Hi <strong>you</strong></p>\n" and last["end"] == "stop"
    status, rows = server.post("/page/export", {"round": first["round"]})
    assert status == 200 and rows["rows"][0]["conversations"][1]["value"] == "Hi **you**"


@pytest.mark.parametrize(
    "path, body, status, says",
    [
        ("/page/ask", {"question": "q"}, 400, "models is missing"),
        ("/page/ask", {"question": "q", "models": ["c"]}, 400, "no model c"),
        ("/page/ask", {"question": "q", "models": "a"}, 400, "models is a list"),
        ("/page/ask", {"question": 1, "models": ["a"]}, 400, "question is 1"),
        ("/page/ask", {"question": "\ud800", "models": ["a"]}, 400, "half a surrogate"),
        ("/page/ask", {"question": "q", "models": ["a"], "temperature": 3}, 400, "temperature"),
        ("/page/ask", {"question": "q", "models": ["a"], "max_tokens": 0}, 400, "max_tokens"),
        ("/page/ask", {"question": "q", "models": ["a"], "seed": -1}, 400, "seed"),
        ("/page/ask", {"question": "q", "models": ["a"], "top_k": 1}, 400, "top_k"),
        ("/page/ask", {"question": "q", "models": ["a"], "parent": "x"}, 410, "begin a new one"),
        ("/page/stop", {"round": "x"}, 410, "begin a new one"),
        ("/page/vote", {"round": "x", "choice": "0"}, 410, "begin a new one"),
        ("/page/names", {}, 400, "round is missing"),
        ("/page/export", {"round": "x", "more": 1}, 400, "more"),
        ("/page/about", {"more": 1}, 400, "more"),
        ("/page/other", {}, 404, "nothing"),
    ],
)
def test_what_the_page_would_not_ask_is_refused(server, path, body, status, says):
    got, answer = server.post(path, body)
    assert got == status and says in answer["error"]["message"]
    assert not server.engine.running


def test_a_vote_without_a_file_is_refused_with_the_flag(server):
    ask = json.dumps({"question": "q", "models": ["a"]}).encode()
    first = events(server.ask("POST", "/page/ask", ask, JSON)[2])[0]
    status, answer = server.post("/page/vote", {"round": first["round"], "choice": "0"})
    assert status == 409 and "--votes FILE" in answer["error"]["message"]


def test_other_sites_and_forms_are_refused(server):
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Content-Type": "text/plain"}, 415),
    ):
        assert server.ask("POST", "/page/about", b"{}", JSON | headers)[0] == status
    assert server.ask("GET", "/page/about")[0] == 405


def test_a_hang_up_frees_the_slots_within_a_second(server):
    for body in (["b"], ["a", "b"]):
        sock = server.open({"question": "q", "models": body}, "/page/ask")
        while b'"text"' not in sock.recv(1000):
            pass
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        assert wait_for(lambda: server.engine.running == 0) < 1


def test_stop_ends_the_stream_with_what_was_said(server):
    sock = server.open({"question": "q", "models": ["b"]}, "/page/ask")
    said = b""
    while b'"text"' not in said:
        said += sock.recv(1000)
    id = re.search(rb'"round": "(\w+)"', said)[1].decode()
    assert server.post("/page/stop", {"round": id}) == (200, {"ok": True})
    while b'"stopped"' not in said:
        assert (piece := sock.recv(1000))
        said += piece
    sock.close()
    assert wait_for(lambda: server.engine.running == 0) < 1
