"""runs/*.sh: the commands they would run are read by the programs' own parsers and carry the
paper's values; what their headers predict is what the plan computes now.

python -m pytest tests/test_runs.py
"""

import json
import math
import pathlib
import shlex
import subprocess
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

import data
import model
import sharding
from checkpoint import __main__ as checkpoint
from checkpoint import export, paths
from checkpoint.mapping import order
from tasks import flags as flags_of_eval
from text import tokenizer
from training import flags, plan, start

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Script(NamedTuple):
    """A script: its preset, rows a step, tokens a row, devices, what the machine is called and
    which devices it has, and further flags of its trainings.
    """

    preset: str
    batch: int
    block: int
    devices: int = 8
    of: str = "8 x {}"
    hardware: tuple = ("A100", "H100", "v5p")
    accumulate: int = 1


SCRIPTS = {
    "gpt2-xl": Script("gpt2-xl", 64, 1024),
    "llama-7b": Script("llama-7b", 32, 2048),
    "llama-13b": Script("llama-13b", 32, 2048),
    "one-gpu": Script("gpt2-xl", 64, 1024, 1, "1 x {}", ("A100", "H100"), 8),
    "slurm": Script("llama-13b", 32, 2048, 32, "32 x {}", ("A100", "H100")),
    "tpu-slice": Script("llama-13b", 32, 2048, 16, "16 x {}", ("v5p",)),
}
ROOM = {  # GiB
    ("A100", "H100", "v5p"): "an A100-80 and an H100 hold 74.5, a v5p 95",
    ("A100", "H100"): "an A100-80 and an H100 hold 74.5",
    ("v5p",): "a v5p holds 95",
}
AMOUNTS = {"20M": 20_000_000, "80M": 80_000_000, "150M": 150_000_000}
PAIRS, NQ_BATCH, NQ_BLOCK = 6000, 32, 128


