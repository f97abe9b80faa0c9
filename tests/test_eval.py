"""eval.py: every task end to end on a small random model, resumed, compared, over the checkpoints
of a run, and with everything that can be wrong about its input.

python -m pytest tests/test_eval.py --data DIR      # also stories260K on the real benchmarks
"""

import io
import json
import math
import shutil
import sys

import numpy as np
import pytest
from evaluations import ROOT, call, greedy, result, samples, write_lines

import data
from checkpoint import paths
from decoding import conversation, decoder, memory, opened
from decoding.records import Sampling, shared_length
from decoding.reference import completion
from tasks import flags, results
from tasks import generate as generate_task
from text import tokenizer

pytest_plugins = ["evaluations"]  # its fixtures

pytestmark = pytest.mark.usefixtures("home")


# --- generation ---


def test_generate_continues_every_form_of_prompt_in_order(tmp_path, place, full):
    tok, logp = full
    rows = [
        {"prompt": "Yarimane is"},
        {"prompt": {"text": "The bread of the south and the north", "toxicity": 0.1}, "id": "rtp"},
        {"prompt": ""},
    ]
    call(
        "generate",
        "--model",
        place / "tuned",
        "--input",
        write_lines(tmp_path / "in.jsonl", rows),
        "--out",
        tmp_path / "o",
        "--max-new-tokens",
        9,
    )
    items = samples(tmp_path / "o")
    for item, text in zip(items, ["Yarimane is", rows[1]["prompt"]["text"], ""], strict=True):
        ids = [tok.bos] + tok.encode(text)
        assert (
            item["prompt"] == text
            and item["output"] == completion(tok, ids, greedy(logp, ids, {tok.eos, tok.user}, 9))[0]
        )
    assert [i["id"] for i in items] == ["0", "1", "2"] and items[1]["row"] == {"id": "rtp"}
    found = result(tmp_path / "o")
    assert (
        found["finished"]
        and found["n"] == 3
        and found["settings"]["model_fingerprint"] == paths.fingerprint(str(place / "tuned"))
    )
    assert "Yarimane is" in (tmp_path / "o" / "index.html").read_text(encoding="utf-8")


def test_generate_answers_conversations_in_the_models_template(tmp_path, place, full, monkeypatch):
    tok, logp = full
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Yes?"},
                {"from": "human", "value": "Go on"},
            ]
        },
        {"prompt": "Who?"},
    ]
    monkeypatch.setattr(
        sys,
        "stdin",
        io.TextIOWrapper(io.BytesIO("".join(json.dumps(r) + "\n" for r in rows).encode())),
    )
    call(
        "generate",
        "--model",
        place / "tuned",
        "--input",
        "-",
        "--chat",
        "--out",
        tmp_path / "o",
        "--max-new-tokens",
        5,
        "--stop",
        "zzz",
    )

    def turn(text):
        return [tok.user] + tok.encode(text) + [tok.assistant]

    for item, ids in zip(
        samples(tmp_path / "o"),
        [
            [tok.bos] + turn("Hi") + tok.encode("Yes?") + [tok.eos] + turn("Go on"),
            [tok.bos] + turn("Who?"),
        ],
        strict=True,
    ):
        assert item["prompt_tokens"] == len(ids) and item["prompt"] == tok.decode(ids)
        assert item["output"] == completion(tok, ids, greedy(logp, ids, {tok.eos, tok.user}, 5))[0]


def test_a_base_model_is_asked_in_a_template_that_is_named_and_never_in_one_guessed(
    tmp_path, place, capsys
):
    m = opened.open_model(str(place / "base"))
    assert m.tok.user is None
    turns = [{"from": "human", "value": "Hi"}]
    with pytest.raises(ValueError, match="does not say how conversations are written"):
        m.chat_ids(turns)
    m.use_template("koala")
    prompt = "<s>BEGINNING OF CONVERSATION: USER: Hi GPT:"
    assert m.tok.decode(m.chat_ids(turns)) == prompt
    rows = write_lines(tmp_path / "in.jsonl", [{"prompt": "Hi"}])
    how = ["generate", "--model", place / "base", "--input", rows, "--max-new-tokens", 2]
    how += ["--chat", "--out", tmp_path / "o"]
    assert "--template koala, chatml or llama3" in call(*how, expect=2, capsys=capsys)
    _, err = call(*how, "--template", "koala", capsys=capsys)
    assert "written in the template: koala" in err
    assert samples(tmp_path / "o")[0]["prompt"] == prompt
    assert result(tmp_path / "o")["settings"]["template"] == "koala"
    other = [*how[:-1], tmp_path / "c", "--template", "chatml"]
    assert "needs the token <|im_start|>" in call(*other, expect=2, capsys=capsys)
    without = ["generate", "--model", place / "base", "--input", rows, "--template", "koala"]
    assert "needs --chat" in call(*without, expect=2, capsys=capsys)


