"""eval.py's benchmarks on small models, on answers given elsewhere, and on the real files."""

import json

import numpy as np
import pytest
from evaluations import PROBLEMS, call, greedy, result, samples, write_lines

from decoding import opened
from decoding.reference import completion
from tasks import humaneval as humaneval_task
from tasks import mmlu as mmlu_task
from tasks import scores
from text import tokenizer

pytest_plugins = ["evaluations"]  # its fixtures

pytestmark = pytest.mark.usefixtures("home")


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


def ask_nq(place, nq, tmp_path, *more):
    """Questions and training pairs put to the tuned model, into the folder o."""
    files = "--data", nq, "--train", tmp_path / "train.jsonl", "--out", tmp_path / "o"
    call("nq", "--model", place / "tuned", *files, *more)


def test_nq_asks_with_shots_and_scores_exact_match(tmp_path, place, nq, full):
    tok, logp = full
    ask_nq(place, nq, tmp_path, "--shots", 3, "--limit", 4, "--max-new-tokens", 6)
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
    ask_nq(place, nq, tmp_path, "--shots", 64, "--limit", 2, "--max-new-tokens", 6, "--chat")
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
    agreed = "--run-untrusted-code", "--isolation", "limits", "--out"
    call("humaneval", "--data", problems, "--samples", given, "--k", "1,2", *agreed, tmp_path / "o")
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
    call("humaneval", "--data", problems, "--self-test", *agreed, tmp_path / "self")
    assert result(tmp_path / "self")["score"] == 1
    broken = write_lines(
        tmp_path / "b.jsonl", [PROBLEMS[0], PROBLEMS[1] | {"canonical_solution": "    return 1\n"}]
    )
    call("humaneval", "--data", broken, "--self-test", *agreed, tmp_path / "broken", expect=1)


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
