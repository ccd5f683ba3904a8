"""AUROC, medians, and their 95 % intervals by bootstrap over groups."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPLICATES = 1000
FEWEST_GROUPS = 5
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(numerators: np.ndarray, denominators: np.ndarray, replicates: int = REPLICATES, seed: int = 0) -> Estimate:
    """Sum over sum, of n independent groups, and its interval when groups are drawn with replacement; nan bounds for fewer than
    `FEWEST_GROUPS`, which tell nothing of others.
    """
    value = float(numerators.sum() / denominators.sum())
    count = len(numerators)
    if count < FEWEST_GROUPS:
        return Estimate(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    values = np.empty(replicates)
    for number in range(replicates):
        drawn = rng.integers(0, count, count)
        values[number] = numerators[drawn].sum() / denominators[drawn].sum()
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a random positive is above a random negative, ties counting half; nan when one is empty."""
    if not (len(positive) and len(negative)):
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    up_to = np.searchsorted(ordered, positive, side="right")
    return float((below + up_to).sum() / (2 * len(positive) * len(negative)))


def bootstrap(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> Estimate:
    """`statistic(rows)` of all rows, and the 2.5 and 97.5 percentiles when whole groups are drawn with replacement.

    `groups` [n] says which group each row belongs to: rows of one group are not independent. Replicates in which the statistic
    is nan (no rows of a class) are left out. There is at least one row.
    """
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    order = np.argsort(member, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(member, minlength=count))[:-1])
    rng = np.random.default_rng(seed)
    values = np.empty(replicates)
    for number in range(replicates):
        values[number] = statistic(np.concatenate([rows_of[group] for group in rng.integers(0, count, count)]))
    values = values[np.isfinite(values)]
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (float("nan"), float("nan"))
    return Estimate(float(statistic(np.arange(len(groups)))), float(low), float(high))
