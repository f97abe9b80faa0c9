"""What verdicts mean together: both orders combined, position and length measured, agreement.

    python -c "from study.judge import verdicts; print(verdicts.combined(1.0, 0.5))"

A verdict is 1.0 where A is better, 0.0 where B is, 0.5 for a tie, None where there is none (an
error, or a reply that cannot be read): None is counted and never taken for a tie. Plain functions,
NumPy. Left out: reading replies (replies.py), files and commands (asking.py and its neighbours),
majority and alpha of several raters (study/rate/preference.py).
"""

from collections.abc import Sequence

import numpy as np

from tasks import scores


def of_scores(pair: tuple[float, float] | None) -> float | None:
    """The verdict of a pair of scores, None of None."""
    if pair is None:
        return None
    return 0.5 if pair[0] == pair[1] else float(pair[0] > pair[1])


def combined(forward: float | None, backward: float | None) -> float | None:
    """The verdict of both orders, each already as of (A, B).

    A win only where both agree, else a tie; None where one is missing.
    """
    if forward is None or backward is None:
        return None
    return forward if forward == backward else 0.5


# --- shares ---


def share(hits: int, n: int) -> dict:
    return {
        "score": hits / n if n else None,
        "n": n,
        "interval": scores.wilson(hits, n) if n else None,
    }


def position_and_length(judged: list[tuple[float, int, int]]) -> dict:
    """judged: (verdict of the first shown 1.0 | 0.5 | 0.0, length of the first, of the second) of
    every reply -> the shares of decided replies that chose the first shown, and the longer
    answer (equal lengths left out).
    """
    decided = [(v, a, b) for v, a, b in judged if v in (0.0, 1.0)]
    unequal = [(v, a, b) for v, a, b in decided if a != b]
    return {
        "first_position": share(sum(v == 1.0 for v, _, _ in decided), len(decided)),
        "longer_answer": share(sum((v == 1.0) == (a > b) for v, a, b in unequal), len(unequal)),
    }


def win_rate(verdicts: Sequence[float] | np.ndarray, seed: int = 0) -> dict:
    """Wins, ties, losses of A, and its win rate with ties as half -> dict with score, n, interval
    (bootstrap over items).
    """
    v = np.asarray(verdicts, np.float64)
    if not len(v):
        return {"score": None, "n": 0, "interval": None, "win": 0, "tie": 0, "lose": 0}
    return {
        "score": float(v.mean()),
        "n": len(v),
        "interval": scores.bootstrap(v, seed=seed),
        "win": int((v == 1).sum()),
        "tie": int((v == 0.5).sum()),
        "lose": int((v == 0).sum()),
    }


# --- length controlled ---

# of the slope alone: nothing beside 80 items (it moves a real rate by less than 0.1 points), and
# finite where length alone decides (the maximum likelihood has no slope then)
RIDGE = 0.01


