"""The study's commands of a file, one a line, in one start of Python.

    python -m study.grid.commands FILE      # lines such as: -m study.style OUTPUTS --teacher T

For a grid's many short steps; eval.py commands does the same for evaluations. Left out: programs
that are not the study's.
"""

import importlib
import importlib.util
import pathlib
import shlex
import sys

from host import terminal


def main_of(module: str):
    """The main(argv) of a module or package of study, as python -m finds it."""
    spec = importlib.util.find_spec(module) if module.startswith("study.") else None
    if spec is None:
        raise ValueError(f"{module} is no command of study: a line is -m study.NAME ARGUMENTS")
    package = spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module).main


def status_of(line: list[str]) -> int:
    """Run one command -> its exit status; a flag that it refuses ends this command alone."""
    if line[:1] != ["-m"] or len(line) < 2:
        raise ValueError(f"{shlex.join(line)}: a line is -m study.NAME ARGUMENTS")
    try:
        return main_of(line[1])(line[2:])
    except SystemExit as stop:
        return int(stop.code or 0)


def run(path: str) -> int:
    """All commands of a file; one that fails has said why, and the rest goes on -> exit status."""
    texts = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    lines = [shlex.split(text) for text in texts if text.strip()]
    failed = 0
    for number, line in enumerate(lines, 1):
        where = f"study.grid.commands: command {number} of {path}"
        status = terminal.program(lambda line=line: status_of(line), where)
        if status == 130:  # interrupted
            return status
        failed += status != 0
    print(f"{len(lines)} commands, {failed} failed")
    return 2 if failed else 0


def main(argv: list[str] | None = None) -> int:
    p = terminal.Parser(
        prog="python -m study.grid.commands",
        description="Run the study's commands of a file in one start of Python.",
    )
    p.add_argument("file", metavar="FILE", help="lines such as: -m study.style OUTPUTS --out DIR")
    return terminal.program(lambda: run(p.parse_args(argv).file), "study.grid.commands")


if __name__ == "__main__":
    sys.exit(main())
