"""The paper's Tables 1 and 2 and Figures 1, 3, 4 and 5 from result directories: PNG, SVG, and one HTML page that opens from disk.

    python -m study.report runs/out/grid --out runs/out/report                        # the labels stand in grid.json, which study.grid wrote
    python -m study.report r/base r/20m --label r/base=base=7B --label r/20m=base=7B,tokens=20M,source=mix --out report

A result directory (results.json of eval.py or of study's programs) is put into the picture by its labels: base (a name such as 7B), size (weights; read from the name where it says so), tokens of
imitation data, source (mix, nq, ...), seed, role (base, imitation, teacher). What is in no grid.json and has no --label is named and left out; so is every run that a grid.json plans and that is
not there. Seeds are dots, the line goes through their means; intervals are the results' own. Grey: the paper's own figures, as far as they are published as numbers (its two tables).
Left out: the figures' data that the paper shows as curves only.
"""

import argparse
import base64
import html
import json
import pathlib
import re
import sys

import numpy as np

from study import findings, plots
from tasks import results

ROLES = ("base", "imitation", "teacher")
LABELS = ("base", "size", "amount", "source", "seed", "role")
# Measure -> (title, task, where in results.json, whether it is a share shown in percent).
MEASURES = {
    "rate": ("Raters: at least as good as the teacher (%)", "rate", (), True),
    "judge": ("Judge: at least as good as the teacher (%)", "judge", ("at_least_as_good",), True),
    "mmlu": ("MMLU (%)", "mmlu", (), True),
    "nq": ("Natural Questions, exact match (%)", "nq", (), True),
    "humaneval": ("HumanEval, pass@1 (%)", "humaneval", (), True),
    "toxicity": ("Mean non-toxicity (%)", "toxicity", (), True),
    "list": ("a list where the teacher has one (%)", "style", ("metrics", "list"), True),
    "summary": ("a summary where the teacher has one (%)", "style", ("metrics", "summary"), True),
    "unigram": ("unigram overlap with the teacher", "style", ("metrics", "unigram"), True),
    "length": ("length, Pearson's r", "style", ("metrics", "length"), False),
    "tone": ("authoritative tone (%)", "style", ("metrics", "tone"), True),
    "perplexity": ("Perplexity", "perplexity", (), False),
}
READERS = {
    "hurried": "Reader in a hurry (simulated)",
    "checking": "Reader who checks (simulated)",
}  # study.readers, where there are no people and no judge
BENCHMARKS = ("rate", "judge", "mmlu", "nq", "humaneval", "toxicity", "perplexity")
STYLE = ("list", "summary", "unigram", "length", "tone")
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

# ---- reading ---------------------------------------------------------------------------------------------------------


