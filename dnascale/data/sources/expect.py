"""What an input should hold, from a list that came with it: the only way to see a cut between two records.

Three kinds of list are known by content:

- names and lengths: a `.fai` index, `chrom.sizes`, any table that begins `name<TAB>length`;
- an assembly report of NCBI (`*_assembly_report.txt`): a record may have any of its names;
- checksums of files as `md5sum`, `sha1sum` and `sha256sum` write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dnascale.data.sources.alphabet import shown
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import Problem, ReadReport
from dnascale.errors import DataError, UsageError

_CHECKSUM = re.compile(r"([0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}) [ *](.+)")
_ALGORITHMS = {32: "md5", 40: "sha1", 64: "sha256"}
_REPORT_NAMES = ("Sequence-Name", "GenBank-Accn", "RefSeq-Accn", "UCSC-style-name")
_MAX_BYTES = 256 << 20


@dataclass
class Expected:
    """The list `path`: either lengths, with the names that go with each, or checksums of files."""

    path: Path
    lengths: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # the first name of each length
    place_of: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str) -> Expected:
        """Reads a list. Raises UsageError where it cannot be read or is none of the known kinds."""
        expected = cls(Path(path))
        try:
            with expected.path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, the list of what is expected, cannot be read: {error}.") from None
        lines = text.splitlines()
        columns = next((line[1:].strip().split("\t") for line in lines if line.startswith("# Sequence-Name")), None)
        for number, line in enumerate(lines, 1):
            if not line.strip() or (columns and line.startswith("#")):
                continue
            try:
                expected._add(line, columns)
            except (ValueError, IndexError):
                raise UsageError(
                    f"{path}:{number}: {shown(line)} is neither a name with a length nor a checksum with a file; give "
                    "a .fai, chrom.sizes, an assembly report of NCBI, or what sha256sum or md5sum wrote."
                ) from None
        if not expected.lengths and not expected.checksums:
            raise UsageError(f"{path}, the list of what is expected, is empty.")
        return expected

    def _add(self, line: str, columns: list[str] | None) -> None:
        if columns is None and (match := _CHECKSUM.fullmatch(line)):
            self.checksums[match[2].rpartition("/")[2]] = match[1].lower()
            return
        cells = line.split("\t")
        names = [cells[0]] if columns is None else [cells[columns.index(name)] for name in _REPORT_NAMES]
        length = int(cells[1] if columns is None else cells[columns.index("Sequence-Length")])
        for name in names:
            if name != "na":
                self.place_of[name] = len(self.lengths)
        self.names.append(names[0])
        self.lengths.append(length)

    def algorithm(self, name: str) -> str | None:
        """The hash that the file `name` is listed with. Raises DataError for a file that is not in the list."""
        if not self.checksums:
            return None
        if (digest := self.checksums.get(name.rpartition("/")[2])) is None:
            raise DataError(f"{name} is not in {self.path}, the list of what is expected.")
        return _ALGORITHMS[len(digest)]

    def check_digest(self, name: str, digest: str) -> None:
        """Raises DataError if this is not the digest of the file `name`."""
        listed = self.checksums[name.rpartition("/")[2]]
        if digest != listed:
            raise DataError(
                f"{name} is not the file that {self.path} lists: its {_ALGORITHMS[len(listed)]} is {digest}, and {listed} "
                "is expected. It is truncated, damaged or another version; fetch it again."
            )

    def check(self, records: Iterator[Record], report: ReadReport) -> Iterator[Record]:
        """The same records. Those that are not as listed are noted in `report`, and after the last those missing."""
        if self.checksums:
            yield from records
            return
        seen = bytearray(len(self.lengths))
        for record in records:
            place = self.place_of.get(record.name)
            if place is None:
                self._note(report, record.line, f"record {shown(record.name)} is not in {self.path}")
            else:
                seen[place] = 1
                if len(record.bases) != self.lengths[place]:
                    self._note(
                        report,
                        record.line,
                        f"record {shown(record.name)} has {len(record.bases):,} bases, and {self.path} says "
                        f"{self.lengths[place]:,}; it is cut, or another version",
                    )
            yield record
        for name, was_seen in zip(self.names, seen, strict=True):
            if not was_seen:
                self._note(
                    report, 1, f"record {shown(name)} of {self.path} is missing; the file is cut, fetch it again"
                )

    def _note(self, report: ReadReport, line: int, what: str) -> None:
        report.note(Problem(report.name, line, 1, what, of_record=False))
