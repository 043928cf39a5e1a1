"Associations with several labels and with numbers: right values, and intervals that cover."

import numpy as np
import pytest
from scipy.stats import chi2_contingency, spearmanr

from mlops_nb.science.association import cramers_v, table_association
from mlops_nb.science.correlation import rank_correlation

RUNS = 400


def covered(results: list, truth: float) -> float:
    return np.mean([effect.low <= truth <= effect.high for effect, _ in results])


def test_two_labels_are_a_table_too():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    values = np.array(list("abc"))[rng.integers(0, 3, 300)]
    assert table_association(labels, values) == cramers_v(labels, values)


def test_a_table_has_scipys_p_value_and_a_perfect_one_has_v_1():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 900)
    values = (labels + rng.integers(0, 4, 900)) % 4
    _, p = table_association(labels, values)
    table = np.zeros((3, 4))
    np.add.at(table, (labels, values), 1)
    assert p == pytest.approx(chi2_contingency(table, correction=False).pvalue)
    assert table_association(labels, labels)[0].value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("rows", [60, 400])
def test_p_values_of_tables_without_an_association_are_uniform(rows):
    rng = np.random.default_rng(2)
    draws = ((rng.integers(0, 3, rows), rng.integers(0, 5, rows)) for _ in range(RUNS))
    p = np.array([table_association(labels, values)[1] for labels, values in draws])
    assert (p < 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_intervals_of_v_cover_its_true_value():
    shares = np.array([[6, 3, 1], [2, 5, 3], [1, 3, 6]]) / 30
    expected = np.outer(shares.sum(axis=1), shares.sum(axis=0))
    truth = np.sqrt((((shares - expected) ** 2) / expected).sum() / 2)
    rng = np.random.default_rng(3)
    results = []
    for _ in range(RUNS):
        cell = rng.choice(9, 300, p=shares.ravel())
        results.append(table_association(cell // 3, cell % 3))
    assert covered(results, truth) >= 0.93


def test_grouped_tables_do_not_count_rows_as_evidence():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(60), 8)
    p = []
    for _ in range(200):
        labels = rng.integers(0, 3, 60)[groups]
        values = rng.integers(0, 4, 60)[groups]
        p.append(table_association(labels, values, groups=groups)[1])
    assert np.mean(np.array(p) < 0.05) <= 0.1


def test_the_rank_correlation_is_spearmans_with_and_without_ties():
    rng = np.random.default_rng(5)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    for values in (x, x.round()):
        assert rank_correlation(y, values)[0].value == pytest.approx(spearmanr(y, values)[0])


TRUTH = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's correlation of a normal pair of 0.6


def pairs(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], rows)


@pytest.mark.parametrize(("rows", "least"), [(60, 0.92), (300, 0.93), (2000, 0.93)])
def test_intervals_of_rank_correlations_cover(rows, least):
    rng = np.random.default_rng(6)
    draws = (pairs(rng, rows) for _ in range(RUNS))
    results = [rank_correlation(np.exp(3 * p[:, 0]), p[:, 1]) for p in draws]  # heavy-tailed
    assert covered(results, TRUTH) >= least


def test_intervals_of_grouped_rank_correlations_cover():
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(150), 4)
    draws = (pairs(rng, 150)[groups] for _ in range(RUNS))
    results = [rank_correlation(p[:, 0], p[:, 1], groups=groups) for p in draws]
    assert covered(results, TRUTH) >= 0.92


def test_rank_correlations_of_independent_columns_are_rarely_significant():
    rng = np.random.default_rng(8)
    p = [rank_correlation(*rng.exponential(size=(2, 80)))[1] for _ in range(1000)]
    assert np.mean(np.array(p) < 0.05) <= 0.07
