"""What bench/gpu.py measures, one case a process: a case as JSON in, its rows as JSON out.

    echo '{"kind": "ceiling", "size": 8192, "copied": 4294967296}' | python bench/gpu_cases.py jax

The argument names what to import while an earlier case still has the card: jax, torch or both.
Left out: data loading, several GPUs.
"""

import argparse
import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
LR = 1e-4
BANDWIDTH = {
    "H100": 3.35e12,
    "H200": 4.8e12,
}  # bytes/s of the cards' memory, data sheets of the SXM parts
IMPORTS = {
    "jax": ("jax", "train", "decoding.likelihood"),
    "torch": ("torch", "transformers.models.llama.modeling_llama", "train"),
}
IMPORTS["both"] = IMPORTS["jax"] + IMPORTS["torch"]


def config_of(name: str):
    """The Config of a case's model. NAME/L: only the first L layers of it."""
    import model

    name, _, layers = name.partition("/")
    smollm = model.llama(49152, 576, 30, 9, 1536, 2048, 1e-5, K=3, theta=1e5)
    config = {
        "toy": model.llama(512, 64, 2, 2, 176, 128, 1e-5),
        "check": model.llama(512, 256, 2, 2, 704, 256, 1e-5),  # heads of 128: any kernel takes them
        "smollm2-135m": dataclasses.replace(smollm, tied=True),
        "1.3b": model.llama(32000, 2048, 24, 16, 5504, 2048, 1e-5),
        "7b": model.preset("llama-7b"),
    }[name]
    return dataclasses.replace(config, L=int(layers)) if layers else config


def say(**row):
    print(json.dumps(row), flush=True)


def one_device(config, fsdp=True):
    """(device, mesh, layout) of one device."""
    import jax

    import model
    import sharding

    device = jax.devices()[0]
    return device, sharding.make_mesh(1, 1, [device]), model.make_layout(config, 1, 1, fsdp=fsdp)


def seconds_of(function, times: int) -> float:
    """Seconds a call of a function that returns device arrays; the first call warms up."""
    import jax

    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(times):
        result = function()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / times


# --- a training step ---


def options_of(case: dict, config, platform: str):
    """train.py's model.StepOptions for a case's flags, but for what the case overrides."""
    from training.start import step_options

    names = {"grad_dtype": case["grads"], "block": case["block"], "attention": case["attention"]}
    names |= {"dtype": "bfloat16", "remat": case["remat"], "prefetch": None}
    names["pack"] = "documents" if case.get("packed") else "stream"
    options = step_options(argparse.Namespace(**names), config, platform, 1)
    return options._replace(**case.get("options", {}))


def our_step(case: dict, tokens, weights=None):
    """(run(n) -> losses of n steps, peak() -> bytes, what ran): train.py's step."""
    import jax
    import jax.numpy as jnp

    import model
    import sharding
    import train
    from training import batches
    from training.start import new_state, state_like

    config = config_of(case["config"])
    device, mesh, layout = one_device(config)
    options = options_of(case, config, device.platform)
    optimizer = train.Optimizer(case["optimizer"], 0.9, 0.95, 0.0, 1.0)
    step = train.make_step(
        config, mesh, layout, options, optimizer, lambda count: jnp.float32(LR), "token"
    )
    like = state_like(config, mesh, layout, jnp.dtype(case["moment"]))
    if weights is None:
        weights = model.initialise(config, mesh, layout, 0)
    else:
        spec = sharding.shardings(layout.stacked(config), mesh)
        weights = {n: jax.device_put(x, spec[n]) for n, x in weights.items()}
    held = {"state": new_state(weights, like)}
    rows = {"tokens": tokens, "loss_mask": np.ones(tokens.shape, np.int8)}
    if case.get("packed"):
        rows["segment"] = 1 + np.arange(tokens.shape[1])[None] * 4 // tokens.shape[1] + 0 * tokens
    batch = batches.device_batch(lambda i: rows, np.arange(len(tokens)), 1, mesh)
    del weights

    def run(n):
        losses = []
        for _ in range(n):
            held["state"], metrics = step(held["state"], batch)
            losses.append(metrics["loss"])
        return [float(x) for x in losses]

    def peak():
        return (device.memory_stats() or {}).get("peak_bytes_in_use")

    return run, peak, f"jax {jax.__version__}, attention {options.attention}"