def count_of(text):
    """ "20M" -> 20e6. ValueError, one line, for what is no number."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMbB]?)\s*", str(text))
    if not found:
        raise ValueError(f"{text!r} is no amount: write 300000, 0.3M or 20M")
    return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[found[2].lower()]


def read_label(text):
    """ "PATH=base=7B,tokens=20M,source=mix" -> (path, labels)."""
    path, _, rest = text.partition("=")
    pairs = [part.partition("=") for part in rest.split(",")]
    known = {"base", "size", "tokens", "source", "seed", "role"}
    if not path or any(not k or not v or k not in known for k, _, v in pairs):
        raise ValueError(
            f"--label {text}: write PATH=base=7B,tokens=20M,source=mix (also size, seed, role)"
        )
    return path, complete(
        {("amount" if k == "tokens" else k): v for k, _, v in pairs}, f"--label {text}"
    )


def complete(labels, place):
    """Labels with their types and defaults; ValueError names `place`."""
    found = {k: labels.get(k) for k in LABELS}
    unknown = sorted(set(labels) - set(LABELS))
    try:
        found["amount"] = None if found["amount"] is None else count_of(found["amount"])
        found["seed"] = int(found["seed"] or 0)
        named = re.search(r"(\d+(?:\.\d+)?[kKmMbB])$", str(found["base"] or ""))
        found["size"] = (
            count_of(found["size"])
            if found["size"] is not None
            else count_of(named[1])
            if named
            else None
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None
    found["role"] = found["role"] or ("base" if found["amount"] is None else "imitation")
    if (
        unknown
        or found["role"] not in ROLES
        or (found["role"] != "teacher" and not found["base"])
        or (found["role"] == "imitation" and found["amount"] is None)
    ):
        raise ValueError(
            f"{place}: labels are base (needed), size, tokens (needed for role imitation), source, seed, role ({', '.join(ROLES)})"
            + (f"; not {unknown[0]}" if unknown else "")
        )
    if found["role"] == "imitation":
        found["source"] = found["source"] or "mix"
    return found


def gather(paths, given):
    """Points of all results below the paths, and what is not there -> (points, missing [names], notes [lines]).

    given: {path: labels} of --label. A point: labels, "measure", "shots" (nq), "score", "n", "interval", "path". ValueError for a path that is not there and for two results in one place.
    """
    labels, planned, points, missing, notes, stray = {}, {}, [], [], [], []
    directories, samples = [], {}
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist: name result directories, or folders of them")
        for plan in sorted(path.rglob("grid.json")):
            for name, entry in read_plan(plan).items():
                planned[(plan.parent / name).resolve()] = entry.get("name", name)
                labels[(plan.parent / name).resolve()] = complete(
                    {k: v for k, v in entry.items() if k in LABELS}, f"{plan}, {name}"
                )
        directories += [p.parent for p in sorted(path.rglob("results.json"))]
    for path, own in given.items():
        if not (pathlib.Path(path) / "results.json").is_file():
            raise ValueError(f"--label {path}: there is no {path}/results.json")
        labels[pathlib.Path(path).resolve()] = own
        directories.append(pathlib.Path(path))
    for directory in {d.resolve(): d for d in directories}.values():
        result, own = results.read_result(directory), labels.get(directory.resolve())
        if own is None:
            stray += (
                [str(directory)]
                if result.get("task") in {m[1] for m in MEASURES.values()}
                and not re.fullmatch(r"step-\d+", directory.name)
                else []
            )
        elif result.get("finished") is False:
            missing.append(f"{planned.get(directory.resolve(), directory)} (not finished)")
        else:
            points += points_of(result, own, directory)
            if result.get("settings", {}).get("sample"):
                samples.setdefault(f"{result['task']}: {result['settings']['sample']}", []).append(
                    str(directory)
                )
    notes += [f"{text} ({len(of)} results, such as {of[0]})" for text, of in samples.items()]
    missing += [name for path, name in planned.items() if not (path / "results.json").is_file()]
    notes += (
        [
            f"{len(stray)} results without labels are left out (--label): {', '.join(stray[:5])}"
            + (", ..." if len(stray) > 5 else "")
        ]
        if stray
        else []
    )
    points = merged(points, notes)
    at = {}
    for p in points:
        place = (p["measure"], p["shots"], *(p[k] for k in LABELS))
        if place in at:
            raise ValueError(
                f"{at[place]} and {p['path']} have the same labels: give one another seed, or leave it out"
            )
        at[place] = p["path"]
    return points, missing, notes


def read_plan(path):
    """{result directory, relative: labels} of a grid.json."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is no plan of study.grid: write it again with `python -m study.grid`"
        ) from None


def points_of(result, labels, directory):
    """The points of one result: one a measure of its task."""
    found = []
    for measure, (_, task, where, _) in MEASURES.items():
        if task != result.get("task"):
            continue
        sides = [(labels, result)]
        if (
            task == "style" and "upper_bound" in result
        ):  # the teacher's second sample, measured like the model
            sides.append(
                (dict.fromkeys(LABELS) | {"role": "teacher", "seed": 0}, result["upper_bound"])
            )
        for own, value in sides:
            for key in where:
                value = (value or {}).get(key)
            if isinstance(value, dict) and value.get("score") is not None:
                found.append(
                    dict(own)
                    | {
                        "measure": measure,
                        "shots": result.get("settings", {}).get("shots") if task == "nq" else None,
                        "score": value["score"],
                        "n": value.get("n"),
                        "interval": value.get("interval"),
                        "path": str(directory),
                    }
                    | (
                        {"reader": result["settings"]["reader"]}
                        if "reader" in result.get("settings", {})
                        else {}
                    )
                )
    return found


def merged(points, notes):
    """The teacher's second sample is in the result of every run that was measured against it: one point of it stays, and a note where they differ."""
    seen, kept = {}, []
    for p in points:
        if p["role"] != "teacher" or p["measure"] not in STYLE:
            kept.append(p)
        elif p["measure"] not in seen:
            seen[p["measure"]] = p
            kept.append(p)
        elif seen[p["measure"]]["score"] != p["score"]:
            notes.append(
                f"the teacher's second sample differs between {seen[p['measure']]['path']} (shown) and {p['path']} in {p['measure']}"
            )
    return kept


# ---- tables ----------------------------------------------------------------------------------------------------------


