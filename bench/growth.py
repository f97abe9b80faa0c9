"""How a step's cost grows with the devices: time, memory and bytes by plan.py's own count, for 8 to
1,024 of them, and where more of them stop helping.

    python bench/growth.py                                               the README's tables
    python bench/growth.py --all --models llama-7b --devices v5p H100    every row in full

Nothing is run: these are bounds and one assumption. `least` is the slower of arithmetic at the peak
(with what is computed again) and the wire; `assumed` is model FLOPs at --mfu with the data axis's
traffic hidden behind them and the tensor axis's not, or the data axis's alone where it takes
longer. strong: 32 rows of 2048 tokens on all devices; weak: 4 rows on each. Of the meshes
DATAxTENSOR whose data ranks divide the rows, the quickest (assumed) that fits into memory. Left
out: latency (a ring of 1,024 sends small messages), contention, a torus that is not a cube, several
TPU slices; whether a larger batch learns as much from a token.
"""

import argparse
import itertools
import pathlib
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax.numpy as jnp

import model
from training import plan

CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024)
T, ROWS, ROWS_EACH = 2048, 32, 4
# twice the devices "help" where a step (strong) or a token (weak) takes at least so many times less
HELPS = 1.5


class Cost(NamedTuple):
    mesh: str
    memory: float  # bytes of one device
    received: float  # bytes of one device, a step
    arithmetic: float  # s at the peak
    wire: float  # s
    assumed: float  # s
    why: str  # the longest of its parts

    @property
    def least(self):
        return max(self.arithmetic, self.wire)


def cost(config, device, data, tensor, batch, mfu):
    """The Cost of a step on a mesh, in bfloat16 with float32 state, remat full, as train.py does
    it.
    """
    layout = model.make_layout(config, data, tensor)
    compute = model.StepOptions(
        dtype=jnp.dtype("bfloat16"), attention="pallas", mlp_rows=1, join=()
    )
    sizes = dict(batch=batch, T=T)
    work, wire = plan.step_time_bounds(config, layout, compute, device, **sizes)
    slow, _ = plan.step_time_bounds(config, layout, compute, device, **sizes, mfu=mfu)
    received = plan.wire(config, layout, compute, **sizes)
    over_tensor = received.get("activations over tensor", 0) / (
        device.wire if tensor <= device.island else device.between
    )
    parts = {
        "arithmetic": slow,
        "tensor traffic": over_tensor,
        "weights' traffic": wire if data * tensor > device.island else wire - over_tensor,
    }
    why = max(parts, key=parts.get)
    return Cost(
        f"{data}x{tensor}",
        plan.memory(config, layout, compute, **sizes)["total"],
        sum(received.values()),
        work,
        wire,
        max(slow + over_tensor, wire),
        why,
    )


