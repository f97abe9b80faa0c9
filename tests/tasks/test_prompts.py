"""prompts.py: prompts letter for letter as the benchmarks' authors wrote them, and one line with file and row for every file that is not as it should be.

python -m pytest tests/test_prompts.py --data DIR
"""

import gzip
import json
import subprocess
import sys

import pytest

from tasks import prompts

DEV = '"What is 2 + 2?",3,4,5,6,B\n"Which letter, ""quoted"", is first?",A,B,C,D,A\n'


def mmlu_folder(
    tmp_path, test="Is it 1.0?,yes,no,None,maybe,C\n", dev=DEV, subject="college_mathematics"
):
    for split, text in (("test", test), ("dev", dev)):
        (tmp_path / split).mkdir(exist_ok=True)
        (tmp_path / split / f"{subject}_{split}.csv").write_text(text, encoding="utf-8")
    return tmp_path


def test_the_mmlu_prompt_is_the_original_one(tmp_path):
    folder = mmlu_folder(tmp_path)
    shots, (question,) = (
        prompts.mmlu_file(folder, "dev", "college_mathematics"),
        prompts.mmlu_file(folder, "test", "college_mathematics"),
    )
    assert prompts.mmlu_prompt("college_mathematics", shots, question) == (
        "The following are multiple choice questions (with answers) about  college mathematics.\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
        'Which letter, "quoted", is first?\nA. A\nB. B\nC. C\nD. D\nAnswer: A\n\n'
        "Is it 1.0?\nA. yes\nB. no\nC. None\nD. maybe\nAnswer:"
    )
    assert prompts.mmlu_prompt("x", [], question).startswith(
        "The following are multiple choice questions (with answers) about  x.\n\nIs it 1.0?\n"
    )
    assert question.letter == "C" and question.id == "college_mathematics/0"


@pytest.mark.parametrize(
    "test, says",
    [
        ("q,a,b,c,B\n", "row 1 has 5 columns"),
        ("q,1,2,3,4,A\nq,1,2,3,4,E\n", "row 2: the answer is 'E'"),
        ("q,1,2,3,4,a\n", "row 1: the answer is 'a'"),
        ("", "is empty"),
        ('q,1,2,3,4,A\n"q,1,2,3,4,A\n', "row 2 is not CSV"),
    ],
)
def test_a_bad_mmlu_file_is_named_with_its_row(tmp_path, test, says):
    with pytest.raises(ValueError, match=says) as error:
        prompts.mmlu_file(mmlu_folder(tmp_path, test), "test", "college_mathematics")
    assert "college_mathematics_test.csv" in str(error.value) and "\n" not in str(error.value)


def test_missing_mmlu_files_and_subjects_are_named(tmp_path):
    folder = mmlu_folder(tmp_path)
    (folder / "dev" / "college_mathematics_dev.csv").unlink()
    with pytest.raises(ValueError, match="college_mathematics_dev.csv does not exist.*--shots 0"):
        prompts.mmlu_file(folder, "dev", "college_mathematics")
    with pytest.raises(ValueError, match="--subjects astrology"):
        prompts.mmlu_subjects(folder, "test", ["astrology"])
    with pytest.raises(ValueError, match="holds no"):
        prompts.mmlu_subjects(folder / "dev", "test")


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        (" C.", "C"),
        ("(D) because", "D"),
        ("The answer is A.", "A"),
        ("Answer: **B**", "B"),
        ("I am not sure", None),
        ("A dog", None),
        ("", None),
        ("Apple", None),
        ("b", None),
        ("B's", None),
        ("E", None),
        ("Both A and B", None),
        ("A", "A"),
    ],
)
def test_the_letter_of_a_free_answer_is_the_one_it_gives(text, letter):
    assert prompts.letter_in(text) == letter


def test_the_nq_prompt_is_header_shots_and_open_question(tmp_path):
    assert (
        prompts.nq_prompt([("who sang it", "Nobody")], "when was it?")
        == "Answer these questions:\n\nQ: who sang it?\nA: Nobody\n\nQ: when was it?\nA:"
    )
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(
        gzip.compress(
            "".join(
                json.dumps({"question": f"q{i}", "answer": [f"a{i}", "other"]}) + "\n"
                for i in range(50)
            ).encode()
        )
    )
    shots = prompts.nq_shots(path, 3, 0)
    assert (
        shots == prompts.nq_shots(path, 3, 0) != prompts.nq_shots(path, 3, 1)
        and len(set(shots)) == 3
        and all(a == q.replace("q", "a") for q, a in shots)
    )
    with pytest.raises(ValueError, match="has 50 rows, fewer than --shots 64"):
        prompts.nq_shots(path, 64, 0)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "is empty"),
        (b'{"question": "q"}\n', 'row 1: "answer"'),
        (
            b'{"question": "q", "answer": ["a"]}\n{"question": 3, "answer": ["a"]}\n',
            "row 2: 'question' is not a string",
        ),
        (b"{nonsense\n", "row 1 is not JSON"),
        (b"[1, 2]", "row 1 is not a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\x1f\x8bnothing", "cannot be read"),
        (b"[[[", "begins as a JSON list"),
    ],
)
def test_bad_rows_are_named_with_file_and_row(tmp_path, content, says):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        prompts.json_rows(path, prompts.nq_row)
    assert "rows.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_list_and_lines_give_the_same_rows(tmp_path):
    rows = [{"prompt": "a\u2028b"}, {"prompt": "c"}]
    (tmp_path / "list.json").write_text(
        json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8"
    )
    (tmp_path / "lines.jsonl").write_text(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf-8-sig"
    )
    assert (
        [r for _, r in prompts.json_rows(tmp_path / "list.json")]
        == [r for _, r in prompts.json_rows(tmp_path / "lines.jsonl")]
        == rows
    )


def test_jax_is_not_imported():
    code = "import sys; from tasks import prompts; assert not any(n == 'jax' or n.startswith('jax.') for n in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=prompts.pathlib.Path(prompts.__file__).parents[1],
    )


def test_the_real_files_are_read_whole(data_dir):
    subjects = prompts.mmlu_subjects(data_dir / "mmlu", "test")
    assert len(subjects) == 57
    for split, rows in (("dev", 285), ("val", 1531), ("test", 1140)):
        assert sum(len(prompts.mmlu_file(data_dir / "mmlu", split, s)) for s in subjects) == rows
    assert len(prompts.json_rows(data_dir / "nq_open/NQ-open.dev.jsonl", prompts.nq_row)) == 3610
    assert len(prompts.nq_shots(data_dir / "nq_open/NQ-open.train.6000.jsonl.gz", 64, 0)) == 64
    assert len(prompts.humaneval_problems(data_dir / "humaneval/HumanEval.jsonl.gz")) == 164
