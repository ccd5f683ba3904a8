"""The order of windows: a keyed permutation that looks random, grids that cover the shards, sources mixed in proportion.

Truth comes from definitions in plain Python (whole integers, one item at a time) and from numpy's permutations.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from itertools import accumulate, chain, combinations, count, islice, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.order import Grid, Mixture, Order, Windows, hash64, mix64, permute, temperature_weights

Address = tuple[int, int, int, int]
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def shuffled(size: int, key: int, inverse: bool = False) -> np.ndarray:
    return permute(np.arange(size), size, key, inverse)


@cache
def orders(size: int, number: int) -> np.ndarray:
    """Permutations under `number` keys that are hashes, as they are in use: int64 [number, size]."""
    keys = np.repeat(hash64(size, np.arange(number)), size)
    return permute(np.tile(np.arange(size), (number, 1)), size, keys)


@cache
def orders_of_numpy(size: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(size)
    return rng.permuted(np.tile(np.arange(size), (number, 1)), axis=1)


def addresses(windows: Windows) -> list[Address]:
    columns = (windows.epoch, windows.shard, windows.start, windows.key)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def z_score(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic of `counts` against uniform is above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# --- the definitions in plain Python ---


def naive_mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    return x ^ (x >> 31)


def naive_hash(*parts: int | bytes) -> int:
    state = golden = 0x9E3779B97F4A7C15
    for part in parts:
        number = part if isinstance(part, int) else int.from_bytes(part, "big")
        state = naive_mix64((state + golden + number) & U64)
    return state


def naive_mix32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & U32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & U32
    return x ^ (x >> 16)


def naive_permute(index: int, size: int, key: int, inverse: bool = False) -> int:
    columns = 1
    while 4 * columns**2 <= 2 * (size - 1):
        columns *= 2
    rows = math.ceil(Fraction(size, columns))
    while True:
        row, column = divmod(index, columns)
        turns = list(range(24 if size < 4096 else 6))
        for turn in reversed(turns) if inverse else turns:
            salt = (key >> 32 if turn % 2 else key) + turn // 2 * 0x9E3779B9
            if turn % 2:
                column ^= naive_mix32((row + salt) & U32) % columns
            else:
                shift = naive_mix32((column + salt) & U32) * rows // 2**32
                row = (row - shift if inverse else row + shift) % rows
        index = row * columns + column
        if index < size:
            return index


def naive_grid(tokens: list[int], context: int) -> list[tuple[int, int]]:
    """Of each shard: its number of windows, and how many phases it may have."""
    counts = [size // context if size < 64 * context else (size - context + 1) // context for size in tokens]
    return [(n, size - n * context + 1 if n else 1) for size, n in zip(tokens, counts, strict=True)]


def naive_epoch(
    tokens: list[int], context: int, where: tuple[int, bytes, int, int], lanes: int | None, lane_windows: int
) -> list[Address]:
    """One epoch of one source, its shards numbered from 0."""
    grid = naive_grid(tokens, context)
    whole = [(shard, number) for shard, (windows, _) in enumerate(grid) for number in range(windows)]
    key = naive_hash(*where, b"order")
    if lanes is None:
        sequence = [whole[naive_permute(position, len(whole), key)] for position in range(len(whole))]
    else:
        shards = sorted(range(len(tokens)), key=lambda shard: naive_hash(*where, b"shards", shard))
        line = [(shard, number) for shard in shards for number in range(grid[shard][0])]
        lanes = min(lanes, len(line))
        sizes = [len(line) // lanes + (lane < len(line) % lanes) for lane in range(lanes)]
        dealt: list[Iterator[tuple[int, int]]] = []
        for lane, end in enumerate(accumulate(sizes)):
            mine = line[end - sizes[lane] : end]
            stretches = [mine[begin : begin + lane_windows] for begin in range(0, len(mine), lane_windows)]
            keys = [naive_hash(key, lane, number) for number in range(len(stretches))]
            dealt.append(
                iter(
                    [
                        s[naive_permute(i, len(s), k)]
                        for s, k in zip(stretches, keys, strict=True)
                        for i in range(len(s))
                    ]
                )
            )
        sequence = [next(dealt[position % lanes]) for position in range(len(line))]
    place = {window: i for i, window in enumerate(whole)}
    phase = [naive_hash(*where, b"phase", shard) % slack for shard, (_, slack) in enumerate(grid)]
    return [
        (where[-1], shard, phase[shard] + number * context, naive_hash(naive_hash(*where), place[shard, number]) >> 1)
        for shard, number in sequence
    ]


def naive_order(
    sources: list[list[int]],
    context: int,
    seed: int,
    weights: list[int] | None = None,
    lanes: int | None = None,
    lane_windows: int = 16_384,
) -> Iterator[Address]:
    """One window after the other, epoch after epoch of each source."""

    def endless(source: int) -> Iterator[Address]:
        before = sum(map(len, sources[:source]))
        for epoch in count():
            where = (seed, b"source", source, epoch)
            for _, shard, start, key in naive_epoch(sources[source], context, where, lanes, lane_windows):
                yield epoch, shard + before, start, key

    streams = [endless(source) for source in range(len(sources))]
    period = naive_mixture(naive_counts(weights)) if weights else [0]
    while True:
        for source in period:
            yield next(streams[source])


def naive_counts(weights: list[int]) -> list[int]:
    """Largest remainders, with exact fractions."""
    quota = [Fraction(10_000 * weight, sum(weights)) for weight in weights]
    counts = [math.floor(q) for q in quota]
    while sum(counts) < 10_000:
        counts[max(range(len(counts)), key=lambda i: quota[i] - counts[i])] += 1
    return counts


def naive_mixture(counts: list[int]) -> list[int]:
    """The source of each window of a period: each is due somewhere in its n-th part of it, where a hash says."""
    due = []
    for source, n in enumerate(counts):
        for turn in range(n):
            draw = (naive_hash(b"source", source, turn) >> 11) / 2**53
            due.append(((turn + draw) / n, source))
    return [source for _, source in sorted(due)]


# --- hash ---


def test_mixing_is_the_finaliser_of_splitmix64() -> None:
    # The first outputs of SplitMix64 from seed 0, as its authors' C program prints them.
    golden = 0x9E3779B97F4A7C15
    states = [(golden * n) & U64 for n in (1, 2, 3)]
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [naive_mix64(state) for state in states] == known
    assert mix64(np.array(states, dtype=np.uint64)).tolist() == known


@given(parts=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4))
def test_hash_of_several_integers_equals_plain_python_and_broadcasts(parts: list[int]) -> None:
    assert int(hash64(*parts)) == naive_hash(*parts)
    assert int(hash64(*parts[:-1], np.array([5, parts[-1]]))[1]) == naive_hash(*parts)


# --- permutation: a bijection ---


def test_permutation_is_a_bijection_for_every_small_size_and_its_inverse_undoes_it() -> None:
    for size in range(1, 301):
        for key in (0, 0x0123456789ABCDEF, U64):
            order = shuffled(size, key)
            assert sorted(order.tolist()) == list(range(size)), (size, key)
            assert (permute(order, size, key, inverse=True) == np.arange(size)).all(), (size, key)
            assert (order[shuffled(size, key, inverse=True)] == np.arange(size)).all(), (size, key)


@pytest.mark.parametrize(
    "size",
    [
        *(2**bits + off for bits in (11, 12, 13, 16, 18) for off in (-1, 0, 1)),
        *(root**2 + off for root in (63, 65, 317) for off in (-1, 0, 1)),
        4096 + 64, 65_536 + 255, 65_536 + 256, 65_536 + 257, 262_145, 999_983,
    ],
)  # fmt: skip
def test_permutation_is_a_bijection_for_large_sizes_and_its_inverse_undoes_it(size: int) -> None:
    order = shuffled(size, 0xFEDCBA9876543210)
    assert (np.bincount(order, minlength=size) == 1).all()
    assert (permute(order, size, 0xFEDCBA9876543210, inverse=True) == np.arange(size)).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 256, 300])
def test_permutation_of_a_small_range_equals_a_definition_in_plain_python(size: int) -> None:
    for key in (0, 0x0123456789ABCDEF, U64):
        for inverse in (False, True):
            expected = [naive_permute(index, size, key, inverse) for index in range(size)]
            assert shuffled(size, key, inverse).tolist() == expected


@given(size=st.integers(2, 2**61), key=st.integers(0, U64), data=st.data())
@settings(max_examples=150, deadline=None)
def test_permutation_of_a_huge_range_equals_plain_python_and_keeps_items_apart(
    size: int, key: int, data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    index += sorted({0, size // 2, size - 1} - set(index))
    out = permute(np.array(index), size, key)
    assert out.tolist() == [naive_permute(i, size, key) for i in index]
    assert len(set(out.tolist())) == len(index)
    assert 0 <= out.min() <= out.max() < size
    assert permute(out, size, key, inverse=True).tolist() == index
    assert permute(np.array(index), size, key, inverse=True).tolist() == [
        naive_permute(i, size, key, True) for i in index
    ]


@pytest.mark.parametrize("size", [2**bits + off for bits in (31, 32, 33, 60, 61) for off in (-1, 0, 1)])
def test_permutation_is_right_where_words_of_32_bits_end(size: int) -> None:
    index = np.concatenate([[0, 1, size - 2, size - 1], np.random.default_rng(0).integers(0, size, 50)])
    for key in (0, U64):
        out = permute(index, size, key)
        assert out.tolist() == [naive_permute(i, size, key) for i in index.tolist()]
        assert (permute(out, size, key, inverse=True) == index).all()


@pytest.mark.parametrize("size", [2, 5, 17, 1000, 4097, 2**40 + 3])
def test_an_array_of_keys_gives_each_index_what_its_key_alone_gives(size: int) -> None:
    rng = np.random.default_rng(size)
    index = rng.integers(0, size, (6, 50))
    keys = rng.integers(0, U64, (6, 50), dtype=np.uint64, endpoint=True)
    for inverse in (False, True):
        together = permute(index, size, keys, inverse)
        assert together.shape == index.shape
        one_by_one = [
            int(permute(np.array(i), size, k, inverse))
            for i, k in zip(index.flat, keys.flat.copy().tolist(), strict=True)
        ]
        assert together.ravel().tolist() == one_by_one


def test_permutation_keeps_the_shape_and_does_not_change_its_arguments() -> None:
    index, keys = np.arange(24).reshape(2, 3, 4), hash64(np.arange(24)).reshape(2, 3, 4)
    before = index.copy(), keys.copy()
    assert permute(index, 24, keys).shape == (2, 3, 4)
    assert permute(np.array(3), 24, 1).shape == ()
    assert permute(np.array([], dtype=np.int64), 10, 0).shape == (0,)
    assert permute(index, 24, 1).dtype == np.int64
    assert (index == before[0]).all()
    assert (keys == before[1]).all()


def test_an_index_outside_the_range_is_refused() -> None:
    for bad in (-1, 10, 2**62):
        for inverse in (False, True):
            with pytest.raises(ValueError, match=r"outside \[0, 10\)"):
                permute(np.array([3, bad]), 10, 0, inverse)


# --- permutation: it looks random ---


def test_different_keys_give_unrelated_orders() -> None:
    size = 10_007
    several = [shuffled(size, key) for key in (0, 1, 2, 3, 1 << 32, 1 << 63)]
    for one, other in combinations(several, 2):
        assert (one == other).sum() < 10  # one fixed point is expected
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(size)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_over_keys_every_permutation_comes_equally_often(size: int) -> None:
    codes = orders(size, 50_000) @ size ** np.arange(size)
    every = [sum(item * size**i for i, item in enumerate(one)) for one in permutations(range(size))]
    counts = np.bincount(codes, minlength=size**size)[every]
    assert counts.sum() == 50_000
    assert abs(z_score(counts)) < 5


@pytest.mark.parametrize(
    ("size", "number"), [(2, 50_000), (3, 50_000), (5, 50_000), (7, 50_000), (17, 50_000), (64, 40_000)]
)
def test_over_keys_every_item_is_in_every_place_equally_often(size: int, number: int) -> None:
    many = orders(size, number)
    for place in range(size):
        assert abs(z_score(np.bincount(many[:, place], minlength=size))) < 5, place


@pytest.mark.parametrize(("size", "number"), [(3, 50_000), (5, 50_000), (7, 50_000), (17, 50_000), (64, 40_000)])
def test_over_keys_every_pair_of_items_is_in_every_pair_of_places_equally_often(size: int, number: int) -> None:
    many = orders(size, number)
    places = [place for place in (0, 1, 2, 4, 8, 9, 16, size - 1) if place < size]  # neighbours in rows and in columns
    for one, other in combinations(sorted(set(places)), 2):
        pairs = np.bincount(many[:, one] * size + many[:, other], minlength=size * size).reshape(size, size)
        assert (np.diag(pairs) == 0).all()
        assert abs(z_score(pairs[~np.eye(size, dtype=bool)])) < 5, (one, other)


@pytest.mark.parametrize("size", [4095, 4096, 4097, 5000])  # six turns from 4,096 on: the fewest for the size
@pytest.mark.parametrize("apart", [1, 32, 63, 64, 65, 2048])
def test_over_keys_the_distance_of_two_items_is_uniform(size: int, apart: int) -> None:
    keys = hash64(apart, np.arange(60_000))
    one, other = (permute(np.full(len(keys), index), size, keys) for index in (130, 130 + apart))
    counts = np.bincount((other - one) % size, minlength=size)
    assert counts[0] == 0
    assert abs(z_score(counts[1:])) < 5
    both = (one < 63 * 64) & (other < 63 * 64)  # in whole rows
    for a, b in ((one // 64, other // 64), (one % 64, other % 64)):  # rows of both, columns of both
        seen = np.bincount((a * 64 + b)[both], minlength=4096).reshape(64, 64)[: a[both].max() + 1, : a[both].max() + 1]
        assert abs(z_score(seen[~np.eye(len(seen), dtype=bool)])) < 5


@pytest.mark.parametrize("size", [1000, 4096, 4097, 5000, 16_384, 100_003])
def test_serial_correlation_at_every_lag_is_that_of_noise(size: int) -> None:
    for key in range(5):
        order = shuffled(size, int(hash64(key)))
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 / np.sqrt(size)
        noise = (order - order.mean()) / order.std()
        spectrum = np.abs(np.fft.rfft(noise)) ** 2 / size
        lags = np.fft.irfft(spectrum, size)[1 : size // 2] * np.sqrt(size)  # of the circle, each about normal
        assert np.abs(lags).max() < np.sqrt(2 * np.log(size / 2)) + 2
        assert (lags**2).mean() == pytest.approx(1, abs=5 * np.sqrt(2 / len(lags)))
        assert spectrum[1:].max() < np.log(size / 2) + 9  # each exponential: no period stands out


@pytest.mark.parametrize(
    ("size", "number"), [(17, 4000), (300, 500), (4096, 40), (5000, 40), (30_011, 20), (100_003, 5)]
)
@pytest.mark.parametrize("lag", [1, 2, 64])
def test_neighbours_are_as_far_apart_as_in_permutations_of_numpy(size: int, number: int, lag: int) -> None:
    lag = min(lag, size // 2)
    ours, theirs = (
        np.abs(many[:, lag:] - many[:, :-lag]).ravel() for many in (orders(size, number), orders_of_numpy(size, number))
    )
    steps = [np.cumsum(np.bincount(distances, minlength=size)) / len(distances) for distances in (ours, theirs)]
    assert np.abs(steps[0] - steps[1]).max() < 2.2 * np.sqrt(2 / len(ours))  # Kolmogorov-Smirnov, p = 0.0001
    # What a poor shuffle gets wrong first: items that were neighbours stay neighbours.
    expected = number * (size - lag) * 2 / size
    assert (ours == 1).sum() == pytest.approx(expected, abs=5 * np.sqrt(expected))


@pytest.mark.parametrize("size", [1000, 4096, 5000])
def test_consecutive_places_fill_the_square_evenly(size: int) -> None:
    many = orders(size, 100)
    for lag in (1, 2, 16, 32, 63, 64, 65, 128):
        one, other = (many[:, part] * 16 // size for part in (slice(None, -lag), slice(lag, None)))
        cells = np.bincount((one * 16 + other).ravel(), minlength=256)
        expected = np.bincount(np.arange(size) * 16 // size, minlength=16) / size
        expected = np.outer(expected, expected).ravel() * cells.sum()
        assert ((cells - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255), lag


def fixed_points(many: np.ndarray) -> np.ndarray:
    return (many == np.arange(many.shape[1])).sum(axis=1)


def ascents(many: np.ndarray) -> np.ndarray:
    return (np.diff(many) > 0).sum(axis=1)


def longest_increasing_run(many: np.ndarray) -> np.ndarray:
    up, longest = np.diff(many) > 0, np.ones(len(many))
    still, length = up, 1
    while still.any():
        longest[still.any(axis=1)] = length + 1
        still, length = still[:, :-1] & up[:, length:], length + 1
    return longest


def longest_increasing_subsequence(many: np.ndarray) -> np.ndarray:
    lengths = []
    for order in many[:150].tolist():
        piles: list[int] = []
        for item in order:
            pile = bisect_left(piles, item)
            piles[pile : pile + 1] = [item]
        lengths.append(len(piles))
    return np.array(lengths)


def cycles(many: np.ndarray) -> np.ndarray:
    numbers = []
    for order in many[:300].tolist():
        seen, number = [False] * len(order), 0
        for begin in range(len(order)):
            number += not seen[begin]
            while not seen[begin]:
                seen[begin], begin = True, order[begin]
        numbers.append(number)
    return np.array(numbers)


@pytest.mark.parametrize("size", [100, 1000, 4100])
@pytest.mark.parametrize(
    "statistic", [fixed_points, ascents, longest_increasing_run, longest_increasing_subsequence, cycles]
)
def test_statistics_of_permutations_are_those_of_numpy(
    size: int, statistic: Callable[[np.ndarray], np.ndarray]
) -> None:
    number = 600 if size < 4096 else 200
    ours, theirs = (statistic(many(size, number)).astype(float) for many in (orders, orders_of_numpy))
    error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert 0.7 < ours.std() / theirs.std() < 1.4


def test_fixed_points_and_ascents_have_the_moments_of_theory() -> None:
    many = orders(100, 20_000)
    points, up = fixed_points(many), ascents(many)
    assert points.mean() == pytest.approx(1, abs=5 / np.sqrt(20_000))
    assert points.var() == pytest.approx(1, abs=0.06)
    poisson = np.array([math.exp(-1) / math.factorial(k) for k in range(5)])
    np.testing.assert_allclose(np.bincount(points)[:5] / 20_000, poisson, atol=5 * 0.5 / np.sqrt(20_000))
    assert up.mean() == pytest.approx(99 / 2, abs=5 * np.sqrt(101 / 12 / 20_000))
    assert up.var() == pytest.approx(101 / 12, rel=0.06)


# --- the window grid ---

GRIDS = [
    ([64], 8), ([63], 8), ([65], 8), ([8], 8), ([7, 8], 8), ([100, 3, 8, 9, 250, 16, 0, 31, 32, 33], 8),
    ([511, 512, 513, 519, 520, 521, 1000, 999, 806], 8), ([50, 60, 0], 1), ([4096, 4095, 17], 64),
]  # fmt: skip


def coverage(shard_tokens: list[int], windows: Windows, context: int) -> list[np.ndarray]:
    """How often each token of each shard is in a window."""
    seen = [np.zeros(tokens, dtype=int) for tokens in shard_tokens]
    for _, shard, start, _ in addresses(windows):
        assert 0 <= start <= shard_tokens[shard] - context  # whole and inside its shard
        seen[shard][start : start + context] += 1
    return seen


@pytest.mark.parametrize(("shard_tokens", "context"), GRIDS)
@pytest.mark.parametrize("lanes", [None, 3])
def test_every_token_between_phase_and_last_window_is_covered_exactly_once(
    shard_tokens: list[int], context: int, lanes: int | None
) -> None:
    grid = Grid.of(shard_tokens, context)
    order = Order([grid], 3, lanes=lanes, lane_windows=10)
    for epoch in range(20):  # the count is the same in every epoch: position e * count begins epoch e
        windows = order.windows(epoch * grid.count + np.arange(grid.count))
        assert set(windows.epoch.tolist()) == {epoch}
        for tokens, seen in zip(shard_tokens, coverage(shard_tokens, windows, context), strict=True):
            assert seen.max(initial=0) <= 1
            assert seen.sum() % context == 0
            covered = np.flatnonzero(seen)
            if len(covered):
                assert (
                    np.diff(covered) == 1
                ).all()  # uncovered are only those before the phase and after the last window
                assert covered[0] < 2 * context
            assert tokens - len(covered) < 2 * context
            if tokens < 64 * context:
                assert len(covered) // context == tokens // context  # a small shard loses no window to the shift


@given(shard_tokens=st.lists(st.integers(0, 1200), max_size=20), context=st.integers(1, 17), key=st.integers(0, 2**63))
@settings(max_examples=200, deadline=None)
def test_grid_and_phases_equal_a_definition_in_plain_python(shard_tokens: list[int], context: int, key: int) -> None:
    grid, naive = Grid.of(np.array(shard_tokens, dtype=np.int64), context), naive_grid(shard_tokens, context)
    assert np.diff(grid.first).tolist() == [windows for windows, _ in naive]
    assert grid.slack.tolist() == [slack for _, slack in naive]
    assert grid.count == sum(windows for windows, _ in naive)
    phases = grid.phases(7, key).tolist()
    assert phases == [naive_hash(7, key, b"phase", shard) % slack for shard, (_, slack) in enumerate(naive)]
    for tokens, phase, (windows, _) in zip(shard_tokens, phases, naive, strict=True):
        assert phase + windows * context <= tokens < (windows + 2) * context


@given(
    windows=st.one_of(
        st.lists(st.integers(0, 5), min_size=1, max_size=8),
        st.builds(lambda each, n, last: [each] * n + [last], st.integers(0, 5), st.integers(0, 6), st.integers(0, 5)),
    )
)
@settings(max_examples=200, deadline=None)
def test_the_shard_of_a_window_is_the_same_by_division_and_by_search(windows: list[int]) -> None:
    grid = Grid.of(np.array(windows) * 8 + 3, 8)
    expected = list(chain.from_iterable([shard] * number for shard, number in enumerate(windows)))
    assert grid.shard(np.arange(grid.count)).tolist() == expected
    assert (np.searchsorted(grid.first, np.arange(grid.count), side="right") - 1).tolist() == expected


def test_phases_are_uniform_and_every_token_is_seen_in_every_frame() -> None:
    context, shard_tokens, epochs = 16, [1100, 2000, 1023, 63], 600
    grid = Grid.of(shard_tokens, context)
    order = Order([grid], 0)
    frames = [np.zeros((tokens, context), dtype=int) for tokens in shard_tokens]
    phases = [Counter[int]() for _ in shard_tokens]
    windows = order.windows(np.arange(epochs * grid.count))
    first: dict[tuple[int, int], int] = {}
    for windows_epoch, shard, start, _ in addresses(windows):
        frames[shard][np.arange(start, start + context), np.arange(context)] += 1
        first[windows_epoch, shard] = min(start, first.get((windows_epoch, shard), start))
    for (_, shard), phase in first.items():
        phases[shard][phase] += 1
    for shard, slack in enumerate([29, 17, 16, 16]):  # of 67, 124, 63 and 3 windows
        assert sum(phases[shard].values()) == epochs
        assert abs(z_score(np.array([phases[shard][phase] for phase in range(slack)]))) < 5
        ends = 2 * context - 1
        assert (frames[shard][ends:-ends] > 0).all()
        assert frames[shard][ends:-ends].size > 0 or shard == 3


@pytest.mark.parametrize("tokens", [8, 63, 64, 65, 71, 511, 512, 518, 519, 800, 806, 807])
def test_every_token_is_seen_in_some_epoch(tokens: int) -> None:
    order = Order([Grid.of([tokens], 8)], 0)
    windows = order.windows(np.arange(200 * order.epoch_windows))
    assert (coverage([tokens], windows, 8)[0] > 0).all()


# --- the order of one source ---

UNEQUAL = [100, 0, 3, 8, 9, 250, 7, 16, 0, 31, 512, 519, 640, 33, 0]
LANES = [None, 1, 2, 3, 7, 64, 1000]
STRETCHES = [1, 5, 64, 10_000]
WAYS = [(lanes, stretch) for lanes in LANES for stretch in STRETCHES if lanes or stretch == STRETCHES[0]]


@pytest.mark.parametrize(("lanes", "lane_windows"), WAYS)
@pytest.mark.parametrize("shard_tokens", [UNEQUAL, [8], [160, 160, 160, 41], [7, 2000]])
def test_order_equals_a_definition_in_plain_python(
    lanes: int | None, lane_windows: int, shard_tokens: list[int]
) -> None:
    order = Order([Grid.of(shard_tokens, 8)], 2**63 - 1, lanes=lanes, lane_windows=lane_windows)
    n = 2 * order.epoch_windows + 5
    naive = naive_order([shard_tokens], 8, 2**63 - 1, lanes=lanes, lane_windows=lane_windows)
    assert addresses(order.windows(np.arange(n))) == list(islice(naive, n))


@pytest.mark.parametrize(("lanes", "lane_windows"), WAYS)
@pytest.mark.parametrize("shard_tokens", [UNEQUAL, [8], [160, 160, 160, 41]])
def test_every_epoch_holds_every_window_exactly_once(
    lanes: int | None, lane_windows: int, shard_tokens: list[int]
) -> None:
    grid = Grid.of(shard_tokens, 8)
    order = Order([grid], 5, lanes=lanes, lane_windows=lane_windows)
    assert order.epoch_windows == grid.count
    for epoch in (0, 1, 2, 1000):
        windows = order.windows(epoch * grid.count + np.arange(grid.count))
        assert (windows.epoch == epoch).all()
        by_shard = [sorted(windows.start[windows.shard == shard].tolist()) for shard in range(len(shard_tokens))]
        for starts, (number, slack) in zip(by_shard, naive_grid(shard_tokens, 8), strict=True):
            assert len(starts) == number
            assert [start - starts[0] for start in starts] == [8 * i for i in range(number)]
            assert not starts or starts[0] < slack


@pytest.mark.parametrize(("lanes", "lane_windows"), WAYS)
@pytest.mark.parametrize("shard_tokens", [UNEQUAL, [8], [160, 160, 160, 41]])
def test_the_position_of_a_window_is_where_it_came_from(
    lanes: int | None, lane_windows: int, shard_tokens: list[int]
) -> None:
    order = Order([Grid.of(shard_tokens, 8)], 5, lanes=lanes, lane_windows=lane_windows)
    positions = np.random.default_rng(0).permutation(3 * order.epoch_windows + 7) + 11
    windows = order.windows(positions)
    assert (order.positions(windows) == positions).all()
    assert len(order.positions(Windows.empty(0))) == len(order.windows(np.arange(0))) == 0


@cache
def read_from_the_start(shard_tokens: tuple[int, ...], way: tuple[int | None, int]) -> list[Address]:
    order = Order([Grid.of(shard_tokens, 8)], 5, lanes=way[0], lane_windows=way[1])
    return addresses(order.windows(np.arange(401)))


@given(
    positions=st.lists(st.integers(0, 400), max_size=40),
    way=st.sampled_from([(None, 1), (1, 4), (3, 10), (5, 1000), (400, 3)]),
    shard_tokens=st.sampled_from([(100, 3, 41), (8, 9), (64, 64, 65), (1100, 0, 70)]),
)
@settings(max_examples=60, deadline=None)
def test_any_positions_in_any_order_give_what_reading_from_the_start_gives(
    positions: list[int], way: tuple[int | None, int], shard_tokens: tuple[int, ...]
) -> None:
    fresh = Order([Grid.of(shard_tokens, 8)], 5, lanes=way[0], lane_windows=way[1])
    got = fresh.windows(np.array(positions, dtype=np.int64))
    assert addresses(got) == [read_from_the_start(shard_tokens, way)[position] for position in positions]


@pytest.mark.parametrize("lanes", [None, 4])
def test_one_window_at_a_time_equals_all_at_once(lanes: int | None) -> None:
    order = Order([Grid.of([1000, 50, 333], 8), Grid.of([70], 8)], 5, Mixture([3, 1]), lanes, 16)
    together = order.windows(np.arange(600))
    assert [addresses(order.windows(np.array([position])))[0] for position in range(600)] == addresses(together)


@pytest.mark.parametrize("lanes", [None, 512])
def test_a_position_in_a_huge_corpus_far_into_training_is_reached_at_once(lanes: int | None) -> None:
    sizes = np.random.default_rng(3).integers(0, 2_000_000_000, 20_000)
    order = Order([Grid.of(sizes, 8192)], 1, lanes=lanes)
    assert order.epoch_windows > 2 * 10**9
    positions = 40 * order.epoch_windows + np.random.default_rng(4).integers(0, order.epoch_windows, 5000)
    windows = order.windows(positions)
    assert (windows.start + 8192 <= sizes[windows.shard]).all()
    assert (windows.epoch == 40).all()
    assert (order.positions(windows) == positions).all()


@pytest.mark.parametrize("lanes", [None, 4])
def test_windows_are_dealt_over_the_whole_split_from_the_first_position_on(lanes: int | None) -> None:
    shards, each = (4, 8000) if lanes is None else (4000, 8)  # with lanes, one window a shard: a shuffle of shards
    order = Order([Grid.of([8 * each] * shards, 8)], 0, lanes=lanes)
    quarter = order.windows(np.arange(order.epoch_windows // 4))
    assert abs(z_score(np.bincount(quarter.shard * 4 // shards, minlength=4))) < 5
    if lanes is None:
        assert abs(z_score(np.bincount(quarter.start * 10 // (8 * each + 8), minlength=10))) < 5


def test_orders_of_epochs_are_not_correlated() -> None:
    size, epochs = 5_003, 12
    order = Order([Grid.of([8 * size + 7], 8)], 0)
    starts = order.windows(np.arange(size * epochs)).start.reshape(epochs, size)
    assert order.epoch_windows == size
    places = starts // 8  # the phase is below 8
    when = np.argsort(places, axis=1)  # of each window, when it came
    for table in (places, when):
        between = np.corrcoef(table)[np.triu_indices(epochs, 1)]
        assert np.abs(between).max() < 5 / np.sqrt(size)
        assert between.mean() == pytest.approx(0, abs=5 / np.sqrt(size * len(between)))
    for one, other in ((0, 1), (1, 2), (5, 6), (0, 11)):
        assert (places[one] == places[other]).sum() < 9  # one is expected
        halves = ((when[one] < size // 2) & (when[other] < size // 2)).sum()
        assert halves == pytest.approx(size / 4, abs=5 * np.sqrt(size / 16))
        followed = (np.abs(np.diff(when[other][places[one]])) == 1).sum()  # neighbours in both
        assert followed < 2 + 5 * np.sqrt(2)


def test_orders_of_seeds_and_sources_are_not_correlated() -> None:
    size = 5_003
    grid = Grid.of([8 * size + 7], 8)
    several = [Order([grid], seed).windows(np.arange(size)).start // 8 for seed in (0, 1, 2, 2**63 - 1)]
    mixed = Order([grid, grid], 0, Mixture([1, 1])).windows(np.arange(2 * size))
    several.append(mixed.take(mixed.shard == 1).start // 8)
    assert np.abs(np.corrcoef(several)[np.triu_indices(5, 1)]).max() < 5 / np.sqrt(size)
    assert (mixed.take(mixed.shard == 0).start // 8 == several[0]).all()  # the first source goes as it does alone


# --- keys ---


def test_keys_are_unique_over_windows_epochs_sources_and_seeds_and_not_negative() -> None:
    keys = []
    for seed in (0, 1, 2**63 - 1):
        order = Order([Grid.of([5000, 5000], 5), Grid.of([5000, 5000], 5), Grid.of([900], 5)], seed, Mixture([2, 2, 1]))
        windows = order.windows(np.arange(40_000))
        assert windows.epoch.max() > 5
        keys.append(windows.key)
    every = np.concatenate(keys)
    assert len(np.unique(every)) == 120_000
    assert every.min() >= 0
    bits = (every[:, None] >> np.arange(63)) & 1
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=5 * 0.5 / np.sqrt(120_000))


@pytest.mark.parametrize("shard_tokens", [UNEQUAL, [160, 160, 160, 41]])
def test_a_window_has_the_same_address_and_key_in_every_order(shard_tokens: list[int]) -> None:
    grid = Grid.of(shard_tokens, 8)
    everywhere = [
        sorted(addresses(Order([grid], 5, lanes=lanes, lane_windows=stretch).windows(np.arange(3 * grid.count))))
        for lanes, stretch in WAYS
    ]
    assert all(one == everywhere[0] for one in everywhere)


def test_digest_of_a_set_of_windows_does_not_depend_on_how_it_is_dealt_out() -> None:
    windows = Order([Grid.of([900, 70], 8)], 0).windows(np.arange(96))
    parts = [windows.take(slice(i, None, 3)).digest() for i in range(3)]
    assert sum(parts) == windows.digest() < 1 << 40
    assert windows.take(slice(1, None)).digest() != windows.digest()
    assert windows.take(np.arange(96)[::-1]).digest() == windows.digest()


def test_windows_are_taken_apart_and_put_together_again() -> None:
    windows = Order([Grid.of([900, 70], 8)], 0).windows(np.arange(96))
    again = Windows.empty(96)
    for rows in np.array_split(np.random.default_rng(0).permutation(96), 4):
        again.put(rows, windows.take(rows))
    assert len(again) == 96
    assert addresses(again) == addresses(windows)


# --- lanes ---


def shards_in_use(order: Order, begin: int, length: int) -> int:
    return len(np.unique(order.windows(np.arange(begin, begin + length)).shard))


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("smallest", [20, 32, 100])  # windows a shard
def test_with_lanes_only_few_shards_a_lane_are_in_use_at_a_time(lanes: int, smallest: int) -> None:
    stretch = 20
    sizes = np.random.default_rng(lanes).integers(smallest, 2 * smallest, 400) * 8
    order = Order([Grid.of(sizes, 8)], 1, lanes=lanes, lane_windows=stretch)
    begins = np.random.default_rng(0).integers(0, order.epoch_windows - lanes * stretch, 60).tolist()
    # A run of lanes * lane_windows positions lies in two stretches of each lane, and no shard is shorter than one.
    assert max(shards_in_use(order, begin, lanes * stretch) for begin in begins) <= 3 * lanes
    aligned = [begin - begin % (lanes * stretch) for begin in begins]
    assert max(shards_in_use(order, begin, lanes * stretch) for begin in aligned) <= 2 * lanes
    if lanes < 8:  # while a whole shuffle takes each window from another shard
        assert shards_in_use(Order([order.grids[0]], 1), 0, lanes * stretch) > 0.85 * lanes * stretch


@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_with_lanes_of_small_shards_those_of_two_stretches_are_in_use_at_a_time(lanes: int) -> None:
    stretch, each = 60, 10
    order = Order([Grid.of([each * 8] * 1000, 8)], 1, lanes=lanes, lane_windows=stretch)
    begins = np.random.default_rng(0).integers(0, order.epoch_windows - lanes * stretch, 60).tolist()
    assert max(shards_in_use(order, begin, lanes * stretch) for begin in begins) <= lanes * (2 * stretch // each + 1)


def test_a_shard_is_in_use_once_an_epoch_and_for_a_short_time() -> None:
    lanes, stretch, each = 4, 16, 32
    order = Order([Grid.of([each * 8] * 200, 8)], 1, lanes=lanes, lane_windows=stretch)
    shard = order.windows(np.arange(order.epoch_windows)).shard
    for one in range(200):
        at = np.flatnonzero(shard == one)
        # Two lanes have the shard where one ends and the next begins: the one at its last stretch, the other at its first.
        spans = [np.ptp(part) for lane in range(lanes) if len(part := at[at % lanes == lane])]
        assert len(spans) <= 2
        assert max(spans) < lanes * (each + 2 * stretch)


def test_lanes_visit_the_shards_in_another_order_each_epoch_and_each_seed() -> None:
    shards = 2000
    visits = []
    for seed in (0, 1):
        order = Order([Grid.of([8 * 8] * shards, 8)], seed, lanes=1, lane_windows=8)
        for epoch in range(6):
            shard = order.windows(epoch * order.epoch_windows + np.arange(order.epoch_windows)).shard
            visits.append(np.array(list(dict.fromkeys(shard.tolist()))))
            assert sorted(visits[-1].tolist()) == list(range(shards))
    table = np.array(visits)
    assert np.abs(np.corrcoef(table)[np.triu_indices(len(table), 1)]).max() < 5 / np.sqrt(shards)
    assert np.abs(np.corrcoef(np.argsort(table, axis=1))[np.triu_indices(len(table), 1)]).max() < 5 / np.sqrt(shards)
    distances = np.abs(np.diff(table)).ravel()
    theirs = np.abs(np.diff(orders_of_numpy(shards, len(table)))).ravel()
    steps = [np.cumsum(np.bincount(d, minlength=shards)) / len(d) for d in (distances, theirs)]
    assert np.abs(steps[0] - steps[1]).max() < 2.2 * np.sqrt(2 / len(distances))


def test_windows_are_shuffled_within_a_stretch_and_do_not_leave_it() -> None:
    stretch, size = 5000, 20_001
    order = Order([Grid.of([8 * size + 7], 8)], 0, lanes=2, lane_windows=stretch)
    assert order.epoch_windows == size
    places = order.windows(np.arange(size)).start // 8
    shuffles = []
    for lane, (begin, end) in enumerate(((0, 10_001), (10_001, size))):
        mine = places[lane::2]
        for first in range(begin, end, stretch):
            part = mine[first - begin : first - begin + stretch]
            assert sorted(part.tolist()) == list(range(first, min(first + stretch, end)))
            shuffles.append(part - first)
    full = np.array([part for part in shuffles if len(part) == stretch])
    assert len(full) == 4
    with_place = np.corrcoef(np.concatenate([full, [np.arange(stretch)]]))
    assert np.abs(with_place[np.triu_indices(5, 1)]).max() < 5 / np.sqrt(stretch)


# --- mixtures ---


def runs_deviate(mixture: Mixture) -> np.ndarray:
    """Per source: by how many windows the run that deviates most, of all runs, is off its proportion."""
    source, _ = mixture.sources(np.arange(mixture.PERIOD))
    worst = []
    for one, number in enumerate(mixture.counts):
        ahead = np.cumsum(source == one) - np.arange(1, mixture.PERIOD + 1) * number / mixture.PERIOD
        worst.append(np.ptp(np.concatenate([[0.0], ahead])))
    return np.array(worst)


WEIGHTS = [
    [1], [1, 1], [1, 3], [1, 9999], [5001, 4999], [1, 1, 1], [3, 2, 2, 1], [1, 10, 100, 1000], [7, 11, 13, 17, 19, 23],
    [1] * 8, [1000] + [1] * 9, [10_000 - 63] + [1] * 63, [1] * 37,
]  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
def test_mixture_equals_a_definition_in_plain_python(weights: list[int]) -> None:
    mixture = Mixture(weights)
    counts = naive_counts(weights)
    assert mixture.counts.tolist() == counts
    source, turn = mixture.sources(np.arange(25_000))
    assert source.tolist() == (naive_mixture(counts) * 3)[:25_000]
    seen = [0] * len(weights)
    for one, number in zip(source.tolist(), turn.tolist(), strict=True):  # 0, 1, 2, ... without gap in each source
        assert number == seen[one]
        seen[one] += 1


@given(
    weights=st.lists(st.floats(1e-2, 1.0), min_size=1, max_size=40), scale=st.sampled_from([1e-300, 1e-9, 1.0, 1e12])
)
@settings(max_examples=60, deadline=None)
def test_counts_are_the_weights_rounded_by_largest_remainders(weights: list[float], scale: float) -> None:
    counts = Mixture([weight * scale for weight in weights]).counts
    assert counts.sum() == 10_000
    quota = [10_000 * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    over = [float(number - exact) for number, exact in zip(counts.tolist(), quota, strict=True)]
    assert all(abs(off) < 1 + 1e-9 for off in over)
    up, down = [off for off in over if off > 1e-9], [off for off in over if off < -1e-9]
    assert not up or not down or max(up) <= 1 + min(down) + 1e-9  # the remainder of those rounded up is the larger


@pytest.mark.parametrize("weights", WEIGHTS)
def test_any_run_of_ten_thousand_positions_holds_exactly_the_counts(weights: list[int]) -> None:
    mixture = Mixture(weights)
    offsets = np.random.default_rng(len(weights)).integers(0, 10**12, 20).tolist()
    for offset in (0, 1, 9_999, 10_000, *offsets):
        source, _ = mixture.sources(offset + np.arange(10_000))
        assert np.bincount(source, minlength=len(weights)).tolist() == mixture.counts.tolist()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_shorter_runs_deviate_little(weights: list[int]) -> None:
    mixture = Mixture(weights)
    worst = runs_deviate(mixture)
    # A source is off by less than 2 of its own, and by its share of what all others are off.
    assert (worst < 2 + 2 * len(weights) * mixture.counts / 10_000).all()
    if len(weights) == 2:
        assert worst.max() < 3


@given(share=st.floats(1e-4, 1 - 1e-4))
@settings(max_examples=60, deadline=None)
def test_of_two_sources_any_run_is_less_than_three_windows_off(share: float) -> None:
    assert runs_deviate(Mixture([share, 1 - share])).max() < 3


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_position_of_a_window_of_a_source_is_where_it_came_from(weights: list[int]) -> None:
    mixture = Mixture(weights)
    positions = np.concatenate([np.arange(20_000), np.random.default_rng(0).integers(0, 10**15, 5000)])
    source, turn = mixture.sources(positions)
    for one in range(len(weights)):
        rows = source == one
        assert (mixture.positions(one, turn[rows]) == positions[rows]).all()


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0, 2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_weights_that_are_not_positive_numbers_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Mixture(weights)


def test_weights_that_round_to_no_window_are_refused() -> None:
    assert Mixture([0.6, 9999.4]).counts.tolist() == [1, 9999]
    for small in (0.4, 1e-9):
        with pytest.raises(ValueError, match="gets none of 10,000 windows"):
            Mixture([small, 10_000 - small])
    with pytest.raises(ValueError, match="gets none of 10,000 windows"):
        Mixture([1] * 10_001)
    assert Mixture([1] * 10_000).counts.tolist() == [1] * 10_000


def test_temperature_one_is_by_size_and_infinity_is_even() -> None:
    sizes = [10, 1000, 250_000_000_000]
    by_size = temperature_weights(sizes, 1)
    assert [weight / by_size[-1] for weight in by_size] == pytest.approx([size / sizes[-1] for size in sizes])
    assert temperature_weights(sizes, math.inf) == [1, 1, 1]
    assert temperature_weights([7], 3.0) == [1]


@given(sizes=st.lists(st.integers(1, 2**50), min_size=1, max_size=6), temperature=st.floats(0.5, 20))
def test_weights_are_sizes_to_the_power_of_one_over_temperature(sizes: list[int], temperature: float) -> None:
    weights = temperature_weights(sizes, temperature)
    for weight, size in zip(weights, sizes, strict=True):
        assert weight / max(weights) == pytest.approx(math.exp(math.log(size / max(sizes)) / temperature), rel=1e-9)


# --- the order of several sources ---

SOURCES = [UNEQUAL, [8], [160, 160, 41]]


@pytest.mark.parametrize("weights", [[1, 1, 1], [90, 1, 9]])
@pytest.mark.parametrize(("lanes", "lane_windows"), [(None, 1), (3, 16), (1000, 5)])
def test_order_of_several_sources_equals_a_definition_in_plain_python(
    weights: list[int], lanes: int | None, lane_windows: int
) -> None:
    grids = [Grid.of(tokens, 8) for tokens in SOURCES]
    order = Order(grids, 3, Mixture(weights), lanes, lane_windows)
    naive = naive_order(SOURCES, 8, 3, weights, lanes, lane_windows)
    windows = order.windows(np.arange(1000))
    assert addresses(windows) == list(islice(naive, 1000))
    assert (order.positions(windows) == np.arange(1000)).all()
    assert order.epoch_windows == sum(grid.count for grid in grids)


@pytest.mark.parametrize(("lanes", "lane_windows"), [(None, 1), (3, 16)])
def test_each_source_counts_its_own_epochs_and_goes_through_each_exactly_once(
    lanes: int | None, lane_windows: int
) -> None:
    grids = [Grid.of(tokens, 8) for tokens in SOURCES[::2]]
    order = Order(grids, 3, Mixture([1, 1]), lanes, lane_windows)
    positions = 70_000 + np.arange(3000)
    windows = order.windows(positions)
    assert (order.positions(windows) == positions).all()
    for source, grid in enumerate(grids):
        mine = windows.take((windows.shard >= len(SOURCES[0])) == bool(source))
        assert (np.diff(mine.epoch) >= 0).all()
        epochs = np.unique(mine.epoch).tolist()
        assert epochs == list(range(epochs[0], epochs[-1] + 1))
        assert epochs[0] == 35_000 // grid.count
        for epoch in epochs[1:-1]:
            of_epoch = [(shard, start) for e, shard, start, _ in addresses(mine) if e == epoch]
            assert len(set(of_epoch)) == len(of_epoch) == grid.count


def test_a_window_of_a_mixture_does_not_depend_on_the_weights() -> None:
    grids = [Grid.of(tokens, 8) for tokens in SOURCES]
    sequences = []
    for weights in ([1, 1, 1], [5, 1, 3]):
        windows = Order(grids, 3, Mixture(weights)).windows(np.arange(1000))
        sequences.append(addresses(windows.take(windows.shard < len(UNEQUAL))))
    shorter = min(map(len, sequences))
    assert shorter > 300
    assert sequences[0][:shorter] == sequences[1][:shorter]


def test_a_mixture_of_one_source_is_that_source() -> None:
    grid = Grid.of(UNEQUAL, 8)
    assert addresses(Order([grid], 3, Mixture([0.3])).windows(np.arange(900))) == addresses(
        Order([grid], 3).windows(np.arange(900))
    )


# --- what is refused ---


def test_a_source_without_a_whole_window_is_refused() -> None:
    for shard_tokens in ([7], [0, 3], []):
        grids = [Grid.of([64], 8), Grid.of(np.array(shard_tokens, dtype=np.int64), 8)]
        with pytest.raises(ValueError, match="no whole window"):
            Order(grids, 0, Mixture([1, 1]))


@pytest.mark.parametrize(("sources", "weights"), [(2, None), (2, [1]), (2, [1, 1, 1]), (1, [1, 1])])
def test_sources_need_a_mixture_of_as_many_weights(sources: int, weights: list[float] | None) -> None:
    with pytest.raises(ValueError, match="as many weights"):
        Order([Grid.of([64], 8)] * sources, 0, Mixture(weights) if weights else None)


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize("off", [1, -1, 8 * 1000, -8 * 1000])
def test_the_position_of_a_window_off_the_grid_is_refused(lanes: int | None, off: int) -> None:
    order = Order([Grid.of([1000, 900], 8)], 0, lanes=lanes)
    windows = order.windows(np.arange(20))
    moved = windows.start.copy()
    moved[7] += off
    with pytest.raises(ValueError, match="not on the grid"):
        order.positions(Windows(windows.epoch, windows.shard, moved, windows.key))


@pytest.mark.parametrize("shard", [-1, 2])
def test_the_position_of_a_window_of_no_shard_is_refused(shard: int) -> None:
    order = Order([Grid.of([1000, 900], 8)], 0)
    windows = order.windows(np.arange(1))
    with pytest.raises(ValueError, match="of no shard, or of no epoch"):
        order.positions(Windows(windows.epoch, np.array([shard]), windows.start, windows.key))
    with pytest.raises(ValueError, match="of no shard, or of no epoch"):
        order.positions(Windows(windows.epoch - 1, windows.shard, windows.start, windows.key))


def test_positions_far_apart_do_not_take_what_lies_between() -> None:
    order = Order([Grid.of([1000, 300, 7], 4)], 1)
    both = addresses(order.windows(np.array([0, 10**15])))
    assert both == addresses(order.windows(np.array([0]))) + addresses(order.windows(np.array([10**15])))


@pytest.mark.parametrize(("lanes", "lane_windows"), [(0, 1), (-1, 1), (None, 0), (2, 0)])
def test_lanes_below_one_are_refused(lanes: int | None, lane_windows: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Order([Grid.of([64], 8)], 0, None, lanes, lane_windows)


def test_two_equal_sources_do_not_take_turns_in_step_with_two_ranks() -> None:
    source, _ = Mixture([1, 1]).sources(np.arange(10_000))
    assert 2_000 < source[::2].sum() < 3_000


# --- golden values ---


def test_order_is_the_same_on_every_machine_and_version() -> None:
    """Golden values: changing one breaks the resuming of every run that exists."""
    grids = [Grid.of([1000, 300, 7], 4), Grid.of([100, 90], 4)]
    positions = np.array([0, 1, 323, 324, 12_345])

    def table(*arguments: object) -> list[Address]:
        order = Order(*arguments)
        return addresses(order.windows(positions)) + addresses(order.windows(np.array([10**15])))

    assert table(grids[:1], 1) == [
        (0, 1, 142, 1209217990713305395),
        (0, 0, 251, 5028282898105152132),
        (0, 1, 270, 1111563269632560765),
        (1, 0, 877, 1784198695820864454),
        (38, 0, 616, 1872726096925508708),
        (3086419753086, 0, 551, 4712158430986569212),
    ]
    assert table(grids[:1], 1, None, 5, 16) == [
        (0, 1, 14, 1338408750004392870),
        (0, 1, 278, 624023627032648827),
        (0, 0, 739, 6349255192693498981),
        (1, 1, 35, 741022140101137273),
        (38, 0, 512, 2039579963933908969),
        (3086419753086, 0, 379, 7916926235018316746),
    ]
    assert table(grids, 1, Mixture([2, 1])) == [
        (0, 1, 142, 1209217990713305395),
        (0, 0, 251, 5028282898105152132),
        (0, 0, 427, 4477305411901726531),
        (0, 1, 238, 9166397356186035620),
        (25, 0, 615, 5386272169076832978),
        (2057716049382, 1, 163, 2487636583881197902),
    ]
    index = np.array([0, 1, 2, 2999])
    assert permute(index, 3000, 0x0123456789ABCDEF).tolist() == [1691, 1968, 1239, 2696]
    assert permute(index, 300_000_000_000, 0x0123456789ABCDEF).tolist() == [
        12839025091,
        80550023477,
        88144921780,
        61268759126,
    ]
