"""Scorers that several evaluations share, with their intervals and paired tests. NumPy, no JAX.

    python -c "from tasks import scores; print(scores.wilson(87, 200))"    # 43.5 % right of 200

What one benchmark alone needs is in its own file. Left out: BLEU, preferences and agreement of
raters (study). Scores are shares from 0 to 1; intervals are (low, high), 95 % where nothing else is
said.
"""

import collections
import math
import re
import statistics
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

from decoding.records import TIE_NATS

if TYPE_CHECKING:  # at run time it is imported where arrays are: --help does without
    import numpy as np

    Numbers = Sequence | np.ndarray
else:
    Numbers = Sequence

Interval = tuple[float, float]

# --- text ---

PUNCTUATION = str.maketrans("", "", string.punctuation)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first place where any of the stop strings begins."""
    places = [at for at in map(text.find, stops) if at >= 0]
    return text[: min(places)] if places else text


def normalise(text: str) -> str:
    """Lower case without string.punctuation, the words a, an, the, and spare space (as SQuAD)."""
    words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(words.split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals any of the gold answers once both are normalised."""
    return normalise(prediction) in map(normalise, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The best F1 of the prediction's normalised words (as a bag) against one gold answer.

    Where one side has no words left, 1 if neither has and 0 otherwise (SQuAD 2.0's rule).
    """

    def f1(got, gold):
        if not got and not gold:
            return 1.0
        shared = (collections.Counter(got) & collections.Counter(gold)).total()
        return 2 * shared / (len(got) + len(gold))

    return max(f1(normalise(prediction).split(), normalise(a).split()) for a in answers)


# --- shares and confidence ---


def proportion(hits: int, n: int) -> dict:
    """Score, n and Wilson's interval of hits of n."""
    return {"score": hits / n, "n": n, "interval": wilson(hits, n)}


def mean(values: Numbers, weights: Numbers | None = None) -> float:
    """The mean, weighted where there are weights."""
    import numpy as np

    return float(np.average(values, weights=weights))


def share(verdicts: Sequence) -> dict:
    """Score, n and Wilson's interval of a share of right items."""
    return proportion(int(sum(verdicts)), len(verdicts))


def tally(numbers: Sequence[int]) -> dict[str, int]:
    """How often each number occurs, the largest number first."""
    counts = collections.Counter(numbers)
    return {str(k): counts[k] for k in sorted(counts, reverse=True)}


def close_calls(items: Sequence[dict], threshold: float = TIE_NATS) -> dict:
    """How many items' choices hang on less than `threshold` nats.

    Another batch size, mesh or machine may round those otherwise.
    """
    ties = sum(item["gap"] is not None and item["gap"] < threshold for item in items)
    return {"ties": ties, "tie_threshold_nats": threshold}


def expected_calibration_error(confidence: Numbers, correct: Numbers, bins: int = 15) -> float:
    """Mean distance of accuracy from confidence over equal bins of (0, 1], weighted by items.

    confidence [n] is the probability of the answer given, among the choices; correct [n] 0/1.
    Source: Guo et al. 2017, section 2 (their 15 bins).
    """
    import numpy as np

    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    assert len(confidence) == len(correct) > 0
    assert 0 <= confidence.min() and confidence.max() <= 1 + 1e-6
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    # items * (accuracy - confidence), a bin
    distance = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(distance).sum() / len(confidence))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of k samples passes, where c of n did.

    1 - C(n-c, k) / C(n, k), in exact integers. ValueError for k > n.
    Source: Chen et al. 2021, section 2.1; their product of floats is the same up to rounding.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} needs at least {k} samples of each problem, there are {n}: draw more (--n) "
            "or lower --k"
        )
    assert 0 <= c <= n
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets


# --- intervals and tests ---


def wilson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) where n is 0: nothing is known then."""
    assert 0 <= hits <= n
    if n == 0:
        return 0.0, 1.0
    z, p = statistics.NormalDist().inv_cdf((1 + confidence) / 2), hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact at 0 and n hits, where rounding would leave 1e-17.
    low = 0.0 if hits == 0 else (centre - half) / scale
    return low, 1.0 if hits == n else (centre + half) / scale


def bootstrap(
    values: Numbers,
    weights: Numbers | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of a mean over items: values [n], finite.

    With weights [n] > 0 it is the interval of sum(weights * values) / sum(weights), items drawn
    with their weights (perplexity: nats a token, weighted by tokens). ValueError where there is no
    item.
    """
    import numpy as np

    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        raise ValueError(
            "an interval needs at least one item, there is none: check the input and --limit"
        )
    assert np.isfinite(values).all()
    random = np.random.default_rng(seed)
    if weights is None:
        distinct, counts = np.unique(values, return_counts=True)
        if len(distinct) <= 64:
            # how many of each value are drawn is all that matters: the same law, fast
            drawn = random.multinomial(n, counts / n, size=resamples)
            return percentiles(drawn @ distinct / n, confidence)
        weights = np.ones(n)
    weights = np.asarray(weights, np.float64)
    assert len(weights) == n and (weights > 0).all()
    products, means = values * weights, []
    step = max(1, (1 << 21) // n)  # resamples at once: 16 MiB of indices
    for start in range(0, resamples, step):
        drawn = random.integers(0, n, size=(min(step, resamples - start), n))
        means.append(products[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    return percentiles(np.concatenate(means), confidence)


def percentiles(draws: Numbers, confidence: float = 0.95) -> Interval:
    """The middle `confidence` of the draws."""
    import numpy as np

    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_bootstrap(
    a: Numbers, b: Numbers, resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, Interval]:
    """mean(b) - mean(a) over the same items, and its bootstrap interval, drawn in pairs."""
    import numpy as np

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    interval = bootstrap(b - a, resamples=resamples, seed=seed, confidence=confidence)
    return float(np.mean(b - a)), interval


def mcnemar(a: Numbers, b: Numbers) -> tuple[int, int, float]:
    """Exact two-sided McNemar test of paired verdicts a, b [n] 0/1.

    -> (only a right, only b right, p). Under the null each item on which they differ is a fair
    coin; p is 1 where none differs. Integers throughout, so that thousands of such items neither
    overflow nor round to 0.
    """
    import numpy as np

    a, b = np.asarray(a, bool), np.asarray(b, bool)
    assert a.shape == b.shape
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n, term, tail = only_a + only_b, 1, 0
    for i in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (n - i) // (i + 1)  # C(n, i + 1)
    return only_a, only_b, min(1.0, 2 * tail / 2**n)