def cell(points, percent=True):
    """Mean of the seeds with its interval (one seed), or with the seeds' range."""
    if not points:
        return "-"
    scale = 100 if percent else 1
    values = [scale * p["score"] for p in points]
    digits = 1 if percent else 2
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f}, {len(values)} seeds)"
    return text + (
        f" ({scale * points[0]['interval'][0]:.{digits}f} to {scale * points[0]['interval'][1]:.{digits}f})"
        if points[0]["interval"]
        else ""
    )


def order(p):
    """Bases by size, then base, imitation by source and amount, teacher last."""
    return (
        p["role"] == "teacher",
        p["size"] or 0,
        str(p["base"]),
        ROLES.index(p["role"]),
        str(p["source"]),
        p["amount"] or 0,
    )


def row_name(p):
    return (
        "teacher"
        if p["role"] == "teacher"
        else f"{p['base']} base"
        if p["role"] == "base"
        else f"{p['base']} + {p['source']}, {plots.amount_name(p['amount'])} tokens"
    )


def rows_of(points):
    """[(name, a point, points of the row)] in order; seeds share a row."""
    groups = {}
    for p in sorted(points, key=order):
        groups.setdefault(row_name(p), []).append(p)
    return [(name, group[0], group) for name, group in groups.items()]


def table_1(points):
    """Natural Questions: (head, rows)."""
    points = [p for p in points if p["measure"] == "nq"]
    shots = sorted({p["shots"] for p in points}, key=lambda s: (s is None, s))
    largest = {}
    for p in points:
        if p["role"] == "imitation":
            largest[p["base"], p["source"]] = max(
                p["amount"], largest.get((p["base"], p["source"]), 0)
            )
    rows = []
    for name, p, group in rows_of(points):
        key = (
            None if p["role"] == "teacher" else p["base"],
            p["source"] if p["role"] == "imitation" else p["role"],
        )
        own = (
            p["role"] != "imitation" or p["amount"] == largest[p["base"], p["source"]]
        )  # the paper's table is of its largest runs
        rows.append(
            [
                name,
                *(cell([q for q in group if q["shots"] == s]) for s in shots),
                str(PAPER_NQ[key]) if own and key in PAPER_NQ else "",
            ]
        )
    return [
        "Natural Questions, exact match (%)",
        *(f"{s}-shot" if s is not None else "score" for s in shots),
        "paper",
    ], rows


def table_2(points):
    """Style: (head, rows)."""
    points, rows = [p for p in points if p["measure"] in STYLE], []
    for name, p, group in rows_of(points):
        paper = PAPER_STYLE.get(
            p["amount"] if p["role"] == "imitation" and p["source"] == "mix" else p["role"], ()
        )
        rows.append(
            [
                "teacher, a second sample" if p["role"] == "teacher" else name,
                *(cell([q for q in group if q["measure"] == m], MEASURES[m][3]) for m in STYLE),
            ]
        )
        if paper:
            rows.append(["  the paper's", *(f"{v:g}" for v in paper)])
    return ["Style", *(MEASURES[m][0] for m in STYLE)], rows


def titles(points):
    """{measure: its title}; a simulated reader is named as one."""
    readers = {
        p["measure"]: READERS.get(p.get("reader"), f"Reader {p['reader']}")
        for p in points
        if p.get("reader")
    }
    return {
        m: f"{readers[m]}: as good as teacher (%)" if m in readers else t[0]
        for m, t in MEASURES.items()
    }


def table_of_figures(points):
    """Figures 1, 3, 4 and 5 as numbers: (head, rows), of the measures that were taken."""
    shots = plots.shots_drawn(points)
    points = [
        p
        for p in points
        if p["measure"] in BENCHMARKS and (p["measure"] != "nq" or p["shots"] in (shots, None))
    ]
    taken, shown = [m for m in BENCHMARKS if any(p["measure"] == m for p in points)], titles(points)
    return ["Model", *(shown[m] for m in taken)], [
        [name, *(cell([q for q in group if q["measure"] == m], MEASURES[m][3]) for m in taken)]
        for name, _, group in rows_of(points)
    ]


def text_table(head, rows):
    widths = [max(len(r[k]) for r in (head, *rows)) for k in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in (head, *rows)
    )


