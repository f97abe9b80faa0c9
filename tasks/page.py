"""The page of a result: one file that opens from disk, nothing fetched.

Text in items comes from data sets and models and is untrusted: the page carries it as JSON and puts
it into the document as text only. Its style and script are in page.html.
"""

import html
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from host.files import dumps

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
SHOWN = 100  # items drawn at once: 14,042 of them would take a browser seconds
SHARED = 60  # characters that prompts must share to have their beginning shown once
HEADED = ("settings", "task", "model", "score", "interval", "n", "unit", "chance", "checkpoints")


def embedded(text: str) -> str:
    """JSON that is safe inside <script>.

    No end tag, comment or line separator of JavaScript can be read out of it.
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def escaped(value: Any) -> str:
    """Any value as text of the document."""
    return html.escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def number(x: Any, percent: bool = False) -> str:
    """A figure for a reader: 24.6 % of a share, four digits of another number."""
    if not isinstance(x, (int, float)) or isinstance(x, bool):
        return "-" if x is None else str(x)
    if percent:
        return f"{100 * x:.1f} %"
    if isinstance(x, int) or abs(x) >= 10_000:
        return f"{x:,.0f}"
    return f"{x:.4g}"


def page(result: dict, items: Sequence[dict], more: str = "") -> str:
    """index.html of a result as text. more: HTML of ours (a curve, a table), or nothing."""
    percent = is_share(result, items)
    low, high = result["interval"] or (None, None)
    count = f"n = {result['n']:,}"
    if low is not None:
        ends = f"{number(low, percent)} to {number(high, percent)}"
        count = f"95 % interval {ends}, {count}"
    rows, shared = share_beginnings(items)
    figures = {k: v for k, v in result.items() if k not in HEADED}
    groups = {k: v for k, v in figures.items() if is_groups(v)}
    single = {k: v for k, v in figures.items() if k not in groups}
    unit = f" {result['unit']}" if "unit" in result else ""
    return filled(
        {
            "title": escaped(f"{result['task']}: {result.get('model') or 'predictions'}"),
            "score": escaped(
                f"{len(items):,} outputs"
                if result["score"] is None
                else number(result["score"], percent) + unit
            ),
            "interval": escaped(count),
            "bar": score_bar(result) if percent else "",
            "notes": notes_list(result),
            "curve": more,
            "groups": "".join(groups_table(k, v, percent) for k, v in groups.items()),
            "figures": pairs_table(single),
            "settings": pairs_table(result.get("settings", {})),
            "data": embedded(dumps({"items": rows, "shared": shared})),
            "shown": str(SHOWN),
        }
    )


def filled(parts: dict[str, str]) -> str:
    """page.html with each {{name}} replaced, once: what is put in is not searched again."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], template)


# --- what is said ---


def is_share(result: dict, items: Sequence[dict]) -> bool:
    """Whether the score is a share of right items."""
    score = result["score"]
    if "unit" in result or not isinstance(score, (int, float)) or not 0 <= score <= 1:
        return False
    judged = any(isinstance(i.get("verdict"), bool) for i in items)
    return judged or "chance" in result or "checkpoints" in result


def notes_list(result: dict) -> str:
    """What a reader must know beside the score, or nothing."""
    notes = notes_of(result)
    lines = "".join(f"<li>{escaped(note)}</li>" for note in notes)
    return f'<ul class="notes">{lines}</ul>' if notes else ""


def notes_of(result: dict) -> list[str]:
    """The notes of a result: chance, a sample, dropped shots, cut prompts, odd verdicts."""
    settings, notes = result.get("settings", {}), []
    if "chance" in result:
        notes.append(f"guessing gives {number(result['chance'], True)}")
    if isinstance(settings.get("sample"), str):
        notes.append(f"a sample: {settings['sample']}")
    used = result.get("shots_used") or {}
    if isinstance(used, dict) and len(used) > 1:
        counts = ", ".join(f"{count:,} with {shots}" for shots, count in used.items())
        notes.append(f"shots were dropped where a prompt did not fit the model: {counts}")
    counted = {
        "prompts_cut": "prompts did not fit without any shot and lost their beginning",
        "without_letter": "answers give no letter and count as wrong",
        "timed_out": "programs ran out of time",
        "ties": "answers hang on a difference that rounding could turn",
    }
    notes += [f"{result[k]:,} {text}" for k, text in counted.items() if result.get(k)]
    wordless = result.get("wordless_golds")
    if wordless:
        notes.append(
            f"{wordless['questions']} gold answers normalise to nothing; "
            f"{wordless['won_by_an_answer_without_words']} of them are won by an answer without "
            "words, as with SQuAD's script"
        )
    if settings.get("template"):
        notes.append(f"asked in the template {settings['template']}")
    return notes


def is_measure(value: Any) -> bool:
    return isinstance(value, dict) and "score" in value


def is_groups(value: Any) -> bool:
    """Whether a figure is {name: {"score", "n", "interval"}}."""
    return isinstance(value, dict) and bool(value) and all(map(is_measure, value.values()))