def test_memory_is_planned_for_the_texts_that_are_asked_not_for_all_positions(
    tmp_path, place, capsys, monkeypatch
):
    """A model of 131,072 positions answers short questions many at once."""
    at = str(place / "base")
    m = opened.open_model(at, mesh="1x1", batch=64)
    dims, P = (m.config, 1, 1, m.dtype), m.config.P
    weights, cache = memory.bytes_needed(*dims, 64, P)
    room = (weights + cache / 2) / memory.SHARE
    monkeypatch.setattr(memory, "device_room", lambda mesh: room)
    m, short = opened.open_model(at, mesh="1x1", batch=64), [[5, 6, 7]] * 64
    assert len(list(m.generate(short, Sampling(max_new=2)))) == 64
    with pytest.raises(ValueError, match=rf"--batch 64, {P} positions\).* use --batch 32"):
        m.generate(short, Sampling(max_new=P))
    assert next(iter(m.generate(short[:1], Sampling(max_new=P)))).ids  # one takes a 64th
    monkeypatch.setattr(memory, "device_room", lambda mesh: weights / 2)
    rows = write_lines(tmp_path / "in.jsonl", [{"prompt": "Hi"}])
    how = ["generate", "--model", at, "--mesh", "1x1", "--input", rows, "--out", tmp_path / "o"]
    err = call(*how, expect=2, capsys=capsys)
    assert "of weights on each device" in err and "cache" not in err


def test_a_model_is_asked_in_the_chat_template_it_brings(tmp_path, place, capsys):
    own = tmp_path / "own"
    shutil.copytree(place / "base", own)
    settings = json.loads((own / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}<<{{m.role}}>>{{m.content}}\n{% endfor %}<<assistant>>"
    )
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = write_lines(tmp_path / "in.jsonl", [{"prompt": "Hi"}])
    how = ["--input", rows, "--max-new-tokens", 2, "--chat", "--out", tmp_path / "o"]
    _, err = call("generate", "--model", own, *how, capsys=capsys)
    assert samples(tmp_path / "o")[0]["prompt"] == "<<user>>Hi\n<<assistant>>"
    assert "the model's own chat template" in err


def test_samples_are_the_same_in_any_batch_and_a_stopped_run_goes_on_where_it_was(
    tmp_path, place, monkeypatch
):
    path = write_lines(
        tmp_path / "in.jsonl", [{"prompt": f"Fact {i} " * (i + 1)} for i in range(6)]
    )
    how = [
        "generate",
        "--model",
        place / "tuned",
        "--input",
        path,
        "--max-new-tokens",
        7,
        "--n",
        2,
        "--temperature",
        0.8,
        "--top-p",
        0.9,
    ]
    call(*how, "--out", tmp_path / "whole", "--batch", 8)
    wanted = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    add = results.Result.add

    def stop_after_five(self, item):
        add(self, item)
        if len(self.done) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(results.Result, "add", stop_after_five)
    call(*how, "--out", tmp_path / "o", "--batch", 2, expect=130)
    monkeypatch.setattr(results.Result, "add", add)
    assert not result(tmp_path / "o")["finished"] and len(samples(tmp_path / "o")) == 5
    with open(tmp_path / "o" / "samples.jsonl", "ab") as file:
        file.write(b'{"id": "5/1", "outp')  # killed within a write
    asked, make = [], decoder.Decoder.generate
    monkeypatch.setattr(
        decoder.Decoder,
        "generate",
        lambda self, weights, ids, settings, tok, batch, names, watch: (
            asked.extend(names) or make(self, weights, ids, settings, tok, batch, names, watch)
        ),
    )
    before = {i["id"] for i in samples_of_torn(tmp_path / "o")}
    call(*how, "--out", tmp_path / "o", "--batch", 3)
    assert (tmp_path / "o" / "samples.jsonl").read_bytes() == wanted
    assert set(asked) == {i for i in range(6) if not {f"{i}/0", f"{i}/1"} <= before}
    asked.clear()
    call(*how, "--out", tmp_path / "o")
    assert not asked


