"""How much of what is held out stands in the training split as well: shared 31-mers, counted in the samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dnascale.data.split.holdout import SPLITS, TRAIN
from dnascale.data.split.samples import Sample, by_value, first_of_values
from dnascale.errors import DataError

#: A record of which more than this share of its 31-mers stands in train has leaked. Isoforms share nearly all, human
#: chromosomes a tenth or so with all others (their repeats), most genes of a family almost nothing.
LEAKED_RECORD = 0.3
WORST = 10


@dataclass(frozen=True)
class Overlap:
    """Different sampled 31-mers of `split`, and how many of them `other` has too."""

    split: str
    other: str
    kmers: int
    shared: int

    @property
    def share(self) -> float:
        return self.shared / self.kmers if self.kmers else 0.0


@dataclass(frozen=True)
class Leaked:
    """Records of one held-out split that have leaked, of those that have sampled 31-mers at all.

    A 31-mer counts once for each of the records that have it: `kmers` of all, `leaked_kmers` of the leaked ones.
    """

    split: str
    records: int
    leaked: int
    kmers: int
    leaked_kmers: int

    @property
    def share(self) -> float:
        """How much of the split is in leaked records."""
        return self.leaked_kmers / self.kmers if self.kmers else 0.0


@dataclass(frozen=True)
class Group:
    """A held-out group beside the training split; its 31-mers are counted once for each of its records."""

    name: str
    split: str
    records: int
    kmers: int
    shared: int


@dataclass(frozen=True)
class Leakage:
    """The audit. Nothing in it depends on the order of tables or records."""

    every: int  # one 31-mer in how many was looked at
    overlaps: tuple[Overlap, ...]  # (valid, train), (test, train), (valid, test), of the splits there are
    leaked: tuple[Leaked, ...]
    worst: tuple[Group, ...]  # most in train first

    def check(self, most: float, rules: Mapping[str, int] | None = None) -> None:
        """Raises DataError: more than `most` of a held-out split is in records that have leaked.

        `rules`, how many records each rule found a group for, tells the reader of the error what the groups are.
        """
        found = ", ".join(f"{count:,} by {rule}" for rule, count in (rules or {}).items())
        for split in self.leaked:
            if split.share > most:
                worst = ", ".join(group.name for group in self.worst[:3] if group.split == split.split)
                raise DataError(
                    f"the {split.split} split leaks: {split.share:.1%} of it ({split.leaked:,} of {split.records:,} "
                    f"records) are records that stand in train too, with over {LEAKED_RECORD:.0%} of their 31-mers; "
                    f"worst: {worst}. A loss on it would flatter the model. Split by what the records share (--group"
                    f"{f'; groups now: {found}' if found else ''}), "
                    "join near-duplicates (--cluster 0.2), drop repeated records (--drop-duplicates), or allow more "
                    f"(--max-leakage, now {most:g})."
                )


@dataclass
class _Counts:
    overlaps: np.ndarray  # int64 [splits, splits]: different 31-mers of both; of one on the diagonal
    kmers: np.ndarray  # int64 [held-out records]
    shared: np.ndarray


def audit(
    samples: Sequence[Sample], splits: np.ndarray, keys: np.ndarray, name_of: Callable[[int], str], every: int
) -> Leakage:
    """Counts what the splits share.

    Args:
        samples: of the records of every table.
        splits: int8 [records of all tables], index into SPLITS, below 0: left out.
        keys: uint64 [records], `group_key` of each record's group.
        name_of: the name of the group of a record, by its place among all.
        every: the rate of the samples.

    Memory: 8 bytes a record, 16 more a held-out record, and what `samples.by_value` holds.
    """
    held_out = np.flatnonzero(splits > TRAIN)
    counts = _count(samples, splits, held_out)
    present = [split for split in range(len(SPLITS)) if (splits == split).any()]
    pairs = [(b, a) if a == TRAIN else (a, b) for a, b in combinations(present, 2)]
    return Leakage(
        every=every,
        overlaps=tuple(
            Overlap(SPLITS[a], SPLITS[b], int(counts.overlaps[a, a]), int(counts.overlaps[a, b])) for a, b in pairs
        ),
        leaked=tuple(_leaked(splits[held_out] == split, counts, SPLITS[split]) for split in present if split != TRAIN),
        worst=tuple(_worst(splits, keys, held_out, counts, name_of)),
    )


def _count(samples: Sequence[Sample], splits: np.ndarray, held_out: np.ndarray) -> _Counts:
    # All of train is one owner, the last; each held-out record is one of its own.
    train = len(held_out)
    owners = np.where(splits == TRAIN, np.int32(train), np.int32(-1))
    owners[held_out] = np.arange(train, dtype=np.int32)
    bit = np.append(1 << splits[held_out], 1 << TRAIN).astype(np.uint8)
    counts = _Counts(
        np.zeros((len(SPLITS), len(SPLITS)), np.int64), np.zeros(train, np.int64), np.zeros(train, np.int64)
    )
    for values, owner in by_value(samples, owners):
        if not len(values):
            continue
        first = first_of_values(values)
        present = np.bitwise_or.reduceat(bit[owner], first)
        of_bits = np.bincount(present, minlength=1 << len(SPLITS))
        for a in range(len(SPLITS)):
            for b in range(len(SPLITS)):
                both = 1 << a | 1 << b
                counts.overlaps[a, b] += sum(of_bits[bits] for bits in range(len(of_bits)) if bits & both == both)
        in_train = np.repeat(present & 1 << TRAIN != 0, np.diff(first, append=len(values)))
        record = owner < train
        counts.kmers += np.bincount(owner[record], minlength=train)
        counts.shared += np.bincount(owner[record & in_train], minlength=train)
    return counts


def _leaked(of_split: np.ndarray, counts: _Counts, split: str) -> Leaked:
    kmers, shared = counts.kmers[of_split], counts.shared[of_split]
    leaked = shared > LEAKED_RECORD * kmers
    return Leaked(split, int((kmers > 0).sum()), int(leaked.sum()), int(kmers.sum()), int(kmers[leaked].sum()))


def _worst(
    splits: np.ndarray, keys: np.ndarray, held_out: np.ndarray, counts: _Counts, name_of: Callable[[int], str]
) -> list[Group]:
    """By the share in train times how much that is, so that neither one short record nor one long group leads."""
    if not len(held_out):
        return []
    group_keys, first, group = np.unique(keys[held_out], return_index=True, return_inverse=True)
    kmers = np.bincount(group, weights=counts.kmers).astype(np.int64)
    shared = np.bincount(group, weights=counts.shared).astype(np.int64)
    weight = shared / np.maximum(kmers, 1) * shared
    order = np.lexsort((group_keys, -weight))[:WORST]
    records = np.bincount(group)
    return [
        Group(
            name_of(int(held_out[first[g]])), SPLITS[splits[held_out[first[g]]]],
            int(records[g]), int(kmers[g]), int(shared[g]),
        )
        for g in order.tolist() if shared[g]
    ]  # fmt: skip
