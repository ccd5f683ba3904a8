"""The problems of one input, noted as its reader meets them, so that all are told at once."""

from __future__ import annotations

from collections.abc import Iterable

from dnascale.data.sources.names import Names
from dnascale.data.sources.report import Problem, ReadOptions, ReadReport

_MAX_REPEATED = 10_000


class Problems:
    """What a reader notes: records that are bad, and the names of those that are not.

    `formats.read` raises what was noted, after the reader has come to its end.
    """

    def __init__(self, report: ReadReport, options: ReadOptions) -> None:
        self.report = report
        self._names = Names(options.temporary)

    def bad_record(self, line: int, column: int, what: str, offset: int | None = None, bases: int = 0) -> None:
        """The record that has `what` at this place is left out, with `bases` bases. One call a record."""
        self.report.note(Problem(self.report.name, line, column, what, offset))
        self.report.bad_records += 1
        self.report.bad_bases += bases

    def new_names(self, names: Iterable[str], lines: Iterable[int]) -> None:
        """Remembers names, with the lines where their records begin. What was used before is told by `finish`."""
        self._names.add(names, lines)

    def new_name(self, name: str, line: int) -> None:
        """As `new_names`, for one."""
        self._names.add((name,), (line,))

    def finish(self) -> None:
        """Notes names that were used twice, which no option leaves out, and warns of similar ones."""
        name = self.report.name
        equal, similar = self._names.finish()
        for first, second in equal[:_MAX_REPEATED].tolist():
            what = f"the name of this record was used in line {first} already; rename one of the two"
            self.report.note(Problem(name, second, 1, what, of_record=False))
        if len(similar):
            first, second = similar[0].tolist()
            self.report.warn(
                f"{name}:{second}:1: this name and that of line {first} differ only in case, version or a leading "
                f"'chr'; is it the same sequence twice? {len(similar):,} such pairs in all"
            )
