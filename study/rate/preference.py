"""What votes on pairs of answers say: majority, win / tie / lose, agreement, time.

    python -m study.rate results --db votes.sqlite --out results/7b/rate
    python -m study.rate results --votes testset-v1.json       # the same of PandaLM's votes

A is under test, B the teacher. The majority of an item's votes (more than half) is its verdict;
without one it is a tie. Items with fewer votes than planned are counted and left out. The standard
deviation is that of the items' 0/1 "A at least as good as B" (n - 1), the standard error that over
sqrt(n). Left out: a model as the judge (study.judge).
"""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from host import files
from study import answers
from tasks import results, scores
from tasks.page import page as result_page
from web.votes import Store

VALUES = {"b": 0, "tie": 1, "a": 2}  # the order that the ordinal alpha needs
VERDICT = {"b": 0.0, "tie": 0.5, "a": 1.0}
SAID = {"a": "A better", "b": "B better", "tie": "equal", None: "no majority: a tie"}


def majority(votes: list) -> Any:
    """The choice that more than half of the votes share, or None."""
    choice, count = collections.Counter(votes).most_common(1)[0]
    return choice if 2 * count > len(votes) else None


def alpha_ordinal(units: Iterable[list[int]], values: int = 3) -> float | None:
    """Krippendorff's alpha of ordinal ratings; units: one list of values 0 ..

    values - 1 an item, of any length. None where nothing varies or no item has two.

    Items with one rating are left out. Source: Krippendorff 2011, "Computing Krippendorff's
    alpha-reliability": coincidences o_ck, and the ordinal metric (sum of n_g for g from c to k,
    less half of n_c and n_k) squared.
    """
    counts = np.array(
        [np.bincount(u, minlength=values) for u in units if len(u) > 1], float
    ).reshape(-1, values)
    return alpha_of_counts(counts)


def alpha_of_counts(counts: np.ndarray) -> float | None:
    """The same from counts [items, values]: how many ratings of each value an item has (2 or more
    in all).
    """
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


def alpha_interval(
    units: Iterable[list[int]], values: int = 3, resamples: int = 1000, seed: int = 0
) -> tuple | None:
    """95 % interval of alpha, items drawn anew; None where it cannot be had."""
    counts = np.array(
        [np.bincount(u, minlength=values) for u in units if len(u) > 1], float
    ).reshape(-1, values)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(resamples if len(counts) > 1 else 0):
        value = alpha_of_counts(counts[rng.integers(0, len(counts), len(counts))])
        drawn += [] if value is None else [value]
    return tuple(float(x) for x in np.quantile(drawn, [0.025, 0.975])) if drawn else None


def without_bad_raters(votes: list[dict], min_gold: float) -> tuple:
    """(votes on ordinary items, {rater: whether each gold item was right}, raters left out)."""
    gold = collections.defaultdict(list)
    for v in votes:
        if v.get("gold"):
            gold[v["rater"]].append(v["choice"] == v["gold"])
    dropped = sorted(r for r, right in gold.items() if np.mean(right) < min_gold)
    kept = [v for v in votes if not v.get("gold") and v["rater"] not in dropped]
    return kept, dict(gold), dropped


def item_of(name: str, votes: list[dict]) -> dict:
    """One item with its votes: their majority, and what it says of A."""
    chosen = majority([v["choice"] for v in votes])
    return {
        "id": str(name),
        "prompt": votes[0].get("instruction"),
        "output": votes[0].get("a"),
        "teacher": votes[0].get("b"),
        "votes": {v["rater"]: v["choice"] for v in votes},
        "extracted": SAID[chosen],
        "verdict": VERDICT[chosen or "tie"],
        "majority": chosen,
    }


