"""The one picture a reader needs first: style, knowledge and the base model's size.

    python -m study.report RESULTS --out DIR      # what draws it

Means over seeds and worlds; the dots are worlds (or seeds, where there is one world). A result
that stands alone has its 95 % interval. Left out: other intervals, which the findings have; every
other measure (plots.py). Where all bases are of one size, the third panel compares kinds of
imitation data instead.
"""

import io
from typing import Any

import numpy as np

from study.report.plots import COLOURS, TEACHER, amount_name, by, dot, plain, shots_drawn
from study.report.points import unit_of

STYLE_SHOWN = ("summary", "list", "unigram")  # the first that any model shows
SAYS, KNOWS = "nq", "knows"
SAID = (SAYS, "nq_own", "mmlu_own", "mmlu")  # the first that was taken
CAPTION = "Style and knowledge over imitation data, and over the base's size or kinds of data."


def drawn(points: list[dict], source: str | None) -> list[dict]:
    """The points of bases and of imitations of one source, a base's at amount 0."""
    own = [
        p | {"amount": p["amount"] or 0}
        for p in points
        if p["role"] == "base" or (p["role"] == "imitation" and p["source"] == source)
    ]
    shots = {p["shots"] for p in own if p["measure"] == SAYS and p["shots"] is not None}
    shown = 3 if 3 in shots else max(shots, default=None)
    return [p for p in own if p["measure"] != SAYS or p["shots"] in (shown, None)]


def style_shown(points: list[dict]) -> str:
    """The measure of style that is drawn: one that is told apart from zero somewhere, if any is."""
    taken = [m for m in STYLE_SHOWN if any(p["measure"] == m for p in points)]
    above = {p["measure"] for p in points if (p["interval"] or (p["score"],))[0] > 0}
    return next((m for m in taken if m in above), (taken or STYLE_SHOWN)[0])


def curve(ax: Any, groups: dict, ticks: list, **style: Any) -> None:
    """The means of groups {x: points} at the places of their ticks, with a dot a world or seed.

    A group of one point has its interval.
    """
    xs = [x for x in ticks if x in groups]
    at = [ticks.index(x) for x in xs]
    ax.plot(at, [100 * np.mean([p["score"] for p in groups[x]]) for x in xs], lw=2, **style)
    for place, x in zip(at, xs, strict=True):
        worlds = by(groups[x], lambda p: p["world"])
        one = worlds if len(worlds) > 1 else by(groups[x], lambda p: p["seed"])
        dots = [100 * np.mean([p["score"] for p in group]) for group in one.values()]
        ax.plot([place] * len(dots), dots, "o", ms=3.5, color=style["color"], alpha=0.55)
        if len(groups[x]) == 1 and groups[x][0]["interval"]:
            low, high = (100 * end for end in groups[x][0]["interval"])
            ax.vlines(place, low, high, color=style["color"], alpha=0.55, lw=1.2)


def top_of(points: list[dict], said: str) -> float:
    """Where an axis of percents ends: low shares would lie flat at the foot of a whole one."""
    own = [p for p in points if p["measure"] in (said, KNOWS)]
    most = max((100 * max(p["interval"] or (p["score"],)) for p in own), default=100)
    return 103 if most > 60 else max(1.2 * most, 5)


def panel(ax: Any, title: str, ticks: list[str], label: str, top: float = 103) -> None:
    ax.set_title(title, fontsize=9.5, loc="left", fontweight="bold")
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set_xlim(-0.25, len(ticks) - 0.75)
    ax.set_ylim(-0.03 * top, top)
    ax.set_xlabel(label)
    ax.set_ylabel("%")
    ax.grid(axis="y", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.get_legend_handles_labels()[0]:
        # below: inside it would hide lines
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 3}
        ax.legend(fontsize=8, frameon=False, **below)


def amounts_panel(
    ax: Any, points: list[dict], measures: dict, colours: dict, title: str, top: float = 103
) -> None:
    """measures: {measure: (line style, words behind a base's name)}."""
    own = [p for p in points if p["measure"] in measures]
    ticks = sorted({p["amount"] for p in own})
    for base, colour in colours.items():
        for measure, (dashes, words) in measures.items():
            groups = by(
                [p for p in own if p["base"] == base and p["measure"] == measure],
                lambda p: p["amount"],
            )
            style = {"color": colour, "linestyle": dashes, "label": plain(f"{base}{words}")}
            if groups:
                curve(ax, groups, ticks, **style)
    names = [amount_name(t) if t else "none" for t in ticks]
    panel(ax, title, names, f"{unit_of(points)} of imitation data", top)


