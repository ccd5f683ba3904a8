"""The order of windows: a keyed permutation that looks random, and grids that cover the shards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, count, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.order import Epoch, Windows, hash64, mix64, next_windows, permute

Address = tuple[int, int, int, int]
U64 = (1 << 64) - 1


def shuffled(size: int, key: int) -> np.ndarray:
    return permute(np.arange(size), size, key)


def addresses(windows: Windows) -> list[Address]:
    columns = (windows.epoch, windows.shard, windows.start, windows.key)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def naive_mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & U64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & U64
    return x ^ (x >> 31)


def z_score(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic of `counts` against uniform is above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# --- hash and permutation ---


def naive_hash(*parts: int) -> int:
    state = golden = 0x9E3779B97F4A7C15
    for part in parts:
        state = naive_mix64((state + golden + part) & U64)
    return state


def naive_permute(index: int, size: int, key: int) -> int:
    bits = 1
    while 4**bits < size:
        bits += 1
    while True:
        left, right = index >> bits, index % 2**bits
        for turn in range(6):
            left, right = right, left ^ (naive_mix64((right + naive_hash(key, turn)) & U64) % 2**bits)
        index = left << bits | right
        if index < size:
            return index


def naive_windows(tokens: list[int], context: int, seed: int, epoch: int) -> list[Address]:
    """The whole definition again, with Python's integers."""
    phases = []
    for shard, size in enumerate(tokens):
        slack = context if size >= 4 * context else size % context + 1
        phases.append(naive_hash(seed, epoch, int.from_bytes(b"phase"), shard) % slack)
    counts = [max(size - phase, 0) // context for size, phase in zip(tokens, phases, strict=True)]
    total, before = sum(counts), [0, *accumulate(counts)]
    key = naive_hash(seed, epoch, int.from_bytes(b"order"))
    out = []
    for position in range(total):
        place = naive_permute(position, total, key)
        shard = max(i for i in range(len(tokens)) if before[i] <= place and counts[i])
        start = phases[shard] + (place - before[shard]) * context
        out.append((epoch, shard, start, naive_hash(seed, epoch, shard, start) >> 1))
    return out


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


def test_permutation_is_a_bijection_for_every_small_size() -> None:
    for size in range(1, 301):
        for key in (0, 1, 2**63, 2**64 - 1):
            assert sorted(shuffled(size, key).tolist()) == list(range(size)), (size, key)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 256])
def test_permutation_equals_a_definition_in_plain_python(size: int) -> None:
    for key in (0, 2**64 - 1):
        assert shuffled(size, key).tolist() == [naive_permute(index, size, key) for index in range(size)]


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 262_145, 999_983])
def test_permutation_is_a_bijection_for_large_sizes(size: int) -> None:
    assert (np.bincount(shuffled(size, 7), minlength=size) == 1).all()


