"""Each imitation against its base on every measure: paired differences with their intervals.

    python -m study.report GRID --out DIR      # what prints them

The findings compare largest amounts alone; here each kind and amount has a row. Items, values and
intervals are theirs (findings.py). Left out: verdicts, and invented worlds, which findings pool.
"""

from study.report import findings, tables

# Measure, shots of Natural Questions -> the measure whose items and values it has.
LIKE = {"perplexity_heldout": "perplexity"}


def kinds_taken(points: list[dict]) -> list[tuple[str, int | None]]:
    """(measure, shots) of all that the findings can compare, and held-out answers."""
    order = [*findings.COMPARED, *LIKE]
    taken = {(p["measure"], p["shots"]) for p in points if p["measure"] in order}
    return sorted(taken, key=lambda k: (order.index(k[0]), -(k[1] or 0)))


def head_of(measure: str, shots: int | None, titles: dict[str, str]) -> str:
    name = titles[measure].removesuffix(" (%)")
    return name if shots is None else f"{name}, {shots}-shot"


def difference(points: list[dict], base: str, source: str, measure: str) -> str:
    """One cell: an imitation minus its base. points: of both, of one measure and one amount."""
    like = LIKE.get(measure, measure)
    models = findings.Models([p | {"measure": like} for p in points])
    row = models.against(findings.Side(None, base), findings.Side(source, base), like)
    if row is None or (row["difference"] is None and not row["left_out"]):
        return "-"
    if row["difference"] is None:
        return "both at chance"
    return "{} ({})".format(*findings.span(row | {"measure": like}))


def table(points: list[dict], titles: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """(head, rows): a row an imitation, a column a measure."""
    points = [p for p in points if p["role"] in ("base", "imitation") and p["world"] is None]
    columns, rows = kinds_taken(points), []
    imitations = [p for p in points if p["role"] == "imitation"]
    for name, p, _ in tables.rows_of(imitations):
        kind = p["base"], p["source"], p["amount"]
        both = [
            q
            for q in points
            if q["base"] == p["base"]
            and (q["role"] == "base" or (q["base"], q["source"], q["amount"]) == kind)
        ]
        cells = []
        for measure, shots in columns:
            own = [q for q in both if (q["measure"], q["shots"]) == (measure, shots)]
            cells.append(difference(own, p["base"], p["source"], measure))
        rows.append([name, *cells])
    return ["Minus the base", *(head_of(*c, titles) for c in columns)], rows
