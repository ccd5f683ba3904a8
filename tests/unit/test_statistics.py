"""Estimates: an interval where there are groups to draw from, and none where there are not."""

import json
import math

import numpy as np
import pytest

from dnascale.evaluate.statistics import Estimate, bootstrap, shown


def mean(values: np.ndarray, groups: np.ndarray) -> Estimate:
    return bootstrap(lambda rows: float(values[rows].mean()), groups)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = mean(values, np.arange(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


@pytest.mark.parametrize(("groups", "interval"), [(1, False), (4, False), (5, True)])
def test_few_groups_have_no_interval_however_many_rows_they_have(groups: int, interval: bool) -> None:
    values = np.arange(40.0)
    found = mean(values, np.arange(40) % groups)
    assert found.value == values.mean()
    assert math.isfinite(found.low) == math.isfinite(found.high) == interval
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["low"] == (found.low if interval else None)


def test_of_no_rows_nothing_is_told() -> None:
    found = mean(np.empty(0), np.empty(0, dtype=int))
    assert found.to_dict() == {"value": None, "low": None, "high": None}
    assert str(found) == shown(found.to_dict()) == "–"


def test_an_estimate_is_shown_with_its_interval_where_it_has_one() -> None:
    assert str(Estimate(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    assert str(Estimate(0.5, math.nan, math.nan)) == shown({"value": 0.5, "low": None, "high": None}) == "0.500"
