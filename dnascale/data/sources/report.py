"""What is said about one input: counts, warnings, and the problems that are in it."""

from __future__ import annotations

from dataclasses import dataclass, field

_MAX_WARNINGS = 20


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read. None: found out from the input.

    Attributes:
        format: the name of a format, see `formats.FORMATS`.
        column: the column of a table that holds the sequences.
        name_column: the column of a table that holds the names.
        skip_bad_records: leave bad records out and count them, instead of refusing the input.
    """

    format: str | None = None
    column: str | None = None
    name_column: str | None = None
    skip_bad_records: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in an input. `where` is `file:line:column`, from 1."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


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
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Keep a warning; after the first 20 only that there were more."""
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
        elif len(self.warnings) == _MAX_WARNINGS:
            self.warnings.append(f"{self.name}: further warnings are not shown")
