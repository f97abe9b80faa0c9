"""What XLA made of a training step: its memory, the bytes it moves, gathers beside products.

    python train.py --plan v5p:2x2x2 --model llama-13b --mesh 8x1

compiles for that topology with libtpu (pip install "jax[tpu]"); no TPU is needed.

    python bench/compiled.py --table docs/performance.md

compiles every row of that file's tables and writes them with the date, between its two marks.
It reads the text of optimised HLO as XLA prints it, which no contract holds stable. Left out: time.
"""

import collections
import datetime
import importlib.metadata
import json
import math
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from host import files, terminal

GIB = 2**30
BYTES = {
    **dict.fromkeys(("pred", "s8", "u8"), 1),
    **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64"), 8),
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
STARTS_WITH_OPERANDS = ("all-gather-start", "collective-permute-start", "reduce-scatter-start")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)


class Instruction(NamedTuple):
    name: str
    type: str
    op: str
    rest: str  # operands and attributes


class Gathers(NamedTuple):
    """The gathers of one loop body."""

    loop: str
    total: int
    beside: int  # run beside other work
    covered: int  # have a matrix product between their start and their end
    share: float  # of the gathered bytes, what the covered ones bring (norms bring next to none)


# --- the text ---


def computations(text: str) -> tuple[dict[str, list[Instruction]], str | None]:
    """Optimised HLO text -> (name -> its instructions as scheduled, the entry's name)."""
    out, current, entry = {}, None, None
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
            current = re.match(r"(?:ENTRY )?%?([\w.-]+)", line).group(1)
            entry = current if line.startswith("ENTRY") else entry
            out[current] = []
        elif current and (match := INSTRUCTION.match(line)):
            out[current].append(Instruction(*match.groups()))
    return out, entry


def arrays(type_text: str) -> list[int]:
    """Bytes of each array of an HLO type, tuples flattened."""
    matches = re.findall(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\]", type_text)
    return [
        BYTES[dtype] * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in matches
    ]


def group_size(rest: str) -> int:
    """Devices of a collective's groups, listed or as iota `[groups,size]<=[...]`; 0: all."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match.group(1).count(",") + 1
    match = re.search(r"replica_groups=\[\d+,(\d+)\]", rest)
    return int(match.group(1)) if match else 0


def channel(instruction: Instruction) -> str | None:
    """The number by which fusions know a collective (those that need none share 1)."""
    match = re.search(r"channel_id=(\d+)", instruction.rest)
    return match and match.group(1)


def trip_count(instruction: Instruction, program) -> int:
    """Turns of a `while`: XLA's own note, else the constant that its condition compares with."""
    if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', instruction.rest):
        return int(match.group(1))
    names, constants = [re.search(r"condition=%?([\w.-]+)", instruction.rest).group(1)], []
    for name in names:
        for i in program[name]:
            if i.op == "constant" and i.type.startswith("s32[]"):
                constants += [int(n) for n in re.findall(r"^(\d+)\)", i.rest)]
            names += CALLED.findall(i.rest)
    return max(constants, default=1)


def kind_of(instruction: Instruction, program) -> str | None:
    """The collective that an instruction starts, by itself or wrapped; else None.

    Wrapped: asynchronous, or TPU's reduce-scatter, a fusion of an all-reduce with a slice.
    """
    op = instruction.op.removesuffix("-start")
    if op in COLLECTIVES:
        return op
    if instruction.op == "fusion" and "kind=kCustom" in instruction.rest:
        ops = [i.op for name in CALLED.findall(instruction.rest) for i in program.get(name, ())]
        if "all-reduce" in ops and any(op in ops for op in ("dynamic-slice", "slice")):
            return "reduce-scatter"
    return None


# --- bytes over the wire ---


