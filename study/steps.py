"""A step of a grid: one command, what it needs, and the output that proves it done. What presets are made of.

    python -m study.grid --preset paper --out DIR      # what prints and runs them

Left out: how steps are run (grid.py), which there are (paper_grid.py, and a file for each further preset).
"""

import json
import pathlib
from typing import NamedTuple

PROOFS = ("result", "run", "file")


class Step(NamedTuple):
    """name: unique, also of its log. argv: the program and its arguments, without the interpreter. out: what it makes. needs: paths that must be there (others' outputs, or the user's files).

    proof: "result" (out/results.json says finished), "run" (out has the checkpoint of its last step) or "file" (out exists). labels: where the report puts a result. by_hand: why a person
    must start it; it is printed and never run.
    """

    name: str
    argv: tuple
    out: str
    proof: str
    needs: tuple = ()
    labels: dict | None = None
    by_hand: str | None = None


def done(step):
    """Whether the output of a step is there, whole."""
    out = pathlib.Path(step.out)
    try:
        if step.proof == "file":
            return out.exists()
        if step.proof == "result":
            return (
                json.loads((out / "results.json").read_text(encoding="utf-8")).get(
                    "finished", False
                )
                is True
            )
        steps = json.loads((out / "run.json").read_text(encoding="utf-8"))[
            "steps"
        ]  # Orbax names a checkpoint when all of it is there
        return (out / "checkpoints" / str(steps)).is_dir()
    except (OSError, ValueError, KeyError):
        return False
