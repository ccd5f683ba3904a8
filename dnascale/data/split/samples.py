"""The sampled 31-mers of many tables, brought together by value a range at a time, so that memory stays bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_AT_ONCE = 1 << 21  # sampled 31-mers in memory: about 100 MB with what sorting them takes


@dataclass(frozen=True)
class Sample:
    """What `sketch` gave for the records of one table; arrays or memory maps."""

    values: np.ndarray  # uint64 [m]
    counts: np.ndarray  # uint32 [records], summing to m


def by_value(
    samples: Sequence[Sample], owners: np.ndarray, at_once: int = _AT_ONCE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Who has which 31-mer. Each range of values takes one pass over all tables.

    Args:
        samples: of every table.
        owners: int32 [records of all tables], what a record belongs to (itself, its group); below 0: left out.
        at_once: about how many 31-mers to hold.

    Yields:
        uint64 [n], values in ascending order, and int32 [n], their owners in ascending order within a value; each
        pair is there once, and a value is in no later range.
    """
    total = sum(len(sample.values) for sample in samples)
    top = max((int(sample.values.max()) for sample in samples if len(sample.values)), default=0)
    passes = max(1, -(-total // at_once))
    starts = np.cumsum([0, *(len(sample.counts) for sample in samples[:-1])]).tolist() if samples else []
    for step in range(passes):
        low, high = top * step // passes, top * (step + 1) // passes
        found = [
            _within(sample, owners[start : start + len(sample.counts)], low, high)
            for sample, start in zip(samples, starts, strict=True)
        ]
        values = np.concatenate([np.zeros(0, np.uint64), *(value for value, _ in found)])
        owner = np.concatenate([np.zeros(0, np.int32), *(owner for _, owner in found)])
        yield distinct(values, owner)


def _within(sample: Sample, owners: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """The values in (low, high], and 0 where low is 0, with their owners."""
    chosen = sample.values <= np.uint64(high)
    if low:
        chosen &= sample.values > np.uint64(low)
    where = np.flatnonzero(chosen)
    record = np.searchsorted(sample.counts.cumsum(dtype=np.int64), where, side="right")
    owner = owners[record]
    kept = owner >= 0
    return sample.values[where[kept]], owner[kept].astype(np.int32)


def distinct(values: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different pairs of value and owner, sorted by value, then owner."""
    order = np.lexsort((owners, values))
    values, owners = values[order], owners[order]
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
    return values[new], owners[new]


def first_of_values(values: np.ndarray) -> np.ndarray:
    """int64: where each different value of a sorted array begins."""
    new = np.ones(len(values), dtype=np.bool_)
    new[1:] = values[1:] != values[:-1]
    return np.flatnonzero(new)
