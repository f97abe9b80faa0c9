"""What a grid found, by a rule fixed before its runs: style, knowledge, the local task, the base model, mixing. Differences over the same items, with their intervals, and a paragraph computed from them.

    python -m study.report GRID --out DIR                            # what prints them
    python -m study.findings GRID/results/S/nq GRID/results/L/nq --out FILE        # do larger bases know more? The gate of the small grid

Left out: why.
"""

import argparse
import pathlib
import sys

import numpy as np

from study import plots
from tasks import results, scores

RULE = """A claim "it rises" is judged on the difference of two models over the same items: each item's value is the mean over seeds, the difference the mean over items, and its 95 % interval a paired bootstrap over
items (10,000 draws). Several bases are pooled: an item's difference is the mean over them. "yes": the interval lies above 0. "no": the interval ends below the smallest rise that would matter (5 points of
100; 5 % in perplexity), and "falls" is added where it lies below 0. "unclear": anything else. Where a base is not told apart from chance (the 95 % interval of its own score reaches chance) the comparison
on that benchmark is "uninformative" for a base, which is then left out of the pool. Imitation data stands for its largest amount. Intervals are over items, and do not cover other worlds or other bases."""
MATTERS = 0.05
CHANCE = {"mmlu": 0.25}  # a guess among four; elsewhere a guess is right next to never
KNOWLEDGE, STYLE, PREFERENCE = (
    ("mmlu", "nq", "humaneval"),
    ("list", "summary", "unigram"),
    ("rate", "judge"),
)


def values(path, measure):
    """{item: value} of a finished result, higher is better; items without a value (a missing score, no list of the teacher's) are left out."""
    read = {
        "list": lambda i: i["list"] if i["teacher_list"] else None,
        "summary": lambda i: i["summary"] if i["teacher_summary"] else None,
        "unigram": lambda i: i["unigram"],
        "toxicity": lambda i: None if i.get("toxicity") is None else 1 - i["toxicity"],
        "perplexity": lambda i: -i["nats"] / i["tokens"],
        "rate": lambda i: None if i["verdict"] is None else i["verdict"] >= 0.5,
        "judge": lambda i: (
            None if i["verdict"] is None else i["verdict"] >= 0.5
        ),  # at least as good as the teacher
    }.get(measure, lambda i: i["verdict"])
    samples = pathlib.Path(path) / "samples.jsonl"
    found = (
        {i["id"]: read(i) for i in results.read_lines(samples, repair=False)}
        if samples.exists()
        else {}
    )
    return {name: float(v) for name, v in found.items() if v is not None}


def difference(a, b):
    """Items' values of two groups of seeds -> {item: mean of b - mean of a} over the items that all have. a, b: lists of {item: value}."""
    shared = set.intersection(*map(set, [*a, *b]))
    return {i: float(np.mean([x[i] for x in b]) - np.mean([x[i] for x in a])) for i in shared}


def judge(rows):
    """[{item: difference}], one a base -> {"difference", "interval", "n", "verdict"}; None where there is nothing to judge. Items are paired across the bases too."""
    rows = [r for r in rows if r]
    if not rows:
        return None
    items = sorted(set.intersection(*map(set, rows)))
    if len(items) < 2:
        return None
    d = np.array([np.mean([r[i] for r in rows]) for i in items])
    low, high = scores.bootstrap(d)
    verdict = "yes" if low > 0 else "no" if high < MATTERS else "unclear"
    return {
        "difference": float(d.mean()),
        "interval": (low, high),
        "n": len(items),
        "verdict": verdict + (", it falls" if high < 0 else ""),
    }


