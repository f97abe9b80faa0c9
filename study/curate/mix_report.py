"""What a mix was made of: counts, drops with examples, histograms, categories; JSON, page, lines.

Used by mix.py. The page is one file that opens from disk and fetches nothing; data sets' texts are
escaped, never markup. Categories come from a rule on the first query (below), good for a rough
picture and for the sheet's suggestion; HC3's are its own subsets. Left out: judging the answers,
which the manual review does (sheet.py).
"""

import collections
import html
import math
import re
from collections.abc import Iterator

EXAMPLES = 10  # of each reason
# Upper ends of the histogram's bars; above the last one more.
TURNS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
# The first rule that fits names the category; searched in the first 600 characters of the query.
RULES = [
    (name, re.compile(pattern, re.I | re.M))
    for name, pattern in (
        (
            "code",
            r"```|\b(?:code|python|javascript|typescript|java|c\+\+|sql|html|css|react|php|regex|"
            r"bash|script|function|api|bug|exception|compile|docker|linux|git|algorithm|"
            r"excel formula)\b|[;{}]\s*$",
        ),
        (
            "rewrite or summarise",
            r"\b(?:rewrite|rephrase|paraphrase|summari[sz]e|summary|translate|proofread|edit|"
            r"shorten|improve (?:this|the)|correct (?:this|the)|extract|classify)\b",
        ),
        (
            "role play",
            r"\b(?:act as|pretend|role ?play|you are (?:a|an|the|now)|i want you to be)\b",
        ),
        (
            "mathematics",
            r"\b(?:calculate|equation|integral|derivative|probability|prove|theorem|solve)\b|"
            r"\d\s*[*/^=]\s*\d",
        ),
        (
            "creative writing",
            r"\b(?:story|poem|song|lyrics|screenplay|script for|novel|joke|haiku|dialogue|"
            r"fan ?fic)\b",
        ),
        (
            "writing",
            r"\b(?:write|draft|compose|essay|article|blog|email|letter|cover letter|post|tweet|"
            r"description|outline)\b",
        ),
        (
            "ideas and plans",
            r"\b(?:ideas?|brainstorm|suggest|recommend|plan|names? for|list of|strategy|tips)\b",
        ),
        (
            "question",
            r"\?|^(?:what|why|how|who|when|where|which|is|are|can|does|do|should|explain|tell me|"
            r"describe|define)\b",
        ),
    )
]


def category(query: str) -> str:
    """The name of the first of RULES that fits the query, else "other"."""
    return next((name for name, rule in RULES if rule.search(query[:600])), "other")


class Stats:
    """The counts of one source.

    counts: of what was read; notes: of what was changed; drops: {reason: n}, with examples; kept.
    """

    def __init__(self, source: str, files, tokenizers):
        self.source, self.files, self.tokenizers = source, files, tokenizers
        self.counts = collections.Counter(rows=0, malformed=0, dialogues=0)
        self.notes, self.drops, self.examples = collections.Counter(), collections.Counter(), {}
        self.kept = collections.Counter(dialogues=0, turns=0, characters=0)
        self.turns, self.lengths = collections.Counter(), collections.Counter()
        self.categories = collections.Counter()
        self.tokens = [[0, 0] for _ in tokenizers]

    def drop(self, item: dict) -> None:
        """One dialogue dropped: item has id, query, why, detail."""
        self.drops[item["why"]] += 1
        shown = self.examples.setdefault(item["why"], [])
        if len(shown) < EXAMPLES:
            shown.append({name: item[name] for name in ("id", "query", "detail")})

    def keep(self, item: dict) -> None:
        """One dialogue kept: item has turns, characters, category, tokens [(all, loss)]."""
        self.kept.update(dialogues=1, turns=item["turns"], characters=item["characters"])
        bar = next((k for k, end in enumerate(TURNS) if item["turns"] <= end), len(TURNS))
        self.turns[bar] += 1
        self.lengths[max(int(math.log2(max(item["characters"], 1))), 6)] += 1
        self.categories[item["category"]] += 1
        for total, (count, loss) in zip(self.tokens, item["tokens"], strict=True):
            total[0] += count
            total[1] += loss

    def summary(self) -> dict:
        """The counts as JSON values."""
        dialogues = self.kept["dialogues"] + sum(self.drops.values())
        last = max(self.turns, default=-1)
        lengths = range(min(self.lengths), max(self.lengths) + 1) if self.lengths else ()
        return {
            "files": self.files,
            "read": {**self.counts},
            "pieces_that_became_part_of_another": self.counts["dialogues"] - dialogues,
            "dialogues": dialogues,
            "dropped": {
                why: {"count": n, "examples": self.examples[why]}
                for why, n in self.drops.most_common()
            },
            "changed": {what: n for what, n in sorted(self.notes.items()) if n},
            "kept": {**self.kept},
            "tokens": {
                name: {"tokens": t[0], "loss_tokens": t[1]}
                for name, t in zip(self.tokenizers, self.tokens, strict=True)
            },
            "turns": {turns_label(k): self.turns[k] for k in range(last + 1)},
            "characters": {characters_label(k): self.lengths[k] for k in lengths},
            "categories": dict(sorted(self.categories.items(), key=lambda c: (-c[1], c[0]))),
        }


