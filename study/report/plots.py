"""Panels of the report's figures by matplotlib: a measure against the amount of imitation data, or
against the base model's size.

    python -m study.report RESULTS --out DIR      # what draws them

Same points, same bytes: no date, a fixed salt for ids, fonts that matplotlib carries. Left out:
reading results (report.py).
"""

import io
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from study.report.points import unit_of

FIGURES = [  # number, caption, rows of panels (measure, what it is drawn against)
    (
        1,
        "raters' preference and factual knowledge",
        [[("rate", "amount"), ("nq", "amount"), ("rate", "size")]],
    ),
    (3, "a model's preference", [[("judge", "amount"), ("judge", "size")]]),
    (
        4,
        "benchmarks",
        [
            [(m, x) for m in ("mmlu", "mmlu_own", "nq", "nq_own", "humaneval")]
            for x in ("amount", "size")
        ],
    ),
    (5, "mean non-toxicity", [[("toxicity", "amount")]]),
]


def panels_taken(rows: list, points: list[dict]) -> list:
    """The rows of panels without those of measures that were not taken, and those against the size
    where there is one; all where none is left.
    """
    taken = {p["measure"] for p in points}
    sizes = {p["size"] for p in points if p["role"] != "teacher"}
    wanted = ("amount", "size") if len(sizes) > 1 else ("amount",)
    kept = [[panel for panel in row if panel[0] in taken and panel[1] in wanted] for row in rows]
    kept = [row for row in kept if row]
    return kept if kept else rows


COLOURS = ("#1f5fa8", "#c8552b", "#2a8a4a", "#7b3fa0", "#8a6d1d", "#b0305f")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "-.", (0, (1, 1)), "--")
GREY, TEACHER = "#8a8a8a", "#111111"


def plain(text: str) -> str:
    """A name for matplotlib, which would read $ as mathematics."""
    return str(text).replace("$", r"\$")


def amount_name(n: int) -> str:
    """300000 -> "0.3M", 5000 -> "5k"."""
    if n >= 1e5:
        return f"{n / 1e6:.6f}".rstrip("0").rstrip(".") + "M"
    return f"{n / 1e3:g}k" if n >= 1e3 else f"{n:g}"


def shots_drawn(points: list[dict]) -> int | None:
    """Of several numbers of shots, 3 (the paper's figures) where it is there, else the largest."""
    shots = {p["shots"] for p in points if p["measure"] == "nq" and p["shots"] is not None}
    return 3 if 3 in shots else max(shots, default=None)


def line(ax: Any, groups: dict, scale: float, **style: Any) -> None:
    """Means over seeds as a line; each seed a dot with its interval. groups: {x: points}."""
    xs = sorted(groups)
    ax.plot(
        xs,
        [scale * np.mean([p["score"] for p in groups[x]]) for x in xs],
        linewidth=1.6,
        markersize=4.5,
        **style,
    )
    for x in xs:
        for p in groups[x]:
            if len(groups[x]) > 3:  # their intervals would hide one another
                p = p | {"interval": None}
            dot(ax, x, p, scale, style["color"], style.get("marker", "o"))


def dot(ax: Any, x: float, p: dict, scale: float, colour: str, marker: str = "o") -> None:
    low, high = p["interval"] or (p["score"], p["score"])
    ax.errorbar(
        [x],
        [scale * p["score"]],
        yerr=[[max(0, scale * (p["score"] - low))], [max(0, scale * (high - p["score"]))]],
        fmt=marker,
        color=colour,
        markersize=4.5,
        capsize=2,
        elinewidth=1,
        alpha=0.9,
    )


def level(ax: Any, group: list[dict], scale: float, colour: str, label: str, dashes: str) -> None:
    """A horizontal line with its interval's band: what does not depend on x. group: its seeds."""
    ax.axhline(
        scale * np.mean([p["score"] for p in group]),
        color=colour,
        linewidth=1.3,
        linestyle=dashes,
        label=label,
    )
    if len(group) == 1 and group[0]["interval"]:
        ax.axhspan(
            *(scale * v for v in group[0]["interval"]), color=colour, alpha=0.08, linewidth=0
        )


