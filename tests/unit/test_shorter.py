"""Shorter windows, cut from those of an order: every part once, exact over stages, and the same for every reader."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnascale.data.order import Grid, Mixture, Order, Windows
from dnascale.data.shorter import ShorterWindows

TOKENS = np.array([6400, 5000, 6400, 900])


def order(lanes: int | None = None, stretch: int = 16, mixed: bool = False, context: int = 64) -> Order:
    grids = [Grid.of(TOKENS, context), Grid.of(TOKENS[:2], context)][: 1 + mixed]
    return Order(grids, seed=3, mixture=Mixture([3, 1]) if mixed else None, lanes=lanes, lane_windows=stretch)


def rows(windows: Windows) -> set[tuple[int, ...]]:
    return set(zip(windows.epoch.tolist(), windows.shard.tolist(), windows.start.tolist(), strict=True))


@given(
    parts=st.sampled_from([1, 2, 4, 8]), first=st.integers(0, 700), count=st.integers(1, 200), stretch=st.integers(1, 90),
    mixed=st.booleans(), lanes=st.sampled_from([None, 3]),
)  # fmt: skip
def test_a_stage_sees_every_part_of_its_windows_once_and_nothing_else(
    parts: int, first: int, count: int, stretch: int, mixed: bool, lanes: int | None
) -> None:
    whole = order(lanes, stretch, mixed)
    found = ShorterWindows(whole, parts, first, count).windows(np.arange(count * parts))
    of_whole = whole.windows(first + np.arange(count))
    size = 64 // parts
    expected = {(e, s, start + part * size) for e, s, start in rows(of_whole) for part in range(parts)}
    assert rows(found) == expected
    assert len(found) == len(expected)
    assert len(np.unique(found.key)) == len(found)  # each has masks of its own


def test_parts_of_one_window_are_spread_over_their_stretch() -> None:
    whole = order(stretch=200)
    place = ShorterWindows(whole, 8, 0, 200).windows(np.arange(1600))
    pairs = np.flatnonzero((place.shard[1:] == place.shard[:-1]) & (np.abs(np.diff(place.start)) < 64))
    assert len(pairs) < 40  # in order they would be 1,400


def test_windows_do_not_depend_on_how_many_are_asked_for() -> None:
    shorter = ShorterWindows(order(), 4, 10, 150)
    at_once = shorter.windows(np.arange(600))
    one_by_one = [shorter.windows(np.array([p])) for p in (0, 63, 64, 599)]
    for p, window in zip((0, 63, 64, 599), one_by_one, strict=True):
        assert rows(window) == rows(at_once.take(slice(p, p + 1)))
        assert window.key == at_once.key[p]


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    """The last stage has no end; what a reader asks for past the end of others is harmless."""
    endless = ShorterWindows(order(), 4, 10)
    assert rows(endless.windows(np.arange(64))) == rows(ShorterWindows(order(), 4, 10, 16).windows(np.arange(64)))
    ShorterWindows(order(), 4, 10, 20).windows(np.arange(500))


def test_other_seeds_and_stages_shuffle_differently() -> None:
    here = ShorterWindows(order(), 4, 0).windows(np.arange(64))
    there = ShorterWindows(order(), 4, 16).windows(np.arange(64))
    inside = here.start - here.start.min(), there.start - there.start.min()
    assert not np.array_equal(*inside)


@pytest.mark.parametrize("parts", [2, 4])
def test_the_parts_lie_inside_their_window(parts: int) -> None:
    found = ShorterWindows(order(), parts, 0).windows(np.arange(100))
    assert (found.start + 64 // parts <= TOKENS[found.shard]).all()
