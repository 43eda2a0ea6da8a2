"""Claims: what the rules decide, checked against numbers worked out with scipy, and how often they are wrong."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from sam_bench.errors import SettingError
from sam_bench.report import __main__ as command_line
from sam_bench.report import claims, tables
from sam_bench.report.cells import collect, panels
from sam_bench.report.statistics import contrast, rank_correlation

REPOSITORY = Path(__file__).parent.parent.parent
TEMPLATE = json.loads(next(REPOSITORY.glob("experiments/cifar10_5000/*-sam-*/seed-0/result.json")).read_text())


def write_runs(folder, rows):
    """Run folders of SAM with a ρ of its own for each row, from accuracies in % and, maybe, a sharpness."""
    for number, (name, accuracies, *sharp) in enumerate(rows):
        for seed, accuracy in enumerate(accuracies):
            result = copy.deepcopy(TEMPLATE) | {"optimizer": name, "seed": seed, "test_accuracy": accuracy / 100}
            result["config"]["optimizer"] |= {"name": name, "rho": 1 + number}
            result["config_hash"] = f"{number:010x}"
            if sharp:
                measures = dict.fromkeys(tables.SHARPNESS, 1.0) | {"lambda_max": float(sharp[0]), "kind": "cheap"}
                result["sharpness"] = measures
            at = folder / f"{name}-{number}" / f"seed-{seed}"
            at.mkdir(parents=True)
            (at / "result.json").write_text(json.dumps(result))
            (at / "metrics.csv").write_text("epoch\n")


def decided(folder, rules):
    (folder / "claims.yaml").write_text(yaml.safe_dump(rules))
    found = [tables.table(panel) for panel in panels(collect([folder]))]
    return claims.decide(claims.read(folder), found)


def rule(kind, **more):
    return {
        "claim": f"{kind}?",
        "rule": kind,
        "rows": {"optimizer": "b"},
        "than": {"optimizer": "a"},
        "seeds": 3,
    } | more


A, NEAR, FAR = [70.0, 70.2, 70.4], [70.1, 70.3, 70.5], [73.0, 73.2, 73.4]


@pytest.mark.parametrize(
    ("kind", "accuracies", "margin", "verdict"),
    [
        ("better", FAR, 0, "holds"),
        ("better", NEAR, 0, "undecided"),
        ("better", [67.0, 67.2, 67.4], 0, "fails"),
        ("equivalent", NEAR, 0.5, "holds"),
        ("equivalent", NEAR, 0.2, "undecided"),
        ("equivalent", FAR, 0.5, "fails"),
        ("equivalent", [67.0, 67.2, 67.4], 0.5, "fails"),
        ("not worse", NEAR, 0.5, "holds"),
        ("not worse", FAR, 0.5, "holds"),
        ("not worse", [69.8, 70.0, 70.2], 0.3, "undecided"),
        ("not worse", [67.0, 67.2, 67.4], 0.5, "fails"),
    ],
)
def test_a_rule_decides(tmp_path, kind, accuracies, margin, verdict):
    write_runs(tmp_path, [("a", A), ("b", accuracies)])
    (decision,) = decided(tmp_path, [rule(kind, **({"margin": margin} if margin else {}))])
    assert decision.verdict == verdict
    assert decision.n == "n = 3 each"
    # both have a deviation of 0.2 and 4 degrees of freedom together
    half = stats.t.ppf(0.95 if margin else 0.975, 4) * 0.2 * math.sqrt(2 / 3)
    d = np.mean(accuracies) - np.mean(A)
    assert vars(decision.interval) == pytest.approx({"estimate": d, "low": d - half, "high": d + half})


def test_p_is_that_of_the_rule_and_is_corrected_for_all_claims(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", NEAR)])
    better, equal, at_least = decided(
        tmp_path, [rule("better"), rule("equivalent", margin=0.5), rule("not worse", margin=0.5)]
    )
    assert better.p == pytest.approx(stats.ttest_ind(NEAR, A).pvalue)
    above = stats.ttest_ind(np.add(NEAR, 0.5), A, alternative="greater").pvalue
    below = stats.ttest_ind(np.subtract(NEAR, 0.5), A, alternative="less").pvalue
    assert equal.p == pytest.approx(max(above, below))
    assert at_least.p == pytest.approx(above)
    assert at_least.corrected == pytest.approx(3 * at_least.p)  # Holm: the smallest of three
    assert f"{at_least.p:.3f} (after Holm's correction {at_least.corrected:.3f})" in at_least.sentence


def test_a_claim_without_its_seeds_is_not_decided(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    (decision,) = decided(tmp_path, [rule("better", seeds=5)])
    assert decision.verdict == "incomplete"
    assert decision.sentence.startswith("Not decided yet, 5 seeds are planned: difference in percentage points +3.00 [")


def test_a_row_with_other_epochs_is_selected_by_them_alone(tmp_path):
    write_runs(tmp_path, [("sgd", A), ("sgd", NEAR), ("b", FAR)])
    for path in tmp_path.glob("sgd-*/*/result.json"):
        result = json.loads(path.read_text())
        result["config"]["optimizer"]["base"]["name"] = "sgd"
        if path.parent.parent.name == "sgd-1":
            result["epochs"] = result["config"]["trainer"]["epochs"] = 2 * result["epochs"]
        path.write_text(json.dumps(result))
    longer = {"optimizer": "sgd", "trainer.epochs": 2 * TEMPLATE["epochs"]}
    one, two = decided(tmp_path, [rule("better", than=than) for than in ({"optimizer": "sgd"}, longer)])
    assert one.interval.estimate == pytest.approx(3.0)
    assert two.interval.estimate == pytest.approx(2.9)


def test_the_number_of_candidates_is_stated(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    plain, best = decided(tmp_path, [rule("better"), rule("better", candidates=12)])
    assert best.sentence == f"{plain.sentence} One of 12 candidates; the choice among them is not accounted for."


def test_one_seed_each_decides_nothing(tmp_path):
    write_runs(tmp_path, [("a", A[:1]), ("b", FAR[:1])])
    (decision,) = decided(tmp_path, [rule("equivalent", margin=9.0)])
    assert (decision.verdict, math.isnan(decision.p)) == ("incomplete", True)
    assert "difference in percentage points +3.00, margin ±9, n = 1 each." in decision.sentence


def test_several_rows_are_compared_by_their_means(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR), ("b", NEAR), ("c", [1.0, 2.0, 3.0])])
    both = [{"optimizer": "b", "optimizer.rho": 2}, {"optimizer": "b", "optimizer.rho": 3}]
    (decision,) = decided(tmp_path, [rule("better", rows=both)])
    assert decision.interval.estimate == pytest.approx((3.0 + 0.1) / 2)
    # row c, which is not part of the claim, does not matter; the mean of two rows has half the variance of one, so the
    # degrees of freedom are 2 (1 + ¼ + ¼)²/(1² + ¼² + ¼²) = 4
    half = stats.t.ppf(0.975, 4) * 0.2 * math.sqrt(1 / 3 + 1 / 6)
    assert decision.interval.high - decision.interval.estimate == pytest.approx(half)


def test_a_selection_of_several_rows_is_refused_and_one_of_none_has_no_runs(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR), ("b", NEAR)])
    with pytest.raises(SettingError, match=r"'better\?': \{optimizer: b\} should match one row, but matches b rho=2"):
        decided(tmp_path, [rule("better")])
    rules = [rule("better", rows={"optimizer": "z"})]
    assert decided(tmp_path, rules) == []
    assert claims.without_runs(claims.read(tmp_path), [])[0].rows == [{"optimizer": "z"}]


@pytest.mark.parametrize(("sign", "verdict"), [(-1, "holds"), (1, "fails")])
def test_sharpness_against_accuracy(tmp_path, sign, verdict):
    rows = [(f"m{i}", [70 + i, 70.1 + i, 70.2 + i], 20 + sign * i) for i in range(8)]
    write_runs(tmp_path, rows)
    trend = {"claim": "flat is good", "rule": "decreases", "rows": {}, "sharpness": "lambda_max", "seeds": 3}
    (decision,) = decided(tmp_path, [trend])
    assert (decision.verdict, decision.n) == (verdict, "n = 8 rows")
    assert decision.interval.estimate == pytest.approx(sign)


def test_the_rank_correlation_has_the_interval_of_bonett_and_wright():
    x, y = [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10], [2.0, 1, 4, 3, 6, 5, 8, 7, 10, 9]
    interval, _ = rank_correlation(x, y)
    r = stats.spearmanr(x, y).statistic
    z, error = np.arctanh(r), math.sqrt((1 + r**2 / 2) / 7)
    low, high = np.tanh([z - 1.959964 * error, z + 1.959964 * error])
    assert vars(interval) == pytest.approx({"estimate": r, "low": low, "high": high}, abs=1e-6)
    assert rank_correlation(x, [1.0] * 10)[0].low == -1  # no ranks, no claim


@pytest.mark.parametrize("n", [5, 7, 12])
def test_p_of_a_rank_correlation_is_that_of_the_permutations(n):
    draw, wrong, trials = np.random.default_rng(n), 0, 400
    for _ in range(trials):
        x, y = draw.normal(size=(2, n))
        interval, p = rank_correlation(x, y)
        wrong += p <= 0.05 and (interval.high < 0 or interval.low > 0)
        if n == 5:
            pairing = stats.permutation_test(
                (y,), lambda y, x=x: stats.spearmanr(x, y).statistic, permutation_type="pairings", n_resamples=np.inf
            )
            assert p == pytest.approx(pairing.pvalue)
            break
    assert wrong / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    ordered = np.arange(float(n))
    interval, p = rank_correlation(ordered, ordered)
    assert interval.high == 1
    assert -0.5 < interval.low < 0.98
    assert p == pytest.approx(2 / math.factorial(n)) if n < 10 else p < 1e-6


def test_further_seeds_do_not_decide_anew(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", [*NEAR, 90.0, 91.0])])
    (decision,) = decided(tmp_path, [rule("better")])
    assert decision.interval.estimate == pytest.approx(0.1)
    assert decision.n == "n = 3 each"


def test_a_claim_of_a_row_about_itself_is_refused(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    with pytest.raises(SettingError, match="should be different rows, each given once"):
        decided(tmp_path, [rule("better", than={"optimizer": "b"})])


def test_a_verdict_that_does_not_survive_the_correction_says_so(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", [70.6, 70.8, 71.0])])
    (alone,) = decided(tmp_path, [rule("better")])
    assert alone.sentence.startswith("Holds: ")
    first, *_ = decided(tmp_path, [rule("better")] + [rule("better", claim=f"{i}") for i in range(3)])
    assert first.sentence.startswith("Holds by itself, but not after Holm's correction for all claims: ")


@pytest.mark.parametrize(("n", "deviations"), [((10, 10, 10, 10), (0.5, 0.5, 0.5, 1.0)), ((10, 5), (0.3, 0.6))])
def test_unequal_deviations_and_numbers_of_seeds_are_wrong_no_more_often(n, deviations):
    """Three rows against a noisier one; ten seeds against five noisier ones. Pooled, over 11 % are wrong."""
    draw, wrong, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        *of, than = [list(draw.normal(0, d, size)) for size, d in zip(n, deviations, strict=True)]
        interval = contrast(of, [than]).interval(0.95)
        wrong += not interval.low <= 0 <= interval.high
    assert abs(wrong / trials - 0.05) < 0.02


def test_how_often_a_rule_is_wrong():
    """Simulated: the difference is at the edge of what would be equivalent, so `holds` is wrong, in at most 5 %."""
    draw, wrong, trials = np.random.default_rng(0), 0, 2000
    for _ in range(trials):
        same, other = (list(row) for row in draw.normal([[0.0], [0.5]], 0.3, (2, 10)))
        interval = contrast([other], [same]).interval(claims.WITHIN)
        wrong += interval.low > -0.5 and interval.high < 0.5
    rate = wrong / trials
    assert abs(rate - 0.05) < 0.015  # an interval of 95 % would give 2.5 %, one of 80 % gives 10 %


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "best"}, "rule: should be 'better', 'equivalent', 'not worse' or 'decreases'"),
        ({"rule": "equivalent"}, "margin: needed by the rules equivalent and not worse, refused by the others"),
        ({"margin": 0.5}, "margin: needed by the rules equivalent and not worse, refused by the others"),
        ({"than": []}, "than: needed by every rule but decreases, which takes none"),
        ({"seeds": 1}, "seeds: should be greater than or equal to 2"),
        ({"sharpness": "lambda_max"}, "claim 1: sharpness: belongs to the rule decreases, and this is better"),
        ({"seed": 3}, "seed: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_rule_is_one_line(tmp_path, capsys, change, message):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([rule("better") | change]))
    with pytest.raises(SystemExit, match="2"):
        command_line.main([str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("text", ["claim: x", "[", "- 3", "\0"])
def test_a_file_that_is_no_list_of_claims_is_one_line(tmp_path, capsys, text):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        command_line.main([str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'claims.yaml'}: ")


def test_the_page_and_the_markdown_have_every_claim(tmp_path):
    write_runs(tmp_path, [("a", A), ("b", FAR)])
    rules = [rule("better"), rule("equivalent", margin=0.5), rule("better", claim="nobody ran it", rows={"model": "x"})]
    decisions = decided(tmp_path, rules)
    command_line.main([str(tmp_path)])
    page, text = ((tmp_path / name).read_text() for name in ("index.html", "table.md"))
    assert '<li class="holds"><b>better?</b>' in page
    assert '<li class="fails"><b>equivalent?</b>' in page
    assert '<li class="incomplete"><b>nobody ran it</b><br>No runs yet.' in page
    assert 'data-family="claims"' in page
    for decision in decisions:
        assert decision.sentence in text
        assert decision.sentence.replace("'", "&#39;") in page
