"""What became of every base that was read: kept, or dropped for a reason that is counted.

Tallies of tasks are added up in the order of the tasks; the sum does not depend on how the work was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dnascale.errors import DataError

_MAX_WARNINGS = 20
_MAPPINGS = ("letters", "skipped", "noted", "near", "files")


@dataclass(slots=True)
class Count:
    """Records and bases. Bases that leave a record which itself stays count with no record."""

    records: int = 0
    bases: int = 0


@dataclass
class Tally:
    """Records and bases that came in, went out, were added by cutting, and were dropped for a reason.

    `cut`: records that cutting made beyond the one that was cut. `repeated`: bases taken once more by regions that
    overlap. `letters`: bases other than A, C, G, T and N, by letter. `skipped`: regions or transcripts that were not
    taken, by reason. `noted`: what was done to bases or regions that were kept, by what it was. `contigs`: names of
    sequences that the regions or the annotation lie on and that were met; `near`: names that were not met, and the
    sequence of the input that was probably meant. `files`: the files that said where the regions are, with their
    SHA-256. Two sums always hold, see `balance`.
    """

    records_in: int = 0
    bases_in: int = 0
    cut: int = 0
    repeated: int = 0
    records_out: int = 0
    bases_out: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)
    letters: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    contigs: set[str] = field(default_factory=set)
    near: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    further_warnings: int = 0

    def read(self, bases: int) -> None:
        """A record of this many bases came in."""
        self.records_in += 1
        self.bases_in += bases

    def keep(self, bases: int, records: int = 1) -> None:
        """Records of this many bases together go out."""
        self.records_out += records
        self.bases_out += bases

    def drop(self, reason: str, bases: int, records: int = 1) -> None:
        """A record (or with `records=0` a part of one) is left out."""
        count = self.dropped.setdefault(reason, Count())
        count.records += records
        count.bases += bases

    def skip(self, reason: str) -> None:
        """A region or a transcript is not taken."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def note(self, what: str, count: int = 1) -> None:
        """Something was done to this many bases or regions that are kept."""
        self.noted[what] = self.noted.get(what, 0) + count

    def meet(self, letters: Mapping[str, int]) -> None:
        """Bases other than A, C, G, T and N, by letter."""
        for letter, bases in letters.items():
            self.letters[letter] = self.letters.get(letter, 0) + bases

    def warn(self, text: str) -> None:
        """Keep a sentence for people; after the first 20 only their number."""
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
        else:
            self.further_warnings += 1

    def merge(self, other: Tally) -> Tally:
        """Add `other` to this tally, which is returned. Raises DataError if a file of regions was not the same in both."""
        for name in ("records_in", "bases_in", "cut", "repeated", "records_out", "bases_out", "further_warnings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.dropped.items():
            self.drop(reason, count.bases, count.records)
        self.meet(other.letters)
        for reason, number in other.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + number
        for what, number in other.noted.items():
            self.note(what, number)
        self.contigs |= other.contigs
        for name, meant in other.near.items():
            self.near[name] = min(meant, self.near.get(name, meant))
        for name, digest in other.files.items():
            if self.files.setdefault(name, digest) != digest:
                raise DataError(
                    f"{name} changed while the sequences were read: prepare again when nothing writes to it."
                )
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
            **{name: dict(sorted(getattr(self, name).items())) for name in _MAPPINGS},
            "contigs": sorted(self.contigs),
        }

    def to_report(self) -> dict[str, Any]:
        """The same as dataset.json has it: without the names of sequences, which say across inputs what was met."""
        return {key: value for key, value in self.to_dict().items() if key not in ("contigs", "near")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tally:
        """The inverse of `to_dict`."""
        return cls(
            **{
                **values,
                "dropped": {reason: Count(**count) for reason, count in values["dropped"].items()},
                **{name: dict(values[name]) for name in _MAPPINGS},
                "contigs": set(values["contigs"]),
                "warnings": list(values["warnings"]),
            }
        )


def sentences(cleaning: Mapping[str, Any]) -> list[str]:
    """A tally, as `to_dict` gives it, in lines for people: what came in, what was added, what was left out and why."""

    def of(name: str) -> dict[str, Any]:
        found: dict[str, Any] = cleaning.get(name, {})
        return found

    lines = [f"read     {cleaning['records_in']:,} records, {cleaning['bases_in']:,} bases"]
    if cleaning.get("cut") or cleaning.get("repeated"):
        again = f", {cleaning['repeated']:,} bases taken more than once" if cleaning["repeated"] else ""
        lines.append(f"cut      into {cleaning['cut']:,} more records{again}")
    for reason, lost in of("dropped").items():
        records = f"{lost['records']:,} records, " if lost["records"] else ""  # none: parts of records that stay
        lines.append(f"dropped  {records}{lost['bases']:,} bases: {reason}")
    lines += [f"skipped  {count:,} regions: {reason}" for reason, count in of("skipped").items()]
    lines += [f"noted    {count:,} {what}" for what, count in of("noted").items()]
    if letters := of("letters"):
        listed = ", ".join(f"{count:,} {letter}" for letter, count in letters.items())
        lines.append(f"letters  {listed} were read beside A, C, G, T and N")
    lines += [f"warning  {text}" for text in cleaning.get("warnings", [])]
    if further := cleaning.get("further_warnings"):
        lines.append(f"warning  {further:,} more are not shown")
    return lines


def total(counts: Iterable[Count]) -> Count:
    """The sum of counts."""
    result = Count()
    for count in counts:
        result.records += count.records
        result.bases += count.bases
    return result
