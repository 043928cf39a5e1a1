"Scores of single columns: what they see, what they must not see, and how often they are wrong."

import time
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb.core.errors import ObjectiveError
from mlops_nb.science.leaks import column_scores, leak_check
from mlops_nb.science.objective import Objective

ROWS = 2000


def asked_of(task="binary", **fields):
    return Objective(name="m", question="?", target="y", task=task, **fields)


def scored(columns, task="binary", **fields):
    return column_scores(pl.DataFrame(columns), asked_of(task, **fields))


def score(scores, column):
    return scores.table.filter(pl.col("column") == column)["score"].item()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def best_of_noise(rng, task, rows, labels=2):
    "The best score of twenty columns that have nothing to do with the target."
    columns = {f"n{i}": rng.normal(size=rows) for i in range(10)}
    columns |= {f"t{i}": rng.integers(0, 2 + 8 * i, rows).astype(str) for i in range(10)}
    y = rng.normal(size=rows) if task == "regression" else rng.integers(0, labels, rows)
    return scored(columns | {"y": y}, task)


@pytest.mark.parametrize("task,labels,most", [("binary", 2, 0.7), ("multiclass", 3, 0.65)])
def test_the_best_of_twenty_columns_of_noise_stays_far_below_a_suspect(rng, task, labels, most):
    best = [best_of_noise(rng, task, 300, labels).table["score"][0] for _ in range(30)]
    assert max(best) < most and 0.5 < np.mean(best)


def test_noise_explains_nothing_of_a_number(rng):
    best = [best_of_noise(rng, "regression", 300).table["score"][0] for _ in range(30)]
    assert max(best) < 0.15


def test_noise_scores_one_half_on_average_however_many_levels_it_has(rng):
    def mean(levels):
        draws = (scored({"x": rng.integers(0, levels, 200), "y": [0, 1] * 100}) for _ in range(60))
        return np.mean([score(s, "x") for s in draws])

    assert all(abs(mean(levels) - 0.5) < 0.025 for levels in (2, 10, 60))


def test_columns_of_a_rare_label_are_no_suspects_by_luck(rng):
    y = np.r_[np.ones(10), np.zeros(90)].astype(int)
    for _ in range(30):
        columns = {f"x{i}": rng.normal(size=100) for i in range(20)}
        scores = scored(columns | {"y": y})
        assert not scores.leaks and not scores.suspects


def test_a_narrow_band_is_seen(rng):
    x = rng.uniform(0, 100, ROWS)
    scores = scored({"x": x, "y": ((x > 40) & (x < 43)).astype(int)})
    assert scores.leaks == ("x",)


def test_a_few_values_that_say_everything_are_seen_among_many_equal_ones(rng):
    y = (rng.random(ROWS) < 0.1).astype(int)
    scores = scored({"days_late": y * rng.integers(1, 90, ROWS), "y": y})
    assert scores.leaks == ("days_late",)
    assert scores.reason("days_late") == "alone it predicts 'y' with a ROC AUC of 1.000"


def test_a_missing_value_may_say_everything(rng):
    y = rng.integers(0, 2, ROWS)
    reason = pl.Series(rng.choice(["moved", "price"], ROWS)).to_frame("r")
    reason = reason.select(pl.when(pl.Series(y) == 1).then("r")).to_series()
    closed = pl.Series(rng.normal(size=ROWS)).to_frame("c")
    closed = closed.select(pl.when(pl.Series(y) == 1).then("c")).to_series()
    scores = scored({"reason": reason, "closed": closed, "y": y})
    assert set(scores.leaks) == {"reason", "closed"}


def test_a_code_beside_a_name_determines_it_and_a_genus_is_a_suspect(rng):
    y = pl.Series(rng.choice(["Adelie", "Chinstrap", "Gentoo"], 300))
    columns = {"code": y.str.slice(0, 3), "first": y.str.slice(0, 1) == "G", "y": y}
    scores = scored(columns, "multiclass")
    assert scores.leaks == ("code",) and scores.suspects == ("first",)
    assert "'y' determines it" in scores.reason("first")


@pytest.mark.parametrize(
    "change",
    [lambda p: 0.92 * p, lambda p: -p, np.log, lambda p: p**2, np.round],
    ids=["currency", "sign", "logarithm", "square", "rounded"],
)
@pytest.mark.parametrize("rows", [100, 3000])
def test_a_price_on_another_scale_is_a_leak(rng, change, rows):
    price = np.exp(rng.normal(7, 1.5, rows))
    assert scored({"x": change(price), "y": price}, "regression").leaks == ("x",)


def test_a_price_class_is_a_suspect(rng):
    price = np.exp(rng.normal(7, 1, 500))
    size = np.where(price > 2000, "dear", "cheap")
    assert scored({"x": size, "y": price}, "regression").suspects == ("x",)


def test_what_explains_nine_tenths_is_a_suspect_and_no_leak(rng):
    x = rng.normal(size=ROWS)
    scores = scored({"x": x, "y": x + rng.normal(0, 1 / 3, ROWS)}, "regression")
    assert scores.suspects == ("x",) and score(scores, "x") == pytest.approx(0.9, abs=0.02)