def samples_of_torn(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().split("\n")[:-1]]


# --- log-likelihood, perplexity ---


def test_loglik_is_the_sum_over_the_texts_tokens(tmp_path, place, full):
    tok, logp = full
    rows = [
        {"prefix": "Please sum up", "text": " the facts."},
        {"prefix": "", "text": "Yarimane"},
        {"prefix": "Please sum", "text": " up"},
        {"prefix": "a", "text": "bc"},
    ]
    for word in (
        "Please sum up the facts about bread now".split()
    ):  # a text that is the likeliest one, and that is cut into the ids it was made of
        ids = [tok.bos] + tok.encode(word)
        best = greedy(logp, ids, set(), 1)
        text = completion(tok, ids, best)[0]
        rows += [{"prefix": word, "text": text}] * (
            tok.encode(word + text) == ids[1:] + best and bool(text)
        )
    call(
        "loglik",
        "--model",
        place / "tuned",
        "--input",
        write_lines(tmp_path / "in.jsonl", rows),
        "--out",
        tmp_path / "o",
    )
    items = samples(tmp_path / "o")
    for item, row in zip(items, rows, strict=True):
        whole, before = (
            [tok.bos] + tok.encode(row["prefix"] + row["text"]),
            [tok.bos] + tok.encode(row["prefix"]),
        )
        begin = shared_length(whole, before)
        each = logp(whole)[begin - 1 : -1]
        assert item["loglik"] == pytest.approx(
            each[np.arange(len(each)), whole[begin:]].sum(), abs=1e-4
        )
        assert item["tokens"] == len(whole) - begin and item["bytes"] == len(row["text"].encode())
        assert item["greedy"] == bool((each.argmax(axis=1) == whole[begin:]).all())
    assert (
        len(rows) > 4
        and [i["greedy"] for i in items[4:]] == [True] * (len(rows) - 4)
        and not all(i["greedy"] for i in items)
    )
    found = result(tmp_path / "o")
    assert found["score"] == pytest.approx(
        -sum(i["loglik"] for i in items) / sum(i["tokens"] for i in items)
    )
    assert found["interval"][0] <= found["score"] <= found["interval"][1]


