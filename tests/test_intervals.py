"Intervals: values are scikit-learn's, influences are derivatives, coverage is what is claimed."

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from mlops_nb.science import association
from mlops_nb.science import binary_metrics as bm
from mlops_nb.science import intervals as iv

SPEC = importlib.util.spec_from_file_location(
    "populations", Path(__file__).parents[1] / "benchmarks" / "populations.py"
)
populations = importlib.util.module_from_spec(SPEC)
import sys  # noqa: E402

sys.modules["populations"] = populations  # dataclasses look it up
SPEC.loader.exec_module(populations)

ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=4, max_size=40
).map(lambda r: [(0, 1, 1), (1, 5, 1), *r])
DRAWS = 300


def least(rate: float, draws: int = DRAWS) -> float:
    "A rate that a true one falls below by chance in 1 of 2,000 simulations."
    return rate - 3.29 * np.sqrt(rate * (1 - rate) / draws)


def most(rate: float, draws: int = DRAWS) -> float:
    "A rate that a true one exceeds by chance in 1 of 2,000 simulations."
    return rate + 3.29 * np.sqrt(rate * (1 - rate) / draws)


def scikit(y, p, threshold, w):
    "Each metric by scikit-learn."
    hat, kw = (p >= threshold).astype(int), {"sample_weight": w}
    return {
        "roc_auc": sk.roc_auc_score(y, p, **kw),
        "average_precision": sk.average_precision_score(y, p, **kw),
        "brier": sk.brier_score_loss(y, p, **kw),
        "log_loss": np.average(-np.log(np.clip(np.where(y == 1, p, 1 - p), 1e-15, 1)), weights=w),
        "accuracy": sk.accuracy_score(y, hat, **kw),
        "precision": sk.precision_score(y, hat, zero_division=0, **kw),
        "recall": sk.recall_score(y, hat, **kw),
        "f1": sk.f1_score(y, hat, zero_division=0, **kw),
    }


@given(ROWS, st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_metrics_are_scikit_learns_with_ties(rows, at):
    y, p, _ = (np.array(v) for v in zip(*rows, strict=True))
    result = bm.measure_prediction(y, p / 6, at / 6)
    assert list(result.values) == list(bm.METRICS)
    assert result.values == pytest.approx(scikit(y, p / 6, at / 6, np.ones(len(y))))
    for metric in bm.METRICS:
        interval = result.interval(metric)
        assert interval.low <= interval.value <= interval.high and interval.low < interval.high, (
            metric
        )


def test_the_influence_of_a_row_is_what_its_weight_changes():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 300), rng.integers(1, 8, 300) / 8
    result, step = bm.measure_prediction(y, p, 0.4), 1e-6
    for row in range(0, 300, 37):
        weights = np.ones(300)
        weights[row] += step
        for metric, value in scikit(y, p, 0.4, weights).items():
            change = (value - result.values[metric]) / step
            assert result.influences[metric][row] == pytest.approx(change, rel=0.02, abs=1e-6), (
                metric
            )


