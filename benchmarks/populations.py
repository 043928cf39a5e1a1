"""Populations whose true figures are known, to draw rows from.

They are for the simulations of intervals and tests. A row has a latent number; it is positive where
that number is large. A score sees the latent number through noise, and its probability is the exact
one given the score. Rows of one key share half of the variance of both.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm


@dataclass(frozen=True)
class Population:
    "What rows are like."

    rows: int = 200
    prevalence: float = 0.3  # share of positive rows
    tied: bool = False  # ten different probabilities only
    per_key: int = 1  # rows a key
    skill: float = 0.8  # correlation of the score with the latent number
    other: float = 0.7  # the same of a second score
    alike: float = 0.5  # correlation of the noise in both scores
    threshold: float = 0.3

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.prevalence:.0%} positive, "
            f"{'tied' if self.tied else 'plain'} scores, {self.per_key} a key"
        )

    def _number(self, rng: np.random.Generator) -> np.ndarray:
        "Normal numbers, alike within a key."
        own = rng.normal(size=self.rows)
        if self.per_key == 1:
            return own
        shared = np.repeat(rng.normal(size=-(-self.rows // self.per_key)), self.per_key)[
            : self.rows
        ]
        return np.sqrt(0.5) * (own + shared)

    def probability(self, score: np.ndarray, skill: float) -> np.ndarray:
        "The chance that a row of this score is positive; in tied form the middle of its tenth."
        p = norm.cdf((skill * score - norm.isf(self.prevalence)) / np.sqrt(1 - skill**2)).clip(
            1e-6, 1 - 1e-6
        )
        return (np.minimum(np.floor(10 * p), 9) + 0.5) / 10 if self.tied else p

    def draw(
        self, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        "Labels, the probabilities of both models, keys."
        latent, noise = self._number(rng), self._number(rng)
        second = self.alike * noise + np.sqrt(1 - self.alike**2) * self._number(rng)
        scores = [
            r * latent + np.sqrt(1 - r**2) * e
            for r, e in ((self.skill, noise), (self.other, second))
        ]
        labels = (latent > norm.isf(self.prevalence)).astype(int)
        return (
            labels,
            self.probability(scores[0], self.skill),
            self.probability(scores[1], self.other),
            np.arange(self.rows) // self.per_key,
        )

    def truth(self, skill: float | None = None) -> dict[str, float]:
        "The true value of each metric of a model, by numerical integration over the score."
        skill = self.skill if skill is None else skill
        score = np.linspace(-9, 9, 200_001)
        weight, p = (
            norm.pdf(score) / norm.pdf(score).sum(),
            replace(self, tied=False).probability(score, skill),
        )
        q = self.probability(score, skill)
        order = np.argsort(-q, kind="stable")
        score, weight, p, q = (v[order] for v in (score, weight, p, q))
        ends = np.flatnonzero(np.diff(q, append=-np.inf))
        tp, fp = np.cumsum(weight * p), np.cumsum(weight * (1 - p))
        tps, fps, picked = (
            np.append(0, tp[ends]),
            np.append(0, fp[ends]),
            int((q >= self.threshold).sum()) - 1,
        )
        hit, false, ones, zeros = tp[picked], fp[picked], tp[-1], fp[-1]
        return {
            "roc_auc": np.trapezoid(tps, fps) / (ones * zeros),
            "average_precision": (np.diff(tps) * tps[1:] / (tps[1:] + fps[1:])).sum() / ones,
            "brier": (weight * (p * (1 - q) ** 2 + (1 - p) * q**2)).sum(),
            "log_loss": -(weight * (p * np.log(q) + (1 - p) * np.log(1 - q))).sum(),
            "accuracy": hit + zeros - false,
            "precision": hit / (hit + false),
            "recall": hit / ones,
            "f1": 2 * hit / (hit + false + ones),
        }


def correlated(
    rng: np.random.Generator, rows: int, effect: float, *, per_key: int = 1
) -> tuple[np.ndarray, ...]:
    "Labels, numbers whose rank-biserial correlation with them is `effect`, keys."
    shared = lambda: np.repeat(rng.normal(size=-(-rows // per_key)), per_key)[:rows]
    noise = (
        rng.normal(size=rows) if per_key == 1 else np.sqrt(0.5) * (rng.normal(size=rows) + shared())
    )
    latent = (
        rng.normal(size=rows) if per_key == 1 else np.sqrt(0.5) * (rng.normal(size=rows) + shared())
    )
    labels = (latent > norm.isf(0.3)).astype(int)
    return (
        labels,
        noise + labels * np.sqrt(2) * norm.ppf((1 + effect) / 2),
        np.arange(rows) // per_key,
    )


def categories(
    rng: np.random.Generator, rows: int, effect: float, shares: np.ndarray, *, per_key: int = 1
) -> tuple[np.ndarray, ...]:
    """Labels, categories whose Cramér's V with them is `effect`, keys.

    The first categories are more often positive.
    """
    places = np.repeat(rng.random(-(-rows // per_key)), per_key)[:rows]
    if per_key > 1:
        places = np.where(rng.random(rows) < 0.7, places, rng.random(rows))
    category = np.searchsorted(np.cumsum(shares)[:-1], places)
    first = np.cumsum(shares) - shares / 2 < 0.5
    part, rate = shares[first].sum(), 0.3
    step = effect * np.sqrt(rate * (1 - rate) / (part * (1 - part)))
    chance = rate + step * (first - part)
    latent = (
        rng.random(rows)
        if per_key == 1
        else norm.cdf(
            np.sqrt(0.5)
            * (
                rng.normal(size=rows)
                + np.repeat(rng.normal(size=-(-rows // per_key)), per_key)[:rows]
            )
        )
    )
    return (latent < chance[category]).astype(int), category, np.arange(rows) // per_key
