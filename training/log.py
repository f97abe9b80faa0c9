"""The log of a run: one line a step in metrics.jsonl, some of them on the terminal.

For train.py; nothing to run. Metrics are fetched one step late, so that the device never waits for
the host. Time spent outside of steps (held-out losses, saving) counts for none of them.
"""

import importlib.util
import json
import math
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from host import terminal

BOARD = ("loss", "lr", "grad_norm", "loss_share", "tokens_per_s", "eval_loss")
RECENT = 101  # steps whose median time is the estimate for those to come


class Diverged(ValueError):
    """A loss or a gradient norm that is no number: the step, what it was, the rows of its batch."""

    def __init__(self, step: int, loss: float, grad_norm: float, rows: list[int]):
        self.step, self.rows = step, rows
        super().__init__(
            f"step {step}: loss {loss}, gradient norm {grad_norm}; rows {rows}: the weights of "
            f"step {step - 1} are untouched"
        )


class Scale(NamedTuple):
    """What the figures of a line are computed from."""

    steps: int  # of the whole run
    tokens: int  # a step
    flops: float  # model FLOPs a step
    peak: float | None  # FLOP/s of all devices together, None where not known


class StepLog:
    """Holds the metrics of the last step and writes them when the next one is under way."""

    def __init__(
        self,
        path: pathlib.Path | None,
        scale: Scale,
        rows_of: Callable[[int], list[int]],
        every: int = 1,
        boards: tuple = (),
    ):
        """path: of metrics.jsonl; None on processes that write nothing.

        rows_of(step): the rows of its batch, for `Diverged`. every: steps between printed lines.
        """
        self.scale, self.rows_of, self.every, self.boards = scale, rows_of, every, boards
        self.file = open(path, "a", encoding="utf-8") if path else None
        self.in_place = self.file is not None and sys.stdout.isatty()
        self.stop = False  # a process wanted to stop when a step that was fetched began
        self.skipped = 0
        self._pending: tuple[int, dict] | None = None
        self._line: dict[str, Any] | None = None
        self._before: dict[str, float] = {}
        self._times: list[float] = []
        self._clock = time.perf_counter()

    def add(self, **measured: float) -> None:
        """What was measured before the next step; it goes to the line of that step."""
        self._before |= measured

    def start_clock(self) -> None:
        """The next step begins now."""
        self._clock = time.perf_counter()

    def push(self, step: int, metrics: dict) -> None:
        """Write the step before this one, and hold this one, whose metrics are on their way."""
        self.flush()
        self._pending = step, metrics

    def fetch(self) -> None:
        """Wait for the held step's metrics; its time ends here. Raises Diverged."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(x) for name, x in metrics.items()}
        now = time.perf_counter()
        ms, self._clock = (now - self._clock) * 1000, now
        self._times = [*self._times[-RECENT + 1 :], ms]
        self.stop = self.stop or values["stop"] > 0
        loss, grad_norm = values["loss"], values["grad_norm"]
        empty = values["loss_tokens"] == 0
        if not empty and not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(step, loss, grad_norm, self.rows_of(step))
        self.skipped += empty
        s = self.scale
        self._line = {
            "step": step,
            "loss": loss,
            "lr": values["lr"],
            "grad_norm": grad_norm,
            "loss_share": values["loss_tokens"] / s.tokens,
            "tokens": s.tokens,
            "ms": round(ms, 3),
            "tokens_per_s": round(s.tokens / ms * 1000, 1),
            "mfu": round(s.flops / (ms / 1000 * s.peak), 4) if s.peak else None,
        }

    def flush(self, **measured: float | None) -> None:
        """Write the held step, with what was measured after it, e.g. eval_loss=1.5."""
        self.fetch()
        line, self._line = self._line, None
        if line is None:
            return
        line |= self._before | {name: x for name, x in measured.items() if x is not None}
        self._before = {}
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            self._print(line)
        for board in self.boards:
            board(line["step"], {name: line[name] for name in BOARD if name in line})

    def _print(self, line):
        step, steps = line["step"], self.scale.steps
        skipped, measured = line["loss_share"] == 0, "eval_loss" in line
        due = step % self.every == 0 or step in (1, steps) or skipped or measured
        if due or self.in_place:
            text = step_line(line, steps, statistics.median(self._times))
            if skipped:
                text += f"  SKIPPED: no loss token in this batch ({self.skipped} so far)"
            if self.in_place:
                width = shutil.get_terminal_size().columns - 1
                text = "\r\033[K" + (text if due else text[:width])
            print(text, end="\n" if due else "", flush=True)

    def close(self) -> None:
        """Close the file and the boards; what is held is left out, for it was never saved."""
        if self.in_place:
            print("\r\033[K", end="", flush=True)
        if self.file:
            self.file.close()
        for board in self.boards:
            board.close()


def step_line(line: dict[str, Any], steps: int, typical_ms: float) -> str:
    """One step as text. typical_ms: of a step to come."""
    step = line["step"]
    mfu = "-" if line["mfu"] is None else f"{line['mfu']:.1%}"
    text = (
        f"step {step:>{len(str(steps))}}/{steps}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  "
        f"grad norm {line['grad_norm']:.3f}  loss share {line['loss_share']:.2f}  "
        f"{line['ms']:.0f} ms  {line['tokens_per_s']:,.0f} tokens/s  MFU {mfu}  "
        f"eta {terminal.duration((steps - step) * typical_ms / 1000)}"
    )
    if "eval_loss" in line:
        text += f"  held-out loss {line['eval_loss']:.4f}"
    return text


# --- other places that curves are sent to ---


def check_boards(tensorboard: bool, wandb: bool) -> None:
    """ValueError where a package that a flag needs is not installed."""
    flags = (("tensorboard", "tensorboardX", tensorboard), ("wandb", "wandb", wandb))
    for flag, package, wanted in flags:
        if wanted and not importlib.util.find_spec(package):
            raise ValueError(
                f"--{flag} needs the package {package}: pip install {package}, or leave the flag "
                "out (metrics.jsonl has it all)"
            )


class WandB:
    """Scalars of each step as a run of Weights & Biases; its own variables say where and whose."""

    def __init__(self, out: pathlib.Path, config: dict[str, Any]):
        import wandb  # type: ignore[import-not-found]

        name = out.name
        self.run = wandb.init(
            project="mynah", name=name, id=name, resume="allow", dir=out, config=config
        )

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log(scalars, step=step)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """Scalars of each step as TensorBoard events."""

    def __init__(self, out: pathlib.Path):
        from tensorboardX import SummaryWriter  # type: ignore[import-not-found]

        self.writer = SummaryWriter(str(out / "tensorboard"))

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        for name, x in scalars.items():
            self.writer.add_scalar(name, x, step)

    def close(self) -> None:
        self.writer.close()
