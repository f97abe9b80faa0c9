"""Running a grid: states, order, jobs side by side, what fails, and going on after a stop."""

import fcntl
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
import types

import pytest
from conftest import ROOT

from study.grid import __main__ as grid
from study.grid import commands, running, steps
from study.grid.steps import Step


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


RESULT = (
    "import json,sys,pathlib; p=pathlib.Path(sys.argv[1]); p.mkdir(parents=True); "
    "n=open(sys.argv[2],'a'); n.write(sys.argv[1]+chr(10)); {}; "
    "(p/'results.json').write_text(json.dumps(dict(task='mmlu',finished=True,score=.5,n=4,interval=[.3,.7],settings={{}})))"
)


def preset(tmp_path, broken=""):
    """Three steps: a result, one that needs it, one that needs a file; and a further preset in the
    way that a file of its own would be.
    """

    def make(args):
        out = tmp_path / "o"

        def one(name, needs, code="0", **labels):
            return Step(
                name,
                ("-c", RESULT.format(code), str(out / name), str(tmp_path / "ran")),
                str(out / name),
                "result",
                needs,
                labels,
            )

        return [
            one("a", (), base="1M"),
            one("b", (str(out / "a"),), broken or "0", base="2M"),
            one("c", (str(out / "b"),), base="3M"),
            one("d", (str(tmp_path / "file"),), base="4M"),
        ], []

    return types.SimpleNamespace(flags=lambda p: None, steps=make)


def ran(tmp_path):
    return [pathlib.Path(x).name for x in (tmp_path / "ran").read_text().split()]


