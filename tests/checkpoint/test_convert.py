"""Weights out and back: exact round trips, differences, nothing half-written."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.numpy
from foreign import (
    LLAMA,
    ROOT,
    assert_same,
    collect,
    each_config,
    easylm_file,
    easylm_tensors,
    flax_bytes,
    hf_folder,
    hf_tensors,
    random_weights,
    read_easylm,
    run_folder,
    stream,
)

import model
from checkpoint import easylm, export, paths
from checkpoint.__main__ import main as checkpoint
from text import tokenizer


def word_tokenizer(folder, size):
    """The sample tokenizer in a folder, which has `size` ids with its roles."""
    folder.mkdir()
    shutil.copy(ROOT / "samples" / "tokenizer.model", folder)
    tok = tokenizer.load(str(folder))
    assert tok.size == size, tok.size
    return tok


@each_config
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writing_then_reading_gives_the_same_weights_in_every_format(config, dtype, tmp_path):
    dtype = jnp.dtype(dtype)
    weights = {key: x.astype(dtype).astype(np.float32) for key, x in random_weights(config).items()}
    export.write_hf(tmp_path / "hf", config, stream(weights), None, dtype)
    export.write_hf(tmp_path / "shards", config, stream(weights), None, dtype, shard_bytes=4000)
    export.write_easylm(tmp_path / "stream", config, stream(weights), dtype)
    for path in (tmp_path / "hf", tmp_path / "shards", f"params::{tmp_path / 'stream'}"):
        assert paths.model_config(str(path)) == config
        assert_same(collect(path, config), weights)
    tensors = {n: x.astype(dtype) for n, x in hf_tensors(config, weights).items()}

    def read(folder):
        return {
            n: x
            for file in folder.glob("*.safetensors")
            for n, x in safetensors.numpy.load_file(file).items()
        }

    for folder in (tmp_path / "hf", tmp_path / "shards"):
        got = read(folder)
        assert got.keys() == tensors.keys() and all(
            got[n].dtype == dtype and np.array_equal(got[n], tensors[n]) for n in tensors
        )
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    listing = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert listing["weight_map"].keys() == tensors.keys() and listing["metadata"][
        "total_size"
    ] == sum(x.nbytes for x in tensors.values())
    for file in files:  # a tensor over the limit has its own file
        largest = max(x.nbytes for x in safetensors.numpy.load_file(file).values())
        assert file.stat().st_size <= max(4000, largest) + 4000


@pytest.mark.parametrize("chunk", [2**30, 250])
def test_easylm_reads_what_is_written_for_it(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(easylm, "CHUNK_BYTES", chunk)
    for dtype in ("float32", "bfloat16", "float16"):
        weights = random_weights(LLAMA)
        export.write_easylm(tmp_path / dtype, LLAMA, stream(weights), jnp.dtype(dtype))
        got, want = read_easylm(tmp_path / dtype), easylm_tensors(LLAMA, weights)
        assert got.keys() == want.keys()
        for key in want:
            assert got[key].dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(
                got[key], want[key].astype(jnp.dtype(dtype)), err_msg=str(key)
            )
        theirs = b"".join(msgpack.packb((key, flax_bytes(got[key], chunk))) for key in got)
        assert (tmp_path / dtype).read_bytes() == theirs  # byte for byte what msgpack itself packs


def test_convert_takes_a_run_with_its_tokenizer_through_every_format(tmp_path, capsys):
    tok = word_tokenizer(
        tmp_path / "tok", tokenizer.load(str(ROOT / "samples" / "tokenizer.model")).size
    )
    config = dataclasses.replace(LLAMA, V=tok.size, L=2)
    weights = random_weights(config)
    path = run_folder(tmp_path / "run", config, weights)
    tok.save(str(tmp_path / "run" / "tokenizer"))
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    assert (
        checkpoint(["convert", str(tmp_path / "hf"), str(tmp_path / "stream"), "--to", "easylm"])
        == 0
    )
    assert (
        checkpoint(
            [
                "convert",
                f"params::{tmp_path / 'stream'}",
                str(tmp_path / "again"),
                "--tokenizer",
                str(tmp_path / "tok"),
            ]
        )
        == 0
    )
    for there in (path, tmp_path / "hf", f"params::{tmp_path / 'stream'}", tmp_path / "again"):
        assert_same(collect(there, config), weights)
    record = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert record["vocab_size"] == tok.size and (
        record["bos_token_id"],
        record["eos_token_id"],
    ) == (tok.bos, tok.eos)
    assert (
        tokenizer.load(str(tmp_path / "hf")).fingerprint
        == tokenizer.load(str(tmp_path / "again")).fingerprint
        == tok.fingerprint
    )
    ids = {
        t["content"]: t["id"]
        for t in json.loads((tmp_path / "hf" / "tokenizer.json").read_text())["added_tokens"]
    }
    assert ids["<|user|>"] == tok.size - 2 and ids["<|assistant|>"] == tok.size - 1
    assert "weights, float32" in capsys.readouterr().out


def test_convert_refuses_in_one_line_and_leaves_nothing_half_written(tmp_path, capsys):
    weights = random_weights(LLAMA)
    weights["w2", 2][3, 4] = (
        70000.0  # beyond float16, in the last layer: found when most is written
    )
    source = hf_folder(tmp_path / "hf", LLAMA, hf_tensors(LLAMA, weights))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    for args, says in (
        (
            ["convert", source, tmp_path / "out", "--dtype", "float16"],
            "tensor model.layers.2.mlp.down_proj.weight holds numbers beyond float16",
        ),
        (
            ["convert", source, tmp_path / "out", "--dtype", "float16", "--to", "easylm"],
            "tensor transformer/h/2/feed_forward/w2/kernel holds numbers beyond float16",
        ),
        (["convert", source, tmp_path / "full"], "is there already"),
        (["convert", source, tmp_path / "file", "--to", "easylm"], "is there already"),
        (["convert", source, tmp_path / "empty", "--to", "easylm"], "is there already"),
        (["convert", source, tmp_path / "out", "--tokenizer", tmp_path / "nowhere"], "nowhere"),
        (
            [
                "convert",
                source,
                tmp_path / "out",
                "--tokenizer",
                ROOT / "samples" / "tokenizer.model",
            ],
            "has 50 ids",
        ),
        (["convert", tmp_path / "nowhere", tmp_path / "out"], "does not exist"),
        (["diff", source, tmp_path / "nowhere", tmp_path / "out"], "does not exist"),
    ):
        assert checkpoint([str(a) for a in args]) == 2
        lines = [
            line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")
        ]
        assert len(lines) == 1 and lines[0].startswith("checkpoint: ") and says in lines[0], lines
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert checkpoint(["convert", source, str(tmp_path / "empty")]) == 0  # an empty folder will do
    assert_same(collect(tmp_path / "empty", LLAMA), weights)


def test_a_conversion_that_is_terminated_leaves_nothing(tmp_path):
    config = dataclasses.replace(LLAMA, V=3000, D=256, F=700)
    source = hf_folder(tmp_path / "hf", config, hf_tensors(config, random_weights(config)))
    slow = (
        "import sys, time\n"
        "from checkpoint import export\n"
        "from checkpoint.__main__ import main\n"
        "arrays = export.file_arrays\n"
        "def one_by_one(*args):\n"
        "    for item in arrays(*args):\n"
        "        yield item\n"
        "        print(item[0], flush=True), time.sleep(0.2)\n"
        "export.file_arrays = one_by_one\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", slow, "convert", source, str(tmp_path / "out")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    child.stdout.readline()
    assert len(list(tmp_path.iterdir())) == 2
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def awkward(config, seed):
    """Weights with every kind of float32: tiny, huge, both zeros, subnormals, infinities."""
    weights = random_weights(config, seed)
    rng = np.random.default_rng(seed + 100)
    for x in weights.values():
        x *= 10.0 ** rng.integers(-12, 3, size=x.shape)
        flat = x.reshape(-1)
        flat[rng.integers(0, flat.size, 6)] = np.float32([0.0, -0.0, 1e-42, -3e-45, np.inf, 3.4e38])
    return weights


@each_config
@pytest.mark.parametrize("to", ["hf", "easylm"])
def test_recover_gives_the_tuned_weights_back_bit_for_bit(config, to, tmp_path, capsys):
    tuned_config = dataclasses.replace(
        config, V=config.V + 2
    )  # role tokens, which the base does not have
    base, tuned = awkward(config, 1), awkward(tuned_config, 2)
    base_path = hf_folder(tmp_path / "base", config, hf_tensors(config, base))
    tuned_path = run_folder(tmp_path / "tuned", tuned_config, tuned)

    def spell(name):
        return f"params::{tmp_path / name}" if to == "easylm" else str(tmp_path / name)

    assert checkpoint(["diff", base_path, tuned_path, spell("diff"), "--to", to]) == 0
    assert checkpoint(["recover", base_path, spell("diff"), spell("back"), "--to", to]) == 0
    assert "bit for bit" in capsys.readouterr().err
    assert_same(collect(spell("back"), tuned_config), tuned)
    added = {
        k: x
        for k, x in collect(spell("diff"), tuned_config, difference=True).items()
        if k[0] in ("embed", "head")
    }
    assert all(
        np.array_equal(x[-2:].view(np.float32), tuned[k][-2:]) for k, x in added.items()
    )  # added rows as they are
    for use in (
        ["convert", spell("diff"), spell("x")],
        ["diff", base_path, spell("diff"), spell("x")],
    ):
        assert checkpoint(use) == 2
        assert "is a difference to a base model" in capsys.readouterr().err


def test_float_differences_are_koala_s_and_come_back_to_rounding(tmp_path, capsys, monkeypatch):
    base, tuned = random_weights(LLAMA, 1), random_weights(LLAMA, 2)
    paths = [
        hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, w))
        for n, w in (("base", base), ("tuned", tuned))
    ]
    assert checkpoint(["diff", *paths, str(tmp_path / "diff"), "--float"]) == 0
    got = collect(tmp_path / "diff", LLAMA, difference=True)
    assert_same(got, {key: tuned[key] - base[key] for key in base})
    assert checkpoint(["recover", paths[0], str(tmp_path / "diff"), str(tmp_path / "back")]) == 0
    assert "up to float32 rounding" in capsys.readouterr().err
    for key, x in collect(
        tmp_path / "back", LLAMA
    ).items():  # |error| <= one ulp of the largest number met
        np.testing.assert_allclose(
            x,
            tuned[key],
            rtol=0,
            atol=float(np.abs(base[key]).max() + np.abs(tuned[key]).max()) * 2.0**-23,
        )
    # what EasyLM's own diff_checkpoint.py writes says nothing of its base
    monkeypatch.setitem(model.PRESETS, "mine", LLAMA)
    koala = easylm_file(
        tmp_path / "koala",
        {
            k: a - b
            for (k, a), b in zip(
                easylm_tensors(LLAMA, tuned).items(),
                easylm_tensors(LLAMA, base).values(),
                strict=True,
            )
        },
    )
    assert (
        checkpoint(["recover", paths[0], koala, str(tmp_path / "back2"), "--model-preset", "mine"])
        == 0
    )
    assert "unchecked" in capsys.readouterr().err
    assert_same(collect(tmp_path / "back2", LLAMA), collect(tmp_path / "back", LLAMA))


def test_recover_refuses_another_base_and_a_damaged_difference(tmp_path, capsys):
    paths = {
        n: hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, random_weights(LLAMA, i)))
        for i, n in enumerate(("base", "tuned", "other"))
    }
    smaller = dataclasses.replace(LLAMA, F=12)
    hf_folder(tmp_path / "smaller", smaller, hf_tensors(smaller, random_weights(smaller)))
    assert checkpoint(["diff", paths["base"], paths["tuned"], str(tmp_path / "diff")]) == 0
    shutil.copytree(tmp_path / "diff", tmp_path / "bad")
    content = bytearray((tmp_path / "bad" / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "bad" / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    for base, diff, says in (
        ("other", "diff", "is not the base"),
        ("base", "bad", "is damaged"),
        ("smaller", "diff", "w1 has shape (3, 24, 12) in the one, (3, 24, 20) in the other"),
    ):
        assert (
            checkpoint(
                ["recover", str(tmp_path / base), str(tmp_path / diff), str(tmp_path / "out")]
            )
            == 2
        )
        assert says in capsys.readouterr().err
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
