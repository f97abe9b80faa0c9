"""What a server takes on at most: over it a clear refusal, and nothing lost for the others."""

import http.client
import json
import select
import socket
import threading
import time

import pytest
from fake_engine import FakeEngine
from local_server import LocalServer, wait_for

from serve import flags

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
KEY = "0123456789abcdef"


def endless(**more):
    return {"model": "fake", "prompt": "ab", "max_tokens": 250, **more}


def counts(server):
    now = server.engine.counts()
    return now.running, now.waiting


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_client_that_hangs_up_frees_its_slot_within_a_second(stream, path):
    with LocalServer(FakeEngine(step_s=0.05)) as server:
        body = endless(stream=stream, n=2)
        if path == CHAT:
            body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
        sock = server.open(body, path)
        wait_for(lambda: counts(server) == (2, 0))
        sock.close()
        assert wait_for(lambda: counts(server) == (0, 0)) < 1
        assert server.engine.counts().abandoned == 2
        status = f'mynah_requests_total{{path="{path}",status="499"}} 1'
        wait_for(lambda: status in server.ask("GET", "/metrics")[2].decode())


def test_a_client_that_leaves_the_queue_is_forgotten_too():
    with LocalServer(FakeEngine(batch=1, step_s=0.01)) as server:
        first = server.open(endless())
        wait_for(lambda: counts(server) == (1, 0))
        second = server.open(endless(stream=True))
        wait_for(lambda: counts(server) == (1, 1))
        second.close()
        assert wait_for(lambda: counts(server) == (1, 0)) < 1
        assert b" 200 OK" in first.recv(65536)


def test_a_full_queue_is_503_and_those_in_it_are_answered():
    with LocalServer(FakeEngine(batch=1, queue=3, step_s=0.02), queue=3) as server:
        socks = [server.open(endless())]
        wait_for(lambda: counts(server) == (1, 0))
        socks += [server.open(endless()) for _ in range(3)]
        wait_for(lambda: counts(server) == (1, 3))
        kind = {"Content-Type": "application/json"}
        status, head, raw = server.ask("POST", TEXT, json.dumps(endless()), kind)
        assert status == 503 and int(head["retry-after"]) > 0
        assert json.loads(raw)["error"]["type"] == "server_error"
        for sock in socks:
            assert b" 200 OK" in sock.recv(65536)
            sock.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_told_so(stream):
    with LocalServer(FakeEngine(step_s=0.05), seconds=0.3) as server:
        sock = server.open(endless(stream=stream))
        came = b""
        while b"timeout" not in came:
            part = sock.recv(65536)
            assert part, came
            came += part
        sock.close()
        assert came.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
        assert (b"Retry-After" in came) is not stream and b"[DONE]" not in came
        wait_for(lambda: b'status="503"} 1' in server.ask("GET", "/metrics")[2])
        assert counts(server) == (0, 0)


def test_connections_beyond_the_bound_are_told_so_and_the_others_go_on():
    with LocalServer(FakeEngine(step_s=0.005), connections=4) as server:
        socks = [server.open(endless()) for _ in range(4)]
        wait_for(lambda: sum(counts(server)) == 4)
        status, head, raw = server.ask("GET", "/health")
        assert status == 503 and int(head["retry-after"]) > 0
        assert "connections" in json.loads(raw)["error"]["message"]
        for sock in socks:
            assert b" 200 OK" in sock.recv(65536)
            sock.close()
        wait_for(lambda: server.ask("GET", "/health")[0] == 200)


@pytest.mark.parametrize("part", ["head", "body"])
def test_who_sends_a_byte_now_and_then_is_cut_off(part):
    with LocalServer(FakeEngine(), sending_seconds=1) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        if part == "body":
            head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        sock.sendall(head.encode())
        started, came = time.monotonic(), b""
        sock.settimeout(0.2)
        while b"\r\n\r\n" not in came and time.monotonic() - started < 8:
            try:
                came += sock.recv(65536)
            except TimeoutError:
                sock.sendall(b"a")
        assert came.startswith((b"HTTP/1.1 408", b"HTTP/1.0 408"))
        assert time.monotonic() - started < 4
        assert json.loads(came.partition(b"\r\n\r\n")[2] or sock.recv(65536))["error"]
        sock.close()
        assert server.get("/health")[0] == 200


def test_who_does_not_read_an_answer_keeps_nobody_waiting():
    with LocalServer(FakeEngine(step_s=0.001)) as server:
        slow = [server.open(endless(stream=True, logprobs=20)) for _ in range(3)]
        assert server.post(TEXT, endless())[0] == 200
        wait_for(lambda: counts(server) == (0, 0))
        for sock in slow:
            came = b""
            while b"[DONE]" not in came:
                came += sock.recv(65536)
            sock.close()


def test_two_requests_at_once_on_one_connection_are_answered_in_order():
    with LocalServer(FakeEngine()) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.connect()
        raw = json.dumps({"model": "fake", "prompt": "abc", "max_tokens": 2}).encode()
        head = f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        connection.sock.sendall((head.encode() + raw) * 2)
        came = b""
        while came.count(b'"text":"cb"') < 2:
            came += connection.sock.recv(65536)
        connection.close()


def test_a_body_over_the_bound_is_told_to_a_client_that_sends_on():
    with LocalServer(FakeEngine(), body_bytes=1000) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        head = f"POST {TEXT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        sock.sendall(f"{head}Content-Length: 3000000\r\n\r\n".encode())
        assert select.select([sock], [], [], 10)[0]  # it is refused by now
        for _ in range(3):
            sock.sendall(b"a" * 100_000)  # breaks where the server has closed
            time.sleep(0.05)
        came = b""
        while part := sock.recv(65536):
            came += part
        assert came.startswith(b"HTTP/1.1 413") and b"1,000" in came
        sock.close()


