"""The report's files: index.html, figure-N.png and .svg, tables.txt, report.json.

    python -m study.report GRID --out DIR

Left out: what stands in them (points.py, tables.py, findings.py, plots.py, page.py).
"""

import pathlib

from host import files, terminal
from study.report import findings, plots
from study.report.page import page
from study.report.points import MEASURES, gather, read_label
from study.report.tables import (
    PAPER_NQ,
    order,
    table_1,
    table_2,
    table_of_figures,
    text_table,
    titles,
)


def figures_of(
    points: list[dict], shown: dict[str, str], out: pathlib.Path
) -> list[tuple[str, bytes]]:
    """Draws and writes the figures -> [(caption, svg)]."""
    figures, percents = [], {m: t[3] for m, t in MEASURES.items()}
    for number, caption, panels in plots.FIGURES:
        look = plots.Look.of(points, shown, percents, PAPER_NQ)
        svg, png = plots.draw(panels, points, look, f"figure-{number}")
        files.write_whole(out / f"figure-{number}.svg", svg)
        files.write_whole(out / f"figure-{number}.png", png)
        figures.append((f"Figure {number}: {caption}", svg))
    return figures


def text_of(tables: list[tuple], ending: str, missing: list[str], notes: list[str]) -> str:
    """tables.txt: every table, what agrees with the paper, what is missing."""
    parts = [f"{t}\n{text_table(*table) if table[1] else 'no results'}" for t, table in tables]
    parts[0] += f"\n{ending}\n\nRule: {findings.RULE}"
    for title, entries in (("missing runs", missing), ("notes", notes)):
        if entries:
            parts.append(f"{title}:\n" + "\n".join(f"  {x}" for x in entries))
    return "\n\n".join(parts)


def report(paths: list[str], labels: list[str], out: str | pathlib.Path) -> None:
    """The command. labels: the texts of --label."""
    points, missing, notes = gather(paths, dict(read_label(x) for x in labels))
    if not points:
        raise ValueError(
            f"{paths[0]}: no finished result with labels: run `python -m study.grid`, or give "
            "--label PATH=base=7B,tokens=20M,source=mix"
        )
    points = sorted(points, key=lambda p: (p["measure"], *order(p), p["seed"]))
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    shown, compared = titles(points), findings.compute(points)
    tables = [
        ("Findings", findings.table(compared, shown)),
        ("Table 1: Natural Questions", table_1(points)),
        ("Table 2: style against the teacher's answers", table_2(points)),
        ("Benchmarks and preferences, as in the figures", table_of_figures(points)),
    ]
    figures = figures_of(points, shown, out)
    taken = {MEASURES[p["measure"]][1] for p in points}
    notes += [
        f"no results of {task}: its panels are empty"
        for task in dict.fromkeys(m[1] for m in MEASURES.values())
        if task not in taken and task != "perplexity"
    ]
    ending = findings.ending(compared)
    text = text_of(tables, ending, missing, notes)
    files.write_whole(out / "tables.txt", text + "\n")
    numbers = {"points": points, "findings": compared, "missing": missing, "notes": notes}
    files.write_whole(out / "report.json", files.dumps(numbers, indent=1) + "\n")
    files.write_whole(out / "index.html", page(tables, figures, missing, notes, ending))
    print(terminal.printable(text))
    print(
        f"\n{len(points)} figures of {len({p['path'] for p in points})} results, {len(missing)} "
        f"runs missing: {out / 'index.html'}"
    )
