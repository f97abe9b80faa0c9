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
from evaluations import PROBLEMS, ROOT, call, greedy, result, samples, write_lines

import data
from checkpoint import paths
from decoding import conversation, decoder, memory, opened
from decoding.records import completion, shared_length
from tasks import flags, results, scores
from tasks import generate as generate_task
from tasks import humaneval as humaneval_task
from tasks import mmlu as mmlu_task
from text import tokenizer
from text.byte_pairs import byte_alphabet

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


# --- MMLU ---


def test_mmlu_takes_the_likeliest_letter_with_the_shots_that_fit(tmp_path, place, mmlu, full):
    tok, logp = full
    call("mmlu", "--model", place / "tuned", "--data", mmlu, "--shots", 3, "--out", tmp_path / "o")
    items, letters = samples(tmp_path / "o"), [tok.encode(f"Answer: {c}")[-1] for c in "ABCD"]
    assert [i["id"] for i in items] == [
        f"{s}/{k}" for s in ("anatomy", "virology") for k in range(8)
    ]
    for item in items:
        ids = [tok.bos] + tok.encode(item["prompt"])
        four = logp(ids)[-1, letters]
        assert len(ids) <= 256 and item["prompt"].count("\nAnswer:") == item["shots"] + 1
        np.testing.assert_allclose(item["p"], np.exp(four) / np.exp(four).sum(), atol=1e-4)
        assert item["extracted"] == "ABCD"[four.argmax()] and item["verdict"] == (
            item["extracted"] == item["gold"]
        )
    assert all(i["shots"] == 3 for i in items[8:]) and all(0 < i["shots"] < 3 for i in items[:8])
    found = result(tmp_path / "o")
    assert (
        found["score"] == sum(i["verdict"] for i in items) / 16
        and found["n"] == 16
        and found["interval"]
        == pytest.approx(list(scores.wilson(sum(i["verdict"] for i in items), 16)))
    )
    assert (
        found["shots_used"]["3"] == 8
        and set(found["subjects"]) == {"anatomy", "virology"}
        and 0 <= found["calibration_error"] <= 1
    )
    call(
        "mmlu",
        "--model",
        place / "tuned",
        "--data",
        mmlu,
        "--shots",
        3,
        "--out",
        tmp_path / "alone",
        "--no-sharing",
        "--mesh",
        "2x2",
        "--batch",
        4,
    )
    assert [i["extracted"] for i in samples(tmp_path / "alone")] == [i["extracted"] for i in items]


def test_mmlu_measures_a_model_that_has_only_an_api(tmp_path, mmlu):
    call(
        "mmlu",
        "--data",
        mmlu,
        "--write-prompts",
        tmp_path / "p.jsonl",
        "--subjects",
        "virology",
        "--limit",
        4,
    )
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert (
        len(rows) == 4
        and all(r["prompt"].count("\nAnswer:") == 6 for r in rows)
        and set(rows[0]) == {"id", "subject", "prompt"}
    )
    answers = write_lines(
        tmp_path / "a.jsonl",
        [
            {"id": r["id"], "prediction": a}
            for r, a in zip(rows, ["A", "The answer is D.", "no idea", "(B)"], strict=True)
        ],
    )
    call(
        "mmlu",
        "--data",
        mmlu,
        "--predictions",
        answers,
        "--subjects",
        "virology",
        "--limit",
        4,
        "--out",
        tmp_path / "o",
    )
    found = result(tmp_path / "o")
    assert [i["extracted"] for i in samples(tmp_path / "o")] == ["A", "D", None, "B"] and found[
        "without_letter"
    ] == 1
    assert found["score"] == 3 / 4 and "sample" in found["settings"]  # the answers are A, D, C, B


def test_letters_of_several_tokens_are_compared_as_wholes(tmp_path, place, mmlu, full, monkeypatch):
    """With a tokenizer that has no " B": the sum over its tokens, as in other harnesses."""
    tok, logp = full
    encode = tokenizer.Tokenizer.encode
    letter, instead = encode(tok, "Answer: B")[-1], [encode(tok, "x ")[-1], 40]

    def split(ids):
        return [j for i in ids for j in (instead if i == letter else [i])]

    monkeypatch.setattr(
        tokenizer.Tokenizer,
        "encode",
        lambda self, text: (
            split(encode(self, text)) if text.endswith("Answer: B") else encode(self, text)
        ),
    )
    call(
        "mmlu",
        "--model",
        place / "tuned",
        "--data",
        mmlu,
        "--shots",
        1,
        "--subjects",
        "virology",
        "--limit",
        2,
        "--out",
        tmp_path / "o",
    )
    for item in samples(tmp_path / "o"):
        ids = [tok.bos] + encode(tok, item["prompt"])
        four = []
        for c in "ABCD":
            tail = tok.encode(f"Answer: {c}")[len(encode(tok, "Answer:")) :]
            each = logp(ids + tail)[len(ids) - 1 :]
            four.append(sum(each[k, i] for k, i in enumerate(tail)))
        np.testing.assert_allclose(item["p"], np.exp(four) / np.exp(four).sum(), atol=1e-4)


