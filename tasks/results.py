"""A result directory: append finished items, resume, close it with a summary and a page to read; two of them paired.

    results.json   task, score, n, 95 % interval, settings, model, seconds, items/s, and what the task adds; "finished" false while it runs
    samples.jsonl  one object an item: id, prompt, output, extracted, gold, verdict; in the order of the input once finished
    index.html     the same to read: one file that opens from disk, nothing fetched, the model's text never markup

An item is on disk before it counts as done, so a killed evaluation goes on where it was. Left out: what a score is (scores.py). Text in items comes from data sets and
models and is untrusted: the page carries it as JSON and puts it into the document as text only.
"""

import html
import json
import os
import pathlib
import sys
import time

import numpy as np

SHOWN = 100  # items of the page drawn at once: 14,042 of them would take a browser seconds
FREE = (
    "batch",
    "mesh",
    "dtype",
    "workers",
)  # settings that may differ between a run and its resumption: they do not change what is measured


# ----------------------------------------------------------------------------------------------------------------- files


def write_beside(path, content):
    """Write text, or bytes, under another name in the same folder, then rename: the file is whole or as it was."""
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as f:
        f.write(content.encode() if isinstance(content, str) else content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(beside, path)


def dumps(value, **kwargs):
    """JSON as standards have it: NaN and infinities, which are not JSON, become null."""

    def plain(x):
        if isinstance(x, dict):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, (list, tuple)):
            return [plain(v) for v in x]
        if isinstance(x, np.generic):
            x = x.item()
        return None if isinstance(x, float) and not np.isfinite(x) else x

    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, **kwargs)


def read_lines(path, repair=True):
    """Objects of a JSON lines file. A torn last line (a kill within a write) is cut off the file where `repair`; any other damage is a ValueError with file and line."""
    path = pathlib.Path(path)
    raw = path.read_bytes()
    items, good = [], 0
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            item = json.loads(line.decode("utf-8"))
            if not line.endswith(b"\n"):
                raise ValueError
        except ValueError:
            if good + len(line) < len(raw):
                raise ValueError(
                    f"{path}, line {number} is not JSON: restore the file, or name another --out"
                ) from None
            if repair:
                with open(path, "r+b") as f:
                    f.truncate(good)
                print(
                    f"{path}: 1 torn line at its end (a kill within a write) was cut off",
                    file=sys.stderr,
                )
            break
        items.append(item)
        good += len(line)
    return items


def read_result(out):
    """results.json of a directory; ValueError where there is none."""
    path = pathlib.Path(out) / "results.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{out} holds no results.json: name a result directory of eval.py"
        ) from None
    except ValueError:
        raise ValueError(f"{path} is not JSON: the evaluation must be run again") from None


# ------------------------------------------------------------------------------------------------------------------- run