def random_tokens(case: dict):
    shape = (case["batch"], case["block"] + 1)
    return np.random.default_rng(0).integers(0, config_of(case["config"]).V, shape).astype(np.int32)


def step_of(program: str):
    """our_step or gpu_theirs.their_step; torch is imported for the latter only."""
    return our_step if program == "ours" else importlib.import_module("gpu_theirs").their_step


def step_case(case: dict):
    """Seconds a step, all steps timed together after two that warm up."""
    start = time.perf_counter()
    run, peak, what = step_of(case["program"])(case, random_tokens(case))
    first = run(2)
    ready = time.perf_counter() - start
    start = time.perf_counter()
    losses = run(case["steps"])
    seconds = (time.perf_counter() - start) / case["steps"]
    assert np.all(np.isfinite(losses)), losses
    say(seconds=seconds, ready=ready, peak=peak(), what=what, first=first[0], last=losses[-1])
    if case.get("profile") and case["program"] == "ours":
        say(kernels=kernels_of(lambda: run(2)))


def kernels_of(run) -> list:
    """[[kernel, milliseconds, launches]] of what `run` starts on the card, the longest first."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        file = next(pathlib.Path(folder).rglob("*.xplane.pb"))
        found = {}
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines if "GPU" in plane.name else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    ms, count = found.get(event.name, (0.0, 0))
                    found[event.name] = ms + event.duration_ns / 1e6, count + 1
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    return [[name[:120], round(ms, 3), count] for name, (ms, count) in ordered[:60]]


# --- the two programs take the same step; what the card reaches ---


def check_case(case: dict):
    """Three steps of a small model by both from one start: the losses' worst difference."""
    import model

    config = config_of(case["config"])
    _, mesh, layout = one_device(config)
    made = model.initialise(config, mesh, layout, 0)
    weights, tokens = {n: np.asarray(x) for n, x in made.items()}, random_tokens(case)
    programs = step_of("ours"), step_of("transformers")
    losses = [step(case, tokens, weights)[0](3) for step in programs]
    say(losses=losses, worst=max(abs(a / b - 1) for a, b in zip(*losses, strict=True)))


def text_case(case: dict):
    """Greedy ids of the Decoder against full forwards, float32, a small model: how many agree."""
    import jax
    import jax.numpy as jnp

    import model
    from decoding import cache, decoder, records, reference

    jax.config.update("jax_default_matmul_precision", "highest")
    config, new = config_of(case["config"]), case["new"]
    _, mesh, layout = one_device(config, fsdp=False)
    weights = model.initialise(config, mesh, layout, 0)
    logits = model.make_logits(config, mesh, layout)
    prompts = np.random.default_rng(0).integers(0, config.V, (2, case["prompt"])).tolist()
    shape = dict(length=case["prompt"] + new, rows=2, stop=(), max_new=new)
    wanted = reference.plain(lambda token: logits(weights, jnp.asarray(token)), prompts, **shape)
    apart, specs = cache.for_decoding(dict(weights), config, mesh, layout)
    programs = decoder.Decoder(config, mesh, layout, specs)
    made = programs.generate(apart, prompts, records.Sampling(new), batch=2)
    ids = {output.prompt: output.ids for output in made}
    same = [a == b for i in ids for a, b in zip(ids[i], wanted[i], strict=True)]
    say(tokens=len(same), same=sum(same))


