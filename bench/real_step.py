"""A training step of a real model on this CPU against PyTorch's, each in a process of its own.

    python bench/real_step.py --init SmolLM2-135M-Instruct.Q4_1.gguf
    python bench/real_step.py --init MODEL --remat full dots --rounds 3 --rows 4 --block 512

Ours is train.py's step on the mesh that a user gets, with the optimizer adamw; theirs is forward,
backward, clip and fused AdamW over transformers' model with sdpa. Both start from the weights of
MODEL (any model path) in float32 and take the same rows, the embedded dialogues as MODEL's
tokenizer reads them; every loss of every round must agree, or there is no result. Rounds are
interleaved and the ratio is the median of the rounds' ratios, since a shared machine drifts. The
peak is the process's resident memory at most, loading and compiling included. Needs
requirements-compare.txt. Left out: reading data.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LR = 1e-5
AGREE = 1e-4  # of a loss: after n updates the two have rounded differently n times
GIB = 2**30


# --- the two programs ---


def ours(init, token_BX, remat, shape):
    """A function that takes one step and returns its loss. init: a model path. shape: a mesh."""
    import functools

    import jax
    import jax.numpy as jnp

    import model
    import sharding
    import train
    from checkpoint import paths
    from checkpoint.load import load_weights
    from training import batches, flags
    from training.start import new_state, state_like, step_options

    block = token_BX.shape[1] - 1
    given = ["--plan", "--init", init, "--dtype", "float32", "--remat", remat]
    given += ["--block", str(block), "--batch", str(len(token_BX)), "--optimizer", "adamw"]
    given += ["--lr", str(LR), "--schedule", "constant", "--warmup", "0"]
    settings, _ = flags.resolve(flags.parser().parse_args(given))
    mesh, _ = sharding.start_devices(shape)
    sharding.use_precision_of(settings.dtype)
    config = paths.model_config(init)
    data, tensor = mesh.devices.shape
    layout = model.make_layout(config, data, tensor, major=True)
    options = step_options(settings, config, "cpu", data)
    opt = train.Optimizer("adamw", 0.9, 0.95, 0.0, 1.0)
    schedule = functools.partial(
        train.learning_rate, lr=LR, warmup=0, steps=10**9, schedule="constant"
    )
    step = train.make_step(config, mesh, layout, options, opt, schedule, "token")
    like = state_like(config, mesh, layout, jnp.float32)
    held = {"state": new_state(load_weights(init, config, mesh, layout), like)}
    rows = {"tokens": token_BX, "loss_mask": np.ones(token_BX.shape, np.int8)}
    batch = batches.device_batch(
        lambda i: {n: x[i] for n, x in rows.items()}, np.arange(len(token_BX)), 1, mesh
    )

    def run():
        held["state"], metrics = step(held["state"], batch)
        jax.block_until_ready(held["state"])
        return float(metrics["loss"])

    return run


def theirs(folder, token_BX):
    """The same of transformers and torch. folder: a Hugging Face folder."""
    import torch
    import transformers

    from bench import torch_twin

    net = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).train()
    return torch_twin.stepper(net, token_BX, LR, fused=True)


# --- a process a program ---


def serve(program, path, rows, remat, shape):
    """Answer each line on stdin by one step: a line of JSON on stdout. The first one compiles."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    token_BX = np.load(rows)
    run = ours(path, token_BX, remat, shape) if program == "ours" else theirs(path, token_BX)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        loss = run()
        answer = {"loss": loss, "s": time.perf_counter() - start}
        answer["cpu_s"] = time.process_time() - cpu
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps(answer), file=answers)


