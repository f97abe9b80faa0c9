"""study.endpoint against a local endpoint that misbehaves: nothing asked twice, nothing lost,
nothing leaked.
"""

import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from local_endpoint import LocalEndpoint, RawServer, answer, drip, half, slow, status

from study.endpoint import Endpoint, request_key

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def bodies(n, **more):
    return [
        {
            "model": "m",
            "messages": [{"role": "user", "content": f"question {i}"}],
            "temperature": 1.0,
        }
        | more
        for i in range(n)
    ]


def ask(server, log, requests, **how):
    how = {"backoff": 0.01, "timeout": 5} | how
    with Endpoint(server.url, log, **how) as endpoint:
        return dict(endpoint.ask_all(requests)), endpoint.counts


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_request_is_answered_and_on_disk_before_it_is_yielded(tmp_path):
    log = tmp_path / "deep" / "log.jsonl"
    with LocalEndpoint(lambda body, nth: answer("to " + body["messages"][0]["content"])) as server:
        with Endpoint(server.url, log, concurrency=3) as endpoint:
            for n, (index, found) in enumerate(endpoint.ask_all(bodies(10)), 1):
                assert len(lines(log)) >= n
                assert (
                    found["text"] == f"to question {index}"
                    and found["error"] is None
                    and not found["cached"]
                )
                assert (found["finish"], found["prompt_tokens"], found["completion_tokens"]) == (
                    "stop",
                    10,
                    5,
                )
    rows = lines(log)
    assert len(rows) == 10 and all(row["key"] == request_key(row["request"]) for row in rows)
    assert "T" in rows[0]["answer"]["date"]


def test_what_is_in_the_log_is_not_asked_again_and_draws_tell_equal_requests_apart(tmp_path):
    log, same = tmp_path / "log", [bodies(1)[0] | {"draw": d} for d in (0, 1, 1)]
    with LocalEndpoint(lambda body, nth: answer(f"time {nth}")) as server:
        first, _ = ask(server, log, same)
        assert len(server.requests) == 2 and all("draw" not in body for body, _ in server.requests)
        assert first[0]["text"] != first[1]["text"] == first[2]["text"]
        again, counts = ask(server, log, same + bodies(2)[1:])
        assert len(server.requests) == 3 and counts["cached"] == 3 and counts["asked"] == 1
        assert [again[i]["text"] for i in range(3)] == [
            first[i]["text"] for i in range(3)
        ] and again[0]["cached"]


