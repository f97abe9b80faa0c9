"""The steps of a grid: their states, the files that list them, and running what is missing.

Left out: several machines, retries.
"""

import collections
import contextlib
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from host import files, terminal
from study.grid.steps import PROOFS, Step, done


def command(step: Step) -> str:
    """A step as a line of shell."""
    return shlex.join(["python", *step.argv])


def kind(step: Step) -> tuple[str, ...]:
    """What steps that take about as long have in common: ("eval.py", "nq"), ("train.py", "--init").

    A base, which train.py makes anew (--model), takes longer than what starts from it (--init).
    """
    return step.argv[:2]


def states(steps: list[Step]) -> dict[str, str]:
    """{name: "done" | "to do" | "by hand" | "waits for PATH"}.

    What a step needs is there, or comes from one before it that is going to run.
    """
    state, coming = {}, {}
    for step in steps:
        missing = [
            p
            for p in step.needs
            if coming.get(p) not in ("done", "to do")
            and (p in coming or not pathlib.Path(p.removeprefix("params::")).exists())
        ]
        if done(step):
            state[step.name] = "done"
        elif step.by_hand:
            state[step.name] = "by hand"
        else:
            state[step.name] = f"waits for {missing[0]}" if missing else "to do"
        coming[step.out] = state[step.name]
    return state


def check(steps: list[Step]) -> None:
    """What only a wrong preset can break."""
    for field in ("name", "out"):
        values = [getattr(s, field) for s in steps]
        assert len(set(values)) == len(values), f"two steps with one {field}"
    assert all(s.proof in PROOFS for s in steps)


def made_otherwise(out: pathlib.Path, steps: list[Step], state: dict[str, str]) -> list[str]:
    """Names of the done steps whose output, by the logs, only other commands have made."""
    lines: set[str] = set()
    for log in (out / "logs").glob("*.log"):
        with open(log, encoding="utf-8", errors="replace") as file:
            lines.update(x[2:].rstrip("\n") for x in file if x.startswith("$ python "))
    found = []
    for step in steps:
        if state[step.name] == "done" and "--out" in step.argv and command(step) not in lines:
            made = shlex.quote(step.argv[step.argv.index("--out") + 1])
            if any(f" --out {made} " in f"{line} " for line in lines):
                found.append(step.name)
    return found


def write(
    out: pathlib.Path,
    preset: str,
    steps: list[Step],
    state: dict[str, str],
    runs: bool = False,
    about: Sequence[str] = (),
    took: dict | None = None,
) -> None:
    """commands.sh and grid.json, which names this commit where it runs steps.

    about: what the report has to say of the runs. took: {"steps", "minutes", "machine"} of a start
    that has ended, kept beside those of earlier ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    text = [
        "#!/bin/sh",
        "# Run from the repository root. A step whose output is there is passed over by the "
        "program "
        "itself, or does nothing.",
        "set -e",
    ]
    for step in steps:
        why = f" ({step.by_hand})" if step.by_hand and state[step.name] != "done" else ""
        by_hand = "# " if state[step.name] == "by hand" else ""
        text += ["", f"# {step.name}: {state[step.name]}{why}", by_hand + command(step)]
    files.write_whole(out / "commands.sh", "\n".join(text) + "\n")
    labelled = {
        pathlib.Path(s.out).relative_to(out).as_posix(): s.labels | {"name": s.name}
        for s in steps
        if s.labels
    }
    plan = {"preset": preset, "commits": commits(out, runs)}
    if about:
        plan |= {"about": list(about), "took": before(out).get("took", []) + [took] * bool(took)}
    plan["results"] = labelled
    files.write_whole(out / "grid.json", json.dumps(plan, indent=1) + "\n")


def before(out: pathlib.Path) -> dict:
    """The grid.json of an earlier start; {} where there is none."""
    try:
        return files.read_json(out / "grid.json")
    except (OSError, ValueError):
        return {}


def usable_cores() -> list[int]:
    """The cores that this process may run on; [] where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def machine() -> str:
    """The processor and its cores that are ours, in words."""
    cores = len(usable_cores()) or os.cpu_count()
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        told = []
    names = [line.partition(":")[2].strip() for line in told if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{cores} core{'s' * (cores != 1)} of {name}"


def commits(out: pathlib.Path, runs: bool) -> list[str]:
    """The commits that a grid was run by: those that its grid.json has, and this one if it runs.

    Files that differ from their commit are said; none where this is no git repository.
    """
    known = before(out).get("commits") or []
    if not runs:
        return known
    ask = {
        "capture_output": True,
        "text": True,
        "check": True,
        "cwd": pathlib.Path(__file__).parent,
    }
    try:
        commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **ask).stdout.strip()
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, **ask).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return known
    commit += " with changes" if changed else ""
    return [*known, *([commit] if commit not in known else [])]


# The most steps of one start: those after it can take what it has made.
TOGETHER = 48


class Child(NamedTuple):
    """Steps that are running in one process; `share` is the number of its cores."""

    steps: list[Step]
    process: subprocess.Popen
    started: float
    log: object
    share: int


