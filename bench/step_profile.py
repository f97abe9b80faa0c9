"""Where a step's milliseconds go on this CPU, by kind of operation, from the profiler's trace.

    python bench/step_profile.py                  2 layers, D 384, 8 rows of 512, V 512, remat dots
    taskset -c 1 python bench/step_profile.py     on one core, where times add up

Loss and gradients without the optimizer. An operation's kind is read from its name in the compiled
program. On a busy machine an operation's time holds what else ran meanwhile: --realtime gives the
steps the scheduler's real-time class for the few seconds they take (root only).
"""

import argparse
import collections
import glob
import gzip
import json
import os
import pathlib
import re
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np
from jax.sharding import PartitionSpec as Spec

import model
import sharding

# the profiler's own names, which hold other operations
AROUND = re.compile(r"Thunk|\$|while|end:|Slinky|Pjit|call|Task|Pj|Cpu|Exec|Compile|Async|Await")


def kind_of(name, shape, op, width):
    """The kind of one operation by its name and the name of what it was compiled from."""
    back = "backward" if "transpose(jvp" in op else "forward"
    if re.search("md,vd|cv,vd|cv,cd", op):
        return "head and loss"
    if op.count("while/body") > 1 and "closed_call" in op:
        return f"attention, {back}"
    if name.startswith("wrapped_broadcast"):
        return "stacks of residuals: zeros"
    if name.startswith("dot") or (name.startswith("ynn_fusion") and "dot_general" in op):
        part = "dw" if name.startswith("dot") else "dx"
        return f"weights' products, {part if back == 'backward' else back}"
    if "dynamic_update" in op or "dynamic_index" in op or "dynamic-slice" in name:
        return "stacks of residuals: written and read"
    if "silu" in op or str(width) in shape or str(2 * width) in shape:
        return f"MLP elementwise, {back}"
    return f"norms, RoPE, layouts and the rest, {back}"


def by_kind(trace, program, width, steps):
    """kind -> milliseconds a step of a trace's folder and the compiled program's text."""
    made_of = {
        m[1]: (m[2], m[3])
        for m in re.finditer(r"%([\w.\-]+) = (\S+) .*?op_name=\"([^\"]*)\"", program)
    }
    milliseconds = collections.Counter()
    (path,) = glob.glob(f"{trace}/plugins/profile/*/*.trace.json.gz")
    for event in json.load(gzip.open(path))["traceEvents"]:
        name = event.get("name", "")
        if event.get("ph") == "X" and not AROUND.match(name):
            kind = kind_of(name, *made_of.get(name, ("", "")), width)
            milliseconds[kind] += event["dur"] / 1e3 / steps
    return milliseconds


def set_realtime(on):
    """Put this process's threads into the real-time class, or back."""
    for thread in os.listdir("/proc/self/task"):
        policy = os.SCHED_FIFO if on else os.SCHED_OTHER
        os.sched_setscheduler(int(thread), policy, os.sched_param(int(on)))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--layers", type=int, default=2, metavar="L")
    p.add_argument("--remat", choices=["full", "dots", "none"], default="dots")
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--realtime", action="store_true", help="needs root; others wait meanwhile")
    args = p.parse_args(argv)
    config = model.llama(512, 384, args.layers, 6, 1024, 512, 1e-5)
    options = model.StepOptions(attention="blockwise", remat=args.remat)
    mesh, layout = sharding.make_mesh(1, 1), model.make_layout(config, 1, 1)
    weights = model.initialise(config, mesh, layout, 0)
    token_BX = np.random.default_rng(0).integers(0, 512, (8, 513)).astype(np.int32)
    weight_BT = np.full((8, 512), 1 / 4096, np.float32)
    specs = layout.stacked(config)

    def local(weights, token_BX, weight_BT):
        return model.loss_and_gradients(weights, token_BX, None, weight_BT, config, layout, options)

    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(specs, Spec(), Spec()),
        out_specs=(Spec(), specs),
        check_vma=False,
    )
    step = jax.jit(sharded).lower(weights, token_BX, weight_BT).compile()
    jax.block_until_ready(step(weights, token_BX, weight_BT))
    with tempfile.TemporaryDirectory() as trace:
        set_realtime(True) if args.realtime else None
        wall, cpu = time.perf_counter(), time.process_time()
        with jax.profiler.trace(trace):
            for _ in range(args.steps):
                jax.block_until_ready(step(weights, token_BX, weight_BT))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            set_realtime(False) if args.realtime else None
        kinds = by_kind(trace, step.as_text(), config.F, args.steps)
    print(f"{args.layers} layers, remat {args.remat}: {wall / args.steps:.2f} s a step")
    print(f"{cpu / args.steps:.2f} s of CPU\n\n| kind | ms | share |\n|---|---|---|")
    for kind, ms in sorted(kinds.items()):
        print(f"| {kind} | {ms:.0f} | {ms / kinds.total():.0%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