# ---- the page --------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"><title>%(title)s</title><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; color: #111; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .wide { overflow-x: auto; } img { max-width: 100%%; min-width: 30rem; height: auto; }
table { border-collapse: collapse; font-size: .9rem; } td, th { text-align: left; border-top: 1px solid #ccc; padding: .3rem .7rem; vertical-align: top; } tr.paper td, td.paper { color: #777; }
</style></head><body><h1>%(title)s</h1><p>%(lead)s</p>%(body)s</body></html>
"""


def html_table(head, rows):
    e = html.escape
    last = ' class="paper"' if head[-1] == "paper" else ""
    body = "".join(
        f"<tr{' class=paper' if r[0].startswith('  ') else ''}>"
        + "".join(f"<td{last if k == len(r) - 1 else ''}>{e(c)}</td>" for k, c in enumerate(r))
        + "</tr>"
        for r in rows
    )
    return f'<div class="wide"><table><tr>{"".join(f"<th>{e(h)}</th>" for h in head)}</tr>{body}</table></div>'


def page(tables, figures, missing, notes, found):
    """The report as one HTML file. figures: [(caption, svg bytes)]; found: the paragraph of findings."""
    body = f"<h2>Findings</h2><p>{html.escape(found)}</p><details><summary>The rule, fixed before the runs</summary><p>{html.escape(findings.RULE)}</p></details>"
    body += "".join(
        f"<h2>{html.escape(title)}</h2>"
        + (html_table(*table) if table[1] else "<p>No results.</p>")
        for title, table in tables
    )
    body += "".join(
        f'<h2>{html.escape(caption)}</h2><div class="wide"><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"></div>'
        for caption, svg in figures
    )
    for title, entries in (("Missing runs", missing), ("Notes", notes)):
        body += (
            f"<h2>{title}</h2><ul>"
            + "".join(f"<li>{html.escape(x)}</li>" for x in entries)
            + "</ul>"
            if entries
            else ""
        )
    return PAGE % {
        "title": "What imitation learned",
        "body": body,
        "lead": "Intervals are 95 %. Grey: the figures of the paper (arXiv 2305.15717) that it gives as numbers. Seeds are dots; lines go through their means.",
    }


def parser():
    p = argparse.ArgumentParser(
        prog="python -m study.report",
        description="The paper's Tables 1 and 2 and Figures 1, 3, 4, 5 from result directories, and what they say.",
        epilog="Leaves in --out: index.html (all in one), figure-N.png and .svg, tables.txt, report.json (every number).",
    )
    p.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="result directories, or folders that hold them (and grid.json, at any depth)",
    )
    p.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="PATH=base=7B,tokens=20M,source=mix",
        help="labels of a result that is in no grid.json; also size, seed, role=base|imitation|teacher",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the report")
    return p


def run(args):
    points, missing, notes = gather(args.results, dict(read_label(x) for x in args.label))
    if not points:
        raise ValueError(
            f"{args.results[0]}: no finished result with labels: run `python -m study.grid`, or give --label PATH=base=7B,tokens=20M,source=mix"
        )
    points = sorted(points, key=lambda p: (p["measure"], *order(p), p["seed"]))
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    tables = [
        ("Table 1: Natural Questions", table_1(points)),
        ("Table 2: style against the teacher's answers", table_2(points)),
        ("Benchmarks and preferences, as in the figures", table_of_figures(points)),
    ]
    figures = []
    shown = titles(points)
    for number, caption, panels in plots.FIGURES:
        svg, png = plots.draw(
            panels,
            points,
            shown,
            {m: t[3] for m, t in MEASURES.items()},
            PAPER_NQ,
            f"figure-{number}",
        )
        for suffix, content in (("svg", svg), ("png", png)):
            results.write_beside(out / f"figure-{number}.{suffix}", content)
        figures.append((f"Figure {number}: {caption}", svg))
    tasks = {MEASURES[p["measure"]][1] for p in points}
    notes += [
        f"no results of {task}: its panels are empty"
        for task in dict.fromkeys(m[1] for m in MEASURES.values())
        if task not in tasks and task != "perplexity"
    ]
    compared = findings.compute(points)
    found = findings.paragraph(compared, {m: t.removesuffix(" (%)") for m, t in shown.items()})
    text = f"Findings\n{found}\n\nRule: {findings.RULE}\n\n" + "\n\n".join(
        f"{title}\n{text_table(*table) if table[1] else 'no results'}" for title, table in tables
    )
    text += "".join(
        f"\n\n{title}:\n" + "\n".join(f"  {x}" for x in entries)
        for title, entries in (("missing runs", missing), ("notes", notes))
        if entries
    )
    results.write_beside(out / "tables.txt", text + "\n")
    results.write_beside(
        out / "report.json",
        results.dumps(
            {"points": points, "findings": compared, "missing": missing, "notes": notes}, indent=1
        )
        + "\n",
    )
    results.write_beside(out / "index.html", page(tables, figures, missing, notes, found))
    print("".join(c for c in text if c.isprintable() or c == "\n"))
    print(
        f"\n{len(points)} figures of {len({p['path'] for p in points})} results, {len(missing)} runs missing: {out / 'index.html'}"
    )


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
