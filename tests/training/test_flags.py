"""The command line: --help without JAX, defaults, what is out of range.

python -m pytest tests/training/test_flags.py
"""

import dataclasses
import subprocess
import sys

import pytest

import model
from training import flags, start

CPU_SECONDS = 0.3
MEASURE = """
import resource, runpy, sys
sys.argv = ["train.py", "--help"]
try:
    runpy.run_path("train.py", run_name="__main__")
except SystemExit as end:
    heavy = {"jax", "numpy", "orbax", "tensorflow_datasets"} & set(sys.modules)
    use = resource.getrusage(resource.RUSAGE_SELF)
    print("status", end.code, "heavy", sorted(heavy), "cpu", use.ru_utime + use.ru_stime)
"""


def resolve(*argv):
    return flags.resolve(flags.parser().parse_args(list(argv)))


def test_help_imports_nothing_heavy_and_is_quick():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=flags.ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: train.py" in done.stdout
    last = done.stdout.splitlines()[-1].split()
    assert last[:4] == ["status", "0", "heavy", "[]"], done.stdout[-300:]
    assert float(last[-1]) < CPU_SECONDS


def test_the_help_names_every_preset():
    text = " ".join(flags.parser().format_help().split())
    assert ", ".join(model.PRESETS) in text


def test_every_flag_has_a_field_and_every_default_a_flag():
    args = vars(flags.parser().parse_args([]))
    assert set(args) == {f.name for f in dataclasses.fields(flags.Settings)}
    assert set(flags.DEFAULTS) <= set(args) and flags.RESUMABLE <= set(args)
    assert all(not value for value in args.values()), "defaults live in DEFAULTS alone"


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve()[0].lr = 1.0


def test_without_data_the_quickstart_holds_else_the_papers_values():
    quick, origin = resolve("--lr", "0.5")
    assert (quick.model, quick.batch, quick.lr, quick.epochs) == ("mini", 8, 0.5, None)
    assert origin["batch"] == "quickstart" and origin["lr"] == "given"
    paper, origin = resolve("--data", "x.jsonl")
    assert (paper.batch, paper.block, paper.lr, paper.epochs) == (32, 2048, 2e-3, 1.0)
    assert paper.model == "mini" and origin["model"] == "no --init"


def test_steps_win_over_epochs_unless_both_are_given():
    assert resolve("--data", "x", "--steps", "5")[0].epochs is None
    assert resolve("--data", "x", "--steps", "5", "--epochs", "2")[0].epochs == 2


@pytest.mark.parametrize("value", ["nan", "-1", "1.5"])
def test_a_fraction_outside_of_0_to_1_is_refused(value):
    with pytest.raises(ValueError, match=r"--eval-fraction .* is out of range: use 0 or more"):
        resolve("--eval-fraction", value)


def test_an_unknown_flag_is_one_line_and_a_hint_at_help(capsys):
    with pytest.raises(SystemExit) as end:
        flags.parser().parse_args(["--optimiser", "adamw"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "train.py --help" in error


@pytest.mark.parametrize(
    "argv, warmup, fraction",
    [
        ([], 10, None),  # the quickstart
        (["--data", "x"], 1000, 0.1),
        (["--data", "x", "--warmup", "1000"], 1000, None),  # the paper's own recipe
        (["--data", "x", "--warmup-fraction", "0.2"], 1000, 0.2),
        (["--data", "x", "--warmup", "50", "--warmup-fraction", "0.2"], 50, 0.2),
    ],
)
def test_the_warm_up_is_a_tenth_of_the_steps_unless_it_is_given(argv, warmup, fraction):
    settings, _ = resolve(*argv)
    assert (settings.warmup, settings.warmup_fraction) == (warmup, fraction)


@pytest.mark.parametrize("steps, warmup", [(306, 30), (5, 0), (40_000, 1000)])
def test_a_short_training_is_not_all_warm_up(steps, warmup):
    settings, _ = resolve("--data", "x", "--steps", str(steps))
    assert start.length(settings, rows=100) == (steps, warmup)
