"""What is taken from each sequence: all of it, the regions of a BED file, or the features of an annotation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from dnascale.data.sources import Input, ReadReport, Record
from dnascale.data.sources.opened import Source
from dnascale.data.take.annotation import read_annotation
from dnascale.data.take.layout import OUTSIDE, Contig, take
from dnascale.data.take.regions import read_bed
from dnascale.data.tally import Tally
from dnascale.errors import DataError, UsageError

_SHOWN = 5  # names in an error message


@dataclass(frozen=True)
class TakeOptions:
    """What is asked for. With neither regions nor annotation, every sequence is taken whole.

    Attributes:
        regions: a BED file.
        spliced: of BED12, the blocks joined instead of the whole interval.
        coding: of BED12, the blocks joined between thickStart and thickEnd.
        annotation: a GTF or GFF3 file.
        feature: what is taken of the annotation: CDS, exon, gene, or whatever its third column has.
        ignore_chr: `chr1` and `1` are one sequence.
        allow_absent: regions may lie on sequences that are not in the input.

    Raises:
        UsageError: options that exclude each other, or have nothing to act on.
    """

    regions: str | None = None
    spliced: bool = False
    coding: bool = False
    annotation: str | None = None
    feature: str = "CDS"
    ignore_chr: bool = False
    allow_absent: bool = False

    def __post_init__(self) -> None:
        if self.regions and self.annotation:
            raise UsageError("--regions and --annotation exclude each other: prepare two data sets and mix them.")
        for name in ("spliced", "coding"):
            if getattr(self, name) and not self.regions:
                raise UsageError(f"--{name} says how to take the regions of a BED12 file: add --regions BED.")
        if self.spliced and self.coding:
            raise UsageError("--spliced and --coding exclude each other: all of the blocks, or their coding part.")
        if self.feature != "CDS" and not self.annotation:
            raise UsageError("--feature says what to take of an annotation: add --annotation GTF|GFF3.")
        for name in ("ignore_chr", "allow_absent"):
            if getattr(self, name) and self.file is None:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is about the names in a file of regions: add --regions or --annotation.")

    @property
    def file(self) -> str | None:
        """The file that says where the regions are, part of the input like the sequences."""
        return self.regions or self.annotation


@lru_cache(maxsize=1)
def _contigs(options: TakeOptions, identity: tuple[int, ...]) -> tuple[dict[str, Contig], str]:
    """The regions of a file, and its SHA-256. Takers of a process share them, as long as the file is the same one."""
    path = options.file
    assert path is not None
    report = ReadReport(path)
    with Source(Input(path, path), report) as source:
        if options.regions:
            contigs = read_bed(source, options.spliced, options.coding)
        else:
            contigs = read_annotation(source, options.feature)
    return contigs, report.sha256


class Taker:
    """Takes regions from sequences. The file is read at the first sequence, once in a process."""

    def __init__(self, options: TakeOptions) -> None:
        self.options = options

    def __getstate__(self) -> TakeOptions:
        return self.options

    def __setstate__(self, options: TakeOptions) -> None:
        self.options = options

    @property
    def contigs(self) -> dict[str, Contig]:
        """The regions by the name of their sequence. Raises DataError as `read_bed` and `read_annotation`."""
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[dict[str, Contig], str]:
        path = self.options.file
        if path is None:
            return {}, ""
        identity: tuple[int, ...] = ()
        with suppress(OSError):  # the reader says what is wrong
            status = os.stat(path)
            identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        return _contigs(self.options, identity)

    def take(self, record: Record, tally: Tally) -> Iterator[Record]:
        """The record, or the regions on it as records of their own. What is left out is counted.

        Raises:
            DataError: the file of the regions is wrong, or a region ends beyond the sequence.
        """
        source = self.options.file
        return iter((record,)) if source is None else self._regions(record, source, tally)

    def _regions(self, record: Record, source: str, tally: Tally) -> Iterator[Record]:
        """The regions of a file on a record."""
        tally.files[Path(source).name] = self._read[1]
        name = self._meant_by(record.name)
        if name is None:
            tally.drop(OUTSIDE, len(record.bases))
            if near := self._near.get(_plain(record.name)):
                tally.near[near] = min(record.name, tally.near.get(near, record.name))
            return
        tally.contigs.add(name)
        yield from take(record, self.contigs[name], source, tally)

    def check(self, tally: Tally) -> None:
        """Call with the tally of all inputs: were the sequences met that the regions lie on?

        Raises:
            DataError: some were not, and that is not allowed; or none was.
        """
        absent = [name for name in self.contigs if name not in tally.contigs]
        if not absent:
            return
        regions = sum(len(self.contigs[name].names) for name in absent)
        listed = ", ".join(ascii(name) for name in absent[:_SHOWN]) + (", ..." if len(absent) > _SHOWN else "")
        what = f"{_number(regions, 'region')} of {self.options.file} on {_number(len(absent), 'sequence')} not in the input ({listed})"
        if self.options.allow_absent and tally.contigs:
            tally.warn(what)
            return
        nearest = next(((name, tally.near[name]) for name in absent if name in tally.near), None)
        if nearest is None:
            advice = "give those sequences too, or --allow-absent to take what is there"
        elif {nearest[0], nearest[1]} == {nearest[0].removeprefix("chr"), "chr" + nearest[0].removeprefix("chr")}:
            advice = (
                f"the input has {nearest[1]!r} where the file says {nearest[0]!r}; if they are one, add --ignore-chr"
            )
        else:
            advice = f"the input has {nearest[1]!r} where the file says {nearest[0]!r}; write the names alike"
        raise DataError(f"{what}; {advice}.")

    def _meant_by(self, name: str) -> str | None:
        """The name by which the regions know a sequence of the input."""
        if name in self.contigs:
            return name
        other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
        return other if self.options.ignore_chr and other in self.contigs else None

    @cached_property
    def _near(self) -> dict[str, str]:
        return {_plain(name): name for name in reversed(self.contigs)}


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)


def _plain(name: str) -> str:
    """What is left of a name without the ways in which names of one sequence differ."""
    plain = name.lower().removeprefix("chromosome").removeprefix("chr").partition(".")[0]
    return "mt" if plain in ("m", "mt", "mito", "mtdna") else plain
