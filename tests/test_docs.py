"""The documents: links lead somewhere, commands name programs and flags that exist, README fits."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README_BYTES, README_LINES, COLUMNS = 10_240, 150, 100


def documents() -> list[str]:
    """Every Markdown file that git knows."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "*.md"], capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split() if not name.startswith("tests/")]


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {anchor(heading) for heading in headings}


@pytest.mark.parametrize("name", documents())
def test_a_link_leads_to_a_file_and_a_heading(name):
    path = ROOT / name
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, heading = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{name}: {target}"
        if heading:
            assert heading in anchors(there), f"{name}: {target}"


def commands(name: str) -> list[str]:
    """The commands in a document's code blocks; a line that ends in a backslash goes on."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:sh|bash)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(\S*/)?python3? ", line)]


@functools.cache
def help_text(program: tuple[str, ...]) -> str:
    """What a program, or one of its commands, says about itself."""
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(program)} --help: {done.stderr[-300:]}"
    return done.stdout


@pytest.mark.parametrize("name", [name for name in documents() if commands(name)] or ["README.md"])
def test_a_command_names_a_program_and_flags_that_exist(name):
    for command in commands(name):
        words = shlex.split(command, comments=True)[1:]
        program = (words[0], words[1]) if words[0] == "-m" else (words[0],)
        if program[0] == "-m" and not (ROOT / program[1].split(".")[0]).exists():
            continue  # pip, pytest: not ours
        rest = words[len(program) :]
        said = help_text(program)
        if rest and re.search(
            rf"{{[^}}]*\b{re.escape(rest[0])}\b[^}}]*}}|^    {re.escape(rest[0])}\b",
            said,
            re.MULTILINE,
        ):
            said += help_text((*program, rest[0]))
        if "--preset" in rest:  # a preset has flags of its own
            said += help_text((*program, *rest[rest.index("--preset") :][:2]))
        for word in rest:
            flag = word.split("=")[0]
            if flag.startswith("--"):
                assert re.search(rf"{re.escape(flag)}\b", said), f"{name}: {command}: no {flag}"


def test_the_readme_fits_on_one_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) <= README_BYTES
    assert len(text.splitlines()) <= README_LINES
    wide = [line for line in text.splitlines() if len(line) > COLUMNS]
    assert not wide, "\n".join(wide)
