"""A training step on this CPU against PyTorch: the same LLaMA in transformers, with sdpa attention
and torch's AdamW, in float32.

    python bench/train_vs_torch.py     # L 6, D 384, N 6, F 1024, 8 rows of 512, V 512 and 32,000
    python bench/train_vs_torch.py --vocab 512 --rounds 3 --steps 1

Ours is train.py's own step on one device (optimizer adamw, so that both do the same arithmetic),
theirs forward, backward, clip and AdamW (fused). Both start from the same weights and the same
rows; the first two losses must agree to 1e-4 or nothing is timed. Rounds are interleaved and
medians shown, since a shared machine drifts: the ratio is the figure, not the tokens a second.
Needs requirements-compare.txt. Left out: data loading.
"""

import argparse
import pathlib
import statistics
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


def ours(config, tokens, weights_by_name, remat):
    """A function that takes n steps and returns the losses."""
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
    flags = argparse.Namespace(
        dtype="float32",
        grad_dtype="float32",
        block=tokens.shape[1] - 1,
        attention="auto",
        remat=remat,
        prefetch=None,
        pack="stream",
    )
    compute = step_options(flags, config, "cpu", 1)
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
    batch = batches.device_batch(lambda i: rows, np.arange(len(tokens)), 1, mesh)

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
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=2, help="steps a round")
    args = p.parse_args(argv)
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
        cases = {f"ours, remat {r}": ours(config, tokens, weights, r) for r in args.remat} | {
            "torch": theirs(config, tokens, weights)
        }
        first = {name: run(2) for name, run in cases.items()}
        for name, losses in first.items():
            np.testing.assert_allclose(
                losses, first["torch"], rtol=1e-4, err_msg=f"{name} is not the same step as torch's"
            )
        seconds = {name: [] for name in cases}
        for _ in range(args.rounds):
            for name, run in cases.items():
                start, cpu = time.perf_counter(), time.process_time()
                run(args.steps)
                seconds[name].append(
                    (
                        (time.perf_counter() - start) / args.steps,
                        (time.process_time() - cpu) / args.steps,
                    )
                )
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
                f"  {name:<18} {args.batch * args.block / wall[name]:8,.0f} tokens/s   {ratio:5.2f}"
                f" x torch   {statistics.median(c for _, c in s):6.2f} s of CPU a step"
            )


if __name__ == "__main__":
    sys.exit(main())
