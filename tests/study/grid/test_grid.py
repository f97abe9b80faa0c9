"""The paper's grid: its steps, their commands, and what a missing flag leaves out."""

import json

import pytest
from conftest import ROOT

from study import style
from study.grid import __main__ as grid
from study.grid import paper as paper_grid
from study.judge import __main__ as judge
from study.rate import __main__ as rate
from study.report import points as places
from study.toxicity import __main__ as toxicity
from tasks import flags as flags_of_eval
from training import flags as train_flags


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def paper(tmp_path, *more):
    """Arguments of a whole paper grid; every file it needs is there, empty."""
    names = {
        "--mmlu": "mmlu",
        "--nq-dev": "dev",
        "--nq-train": "train",
        "--humaneval": "he",
        "--prompts": "p",
        "--teacher": "t",
        "--teacher2": "t2",
        "--toxicity-prompts": "rtp",
        "--perspective-key-file": "key",
    }
    for name in (*names.values(), "mix", "nqs", "gpt2-xl", "llama-7b", "llama-13b"):
        (tmp_path / name).write_text("")
    return [
        "--preset",
        "paper",
        "--models",
        str(tmp_path),
        "--source",
        f"mix={tmp_path}/mix",
        "--local",
        f"nq={tmp_path}/nqs",
        "--judge",
        "http://localhost:1/v1",
        "--judge-model",
        "j",
        *(x for k, v in names.items() for x in (k, str(tmp_path / v))),
        "--out",
        str(tmp_path / "out"),
        *more,
    ]


def test_the_papers_grid_has_every_run_and_every_command_is_one_that_the_programs_take(
    tmp_path, capsys
):
    assert grid.main(paper(tmp_path)) == 0
    args = grid.parser("paper").parse_args(paper(tmp_path))
    found, notes = paper_grid.steps(args)
    assert sum(s.name.startswith("train-") for s in found) == 3 * (5 + 1)
    assert len(notes) == 3 and all(
        n.startswith("hours of training") and "all 6" in n for n in notes
    )
    hours = [float(n.partition("all 6 ")[2].split(" / ")[0]) for n in notes]
    assert hours[0] < hours[1] < hours[2] and 0.3 * hours[2] < hours[1] < 0.7 * hours[2], (
        "7B costs about half of 13B"
    )
    assert sum(s.name.startswith("mmlu-") for s in found) == 3 * (5 + 1) + 3 and len(
        {s.name for s in found}
    ) == len(found)
    parsers = {
        "train.py": lambda a: train_flags.parser().parse_args(a),
        "eval.py": lambda a: flags_of_eval.parser().parse_args(a),
        "study.style": lambda a: style.parser().parse_args(a),
        "study.judge": lambda a: judge.judge_parser().parse_args(a),
        "study.toxicity": lambda a: toxicity.parser().parse_args(a),
        "study.rate": lambda a: rate.results_parser().parse_args(a[1:]),
    }
    for step in found:
        program, rest = (
            (step.argv[1], step.argv[2:]) if step.argv[0] == "-m" else (step.argv[0], step.argv[1:])
        )
        assert str(parsers[program](list(rest)).out) == step.out
    lines = (tmp_path / "out/commands.sh").read_text()
    assert (
        "--tokens 20M" in lines
        and "by hand (people rate first" in lines
        and "agree with --run-untrusted-code" in lines
    )
    labels = json.loads((tmp_path / "out/grid.json").read_text())["results"]
    assert places.complete(
        {k: v for k, v in labels["results/13B-mix-20M/nq"].items() if k != "name"}, "x"
    ) == {
        "base": "13B",
        "size": 13e9,
        "amount": 20e6,
        "source": "mix",
        "seed": 0,
        "role": "imitation",
        "part": None,
        "world": None,
        "unit": None,
    }
    assert "228 steps" in capsys.readouterr().out


def test_what_lacks_a_flag_is_left_out_by_name(tmp_path, capsys):
    assert (
        grid.main(
            [
                "--preset",
                "paper",
                "--base",
                f"1B={tmp_path}",
                "--out",
                str(tmp_path / "o"),
                "--nq-dev",
                "x",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "judge is left out: it needs --prompts, --teacher, --judge, --judge-model" in said
        and "waits for x" in said
        and "no --source" in said
    )


@pytest.mark.parametrize(
    "argv, says",
    [
        ([], "base models"),
        (["--base", "7B"], "--base 7B"),
        (["--base", "7B=x", "--source", "a/b=x"], "--source"),
        (["--base", "7B=x", "--amounts", "many"], "many"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line(argv, says, tmp_path, capsys):
    assert grid.main(["--preset", "paper", "--out", str(tmp_path / "o"), *argv]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
