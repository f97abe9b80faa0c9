"""The report's files: index.html, overview and figure-N as .png and .svg, tables.txt, report.json.

    python -m study.report GRID --out DIR

Left out: what stands in them (points.py, tables.py, findings.py, overview.py, plots.py, page.py).
"""

import pathlib

from host import files, terminal
from study.report import advice, differences, findings, overview, plots
from study.report.page import page
from study.report.points import MEASURES, about_of, commits_of, gather, read_label
from study.report.tables import (
    PAPER_NQ,
    order,
    table_1,
    table_2,
    table_of_facts,
    table_of_figures,
    table_of_likelihood,
    text_table,
    titles,
)

OWN = {"mmlu_own", "nq_own"}  # questions of a user's own, which nobody else misses


def figures_of(
    points: list[dict], shown: dict[str, str], out: pathlib.Path
) -> list[tuple[str, bytes]]:
    """Draws and writes the figures of what was measured -> [(caption, svg)]."""
    figures, percents = [], {m: t[3] for m, t in MEASURES.items()}
    taken = {p["measure"] for p in points}
    for number, caption, panels in plots.FIGURES:
        if not taken & {measure for row in panels for measure, _ in row}:
            continue
        look = plots.Look.of(points, shown, percents, PAPER_NQ)
        panels = plots.panels_taken(panels, points)
        svg, png = plots.draw(panels, points, look, f"figure-{number}")
        files.write_whole(out / f"figure-{number}.svg", svg)
        files.write_whole(out / f"figure-{number}.png", png)
        sizes = any(against == "size" for row in panels for _, against in row)
        caption += ", against data" + " and against the base model" * sizes
        figures.append((f"Figure {number}: {caption}", svg))
    return figures


def overview_of(
    points: list[dict], shown: dict[str, str], out: pathlib.Path
) -> tuple[bytes, bytes] | None:
    """Draws and writes the first picture -> its svg, wide and tall; None without imitations."""
    broad, *_ = findings.sources(points)
    if broad is None:
        return None
    wide, tall = (overview.draw(points, shown, broad, tall) for tall in (False, True))
    for name, (svg, png) in (("overview", wide), ("overview-tall", tall)):
        files.write_whole(out / f"{name}.svg", svg)
        files.write_whole(out / f"{name}.png", png)
    return wide[0], tall[0]


def text_of(
    tables: list[tuple], ending: list[str], missing: list[str], notes: list[str], about: list[str]
) -> str:
    """tables.txt: every table, what agrees with the paper, what was run, what is missing."""
    parts = [f"{t}\n{text_table(*table)}" for t, table in tables if table[1]]
    rule = "\n".join(f"  {text}" for text in findings.RULE)
    parts[0:0] = ["\n".join(ending)]
    if about:
        parts[1:1] = ["\n".join(about)]
    parts.append(f"The rule, fixed before the runs\n{rule}")
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
        ("Each world's own line", findings.table_of_worlds(compared, shown)),
        ("What models say and know", table_of_facts(points)),
        ("Table 1: Natural Questions", table_1(points)),
        ("Likelihood, lower is better", table_of_likelihood(points)),
        ("Table 2: style against the teacher's answers", table_2(points)),
        ("Benchmarks and preferences, as in the figures", table_of_figures(points)),
        ("Paired differences from the base", differences.table(points, shown)),
    ]
    pictures, figures = overview_of(points, shown, out), figures_of(points, shown, out)
    taken = {p["measure"] for p in points}
    drawn = dict.fromkeys(m for _, _, rows in plots.FIGURES for row in rows for m, _ in row)
    notes += [f"no results of {m}: its panels are left out" for m in drawn if m not in taken | OWN]
    notes += commits_of(paths)
    own, about = advice.grids(paths), about_of(paths)
    ending = advice.sentences(own, points, compared, shown) if own else findings.ending(compared)
    text = text_of(tables, ending, missing, notes, about)
    files.write_whole(out / "tables.txt", text + "\n")
    numbers = {"points": points, "findings": compared, "missing": missing, "notes": notes}
    files.write_whole(out / "report.json", files.dumps(numbers, indent=1) + "\n")
    html = page(tables, pictures, figures, missing, notes, ending, about)
    files.write_whole(out / "index.html", html)
    print(terminal.printable(text))
    print(
        f"\n{len(points)} figures of {len({p['path'] for p in points})} results, {len(missing)} "
        f"runs missing: {out / 'index.html'}"
    )
