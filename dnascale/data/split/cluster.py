"""Groups that are nearly the same are joined into one unit, which goes into one split.

Two groups are joined when they share enough of their sampled 31-mers, and so are the groups joined to those. A
31-mer that many groups have is a repeat: it counts only between groups of about the same content, so that a short
record of nothing but an Alu does not join all chromosomes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dnascale.data.order import mix64
from dnascale.data.split.samples import Sample, by_value, first_of_values

#: A 31-mer of more groups than this is a repeat, and each of its groups is compared with so many next to it.
REPEAT_GROUPS = 32
_PAIRS_AT_ONCE = 1 << 21


def join(samples: Sequence[Sample], groups: np.ndarray, count: int, share: float) -> np.ndarray:
    """Which groups belong together.

    Groups a and b are joined when, of their different sampled 31-mers, they share at least `share` of those of the
    smaller one, repeats not counted as shared; or at least `share` of those of the larger one, with repeats.

    Args:
        samples: of every table.
        groups: int32 [records of all tables], which of `count` groups a record is in; below 0: left out.
        share: in (0, 1].

    Returns:
        int32 [count]: for each group the smallest group that it is joined to, directly or through others; itself if
        it is alone.

    Time: a pass over the samples for every 2^21 31-mers, times one for every 2^21 pairs of groups with a 31-mer in
    common. Memory: 24 bytes a group, and about 300 MB.
    """
    sizes, pairs = _sizes(samples, groups, count)
    root = np.arange(count, dtype=np.int32)
    parts = max(1, -(-pairs // _PAIRS_AT_ONCE))
    for part in range(parts):
        found = _shared(samples, groups, count, part, parts)
        a, b = found.codes // np.uint64(count), found.codes % np.uint64(count)
        size_a, size_b = sizes[a], sizes[b]
        near = (found.rare >= share * np.minimum(size_a, size_b)) | (found.all >= share * np.maximum(size_a, size_b))
        for one, other in zip(a[near].tolist(), b[near].tolist(), strict=True):
            _union(root, one, other)
    while (shorter := root[root]).tobytes() != root.tobytes():
        root = shorter
    return root


@dataclass
class _Shared:
    """Pairs of groups, `smaller * count + larger`, and how many sampled 31-mers both have."""

    codes: np.ndarray  # uint64 [pairs], ascending
    rare: np.ndarray  # int64: of 31-mers that few groups have
    all: np.ndarray  # int64

    def plus(self, more: list[tuple[np.ndarray, np.ndarray]]) -> "_Shared":
        """With uint64 codes, one for each shared 31-mer, and whether that is rare."""
        codes, place = np.unique(np.concatenate([self.codes, *(codes for codes, _ in more)]), return_inverse=True)
        rare = np.concatenate([self.rare, *(rare for _, rare in more)])
        every = np.concatenate([self.all, *(np.ones(len(rare)) for _, rare in more)])
        counts = [np.bincount(place, weights, len(codes)).astype(np.int64) for weights in (rare, every)]
        return _Shared(codes, *counts)


def _sizes(samples: Sequence[Sample], groups: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """How many different sampled 31-mers each group has, int64 [count], and how many pairs `_pairs` will give."""
    sizes, pairs = np.zeros(count, np.int64), 0
    for values, group in by_value(samples, groups):
        sizes += np.bincount(group, minlength=count)
        after = np.minimum(_after(values), REPEAT_GROUPS - 1)
        pairs += int(after.sum())
    return sizes, pairs


def _shared(samples: Sequence[Sample], groups: np.ndarray, count: int, part: int, parts: int) -> _Shared:
    """What the pairs of groups share, of one of `parts` equal parts of all pairs."""
    none = np.zeros(0, np.int64)
    shared = _Shared(none.astype(np.uint64), none, none)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for values, group in by_value(samples, groups):
        for codes, rare in _pairs(values, group, count):
            mine = mix64(codes) % np.uint64(parts) == part if parts > 1 else slice(None)
            waiting.append((codes[mine], rare[mine]))
            if sum(len(codes) for codes, _ in waiting) > _PAIRS_AT_ONCE:
                shared, waiting = shared.plus(waiting), []
    return shared.plus(waiting)


def _pairs(values: np.ndarray, group: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes of two groups that share a 31-mer, uint64, and whether it is rare: one for each 31-mer and pair."""
    after = _after(values)
    first = first_of_values(values)
    rare = np.repeat(np.diff(first, append=len(values)) <= REPEAT_GROUPS, np.diff(first, append=len(values)))
    where = np.flatnonzero(after)
    for step in range(1, REPEAT_GROUPS):
        where = where[after[where] >= step]
        if not len(where):
            return
        yield group[where].astype(np.uint64) * np.uint64(count) + group[where + step].astype(np.uint64), rare[where]


def _after(values: np.ndarray) -> np.ndarray:
    """How many entries with the same value follow each one."""
    first = first_of_values(values)
    size = np.diff(first, append=len(values))
    return np.repeat(first + size, size) - np.arange(len(values)) - 1


def _union(root: np.ndarray, one: int, other: int) -> None:
    one, other = _find(root, one), _find(root, other)
    root[max(one, other)] = min(one, other)


def _find(root: np.ndarray, group: int) -> int:
    while root[group] != group:
        root[group] = root[root[group]]
        group = int(root[group])
    return group
