"""The rating page over HTTP: what it serves, whom it refuses, many raters at once, a server killed.

In a browser: tests/browser/rate_through.py, run by hand.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from study.rate import __main__ as rate
from study.rate import items, server
from web import guard
from web.votes import Store

NASTY = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> ![p](http://evil/p.png) "
    "[l](javascript:alert(3)) [ok](https://example.org/) **bold** \n\n```html\n"
    '<b onclick="x">\n```\n'
)


def answers(path, name, n=20, text=""):
    path.write_text(
        json.dumps(
            [
                {
                    "instruction": f"question {i}",
                    "output": f"{text or 'answer'} {i}",
                    "generator": name,
                    "dataset": "d",
                }
                for i in range(n)
            ]
        )
    )
    return str(path)


class Server:
    """The program in a process of its own; `port` once it listens."""

    def __init__(self, folder, *more, n=20, text=""):
        self.argv = [
            sys.executable,
            "-m",
            "study.rate",
            answers(folder / "a.json", "secret-student", n),
            answers(folder / "b.json", "secret-teacher", n, text),
            "--db",
            str(folder / "votes.sqlite"),
            "--port",
            "0",
            *more,
        ]
        self.db = folder / "votes.sqlite"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            self.argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.port = int(re.search(r"http://[^/]*:(\d+)/", self.process.stdout.readline()).group(1))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Rater:
    """A browser's part: one connection, one cookie. Everything received is kept in `seen`."""

    def __init__(self, port, name=None):
        self.port, self.cookie, self.seen = port, "", ""
        self.wire = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if name:
            assert self("/enter", {"name": name})[0] == 200

    def __call__(self, path, body=None, **headers):
        own = (
            {
                "Content-Type": "application/json",
                "Origin": f"http://127.0.0.1:{self.port}",
                "Cookie": self.cookie,
            }
            if body is not None
            else {}
        )
        self.wire.request(
            "GET" if body is None else "POST",
            path,
            None if body is None else json.dumps(body),
            {k.replace("_", "-"): v for k, v in (own | headers).items()},
        )
        answer = self.wire.getresponse()
        text = answer.read().decode()
        self.headers = dict(answer.getheaders())
        self.seen += text + str(self.headers)
        self.cookie = (answer.getheader("Set-Cookie") or self.cookie).partition(";")[0]
        return answer.status, json.loads(text) if text.startswith("{") else text


def test_three_raters_rate_twenty_items_at_once(tmp_path):
    with Server(tmp_path) as server:
        raters, failed = [Rater(server.port, f"person {n}") for n in range(3)], []

        def work(rater):
            try:
                while item := rater("/next", {})[1]["item"]:
                    assert rater("/vote", {"lease": item["lease"], "choice": "first"})[0] == 200
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(r,)) for r in raters]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not failed
        votes = Store(server.db).votes()
        assert (
            len(votes) == 60
            and len({(v["item"], v["rater"]) for v in votes}) == 60
            and {v["rater"] for v in votes} == {f"person {n}" for n in range(3)}
        )
        assert not any(
            "secret" in r.seen or "student" in r.seen or "votes.sqlite" in r.seen for r in raters
        )
        assert raters[0]("/next", {})[1] == {"done": 20, "left": 0, "item": None}


