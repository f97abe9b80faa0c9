"""What a mix was made of: counts, drops with examples, histograms, categories; as JSON, as a page, as lines of text.

Used by mix.py. The page is one file that opens from disk and fetches nothing; data sets' texts are escaped, never markup.
Categories come from a rule on the first query (below), good for a rough picture and for the sheet's suggestion; HC3's
are its own subsets. They are no judgement: the manual review is.
"""

import collections
import html
import math
import re

EXAMPLES = 10  # of each reason
TURNS = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    64,
)  # upper ends of the histogram's bars; above the last one more
# The first rule that fits names the category; searched in the first 600 characters of the first query.
RULES = [
    (name, re.compile(pattern, re.I | re.M))
    for name, pattern in (
        (
            "code",
            r"```|\b(?:code|python|javascript|typescript|java|c\+\+|sql|html|css|react|php|regex|bash|script|function|api|bug|exception|"
            r"compile|docker|linux|git|algorithm|excel formula)\b|[;{}]\s*$",
        ),
        (
            "rewrite or summarise",
            r"\b(?:rewrite|rephrase|paraphrase|summari[sz]e|summary|translate|proofread|edit|shorten|improve (?:this|the)|"
            r"correct (?:this|the)|extract|classify)\b",
        ),
        (
            "role play",
            r"\b(?:act as|pretend|role ?play|you are (?:a|an|the|now)|i want you to be)\b",
        ),
        (
            "mathematics",
            r"\b(?:calculate|equation|integral|derivative|probability|prove|theorem|solve)\b|\d\s*[*/^=]\s*\d",
        ),
        (
            "creative writing",
            r"\b(?:story|poem|song|lyrics|screenplay|script for|novel|joke|haiku|dialogue|fan ?fic)\b",
        ),
        (
            "writing",
            r"\b(?:write|draft|compose|essay|article|blog|email|letter|cover letter|post|tweet|description|outline)\b",
        ),
        (
            "ideas and plans",
            r"\b(?:ideas?|brainstorm|suggest|recommend|plan|names? for|list of|strategy|tips)\b",
        ),
        (
            "question",
            r"\?|^(?:what|why|how|who|when|where|which|is|are|can|does|do|should|explain|tell me|describe|define)\b",
        ),
    )
]


def category(query):
    """The name of the first of RULES that fits the query, else "other"."""
    return next((name for name, rule in RULES if rule.search(query[:600])), "other")


class Stats:
    """The counts of one source: counts (of what was read), notes (what was changed), drops, and what was kept."""

    def __init__(self, source, files, tokenizers):
        self.source, self.files, self.tokenizers = source, files, tokenizers
        self.counts = collections.Counter(rows=0, malformed=0, dialogues=0)
        self.notes, self.drops, self.examples = collections.Counter(), collections.Counter(), {}
        self.kept = collections.Counter(dialogues=0, turns=0, characters=0)
        self.turns, self.lengths, self.categories = (
            collections.Counter(),
            collections.Counter(),
            collections.Counter(),
        )
        self.tokens = [[0, 0] for _ in tokenizers]

    def drop(self, item):
        """One dialogue dropped: item has id, query, why, detail."""
        self.drops[item["why"]] += 1
        shown = self.examples.setdefault(item["why"], [])
        if len(shown) < EXAMPLES:
            shown.append({name: item[name] for name in ("id", "query", "detail")})

    def keep(self, item):
        """One dialogue kept: item has turns, characters, category, tokens [(all, loss)] in the order of the tokenizers."""
        self.kept.update(dialogues=1, turns=item["turns"], characters=item["characters"])
        self.turns[
            next((k for k, end in enumerate(TURNS) if item["turns"] <= end), len(TURNS))
        ] += 1
        self.lengths[max(int(math.log2(max(item["characters"], 1))), 6)] += 1
        self.categories[item["category"]] += 1
        for total, (count, loss) in zip(self.tokens, item["tokens"]):
            total[0] += count
            total[1] += loss


def report(stats, settings):
    """report.json: {"settings", "sources": {source: ...}, "total"}; the same sources give the same values."""
    sources = {}
    for s in stats:
        whole = s.kept["dialogues"] + sum(s.drops.values())
        joined = s.counts["dialogues"] - whole
        last = max(s.turns, default=0)
        lows = [1, *(end + 1 for end in TURNS)]
        label = lambda k: (
            f"{lows[k]}+"
            if k == len(TURNS)
            else str(TURNS[k])
            if lows[k] == TURNS[k]
            else f"{lows[k]}-{TURNS[k]}"
        )
        sources[s.source] = {
            "files": s.files,
            "read": {**s.counts},
            "pieces_that_became_part_of_another": joined,
            "dialogues": whole,
            "dropped": {
                why: {"count": n, "examples": s.examples[why]} for why, n in s.drops.most_common()
            },
            "changed": {what: n for what, n in sorted(s.notes.items()) if n},
            "kept": {**s.kept},
            "tokens": {
                name: {"tokens": t[0], "loss_tokens": t[1]}
                for name, t in zip(s.tokenizers, s.tokens)
            },
            "turns": {label(k): s.turns[k] for k in range(last + 1)} if s.turns else {},
            "characters": {
                f"{2**k:,}-{2 ** (k + 1) - 1:,}" if k > 6 else "under 128": s.lengths[k]
                for k in range(min(s.lengths), max(s.lengths) + 1)
            }
            if s.lengths
            else {},
            "categories": dict(sorted(s.categories.items(), key=lambda c: (-c[1], c[0]))),
        }
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
    return {"settings": settings, "sources": sources, "total": total}