def logistic(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    weights: np.ndarray | None = None,
    ridge: float = RIDGE,
    iterations: int = 200,
) -> np.ndarray:
    """Intercept and slope [R, 2] of weighted logistic regressions of y [n] in [0, 1] on x [n], by
    Newton's method; weights [R, n] >= 0, one fit a row (default one row of ones).

    Maximises sum w (y log p + (1 - y) log(1 - p)) - ridge/2 slope². A row whose y are all 0 (or all
    1) has no maximum: its intercept is -inf (inf) and its slope 0.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    w = np.ones((1, len(x))) if weights is None else np.asarray(weights, np.float64)
    b = np.zeros((len(w), 2))
    total, hits = w.sum(1), w @ y
    sure = (hits <= 0) | (hits >= total)
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-(b[:, :1] + b[:, 1:] * x)))
        r, s = w * (y - p), w * p * (1 - p)
        g = np.stack([r.sum(1), r @ x - ridge * b[:, 1]], 1)
        if (np.abs(g[~sure]) < 1e-9 * max(len(x), 1)).all():
            break
        h00, h01, h11 = s.sum(1), s @ x, s @ x**2 + ridge
        det = np.maximum(h00 * h11 - h01**2, 1e-12)
        step = (
            np.stack([h11 * g[:, 0] - h01 * g[:, 1], h00 * g[:, 1] - h01 * g[:, 0]], 1)
            / det[:, None]
        )
        b += np.clip(step, -1, 1)  # a whole step may overshoot where p is near 0 or 1
        b[sure] = 0
    else:
        raise AssertionError("Newton's method did not converge")
    b[sure] = np.stack([np.where(hits[sure] <= 0, -np.inf, np.inf), np.zeros(sure.sum())], 1)
    return b


def length_controlled(
    verdicts: Sequence[float] | np.ndarray,
    length_a: Sequence[float] | np.ndarray,
    length_b: Sequence[float] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """A's win rate as if both answers were equally long: logistic regression of the verdict on the
    length difference, read at zero.

    The difference (in characters) is divided by its standard deviation and not centred: zero stays
    zero. A tie counts as half a win. -> {"score", "n", "interval" (bootstrap over items), "slope"
    (log-odds of winning for one standard deviation more length), "sd" (characters)}. Source: Dubois
    et al. 2024, Length-Controlled AlpacaEval, whose regression also has a term an instruction; this
    one does not.
    """
    y, d = (
        np.asarray(verdicts, np.float64),
        np.asarray(length_a, np.float64) - np.asarray(length_b, np.float64),
    )
    if len(y) == 0:
        return {"score": None, "n": 0, "interval": None, "slope": None, "sd": None}
    sd = float(d.std())
    x = d / sd if sd else d

    def rate_at_zero(b):
        return 1 / (1 + np.exp(-b[:, 0]))

    fit = logistic(x, y)
    rng, drawn = np.random.default_rng(seed), []
    step = max(1, (1 << 20) // len(y))
    for start in range(0, resamples, step):
        weights = rng.multinomial(
            len(y), np.full(len(y), 1 / len(y)), size=min(step, resamples - start)
        )
        drawn.append(rate_at_zero(logistic(x, y, weights)))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return {
        "score": float(rate_at_zero(fit)[0]),
        "n": len(y),
        "interval": (float(low), float(high)),
        "slope": float(fit[0, 1]),
        "sd": sd,
    }


# --- agreement ---


def agreement(
    a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> dict:
    """Two lists of verdicts over the same items -> {"n", "accuracy": (value, interval), "kappa":
    (value, interval), "confusion": [3][3], rows a, columns b, in the order lose, tie, win}.

    Cohen's kappa over the three verdicts: (observed - chance) / (1 - chance); None where chance
    agreement is 1. Intervals by bootstrap over items, drawn as cells of the table: the same law.
    """
    cells = np.zeros((3, 3))
    for x, y in zip(a, b, strict=True):
        cells[int(2 * x), int(2 * y)] += 1
    n = int(cells.sum())
    if n == 0:
        raise ValueError("no item has both verdicts: agreement needs the same ids on both sides")
    draws = (
        np.random.default_rng(seed)
        .multinomial(n, cells.ravel() / n, size=resamples)
        .reshape(-1, 3, 3)
    )
    kappa, kappas = _kappa(cells[None]), _kappa(draws)
    kappas = kappas[np.isfinite(kappas)]
    hits = np.trace(draws, axis1=1, axis2=2) / n
    known = bool(np.isfinite(kappa[0]))
    return {
        "n": n,
        "accuracy": (float(np.trace(cells) / n), _interval(hits)),
        "kappa": (float(kappa[0]), _interval(kappas)) if known else (None, None),
        "confusion": cells.astype(int).tolist(),
    }


def _interval(draws):
    if not len(draws):
        return None
    return tuple(float(q) for q in np.quantile(draws, [0.025, 0.975]))


def _kappa(cells):
    p = cells / cells.sum(axis=(1, 2), keepdims=True)
    observed, chance = np.trace(p, axis1=1, axis2=2), (p.sum(1) * p.sum(2)).sum(1)
    return np.where(chance < 1, (observed - chance) / np.where(chance < 1, 1 - chance, 1), np.nan)
