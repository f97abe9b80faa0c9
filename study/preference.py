"""What votes on pairs of answers say: majority, win / tie / lose, agreement, time; printed, and written as a result directory with votes.csv.

    python -m study.rate results --db votes.sqlite --out results/7b/rate
    python -m study.rate results --votes testset-v1.json       # PandaLM's votes: annotator1, annotator2, ...: 0 equal, 1 first, 2 second

A is under test, B the teacher. The majority of an item's votes (more than half) is its verdict; without one it is a tie. Items with fewer votes than planned are counted and left out.
The standard deviation is that of the items' 0/1 "A at least as good as B" (n - 1), the standard error that over sqrt(n). Left out: a model as the judge (judge.py).
"""

import collections
import csv
import io
import json
import pathlib

import numpy as np

from study import answers
from tasks import results, scores

VALUES = {"b": 0, "tie": 1, "a": 2}  # the order that the ordinal alpha needs
VERDICT = {"b": 0.0, "tie": 0.5, "a": 1.0}


def majority(votes):
    """The choice that more than half of the votes share, or None."""
    choice, count = collections.Counter(votes).most_common(1)[0]
    return choice if 2 * count > len(votes) else None


def alpha_ordinal(units, values=3):
    """Krippendorff's alpha of ordinal ratings; units: one list of values 0 .. values - 1 an item, of any length. None where nothing varies or no item has two.

    Items with one rating are left out. Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability": coincidences o_ck, and the ordinal metric
    (sum of n_g for g from c to k, less half of n_c and n_k) squared.
    """
    counts = np.array(
        [np.bincount(u, minlength=values) for u in units if len(u) > 1], float
    ).reshape(-1, values)
    return alpha_of_counts(counts)


def alpha_of_counts(counts):
    """The same from counts [items, values]: how many ratings of each value an item has (2 or more in all)."""
    each = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - np.einsum(
        "ic,ck->ick", counts, np.eye(counts.shape[1])
    )
    observed = (pairs / (each - 1)[:, None, None]).sum(0)
    n_c = observed.sum(1)
    up_to = np.cumsum(n_c)
    between = np.abs(
        up_to[:, None] - up_to[None, :]
    )  # n_g summed from behind the lower to the upper
    low = np.minimum.outer(np.arange(len(n_c)), np.arange(len(n_c)))
    metric = (between + n_c[low] - (n_c[:, None] + n_c[None, :]) / 2) ** 2
    np.fill_diagonal(metric, 0)
    expected = (n_c[:, None] * n_c[None, :] * metric).sum()
    return (
        None if expected == 0 else float(1 - (n_c.sum() - 1) * (observed * metric).sum() / expected)
    )


def alpha_interval(units, values=3, resamples=1000, seed=0):
    """95 % interval of alpha, items drawn anew; None where it cannot be had."""
    counts = np.array(
        [np.bincount(u, minlength=values) for u in units if len(u) > 1], float
    ).reshape(-1, values)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples if len(counts) > 1 else 0):
        value = alpha_of_counts(counts[rng.integers(0, len(counts), len(counts))])
        drawn += [] if value is None else [value]
    return tuple(float(x) for x in np.quantile(drawn, [0.025, 0.975])) if drawn else None


def summary(votes, per_item=3, min_gold=0.0, seed=0):
    """votes: dicts with item, rater, choice ("a" | "b" | "tie"), gold (or None), seconds (or None) -> (figures, items).

    Raters who got fewer than min_gold of their gold items right are left out, and named. ValueError where no item has per_item votes.
    """
    gold = collections.defaultdict(list)
    for v in votes:
        if v.get("gold"):
            gold[v["rater"]].append(v["choice"] == v["gold"])
    dropped = sorted(r for r, right in gold.items() if np.mean(right) < min_gold)
    kept = [v for v in votes if not v.get("gold") and v["rater"] not in dropped]
    by_item = collections.defaultdict(list)
    for v in kept:
        by_item[v["item"]].append(v)
    whole = {i: vs for i, vs in by_item.items() if len(vs) >= per_item}
    if not whole:
        raise ValueError(
            f"no item has {per_item} votes yet ({len(kept)} votes on {len(by_item)} items): rate on, or lower --min-gold"
        )
    items = []
    for name, vs in whole.items():
        chosen = majority([v["choice"] for v in vs])
        item = {
            "id": str(name),
            "prompt": vs[0].get("instruction"),
            "output": vs[0].get("a"),
            "teacher": vs[0].get("b"),
            "votes": {v["rater"]: v["choice"] for v in vs},
        }
        items.append(
            item
            | {
                "extracted": {
                    "a": "A better",
                    "b": "B better",
                    "tie": "equal",
                    None: "no majority: a tie",
                }[chosen],
                "verdict": VERDICT[chosen or "tie"],
                "majority": chosen,
            }
        )
    verdicts = np.array([i["verdict"] for i in items])
    good = (verdicts >= 0.5).astype(float)
    units = [[VALUES[v["choice"]] for v in vs] for vs in by_item.values()]
    seconds = [v["seconds"] for v in kept if v.get("seconds") is not None]
    deviation = float(good.std(ddof=1)) if len(good) > 1 else None
    return {
        "score": float(good.mean()),
        "n": len(items),
        "interval": scores.bootstrap(good, seed=seed),
        "unit": "at least as good as B",
        "win": int((verdicts == 1).sum()),
        "tie": int((verdicts == 0.5).sum()),
        "lose": int((verdicts == 0).sum()),
        "no_majority": sum(i["majority"] is None for i in items),
        "standard_deviation": deviation,
        "standard_error": None if deviation is None else deviation / len(good) ** 0.5,
        "win_rate": float(verdicts.mean()),
        "alpha_ordinal": alpha_ordinal(units),
        "alpha_interval": alpha_interval(units, seed=seed),
        "votes": len(kept),
        "incomplete_items": len(by_item) - len(whole),
        "raters": len({v["rater"] for v in kept}),
        "raters_left_out": dropped,
        "gold": {r: [sum(right), len(right)] for r, right in sorted(gold.items())},
        "first_shown_chosen": float(np.mean([v["choice"] == v["first"] for v in decided]))
        if (decided := [v for v in kept if v.get("first") and v["choice"] != "tie"])
        else None,
        "seconds_an_item": {
            "median": float(np.median(seconds)),
            "quartiles": [float(x) for x in np.quantile(seconds, [0.25, 0.75])],
        }
        if seconds
        else None,
    }, items