def turns_label(k: int) -> str:
    """The k-th bar of the histogram of turns: "3", "5-6", "65+"."""
    low = TURNS[k - 1] + 1 if k else 1
    if k == len(TURNS):
        return f"{low}+"
    return str(TURNS[k]) if TURNS[k] == low else f"{low}-{TURNS[k]}"


def characters_label(k: int) -> str:
    """The bar of dialogues of 2^k to 2^(k + 1) - 1 characters."""
    return f"{2**k:,}-{2 ** (k + 1) - 1:,}" if k > 6 else "under 128"


def report(stats: list[Stats], settings: dict) -> dict:
    """report.json: {"settings", "sources": {source: ...}, "total"}."""
    total = {
        "dialogues": sum(s.kept["dialogues"] for s in stats),
        "turns": sum(s.kept["turns"] for s in stats),
        "dropped": sum(sum(s.drops.values()) for s in stats),
    }
    if stats:
        total["tokens"] = {
            name: {
                "tokens": sum(s.tokens[k][0] for s in stats),
                "loss_tokens": sum(s.tokens[k][1] for s in stats),
            }
            for k, name in enumerate(stats[0].tokenizers)
        }
    sources = {s.source: s.summary() for s in stats}
    return {"settings": settings, "sources": sources, "total": total}


def lines(summary: dict) -> Iterator[str]:
    """The report in short, lines of text."""
    for name, s in summary["sources"].items():
        read = s["read"]
        yield (
            f"{name:<10}{read['rows']:>8,} rows, {read['malformed']:,} malformed, "
            f"{read['dialogues']:,} read, {s['dialogues']:,} after joining, "
            f"{s['kept']['dialogues']:,} kept"
        )
        for what, d in s["dropped"].items():
            yield f"{'':<10}{d['count']:>8,} dropped: {what}"
        more = [(w, n) for w, n in read.items() if w not in ("rows", "malformed", "dialogues")]
        for what, n in [*more, *s["changed"].items()]:
            yield f"{'':<10}{n:>8,} {what}"
    total = summary["total"]
    yield f"{'mix':<10}{total['dialogues']:>8,} dialogues, {total['turns']:,} turns"
    for name, t in total.get("tokens", {}).items():
        yield f"{'':<10}{t['tokens']:>12,} tokens by {name}, {t['loss_tokens']:,} loss tokens"


# --- the page ---

STYLE = """:root { color-scheme: light dark;
  --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h3 { font-size: 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } summary { cursor: pointer; padding: .2rem 0; }
table { border-collapse: collapse; } .wide table, table.examples { width: 100%; }
th, td { border-top: 1px solid var(--line); padding: .25rem .5rem; vertical-align: top;
  text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n, .wide td, .wide th { white-space: nowrap; } .files, .examples td { overflow-wrap: anywhere; }
td.id { width: 10rem; opacity: .7; }
.bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; } svg { max-width: 100%; }
pre { white-space: pre-wrap; margin: 0; font: .85rem/1.4 ui-monospace, monospace; }
@media (max-width: 40rem) {  /* a phone: an example's cells one below the other */
  .examples tr:first-child { display: none; }
  .examples td { display: block; width: auto; border: 0; padding: .1rem 0; }
  .examples tr { display: block; border-top: 1px solid var(--line); padding: .4rem 0; }
}"""
HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)


def escape(text: str) -> str:
    """Untrusted text as HTML, without control characters."""
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else " " for c in str(text)))


