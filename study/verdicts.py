"""What a judge's replies say: scores read out of reviews, both orders combined, position and length measured, agreement with people. Plain functions, NumPy.

    python -c "from study import verdicts; print(verdicts.read_scores('8 9\\nBoth answers …'))"

A verdict is 1.0 where A is better, 0.0 where B is, 0.5 for a tie, None where there is none (an error, or a reply that cannot be read): None is counted and
never taken for a tie. Left out: the endpoint (endpoint.py), files and commands (judge.py), majority and alpha of several raters (preference.py).
"""

import re

import numpy as np

from tasks import scores

NUMBER = r"(\d{1,2}(?:\.\d+)?)"
FIRST_LINE = re.compile(
    rf"\s*\(?\s*{NUMBER}(?:\s*/\s*10)?(?:\s*,\s*|\s+|\s*[|&]\s*){NUMBER}(?:\s*/\s*10)?\s*\)?\.?\s*"
)
TUPLE = re.compile(
    rf"(?:\b(?:tuple|scores?|output|result|answer)\b[^\n.]*?|^\W*)\(\s*{NUMBER}\s*,\s*{NUMBER}\s*\)",
    re.IGNORECASE | re.MULTILINE,
)
LINE = (
    r"(?:^|(?<=[.,;]\s)|(?<=and\s))\W*(?:Assistant\s+)?{n}(?:'s)?(?:\s+[Ss]core)?[*_]*\s*:[*_]*[ \t]*"
    + NUMBER
    + r"(?:[ \t]*/[ \t]*10)?(?=[ \t]*(?:$|[.(,;*–—-](?!\d)|and\b))"
)
SENTENCE = (
    r"Assistant\s+{n}(?:'s answer)?\s+(?:(?:a|the)\s+)?(?:overall\s+)?score\s+(?:of|is)\s+" + NUMBER
)


def read_scores(text):
    """(score of the first, of the second) in a review, 0 to 10, or None. Read from, in this order:

    the first line, where it is nothing but two numbers ("8 9", "8.5, 9", "(8, 9)"); else the last tuple named as the scores; the last "Assistant 1: 8" and
    "Assistant 2: 9/10"; "Assistant 1 a score of 10". Where two of the latter three are there and differ, there is no telling: None. Numbers of another kind
    (coordinates, steps of a calculation) are not scores.
    """
    first = next((line for line in (text or "").splitlines() if line.strip()), "")
    found = FIRST_LINE.fullmatch(first)
    if found:
        return _in_range(found[1], found[2])
    said = [(m[1], m[2]) for m in TUPLE.finditer(text or "")][-1:]
    for pattern, flags in ((LINE, re.MULTILINE), (SENTENCE, 0)):
        both = [re.findall(pattern.replace("{n}", n), text or "", flags) for n in ("1", "2")]
        if all(both):
            said.append((both[0][-1], both[1][-1]))
    pairs = {(float(a), float(b)) for a, b in said}
    return _in_range(*pairs.pop()) if len(pairs) == 1 else None


def _in_range(a, b):
    a, b = float(a), float(b)
    return (a, b) if 0 <= a <= 10 and 0 <= b <= 10 else None


CHOICE = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
ALONE = re.compile(
    r"\W*(?:(?:final )?(?:verdict|answer|choice)\W+(?:is\W+)?)?(A|B|C|tie)\W*", re.IGNORECASE
)


def read_choice(text):
    """1.0 (A), 0.0 (B), 0.5 (a tie, or C) or None in a reply to the A/B/tie prompt: the last [[A]], or the whole reply where it is the letter alone."""
    found = CHOICE.findall(text or "")
    found = found[-1] if found else (m[1] if (m := ALONE.fullmatch(text or "")) else None)
    return None if found is None else {"a": 1.0, "b": 0.0, "c": 0.5, "tie": 0.5}[found.lower()]


def of_scores(pair):
    """The verdict of a pair of scores, None of None."""
    return None if pair is None else 1.0 if pair[0] > pair[1] else 0.0 if pair[0] < pair[1] else 0.5


def combined(forward, backward):
    """The verdict of both orders, each already as of (A, B): a win only where both agree, else a tie; None where one is missing."""
    return None if forward is None or backward is None else forward if forward == backward else 0.5


# ------------------------------------------------------------------------------------------------------------------ shares


def share(hits, n):
    return {
        "score": hits / n if n else None,
        "n": n,
        "interval": scores.wilson(hits, n) if n else None,
    }