def read_votes(path):
    """Votes of PandaLM's form -> as summary() takes them, and the votes an item has. ValueError, one line, for another form."""
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        votes = []
        for n, row in enumerate(rows):
            raters = [k for k in row if k.startswith("annotator")]
            if len(raters) < 2 or any(row[k] not in (0, 1, 2) for k in raters):
                raise ValueError
            votes += [
                {
                    "item": row.get("idx", n),
                    "rater": k,
                    "choice": ("tie", "a", "b")[row[k]],
                    "gold": None,
                    "seconds": None,
                    "instruction": row.get("instruction"),
                    "a": row.get("response1"),
                    "b": row.get("response2"),
                }
                for k in raters
            ]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(
            f"{path} holds no votes: rows with annotator1, annotator2, ... (0 equal, 1 first, 2 second) are needed"
        ) from None
    if not votes:
        raise ValueError(f"{path} is empty: name a file of votes")
    return votes, min(collections.Counter(v["item"] for v in votes).values())


def lines(found, names=None):
    """The figures as text for a terminal."""
    a, b = (answers.printable((names or {}).get(k, k.upper())) for k in "ab")
    low, high = found["interval"]
    text = [
        f"A {a}, B {b}: {found['n']} items, {found['votes']} votes, {found['raters']} raters"
        + (
            f"; {found['incomplete_items']} items with too few votes left out"
            if found["incomplete_items"]
            else ""
        ),
        f"majority: win {found['win']}, tie {found['tie']} (no majority in {found['no_majority']}), lose {found['lose']}",
    ]
    spread = (
        ""
        if found["standard_deviation"] is None
        else f", standard deviation {found['standard_deviation']:.3f}, standard error {found['standard_error']:.3f}"
    )
    text.append(
        f"A at least as good as B: {found['score']:.3f} (95 % interval {low:.3f} to {high:.3f}){spread}; win rate with ties as half {found['win_rate']:.3f}"
    )
    if found["alpha_ordinal"] is not None:
        interval = (
            ""
            if found["alpha_interval"] is None
            else " (95 % interval {:.3f} to {:.3f})".format(*found["alpha_interval"])
        )
        text.append(f"Krippendorff's alpha (ordinal): {found['alpha_ordinal']:.3f}{interval}")
    else:
        text.append("Krippendorff's alpha: none, the votes do not vary")
    if found["seconds_an_item"]:
        text.append(
            "time an item: median {:.1f} s, quartiles {:.1f} to {:.1f} s".format(
                found["seconds_an_item"]["median"], *found["seconds_an_item"]["quartiles"]
            )
        )
    if found["first_shown_chosen"] is not None:
        text.append(
            f"the answer shown first was chosen in {found['first_shown_chosen']:.3f} of the decided votes"
        )
    text += [
        f"gold items: {answers.printable(r)} {right} of {n} right"
        + (" (left out)" if r in found["raters_left_out"] else "")
        for r, (right, n) in found["gold"].items()
    ]
    return text


def csv_text(votes):
    """Votes as CSV. A cell that a spreadsheet would run as a formula (=, +, -, @, tab, return at its beginning) gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out)
    columns = ("item", "source", "rater", "first", "choice", "gold", "seconds", "voted")
    writer.writerow(columns)
    for v in votes:
        cells = [
            "" if v.get(c) is None else f"{v[c]:.3f}" if isinstance(v[c], float) else str(v[c])
            for c in columns
        ]
        writer.writerow(
            [
                "'" + c
                if c[:1] in ("=", "+", "-", "@", "\t", "\r", "\n")
                and not isinstance(v.get(k), float)
                else c
                for k, c in zip(columns, cells, strict=True)
            ]
        )
    return out.getvalue()


def write(out, found, items, votes, names, settings):
    """The result directory: results.json, samples.jsonl, index.html, votes.csv."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "task": "rate",
        "settings": settings | {"teacher": names["b"]},
        "model": names["a"],
        "finished": True,
        **found,
    }
    if (out / "results.json").exists() and results.read_result(out).get("task") != "rate":
        raise ValueError(f"{out} holds a result of another task: name another --out")
    results.write_beside(out / "votes.csv", csv_text(votes))
    results.write_beside(out / "samples.jsonl", "".join(results.dumps(i) + "\n" for i in items))
    results.write_beside(out / "index.html", results.page(json.loads(results.dumps(result)), items))
    results.write_beside(out / "results.json", results.dumps(result, indent=2) + "\n")
    return result
