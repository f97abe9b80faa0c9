"""The whole grid of runs behind the report: writes every command, says what is done, runs what is missing, goes on where it stopped.

    python -m study.grid --preset small --out DIR                                                                  # the paper in the small, whole, on two cores
    python -m study.grid --preset paper --models MODELS --source mix=mix.jsonl.gz --mmlu mmlu/ --out DIR           # commands and state; --run runs them

Leaves DIR/commands.sh (each command can be run alone, from the repository root), DIR/grid.json (where the report finds labels), DIR/logs/, DIR/report. A step is done when its output is there
whole (steps.py), so nothing else is kept. What waits for a file that is not there, and what fails, is named; the rest goes on. Left out: several machines, retries.
"""

import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import shlex
import signal
import statistics
import subprocess
import sys
import time

from study import answers, paper_grid, small_grid
from study.steps import PROOFS, done
from tasks import results

ROOT = pathlib.Path(__file__).resolve().parent.parent
PRESETS = {
    "paper": paper_grid,
    "small": small_grid,
    "tiny": small_grid,
}  # name -> a module with flags(parser), steps(args) -> (list of Step, notes), and RUNS: whether it runs without --run


def command(step):
    """A step as a line of shell."""
    return shlex.join(["python", *step.argv])


def states(steps):
    """{name: "done" | "to do" | "by hand" | "waits for PATH"}: what a step needs is there, or comes from one before it that is going to run."""
    found, coming = {}, {}
    for step in steps:
        missing = [
            p
            for p in step.needs
            if coming.get(p) not in ("done", "to do")
            and (p in coming or not pathlib.Path(p.removeprefix("params::")).exists())
        ]
        found[step.name] = (
            "done"
            if done(step)
            else "by hand"
            if step.by_hand
            else f"waits for {missing[0]}"
            if missing
            else "to do"
        )
        coming[step.out] = found[step.name]
    return found


def check(steps):
    """What only a wrong preset can break."""
    for field in ("name", "out"):
        values = [getattr(s, field) for s in steps]
        assert len(set(values)) == len(values), f"two steps with one {field}"
    assert all(s.proof in PROOFS for s in steps)


