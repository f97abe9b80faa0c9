"""Intervals of a difference between models: over the items of one world, or over worlds and items.

Left out: which models are compared, and what is said of it (findings.py).
"""

from collections.abc import Sequence

import numpy as np

from tasks import scores

MATTERS = 0.05
DRAWS = 10_000


def difference(a: list[dict], b: list[dict]) -> dict:
    """Items' values of two groups of seeds -> {item: mean of b - mean of a} over the items that all
    have. a, b: lists of {item: value}.
    """
    shared = set.intersection(*map(set, [*a, *b]))
    return {i: float(np.mean([x[i] for x in b]) - np.mean([x[i] for x in a])) for i in shared}


def pool(rows: list[dict]) -> np.ndarray:
    """[{item: difference}], one a base -> the means over bases of the items that all have."""
    rows = [r for r in rows if r]
    items = sorted(set.intersection(*map(set, rows)), key=str) if rows else []
    return np.array([np.mean([r[i] for r in rows]) for i in items])


def mixed(worlds: Sequence[np.ndarray], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of the worlds' means, by a bootstrap of two levels.

    Each draw takes as many worlds as there are, with replacement, and the items of each with
    replacement. The worlds' means are first moved apart by sqrt(W / (W - 1)), since W draws from W
    worlds vary less than W new worlds would. One world: a bootstrap over its items.
    """
    if len(worlds) == 1:
        low, high = scores.bootstrap(worlds[0], seed=seed)
        return float(low), float(high)
    dice, W = np.random.default_rng(seed), len(worlds)
    means = np.array([d.mean() for d in worlds])
    apart = means.mean() + (means - means.mean()) * np.sqrt(W / (W - 1))
    noise = np.stack(
        [d[dice.integers(len(d), size=(DRAWS, len(d)))].mean(axis=1) - d.mean() for d in worlds]
    )
    picked = dice.integers(W, size=(DRAWS, W))
    drawn = apart[picked] + np.stack(
        [noise[picked[:, k], dice.permutation(DRAWS)] for k in range(W)], axis=1
    )
    low, high = scores.percentiles(drawn.mean(axis=1))
    return float(low), float(high)


def judge(worlds: Sequence[np.ndarray]) -> dict | None:
    """Items' differences, one array a world -> {"difference", "interval", "n", "verdict"}.

    None where there is nothing to judge.
    """
    worlds = [d for d in worlds if len(d) > 1]
    if not worlds:
        return None
    means = [float(d.mean()) for d in worlds]
    low, high = mixed(worlds)
    rises, small = low > 0 and min(means) > 0, high < MATTERS and max(means) < MATTERS
    verdict = "yes" if rises else "no" if small else "unclear"
    return {
        "difference": float(np.mean(means)),
        "interval": (low, high),
        "n": sum(map(len, worlds)),
        "verdict": verdict + (", it falls" if small and high < 0 else ""),
    }
