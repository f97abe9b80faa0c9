"""What a grid found, by a rule fixed before its runs.

    python -m study.report GRID... --out DIR                         # what prints it

Compared are style, knowledge, the local task, the base model and mixing: differences over the same
items, with their intervals (intervals.py), as a table of claims. Left out: why.
"""

import pathlib
from typing import NamedTuple

import numpy as np

from host import files
from study.report import plots
from study.report.intervals import difference, judge, pool

RULE = (
    "A claim is judged on the difference of two models over the same items.",
    "An item's value is the mean over seeds. Where several bases are compared with imitations of "
    "them, an item's difference is the mean over the bases.",
    "One world: the 95 % interval is a bootstrap over items (10,000 draws). Several worlds: the "
    "difference is the mean of theirs, and the bootstrap draws worlds and then items in each.",
    '"yes": the interval lies above 0, and so does every world\'s own difference.',
    '"no": the interval and every world\'s own difference end below the smallest rise that would '
    'matter (5 points of 100; 5 % in perplexity). "it falls" is added where the interval lies '
    "below 0.",
    '"unclear": anything else.',
    "Where neither of two models is told apart from chance (the interval of its own score reaches "
    'chance), their comparison is left out; where all are, it is "uninformative". Facts that no '
    "base has read are meant to be at chance, and are compared all the same.",
    "Imitation data stands for its largest amount, unless the claim is about amounts.",
    '"A better base or more data" compares the largest base with the least data against the '
    "smallest base with the most.",
)
# a guess among four, and among the 24 objects of a kind; elsewhere a guess is right next to never
CHANCE = {"mmlu": 1 / 4, "mmlu_own": 1 / 4, "knows": 1 / 24}
KNOWLEDGE = ("mmlu", "mmlu_own", "nq", "nq_own", "knows", "humaneval", "humaneval_cut")
STYLE, PREFERENCE = ("list", "summary", "unigram"), ("rate", "judge")
UNREAD, TOLD = ("nq_unread", "knows_unread"), ("nq_told", "knows_told")
# all that the teacher knows: what the bases read and what they did not, as one measure
ALL_FACTS = (("nq", "nq_unread"), ("knows", "knows_unread"))
COMPARED = (*KNOWLEDGE, *STYLE, *PREFERENCE, *UNREAD, *TOLD, "toxicity", "perplexity")

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


class Side(NamedTuple):
    """One side of a comparison. source: None for the base; base: None for each base in turn;
    least: its smallest amount of data instead of its largest."""

    source: str | None
    base: str | None = None
    least: bool = False


