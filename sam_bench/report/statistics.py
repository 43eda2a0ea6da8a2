"""Intervals and comparisons of a table, with scipy.

A table has k cells with n_i seeds each. The seeds of a cell are taken as draws from a normal distribution, and all
cells as having one standard deviation σ, estimated with ν = Σ(n_i - 1) degrees of freedom:

    s² = Σ_i Σ_j (x_ij - mean_i)² / ν

Cells are taken as independent. In fact equal seeds share initial weights and data order, so the intervals of means are
slightly too narrow, as ν is smaller, and those of differences too wide where a seed is good or bad for all methods.

There are no bootstraps or permutations of seeds: with three seeds a percentile bootstrap covers 73 % instead of 95 %,
and the smallest p-value of an exact permutation test is 0.10.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.95  # of all intervals
POWER = 0.8  # of the smallest detectable difference
ROUNDING = 1e-20  # squares of at most this part of the squared values are differences by rounding
EXACT = 9  # largest number of points of which all permutations are counted


@dataclass(frozen=True)
class Pooled:
    """The standard deviation of a table.

    Attributes:
        deviation: s, in the unit of the values.
        freedom: ν, its degrees of freedom.
    """

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in the unit of the values. Without a deviation, the interval is infinite."""

    estimate: float
    low: float
    high: float

    def verdict(self) -> str:
        """What the interval of a difference says: better, worse, or nothing."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not distinguishable"


@dataclass(frozen=True)
class Comparison:
    """The difference of a cell from a reference.

    Attributes:
        difference: with Dunnett's interval; all intervals of a table hold simultaneously with 95 % confidence.
        paired: the mean difference of runs with the same seed, with a t interval for this comparison alone; None if
            fewer than two seeds match.
        p: of a t test with the pooled deviation, not corrected.
    """

    difference: Interval
    paired: Interval | None
    p: float


def pooled(cells: Sequence[Sequence[float]]) -> Pooled:
    """The pooled standard deviation; NaN with 0 degrees of freedom if no cell has two different values."""
    freedom = sum(len(cell) - 1 for cell in cells)
    squares = sum(map(squared_deviations, cells))
    return Pooled(math.sqrt(squares / freedom), freedom) if squares > 0 else Pooled(math.nan, 0)


def squared_deviations(cell: Sequence[float]) -> float:
    """The sum of squared deviations from the mean; 0 if the values are equal up to rounding."""
    squares = float(np.square(np.asarray(cell) - np.mean(cell)).sum())
    return squares if squares > ROUNDING * float(np.square(cell).sum()) else 0.0


def mean_interval(values: Sequence[float], spread: Pooled) -> Interval:
    """The mean with its t interval: mean ± t s/√n."""
    mean = float(np.mean(values))
    if not spread.freedom:
        return Interval(mean, -math.inf, math.inf)
    half = stats.t.ppf((1 + LEVEL) / 2, spread.freedom) * spread.deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def compare(cells: Sequence[dict[int, float]], reference: int, references: int = 1) -> list[Comparison | None]:
    """Every cell of a table against one of them: Dunnett's many-to-one comparison.

    All intervals of a table hold simultaneously with 95 % confidence: the probability of any false "better" or "worse"
    in it is at most 5 %. With two references, each gets half of that.

    Args:
        cells: the values of each by seed.
        reference: which of them is the reference; its own entry of the result is None.
        references: how many references the table has.
    """
    values = [list(cell.values()) for cell in cells]
    spread = pooled(values)
    sizes = [len(value) for value in values]
    means = [float(np.mean(value)) for value in values]
    has_spread = spread.freedom > 0
    others = [i for i in range(len(cells)) if i != reference]
    limit = 0.0
    if has_spread and others:
        limit = dunnett_limit(tuple(sorted(sizes[i] for i in others)), sizes[reference], spread.freedom, references)
    result: list[Comparison | None] = [None] * len(cells)
    for i in others:
        difference = means[i] - means[reference]
        error = spread.deviation * math.sqrt(1 / sizes[i] + 1 / sizes[reference])
        half = limit * error if has_spread else math.inf
        p = float(2 * stats.t.sf(abs(difference) / error, spread.freedom)) if has_spread else math.nan
        interval = Interval(difference, difference - half, difference + half)
        result[i] = Comparison(interval, paired(cells[i], cells[reference]), p)
    return result


@cache
def dunnett_limit(sizes: tuple[int, ...], control: int, freedom: int, references: int = 1) -> float:
    """The c with P(max |t_i| ≤ c) = 1 - 5 %/references for the t statistics of several groups against one control.

    Dunnett, J. Am. Stat. Assoc. 50 (1955) 1096: given s/σ and the mean of the control, the groups are independent, so
    the probability is a double integral. scipy.stats.dunnett finds the same limit by random integration, to 1 % of the
    level and in 17 seconds for 50 groups; here it is exact to 1e-4 and takes milliseconds.

    Args:
        sizes: n_i of the groups.
        control: n of the control.
        freedom: degrees of freedom of the pooled deviation.
        references: how many controls share the 5 %.
    """
    level = 1 - (1 - LEVEL) / references
    x, x_weights = np.polynomial.hermite_e.hermegauss(80)  # the mean of the control
    x_weights = x_weights / math.sqrt(2 * math.pi)
    u, u_weights = np.polynomial.legendre.leggauss(120)
    scale = np.sqrt(stats.chi2.ppf((u + 1) / 2, freedom) / freedom)[:, None]  # s/σ, by its quantiles

    def excess_coverage(limit: float) -> float:
        inside = np.ones((len(u), len(x)))
        for n, count in Counter(sizes).items():
            share = math.sqrt(n / (n + control))  # the correlation of two groups is the product of theirs
            rest = math.sqrt(1 - share**2)
            upper, lower = (share * x + limit * scale) / rest, (share * x - limit * scale) / rest
            inside *= (special.ndtr(upper) - special.ndtr(lower)) ** count
        return float(u_weights / 2 @ inside @ x_weights) - level

    return float(optimize.brentq(excess_coverage, 0.1, 1000.0, xtol=1e-6))


def paired(cell: dict[int, float], reference: dict[int, float]) -> Interval | None:
    """The mean difference of equal seeds with its t interval, n - 1 degrees of freedom; None for fewer than two.

    Equal seeds share the initial weights and the order and augmentation of the images.
    """
    differences = [cell[seed] - reference[seed] for seed in cell if seed in reference]
    if len(differences) < 2:
        return None
    return mean_interval(differences, pooled([differences]))


@dataclass(frozen=True)
class Difference:
    """A difference of means with its standard error, both in the unit of the values.

    Attributes:
        freedom: degrees of freedom of the error; 0 if it is not known.
    """

    estimate: float
    error: float
    freedom: float

    def interval(self, level: float) -> Interval:
        """The t interval, two-sided."""
        half = stats.t.ppf((1 + level) / 2, self.freedom) * self.error if self.freedom else math.inf
        return Interval(self.estimate, self.estimate - half, self.estimate + half)

    def p_above(self, value: float) -> float:
        """The one-sided p-value for a true difference above `value`. NaN without an error."""
        return float(stats.t.sf((self.estimate - value) / self.error, self.freedom)) if self.freedom else math.nan

    def p_below(self, value: float) -> float:
        """The one-sided p-value for a true difference below `value`. NaN without an error."""
        return float(stats.t.cdf((self.estimate - value) / self.error, self.freedom)) if self.freedom else math.nan


def contrast(of: Sequence[Sequence[float]], than: Sequence[Sequence[float]]) -> Difference:
    """The mean over the cell means of `of` minus that of `than`, with a deviation of its own for each cell.

    The degrees of freedom are those of Welch and Satterthwaite: Welch, Biometrika 34 (1947) 28. A pooled deviation is
    wrong in up to 15 % instead of 5 % of the cases if deviations and numbers of seeds differ.
    """
    means = [float(np.mean([np.mean(cell) for cell in side])) for side in (of, than)]
    estimate = means[0] - means[1]
    if any(len(cell) < 2 for cell in [*of, *than]):
        return Difference(estimate, math.nan, 0)
    # (the variance of the cell's mean times its squared weight, its degrees of freedom)
    parts = [
        (squared_deviations(cell) / (len(cell) - 1) / len(cell) / len(side) ** 2, len(cell) - 1)
        for side in (of, than)
        for cell in side
    ]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Difference(estimate, math.nan, 0)
    return Difference(estimate, math.sqrt(variance), variance**2 / sum(part**2 / nu for part, nu in parts))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[Interval, float]:
    """Spearman's rank correlation with its interval, and the two-sided p of no correlation. Needs five points.

    The interval is on Fisher's z scale with the variance (1 + r²/2)/(n - 3): Bonett & Wright, Psychometrika 65 (2000)
    23. A perfect order, whose z is infinite, has the z of an order with one swap. p counts all permutations of up to
    nine points, and is that of a t test for more.
    """
    n = len(x)
    if min(len(set(x)), len(set(y))) < 2:  # there are no ranks
        return Interval(0.0, -1.0, 1.0), 1.0
    r, p = (float(each) for each in stats.spearmanr(x, y))
    r = round(r, 12)  # 1 for a perfect order
    if n <= EXACT:
        ranks_x, ranks_y = (stats.rankdata(each) - (n + 1) / 2 for each in (x, y))
        products = np.array(list(itertools.permutations(ranks_y))) @ ranks_x
        p = float(np.mean(np.abs(products) >= abs(ranks_y @ ranks_x) - 1e-9))
    error = math.sqrt((1 + r**2 / 2) / (n - 3))
    largest = 1 - 12 / (n * (n**2 - 1))
    z = math.atanh(min(max(r, -largest), largest))
    half = stats.norm.ppf((1 + LEVEL) / 2) * error
    low, high = (r if abs(r) == 1 and math.copysign(1, end) == r else math.tanh(z + end) for end in (-half, half))
    return Interval(r, low, high), p


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values. Rejecting those of at most 0.05 keeps the family-wise error rate at 5 % or less."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def detectable_difference(first: int, second: int, spread: Pooled, limit: float | None = None) -> float:
    """The smallest true difference of two cells that is detected with a power of 80 %, in the unit of the values.

    Args:
        first: n of the first cell.
        second: n of the second cell.
        spread: the pooled deviation.
        limit: the |t| that counts as found, such as Dunnett's; that of a single t test at 5 % if None.
    """
    if not spread.freedom:
        return math.nan
    if limit is None:
        limit = float(stats.t.ppf((1 + LEVEL) / 2, spread.freedom))

    def excess_power(shift: float) -> float:
        return stats.nct.sf(limit, spread.freedom, shift) - POWER  # and not in the wrong direction

    high = limit + 5
    while excess_power(high) < 0:  # with few degrees of freedom
        high *= 2
    shift = float(optimize.brentq(excess_power, 0.0, high))
    return shift * spread.deviation * math.sqrt(1 / first + 1 / second)