class Runner:
    """Runs what is to do, in order and `jobs` at once; all that a step says goes to logs/NAME.log.

    ran: {name: seconds} of what ended. failed: [names].
    """

    def __init__(self, steps, out, lock, jobs):
        self.logs, self.lock, self.jobs = out / "logs", lock, jobs
        self.logs.mkdir(exist_ok=True)
        state = states(steps)
        self.makers = {s.out: s for s in steps}
        self.waiting = [s for s in steps if state[s.name] == "to do"]
        self.total, self.count = len(self.waiting), 0
        self.ran, self.failed, self.running = {}, [], {}
        self.took = {}  # {kind: [seconds]}
        # Steps side by side have cores of their own: two that share all of them take longer than
        # one after the other. Linux alone can tell.
        cores = usable_cores()
        self.shares = {k: cores[k::jobs] or cores for k in range(jobs)} if jobs > 1 else {0: cores}

    def run(self) -> tuple:
        """Until nothing runs and nothing can be started."""
        try:
            while self.waiting or self.running:
                self._start_what_can()  # looks at many files: again when something has ended
                ended = []
                while self.running and not ended:
                    time.sleep(0.02)
                    ended = [c for c in self.running.values() if c.process.poll() is not None]
                for child in ended:
                    self._ended(child)
        finally:
            self._stop()
        return self.ran, self.failed

    def _start_what_can(self):
        for step in self._in_turn():
            if step not in self.waiting:  # started beside another one
                continue
            missing = [p for p in step.needs if p in self.makers and not done(self.makers[p])]
            running = (s for child in self.running.values() for s in child.steps)
            coming = {s.name for s in (*self.waiting, *running)}
            if missing and any(self.makers[p].name in coming for p in missing):
                continue
            if not missing and len(self.running) == self.jobs:
                break
            if missing:  # of a step before it that failed; a folder it began may be there
                self.waiting.remove(step)
                self.count += 1
                terminal.say(
                    f"[{self.count}/{self.total}] {step.name}: passed over, waits for {missing[0]}"
                )
            else:
                self._start(self._together(step))

    def _in_turn(self):
        """What waits; of several jobs, first what most others wait for, so that none runs dry."""
        if self.jobs == 1:
            return list(self.waiting)
        needs = collections.Counter(p for s in self.waiting for p in s.needs)
        return sorted(self.waiting, key=lambda s: -needs[s.out])

    def _together(self, first):
        """The steps that run in one start like `first`, in order, and are no longer waiting.

        Of several jobs, each takes its share of them.
        """
        group, made = [], set()
        for step in self.waiting if first.together else [first]:
            if step.together != first.together:
                continue
            needed = (p for p in step.needs if p in self.makers and p not in made)
            if all(done(self.makers[p]) for p in needed):
                group.append(step)
                made.add(step.out)
        group = group[: min(TOGETHER, -(-len(group) // self.jobs))]
        self.waiting = [s for s in self.waiting if s not in group]
        return group

    def _start(self, group):
        left = self._left(group)
        self.count += len(group)
        step = group[0]
        argv, text = step.argv, command(step)
        if len(group) > 1:
            argv = self._listed(group)
            text = f"{len(group)} steps in one start: {shlex.join(['python', *argv])}"
        terminal.say(f"[{self.count}/{self.total}{left}] {text}")
        log = open(self.logs / f"{step.name}.log", "ab")
        log.write("".join(f"$ {command(s)}\n" for s in group).encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *argv],
            stdout=log,
            stderr=log,
            pass_fds=[self.lock.fileno()],  # a step whose grid was killed keeps the lock
            process_group=0,  # Ctrl-C reaches the grid alone, which lets its steps save
        )
        share = next(k for k in self.shares if k not in {c.share for c in self.running.values()})
        if self.shares[share]:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(process.pid, self.shares[share])
        self.running[step.name] = Child(group, process, time.monotonic(), log, share)

    def _left(self, group):
        """How long the rest takes, by the median of each kind; "more than" where a kind is new."""
        if not self.took:
            return ""
        running = (s for child in self.running.values() for s in child.steps)
        kinds = [kind(s) for s in (*group, *self.waiting, *running)]
        seconds = sum(statistics.median(self.took[k]) for k in kinds if k in self.took)
        word = "about" if all(k in self.took for k in kinds) else "more than"
        return f", {word} {seconds / self.jobs / 60:.0f} min left"

    def _listed(self, group):
        """The arguments of one program that runs the commands of a group."""
        path, evaluation = self.logs / f"{group[0].name}.commands", group[0].argv[0] == "eval.py"
        lines = [shlex.join(s.argv[1:] if evaluation else s.argv) for s in group]
        files.write_whole(path, "\n".join(lines) + "\n")
        program = ("eval.py", "commands") if evaluation else ("-m", "study.grid.commands")
        return (*program, str(path))

    def _ended(self, child):
        del self.running[child.steps[0].name]
        child.log.close()
        path = self.logs / f"{child.steps[0].name}.log"
        seconds = (time.monotonic() - child.started) / len(child.steps)
        one = len(child.steps) == 1
        for step in child.steps:
            self.ran[step.name] = seconds
            self.took.setdefault(kind(step), []).append(seconds)
            if done(step) and not (one and child.process.returncode):
                continue
            self.failed.append(step.name)
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
            last = terminal.printable(tail[0], lines=False) if tail else ""
            terminal.say(
                f"study.grid: {step.name} failed (status {child.process.returncode}): {last}  "
                f"({path})"
            )

    def _stop(self):
        """Ask what runs to stop, once, and wait while it saves; a second Ctrl-C kills it."""
        children = list(self.running.values())
        for child in children:
            child.process.terminate()
        if children:
            names = ", ".join(c.steps[0].name for c in children)
            terminal.say(f"study.grid: waiting for {names} to save; Ctrl-C again kills")
        try:
            for child in children:
                child.process.wait()
        except KeyboardInterrupt:
            for child in children:
                child.process.kill()
            for child in children:
                child.process.wait()
            raise
        finally:
            for child in children:
                child.log.close()
