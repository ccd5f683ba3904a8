"""AUROC, medians, and their 95 % intervals by bootstrap over groups."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPLICATES = 1000
FEWEST_GROUPS = 5
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; nan bounds where there is none to tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return shown(vars(self))

    def to_dict(self) -> dict[str, float | None]:
        """JSON has no nan."""
        return {key: value if math.isfinite(value) else None for key, value in vars(self).items()}


def shown(estimate: dict[str, float | None], form: str = ".3f") -> str:
    """An estimate, as `to_dict` gives it, for people: without an interval where there is none, a dash where there is no value."""
    numbers = {key: value for key, value in estimate.items() if value is not None and math.isfinite(value)}
    if "value" not in numbers:
        return "–"
    interval = f" [{numbers['low']:{form}}, {numbers['high']:{form}}]" if {"low", "high"} <= numbers.keys() else ""
    return f"{numbers['value']:{form}}{interval}"


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
    is nan (no rows of a class) are left out. nan without rows; nan bounds for fewer than `FEWEST_GROUPS`, which tell nothing of others.
    """
    if not len(groups):
        return Estimate(float("nan"), float("nan"), float("nan"))
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    value = float(statistic(np.arange(len(groups))))
    if count < FEWEST_GROUPS:
        return Estimate(value, float("nan"), float("nan"))
    order = np.argsort(member, kind="stable")
    rows_of = np.split(order, np.cumsum(np.bincount(member, minlength=count))[:-1])
    rng = np.random.default_rng(seed)
    values = np.empty(replicates)
    for number in range(replicates):
        values[number] = statistic(np.concatenate([rows_of[group] for group in rng.integers(0, count, count)]))
    values = values[np.isfinite(values)]
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (float("nan"), float("nan"))
    return Estimate(value, float(low), float(high))
