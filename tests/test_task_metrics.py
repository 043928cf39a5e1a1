"Metrics of several labels and of numbers: scikit-learn's values, intervals that hold the truth."

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
NUMBER_RATES = {}  # of heavy tails, the squares promise less


def numbers(kind, rng, n):
    "True numbers, two predictions, the ends of the first one's interval."
    predicted, actual = NUMBERS[kind](rng, n)
    second = predicted + 0.5 * rng.normal(size=n)
    return actual, predicted, second, predicted - 1.5, predicted + 1.5


def number_truth(kind):
    rng = np.random.default_rng(99)
    actual, predicted, second, low, high = numbers(kind, rng, 8_000_000)

    def of(guess):
        errors = guess - actual
        return {
            "rmse": np.sqrt((errors**2).mean()),
            "mae": np.abs(errors).mean(),
            "bias": errors.mean(),
            "r2": 1 - (errors**2).mean() / actual.var(),
            "coverage": ((low <= actual) & (actual <= high)).mean(),
        }

    return of(predicted), of(second)


def number_rates(kind, rows, draws=DRAWS, per_key=1):
    "How often each interval of numbers, and of a difference, holds the truth."
    first, second = number_truth(kind)
    rng, hits = np.random.default_rng(1), {}
    for _ in range(draws):
        actual, p, q, low, high = numbers(kind, rng, rows)
        if per_key > 1:
            actual, p, q, low, high = (np.repeat(v, per_key) for v in (actual, p, q, low, high))
        keys = np.arange(len(actual)) // per_key
        one = nm.measure_numbers(actual, p, low, high, groups=keys)
        other = nm.measure_numbers(actual, q, low, high, groups=keys)
        for metric, true in first.items():
            value = one.interval(metric)
            hits.setdefault(metric, []).append(value.low <= true <= value.high)
            gain = one.difference(other, metric)
            lead = true - second[metric]
            hits.setdefault(f"gain in {metric}", []).append(gain.low <= lead <= gain.high)
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


def class_truth(shares, rows=1_000_000):
    rng = np.random.default_rng(99)
    codes, p, q = labels(rng, rows, shares)
    return tuple(cm.measure_classes(codes, s, s.argmax(axis=1)).values for s in (p, q))


def class_rates(rows, shares, draws=DRAWS, per_key=1):
    "How often each interval of several labels, and of a difference, holds the truth."
    shares = np.array(shares) / np.sum(shares)
    first, second = class_truth(shares)
    rng, hits = np.random.default_rng(1), {}
    for _ in range(draws):
        codes, p, q = labels(rng, rows, shares)
        if len(np.unique(codes)) < len(shares):
            continue
        if per_key > 1:
            codes, p, q = (np.repeat(v, per_key, axis=0) for v in (codes, p, q))
        keys = np.arange(len(codes)) // per_key
        one, other = (cm.measure_classes(codes, s, s.argmax(axis=1), groups=keys) for s in (p, q))
        for metric, true in first.items():
            value = one.interval(metric)
            hits.setdefault(metric, []).append(value.low <= true <= value.high)
            gain = one.difference(other, metric)
            lead = true - second[metric]
            hits.setdefault(f"gain in {metric}", []).append(gain.low <= lead <= gain.high)
    return {name: float(np.mean(h)) for name, h in hits.items()}
