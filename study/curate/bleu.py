"""Sentence BLEU of every pair of texts, exactly, and for each text the most similar other one.

    python -c "from study.curate import bleu; print(bleu.nearest(['a cat sat', 'the cat sat']))"

The number is sacrebleu's sentence_bleu: tokenizer 13a, case kept, smoothing exp, effective order,
one reference; the maximum is over single references. How: a clipped match min(a, b) is the sum over
k of [a >= k][b >= k], so that the matches of all pairs are products of 0/1 matrices with a column
for each (n-gram, k): dense (BLAS) for columns that are common, sparse for the rare ones. The log of
the score is computed a tile at a time in float32; what comes within its error of the maximum is
computed again from the integer counts in float64, so nothing is approximate. Left out: several
references of one text, other tokenizers and smoothings.
"""

import collections
import concurrent.futures
import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import scipy.sparse
import threadpoolctl

ORDERS = 4
ROWS, COLUMNS = 256, 2048  # a tile: its arrays stay in the cache
# a column is dense where a sparse product would touch more than a 400th of the pairs: what one such
# touch costs against one multiplication
DENSE = 400
# logs of two scores closer than this are equal: the same score by another order of rounding
TIE = 1e-11


# --- one pair ---

# As in mteval-v13a.pl and sacrebleu; ASCII ranges, so that other scripts are cut at white space
# only.
CUTS = (
    (re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "),
    (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),  # full stop and comma unless a digit is before
    (re.compile(r"([\.,])([^0-9])"), r" \1 \2"),  # … or behind
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokenize(text: str) -> list[str]:
    """Tokens (str) of a text by the rules of 13a."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    text = f" {text} "
    for cut, by in CUTS:
        text = cut.sub(by, text)
    return text.split()


def score(matches: list[int], h: int, r: int) -> float:
    """BLEU in percent from the clipped matches of orders 1 to 4.

    h, r: tokens of hypothesis and reference. Source: sacrebleu's compute_bleu.
    """
    if not any(matches):
        return 0.0
    logs, halvings = [], 1.0
    for n in range(1, ORDERS + 1):
        total = h - n + 1
        if total <= 0:
            break
        if matches[n - 1] == 0:
            halvings *= 2
            logs.append(math.log(100.0 / (halvings * total)))
        else:
            logs.append(math.log(100.0 * matches[n - 1] / total))
    return (math.exp(1 - r / h) if h < r else 1.0) * math.exp(sum(logs) / len(logs))


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU in percent of one text against one other: the slow way, which `nearest` agrees with."""
    h, r = tokenize(hypothesis), tokenize(reference)
    matches = [(_grams(h, n) & _grams(r, n)).total() for n in range(1, ORDERS + 1)]
    return score(matches, len(h), len(r))


def _grams(tokens, n):
    return collections.Counter(zip(*(tokens[k:] for k in range(n)), strict=False))


# --- all pairs ---


def nearest(
    queries: list[str],
    references: list[str] | None = None,
    threads: int = 2,
    progress: Callable[[int], object] | None = None,
) -> tuple:
    """The highest BLEU of each query (as hypothesis) against single references: the other queries,
    or those given.

    queries, references: lists of str -> (scores float64 [n] in percent, index int64 [n] of that
    reference, the lowest where several are equal). Equal texts at different places are different
    queries. progress(pairs done) is called now and then; there are len(queries) * len(references)
    pairs.
    """
    alone = references is None
    if len(queries) < (2 if alone else 1) or (not alone and not references):
        raise ValueError(
            f"{len(queries)} queries against "
            f"{'each other' if alone else f'{len(references)} references'}: there is nothing to "
            "compare"
        )
    columns, h, r = features(queries, references)
    search = Search(columns, h, r, alone, max(1, min(ROWS, -(-len(h) // (4 * threads)))))
    starts, done = range(0, len(h), search.rows), 0
    with (
        threadpoolctl.threadpool_limits(1),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):  # NumPy, BLAS and scipy.sparse work without the interpreter's lock
        jobs = [pool.submit(search.tile, start) for start in starts]
        try:
            for job in concurrent.futures.as_completed(jobs):
                done += job.result()
                if progress:
                    progress(done)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
    order, index = search.by_h, search.index
    # without any match every score is 0, and the first reference is as near as any
    index = np.where(
        index >= 0, index, (np.arange(len(h))[order] == 0).astype(np.int64) if alone else 0
    )
    scores = np.array(
        [
            score(m, int(a), int(b))
            for m, a, b in zip(search.matches.tolist(), h[order], r[index], strict=True)
        ]
    )
    back = np.argsort(order)
    return scores[back], index[back]


def features(queries: list[str], references: list[str] | None) -> tuple:
    """([(queries' columns, references' columns)] of each order: CSR 0/1 matrices [texts, columns],
    tokens of the queries [n], tokens of the references [m]).
    """
    alone = references is None
    words, lengths, ids = {}, [], []
    for text in queries if alone else itertools.chain(queries, references):
        tokens = tokenize(text)
        lengths.append(len(tokens))
        ids.append(
            np.fromiter((words.setdefault(t, len(words)) for t in tokens), np.int64, len(tokens))
        )
    lengths, ids, n = np.array(lengths, np.int64), np.concatenate(ids), len(queries)
    text_of = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)[text_of] - np.arange(
        len(ids)
    )  # tokens from here to the end of the text
    out, grams, at = [], ids, np.arange(len(ids))
    for order in range(1, ORDERS + 1):
        if order > 1:
            at, grams = at[ends[at] >= order], grams[ends[at] >= order]
            grams = (
                np.unique(grams * len(words) + ids[at + order - 1], return_inverse=True)[1].reshape(
                    -1
                )
                if len(at)
                else grams
            )
        # An n-gram of one side only, or that is there once, matches nothing, and neither does a
        # longer one that begins with it.
        width, asks = int(grams.max(initial=-1)) + 1, text_of[at] < n
        matching = (
            np.bincount(grams, minlength=width) > 1
            if alone
            else (np.bincount(grams[asks], minlength=width) > 0)
            & (np.bincount(grams[~asks], minlength=width) > 0)
        )
        at, grams = at[matching[grams]], grams[matching[grams]]
        out.append(columns_of(text_of[at], grams, len(lengths), n, alone))
    h = lengths[:n]
    return out, h, h if alone else lengths[n:]


def columns_of(texts: np.ndarray, grams: np.ndarray, count: int, n: int, alone: bool) -> tuple:
    """0/1 matrices (queries [n, columns], references [m, columns]) of one order: a column for each
    n-gram and k, 1 where the text has it k times or more.
    """
    sort = np.argsort(texts * (grams.max(initial=0) + 1) + grams)
    texts, grams = texts[sort], grams[sort]
    new = np.ones(len(texts), bool)
    new[1:] = (texts[1:] != texts[:-1]) | (grams[1:] != grams[:-1])
    first = np.maximum.accumulate(np.where(new, np.arange(len(texts)), 0))
    k = np.arange(len(texts)) - first
    column = (
        np.unique(grams * (k.max(initial=0) + 1) + k, return_inverse=True)[1].reshape(-1)
        if len(texts)
        else grams
    )
    width, asks = int(column.max(initial=-1)) + 1, texts < n
    in_queries = np.bincount(column[asks], minlength=width)
    in_references = in_queries if alone else np.bincount(column[~asks], minlength=width)
    keep = (
        (in_queries > 1) if alone else (in_queries > 0) & (in_references > 0)
    )  # the others match nothing
    name = np.cumsum(keep) - 1
    shared = keep[column]
    matrix = scipy.sparse.csr_matrix(
        (np.ones(shared.sum(), np.float32), (texts[shared], name[column[shared]])),
        (count, int(keep.sum())),
    )
    return (matrix, matrix) if alone else (matrix[:n], matrix[n:])


class Search:
    """What the tiles share: queries and references sorted by length (texts of like length meet
    first, and lengths bound the score), their columns cut in dense and sparse, and for each
    query in that order the best so far: log score, index, matches.
    """

    def __init__(self, columns, h, r, alone, rows):
        self.rows, self.alone, self.by_h, self.by_r = (
            rows,
            alone,
            np.argsort(h, kind="stable"),
            np.argsort(r, kind="stable"),
        )
        self.h, self.r = h[self.by_h], r[self.by_r]
        self.order = np.clip(self.h, 1, ORDERS)  # effective
        # A zero at order n of E halves the orders n to E once more: its factor is 2^-(E-n+1).
        # (Zeros are the last orders: a match of n+1 is one of n.) No 1-gram: no score.
        self.floor = [
            np.where(n <= self.order, 0.0 if n == 1 else 2.0 ** -(self.order - n + 1.0), 1.0)[
                :, None
            ]
            for n in range(1, ORDERS + 1)
        ]
        self.parts = []
        for q, c in columns:
            q, c = q[self.by_h].tocsc(), c[self.by_r].tocsc()
            touched = np.diff(q.indptr).astype(np.float64) * np.diff(c.indptr) * DENSE > float(
                len(h)
            ) * len(r)
            common, rare = np.flatnonzero(touched), np.flatnonzero(~touched)
            rare_c = c[:, rare].tocsr()
            blocks = [rare_c[at : at + COLUMNS].T.tocsr() for at in range(0, len(r), COLUMNS)]
            self.parts.append(
                (q[:, common].toarray(), c[:, common].toarray().T, q[:, rare].tocsr(), blocks)
            )
        self.best = np.full(len(h), -np.inf)
        self.index = np.full(len(h), -1)
        self.matches = np.zeros((len(h), ORDERS), np.int64)

    def logs(
        self, matches: list[np.ndarray], rows: np.ndarray, r: np.ndarray, dtype: type
    ) -> np.ndarray:
        """log of score * constant of the query: the sum of the logs of the matches with their
        floors, and the brevity penalty. [rows, len(r)]; in dtype.
        """
        product = np.maximum(matches[0], self.floor[0][rows].astype(dtype))
        for m, floor in zip(matches[1:], self.floor[1:], strict=True):
            product *= np.maximum(m, floor[rows].astype(dtype))
        with np.errstate(divide="ignore"):
            np.log(product, out=product)
        h = self.h[rows][:, None]
        if len(r) and h.size and np.max(r) > h.min():
            over = 1 - r.astype(dtype) / np.maximum(h, 1).astype(dtype)
            product += np.minimum(over, 0, out=over) * self.order[rows][:, None].astype(dtype)
        return product

    def bound(self, rows: np.ndarray, low: int, high: int) -> np.ndarray:
        """What `logs` can be at most for references of `low` to `high` tokens, [rows]."""
        h, order, total = self.h[rows], self.order[rows], 0.0
        for n, floor in enumerate(self.floor, 1):
            with np.errstate(divide="ignore"):
                total = total + np.log(np.maximum(np.minimum(h, high) - n + 1, floor[rows, 0]))
        return total + order * np.minimum(0, 1 - low / np.maximum(h, 1))

    def tile(self, start: int) -> int:
        """Search all references for the queries start to start + self.rows -> how many pairs that
        was.
        """
        rows = np.arange(start, min(start + self.rows, len(self.h)))
        middle = self.h[rows[len(rows) // 2]]
        blocks = sorted(
            range(0, len(self.r), COLUMNS),
            key=lambda at: abs(int(self.r[min(at + COLUMNS // 2, len(self.r) - 1)]) - int(middle)),
        )
        for at in blocks:
            r = self.r[at : at + COLUMNS]
            some = rows[self.bound(rows, r[0], r[-1]) >= self.best[rows] - TIE]
            if len(some):
                self.block(some, at, r)
        return len(rows) * len(self.r)

    def block(self, rows: np.ndarray, at: int, r: np.ndarray) -> None:
        """Better references for some queries among the block of columns that starts at `at`."""
        matches = []
        for dense_q, dense_c, sparse_q, blocks in self.parts:
            m = blocks and (sparse_q[rows] @ blocks[at // COLUMNS]).toarray()
            matches.append(
                m + dense_q[rows] @ dense_c[:, at : at + COLUMNS] if dense_q.shape[1] else m
            )
        near = self.logs(matches, rows, r, np.float32)
        if self.alone:
            here = np.searchsorted(
                rows, np.arange(at, at + len(r))
            )  # sorted alike, so that a query meets itself where the numbers are the same
            here = np.minimum(here, len(rows) - 1)
            itself = np.flatnonzero(rows[here] == np.arange(at, at + len(r)))
            near[here[itself], itself] = -np.inf
        top = near.max(1).astype(np.float64)
        slack = 1e-4 + 4e-6 * np.abs(
            np.where(top > -np.inf, top, 0)
        )  # float32: rounding of the product, its log, and the length penalty, which may be large
        better = np.flatnonzero((top > -np.inf) & (top + slack >= self.best[rows]))
        if not len(better):
            return
        i, j = np.nonzero(near[better] >= (np.maximum(top, self.best[rows]) - slack)[better, None])
        if not len(i):
            return
        i = better[i]
        counts = np.stack([m[i, j] for m in matches], 1).round().astype(np.int64)
        exact, name = self.exact(counts, rows[i], r[j]), self.by_r[at + j]
        # the best of each query: highest, and of those within TIE of it the first
        highest = np.full(len(rows), -np.inf)
        np.maximum.at(highest, i, exact)
        tied = np.flatnonzero(exact >= highest[i] - TIE)
        tied = tied[np.lexsort((name[tied], i[tied]))]
        tied = tied[np.unique(i[tied], return_index=True)[1]]
        k, value, name = rows[i[tied]], exact[tied], name[tied]
        wins = (value > self.best[k] + TIE) | (
            (value >= self.best[k] - TIE) & (name < self.index[k])
        )
        k = k[wins]
        self.best[k], self.index[k], self.matches[k] = value[wins], name[wins], counts[tied[wins]]

    def exact(self, counts: np.ndarray, rows: np.ndarray, r: np.ndarray) -> np.ndarray:
        """`logs` in float64 of single pairs: counts [pairs, 4], rows and r [pairs]."""
        total = 0.0
        for n in range(ORDERS):
            total = total + np.log(np.maximum(counts[:, n], self.floor[n][rows, 0]))
        return total + self.order[rows] * np.minimum(0.0, 1 - r / self.h[rows])
