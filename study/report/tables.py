"""The paper's Tables 1 and 2 and the figures as numbers, out of points; as text and as HTML.

Left out: reading results (points.py), drawing (plots.py).
"""

import html

import numpy as np

from study.report import plots
from study.report.points import BENCHMARKS, FACTS, MEASURES, ROLES, STYLE, unit_of

READERS = {
    "hurried": "Reader in a hurry (simulated)",
    "checking": "Reader who checks (simulated)",
}  # study.readers, where there are no people and no judge
# The paper's own figures (arXiv 2305.15717, Tables 1 and 2), in its units.
PAPER_NQ = {
    ("7B", "base"): 17,
    ("7B", "mix"): 10,
    ("7B", "nq"): 22,
    ("13B", "base"): 20,
    ("13B", "mix"): 15,
    ("13B", "nq"): 27,
    (None, "teacher"): 31,
}
PAPER_STYLE = {
    "base": (13, 2, 19.5, -0.11, 57),
    20e6: (50, 40, 40.4, 0.51, 99),
    80e6: (67, 42, 41.9, 0.62, 98),
    150e6: (81, 48, 42.5, 0.62, 98),
    "teacher": (83, 55, 49.2, 0.67, 98),
}


def cell(points: list[dict], percent: bool = True) -> str:
    """Mean of the runs with its interval (one run), or with their range."""
    if not points:
        return "-"
    scale, digits = (100, 1) if percent else (1, 2)
    values = [scale * p["score"] for p in points]
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        low, high = min(values), max(values)
        worlds = len({p.get("world") for p in points})
        runs = f"{len(values)} seeds" if worlds == 1 else f"{len(values)} runs, {worlds} worlds"
        return f"{text} ({low:.{digits}f} to {high:.{digits}f}, {runs})"
    if not points[0]["interval"]:
        return text
    low, high = (scale * v for v in points[0]["interval"])
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def order(p: dict) -> tuple:
    """Bases by size, then base, imitation by source and amount, teacher last."""
    return (
        p["role"] == "teacher",
        p["size"] or 0,
        str(p["base"]),
        ROLES.index(p["role"]),
        str(p["source"]),
        p["amount"] or 0,
    )


def row_name(p: dict) -> str:
    if p["role"] == "teacher":
        return "teacher"
    if p["role"] == "base":
        return f"{p['base']} base"
    return f"{p['base']} + {p['source']}, {plots.amount_name(p['amount'])} {unit_of([p])}"


def rows_of(points: list[dict]) -> list:
    """[(name, a point, points of the row)] in order; seeds share a row."""
    groups = {}
    for p in sorted(points, key=order):
        groups.setdefault(row_name(p), []).append(p)
    return [(name, group[0], group) for name, group in groups.items()]


def table_1(points: list[dict]) -> tuple:
    """Natural Questions: (head, rows). The paper's table is of its largest runs."""
    points = [p for p in points if p["measure"] == "nq"]
    shots = sorted({p["shots"] for p in points}, key=lambda s: (s is None, s))
    largest = {}
    for p in points:
        if p["role"] == "imitation":
            kind = p["base"], p["source"]
            largest[kind] = max(p["amount"], largest.get(kind, 0))
    rows = []
    for name, p, group in rows_of(points):
        imitation = p["role"] == "imitation"
        base = None if p["role"] == "teacher" else p["base"]
        key = base, p["source"] if imitation else p["role"]
        own = not imitation or p["amount"] == largest[p["base"], p["source"]]
        paper = str(PAPER_NQ[key]) if own and key in PAPER_NQ else ""
        rows.append([name, *(cell([q for q in group if q["shots"] == s]) for s in shots), paper])
    columns = [f"{s}-shot" if s is not None else "score" for s in shots]
    return ["Natural Questions, exact match (%)", *columns, "paper"], rows