class Result:
    """An evaluation being written to `out`.

    Result(out, task, settings, model): settings (JSON values) and model (a path or a fingerprint, or None) are what a resumed run must share: a ValueError names the first
    that differs (FREE may). `done`: id -> item of what was finished before. add(item) puts one more on disk. finish(order, found) closes it.
    """

    def __init__(self, out, task, settings, model=None):
        self.out, self.started = pathlib.Path(out), time.time()
        self.head = json.loads(dumps({"task": task, "settings": settings, "model": model}))
        self.samples = self.out / "samples.jsonl"
        self.done, self.before, self.finished = {}, 0.0, False
        if (self.out / "results.json").exists():
            old = read_result(self.out)
            self._same(old)
            self.before, self.finished = old.get("seconds") or 0.0, old.get("finished", False)
            if self.samples.exists():
                self.done = {item["id"]: item for item in read_lines(self.samples)}
        else:
            if self.samples.exists():
                raise ValueError(
                    f"{self.out} holds samples.jsonl without results.json: name another --out, or remove it"
                )
            self.out.mkdir(parents=True, exist_ok=True)
            write_beside(
                self.out / "results.json",
                dumps(self.head | {"finished": False, "score": None}, indent=2) + "\n",
            )
        self.resumed = len(self.done)
        self.file, self.synced = open(self.samples, "a", encoding="utf-8"), time.monotonic()

    def _same(self, old):
        for name in ("task", "model"):
            if old.get(name) != self.head[name]:
                raise ValueError(
                    f"{self.out} holds a result with {name} {old.get(name)}, this one has {self.head[name]}: name another --out"
                )
        was, now = old.get("settings", {}), self.head["settings"]
        for name in [*now, *(n for n in was if n not in now)]:
            if name not in FREE and was.get(name) != now.get(name):
                raise ValueError(
                    f"{self.out} holds a result with {name} {short(was.get(name))}, this one has {short(now.get(name))}: use the same, or another --out"
                )

    def add(self, item):
        """Append one finished item, a dict with a unique "id"; on disk (flushed; synced each second) when this returns."""
        assert item["id"] not in self.done, item["id"]
        item = json.loads(dumps(item))
        self.file.write(dumps(item) + "\n")
        self.file.flush()
        if time.monotonic() - self.synced > 1:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()
        self.done[item["id"]] = item

    def finish(self, order, found):
        """Write the three files. order: all ids as in the input; found: score, n, interval (low, high) and what the task adds. -> results.json as a dict."""
        self.file.close()
        missing = [i for i in order if i not in self.done]
        assert not missing, f"unfinished: {missing[:5]}"
        items = [self.done[i] for i in order]
        seconds = time.time() - self.started
        new = len(items) - self.resumed
        result = self.head | {
            "finished": True,
            "score": None,
            "n": len(items),
            "interval": None,
            **found,
            "seconds": round(self.before + seconds, 3),
            "items_per_s": round(new / seconds, 3) if new > 0 else None,
        }
        write_beside(self.samples, "".join(dumps(i) + "\n" for i in items))
        write_beside(self.out / "index.html", page(json.loads(dumps(result)), items))
        write_beside(self.out / "results.json", dumps(result, indent=2) + "\n")
        return json.loads(dumps(result))

    def pause(self):
        """Close without finishing: what is done stays, and the time it took."""
        self.file.close()
        write_beside(
            self.out / "results.json",
            dumps(
                self.head
                | {
                    "finished": False,
                    "score": None,
                    "seconds": round(self.before + time.time() - self.started, 3),
                },
                indent=2,
            )
            + "\n",
        )


def short(value, width=80):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"


# ------------------------------------------------------------------------------------------------------------------ pair


def pair(a, b, metric="verdict"):
    """Two result directories of one task over the same items -> (task, values of a [n], values of b [n] float64, settings that differ {name: [a, b]}).

    Items are paired by id, in a's order. ValueError where tasks, items or gold answers differ, or where an item has no number under `metric`.
    """
    heads, items = [read_result(p) for p in (a, b)], []
    for path, head in zip((a, b), heads, strict=True):
        if not head.get("finished"):
            raise ValueError(f"{path} is not finished: run the same evaluation again, it goes on")
        items.append(
            {i["id"]: i for i in read_lines(pathlib.Path(path) / "samples.jsonl", repair=False)}
        )
    if heads[0]["task"] != heads[1]["task"]:
        raise ValueError(
            f"{a} is a result of {heads[0]['task']}, {b} of {heads[1]['task']}: compare two of one task"
        )
    apart = items[0].keys() ^ items[1].keys()
    if apart:
        raise ValueError(
            f"{a} and {b} are over different items ({len(apart)} are in one only, {sorted(map(str, apart))[0]} among them): run both with the same data and --limit"
        )
    other = [i for i in items[0] if items[0][i].get("gold") != items[1][i].get("gold")]
    if other:
        raise ValueError(
            f"{a} and {b} have different gold answers for {other[0]}: run both on the same data"
        )
    values = []
    for path, rows in zip((a, b), items, strict=True):
        if any(not isinstance(rows[i].get(metric), (bool, int, float)) for i in items[0]):
            raise ValueError(
                f"{path} has no number under {metric!r} in its items: there is nothing to compare"
            )
        values.append(np.array([float(rows[i][metric]) for i in items[0]]))
    settings = [h.get("settings", {}) | {"model": h.get("model")} for h in heads]
    differ = {
        n: [s.get(n) for s in settings]
        for n in {**settings[0], **settings[1]}
        if settings[0].get(n) != settings[1].get(n)
    }
    return heads[0]["task"], *values, differ