def position_and_length(judged):
    """judged: (verdict of the first shown 1.0 | 0.5 | 0.0, length of the first, of the second) of every reply -> the shares of decided replies that chose the
    first shown, and the longer answer (equal lengths left out).
    """
    decided = [(v, a, b) for v, a, b in judged if v in (0.0, 1.0)]
    unequal = [(v, a, b) for v, a, b in decided if a != b]
    return {
        "first_position": share(sum(v == 1.0 for v, _, _ in decided), len(decided)),
        "longer_answer": share(sum((v == 1.0) == (a > b) for v, a, b in unequal), len(unequal)),
    }


def win_rate(verdicts, seed=0):
    """Wins, ties, losses of A, and its win rate with ties as half -> dict with score, n, interval (bootstrap over items)."""
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


# ------------------------------------------------------------------------------------------------------- length controlled

RIDGE = 0.01  # of the slope alone: nothing beside 80 items (it moves a real rate by less than 0.1 points), and finite where length alone decides (the maximum likelihood has no slope then)


def logistic(x, y, weights=None, ridge=RIDGE, iterations=200):
    """Intercept and slope [R, 2] of weighted logistic regressions of y [n] in [0, 1] on x [n], by Newton's method; weights [R, n] >= 0, one fit a row (default
    one row of ones).

    Maximises sum w (y log p + (1 - y) log(1 - p)) - ridge/2 slope². A row whose y are all 0 (or all 1) has no maximum: its intercept is -inf (inf) and its slope 0.
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


def length_controlled(verdicts, length_a, length_b, resamples=2000, seed=0):
    """A's win rate as if both answers were equally long: logistic regression of the verdict on the length difference, read at zero.

    The difference (in characters) is divided by its standard deviation and not centred: zero stays zero. A tie counts as half a win. -> {"score", "n",
    "interval" (bootstrap over items), "slope" (log-odds of winning for one standard deviation more length), "sd" (characters)}. Source: Dubois et al. 2024,
    Length-Controlled AlpacaEval, whose regression also has a term an instruction; this one does not.
    """
    y, d = (
        np.asarray(verdicts, np.float64),
        np.asarray(length_a, np.float64) - np.asarray(length_b, np.float64),
    )
    if len(y) == 0:
        return {"score": None, "n": 0, "interval": None, "slope": None, "sd": None}
    sd = float(d.std())
    x = d / sd if sd else d
    read = lambda b: 1 / (1 + np.exp(-b[:, 0]))
    fit = logistic(x, y)
    rng, drawn = np.random.default_rng(seed), []
    step = max(1, (1 << 20) // len(y))
    for start in range(0, resamples, step):
        weights = rng.multinomial(
            len(y), np.full(len(y), 1 / len(y)), size=min(step, resamples - start)
        )
        drawn.append(read(logistic(x, y, weights)))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return {
        "score": float(read(fit)[0]),
        "n": len(y),
        "interval": (float(low), float(high)),
        "slope": float(fit[0, 1]),
        "sd": sd,
    }


# --------------------------------------------------------------------------------------------------------------- agreement


def agreement(a, b, resamples=10_000, seed=0):
    """Two lists of verdicts over the same items -> {"n", "accuracy": (value, interval), "kappa": (value, interval), "confusion": [3][3], rows a, columns b, in
    the order lose, tie, win}.

    Cohen's kappa over the three verdicts: (observed - chance) / (1 - chance); None where chance agreement is 1. Intervals by bootstrap over items, drawn as
    cells of the table: the same law.
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
    interval = lambda v: tuple(float(q) for q in np.quantile(v, [0.025, 0.975])) if len(v) else None
    accuracy = lambda c: np.trace(c, axis1=1, axis2=2) / n
    return {
        "n": n,
        "accuracy": (float(accuracy(cells[None])[0]), interval(accuracy(draws))),
        "kappa": (float(kappa[0]), interval(kappas)) if np.isfinite(kappa[0]) else (None, None),
        "confusion": cells.astype(int).tolist(),
    }


def _kappa(cells):
    p = cells / cells.sum(axis=(1, 2), keepdims=True)
    observed, chance = np.trace(p, axis1=1, axis2=2), (p.sum(1) * p.sum(2)).sum(1)
    return np.where(chance < 1, (observed - chance) / np.where(chance < 1, 1 - chance, 1), np.nan)