def by(points: Iterable[dict], key: Callable[[dict], Any]) -> dict:
    groups = {}
    for p in points:
        groups.setdefault(key(p), []).append(p)
    return groups


class Look(NamedTuple):
    """What all panels of a report share.

    titles, percents: by measure. colours: {base: colour}, markers: {source: marker}. shots: of NQ.
    """

    titles: dict
    percents: dict
    paper_nq: dict
    colours: dict
    markers: dict
    shots: int | None

    @classmethod
    def of(cls, points: list[dict], titles: dict, percents: dict, paper_nq: dict) -> "Look":
        by_size = sorted(points, key=lambda p: (p["size"] or 0, str(p["base"])))
        bases = list(dict.fromkeys(p["base"] for p in by_size if p["base"]))
        imitated = {p["source"] for p in points if p["role"] == "imitation"}
        sources = sorted(imitated, key=lambda s: (s != "mix", s))
        colours = {b: COLOURS[k % len(COLOURS)] for k, b in enumerate(bases)}
        markers = {s: MARKERS[k % len(MARKERS)] for k, s in enumerate(sources)}
        return cls(titles, percents, paper_nq, colours, markers, shots_drawn(points))

    def scale(self, measure: str) -> int:
        return 100 if self.percents[measure] else 1


def panel(ax: Any, measure: str, against: str, points: list[dict], look: Look) -> None:
    """Draw one panel: a measure against "amount" or "size"."""
    from matplotlib.ticker import NullLocator

    own = [p for p in points if p["measure"] == measure]
    if measure == "nq":
        own = [p for p in own if p["shots"] == look.shots]
    shots = f", {look.shots}-shot" if measure == "nq" and look.shots is not None else ""
    ax.set_title(f"{look.titles[measure]}{shots}", fontsize=9, loc="left")
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    teacher, imitation, base = (
        [p for p in own if p["role"] == r] for r in ("teacher", "imitation", "base")
    )
    if against == "size":
        imitation, base = ([p for p in group if p["size"]] for group in (imitation, base))
    if not imitation and not base:
        middle = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "no results", color=GREY, **middle)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    ax.set_xscale("log")
    scale, lines = look.scale(measure), against_amount if against == "amount" else against_size
    ticks = lines(ax, imitation, base, scale, look)
    if teacher:
        level(ax, teacher, scale, TEACHER, "teacher", ":")
    if measure == "nq":
        ticks |= paper_marks(ax, against, ticks, look.paper_nq)
    far = len(ticks) > 1 and max(ticks) > 1000 * min(ticks)  # the paper's models beside tiny ones
    ax.set_xticks(list(ticks), list(ticks.values()), rotation=60 if far else 0)
    ax.set_xlabel("" if far else ax.get_xlabel())  # there the names need the room
    ax.xaxis.set_minor_locator(NullLocator())
    if ticks:
        low, high = min(ticks), max(ticks)
        spread = (high / low) ** 0.08 if high > low else 3
        ax.set_xlim(low / spread, high * spread)
    # below: inside it would hide points; of long names two a line reach no neighbour's
    long = max(map(len, ax.get_legend_handles_labels()[1]), default=0) > 16
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2 if long else 3}
    ax.legend(fontsize=6.5, frameon=False, **below)


def against_amount(
    ax: Any, imitation: list[dict], base: list[dict], scale: float, look: Look
) -> dict:
    """A line for each base and source over the amounts, a level for each base -> {x: tick}."""
    for (name, source), group in by(imitation, lambda p: (p["base"], p["source"])).items():
        style = {
            "color": look.colours[name],
            "marker": look.markers[source],
            "linestyle": DASHES[list(look.markers).index(source) % len(DASHES)],
            "label": plain(f"{name} + {source}"),
        }
        line(ax, by(group, lambda p: p["amount"]), scale, **style)
    for name, group in by(base, lambda p: p["base"]).items():
        level(ax, group, scale, look.colours[name], plain(f"{name} base"), "--")
    ax.set_xlabel(f"imitation data ({unit_of(imitation)})")
    return {p["amount"]: amount_name(p["amount"]) for p in imitation}


