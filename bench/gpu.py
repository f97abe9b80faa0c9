"""One NVIDIA GPU, measured whole: training, decoding, questions, attention, resume.

    python bench/gpu.py --out DIR          DIR/gpu.json grows case by case, DIR/gpu.md is its tables
    python bench/gpu.py --toy              a case of every kind at toy size on the CPU

bench/gpu.sh runs it. First ours and transformers take three steps of a small model from the same
weights and rows: the losses must agree to 2 % (bfloat16), or nothing is timed. Every case runs in a
process of its own (bench/gpu_cases.py), since a peak is of a process. Ours is train.py's step
(adamw-scaled, float32 weights); theirs is forward, backward, clip and fused AdamW. A case that
fails is a row with its reason, and the end of its output is in the JSON.
Left out: data loading, several GPUs.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from gpu_cases import config_of

from host import files

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 150  # seconds of a case that states none
ROOM = 0.92  # of the card's memory may be planned: the rest is XLA's own and fragmentation
OURS = {"kind": "step", "program": "ours", "attention": "auto", "optimizer": "adamw-scaled"}
THEIRS = {"kind": "step", "program": "transformers"}
FLOAT32 = {"grads": "float32", "moment": "float32"}
BFLOAT16 = {"grads": "bfloat16", "moment": "bfloat16"}
RESUME = ["--deterministic", "--dtype", "bfloat16", "--schedule", "constant", "--samples", "0"]


# --- cases ---


def steps(name: str, batch: int, block: int, number: int) -> dict:
    """A model's training steps by a short name: ours, theirs, variants of both."""
    shape = {"config": name, "batch": batch, "block": block, "steps": number}
    dots, full = OURS | shape | {"remat": "dots"}, OURS | shape | {"remat": "full"}
    theirs = THEIRS | shape | {"remat": "none", "weights": "float32"}
    return {
        "ours": dots | FLOAT32,
        "more rows": dots | FLOAT32 | {"batch": 2 * batch},
        "lean": full | FLOAT32,
        "packed": dots | FLOAT32 | {"packed": True},
        "half": dots | BFLOAT16,
        "least": full | BFLOAT16,
        "theirs": theirs,
        "theirs lean": theirs | {"remat": "full"},
        "theirs bfloat16": theirs | {"weights": "bfloat16"},
    }


def untimed(toy: bool) -> list:
    """What runs first, side by side: nothing in it is timed."""
    shape = {"config": "check", "batch": 4, "block": 256, "remat": "full", "weights": "float32"}
    check = OURS | FLOAT32 | shape | {"kind": "check", "optimizer": "adamw"}
    text = {"kind": "text", "config": "check", "prompt": 40, "new": 40}
    small = ["--block", "128", "--batch", "4"] if toy else []
    resume = {"kind": "resume", "steps": 4 if toy else 16}
    return [check, text] + [
        resume | {"pack": pack, "flags": [*RESUME, "--pack", pack, *small]}
        for pack in ("stream", "documents")
    ]


def toys() -> list:
    """A case of every kind at toy size."""
    step = steps("toy", 2, 128, 2)
    tiny = {"batches": [1, 4], "prompt": 16, "new": 16}
    return [
        {"kind": "ceiling", "size": 256, "copied": 2**20},
        step["ours"],
        step["packed"] | {"options": {"unroll": True}},
        step["theirs"],
        {"kind": "decode", "config": "toy"} | tiny,
        {"kind": "their_decode", "config": "toy"} | tiny,
        questions("toy", 2, 4, 60, [8, 16]),
        attention(2, 128, 2, 16, ["blockwise"]),
    ]


def timed(number: int) -> list:
    """Every timed case in the order of interest: time may run out."""
    middle, small = steps("1.3b", 8, 2048, number), steps("smollm2-135m", 8, 2048, number)
    half, whole = steps("7b/16", 4, 2048, number), steps("7b", 2, 2048, number)
    texts = {"batches": [1, 64], "prompt": 64}
    decode = {"kind": "decode", "new": 448} | texts
    return [
        {"kind": "ceiling", "size": 8192, "copied": 2**32},
        middle["ours"],
        middle["theirs"],
        decode | {"config": "7b"},
        middle["more rows"],
        decode | {"config": "1.3b"},
        small["ours"],
        small["theirs"],
        half["half"],
        half["theirs bfloat16"],
        {"kind": "their_decode", "config": "1.3b", "new": 64} | texts,
        middle["lean"],
        middle["theirs lean"],
        middle["theirs bfloat16"],
        small["theirs bfloat16"],
        whole["least"],
        questions("1.3b", 8, 100, 600, [40, 160]),
        attention(8, 2048, 16, 128, ["cudnn", "blockwise"]),
        middle["packed"],
        questions("7b", 8, 100, 600, [40, 160]),
    ]


