"""Small models and benchmarks for the tests of eval.py, and a call of it in this process."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eval as program
import model
import sharding
from checkpoint import export, runs
from checkpoint.mapping import order
from text import tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent


CONFIG = dataclasses.replace(model.llama(1026, 16, 1, 2, 32, 256, 1e-5), tied=True)


@pytest.fixture(scope="module")
def home():
    """The tests' own compilation cache, not that of the user's home."""
    before, sharding.use_compilation_cache = sharding.use_compilation_cache, lambda: None
    yield
    sharding.use_compilation_cache = before


def random_weights(config, seed):
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
    return {
        n: np.asarray(w) * (3 if w.ndim == 3 else 1)
        for n, w in model.initialise(config, mesh, layout, seed).items()
    }


def rows_of(config, weights):
    """(name, layer, array) as load.read_weights gives them."""
    for name, layer in order(config):
        w = weights[name] if layer is None else weights[name][layer]
        yield name, layer, w[: config.V] if model.weight_table(config)[name].dims[0] == "V" else w


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Folders: base (no role tokens), tuned (with), run (two checkpoints), all of other weights."""
    top = tmp_path_factory.mktemp("models")
    tok = tokenizer.load(ROOT / "samples" / "tokenizer.model")
    plain = tokenizer.load(ROOT / "samples" / "tokenizer.model", roles=False)
    base = dataclasses.replace(CONFIG, V=1024)
    export.write_hf(str(top / "base"), base, rows_of(base, random_weights(base, 0)), plain)
    export.write_hf(str(top / "tuned"), CONFIG, rows_of(CONFIG, random_weights(CONFIG, 1)), tok)
    run = top / "run"
    run.mkdir()
    tok.save(str(run / "tokenizer"))
    (run / "run.json").write_text(
        json.dumps({"config": dataclasses.asdict(CONFIG), "args": {"template": "roles"}})
    )
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "tokens": 1000}) + "\n" for s in range(1, 9))
    )
    saver = runs.Saver(str(run))
    for step in (3, 8):
        saver.save(
            step,
            {
                "weights": {n: jnp.asarray(w) for n, w in random_weights(CONFIG, step).items()},
                "step": jnp.int32(step),
            },
            {"step": step},
        )
    saver.wait()
    saver.close()
    return top


def call(*args, expect=0, capsys=None):
    """Run eval.py in this process; where it refuses, stderr's last line is its one line."""
    assert program.main([str(a) for a in args]) == expect
    if capsys:
        captured = capsys.readouterr()
        if expect == 2:
            lines = [line for line in captured.err.splitlines() if line.startswith("eval.py: ")]
            assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0], captured.err
            return lines[0]
        return captured.out, captured.err


def result(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def samples(folder):
    return [
        json.loads(line)
        for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def full(place):
    """(tokenizer, ids -> log-probabilities [T, V] by the plain forward) of the tuned model."""
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(CONFIG, 1, 1)
    forward, weights = (
        model.make_logits(CONFIG, mesh, layout),
        {n: jnp.asarray(w) for n, w in random_weights(CONFIG, 1).items()},
    )

    def logp(ids):
        token = np.zeros((1, 256), np.int32)
        token[0, : len(ids)] = ids
        return np.asarray(jax.nn.log_softmax(forward(weights, token)[0, : len(ids)]))

    return tokenizer.load(ROOT / "samples" / "tokenizer.model"), logp


def greedy(logp, ids, stop, most):
    out = []
    while len(out) < most:
        new = int(logp(ids + out)[-1].argmax())
        if new in stop:
            break
        out.append(new)
    return out


PROBLEMS = [
    {
        "task_id": "T/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(f):\n    assert f() == 1\n",
    },
    {
        "task_id": "T/1",
        "prompt": "def two():\n",
        "entry_point": "two",
        "canonical_solution": "    return 2\n",
        "test": "def check(f):\n    assert f() == 2\n",
    },
]


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory):
    """Two subjects, eight questions each, seven shots; the shots of anatomy are long."""
    top = tmp_path_factory.mktemp("mmlu")
    for split in ("dev", "test"):
        (top / split).mkdir()
        for subject in ("anatomy", "virology"):
            long = " and so on" * 9 if subject == "anatomy" else ""
            rows = [
                f'"{subject} {split} question {i}, is it{long}?",yes {i},no,maybe,never,'
                f"{'ABCD'[i * 3 % 4]}\n"
                for i in range(8 if split == "test" else 7)
            ]
            (top / split / f"{subject}_{split}.csv").write_text("".join(rows))
    return top


@pytest.fixture
def nq(tmp_path):
    write_lines(
        tmp_path / "train.jsonl",
        [{"question": f"where is {i}", "answer": [f"in {i}"]} for i in range(70)],
    )
    return write_lines(
        tmp_path / "dev.jsonl",
        [{"question": f"who is {i}", "answer": [f"nobody {i}", "the one"]} for i in range(7)],
    )
