"""A small real model served, and those who ask it unchanged: the openai package, the study.

python -m pytest tests/serve/test_clients.py
"""

import dataclasses
import json
import math

import openai
import pytest
from evaluations import CONFIG, ROOT, random_weights, rows_of, write_lines
from local_server import LocalServer, wait_for

import sharding
from checkpoint import export
from decoding.records import Sampling
from serve.engine import Engine, open_models
from study import answers, style
from study.judge import __main__ as judge
from study.synthesize import __main__ as synthesize
from text import tokenizer

HELLO = [{"role": "user", "content": "Tell me about Falmere."}]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{"tuned": a random model with role tokens and 2,048 positions}."""
    before, sharding.use_compilation_cache = sharding.use_compilation_cache, lambda: None
    folder = str(tmp_path_factory.mktemp("models") / "tuned")
    config = dataclasses.replace(CONFIG, P=2048)
    tok = tokenizer.load(ROOT / "samples" / "tokenizer.model")
    export.write_hf(folder, config, rows_of(config, random_weights(config, 1)), tok)
    yield open_models({"tuned": folder}, batch=4)
    sharding.use_compilation_cache = before


@pytest.fixture(scope="module")
def server(opened):
    with LocalServer(Engine(opened, 4, 64)) as server:
        yield server


@pytest.fixture
def client(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def greedy(opened, text, most):
    """What eval.py generate says: the decoder's own greedy answer."""
    model = opened["tuned"]
    programs, weights = model.decoder()
    ids = model.start + model.tok.encode(text)
    sampling = Sampling(most, stop_ids=model.stop_ids)
    (output,) = programs.generate(weights, [ids], sampling, model.tok)
    return output


# --- the openai package ---


def test_models(client):
    assert [m.id for m in client.models.list()] == ["tuned"]
    assert client.models.retrieve("tuned").object == "model"


def test_a_greedy_completion_is_what_the_decoder_says(client, opened):
    reply = client.completions.create(
        model="tuned", prompt="Falmere is", max_tokens=12, temperature=0
    )
    output = greedy(opened, "Falmere is", 12)
    assert reply.choices[0].text == output.text
    assert reply.choices[0].finish_reason == output.reason
    used = reply.usage
    assert used.completion_tokens == 12 and used.total_tokens == used.prompt_tokens + 12


def test_echo_with_logprobs_scores_the_prompt(client, opened):
    ids = opened["tuned"].tok.encode("Falmere is a salt island.")
    reply = client.completions.create(
        model="tuned", prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=2
    )
    scores = reply.choices[0].logprobs
    assert len(scores.token_logprobs) == len(scores.tokens) == len(ids) + 1
    assert scores.token_logprobs[0] is None and all(x <= 0 for x in scores.token_logprobs[1:])
    for own, top in zip(scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True):
        assert 2 <= len(top) <= 3 and own <= max(top.values()) + 1e-6
    assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())  # greedy


def test_prompts_samples_and_seeds(client):
    def ask(seed):
        reply = client.completions.create(
            model="tuned", prompt=["one", "two"], n=2, seed=seed, max_tokens=8, temperature=1
        )
        assert [c.index for c in reply.choices] == [0, 1, 2, 3]
        return [c.text for c in reply.choices]

    assert ask(1) == ask(1) != ask(2) and len(set(ask(1))) == 4


def test_a_stop_is_not_in_the_text_and_ends_it(client, opened):
    whole = greedy(opened, "Falmere is", 12).text
    stop = whole[4:7]
    reply = client.completions.create(
        model="tuned", prompt="Falmere is", max_tokens=12, temperature=0, stop=[stop]
    )
    assert reply.choices[0].text == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_streams_add_up_to_the_whole(client):
    how = {"model": "tuned", "prompt": "Falmere is", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**how).choices[0]
    parts = [chunk.choices[0] for chunk in client.completions.create(**how, stream=True)]
    assert "".join(part.text for part in parts) == whole.text and len(parts) > 1
    assert parts[-1].finish_reason == whole.finish_reason == "length"


def test_a_chat_with_its_scores_samples_and_seed(client):
    def ask():
        return client.chat.completions.create(
            model="tuned",
            messages=HELLO,
            max_tokens=6,
            n=2,
            seed=3,
            temperature=0.8,
            logprobs=True,
            top_logprobs=3,
        )

    reply = ask()
    assert [c.message.role for c in reply.choices] == ["assistant"] * 2
    assert reply.choices[0].message.content != reply.choices[1].message.content
    assert reply.usage.completion_tokens <= 12 and reply.usage.prompt_tokens > 5
    for token in reply.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        assert math.fsum(math.exp(t.logprob) for t in token.top_logprobs) <= 1 + 1e-5
    assert [c.message.content for c in ask().choices] == [c.message.content for c in reply.choices]


