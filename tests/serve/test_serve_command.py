"""`python -m serve` as a process of its own on two small models, over its socket."""

import concurrent.futures
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from evaluations import ROOT, place  # noqa: F401
from local_server import LocalServer, wait_for
from test_hostile import HOSTILE, QUEUE, refused_as_it_should_be

from decoding.opened import open_model
from decoding.records import Sampling

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TEXTS = ["Once upon a time", "The", "A list of ten animals that live", "What is it? "]


class Process(LocalServer):
    """A server in a process; its log is kept."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "serve", *words, "--port", "0"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr))
        self.reader.start()
        wait_for(lambda: self.said("curl") or self.process.poll() is not None, 120)
        assert self.said("curl"), "".join(self.log)
        self.url = re.search(r"^serving (http://\S+)/ ", "".join(self.log), re.M)[1]
        self.port = int(self.url.rpartition(":")[2])

    def said(self, start):
        return any(line.startswith(start) for line in list(self.log))

    def ended(self):
        """Its exit status; its log is complete then."""
        self.reader.join(60)
        return self.process.wait(60)

    def gauge(self, name):
        return int(re.search(rf"^{name} (\d+)$", self.ask("GET", "/metrics")[2].decode(), re.M)[1])


@contextlib.contextmanager
def serving(*words):
    server = Process(*words)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.reader.join()


@pytest.fixture(scope="module")
def server(place):  # noqa: F811
    words = ["--model", str(place / "tuned"), str(place / "base"), "--name", "fake", "base"]
    words += ["--queue", str(QUEUE), "--body-bytes", "200000", "--batch", "4"]
    with serving(*words) as server:
        yield server


@pytest.fixture(scope="module")
def tuned(place):  # noqa: F811
    return open_model(str(place / "tuned"), mesh="1x1", batch=4)


def at_once(function, values):
    with concurrent.futures.ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(function, values))


def test_the_server_says_where_it_is_and_which_models_it_has(server):
    assert server.said(f"curl {server.url}/v1/chat/completions ")
    assert server.said("opening fake: ") and server.said("base: first tokens after ")
    assert server.said("fake: conversations are written in the template: ")
    assert server.said("base: no chat template, so chats are refused: ")
    status, body = server.get("/v1/models")
    assert status == 200
    assert [(m["id"], m["max_model_len"]) for m in body["data"]] == [("fake", 256), ("base", 256)]


def test_greedy_answers_are_those_of_eval_generate_whoever_asks_beside(server, tuned):
    prompts = [tuned.start + tuned.tok.encode(text) for text in TEXTS]
    outputs = sorted(tuned.generate(prompts, Sampling(max_new=20)))

    def ask(text):
        body = {"model": "fake", "prompt": text, "max_tokens": 20, "temperature": 0}
        return server.post(TEXT, body)[1]["choices"][0]

    for choices in (at_once(ask, TEXTS), [ask(text) for text in TEXTS]):
        assert [c["text"] for c in choices] == [out.text for out in outputs]
        assert [c["finish_reason"] for c in choices] == [out.reason for out in outputs]


def test_a_seed_gives_the_same_answer_again_whatever_runs_beside(server):
    def ask(seed):
        body = {"model": "fake", "prompt": TEXTS[0], "max_tokens": 20, "seed": seed}
        return server.post(TEXT, body)[1]["choices"][0]["text"]

    alone = [ask(seed) for seed in (1, 2, 3)]
    assert at_once(ask, [1, 2, 3]) == alone
    assert len(set(alone)) == 3
    assert ask(None) != ask(None)


def test_a_stream_says_what_the_whole_answer_says(server):
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 3}
    whole = server.post(CHAT, body)[1]["choices"][0]
    chunks = [c["choices"][0] for c in server.stream(CHAT, body)]
    text = "".join(c["delta"].get("content", "") for c in chunks)
    scores = [s for c in chunks if c["logprobs"] for s in c["logprobs"]["content"]]
    assert text == whole["message"]["content"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]
    assert [s["token"] for s in scores] == [s["token"] for s in whole["logprobs"]["content"]]


def test_logprobs_of_an_echoed_prompt_are_the_scorers(server, tuned):
    from decoding.records import Request

    ids = tuned.start + tuned.tok.encode(TEXTS[2])
    request = Request(ids, list(range(len(ids) - 1)), [[i] for i in ids[1:]])
    ((_, logp, best, _),) = tuned.score([request])
    body = {"model": "fake", "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    said = server.post(TEXT, body | {"echo": True})[1]["choices"][0]["logprobs"]
    assert said["token_logprobs"][0] is None
    assert said["token_logprobs"][1:-1] == pytest.approx(logp[:, 0].tolist(), abs=2e-4)
    # what lm-eval takes for greedy: the token's own value is the greatest at its place
    greedy = [
        own == max(top.values())
        for own, top in zip(said["token_logprobs"][1:-1], said["top_logprobs"][1:-1], strict=True)
    ]
    assert greedy == (best == ids[1:]).tolist()


@pytest.mark.parametrize("text", ["<|user|>", "</s>", "a<s>b", "<|assistant|>Yes</s>"])
def test_a_users_text_never_becomes_a_special_token(server, tuned, text):
    body = {"model": "fake", "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = server.post(TEXT, body)[1]["choices"]
    special = {tuned.tok.decode([i]) for i in tuned.tok.special - tuned.tok.unused}
    tokens = choice["logprobs"]["tokens"][len(tuned.start) :]
    assert not special & set(tokens) and "".join(tokens) == text == choice["text"]
    turn = {"role": "user", "content": text}
    for messages in (
        [turn],
        [turn | {"role": "system"}, turn],
        [turn, turn | {"role": "assistant"}],
    ):
        body = {"model": "fake", "messages": messages, "max_tokens": 1}
        speakers = {"user": "human", "system": "system", "assistant": "gpt"}
        turns = [{"from": speakers[m["role"]], "value": m["content"]} for m in messages]
        ids = tuned.chat_ids(turns)
        assert server.post(CHAT, body)[1]["usage"]["prompt_tokens"] == len(ids)
        harmless = tuned.chat_ids([t | {"value": "a"} for t in turns])
        assert len([i for i in ids if i in tuned.tok.special]) == len(
            [i for i in harmless if i in tuned.tok.special]
        )


def test_hostile_requests_leave_a_real_model_as_it_was(server):
    body = {"model": "fake", "prompt": "The", "max_tokens": 5, "temperature": 0}
    before = server.post(TEXT, body)[1]["choices"]
    for hostile in HOSTILE.values():
        refused_as_it_should_be(server, hostile)
    assert server.post(TEXT, body)[1]["choices"] == before
    assert (server.gauge("mynah_running"), server.gauge("mynah_waiting")) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(server, stream):
    before = server.gauge("mynah_abandoned_total")
    body = {"model": "fake", "prompt": "The", "max_tokens": 250, "n": 8, "stream": stream}
    sock = server.open(body)
    wait_for(lambda: server.gauge("mynah_running") > 0)
    sock.close()
    wait_for(lambda: server.gauge("mynah_running") == 0)
    assert server.gauge("mynah_abandoned_total") > before


def test_sigterm_lets_running_requests_finish_and_ends_with_0(place):  # noqa: F811
    key = place / "key"
    key.write_text("a-key-of-the-tests-0123")
    key.chmod(0o600)
    words = ["--model", str(place / "tuned"), "--api-key-file", str(key), "--batch", "4"]
    with serving(*words) as server:
        bearer = {"Authorization": f"Bearer {key.read_text()}", "Content-Type": "application/json"}
        body = {"model": "tuned", "prompt": "The", "max_tokens": 200, "stream": True, "n": 4}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(server.ask, "POST", TEXT, json.dumps(body), bearer)
            wait_for(lambda: b"mynah_running 4" in server.ask("GET", "/metrics", None, bearer)[2])
            server.process.send_signal(signal.SIGTERM)
            status, _, said = running.result(60)
        assert status == 200 and said.endswith(b"data: [DONE]\n\n")
        assert server.ended() == 0
        assert key.read_text() not in "".join(server.log)
        assert any(
            re.match(r"POST /v1/completions 200 \d+\+\d+ tokens \d+ ms", s) for s in server.log
        )


def test_a_second_ctrl_c_ends_it_at_once(place):  # noqa: F811
    with serving("--model", str(place / "tuned"), "--batch", "1") as server:
        body = {"model": "tuned", "prompt": "The", "max_tokens": 250, "n": 100}
        sock = server.open(body)
        wait_for(lambda: server.gauge("mynah_running") == 1)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: server.get("/health")[0] == 503)
        server.process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert server.ended() == 130 and time.monotonic() - started < 5
        sock.close()


def test_a_port_that_is_taken_is_said_before_a_model_is_opened(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "serve", "--model", str(tmp_path / "no such model")]
        command += ["--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--port" in done.stderr and done.stderr.count("\n") == 1