class Models:
    """The points of a report by model: `of(base, source, measure)` are the result folders, one a seed, of the largest amount (source None: the base itself)."""

    def __init__(self, points):
        self.points = [
            p
            for p in points
            if p["role"] != "teacher"
            and p["measure"] in (*KNOWLEDGE, *STYLE, *PREFERENCE, "toxicity", "perplexity")
        ]
        self.bases = list(
            dict.fromkeys(
                p["base"]
                for p in sorted(self.points, key=lambda p: (p["size"] or 0, str(p["base"])))
            )
        )
        self.read = {}

    def of(self, base, source, measure):
        own = [
            p
            for p in self.points
            if p["base"] == base
            and p["measure"] == measure
            and (
                p["role"] == "base"
                if source is None
                else p["role"] == "imitation" and p["source"] == source
            )
        ]
        if measure == "nq":
            shots = plots.shots_drawn(own)
            own = [p for p in own if p["shots"] == shots]
        largest = max((p["amount"] or 0 for p in own), default=0)
        return [p for p in own if (p["amount"] or 0) == largest]

    def values(self, points, measure):
        return [
            self.read.setdefault((p["path"], measure), values(p["path"], measure)) for p in points
        ]

    def at_chance(self, base, measure):
        own = self.of(base, None, measure)
        return (
            measure in KNOWLEDGE
            and bool(own)
            and own[0]["interval"] is not None
            and own[0]["interval"][0] <= CHANCE.get(measure, 0)
        )

    def against(self, bases, one, other, measure):
        """judge() of `other` against `one` (sources, or (base, source)), pooled over bases -> with "left_out": bases at chance; or None where nothing was run."""
        rows, left_out, ran = [], [], False
        for base in bases:
            pair = [x if isinstance(x, tuple) else (base, x) for x in (one, other)]
            a, b = (self.of(*x, measure) for x in pair)
            if not a or not b:
                continue
            ran = True
            if all(self.at_chance(x[0], measure) for x in pair):
                left_out.append(base)
            else:
                rows.append(difference(self.values(a, measure), self.values(b, measure)))
        if not ran:
            return None
        return (
            judge(rows)
            or {"difference": None, "interval": None, "n": 0, "verdict": "uninformative"}
        ) | {"left_out": left_out}


def sources(points):
    """(broad, local, mixed): sources by what they are called in the presets; the one with most amounts is broad."""
    names = {}
    for p in points:
        if p["role"] == "imitation":
            names.setdefault(p["source"], set()).add(p["amount"])
    mixed = "mixed" if "mixed" in names else None
    local = next((s for s in names if s in ("local", "nq")), None)
    broad = max(
        (s for s in names if s not in (mixed, local)), key=lambda s: len(names[s]), default=None
    )
    return broad, local, mixed


# Claim -> what the paper says of it ("yes", "no", None: left open).
CLAIMS = {
    "style": ("Style rises with broad imitation", "yes"),
    "knowledge": ("Knowledge rises with broad imitation", "no"),
    "local": ("Local imitation raises its own task", "yes"),
    "base": ("A larger base raises", "yes"),
    "mixed": ("Mixing the base's own text into imitation keeps what broad imitation loses", None),
    "preference": ("Readers' preference rises with broad imitation", "yes"),
    "toxicity": ("Answers to unkind requests become less toxic", "yes"),
    "perplexity": ("The encyclopedia becomes likelier by broad imitation", None),
}


def compute(points):
    """All comparisons that the points allow -> [{"claim", "measure", "difference", "interval", "n", "verdict", "left_out", "paper"}]."""
    models, found = Models(points), []
    broad, local, mixed = sources(points)
    small, large = (models.bases[0], models.bases[-1]) if models.bases else (None, None)

    def add(claim, measures, one, other, bases=models.bases):
        for measure in measures:
            row = models.against(bases, one, other, measure)
            if row:
                found.append({"claim": claim, "measure": measure, "paper": CLAIMS[claim][1]} | row)

    if broad:
        add("style", STYLE, None, broad)
        add("preference", PREFERENCE, None, broad)
        add("knowledge", KNOWLEDGE, None, broad)
        add("perplexity", ("perplexity",), None, broad)
        add("toxicity", ("toxicity",), None, broad)
    if local:
        add("local", ("nq",), None, local)
    if small != large:
        add("base", KNOWLEDGE, (small, None), (large, None), [large])
        if broad:
            add("base", (*STYLE, *PREFERENCE), (small, broad), (large, broad), [large])
    if mixed and broad:
        add("mixed", KNOWLEDGE, broad, mixed)
        add("mixed", STYLE[2:], broad, mixed)
    return found


