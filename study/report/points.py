"""Labelled results -> points: one score of one model, and where it belongs in the figures.

A result directory (results.json of eval.py or of study's programs) is placed by its labels: base (a
name such as 7B), size (weights; read from the name where it says so), amount of imitation data and
its unit (None: tokens), source (mix, nq, ...), seed, role (base, imitation, teacher), part (which
of a task's items), world (the seed of an invented one). What is in no grid.json and has no --label
is named and left out; so is every run that a grid.json plans and that is not there.
Left out: tables and figures (tables.py, plots.py).
"""

import pathlib
import re
from collections.abc import Iterable

from host import files
from tasks import results

ROLES = ("base", "imitation", "teacher")
LABELS = ("base", "size", "amount", "source", "seed", "role", "part", "world", "unit")
# Measure -> (title, task, where in results.json, whether it is a share shown in percent). Behind an
# underscore: the part of a task's items that a label names ("read" is no part: it is the task).
MEASURES = {
    "rate": ("Raters: at least as good as the teacher (%)", "rate", (), True),
    "judge": ("Judge: at least as good as the teacher (%)", "judge", ("at_least_as_good",), True),
    "mmlu": ("MMLU (%)", "mmlu", (), True),
    "nq": ("Natural Questions, exact match (%)", "nq", (), True),
    "nq_told": ("Exact match, facts that imitation told (%)", "nq", (), True),
    "nq_unread": ("Exact match, facts never read (%)", "nq", (), True),
    "nq_own": ("Your questions, exact match (%)", "nq", (), True),
    "mmlu_own": ("Your questions, choices (%)", "mmlu", (), True),
    "knows": ("Knows: the right object is the likeliest (%)", "knows", (), True),
    "knows_told": ("Knows, facts that imitation told (%)", "knows", (), True),
    "knows_unread": ("Knows, facts never read (%)", "knows", (), True),
    "humaneval": ("HumanEval, pass@1 (%)", "humaneval", (), True),
    "humaneval_cut": ("HumanEval, cut at the code's end (%)", "humaneval", (), True),
    "toxicity": ("Mean non-toxicity (%)", "toxicity", (), True),
    "list": ("a list where the teacher has one (%)", "style", ("metrics", "list"), True),
    "summary": ("a summary where the teacher has one (%)", "style", ("metrics", "summary"), True),
    "unigram": ("unigram overlap with the teacher", "style", ("metrics", "unigram"), True),
    "length": ("length, Pearson's r", "style", ("metrics", "length"), False),
    "tone": ("authoritative tone (%)", "style", ("metrics", "tone"), True),
    "perplexity": ("Perplexity", "perplexity", (), False),
    "perplexity_heldout": ("Perplexity of held-out answers", "perplexity", (), False),
}
KNOWN = ("mmlu", "mmlu_own", "nq", "nq_own", "humaneval", "humaneval_cut")
BENCHMARKS = ("rate", "judge", *KNOWN, "toxicity", "perplexity")
FACTS = ("nq", "knows", "nq_told", "knows_told", "nq_unread", "knows_unread")
STYLE = ("list", "summary", "unigram", "length", "tone")


