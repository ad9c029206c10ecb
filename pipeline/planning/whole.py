"""What a sample tells of the whole. All functions are pure.

Rows grow with the inputs. Rows without duplicates do not: the more is read, the more is a copy of what was read before.
And what balancing keeps grows slower still. So both are extrapolated, each in its own way.

**Duplicates** (`Growth`). The stage's own rules are applied to a quarter, a half and all of the sample. The share of
rows that stay falls from one doubling to the next. In a whole of images that are drawn evenly, the fall of one doubling
is h = ln(2 / (1 + q)), and the next one has q squared in place of q (the birthday problem: M (1 - exp(-n / M)) of M
images are seen in n draws). Where a few images have most copies, q changes less. Its power is measured between the two
doublings of the sample, and lies between 1 (each doubling costs the same: Heaps's law) and 2 (even draws).

**Balancing** (`Caps`). For a match of a row with a query, the sample holds k other matches of this query. The query's
count C over the whole is then known about: k is a Poisson number around (C - 1) / factor. The distribution of C over
all matches is fitted to the distribution of k (nonparametric empirical Bayes: Robbins 1956; by expectation
maximisation, Laird 1978), from one that is even in log C. This gives the expected probability min(1, cap / C) that the
query picks the row. The count itself would not do: a query that a small sample shows once seems to have 1 / share
matches, but nearly all such queries have far fewer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

LEAST_COINCIDENCES = 25  # duplicates that a doubling must show before its power is believed
USUAL_POWER = 1.4  # of q, where the sample shows too few of them
MOST_OTHERS = 60  # matches of a query in the sample; with more, the count is taken as it is
COUNTS = 240  # of the grid of log C
STEPS = 60  # of the fit
HALVES = 4  # random halves of the sample that are averaged
WIDE = 1.645  # standard errors on each side of an interval that holds nine of ten

Shares = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and the bounds that should hold it in nine of ten cases."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> Interval:
        """The interval of a multiple."""
        return Interval(self.low * factor, self.value * factor, self.high * factor)

    def of(self, share: Interval) -> Interval:
        """The interval of a share of this."""
        return Interval(self.low * share.low, self.value * share.value, self.high * share.high)

    def plus(self, other: Interval) -> Interval:
        """The interval of a sum. The errors are taken to go together."""
        return Interval(self.low + other.low, self.value + other.value, self.high + other.high)


NOTHING = Interval(0.0, 0.0, 0.0)


def ratio(amounts: Shares, rows: Shares, total: float) -> Interval:
    """The rows of a whole, from pieces of it.

    Args:
        amounts: of the whole that each piece covers: (pieces,).
        rows: of each piece: (pieces,).
        total: the whole, in the unit of the amounts.
    """
    covered = amounts.sum()
    if not covered:
        return NOTHING
    value, count = rows.sum() / covered * total, len(amounts)
    left = max(0.0, 1.0 - covered / total)
    if not left:
        return Interval(value, value, value)
    if count < 3:
        return Interval(value * (1 - 0.5 * left), value, value * (1 + left))
    residues = rows - rows.sum() / covered * amounts
    wide = WIDE * (1.0 + 1.5 / (count - 1))  # about Student's t
    error = wide * math.sqrt(left * count * residues.var(ddof=1)) * total / covered
    return Interval(max(float(rows.sum()), value - error), value, value + error)


@dataclasses.dataclass(frozen=True)
class Growth:
    """How the share of rows that stay falls with the number of rows.

    Attributes:
        share: of the whole sample that stays.
        before, last: the falls of its logarithm at the last doubling but one, and at the last one.
        coincidences: duplicates that the last doubling has shown, about.
    """

    share: float
    before: float
    last: float
    coincidences: float

    @classmethod
    def measure(cls, blocks: npt.NDArray[np.int64], stays: Callable[[npt.NDArray[np.bool_]], int]) -> Growth:
        """The growth of a sample.

        Args:
            blocks: the block of each row. A block is in a half of the sample or not, as a whole.
            stays: takes a mask of rows, and returns the number of rows that stay among them.
        """
        rows = len(blocks)
        if not rows:
            return cls(1.0, 0.0, 0.0, 0.0)
        _, number = np.unique(blocks, return_inverse=True)
        rng = np.random.default_rng(0)
        shares: dict[int, list[float]] = {2: [], 4: []}
        for _ in range(HALVES):
            lot = rng.permutation(number.max() + 1)[number]
            for parts, found in shares.items():
                mask = lot % parts == 0
                if mask.any():
                    found.append(stays(mask) / mask.sum())
        whole = stays(np.ones(rows, np.bool_)) / rows
        half, quarter = (float(np.mean(shares[parts])) if shares[parts] else whole for parts in (2, 4))
        if not whole or not half or not quarter:
            return cls(whole, 0.0, 0.0, 0.0)
        before, last = max(0.0, math.log(quarter / half)), max(0.0, math.log(half / whole))
        return cls(whole, before, last, last * rows * whole)

    def at(self, times: float) -> Interval:
        """The share that stays of a whole that is so many times larger than the sample."""
        if times <= 1.0 or not self.last:
            return Interval(self.share, self.share, self.share)
        known = self.coincidences >= LEAST_COINCIDENCES
        power = min(2.0, max(1.0, _power(self.before, self.last))) if known else USUAL_POWER
        spread = min(0.5, 3.0 / math.sqrt(max(1.0, self.coincidences)) + 0.15)
        found = [
            self.share * math.exp(-_fall(self.last, min(2.0, max(1.0, power + more)), math.log2(times)))
            for more in (spread, 0.0, -spread)
        ]
        return Interval(*found)


def _power(before: float, last: float) -> float:
    first, second = (2.0 * math.exp(-fall) - 1.0 for fall in (before, last))
    if not 0.0 < first < 1.0:
        return 1.0 if first <= 0.0 else 2.0
    return 2.0 if second <= 0.0 else math.log(second) / math.log(first)


def _fall(last: float, power: float, doublings: float) -> float:
    """The fall of the logarithm of the share over further doublings; at most ln 2 each."""
    log_q = math.log(max(1e-300, 2.0 * math.exp(-min(last, math.log(2.0))) - 1.0))
    fall, left = 0.0, doublings
    while left > 0.0:
        log_q *= power
        step = math.log(2.0 / (1.0 + math.exp(max(-700.0, log_q))))
        fall += step * min(1.0, left)
        left -= 1.0
    return fall


@dataclasses.dataclass(frozen=True)
class Caps:
    """What balancing keeps of the rows of a sample, if they stand for more.

    Attributes:
        offsets, ids: the queries of the rows, in CSR form.
        weights: rows of the whole that each row stands for: (rows,).
        counts: matches of each query over the whole, about: (queries,).
        others: for each match, the number of other matches of its query in the sample, at most MOST_OTHERS + 1.
        grid: counts C.
        posterior: the probability of each C, for each number of others: (MOST_OTHERS + 1, COUNTS).
    """

    offsets: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    weights: Shares
    counts: Shares
    others: npt.NDArray[np.int64]
    grid: Shares
    posterior: Shares

    @classmethod
    def fit(cls, offsets: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], weights: Shares, *, queries: int) -> Caps:
        """From the rows that dedup leaves of a sample."""
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        counts = np.bincount(ids, weights=weights[row], minlength=queries).astype(np.float64)
        seen = np.bincount(ids, minlength=queries)
        is_whole = not len(weights) or float(weights.max()) < 1.0 + 1e-9  # then the counts are known
        others = np.full(len(ids), MOST_OTHERS + 1) if is_whole else np.minimum(seen[ids] - 1, MOST_OTHERS + 1)
        factor = max(1.0, float(weights.mean()) if len(weights) else 1.0)
        grid = np.exp(np.linspace(0.0, math.log(max(2.0, weights.sum())), COUNTS))
        expected = (grid - 1.0) / factor
        number = np.arange(MOST_OTHERS + 1)[:, None]
        logs = np.cumsum(np.log(np.maximum(1, np.arange(MOST_OTHERS + 1))))[:, None]
        with np.errstate(divide="ignore"):
            likelihood = np.exp(number * np.log(np.maximum(expected, 1e-12)) - expected - logs)
        held = np.bincount(others, minlength=MOST_OTHERS + 2)[: MOST_OTHERS + 1].astype(np.float64)
        prior = np.full(COUNTS, 1.0 / COUNTS)
        for _ in range(STEPS):
            joint = likelihood * prior
            joint /= np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
            if not held.sum():
                break
            prior = 0.98 * (held @ joint) / held.sum() + 0.02 / COUNTS
        joint = likelihood * prior
        posterior = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
        return cls(offsets, ids, weights, counts, others, grid, posterior)

    def kept(self, cap: float | Shares, stop: npt.NDArray[np.bool_] | None = None) -> Interval:
        """The pairs that stay.

        Args:
            cap: pairs that a query may pick: one number, or one for each query.
            stop: queries that pick nothing.
        """
        if not len(self.weights):
            return NOTHING
        of_query = np.broadcast_to(np.asarray(cap, np.float64), self.counts.shape)
        picked = self._picked(of_query)
        if stop is not None:
            picked[stop[self.ids]] = 0.0
        row = np.repeat(np.arange(len(self.weights)), np.diff(self.offsets))
        missed = np.bincount(row, weights=np.log1p(-np.minimum(picked, 1.0 - 1e-12)), minlength=len(self.weights))
        stays = -np.expm1(missed)
        value = float((self.weights * stays).sum())
        error = WIDE * math.sqrt(float((self.weights * (self.weights - 1.0) * stays.var()).sum()))
        return Interval(max(0.0, value - error), value, value + error)

    def _picked(self, cap: Shares) -> Shares:
        """For each match, the probability that its query picks the row."""
        few = self.others <= MOST_OTHERS
        found = np.minimum(1.0, cap[self.ids] / np.maximum(1.0, self.counts[self.ids]))
        for one in np.unique(cap).tolist():  # one cap for each language
            by_others = self.posterior @ np.minimum(1.0, one / self.grid)
            mine = few & (cap[self.ids] == one)
            found[mine] = by_others[self.others[mine]]
        return found

    def cap_for(
        self, wanted: float, *, stop: npt.NDArray[np.bool_] | None = None, caps_of: CapsOf | None = None
    ) -> int:
        """The smallest cap that keeps about so many pairs; at most that which cuts nothing."""
        low, high = 1, max(1, math.ceil(float(self.counts.max(initial=1.0))))
        while low < high:
            middle = (low + high) // 2
            if self.kept(caps_of(middle) if caps_of else middle, stop).value >= wanted:
                high = middle
            else:
                low = middle + 1
        return low


CapsOf = Callable[[int], Shares]
