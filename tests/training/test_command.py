"""The command train.py: refusals, what a run leaves, kills, stopping, resuming, several processes.

python -m pytest tests/training/test_command.py
"""

import json
import random
import re
import shutil
import signal
import socket
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT, SMALL, STEPS, command, finish, metrics_of

import model
import sharding
import train
from checkpoint import runs
from text import tokenizer
from training import start

pytest_plugins = ["commands"]  # its fixtures
pytestmark = pytest.mark.usefixtures("devices")


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / (np.linalg.norm(np.asarray(b)) + 1e-30)


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


def test_without_flags_of_devices_a_cpu_takes_a_device_a_core_and_float32(tmp_path, user_home):
    at = SMALL.index("--dtype")
    arguments = [*SMALL[:at], *SMALL[at + 2 :], "--steps", 2, "--samples", 0, "--verbose"]
    text = finish(*arguments, "--out", tmp_path / "run", home=user_home)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    n = sharding.cpu_devices(8, sharding.usable_cores())
    assert record["mesh"] == [n, 1] and record["args"]["mesh"] is None
    assert record["args"]["dtype"] == "float32"
    assert record["args_from"]["dtype"] == "no accelerator"
    (line,) = (line for line in text.splitlines() if line.startswith("  dtype "))
    assert line.split()[1:] == "float32 no accelerator (paper: bfloat16)".split()


@pytest.fixture(scope="session")
def killed(straight, tmp_path_factory, user_home):
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
            process = command(*arguments, home=user_home)
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
    text = finish(*arguments, home=user_home)
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
def test_resumed_on_another_mesh_the_losses_agree(straight, tmp_path, user_home):
    out = tmp_path / "run"
    finish(*SMALL, "--mesh", "2x1", "--steps", 8, "--save-every", 4, "--out", out, home=user_home)
    text = finish(
        *SMALL, "--mesh", "1x2", "--steps", STEPS, "--save-every", 4, "--out", out, home=user_home
    )
    assert "after step 8" in text
    np.testing.assert_allclose(
        [m["loss"] for m in metrics_of(out)],
        [m["loss"] for m in metrics_of(straight[0])],
        rtol=1e-5,
    )


def test_sigterm_saves_and_the_same_command_goes_on(straight, tmp_path, user_home):
    out = tmp_path / "run"
    arguments = [*SMALL, "--mesh", "2x1", "--steps", STEPS, "--save-every", 0, "--out", out]
    process = command(*arguments, home=user_home)
    while len(metrics_of_partial(out)) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, text
    assert "stopped by signal" in text and 3 <= len(metrics_of(out)) < STEPS
    finish(*arguments, home=user_home)
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
    straight, change, message, capsys, user_home, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(user_home))
    out = shutil.copytree(straight[0], tmp_path / "run")
    before = (out / "run.json").read_bytes()
    argv = [*map(str, SMALL), "--mesh", "2x1", "--steps", str(STEPS), "--save-every", "4"]
    assert train.main([*argv, "--out", str(out), *change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and "use the same value, or another --out" in error
    assert (out / "run.json").read_bytes() == before


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


def test_a_run_is_a_start_for_another_with_plain_text_mixed_in(straight, tmp_path, user_home):
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
    finish(*arguments, "--out", tmp_path / "alone", home=user_home)
    finish(
        *arguments,
        "--mix",
        text,
        "--mix-fraction",
        0.25,
        "--out",
        tmp_path / "mixed",
        home=user_home,
    )
    alone, mixed = metrics_of(tmp_path / "alone"), metrics_of(tmp_path / "mixed")
    assert alone[0]["loss"] < metrics_of(straight[0])[0]["loss"] - 1, "the weights came along"

    def share(lines):
        return sum(m["loss_share"] for m in lines)

    assert share(mixed) > share(alone) + 0.1, "all tokens of the text carry loss"


@pytest.mark.slow
def test_two_processes_of_four_devices_give_the_losses_of_one_of_eight(tmp_path, user_home):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    arguments = [*SMALL, "--steps", 4, "--mesh", "4x2", "--save-every", 0]
    finish(*arguments, "--out", tmp_path / "one", home=user_home)
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
            home=user_home,
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