def attention(batch, block, heads, head_size, kernels) -> dict:
    shape = {"batch": batch, "block": block, "heads": heads, "head_size": head_size}
    return {"kind": "attention", "steps": 10, "kernels": kernels} | shape


def questions(name, subjects, each, shots, question) -> dict:
    shape = {"subjects": subjects, "questions": each, "shots": shots, "question": question}
    return {"kind": "questions", "config": name, "batch": 16, "alone": 2 * subjects} | shape


def planned(case: dict, platform: str) -> int | None:
    """plan.py's bytes of a training step of ours; None of anything else."""
    if case["kind"] != "step" or case["program"] != "ours":
        return None
    import gpu_cases
    import jax.numpy as jnp

    import model
    from training import plan

    config = config_of(case["config"])
    options = gpu_cases.options_of(case, config, platform)
    layout, moment = model.make_layout(config, 1, 1), jnp.dtype(case["moment"])
    shape = {"batch": case["batch"], "T": case["block"]}
    return plan.memory(config, layout, options, **shape, moment_dtype=moment)["total"]


# --- processes ---


def wants(case: dict) -> str:
    """What its process imports."""
    if case["kind"] == "check":
        return "both"
    theirs = case["kind"] == "their_decode" or case.get("program") == "transformers"
    return "torch" if theirs else "jax"


def start(case: dict, alone: bool = True) -> subprocess.Popen:
    """A process that imports what the case needs and then waits for the case.

    alone: it may take all of the card's memory.
    """
    xla = {"MEM_FRACTION": "0.95"} if alone else {"PREALLOCATE": "false"}
    env = os.environ | {f"XLA_PYTHON_CLIENT_{name}": value for name, value in xla.items()}
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    command = [sys.executable, str(HERE / "gpu_cases.py"), wants(case)]
    return subprocess.Popen(command, env=env, text=True, **pipes)


def finish(process: subprocess.Popen, case: dict, seconds: float) -> dict:
    """The case's rows, why it failed or None, and the end of what it said then."""
    try:
        out, error = process.communicate(json.dumps(case) + "\n", timeout=max(seconds, 1))
        why = None if process.returncode == 0 else reason(error)
    except subprocess.TimeoutExpired:
        process.kill()
        out, error = process.communicate()
        why = f"not done in {seconds:.0f} s"
    rows = []
    for line in out.splitlines():
        row = json.loads(line) if line.startswith("{") else {}
        if "kernels" in row and rows:
            rows[-1] |= row
        elif row:
            rows.append(row)
    return {"case": case, "rows": rows, "failed": why, "error": error[-4000:] if why else ""}


def reason(error: str) -> str:
    memory = ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
    if any(word in error for word in memory):
        return "out of memory"
    lines = [line for line in error.strip().splitlines() if line.strip()]
    return (lines or ["no output"])[-1][:150]


def run_all(cases: list, left, room: float, platform: str):
    """Yield each case's result; the next one's imports are done meanwhile."""
    waiting = {}

    def fits(case):
        return (planned(case, platform) or 0) < room

    def ready(i):
        if i < len(cases) and i not in waiting and fits(cases[i]):
            waiting[i] = start(cases[i])

    for i, case in enumerate(cases):
        result = {"case": case, "rows": [], "error": "", "planned": planned(case, platform)}
        if not fits(case):
            need, there = result["planned"] / 2**30, room / 2**30
            yield result | {"failed": f"plan: needs {need:.1f} GiB, {there:.1f} are there"}
            continue
        if left() < 20:
            yield result | {"failed": "time was up"}
            continue
        ready(i)
        ready(i + 1)
        process = waiting.pop(i)
        while True:
            begun = time.monotonic()
            result |= finish(process, result["case"], min(left(), case.get("limit", LIMIT)))
            yield result | {"wall": time.monotonic() - begun}
            again = fewer_rows(result)
            if again is None or left() < 20:
                break
            result, process = {"case": again, "planned": None}, start(again)
    for process in waiting.values():
        process.kill()


