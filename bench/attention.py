"""Attention forward and backward: compiled temporaries and time of the plain kernel, of
jax.nn.dot_product_attention and of the blockwise one.

    python bench/attention.py     # B 2, 8 heads of 64, 2048 tokens, float32
    python bench/attention.py --lengths 512 2048 --kv-heads 2

Rounds are interleaved and medians are shown, since a shared machine drifts. Left out: accelerators'
own kernels (bench/gpu.sh has them).
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from kernels.attention import blockwise_attention, causal_mask, reference_attention

KERNELS = {
    "plain": lambda q, k, v, block: reference_attention(
        q, k, v, causal_mask(jnp.ones(q.shape[:2], jnp.int32))
    ),
    "jax.nn": lambda q, k, v, block: jax.nn.dot_product_attention(q, k, v, is_causal=True),
    "blockwise": lambda q, k, v, block: blockwise_attention(q, k, v, None, block),
}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--lengths", type=int, nargs="+", default=[2048], metavar="T")
    p.add_argument("--batch", type=int, default=2, metavar="B")
    p.add_argument("--heads", type=int, default=8, metavar="N")
    p.add_argument("--kv-heads", type=int, metavar="K", help="[default: as many as heads]")
    p.add_argument("--head-size", type=int, default=64, metavar="H")
    p.add_argument(
        "--blocks", type=int, nargs="+", default=[128], metavar="X", help="blocks of queries to try"
    )
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--rounds", type=int, default=5)
    args = p.parse_args(argv)
    print(
        f"{jax.devices()[0].device_kind}, {args.dtype}, B {args.batch}, heads {args.heads}, H"
        f" {args.head_size}: forward and backward, median of {args.rounds} rounds"
    )
    for T in args.lengths:
        keys = jax.random.split(jax.random.key(0), 4)
        heads = [args.heads, args.kv_heads or args.heads, args.kv_heads or args.heads, args.heads]
        q, k, v, g = (
            jax.random.normal(key, (args.batch, T, n, args.head_size), jnp.dtype(args.dtype))
            for key, n in zip(keys, heads, strict=True)
        )
        compiled = {}
        for name, kernel in KERNELS.items():
            for block in args.blocks if name == "blockwise" else [0]:

                def both(q, k, v, g, kernel=kernel, block=block):
                    out, vjp = jax.vjp(lambda *a: kernel(*a, block), q, k, v)
                    return out, vjp(g)

                compiled[f"{name} {block or ''}"] = jax.jit(both).lower(q, k, v, g).compile()
        times = {name: [] for name in compiled}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, f in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(f(q, k, v, g))
                times[name].append(time.perf_counter() - start)
        for name, f in compiled.items():
            mib = f.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"T {T:<6} {name:<14} {mib:8.0f} MiB temporaries"
                f" {statistics.median(times[name][1:]) * 1000:8.0f} ms"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