TROUBLES = {
    "429": (status(429, Retry_After="0.01"), "status 429"),
    "500": (status(500), "status 500"),
    "503 that is not JSON": ((503, "<html>busy"), "status 503"),
    "half an answer": (half(), "an answer that breaks off"),
    "not JSON": ((200, '{"choices": [{"mess'), "an answer that is not JSON"),
    "another form": ((200, '{"choices": []}'), "an answer of another form"),
    "a list": ((200, "[1]"), "an answer of another form"),
    "a number for a text": (
        (200, '{"choices":[{"message":{"content":5},"finish_reason":"stop"}]}'),
        "an answer of another form",
    ),
    "neither text nor reason": (
        (200, '{"choices":[{"message":{"content":null},"finish_reason":null}]}'),
        "an answer of another form",
    ),
    "bytes": ((200, b"\xff\xfe\x00"), "an answer that is not JSON"),
    "late": (slow(1.5), "no answer in 0.5 s"),
    "drop by drop": (drip(8), "no whole answer in 0.5 s"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_request_in_trouble_is_tried_again(tmp_path, trouble):
    bad, reason = TROUBLES[trouble]
    with LocalEndpoint(lambda body, nth: bad if nth < 2 else answer("well")) as server:
        found, counts = ask(server, tmp_path / "log", bodies(1), timeout=0.5)
    assert found[0]["text"] == "well" and counts["retried: " + reason] == 2
    assert len(lines(tmp_path / "log")) == 1


def test_retries_run_out_the_error_is_yielded_and_the_next_start_asks_again(tmp_path, capsys):
    log = tmp_path / "log"
    with LocalEndpoint(
        lambda body, nth: (
            status(500, "tired\x1b[31m")
            if body["messages"][0]["content"] == "question 1" and nth < 3
            else answer("well")
        )
    ) as server:
        found, counts = ask(server, log, bodies(3), retries=2)
        assert (
            found[1]["error"] == "status 500: " + found[1]["error"][12:]
            and found[1]["text"] is None
            and "tired" in found[1]["error"]
            and "\x1b" not in found[1]["error"]
        )
        assert found[0]["text"] == found[2]["text"] == "well" and counts["failed"] == 1
        assert "\x1b" not in capsys.readouterr().err
        found, counts = ask(server, log, bodies(3), retries=2)
        assert found[1]["text"] == "well" and counts["asked"] == 1 and counts["failed_before"] == 1
        found, counts = ask(server, log, bodies(3))
        assert counts["asked"] == 0 and found[1]["cached"]


def test_a_refused_request_is_not_tried_again_and_others_go_on(tmp_path):
    with LocalEndpoint(
        lambda body, nth: (
            status(400, "too long")
            if body["messages"][0]["content"] == "question 0"
            else answer("well")
        )
    ) as server:
        found, _ = ask(server, tmp_path / "log", bodies(2))
        assert len(server.requests) == 2
    assert "too long" in found[0]["error"] and found[1]["text"] == "well"


@pytest.mark.parametrize("code, remedy", [(401, "--api-key-file"), (403, "the key"), (404, "/v1")])
def test_what_no_request_can_mend_stops_at_once_in_one_line(tmp_path, code, remedy):
    with LocalEndpoint(lambda body, nth: status(code)) as server:
        with pytest.raises(ValueError, match=remedy) as caught:
            ask(server, tmp_path / "log", bodies(50), concurrency=2)
        assert len(server.requests) <= 4 and "\n" not in str(caught.value)


def test_an_endpoint_that_is_down_is_not_asked_for_ever(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    with Endpoint(url, tmp_path / "log", concurrency=2, retries=1, backoff=0.01) as endpoint:
        with pytest.raises(ValueError, match="in a row"):
            list(endpoint.ask_all(bodies(40)))


def test_retry_after_is_obeyed(tmp_path):
    times = []

    def behave(body, nth):
        times.append(time.monotonic())
        return answer("well") if nth else status(429, Retry_After="0.6")

    with LocalEndpoint(behave) as server:
        ask(server, tmp_path / "log", bodies(1))
    assert times[1] - times[0] >= 0.6


def test_concurrency_is_kept(tmp_path):
    running, most, lock = [0], [0], threading.Lock()

    def behave(body, nth):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return answer("well")

    with LocalEndpoint(behave) as server:
        ask(server, tmp_path / "log", bodies(12), concurrency=3)
    assert most[0] == 3


def test_the_key_is_sent_and_is_in_no_file_even_where_the_endpoint_repeats_it(tmp_path, capsys):
    key = "sk-secret-0123456789"
    (tmp_path / "key").write_text(key + "\n")

    def behave(body, nth):
        return [
            status(500, f"your key {key} is tired"),
            status(400, f"bad {key}"),
            answer(f"you said {key}"),
        ][0 if nth == 0 else 1 + int(body["messages"][0]["content"][-1])]

    with LocalEndpoint(behave) as server:
        found, _ = ask(server, tmp_path / "log", bodies(2), key_file=tmp_path / "key")
        assert all(headers["authorization"] == f"Bearer {key}" for _, headers in server.requests)
    assert found[1]["text"] == "you said [key]" and "[key]" in found[0]["error"]
    assert key not in (tmp_path / "log").read_text() and key not in "".join(capsys.readouterr())


def test_the_packages_own_variable_gives_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-variable")
    with LocalEndpoint(lambda body, nth: answer("well")) as server:
        ask(server, tmp_path / "log", bodies(1))
        assert server.requests[0][1]["authorization"] == "Bearer from-the-variable"
    assert "from-the-variable" not in (tmp_path / "log").read_text()


def test_parameters_the_package_does_not_know_are_sent(tmp_path):
    with LocalEndpoint(lambda body, nth: answer("well")) as server:
        ask(server, tmp_path / "log", bodies(1, top_k=7, repetition_penalty=1.1))
        sent = server.requests[0][0]
    assert sent["top_k"] == 7 and sent["repetition_penalty"] == 1.1 and sent["temperature"] == 1.0


def test_replay_opens_no_socket_and_asks_for_what_is_missing(tmp_path, monkeypatch):
    log = tmp_path / "log"
    with LocalEndpoint(lambda body, nth: answer("well")) as server:
        ask(server, log, bodies(3))
    before = log.read_bytes()
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setitem(sys.modules, "openai", None)
    endpoint = Endpoint("", log, replay=True)
    assert [a["text"] for _, a in endpoint.ask_all(bodies(3))] == ["well"] * 3
    with pytest.raises(ValueError, match="question 3"):
        list(endpoint.ask_all(bodies(4)))
    assert log.read_bytes() == before
    with pytest.raises(ValueError, match="does not exist"):
        Endpoint("", tmp_path / "none", replay=True)


def test_replay_repeats_failures_and_a_later_success_stands(tmp_path):
    log = tmp_path / "log"
    with LocalEndpoint(
        lambda body, nth: status(400, "no") if nth == 0 else answer("well")
    ) as server:
        ask(server, log, bodies(2))
        assert [a["error"][:10] for _, a in Endpoint("", log, replay=True).ask_all(bodies(2))] == [
            "status 400"
        ] * 2
        ask(server, log, bodies(1))
    assert [a["text"] for _, a in Endpoint("", log, replay=True).ask_all(bodies(2))] == [
        "well",
        None,
    ]


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match="pip install"):
        Endpoint("http://localhost:1/v1", tmp_path / "log")


def test_a_torn_last_line_is_cut_off_and_counted_and_damage_elsewhere_is_named(tmp_path, capsys):
    log = tmp_path / "log"
    with LocalEndpoint(lambda body, nth: answer("well \u2028 ünï")) as server:
        ask(server, log, bodies(3))
        whole = log.read_bytes()
        assert whole.count(b"\n") == 3
        for torn in (whole[:-1], whole[:-30], whole[: whole.index(b"\n") + 5]):
            log.write_bytes(torn)
            found, counts = ask(server, log, bodies(3))
            assert counts["torn"] == 1 and len(found) == 3 and len(lines_of(log)) == 3
            assert "torn last line" in capsys.readouterr().err
        log.write_bytes(b"oops\n" + whole)
        with pytest.raises(ValueError, match="line 1"):
            ask(server, log, bodies(3))


def lines_of(log):
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]]


