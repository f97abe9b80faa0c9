"""The page of a result: one file that opens from disk, nothing fetched.

Text in items comes from data sets and models and is untrusted: the page carries it as JSON and puts
it into the document as text only. Its style and script are in page.html.
"""

import html
import json
import pathlib
import re

from host.files import dumps

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
SHOWN = 100  # items drawn at once: 14,042 of them would take a browser seconds


def embedded(value):
    """JSON that is safe inside <script>.

    No end tag, comment or line separator of JavaScript can be read out of it.
    """
    for character in "<>&\u2028\u2029":
        value = value.replace(character, f"\\u{ord(character):04x}")
    return value


def figure(x):
    return "-" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)


def page(result, items, curve=""):
    """index.html of a result as text. curve: an SVG of ours, or nothing."""
    e = lambda x: html.escape(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False))
    low, high = result["interval"] or (None, None)
    flat = {
        k: v for k, v in result.items() if k not in ("settings", "task", "score", "interval")
    } | result.get("settings", {})
    return fill(
        {
            "title": e(f"{result['task']}: {result.get('model') or 'predictions'}"),
            "score": e(
                figure(result["score"]) + (f" {result['unit']}" if "unit" in result else "")
            ),
            "interval": e(f"95 % interval {figure(low)} to {figure(high)}, n = {result['n']}")
            if low is not None
            else e(f"n = {result['n']}"),
            "curve": curve,
            "rows": "".join(
                f"<tr><td>{e(str(k))}</td><td>{e(v)}</td></tr>" for k, v in flat.items()
            ),
            "data": embedded(dumps(items)),
            "shown": str(SHOWN),
        }
    )


def fill(parts):
    """page.html with each {{name}} replaced, once: what is put in is not searched again."""
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], template)


def curve_svg(points, label, width=720, height=320):
    """Score with its interval against step as an SVG.

    points: [{"step", "tokens", "score", "interval": [low, high]}] in order.
    """
    left, right, top, bottom = 64, 48, 28, 48
    steps = [p["step"] for p in points]
    bounds = [b for p in points for b in ((p["interval"] or [p["score"]] * 2) + [p["score"]])]
    low, high = min(bounds), max(bounds)
    high += (high - low or abs(high) or 1) * 0.05
    low -= (high - low) * 0.05
    x = lambda s: (
        left
        + (width - left - right)
        * ((s - steps[0]) / (steps[-1] - steps[0]) if steps[-1] > steps[0] else 0.5)
    )
    y = lambda v: height - bottom - (height - top - bottom) * (v - low) / (high - low)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" style="max-width:{width}px" font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
    ]
    for k in range(5):
        v = low + (high - low) * k / 4
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="currentColor" opacity=".15"/><text x="{left - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        )
    every = -(-len(points) // 8)
    for n, p in enumerate(points):
        if p["interval"]:
            a, b = p["interval"]
            parts.append(
                f'<line x1="{x(p["step"]):.1f}" x2="{x(p["step"]):.1f}" y1="{y(a):.1f}" y2="{y(b):.1f}" stroke="#2563a8" stroke-width="2" opacity=".5"/>'
            )
        if n % every == 0 or n == len(points) - 1:
            tokens = "" if p.get("tokens") is None else f"{p['tokens'] / 1e6:.3g}M tokens"
            parts.append(
                f'<text x="{x(p["step"]):.1f}" y="{height - bottom + 18}" text-anchor="middle">{p["step"]}</text><text x="{x(p["step"]):.1f}" y="{height - bottom + 34}" text-anchor="middle" opacity=".6">{tokens}</text>'
            )
    line = " ".join(f"{x(p['step']):.1f},{y(p['score']):.1f}" for p in points)
    parts.append(f'<polyline fill="none" stroke="#2563a8" stroke-width="2" points="{line}"/>')
    parts += [
        f'<circle cx="{x(p["step"]):.1f}" cy="{y(p["score"]):.1f}" r="4" fill="#2563a8"/>'
        for p in points
    ]
    parts.append(
        f'<text x="{left}" y="16" font-weight="600">{html.escape(label)} against step</text></svg>'
    )
    return "".join(parts)
