"""The curve of a run: in the terminal, and as a page and a PNG beside metrics.jsonl.

    python -m training.picture out/tiny-1        draw it again, of a run that goes on, too

The PNG needs matplotlib (requirements-study.txt), the page nothing. Left out: several runs in one
picture, zooming: TensorBoard has that.
"""

import html
import importlib.util
import math
import pathlib
import sys
from typing import Any

from host import files, terminal

Lines = list[dict[str, Any]]  # of metrics.jsonl
WIDTH, HEIGHT = 60, 8  # of the plot in the terminal, in characters of 2 x 4 dots
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille character
FEW = 30  # points of a curve that are marked one by one
COLOURS = {"loss": "#4477aa", "eval_loss": "#cc6677", "lr": "#999933"}
NAMES = {"loss": "loss", "eval_loss": "held-out loss", "lr": "learning rate"}


def read(out: pathlib.Path) -> Lines:
    """The steps of a run, in order."""
    path = out / "metrics.jsonl"
    return files.json_lines(path, repair=False, nan=True) if path.exists() else []


def points(lines: Lines, name: str) -> list[tuple[int, float]]:
    """(step, value) wherever `name` was measured; what was measured before training is step 0's."""
    before = [(0, line["eval_loss_before"]) for line in lines[:1] if "eval_loss_before" in line]
    out = before if name == "eval_loss" else []
    out = out + [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [(s, y) for s, y in out if math.isfinite(y)]


def bins(values: list[tuple[int, float]], count: int) -> list[tuple[float, float]]:
    """(place from 0 to 1, mean) of at most `count` pieces of a curve."""
    first, last = values[0][0], values[-1][0]
    sums: dict[int, list[float]] = {}
    for s, y in values:
        share = (s - first) / max(last - first, 1)
        sums.setdefault(min(int(share * count), count - 1), []).append(y)
    return [((i + 0.5) / count, sum(ys) / len(ys)) for i, ys in sorted(sums.items())]


# --- in the terminal ---


def plot(lines: Lines) -> list[str]:
    """The training loss over the steps in Braille dots; [] where there are fewer than 8 steps."""
    values = points(lines, "loss")
    if len(values) < 8:
        return []
    import numpy as np  # --help and the page do without

    means = bins(values, 2 * WIDTH)
    places, heights = [x for x, _ in means], [y for _, y in means]
    low, high = min(heights), max(heights)
    cells = [[0] * WIDTH for _ in range(HEIGHT)]
    before = None
    for column in range(2 * WIDTH):
        y = np.interp((column + 0.5) / (2 * WIDTH), places, heights)
        row = round((high - y) / ((high - low) or 1.0) * (4 * HEIGHT - 1))
        # from the dot before it on, so that a steep curve has no holes
        for r in range(min(row, row if before is None else before), max(row, before or row) + 1):
            cells[r // 4][column // 2] |= DOTS[r % 4][column % 2]
        before = row
    labels = {0: f"{high:.3f}", HEIGHT - 1: f"{low:.3f}"}
    rows = [
        f"{labels.get(i, ''):>8} {''.join(chr(0x2800 + c) for c in row)}"
        for i, row in enumerate(cells)
    ]
    first, last = str(values[0][0]), f"{values[-1][0]} steps"
    return ["    loss", *rows, f"{'':>9}{first}{last:>{WIDTH - len(first)}}"]


# --- beside metrics.jsonl ---


def draw(out: pathlib.Path, name: str) -> list[str]:
    """Write the page, and the PNG where matplotlib is installed -> the names of the files."""
    lines = read(out)
    if len(points(lines, "loss")) < 2:
        return []
    written = ["curves.html"]
    files.write_whole(out / "curves.html", page(lines, name))
    if importlib.util.find_spec("matplotlib"):
        png(lines, name, out / "curves.png")
        written.append("curves.png")
    return written


def svg(lines: Lines, names: tuple[str, ...], width: int = 720, height: int = 260) -> str:
    """Curves over the steps, each mean of a few steps beside the pale single ones."""
    curves = {name: points(lines, name) for name in names}
    curves = {name: values for name, values in curves.items() if values}
    steps = [s for values in curves.values() for s, _ in values]
    ys = [y for values in curves.values() for _, y in values]
    x0, x1, y0, y1 = min(steps), max(max(steps), 1), min([0.0, *ys]), max(ys) or 1.0

    def place(s, y):
        across = 60 + (s - x0) / max(x1 - x0, 1) * (width - 80)
        return f"{across:.1f},{height - 30 - (y - y0) / (y1 - y0) * (height - 50):.1f}"

    def line(values, colour, opacity):
        path = " ".join(place(s, y) for s, y in values)
        return (
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" '
            f'opacity="{opacity}"/>'
        )

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{", ".join(names)}">']
    for share in (0.0, 0.5, 1.0):
        y = y0 + share * (y1 - y0)
        left, right = place(x0, y), place(x1, y)
        out.append(f'<polyline points="{left} {right}" class="rule"/>')
        out.append(f'<text x="54" y="{float(left.split(",")[1]) + 4:.1f}">{y:.3g}</text>')
        s = x0 + share * (x1 - x0)
        across = place(s, y0).split(",")[0]
        out.append(f'<text x="{across}" y="{height - 8}" class="step">{s:,.0f}</text>')
    for name, values in curves.items():
        colour, many = COLOURS[name], len(values) > 60
        if len(values) <= FEW:
            dots = (place(s, y).split(",") for s, y in values)
            out += [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in dots]
        if len(values) > 2:  # two points are no curve
            out.append(line(values, colour, 0.3 if many else 1))
        if many:
            span = values[-1][0] - values[0][0]
            out.append(line([(values[0][0] + x * span, y) for x, y in bins(values, 60)], colour, 1))
    return "\n".join([*out, "</svg>"])


STYLE = """\
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem }
svg { width: 100%; height: auto } text { font-size: 12px; fill: currentColor; text-anchor: end }
@media (max-width: 500px) { text { font-size: 22px } }
.step { text-anchor: middle } .rule { stroke: currentColor; opacity: .15; fill: none }
table { border-collapse: collapse } td { padding: .1rem 1.5rem .1rem 0 }
.key { display: inline-block; width: 1rem; height: .2rem; margin: 0 .4rem .25rem 0 }"""


def page(lines: Lines, name: str) -> str:
    """The curves of a run and its last figures, as a page that needs nothing else."""
    last = lines[-1]
    held = points(lines, "eval_loss")
    rows = [("steps", f"{last['step']:,}"), ("loss of the last step", f"{last['loss']:.4f}")]
    if held:
        rows += [("held-out loss", f"{held[0][1]:.4f} before, {held[-1][1]:.4f} after")]
        least = min(held, key=lambda point: point[1])
        rows += [("least held-out loss", f"{least[1]:.4f} at step {least[0]:,}")]
    table = "".join(f"<tr><td>{a}</td><td>{b}</td></tr>" for a, b in rows)
    keys = " &nbsp; ".join(
        f'<span class="key" style="background: {COLOURS[n]}"></span>{NAMES[n]}'
        for n in ("loss", "eval_loss", "lr")
        if points(lines, n)
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
{STYLE}
</style></head><body>
<h1>{html.escape(name)}</h1>
<p>{keys}</p>
{svg(lines, ("loss", "eval_loss"))}
{svg(lines, ("lr",), height=140)}
<table>{table}</table>
</body></html>
"""


def png(lines: Lines, name: str, path: pathlib.Path) -> None:
    """The same curves by matplotlib."""
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("agg")
    from matplotlib import pyplot  # type: ignore[import-not-found]

    figure, (above, below) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(3, 1), layout="constrained"
    )
    for axis, names in ((above, ("loss", "eval_loss")), (below, ("lr",))):
        for curve in names:
            if values := points(lines, curve):
                mark = "o" if len(values) <= FEW else ""
                dash = "-" if len(values) > 2 else ""  # two points are no curve
                how = {"color": COLOURS[curve], "label": NAMES[curve], "marker": mark}
                axis.plot(*zip(*values, strict=True), linestyle=dash, **how)
        axis.legend(frameon=False)
    above.set_title(name)
    below.set_xlabel("step")
    with files.beside(path, replace=True) as tmp:
        figure.savefig(tmp, dpi=150, format="png")
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    p = terminal.Parser(
        prog="python -m training.picture", description="Draw the curves of a run again."
    )
    p.add_argument("run", metavar="RUN", help="a run directory")
    run = pathlib.Path(p.parse_args(argv).run)
    lines = read(run)
    if not lines:
        raise ValueError(f"{run} holds no metrics.jsonl with steps: name a run directory")
    print(*plot(lines), *(str(run / name) for name in draw(run, run.name)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.program(main, "python -m training.picture"))
