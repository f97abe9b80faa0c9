"""eval.py over checkpoints and between two results, and what bad input gets."""

import json
import shutil

import pytest
from evaluations import PROBLEMS, call, result, write_lines

from decoding import memory
from tasks import scores
from text.byte_pairs import byte_alphabet

pytest_plugins = ["evaluations"]  # its fixtures

pytestmark = pytest.mark.usefixtures("home")


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
