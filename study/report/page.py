"""The report as one HTML file that opens from disk and fetches nothing.

Left out: what stands in its tables and figures (tables.py, findings.py, plots.py).
"""

import base64
import html

from study.report import findings
from study.report.tables import html_table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>%(title)s</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } .wide { overflow-x: auto; }
img { max-width: 100%%; min-width: 30rem; height: auto; background: #fff; }
table { border-collapse: collapse; font-size: .9rem; } tr.paper td, td.paper { opacity: .6; }
td, th { text-align: left; border-top: 1px solid color-mix(in srgb, currentColor 25%%, transparent);
 padding: .3rem .7rem; vertical-align: top; }
li { overflow-wrap: anywhere; }
@media (max-width: 40rem) { td, th { padding: .25rem .35rem; } table { font-size: .85rem; } }
</style></head><body><h1>%(title)s</h1><p>%(lead)s</p>%(body)s</body></html>
"""
LEAD = (
    "Intervals are 95 %. Grey: the figures of the paper (arXiv 2305.15717) that it gives as "
    "numbers. Seeds are dots; lines go through their means."
)


def section(title: str, table: tuple) -> str:
    body = html_table(*table) if table[1] else "<p>No results.</p>"
    return f"<h2>{html.escape(title)}</h2>{body}"


def figure(caption: str, svg: bytes) -> str:
    name, image = html.escape(caption), base64.b64encode(svg).decode()
    return (
        f'<h2>{name}</h2><div class="wide"><img alt="{name}" '
        f'src="data:image/svg+xml;base64,{image}"></div>'
    )


def listed(title: str, entries: list[str]) -> str:
    items = "".join(f"<li>{html.escape(x)}</li>" for x in entries)
    return f"<h2>{title}</h2><ul>{items}</ul>" if entries else ""


def page(
    tables: list[tuple],
    figures: list[tuple[str, bytes]],
    missing: list[str],
    notes: list[str],
    ending: str,
) -> str:
    """The report as text. tables: [(title, (head, rows))]; figures: [(caption, svg bytes)].

    ending: what agrees with the paper and what does not, in a sentence each.
    """
    first, *others = tables
    body = [
        section(*first),
        f"<p>{html.escape(ending)}</p>",
        "<details><summary>The rule, fixed before the runs</summary>"
        f"<p>{html.escape(findings.RULE)}</p></details>",
        *(section(*table) for table in others),
        *(figure(*f) for f in figures),
        listed("Missing runs", missing),
        listed("Notes", notes),
    ]
    return PAGE % {"title": "What imitation learned", "body": "".join(body), "lead": LEAD}