def write(out, preset, steps, state):
    """commands.sh and grid.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = [
        "#!/bin/sh",
        "# Run from the repository root. A step whose output is there is passed over by the program itself, or does nothing.",
        "set -e",
    ]
    for step in steps:
        text += [
            "",
            f"# {step.name}: {state[step.name]}"
            + (f" ({step.by_hand})" if step.by_hand and state[step.name] != "done" else ""),
            ("# " if state[step.name] == "by hand" else "") + command(step),
        ]
    results.write_beside(out / "commands.sh", "\n".join(text) + "\n")
    labelled = {
        pathlib.Path(s.out).relative_to(out).as_posix(): s.labels | {"name": s.name}
        for s in steps
        if s.labels
    }
    results.write_beside(
        out / "grid.json", json.dumps({"preset": preset, "results": labelled}, indent=1) + "\n"
    )


def run(steps, out, lock, jobs=1):
    """Run what is to do, in order and `jobs` at once -> {name: seconds} of what ran, [names] of what failed. All that a step says goes to logs/NAME.log."""
    (out / "logs").mkdir(exist_ok=True)
    made = {s.out: s for s in steps}
    state, cores = (
        states(steps),
        sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
    )  # Linux alone has it
    shares = (
        {k: cores[k::jobs] or cores for k in range(jobs)} if jobs > 1 else {0: cores}
    )  # steps side by side have cores of their own: two that share all of them take longer than one after the other
    waiting = [s for s in steps if state[s.name] == "to do"]
    total, count, ran, failed, running = len(waiting), 0, {}, [], {}
    try:
        while waiting or running:
            for step in list(waiting):
                missing = [p for p in step.needs if p in made and not done(made[p])]
                coming = {s.name for s in waiting} | set(running)
                if missing and any(made[p].name in coming for p in missing):
                    continue
                if not missing and len(running) == jobs:
                    break
                waiting.remove(step)
                count += 1
                if missing:  # of a step before it that failed; a folder it began may be there
                    print(
                        f"[{count}/{total}] {step.name}: passed over, waits for {missing[0]}",
                        file=sys.stderr,
                    )
                    continue
                left = (
                    ""
                    if not ran
                    else f", about {(total - len(ran)) * statistics.median(ran.values()) / jobs / 60:.0f} min left"
                )  # the median: a few long trainings come first
                print(f"[{count}/{total}{left}] {command(step)}", file=sys.stderr, flush=True)
                log = open(out / "logs" / f"{step.name}.log", "ab")
                log.write(f"$ {command(step)}\n".encode())
                log.flush()
                child = subprocess.Popen(
                    [sys.executable, *step.argv], stdout=log, stderr=log, pass_fds=[lock.fileno()]
                )  # a step whose grid was killed keeps the lock
                share = next(k for k in shares if k not in {r[-1] for r in running.values()})
                if cores:
                    with contextlib.suppress(ProcessLookupError):  # it has ended already
                        os.sched_setaffinity(child.pid, shares[share])
                running[step.name] = step, child, time.monotonic(), log, share
            for step, child, started, log, _ in list(running.values()):
                if child.poll() is None:
                    continue
                del running[step.name]
                log.close()
                ran[step.name] = time.monotonic() - started
                if child.returncode or not done(step):
                    failed.append(step.name)
                    tail = (
                        (out / "logs" / f"{step.name}.log")
                        .read_text(encoding="utf-8", errors="replace")
                        .splitlines()[-1:]
                    )
                    print(
                        f"grid.py: {step.name} failed (status {child.returncode}): {answers.printable(tail[0]) if tail else ''}  ({out / 'logs' / step.name}.log)",
                        file=sys.stderr,
                    )
            time.sleep(0.02 if running else 0)
    finally:
        for _, child, _, log, _ in running.values():
            child.terminate()
        for _, child, _, log, _ in running.values():
            child.wait()
            log.close()
    return ran, failed


def _stop(*_):
    raise KeyboardInterrupt


def parser(preset=None):
    p = argparse.ArgumentParser(
        prog="python -m study.grid",
        description="Write the commands of a grid of runs, say what is done, run what is missing.",
        epilog="Killed or stopped, the same command goes on. The report: python -m study.report DIR --out DIR/report (also the last step of --run).",
    )
    p.add_argument("--preset", required=True, choices=list(PRESETS), help="which grid")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the runs, results and the report"
    )
    p.add_argument(
        "--run",
        action=argparse.BooleanOptionalAction,
        help="run what is missing [default: only print it; presets small and tiny run]",
    )
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="steps run at once [default 1; presets small and tiny 2]",
    )
    PRESETS[preset or next(iter(PRESETS))].flags(p)
    return p


def grid(args):
    if pathlib.Path.cwd() != ROOT:
        raise ValueError(f"the commands of a grid run in {ROOT}: go there first")
    args.jobs = getattr(PRESETS[args.preset], "JOBS", 1) if args.jobs is None else args.jobs
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least one")
    steps, notes = PRESETS[args.preset].steps(args)
    check(steps)
    out, state = pathlib.Path(args.out), states(steps)
    write(out, args.preset, steps, state)
    for step in steps:
        print(
            f"{state[step.name]:<8}  {command(step)}"
            + (f"   # {step.by_hand}" if state[step.name] == "by hand" else "")
        )
    count = {
        s: sum(v.startswith(s) for v in state.values())
        for s in ("done", "to do", "by hand", "waits")
    }
    print(
        "\n".join(
            [
                *(f"note: {n}" for n in notes),
                f"{len(steps)} steps: {count['done']} done, {count['to do']} to do, {count['by hand']} by hand, {count['waits']} waiting for files; {out / 'commands.sh'}",
            ]
        ),
        flush=True,
    )
    if not (args.run if args.run is not None else getattr(PRESETS[args.preset], "RUNS", False)):
        return 0
    signal.signal(signal.SIGTERM, _stop)
    with open(out / "grid.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"{out} is being run by another study.grid, or by a step that one left behind: wait for it, or name another --out"
            ) from None
        began = time.monotonic()
        ran, failed = run(steps, out, lock, args.jobs)
        took = (time.monotonic() - began) / 60
        state = states(steps)
        write(out, args.preset, steps, state)
        if any(done(s) for s in steps if s.labels):
            print(
                shlex.join(
                    ["python", "-m", "study.report", str(out), "--out", str(out / "report")]
                ),
                flush=True,
            )
            subprocess.run(
                [sys.executable, "-m", "study.report", str(out), "--out", str(out / "report")],
                check=False,
            )
    print(
        f"{len(ran)} steps ran in {took:.1f} min, {len(failed)} failed, {sum(v != 'done' for v in state.values())} of {len(steps)} are open"
    )
    return 1 if failed else 0


def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset")
    chosen = first.parse_known_args(argv)[0].preset
    args = parser(chosen if chosen in PRESETS else None).parse_args(argv)
    try:
        return grid(args)
    except ValueError as error:
        print(f"grid.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("grid.py: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