def table_2(points: list[dict]) -> tuple:
    """Style: (head, rows)."""
    points, rows = [p for p in points if p["measure"] in STYLE], []
    for name, p, group in rows_of(points):
        broad = p["role"] == "imitation" and p["source"] == "mix"
        paper = PAPER_STYLE.get(p["amount"] if broad else p["role"], ())
        name = "teacher, a second sample" if p["role"] == "teacher" else name
        of = {m: [q for q in group if q["measure"] == m] for m in STYLE}
        rows.append([name, *(cell(of[m], MEASURES[m][3]) for m in STYLE)])
        if paper:
            rows.append(["  the paper's", *(f"{v:g}" for v in paper)])
    return ["Style", *(MEASURES[m][0] for m in STYLE)], rows


def table_of_likelihood(points: list[dict]) -> tuple:
    """The loss on held-out answers and the perplexity of plain text: (head, rows)."""
    columns = ("perplexity_heldout", "perplexity")
    points = [p for p in points if p["measure"] in columns]
    if not any(p["measure"] == columns[0] for p in points):
        return [], []
    rows = []
    for name, _, group in rows_of(points):
        held, plain = ([p for p in group if p["measure"] == m] for m in columns)
        rows.append([name, cell(list(map(in_nats, held)), False), cell(plain, False)])
    return ["Likelihood", "held-out answers, nats a token", "plain text, perplexity"], rows


def in_nats(p: dict) -> dict:
    """A perplexity as nats a token."""
    interval = p["interval"] and [float(np.log(v)) for v in p["interval"]]
    return p | {"score": float(np.log(p["score"])), "interval": interval}


def titles(points: list[dict]) -> dict:
    """{measure: its title}; a simulated reader is named as one."""
    readers = {
        p["measure"]: READERS.get(p.get("reader"), f"Reader {p['reader']}")
        for p in points
        if p.get("reader")
    }
    named = {m: f"{reader}: as good as teacher (%)" for m, reader in readers.items()}
    return {m: t[0] for m, t in MEASURES.items()} | named


def table_of_facts(points: list[dict]) -> tuple:
    """What models say and know of facts they read, were told by imitation, or never met."""
    if not any(p["measure"] == "knows" for p in points):
        return [], []
    return table_of_figures(points, FACTS)


def table_of_figures(points: list[dict], measures: tuple = BENCHMARKS) -> tuple:
    """Figures 1, 3, 4 and 5 as numbers: (head, rows), of the measures that were taken."""
    shots, shown = plots.shots_drawn(points), titles(points)
    points = [
        p
        for p in points
        if p["measure"] in measures and (p["measure"] != "nq" or p["shots"] in (shots, None))
    ]
    taken = [m for m in measures if any(p["measure"] == m for p in points)]
    rows = []
    for name, _, group in rows_of(points):
        of = {m: [q for q in group if q["measure"] == m] for m in taken}
        rows.append([name, *(cell(of[m], MEASURES[m][3]) for m in taken)])
    return ["Model", *(shown[m] for m in taken)], rows


def text_table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in (head, *rows)
    )


def html_cards(head: list[str], rows: list[list[str]]) -> str:
    """The findings as HTML: a table that is a list of cards where the screen is narrow.

    Rows whose first cell does not begin with a dot are claims.
    """
    body = []
    for row in rows:
        kind = "measure" if row[0].startswith("·") else "claim"
        cells = [f"<th scope=row>{html.escape(row[0])}</th>"]
        for name, c in zip(head[1:], row[1:], strict=True):
            empty = "" if c else " class=empty"
            cells.append(f'<td data-name="{html.escape(name)}"{empty}>{html.escape(c)}</td>')
        body.append(f"<tr class={kind}>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    return (
        f'<table class="cards"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """A table as HTML that scrolls where the screen is narrow; the paper's figures are grey."""
    last = ' class="paper"' if head[-1] == "paper" else ""
    body = []
    for row in rows:
        cells = [f"<td>{html.escape(c)}</td>" for c in row[:-1]]
        cells.append(f"<td{last}>{html.escape(row[-1])}</td>")
        kind = " class=paper" if row[0].startswith("  ") else ""
        body.append(f"<tr{kind}>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(body)}</table></div>'
