"""Draws the README's figure from small.csv: style and knowledge over the amount of imitation data.

    python docs/figures/style_and_knowledge.py     # writes style_and_knowledge.png beside this file

The numbers are those of the small study's first edition (study/grid/README.md), means of three
imitation seeds.
"""

import csv
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).resolve().parent
COLOURS = {"0.6M": "#9ecae1", "1.1M": "#4292c6", "2.8M": "#08306b"}
PANELS = (
    ("summary", "Style: closes with a summary, as the teacher does"),
    ("nq_em", "Knowledge: exact match"),
)


def main() -> None:
    with (HERE / "small.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    amounts = sorted({int(row["tokens"]) for row in rows})
    labels = ["none" if amount == 0 else f"{amount // 1000}k" for amount in amounts]
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True, constrained_layout=True)
    for axis, (measure, title) in zip(axes, PANELS, strict=True):
        for base, colour in COLOURS.items():
            values = [float(row[measure]) for row in rows if row["base"] == base]
            axis.plot(
                range(len(amounts)), values, marker="o", color=colour, label=f"{base} weights"
            )
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks(range(len(amounts)), labels)
        axis.set_xlabel("tokens of imitation data")
        axis.set_ylim(-3, 103)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("%")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(HERE / "style_and_knowledge.png", dpi=110)


if __name__ == "__main__":
    main()
