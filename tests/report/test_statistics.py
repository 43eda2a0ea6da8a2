"""Against scipy, against textbooks, and by simulation through the code that the page uses."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sam_bench.report import statistics
from sam_bench.report.cells import Cell, panels
from sam_bench.report.statistics import Interval, Pooled
from sam_bench.report.tables import table


def by_seed(values):
    return {seed: float(value) for seed, value in enumerate(values)}


def test_the_pooled_deviation_is_that_of_a_variance_analysis():
    groups = [[5.0, 7.0, 9.0], [4.0, 4.5], [10.0, 12.0, 11.0, 15.0], [3.0]]
    found = statistics.pooled(groups)
    within = sum(((np.array(group) - np.mean(group)) ** 2).sum() for group in groups)
    assert found.freedom == 6
    assert found.deviation == pytest.approx(math.sqrt(within / 6))
    assert math.isnan(statistics.pooled([[1.0], [2.0]]).deviation)
    equal = [0.1 + 0.2, 0.3, 0.3]  # up to rounding
    assert len(set(equal)) == 2
    assert math.isnan(statistics.pooled([equal]).deviation)


def test_one_cell_has_the_t_interval_of_scipy():
    values = [94.1, 94.6, 94.3]
    found = statistics.mean_interval(values, statistics.pooled([values]))
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_two_cells_have_the_interval_of_a_two_sample_t_test():
    one, two = [1.0, 2.0, 4.0], [2.5, 6.0, 5.0, 7.5]
    (_, found) = statistics.compare([by_seed(one), by_seed(two)], 0)
    test = stats.ttest_ind(two, one)
    expected = test.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert found.p == pytest.approx(test.pvalue)


def test_dunnett_is_that_of_r():
    """Blood counts of Dunnett (1955), J. Am. Stat. Assoc. 50; limits of R's multcomp::glht, from scipy's tests."""
    control = [7.40, 8.50, 7.20, 8.24, 9.84, 8.32]
    drug_a = [9.76, 8.80, 7.68, 9.36]
    drug_b = [12.80, 9.68, 12.16, 9.20, 10.55]
    _, a, b = statistics.compare([by_seed(control), by_seed(drug_a), by_seed(drug_b)], 0)
    assert (a.difference.low, a.difference.high) == pytest.approx((-1.25641, 2.55641), abs=5e-4)
    assert (b.difference.low, b.difference.high) == pytest.approx((0.83963, 4.41637), abs=5e-4)
    assert (a.difference.verdict(), b.difference.verdict()) == ("not distinguishable", "better")


@pytest.mark.parametrize("freedom", [1, 2, 10, 500])
def test_one_group_has_the_limit_of_a_t_test(freedom):
    assert statistics.dunnett_limit((4,), 9, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-4)


@pytest.mark.parametrize(
    ("sizes", "control"), [([3, 3, 3, 3], 3), ([2, 5, 9], 4), ([1, 3, 3, 3, 3, 3, 3], 3), ([3], 30)]
)
def test_the_limits_are_those_of_scipy(sizes, control):
    """The p-value of scipy at our limit is 5 %."""
    draw = np.random.default_rng(0)
    groups = [draw.normal(size=n) for n in [*sizes, control]]
    spread = statistics.pooled([group.tolist() for group in groups])
    limit = statistics.dunnett_limit(tuple(sizes), control, spread.freedom)
    error = spread.deviation * math.sqrt(1 / sizes[0] + 1 / control)
    groups[0] += groups[-1].mean() + limit * error - groups[0].mean()
    test = stats.dunnett(*groups[:-1], control=groups[-1], random_state=draw)
    assert test.pvalue[0] == pytest.approx(0.05, abs=1e-3)


def test_equal_seeds_are_compared_in_pairs():
    one, two = [1.0, 5.0, 9.0, 12.0], [1.5, 5.4, 9.7, 12.2]
    found = statistics.paired(by_seed(two), by_seed(one))
    expected = stats.ttest_rel(two, one).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.verdict() == "better"
    assert statistics.compare([by_seed(one), by_seed(two)], 0)[1].difference.verdict() == "not distinguishable"
    assert statistics.paired({0: 1.0, 1: 2.0}, {1: 1.0, 2: 3.0}) is None


def test_holm_is_his_procedure():
    """By hand: the smallest times 4, the next times 3, ..., and never less than the one before."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.6]) == [1.0, 1.0]
    assert statistics.holm([]) == []


@pytest.mark.parametrize(
    ("seeds", "freedom", "expected"), [(3, 4, 3.07), (3, 40, 2.34), (5, 8, 2.02), (10, 18, 1.325), (64, 126, 0.499)]
)
def test_the_detectable_difference_in_deviations(seeds, freedom, expected):
    """Cohen (1988): 64 in each group find half a deviation with a power of 80 %."""
    assert statistics.detectable_difference(seeds, seeds, Pooled(1.0, freedom)) == pytest.approx(expected, abs=0.006)
    assert statistics.detectable_difference(seeds, seeds, Pooled(2.0, freedom)) == pytest.approx(
        2 * expected, abs=0.012
    )


def test_a_detectable_difference_with_a_single_degree_of_freedom():
    """In the middle of a sweep: two seeds of SGD, one of the others."""
    found = page_of([[50.0, 50.2], [50.1], [50.3]])
    assert 1 < found.detectable < math.inf