@given(size=st.integers(2, 2**61), key=st.integers(0, U64), data=st.data())
@settings(max_examples=100, deadline=None)
def test_permutation_of_a_huge_range_keeps_sampled_items_apart_and_inside(
    size: int, key: int, data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    out = permute(np.array(index), size, key)
    assert len(set(out.tolist())) == len(index)
    assert out.min() >= 0
    assert out.max() < size
    alone = [int(permute(np.array(i), size, key)) for i in index[:3]]  # random access, in any shape
    assert alone == out[:3].tolist()


def test_an_index_outside_the_range_is_refused() -> None:
    for bad in (-1, 10):
        with pytest.raises(ValueError, match=r"outside \[0, 10\)"):
            permute(np.array([3, bad]), 10, 0)
    assert permute(np.array([], dtype=np.int64), 10, 0).shape == (0,)


def test_different_keys_give_unrelated_orders() -> None:
    size = 10_007
    orders = [shuffled(size, key) for key in (0, 1, 2, 3, 1 << 32, 1 << 63)]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # one fixed point is expected
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(size)


@pytest.mark.parametrize("size", [5, 17])
def test_over_keys_every_item_is_in_every_place_equally_often(size: int) -> None:
    orders = np.stack([shuffled(size, key) for key in range(2500)])
    for place in range(size):
        assert abs(z_score(np.bincount(orders[:, place], minlength=size))) < 5
    pairs = np.bincount(orders[:, 0] * size + orders[:, 1], minlength=size * size).reshape(size, size)
    assert abs(z_score(pairs[~np.eye(size, dtype=bool)])) < 5


@pytest.mark.parametrize("size", [4_096, 5_000, 100_003])
def test_serial_correlation_is_that_of_noise(size: int) -> None:
    for key in range(5):
        order = shuffled(size, key)
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 5 / np.sqrt(size)
        for lag in (1, 2, 3, 4, 8, 64, 256, 1024):
            assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < 5 / np.sqrt(size - lag), (key, lag)


@pytest.mark.parametrize("size", [4_096, 30_011])
def test_neighbours_are_as_far_apart_as_in_a_permutation_of_numpy(size: int) -> None:
    ours = np.concatenate([np.abs(np.diff(shuffled(size, key))) for key in range(20)])
    rng = np.random.default_rng(1)
    theirs = np.concatenate([np.abs(np.diff(rng.permutation(size))) for _ in range(20)])
    grid = np.arange(size)
    distributions = [np.searchsorted(np.sort(d), grid, side="right") / len(d) for d in (ours, theirs)]
    assert np.abs(distributions[0] - distributions[1]).max() < 2.2 * np.sqrt(2 / len(ours))
    # What a poor shuffle gets wrong first: items that were neighbours stay neighbours.
    assert (ours == 1).sum() == pytest.approx(40, abs=5 * np.sqrt(40))


# --- the window grid of an epoch ---

GRIDS = [
    ([64], 8), ([63], 8), ([65], 8), ([8], 8), ([7], 8), ([1], 8), ([100, 3, 8, 9, 250, 16, 0, 31, 32, 33], 8),
    ([1000, 999, 5], 16), ([50, 60], 1), ([4096, 4095, 17], 64),
]  # fmt: skip


@pytest.mark.parametrize(("shard_tokens", "context"), GRIDS)
def test_every_token_between_phase_and_last_whole_window_is_covered_exactly_once(
    shard_tokens: list[int], context: int
) -> None:
    for epoch in range(20):
        grid = Epoch.of(np.array(shard_tokens), context, 3, epoch)
        windows = grid.windows(np.arange(grid.count))
        seen = [np.zeros(tokens, dtype=int) for tokens in shard_tokens]
        for _, shard, start, _ in addresses(windows):
            assert 0 <= start <= shard_tokens[shard] - context  # whole and inside its shard
            seen[shard][start : start + context] += 1
        for tokens, counts, phase in zip(shard_tokens, seen, grid.phase.tolist(), strict=True):
            whole = max(tokens - phase, 0) // context
            assert 0 <= phase < max(context, 1)
            expected = np.zeros(tokens, dtype=int)
            expected[phase : phase + whole * context] = 1
            np.testing.assert_array_equal(counts, expected)
            lost = tokens - whole * context
            assert lost < 2 * context
            if tokens < 4 * context:
                assert whole == tokens // context  # a small shard never loses a window to the shift


@pytest.mark.parametrize(("shard_tokens", "context"), GRIDS)
def test_windows_of_an_epoch_equal_a_definition_in_plain_python(shard_tokens: list[int], context: int) -> None:
    for seed, epoch in ((0, 0), (2**63 - 1, 12)):
        grid = Epoch.of(np.array(shard_tokens), context, seed, epoch)
        assert addresses(grid.windows(np.arange(grid.count))) == naive_windows(shard_tokens, context, seed, epoch)


def test_phases_change_every_epoch_and_every_token_is_seen_in_many_frames() -> None:
    context = 16
    tokens = np.array([1000, 777, 63])
    phases = np.stack([Epoch.of(tokens, context, 0, epoch).phase for epoch in range(400)])
    for shard in (0, 1):
        assert abs(z_score(np.bincount(phases[:, shard], minlength=context))) < 5
    assert set(phases[:, 2].tolist()) == set(range(16))  # 63 % 16 + 1 phases leave its three windows whole
    frames = np.zeros((1000, context), dtype=int)
    for epoch in range(400):
        grid = Epoch.of(tokens, context, 0, epoch)
        for _, shard, start, _ in addresses(grid.windows(np.arange(grid.count))):
            if shard == 0:
                frames[np.arange(start, start + context), np.arange(context)] += 1
    assert (frames[context:-context] > 0).all()
    assert (frames.sum(axis=1) > 0).all()


def test_windows_are_dealt_over_the_whole_split_from_the_first_position_on() -> None:
    tokens = np.array([8_000, 8_000, 8_000, 8_000])
    grid = Epoch.of(tokens, 8, 0, 0)
    quarter = grid.windows(np.arange(grid.count // 4))
    assert abs(z_score(np.bincount(quarter.shard, minlength=4))) < 5
    assert abs(z_score(np.bincount(quarter.start // 800, minlength=10))) < 5


def test_keys_are_unique_over_windows_epochs_and_seeds_and_not_negative() -> None:
    tokens = np.array([5_000, 5_000])
    keys = [key for seed in (0, 1) for *_, key in addresses(next_windows(tokens, 5, seed, 0, 0, 20_000)[0])]
    assert len(set(keys)) == len(keys)
    assert min(keys) >= 0


def test_digest_of_a_set_of_windows_does_not_depend_on_how_it_is_dealt_out() -> None:
    windows = next_windows(np.array([900, 70]), 8, 0, 0, 0, 96)[0]
    parts = [windows.take(slice(i, None, 3)).digest() for i in range(3)]
    assert sum(parts) == windows.digest() < 1 << 40
    assert windows.take(slice(1, None)).digest() != windows.digest()
    assert windows.take(np.arange(96)[::-1]).digest() == windows.digest()


# --- running on over epochs ---


def endless(tokens: list[int], context: int, seed: int) -> Iterator[Address]:
    """One window at a time, epoch after epoch."""
    for epoch in count():
        grid = Epoch.of(np.array(tokens), context, seed, epoch)
        for position in range(grid.count):
            yield from addresses(grid.windows(np.array([position])))


@given(
    chunks=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    start=st.integers(0, 40),
    tokens=st.sampled_from([[100, 3, 41], [8], [64, 64, 65]]),
)
@settings(max_examples=40, deadline=None)
def test_any_chunking_from_any_position_gives_the_same_sequence(
    chunks: list[int], start: int, tokens: list[int]
) -> None:
    context, seed = 8, 5
    epoch = position = 0
    if start:
        _, epoch, position = next_windows(np.array(tokens), context, seed, 0, 0, start)
    got: list[Address] = []
    for chunk in chunks:
        assert position < Epoch.of(np.array(tokens), context, seed, epoch).count
        windows, epoch, position = next_windows(np.array(tokens), context, seed, epoch, position, chunk)
        assert len(windows) == chunk
        got += addresses(windows)
    assert got == list(islice(endless(tokens, context, seed), start, start + len(got)))


def test_order_is_the_same_on_every_machine_and_version() -> None:
    """A golden value: changing it breaks the resuming of every run that exists."""
    windows, epoch, position = next_windows(np.array([1000, 300]), 32, 1, 0, 37, 4)
    assert (epoch, position) == (1, 3)
    assert addresses(windows) == [
        (0, 0, 83, 6584463521295469136),
        (1, 0, 423, 5475971854653782805),
        (1, 0, 231, 6387908191660758465),
        (1, 0, 711, 8691951862477040985),
    ]
