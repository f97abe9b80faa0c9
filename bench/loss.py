"""Loss of a vocabulary, with its gradients: compiled temporaries and time of the plain
cross-entropy (whole logits) and of the chunked one.

    python bench/loss.py     # 2,048 tokens of width 256, V 32,000 and 128,256, float32

Rounds are interleaved and medians are shown, since a shared machine drifts. The gradients
themselves (of the hidden states and of the output matrix) are results, not temporaries. Left out:
the vocabulary split over devices (tests/test_sharding.py holds it to this one).
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from kernels.loss import cross_entropy, head_cross_entropy, head_logits


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--vocab", type=int, nargs="+", default=[32000, 128256], metavar="V")
    p.add_argument("--tokens", type=int, default=2048, metavar="M")
    p.add_argument("--width", type=int, default=256, metavar="D")
    p.add_argument(
        "--chunks",
        type=int,
        nargs="+",
        default=[256, 1024],
        metavar="C",
        help="tokens whose logits exist at once",
    )
    p.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--rounds", type=int, default=3)
    args = p.parse_args(argv)
    print(
        f"{jax.devices()[0].device_kind}, {args.dtype}, {args.tokens} tokens, D {args.width}: loss"
        f" and gradients, median of {args.rounds} rounds"
    )
    for V in args.vocab:
        keys = jax.random.split(jax.random.key(0), 3)
        x = jax.random.normal(keys[0], (args.tokens, args.width), jnp.dtype(args.dtype))
        head = (jax.random.normal(keys[1], (V, args.width)) * args.width**-0.5).astype(x.dtype)
        target = jax.random.randint(keys[2], (args.tokens,), 0, V)
        weight = jnp.full((args.tokens,), 1 / args.tokens)

        def plain(x, head, V=V, target=target, weight=weight):
            return cross_entropy(head_logits(x, head, V, 0)[None], target[None], weight[None])

        cases = {"plain": plain} | {
            f"chunks of {c}": lambda x, head, c=c, V=V, target=target, weight=weight: (
                head_cross_entropy(x, head, target, weight, V, None, c)
            )
            for c in args.chunks
        }
        programs = {
            name: jax.jit(jax.value_and_grad(f, (0, 1))).lower(x, head).compile()
            for name, f in cases.items()
        }
        times, results = {name: [] for name in cases}, {}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, program in programs.items():
                start = time.perf_counter()
                results[name] = jax.block_until_ready(program(x, head))
                times[name].append(time.perf_counter() - start)
        for name, program in programs.items():
            distance = max(
                float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                for a, b in zip(
                    jax.tree.leaves(results[name]), jax.tree.leaves(results["plain"]), strict=True
                )
            )
            mib = program.memory_analysis().temp_size_in_bytes / 2**20
            print(
                f"V {V:<8} {name:<16} {mib:8.0f} MiB temporaries"
                f" {statistics.median(times[name][1:]) * 1000:8.0f} ms   differs from plain by"
                f" {distance:.0e}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
