"""HumanEval with what follows the function dropped, beside the harness's own rule."""

import pytest
from evaluations import PROBLEMS, call, result, samples, write_lines

from tasks import humaneval

pytest_plugins = ["evaluations"]  # its fixtures
pytestmark = pytest.mark.usefixtures("home")


def test_humaneval_can_drop_what_follows_the_function(tmp_path):
    problems = write_lines(tmp_path / "p.jsonl", PROBLEMS[:1])
    body = "    return 1\n\n    # done\n"
    rows = [
        {"task_id": "T/0", "completion": body + "```\n\nIn short, it returns one."},
        {"task_id": "T/0", "completion": body},
        {"task_id": "T/0", "completion": "    return 2\nOne, in short."},
    ]
    given = ("--data", problems, "--samples", write_lines(tmp_path / "s.jsonl", rows))
    for more, passed in (((), [False, True, False]), (("--cut-at-code-end",), [True, True, False])):
        out = tmp_path / str(len(more))
        call("humaneval", *given, "--run-untrusted-code", *more, "--out", out)
        assert [i["verdict"] for i in samples(out)] == passed
        assert ("cut_at_code_end" in result(out)["settings"]) == bool(more)


def test_code_ends_before_the_first_line_that_is_not_indented():
    assert humaneval.code_of("return 1\n\tx\n\nend") == "return 1\n\tx\n"
    assert humaneval.code_of("    return 1") == "    return 1"
