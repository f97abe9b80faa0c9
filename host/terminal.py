"""What a program says and how it ends: printable text, progress, one line for an error.

For every program; nothing to run. Results go to stdout and files, all the rest to stderr. Left out:
colours, and what is specific to one program.
"""

import argparse
import errno
import fractions
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import NoReturn

# What a terminal acts on, turns text around by or cannot encode: controls, line and paragraph
# separators, marks of direction, halves of surrogate pairs. Letters of every script, emoji and
# their joiners are left as they are.
CONTROLS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
LINE_CONTROLS = re.compile(CONTROLS.pattern[:-1] + "\t\n]")


def printable(text: object, lines: bool = True) -> str:
    """Untrusted text for a terminal: what the terminal would act on becomes a visible escape
    (\\x1b).

    Newlines and tabs stay where `lines`; without, the text is one line.
    """
    return (CONTROLS if lines else LINE_CONTROLS).sub(lambda c: ascii(c[0])[1:-1], str(text))


def say(text: object) -> None:
    """One message on stderr, at once and printable: names in it may be anybody's."""
    print(printable(text), file=sys.stderr, flush=True)


class Progress:
    """How far something is and when it ends, on stderr: in place on a terminal, else a line every
    ten seconds. The pace is that since the first report: before it come compiling, and what an
    earlier start has done.
    """

    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, max(total, 1), unit
        in_place = sys.stderr.isatty()
        self.every, self.begin, self.end = (0.3, "\r\033[K", "") if in_place else (10, "", "\n")
        self.next = time.monotonic() + self.every
        self.first: tuple[float, int] | None = None  # (when, how much was done) at first

    def __call__(self, done: int) -> None:
        now, share = time.monotonic(), min(done / self.total, 1)
        since, before = self.first = self.first or (now, done)
        if now >= self.next and share:
            self.next = now + self.every
            bar = "#" * round(30 * share)
            text = f"{self.what} [{bar:<30}] {share:4.0%} of {self.total:,} {self.unit}"
            if done > before:
                left = (now - since) * max(self.total - done, 0) / (done - before)
                text += f", {left:,.0f} s left"
            print(self.begin + text, end=self.end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line, where it is one that was rewritten in place."""
        print(self.begin, end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "1:05" for 65 seconds, "1:01:01" for 3661."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def count(text: object, flag: str = "--tokens") -> int | None:
    """ "20M", "0.3M", "65,536", "1e6" -> int; suffixes k, M, B or G are powers of 1000. None stays
    None."""
    if text is None:
        return None
    number = re.fullmatch(
        r"(\d+(?:\.\d*)?|\.\d+)(?:e\+?(\d))?([kmbg]?)", re.sub(r"[,_\s]", "", str(text)).lower()
    )
    zeros = (
        {"": 0, "k": 3, "m": 6, "b": 9, "g": 9}[number[3]] + int(number[2] or 0) if number else 0
    )
    if not number or fractions.Fraction(number[1]) * 10**zeros < 1:
        raise ValueError(f"{flag} {text} is no number of tokens: write 300000, 0.3M, 20M or 1.5B")
    return int(fractions.Fraction(number[1]) * 10**zeros)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and a hint at --help."""

    def error(self, message: str) -> NoReturn:
        name = self.prog
        self.exit(2, f"{name}: {printable(message, lines=False)} (see {name} --help)\n")


def program(main: Callable[[], int | None], name: str, stopped: str = "interrupted") -> int:
    """The exit status of `main()`: 0, or what it returns; 2 for what the user can mend, said in one
    line on stderr.

    The user can mend a ValueError, what a file system refuses (OSError) and a package that is
    missing. Whoever stops reading (`| head`) ends the program quietly. Ctrl-C gives 130, and
    `stopped` says whether the same command goes on. Any other exception is a bug and goes on to
    Python, which prints its traceback and exits with 1.
    """
    try:
        status = main()
        sys.stdout.flush()  # here, where a reader who left is noticed without a traceback
        return status or 0
    except BrokenPipeError:
        # Python flushes both once more at its end, which would fail again.
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0
    except KeyboardInterrupt:
        say(f"{name}: {stopped}")
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        say(f"{name}: {printable(_reason(error), lines=False)}")
        return 2


def _reason(error):
    """An error in words for the user. An OSError of no number is the project's own and has its own
    words."""
    if isinstance(error, ModuleNotFoundError):
        if (pathlib.Path(__file__).parents[1] / (error.name or ".").split(".")[0]).exists():
            raise error  # a module of ours: a bug
        return f"the package {error.name} is missing: install the requirements file that lists it"
    if isinstance(error, OSError) and error.errno and error.strerror:
        where = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        hints = {
            errno.ENOSPC: "make room, then give the same command again",
            errno.ENAMETOOLONG: "use a shorter name",
            errno.EACCES: "name another place, or change its permissions",
            errno.ENOENT: "check the name",
        }
        hint = hints.get(error.errno)
        return f"{where}{error.strerror}" + (f": {hint}" if hint else "")
    text = " ".join(str(error).splitlines())
    return text or type(error).__name__


def new_out(name: str) -> pathlib.Path:
    """out/NAME-1, or the first number that is free; whoever writes there makes it."""
    n = 1
    while (path := pathlib.Path("out") / f"{name}-{n}").exists():
        n += 1
    return path