def fewer_rows(result: dict) -> dict | None:
    """Their training step with half the rows where it ran out of memory, else None."""
    case = result["case"]
    if result["failed"] != "out of memory" or case.get("program") != "transformers":
        return None
    return case | {"batch": case["batch"] // 2} if case["batch"] > 1 else None


# --- tables ---


def describe(case: dict) -> str:
    """A training case's program in words."""
    if case["program"] == "transformers":
        weights = "autocast" if case["weights"] == "float32" else "all bfloat16"
        return (
            f"transformers, {weights}, checkpointing {'on' if case['remat'] == 'full' else 'off'}"
        )
    parts = ["ours", f"remat {case['remat']}"]
    parts += ["gradients and first moment bfloat16"] * (case["grads"] == "bfloat16")
    parts += ["packed rows"] * case.get("packed", False)
    parts += [f"attention {case['attention']}"] * (case["attention"] != "auto")
    return ", ".join(parts + [f"{k} {v}" for k, v in case.get("options", {}).items()])


def decode_cells(case, row) -> list:
    who = "ours" if case["kind"] == "decode" else "transformers"
    share = f"{row['share']:.0%}" if row.get("share", 0) > 0 else "-"
    return [case["config"], who, row["batch"], f"{row['rate']:,.0f}", share]


def question_cells(case, row) -> list:
    how = "shots read once" if row["shared"] else "every prompt read"
    return [case["config"], how, f"{row['rate']:,.1f}"]


def attention_cells(case, row) -> list:
    name = [row["kernel"], "several documents" if row["packed"] else "one document"]
    if "failed" in row:
        return [*name, row["failed"][:60], "-", "-"]
    ms, tera = row["seconds"] * 1e3, row["flops"] / 1e12
    return [*name, f"{ms:.2f}", f"{tera:.0f}", f"{row['error']:.1e}"]


def resume_cells(case, row) -> list:
    same = "yes" if row["metrics_same"] else "NO"
    arrays = f"{row['arrays_same']} of {row['arrays']}"
    return [case["pack"], row["what"], row["steps"], same, arrays]


def step_cells(case, row, plan_bytes, peak) -> list:
    from training import plan

    tokens = case["batch"] * case["block"]
    flops = plan.model_flops(config_of(case["config"]), tokens, case["block"])
    mfu = f"{flops / row['seconds'] / peak:.1%}" if peak else "-"
    memory = [f"{n / 2**30:.1f}" if n else "-" for n in (row["peak"], plan_bytes)]
    rate, shape = f"{tokens / row['seconds']:,.0f}", f"{case['batch']} x {case['block']}"
    return [case["config"], describe(case), shape, rate, mfu, *memory, f"{row['ready']:.0f}"]


HEADS = {
    "step": "model | program | rows x block | tokens/s | MFU | peak GiB | planned GiB | ready s",
    "decode": "model | program | batch | tokens/s | of the bandwidth",
    "questions": "model | how | questions/s",
    "attention": "kernel | rows | forward + backward ms | TFLOP/s | worst error",
    "resume": "pack | attention | steps | metrics bit for bit | arrays bit for bit",
}


def cells(result: dict, peak: float | None) -> list:
    """The cells of each row of a result; none of a kind without a table."""
    case, kind = result["case"], result["case"]["kind"].removeprefix("their_")
    makers = {
        "step": lambda case, row: step_cells(case, row, result.get("planned"), peak),
        "decode": decode_cells,
        "questions": question_cells,
        "attention": attention_cells,
        "resume": resume_cells,
    }
    return [makers[kind](case, row) for row in result["rows"]] if kind in makers else []


def tables(results: list, peak: float | None) -> str:
    """Markdown: one table a kind of case, what failed, what the card reaches, who is ahead."""
    lines = []
    for kind, head in HEADS.items():
        mine = [r for r in results if r["case"]["kind"].removeprefix("their_") == kind]
        rows = [row for r in mine for row in cells(r, peak)]
        if rows:
            lines += ["", f"| {head} |", "|---" * len(head.split(" | ")) + "|"]
            lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.append("")
    for r in results:
        if r["case"]["kind"] == "ceiling" and r["rows"]:
            flops, moved = r["rows"][0]["flops"] / 1e12, r["rows"][0]["bandwidth"] / 1e12
            lines.append(f"* reached: products {flops:.0f} TFLOP/s, copies {moved:.2f} TB/s")
        if r["case"]["kind"] == "text" and r["rows"]:
            row = r["rows"][0]
            lines.append(f"* {row['same']} of {row['tokens']} greedy tokens as by full forwards")
        if r["failed"]:
            what = describe(r["case"]) if r["case"]["kind"] == "step" else r["case"]["kind"]
            lines.append(f"* {r['case'].get('config', '')} {what}: {r['failed']}")
    return "\n".join(lines + ahead(results))


def ahead(results: list) -> list:
    """Our best of each model and figure over theirs."""
    best = {}
    for r in results:
        case = r["case"]
        for row in r["rows"]:
            if case["kind"] == "step" and not case.get("packed"):
                rate, key = case["batch"] * case["block"] / row["seconds"], ("step", case["config"])
            elif case["kind"].endswith("decode"):
                rate, key = row["rate"], (f"decode, batch {row['batch']}", case["config"])
            else:
                continue
            side = wants(case)
            best.setdefault(key, {})[side] = max(rate, best.get(key, {}).get(side, 0))
    return [
        f"* {name}, {what}: our best is {side['jax'] / side['torch']:.2f} times transformers' best"
        for (what, name), side in best.items()
        if len(side) == 2
    ]


# --- driver ---


def card():
    """(platform, kind, whether torch sees a GPU, bytes) of the device."""
    probe = (
        "import jax, json, torch, transformers; d = jax.devices()[0]; print(json.dumps([d.platform,"
        " d.device_kind, torch.cuda.is_available(), (d.memory_stats() or {}).get('bytes_limit')]))"
    )
    free = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", probe]
    seen = subprocess.run(command, env=os.environ | free, capture_output=True, text=True)
    if seen.returncode:
        raise ValueError(
            f"{seen.stderr.strip().splitlines()[-1]}: pip install -r requirements-compare.txt"
        )
    return json.loads(seen.stdout.splitlines()[-1])


class Report:
    """The JSON and the Markdown, written again after every case."""

    def __init__(self, out, kind, peak):
        self.out, self.peak, self.results = pathlib.Path(out), peak, []
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
        self.head = {"card": kind, "date": when, "command": " ".join(sys.argv)}
        self.out.mkdir(parents=True, exist_ok=True)

    def add(self, result: dict):
        self.results.append(result)
        files.write_json(self.out / "gpu.json", self.head | {"results": self.results})
        files.write_whole(self.out / "gpu.md", tables(self.results, self.peak) + "\n")
        rows = " / ".join(", ".join(map(str, row)) for row in cells(result, self.peak))
        said = result["failed"] or rows or result["rows"]
        print(f"{result.get('wall', 0):4.0f} s  {result['case']['kind']}: {said}", flush=True)


def chosen(cases: list, only: list | None) -> list:
    """The cases whose kind or KIND:CONFIG is asked for, all where nothing is."""

    def names(case):
        return {case["kind"], f"{case['kind']}:{case.get('config', '')}"}

    return [case for case in cases if not only or names(case) & set(only)]


def parser():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default="out/gpu", metavar="DIR", help="[default %(default)s]")
    p.add_argument("--steps", type=int, default=12, metavar="N", help="timed [default %(default)s]")
    p.add_argument(
        "--minutes", type=float, default=9.0, metavar="M",
        help="what has not begun by then is left out and named [default %(default)s]",
    )  # fmt: skip
    p.add_argument("--only", nargs="+", metavar="KIND[:MODEL]", help="e.g. step:1.3b decode")
    p.add_argument("--profile", action="store_true", help="kernels' times of ours into the JSON")
    p.add_argument("--toy", action="store_true", help="toys on the CPU")
    return p