def test_half_of_many_clients_hang_up_and_no_answer_is_lost():
    with LocalServer(FakeEngine(batch=8, queue=256, step_s=0.001)) as server:
        body = endless(max_tokens=20)
        socks = [server.open(body | {"stream": k % 4 < 2}) for k in range(120)]
        for sock in socks[::2]:
            sock.close()
        came = [b""] * 60

        def read(k):
            ended = b"[DONE]" if (2 * k + 1) % 4 < 2 else b'"usage"'
            while ended not in came[k]:
                came[k] += socks[2 * k + 1].recv(65536) or pytest.fail("an answer was lost")

        readers = [threading.Thread(target=read, args=(k,)) for k in range(60)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(30)
        assert all(b"HTTP/1.1 200" in c for c in came)
        wait_for(lambda: counts(server) == (0, 0))
        now = server.engine.counts()
        # who left before the request was read was never a sample
        assert now.finished + now.abandoned == len(server.engine.asks)
        assert now.finished >= 60


# --- keys and stopping ---


def test_a_key_is_asked_for_everywhere_but_at_health():
    with LocalServer(FakeEngine(), key=KEY) as server:
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert server.get("/health")[0] == 200
        for path in ("/v1/models", "/v1/models/fake", "/metrics", "/other"):
            assert server.ask("GET", path)[0] == 401
            assert server.ask("GET", path, headers={"Authorization": "Bearer é"})[0] == 401
            assert server.ask("GET", path, headers=bearer)[0] == (404 if path == "/other" else 200)
        status, body = server.post(TEXT, endless())
        assert status == 401 and body["error"]["code"] == "invalid_api_key"
        assert KEY not in json.dumps(body)
        assert server.post(TEXT, endless(max_tokens=1), bearer)[0] == 200


def test_a_server_that_stops_refuses_the_new_and_finishes_the_old():
    with LocalServer(FakeEngine(step_s=0.005)) as server:
        sock = server.open(endless(max_tokens=100, stream=True))
        wait_for(lambda: counts(server) == (1, 0))
        server.settings.stopping = True
        stopper = threading.Thread(target=server.engine.stop, args=(20,))
        stopper.start()
        status, body = server.post(TEXT, endless())
        assert status == 503 and "stopping" in body["error"]["message"]
        assert server.get("/health") == (503, {"status": "stopping"})
        came = b""
        while b"[DONE]" not in came:
            came += sock.recv(65536) or pytest.fail("the running answer was cut off")
        stopper.join()
        sock.close()


def test_what_runs_beyond_the_grace_is_told_so():
    with LocalServer(FakeEngine(step_s=0.05)) as server:
        sock = server.open(endless())
        wait_for(lambda: counts(server) == (1, 0))
        server.engine.stop(0.1)
        came = b""
        while b"has stopped" not in came:
            came += sock.recv(65536) or pytest.fail("nothing was said")
        assert came.startswith(b"HTTP/1.1 503")
        sock.close()


# --- flags ---


def refused(*words):
    args = flags.parser().parse_args(["--model", "a/base", *words])
    with pytest.raises(ValueError) as error:
        flags.names_of(args.model, args.name)
        flags.place_of(args)
        flags.bounds_of(args)
    return str(error.value)


def test_a_place_that_others_reach_needs_a_key(tmp_path):
    assert "--api-key-file" in refused("--host", "0.0.0.0")
    assert "--api-key-file" in refused("--host", "192.0.2.1")
    assert "--port" in refused("--port", "70000")
    assert "--connections 0" in refused("--connections", "0")
    assert "--seconds nan" in refused("--seconds", "nan")
    assert "--grace" in refused("--grace", "-1")
    assert "--name" in refused("--name", "a", "b")
    assert "printable" in refused("--name", "a\nb")


def test_a_key_file_holds_one_long_key_and_others_do_not_read_it(tmp_path, capsys):
    path = tmp_path / "key"
    path.write_text(KEY[:-1] + "\n")
    assert "16 characters" in refused("--api-key-file", str(path))
    path.write_text(f"{KEY} {KEY}\n")
    said = refused("--api-key-file", str(path))
    assert "one key" in said and KEY not in said
    assert "cannot be read" in refused("--api-key-file", str(tmp_path / "none"))
    path.write_text(KEY + "\n")
    path.chmod(0o644)
    assert flags.read_key(str(path)) == KEY
    said = capsys.readouterr().err
    assert "chmod 600" in said and KEY not in said
    path.chmod(0o600)
    assert flags.read_key(str(path)) == KEY and not capsys.readouterr().err


def test_a_model_is_called_after_the_last_part_of_its_path():
    assert flags.names_of(["out/run", "x/m.Q4_1.gguf", "org/name"], None) == [
        "run", "m.Q4_1", "name"]  # fmt: skip
    assert flags.short_name("llama::dir/stream") == "stream"
    with pytest.raises(ValueError, match="--name"):
        flags.names_of(["a/run", "b/run"], None)


def test_which_hosts_a_server_answers_to():
    assert "localhost:80" in flags.Place().hosts(80)
    assert flags.Place("0.0.0.0", key=KEY).hosts(80) is None
    assert flags.Place("0.0.0.0", names=("a.example",), key=KEY).hosts(80) == {
        "a.example:80", "a.example"}  # fmt: skip
    assert flags.Place("::1").address(80) == "http://[::1]:80"
