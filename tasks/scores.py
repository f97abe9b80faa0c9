"""The scorers of every evaluation as plain functions, and the intervals and paired tests beside them. NumPy, no JAX.

    python -c "import scores; print(scores.wilson(87, 200))"      # 43.5 % right of 200, and the 95 % interval

Left out: BLEU (study), preferences and agreement of raters (study), what makes prompts and runs models (eval).
Scores are shares from 0 to 1; intervals are (low, high) pairs of floats, 95 % where nothing else is said.
"""

import collections
import math
import re
import statistics
import string

import numpy as np

# ---- text ------------------------------------------------------------------------------------------------------------

NQ_STOPS = ("\n",)
NQ_STOPS_LLAMA = ("\n", ".", ",")  # LLaMA's own rule, an option since it cuts "U.S." and "1,000"
HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def cut_at(text, stops):
    """`text` up to the first place where any of the stop strings begins; the stop string itself is not kept."""
    found = [at for at in map(text.find, stops) if at >= 0]
    return text[: min(found)] if found else text


def nq_answer(output, stops=NQ_STOPS):
    """The short answer in what a model wrote after `A:`: up to a stop string, white space at both ends dropped."""
    return cut_at(output, stops).strip()


def normalise(text):
    """Lower case, string.punctuation dropped, the words a, an, the dropped, white space collapsed (as SQuAD)."""
    words = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(words.split())


def exact_match(prediction, answers):
    """Whether the prediction equals any of the gold answers (a list of str) once both are normalised."""
    return normalise(prediction) in map(normalise, answers)


def token_f1(prediction, answers):
    """The best F1 of the prediction's normalised words (as a bag) against those of one gold answer, 0 to 1.

    Where one side has no words left, 1 if neither has and 0 otherwise (SQuAD 2.0's rule).
    """

    def f1(got, gold):
        if not got and not gold:
            return 1.0
        shared = (collections.Counter(got) & collections.Counter(gold)).total()
        return 2 * shared / (len(got) + len(gold))

    return max(f1(normalise(prediction).split(), normalise(a).split()) for a in answers)


# ---- multiple choice -------------------------------------------------------------------------------------------------

# The 57 subjects by subcategory and the subcategories by category, from the benchmark's own categories.py.
SUBCATEGORIES = {
    "physics": "astronomy college_physics conceptual_physics high_school_physics",
    "chemistry": "college_chemistry high_school_chemistry",
    "biology": "college_biology high_school_biology",
    "computer science": "college_computer_science computer_security high_school_computer_science machine_learning",
    "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics "
    "high_school_statistics",
    "engineering": "electrical_engineering",
    "history": "high_school_european_history high_school_us_history high_school_world_history prehistory",
    "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy world_religions",
    "law": "international_law jurisprudence professional_law",
    "politics": "high_school_government_and_politics public_relations security_studies us_foreign_policy",
    "culture": "human_sexuality sociology",
    "economics": "econometrics high_school_macroeconomics high_school_microeconomics",
    "geography": "high_school_geography",
    "psychology": "high_school_psychology professional_psychology",
    "other": "global_facts miscellaneous professional_accounting",
    "business": "business_ethics management marketing",
    "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition "
    "professional_medicine virology",
}
CATEGORIES = {
    "STEM": ("physics", "chemistry", "biology", "computer science", "math", "engineering"),
    "humanities": ("history", "philosophy", "law"),
    "social sciences": ("politics", "culture", "economics", "geography", "psychology"),
    "other (business, health, misc.)": ("other", "business", "health"),
}
SUBCATEGORY = {
    subject: sub for sub, subjects in SUBCATEGORIES.items() for subject in subjects.split()
}
CATEGORY = {
    subject: category
    for subject, sub in SUBCATEGORY.items()
    for category, subs in CATEGORIES.items()
    if sub in subs
}


def multiple_choice(subjects, correct, seed=0):
    """Accuracy of multiple-choice answers: subjects [n] str and correct [n] 0/1, one of each a question.

    -> {"micro": m, "macro": m, "categories": {name: m}, "subcategories": {name: m}, "subjects": {name: m}} where m is
    {"score", "n", "interval"}. Micro is over all questions (the headline), macro the mean over the subjects that are
    there; a category is over all its questions. Wilson intervals; the macro's by drawing each subject anew.
    ValueError for a subject that is none of the 57.
    """
    tally = {}
    for subject, right in zip(subjects, correct, strict=True):
        hits, n = tally.get(subject, (0, 0))
        tally[subject] = (hits + bool(right), n + 1)
    unknown = sorted(set(tally) - set(SUBCATEGORY))
    if unknown:
        raise ValueError(
            f"subject {unknown[0]!r} is none of MMLU's 57: rename its file, or leave it out (--subjects)"
        )

    def measure(group):
        hits, n = (sum(tally[s][i] for s in group) for i in (0, 1))
        return {"score": hits / n, "n": n, "interval": wilson(hits, n)}

    def grouped(group_of):
        groups = {}
        for subject in sorted(tally):
            groups.setdefault(group_of[subject], []).append(subject)
        return {name: measure(group) for name, group in groups.items()}

    hits, n = np.array([tally[s] for s in sorted(tally)]).T
    drawn = (
        np.random.default_rng(seed).binomial(n, hits / n, size=(10_000, len(n))) / n
    )  # [resamples, subjects]
    macro = {
        "score": float(np.mean(hits / n)),
        "n": len(n),
        "interval": _percentiles(drawn.mean(axis=1)),
    }
    return {
        "micro": measure(list(tally)),
        "macro": macro,
        "categories": grouped(CATEGORY),
        "subcategories": grouped(SUBCATEGORY),
        "subjects": {s: measure([s]) for s in sorted(tally)},
    }


