"""From what stage 1 noted of all records to the split of each: duplicates, clusters, holdouts, audit, in that order.

Everything here is a function of the tables and the options. Nothing of it depends on the order of tables or records,
but for which of several equal records is kept: the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from dnascale.data.split.cluster import join
from dnascale.data.split.duplicates import later_copies
from dnascale.data.split.holdout import SPLITS, Holdouts, group_key, not_there
from dnascale.data.split.leakage import Leakage, audit
from dnascale.data.split.samples import Sample, first_of_values
from dnascale.errors import UsageError

_AT_ONCE = 1 << 20  # records

#: Settled.splits of a record that repeats an earlier one.
DROPPED = -1


@dataclass(frozen=True)
class SplitOptions:
    """How the records are split. Picklable.

    Attributes:
        holdouts: what goes to valid and test.
        drop_duplicates: keep one of the records with equal content, strand and case unseen.
        cluster: groups that share at least this share of their 31-mers go into one split; None: not compared.
        max_leakage: how much of a held-out split may be in records that stand in train too, see `leakage`; 1 allows
            all, None does not look.
    """

    holdouts: Holdouts = field(default_factory=Holdouts)
    drop_duplicates: bool = False
    cluster: float | None = None
    max_leakage: float | None = 0.1

    def __post_init__(self) -> None:
        if self.cluster is not None and not 0 < self.cluster <= 1:
            raise UsageError(f"--cluster {self.cluster:g} must be a share of 31-mers, above 0 and at most 1.")
        if self.max_leakage is not None and not 0 <= self.max_leakage <= 1:
            raise UsageError(f"--max-leakage {self.max_leakage:g} must be a share, from 0 to 1.")

    @property
    def needs_sample(self) -> bool:
        """Whether stage 1 must sample 31-mers: for clusters, or for an audit of at least two splits."""
        return self.cluster is not None or (self.max_leakage is not None and len(self.holdouts.splits) > 1)


@dataclass(frozen=True)
class Table:
    """What stage 1 noted of the kept records of one input, in input order. Arrays may be memory maps.

    Attributes:
        keys: uint64 [r], `group_key` of each record's group.
        group_name: the name of the group of a row.
        digests: uint8 [r, 16], `content_digest` of each record; None unless duplicates are dropped.
        sample: the sampled 31-mers of the records; None unless `SplitOptions.needs_sample`.
    """

    keys: np.ndarray
    group_name: Callable[[int], str]
    digests: np.ndarray | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class Unit:
    """Groups that were joined into one unit; `name` is the smallest of theirs."""

    name: str
    groups: int
    records: int


@dataclass(frozen=True)
class Settled:
    """The split of every record, and what is to be reported of it.

    Attributes:
        splits: int8 [r] for each table: index into SPLITS, or DROPPED.
        groups: for each split that is asked for, how many groups went into it.
        units: how many units of several groups there are, None without `cluster`.
        largest: the ten largest of them, by groups, then name.
        leakage: the audit, None where there was none; its `check` refuses.
    """

    splits: list[np.ndarray]
    groups: dict[str, int]
    units: int | None
    largest: tuple[Unit, ...]
    leakage: Leakage | None


def settle(tables: Sequence[Table], options: SplitOptions, every: int = 1) -> Settled:
    """Settles the records of all tables; `every` is the rate at which their 31-mers were sampled.

    Time: sorting the records and the sampled 31-mers, in one pass over the latter for every 2^21. Memory: about 30
    bytes a record and 250 MB, whatever the length of the records.

    Raises:
        UsageError: a named group is not there.
    """
    starts = np.cumsum([0, *(len(table.keys) for table in tables)])
    keys = np.concatenate([np.zeros(0, np.uint64), *(table.keys for table in tables)])
    kept = np.ones(len(keys), dtype=np.bool_)
    if options.drop_duplicates:
        kept = ~np.concatenate([kept[:0], *later_copies([_needed(table.digests) for table in tables])])

    def name_of(row: int) -> str:
        table = int(np.searchsorted(starts, row, side="right")) - 1
        return tables[table].group_name(row - int(starts[table]))

    group_keys, group = _groups(keys, kept)
    _refuse_missing(options.holdouts, keys, name_of)
    samples = [_needed(table.sample) for table in tables] if options.needs_sample else []
    units: _Units | None = None
    of_group = options.holdouts.splits_of(group_keys)
    if options.cluster is not None:
        units = _units(join(samples, group, len(group_keys), options.cluster), group, name_of)
        of_group = _of_units(units, group_keys, options.holdouts)
    splits = np.append(of_group, np.int8(DROPPED))[group]
    del group, group_keys  # the audit goes by records, and wants their memory
    leakage = None
    if options.max_leakage is not None and options.needs_sample:
        leakage = audit(samples, splits, keys, name_of, every)
    per_split = np.bincount(of_group, minlength=len(SPLITS)).tolist()
    return Settled(
        splits=np.split(splits, starts[1:-1]) if tables else [],
        groups={split: per_split[SPLITS.index(split)] for split in options.holdouts.splits},
        units=None if units is None else len(units.members),
        largest=() if units is None else units.largest(),
        leakage=leakage,
    )


_Needed = TypeVar("_Needed")


def _needed(column: _Needed | None) -> _Needed:
    if column is None:
        raise ValueError("a table lacks the digests or the sample that the options need")
    return column


def _groups(keys: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different keys of the kept records, ascending, and int32 [records], which of them each has; -1: not kept."""
    different = keys[kept]
    different.sort()
    different = different[first_of_values(different)]
    group = np.full(len(keys), -1, dtype=np.int32)
    for begin in range(0, len(keys), _AT_ONCE):  # np.unique's inverse takes 40 bytes a record
        part = slice(begin, begin + _AT_ONCE)
        group[part] = np.where(kept[part], np.searchsorted(different, keys[part]), -1)
    return different, group


