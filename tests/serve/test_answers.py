"""OpenAI's protocol over a real socket, with an engine that says the prompt backwards."""

import pytest
from fake_engine import FakeEngine, FakeModel
from local_server import LocalServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def server():
    models = {"fake": FakeModel(), "mute": FakeModel(template=None)}
    with LocalServer(FakeEngine(models)) as server:
        yield server


def user(text, **more):
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


def test_models_are_listed_and_found_by_name(server):
    status, body = server.get("/v1/models")
    assert status == 200 and body["object"] == "list"
    assert [m["id"] for m in body["data"]] == ["fake", "mute"]
    assert server.get("/v1/models/fake")[1] == body["data"][0]
    assert server.get("/v1/models/other")[1]["error"]["code"] == "model_not_found"


def test_a_completion_has_openais_form(server):
    status, body = server.post(TEXT, {"model": "fake", "prompt": "abc", "max_tokens": 2})
    assert status == 200 and body["id"].startswith("cmpl-") and body["object"] == "text_completion"
    assert body["choices"] == [
        {"index": 0, "logprobs": None, "finish_reason": "length", "text": "cb"}
    ]
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 2, 6)


def test_sixteen_tokens_are_what_a_completion_gets_unasked(server):
    assert (
        server.post(TEXT, {"model": "fake", "prompt": "abc"})[1]["usage"]["completion_tokens"] == 16
    )
    sampling = server.engine.asks[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.n) == (1, 1, 0, 1)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [[256, 97, 98]]),
        (["a", "b"], [[256, 97], [256, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        (["a", [98]], [[256, 97], [98]]),
        ("", [[256]]),
    ],
)
def test_a_prompt_is_text_or_ids_or_a_list_of_either(server, prompt, ids):
    status, body = server.post(TEXT, {"model": "fake", "prompt": prompt, "max_tokens": 1})
    assert status == 200 and [c["index"] for c in body["choices"]] == list(range(len(ids)))
    assert server.engine.asks[-1].prompts == ids