def expected_calibration_error(confidence, correct, bins=15):
    """Mean distance of accuracy from confidence over `bins` equal bins of (0, 1], weighted by their items.

    confidence [n] is the probability of the answer given, among the choices; correct [n] 0/1.
    Source: Guo et al. 2017, section 2 (their 15 bins).
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    assert (
        len(confidence) == len(correct) > 0
        and 0 <= confidence.min()
        and confidence.max() <= 1 + 1e-6
    )
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(
        bin_of, weights=correct - confidence, minlength=bins
    )  # items * (accuracy - confidence), a bin
    return float(np.abs(gap).sum() / len(confidence))


# ---- programs --------------------------------------------------------------------------------------------------------


def pass_at_k(n, c, k):
    """Unbiased chance that one of k samples passes, where c of n did: 1 - C(n-c, k) / C(n, k), in exact integers.

    ValueError for k > n. Source: Chen et al. 2021, section 2.1; their product of floats is the same up to rounding.
    """
    if not 1 <= k <= n:
        raise ValueError(
            f"pass@{k} needs at least {k} samples of each problem, there are {n}: draw more (--n) or "
            "lower --k"
        )
    assert 0 <= c <= n
    subsets = math.comb(n, k)
    return (subsets - math.comb(n - c, k)) / subsets


# ---- intervals and tests ---------------------------------------------------------------------------------------------


def wilson(hits, n, confidence=0.95):
    """Wilson's score interval of a proportion, hits of n; (0, 1) where n is 0, since nothing is known then."""
    assert 0 <= hits <= n
    if n == 0:
        return 0.0, 1.0
    z, p = statistics.NormalDist().inv_cdf((1 + confidence) / 2), hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # The ends are exact at 0 and n hits, where rounding would leave 1e-17.
    return 0.0 if hits == 0 else (centre - half) / scale, 1.0 if hits == n else (
        centre + half
    ) / scale


def bootstrap(values, weights=None, resamples=10_000, seed=0, confidence=0.95):
    """Percentile bootstrap interval of a mean over items: values [n], finite.

    With weights [n] > 0 it is the interval of sum(weights * values) / sum(weights), items drawn with their weights
    (perplexity: nats a token, weighted by tokens). ValueError where there is no item.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        raise ValueError(
            "an interval needs at least one item, there is none: check the input and --limit"
        )
    assert np.isfinite(values).all()
    rng = np.random.default_rng(seed)
    if weights is None:
        distinct, counts = np.unique(values, return_counts=True)
        if (
            len(distinct) <= 64
        ):  # how many of each value are drawn is all that matters: the same law, fast
            return _percentiles(
                rng.multinomial(n, counts / n, size=resamples) @ distinct / n, confidence
            )
        weights = np.ones(n)
    weights = np.asarray(weights, np.float64)
    assert len(weights) == n and (weights > 0).all()
    products, means = values * weights, []
    step = max(1, (1 << 21) // n)  # resamples at once: 16 MiB of indices
    for start in range(0, resamples, step):
        drawn = rng.integers(0, n, size=(min(step, resamples - start), n))
        means.append(products[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    return _percentiles(np.concatenate(means), confidence)


def _percentiles(draws, confidence=0.95):
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_bootstrap(a, b, resamples=10_000, seed=0, confidence=0.95):
    """mean(b) - mean(a) over the same items, and its bootstrap interval, drawn in pairs -> (float, (low, high))."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.mean(b - a)), bootstrap(
        b - a, resamples=resamples, seed=seed, confidence=confidence
    )


def mcnemar(a, b):
    """Exact two-sided McNemar test of paired verdicts a, b [n] 0/1 -> (only a right, only b right, p).

    Under the null each item on which they differ is a fair coin; p is 1 where none differs. Integers
    throughout, so that thousands of such items neither overflow nor round to 0.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    assert a.shape == b.shape
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n, term, tail = only_a + only_b, 1, 0
    for i in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (n - i) // (i + 1)  # C(n, i + 1)
    return only_a, only_b, min(1.0, 2 * tail / 2**n)