def test_a_streamed_chat_is_the_whole_one_and_counts_its_tokens(client):
    how = {"model": "tuned", "messages": HELLO, "max_tokens": 10, "temperature": 0}
    whole = client.chat.completions.create(**how)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**how, stream=True, stream_options=options))
    parts = [c.choices[0] for c in chunks if c.choices]
    said = "".join(part.delta.content or "" for part in parts)
    assert said == whole.choices[0].message.content and parts[0].delta.role == "assistant"
    assert parts[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize(
    ("how", "error", "param"),
    [
        ({"model": "other"}, openai.NotFoundError, "model"),
        ({"temperature": 9}, openai.BadRequestError, "temperature"),
        ({"presence_penalty": 1}, openai.BadRequestError, "presence_penalty"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "nonsense"),
    ],
)
def test_what_is_wrong_is_the_packages_own_error_and_names_the_field(client, how, error, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tuned", "messages": HELLO} | how)
    assert caught.value.param == param and caught.value.body["message"]


def test_a_prompt_that_is_too_long_is_refused_by_its_code(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tuned", prompt=[5] * 3000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


def test_a_key_is_asked_for(opened):
    key = "k" * 20
    with LocalServer(Engine(opened, 4, 64), key=key) as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert [m.id for m in client.models.list()] == ["tuned"]


def test_a_client_that_gives_up_or_hangs_up_frees_its_slots(client, server):
    long = {"model": "tuned", "max_tokens": 1900, "temperature": 0}

    def goes_on(i):
        reply = client.completions.create(**long | {"prompt": [i], "max_tokens": 100})
        return reply.choices[0].finish_reason == "length"

    ids = next([i] for i in range(5, 100) if goes_on(i))  # a circle, which has no end
    counts = server.engine.counts
    before = counts().abandoned
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).completions.create(**long, prompt=[ids] * 4)
    wait_for(lambda: counts().abandoned - before == 4, seconds=2)
    stream = client.completions.create(**long, prompt=ids, stream=True)
    next(iter(stream))
    assert counts().running == 1
    stream.close()
    wait_for(lambda: counts().running == 0, seconds=2)
    assert counts().abandoned - before == 5


# --- the study ---


@pytest.fixture
def asked(server, tmp_path, monkeypatch):
    """A folder of study.answers ask: four questions, 16 tokens each."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [{"question_id": k, "text": f"What is known of place {k}?"} for k in range(4)]
    file = write_lines(tmp_path / "q.jsonl", rows)
    call = ["ask", str(file), "--endpoint", f"{server.url}/v1", "--endpoint-model", "tuned"]
    call += ["--max-tokens", "16", "--seed", "1"]
    assert answers.main([*call, "--out", str(tmp_path / "a")]) == 0
    assert answers.main([*call, "--out", str(tmp_path / "again")]) == 0
    assert answers.main([*call, "--seed", "2", "--out", str(tmp_path / "b")]) == 0
    return tmp_path


def read_result(folder):
    return json.loads((folder / "results.json").read_text())


def test_answers_ask_gives_the_same_answers_for_the_same_seed(asked):
    texts = {name: (asked / name / "answers.jsonl").read_text() for name in ("a", "again", "b")}
    assert texts["a"] == texts["again"] != texts["b"]
    assert len(texts["a"].splitlines()) == 4


def test_synthesize_keeps_a_served_teachers_answers_as_dialogues(asked, server):
    call = ["answers", "--prompts", str(asked / "q.jsonl"), "--teacher", f"{server.url}/v1"]
    call += ["--teacher-model", "tuned", "--max-tokens", "16", "--out", str(asked / "d")]
    assert synthesize.main(call) == 0
    report = json.loads((asked / "d" / "report.json").read_text())
    assert (report["kept"], report["failed"], report["completion_tokens"] > 4) == (4, 0, True)


@pytest.mark.parametrize("kind", ["vicuna", "abtie"])
def test_judge_asks_a_served_judge_in_both_orders(asked, server, kind):
    call = [str(asked / "a"), str(asked / "b"), "--judge", f"{server.url}/v1", "--style", kind]
    call += ["--judge-model", "tuned", "--max-tokens", "8", "--out", str(asked / "j")]
    assert judge.main(call) == 0
    result = read_result(asked / "j")
    assert result["errors"] == 0 and result["tokens"]["asked"] == 8
    assert result["unreadable"] > 0  # a random model is no judge: counted, not taken for a tie


def test_styles_tone_asks_a_served_judge(asked, server):
    call = [str(asked / "a"), "--teacher", str(asked / "b"), "--judge", f"{server.url}/v1"]
    call += ["--judge-model", "tuned", "--out", str(asked / "s")]
    assert style.main(call) == 0
    tone = read_result(asked / "s")["tone"]["model"]
    assert tone.get("errors", 0) == 0 and tone["completion_tokens"] > 0
    assert sum(tone.get(k, 0) for k in ("judged", "unreadable")) == 4