def against_size(
    ax: Any, imitation: list[dict], base: list[dict], scale: float, look: Look
) -> dict:
    """A line for the bases and one for each source over the sizes -> {x: tick}."""
    if base:
        style = {"color": "#555555", "linestyle": "--", "marker": "o", "label": "base"}
        line(ax, by(base, lambda p: p["size"]), scale, **style)
    for n, (source, group) in enumerate(by(imitation, lambda p: p["source"]).items()):
        bases = by(group, lambda p: p["base"])
        largest = {name: max(p["amount"] for p in g) for name, g in bases.items()}
        group = [p for p in group if p["amount"] == largest[p["base"]]]
        amounts = sorted({p["amount"] for p in group})
        style = {
            "color": COLOURS[n % len(COLOURS)],
            "marker": look.markers[source],
            "label": plain(f"{source}, {' / '.join(map(amount_name, amounts))}"),
        }
        line(ax, by(group, lambda p: p["size"]), scale, **style)
    ax.set_xlabel("base model")
    return {p["size"]: plain(p["base"]) for p in imitation + base}


def paper_marks(ax: Any, against: str, ticks: dict, paper_nq: dict) -> dict:
    """The paper's Table 1 in grey -> ticks that are needed for it.

    Short lines at the right edge (it gives no amounts), or points at the bases' sizes.
    """
    if against == "amount":
        paper_levels(ax, paper_nq)
        return {}
    sizes = {"7B": 7e9, "13B": 13e9}
    for source, marker in (("base", "o"), ("mix", "x"), ("nq", "+")):
        ax.plot(
            [sizes[n] for n in sizes],
            [paper_nq[n, source] for n in sizes],
            color=GREY,
            marker=marker,
            markersize=4,
            linewidth=0.8,
            linestyle=":",
            label=f"paper: {source}",
        )
    ax.axhline(paper_nq[None, "teacher"], color=GREY, linewidth=0.8, linestyle=":")
    return {size: name for name, size in sizes.items() if size not in ticks}


def paper_levels(ax: Any, paper_nq: dict) -> None:
    """Short named lines at the right edge."""
    edge = ax.get_yaxis_transform()
    for (_, source), value in paper_nq.items():
        label = "paper (Table 1)" if source == "teacher" else None
        ax.plot([0.965, 1.0], [value] * 2, transform=edge, color=GREY, linewidth=1.2, label=label)
    low, high = ax.get_ylim()
    at = low
    for (name, source), value in sorted(paper_nq.items(), key=lambda item: item[1]):
        at = max(value, at + 0.034 * (high - low))  # names keep apart where the marks do not
        ax.annotate(
            f"{name or 'teacher'}{'' if name is None else ' ' + source}",
            (1.0, at),
            xycoords=edge,
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=5.5,
            color=GREY,
            va="center",
        )


def draw(rows: list, points: list[dict], look: Look, salt: str) -> tuple:
    """(SVG, PNG) as bytes of one figure. rows: of panels, (measure, what it is drawn against)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fonts = {"svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 8}
    with plt.rc_context({"svg.hashsalt": salt, **fonts}):
        figure, axes = plt.subplots(
            len(rows),
            len(rows[0]),
            figsize=(max(5.2, 4.2 * len(rows[0])), 3.8 * len(rows)),
            squeeze=False,
            layout="constrained",
        )
        for y, row in enumerate(rows):
            for x, (measure, against) in enumerate(row):
                panel(axes[y][x], measure, against, points, look)
        images = []
        for kind, more in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=more)
            images.append(buffer.getvalue())
        plt.close(figure)
    return tuple(images)