# --- Natural Questions ---


def test_nq_asks_with_shots_and_scores_exact_match(tmp_path, place, nq, full):
    tok, logp = full
    call(
        "nq",
        "--model",
        place / "tuned",
        "--data",
        nq,
        "--train",
        tmp_path / "train.jsonl",
        "--shots",
        3,
        "--limit",
        4,
        "--max-new-tokens",
        6,
        "--out",
        tmp_path / "o",
    )
    items, found = samples(tmp_path / "o"), result(tmp_path / "o")
    for item in items:
        ids = [tok.bos] + tok.encode(item["prompt"])
        text = completion(tok, ids, greedy(logp, ids, {tok.eos, tok.user}, 6), ("\n",))[0]
        assert (
            item["output"] == text
            and item["extracted"] == text.strip()
            and item["verdict"] == scores.exact_match(text, item["gold"])
        )
    assert items[0]["prompt"].startswith("Answer these questions:\n\nQ: where is ") and items[0][
        "prompt"
    ].endswith("\n\nQ: who is 0?\nA:")
    assert (
        found["settings"]["prompt"].count("Q: ") == 4
        and "4 of 7" in found["settings"]["sample"]
        and len(found["settings"]["shots_drawn"]) == 3
    )


def test_nq_drops_shots_that_do_not_fit_and_asks_a_chat_model_in_its_template(tmp_path, place, nq):
    call(
        "nq",
        "--model",
        place / "tuned",
        "--data",
        nq,
        "--train",
        tmp_path / "train.jsonl",
        "--shots",
        64,
        "--limit",
        2,
        "--max-new-tokens",
        6,
        "--chat",
        "--out",
        tmp_path / "o",
    )
    items = samples(tmp_path / "o")
    assert all(
        0 < i["shots"] < 64
        and i["prompt"].startswith("<s><|user|>Answer these")
        and i["prompt"].endswith("A:<|assistant|>")
        for i in items
    )


def test_nq_scores_predictions_without_a_model(tmp_path, nq):
    rows = [
        {"question": "q", "answer": ["U.S."], "prediction": "the US"},
        {"question": "r", "answer": ["two words"], "prediction": " words\n"},
    ]
    call("nq", "--predictions", write_lines(tmp_path / "p.jsonl", rows), "--out", tmp_path / "o")
    found = result(tmp_path / "o")
    assert (
        found["score"] == 0.5
        and found["f1"]["score"] == pytest.approx((1 + 2 / 3) / 2)
        and found["n"] == 2
    )


# --- HumanEval ---


def test_humaneval_scores_completions_given_in_its_own_form(tmp_path):
    problems = write_lines(tmp_path / "h.jsonl", PROBLEMS)
    given = write_lines(
        tmp_path / "s.jsonl",
        [
            {"task_id": f"T/{i}", "completion": c}
            for i in (0, 1)
            for c in ("    return 1\n", "    return 3\n")
        ],
    )
    call(
        "humaneval",
        "--data",
        problems,
        "--samples",
        given,
        "--k",
        "1,2",
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "o",
    )
    found, items = result(tmp_path / "o"), samples(tmp_path / "o")
    assert (
        [i["verdict"] for i in items] == [True, False, False, False]
        and found["pass@1"]["score"] == found["score"] == 0.25
        and found["pass@2"]["score"] == 0.5
    )
    assert (
        items[0]["extracted"]
        == "def one():\n    return 1\n\ndef check(f):\n    assert f() == 1\n\ncheck(one)"
        and found["isolated_by"]["level"]
    )
    call(
        "humaneval",
        "--data",
        problems,
        "--self-test",
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "self",
    )
    assert result(tmp_path / "self")["score"] == 1
    broken = write_lines(
        tmp_path / "b.jsonl", [PROBLEMS[0], PROBLEMS[1] | {"canonical_solution": "    return 1\n"}]
    )
    call(
        "humaneval",
        "--data",
        broken,
        "--self-test",
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "broken",
        expect=1,
    )


