"Metrics of several labels and of numbers: scikit-learn's values, intervals that hold the truth."

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
from sklearn import metrics as sk

from mlops_nb.science import class_metrics as cm
from mlops_nb.science import number_metrics as nm

DRAWS = 300


def least(rate: float, draws: int = DRAWS) -> float:
    "A rate that a true one falls below by chance in 1 of 2,000 simulations."
    return rate - 3.29 * np.sqrt(rate * (1 - rate) / draws)


# How each population makes numbers: true number and error of row x, both of one shared part.
NUMBERS = {
    "normal": lambda rng, n: (x := rng.normal(size=n), x + rng.normal(size=n)),
    "student": lambda rng, n: (x := rng.normal(size=n), x + rng.standard_t(5, size=n)),
    "exponential": lambda rng, n: (
        x := np.exp(0.3 * rng.normal(size=n)),
        x * rng.exponential(size=n),
    ),
    "lognormal": lambda rng, n: (np.full(n, 1.5), np.exp(rng.normal(size=n))),
    "multiplied": lambda rng, n: (
        x := np.exp(rng.normal(size=n)),
        x * np.exp(0.5 * rng.normal(size=n)),
    ),
}


def numbers(kind, rng, n):
    "True numbers, and two predictions with the ends of their intervals; the second's are wider."
    predicted, actual = NUMBERS[kind](rng, n)
    second = predicted + 0.5 * rng.normal(size=n)
    return (
        actual,
        (predicted, predicted - 1.5, predicted + 1.5),
        (second, second - 1.8, second + 1.8),
    )


@cache
def number_truth(kind):
    rng = np.random.default_rng(99)
    actual, *predictions = numbers(kind, rng, 4_000_000)

    def of(guess, low, high):
        errors = guess - actual
        return {
            "rmse": np.sqrt((errors**2).mean()),
            "mae": np.abs(errors).mean(),
            "bias": errors.mean(),
            "r2": 1 - (errors**2).mean() / actual.var(),
            "coverage": ((low <= actual) & (actual <= high)).mean(),
        }

    return tuple(of(*prediction) for prediction in predictions)


def note_hits(hits, one, other, first, second):
    "Note of each interval of a measurement, and of its lead over another, if it holds the truth."
    for metric, true in first.items():
        value = one.interval(metric)
        hits[metric].append(value.low <= true <= value.high)
        gain = one.difference(other, metric)
        lead = true - second[metric]
        hits[f"gain in {metric}"].append(gain.low <= lead <= gain.high)


def number_rates(kind, rows, draws=DRAWS, per_key=1):
    "How often each interval of numbers, and of a difference, holds the truth."
    first, second = number_truth(kind)
    rng, hits = np.random.default_rng(1), defaultdict(list)
    for _ in range(draws):
        actual, p, q = numbers(kind, rng, rows)
        keys = np.arange(rows * per_key) // per_key
        actual, p, q = (np.repeat(v, per_key, axis=-1) for v in (actual, p, q))
        one, other = (nm.measure_numbers(actual, *each, groups=keys) for each in (p, q))
        note_hits(hits, one, other, first, second)
    return {name: float(np.mean(h)) for name, h in hits.items()}


def labels(rng, n, shares, skill=1.2):
    "The label of each row, and the probabilities of two models; the first is calibrated."
    codes = rng.choice(len(shares), n, p=shares)
    seen = rng.normal(size=(n, len(shares)))
    seen[np.arange(n), codes] += skill

    def scores(noise):
        logits = skill * (seen + noise) + np.log(shares)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    return codes, scores(0), scores(rng.normal(size=(n, len(shares))) * 0.5)


@cache
def class_truth(shares, rows=1_000_000):
    rng, shares = np.random.default_rng(99), np.array(shares) / np.sum(shares)
    codes, p, q = labels(rng, rows, shares)
    return tuple(cm.measure_classes(codes, s, s.argmax(axis=1)).values for s in (p, q))


