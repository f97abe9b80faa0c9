"""A training step on this CPU against PyTorch: the same LLaMA in transformers, with sdpa attention
and torch's AdamW, in float32.

    python bench/train_vs_torch.py     # L 6, D 384, N 6, F 1024, 8 rows of 512, V 512 and 32,000
    python bench/train_vs_torch.py --vocab 512 --rounds 3 --steps 1 --mesh 1x1 2x1 --busy 1

Ours is train.py's own step (optimizer adamw, so that both do the same arithmetic) on the mesh that
a user gets, theirs forward, backward, clip and AdamW (fused). --busy: other processes that keep a
core busy each. Both start from the same weights and the same
rows; the first two losses must agree to 1e-4 or nothing is timed. Rounds are interleaved and
medians shown, since a shared machine drifts: the ratio is the figure, not the tokens a second.
Needs requirements-compare.txt. Left out: data loading.
"""

import argparse
import math
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import model
import sharding
import train
from bench import torch_twin
from checkpoint import huggingface
from checkpoint.names import file_names
from training import batches
from training.start import new_state, state_like, step_options

LR = 1e-3


def ours(config, tokens, weights_by_name, remat, shape="1x1", dtype="float32"):
    """A function that takes n steps and returns the losses. shape: of the mesh."""
    data, tensor = sharding.parse_mesh(shape, len(jax.devices()))
    mesh = sharding.make_mesh(data, tensor)
    layout = model.make_layout(config, data, tensor, major=True)
    flags = argparse.Namespace(
        dtype=dtype,
        grad_dtype="float32",
        block=tokens.shape[1] - 1,
        attention="auto",
        remat=remat,
        prefetch=None,
        pack="stream",
    )
    compute = step_options(flags, config, "cpu", data)
    opt = train.Optimizer("adamw", 0.9, 0.95, 0.0, 1.0)
    step = train.make_step(
        config, mesh, layout, compute, opt, lambda count: jnp.float32(LR), "token"
    )
    like = state_like(config, mesh, layout, jnp.float32)
    spec = sharding.shardings(layout.stacked(config), mesh)
    held = {
        "state": new_state(
            {n: jax.device_put(x, spec[n]) for n, x in weights_by_name.items()}, like
        )
    }
    rows = {"tokens": tokens, "loss_mask": np.ones(tokens.shape, np.int8)}
    batch = batches.device_batch(
        lambda i: {n: x[i] for n, x in rows.items()}, np.arange(len(tokens)), 1, mesh
    )

    def run(n):
        losses = []
        for _ in range(n):
            held["state"], metrics = step(held["state"], batch)
            losses.append(float(metrics["loss"]))
        return losses

    return run


def theirs(config, tokens, weights_by_name):
    net = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**huggingface.write_config(config), attn_implementation="sdpa")
    )
    state = {}
    for name, row in model.weight_table(config).items():
        for i in range(config.L if row.layered else 1):
            x = np.asarray(weights_by_name[name][i] if row.layered else weights_by_name[name])
            x = x[: config.V] if row.dims[0] == "V" else x
            hf = file_names(config)[name].hf.format(i)
            state[hf] = torch.from_numpy(np.array(x.T if row.dims[0] != "V" and x.ndim == 2 else x))
    net.load_state_dict(state, strict=True)
    step = torch_twin.stepper(net, tokens, LR, fused=True)
    return lambda n: [step() for _ in range(n)]


def timed(cases, rounds, steps, busy):
    """name -> [(seconds, CPU seconds) a step] of interleaved rounds."""
    seconds = {name: [] for name in cases}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        for _ in range(rounds):
            for name, run in cases.items():
                start, cpu = time.perf_counter(), time.process_time()
                run(steps)
                wall, cpu = time.perf_counter() - start, time.process_time() - cpu
                seconds[name].append((wall / steps, cpu / steps))
    finally:
        for other in others:
            other.kill()
            other.wait()
    return seconds


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--vocab", type=int, nargs="+", default=[512, 32000], metavar="V")
    p.add_argument("--layers", type=int, default=6, metavar="L")
    p.add_argument("--width", type=int, default=384, metavar="D")
    p.add_argument("--batch", type=int, default=8, metavar="B")
    p.add_argument("--block", type=int, default=512, metavar="T")
    p.add_argument(
        "--remat", choices=["full", "dots", "none"], nargs="+", default=["full", "dots", "none"]
    )
    p.add_argument("--mesh", nargs="+", help="[default: train.py's own]")
    p.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=2, help="steps a round")
    p.add_argument("--busy", type=int, default=0, metavar="N", help="busy processes beside")
    args = p.parse_args(argv)
    devices = sharding.cpu_devices(args.batch, sharding.usable_cores())
    meshes = args.mesh or [f"{devices}x1"]
    most = max(math.prod(sharding.parse_mesh(mesh, sharding.VIRTUAL)) for mesh in meshes)
    jax.config.update("jax_num_cpu_devices", most)
    torch.manual_seed(0)
    for V in args.vocab:
        config = model.llama(
            V, args.width, args.layers, 6, 1024 * args.width // 384, args.block, 1e-5
        )
        mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
        weights = {n: np.asarray(x) for n, x in model.initialise(config, mesh, layout, 0).items()}
        tokens = (
            np.random.default_rng(0).integers(0, V, (args.batch, args.block + 1)).astype(np.int32)
        )
        cases = {
            f"ours, {mesh}, {dtype}, remat {r}": ours(config, tokens, weights, r, mesh, dtype)
            for mesh in meshes
            for dtype in args.dtype
            for r in args.remat
        }
        cases["torch"] = theirs(config, tokens, weights)
        first = {name: run(2) for name, run in cases.items()}
        for name, losses in first.items():
            near = 1e-2 if "bfloat16" in name else 1e-4
            np.testing.assert_allclose(
                losses, first["torch"], rtol=near, err_msg=f"{name} is not the same step as torch's"
            )
        seconds = timed(cases, args.rounds, args.steps, args.busy)
        wall = {name: statistics.median(w for w, _ in s) for name, s in seconds.items()}
        print(
            f"V {V:,}: {args.layers} layers, D {args.width}, {args.batch} x {args.block} tokens,"
            f" {args.rounds} rounds of {args.steps} steps, {torch.get_num_threads()} threads"
        )
        for name, s in seconds.items():
            ratio = statistics.median(
                t / o for (t, _), (o, _) in zip(seconds["torch"], s, strict=False)
            )
            print(
                f"  {name:<34} {args.batch * args.block / wall[name]:8,.0f} tokens/s   {ratio:5.2f}"
                f" x torch   {statistics.median(c for _, c in s):6.2f} s of CPU a step"
            )


if __name__ == "__main__":
    sys.exit(main())