def count_of(text: str) -> float:
    """ "20M" -> 20e6. ValueError, one line, for what is no number."""
    number = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMbB]?)\s*", str(text))
    if not number:
        raise ValueError(f"{text!r} is no amount: write 300000, 0.3M or 20M")
    return float(number[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[number[2].lower()]


def read_label(text: str) -> tuple:
    """ "PATH=base=7B,tokens=20M,source=mix" -> (path, labels)."""
    path, _, rest = text.partition("=")
    pairs = [part.partition("=") for part in rest.split(",")]
    known = {"base", "size", "tokens", "source", "seed", "role", "part", "world"}
    if not path or any(not k or not v or k not in known for k, _, v in pairs):
        raise ValueError(
            f"--label {text}: write PATH=base=7B,tokens=20M,source=mix (also size, seed, role, "
            "part, world)"
        )
    return path, complete(
        {("amount" if k == "tokens" else k): v for k, _, v in pairs}, f"--label {text}"
    )


def complete(labels: dict, place: str) -> dict:
    """Labels with their types and defaults; ValueError names `place`."""
    full = {k: labels.get(k) for k in LABELS}
    unknown = sorted(set(labels) - set(LABELS))
    named = re.search(r"(\d+(?:\.\d+)?[kKmMbB])$", str(full["base"] or ""))
    try:
        full["amount"] = None if full["amount"] is None else count_of(full["amount"])
        full["seed"] = int(full["seed"] or 0)
        full["world"] = None if full["world"] is None else int(full["world"])
        size = full["size"] if full["size"] is not None else named and named[1]
        full["size"] = None if size is None else count_of(size)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None
    full["role"] = full["role"] or ("base" if full["amount"] is None else "imitation")
    nameless = full["role"] != "teacher" and not full["base"]
    amountless = full["role"] == "imitation" and full["amount"] is None
    if unknown or full["role"] not in ROLES or nameless or amountless:
        raise ValueError(
            f"{place}: labels are base (needed), size, tokens (needed for role imitation), source, "
            f"seed, role ({', '.join(ROLES)}), part, world"
            + (f"; not {unknown[0]}" if unknown else "")
        )
    if full["role"] == "imitation":
        full["source"] = full["source"] or "mix"
    return full


class Collection:
    """The result directories below some paths, and what the plans there say of them.

    labels, planned: {directory, resolved: its labels, its name in the plan}.
    """

    def __init__(self, paths):
        self.labels, self.planned, self.directories = {}, {}, []
        for path in map(pathlib.Path, paths):
            if not path.exists():
                raise ValueError(
                    f"{path} does not exist: name result directories, or folders of them"
                )
            for plan in sorted(path.rglob("grid.json")):
                for name, entry in read_plan(plan).items():
                    directory = (plan.parent / name).resolve()
                    own = {k: v for k, v in entry.items() if k in LABELS}
                    self.planned[directory] = entry.get("name", name)
                    self.labels[directory] = complete(own, f"{plan}, {name}")
            self.directories += [p.parent for p in sorted(path.rglob("results.json"))]

    def label(self, path: str | pathlib.Path, labels: dict) -> None:
        """Labels given by hand."""
        if not (pathlib.Path(path) / "results.json").is_file():
            raise ValueError(f"--label {path}: there is no {path}/results.json")
        self.labels[pathlib.Path(path).resolve()] = labels
        self.directories.append(pathlib.Path(path))

    def read(self) -> tuple:
        """(points, missing [names], notes [lines])."""
        points, missing, stray, samples = [], [], [], {}
        for place, directory in {d.resolve(): d for d in self.directories}.items():
            result, own = results.read_result(directory), self.labels.get(place)
            if own is None:
                drawn = result.get("task") in {m[1] for m in MEASURES.values()}
                if drawn and not re.fullmatch(r"step-\d+", directory.name):
                    stray.append(str(directory))
            elif result.get("finished") is False:
                missing.append(f"{self.planned.get(place, directory)} (not finished)")
            else:
                points += points_of(result, own, directory)
                sample = result.get("settings", {}).get("sample")
                if sample:
                    key = f"{result['task']}: {sample}"
                    samples.setdefault(key, []).append(str(directory))
        notes = [f"{text} ({len(of)} results, such as {of[0]})" for text, of in samples.items()]
        if stray:
            shown = ", ".join(stray[:5]) + (", ..." if len(stray) > 5 else "")
            notes.append(f"{len(stray)} results without labels are left out (--label): {shown}")
        missing += [n for p, n in self.planned.items() if not (p / "results.json").is_file()]
        return points, missing, notes


def gather(paths: Iterable[str | pathlib.Path], given: dict) -> tuple:
    """(points, missing [names], notes [lines]) of all results below the paths.

    given: {path: labels} of --label. A point: labels, "measure", "shots" (nq), "score", "n",
    "interval", "path". ValueError for a path that is not there and for two results in one place.
    """
    collection = Collection(paths)
    for path, own in given.items():
        collection.label(path, own)
    points, missing, notes = collection.read()
    points = merged(points, notes)
    paths_at = {}
    for p in points:
        place = (p["measure"], p["shots"], *(p[k] for k in LABELS))
        if place in paths_at:
            raise ValueError(
                f"{paths_at[place]} and {p['path']} have the same labels: give one another seed, "
                "or leave it out"
            )
        paths_at[place] = p["path"]
    return points, missing, notes


def read_plan(path: str | pathlib.Path) -> dict:
    """{result directory, relative: labels} of a grid.json."""
    try:
        plan = files.read_json(path)["results"]
        if all(isinstance(entry, dict) for entry in plan.values()):
            return plan
    except (ValueError, KeyError, AttributeError):
        pass
    raise ValueError(f"{path} is no plan of study.grid: write it again with `python -m study.grid`")


def commits_of(paths: Iterable[str | pathlib.Path]) -> list[str]:
    """A line on the code that each grid was run by, as far as its grid.json says."""
    lines = []
    for plan in (p for path in paths for p in sorted(pathlib.Path(path).rglob("grid.json"))):
        commits = files.read_json(plan).get("commits") or []
        if commits:
            lines.append(f"{plan.parent} was run by the code of commit {', '.join(commits)}")
    return lines


def about_of(paths: Iterable[str | pathlib.Path]) -> list[str]:
    """What the grids say of their runs, with their minutes and machines."""
    lines = []
    for plan in (p for path in paths for p in sorted(pathlib.Path(path).rglob("grid.json"))):
        entry = files.read_json(plan)
        lines += entry.get("about", [])
        minutes: dict[str, float] = {}
        for start in entry.get("took", []):
            minutes[start["machine"]] = minutes.get(start["machine"], 0) + start["minutes"]
        lines += [f"The runs took {n:.0f} minutes on {name}." for name, n in minutes.items()]
    return lines


def points_of(result: dict, labels: dict, directory: str | pathlib.Path) -> list[dict]:
    """The points of one result: one a measure of its task."""
    points, settings = [], result.get("settings", {})
    more = {"reader": settings["reader"]} if "reader" in settings else {}
    for measure, (_, task, where, _) in MEASURES.items():
        part = "" if labels["part"] in (None, "read") else f"_{labels['part']}"
        if task != result.get("task") or measure.removeprefix(task) not in (measure, part):
            continue
        sides = [(labels, result)]
        if task == "style" and "upper_bound" in result:
            # the teacher's second sample, measured like the model
            teacher = dict.fromkeys(LABELS) | {"role": "teacher", "seed": 0}
            teacher["world"] = labels["world"]
            sides.append((teacher, result["upper_bound"]))
        for own, value in sides:
            for key in where:
                value = (value or {}).get(key)
            if isinstance(value, dict) and value.get("score") is not None:
                points.append(
                    {
                        **own,
                        "measure": measure,
                        "shots": settings.get("shots") if task == "nq" else None,
                        "score": value["score"],
                        "n": value.get("n"),
                        "interval": value.get("interval"),
                        "path": str(directory),
                        **more,
                    }
                )
    return points


def unit_of(points: list[dict]) -> str:
    """What amounts of imitation data are counted in."""
    return next((p["unit"] for p in points if p.get("unit")), "tokens")


def merged(points: list[dict], notes: list[str]) -> list[dict]:
    """One point a world of the teacher's second sample, which every run measured against it has.

    A note where they differ.
    """
    first, kept = {}, []
    for p in points:
        key = p["measure"], p["world"]
        if p["role"] != "teacher" or p["measure"] not in STYLE:
            kept.append(p)
        elif key not in first:
            first[key] = p
            kept.append(p)
        elif first[key]["score"] != p["score"]:
            notes.append(
                f"the teacher's second sample differs between {first[key]['path']} "
                f"(shown) and {p['path']} in {p['measure']}"
            )
    return kept
