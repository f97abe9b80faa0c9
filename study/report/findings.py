"""What a grid found, by a rule fixed before its runs.

    python -m study.report GRID --out DIR                            # what prints it

Compared are style, knowledge, the local task, the base model and mixing: differences over the same
items, with their intervals, as a table of claims. Left out: why.
"""

import pathlib

import numpy as np

from host import files
from study.report import plots
from tasks import scores

RULE = (
    'A claim "it rises" is judged on the difference of two models over the same items: each '
    "item's value is the mean over seeds, the difference the mean over items, and its 95 % "
    "interval a paired bootstrap over items (10,000 draws). Several bases are pooled: an item's "
    'difference is the mean over them. "yes": the interval lies above 0. "no": the interval ends '
    "below the smallest rise that would matter (5 points of 100; 5 % in perplexity), and "
    '"falls" is added where it lies below 0. "unclear": anything else. Where a base is not told '
    "apart from chance (the 95 % interval of its own score reaches chance) the comparison on that "
    'benchmark is "uninformative" for a base, which is then left out of the pool. Imitation data '
    "stands for its largest amount. Intervals are over items, and do not cover other worlds or "
    "other bases."
)
MATTERS = 0.05
CHANCE = {"mmlu": 0.25}  # a guess among four; elsewhere a guess is right next to never
KNOWLEDGE, STYLE, PREFERENCE = (
    ("mmlu", "nq", "humaneval"),
    ("list", "summary", "unigram"),
    ("rate", "judge"),
)


# Measure -> the value of an item of its result, higher is better; None where it has none (a
# missing score, no list of the teacher's). Any other measure: the item's verdict.
VALUE = {
    "list": lambda i: i["list"] if i["teacher_list"] else None,
    "summary": lambda i: i["summary"] if i["teacher_summary"] else None,
    "unigram": lambda i: i["unigram"],
    "toxicity": lambda i: None if i.get("toxicity") is None else 1 - i["toxicity"],
    "perplexity": lambda i: -i["nats"] / i["tokens"],
    "rate": lambda i: None if i["verdict"] is None else i["verdict"] >= 0.5,
    "judge": lambda i: None if i["verdict"] is None else i["verdict"] >= 0.5,
}


def values(path: str | pathlib.Path, measure: str) -> dict:
    """{item: value} of a finished result; items without a value are left out."""
    samples = pathlib.Path(path) / "samples.jsonl"
    if not samples.exists():
        return {}
    read = VALUE.get(measure, lambda i: i["verdict"])
    items = {i["id"]: read(i) for i in files.json_lines(samples, repair=False)}
    return {name: float(v) for name, v in items.items() if v is not None}


def difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> dict:
    """Items' values of two groups of seeds -> {item: mean of b - mean of a} over the items that all
    have. a, b: lists of {item: value}.
    """
    shared = set.intersection(*map(set, [*a, *b]))
    return {i: float(np.mean([x[i] for x in b]) - np.mean([x[i] for x in a])) for i in shared}


def judge(rows: list[dict[str, float]]) -> dict | None:
    """[{item: difference}], one a base -> {"difference", "interval", "n", "verdict"}.

    Items are paired across the bases too. None where there is nothing to judge.
    """
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
    """The points of a report by model; a model is (base, source), source None for the base."""

    def __init__(self, points: list[dict]):
        measured = (*KNOWLEDGE, *STYLE, *PREFERENCE, "toxicity", "perplexity")
        self.points = [p for p in points if p["role"] != "teacher" and p["measure"] in measured]
        by_size = sorted(self.points, key=lambda p: (p["size"] or 0, str(p["base"])))
        self.bases, self.read = list(dict.fromkeys(p["base"] for p in by_size)), {}

    def of(self, base: str, source: str | None, measure: str) -> list:
        """The points of a model, one a seed, at its largest amount."""
        role = "base" if source is None else "imitation"
        own = [
            p
            for p in self.points
            if p["base"] == base and p["measure"] == measure and p["role"] == role
        ]
        if source is not None:
            own = [p for p in own if p["source"] == source]
        if measure == "nq":
            shots = plots.shots_drawn(own)
            own = [p for p in own if p["shots"] == shots]
        largest = max((p["amount"] or 0 for p in own), default=0)
        return [p for p in own if (p["amount"] or 0) == largest]

    def values(self, points: list[dict], measure: str) -> list:
        """[{item: value}] of points, each file read once."""
        keys = [(p["path"], measure) for p in points]
        for key in keys:
            if key not in self.read:
                self.read[key] = values(*key)
        return [self.read[key] for key in keys]

    def at_chance(self, base: str, measure: str) -> bool:
        own = self.of(base, None, measure)
        if measure not in KNOWLEDGE or not own or own[0]["interval"] is None:
            return False
        return own[0]["interval"][0] <= CHANCE.get(measure, 0)

    def against(
        self, bases: list[str], one: str | tuple | None, other: str | tuple | None, measure: str
    ) -> dict | None:
        """judge() of `other` against `one`, pooled over bases, with "left_out": bases at chance.

        one, other: sources, or (base, source). None where nothing was run.
        """
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
        nothing = {"difference": None, "interval": None, "n": 0, "verdict": "uninformative"}
        return (judge(rows) or nothing) | {"left_out": left_out}