def test_humaneval_generates_once_and_executes_apart(tmp_path, place, full, capsys):
    tok, logp = full
    problems = write_lines(
        tmp_path / "h.jsonl",
        PROBLEMS + [{**PROBLEMS[0], "task_id": "T/2", "prompt": "# long\n" * 300 + "def one():\n"}],
    )
    how = [
        "humaneval",
        "--model",
        place / "tuned",
        "--data",
        problems,
        "--max-new-tokens",
        8,
        "--isolation",
        "limits",
        "--out",
        tmp_path / "o",
    ]
    _, err = call(*how, capsys=capsys)
    assert (
        "--run-untrusted-code" in err
        and "1 of 3 prompts do not fit" in err
        and not result(tmp_path / "o")["finished"]
    )
    made = [
        json.loads(line) for line in (tmp_path / "o" / "completions.jsonl").read_text().splitlines()
    ]
    by_id = {r["task_id"]: r["completion"] for r in made}
    ids = [tok.bos] + tok.encode("def one():\n")
    assert (
        by_id["T/0"]
        == completion(tok, ids, greedy(logp, ids, {tok.eos, tok.user}, 8), humaneval_task.STOPS)[0]
        and by_id["T/2"] == ""
    )
    (tmp_path / "o" / "completions.jsonl").write_text(
        "".join(json.dumps(r | {"completion": "    return 1\n"}) + "\n" for r in made)
    )  # what is there is not made again
    call(*how, "--run-untrusted-code")
    assert [i["verdict"] for i in samples(tmp_path / "o")] == [True, False, True] and result(
        tmp_path / "o"
    )["n"] == 3


# --- checkpoints, comparison, memory ---


def test_every_checkpoint_of_a_run_is_scored_once_and_drawn(tmp_path, place, capsys):
    (tmp_path / "t.txt").write_text("Here are some facts about Yarisel. " * 9)
    how = [
        "perplexity",
        "--model",
        place / "run",
        "--input",
        tmp_path / "t.txt",
        "--checkpoints",
        "all",
        "--out",
        tmp_path / "o",
    ]
    call(*how)
    found = result(tmp_path / "o")
    assert [(p["step"], p["tokens"]) for p in found["checkpoints"]] == [(3, 3000), (8, 8000)]
    for point in found["checkpoints"]:
        assert result(tmp_path / "o" / f"step-{point['step']}")["score"] == point["score"]
    call(
        "perplexity",
        "--model",
        place / "run",
        "--input",
        tmp_path / "t.txt",
        "--out",
        tmp_path / "last",
    )
    assert (
        result(tmp_path / "last")["score"]
        == found["checkpoints"][1]["score"]
        != found["checkpoints"][0]["score"]
    )
    assert "<svg" in (tmp_path / "o" / "index.html").read_text()
    shutil.rmtree(tmp_path / "o" / "step-8")
    capsys.readouterr()
    _, err = call(*how, capsys=capsys)
    assert (
        err.count("nothing to do") == 1
        and result(tmp_path / "o")["checkpoints"] == found["checkpoints"]
    )


def test_compare_pairs_two_results_and_refuses_different_items(tmp_path, place, mmlu, capsys):
    def rows(answers):
        return [
            {"question": f"q{i}", "answer": ["yes"], "prediction": a} for i, a in enumerate(answers)
        ]

    for name, answers in (
        ("a", "yes yes no no no no no no"),
        ("b", "yes no yes yes yes yes yes yes"),
        ("c", "yes no"),
    ):
        call(
            "nq",
            "--predictions",
            write_lines(tmp_path / f"{name}.jsonl", rows(answers.split())),
            "--out",
            tmp_path / name,
        )
    capsys.readouterr()
    out, _ = call("compare", tmp_path / "a", tmp_path / "b", capsys=capsys)
    assert (
        "A 0.2500, B 0.8750" in out
        and "B - A +0.6250" in out
        and "right in A only 1, in B only 6" in out
    )
    assert (
        f"McNemar's p {scores.mcnemar([1, 1, 0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1, 1, 1])[2]:.4g}"
        in out
        and "differs: predictions" in out
    )
    assert "over different items" in call(
        "compare", tmp_path / "a", tmp_path / "c", expect=2, capsys=capsys
    )
    assert "no results.json" in call(
        "compare", tmp_path / "a", tmp_path / "nothing", expect=2, capsys=capsys
    )


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, place, monkeypatch, capsys
):
    monkeypatch.setattr(memory, "device_room", lambda mesh: 60_000)
    path = write_lines(tmp_path / "in.jsonl", [{"prompt": "x"}])
    line = call(
        "generate",
        "--model",
        place / "tuned",
        "--input",
        path,
        "--mesh",
        "1x1",
        "--out",
        tmp_path / "o",
        expect=2,
        capsys=capsys,
    )
    assert "--mesh 1x1 puts" in line and not (tmp_path / "o").exists()