def best(config, device, chips, batch, mfu):
    """The quickest mesh that fits, None where none does, and the least memory that any needs."""
    meshes = [
        (chips // t, t)
        for t in (1, 2, 4, 8, 16, 32, 64)
        if chips % t == 0 and batch % (chips // t) == 0 and config.N % t == 0
    ]
    costs = [cost(config, device, d, t, batch, mfu) for d, t in meshes]
    fits = [c for c in costs if c.memory < device.memory]
    return min(fits, key=lambda c: c.assumed) if fits else None, min(
        (c.memory for c in costs), default=None
    )


def stops(costs):
    """Where more devices stop helping under strong scaling, in words."""
    counts = [n for n in CHIPS if costs[n]]
    if not counts:
        return "fits nowhere"
    for n, twice in itertools.pairwise(counts):
        gain = costs[n].assumed / costs[twice].assumed
        if gain < HELPS:
            return (
                f"helps up to {n}; {twice} are {gain:.2f} times as fast ({costs[twice].why} is the"
                f" longest part, mesh {costs[twice].mesh})"
            )
    if counts[-1] == CHIPS[-1]:
        return f"helps up to {CHIPS[-1]}, as far as counted"
    return (
        f"helps up to {counts[-1]}; beyond, a row would be shared by {2 * counts[-1] // ROWS}"
        " devices, over which the heads do not divide"
    )


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    print("".join("| " + " | ".join(row) + " |\n" for row in rows))


def flags():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "--models",
        nargs="+",
        default=["llama-7b", "llama-13b", "llama-30b", "llama-65b"],
        choices=model.PRESETS,
        metavar="PRESET",
        help="[default %(default)s]",
    )
    p.add_argument(
        "--devices",
        nargs="+",
        default=["v5p", "H100"],
        choices=plan.DEVICES,
        metavar="NAME",
        help=f"of {', '.join(plan.DEVICES)} [default %(default)s]",
    )
    p.add_argument(
        "--mfu",
        type=float,
        default=0.5,
        metavar="X",
        help="model FLOPs / peak while nothing waits; others report 0.5 on H100 [%(default)s]",
    )
    p.add_argument("--all", action="store_true", help="every count of devices in full, a row each")
    return p


def gib(n):
    return f"{n / plan.GIB:.0f}" if n >= 10 * plan.GIB else f"{n / plan.GIB:.1f}"


def missing(least):
    return "no mesh" if least is None else f"needs {gib(least)} GiB"


def print_every_row(costs_by_system, rows_on, mfu):
    """A row for each model, device and count; `rows_on` gives the rows of a step on n devices."""
    rows = []
    for (name, device), costs in costs_by_system.items():
        for n, (c, least) in costs.items():
            row = [name, f"{n:,} x {device}", *[""] * 9]
            if c:
                row[2:] = [
                    c.mesh,
                    f"{c.memory / plan.GIB:.1f}",
                    f"{c.received / plan.GIB:.1f}",
                    *(f"{x:.3f}" for x in (c.arithmetic, c.wire, c.least, c.assumed)),
                    f"{rows_on(n) * T / n / c.assumed:,.0f}",
                    c.why,
                ]
            else:
                row[2] = missing(least)
            rows.append(row)
    head = "model,devices,mesh,GiB held,GiB received,arithmetic s,wire s,least s".split(",")
    table([*head, f"s at {mfu:.0%}", "tokens/s a device", "longest part"], rows)


def print_table(title, costs_by_system, cell):
    """A row for each model and device, a column for each count of devices."""
    table(
        [title, *(f"{n:,}" for n in CHIPS)],
        [
            [
                f"{name}, {device}",
                *(cell(c) if c else missing(least) for c, least in costs.values()),
            ]
            for (name, device), costs in costs_by_system.items()
        ],
    )


def print_slower_tokens(costs_by_system):
    """Weak scaling in words: where a token takes longer than at its best."""
    for (name, device), costs in costs_by_system.items():
        least = min(c.assumed for c, _ in costs.values() if c)
        slow = [n for n, (c, _) in costs.items() if c and c.assumed > 1.02 * least]
        where = ", ".join(f"{n:,} (mesh {costs[n][0].mesh})" for n in slow)
        words = (
            f"slower a token at {where}" if slow else f"the same time a token up to {CHIPS[-1]:,}"
        )
        print(f"* {name}, {device}: {words}")
    step = ROWS_EACH * CHIPS[-1] * T
    print(
        f"* what ends it is the batch: on {CHIPS[-1]:,} devices {step / 1e6:.1f}M tokens a step, so"
        f" that 150M tokens are {150e6 / step:.0f} steps"
    )


def main(argv=None):
    args = flags().parse_args(argv)
    if not 0 < args.mfu <= 1:
        print(
            f"growth.py: --mfu {args.mfu} is no share: use more than 0, at most 1", file=sys.stderr
        )
        return 2
    for strong in (True, False):

        def rows_on(n, strong=strong):
            return ROWS if strong else ROWS_EACH * n

        costs_by_system = {
            (name, device): {
                n: best(model.preset(name), plan.DEVICES[device], n, rows_on(n), args.mfu)
                for n in CHIPS
            }
            for name in args.models
            for device in args.devices
        }
        title = (
            f"{ROWS} x {T} tokens a step on all devices together"
            if strong
            else f"{ROWS_EACH} x {T} tokens a step on each device"
        )
        print(f"**{'Strong' if strong else 'Weak'} scaling**, {title}\n")
        if args.all:
            print_every_row(costs_by_system, rows_on, args.mfu)
        elif strong:
            print_table(
                f"s a step, least / at {args.mfu:.0%} MFU",
                costs_by_system,
                lambda c: f"{c.least:.2f} / {c.assumed:.2f}",
            )
            print_table(
                "GiB a device, held / received a step (mesh)",
                costs_by_system,
                lambda c: f"{gib(c.memory)} / {gib(c.received)} ({c.mesh})",
            )
        else:
            print_table(
                f"s at {args.mfu:.0%} MFU; GiB held / received",
                costs_by_system,
                lambda c: f"{c.assumed:.2f}; {gib(c.memory)} / {gib(c.received)}",
            )
        if strong:
            for (name, device), costs in costs_by_system.items():
                print(f"* {name}, {device}: {stops({n: c for n, (c, _) in costs.items()})}")
            print()
        else:
            print_slower_tokens(costs_by_system)
    return 0


if __name__ == "__main__":
    sys.exit(main())
