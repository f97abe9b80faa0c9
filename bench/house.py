"""Counts what a newcomer feels in this code: lengths, complexity, parameters, types, the README.

    python bench/house.py                  # this checkout
    python bench/house.py OLD NEW          # two checkouts, side by side
    python bench/house.py --list           # names what is over a limit

Reads only the files that git knows. Product is every .py file outside tests/ and bench/.
Complexity is McCabe's, counted as ruff's C901 counts it. A public function is one that is not
nested and whose name has no underscore in front.
"""

import argparse
import ast
import pathlib
import subprocess
from dataclasses import dataclass, field

MAX_COLUMNS = 100
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_COMPLEXITY = 15
MAX_PARAMETERS = 8


@dataclass
class Count:
    """What was counted in one group of files; over_* hold "file:line name number"."""

    files: int = 0
    lines: int = 0
    wide: int = 0
    functions: int = 0
    public: int = 0
    hinted: int = 0
    assertions: int = 0
    tests: int = 0
    over_file: list[str] = field(default_factory=list)
    over_lines: list[str] = field(default_factory=list)
    over_complexity: list[str] = field(default_factory=list)
    over_parameters: list[str] = field(default_factory=list)
    unhinted: list[str] = field(default_factory=list)


def complexity(function: ast.AST) -> int:
    """McCabe's number: 1 and one for each branch, loop, handler, case and nested function."""
    total = 1
    for node in ast.walk(function):
        if node is function:
            continue
        if isinstance(
            node,
            ast.If | ast.For | ast.AsyncFor | ast.While | ast.ExceptHandler | ast.FunctionDef
            | ast.AsyncFunctionDef,
        ):  # fmt: skip
            total += 1
        elif isinstance(node, ast.Match):
            wildcard = any(
                isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None
                for case in node.cases
            )
            total += len(node.cases) - wildcard
        if isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.Try) and node.orelse:
            total += 1
    return total


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Its parameters, keyword-only ones too, without self and cls."""
    arguments = function.args
    listed = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
    return [argument for argument in listed if argument.arg not in ("self", "cls")]


def is_hinted(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Every parameter has a type, or there is none and the result has one."""
    listed = parameters(function)
    if not listed:
        return function.returns is not None
    return all(argument.annotation for argument in listed)


def count_tree(tree: ast.AST, name: str, count: Count) -> None:
    """Adds a file's functions and assertions to the count."""
    nested = {
        inner
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(outer)
        if inner is not outer
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            count.assertions += 1
        elif isinstance(node, ast.Call):
            called = node.func
            called = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            count.assertions += called.startswith("assert_") or called == "raises"
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count_function(node, name, count, public=node not in nested)


def count_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, name: str, count: Count, public: bool
) -> None:
    """Adds one function: its size, complexity, parameters and, where public, its hints."""
    where = f"{name}:{node.lineno} {node.name}"
    count.functions += 1
    count.tests += node.name.startswith("test_")
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    for limit, number, over in (
        (MAX_FUNCTION_LINES, length, count.over_lines),
        (MAX_COMPLEXITY, complexity(node), count.over_complexity),
        (MAX_PARAMETERS, len(parameters(node)), count.over_parameters),
    ):
        if number > limit:
            over.append(f"{where} {number}")
    if public and not node.name.startswith("_"):
        count.public += 1
        count.hinted += is_hinted(node)
        if not is_hinted(node):
            count.unhinted.append(where)


def count_files(root: pathlib.Path, names: list[str]) -> Count:
    """Counts a group of Python files; lines are those that are not blank."""
    count = Count()
    for name in names:
        text = (root / name).read_text(encoding="utf-8")
        lines = text.splitlines()
        count.files += 1
        count.lines += sum(bool(line.strip()) for line in lines)
        count.wide += sum(len(line) > MAX_COLUMNS for line in lines if line.strip())
        if len(lines) > MAX_FILE_LINES:
            count.over_file.append(f"{name} {len(lines)}")
        count_tree(ast.parse(text), name, count)
    return count


def read_house(root: pathlib.Path) -> tuple[dict[str, Count], dict[str, int]]:
    """A checkout's counts by group, and its README's size."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    python = sorted(name for name in listed if name.endswith(".py") and (root / name).exists())
    in_tests = [name for name in python if name.startswith("tests/")]
    in_bench = [name for name in python if name.startswith("bench/")]
    product = [name for name in python if name not in {*in_tests, *in_bench}]
    groups = {
        "product": count_files(root, product),
        "tests": count_files(root, in_tests),
        "bench": count_files(root, in_bench),
    }
    readme = (root / "README.md").read_text(encoding="utf-8")
    sizes = {
        "root .py files": sum("/" not in name for name in python),
        "README bytes": len(readme.encode()),
        "README lines": len(readme.splitlines()),
        "README lines over 100 columns": sum(len(line) > 100 for line in readme.splitlines()),
    }
    return groups, sizes


def rows(groups: dict[str, Count], sizes: dict[str, int]) -> list[tuple[str, str]]:
    """The table's rows: (what, value)."""
    out = [(what, f"{number:,}") for what, number in sizes.items()]
    for group, count in groups.items():
        share = 100 * count.wide / max(count.lines, 1)
        out += [
            (f"{group}: files", f"{count.files}"),
            (f"{group}: lines, not blank", f"{count.lines:,}"),
            (f"{group}: lines over {MAX_COLUMNS} columns", f"{count.wide:,} ({share:.1f} %)"),
            (f"{group}: files over {MAX_FILE_LINES} lines", f"{len(count.over_file)}"),
            (f"{group}: functions", f"{count.functions:,}"),
            (f"{group}: functions over {MAX_FUNCTION_LINES} lines", f"{len(count.over_lines)}"),
            (f"{group}: complexity over {MAX_COMPLEXITY}", f"{len(count.over_complexity)}"),
            (f"{group}: over {MAX_PARAMETERS} parameters", f"{len(count.over_parameters)}"),
        ]
        if group == "product":
            out.append(
                (f"{group}: public functions with types", f"{count.hinted} of {count.public}")
            )
        if group == "tests":
            out.append((f"{group}: test functions", f"{count.tests:,}"))
            out.append((f"{group}: assertions", f"{count.assertions:,}"))
    return out


def print_over(groups: dict[str, Count]) -> None:
    """Names everything over a limit."""
    for group, count in groups.items():
        for title, over in (
            (f"files over {MAX_FILE_LINES} lines", count.over_file),
            (f"functions over {MAX_FUNCTION_LINES} lines", count.over_lines),
            (f"complexity over {MAX_COMPLEXITY}", count.over_complexity),
            (f"over {MAX_PARAMETERS} parameters", count.over_parameters),
            ("public functions without types", count.unhinted if group == "product" else []),
        ):
            for line in over:
                print(f"{group}: {title}: {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("checkout", nargs="*", type=pathlib.Path, default=[here])
    parser.add_argument("--list", action="store_true", help="name what is over a limit")
    args = parser.parse_args()
    houses = [read_house(root) for root in args.checkout]
    if args.list:
        print_over(houses[-1][0])
        return
    columns = [rows(*house) for house in houses]
    for line in zip(*columns, strict=True):
        values = "".join(f"{value:>20}" for _, value in line)
        print(f"{line[0][0]:<40}{values}")


if __name__ == "__main__":
    main()