@given(ROWS)
@settings(max_examples=50, deadline=None)
def test_auc_has_delongs_variance(rows):
    y, x, _ = (np.array(v) for v in zip(*rows, strict=True))
    ones, zeros = x[y == 1], x[y == 0]
    wins = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    value, influence = bm.influence_on_auc(y, x)
    assert value == bm.auc(y, x).value == pytest.approx(wins.mean())
    if min(wins.shape) < 2:
        assert (bm.auc(y, x).low, bm.auc(y, x).high) == (0, 1)
    else:
        variance = wins.mean(axis=1).var(ddof=1) / len(ones) + wins.mean(axis=0).var(ddof=1) / len(
            zeros
        )
        assert (influence**2).sum() == pytest.approx(variance)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (5, 10, 0.2366, 0.7634)]
)
def test_the_interval_of_a_share_is_wilsons(hits, n, low, high):
    interval = iv.wilson_interval(hits, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def covered(population, draws=DRAWS, seed=1):
    "How often each interval, and each interval of a gain, holds the truth."
    rng, true, other = (
        np.random.default_rng(seed),
        population.truth(),
        population.truth(population.other),
    )
    hits = {}
    for _ in range(draws):
        y, p, q, keys = population.draw(rng)
        if not 1 < y.sum() < len(y) - 1:
            continue
        first, second = (
            bm.measure_prediction(y, v, population.threshold, groups=keys) for v in (p, q)
        )
        for metric in bm.METRICS:
            value, gain = first.interval(metric), first.difference(second, metric)
            hits.setdefault(metric, []).append(value.low <= true[metric] <= value.high)
            hits.setdefault(f"gain in {metric}", []).append(
                gain.low <= true[metric] - other[metric] <= gain.high
            )
    return {name: float(np.mean(h)) for name, h in hits.items()}


@pytest.mark.parametrize(
    ("rows", "prevalence", "tied", "per_key"),
    [(200, 0.3, True, 4), (200, 0.3, False, 1), (1000, 0.05, True, 1), (1000, 0.05, False, 4)],
)
def test_intervals_hold_the_truth_as_often_as_they_claim(rows, prevalence, tied, per_key):
    rates = covered(
        populations.Population(rows=rows, prevalence=prevalence, tied=tied, per_key=per_key)
    )
    assert min(rates.values()) >= least(0.93) and max(rates.values()) <= most(0.97), rates


@pytest.mark.parametrize(("tied", "per_key"), [(True, 1), (True, 4), (False, 4)])
def test_with_ten_positive_rows_intervals_hold_the_truth_nine_times_in_ten(tied, per_key):
    rates = covered(populations.Population(prevalence=0.05, tied=tied, per_key=per_key))
    assert min(rates.values()) >= least(0.9), rates


def test_an_area_of_95_percent_from_12_rows_of_each_class_is_covered():
    rng, y = np.random.default_rng(0), np.repeat([0, 1], 12)
    intervals = [
        bm.auc(y, rng.normal(size=24) + 2.3262 * y) for _ in range(1000)
    ]  # by Wald's interval: 74 %
    assert np.mean([i.low <= 0.95 <= i.high for i in intervals]) >= least(0.9, 1000)


@pytest.mark.parametrize("n", [12, 500])
def test_a_perfect_ranking_is_not_sure_to_stay_perfect(n):
    y = np.repeat([0, 1], n)
    for interval in (bm.auc(y, np.arange(2 * n)), bm.auc(1 - y, np.arange(2 * n))):
        assert interval.value in (0, 1) and 0.01 / n < interval.high - interval.low < 4 / n
    perfect = bm.measure_prediction(y, y.astype(float))
    for metric in bm.METRICS:
        assert perfect.interval(metric).high > perfect.interval(metric).low, metric


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.5, 1.0])
def test_a_constant_prediction_has_intervals_of_some_width(constant):
    y = (np.arange(300) % 3 == 0).astype(int)
    result = bm.measure_prediction(y, np.full(300, constant))
    for metric in bm.METRICS:
        interval = result.interval(metric)
        assert (
            interval.high - interval.low > 1e-3
            and interval.low <= result.values[metric] <= interval.high
        ), metric


def test_repeated_rows_of_a_key_make_no_interval_narrower():
    rng, twice = np.random.default_rng(0), np.repeat(np.arange(400), 8)
    y, p = (rng.random(400) < 0.3).astype(int), rng.random(400)
    once, again = (
        bm.measure_prediction(y, p),
        bm.measure_prediction(y[twice], p[twice], groups=twice),
    )
    for metric in bm.METRICS:
        a, b = once.interval(metric), again.interval(metric)
        assert (b.high - b.low) / (a.high - a.low) == pytest.approx(1, abs=0.02), metric
        c, d = (
            x.difference(other, metric)
            for x, other in (
                (once, bm.measure_prediction(y, 1 - p)),
                (again, bm.measure_prediction(y[twice], 1 - p[twice], groups=twice)),
            )
        )
        assert (d.high - d.low) / (c.high - c.low) == pytest.approx(1, abs=0.03), metric
    assert bm.rarer_class_size(y[twice], twice) == bm.rarer_class_size(y) == y.sum()