def usable_card(toy: bool):
    """`card`, or ValueError where there is no GPU and the run is no toy."""
    platform, kind, torch_too, limit = card()
    if not toy and (platform != "gpu" or not torch_too):
        blind = "JAX" if platform != "gpu" else "torch"
        raise ValueError(
            f'{blind} sees no NVIDIA GPU: pip install -U "jax[cuda12]" torch (their CUDA builds), '
            "or try the script with --toy"
        )
    return platform, kind, limit


def side_by_side(cases: list, left) -> list:
    """The results of cases that are not timed."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        started = [start(case, alone=False) for case in cases]
        seconds = [min(left(), case.get("limit", LIMIT)) for case in cases]
        return list(pool.map(finish, started, cases, seconds))


def main(argv=None) -> int:
    args = parser().parse_args(argv)
    started = time.monotonic()

    def left():
        return args.minutes * 60 - (time.monotonic() - started)

    if args.toy:
        quick = "--xla_backend_optimization_level=0"  # compiling is most of it
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "XLA_FLAGS": quick}
    try:
        platform, kind, limit = usable_card(args.toy)
    except ValueError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    from training import plan

    patience = {"limit": 1000} if args.toy else {}  # a busy CPU
    report = Report(args.out, kind, plan.peak_flops(kind))
    first = chosen(untimed(args.toy), args.only and [*args.only, "check", "text"])
    for result in side_by_side([case | patience for case in first], left):
        report.add(result)
    check = report.results[0]
    if check["failed"] or not check["rows"][0]["worst"] < 0.02:
        why = check["failed"] or check["rows"]
        print(f"gpu.py: not the same step ({why}): nothing is timed", file=sys.stderr)
        return 1
    cases = chosen(toys() if args.toy else timed(args.steps), args.only)
    cases = [case | patience | {"profile": args.profile} for case in cases]
    for result in run_all(cases, left, limit * ROOM if limit else 4 * 2**30, platform):
        report.add(result)
    minutes = (time.monotonic() - started) / 60
    print(tables(report.results, report.peak))
    print(f"\nMFU: {plan.FLOPS_FORMULA}, over the peak of dense bfloat16.")
    print(f"{kind}, {minutes:.1f} minutes in all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