def sizes_panel(ax: Any, points: list[dict], measures: dict, bases: list[str], name: str) -> None:
    """What bases know and say, and their imitations with the most data."""
    most = max((p["amount"] for p in points), default=0)
    for measure, (dashes, words) in measures.items():
        for amount, colour, who in ((0, COLOURS[0], "base"), (most, COLOURS[1], name)):
            own = [p for p in points if p["measure"] == measure and p["amount"] == amount]
            groups = by(own, lambda p: p["base"])
            style = {"color": colour, "linestyle": dashes, "label": plain(f"{who}{words}")}
            if groups:
                curve(ax, groups, bases, **style)
    panel(ax, "A larger base", [plain(b) for b in bases], "weights of the base")


def sources_panel(ax: Any, points: list[dict], said: str, top: float) -> None:
    """What the base and each kind of imitation says, with its most data; one size of base."""
    own = [p for p in points if p["measure"] == said and p["role"] != "teacher"]
    if said == SAYS:
        shots = shots_drawn(points)
        own = [p for p in own if p["shots"] in (shots, None)]
    groups = by(own, lambda p: p["source"] or "base")
    names = sorted(groups, key=lambda name: (name != "base", -len(groups[name]), name))
    for place, name in enumerate(names):
        most = max(p["amount"] or 0 for p in groups[name])
        for p in groups[name]:
            if (p["amount"] or 0) == most:
                dot(ax, place, p, 100, COLOURS[name != "base"])
    panel(ax, "By kind of imitation data", [plain(n) for n in names], "the most of its kind", top)


def teacher_line(ax: Any, points: list[dict], measure: str) -> None:
    """What the teacher itself has, where it was measured."""
    scores = [p["score"] for p in points if p["role"] == "teacher" and p["measure"] == measure]
    if scores:
        height = 100 * np.mean(scores)
        ax.axhline(height, color=TEACHER, lw=1, ls=":")
        ax.annotate("teacher", (0, height - 6), fontsize=8, color=TEACHER)


def draw(points: list[dict], titles: dict[str, str], source: str | None, tall: bool) -> tuple:
    """(SVG, PNG) as bytes. source: of the broad imitation. tall: panels one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    own = drawn(points, source)
    taken = {p["measure"] for p in own}
    by_size = sorted(own, key=lambda p: (p["size"] or 0, str(p["base"])))
    bases = list(dict.fromkeys(p["base"] for p in by_size))
    shades = plt.get_cmap("viridis")(np.linspace(0.75, 0.1, max(len(bases), 1)))
    colours = dict(zip(bases, map(matplotlib.colors.to_hex, shades), strict=True))
    style = style_shown(own)
    said = next((m for m in SAID if m in taken), SAYS)
    says = {said: ("-", " says"), KNOWS: ("--", " knows")} if KNOWS in taken else {said: ("-", "")}
    fonts = {"svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 9}
    with plt.rc_context({"svg.hashsalt": "overview", **fonts}):
        shape, size = ((3, 1), (4.4, 9.6)) if tall else ((1, 3), (12, 4.1))
        figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
        manner = titles[style].removesuffix(" (%)")
        amounts_panel(axes[0], own, {style: ("-", "")}, colours, f"Style: {manner}")
        teacher_line(axes[0], points, style)
        if said not in (SAYS, KNOWS):  # of a world the teacher knows everything
            teacher_line(axes[1], points, said)
        told = titles[said].removesuffix(" (%)").removesuffix(", exact match")
        told = "facts that the base read" if KNOWS in taken else told
        top = top_of(points, said) if len(bases) == 1 else 103
        amounts_panel(axes[1], own, says, colours, f"Knowledge: {told}", top)
        if len(bases) == 1:
            sources_panel(axes[2], points, said, top)
        else:
            sizes_panel(axes[2], own, says, bases, f"+ {source}" if source else "imitation")
        images = []
        for kind, more in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=130, metadata=more)
            images.append(buffer.getvalue())
        plt.close(figure)
    return tuple(images)