def test_a_missing_key_is_nobody_elses():
    assert iv.group_numbers([None, None, "a"]) is None and iv.group_numbers(
        ["a", None, "a", None]
    ).tolist() == [0, 1, 0, 2]


def test_the_same_prediction_gains_nothing_for_sure():
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, 600), rng.random(600)
    first, same = bm.measure_prediction(y, p), bm.measure_prediction(y, p.copy())
    assert all(
        first.difference(same, metric) == iv.Interval(value=0, low=0, high=0)
        for metric in bm.METRICS
    )


def test_100_000_rows_take_no_resampling():
    rng = np.random.default_rng(0)
    y, p, start = (rng.random(100_000) < 0.1).astype(int), rng.random(100_000), time.process_time()
    first, second = (
        bm.measure_prediction(y, p, groups=rng.integers(0, 30_000, 100_000)),
        bm.measure_prediction(y, rng.random(100_000)),
    )
    intervals = (
        [first.interval(metric) for metric in bm.METRICS],
        second.difference(second, "brier"),
    )
    assert intervals and time.process_time() - start < 10  # 0.3 s alone; a bootstrap took minutes


def wrong(kind, per_key, effect=0.1, draws=DRAWS):
    "How often an interval misses the true effect, and how often no effect has a p-value < 0.05."
    rng, beyond, false = np.random.default_rng(2), [], []
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    for _ in range(draws):
        for true in (effect, 0.0):
            if kind == "numbers":
                y, x, keys = populations.correlated(rng, 300, true, per_key=per_key)
            else:
                y, x, keys = populations.categories(rng, 300, true, shares, per_key=per_key)
            interval, p = (
                association.rank_biserial if kind == "numbers" else association.cramers_v
            )(y, x, groups=keys)
            if true:
                beyond.append(not interval.low <= true <= interval.high)
            else:
                false.append(p < 0.05)
    return np.mean(beyond), np.mean(false)


@pytest.mark.parametrize("per_key", [1, 4])
@pytest.mark.parametrize("kind", ["numbers", "categories"])
def test_effects_and_p_values_are_wrong_no_more_often_than_alpha(kind, per_key):
    beyond, false = wrong(kind, per_key)
    assert beyond <= most(0.05) and false <= most(0.05)


def test_many_categories_have_the_moments_and_the_tail_of_the_permutation():
    rng = np.random.default_rng(0)
    rows, ones = rng.integers(1, 6, 700), 600
    drawn = association._chi_square(
        rows, rng.multivariate_hypergeometric(rows, ones, 3000, method="marginals")
    )
    mean, variance = association._moments(rows, ones)
    assert mean == pytest.approx(drawn.mean(), rel=0.01) and variance == pytest.approx(
        drawn.var(), rel=0.15
    )
    positives = rng.multivariate_hypergeometric(rows, ones)
    p = association._independence_p_value(
        rows, positives, float(association._chi_square(rows, positives))
    )
    assert p == pytest.approx((drawn >= association._chi_square(rows, positives)).mean(), abs=0.05)


@pytest.mark.parametrize("rare", [1, 2, 300, 900, 1_000_000])
def test_a_million_rows_with_rare_categories_take_seconds(rare):
    rng = np.random.default_rng(0)
    y = (rng.random(1_000_000) < 0.2).astype(int)
    values = np.where(
        np.arange(1_000_000) < rare, np.arange(1_000_000), -1 - np.arange(1_000_000) % 3
    )
    start = time.process_time()
    effect, p = association.cramers_v(y, values)
    assert (
        time.process_time() - start < 20 and p > 0.001 and effect.low == 0
    )  # seconds alone; by permutation hours


def test_two_rare_categories_are_tested_by_fisher():
    from scipy.stats import fisher_exact

    y, x = (
        np.repeat([0, 1], [40, 8]),
        np.r_[np.zeros(39, int), 1, np.ones(3, int), np.zeros(5, int)],
    )
    assert association.cramers_v(y, x)[1] == pytest.approx(fisher_exact([[39, 1], [5, 3]]).pvalue)