def shown(row, titles):
    """One comparison in words."""
    name = titles[row["measure"]]
    if row["difference"] is None:
        return f"{name}: uninformative, every base is at chance"
    low, high = row["interval"]
    if row["measure"] == "perplexity":  # differences of log-likelihood a token
        change = lambda d: 100 * (np.exp(-d) - 1)
        text = f"perplexity {change(row['difference']):+.0f} % ({change(high):+.0f} to {change(low):+.0f})"
        row = row | {"verdict": row["verdict"].replace("it falls", "it becomes less likely")}
    else:
        text = (
            f"{name} {100 * row['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        )
    return f"{text}: {row['verdict']}" + (
        f"; {', '.join(map(str, row['left_out']))} at chance, left out" if row["left_out"] else ""
    )


def paragraph(found, titles):
    """The findings as one paragraph, and what differs from the paper."""
    text, differs, same = [], [], []
    for claim, (words, paper) in CLAIMS.items():
        rows = [r for r in found if r["claim"] == claim]
        if not rows:
            continue
        told = {r["verdict"].split(",")[0] for r in rows} - {"uninformative"}
        whole = (
            "uninformative" if not told else told.pop() if len(told) == 1 else "not on all measures"
        )
        text.append(f"{words}: {whole} ({'; '.join(shown(r, titles) for r in rows)}).")
        if paper and whole != "uninformative":
            (same if whole == paper else differs).append(
                f'"{words.lower()}" (the paper: {paper}; here: {whole})'
            )
    if not text:
        return (
            "Nothing to compare: no base model and imitation of it were measured on the same items."
        )
    ending = f"As in the paper: {'; '.join(same) or 'nothing'}. Other than in the paper: {'; '.join(differs) or 'nothing'}."
    return " ".join([*text, ending])


# ---- the gate --------------------------------------------------------------------------------------------------------


def gate(folders, out, whatever=False):
    """Write FILE with the bases' scores and their paired differences. ValueError where the largest base does not know more than the smallest."""
    heads = [results.read_result(f) for f in folders]
    steps = []
    for a, b in zip(folders, folders[1:], strict=False):
        d, (low, high) = scores.paired_bootstrap(*results.pair(a, b)[1:3])
        steps.append({"from": str(a), "to": str(b), "difference": d, "interval": (low, high)})
    d, (low, high) = scores.paired_bootstrap(*results.pair(folders[0], folders[-1])[1:3])
    for folder, head in zip(folders, heads, strict=True):
        print(
            f"{folder}: {head['score']:.1%} ({head['interval'][0]:.1%} to {head['interval'][1]:.1%}, n {head['n']})"
        )
    print(
        f"largest minus smallest {100 * d:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, paired bootstrap)"
    )
    if low <= 0 and not whatever:
        raise ValueError(
            f"{folders[-1]} does not know more than {folders[0]} ({100 * low:+.1f} to {100 * high:+.1f} points): the study needs bases that differ; train them longer, or --whatever"
        )
    pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
    results.write_beside(
        pathlib.Path(out),
        results.dumps(
            {
                "scores": [
                    {"path": str(f)} | {k: h[k] for k in ("score", "interval", "n")}
                    for f, h in zip(folders, heads, strict=True)
                ],
                "steps": steps,
                "largest minus smallest": {"difference": d, "interval": (low, high)},
            },
            indent=1,
        )
        + "\n",
    )


def main(argv=None):
    p = argparse.ArgumentParser(
        prog="python -m study.findings",
        description="Do larger base models know more? Compare their exact match on the same questions; status 2 where the largest does not beat the smallest.",
    )
    p.add_argument(
        "results",
        nargs="+",
        metavar="RESULT",
        help="result directories of eval.py nq, the smallest base first, two or more",
    )
    p.add_argument("--out", required=True, metavar="FILE", help="the comparison, JSON")
    p.add_argument("--whatever", action="store_true", help="write it whatever comes out")
    args = p.parse_args(argv)
    try:
        if len(args.results) < 2:
            raise ValueError(f"{args.results[0]} alone: name two result directories or more")
        gate(args.results, args.out, args.whatever)
    except (ValueError, FileNotFoundError) as error:
        print(f"findings.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