# --- bad input ---

BAD = {
    "no model": (["generate", "--input", "IN"], [{"prompt": "x"}], "needs --model"),
    "no such model": (
        ["generate", "--model", "nowhere", "--input", "IN"],
        [{"prompt": "x"}],
        "nowhere does not exist",
    ),
    "no prompt": (
        ["generate", "--model", "tuned", "--input", "IN"],
        [{"prompt": "x"}, {"topic": "y"}],
        'in.jsonl row 2: needs "prompt"',
    ),
    "prompt too long": (
        ["generate", "--model", "tuned", "--input", "IN"],
        [{"prompt": "x"}, {"prompt": "x y " * 300}],
        "in.jsonl row 2: the prompt has",
    ),
    "conversation without chat": (
        ["generate", "--model", "tuned", "--input", "IN"],
        [{"conversations": []}],
        "row 1: a conversation needs --chat",
    ),
    "assistant last": (
        ["generate", "--model", "tuned", "--input", "IN", "--chat"],
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
        "row 1: the conversation ends",
    ),
    "broken conversation": (
        ["generate", "--model", "tuned", "--input", "IN", "--chat"],
        [{"conversations": [{"from": "alien", "value": "a"}]}],
        "in.jsonl row 1: ",
    ),
    "empty file": (["generate", "--model", "tuned", "--input", "IN"], [], "in.jsonl is empty"),
    "missing file": (
        ["loglik", "--model", "tuned", "--input", "nothing.jsonl"],
        [],
        "nothing.jsonl does not exist",
    ),
    "loglik columns": (
        ["loglik", "--model", "tuned", "--input", "IN"],
        [{"prefix": "a"}],
        "row 1: 'text' is missing",
    ),
    "loglik empty text": (
        ["loglik", "--model", "tuned", "--input", "IN"],
        [{"prefix": "a", "text": ""}],
        'row 1: "text" has no token',
    ),
    "loglik too long": (
        ["loglik", "--model", "tuned", "--input", "IN"],
        [{"prefix": "x y " * 300, "text": "z"}],
        "row 1: prefix and text have",
    ),
    "stride": (
        ["perplexity", "--model", "tuned", "--input", "IN", "--window", "50", "--stride", "50"],
        [{"text": "x"}],
        "--stride 50",
    ),
    "empty text": (["perplexity", "--model", "tuned", "--input", "IN"], [{"text": ""}], "is empty"),
    "mesh": (
        ["loglik", "--model", "tuned", "--input", "IN", "--mesh", "3"],
        [{"prefix": "a", "text": "b"}],
        "--mesh 3 is not DATAxTENSOR",
    ),
    "batch": (
        ["loglik", "--model", "tuned", "--input", "IN", "--batch", "0"],
        [{"prefix": "a", "text": "b"}],
        "--batch 0",
    ),
    "top p": (
        ["generate", "--model", "tuned", "--input", "IN", "--top-p", "1.5"],
        [{"prompt": "a"}],
        "--top-p 1.5",
    ),
    "checkpoints of a folder": (
        ["loglik", "--model", "tuned", "--input", "IN", "--checkpoints", "all"],
        [{"prefix": "a", "text": "b"}],
        "--checkpoints all needs",
    ),
    "other tokenizer": (
        ["loglik", "--model", "tuned", "--tokenizer", "other", "--input", "IN"],
        [{"prefix": "a", "text": "b"}],
        "--tokenizer",
    ),
    "mmlu folder": (["mmlu", "--model", "tuned", "--data", "."], [], "holds no *_test.csv"),
    "nq without train": (
        ["nq", "--model", "tuned", "--data", "IN"],
        [{"question": "q", "answer": ["a"]}],
        "--shots 3 needs --train",
    ),
    "nq columns": (
        ["nq", "--predictions", "IN"],
        [{"question": "q", "answer": ["a"]}],
        "row 1: 'prediction' is missing",
    ),
    "humaneval consent": (
        ["humaneval", "--data", "IN", "--samples", "IN"],
        [PROBLEMS[0] | {"completion": ""}],
        "--run-untrusted-code",
    ),
    "humaneval k": (
        ["humaneval", "--data", "IN", "--samples", "IN", "--k", "5", "--run-untrusted-code"],
        [PROBLEMS[0] | {"completion": ""}],
        "pass@5 needs",
    ),
    "humaneval columns": (
        ["humaneval", "--data", "IN", "--samples", "IN"],
        [{"task_id": "x"}],
        "row 1: 'prompt' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, place, case, capsys, monkeypatch):
    args, rows, says = BAD[case]
    monkeypatch.chdir(tmp_path)
    path = write_lines(tmp_path / "in.jsonl", rows)
    if "other" in args:
        tokens = {bytes([b]): b for b in range(256)}
        other = tmp_path / "other"
        other.mkdir()
        alphabet = byte_alphabet()
        (other / "vocab.json").write_text(
            json.dumps(
                {alphabet[b]: i for i, b in enumerate(range(256))}
                | {"19": len(tokens), "<|endoftext|>": len(tokens) + 1}
            )
        )
        (other / "merges.txt").write_text("#version: 0.2\n1 9\n")
        (other / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    args = [
        {"IN": path, "tuned": place / "tuned", "other": tmp_path / "other"}.get(a, a) for a in args
    ]
    line = call(*args, "--out", tmp_path / "o", expect=2, capsys=capsys)
    assert says in line and not (tmp_path / "o").exists()


def test_other_settings_do_not_go_on_in_a_result_that_is_there(tmp_path, nq, capsys):
    rows = write_lines(
        tmp_path / "p.jsonl", [{"question": "q", "answer": ["a"], "prediction": "a"}] * 3
    )
    call("nq", "--predictions", rows, "--out", tmp_path / "o")
    capsys.readouterr()
    assert "limit" in call(
        "nq", "--predictions", rows, "--out", tmp_path / "o", "--limit", 2, expect=2, capsys=capsys
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


# --- real data ---


def test_help_of_every_task_names_its_flags():
    for task in [*flags.TASKS, "chat"]:
        with pytest.raises(SystemExit) as end:
            flags.parser().parse_args([task, "--help"])
        assert end.value.code == 0


def test_stories260k_goes_through_the_real_benchmarks(tmp_path, data_dir):
    """A few items of each; whole MMLU, 200 of NQ and HumanEval take minutes."""
    m = ["--model", data_dir / "models/stories260K/stories260K.bin"]
    call(
        "mmlu",
        *m,
        "--data",
        data_dir / "mmlu",
        "--subjects",
        "anatomy",
        "professional_law",
        "--limit",
        3,
        "--out",
        tmp_path / "mmlu",
    )
    assert (
        result(tmp_path / "mmlu")["n"] == 6 and "5" not in result(tmp_path / "mmlu")["shots_used"]
    )
    call(
        "nq",
        *m,
        "--data",
        data_dir / "nq_open/NQ-open.dev.jsonl",
        "--train",
        data_dir / "nq_open/NQ-open.train.6000.jsonl.gz",
        "--limit",
        5,
        "--out",
        tmp_path / "nq",
    )
    call(
        "humaneval",
        *m,
        "--data",
        data_dir / "humaneval/HumanEval.jsonl.gz",
        "--limit",
        3,
        "--max-new-tokens",
        20,
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "he",
    )
    assert result(tmp_path / "he")["n"] == 3


def test_human_evals_own_example_samples_give_one_half(tmp_path, data_dir):
    folder = data_dir / "humaneval"
    call(
        "humaneval",
        "--data",
        folder / "example_problem.jsonl",
        "--samples",
        folder / "example_samples.jsonl",
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "o",
    )
    assert result(tmp_path / "o")["score"] == 0.5


def test_the_canonical_solutions_all_pass(tmp_path, data_dir, capsys):
    out, _ = call(
        "humaneval",
        "--data",
        data_dir / "humaneval/HumanEval.jsonl.gz",
        "--self-test",
        "--run-untrusted-code",
        "--isolation",
        "limits",
        "--out",
        tmp_path / "o",
        capsys=capsys,
    )
    assert "164 of 164" in out


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_four_letters_are_one_token_each(data_dir, name):
    class Opened:
        tok = tokenizer.load(data_dir / "tokenizers" / name, roles=False)
        start = [] if name == "gpt2" else [tok.bos]
        split_tokens = opened.Opened.split_tokens

    for context in ("Is it?\nA. yes\nAnswer:", "…)\nD. \nAnswer:"):
        letters = mmlu_task.letter_ids(Opened(), context)
        assert [len(ids) for ids in letters] == [1] * 4 and [
            Opened.tok.decode_bytes([0, i])[-1:] for (i,) in letters
        ] == [b"A", b"B", b"C", b"D"]


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