def test_two_runs_do_not_write_one_log(tmp_path):
    with LocalEndpoint(lambda body, nth: answer("well")) as server:
        with Endpoint(server.url, tmp_path / "log"):
            with pytest.raises(ValueError, match="another run"):
                Endpoint(server.url, tmp_path / "log")
        ask(server, tmp_path / "log", bodies(1))


def test_a_script_tag_or_a_lone_surrogate_in_an_answer_is_kept_as_text(tmp_path):
    with LocalEndpoint(
        lambda body, nth: (
            200,
            '{"choices":[{"message":{"content":"<script>alert(1)</script>\\ud800"},"finish_reason":"length"}]}',
        )
    ) as server:
        found, _ = ask(server, tmp_path / "log", bodies(1))
        again, _ = ask(server, tmp_path / "log", bodies(1))
    assert (
        found[0]["text"] == again[0]["text"] == "<script>alert(1)</script>?"
        and found[0]["finish"] == "length"
        and found[0]["prompt_tokens"] == 0
    )


def test_an_answer_without_text_but_with_a_reason_is_an_answer(tmp_path):
    with LocalEndpoint(lambda body, nth: answer(None, finish="content_filter")) as server:
        found, _ = ask(server, tmp_path / "log", bodies(1))
    assert (
        found[0]["text"] is None
        and found[0]["error"] is None
        and found[0]["finish"] == "content_filter"
    )


def test_ctrl_c_stops_at_once_and_leaves_a_whole_log(tmp_path):
    log = tmp_path / "log"
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from study.endpoint import Endpoint
with Endpoint(sys.argv[1], {str(log)!r}, concurrency=4) as endpoint:
    asked = [[{{"role": "user", "content": f"question {{i}}"}}] for i in range(40)]
    requests = [{{"model": "m", "messages": m, "temperature": 1.0}} for m in asked]
    for index, answer in endpoint.ask_all(requests):
        print(index, flush=True)
