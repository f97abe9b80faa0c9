"""The report as one HTML file that opens from disk and fetches nothing.

Left out: what stands in its tables and figures (tables.py, findings.py, plots.py).
"""

import base64
import html
from collections.abc import Sequence

from study.report import findings, overview
from study.report.tables import html_cards, html_table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>%(title)s</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .wide { overflow-x: auto; }
img { max-width: 100%%; height: auto; background: #fff; border-radius: .4rem; }
.wide img { min-width: 30rem; }
table { border-collapse: collapse; font-size: .9rem; } tr.paper td, td.paper { opacity: .6; }
td, th { text-align: left; border-top: 1px solid color-mix(in srgb, currentColor 25%%, transparent);
 padding: .3rem .7rem; vertical-align: top; }
.cards .measure th { font-weight: normal; padding-left: 1.4rem; }
.cards .measure td, .cards .measure th { border-top-style: dotted; }
.cards td { white-space: nowrap; } .cards td[data-name=here] { white-space: normal; }
.cards .claim td { font-weight: bold; }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) {
 td, th { padding: .25rem .35rem; } table { font-size: .85rem; }
 .cards, .cards tbody, .cards tr, .cards td, .cards th { display: block; border: 0; }
 .cards thead, .cards .empty { display: none; }
 .cards td, .cards th, .cards .measure th { padding: .05rem 0; }
 .cards tr { padding: .4rem 0; }
 .cards .claim { border-top: 1px solid color-mix(in srgb, currentColor 40%%, transparent);
  margin-top: .6rem; font-size: 1rem; }
 .cards .measure { padding-left: 1rem; }
 .cards td::before { content: attr(data-name) ": "; opacity: .65; font-weight: normal; }
}
</style></head><body><h1>%(title)s</h1>%(body)s</body></html>
"""
LEAD = (
    "Intervals are 95 %. Grey: the figures of the paper (arXiv 2305.15717) that it gives as "
    "numbers. Runs are dots; lines go through their means."
)


def data_of(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def section(title: str, table: tuple) -> str:
    body = html_table(*table) if table[1] else "<p>No results.</p>"
    return f"<h2>{html.escape(title)}</h2>{body}"


def first_picture(wide: bytes, tall: bytes) -> str:
    """The overview, its panels one below the other where the screen is narrow."""
    return (
        f'<picture><source media="(max-width: 40rem)" srcset="{data_of(tall)}">'
        f'<img alt="{html.escape(overview.CAPTION)}" src="{data_of(wide)}"></picture>'
    )


def figure(caption: str, svg: bytes) -> str:
    name = html.escape(caption)
    return f'<h2>{name}</h2><div class="wide"><img alt="{name}" src="{data_of(svg)}"></div>'


def listed(title: str, entries: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(x)}</li>" for x in entries)
    return f"<h2>{title}</h2><ul>{items}</ul>" if entries else ""


def folded(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def page(
    tables: list[tuple],
    pictures: tuple[bytes, bytes] | None,
    figures: list[tuple[str, bytes]],
    missing: list[str],
    notes: list[str],
    ending: list[str],
    about: Sequence[str] = (),
) -> str:
    """The report as text. tables: [(title, (head, rows))], the findings and the worlds' own lines
    first; pictures: the overview, wide and tall; figures: [(caption, svg bytes)].

    ending: what agrees with the paper and what does not. about: what was run.
    """
    (title, found), worlds, *others = tables
    body = [
        first_picture(*pictures) if pictures else "",
        *(f"<p>{html.escape(text)}</p>" for text in ending),
        listed("What was run", about),
        f"<h2>{html.escape(title)}</h2>" + (html_cards(*found) if found[1] else ""),
        folded(worlds[0], html_table(*worlds[1])) if worlds[1][1] else "",
        folded(
            "The rule, fixed before the runs",
            "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in findings.RULE) + "</ul>",
        ),
        f"<p>{LEAD}</p>",
        *(section(*table) for table in others if table[1][0]),
        *(figure(*f) for f in figures),
        listed("Missing runs", missing),
        listed("Notes", notes),
    ]
    return PAGE % {"title": "What imitation learned", "body": "".join(body)}