def test_the_detectable_difference_is_found_in_80_of_100_tables():
    draw = np.random.default_rng(0)
    shift = statistics.detectable_difference(3, 3, Pooled(1.0, 4))
    found = [stats.ttest_ind(draw.normal(shift, 1, 3), draw.normal(0, 1, 3)).pvalue < 0.05 for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)


def test_no_spread_and_no_freedom_claim_nothing():
    nothing = statistics.compare([{0: 1.0}, {0: 2.0}], 0)[1]
    assert nothing.difference == Interval(1.0, -math.inf, math.inf)
    assert nothing.difference.verdict() == "not distinguishable"
    assert statistics.compare([{0: 1.0}], 0) == [None]
    same = statistics.compare([{0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}], 0)[1]
    assert same.difference.verdict() == "not distinguishable"


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_the_intervals(seeds):
    """95 % ± 1.5 of the intervals of means hold the true mean, with the deviation pooled over a table."""
    draw = np.random.default_rng(seeds)
    truth = np.array([50.0, 52.0, 53.0, 40.0, 90.0])
    covered = []
    for _ in range(1500):
        values = draw.normal(truth[:, None], 0.8, (len(truth), seeds))
        spread = statistics.pooled(values.tolist())
        intervals = [statistics.mean_interval(cell.tolist(), spread) for cell in values]
        covered += [interval.low <= mean <= interval.high for interval, mean in zip(intervals, truth, strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def page_of(values):
    """The table that a page has for these accuracies, in %: SGD, SAM and other methods, a row of seeds each."""
    cells = []
    for i, row in enumerate(values):
        name = ("sgd", "sam")[i] if i < 2 else f"m{i:02}"
        config = {"optimizer": {"name": name, "base": {"name": "sgd"}}}
        common = {"optimizer": name, "schedule": None, "dataset": "d", "model": "m", "train_images": 1, "epochs": 1}
        common |= {"propagations_per_step": 1.0, "forwards_per_step": 0.0, "device": "cpu", "config_hash": name}
        runs = [{**common, "config": config, "seed": s, "test_accuracy": v / 100} for s, v in enumerate(row)]
        cells.append(Cell(runs, [Path()] * len(runs)))
    (panel,) = panels(cells)
    return table(panel)


def verdicts(found):
    comparisons = [each for row in found.rows for each in (row.gain, row.over_sam) if each]
    return [each.difference.verdict() for each in comparisons]


def test_the_differences_of_a_table_hold_together():
    """From SGD and from SAM: each family has half of the 5 %."""
    found = page_of(np.random.default_rng(0).normal(50, 1, (5, 3)))
    limit = statistics.dunnett_limit((3,) * 4, 3, 10, 2)
    half = limit * found.spread.deviation * math.sqrt(2 / 3)
    for row in found.rows:
        for each in (row.gain, row.over_sam):
            if each:
                assert each.difference.high - each.difference.estimate == pytest.approx(half)


@pytest.mark.parametrize("seeds", [3, 5])
def test_false_claims_under_the_null(seeds):
    """At most 5 % of the tables without any difference claim one anywhere, and at most 5 % claim a "better"."""
    draw = np.random.default_rng(10 + seeds)
    tables = 1000
    found = [verdicts(page_of(draw.normal(50, 1, (12, seeds)))) for _ in range(tables)]
    assert all(len(each) == 22 for each in found)
    claims = sum(set(each) != {"not distinguishable"} for each in found)
    # three standard errors above 5 %
    assert claims / tables <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tables)
    assert sum("better" in each for each in found) / tables <= 0.05


def test_the_detectable_difference_of_a_table_is_found_in_80_of_100():
    draw = np.random.default_rng(0)
    hits, tables = 0, 400
    for _ in range(tables):
        values = draw.normal(50, 1, (8, 3))
        found = page_of(values)
        values[5] += found.detectable / found.spread.deviation  # of the true deviation, 1
        hits += next(row for row in page_of(values).rows if row.label == "m05").gain.difference.verdict() == "better"
    assert hits / tables == pytest.approx(0.8, abs=0.06)


def test_the_detectable_difference_of_rows_with_different_numbers_of_seeds():
    """The standard error of a difference is s √(1/n + 1/m)."""
    one = statistics.detectable_difference(1, 10, Pooled(1.0, 20))
    assert one / statistics.detectable_difference(10, 10, Pooled(1.0, 20)) == pytest.approx(math.sqrt(1.1 / 0.2))
    draw = np.random.default_rng(0)
    values = [list(draw.normal(50, 1, n)) for n in (10, 10, 5, 10)]
    assert page_of(values).detectable < page_of([row[:5] for row in values]).detectable


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_of_the_intervals_of_equal_seeds(seeds):
    """They hold the true difference in 95 % ± 1.5, where seeds share most of their noise."""
    draw = np.random.default_rng(20 + seeds)
    covered = []
    for _ in range(6000):
        shared = draw.normal(0, 1, seeds)
        pair = statistics.paired(by_seed(shared + draw.normal(1, 0.2, seeds)), by_seed(shared))
        covered.append(pair.low <= 1 <= pair.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_two_references_share_the_error():
    one, two = (statistics.dunnett_limit((3,) * 3, 3, 8, references) for references in (1, 2))
    assert one < two
    assert statistics.dunnett_limit((3,), 3, 8, 2) == pytest.approx(stats.t.ppf(0.9875, 8), rel=1e-3)
