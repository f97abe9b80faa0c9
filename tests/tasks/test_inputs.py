"""The files of evaluations: one line with file and row for every file that is not as it should be,
and the real ones read whole.

python -m pytest tests/tasks/test_inputs.py --data DIR
"""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest

from tasks import humaneval, inputs, mmlu, nq


def test_the_nq_prompt_is_header_shots_and_open_question(tmp_path):
    assert (
        nq.prompt_of([("who sang it", "Nobody")], "when was it?")
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
    shots = nq.draw_shots(path, 3, 0)
    assert (
        shots == nq.draw_shots(path, 3, 0) != nq.draw_shots(path, 3, 1)
        and len(set(shots)) == 3
        and all(a == q.replace("q", "a") for q, a in shots)
    )
    with pytest.raises(ValueError, match="has 50 rows, fewer than --shots 64"):
        nq.draw_shots(path, 64, 0)


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
        inputs.json_rows(path, nq.wrong_row)
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
        [r for _, r in inputs.json_rows(tmp_path / "list.json")]
        == [r for _, r in inputs.json_rows(tmp_path / "lines.jsonl")]
        == rows
    )


def test_help_of_every_command_costs_no_jax():
    """Text is printed in 0.3 s of processor time; JAX alone would take longer to import."""
    code = (
        "import sys, resource, contextlib, io; from tasks import flags\n"
        "for command in [[], *([t] for t in (*flags.TASKS, 'chat', 'compare'))]:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        flags.parser().parse_args([*command, '--help'])\n"
        "assert not {n.split('.')[0] for n in sys.modules} & {'jax', 'orbax', "
        "'tensorflow_datasets'}\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    root = pathlib.Path(inputs.__file__).parents[1]
    took = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True
    )
    assert float(took.stdout) < 0.6, "nine helps, twice what one may take"


def test_the_real_files_are_read_whole(data_dir):
    subjects = mmlu.list_subjects(data_dir / "mmlu", "test")
    assert len(subjects) == 57
    for split, rows in (("dev", 285), ("val", 1531), ("test", 1140)):
        assert sum(len(mmlu.read_questions(data_dir / "mmlu", split, s)) for s in subjects) == rows
    assert len(inputs.json_rows(data_dir / "nq_open/NQ-open.dev.jsonl", nq.wrong_row)) == 3610
    assert len(nq.draw_shots(data_dir / "nq_open/NQ-open.train.6000.jsonl.gz", 64, 0)) == 64
    assert len(humaneval.read_problems(data_dir / "humaneval/HumanEval.jsonl.gz")) == 164