def summary(votes: list[dict], per_item: int = 3, min_gold: float = 0.0, seed: int = 0) -> tuple:
    """(figures, items) of votes: dicts with item, rater, choice, gold, seconds.

    choice: "a", "b" or "tie". gold: what it should be, or None. seconds: or None. Raters who got
    fewer than min_gold of their gold items right are left out, and named. ValueError where no item
    has per_item votes.
    """
    kept, gold, dropped = without_bad_raters(votes, min_gold)
    by_item = collections.defaultdict(list)
    for v in kept:
        by_item[v["item"]].append(v)
    items = [item_of(i, vs) for i, vs in by_item.items() if len(vs) >= per_item]
    if not items:
        raise ValueError(
            f"no item has {per_item} votes yet ({len(kept)} votes on {len(by_item)} items): rate "
            "on, or lower --min-gold"
        )
    verdicts = np.array([i["verdict"] for i in items])
    good = (verdicts >= 0.5).astype(float)
    units = [[VALUES[v["choice"]] for v in vs] for vs in by_item.values()]
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
        "incomplete_items": len(by_item) - len(items),
        "raters": len({v["rater"] for v in kept}),
        "raters_left_out": dropped,
        "gold": {r: [sum(right), len(right)] for r, right in sorted(gold.items())},
        "first_shown_chosen": first_shown(kept),
        "seconds_an_item": quartiles([v["seconds"] for v in kept if v.get("seconds") is not None]),
    }, items


def first_shown(votes: list[dict]) -> float | None:
    """Share of the decided votes that chose the answer shown first; None where none is known."""
    decided = [v for v in votes if v.get("first") and v["choice"] != "tie"]
    return float(np.mean([v["choice"] == v["first"] for v in decided])) if decided else None


def quartiles(seconds: list[float]) -> dict | None:
    if not seconds:
        return None
    low, high = np.quantile(seconds, [0.25, 0.75])
    return {"median": float(np.median(seconds)), "quartiles": [float(low), float(high)]}


def read_votes(path: str | pathlib.Path) -> tuple:
    """(votes as summary() takes them, the votes an item has) of a file of PandaLM's form.

    ValueError, one line, for another form.
    """
    try:
        rows = answers.rows_of(path)
    except ValueError as error:
        raise ValueError(f"{path} holds no votes ({error})") from None
    votes = []
    for n, (place, row) in enumerate(rows):
        raters = [k for k in row if k.startswith("annotator")]
        if len(raters) < 2 or any(row[k] not in (0, 1, 2) for k in raters):
            raise ValueError(
                f"{path} holds no votes ({place}): rows with annotator1, annotator2, ... (0 equal, "
                "1 first, 2 second) are needed"
            )
        for k in raters:
            votes.append(
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
            )
    return votes, min(collections.Counter(str(v["item"]) for v in votes).values())


def lines(figures: dict, names: dict[str, str] | None = None) -> list:
    """The figures as text for a terminal."""
    a, b = (answers.plain_name((names or {}).get(k, k.upper())) for k in "ab")
    low, high = figures["interval"]
    incomplete = figures["incomplete_items"]
    text = [
        f"A {a}, B {b}: {figures['n']} items, {figures['votes']} votes, {figures['raters']} raters"
        + (f"; {incomplete} items with too few votes left out" if incomplete else ""),
        f"majority: win {figures['win']}, tie {figures['tie']} (no majority in "
        f"{figures['no_majority']}), lose {figures['lose']}",
    ]
    spread = ""
    if figures["standard_deviation"] is not None:
        spread = (
            f", standard deviation {figures['standard_deviation']:.3f}, standard error "
            f"{figures['standard_error']:.3f}"
        )
    text.append(
        f"A at least as good as B: {figures['score']:.3f} (95 % interval {low:.3f} to {high:.3f})"
        f"{spread}; win rate with ties as half {figures['win_rate']:.3f}"
    )
    alpha = "none, the votes do not vary"
    if figures["alpha_ordinal"] is not None:
        alpha = f"{figures['alpha_ordinal']:.3f}"
        if figures["alpha_interval"] is not None:
            alpha += " (95 % interval {:.3f} to {:.3f})".format(*figures["alpha_interval"])
        text.append(f"Krippendorff's alpha (ordinal): {alpha}")
    else:
        text.append(f"Krippendorff's alpha: {alpha}")
    if figures["seconds_an_item"]:
        text.append(
            "time an item: median {:.1f} s, quartiles {:.1f} to {:.1f} s".format(
                figures["seconds_an_item"]["median"], *figures["seconds_an_item"]["quartiles"]
            )
        )
    if figures["first_shown_chosen"] is not None:
        text.append(
            f"the answer shown first was chosen in {figures['first_shown_chosen']:.3f} of the "
            "decided votes"
        )
    for rater, (right, n) in figures["gold"].items():
        left_out = " (left out)" if rater in figures["raters_left_out"] else ""
        text.append(f"gold items: {answers.plain_name(rater)} {right} of {n} right{left_out}")
    return text


