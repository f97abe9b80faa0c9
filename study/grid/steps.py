"""A step of a grid: one command, what it needs, and the output that proves it done.

    python -m study.grid --preset paper --out DIR      # what prints and runs them

What presets are made of. Left out: how steps are run (running.py), which there are (paper.py,
small.py, and a file for each further preset).
"""

import json
import pathlib
from typing import NamedTuple

PROOFS = ("result", "run", "file", "asked")


class Step(NamedTuple):
    """One command of a grid.

    name: unique, also of its log. argv: the program and its arguments, without the interpreter.
    out: what it makes. needs: paths that must be there (others' outputs, or the user's files).
    proof: "result" (out/results.json says finished), "run" (out has the checkpoint of its last
    step), "file" (out exists) or "asked" (out/report.json counts no failed request that another try
    may mend). labels: where the report puts a result. by_hand: why a person must
    start it; it is printed and never run. together: steps with the same name here may run in one
    start, by eval.py commands or study.grid.commands.
    """

    name: str
    argv: tuple
    out: str
    proof: str
    needs: tuple = ()
    labels: dict | None = None
    by_hand: str | None = None
    together: str | None = None


def done(step: Step) -> bool:
    """Whether the output of a step is there, whole."""
    out = pathlib.Path(step.out)
    try:
        if step.proof == "file":
            return out.exists()
        if step.proof == "result":
            text = (out / "results.json").read_text(encoding="utf-8")
            return json.loads(text).get("finished", False) is True
        if step.proof == "asked":
            counts = json.loads((out / "report.json").read_text(encoding="utf-8"))
            return counts["failed"] == counts["of_these_refused"]
        # Orbax names a checkpoint when all of it is there
        steps = json.loads((out / "run.json").read_text(encoding="utf-8"))["steps"]
        return (out / "checkpoints" / str(steps)).is_dir()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


class Measured:
    """The steps that measure one model, as they are added.

    out: folder of the grid. name: of the model in it. needs: what every step waits for. labels:
    where the report puts the results. more: further flags of every eval.py. shape: what models of
    one shape share, where their evaluations may run in one start (and the study's in another).
    flags: {name: further flags of that eval.py alone}, set where there are some.
    """

    def __init__(self, out, name: str, model, needs, labels: dict, more=(), shape=None):
        self.folder, self.name, self.model = pathlib.Path(out) / "results" / name, name, model
        self.needs, self.labels, self.more, self.steps = tuple(needs), labels, more, []
        self.shape = shape
        self.flags: dict[str, tuple[str, ...]] = {}

    def out(self, name: str) -> str:
        return str(self.folder / name)

    def add(
        self,
        name: str,
        argv: tuple[str, ...],
        *files: str,
        labelled: bool | dict = True,
        by_hand: str | None = None,
    ) -> None:
        """A step whose result is out(name), which `argv` is told by --out.

        labelled: whether the report gets it; a dict: with these labels more.
        """
        labels = self.labels | (labelled if isinstance(labelled, dict) else {})
        kind = "eval" if argv[0] == "eval.py" else "study"
        self.steps.append(
            Step(
                f"{name}-{self.name}",
                (*argv, "--out", self.out(name)),
                self.out(name),
                "result",
                (*self.needs, *files),
                labels if labelled else None,
                by_hand,
                f"{kind} {self.shape}" if self.shape else None,
            )
        )

    def eval(
        self,
        name: str,
        task: str,
        *flags: str,
        files: tuple[str, ...] = (),
        labelled: bool | dict = True,
        by_hand: str | None = None,
    ) -> None:
        """A step of eval.py on the model."""
        own = self.flags.get(name, ())
        argv = ("eval.py", task, "--model", self.model, *flags, *self.more, *own)
        self.add(name, argv, *files, labelled=labelled, by_hand=by_hand)
