"""What programs print and how they end."""

import subprocess
import sys

import pytest

from host import terminal


def test_untrusted_text_cannot_move_the_cursor_or_turn_the_line():
    text = "\x1b[2Ja\rb\x9b\u202ec\ud800 \tnext\n日本\u3000語 👩\u200d💻 é"
    shown = terminal.printable(text)
    assert shown == "\\x1b[2Ja\\rb\\x9b\\u202ec\\ud800 \tnext\n日本\u3000語 👩\u200d💻 é"
    assert shown.encode() and terminal.printable(("x",)) == "('x',)"
    assert terminal.printable("a\nb\tc", lines=False) == "a\\nb\\tc"


def test_a_message_is_printable(capsys):
    terminal.say("file \x1b[2Jname\nand more")
    assert capsys.readouterr().err == "file \\x1b[2Jname\nand more\n"


def test_durations_and_counts():
    assert [terminal.duration(s) for s in (0, 65.9, 3661)] == ["0:00", "1:05", "1:01:01"]
    texts = ("20M", "0.3M", "65,536", "1e6", "1.5b", 7, None)
    assert [terminal.count(t) for t in texts] == [
        20_000_000, 300_000, 65_536, 1_000_000, 1_500_000_000, 7, None
    ]  # fmt: skip
    for bad in ("", "0", "-1", "20 M tokens", "1e-3", "0.0001k"):
        with pytest.raises(ValueError, match="--amounts"):
            terminal.count(bad, "--amounts")


def test_a_wrong_flag_is_one_line_and_a_hint(capsys):
    parser = terminal.Parser(prog="data.py")
    command = parser.add_subparsers().add_parser("pack")
    command.add_argument("--out")
    for argv, start in ((["--x"], "data.py: "), (["pack", "--out"], "data.py pack: ")):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(argv)
        message = capsys.readouterr().err
        assert stop.value.code == 2 and message.count("\n") == 1
        assert message.startswith(start) and "--help" in message


def raiser(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("--block 0\x1b[2J\nis no length"), "x.py: --block 0\\x1b[2J is no length"),
        (
            FileNotFoundError(2, "No such file or directory", "a\nb"),
            "x.py: a\\nb: No such file or ",
        ),
        (OSError(28, "No space left on device"), "x.py: No space left on device: make room"),
        (OSError("the isolation fails"), "x.py: the isolation fails"),
        (ModuleNotFoundError("no", name="numpyx"), "x.py: the package numpyx is missing"),
    ],
)
def test_what_the_user_can_mend_is_one_line(error, line, capsys):
    assert terminal.program(raiser(error), "x.py") == 2
    message = capsys.readouterr().err
    assert message.startswith(line) and message.count("\n") == 1


def test_bugs_keep_their_traceback_and_status_passes(capsys):
    for bug in (KeyError("x"), ModuleNotFoundError("no", name="host.nothing")):
        with pytest.raises(type(bug)):
            terminal.program(raiser(bug), "x.py")
    assert terminal.program(lambda: None, "x.py") == 0 and terminal.program(lambda: 3, "x.py") == 3
    assert terminal.program(raiser(KeyboardInterrupt()), "x.py") == 130
    assert capsys.readouterr().err == "x.py: interrupted\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_who_leaves_ends_a_program_quietly(lines):
    code = (
        "import sys; from host import terminal\n"
        f"def main():\n    for i in range({lines}): print('a line of text')\n"
        "sys.exit(terminal.program(main, 'x.py'))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        child.stdout.close()  # before the child prints
        assert child.stderr.read() == b"" and child.wait() == 0


def test_a_new_out_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(terminal.new_out("mmlu")) == "out/mmlu-1"
    terminal.new_out("mmlu").mkdir(parents=True)
    assert str(terminal.new_out("mmlu")) == "out/mmlu-2"


def test_progress_tells_share_and_time_left(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    progress = terminal.Progress("reading", 200, "rows")
    now[0] = 11.0  # of which 10 s were compiling
    progress(10)
    now[0] = 22.0
    progress(50)
    progress(60)
    progress.close()
    lines = [
        "reading [##                            ]   5% of 200 rows\n",
        "reading [########                      ]  25% of 200 rows, 41 s left\n",
    ]
    assert capsys.readouterr().err == "".join(lines)


def test_host_imports_nothing_heavy():
    code = "import sys, host.files, host.terminal, host.workers\n"
    code += "print({*sys.modules} & {'numpy', 'jax'})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
