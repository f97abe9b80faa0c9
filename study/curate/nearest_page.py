"""What the reports of diversity and leakage share: their folder, clipped texts, a histogram.

Left out: what is compared (diversity.py, leakage.py), the page around it (tasks/results.py).
"""

import html
import pathlib

import numpy as np

from host import terminal

CLIP = 4000  # characters of a text on the page


def folder(out: str | pathlib.Path | None, task: str) -> pathlib.Path:
    """The folder of the report, made: `out`, or a new one."""
    out = pathlib.Path(out) if out else terminal.new_out(task)
    out.mkdir(parents=True, exist_ok=True)
    return out


def histogram(scores: np.ndarray) -> dict:
    """{"0-10": n, ..., "90-100": n} of scores in percent; the last bar holds 100 too."""
    counts = np.histogram(np.minimum(scores, 100), np.arange(0, 101, 10))[0].tolist()
    return {f"{10 * k}-{10 * k + 10}": n for k, n in enumerate(counts)}


def one_line(text: str, width: int = 110) -> str:
    """A text for the terminal, clipped: no line ends, no control characters."""
    text = " ".join(text[: 4 * width].split())
    text = terminal.printable(text, lines=False)
    return text if len(text) <= width else text[: width - 1] + "…"


def clipped(item: dict) -> dict:
    """An item for the page: long texts cut, numbers rounded."""

    def cut(value):
        if isinstance(value, str) and len(value) > CLIP:
            return f"{value[:CLIP]}… ({len(value):,} characters)"
        return round(value, 3) if isinstance(value, float) else value

    return {k: cut(v) for k, v in item.items()}


def bars(counts: dict[str, int], width: int = 720, row: int = 24) -> str:
    """A histogram {label: count} as an SVG."""
    most, parts = max(counts.values()) or 1, []
    for k, (label, n) in enumerate(counts.items()):
        y, length = k * row, (width - 160) * n / most
        parts.append(
            f'<text x="64" y="{y + 16}" text-anchor="end">{html.escape(label)} %</text>'
            f'<rect x="72" y="{y + 3}" width="{length:.1f}" height="{row - 6}" fill="#2563a8"/>'
            f'<text x="{78 + length:.1f}" y="{y + 16}">{n:,}</text>'
        )
    return (
        '<p>BLEU of the nearest query, how many have it:</p><svg xmlns="http://www.w3.org/2000/svg"'
        f' viewBox="0 0 {width} {row * len(counts)}" role="img" style="max-width:{width}px" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )
