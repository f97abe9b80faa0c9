"""lm-eval's local-completions, asking `python -m serve` the questions that eval.py asked."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TASKS = ("mmlu", "arc", "nq")


@pytest.mark.slow
def test_lm_eval_s_scores_through_the_server_are_those_of_eval(live, smollm2, data_dir, tmp_path):
    """MMLU (5 shots), questions in ARC-easy's form and Natural Questions (3 shots)."""
    command = [sys.executable, "bench/lm_eval_vs_serve.py", "--model", smollm2, "--limit", "8"]
    command += ["--mmlu", data_dir / "mmlu", "--nq", data_dir / "nq_open"]
    command += ["--lm-eval-python", sys.executable, "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    table = [line.split() for line in done.stdout.splitlines() if line[:4].strip() in TASKS]
    assert {name: (n, differ) for name, n, _, _, differ in table} == {
        "mmlu": ("8", "0"),
        "arc": ("12", "0"),
        "nq": ("8", "0"),
    }