def ceiling_case(case: dict):
    """What the card reaches: a large bfloat16 product in FLOP/s, a large copy in bytes/s.

    A copy's bytes are those read and those written.
    """
    import jax
    import jax.numpy as jnp

    n, copied = case["size"], case["copied"]
    a, b = (
        jax.random.normal(key, (n, n), jnp.bfloat16) for key in jax.random.split(jax.random.key(0))
    )
    x = jax.random.normal(jax.random.key(1), (copied // 2,), jnp.bfloat16)
    product, copy = jax.jit(lambda a, b: a @ b), jax.jit(lambda x: -x)
    say(
        flops=2 * n**3 / seconds_of(lambda: product(a, b), 20),
        bandwidth=2 * copied / seconds_of(lambda: copy(x), 20),
    )


# --- attention alone ---


def attention_case(case: dict):
    """Forward and backward of the attention kernels, rows of one document and of several."""
    import jax
    import jax.numpy as jnp

    from kernels import attention as kernels

    B, T, N, H = case["batch"], case["block"], case["heads"], case["head_size"]
    keys = jax.random.split(jax.random.key(0), 4)
    data = [jax.random.normal(key, (B, T, N, H), jnp.bfloat16) for key in keys]
    segments = {
        False: jnp.ones((B, T), jnp.int32),
        True: jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32) * 4 // T, (B, T)),
    }

    def both(kernel, packed):
        def run(q, k, v, g):
            rows = segments[packed][: len(q)], packed, kernel
            out, vjp = jax.vjp(lambda *heads: kernels.causal_attention(*heads, *rows), q, k, v)
            return out, *vjp(g)

        return jax.jit(run)

    few, wanted = [x[:1].astype(jnp.float32) for x in data], {}
    for packed in (False, True):
        mask = kernels.causal_mask(segments[packed][:1])
        with jax.default_matmul_precision("highest"):
            out, vjp = jax.vjp(
                lambda *a, mask=mask: kernels.reference_attention(*a, mask), *few[:3]
            )
            wanted[packed] = out, *vjp(few[3])
    for kernel, packed in itertools.product(case["kernels"], (False, True)):
        run, row = both(kernel, packed), {"kernel": kernel, "packed": packed}
        try:
            seconds = seconds_of(lambda run=run: run(*data), case["steps"])
        except Exception as error:  # a kernel that cannot is a row that says so
            say(**row, failed=f"{type(error).__name__}: {error}"[:400])
            continue
        got = [x[:1].astype(jnp.float32) for x in run(*data)]
        norm = jnp.linalg.norm
        far = [float(norm(a - b) / norm(b)) for a, b in zip(got, wanted[packed], strict=True)]
        flops = 3.5 * 2 * B * N * T * T * H
        say(**row, seconds=seconds, flops=flops / seconds, error=max(far))


# --- decoding ---


def bfloat16_weights(config, mesh, layout):
    """Random weights in bfloat16, one after the other: a 7B's in float32 would be 27 GB."""
    import jax.numpy as jnp

    import model

    weights = model.initialise(config, mesh, layout, 0)
    for name in list(weights):
        weights[name] = weights[name].astype(jnp.bfloat16)
    return weights


def decode_case(case: dict):
    """Tokens a second of the Decoder, whole calls: the prompts are read in that time too."""
    import jax.numpy as jnp

    import model
    from decoding import cache, decoder, records

    config = config_of(case["config"])
    device, mesh, layout = one_device(config, fsdp=False)
    stacked = bfloat16_weights(config, mesh, layout)
    weights, specs = cache.for_decoding(stacked, config, mesh, layout)
    programs = decoder.Decoder(config, mesh, layout, specs, jnp.bfloat16)
    size = model.parameter_count(config) - (0 if config.tied else config.V * config.D)
    random = np.random.default_rng(0)
    for batch in case["batches"]:
        prompts = random.integers(0, config.V, (batch, case["prompt"])).tolist()
        sampling = records.Sampling(case["new"])
        run = functools.partial(programs.generate, weights, prompts, sampling, batch=batch)
        start = time.perf_counter()
        list(run())
        ready = time.perf_counter() - start
        start = time.perf_counter()
        made = sum(len(output.ids) for output in run())
        seconds = time.perf_counter() - start
        tokens = case["prompt"] + case["new"] / 2  # of a row in the cache, on average
        moved = 2 * size + batch * tokens * 4 * config.L * config.K * config.H
        share = moved / (seconds / case["new"]) / bandwidth_of(device.device_kind)
        say(batch=batch, rate=made / seconds, share=share, ready=ready, step=seconds / case["new"])
        if case.get("profile") and batch == case["batches"][0]:
            say(kernels=kernels_of(lambda run=run: list(run())))


def bandwidth_of(kind: str) -> float:
    return next((rate for name, rate in BANDWIDTH.items() if name in kind), float("nan"))


# --- questions ---


def questions_case(case: dict):
    """MMLU-like requests a second: each subject's questions share their shots; random ids."""
    import jax.numpy as jnp

    from decoding import likelihood, records

    config = config_of(case["config"])
    _, mesh, layout = one_device(config, fsdp=False)
    weights = bfloat16_weights(config, mesh, layout)
    scorer = likelihood.Scorer(config, mesh, layout, jnp.bfloat16)
    random, requests = np.random.default_rng(0), []
    for _ in range(case["subjects"]):
        shots = random.integers(0, config.V, case["shots"]).tolist()
        for length in random.integers(*case["question"], case["questions"]):
            ids = shots + random.integers(0, config.V, length).tolist()
            requests.append(records.Request(ids, [len(ids) - 1], [[1, 2, 3, 4]]))
    for share in (True, False):
        some = requests if share else requests[: case["alone"]]
        for warm in (True, False):
            start = time.perf_counter()
            found = {i: logp for i, logp, _, _ in scorer.score(weights, some, case["batch"], share)}
            seconds = time.perf_counter() - start
            if warm:
                ready = seconds
        assert len(found) == len(some) and all(np.all(np.isfinite(x)) for x in found.values())
        say(shared=share, rate=len(some) / seconds, ready=ready, questions=len(some))


# --- resume ---


def resume_case(case: dict):
    """train.py --deterministic: N steps at once, and half of them and on; are all bits the same."""
    from checkpoint import runs

    with tempfile.TemporaryDirectory() as folder:

        def train(out, steps):
            command = [sys.executable, str(ROOT / "train.py"), *case["flags"]]
            command += ["--steps", str(steps), "--out", f"{folder}/{out}"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
            return done.stdout

        N = case["steps"]
        train("whole", N)
        train("halves", N // 2)
        out = train("halves", N)
        assert f"after step {N // 2}" in out, out[-2000:]

        def lines(name):
            text = pathlib.Path(folder, name, "metrics.jsonl").read_text()
            kept = ("step", "loss", "lr", "grad_norm")
            return [[json.loads(line)[k] for k in kept] for line in text.splitlines()]

        state = [
            {
                name: runs.open_array(f"{folder}/{run}", N, name).read().result()
                for name in runs.record_of(f"{folder}/{run}", N)["sums"]
            }
            for run in ("whole", "halves")
        ]
        same = [n for n, x in state[0].items() if x.tobytes() == state[1][n].tobytes()]
        metrics = [lines(name) for name in ("whole", "halves")]
        attention = re.search(r", attention (\w+)", out)[1]  # of the line "mesh"
    say(
        arrays=len(state[0]), arrays_same=len(same), metrics_same=metrics[0] == metrics[1],
        steps=len(metrics[0]), what=attention, last=metrics[0][-1], last_halves=metrics[1][-1],
    )  # fmt: skip


KINDS = {
    "step": step_case,
    "check": check_case,
    "text": text_case,
    "ceiling": ceiling_case,
    "attention": attention_case,
    "decode": decode_case,
    "their_decode": lambda case: importlib.import_module("gpu_theirs").decode_case(case),
    "questions": questions_case,
    "resume": resume_case,
}


def main() -> int:
    for name in IMPORTS[sys.argv[1]]:
        importlib.import_module(name)
    case = json.loads(sys.stdin.readline())
    KINDS[case["kind"]](case)
    sys.stdout.flush()
    os._exit(0)  # a card's memory is given back at once; destructors take seconds


if __name__ == "__main__":
    main()