def test_perplexity_predicts_every_token_once_with_the_context_it_states(tmp_path, place, full):
    tok, logp = full
    text = " ".join(f"Fact {i}: the bread of Goramere is {i} days old." for i in range(40))
    (tmp_path / "t.txt").write_text(text)
    call(
        "perplexity",
        "--model",
        place / "tuned",
        "--input",
        tmp_path / "t.txt",
        "--window",
        100,
        "--stride",
        30,
        "--out",
        tmp_path / "o",
    )
    ids, nats, done = [tok.bos] + tok.encode(text), 0.0, 1
    while done < len(ids):
        end = min(100 if done == 1 else done + 30, len(ids))
        part = ids[max(end - 100, 0) : end]
        n = end - done
        nats -= logp(part)[np.arange(len(part) - n - 1, len(part) - 1), part[-n:]].sum()
        done = end
    found = result(tmp_path / "o")
    assert found["nats"] == pytest.approx(nats, rel=1e-5) and found["tokens"] == len(ids) - 1
    assert found["score"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert found["nats_per_byte"] == pytest.approx(nats / len(text.encode()), rel=1e-5)
    assert "".join(i["gold"] for i in samples(tmp_path / "o")).replace(" ", "") == text.replace(
        " ", ""
    )


def test_perplexity_of_a_packed_directory_is_over_its_loss_tokens_within_its_documents(
    tmp_path, place, full
):
    tok, logp = full
    source = write_lines(
        tmp_path / "d.jsonl",
        [
            {
                "conversations": [
                    {"from": "human", "value": f"Question {i}"},
                    {"from": "gpt", "value": f"Answer {i} of some."},
                ]
            }
            for i in range(5)
        ],
    )
    data.pack([source], tok, tmp_path / "packed", pack="documents", block=60, workers=1)
    call(
        "perplexity",
        "--model",
        place / "tuned",
        "--input",
        tmp_path / "packed",
        "--out",
        tmp_path / "o",
    )
    nats = count = 0
    for row in (json.loads(line) for line in source.read_text().splitlines()):
        ids, mask = data.tokenize_dialogue(row, tok)
        at = np.flatnonzero(mask)
        nats -= logp(ids.tolist())[at - 1, ids[at]].sum()
        count += len(at)
    found = result(tmp_path / "o")
    assert (
        found["tokens"] == count
        and found["nats"] == pytest.approx(nats, rel=1e-5)
        and "loss token" in found["unit"]
    )


# --- chat ---


def talk(monkeypatch, capsys, place, lines, *flags):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return call(
        "chat",
        "--model",
        place / "tuned",
        "--max-new-tokens",
        12,
        "--temperature",
        0,
        *flags,
        capsys=capsys,
    )


def test_chat_streams_the_answers_to_piped_lines_and_resets(place, full, monkeypatch, capsys):
    tok, logp = full
    out, err = talk(monkeypatch, capsys, place, ["Hi", "", "/reset", "Hi", "And then?"])
    ids = [tok.bos, tok.user] + tok.encode("Hi") + [tok.assistant]
    answer = completion(tok, ids, greedy(logp, ids, {tok.eos, tok.user}, 12))[0]
    follow = (
        ids + tok.encode(answer) + [tok.eos, tok.user] + tok.encode("And then?") + [tok.assistant]
    )
    second = completion(tok, follow, greedy(logp, follow, {tok.eos, tok.user}, 12))[0]
    assert out == "".join(conversation.printable(a) + "\n" for a in (answer, answer, second)) + "\n"
    assert "a new conversation" in err


def test_chat_prints_controls_as_escapes_and_no_half_characters(place, monkeypatch, capsys):
    raw = [b"\x1b[31mred\x07 ", b"\xe2\x82", b"\xac \xe2\x80\xae", b"done\r\n\t"]

    def fake(self, ids, sampling, names, watch):
        self.tok.decode_bytes = lambda ids: b"".join(raw[: sum(i < 0 for i in ids)])
        for k in range(1, 5):
            watch(0, 0, [-1] * k)
        return iter(())

    monkeypatch.setattr(opened.Opened, "generate", fake)
    out, _ = talk(monkeypatch, capsys, place, ["Hi"])
    assert out == "\\x1b[31mred\\x07 \u20ac \\u202edone\\r\n\t\n\n"


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(place, monkeypatch, capsys):
    seen = []

    def fake(self, ids, sampling, names, watch):
        seen.append(ids[0])
        watch(0, 0, self.tok.encode("Half an"))
        if len(seen) == 1:
            raise KeyboardInterrupt
        return iter(())

    monkeypatch.setattr(opened.Opened, "generate", fake)
    out, _ = talk(monkeypatch, capsys, place, ["Hi", "Go on"])
    tok = tokenizer.load(ROOT / "samples" / "tokenizer.model")
    assert (
        out == "Half an\nHalf an\n\n"
        and tok.decode(seen[1]) == "<s><|user|>Hi<|assistant|>Half an</s><|user|>Go on<|assistant|>"
    )


# --- the command line ---


def test_help_of_every_task_names_its_flags():
    for task in [*flags.TASKS, "chat"]:
        with pytest.raises(SystemExit) as end:
            flags.parser().parse_args([task, "--help"])
        assert end.value.code == 0


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": {"text": "b", "toxicity": 0.1}}, "b"),
        ({"text": "c", "question_id": 1}, "c"),
        ({"instruction": "d", "output": "x"}, "d"),
        ({"instruction": "d", "input": "e"}, "d\n\ne"),
        ({"instruction": "f", "instances": [{"input": "g", "output": "x"}]}, "f\n\ng"),
        ({"instruction": 3}, None),
        ({"text": 3}, None),
    ],
)
def test_the_prompt_of_a_row_is_found_in_every_public_form(row, prompt):
    assert generate_task.prompt_of(row) == prompt
