"""study/answers.py: every public form of model outputs is read, told apart by content; pairs match
by id or instruction, and what does not is counted.
"""

import gzip
import json

import pytest

from study import answers
from tasks import results


def write(path, rows, lines=False):
    text = "".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows)
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def generated(folder, items, finished=True, task="generate"):
    r = results.Result(folder, task, {}, "runs/7b")
    for i in items:
        r.add(i)
    if finished:
        r.finish([i["id"] for i in items], {})
    else:
        r.pause()
    return folder


def test_the_same_answer_is_read_from_every_form(tmp_path):
    (tmp_path / "answer").mkdir()
    write(
        tmp_path / "question.jsonl",
        [{"question_id": 7, "text": "Why?", "category": "math"}],
        lines=True,
    )
    vicuna = write(
        tmp_path / "answer" / "a.jsonl",
        [{"answer_id": "x", "question_id": 7, "model_id": "m", "text": "So."}],
        lines=True,
    )
    eval_json = write(
        tmp_path / "model_outputs.json.gz",
        [{"instruction": "Why?", "output": "So.", "generator": "m", "dataset": "koala"}],
    )
    pairs = write(
        tmp_path / "pairs.jsonl",
        [{"id": "7", "prompt": "Why?", "completion": "So.", "model": "m"}],
        lines=True,
    )
    chat = generated(
        tmp_path / "chat",
        [
            {
                "id": "0",
                "prompt": "<s><|user|>Why?<|assistant|>",
                "output": "So.",
                "row": {"question_id": 7},
            }
        ],
    )
    koala = generated(
        tmp_path / "koala",
        [{"id": "0", "prompt": "<s>BEGINNING OF CONVERSATION: USER: Why? GPT:", "output": "So."}],
    )
    for name, turns in OTHERS.items():
        other = generated(tmp_path / name, [{"id": "0", "prompt": turns, "output": "So."}])
        assert answers.read(other)[0]["instruction"] == "Why?", name
    for path in (vicuna, eval_json, pairs, chat, koala):
        (found,) = answers.read(path)
        assert (found["instruction"], found["output"]) == ("Why?", "So."), path
        assert found["model"] == ("runs/7b" if path.is_dir() else "m")
    assert (
        answers.read(vicuna)[0]["category"] == "math"
        and answers.read(eval_json)[0]["dataset"] == "koala"
    )
    assert [answers.read(p)[0]["id"] for p in (vicuna, eval_json, pairs, chat, koala)] == [
        "7",
        "0",
        "7",
        "7",
        "0",
    ]


OTHERS = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def test_the_last_question_of_a_conversation_is_the_instruction(tmp_path):
    chat = generated(
        tmp_path / "chat",
        [
            {
                "id": "0",
                "prompt": "<s><|user|>Hi<|assistant|>Hello</s><|user|>And\nwhy?<|assistant|>",
                "output": "So.",
            }
        ],
    )
    assert answers.read(chat)[0]["instruction"] == "And\nwhy?"


def test_an_input_follows_its_instruction_and_an_empty_one_does_not():
    assert answers.instruction_of({"instruction": "Sum up", "input": "text"}) == "Sum up\n\ntext"
    assert answers.instruction_of({"instruction": "Sum up", "input": " "}) == "Sum up"
    assert (
        answers.instruction_of({"prompt": {"text": "x", "toxicity": 1}}) == "x"
        and answers.instruction_of({"a": 1}) is None
    )


@pytest.mark.parametrize(
    "rows, said",
    [
        ([{"instruction": "a"}], "is no answer"),
        ([{"output": "a"}, 5], "not a JSON object"),
        ([], "is empty"),
    ],
)
def test_what_is_no_answer_is_said_in_one_line_with_its_place(tmp_path, rows, said):
    path = write(tmp_path / "x.json", rows)
    with pytest.raises(ValueError, match=said) as error:
        answers.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_tasks_and_unfinished_results_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a result of nq"):
        answers.read(
            generated(tmp_path / "nq", [{"id": 0, "prompt": "a", "output": "b"}], task="nq")
        )
    with pytest.raises(ValueError, match="is not finished"):
        answers.read(
            generated(tmp_path / "half", [{"id": 0, "prompt": "a", "output": "b"}], finished=False)
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"folder without samples\.jsonl"):
        answers.read(tmp_path / "empty")


def make(rows, own=False):
    return [
        {"id": i, "instruction": q, "output": o, "model": "m", "own_id": own, "sample": 0}
        for i, q, o in rows
    ]