def _refuse_missing(holdouts: Holdouts, keys: np.ndarray, name_of: Callable[[int], str]) -> None:
    for option, name in holdouts.missing(keys):
        _, rows = np.unique(keys, return_index=True)
        raise not_there(option, name, map(name_of, rows.tolist()))


@dataclass
class _Units:
    """Units of more than one group: groups are numbered as in `_groups`."""

    members: list[np.ndarray]
    names: list[str]  # the smallest name of each unit's groups
    records: list[int]

    def largest(self) -> tuple[Unit, ...]:
        units = [
            Unit(name, len(groups), records)
            for name, groups, records in zip(self.names, self.members, self.records, strict=True)
        ]
        return tuple(sorted(units, key=lambda unit: (-unit.groups, unit.name))[:10])


def _units(root: np.ndarray, group: np.ndarray, name_of: Callable[[int], str]) -> _Units:
    """The units of several groups, from the root of every group."""
    order = np.argsort(root, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(root[order])) + 1)
    members = [groups for groups in members if len(groups) > 1]
    _, first = np.unique(group[group >= 0], return_index=True)
    rows = np.flatnonzero(group >= 0)[first]  # one record of each group, to ask for its name
    records = np.bincount(group[group >= 0], minlength=len(root))
    return _Units(
        members,
        [min(name_of(int(rows[g])) for g in groups.tolist()) for groups in members],
        [int(records[groups].sum()) for groups in members],
    )


def _of_units(units: _Units, group_keys: np.ndarray, holdouts: Holdouts) -> np.ndarray:
    """int8 [groups]: the split of each group, all groups of a unit in that of its name, or where one of them is named."""
    unit_keys = group_keys.copy()
    for name, groups in zip(units.names, units.members, strict=True):
        unit_keys[groups] = group_key(name)
    splits = holdouts.splits_of(unit_keys)
    named = holdouts.named(group_keys)
    for name, groups in zip(units.names, units.members, strict=True):
        asked = np.unique(named[groups][named[groups] >= 0])
        if len(asked) > 1:
            raise UsageError(
                f"--cluster joins groups that --valid and --test name into one unit ({name} and {len(groups) - 1:,} "
                "more), which goes into one split; name them for the same split, or ask for a higher --cluster share."
            )
        if len(asked):
            splits[groups] = asked[0]
    return splits