def test_a_killed_server_loses_no_acknowledged_vote_and_goes_on(tmp_path):
    with Server(tmp_path) as server:
        acknowledged, lock = [], threading.Lock()

        def work(name):
            try:
                rater = Rater(server.port, name)
                while item := rater("/next", {})[1]["item"]:
                    if rater("/vote", {"lease": item["lease"], "choice": "second"})[0] == 200:
                        with lock:
                            acknowledged.append(item["lease"])
                            if len(acknowledged) == 11:
                                os.kill(server.process.pid, signal.SIGKILL)
            except (OSError, http.client.HTTPException):
                pass  # the server is gone

        threads = [threading.Thread(target=work, args=(f"r{n}",)) for n in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        server.process.wait(timeout=30)
        with Store(server.db).transaction() as c:
            kept = {
                row["lease"]
                for row in c.execute("select lease from slots where choice is not null")
            }
        assert set(acknowledged) <= kept and 11 <= len(kept) < 60
        server.process.stdout.close()
        server.start()
        for n in range(3):
            rater = Rater(server.port, f"r{n}")
            while item := rater("/next", {})[1]["item"]:
                assert rater("/vote", {"lease": item["lease"], "choice": "equal"})[0] == 200
        assert len(Store(server.db).votes()) == 60


def test_the_page_is_guarded_by_its_headers_and_carries_no_inline_script(tmp_path):
    app = server.application(
        Store(tmp_path / "v", [{"id": 1, "instruction": "q", "a": NASTY, "b": "y"}]),
        {"127.0.0.1:1"},
    ).test_client()
    page = app.get("/", headers={"Host": "127.0.0.1:1"})
    assert (
        page.status_code == 200
        and "'unsafe" not in page.headers["Content-Security-Policy"]
        and "script-src 'self'" in page.headers["Content-Security-Policy"]
    )
    assert re.findall(r"<script[^>]*>[^<]", page.text) == [] and not re.search(
        r"\son\w+=|style=", page.text
    )
    for address in ("/page.js", "/page.css"):
        assert (
            app.get(address, headers={"Host": "127.0.0.1:1"}).headers["X-Content-Type-Options"]
            == "nosniff"
        )
    assert app.get("/votes.sqlite", headers={"Host": "127.0.0.1:1"}).status_code == 404


def client(store, tokens=None):
    app = server.application(store, {"127.0.0.1:1"}, tokens).test_client()
    return lambda path, body, **headers: app.post(
        path,
        data=json.dumps(body),
        headers={
            "Host": "127.0.0.1:1",
            "Origin": "http://127.0.0.1:1",
            "Content-Type": "application/json",
        }
        | headers,
    )


@pytest.fixture
def store(tmp_path):
    return Store(
        tmp_path / "v", [{"id": n, "instruction": "q", "a": "x", "b": "y"} for n in range(2)]
    )


def test_other_hosts_other_origins_and_forms_are_refused(store):
    post = client(store)
    assert post("/enter", {"name": "x"}).status_code == 200
    assert post("/enter", {"name": "x"}, Host="evil.example").status_code == 421
    assert (
        post("/next", {}, Origin="http://evil.example").status_code == 403
        and post("/next", {}, Origin="").status_code == 403
    )
    assert post("/next", {}, **{"Content-Type": "text/plain"}).status_code == 403
    cookie = post("/enter", {"name": "x"}).headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie


def test_without_entering_nothing_is_served_and_odd_requests_are_answered_4xx(store):
    post = client(store)
    assert post("/next", {}).status_code == 401 and post("/enter", {"name": " "}).status_code == 400
    post("/enter", {"name": "x"})
    lease = post("/next", {}).json["item"]["lease"]
    for body in (
        {},
        [],
        "x",
        {"lease": 1, "choice": "first"},
        {"lease": lease, "choice": "a"},
        {"lease": "z" * 300, "choice": "first"},
    ):
        assert post("/vote", body).status_code == 400, body
    assert (
        post("/vote", {"lease": "unknown", "choice": "first"}).status_code == 409
        and store.votes() == []
    )
    assert (
        post("/leave", {"lease": lease}).json["ok"]
        and post("/vote", {"lease": lease, "choice": "first"}).status_code == 409
    )


def test_with_tokens_only_their_owners_enter_and_a_session_of_another_ends(store, tmp_path):
    post = client(store, {"t" * 16: "ann"})
    assert (
        post("/enter", {"name": "ann"}).status_code == 403
        and post("/next", {}).json["tokens"] is True
    )
    assert (
        post("/enter", {"name": "t" * 16}).status_code == 200
        and post("/next", {}).status_code == 200
        and store.take("ann")
    )
    assert (
        client(store, {"u" * 16: "bob"})(
            "/next", {}, Cookie=f"rater={store.enter('ann')}"
        ).status_code
        == 401
    )
    (tmp_path / "tokens").write_text("# people\nann lee " + "t" * 16 + "\n")
    assert items.read_tokens(tmp_path / "tokens") == {"t" * 16: "ann lee"}
    for bad in ("", "ann short", "ann " + "t" * 16 + "\nbob " + "t" * 16):
        (tmp_path / "tokens").write_text(bad)
        with pytest.raises(ValueError, match="token"):
            items.read_tokens(tmp_path / "tokens")


@pytest.mark.parametrize(
    "more, says",
    [
        (["--host", "0.0.0.0"], "--tokens"),
        (["--raters", "0"], "--raters 0"),
        (["--questions", "none"], "none"),
        (["--db", "no/such/v"], "does not exist"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_status_2(more, says, tmp_path, capsys):
    a, b = answers(tmp_path / "a.json", "a"), answers(tmp_path / "b.json", "b")
    assert rate.main([a, b, "--db", str(tmp_path / "v"), *more]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_gold_items_are_read_and_a_row_that_is_none_is_named(tmp_path):
    a, b = answers(tmp_path / "a.json", "a", 3), answers(tmp_path / "b.json", "b", 4)
    (tmp_path / "gold").write_text(
        json.dumps({"instruction": "2 + 2?", "better": "4", "worse": "a fish"}) + "\n"
    )
    rows, names, line = items.load_items(a, b, gold=tmp_path / "gold")
    assert (
        [i.get("gold") for i in rows] == [None] * 3 + ["a"]
        and names == {"a": "a", "b": "b"}
        and "3 pairs" in line
    )
    (tmp_path / "gold").write_text('{"instruction": "x"}\n')
    with pytest.raises(ValueError, match="no gold item"):
        items.load_items(a, b, gold=tmp_path / "gold")


# --- who does not mean well ---


def test_an_origin_of_another_scheme_is_refused(store):
    post = client(store)
    for origin in ("evil://127.0.0.1:1", "127.0.0.1:1", "null", "http://127.0.0.1:1.evil.example"):
        assert post("/enter", {"name": "x"}, Origin=origin).status_code == 403, origin
    assert post("/enter", {"name": "x"}, Origin="https://127.0.0.1:1").status_code == 200


def test_bodies_that_are_no_text_are_answered_400(store):
    app = server.application(store, {"127.0.0.1:1"}).test_client()
    headers = {
        "Host": "127.0.0.1:1",
        "Origin": "http://127.0.0.1:1",
        "Content-Type": "application/json",
    }
    for body in ('{"name": "\\ud800"}', "[" * 4000, '{"name": ' + "[" * 4000, "\xff", "{", ""):
        assert app.post("/enter", data=body, headers=headers).status_code == 400, body[:20]
    assert app.post("/enter", data=" " * 5000, headers=headers).status_code == 413


def test_guesses_of_tokens_are_slowed_and_end(store, monkeypatch):
    post = client(store, {"t" * 16: "ann"})
    for _ in range(guard.GUESSES):
        assert post("/enter", {"name": "guess"}).status_code == 403
    assert post("/enter", {"name": "guess"}).status_code == 429
    assert post("/enter", {"name": "t" * 16}).status_code == 429, "a right one tells nothing either"
    later = guard.time.monotonic() + guard.GUESS_S + 1
    monkeypatch.setattr(guard.time, "monotonic", lambda: later)
    assert post("/enter", {"name": "t" * 16}).status_code == 200


@pytest.mark.parametrize("lease", ["nan", "inf", "0", "-1"])
def test_a_lease_is_a_number_of_seconds(lease, tmp_path, capsys):
    a, b = answers(tmp_path / "a.json", "a"), answers(tmp_path / "b.json", "b")
    assert rate.main([a, b, "--db", str(tmp_path / "v"), "--lease", lease]) == 2
    assert "--lease" in capsys.readouterr().err and not (tmp_path / "v").exists()


def test_half_sent_requests_keep_nobody_out(tmp_path):
    with Server(tmp_path) as own:
        idle = [socket.create_connection(("127.0.0.1", own.port)) for _ in range(130)]
        try:
            for wire in idle:
                wire.sendall(b"POST /enter HTTP/1.1\r\nHost: ")
            began = time.monotonic()
            Rater(own.port, "honest")
            assert time.monotonic() - began < 5
        finally:
            for wire in idle:
                wire.close()


def test_a_damaged_database_is_one_line_with_a_way_back(tmp_path, capsys):
    a, b = answers(tmp_path / "a.json", "a"), answers(tmp_path / "b.json", "b")
    rows, names, _ = items.load_items(a, b)
    db = tmp_path / "v.sqlite"
    Store(db, rows, names).take("x")
    raw = bytearray(db.read_bytes())
    for start in range(4096, len(raw), 4096):
        raw[start : start + 200] = b"\xff" * 200
    db.write_bytes(raw)
    assert rate.main(["results", "--db", str(db)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ".recover" in said


def test_a_store_that_fails_is_said_once_and_answered_503(store, capsys, monkeypatch):
    def fail(*_):
        raise ValueError("votes.sqlite cannot be read as votes (disk image is malformed)")

    post = client(store)
    post("/enter", {"name": "x"})
    monkeypatch.setattr(store, "take", fail)
    assert post("/next", {}).status_code == 503
    assert capsys.readouterr().err.count("\n") == 1
