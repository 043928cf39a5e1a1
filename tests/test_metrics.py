"Metrics: equal to scikit-learn's, honest intervals, groups of any column."

import base64
from datetime import date

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure

from mlops_nb.core.templates import figure_html
from mlops_nb.science import metrics as m
from mlops_nb.science.binary_metrics import log_losses


@pytest.mark.parametrize("n", [300, 3000])
def test_a_small_test_set_is_not_blamed_for_its_noise(n):
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        p = rng.beta(1, 3, n)
        found.append(m.calibration_error(m.calibration_bins((rng.random(n) < p).astype(int), p)))
    assert np.median(found) < 0.02  # plain root mean square: 0.07 on 300 rows
    p = rng.beta(1, 3, n)
    assert (
        m.calibration_error(
            m.calibration_bins((rng.random(n) < p).astype(int), np.clip(p + 0.15, 0, 1))
        )
        > 0.08
    )


@pytest.mark.parametrize("share", [0.3, 0.05])
def test_rows_of_equal_probability_are_one_bin_whatever_their_order(share):
    y = (np.arange(1000) < 1000 * share).astype(int)  # sorted by label
    table = m.calibration_bins(y, np.full(1000, share))
    assert table["rows"].to_list() == [1000] and m.calibration_error(table) == 0  # was 0.46 for 0.3
    p = np.repeat([0.1, 0.3, 0.8], [300, 400, 300])
    y = np.concatenate([np.arange(300) < 30, np.arange(400) < 120, np.arange(300) < 240]).astype(
        int
    )
    shuffled = np.random.default_rng(0).permutation(1000)
    assert (
        m.calibration_error(m.calibration_bins(y, p))
        == m.calibration_error(m.calibration_bins(y[shuffled], p[shuffled]))
        == 0
    )
    assert m.calibration_bins(y, p).equals(m.calibration_bins(y[shuffled], p[shuffled]))


def test_rows_of_one_key_are_not_taken_for_noise_free():
    rng, eight = np.random.default_rng(0), np.repeat(np.arange(100), 8)
    errors = []
    for _ in range(60):
        p = rng.beta(1, 3, 100)
        y = (rng.random(100) < p).astype(int)
        errors.append(m.calibration_error(m.calibration_bins(y[eight], p[eight], groups=eight)))
    assert np.median(errors) < 0.05  # without keys 0.12


def test_gains_do_not_depend_on_the_order_of_equal_rows():
    y = (np.arange(100) < 20).astype(int)
    assert m.gains(y, np.full(100, 0.2))["lift"].to_list() == pytest.approx(
        [1.0] * 10
    )  # was 5 for the first tenth


def test_gains_end_with_everything_and_start_with_the_best():
    found = m.gains(np.array([1, 0] * 10), np.array([0.9, 0.1] * 10))
    assert found["captured"].to_list() == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1] * 6])
    assert found["lift"][0] == pytest.approx(2)


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (pl.Series([1, 0, None]), {"1", "0", "missing"}),
        (pl.Series([None, None], dtype=pl.Float64), {"missing"}),
        (
            pl.Series([*range(100), None]),
            {"up to 25", "25 to 50", "50 to 74", "over 74", "missing"},
        ),
        (pl.Series([0.0] * 90 + [float(i) for i in range(1, 12)]), {"up to 0", "over 0"}),
        (
            pl.Series([float("nan"), None, *map(float, range(20))]),
            {"up to 5", "5 to 10", "10 to 14", "over 14", "missing"},
        ),
        (pl.Series([f"c{i % 30:02}" for i in range(30)] + ["c00"]), None),
        (pl.Series([date(2026, 1, 3), date(2026, 1, 9)]), {"2026-01"}),
        (pl.Series([True, False]), {"true", "false"}),
    ],
)
def test_segments_of_any_column(values, groups):
    found = m.segments(values)
    assert len(found) == len(values) and found.null_count() == 0
    if groups is None:
        assert found.n_unique() == 11 and "other" in found and "c00" in found
    else:
        assert set(found) == groups


def test_a_gap_counts_only_numbers_that_rest_on_rows_enough():
    group = pl.DataFrame({"g": ["a"] * 100 + ["b"] * 100 + ["tiny"] * 5})
    y = np.array([0, 1] * 100 + [0] * 5)
    p = np.concatenate([np.full(100, 0.9), np.full(100, 0.1), np.full(5, 0.9)])
    found = m.gaps(m.fairness(group, y, p, 0.5))
    worst = {r["measure"]: (r["gap"], r["lowest"], r["highest"]) for r in found.to_dicts()}
    assert worst["tpr"] == (1, "b", "a") and worst["selection_rate"] == (1, "b", "a")
    assert m.gaps(m.fairness(group.head(100), y[:100], p[:100], 0.5)).is_empty()


def test_repeated_rows_make_no_group_surer():
    rng, eight = np.random.default_rng(0), np.repeat(np.arange(200), 8)
    y, p, group = rng.integers(0, 2, 200), rng.random(200), pl.DataFrame({"g": ["a", "b"] * 100})
    once = m.fairness(group, y, p, 0.5)
    again = m.fairness(group[eight], y[eight], p[eight], 0.5, groups=eight)
    widths = [(t["high"] - t["low"]).to_numpy() for t in (once, again)]
    assert widths[1] / widths[0] == pytest.approx(np.ones(8), abs=0.05)
    losses = [
        m.worst_segments(group, log_losses(y, p), {}),
        m.worst_segments(group[eight], log_losses(y, p)[eight], {}, groups=eight),
    ]
    widths = [(t["high"] - t["low"]).to_numpy() for t in losses]
    assert widths[1] / widths[0] == pytest.approx(np.ones(2), abs=0.05)


def test_errors_find_the_planted_segment():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {"place": ["north", "south"] * 200, "noise": rng.normal(size=400), "list": [[1]] * 400}
    )
    y = rng.integers(0, 2, 400)
    p = np.where((frame["place"] == "north").to_numpy(), 0.2 + 0.6 * (1 - y), 0.2 + 0.6 * y)
    found = m.worst_segments(frame, log_losses(y, p), {"predicted": p, "observed": y})
    assert found.row(0)[:2] == ("place", "north") and found["log_loss"][0] > 1.5
    assert "list" not in found["column"]


def test_a_picture_is_the_same_each_time_and_escaped():
    def draw():
        fig = Figure(figsize=(3, 2), layout="constrained")
        m.draw_intervals(
            fig.subplots(),
            ["$a$b_$", "cost in $"],
            pl.DataFrame({"low": [0, 1], "v": [1, 2], "high": [2, 3]}),
            "v",
        )
        return figure_html(fig, '"<x>')

    assert draw() == draw()
    head, data = draw().split("base64,")
    assert "<x>" not in head and 'alt="&#34;&lt;x&gt;"' in head
    assert "$a$b_$" in base64.b64decode(data.removesuffix('">')).decode()