def number(n: int) -> str:
    return f'<td class="n">{n:,}</td>'


def page(summary: dict) -> str:
    """report.html as text."""
    settings = (f"{k}: {v}" for k, v in summary["settings"].items() if v not in ([], None))
    title = f"ShareGPT-Mix: {summary['total']['dialogues']:,} dialogues"
    parts = [
        f"{HEAD}<title>ShareGPT-Mix</title><style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1><p>{escape(', '.join(settings))}</p>",
        overview(summary),
    ]
    for name, source in summary["sources"].items():
        parts.append(section(name, source))
    return "".join(parts) + "</body></html>\n"


def overview(summary: dict) -> str:
    """The sources side by side, a table that scrolls where the screen is narrow."""
    tokenizers = list(summary["total"].get("tokens", {}))
    head = ["source", "rows", "malformed", "dialogues", "dropped", "kept", "turns"]
    head += [f"{n}: {w}" for n in tokenizers for w in ("tokens", "loss")]
    cells = (f"<th{' class=n' if k else ''}>{escape(h)}</th>" for k, h in enumerate(head))
    parts = [f'<div class="wide"><table><tr>{"".join(cells)}</tr>']
    for name, s in summary["sources"].items():
        values = [
            s["read"]["rows"],
            s["read"]["malformed"],
            s["dialogues"],
            sum(d["count"] for d in s["dropped"].values()),
            s["kept"]["dialogues"],
            s["kept"]["turns"],
            *(s["tokens"][n][w] for n in tokenizers for w in ("tokens", "loss_tokens")),
        ]
        parts.append(f"<tr><td>{escape(name)}</td>{''.join(map(number, values))}</tr>")
    return "".join(parts) + "</table></div>"


def section(name: str, source: dict) -> str:
    """One source: what was read and changed, what was dropped, what was kept."""
    counts = [
        *source["read"].items(),
        ("pieces that became part of another", source["pieces_that_became_part_of_another"]),
        *source["changed"].items(),
    ]
    parts = [f'<h2>{escape(name)}</h2><p class="files">{escape(", ".join(source["files"]))}</p>']
    parts.append("<table>")
    parts += [f"<tr><td>{escape(what)}</td>{number(n)}</tr>" for what, n in counts]
    parts.append("</table><h3>Dropped</h3>")
    for why, dropped in source["dropped"].items():
        examples = "".join(
            f'<tr><td class="id">{escape(x["id"])}</td><td><pre>{escape(x["query"])}</pre></td>'
            f"<td>{escape(x['detail'])}</td></tr>"
            for x in dropped["examples"]
        )
        parts.append(
            f"<details><summary>{dropped['count']:,} {escape(why)}</summary>"
            '<table class="examples"><tr><th>id</th><th>first query</th><th>why</th></tr>'
            f"{examples}</table></details>"
        )
    parts.append("" if source["dropped"] else "<p>none</p>")
    rule = "categories (by a rule on the first query)" if name != "hc3" else "subsets"
    charts = (
        ("turns", "turns of a dialogue"),
        ("characters", "characters of a dialogue"),
        ("categories", rule),
    )
    drawn = "".join(bars(source[key], title) for key, title in charts)
    return "".join(parts) + f'<h3>Kept</h3><div class="bars">{drawn}</div>'


def bars(counts: dict[str, int], title: str) -> str:
    """A horizontal bar chart of {label: count} as a figure with an SVG."""
    most, total = max(counts.values(), default=1) or 1, sum(counts.values()) or 1
    title, height = html.escape(title), 18 * len(counts) + 4
    parts = [
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 420 {height}" role="img" '
        f'aria-label="{title}" font-family="system-ui, sans-serif" font-size="11" '
        'fill="currentColor">'
    ]
    for k, (label, n) in enumerate(counts.items()):
        y, width = 18 * k, 190 * n / most
        parts.append(
            f'<text x="142" y="{y + 13}" text-anchor="end">{html.escape(str(label)[:24])}</text>'
            f'<rect x="148" y="{y + 3}" width="{width:.1f}" height="12" fill="#2563a8"/>'
            f'<text x="{152 + width:.1f}" y="{y + 13}" opacity=".75">{n:,} ({n / total:.0%})</text>'
        )
    return "".join(parts) + "</svg></figure>"