def test_what_is_missing_runs_once_in_order_and_the_report_follows(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(grid.PRESETS, "mini", preset(tmp_path))
    argv = ["--preset", "mini", "--out", str(tmp_path / "o"), "--run"]
    assert grid.main(argv) == 0 and ran(tmp_path) == ["a", "b", "c"]
    assert "waits for" in capsys.readouterr().out and (tmp_path / "o/report/index.html").is_file()
    (tmp_path / "file").write_text("")
    assert grid.main(argv) == 0 and ran(tmp_path) == ["a", "b", "c", "d"]
    assert json.loads((tmp_path / "o/report/report.json").read_text())["missing"] == []


def test_the_time_left_goes_by_each_kinds_median_and_says_where_a_kind_is_new(tmp_path):
    def step(name, *argv):
        return Step(name, argv, str(tmp_path / name), "file")

    tasks = [("base", "train.py", "--model"), ("one", "train.py", "--init")]
    tasks += [(f"nq{n}", "eval.py", "nq") for n in range(3)]
    steps = [step(*task) for task in tasks]
    runner = running.Runner(steps, tmp_path, None, jobs=2)
    runner.waiting = steps[2:]  # base and one ran
    assert runner._left(steps[1:2]) == ""
    runner.took = {("train.py", "--model"): [600.0], ("train.py", "--init"): [100.0, 120.0, 900.0]}
    assert runner._left(steps[1:2]) == ", more than 1 min left"
    runner.took["eval.py", "nq"] = [240.0]
    assert runner._left(steps[1:2]) == ", about 7 min left"


def test_two_jobs_begin_with_what_others_wait_for_and_share_what_goes_together(tmp_path):
    def step(name, needs=(), together=None):
        out = str(tmp_path / name)
        return Step(name, ("eval.py", name), out, "file", needs, {}, together=together)

    def asked(model, needs=()):
        return [step(f"{model}{n}", needs, "answers") for n in range(3)]

    run = step("run")
    steps = [*asked("base"), run, *asked("tuned", (run.out,))]

    def begins(jobs):
        runner, started = running.Runner(steps, tmp_path, None, jobs=jobs), []

        def start(group):
            started.append([s.name for s in group])
            runner.running[group[0].name] = running.Child(group, None, 0.0, None, len(started))

        runner._start = start
        runner._start_what_can()
        return started

    assert begins(1) == [["base0", "base1", "base2"]]
    assert begins(2) == [["run"], ["base0", "base1"]]
    assert begins(3) == [["run"], ["base0"], ["base1"]]


def test_a_step_that_fails_is_named_what_needs_it_waits_and_the_next_start_goes_on(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(grid.PRESETS, "mini", preset(tmp_path, "sys.exit('the disk is full')"))
    argv = ["--preset", "mini", "--out", str(tmp_path / "o"), "--run"]
    assert grid.main(argv) == 1 and ran(tmp_path) == ["a", "b", "d"]
    said = capsys.readouterr()
    assert "b failed (status 1): the disk is full" in said.err and "c: passed over" in said.err
    (tmp_path / "o/b").rmdir()
    monkeypatch.setitem(grid.PRESETS, "mini", preset(tmp_path))
    assert grid.main(argv) == 0 and ran(tmp_path) == ["a", "b", "d", "b", "c"]


def test_two_of_one_grid_do_not_run_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(grid.PRESETS, "mini", preset(tmp_path))
    (tmp_path / "o").mkdir()
    with open(tmp_path / "o/grid.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert grid.main(["--preset", "mini", "--out", str(tmp_path / "o"), "--run"]) == 2
    assert "another study.grid" in capsys.readouterr().err


def test_a_killed_grid_leaves_no_second_one_beside_its_step(tmp_path, monkeypatch):
    sleep = f"import time; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(30)"
    monkeypatch.setitem(grid.PRESETS, "mini", preset(tmp_path))
    code = (
        "import types; from study.grid import __main__ as grid; from study.grid.steps "
        f"import Step; step = Step('slow', ('-c', {sleep!r}), {str(tmp_path / 'o/slow')!r}, "
        "'file'); "
        "grid.PRESETS['mini'] = types.SimpleNamespace(flags=lambda p: None, steps=lambda "
        "args: ([step], [])); grid.main(['--preset', 'mini', '--out', sys.argv[1], '--run'])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", "import sys; " + code, str(tmp_path / "o")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    step = next(
        int(p.name)
        for p in pathlib.Path("/proc").iterdir()
        if p.name.isdigit() and sleep.encode() in read(p / "cmdline").split(b"\0")
    )
    try:
        assert grid.main(["--preset", "mini", "--out", str(tmp_path / "o"), "--run"]) == 2
    finally:
        os.kill(step, signal.SIGKILL)


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_half_trained_run_and_a_half_written_result_are_not_done(tmp_path):
    run = Step("r", (), str(tmp_path / "r"), "run")
    assert not steps.done(run)
    (tmp_path / "r/checkpoints/5").mkdir(parents=True)
    (tmp_path / "r/run.json").write_text('{"steps": 10}')
    assert not steps.done(run)
    (tmp_path / "r/checkpoints/10").mkdir()
    assert steps.done(run)
    (tmp_path / "results.json").write_text('{"finished": false}')
    assert not steps.done(Step("x", (), str(tmp_path), "result"))


def test_a_command_with_spaces_in_its_paths_survives_the_shell():
    step = Step("x", ("train.py", "--data", "my mix.jsonl", "--out", "$HOME"), "o", "run")
    assert shlex.split(running.command(step)) == ["python", *step.argv]


def test_steps_that_go_together_run_in_one_start_and_what_one_of_them_needs_may_be_another(
    tmp_path, monkeypatch, capsys
):
    out, files = tmp_path / "o", [write(tmp_path / f"{name}.json") for name in "ab"]

    def style(name, outputs, *needs):
        argv = ("-m", "study.style", outputs, "--teacher", files[1], "--out", str(out / name))
        needs = tuple(str(out / n) for n in needs)
        labels = {"base": f"{len(name)}M"}
        return Step(name, argv, str(out / name), "result", needs, labels, together="answers")

    def make(args):
        gone = str(tmp_path / "gone.json")
        return [style("a", files[0]), style("bb", gone), style("ccc", files[0], "a")], []

    monkeypatch.setitem(
        grid.PRESETS, "mini", types.SimpleNamespace(flags=lambda p: None, steps=make)
    )
    run = ["--preset", "mini", "--out", str(out), "--run"]
    assert grid.main(run) == 1
    said = capsys.readouterr()
    assert "3 steps in one start" in said.err and "3 steps ran" in said.out
    assert "study.grid: bb failed" in said.err and "1 failed, 1 of 3 are open" in said.out
    log = (out / "logs/a.log").read_text()
    assert "study.style: " in log and "gone.json" in log and "3 commands, 1 failed" in log
    write(tmp_path / "gone.json")
    assert grid.main(run) == 0
    said = capsys.readouterr()
    assert "steps in one start" not in said.err and "1 steps ran" in said.out


def test_a_done_step_that_other_flags_have_made_is_named_and_stays(tmp_path, monkeypatch, capsys):
    out = tmp_path / "o o"
    teacher, answers = (write(tmp_path / f"{name}.json") for name in "ab")

    def make(args):
        def step(name):
            argv = ("-m", "study.style", answers, *flags, "--out", str(out / name))
            return Step(name, argv, str(out / name), "result", (), {"base": f"{len(name)}M"})

        return [step("a"), step("bb")], []

    monkeypatch.setitem(
        grid.PRESETS, "mini", types.SimpleNamespace(flags=lambda p: None, steps=make)
    )
    flags, run = ("--teacher", teacher), ["--preset", "mini", "--out", str(out), "--run"]
    for _ in range(2):
        assert grid.main(run) == 0
        assert "other commands" not in capsys.readouterr().out
    with open(out / "logs/a.log", "a") as log:
        log.write("$ python it's what a model said\n")
    flags = ("--teacher", teacher, "--seed", "1")
    assert grid.main(run) == 0
    said = capsys.readouterr().out
    assert "2 steps that are done were made by other commands than these" in said
    assert ": a, bb. Remove" in said and "0 steps ran" in said


def test_a_line_that_is_no_command_of_study_is_named_and_the_rest_runs(tmp_path, capsys):
    one, two = (write(tmp_path / f"{name}.json") for name in "ab")
    lines = ["-m study.nothing x", "eval.py nq", "-m json.tool x", "-m study.style --colour red"]
    lines.append(f"-m study.answers {one} {two}")
    (tmp_path / "list").write_text("\n".join(lines) + "\n")
    assert commands.main([str(tmp_path / "list")]) == 2
    said = capsys.readouterr()
    for number, words in (
        (1, "study.nothing is no command"),
        (2, "a line is -m"),
        (3, "json.tool"),
    ):
        assert re.search(f"command {number} of .*{words}", said.err)
    assert "arguments are required: --teacher" in said.err
    assert said.out.endswith("5 commands, 4 failed\n")
    assert "2 answers" in said.out


def test_the_commit_that_ran_a_grid_stands_in_its_plan_once(tmp_path, monkeypatch):
    assert running.commits(tmp_path, runs=False) == []
    (tmp_path / "grid.json").write_text(json.dumps({"commits": ["abc"], "results": {}}))
    now = running.commits(tmp_path, runs=True)
    head = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert now[0] == "abc" and head.startswith(now[1].removesuffix(" with changes"))
    assert len(now[1].split()[0]) == 12
    (tmp_path / "grid.json").write_text(json.dumps({"commits": now, "results": {}}))
    assert running.commits(tmp_path, runs=True) == now == running.commits(tmp_path, runs=False)


def test_steps_side_by_side_have_cores_of_their_own_and_wait_for_what_they_need(
    tmp_path, monkeypatch
):
    code = RESULT.format(
        "import os,time; time.sleep(.3); "
        "(p/'seen').write_text(json.dumps([sorted(os.sched_getaffinity(0)), time.time()]))"
    )
    out = tmp_path / "o"

    def make(args):
        def one(name, *needs):
            return Step(
                name,
                ("-c", code, str(out / name), str(tmp_path / "ran")),
                str(out / name),
                "result",
                tuple(str(out / n) for n in needs),
                {"base": f"{len(name)}M"},
            )

        return [one("a"), one("bb"), one("ccc", "a", "bb")], []

    monkeypatch.setitem(
        grid.PRESETS, "mini", types.SimpleNamespace(flags=lambda p: None, steps=make)
    )
    assert grid.main(["--preset", "mini", "--out", str(out), "--run", "--jobs", "2"]) == 0
    (first, one), (second, two), (_, last) = (
        json.loads((out / name / "seen").read_text()) for name in ("a", "bb", "ccc")
    )
    assert last > max(one, two)
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(first) & set(second)


def write(path):
    """Two answers as AlpacaEval has them -> the path as text."""
    rows = [{"instruction": i, "output": f"{i} it is.", "generator": path.stem} for i in "xy"]
    path.write_text(json.dumps(rows))
    return str(path)


SAVES = (
    "import signal, sys, time, pathlib\n"
    "def save(*_):\n"
    "    time.sleep(1)\n"
    "    pathlib.Path(sys.argv[1]).write_text(str(count))\n"
    "    sys.exit(1)\n"
    "count = 0\n"
    "def on(*_):\n"
    "    global count\n"
    "    count += 1\n"
    "    if count == 1: save()\n"
    "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, on)\n"
    "pathlib.Path(sys.argv[1] + '.up').write_text('')\n"
    "time.sleep(60)\n"
)


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_lets_a_step_save_and_twice_kills_it(tmp_path, again):
    """As a terminal does it: SIGINT goes to the grid's whole process group."""
    saved = tmp_path / "saved"
    code = (
        "import sys, types; from study.grid import __main__ as grid; "
        "from study.grid.steps import Step; "
        f"step = Step('slow', ('-c', {SAVES!r}, {str(saved)!r}), {str(tmp_path / 'no')!r}, 'file');"
        "grid.PRESETS['mini'] = types.SimpleNamespace("
        "flags=lambda p: None, steps=lambda args: ([step], []), about=lambda args: ['what']); "
        "sys.exit(grid.main(['--preset', 'mini', '--out', sys.argv[1], '--run']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "o")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (tmp_path / "saved.up").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    if again:
        time.sleep(0.3)
        os.killpg(child.pid, signal.SIGINT)
    said = child.communicate(timeout=30)[1]
    assert child.returncode == 130 and "waiting for slow to save" in said
    assert "Traceback" not in said and "the same command goes on" in said
    assert saved.exists() != again, "a single signal reached the step, which saved"
    took = json.loads((tmp_path / "o/grid.json").read_text())["took"]
    assert [start["steps"] for start in took] == [0], "a stopped start has taken its time, too"