def groups_table(name: str, groups: dict, percent: bool) -> str:
    """The score of each group with its interval; a long table is folded."""

    def row(group, m):
        low, high = m.get("interval") or (None, None)
        ends = "" if low is None else f"{number(low, percent)} to {number(high, percent)}"
        title = escaped(str(group).replace("_", " "))
        cells = number(m["score"], percent), ends, number(m.get("n"))
        return f"<tr><td>{title}</td>" + "".join(f"<td>{escaped(c)}</td>" for c in cells) + "</tr>"

    head = f"<tr><th>{escaped(name)}</th><th>score</th><th>95 % interval</th><th>n</th></tr>"
    body = "".join(row(group, m) for group, m in groups.items())
    table = f'<table class="groups"><thead>{head}</thead><tbody>{body}</tbody></table>'
    if len(groups) <= 6:
        return table
    return f"<details><summary>{len(groups)} {escaped(name)}</summary>{table}</details>"


def pairs_table(values: dict) -> str:
    """Names and values."""

    def text(v):
        if is_measure(v):
            low, high = v.get("interval") or (None, None)
            ends = "" if low is None else f" ({number(low)} to {number(high)})"
            return number(v["score"]) + ends
        return number(v) if isinstance(v, float) else v

    rows = (
        f"<tr><td>{escaped(str(k))}</td><td>{escaped(text(v))}</td></tr>" for k, v in values.items()
    )
    return f'<table class="pairs"><tbody>{"".join(rows)}</tbody></table>'


def share_beginnings(items: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """(items, beginnings): what the prompts of a group share is taken out of them and kept once.

    A group is the items of one subject with as many shots, else all. An item then has "shared", the
    place of its beginning in the list {"text", "items"}.
    """
    groups, rows, beginnings = {}, list(items), []
    for place, item in enumerate(items):
        if isinstance(item.get("prompt"), str):
            key = str(item.get("subject")), str(item.get("shots"))
            groups.setdefault(key, []).append(place)
    for places in groups.values():
        start = os.path.commonprefix([rows[i]["prompt"] for i in places])
        start = start[: start.rfind("\n\n") + 2] if "\n\n" in start else ""
        if len(places) < 2 or len(start) < SHARED:
            continue
        for i in places:
            rest = rows[i]["prompt"][len(start) :]
            rows[i] = rows[i] | {"prompt": rest, "shared": len(beginnings)}
        beginnings.append({"text": start, "items": len(places)})
    return rows, beginnings


# --- drawings ---


def score_bar(result: dict) -> str:
    """The score and its interval on the line from 0 to 100 %, with what guessing gives."""
    low, high = result["interval"] or (result["score"], result["score"])

    def at(share):
        return f"left:{100 * share:.2f}%"

    chance = ""
    if isinstance(result.get("chance"), float):
        chance = f'<div class="chance" style="{at(result["chance"])}"><span>chance</span></div>'
    return (
        '<div class="bar" role="img" aria-label="the score on the line from 0 to 100 %">'
        f'<div class="ends" style="{at(low)};width:{100 * (high - low):.2f}%"></div>'
        f'<div class="at" style="{at(result["score"])}"></div>{chance}</div>'
    )


def curve_svg(
    points: Sequence[dict], label: str, percent: bool = False, width: int = 540, height: int = 300
) -> str:
    """Score with its interval against step as an SVG.

    points: [{"step", "tokens", "score", "interval": [low, high]}] in order.
    """
    left, right, top, bottom = 56, 44, 28, 48
    steps = [p["step"] for p in points]
    bounds = [b for p in points for b in ((p["interval"] or [p["score"]] * 2) + [p["score"]])]
    low, high = min(bounds), max(bounds)
    high += (high - low or abs(high) or 1) * 0.05
    low -= (high - low) * 0.05
    whole = steps[-1] - steps[0]

    def x(s):
        return left + (width - left - right) * ((s - steps[0]) / whole if whole > 0 else 0.5)

    def y(v):
        return height - bottom - (height - top - bottom) * (v - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'style="max-width:45rem" font-family="system-ui, sans-serif" font-size="12" '
        'fill="currentColor">'
    ]
    for k in range(5):
        v = low + (high - low) * k / 4
        shown = number(v, True) if percent else f"{v:.3g}"
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(v):.1f}" y2="{y(v):.1f}" '
            f'stroke="currentColor" opacity=".15"/><text x="{left - 8}" y="{y(v) + 4:.1f}" '
            f'text-anchor="end">{shown}</text>'
        )
    every = -(-len(points) // 5)
    for n, p in enumerate(points):
        at = f"{x(p['step']):.1f}"
        if p["interval"]:
            a, b = p["interval"]
            parts.append(
                f'<line x1="{at}" x2="{at}" y1="{y(a):.1f}" y2="{y(b):.1f}" stroke="#2563a8" '
                'stroke-width="2" opacity=".5"/>'
            )
        if n % every == 0 or n == len(points) - 1:
            tokens = "" if p.get("tokens") is None else f"{p['tokens'] / 1e6:.3g}M tokens"
            parts.append(
                f'<text x="{at}" y="{height - bottom + 18}" text-anchor="middle">{p["step"]}</text>'
                f'<text x="{at}" y="{height - bottom + 34}" text-anchor="middle" opacity=".6">'
                f"{tokens}</text>"
            )
    line = " ".join(f"{x(p['step']):.1f},{y(p['score']):.1f}" for p in points)
    parts.append(f'<polyline fill="none" stroke="#2563a8" stroke-width="2" points="{line}"/>')
    parts += [
        f'<circle cx="{x(p["step"]):.1f}" cy="{y(p["score"]):.1f}" r="4" fill="#2563a8"/>'
        for p in points
    ]
    title = html.escape(label)
    parts.append(f'<text x="{left}" y="16" font-weight="600">{title} against step</text></svg>')
    return "".join(parts)
