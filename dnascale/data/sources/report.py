"""What is said about one input: counts, warnings, and the problems that are in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from dnascale.errors import DataError

MAX_SHOWN = 20
_MAX_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read. None: found out from the input.

    Attributes:
        format: the name of a format, see `formats.FORMATS`.
        column: the column of a table that holds the sequences.
        name_column: the column of a table that holds the names.
        skip_bad_records: leave bad records out and count them, instead of refusing the input.
        temporary: the folder for temporary files: records of more than 64 MiB, names of more than 10^6 records.
        expect: a list of what an input holds: names and lengths (for one input), or checksums; see `expect`.
    """

    format: str | None = None
    column: str | None = None
    name_column: str | None = None
    skip_bad_records: bool = False
    temporary: str | None = None
    expect: str | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in the input `name`: where (line and column from 1, byte from 0 after decompression), and what.

    `of_record`: it is in one record, and goes when that record is left out.
    """

    name: str
    line: int
    column: int
    what: str
    offset: int | None = None
    of_record: bool = True

    def __str__(self) -> str:
        byte = "" if self.offset is None else f" (byte {self.offset:,})"
        return f"{self.name}:{self.line}:{self.column}{byte}: {self.what}{'' if self.what.endswith('?') else '.'}"


@dataclass
class ReadReport:
    """What was read from the input `name`.

    `bytes_read` counts bytes as they lie on the disk, `bases` and `records` what was given out, `empty` the records
    without bases, `bad_records` and `bad_bases` what was left out. `sha256` is that of the file, set at its end.
    """

    name: str
    format: str = ""
    compression: str = "plain"
    bytes_read: int = 0
    sha256: str = ""
    records: int = 0
    bases: int = 0
    empty: int = 0
    bad_records: int = 0
    bad_bases: int = 0
    can_skip: bool = False  # who reads can be told to leave bad records out
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)  # the first 10,000
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keep a warning; after the first 20 only that there were more."""
        if len(self.warnings) < MAX_SHOWN:
            self.warnings.append(text)
        elif len(self.warnings) == MAX_SHOWN:
            self.warnings.append(f"{self.name}: further warnings are not shown")

    def gave(self, bases: int, name: str, line: int) -> None:
        """Count a record that is given out, with `bases` bases; `name` is fit to be shown."""
        self.records += 1
        self.bases += bases
        if not bases:
            self.empty += 1
            self.warn(f"{self.name}:{line}:1: record {name} has no bases")

    def note(self, problem: Problem) -> None:
        """Keep a problem."""
        self.problem_count += 1
        if len(self.problems) < _MAX_KEPT * (1 if problem.of_record else 2):
            self.problems.append(problem)

    def refuse(self, skip_bad_records: bool, fatal: str = "") -> None:
        """Raises DataError if there are problems that are not left out; `fatal` is what ended the reading, if so."""
        of_records = self.bad_records if skip_bad_records else 0
        left = [problem for problem in self.problems if not (skip_bad_records and problem.of_record)]
        count = self.problem_count - of_records
        shown = [str(problem) for problem in sorted(left, key=lambda p: (p.line, p.column))[:MAX_SHOWN]]
        if fatal:
            shown.append(fatal)
        if not shown:
            return
        hint = (
            "" if fatal or skip_bad_records or not any(p.of_record for p in left) else _SKIP if self.can_skip else _MEND
        )
        if len(shown) == 1:
            raise DataError(shown[0] + (f" {hint}" if hint else ""))
        more = f"\n  and {count + bool(fatal) - len(shown):,} more." if count + bool(fatal) > len(shown) else ""
        listed = "".join(f"\n  {line}" for line in shown)
        raise DataError(
            f"{self.name} has {count + bool(fatal):,} problems:{listed}{more}" + (f"\n{hint}" if hint else "")
        )


_MEND = "Mend the file."
_SKIP = "Mend the file, or leave such records out with --skip-bad-records."
