"""What is in a data set, by split: lengths of records, bases, the share in lower case. Used by `dnascale data inspect`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dnascale.data.records import record_table, record_tables
from dnascale.data.shards import Dataset


@dataclass(frozen=True)
class Bin:
    """Records of `low` to `high` tokens, `high` not included."""

    low: int
    high: int
    records: int
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """Of the records of a split, in tokens, without separators. Half of all tokens are in records of at least `n50`."""

    shortest: int
    median: int
    n50: int
    longest: int
    bins: tuple[Bin, ...]  # by powers of two, from the shortest to the longest, empty ones too


@dataclass(frozen=True)
class Content:
    """One split. Shares are of all its bases, `gc` of A, C, G, T. `lengths` is None where no table of records is at hand."""

    records: int
    bases: int
    tokens: int
    composition: dict[str, float]  # letter to share, most frequent first
    gc: float
    n: float
    lower_case: float
    lengths: Lengths | None


def content_of(dataset: Dataset) -> dict[str, Content]:
    """The content of each split, from the index and the tables of records beside the shards; no shard is read.

    Raises DataError: a table of records is damaged. Memory: that of one table, and of the different lengths there are.
    """
    contents = {}
    for name, split in dataset.splits.items():
        bases = max(split.bases, 1)
        counts = {letter: count for letter, count in split.composition.items() if count}
        acgt = sum(counts.get(letter, 0) for letter in "ACGT")
        contents[name] = Content(
            records=split.records,
            bases=split.bases,
            tokens=split.tokens,
            composition={k: v / bases for k, v in sorted(counts.items(), key=lambda item: (-item[1], item[0]))},
            gc=(counts.get("G", 0) + counts.get("C", 0)) / max(acgt, 1),
            n=counts.get("N", 0) / bases,
            lower_case=split.soft_masked / bases,
            lengths=_lengths(dataset, name),
        )
    return contents


def _lengths(dataset: Dataset, split: str) -> Lengths | None:
    shards = range(len(dataset.splits[split].shards))
    if dataset.remote or not all(record_table(dataset, split, number).is_file() for number in shards):
        return None
    different, records = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for lengths in _of_records(dataset, split):
        different, place = np.unique(np.concatenate([different, lengths]), return_inverse=True)
        counts = np.concatenate([records, np.ones(len(lengths), np.int64)])
        records = np.bincount(place, counts, len(different)).astype(np.int64)
    return lengths_of(different, records) if len(different) else None


def _of_records(dataset: Dataset, split: str) -> Iterator[np.ndarray]:
    """int64 [records] of each table: the tokens of records that end in it, or in the next where they go on there."""
    held = np.zeros(0, np.int64)  # the last record so far: the next table may begin with more of it
    for table, begin in record_tables(dataset, split, ["length"]):
        lengths, begins = table["length"].to_numpy(), np.flatnonzero(begin)
        if len(lengths) and not begin[0]:
            held = held + lengths[0]
        if len(begins):
            yield held
            found = np.add.reduceat(lengths, begins)
            yield found[:-1]
            held = found[-1:]
    yield held


def lengths_of(different: np.ndarray, records: np.ndarray) -> Lengths:
    """From lengths, int64 ascending and above 0, and how many records have each."""
    tokens = different * records
    shortest, longest = int(different[0]), int(different[-1])
    first, last = shortest.bit_length() - 1, longest.bit_length() - 1
    exponent = np.floor(np.log2(different)).astype(int)
    exponent -= 1 << exponent > different  # where the logarithm was rounded up
    bins = tuple(
        Bin(1 << e, 2 << e, int(records[exponent == e].sum()), int(tokens[exponent == e].sum()))
        for e in range(first, last + 1)
    )
    middle = np.searchsorted(records.cumsum(), (records.sum() + 1) // 2)
    from_longest = np.searchsorted(tokens[::-1].cumsum(), (tokens.sum() + 1) // 2)
    return Lengths(shortest, int(different[middle]), int(different[::-1][from_longest]), longest, bins)
