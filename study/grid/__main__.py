"""The whole grid of runs behind the report: every command, what is done, what is missing.

    python -m study.grid --preset small --out DIR       # the paper in the small, on two cores
    python -m study.grid --preset own --base MODEL --teacher MODEL --prompts FILE --out DIR
    python -m study.grid --preset paper --models MODELS --source mix=mix.jsonl.gz --mmlu mmlu/ \\
        --out DIR                                       # commands and state; --run runs them

Leaves DIR/commands.sh (each command can be run alone, from the repository root), DIR/grid.json
(where the report finds labels), DIR/logs/, DIR/report. A step is done when its output is there
whole (steps.py), so nothing else is kept. What waits for a file that is not there, and what fails,
is named; the rest goes on. Left out: several machines, retries.
"""

import argparse
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from host import files, terminal
from study.grid import own, paper, real, running, small
from study.grid.steps import Step, done

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Name -> a module with flags(parser), steps(args) -> (list of Step, notes); RUNS: whether it runs
# without --run, JOBS: how many steps at once, about(args) -> [what the report says of the runs].
PRESETS = {"paper": paper, "real": real, "own": own, "small": small, "tiny": small}


def parser(preset: str | None = None) -> terminal.Parser:
    p = terminal.Parser(
        prog="python -m study.grid",
        description="Write the commands of a grid of runs, say what is done, run what is missing.",
        epilog="Killed or stopped, the same command goes on. The report: python -m study.report "
        "DIR --out DIR/report (also the last step of --run).",
    )
    p.add_argument("--preset", required=True, choices=list(PRESETS), help="which grid")
    p.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the runs, results and the report"
    )
    p.add_argument(
        "--run",
        action=argparse.BooleanOptionalAction,
        help="run what is missing [default: only print it; presets real, own, small, tiny run]",
    )
    p.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="steps run at once [default 1; presets small and tiny 2]",
    )
    PRESETS[preset or next(iter(PRESETS))].flags(p)
    return p


def overview(steps: list[Step], notes: list[str], state: dict[str, str], out: pathlib.Path) -> None:
    """Print every step with its state, the notes, and how many are in which."""
    for step in steps:
        why = f"   # {step.by_hand}" if state[step.name] == "by hand" else ""
        print(f"{state[step.name]:<8}  {running.command(step)}{why}")
    for note in notes:
        print(f"note: {note}")
    kinds = ("done", "to do", "by hand", "waits")
    n = {kind: sum(v.startswith(kind) for v in state.values()) for kind in kinds}
    print(
        f"{len(steps)} steps: {n['done']} done, {n['to do']} to do, {n['by hand']} by hand, "
        f"{n['waits']} waiting for files; {out / 'commands.sh'}",
        flush=True,
    )


def run(
    preset: str, steps: list[Step], out: pathlib.Path, jobs: int, about: Callable[[], list[str]]
) -> int:
    """Run what is missing, then the report -> exit status. about: what it says of the runs."""
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    with open(out / "grid.lock", "w") as lock:
        if not files.lock(lock):
            raise ValueError(
                f"{out} is being run by another study.grid, or by a step that one left behind: "
                "wait for it, or name another --out"
            )
        began = time.monotonic()
        running.write(out, preset, steps, running.states(steps), runs=True, about=about())
        runner = running.Runner(steps, out, lock, jobs)
        try:
            ran, failed = runner.run()
        finally:  # a start that is stopped has taken its time, too
            took, state = (time.monotonic() - began) / 60, running.states(steps)
            start = {"steps": len(runner.ran), "minutes": round(took, 1)}
            start["machine"] = running.machine()
            running.write(out, preset, steps, state, about=about(), took=start)
        if any(done(s) for s in steps if s.labels):
            argv = ["-m", "study.report", str(out), "--out", str(out / "report")]
            print(shlex.join(["python", *argv]), flush=True)
            subprocess.run([sys.executable, *argv], check=False)
    still_open = sum(v != "done" for v in state.values())
    print(
        f"{len(ran)} steps ran in {took:.1f} min, {len(failed)} failed, {still_open} of "
        f"{len(steps)} are open"
    )
    return 1 if failed else 0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def grid(args: argparse.Namespace) -> int:
    if pathlib.Path.cwd() != ROOT:
        raise ValueError(f"the commands of a grid run in {ROOT}: go there first")
    preset, out = PRESETS[args.preset], pathlib.Path(args.out)
    jobs = getattr(preset, "JOBS", 1) if args.jobs is None else args.jobs
    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least one")
    steps, notes = preset.steps(args)
    running.check(steps)
    state = running.states(steps)

    def about():
        return preset.about(args) if hasattr(preset, "about") else []

    other = running.made_otherwise(out, steps, state)
    if other:
        notes.append(
            f"{len(other)} steps that are done were made by other commands than these, and stay: "
            f"{', '.join(other)}. Remove what they made to make it anew"
        )
    running.write(out, args.preset, steps, state, about=about())
    overview(steps, notes, state, out)
    if args.run if args.run is not None else getattr(preset, "RUNS", False):
        return run(args.preset, steps, out, jobs, about)
    return 0


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--preset")

    def parse_and_run():
        chosen = first.parse_known_args(argv)[0].preset
        return grid(parser(chosen if chosen in PRESETS else None).parse_args(argv))

    return terminal.program(parse_and_run, "study.grid", "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
