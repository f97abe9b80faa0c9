"""Loading: memory, several hosts, real files, and live against transformers.

    python -m pytest tests/checkpoint/test_loading.py --data DIR --live

A float64 NumPy loop reads stories260K by itself.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys

import make_references
import numpy as np
import pytest
import safetensors.numpy
from foreign import (
    LLAMA,
    ROOT,
    TIED,
    assert_same,
    collect,
    hf_folder,
    hf_tensors,
    mesh_of,
    our_logits,
    random_weights,
    refusal,
    run_folder,
    their_logits,
)

import model
from checkpoint import load, paths
from checkpoint.__main__ import main as checkpoint
from text import tokenizer


def test_runs_without_a_checkpoint_or_of_another_config_are_refused(tmp_path):
    path = run_folder(tmp_path / "run", LLAMA, random_weights(LLAMA))
    assert collect(path, LLAMA, step=7).keys() == random_weights(LLAMA).keys()
    with pytest.raises(ValueError, match="has no checkpoint of step 6: there are 7"):
        collect(path, LLAMA, step=6)
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({"config": dataclasses.asdict(dataclasses.replace(LLAMA, F=21))})
    )
    assert "tensor w1 has shape (3, 24, 20), expected (3, 24, 21)" in refusal(
        path, paths.model_config(path)
    )
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {"family": "llama"}}))
    assert "no config of this project" in refusal(path, LLAMA)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "7")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": dataclasses.asdict(LLAMA)}))
    assert "has no whole checkpoint" in refusal(path, LLAMA)


def test_a_fingerprint_tells_models_apart_and_is_that_of_the_content(tmp_path):
    weights = random_weights(LLAMA)
    a = hf_folder(tmp_path / "a", LLAMA, hf_tensors(LLAMA, weights))
    shutil.copytree(a, tmp_path / "b")
    assert paths.fingerprint(a) == paths.fingerprint(tmp_path / "b")
    weights["w1", 1][0, 0] += 1
    c = hf_folder(tmp_path / "c", LLAMA, hf_tensors(LLAMA, weights))
    assert paths.fingerprint(a) != paths.fingerprint(c)
    run = run_folder(tmp_path / "run", LLAMA, weights)
    first = paths.fingerprint(run)
    assert first == paths.fingerprint(run, 7) != paths.fingerprint(c)
    run_folder(tmp_path / "run", LLAMA, weights, step=8)
    assert paths.fingerprint(run, 7) == first != paths.fingerprint(run)


def test_loading_takes_little_more_host_memory_than_one_slice():
    """300 MB in three shards onto 8x1 take at most 64 MB more, the largest tensor being 33 MB.

    On a CPU the shards are host memory too.
    """
    out = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "load_memory.py"), "--megabytes", "300"],
        capture_output=True,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert out.returncode == 0, out.stderr
    got = json.loads(out.stdout.splitlines()[-1])
    assert got["weights_mb"] >= 290 and got["mesh"] == "8x1" and got["shards"] >= 3
    assert got["beyond_mb"] < 64, got


HOST = """
import sys, json
sys.path[:0] = [{root!r}, {root!r} + "/tests", {root!r} + "/tests/checkpoint"]
import jax
import jax.numpy as jnp
import numpy as np
import model, sharding
from checkpoint import load, runs
from foreign import LLAMA, random_weights
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize("127.0.0.1:{port}", num_processes=2, process_id={i})
weights, read = random_weights(LLAMA), []
mesh, layout = sharding.make_mesh(8, 1), model.make_layout(LLAMA, 8, 1)
device_put = jax.device_put
def counted(x, device=None, **k):
    read.append(np.asarray(x).nbytes)
    return device_put(x, device, **k)
jax.device_put = counted
got = load.load_weights({path!r}, LLAMA, mesh, layout)
jax.device_put = device_put
for name, x in got.items():
    if (name, 0) in weights:
        want = np.stack([weights[name, i] for i in range(LLAMA.L)])
    else:
        want = weights[name, None]
    want = np.pad(want, [(0, n - m) for n, m in zip(x.shape, want.shape)])
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, want[shard.index], err_msg=name)
split = lambda n: bool(sharding.axes_of(layout.specs[n]))
whole = sum(x.nbytes for n, x in got.items() if split(n))
assert sum(read) <= whole / 2 + sum(4 * x.nbytes for n, x in got.items() if not split(n))
saver = runs.Saver({run!r}, 2)
saver.save(1, {{"weights": got}}, {{"step": 1}})
saver.wait()
there = {{n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for n, x in got.items()}}
back, meta = saver.restore({{"weights": there}})
for name in got:
    for a, b in zip(got[name].addressable_shards, back["weights"][name].addressable_shards):
        np.testing.assert_array_equal(a.data, b.data)