def bytes_of(instruction: Instruction, kind: str, program, devices: int) -> float:
    """Bytes that one device receives in one run of a collective.

    In a ring a gather passes (n - 1) / n of its result, a reduce-scatter (n - 1) times its
    result, an all-reduce both.
    """
    fused = None
    if instruction.op == "fusion":
        called = (j for c in CALLED.findall(instruction.rest) for j in program.get(c, ()))
        fused = next((j for j in called if j.op == "all-reduce"), None)
    n = group_size((fused or instruction).rest) or devices
    size = arrays((fused or instruction).type)
    if instruction.op in STARTS_WITH_OPERANDS:  # (operands, results)
        size = size[len(size) // 2 :] if len(size) % 2 == 0 else size[1:2]
    if fused:  # the fused all-reduce's own type is the whole gradient
        return (n - 1) / n * sum(size)
    share = {
        "all-gather": (n - 1) / n,
        "all-reduce": 2 * (n - 1) / n,
        "reduce-scatter": n - 1,
        "collective-permute": 1,
        "all-to-all": (n - 1) / n,
    }[kind]
    return share * sum(size)


def bytes_received(text: str, devices: int) -> dict[str, tuple[float, int]]:
    """kind of collective -> (bytes that one device receives in a run of a program, how many run).

    Loops count as often as they turn. v5e's compiler spreads one collective over several fusions
    (its start, steps beside products, its end), each of which names it: within fusions a channel
    counts once a turn.
    """
    program, entry = computations(text)
    out = collections.defaultdict(lambda: [0.0, 0])

    def walk(name, times, seen, fused=False):
        for i in program.get(name, ()):
            kind = kind_of(i, program)
            if kind and fused:
                if channel(i) in seen:
                    continue
                seen.add(channel(i))
            if kind:
                out[kind][0] += times * bytes_of(i, kind, program, devices)
                out[kind][1] += times
            elif i.op == "while":
                body = re.search(r"body=%?([\w.-]+)", i.rest).group(1)
                walk(body, times * trip_count(i, program), set())
            elif i.op not in ("async-done", "async-update"):
                for called in CALLED.findall(i.rest):
                    walk(called, times, seen, i.op == "fusion")

    walk(entry, 1, set())
    return {kind: tuple(v) for kind, v in out.items()}


# --- gathers beside products ---


def is_product(i: Instruction) -> bool:
    kernel = i.op == "custom-call" and "tpu_custom_call" in i.rest
    return i.op in ("dot", "convolution") or kernel


def is_gather(i: Instruction) -> bool:
    return i.op in ("all-gather", "all-gather-start")


def inside(i: Instruction, test, program, seen=()) -> list[Instruction]:
    """Instructions for which test holds: i, or those that it calls."""
    called = [c for c in CALLED.findall(i.rest) if c not in seen]
    below = (j for c in called for j in program.get(c, ()))
    return [i] * test(i) + [k for j in below for k in inside(j, test, program, (*seen, *called))]


def result_bytes(i: Instruction) -> int:
    """Of a start's tuple the larger: what is gathered."""
    return max(arrays(i.type), default=0)


def gathers_of(name: str, program) -> Gathers:
    """Count the gathers of one loop body, in the order of its schedule."""
    total = beside = covered = 0
    bytes_total, bytes_covered = 0, 0
    pending, sizes = {}, {}  # name of the start, or channel -> products so far; its bytes
    for i in program[name]:
        gathers = inside(i, is_gather, program)
        fused = {channel(j) for j in gathers} if i.op == "fusion" else set()
        operands = set(re.findall(r"%([\w.-]+)", i.rest.split("), ")[0]))
        products = inside(i, is_product, program)
        if fused and not fused & pending.keys():
            # v5e: a fusion starts the gather, others go on with it beside a product, one ends it
            total, pending = total + 1, pending | dict.fromkeys(fused, 0)
            sizes |= {channel(j): result_bytes(j) for j in gathers}
        elif i.op.endswith("-done") or (fused and not products):
            for start in (fused or operands) & pending.keys():
                beside += bool(fused)
                hidden = pending.pop(start) > 0
                covered, bytes_covered = covered + hidden, bytes_covered + hidden * sizes[start]
        elif i.op.endswith("-start") and gathers:
            total, beside = total + 1, beside + 1
            pending[i.name], sizes[i.name] = 0, max(result_bytes(j) for j in gathers)
        elif is_gather(i):
            total, bytes_total = total + 1, bytes_total + result_bytes(i)
        elif products:  # a product, or a loop of products over parts of the batch
            pending = {n: count + 1 for n, count in pending.items()}
    bytes_total += sum(sizes.values())
    return Gathers(name, total, beside, covered, bytes_covered / max(bytes_total, 1))


def overlap(text: str) -> list[Gathers]:
    """The gathers of every loop body that has any."""
    program, _ = computations(text)
    loops = (i for body in program.values() for i in body if i.op == "while")
    bodies = {name for i in loops for name in re.findall(r"body=%?([\w.-]+)", i.rest)}
    counts = [gathers_of(name, program) for name in program if name in bodies]
    return [count for count in counts if count.total]


# --- the report ---


def figures(lowered, devices: int) -> dict:
    """Compile a lowered step for devices that need not be there -> XLA's figures of one device."""
    program = lowered.compile()
    use, text = program.memory_analysis(), program.as_text()
    received = bytes_received(text, devices)
    return {
        "peak": use.peak_memory_in_bytes,
        "arguments": use.argument_size_in_bytes,
        "temporaries": use.temp_size_in_bytes,
        "received": {
            kind: {"bytes": n, "collectives": runs} for kind, (n, runs) in received.items()
        },
        "loops": [count._asdict() for count in overlap(text)],
    }


def lines(compiled: dict, label: str) -> list[str]:
    """`figures` as the lines that --plan prints."""
    gib = {name: compiled[name] / GIB for name in ("peak", "arguments", "temporaries")}
    out = [
        f"aot peak {gib['peak']:.1f} GiB per device ({label})",
        f"  arguments {gib['arguments']:.2f} GiB, temporaries {gib['temporaries']:.2f} GiB, "
        f"peak {gib['peak']:.2f} GiB",
        "received by one device a step, compiled        GiB   collectives",
    ]
    received = compiled["received"]
    out += [
        f"  {kind:<38} {received[kind]['bytes'] / GIB:9.2f} {received[kind]['collectives']:>13,}"
        for kind in sorted(received)
    ]
    out.append(f"  {'total':<38} {sum(kind['bytes'] for kind in received.values()) / GIB:9.2f}")
    for loop in compiled["loops"]:
        out.append(
            f"  loop {loop['loop']}: {loop['total']} gathers, {loop['beside']} asynchronous, "
            f"{loop['covered']} with matrix products between start and end "
            f"({loop['share']:.0%} of the bytes)"
        )
    return out


# --- the tables of docs/performance.md ---

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKS = "<!-- compiled: begin -->", "<!-- compiled: end -->"
NARROW = "--grad-dtype bfloat16 --moment-dtype bfloat16"


class Row(NamedTuple):
    """A step that is compiled, with --prefetch as well where `ahead`."""

    topology: str
    model: str
    mesh: str
    flags: str = ""
    goal: float | None = None  # GiB a chip
    ahead: bool = False


ROWS = (
    Row("v5p:2x2x2", "llama-7b", "8x1", goal=16, ahead=True),
    Row("v5p:2x2x2", "llama-7b", "8x1", NARROW, goal=13),
    Row("v5p:2x2x2", "llama-13b", "8x1", goal=29),
    Row("v5p:2x2x2", "llama-13b", "8x1", NARROW, goal=23.5),
    Row("v5p:2x2x2", "llama-13b", "4x2"),
    Row("v5p:2x2x2", "llama-13b", "2x4"),
    Row("v5p:4x4x4", "llama-65b", "64x1", "--batch 64"),
    Row("v5p:4x4x4", "llama-65b", "32x2", "--batch 64"),
    Row("v5p:8x8x8", "llama-7b", "512x1", "--batch 512"),
    Row("v5e:2x4", "llama-7b", "8x1", "--accumulate 2", goal=15.75, ahead=True),
)


def measured(row: Row, prefetch: bool, folder: pathlib.Path) -> dict:
    """The plan of a row as train.py prints it, compiled in a process of its own.

    It is kept in `folder` with its date: a table that was stopped goes on.
    """
    flags = ["--json", "--plan", row.topology, "--model", row.model, "--mesh", row.mesh]
    flags += [*row.flags.split(), "--prefetch" if prefetch else "--no-prefetch"]
    path = folder / (re.sub(r"\W+", "_", " ".join(flags[2:])).strip("_") + ".json")
    if not path.exists():
        print("train.py", *flags, file=sys.stderr, flush=True)
        command = [sys.executable, str(ROOT / "train.py"), *flags]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        date = datetime.date.today().isoformat()
        files.write_json(path, json.loads(printed) | {"date": date})
    return files.read_json(path)


def cells(row: Row, plan: dict, ahead: dict | None) -> list[str]:
    """A row of the first table: plan without --prefetch, and with it."""

    def received(figures):
        return sum(kind["bytes"] for kind in figures["compiled"]["received"].values()) / GIB

    extra = row.flags.replace(NARROW, "").replace("--", "").strip()
    return [
        ", ".join(filter(None, (row.model, row.mesh, row.topology, extra))),
        plan["grad_dtype"],
        f"{plan['compiled']['peak'] / GIB:.2f}",
        f"{ahead['compiled']['peak'] / GIB:.2f}" if ahead else "",
        f"{row.goal:g}" if row.goal else "",
        f"{received(plan):.1f}",
        f"{received(ahead):.1f}" if ahead else "",
        f"{plan['fsdp_minimum'] / GIB:.1f}",
    ]


def shares(row: Row, plan: dict, prefetch: bool) -> list[str]:
    """A row of the second table, without shares where the loops are not a forward and a backward.

    The backward loop is compiled with the larger body, hence gathers again what the forward does.
    """
    loops = [loop for loop in plan["compiled"]["loops"] if loop["total"] > 2]
    name = ", ".join((row.model, row.mesh, row.topology, plan["grad_dtype"]))
    name += ", `--prefetch`" * prefetch
    if len(loops) != 2:
        return [name, f"not told apart: {len(loops)} loops", ""]
    return [name, *(f"{loop['share']:.0%}" for loop in loops)]


def markdown(head: str, rows: list[list[str]]) -> str:
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def tables(folder: pathlib.Path) -> str:
    """Both tables, with the date of the oldest row."""
    first, second, dates = [], [], []
    for row in ROWS:
        plan = measured(row, False, folder)
        ahead = measured(row, True, folder) if row.ahead else None
        first.append(cells(row, plan, ahead))
        second += [shares(row, plan, False), *([shares(row, ahead, True)] if ahead else [])]
        dates.append(plan["date"])
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    oldest = datetime.date.fromisoformat(min(dates))
    date = f"{oldest:%B} {oldest.day}, {oldest.year}"
    head = (
        "| model, mesh, topology | gradients, first moment | peak | with `--prefetch` | goal "
        "| received | with `--prefetch` | FSDP minimum over data |"
    )
    share_head = "| gathered bytes beside products | forward | backward |"
    return (
        f"Compiled on {date} with {', '.join(versions)}.\n\n{markdown(head, first)}\n\n"
        f"{markdown(share_head, second)}"
    )


def main(argv: list[str] | None = None) -> int:
    p = terminal.Parser(description="Compile for TPUs what docs/performance.md shows.")
    about = "a page with the marks between which the tables are written"
    p.add_argument("--table", metavar="FILE", required=True, help=about)
    about = "where the compiled plans are kept; remove it to compile all anew [default %(default)s]"
    p.add_argument("--plans", metavar="DIR", default="out/compiled", help=about)
    args = p.parse_args(argv)
    page, folder = pathlib.Path(args.table), pathlib.Path(args.plans)
    folder.mkdir(parents=True, exist_ok=True)
    text = page.read_text(encoding="utf-8")
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{page} does not hold {begin} and {end} once each: add them")
    before, after = text.split(begin)[0], text.split(end)[1]
    files.write_whole(page, f"{before}{begin}\n\n{tables(folder)}\n\n{end}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.program(main, "bench/compiled.py"))