def test_dates_count_as_numbers(rng):
    day = rng.integers(0, 1000, ROWS)
    dates = [date(2020, 1, 1) + timedelta(int(d)) for d in day]
    assert scored({"day": dates, "y": (day > 600).astype(int)}).leaks == ("day",)


def test_texts_that_do_not_repeat_nested_and_constant_columns_have_no_score(rng):
    columns = {
        "note": [f"note {i}" for i in range(300)],
        "list": [[1]] * 300,
        "constant": ["x"] * 300,
        "empty": [None] * 300,
        "y": rng.integers(0, 2, 300),
    }
    scores = scored(columns)
    assert scores.table["score"].null_count() == 4 and not scores.leaks
    assert "does not repeat" in scores.reason("note")
    assert "note" in scores._repr_html_()


def test_rows_of_a_group_stay_together(rng):
    patient = np.repeat(np.arange(100), 10)
    y = np.repeat(rng.integers(0, 2, 100), 10)
    columns = {"ward": patient.astype(str), "patient": patient, "y": y}
    assert "ward" in scored(columns).leaks
    grouped = column_scores(pl.DataFrame(columns), asked_of(group="patient"))
    assert score(grouped, "ward") == pytest.approx(0.5, abs=0.1)


def test_a_column_that_determines_only_within_groups_is_no_leak(rng):
    "A ward of one patient says nothing of new patients, whatever it says of this one."
    patient = np.repeat(np.arange(100), 10)
    columns = {"ward": patient.astype(str), "patient": patient}
    columns["y"] = np.repeat(rng.integers(0, 2, 100), 10)
    scores = column_scores(pl.DataFrame(columns), asked_of(group="patient"))
    assert not scores.leaks


def test_rows_without_a_target_and_rare_labels_are_left_out(rng):
    y = ["a"] * 50 + ["b"] * 50 + ["rare"] * 2 + [None] * 10
    scores = scored({"x": rng.normal(size=112), "y": y}, "multiclass")
    assert scores.table["rows"].to_list() == [100]


def test_only_columns_that_a_model_may_see_are_scored(rng):
    y = rng.integers(0, 2, 100)
    columns = {"id": range(100), "copy": y, "x": rng.normal(size=100), "y": y, "_split": "train"}
    scores = scored(columns, key="id", ignore={"copy": "it is the target"})
    assert scores.table["column"].to_list() == ["x"]
    frame, objective = pl.DataFrame(columns), asked_of()
    assert column_scores(frame, objective, columns=["copy"]).leaks == ("copy",)


def test_the_same_rows_give_the_same_scores(rng):
    frame = pl.DataFrame({"x": rng.normal(size=30_000), "y": rng.integers(0, 2, 30_000)})
    first, second = (column_scores(frame, asked_of()) for _ in range(2))
    assert first.table.equals(second.table) and first.table["rows"][0] == 20_000


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_twenty_columns_of_20_000_rows_take_less_than_a_second(rng, task):
    best_of_noise(rng, task, 100)  # imports
    start = time.process_time()
    best_of_noise(rng, task, 20_000, labels=2 if task == "binary" else 4)
    assert time.process_time() - start < 2  # a second on an idle machine


def test_too_few_rows_are_refused_in_words():
    with pytest.raises(ObjectiveError, match="expected two values or more, each of 5 rows"):
        scored({"x": [1, 2, 3, 4], "y": [0, 1, 0, 1]})
    with pytest.raises(ObjectiveError, match="expected two groups or more by 'g'"):
        scored({"x": range(20), "g": [1] * 20, "y": [0, 1] * 10}, group="g")


def test_the_check_fails_for_a_leak_asks_for_a_suspect_and_passes_the_rest(rng):
    y = rng.integers(0, 2, ROWS)
    frame = pl.DataFrame({"copy": y, "x": rng.normal(size=ROWS) + 2.5 * y, "noise": 1.0, "y": y})
    checks = {name: leak_check(frame, asked_of(), [name]) for name in ("copy", "x", "noise")}
    assert [c.passed for c in checks.values()] == [False, None, True]
    assert "copy: it determines 'y'" in checks["copy"].got and "`trusted`" in checks["copy"].got
    few = leak_check(pl.DataFrame({"x": range(6), "y": [0, 1] * 3}), asked_of(), ["x"])
    assert few.passed is None and "got 0 such rows" in few.got


def test_an_honest_strong_column_seldom_stops_a_model(rng):
    "Its area is 0.90: 300 tables of 200 rows."
    verdicts = []
    for _ in range(300):
        y = rng.integers(0, 2, 200)
        frame = pl.DataFrame({"x": rng.normal(size=200) + 1.81 * y, "y": y})
        verdicts.append(leak_check(frame, asked_of(), ["x"]).passed)
    assert verdicts.count(False) == 0 and verdicts.count(None) / 300 < 0.03