def lines(made):
    """The report in short, lines of text."""
    for name, s in made["sources"].items():
        read = s["read"]
        yield (
            f"{name:<10}{read['rows']:>8,} rows, {read['malformed']:,} malformed, {read['dialogues']:,} read, "
            f"{s['dialogues']:,} after joining, {s['kept']['dialogues']:,} kept"
        )
        for what, d in s["dropped"].items():
            yield f"{'':<10}{d['count']:>8,} dropped: {what}"
        for what, n in [
            *((w, n) for w, n in read.items() if w not in ("rows", "malformed", "dialogues")),
            *s["changed"].items(),
        ]:
            yield f"{'':<10}{n:>8,} {what}"
    yield f"{'mix':<10}{made['total']['dialogues']:>8,} dialogues, {made['total']['turns']:,} turns"
    for name, t in made["total"].get("tokens", {}).items():
        yield f"{'':<10}{t['tokens']:>12,} tokens by {name}, {t['loss_tokens']:,} loss tokens"


# ---- the page --------------------------------------------------------------------------------------------------------

STYLE = """:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --soft: color-mix(in srgb, currentColor 6%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; } th, td { border-top: 1px solid var(--line); padding: .25rem .5rem; vertical-align: top; text-align: left; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.id { width: 10rem; opacity: .7; } summary { cursor: pointer; padding: .2rem 0; } .bars { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { font-size: .85rem; opacity: .8; } pre { white-space: pre-wrap; margin: 0; font: .85rem/1.4 ui-monospace, monospace; }"""


def page(made):
    """report.html as text."""
    e = lambda x: html.escape("".join(c if c.isprintable() or c in "\n\t" else " " for c in str(x)))
    number = lambda n: f'<td class="n">{n:,}</td>'
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>ShareGPT-Mix</title><style>{STYLE}</style></head><body><h1>ShareGPT-Mix: {made['total']['dialogues']:,} dialogues</h1>",
        f"<p>{', '.join(f'{e(k)}: {e(v)}' for k, v in made['settings'].items() if v not in ([], None))}</p>",
    ]
    names = list(made["total"].get("tokens", {}))
    head = [
        "source",
        "rows",
        "malformed",
        "dialogues",
        "dropped",
        "kept",
        "turns",
        *(f"{n}: {w}" for n in names for w in ("tokens", "loss")),
    ]
    parts.append(
        "<table><tr>"
        + "".join(f"<th{' class=n' if k else ''}>{e(h)}</th>" for k, h in enumerate(head))
        + "</tr>"
    )
    for name, s in made["sources"].items():
        dropped = sum(d["count"] for d in s["dropped"].values())
        values = [
            s["read"]["rows"],
            s["read"]["malformed"],
            s["dialogues"],
            dropped,
            s["kept"]["dialogues"],
            s["kept"]["turns"],
        ]
        values += [s["tokens"][n][w] for n in names for w in ("tokens", "loss_tokens")]
        parts.append(f"<tr><td>{e(name)}</td>{''.join(map(number, values))}</tr>")
    parts.append("</table>")
    for name, s in made["sources"].items():
        parts.append(f"<h2>{e(name)}</h2><p>{e(', '.join(s['files']))}</p><table>")
        rows = [
            *((w, n) for w, n in s["read"].items()),
            ("pieces that became part of another", s["pieces_that_became_part_of_another"]),
            *s["changed"].items(),
        ]
        parts += [f"<tr><td>{e(what)}</td>{number(n)}</tr>" for what, n in rows] + [
            "</table>",
            "<h3>Dropped</h3>",
        ]
        for why, d in s["dropped"].items():
            rows = "".join(
                f'<tr><td class="id">{e(x["id"])}</td><td><pre>{e(x["query"])}</pre></td><td>{e(x["detail"])}</td></tr>'
                for x in d["examples"]
            )
            parts.append(
                f"<details><summary>{d['count']:,} {e(why)}</summary><table><tr><th>id</th><th>first query</th><th>why</th></tr>{rows}</table></details>"
            )
        parts.append("<p>none</p>" if not s["dropped"] else "")
        parts.append(
            '<h3>Kept</h3><div class="bars">'
            + "".join(
                bars(s[k], t)
                for k, t in (
                    ("turns", "turns of a dialogue"),
                    ("characters", "characters of a dialogue"),
                    (
                        "categories",
                        "categories (by a rule on the first query)" if name != "hc3" else "subsets",
                    ),
                )
            )
            + "</div>"
        )
    return "".join(parts) + "</body></html>\n"


def bars(counts, title):
    """A horizontal bar chart of {label: count} as a figure with an SVG."""
    e, most, total = html.escape, max(counts.values(), default=1) or 1, sum(counts.values()) or 1
    height = 18 * len(counts) + 4
    out = [
        f'<figure><figcaption>{e(title)}</figcaption><svg viewBox="0 0 420 {height}" role="img" aria-label="{e(title)}" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">'
    ]
    for k, (label, n) in enumerate(counts.items()):
        y, width = 18 * k, 190 * n / most
        out.append(
            f'<text x="142" y="{y + 13}" text-anchor="end">{e(str(label)[:24])}</text><rect x="148" y="{y + 3}" width="{width:.1f}" height="12" fill="#2563a8"/>'
            f'<text x="{152 + width:.1f}" y="{y + 13}" opacity=".75">{n:,} ({n / total:.0%})</text>'
        )
    return "".join(out) + "</svg></figure>"