def printed(script, **variables):
    """The lines a script prints, as words."""
    done = subprocess.run(
        ["sh", str(ROOT / "runs" / f"{script}.sh")],
        env={"PATH": "/usr/bin:/bin", "DRY_RUN": "1"} | variables,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def dry_run(script, **variables):
    """The commands a script prints, each as argv without the interpreter (and its -m).

    Those that go to all hosts are taken out of what sends them there.
    """
    commands = [own_of(line) for line in printed(script, **variables)]
    assert all(c[0] == variables.get("PYTHON", "python") for c in commands)
    return [c[2:] if c[1] == "-m" else c[1:] for c in commands]


def own_of(line):
    """The command in a line of srun or gcloud."""
    if line[0] == "srun":
        return line[line.index("--process") + 1 :]
    if line[0] == "gcloud":
        return shlex.split(line[line.index("--command") + 1].partition(" && ")[2])
    return line


def resolved(argv):
    """The flags of a train.py command with every default filled in."""
    return flags.resolve(flags.parser().parse_args(argv))[0]


def predicted(script):
    """The lines of a script's header that the plan decides."""
    preset, batch, block, devices, of, hardware, accumulate = SCRIPTS[script]
    config = model.preset(preset)
    layout = model.make_layout(config, devices, 1)
    args = resolved(["--init", "weights", "--data", "packed", "--block", str(block)])
    compute = start.step_options(args, config, "gpu", devices)
    moments = jnp.dtype(args.moment_dtype)
    step = dict(batch=batch, T=block, accumulate=accumulate, moment_dtype=moments)
    total = plan.memory(config, layout, compute, **step)["total"] / plan.GIB
    state = 12 * model.parameter_count(config) / plan.GIB
    lines = [
        f"#   memory a device   {total:.2f} GiB ({ROOM[hardware]})",
        (
            f"#   disk              {state:.0f} GiB a checkpoint, two kept of each training; "
            f"the Hugging Face folder {state / 3:.0f} GiB"
        ),
        f"#   {'hours, training alone':<32}"
        + "".join(f"{of.format(name):>24}" for name in hardware),
        f"#   {'':<32}"
        + "".join(f"{word:>8}" for word in ("least", "50 %", "40 %")) * len(hardware),
    ]
    kinds = [
        (f"{name} tokens", math.ceil(math.ceil((n - 1) / block) / batch), batch, block)
        for name, n in AMOUNTS.items()
    ]
    kinds.append(("NQ-synthetic", math.ceil(PAIRS * 0.98 / NQ_BATCH), NQ_BATCH, NQ_BLOCK))
    for what, steps, rows, T in kinds:
        figures = ""
        for name in hardware:
            device, sizes = plan.DEVICES[name], dict(batch=rows, T=T, accumulate=accumulate)
            figures += "".join(
                f"{plan.hours(steps, config, layout, compute, device, **sizes, mfu=mfu):>8.3f}"
                for mfu in (None, 0.5, 0.4)
            )
        lines.append(f"#     {what:<15}{steps:>6,} steps   {figures}")
    return lines


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_header_predicts_is_what_the_plan_computes_now(script):
    text, lines = (ROOT / "runs" / f"{script}.sh").read_text(encoding="utf-8"), predicted(script)
    assert "\n".join(lines) in text, "put this into the header:\n" + "\n".join(lines)
    assert "expected loss     not known" in text


@pytest.mark.parametrize("name", [*(f"{script}.sh" for script in SCRIPTS), "recipe"])
def test_a_script_is_plain_sh(name):
    assert subprocess.run(["sh", "-n", str(ROOT / "runs" / name)]).returncode == 0


def test_every_script_is_tested_here():
    assert {p.stem for p in (ROOT / "runs").glob("*.sh")} == {*SCRIPTS, "fetch"}  # test_fetch.py


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_programs_take_the_commands_as_they_are(script):
    """Order: the base is measured, then each training is packed, trained, exported and measured.

    Every flag exists, and every input of a command was made by one before it.
    """
    commands = dry_run(script, RUN_UNTRUSTED_CODE="1")
    measured = ["eval.py mmlu", "eval.py nq", "eval.py humaneval"]
    kinds = [
        " ".join(c[:2]) if c[0] in ("eval.py", "data.py", "checkpoint") else c[0] for c in commands
    ]
    assert kinds == measured + 4 * ["data.py pack", "train.py", "checkpoint convert", *measured]
    made, converted = {f"models/{SCRIPTS[script].preset}"}, 0
    for program, *argv in commands:
        if program == "data.py":
            made.add(data.parser().parse_args(argv).out)
        elif program == "train.py":
            args = resolved(argv)
            assert args.init in made and args.data[0] in made
            made.add(args.out)
        elif program == "checkpoint":
            args = checkpoint.parser().parse_args(argv)
            assert args.src in made and args.to == "hf"
            converted += 1
        else:
            args = flags_of_eval.parser().parse_args(argv)
            flags_of_eval.check(args)
            assert args.model in made and flags_of_eval.needs_model(args)
            assert (
                (args.task != "mmlu" or args.shots == 5)
                and (args.task != "nq" or args.shots == 3)
                and (args.task != "humaneval" or args.run_untrusted_code)
            )
    assert converted == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_values_are_the_papers(script):
    """Learning rate 2e-3 after 1000 steps, one epoch, 32 x 2048 tokens a step (GPT-2: 64 x 1024,
    the same tokens), AdamW scaled by the weights.
    """
    preset, batch, block, devices, _, _, accumulate = SCRIPTS[script]
    assert batch * block == flags.DEFAULTS["batch"][1] * flags.DEFAULTS["block"][1] == 65536
    commands = dry_run(script)
    assert not any(c[:2] == ["eval.py", "humaneval"] for c in commands)  # nobody has agreed
    packs = [data.parser().parse_args(c[1:]) for c in commands if c[0] == "data.py"]
    trains = [resolved(c[1:]) for c in commands if c[0] == "train.py"]
    for args in trains:
        assert (args.lr, args.warmup, args.optimizer, args.epochs, args.steps, args.mesh) == (
            2e-3,
            1000,
            "adamw-scaled",
            1.0,
            None,
            f"{devices}x1",
        )
        assert args.accumulate == accumulate and args.batch % (devices * accumulate) == 0
        ours = {"batch", "block", "data", "tokenizer", "eval_fraction", "pack", "warmup_fraction"}
        ours |= {"accumulate"}
        same = {
            n: getattr(args, n) == paper
            for n, (_, paper) in flags.DEFAULTS.items()
            if n not in ours
        }
        assert all(same.values()), same
    assert [(a.batch, a.block) for a in trains] == [(batch, block)] * 3 + [(NQ_BATCH, NQ_BLOCK)]
    assert [a.warmup_fraction for a in trains] == [None] * 3 + [0.1]
    assert [(p.tokens, p.pack, p.block, p.template) for p in packs] == [
        (n, "stream", block, "roles") for n in AMOUNTS
    ] + [(None, "rows", NQ_BLOCK, "roles")]
    assert {p.eval_fraction for p in packs} == {0.02} and block <= model.preset(preset).P


def test_slurm_starts_one_process_a_node_and_tells_each_who_it_is():
    given = {"SLURM_NNODES": "2", "SLURM_SUBMIT_DIR": str(ROOT), "HEAD": "node7"}
    lines = [line for line in printed("slurm", **given) if "train.py" in line]
    start = ["srun", "--nodes=2", "--ntasks-per-node=1", "sh", "runs/slurm.sh", "--process"]
    assert len(lines) == 4 and all(line[:6] == start for line in lines)
    assert {line[line.index("--mesh") + 1] for line in lines} == {"16x1"}
    own = given | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "PATH": "/usr/bin:/bin"}
    said = subprocess.run(
        [*lines[0][3:6], "echo", "train.py", "--out", "a b"],
        env=own,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = said.stdout.split("train.py ")[1].split()
    assert told == "--out a b --coordinator node7:12355 --processes 2 --process 1".split()
    head = (ROOT / "runs/slurm.sh").read_text()
    assert "#SBATCH --ntasks-per-node=1\n" in head and "#SBATCH --gpus-per-node=8\n" in head


def test_a_tpu_slice_is_started_on_all_its_workers_and_measured_on_one():
    lines = printed("tpu-slice", TPU="pod", ZONE="z-1", OUT="an out")
    sent = [line for line in lines if line[0] == "gcloud"]
    start = "gcloud compute tpus tpu-vm ssh pod --zone z-1 --worker=all --command".split()
    assert len(sent) == 4 and all(line[:-1] == start for line in sent)
    command = shlex.split(sent[-1][-1])
    assert command[:3] == ["cd", str(ROOT), "&&"] and command[-2:] == ["--coordinator", "auto"]
    assert command[command.index("--out") + 1] == "an out/nq-synthetic"
    alone = [line for line in lines if line[:2] == ["python", "eval.py"]]
    assert {line[line.index("--mesh") + 1] for line in alone} == {"4x1"}


def test_variables_reach_the_commands_whole():
    commands = dry_run(
        "llama-7b",
        OUT="an out/it's",
        WEIGHTS="params::w",
        AMOUNTS="0.3M",
        MESH="4x2",
        PYTHON="py 3",
    )
    assert ["--out", "an out/it's/mix-0.3M"] == next(c for c in commands if c[0] == "train.py")[-2:]
    assert {c[c.index("--mesh") + 1] for c in commands if "--mesh" in c} == {"4x2"} and sum(
        c[0] == "train.py" for c in commands
    ) == 2


def test_a_missing_path_is_one_line_and_status_2(tmp_path):
    done = subprocess.run(
        ["sh", str(ROOT / "runs" / "llama-7b.sh")],
        env={"PATH": "/usr/bin:/bin", "WEIGHTS": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert (
        f"WEIGHTS={tmp_path}/none is not there (the base model's Hugging Face folder): name "
        "it, WEIGHTS=PATH sh "
    ) in done.stderr


def write_inputs(folder):
    """What a script wants: a base model of random weights, pairs, questions -> the tokenizer."""
    tok = tokenizer.load(ROOT / "samples" / "tokenizer.model", roles=False)
    config = model.llama(tok.base_size, 32, 2, 4, 96, 512, 1e-5)
    weights = {
        n: np.asarray(x)
        for n, x in model.initialise(
            config, sharding.make_mesh(1, 1), model.make_layout(config, 1, 1), 0
        ).items()
    }

    def of(name, layer):
        return weights[name] if layer is None else weights[name][layer]

    rows = (
        (n, i, of(n, i)[: config.V] if model.weight_table(config)[n].dims[0] == "V" else of(n, i))
        for n, i in order(config)
    )
    export.write_hf(str(folder / "base"), config, rows, tok)

    def lines(*records):
        return "".join(json.dumps(r) + "\n" for r in records)

    pairs = [
        {
            "id": str(i),
            "conversations": [
                {"from": "human", "value": f"who is number {i}?"},
                {"from": "gpt", "value": f"Mina {i}"},
            ],
        }
        for i in range(70)
    ]
    (folder / "pairs.jsonl").write_text(lines(*pairs))
    (folder / "nq.jsonl").write_text(
        lines(*({"question": f"who is {i}", "answer": ["Mina"]} for i in range(4)))
    )
    for split in ("dev", "test"):
        (folder / "mmlu" / split).mkdir(parents=True)
        (folder / "mmlu" / split / f"anatomy_{split}.csv").write_text(
            "".join(f"question {i}?,yes,no,maybe,never,{'ABCD'[i % 4]}\n" for i in range(5))
        )
    return tok


@pytest.mark.slow
def test_a_script_runs_from_the_weights_to_the_scores(tmp_path):
    """The real programs on a random model of two layers, the pairs alone; a quarter of a minute of
    processor time, most of it starting six programs and compiling.
    """
    tok, out = write_inputs(tmp_path), tmp_path / "out"
    given = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHON": sys.executable,
        "AMOUNTS": "",
        "WEIGHTS": str(tmp_path / "base"),
        "NQ_SYNTHETIC": str(tmp_path / "pairs.jsonl"),
        "MMLU": str(tmp_path / "mmlu"),
        "NQ_DEV": str(tmp_path / "nq.jsonl"),
        "NQ_TRAIN": str(tmp_path / "nq.jsonl"),
        "NQ_BLOCK": "32",
        "DTYPE": "float32",
        "MESH": "1x1",
        "OUT": str(out),
    }
    done = subprocess.run(
        ["sh", str(ROOT / "runs" / "llama-7b.sh")], env=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    steps = [
        json.loads(line)
        for line in (out / "nq-synthetic" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(steps) == 3 and steps[-1]["eval_loss"] < steps[0]["loss"]  # 69 rows, 32 a step
    assert paths.model_config(str(out / "nq-synthetic-hf")).V == tok.base_size + 2
    for name in ("base", "nq-synthetic"):
        for task, n in (("mmlu", 5), ("nq", 4)):
            result = json.loads((out / "results" / name / task / "results.json").read_text())
            assert result["finished"] and result["n"] == n
