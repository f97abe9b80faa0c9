"""The plan of the house: which folder may import which, what is imported where, what --help costs.

Imports are read from the source with ast, those inside functions too.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

SPINE = ("data", "eval", "model", "sharding", "train")
FLOORS = {  # room: the rooms it may import
    "host": "",
    "web": "host",
    "kernels": "",
    "sharding": "",
    "text": "host",
    "families": "sharding",
    "model": "families kernels sharding",
    "data": "text host",
    "checkpoint": "families model sharding text host",
    "decoding": "checkpoint model kernels sharding data text host",
    "training": "checkpoint families model kernels sharding data text host",
    "tasks": "decoding data text host",
    "train": "training decoding checkpoint model sharding data host",
    "eval": "tasks decoding checkpoint host",
    "serve": "web decoding checkpoint data text host",
    "study": "web tasks data text host",
    "samples": "host",
}
WITH_JAX = set(
    "families model sharding kernels checkpoint decoding training train eval serve".split()
)
# the requirements files of a room besides requirements.txt
REQUIRED = {"web": ("serve",), "serve": ("serve",), "study": ("serve", "study")}
HEAVY = set("jax jaxlib numpy tensorflow_datasets orbax sklearn matplotlib scipy".split())
HELP_SECONDS = 0.3  # of processor time

# imports whose package comes with one that a requirements file names
COMES_WITH = {
    "ml_dtypes": "jax",
    "array_record": "tensorflow-datasets",
    "tensorstore": "orbax-checkpoint",
    "bs4": "markdownify",
    "werkzeug": "flask",
}
# imported inside a function, and the user is told what to install
OPTIONAL = {"training": {"libtpu", "tensorboardX", "matplotlib", "wandb"}}

# reads what XLA compiled, and is no part of training: --plan TOPOLOGY alone needs it
BY_NEED = {("training", "bench.compiled")}


class Import(NamedTuple):
    """One name that a file imports; `module` is the dotted name that the statement gives."""

    file: pathlib.Path
    line: int
    module: str

    @property
    def room(self) -> str:
        return self.module.split(".")[0]

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: import of {self.module}"


def rooms_files() -> list[tuple[str, pathlib.Path]]:
    """Every product file with its room."""
    files = [(name, ROOT / f"{name}.py") for name in SPINE]
    folders = sorted(set(FLOORS) - set(SPINE))
    for room in folders:
        files += [(room, path) for path in sorted((ROOT / room).rglob("*.py"))]
    return files


def imports_of(path: pathlib.Path) -> list[Import]:
    """All imports of a file, wherever in it they stand."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(path, node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                package = package[: len(package) - node.level + 1]
                base = ".".join([*package, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                found.append(Import(path, node.lineno, f"{base}.{alias.name}"))
    return found


ALL_IMPORTS = [(room, item) for room, path in rooms_files() for item in imports_of(path)]


def test_the_root_holds_the_spine_and_no_other_python_file():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(SPINE)


def test_every_folder_with_code_has_a_place_on_the_floors():
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "*.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {name.split("/")[0] for name in listed if "/" in name}
    assert folders - set(FLOORS) <= {"bench", "tests", "docs"}


def test_a_room_imports_only_the_floors_below_it():
    ours = set(FLOORS) | {"bench", "tests"}
    wrong = [
        f"{item.where}: {room} may import {FLOORS[room] or 'nothing of ours'}"
        for room, item in ALL_IMPORTS
        if item.room in ours and item.room != room and item.room not in FLOORS[room].split()
        if (room, item.module) not in BY_NEED
    ]
    assert not wrong, "\n".join(wrong)


def test_jax_is_imported_only_where_arrays_are_on_devices():
    wrong = [
        item.where
        for room, item in ALL_IMPORTS
        if item.room in ("jax", "jaxlib") and room not in WITH_JAX
    ]
    assert not wrong, "\n".join(wrong)


def module_name(path: pathlib.Path) -> str:
    """study/curate/mix.py -> study.curate.mix; a package is named after its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_imports_itself_by_way_of_others():
    modules = {module_name(path) for _, path in rooms_files()}
    edges: dict[str, dict[str, str]] = {name: {} for name in modules}
    for _, item in ALL_IMPORTS:
        target = item.module if item.module in modules else item.module.rpartition(".")[0]
        source = module_name(item.file)
        if target in modules and target != source:
            edges[source].setdefault(target, item.where)
    finished: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = [*path[path.index(name) :], name]
            steps = [edges[a][b] for a, b in zip(circle, circle[1:], strict=False)]
            raise AssertionError(" -> ".join(circle) + "\n" + "\n".join(steps))
        if name not in finished:
            for target in edges[name]:
                visit(target, [*path, name])
            finished.add(name)

    for name in sorted(modules):
        visit(name, [])


def test_no_two_test_files_have_one_name():
    """pytest imports them by name alone: two of one name end a run of all tests."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    twice = sorted({name for name in names if names.count(name) > 1})
    assert not twice, ", ".join(twice)


# --- limits ---


def load_house():
    """bench/house.py as a module; bench/ is no package."""
    spec = importlib.util.spec_from_file_location("house", ROOT / "bench" / "house.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("group", ["product", "bench", "tests"])
def test_files_functions_and_parameter_lists_keep_their_limits(group):
    house = load_house()
    count = house.read_house(ROOT)[0][group]
    over = [
        *(f"over {house.MAX_FILE_LINES} lines: {where}" for where in count.over_file),
        *(f"over {house.MAX_FUNCTION_LINES} lines: {where}" for where in count.over_lines),
        *(f"complexity over {house.MAX_COMPLEXITY}: {where}" for where in count.over_complexity),
        *(f"over {house.MAX_PARAMETERS} parameters: {where}" for where in count.over_parameters),
    ]
    assert not over, "\n".join(over)


# --- requirements ---


@functools.cache
def distributions(*names: str) -> set[str]:
    """The packages that these requirements files name, without what they include."""
    lines = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    return {
        re.split(r"[\s<>=!~\[;]", line)[0].lower()
        for line in lines.splitlines()
        if line and not line.startswith(("#", "-"))
    }


@functools.cache
def installed() -> Mapping[str, list[str]]:
    """Import names -> the installed distributions that have them."""
    return importlib.metadata.packages_distributions()


def third_party(room: str, item: Import) -> str | None:
    """The distribution an import comes from; None for ours, the standard library and optional."""
    name = item.room
    ours = name in FLOORS or name == "bench"
    if ours or name in sys.stdlib_module_names or name in OPTIONAL.get(room, ()):
        return None
    if name in COMES_WITH:
        return COMES_WITH[name]
    known = installed().get(name)
    return known[0].lower() if known else name


def test_what_a_room_imports_is_in_its_requirements_file():
    wrong = []
    for room, item in ALL_IMPORTS:
        package = third_party(room, item)
        names = [f"requirements-{name}.txt" for name in REQUIRED.get(room, ())]
        if package and package not in distributions("requirements.txt", *names):
            wrong.append(f"{item.where}: {package} is not in the requirements file of {room}")
    assert not wrong, "\n".join(wrong)


def test_a_requirements_file_names_nothing_that_nobody_imports():
    imported = {third_party(room, item) for room, item in ALL_IMPORTS} | {"jaxlib"}
    files = [f"requirements{name}.txt" for name in ("", "-serve", "-study")]
    listed = distributions(*files)
    assert not listed - imported, f"not imported: {', '.join(sorted(listed - imported))}"


def test_each_requirement_says_its_reason():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert line.startswith("-r ") or " # " in line or line.startswith("# "), (
                f"{path.name}: {line}"
            )


# --- programs ---


def programs() -> list[str]:
    """Every program's command, without `python`."""
    found = [f"{name}.py" for name in ("train", "data", "eval")]
    for room, path in rooms_files():
        if room in (*SPINE, "samples"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.stem == "__main__":
            found.append("-m " + module_name(path.parent / "__init__.py"))
        elif re.search(r"^if __name__ == .__main__.:", text, re.MULTILINE):
            found.append("-m " + module_name(path))
    return found


def run_help(command: str, *options: str) -> tuple[subprocess.CompletedProcess, float]:
    """`python command --help` and the processor time it took."""
    before, line = os.times(), [sys.executable, *options, *command.split(), "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system
    return done, used - before.children_system


@pytest.mark.parametrize("command", programs())
def test_help_is_printed_before_anything_heavy_is_imported(command):
    done, _ = run_help(command, "-X", "importtime")
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip()
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = imported.intersection(HEAVY)
    assert not heavy, f"{command} --help imports {', '.join(sorted(heavy))}"
    seconds = run_help(command)[1]
    for _ in range(3):  # another process on the same core makes any one longer
        seconds = seconds if seconds < HELP_SECONDS else run_help(command)[1]
    assert seconds < HELP_SECONDS, f"{command} --help took {seconds:.2f} s of processor time"
