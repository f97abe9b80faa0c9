"""The command train.py: refusals, what a run leaves, kills, stopping, resuming, several processes.

python -m pytest tests/training/test_command.py
"""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import data
import model
import sharding
import train
from checkpoint import __main__ as checkpoint
from checkpoint import runs
from text import tokenizer
from training import run, start

ROOT = pathlib.Path(__file__).resolve().parents[2]


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / (np.linalg.norm(np.asarray(b)) + 1e-30)


def command(*arguments, home, **kwargs):
    env = os.environ | {"HOME": str(home), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(*arguments, home, code=0):
    process = command(*arguments, home=home)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    return output


STEPS = 80  # long enough to be killed ten times on the way
SMALL = [
    "--data",
    ROOT / "samples" / "dialogues.jsonl",
    "--model",
    "tiny",
    "--block",
    "32",
    "--batch",
    "8",
    "--dtype",
    "float32",
    "--lr",
    "0.01",
    "--warmup",
    "4",
    "--eval-fraction",
    "0",
]


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A home of the tests' own, so that the compilation cache of one run serves the next."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session", autouse=True)
def devices():
    """The devices of this process, before a command run in it asks for fewer."""
    return jax.devices()


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def final_weights(out):
    """Every array of the last checkpoint, moments included, on one device."""
    config = json.loads((out / "run.json").read_text())["config"]
    config = model.Config(**config)
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
    saver = runs.Saver(str(out))
    state, meta = saver.restore(start.state_like(config, mesh, layout, jnp.float32))
    saver.close()
    assert meta["step"] == int(state["step"]) == max(m["step"] for m in metrics_of(out))
    return {
        jax.tree_util.keystr(k): np.asarray(x)
        for k, x in jax.tree_util.tree_leaves_with_path(state)
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mesh", "8x2"], r"--mesh 8x2 needs 16 devices, JAX sees 8: use --mesh 8x1 or 4x2"),
        (["--mesh", "eight"], r"--mesh eight is not DATAxTENSOR"),
        (["--model", "llama-9b"], r"--model llama-9b is not a preset: use one of gpt2, "),
        (["--data", "nowhere.jsonl"], r"nowhere\.jsonl"),
        (["--init", "nowhere", "--data", "x"], r"nowhere"),
        (
            ["--model", "tiny-gpt2", "--block", "1025", "--data", "samples/dialogues.jsonl"],
            r"--block 1025 is longer than the 512 positions of the model: use --block 512 or less",
        ),
        (
            ["--batch", "7", "--mesh", "2x1"],
            r"--batch 7 does not divide by 2 data ranks x 1 micro-batches: use --batch 6",
        ),
        (["--init", "samples"], r"--init without --data"),
        (["--mix", "x"], r"--mix without --mix-fraction"),
        (["--lr", "-1"], r"--lr -1.0 is out of range"),
        (
            ["--coordinator", "localhost:1"],
            r"--coordinator localhost:1 needs --processes N and --process I",
        ),
    ],
)
def test_what_a_user_gets_wrong_answers_in_one_line(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and re.search(message, lines[0]), error
    assert "Traceback" not in error and not (tmp_path / "run").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for wanted in (
        "model:",
        "data:",
        "optimization:",
        "devices and numbers:",
        "output:",
        "paper 2048, quickstart 256",
        "paper 0.002",
    ):
        assert wanted in text, wanted


@pytest.fixture(scope="session")
def straight(tmp_path_factory, home):
    """One run that nobody disturbs, a checkpoint every 4 steps."""
    out = tmp_path_factory.mktemp("straight") / "run"
    text = finish(
        *SMALL,
        "--mesh",
        "2x1",
        "--steps",
        STEPS,
        "--save-every",
        4,
        "--log-every",
        1,
        "--verbose",
        "--out",
        out,
        home=home,
    )
    return out, text


def test_a_run_leaves_what_the_design_says(straight):
    out, text = straight
    assert {p.name for p in out.iterdir()} >= {
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer",
    }
    record = json.loads((out / "run.json").read_text())
    assert (
        record["args"]["batch"] == 8
        and record["versions"]["jax"] == jax.__version__
        and record["config"]["V"] == tokenizer.load(str(out / "tokenizer")).size
    )
    lines = metrics_of(out)
    assert [m["step"] for m in lines] == list(range(1, STEPS + 1))
    assert (
        set(lines[0])
        >= {"step", "loss", "lr", "grad_norm", "loss_share", "tokens", "ms", "tokens_per_s", "mfu"}
        and lines[0]["mfu"] is None
    )
    assert (
        lines[0]["lr"] == 0
        and lines[4]["lr"] == pytest.approx(0.01)
        and lines[0]["tokens"] == 8 * 32
    )
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert sum(line.startswith("step ") for line in text.splitlines()) == STEPS
    assert "2 virtual CPU devices" in text and "no --init" in text


@pytest.fixture(scope="session")
def killed(straight, tmp_path_factory, home):
    """The same run killed ten times: before the first checkpoint, three times within a save, six
    times at random steps; then left to finish.
    """
    out = tmp_path_factory.mktemp("killed") / "run"
    arguments = [
        *SMALL,
        "--mesh",
        "2x1",
        "--steps",
        STEPS,
        "--save-every",
        4,
        "--out",
        out,
        "--log-every",
        1,
    ]
    rng = random.Random(0)
    kinds = ["before", *rng.sample(["save"] * 3 + ["step"] * 6, 9)]
    hits = dict.fromkeys(kinds, 0)
    checkpoints = out / "checkpoints"

    def unfinished():
        return (
            {(p.name, p.stat().st_ino) for p in checkpoints.glob("*tmp*")}
            if checkpoints.exists()
            else set()
        )

    for kind in kinds:
        for _ in range(
            5
        ):  # a save of a tiny model takes milliseconds: one that was missed is tried again
            left_behind = unfinished()
            process = command(*arguments, home=home)
            seen = rng.randint(4, 10) if kind == "step" else 1
            for line in process.stdout:
                seen -= line.startswith("step ")
                if not seen:
                    break
            while kind == "save" and process.poll() is None and not unfinished() - left_behind:
                pass
            alive = process.poll() is None
            process.kill()
            process.communicate()
            caught = alive and (kind != "save" or bool(unfinished() - left_behind))
            if caught or not alive:
                break
        assert caught, f"{kind}: the run ended before it was killed"
        assert kind != "before" or not any(p.name.isdigit() for p in checkpoints.glob("*")), (
            "the first kill came before the first checkpoint"
        )
        hits[kind] += 1
    text = finish(*arguments, home=home)
    return out, hits, text


def metrics_of_partial(out):
    path = out / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.mark.slow
def test_killed_ten_times_and_started_again_the_weights_are_bit_for_bit_the_same(straight, killed):
    out, hits, text = killed
    assert hits == {"before": 1, "save": 3, "step": 6}, hits
    assert "resuming" in text
    want, got = final_weights(straight[0]), final_weights(out)
    assert want.keys() == got.keys() and len(want) > 30
    different = [k for k in want if not np.array_equal(want[k], got[k])]
    assert not different

    def drop(m):
        return {k: v for k, v in m.items() if k not in ("ms", "tokens_per_s")}

    assert [drop(m) for m in metrics_of(out)] == [drop(m) for m in metrics_of(straight[0])], (
        "every step once, with the same numbers"
    )


@pytest.mark.slow
def test_resumed_on_another_mesh_the_losses_agree(straight, tmp_path, home):
    out = tmp_path / "run"
    finish(*SMALL, "--mesh", "2x1", "--steps", 8, "--save-every", 4, "--out", out, home=home)
    text = finish(
        *SMALL, "--mesh", "1x2", "--steps", STEPS, "--save-every", 4, "--out", out, home=home
    )
    assert "after step 8" in text
    np.testing.assert_allclose(
        [m["loss"] for m in metrics_of(out)],
        [m["loss"] for m in metrics_of(straight[0])],
        rtol=1e-5,
    )


def test_sigterm_saves_and_the_same_command_goes_on(straight, tmp_path, home):
    out = tmp_path / "run"
    arguments = [*SMALL, "--mesh", "2x1", "--steps", STEPS, "--save-every", 0, "--out", out]
    process = command(*arguments, home=home)
    while len(metrics_of_partial(out)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "stopped by signal" in text and 3 <= len(metrics_of(out)) < STEPS
    finish(*arguments, home=home)
    want, got = final_weights(straight[0]), final_weights(out)
    assert all(np.array_equal(want[k], got[k]) for k in want)


@pytest.mark.parametrize(
    "change, message",
    [
        (["--seed", "1"], "--seed 0"),
        (["--optimizer", "adamw"], "--optimizer adamw-scaled"),
        (["--block", "16"], "--block 32"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    straight, change, message, capsys, home, monkeypatch
):
    monkeypatch.setenv("HOME", str(home))
    before = (straight[0] / "run.json").read_bytes()
    assert (
        train.main(
            [
                *map(str, SMALL),
                "--mesh",
                "2x1",
                "--steps",
                str(STEPS),
                "--save-every",
                "4",
                "--out",
                str(straight[0]),
                *change,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "use the same value, or another --out" in error
    assert (straight[0] / "run.json").read_bytes() == before


def test_a_tokenizer_that_does_not_match_the_weights_is_refused_with_both_sizes(
    straight, tmp_path, capsys
):
    shutil.copytree(straight[0], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    size = record["config"]["V"] - 2
    record["config"]["V"] = 999
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert (
        train.main(
            [
                "--init",
                str(tmp_path / "run"),
                "--data",
                "samples/dialogues.jsonl",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        f"{tmp_path / 'run'} has 999 ids, tokenizer {tmp_path / 'run' / 'tokenizer'}/"
        f"tokenizer.model has {size} (with role tokens {size + 2}): name the tokenizer"
    ) in error


def test_a_run_is_a_start_for_another_with_plain_text_mixed_in(straight, tmp_path, home):
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(
            json.dumps(
                {
                    "text": (
                        f"The lighthouse number {n} stands on a rock of its own, far from "
                        "the others. "
                    )
                    * 3
                }
            )
            + "\n"
            for n in range(60)
        )
    )
    arguments = [
        "--data",
        ROOT / "samples" / "dialogues.jsonl",
        "--init",
        straight[0],
        "--block",
        32,
        "--batch",
        8,
        "--dtype",
        "float32",
        "--warmup",
        0,
        "--lr",
        0.001,
        "--eval-fraction",
        0,
        "--steps",
        4,
        "--mesh",
        "2x1",
        "--save-every",
        0,
    ]
    finish(*arguments, "--out", tmp_path / "alone", home=home)
    finish(
        *arguments, "--mix", text, "--mix-fraction", 0.25, "--out", tmp_path / "mixed", home=home
    )
    alone, mixed = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "mixed")
    assert alone[0]["loss"] < metrics_of(straight[0])[0]["loss"] - 1, "the weights came along"

    def share(lines):
        return sum(m["loss_share"] for m in lines)

    assert share(mixed) > share(alone) + 0.1, "all tokens of the text carry loss"


@pytest.mark.slow
def test_two_processes_of_four_devices_give_the_losses_of_one_of_eight(tmp_path, home):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    arguments = [*SMALL, "--steps", 4, "--mesh", "4x2", "--save-every", 0]
    finish(*arguments, "--out", tmp_path / "one", home=home)
    both = [
        command(
            *arguments,
            "--out",
            tmp_path / "two",
            "--coordinator",
            f"127.0.0.1:{port}",
            "--processes",
            2,
            "--process",
            i,
            home=home,
        )
        for i in range(2)
    ]
    texts = [p.communicate(timeout=240)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], texts
    assert "step 1/4" in texts[0] and "step 1/4" not in texts[1], "one process speaks"
    np.testing.assert_allclose(
        [m["loss"] for m in metrics_of(tmp_path / "two")],
        [m["loss"] for m in metrics_of(tmp_path / "one")],
        rtol=1e-5,
    )
    one, two = final_weights(tmp_path / "one"), final_weights(tmp_path / "two")
    assert max(relative(two[k], one[k]) for k in one if "weights" in k) < 1e-5


def test_a_run_shorter_than_its_warm_up_warns_with_both_numbers(straight):
    text = straight[1]
    assert "WARNING" not in text
    ours = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, '.'); import train; sys.exit(train.main(sys.argv[1:]))",
            *map(str, SMALL),
            "--warmup",
            "1000",
            "--steps",
            "2",
            "--out",
            str(straight[0].parent / "short"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HOME": str(straight[0].parent)},
    )
    assert ours.returncode == 0, ours.stderr
    assert re.search(
        r"WARNING: 2 steps end within the warm-up of 1000: .*--warmup-fraction", ours.stdout
    )


def test_truncated_weights_are_found_before_data_is_packed_and_leave_no_folder(
    straight, tmp_path, capsys, monkeypatch
):
    assert checkpoint.main(["convert", str(straight[0]), str(tmp_path / "hf"), "--to", "hf"]) == 0
    weights = tmp_path / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setattr(data, "open_dataset", lambda *a, **k: pytest.fail("data was packed"))
    capsys.readouterr()
    out = tmp_path / "deep" / "run"
    argv = ["--init", str(tmp_path / "hf"), "--data", "samples/dialogues.jsonl", "--out", str(out)]
    assert train.main([*argv, "--mesh", "1x1", "--dtype", "float32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "truncated" in error or "does not fit" in error, error
    assert not out.parent.exists()


def test_a_refusal_behind_the_packing_leaves_no_folder_either(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["--data", "samples/dialogues.jsonl", "--block", "32", "--mix-fraction", "0.5"]
    argv += ["--mix", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "a" / "run")]
    assert train.main([*argv, "--mesh", "1x1", "--dtype", "float32"]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_an_error_in_the_loop_keeps_the_checkpoint_that_is_being_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"

    def confirm(saver, step):
        raise KeyError("a bug right after a save began")

    monkeypatch.setattr(runs.Saver, "confirm", confirm)
    argv = [*map(str, SMALL), "--mesh", "1x1", "--steps", "2", "--out", str(out)]
    with pytest.raises(KeyError):
        train.main(argv)
    assert runs.steps(out) == [2] and runs.is_whole(out, 2)
    assert len(metrics_of(out)) == 2


def test_a_second_training_into_one_folder_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    argv = [*map(str, SMALL), "--mesh", "1x1", "--steps", "2", "--out", str(out)]
    with run.claim(out):
        (out / "run.json").write_text("{}")
        assert train.main(argv) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"--out {out} is being trained into by process {os.getpid()} of" in error
        assert (out / "run.json").read_text() == "{}"


def test_the_end_of_a_run_shows_its_curve_its_losses_samples_and_what_to_type_next(tmp_path, home):
    out = tmp_path / "run"
    arguments = ["--mesh", "2x1", "--steps", 12, "--eval-every", 6, "--samples", 1, "--out", out]
    text = finish(*arguments, home=home)
    rows = text.splitlines()
    assert [r.split()[0] for r in rows[:3]] == ["model", "mesh", "out"]
    steps = [r for r in rows if r.startswith("step ")]
    assert [r.split("/")[0].split()[1] for r in steps] == ["1", "6", "10", "12"]
    lines = metrics_of(out)
    before, after = lines[0]["eval_loss_before"], lines[-1]["eval_loss"]
    assert f"held-out loss {before:.4f} -> {after:.4f}; 12 steps" in text and after < before
    assert "eval_loss" in lines[5] and "eval_loss" not in lines[6]
    begin = next(i for i, r in enumerate(rows) if r.startswith("> "))
    assert rows[begin + 1].startswith("    ") and sum(r.startswith("> ") for r in rows) == 1
    assert {"curves.html"} <= {p.name for p in out.iterdir()}
    commands = [r.strip() for r in rows[rows.index("next") + 1 :]]
    assert [c.split()[1:3] for c in commands] == [
        ["eval.py", "chat"],
        ["eval.py", "mmlu"],
        ["-m", "checkpoint"],
    ]
    again = finish(*arguments, home=home)  # a run that is done says so again and trains nothing
    assert "after step 12" in again and "0 steps" in again
    assert metrics_of(out) == lines


def test_nan_stops_with_the_step_and_the_rows(tmp_path, home):
    text = finish(
        *SMALL,
        "--mesh",
        "1x1",
        "--steps",
        6,
        "--lr",
        "1e30",
        "--optimizer",
        "adamw",
        "--warmup",
        1,
        "--save-every",
        1,
        "--out",
        tmp_path / "run",
        home=home,
        code=2,
    )
    last = text.strip().splitlines()[-1]
    assert re.search(
        (
            r"train.py: step \d+: loss .*; rows \[\d+.*\]: the weights of step \d+ are "
            r"untouched.*lower --lr"
        ),
        last,
    ), last
