"""Which split a group goes to: by a hash of its name, so that adding data never moves a group, or because it is named."""

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dnascale.errors import UsageError

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)


def group_key(group: str) -> int:
    """64 bits of a group's name: its identity in arrays, and, over 2^64, its place in [0, 1) that decides its split."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"dnascale-split").digest())


@dataclass(frozen=True)
class Holdout:
    """What one split takes: a share of the groups, or the groups of these names."""

    share: float = 0.0
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, option: str, text: str | float) -> "Holdout":
        """A number in [0, 1) is a share, anything else names groups: `chr20,chrX`; `=20` names the group 20.

        Raises UsageError, which names the `option` (`--valid`): a share out of range, no name, or one name twice.
        """
        try:
            share = float(text)
        except ValueError:
            share = None
        if share is not None:
            if not 0 <= share < 1:
                raise UsageError(
                    f"{option} {text} must be a share of at least 0 and below 1; the group {text} is named by "
                    f"{option} ={text}."
                )
            return cls(share)
        names = [name.strip() for name in str(text).removeprefix("=").split(",")]
        if not all(names):
            raise UsageError(f"{option} {str(text)!r} holds an empty name; give a share, or names with commas between.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{option} names {', '.join(twice)} twice.")
        return cls(0.0, tuple(names))

    def __str__(self) -> str:
        return ",".join(self.names) or f"{self.share:g}"


@dataclass(frozen=True)
class Holdouts:
    """What is held out of training. Raises UsageError: nothing is left for it, or a group is in both."""

    valid: Holdout = Holdout(0.1)
    test: Holdout = Holdout()

    def __post_init__(self) -> None:
        if self.valid.share + self.test.share >= 1:
            raise UsageError(f"--valid {self.valid} and --test {self.test} must be shares that leave some for train.")
        if both := sorted(set(self.valid.names) & set(self.test.names)):
            raise UsageError(f"{', '.join(both)} cannot be held out for both --valid and --test; name it once.")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are asked for, `train` first."""
        asked = {"valid": self.valid, "test": self.test}
        return ("train", *(name for name, holdout in asked.items() if holdout.share or holdout.names))

    def split_of(self, group: str) -> str:
        """The split of a group, by its name alone."""
        return SPLITS[int(self.splits_of(np.array([group_key(group)], dtype=np.uint64))[0])]

    def splits_of(self, keys: np.ndarray) -> np.ndarray:
        """int8 [n], indices into SPLITS, for `group_key`s, uint64 [n]. Named groups first, shares for the others."""
        place = keys.astype(np.float64)
        place /= 2.0**64
        splits = np.full(len(keys), TRAIN, dtype=np.int8)
        splits[place < self.valid.share + self.test.share] = TEST
        splits[place < self.valid.share] = VALID
        named = self.named(keys)
        return np.where(named < 0, splits, named)

    def named(self, keys: np.ndarray) -> np.ndarray:
        """int8 [n]: the split that a group is named for, -1 for the others."""
        named = np.full(len(keys), -1, dtype=np.int8)
        for split, holdout in ((VALID, self.valid), (TEST, self.test)):
            if holdout.names:
                wanted = np.array([group_key(name) for name in holdout.names], dtype=np.uint64)
                named[np.isin(keys, wanted)] = split
        return named

    def missing(self, keys: np.ndarray) -> list[tuple[str, str]]:
        """(option, name) of the named groups that are not among the keys (uint64) of all groups there are."""
        return [
            (option, name)
            for option, holdout in (("--valid", self.valid), ("--test", self.test))
            for name in holdout.names
            if not (keys == np.uint64(group_key(name))).any()
        ]


def not_there(option: str, name: str, groups: Iterable[str]) -> UsageError:
    """The error for a named group that no record is in; `groups` are the names of those there are, to find near ones."""
    known = sorted(set(groups))
    near = [other for other in known if _bare(other) == _bare(name)] or difflib.get_close_matches(name, known[:50_000])
    if near:
        hint = f"near it are {', '.join(near[:3])}"
    else:
        count = f"is {len(known)} group" if len(known) == 1 else f"are {len(known):,} groups"
        hint = f"there {count}: {', '.join(known[:5])}{', ...' if len(known) > 5 else ''}"
    return UsageError(
        f"{option} {name}: no record is in a group of that name ({hint}); names are compared exactly, and --group says what a group is."
    )


def _bare(name: str) -> str:
    """A name without what naming schemes of chromosomes add to it: chr20, Chr20 and 20 are near."""
    return name.lower().removeprefix("chromosome").removeprefix("chr").lstrip("0_ ")
