"""Host memory that loading takes beyond the weights: a synthetic sharded Hugging Face folder onto
virtual CPU devices.

    python bench/load_memory.py --megabytes 300 --mesh 8x1    # --dtype bfloat16: half the file

Prints peak resident memory while loading, less that before and less the weights (on CPU the device
shards are host memory too), sampled every millisecond from /proc; pages of the mapped files count
as well. Left out: accelerators.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np

import model
import sharding
from checkpoint import export
from checkpoint.load import load_weights
from checkpoint.mapping import order


def resident():
    """Resident memory of this process in MB: its own, and the pages of the files that it has
    mapped.
    """
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    kb = {n: int(v.split()[0]) for n, v in fields.items()}
    return kb["RssAnon"] / 1000, kb["RssFile"] / 1000


def synthetic(folder, config, dtype):
    """A folder of random weights, written shard by shard, a tensor at a time."""
    size, table, rng = (
        model.sizes(config, padded=False),
        model.weight_table(config),
        np.random.default_rng(0),
    )

    def random(name):
        return rng.standard_normal([size[d] for d in table[name].dims], np.float32)

    stream = ((name, layer, random(name)) for name, layer in order(config))
    export.write_hf(folder, config, stream, None, dtype, shard_bytes=100_000_000)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, default=300, help="of float32 weights [default: 300]"
    )
    parser.add_argument("--mesh", default="8x1", help="[default: 8x1]")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="[default: float32]"
    )
    args = parser.parse_args()
    D, F, V = 1024, 2816, 8192
    layers = max(round((args.megabytes * 1e6 / 4 - 2 * V * D) / (4 * D * D + 3 * D * F)), 1)
    config = model.llama(V, D, layers, 16, F, 2048, 1e-5)
    mesh, _ = sharding.start_devices(args.mesh)
    layout = model.make_layout(config, *mesh.devices.shape)
    with tempfile.TemporaryDirectory() as tmp:
        folder = f"{tmp}/hf"
        synthetic(folder, config, jax.numpy.dtype(args.dtype))
        small = model.llama(
            256, D, 1, 16, F, 2048, 1e-5
        )  # what XLA and numpy keep once they have run is not the weights'
        synthetic(f"{tmp}/small", small, np.float32)
        load_weights(f"{tmp}/small", small, mesh, model.make_layout(small, *mesh.devices.shape))
        before, seen, done = resident(), [], threading.Event()

        def watch():
            while not done.is_set():
                seen.append(resident())
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        started = time.time()
        weights = load_weights(folder, config, mesh, layout)
        seconds = time.time() - started
        done.set()
        thread.join()
        shards = len([f for f in os.listdir(folder) if f.endswith(".safetensors")])
    held = sum(x.nbytes for x in weights.values()) / 1e6
    peak = max(anon + file for anon, file in seen) - sum(before)
    largest = V * D * 4 / 1e6
    print(
        f"{held:.0f} MB of weights in {shards} {args.dtype} shards onto {args.mesh}: {seconds:.1f}"
        f" s, peak {peak:.0f} MB = weights + {peak - held:.0f} MB; the largest tensor has"
        f" {largest:.0f} MB"
    )
    figures = {
        "weights_mb": held,
        "peak_mb": peak,
        "beyond_mb": peak - held,
        "largest_mb": largest,
        "seconds": seconds,
    }
    print(json.dumps({"mesh": args.mesh, "shards": shards} | figures))


if __name__ == "__main__":
    main()
