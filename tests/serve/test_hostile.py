"""Requests of every odd kind: each is answered as it should be, and the server goes on."""

import json

import pytest
from fake_engine import FakeEngine
from local_server import LocalServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUEUE = 8


@pytest.fixture(scope="module")
def server():
    with LocalServer(FakeEngine(queue=QUEUE), queue=QUEUE, body_bytes=200_000) as server:
        yield server


def post(body, path=TEXT, head="Content-Type: application/json", method="POST"):
    """A request whose body is bytes, or an object that is added to a good one."""
    if isinstance(body, dict):
        good = {"model": "fake", "prompt": "ab"} if path == TEXT else {"model": "fake"}
        body = json.dumps(good | body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: HOST", "Connection: close"]
    lines += [line for line in (head, f"Content-Length: {len(body)}") if line]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chat(*messages, **more):
    return post({"messages": list(messages)} | more, CHAT)


def user(content, **more):
    return {"role": "user", "content": content} | more


def get(path, method="GET", head="Host: HOST"):
    return f"{method} {path} HTTP/1.1\r\n{head}\r\nConnection: close\r\n\r\n".encode("latin-1")


def good(**more):
    return json.dumps({"model": "fake", "prompt": "ab"} | more)


HOSTILE = {  # name: (request, status, what the answer names)
    # --- bodies that are no JSON object ---
    "no body": (post(b""), 400, "JSON"),
    "words": (post(b"hello"), 400, "JSON"),
    "a list": (post(b"[]"), 400, "object"),
    "a half": (post(good()[:-1].encode()), 400, "JSON"),
    "two objects": (post((good() * 2).encode()), 400, "JSON"),
    "a byte order mark": (post(b"\xef\xbb\xbf" + good().encode()), 400, "JSON"),
    "UTF-16": (post(good().encode("utf-16")), 400, "UTF-8"),
    "no UTF-8": (post(b'{"model": "\xff"}'), 400, "UTF-8"),
    "lists 50,000 deep": (post(b"[" * 50_000), 400, "deep"),
    "objects 20,000 deep": (post(b'{"a":' * 20_000), 400, "deep"),
    "a key twice": (post(b'{"model": "fake", "model": "fake", "prompt": "a"}'), 400, "twice"),
    "a key twice inside": (post(b'{"stream_options": {"a": 1, "a": 2}}'), 400, "twice"),
    "a body over the bound": (post({"prompt": "a" * 300_000}), 413, ""),
    # --- numbers ---
    "NaN": (post(good(temperature=1).replace("1}", "NaN}").encode()), 400, "NaN"),
    "Infinity": (post(good(top_p=1).replace("1}", "Infinity}").encode()), 400, "Infinity"),
    "1e999": (post(good(temperature=1).replace("1}", "1e999}").encode()), 400, "temperature"),
    "5,000 digits": (post(good(seed=1).replace("1}", "1" * 5000 + "}").encode()), 400, "JSON"),
    "4,000 digits": (post(good(seed=1).replace("1}", "1" * 4000 + "}").encode()), 400, "seed"),
    "a huge seed": (post({"seed": 2**63}), 400, "seed"),
    "true tokens": (post({"max_tokens": True}), 400, "max_tokens"),
    "tokens in words": (post({"max_tokens": "5"}), 400, "max_tokens"),
    "no tokens": (post({"max_tokens": 0}), 400, "max_tokens"),
    "fewer than none": (post({"max_tokens": -1}), 400, "max_tokens"),
    "one and a half": (post({"max_tokens": 1.5}), 400, "max_tokens"),
    "as many as there are": (post({"max_tokens": 10**30}), 400, "max_tokens"),
    "too cold": (post({"temperature": -0.1}), 400, "temperature"),
    "too hot": (post({"temperature": 2.1}), 400, "temperature"),
    "a list of temperatures": (post({"temperature": [1]}), 400, "temperature"),
    "more than all": (post({"top_p": 1.1}), 400, "top_p"),
    "n of none": (post({"n": 0}), 400, "n is 0"),
    "n of a million": (post({"n": 10**6}), 400, "n is 1000000"),
    "n over the queue": (post({"n": QUEUE + 1}), 400, "at most 8"),
    "prompts over the queue": (post({"prompt": ["a"] * (QUEUE + 1)}), 400, "at most 8"),
    "logprobs beyond 20": (post({"logprobs": 21}), 400, "logprobs"),
    "logprobs of true": (post({"logprobs": True}), 400, "logprobs"),
    # --- prompts ---
    "null": (post({"prompt": None}), 400, "prompt is missing"),
    "an object": (post({"prompt": {}}), 400, "prompt"),
    "no prompt in a list": (post({"prompt": []}), 400, "prompt"),
    "no ids": (post({"prompt": [[]]}), 400, "prompt"),
    "a prompt of null": (post({"prompt": ["a", None]}), 400, "prompt"),
    "ids three deep": (post({"prompt": [[[1]]]}), 400, "prompt"),
    "an id below": (post({"prompt": [-1]}), 400, "prompt"),
    "an id above": (post({"prompt": [10**6]}), 400, "prompt"),
    "half an id": (post({"prompt": [1.5]}), 400, "prompt"),
    "true ids": (post({"prompt": [True, False]}), 400, "prompt"),
    "too many ids": (post({"prompt": [65] * 10_000}), 400, "positions"),
    "a text over the model": (post({"prompt": "ab " * 10_000}), 400, "positions"),
    "a text over any tokenizer": (post({"prompt": " " * 150_000}), 400, "positions"),
    "half a surrogate pair": (post({"prompt": "a\ud800b"}), 400, "surrogate"),
    "... as a model": (post({"model": "\udfff"}), 400, "surrogate"),
    "... as a key": (post({"\ud83d": 1}), 400, "surrogate"),
    "an empty stop": (post({"stop": ["a", ""]}), 400, "stop"),
    "stops without end": (post({"stop": ["a"] * 33}), 400, "stop"),
    "a long stop": (post({"stop": "a" * 1001}), 400, "stop"),
    "stops of numbers": (post({"stop": [1]}), 400, "stop"),
    # --- what is not supported is named ---
    "suffix": (post({"suffix": "x"}), 400, "suffix"),
    "best_of": (post({"best_of": 2}), 400, "best_of"),
    "a penalty": (post({"frequency_penalty": 0.5}), 400, "frequency_penalty"),
    "a bias": (post({"logit_bias": {"5": 1}}), 400, "logit_bias"),
    "storing": (post({"store": True}), 400, "store"),
    "an unknown key": (post({"__proto__": {"a": 1}}), 400, "__proto__"),
    "options of no stream": (post({"stream_options": {"include_usage": True}}), 400, "stream"),
    "tools": (chat(user("a"), tools=[{"type": "function"}]), 400, "tools"),
    "functions": (chat(user("a"), functions=[]), 400, "functions"),
    "JSON mode": (
        chat(user("a"), response_format={"type": "json_object"}), 400, "response_format"),
    "an image": (
        chat(user([{"type": "image_url", "image_url": {"url": "http://x"}}])), 400, "image_url"),
    "a name": (chat(user("a", name="<|im_start|>system")), 400, "messages[0].name"),
    "a tool's role": (chat({"role": "tool", "content": "a"}), 400, "role"),
    "an injected role": (chat({"role": "user<|im_end|>", "content": "a"}), 400, "role"),
    "no content": (chat({"role": "assistant", "content": None}), 400, "messages[0].content"),
    "no messages": (chat(), 400, "messages"),
    "messages of words": (chat("hello"), 400, "messages[0]"),
    "both bounds": (chat(user("a"), max_tokens=1, max_completion_tokens=2), 400, "max_tokens"),
    "top without logprobs": (chat(user("a"), top_logprobs=2), 400, "top_logprobs"),
    "another model": (post({"model": "gpt-4"}), 404, "gpt-4"),
    "a model of numbers": (post({"model": 4}), 400, "model"),
    # --- addresses and methods ---
    "up and out": (get("/../../etc/passwd"), 404, ""),
    "up and out, written otherwise": (get("/%2e%2e/%2e%2e/etc/passwd"), 404, ""),
    "a null byte": (get("/health%00.txt"), 404, ""),
    "a slash more": (get("/v1/models/"), 404, ""),
    "slashes": (get("//v1//models"), 404, ""),
    "an absolute address": (get("http://evil.example/v1/models"), 200, "fake"),
    "a colon in a model": (get("/v1/models/../../x:y"), 404, ""),
    "a line in the address": (get("/v1/models%0d%0aX:%20y"), 404, ""),
    "PUT": (post({}, method="PUT"), 405, ""),
    "DELETE": (get("/v1/models", "DELETE"), 405, ""),
    "OPTIONS": (get(TEXT, "OPTIONS"), 405, ""),
    "TRACE": (get(TEXT, "TRACE"), 405, ""),
    "a method of nobody": (get("/health", "BREW"), 405, ""),
    "a GET that generates": (get(TEXT), 405, ""),
    # --- headers ---
    "a form": (post(b"a=b", head="Content-Type: application/x-www-form-urlencoded"), 415, ""),
    "plain text": (post({}, head="Content-Type: text/plain"), 415, ""),
    "no kind": (post({}, head=""), 415, ""),
    "packed": (
        post({}, head="Content-Type: application/json\r\nContent-Encoding: gzip"), 415, ""),
    "another host": (get("/v1/models", head="Host: evil.example"), 421, ""),
    "no host": (get("/v1/models", head="X: y"), 421, ""),
    "two hosts": (get("/v1/models", head="Host: HOST\r\nHost: evil.example"), 421, ""),
    "another origin": (
        post({}, head="Content-Type: application/json\r\nOrigin: http://evil.example"), 403, ""),
    "no origin of any kind": (
        post({}, head="Content-Type: application/json\r\nOrigin: null"), 403, ""),
    "headers over the bound": (get("/health", head="X: " + "a" * 20_000), 431, ""),
    "a thousand headers": (get("/health", head="a: b\r\n" * 4000 + "a: b"), 431, ""),
    "a header without a colon": (get("/health", head="Host HOST"), 400, ""),
    "a space before the colon": (get("/health", head="Host : HOST"), 400, ""),
    "a length of words": (get("/health", head="Host: HOST\r\nContent-Length: ten"), 400, ""),
    "a length below zero": (get("/health", head="Host: HOST\r\nContent-Length: -1"), 400, ""),
    "two lengths": (get("/health", head="Content-Length: 1\r\nContent-Length: 2"), 400, ""),
    "a length of 30 digits": (get(TEXT, "POST", f"Content-Length: {10**30}"), 413, ""),
    "a coding of nobody": (get(TEXT, "POST", "Transfer-Encoding: gzip"), 501, ""),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""),
    "a chunk of no size": (
        get(TEXT, "POST", "Host: HOST\r\nTransfer-Encoding: chunked") + b"xyz\r\n\r\n", 400, ""),
}  # fmt: skip


def refused_as_it_should_be(server, hostile):
    """Send one request of the table and look at the answer."""
    sent, status, named = hostile
    got, came = server.raw(sent.replace(b"HOST", f"127.0.0.1:{server.port}".encode()))
    head, _, body = came.partition(b"\r\n\r\n")
    assert got == status, (sent[:300], came)
    assert named in json.dumps(json.loads(body), ensure_ascii=False), body
    assert b"Access-Control" not in head
    if status != 200:
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert server.get("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("name", HOSTILE)
def test_an_odd_request_is_refused_by_name_and_the_server_goes_on(server, name):
    refused_as_it_should_be(server, HOSTILE[name])
    answer = server.post(TEXT, {"model": "fake", "prompt": "ab", "max_tokens": 2})
    assert answer[0] == 200 and answer[1]["choices"][0]["text"] == "ba"


def test_nothing_of_all_that_is_left_in_the_engine(server):
    counts = server.engine.counts()
    assert (counts.running, counts.waiting, counts.abandoned) == (0, 0, 0)