"""
    order = itertools.count()
    with LocalEndpoint(
        lambda body, nth: answer("x" * 10_000) if next(order) < 8 else slow(30)
    ) as server:

        def listen():
            return signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # a background job of a shell is started deaf to it

        child = subprocess.Popen(
            [sys.executable, "-c", program, server.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items()},
            preexec_fn=listen,
        )
        for _ in range(8):
            assert child.stdout.readline()
        started = time.monotonic()
        child.send_signal(signal.SIGINT)
        child.wait(10)
        assert time.monotonic() - started < 5 and "KeyboardInterrupt" in child.stderr.read()
        child.stdout.close(), child.stderr.close()
    assert len(lines(log)) == 8 and log.read_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "how, rule",
    [
        ({"concurrency": 0}, "--concurrency 0"),
        ({"retries": -1}, "--retries -1"),
        ({"timeout": 0}, "--timeout 0"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, how, rule):
    with pytest.raises(ValueError, match=rule):
        Endpoint("http://localhost:1/v1", tmp_path / "log", **how)


def test_an_address_or_key_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="localhost:8000 is not the address"):
        Endpoint("localhost:8000", tmp_path / "log")
    with pytest.raises(ValueError, match="--api-key-file"):
        Endpoint("http://localhost:1/v1", tmp_path / "log", key_file=tmp_path / "none")
    (tmp_path / "two").write_text("a key\n")
    with pytest.raises(ValueError, match="not one key") as caught:
        Endpoint("http://localhost:1/v1", tmp_path / "log", key_file=tmp_path / "two")
    assert "a key\n" not in str(caught.value)


# --- endpoints that mean no good ---


def dripping_headers(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for n in range(600):
        connection.sendall(f"X-{n}: a\r\n".encode())
        time.sleep(0.05)


def endless(status):
    def behave(connection):
        connection.sendall(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        while True:
            connection.sendall(piece)

    return behave


@pytest.mark.parametrize(
    "behave", [dripping_headers, endless("200 OK"), endless("500 Oops"), endless("400 Bad")]
)
def test_a_request_ends_in_its_time_whatever_is_sent(tmp_path, behave):
    began = time.monotonic()
    with RawServer(behave) as server:
        found, _ = ask(server, tmp_path / "log", bodies(1), timeout=1, retries=1)
    assert found[0]["error"] and found[0]["text"] is None
    assert time.monotonic() - began < 15


def test_a_long_retry_after_is_bounded_and_counted_down(tmp_path, monkeypatch, capsys):
    from study import endpoint

    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.5)
    with LocalEndpoint(
        lambda body, nth: answer("well") if nth else status(429, Retry_After="86400")
    ) as server:
        began = time.monotonic()
        found, _ = ask(server, tmp_path / "log", bodies(1))
        assert time.monotonic() - began < 5 and found[0]["text"] == "well"
    assert "again in 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/v1\r\nX: y",
        "http://[::1/v1",
        "http://[zz]:1/v1",
        "http://localhost:port/v1",
        "http:///v1",
        "http://a b/v1",
        "ftp://localhost/v1",
        "",
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path, url):
    with pytest.raises(ValueError, match="is not the address") as caught:
        Endpoint(url, tmp_path / "log")
    assert not (tmp_path / "log").exists() and "Traceback" not in str(caught.value)


def test_an_answer_that_cannot_be_used_is_asked_again_but_not_in_a_replay(tmp_path):
    with LocalEndpoint(lambda body, nth: answer("well" if nth else "what?")) as server:
        ask(server, tmp_path / "log", bodies(1))
        with Endpoint(server.url, tmp_path / "log") as endpoint:

            def readable(reply):
                return reply["text"] == "well"

            assert [a["text"] for _, a in endpoint.ask_all(bodies(1), readable)] == ["well"]
            assert [a["cached"] for _, a in endpoint.ask_all(bodies(1), readable)] == [True]
    replay = Endpoint("", tmp_path / "log", replay=True)
    assert [a["text"] for _, a in replay.ask_all(bodies(1), lambda _: False)] == ["well"]