# ------------------------------------------------------------------------------------------------------------------ page

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>%(title)s</title><style>
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%%, transparent); --soft: color-mix(in srgb, currentColor 6%%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } .score { font-size: 2rem; font-weight: 600; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%%; } td { border-top: 1px solid var(--line); padding: .25rem .5rem; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { width: 11rem; opacity: .7; }
nav { position: sticky; top: 0; background: Canvas; padding: .6rem 0; display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; border-bottom: 1px solid var(--line); }
input[type=search] { font: inherit; padding: .3rem .6rem; flex: 1 1 12rem; min-width: 0; } button, select { font: inherit; padding: .3rem .6rem; }
article { border: 1px solid var(--line); border-left: .4rem solid #888; border-radius: .4rem; margin: 1rem 0; padding: .3rem .8rem .8rem; }
article.right { border-left-color: #2a8a4a; } article.wrong { border-left-color: #c0392b; }
article h2 { font-size: 1rem; margin: .3rem 0; } h3 { font-size: .8rem; font-weight: 600; opacity: .7; margin: .6rem 0 .1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .4rem .6rem; background: var(--soft); border-radius: .3rem; font: .9rem/1.45 ui-monospace, monospace; max-height: 24rem; overflow: auto; }
</style></head><body>
<h1>%(title)s</h1><div class="score">%(score)s</div><div>%(interval)s</div>%(curve)s
<details><summary>Settings and figures</summary><table>%(rows)s</table></details>
<nav><select id="which" aria-label="Which items"><option value="all">all items</option><option value="wrong">wrong ones</option><option value="right">right ones</option></select>
<input id="find" type="search" placeholder="search in all texts" aria-label="Search"><span id="count"></span><button id="less">&larr; before</button><button id="more">next &rarr;</button></nav>
<main id="items"></main>
<script id="data" type="application/json">%(data)s</script>
<script>
"use strict";
const items = JSON.parse(document.getElementById("data").textContent), page = %(shown)d;
const first = ["prompt", "output", "extracted", "gold", "verdict"];
const text = v => typeof v === "string" ? v : JSON.stringify(v);
const right = i => i.verdict === true || i.verdict === 1, judged = i => i.verdict !== undefined && i.verdict !== null;
let at = 0, shown = items;
function part(name, value) {  // textContent only: what a model wrote is never markup
  const box = document.createElement("div"), head = document.createElement("h3"), body = document.createElement("pre");
  head.textContent = name; body.textContent = text(value); box.append(head, body); return box;
}
function draw() {
  const main = document.getElementById("items"); main.replaceChildren();
  for (const item of shown.slice(at, at + page)) {
    const box = document.createElement("article"), head = document.createElement("h2");
    if (judged(item)) box.className = right(item) ? "right" : "wrong";
    head.textContent = text(item.id); box.append(head);
    for (const name of [...first, ...Object.keys(item).filter(k => k !== "id" && !first.includes(k))])
      if (item[name] !== undefined && item[name] !== null) box.append(part(name, item[name]));
    main.append(box);
  }
  const last = Math.min(at + page, shown.length);
  document.getElementById("count").textContent = shown.length ? `${at + 1}-${last} of ${shown.length} (${items.length} in all)` : `none of ${items.length}`;
  document.getElementById("less").disabled = at === 0; document.getElementById("more").disabled = last >= shown.length;
}
function choose() {
  const which = document.getElementById("which").value, find = document.getElementById("find").value.toLowerCase();
  shown = items.filter(i => (which === "all" || (judged(i) && right(i) === (which === "right"))) && (!find || Object.values(i).some(v => text(v).toLowerCase().includes(find))));
  at = 0; draw();
}
document.getElementById("which").addEventListener("change", choose);
document.getElementById("find").addEventListener("input", choose);
document.getElementById("less").addEventListener("click", () => { at = Math.max(0, at - page); draw(); scrollTo(0, 0); });
document.getElementById("more").addEventListener("click", () => { at += page; draw(); scrollTo(0, 0); });
choose();
</script></body></html>
"""


def embedded(value):
    """JSON that is safe inside <script>: no end tag, no comment, no line separator of JavaScript can be read out of it."""
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
    return PAGE % {
        "title": e(f"{result['task']}: {result.get('model') or 'predictions'}"),
        "score": e(figure(result["score"]) + (f" {result['unit']}" if "unit" in result else "")),
        "interval": e(f"95 % interval {figure(low)} to {figure(high)}, n = {result['n']}")
        if low is not None
        else e(f"n = {result['n']}"),
        "curve": curve,
        "rows": "".join(f"<tr><td>{e(str(k))}</td><td>{e(v)}</td></tr>" for k, v in flat.items()),
        "data": embedded(dumps(items)),
        "shown": SHOWN,
    }


def curve_svg(points, label, width=720, height=320):
    """Score with its interval against step as an SVG. points: [{"step", "tokens", "score", "interval": [low, high]}] in order."""
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
