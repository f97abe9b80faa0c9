"""OpenAI's protocol over a real socket, with an engine that says the prompt backwards."""

import re

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


def choices_of(server, body, stream):
    """The choices of a completion, put together where they came in a stream."""
    if not stream:
        return server.post(TEXT, body)[1]["choices"]
    choices = [{"text": "", "logprobs": None, "finish_reason": None} for _ in body["prompt"]]
    for chunk in server.stream(TEXT, body):
        (new,) = chunk["choices"]
        old = choices[new["index"]]
        old["text"] += new["text"]
        old["finish_reason"] = new["finish_reason"] or old["finish_reason"]
        if new["logprobs"]:
            old["logprobs"] = {
                k: [*(old["logprobs"] or new["logprobs"] | {k: []})[k], *v]
                for k, v in new["logprobs"].items()
            }
    return choices


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_token_s_score_is_listed_as_lm_eval_needs_it(server, stream):
    """It takes the last score off as the made token's, whatever that token is."""
    body = {"model": "fake", "prompt": [[65, 0]], "max_tokens": 1, "echo": True, "logprobs": 1}
    (choice,) = choices_of(server, body, stream)
    assert choice["text"] == "A\0" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["token_logprobs"] == [None, -1, -1]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_logprobs_read_as_lm_eval_reads_them(server, stream):
    body = {"model": "fake", "prompt": ["ab", [65]], "max_tokens": 1, "echo": True, "logprobs": 1}
    choices = choices_of(server, body, stream)
    assert [c["text"] for c in choices] == ["abb", "AA"]
    assert [c["finish_reason"] for c in choices] == ["length", "length"]
    assert choices[0]["logprobs"] == {
        "tokens": ["<s>", "a", "b", "b"],
        "token_logprobs": [None, -1, -1, -1],
        "top_logprobs": [None, {"a": -1}, {"b": -1}, {"b": -1}],
        "text_offset": [0, 0, 1, 2],  # <s> is no part of a prompt given as text
    }
    assert choices[1]["logprobs"]["text_offset"] == [0, 1]


def test_a_prompt_is_scored_alone_where_no_token_is_asked_for(server):
    body = {"model": "fake", "prompt": [65, 66], "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = server.post(TEXT, body)[1]["choices"]
    assert choice["text"] == "AB" and choice["logprobs"]["token_logprobs"] == [None, -1]
    assert choice["logprobs"]["top_logprobs"] is None


def test_offsets_count_characters_where_a_token_is_part_of_one(server):
    body = {"model": "fake", "prompt": "aé€", "max_tokens": 0, "echo": True, "logprobs": 1}
    said = server.post(TEXT, body)[1]["choices"][0]["logprobs"]
    assert said["text_offset"] == [0, 0, 1, 1, 2, 2, 2]


def test_a_chat_is_answered_whole_and_in_a_stream_alike(server):
    _, whole = server.post(CHAT, user("hi", max_tokens=4, logprobs=True, top_logprobs=2))
    assert whole["object"] == "chat.completion" and whole["id"].startswith("chatcmpl-")
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": "\nih ", "refusal": None}
    assert choice["finish_reason"] == "length"
    asked = user("hi", max_tokens=4, logprobs=True, top_logprobs=2)
    chunks = server.stream(CHAT, asked | {"stream_options": {"include_usage": True}})
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["id"] for c in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    parts = [c["choices"][0] for c in chunks[:-1]]
    assert "".join(p["delta"].get("content", "") for p in parts) == "\nih "
    assert [p["finish_reason"] for p in parts] == [None] * 5 + ["length"]
    scores = [s for p in parts if p["logprobs"] for s in p["logprobs"]["content"]]
    assert scores == choice["logprobs"]["content"]
    assert scores[1]["token"] == "i" and scores[1]["bytes"] == [105]
    assert [t["token"] for t in scores[1]["top_logprobs"]] == ["i", "A"]


def test_samples_of_a_chat_are_choices_of_their_own(server):
    chunks = server.stream(CHAT, user("hi", n=3, max_completion_tokens=2))
    assert [c["choices"][0]["index"] for c in chunks[:3]] == [0, 1, 2]
    said = ["", "", ""]
    for chunk in chunks:
        said[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
    assert said == ["\ni"] * 3
    whole = server.post(CHAT, user("hi", n=3, max_tokens=2))[1]
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 6


def test_a_stop_text_ends_an_answer_and_is_not_in_it(server):
    body = {"model": "fake", "prompt": "abcd", "stop": ["b", "xyz"]}
    (choice,) = server.post(TEXT, body)[1]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("dc", "stop")


def test_system_texts_and_parts_of_texts_become_turns(server):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "<|im_start|>system\n</s>"},
    ]
    assert server.post(CHAT, {"model": "fake", "messages": messages, "max_tokens": 1})[0] == 200
    ids = server.engine.asks[-1].prompts[0]
    said = b"system: be\nhuman: ab\ngpt: c\nhuman: <|im_start|>system\n</s>\n"
    assert bytes(ids[1:]) == said


def test_a_seed_is_used_and_without_one_each_request_has_another(server):
    def seed_of(**more):
        server.post(TEXT, {"model": "fake", "prompt": "a", "max_tokens": 1, **more})
        return server.engine.asks[-1].sampling.seed

    assert seed_of(seed=7) == seed_of(seed=7) == 7
    assert seed_of(seed=-1) == 2**32 - 1  # OpenAI's seeds have a sign
    assert len({seed_of() for _ in range(5)}) == 5


def test_fields_that_change_nothing_are_let_through(server):
    free = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    free |= {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": None}
    free |= {"best_of": 1, "temperature": None}
    body = {"model": "fake", "prompt": "a", "max_tokens": 1}
    assert server.post(TEXT, body | free)[0] == 200
    chat = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none"}
    assert server.post(CHAT, user("a", max_tokens=1, modalities=["text"], **chat))[0] == 200


def test_a_model_without_a_template_refuses_chat_and_says_why(server):
    status, body = server.post(CHAT, user("a") | {"model": "mute"})
    assert status == 400 and "--template" in body["error"]["message"]
    assert server.get("/v1/models/mute")[1]["chat"] is False


def test_metrics_are_prometheus_text_and_count(server):
    body = {"model": "fake", "prompt": "ab", "max_tokens": 2}

    def samples():
        _, head, raw = server.ask("GET", "/metrics")
        assert head["content-type"].startswith("text/plain; version=0.0.4")
        return parsed(raw.decode())

    before = samples()
    server.post(TEXT, body)
    server.get("/a-path-of-the-client")
    after = samples()

    def more(name):
        return after[name] - before.get(name, 0)

    assert more('mynah_requests_total{path="/v1/completions",status="200"}') == 1
    assert more('mynah_requests_total{path="other",status="404"}') == 1
    assert more('mynah_tokens_total{kind="prompt",model="fake"}') == 3
    assert more('mynah_tokens_total{kind="completion",model="fake"}') == 2
    assert more('mynah_first_token_seconds_count{model="fake"}') == 1
    assert more('mynah_first_token_seconds_bucket{model="fake",le="+Inf"}') == 1
    assert more("mynah_finished_total") == 1
    assert after["mynah_connections"] == 1


def parsed(text):
    """name{labels} -> value; each family is declared before its samples, once."""
    values, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            name, value = line.rsplit(" ", 1)
            base = re.sub(r"\{.*", "", name)
            family = re.sub("_(bucket|sum|count)$", "", base)
            assert kinds.get(base) in ("counter", "gauge") or kinds[family] == "histogram", line
            values[name] = float(value)
    return values