class Program:
    """One of the programs, as a process that takes a step when it is asked."""

    def __init__(self, name, *argv):
        command = [sys.executable, __file__, "--serve", *argv]
        self.name, self.steps = name, []
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def step(self):
        assert self.process.stdin and self.process.stdout
        print(file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: its error is above")
        self.steps.append(json.loads(line))
        return self.steps[-1]

    def close(self):
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


# --- the comparison ---


def real_rows(init, count, block):
    """The embedded dialogues' text in ids of the model's tokenizer, int32 [count, block + 1]."""
    from text import tokenizer
    from text.dialogues import read_dialogues, turns

    tok, ids, wanted = tokenizer.load(init, roles=False), [], count * (block + 1)
    for dialogue in read_dialogues(ROOT / "samples" / "dialogues.jsonl"):
        ids += tok.encode("\n\n".join(text for _, text, _ in turns(dialogue)))
        if len(ids) >= wanted:
            return np.array(ids[:wanted], np.int32).reshape(count, block + 1)
    raise SystemExit(f"the embedded dialogues have {len(ids)} ids of {wanted}: use fewer --rows")


def check_losses(programs):
    """The two are the same program, or there is nothing to compare."""
    for p in programs:
        ours, theirs = ([s["loss"] for s in q.steps] for q in (p, programs[-1]))
        np.testing.assert_allclose(ours, theirs, rtol=AGREE, err_msg=f"{p.name}: other losses")


def report(programs):
    """The table's lines; the first step compiled and is left out."""
    yield "| program | s a step | torch's s / its own | CPU s a step | peak GiB |"
    yield "|---|---|---|---|---|"
    for p in programs:
        timed, theirs = p.steps[1:], programs[-1].steps[1:]
        wall, cpu = (statistics.median(s[k] for s in timed) for k in ("s", "cpu_s"))
        ratio = statistics.median(t["s"] / s["s"] for t, s in zip(theirs, timed, strict=True))
        peak = timed[-1]["peak"] / GIB
        yield f"| {p.name} | {wall:.2f} | {ratio:.2f} | {cpu:.2f} | {peak:.2f} |"
    for p in programs:
        yield f"losses of {p.name}: " + " ".join(f"{s['loss']:.5f}" for s in p.steps)


def cores(rows):
    """How many devices train.py makes of this CPU."""
    import sharding

    return sharding.cpu_devices(rows, sharding.usable_cores())


def compare(args):
    """Time the programs beside one another and print the table."""
    with tempfile.TemporaryDirectory() as tmp, contextlib.ExitStack() as running:
        rows = f"{tmp}/rows.npy"
        np.save(rows, real_rows(args.init, args.rows, args.block))
        command = [sys.executable, "-m", "checkpoint", "convert", args.init, f"{tmp}/hf"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        programs = [
            Program(f"mynah, {mesh}, remat {r}", "ours", args.init, rows, r, mesh)
            for mesh in args.mesh or [f"{cores(args.rows)}x1"]
            for r in args.remat
        ]
        programs.append(Program("torch", "theirs", f"{tmp}/hf", rows, "", ""))
        for p in programs:
            running.callback(p.close)
        for p in [p for _ in range(1 + args.rounds) for p in programs]:
            took = p.step()
            print(f"{p.name}: {took['s']:.2f} s, loss {took['loss']:.5f}", file=sys.stderr)
    check_losses(programs)
    print(f"{args.init}, {args.rows} x {args.block} tokens, float32, {args.rounds} rounds")
    print(*report(programs), sep="\n")


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--init", metavar="MODEL", required="--serve" not in sys.argv)
    p.add_argument("--rows", type=int, default=4, metavar="B", help="[default: 4]")
    p.add_argument("--block", type=int, default=512, metavar="T", help="[default: 512]")
    p.add_argument("--rounds", type=int, default=5, help="timed ones [default: 5]")
    p.add_argument("--remat", choices=["full", "dots", "none"], nargs="+", default=["full", "dots"])
    p.add_argument("--mesh", nargs="+", help="[default: train.py's own]")
    p.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.serve:
        serve(*args.serve)
    else:
        compare(args)


if __name__ == "__main__":
    main()