class Models:
    """The points of a report by model: of a world, a base and a source."""

    def __init__(self, points: list[dict]):
        self.points = [p for p in points if p["role"] != "teacher" and p["measure"] in COMPARED]
        by_size = sorted(self.points, key=lambda p: (p["size"] or 0, str(p["base"])))
        self.bases, self.read = list(dict.fromkeys(p["base"] for p in by_size)), {}
        self.worlds = sorted({p["world"] for p in self.points}, key=str)
        self.taken = {p["measure"] for p in self.points}

    def of(self, side: Side, measure: str, world: int | None) -> list[dict]:
        """The points of a model, one a seed, at its largest (or least) amount."""
        kind = ("base" if side.source is None else "imitation", side.base, measure, world)
        own = [p for p in self.points if (p["role"], p["base"], p["measure"], p["world"]) == kind]
        if side.source is not None:
            own = [p for p in own if p["source"] == side.source]
        if measure == "nq":
            shots = plots.shots_drawn(own)
            own = [p for p in own if p["shots"] == shots]
        amounts = [p["amount"] or 0 for p in own]
        amount = (min if side.least else max)(amounts, default=0)
        return [p for p in own if (p["amount"] or 0) == amount]

    def values(self, points: list[dict]) -> list[dict]:
        """[{(measure, item): value}] of points, each file read once."""
        for p in points:
            key = p["path"], p["measure"]
            if key not in self.read:
                self.read[key] = {(key[1], i): v for i, v in values(*key).items()}
        return [self.read[p["path"], p["measure"]] for p in points]

    def at_chance(self, points: list[dict], measure: str) -> bool:
        """Whether no seed of a model is told apart from chance."""
        if measure not in KNOWLEDGE or any(p["interval"] is None for p in points):
            return False
        return all(p["interval"][0] <= CHANCE.get(measure, 0) for p in points)

    def rows(self, one: Side, other: Side, measures: tuple, world: int | None) -> tuple:
        """([{item: difference}] a base, bases left out, whether anything was run) in a world."""
        rows, left_out, ran = [], [], False
        for base in self.bases if one.base is None else [one.base]:
            pair = [side if side.base else side._replace(base=base) for side in (one, other)]
            both = [[self.of(side, m, world) for m in measures] for side in pair]
            if not all(points for points in (*both[0], *both[1])):
                continue
            ran = True
            if all(
                self.at_chance(points, m)
                for of in both
                for points, m in zip(of, measures, strict=True)
            ):
                left_out.append(base)
                continue
            parts = [difference(self.values(a), self.values(b)) for a, b in zip(*both, strict=True)]
            rows.append({item: d for part in parts for item, d in part.items()})
        return rows, left_out, ran

    def against(self, one: Side, other: Side, measure: str | tuple) -> dict | None:
        """judge() of `other` against `one`, with "left_out" (bases where both are at chance) and
        "worlds" (each one's own). measure: several as a tuple are one, over the items of all.

        None where nothing was run.
        """
        measures = (measure,) if isinstance(measure, str) else measure
        by_world, left_out, ran = {}, {}, False
        for world in self.worlds:
            rows, chance, ran_here = self.rows(one, other, measures, world)
            ran |= ran_here
            left_out |= {base: None for base in chance}
            if len(items := pool(rows)) > 1:
                by_world[world] = items
        if not ran:
            return None
        found = judge(list(by_world.values()))
        nothing = {"difference": None, "interval": None, "n": 0, "verdict": "uninformative"}
        own = [{"world": w} | (judge([items]) or {}) for w, items in by_world.items()]
        return (found or nothing) | {"left_out": list(left_out), "worlds": own}


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
    "gap": ("Broad imitation closes the gap on what the teacher alone knows", "no"),
    "told": ("Broad imitation teaches the facts that it tells", None),
    "local": ("Local imitation raises its own task", "yes"),
    "extracts": ("Local imitation adds knowledge, not only the form to say it in", None),
    "base": ("A larger base raises", "yes"),
    "better": ("A better base closes more of the gap than more data does", "yes"),
    "mixed": ("Mixing the base's own text into imitation keeps what broad imitation loses", None),
    "preference": ("Readers' preference rises with broad imitation", "yes"),
    "toxicity": ("Answers to unkind requests become less toxic", "yes"),
    "perplexity": ("Encyclopedic text becomes likelier by broad imitation", None),
}


def comparisons(models: Models, broad: str | None, local: str | None, mixed: str | None) -> list:
    """[(claim, measures, one, other)] that the sources allow."""
    base, small = Side(None), models.bases[0] if models.bases else None
    large, listed = models.bases[-1] if models.bases else None, []
    if broad:
        most = Side(broad)
        listed = [
            ("style", STYLE, base, most),
            ("preference", PREFERENCE, base, most),
            ("knowledge", KNOWLEDGE, base, most),
            ("gap", UNREAD, base, most),
            ("told", TOLD, base, most),
            ("perplexity", ("perplexity",), base, most),
            ("toxicity", ("toxicity",), base, most),
        ]
    if local:
        listed.append(("local", ("nq", "nq_own"), base, Side(local)))
        listed.append(("extracts", ("knows", "knows_unread"), base, Side(local)))
    if small != large:
        listed.append(("base", KNOWLEDGE, Side(None, small), Side(None, large)))
        if broad:
            both = Side(broad, small), Side(broad, large)
            listed.append(("base", (*STYLE, *PREFERENCE), *both))
            facts = [both for both in ALL_FACTS if set(both) <= models.taken]
            gap = ("mmlu", *(facts or ("nq",)), "humaneval", "humaneval_cut", "mmlu_own", "nq_own")
            listed.append(("better", gap, both[0], both[1]._replace(least=True)))
    if mixed and broad:
        listed.append(("mixed", (*KNOWLEDGE, STYLE[2]), Side(broad), Side(mixed)))
    return listed


