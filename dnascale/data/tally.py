"""What became of every base that was read: kept, or dropped for a reason that is counted.

Tallies of tasks are added up in the order of the tasks; the sum does not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_MAX_WARNINGS = 20


@dataclass(slots=True)
class Count:
    """Records and bases. Bases that leave a record which itself stays count with no record."""

    records: int = 0
    bases: int = 0


@dataclass
class Tally:
    """Records and bases that came in, went out, were added by cutting, and were dropped for a reason.

    `cut`: records that cutting made beyond the one that was cut. `repeated`: bases taken once more by regions that
    overlap. `changed`: bases that were kept as another letter, by reason. `contigs`: names of sequences that the
    regions or the annotation lie on and that were met. Two sums always hold, see `balance`.
    """

    records_in: int = 0
    bases_in: int = 0
    cut: int = 0
    repeated: int = 0
    records_out: int = 0
    bases_out: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    contigs: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    further_warnings: int = 0

    def read(self, bases: int) -> None:
        """A record of this many bases came in."""
        self.records_in += 1
        self.bases_in += bases

    def keep(self, bases: int) -> None:
        """A record of this many bases goes out."""
        self.records_out += 1
        self.bases_out += bases

    def drop(self, reason: str, bases: int, records: int = 1) -> None:
        """A record (or with `records=0` a part of one) is left out."""
        count = self.dropped.setdefault(reason, Count())
        count.records += records
        count.bases += bases

    def change(self, reason: str, bases: int) -> None:
        """This many bases are kept as another letter."""
        self.changed[reason] = self.changed.get(reason, 0) + bases

    def warn(self, text: str) -> None:
        """Keep a sentence for people; after the first 20 only their number."""
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
        else:
            self.further_warnings += 1

    def merge(self, other: Tally) -> Tally:
        """Add `other` to this tally, which is returned."""
        for name in ("records_in", "bases_in", "cut", "repeated", "records_out", "bases_out", "further_warnings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.dropped.items():
            self.drop(reason, count.bases, count.records)
        for reason, bases in other.changed.items():
            self.change(reason, bases)
        self.contigs |= other.contigs
        for text in other.warnings:
            self.warn(text)
        return self

    def balance(self) -> None:
        """Check that nothing was lost silently.

        Raises:
            AssertionError: `bases_in + repeated` is not `bases_out` and the dropped bases together, or `records_in + cut`
                not `records_out` and the dropped records. That is a fault of the program, never of the input.
        """
        lost = total(self.dropped.values())
        for what, left, right in (
            ("bases", self.bases_in + self.repeated, self.bases_out + lost.bases),
            ("records", self.records_in + self.cut, self.records_out + lost.records),
        ):
            if left != right:
                raise AssertionError(f"{what} do not add up: {left:,} came in and {right:,} went out or were dropped")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in an order that depends on nothing but the content."""
        return {
            **asdict(self),
            "dropped": {reason: asdict(count) for reason, count in sorted(self.dropped.items())},
            "changed": dict(sorted(self.changed.items())),
            "contigs": sorted(self.contigs),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """The inverse of `to_dict`."""
        return cls(
            **{
                **values,
                "dropped": {reason: Count(**count) for reason, count in values["dropped"].items()},
                "changed": dict(values["changed"]),
                "contigs": set(values["contigs"]),
                "warnings": list(values["warnings"]),
            }
        )


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    result = Count()
    for count in counts:
        result.records += count.records
        result.bases += count.bases
    return result
