"Measures: equal to scikit-learn's, honest intervals, groups of any column."
import base64
from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from sklearn import metrics as sk

from mlops_nb import measures as m

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=4, max_size=40).map(
    lambda r: [(0, 1, 1), (1, 5, 1), *r])


@given(rows, st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_metrics_are_scikit_learns_with_ties_and_weights(rows, at):
    y, p, w = (np.array(v) for v in zip(*rows, strict=True))
    p, w, t, hat = p / 6, w.astype(float), at / 6, (p / 6 >= at / 6).astype(int)
    found, kw = m.measurer(y, p, t)(w), {"sample_weight": w}
    expected = {
        "roc_auc": sk.roc_auc_score(y, p, **kw), "average_precision": sk.average_precision_score(y, p, **kw),
        "brier": sk.brier_score_loss(y, p, **kw), "log_loss": np.average(
            -np.log(np.clip(np.where(y == 1, p, 1 - p), 1e-15, 1)), weights=w),
        "accuracy": sk.accuracy_score(y, hat, **kw), "precision": sk.precision_score(y, hat, zero_division=0, **kw),
        "recall": sk.recall_score(y, hat, **kw), "f1": sk.f1_score(y, hat, **kw)}
    assert list(found) == list(m.METRICS)
    assert found == pytest.approx(expected)


@given(rows)
@settings(max_examples=50, deadline=None)
def test_auc_has_delongs_variance(rows):
    y, x, _ = (np.array(v) for v in zip(*rows, strict=True))
    ones, zeros = x[y == 1], x[y == 0]
    wins = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    found = m.auc(y, x)
    assert found.value == pytest.approx(wins.mean())
    if min(wins.shape) < 2: assert (found.low, found.high) == (0, 1)
    else:
        sd = np.sqrt(wins.mean(axis=1).var(ddof=1) / len(ones) + wins.mean(axis=0).var(ddof=1) / len(zeros))
        assert found.low == pytest.approx(max(0, wins.mean() - 1.959964 * sd), abs=1e-6)


def test_bootstrap_agrees_with_delong_and_is_paired():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    a, b = y + rng.normal(0, 1.5, 600), y + rng.normal(0, 1.5, 600)
    draws = m.bootstrap(y, {"a": a, "b": b, "again": a})
    found, exact = m.interval(draws["a"]["roc_auc"]), m.auc(y, a)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.006)
    assert m.interval(draws["a"]["roc_auc"] - draws["again"]["roc_auc"]) == m.Interval(value=0, low=0, high=0)
    assert m.bootstrap(y, {"a": a}, resamples=5)["a"].equals(m.bootstrap(y, {"a": a}, resamples=5)["a"])


def test_intervals_of_the_bootstrap_cover_the_truth():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(60):                                           # AUC of normals one apart: Phi(1 / sqrt 2) = 0.7602
        y = np.repeat([0, 1], 100)
        found = m.interval(m.bootstrap(y, {"x": y + rng.normal(size=200)}, resamples=200)["x"]["roc_auc"])
        hits += found.low <= 0.7602 <= found.high
    assert 51 <= hits


@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (5, 10, 0.2366, 0.7634)])
def test_wilson(hits, n, low, high):
    found = m.share(hits, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("n", [300, 3000])
def test_a_small_test_set_is_not_blamed_for_its_noise(n):
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        p = rng.beta(1, 3, n)
        found.append(m.calibration_error(m.calibration((rng.random(n) < p).astype(int), p)))
    assert np.median(found) < 0.02                                # plain root mean square: 0.07 on 300 rows
    p = rng.beta(1, 3, n)
    assert m.calibration_error(m.calibration((rng.random(n) < p).astype(int), np.clip(p + 0.15, 0, 1))) > 0.08


def test_gains_end_with_everything_and_start_with_the_best():
    found = m.gains(np.array([1, 0] * 10), np.array([0.9, 0.1] * 10))
    assert found["captured"].to_list() == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1] * 6])
    assert found["lift"][0] == pytest.approx(2)


@pytest.mark.parametrize(("values", "groups"), [
    (pl.Series([1, 0, None]), {"1", "0", "missing"}),
    (pl.Series([None, None], dtype=pl.Float64), {"missing"}),
    (pl.Series([*range(100), None]), {"up to 25", "25 to 50", "50 to 74", "over 74", "missing"}),
    (pl.Series([0.0] * 90 + [float(i) for i in range(1, 12)]), {"up to 0", "over 0"}),
    (pl.Series([float("nan"), None, *map(float, range(20))]), {"up to 5", "5 to 10", "10 to 14", "over 14", "missing"}),
    (pl.Series([f"c{i % 30:02}" for i in range(30)] + ["c00"]), None),
    (pl.Series([date(2026, 1, 3), date(2026, 1, 9)]), {"2026-01"}),
    (pl.Series([True, False]), {"true", "false"}),
])
def test_segments_of_any_column(values, groups):
    found = m.segments(values)
    assert len(found) == len(values) and found.null_count() == 0
    if groups is None: assert found.n_unique() == 11 and "other" in found and "c00" in found
    else: assert set(found) == groups


def test_a_gap_counts_only_numbers_that_rest_on_rows_enough():
    group = pl.DataFrame({"g": ["a"] * 100 + ["b"] * 100 + ["tiny"] * 5})
    y = np.array([0, 1] * 100 + [0] * 5)
    p = np.concatenate([np.full(100, 0.9), np.full(100, 0.1), np.full(5, 0.9)])
    found = m.gaps(m.fairness(group, y, p, 0.5))
    worst = {r["measure"]: (r["gap"], r["lowest"], r["highest"]) for r in found.to_dicts()}
    assert worst["tpr"] == (1, "b", "a") and worst["selection_rate"] == (1, "b", "a")
    assert m.gaps(m.fairness(group.head(100), y[:100], p[:100], 0.5)).is_empty()


def test_errors_find_the_planted_segment():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"place": ["north", "south"] * 200, "noise": rng.normal(size=400), "list": [[1]] * 400})
    y = rng.integers(0, 2, 400)
    p = np.where((frame["place"] == "north").to_numpy(), 0.2 + 0.6 * (1 - y), 0.2 + 0.6 * y)
    found = m.errors(frame, y, p)
    assert found.row(0)[:2] == ("place", "north") and found["log_loss"][0] > 1.5
    assert "list" not in found["column"]


def test_a_picture_is_the_same_each_time_and_escaped():
    def draw():
        fig = Figure(figsize=(3, 2), layout="constrained")
        m.dots(fig.subplots(), ["$a$b_$", "cost in $"], pl.DataFrame({"low": [0, 1], "v": [1, 2], "high": [2, 3]}), "v")
        return m.picture(fig, '"<x>')
    assert draw() == draw()
    head, data = draw().split("base64,")
    assert "<x>" not in head and 'alt="&quot;&lt;x&gt;"' in head
    assert "$a$b_$" in base64.b64decode(data.removesuffix('">')).decode()