def class_rates(rows, shares, draws=DRAWS, per_key=1):
    "How often each interval of several labels, and of a difference, holds the truth."
    first, second = class_truth(shares)
    shares = np.array(shares) / np.sum(shares)
    rng, hits = np.random.default_rng(1), defaultdict(list)
    for _ in range(draws):
        codes, p, q = labels(rng, rows, shares)
        if len(np.unique(codes)) < len(shares):
            continue
        if per_key > 1:
            codes, p, q = (np.repeat(v, per_key, axis=0) for v in (codes, p, q))
        keys = np.arange(len(codes)) // per_key
        one, other = (cm.measure_classes(codes, s, s.argmax(axis=1), groups=keys) for s in (p, q))
        note_hits(hits, one, other, first, second)
    return {name: float(np.mean(h)) for name, h in hits.items()}


@pytest.mark.parametrize(
    ("rows", "shares", "per_key"),
    [(100, (5, 3, 2), 1), (300, (12, 7, 1), 1), (300, (5, 3, 2), 3), (2000, (12, 7, 1), 1)],
)
def test_intervals_of_several_labels_hold_the_truth(rows, shares, per_key):
    rates = class_rates(rows, shares, per_key=per_key)
    promised = 0.93 if rows * shares[-1] / sum(shares) >= 30 else 0.9
    assert min(rates.values()) >= least(promised), rates


@pytest.mark.parametrize("rows", [100, 300, 2000])
@pytest.mark.parametrize("kind", NUMBERS)
def test_intervals_of_numbers_hold_the_truth(kind, rows):
    rates = number_rates(kind, rows)
    squared = [rate for name, rate in rates.items() if "rmse" in name or "r2" in name]
    heavy = {"lognormal": 0.9, "multiplied": 0.87}  # a few rows bring nearly all of the squares
    assert min(squared) >= least(heavy.get(kind, 0.93)), rates
    others = [rate for name, rate in rates.items() if "rmse" not in name and "r2" not in name]
    assert min(others) >= least(0.93 if rows > 100 or kind != "lognormal" else 0.9), rates


def test_repeated_rows_of_a_key_make_no_interval_narrower():
    rates = number_rates("exponential", 100, per_key=3)
    assert min(rates.values()) >= least(0.93), rates


def test_metrics_of_labels_are_scikit_learns():
    rng = np.random.default_rng(0)
    codes, scores, _ = labels(rng, 500, np.array([0.6, 0.3, 0.1]))
    decided = scores.argmax(axis=1)
    expected = {
        "log_loss": sk.log_loss(codes, scores),
        "brier": ((scores - np.eye(3)[codes]) ** 2).sum(axis=1).mean(),
        "accuracy": sk.accuracy_score(codes, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(codes, decided),
        "f1": sk.f1_score(codes, decided, average="macro"),
        "roc_auc": sk.roc_auc_score(codes, scores, multi_class="ovr"),
    }
    measured = cm.measure_classes(codes, scores, decided)
    assert measured.values == pytest.approx(expected)
    assert list(measured.values) == list(cm.CLASS_METRICS)
    only = cm.measure_decisions(codes, decided)
    assert set(only.values) == {"accuracy", "balanced_accuracy", "f1"}


def test_metrics_of_numbers_are_scikit_learns():
    rng = np.random.default_rng(0)
    actual, (predicted, low, high), _ = numbers("student", rng, 500)
    measured = nm.measure_numbers(actual, predicted, low, high)
    expected = {
        "rmse": sk.root_mean_squared_error(actual, predicted),
        "mae": sk.mean_absolute_error(actual, predicted),
        "r2": sk.r2_score(actual, predicted),
        "bias": (predicted - actual).mean(),
        "coverage": ((low <= actual) & (actual <= high)).mean(),
        "interval_width": 3.0,
    }
    assert measured.values == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_numbers_without_any_error_or_spread_are_measured(value):
    measured = nm.measure_numbers(np.full(40, value), np.full(40, value))
    assert "r2" not in measured.values and measured.interval("rmse").value == 0
    for metric in measured.values:
        interval = measured.interval(metric)
        assert interval.low <= interval.value <= interval.high
    same = measured.difference(measured, "mae")
    assert (same.low, same.high) == (0, 0)


def test_a_label_with_one_row_makes_no_macro_metric_sure():
    codes = np.r_[np.zeros(50, int), np.ones(49, int), 2]
    scores = np.eye(3)[codes] * 0.9 + 0.1 / 3
    measured = cm.measure_classes(codes, scores, codes)
    for metric in ("balanced_accuracy", "f1", "roc_auc"):
        assert measured.interval(metric).low < 0.8, metric
    assert measured.fewest == 1
