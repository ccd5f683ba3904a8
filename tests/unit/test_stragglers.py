"""A slow rank is named once it has been slow for three lines, and nobody else ever is."""

import random
import time

import pytest
import torch

from dnascale.train.stragglers import ForwardClock, Stragglers


def looked(lines: list[tuple[list[float], list[float]]], step_seconds: float = 1.0) -> list[tuple[int, int, str]]:
    one, found = Stragglers(), []
    for number, (forward, waited) in enumerate(lines, start=1):
        found += [(s.step, s.rank, s.section) for s in one.look(10 * number, forward, waited, step_seconds)]
    return found


IDLE = [0.0, 0.0, 0.0, 0.0]
SLOW = [0.1, 0.1, 0.14, 0.1]


def test_a_rank_whose_forward_pass_is_slow_is_named_once_after_three_lines() -> None:
    assert looked([(SLOW, IDLE)] * 9) == [(30, 2, "forward")]
    (found,) = Stragglers.look(warmed := _after(2), 30, SLOW, IDLE, 1.0)
    assert (found.seconds, found.times) == (0.14, pytest.approx(1.4))
    assert warmed.look(40, SLOW, IDLE, 1.0) == []


def _after(lines: int) -> Stragglers:
    one = Stragglers()
    for _ in range(lines):
        one.look(0, SLOW, IDLE, 1.0)
    return one


def test_it_is_named_again_after_it_has_kept_up() -> None:
    even = ([0.1] * 4, IDLE)
    assert looked([*[(SLOW, IDLE)] * 4, even, *[(SLOW, IDLE)] * 3]) == [(30, 2, "forward"), (80, 2, "forward")]


def test_a_rank_that_waits_for_its_data_is_named_where_that_matters() -> None:
    waits = [0.01, 0.2, 0.01, 0.01]
    assert looked([([0.1] * 4, waits)] * 5) == [(30, 1, "data")]
    assert looked([([0.1] * 4, waits)] * 5, step_seconds=10.0) == []


def test_of_two_ranks_the_slower_one_is_compared_with_the_other() -> None:
    assert looked([([0.13, 0.09], [0.0, 0.0])] * 3) == [(30, 0, "forward")]
    assert looked([([0.1], [0.5])] * 9) == []


def test_noise_names_nobody() -> None:
    rng = random.Random(0)
    lines = [
        ([rng.gauss(0.1, 0.01) for _ in range(8)], [abs(rng.gauss(0, 0.01)) for _ in range(8)]) for _ in range(1000)
    ]
    assert looked(lines) == []
    # Even when it is large, as long as it is another rank each time.
    turns = [([0.2 if rank == line % 4 else 0.1 for rank in range(4)], IDLE) for line in range(1000)]
    assert looked(turns) == []


def test_the_clock_gives_the_mean_of_a_forward_pass_and_begins_anew() -> None:
    clock = ForwardClock(torch.device("cpu"))
    for seconds in (0.01, 0.03):
        with clock.forward():
            time.sleep(seconds)
    assert 0.02 <= clock.mean() < 0.2
    assert clock.mean() == 0.0
