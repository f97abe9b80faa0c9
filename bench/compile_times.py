"""How long a training step takes to compile on this CPU: with nothing compiled before, and from the
cache.

    python bench/compile_times.py

Each start is a process of its own; the cache is a temporary folder. No weight is allocated. Tracing
is what Python takes to write the program down, before XLA sees it; it is never saved. Left out:
accelerators (bench/gpu.py has an H100's).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CASES = {  # name -> preset, layers (None: all), flags
    "SmolLM2-135M, 4 x 512": ("smollm2-135m", None, "--batch 4 --block 512"),
    "LLaMA-7B's shape, 2 layers, 1 x 512": ("llama-7b", 2, "--batch 1 --block 512"),
    "the quick start's, mesh 8x1": ("mini", None, "--batch 8 --block 256 --mesh 8x1"),
}


def alone(preset, layers, given):
    """Compile one step in this process -> a line of JSON with its seconds."""
    import jax.numpy as jnp

    import model
    import sharding
    import train
    from training import batches, flags
    from training.start import state_like, step_options

    given = ["--plan", "--model", preset, "--dtype", "float32", *given.split()]
    s, _ = flags.resolve(flags.parser().parse_args(given))
    mesh, _ = sharding.start_devices(s.mesh or "1x1")
    sharding.use_precision_of(s.dtype)
    config = model.preset(preset)
    config = dataclasses.replace(config, L=layers or config.L)
    layout = model.make_layout(config, *mesh.devices.shape)
    options = step_options(s, config, "cpu", layout.data)
    like = state_like(config, mesh, layout, jnp.float32)
    columns = {"tokens": s.block + 1, "loss_mask": s.block + 1}
    rows = batches.batch_like(columns, s.batch, 1, mesh)
    start, cpu = time.perf_counter(), time.process_time()
    lowered = train.lower_step(s, like, rows, (100, 10), config, mesh, layout, options)
    traced = time.perf_counter() - start
    start = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter() - start
    print(json.dumps({"trace": traced, "compile": compiled, "cpu": time.process_time() - cpu}))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.alone:
        preset, layers, given = args.alone
        alone(preset, int(layers) or None, given)
        return
    print("| step | start | tracing s | compiling s | CPU s |\n|---|---|---|---|---|")
    for name, (preset, layers, given) in CASES.items():
        with tempfile.TemporaryDirectory() as home:
            for start in ("nothing compiled", "from the cache"):
                command = [sys.executable, __file__, "--alone", preset, str(layers or 0), given]
                done = subprocess.run(
                    command, env=os.environ | {"HOME": home}, check=True, stdout=subprocess.PIPE
                )
                t = json.loads(done.stdout)
                figures = f"{t['trace']:.1f} | {t['compile']:.1f} | {t['cpu']:.1f}"
                print(f"| {name} | {start} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