def test_pairs_match_by_instruction_in_any_order_and_the_rest_is_counted():
    a = make([("0", "one", "a1"), ("1", "two  words", "a2"), ("2", "only a", "a3")])
    b = make(
        [("0", "two words", "b2"), ("1", "only b", "b3"), ("2", "one", "b1"), ("3", None, "?")]
    )
    pairs, left = answers.pair(a, b)
    assert [(x["output"], y["output"]) for x, y in pairs] == [("a1", "b1"), ("a2", "b2")]
    assert left == {"only in the first": 1, "only in the second": 2}


def test_a_question_asked_twice_pairs_first_with_first_and_its_ids_stay_apart():
    a, b = make([("k", "q", "a1"), ("k", "q", "a2")]), make([("0", "q", "b1"), ("1", "q", "b2")])
    pairs, left = answers.pair(a, b)
    assert [(x["output"], y["output"]) for x, y in pairs] == [
        ("a1", "b1"),
        ("a2", "b2"),
    ] and not left
    assert answers.unique_ids(pairs) == ["k", "k#2"]


def test_ids_rule_where_both_sides_have_them_and_another_instruction_under_an_id_is_left_out():
    a, b = (
        make([("1", None, "a1"), ("2", "x", "a2")], own=True),
        make([("2", "y", "b2"), ("1", "q", "b1")], own=True),
    )
    pairs, left = answers.pair(a, b)
    assert [(x["output"], y["output"]) for x, y in pairs] == [("a1", "b1")] and left == {
        "same id, other instruction": 1
    }


def test_only_the_first_of_several_samples_is_paired():
    a = make([("1", "q", "a1"), ("1", "q", "a2")])
    a[1]["sample"] = 1
    pairs, left = answers.pair(a, make([("1", "q", "b")]))
    assert [x["output"] for x, _ in pairs] == ["a1"] and left == {"further samples": 1}


def test_nothing_in_common_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="they need the same ids or the same instructions"):
        answers.pair(make([("1", "q", "a")]), make([("1", "p", "b")]))


def test_both_answers_in_a_row_are_a_pair_and_an_answer_that_became_a_boolean_is_text_again(
    tmp_path,
):
    path = write(
        tmp_path / "p.json",
        [
            {
                "idx": 3,
                "cmp_key": "a-7b_b-7b",
                "instruction": "i",
                "input": "",
                "response1": True,
                "response2": "x",
            },
            {
                "instruction": "i",
                "output_1": "1",
                "output_2": "2",
                "generator_1": "g",
                "generator_2": "h",
            },
        ],
    )
    (one, two), rows = answers.read_pairs(path)
    assert (
        [x["output"] for x in one] == ["True", "x"]
        and [x["model"] for x in one] == ["a-7b", "b-7b"]
        and one[0]["id"] == "3"
    )
    assert [x["model"] for x in two] == ["g", "h"] and len(rows) == 2
    with pytest.raises(ValueError, match="holds no pair"):
        answers.read_pairs(write(tmp_path / "q.json", [{"instruction": "i", "output": "1"}]))


def test_half_a_surrogate_pair_becomes_a_replacement_character(tmp_path):
    (tmp_path / "x.json").write_text('[{"instruction": "q", "output": "a\\ud800b \\ud83d\\ude00"}]')
    assert answers.read(tmp_path / "x.json")[0]["output"] == "a\ufffdb \U0001f600"


def test_a_model_name_cannot_steer_the_terminal(tmp_path, capsys):
    a = write(
        tmp_path / "a.json", [{"instruction": "q", "output": "x", "generator": "\x1b[31mred\u202e"}]
    )
    assert answers.read(a)[0]["model"] == r"\x1b[31mred\u202e"
    assert answers.main([str(a), str(a)]) == 0 and "\x1b" not in capsys.readouterr().out


def test_the_real_files_pair_whole(data_dir):
    vicuna = answers.read(data_dir / "vicuna_eval/answer/answer_vicuna-13b.jsonl")
    gpt = answers.read(data_dir / "vicuna_eval/answer/answer_gpt35.jsonl")
    alpaca = answers.read(data_dir / "alpaca_eval/vicuna-7b/model_outputs.json.gz")
    assert vicuna[0]["instruction"] == "How can I improve my time management skills?"
    assert len(answers.pair(vicuna, gpt)[0]) == 80 and not answers.pair(vicuna, gpt)[1]
    assert (
        len(
            answers.pair(
                alpaca,
                answers.read(data_dir / "alpaca_eval/gpt-3.5-turbo-0301/model_outputs.json.gz"),
            )[0]
        )
        == 805
    )
    pairs, left = answers.pair(alpaca, gpt)  # the 80 of Vicuna are among AlpacaEval's 805
    assert len(pairs) == 80 and left == {"only in the first": 725}
    assert (
        len(answers.read_pairs(data_dir / "human_preferences/pandalm_testset.200.json")[0]) == 200
    )