def compute(points: list[dict]) -> list[dict]:
    """All comparisons that the points allow.

    -> [{"claim", "measure", "difference", "interval", "n", "verdict", "left_out", "worlds",
    "paper"}].
    """
    models, rows = Models(points), []
    for claim, measures, one, other in comparisons(models, *sources(points)):
        for measure in measures:
            row = models.against(one, other, measure)
            if row:
                name = measure if isinstance(measure, str) else "+".join(measure)
                rows.append({"claim": claim, "measure": name, "paper": CLAIMS[claim][1]} | row)
    return rows


# --- in words ---


def title(measure: str, titles: dict[str, str]) -> str:
    """A measure in words; of several that are one, the first's."""
    first, *others = measure.split("+")
    name = titles[first].removesuffix(" (%)")
    return f"{name}, and of facts never read" if others else name


def span(row: dict) -> list[str]:
    """[difference, interval] in words; a perplexity as the change of its value."""
    if row["difference"] is None:
        return ["-", "-"]
    low, high = row["interval"]
    if row["measure"] == "perplexity":  # differences of log-likelihood a token
        change, low, high = (100 * (np.exp(-d) - 1) for d in (row["difference"], high, low))
        return [f"{change:+.0f} %", f"{low:+.0f} to {high:+.0f}"]
    return [f"{100 * row['difference']:+.1f} points", f"{100 * low:+.1f} to {100 * high:+.1f}"]


def verdict_of(row: dict) -> str:
    """The verdict of one comparison in words."""
    if row["difference"] is None:
        few = "fewer than two items to compare"
        return f"uninformative, {'every model is at chance' if row['left_out'] else few}"
    left_out = ", ".join(map(str, row["left_out"]))
    verdict = row["verdict"] + (f"; {left_out} at chance, left out" if left_out else "")
    likely = row["measure"] == "perplexity"
    return verdict.replace("it falls", "it becomes less likely") if likely else verdict


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
    head = ["Claim", "difference", "95 % interval", "here", "the paper"]
    lines = []
    for claim, verdict in verdicts(rows).items():
        text, paper = CLAIMS[claim]
        lines.append([text, "", "", verdict, paper or "left open"])
        for row in rows:
            if row["claim"] == claim:
                name = f"· {title(row['measure'], titles)}"
                lines.append([name, *span(row), verdict_of(row), ""])
    return head, lines


def table_of_worlds(rows: list[dict], titles: dict[str, str]) -> tuple:
    """Each world's own line of each comparison: (head, rows); no rows where there is one world."""
    worlds = list(dict.fromkeys(w["world"] for row in rows for w in row["worlds"]))
    lines = []
    for row in rows if len(worlds) > 1 else ():
        own = {w["world"]: w | {"measure": row["measure"]} for w in row["worlds"]}
        said = ["{} ({})".format(*span(own[w])) if w in own else "-" for w in worlds]
        lines.append([f"{CLAIMS[row['claim']][0]}: {title(row['measure'], titles)}", *said])
    return ["Claim and measure", *(f"world {w}" for w in worlds)], lines


def ending(rows: list[dict]) -> list[str]:
    """What agrees with the paper and what does not, in two sentences."""
    if not rows:
        return [
            "Nothing to compare: no base model and imitation of it were measured on the same items."
        ]
    differs, same = [], []
    for claim, verdict in verdicts(rows).items():
        text, paper = CLAIMS[claim]
        if paper and verdict != "uninformative":
            said = f'"{text.lower()}" ({verdict})'
            if verdict == paper:
                same.append(said)
            else:
                differs.append(f"{said[:-1]}; the paper: {paper})")
    return [
        f"As in the paper: {', '.join(same) or 'nothing'}.",
        f"Other than in the paper: {', '.join(differs) or 'nothing'}.",
    ]
