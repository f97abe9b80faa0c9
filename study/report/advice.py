"""Should I imitate? The findings of a grid of the preset own, as advice.

    python -m study.report GRID --out DIR      # what prints it, for such grids

Judged by the rule of findings.py alone. Left out: what the models were not measured by.
"""

import pathlib
from collections.abc import Iterable

from host import files
from study.report import cost, findings
from study.report.findings import Models, Side, title
from study.report.points import KNOWN

PRESET = "own"
GAINS = ("style", "preference", "local", "toxicity")  # claims that are gains where they are "yes"


def grids(paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
    """The folders of the preset's grids at or below the paths."""
    plans = [p for path in paths for p in sorted(pathlib.Path(path).rglob("grid.json"))]
    return [p.parent for p in plans if files.read_json(p).get("preset") == PRESET]


def named(row: dict, titles: dict[str, str]) -> str:
    """A comparison in words: its measure, difference and interval."""
    difference, interval = findings.span(row)
    return f"{title(row['measure'], titles)} {difference} ({interval})"


def listed(rows: list[dict], titles: dict[str, str]) -> str:
    return "; ".join(named(row, titles) for row in rows)


def of(rows: list[dict], verdict: str, *claims: str) -> list[dict]:
    """The comparisons of some claims with a verdict, "it falls" among them."""
    return [r for r in rows if r["claim"] in claims and r["verdict"].endswith(verdict)]


def gains(rows: list[dict], titles: dict[str, str]) -> list[str]:
    """What rises, what does not, what falls; in a sentence each."""
    claims, lines = (*GAINS, "knowledge"), []
    for verdict, said in (
        ("yes", "What rises by imitation, in points of 100 with 95 % intervals"),
        ("it falls", "What falls"),
        ("no", "What does not rise"),
        ("unclear", "What cannot be told from so few items"),
    ):
        if told := of(rows, verdict, *claims):
            lines.append(f"{said}: {listed(told, titles)}.")
    if chance := of(rows, "uninformative", "knowledge", "local"):
        names = "; ".join(dict.fromkeys(title(r["measure"], titles) for r in chance))
        lines.append(f"Neither base nor imitation is told apart from guessing in: {names}.")
    return lines


def verdict(rows: list[dict]) -> str:
    """The advice in one sentence."""
    style, knowledge = of(rows, "yes", "style"), of(rows, "yes", "knowledge")
    falls, local = of(rows, "it falls", "knowledge"), of(rows, "yes", "local")
    if knowledge:
        return (
            "Imitation raised knowledge here, which is not what the paper found: make sure by "
            "another seed and more questions before you pay for more."
        )
    if not style and not local:
        return (
            "Do not imitate with this base and so few answers: not even the teacher's manner was "
            "learned. Ask for more answers, or take a larger base."
        )
    words = []
    if style:
        words.append("Imitate for the manner: it was learned, and knowledge did not rise with it.")
    if local:
        words.append(
            "Imitate for the narrow task: local data raised it. Ask the teacher for that task "
            "rather than for everything."
        )
    if falls:
        words.append(
            "Broad imitation cost knowledge: mix the base's own text in (train.py --mix), or train "
            "less."
        )
    elif style:
        words.append("What the teacher knows and the base does not needs another base or data.")
    return " ".join(words)


def of_more_data(points: list[dict], titles: dict[str, str]) -> list[str]:
    """What the largest amount gave beside the smallest."""
    broad, *_ = findings.sources(points)
    amounts = sorted({p["amount"] for p in points if p["source"] == broad and p["amount"]})
    if broad is None or len(amounts) < 2:
        return []
    models, told = Models(points), []
    for measure in (*findings.STYLE, *findings.PREFERENCE, *KNOWN):
        row = models.against(Side(broad, least=True), Side(broad), measure)
        if row and row["difference"] is not None:
            told.append(f"{named(row | {'measure': measure}, titles)}: {row['verdict']}")
    few, many = (f"{n:,.0f}" for n in (amounts[0], amounts[-1]))
    return [f"From {few} to {many} answers: {'; '.join(told)}."] if told else []


def of_larger_base(rows: list[dict], points: list[dict], titles: dict[str, str]) -> str:
    """What a larger base gave, where several were named."""
    bases = sorted({(p["size"] or 0, p["base"]) for p in points if p["base"]})
    told = [r for r in rows if r["claim"] == "base" and r["difference"] is not None]
    if len(bases) < 2 or not told:
        return "Whether a larger base gives more was not asked: name several (--base SMALL LARGE)."
    better = [r for r in rows if r["claim"] == "better" and r["difference"] is not None]
    line = "; ".join(f"{named(r, titles)}: {r['verdict']}" for r in told)
    said = f"A larger base ({bases[-1][1]} instead of {bases[0][1]}) gives: {line}."
    if better:
        line = "; ".join(f"{named(r, titles)}: {r['verdict']}" for r in better)
        said += f" The larger base with the least data beside the smaller with the most: {line}."
    return said


def of_teacher(points: list[dict], titles: dict[str, str]) -> list[str]:
    """What there was to learn: the teacher's own scores beside the models'."""
    lines = []
    for measure in KNOWN:
        own = [p for p in points if p["measure"] == measure]
        teacher = [p for p in own if p["role"] == "teacher"]
        ours = [p["score"] for p in own if p["role"] != "teacher"]
        if teacher and ours:
            low, high = f"{100 * min(ours):.1f}", f"{100 * max(ours):.1f}"
            name, score = titles[measure].removesuffix(" (%)"), 100 * teacher[0]["score"]
            lines.append(f"{name}: teacher {score:.1f} %, our models {low} to {high} %")
    return [f"What there was to learn. {'; '.join(lines)}."] if lines else []


def of_seeds(points: list[dict]) -> str:
    """What the numbers hang on."""
    seeds = len({p["seed"] for p in points if p["role"] == "imitation"})
    shared = [p["n"] for p in points if p["measure"] == "unigram" and p["n"]]
    return (
        f"The style is of {max(shared, default=0)} held-out prompts, and each imitation of "
        f"{seeds} seed{'s' * (seeds != 1)}: intervals are over items, and another seed may differ."
    )


def sentences(
    folders: list[pathlib.Path], points: list[dict], rows: list[dict], titles: dict[str, str]
) -> list[str]:
    """The advice, a paragraph each. rows: of findings.compute."""
    if not rows:
        return findings.ending(rows)
    return [
        verdict(rows),
        *gains(rows, titles),
        *of_teacher(points, titles),
        *of_more_data(points, titles),
        of_larger_base(rows, points, titles),
        *(cost.sentence(cost.of_grid(folder)) for folder in folders),
        of_seeds(points),
        "What people prefer is not in this report until they have rated: the commands marked "
        '"by hand" in commands.sh serve the page.',
    ]