def sources(points: list[dict]) -> tuple:
    """(broad, local, mixed): sources by what they are called in the presets; the one with most
    amounts is broad.
    """
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


def compute(points: list[dict]) -> list[dict]:
    """All comparisons that the points allow.

    -> [{"claim", "measure", "difference", "interval", "n", "verdict", "left_out", "paper"}].
    """
    models, rows = Models(points), []
    broad, local, mixed = sources(points)
    small, large = (models.bases[0], models.bases[-1]) if models.bases else (None, None)

    def add(claim, measures, one, other, bases=models.bases):
        for measure in measures:
            row = models.against(bases, one, other, measure)
            if row:
                rows.append({"claim": claim, "measure": measure, "paper": CLAIMS[claim][1]} | row)

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
    return rows


def cells(row: dict, titles: dict[str, str]) -> list:
    """[measure, difference, interval, verdict] of one comparison in words."""
    name = titles[row["measure"]].removesuffix(" (%)")
    left_out = ", ".join(map(str, row["left_out"]))
    if row["difference"] is None:
        return [name, "-", "-", "uninformative, every base is at chance"]
    low, high = row["interval"]
    verdict = row["verdict"] + (f"; {left_out} at chance, left out" if left_out else "")
    if row["measure"] == "perplexity":  # differences of log-likelihood a token
        change, low, high = (100 * (np.exp(-d) - 1) for d in (row["difference"], high, low))
        verdict = verdict.replace("it falls", "it becomes less likely")
        return [name, f"{change:+.0f} %", f"{low:+.0f} to {high:+.0f}", verdict]
    points = 100 * row["difference"]
    return [name, f"{points:+.1f} points", f"{100 * low:+.1f} to {100 * high:+.1f}", verdict]


def verdicts(rows: list[dict]) -> dict:
    """{claim: its verdict over all its measures}; "not on all measures" where they differ."""
    over_all = {}
    for claim in CLAIMS:
        told = {r["verdict"].split(",")[0] for r in rows if r["claim"] == claim}
        if told:
            told -= {"uninformative"}
            mixed = "not on all measures" if told else "uninformative"
            over_all[claim] = told.pop() if len(told) == 1 else mixed
    return over_all


def table(rows: list[dict], titles: dict[str, str]) -> tuple:
    """The findings: (head, rows), a line a claim with its verdict, then a line a measure."""
    head = ["Claim", "the paper", "here", "difference", "95 % interval"]
    lines = []
    for claim, verdict in verdicts(rows).items():
        text, paper = CLAIMS[claim]
        lines.append([text, paper or "left open", verdict, "", ""])
        for row in rows:
            if row["claim"] == claim:
                name, difference, interval, own = cells(row, titles)
                lines.append([f"· {name}", "", own, difference, interval])
    return head, lines


def ending(rows: list[dict]) -> str:
    """What agrees with the paper and what does not, a sentence each."""
    differs, same = [], []
    for claim, verdict in verdicts(rows).items():
        text, paper = CLAIMS[claim]
        if paper and verdict != "uninformative":
            words = f'"{text.lower()}" (the paper: {paper}; here: {verdict})'
            (same if verdict == paper else differs).append(words)
    if not rows:
        return (
            "Nothing to compare: no base model and imitation of it were measured on the same items."
        )
    return (
        f"As in the paper: {'; '.join(same) or 'nothing'}. Other than in the paper: "
        f"{'; '.join(differs) or 'nothing'}."
    )