saver.close()
print("good", saver.steps(), meta)
"""


def test_two_processes_load_and_save_their_own_shards(tmp_path):
    path = hf_folder(tmp_path / "hf", LLAMA, hf_tensors(LLAMA, random_weights(LLAMA)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    code = [
        HOST.format(root=str(ROOT), port=port, i=i, path=path, run=str(tmp_path / "run"))
        for i in range(2)
    ]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", c],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for c in code
    ]
    for host in hosts:
        out, err = host.communicate(timeout=240)
        assert "good [1] {'step': 1}" in out, err[-3000:]
    run_config = {"config": dataclasses.asdict(LLAMA)}
    (tmp_path / "run" / "run.json").write_text(json.dumps(run_config))
    assert_same(collect(tmp_path / "run", LLAMA), random_weights(LLAMA))


def llama2c_logits(path, tokens):
    """Logits [T, V] of stories260K's tokens in float64 from the file itself.

    Interleaved RoPE, one token at a time, nothing of this project.
    """
    raw = open(path, "rb").read()
    D, F, L, N, K, V, S = struct.unpack("<7i", raw[:28])
    H, flat, at = D // N, np.frombuffer(raw, "<f4", offset=28).astype(np.float64), 0

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return flat[at - int(np.prod(shape)) : at].reshape(shape)

    embed, attn_norm = take(V, D), take(L, D)
    wq, wk, wv, wo = take(L, D, D), take(L, K * H, D), take(L, K * H, D), take(L, D, D)
    mlp_norm, w1, w2, w3, final = take(L, D), take(L, F, D), take(L, D, F), take(L, F, D), take(D)

    def norm(x, g):
        return x / np.sqrt((x * x).mean() + 1e-5) * g

    def rotate(v, turn):
        return (v.reshape(-1, H // 2, 2) @ [1, 1j]) * turn

    keys, values, out = [[] for _ in range(L)], [[] for _ in range(L)], []
    for t, token in enumerate(tokens):
        turn = np.exp(1j * t * 10000.0 ** (-np.arange(0, H, 2) / H))
        x = embed[token]
        for i in range(L):
            h = norm(x, attn_norm[i])
            q = rotate(wq[i] @ h, turn)
            keys[i].append(rotate(wk[i] @ h, turn))
            values[i].append((wv[i] @ h).reshape(K, H))
            heads = []
            for n in range(N):
                score = np.array(
                    [(q[n] * k[n * K // N].conj()).real.sum() for k in keys[i]]
                ) / np.sqrt(H)
                p = np.exp(score - score.max())
                heads.append((p / p.sum()) @ np.array([v[n * K // N] for v in values[i]]))
            x = x + wo[i] @ np.concatenate(heads)
            h = norm(x, mlp_norm[i])
            gate = w1[i] @ h
            x = x + w2[i] @ (gate / (1 + np.exp(-gate)) * (w3[i] @ h))
        out.append(embed @ norm(x, final))
    return np.array(out)


def test_stories260k_writes_its_expected_text_and_agrees_with_a_float64_loop(data_dir):
    folder = data_dir / "models" / "stories260K"
    path = str(folder / "stories260K.bin")
    config, tok = (
        paths.model_config(path),
        tokenizer.load(str(folder / "tok512.model"), roles=False),
    )
    mesh, layout = mesh_of(1, 1), model.make_layout(config, 1, 1)
    weights, logits = (
        load.load_weights(path, config, mesh, layout),
        model.make_logits(config, mesh, layout),
    )
    ids = np.full((1, 257), tok.bos, np.int32)
    for t in range(256):
        ids[0, t + 1] = int(np.argmax(logits(weights, ids)[0, t]))
    assert tok.bos not in ids[0, 1:]
    assert (
        tok.decode(ids[0, 1:].tolist()) + "\n" == (folder / "greedy_expected.txt").read_text()
    )  # run.c ends its line
    want = llama2c_logits(path, ids[0, :60])
    np.testing.assert_allclose(
        logits(weights, ids)[0, :60], want, atol=1e-4
    )  # float32 against float64; logits to about 20


def test_stories260k_survives_conversion_to_hugging_face_and_easylm(data_dir, tmp_path):
    path = str(data_dir / "models" / "stories260K" / "stories260K.bin")
    config = paths.model_config(path)
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    assert (
        checkpoint(["convert", str(tmp_path / "hf"), str(tmp_path / "stream"), "--to", "easylm"])
        == 0
    )
    for there in (tmp_path / "hf", f"params::{tmp_path / 'stream'}"):
        assert_same(collect(there, config), collect(path, config))
    assert tokenizer.load(str(tmp_path / "hf"), roles=False).base_size == 512


def test_tiny_gpt2_loads(data_dir, tmp_path):
    path = str(data_dir / "models" / "tiny-gpt2")
    config = paths.model_config(path)
    assert (config.V, config.D, config.L, config.N, config.P, config.tied) == (
        50257,
        2,
        2,
        2,
        1024,
        True,
    )
    mesh, layout = mesh_of(8, 1), model.make_layout(config, 8, 1)
    got = load.load_weights(path, config, mesh, layout)
    with safetensors.safe_open(pathlib.Path(path) / "model.safetensors", "numpy") as file:
        names = list(file.keys())

        def find(end):
            return file.get_tensor(next(n for n in names if n.endswith(end)))

        np.testing.assert_array_equal(got["embed"][: config.V], find("wte.weight"))
        np.testing.assert_array_equal(got["wk"][1], find("h.1.attn.c_attn.weight")[:, 2:4])
        np.testing.assert_array_equal(got["bv"][0], find("h.0.attn.c_attn.bias")[4:])
    assert (
        checkpoint(
            [
                "convert",
                path,
                str(tmp_path / "hf"),
                "--tokenizer",
                str(data_dir / "tokenizers" / "gpt2"),
            ]
        )
        == 0
    )
    assert_same(collect(tmp_path / "hf", config), collect(path, config))


@pytest.mark.parametrize("case", list(make_references.CASES))
def test_what_transformers_saves_and_what_it_loads_give_its_logits(case, live, tmp_path):
    import torch

    torch.manual_seed(0)
    theirs = make_references.hugging_face(make_references.CASES[case])
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn(weight.shape) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    token_BT = np.random.default_rng(0).integers(0, 37, (2, 23)).astype(np.int32)
    with torch.no_grad():
        want = theirs(torch.from_numpy(token_BT).long()).logits.numpy()
    np.testing.assert_allclose(our_logits(tmp_path / "theirs", token_BT), want, atol=2e-4)
    assert checkpoint(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    np.testing.assert_allclose(their_logits(str(tmp_path / "ours"), token_BT), want, atol=1e-5)
    assert (
        checkpoint(
            ["convert", str(tmp_path / "theirs"), str(tmp_path / "half"), "--dtype", "bfloat16"]
        )
        == 0
    )
    np.testing.assert_allclose(
        their_logits(str(tmp_path / "half"), token_BT),
        our_logits(tmp_path / "half", token_BT),
        atol=2e-4,
    )


def test_an_exported_run_with_roles_gives_transformers_our_logits_and_our_ids(live, tmp_path):
    from transformers import AutoTokenizer

    tok = tokenizer.load(str(ROOT / "samples" / "tokenizer.model"))
    config = dataclasses.replace(TIED, V=tok.size)
    path = run_folder(tmp_path / "run", config, random_weights(config))
    tok.save(str(tmp_path / "run" / "tokenizer"))
    assert checkpoint(["convert", path, str(tmp_path / "hf")]) == 0
    token_BT = np.array(
        [[tok.bos, tok.user, 5, 9, tok.assistant, 77, tok.eos], list(range(100, 107))], np.int32
    )
    np.testing.assert_allclose(
        their_logits(str(tmp_path / "hf"), token_BT), our_logits(path, token_BT), atol=2e-4
    )
    assert their_logits(str(tmp_path / "hf"), token_BT).shape[-1] == tok.size
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("Who made it?", add_special_tokens=False).input_ids == tok.encode("Who made it?")
    assert theirs.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]) == [tok.user, tok.assistant]
    assert theirs.eos_token_id == tok.eos


def test_a_difference_is_not_loaded_as_a_model_by_transformers(live, tmp_path):
    paths = [
        hf_folder(tmp_path / n, LLAMA, hf_tensors(LLAMA, random_weights(LLAMA, i)))
        for i, n in enumerate(("base", "tuned"))
    ]
    assert checkpoint(["diff", *paths, str(tmp_path / "diff")]) == 0
    with pytest.raises(ValueError, match="difference"):
        their_logits(str(tmp_path / "diff"), np.zeros((1, 3), np.int32))


def test_tiny_gpt2_gives_transformers_logits(live, data_dir, tmp_path):
    path = data_dir / "models" / "tiny-gpt2"
    token_BT = np.random.default_rng(0).integers(0, 50257, (2, 30)).astype(np.int32)
    np.testing.assert_allclose(
        our_logits(path, token_BT), their_logits(str(path), token_BT), atol=2e-4
    )