# --- files ---

COLUMNS = ("item", "source", "rater", "first", "choice", "gold", "seconds", "voted")


def csv_text(votes: list[dict]) -> str:
    """Votes as CSV; a text that a spreadsheet would run as a formula gets an apostrophe first."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for vote in votes:
        writer.writerow([csv_cell(vote.get(c)) for c in COLUMNS])
    return out.getvalue()


def csv_cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else text


def write(
    out: str | pathlib.Path,
    figures: dict,
    items: list[dict],
    votes: list[dict],
    names: dict[str, str],
    settings: dict,
) -> dict:
    """The result directory: results.json, samples.jsonl, index.html, votes.csv."""
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "task": "rate",
        "settings": settings | {"teacher": names["b"]},
        "model": names["a"],
        "finished": True,
        **figures,
    }
    if (out / "results.json").exists() and results.read_result(out).get("task") != "rate":
        raise ValueError(f"{out} holds a result of another task: name another --out")
    files.write_whole(out / "votes.csv", csv_text(votes))
    files.write_whole(out / "samples.jsonl", "".join(files.dumps(i) + "\n" for i in items))
    files.write_whole(out / "index.html", result_page(json.loads(files.dumps(result)), items))
    files.write_json(out / "results.json", result)
    return result


def pairs_of(votes: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """{(name of A, name of B): votes}: one pair of a rating, the pairs that a talk compared."""
    pairs = collections.defaultdict(list)
    for vote in votes:
        pairs[vote["models"]["a"], vote["models"]["b"]].append(vote)
    return dict(pairs)


def choose_pair(pairs: dict, wanted: list[str] | None, db: str, out: object) -> dict:
    """The pairs to report; ValueError where the wanted is not there, or `out` needs one."""
    listed = "; ".join(" ".join(map(answers.plain_name, pair)) for pair in pairs)
    if wanted:
        if tuple(wanted) not in pairs:
            raise ValueError(f"{db} has no votes on --pair {' '.join(wanted)}: it has {listed}")
        return {tuple(wanted): pairs[tuple(wanted)]}
    if out and len(pairs) > 1:
        raise ValueError(f"{db} has votes on {len(pairs)} pairs: choose with --pair: {listed}")
    return pairs


def report(
    db: str | None,
    votes_file: str | None,
    min_gold: float,
    seed: int,
    out: str | pathlib.Path | None,
    pair: list[str] | None = None,
) -> None:
    """The command: print what the votes say, and write it where `out` is given.

    pair: the names of A and B, of a talk in which more than two were compared.
    """
    if db:
        store = Store(db)
        votes, per_item = store.votes(), store.per_item
        pairs = pairs_of(votes) or {(store.names["a"], store.names["b"]): []}
        settings = {"db": db, "fingerprint": store.meta["fingerprint"]}
    else:
        votes, per_item = read_votes(votes_file)
        pairs = {("first", "second"): votes}
        settings = {"votes_file": votes_file, "fingerprint": answers.fingerprint(votes_file)}
    settings |= {"raters_per_item": per_item, "min_gold": min_gold, "seed": seed}
    for (a, b), votes in choose_pair(pairs, pair, str(db or votes_file), out).items():
        names = {"a": a, "b": b}
        figures, items = summary(votes, per_item, min_gold, seed)
        print("\n".join(lines(figures, names)))
        if out:
            write(out, figures, items, votes, names, settings)
            print(f"{out}/results.json, samples.jsonl, index.html, votes.csv")
