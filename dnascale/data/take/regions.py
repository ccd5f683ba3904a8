"""Regions of a BED file: BED3 to BED12, strictly read."""

from __future__ import annotations

from collections.abc import Iterable

from dnascale.data.sources.alphabet import shown, text_of
from dnascale.data.sources.lines import without_mark
from dnascale.data.sources.opened import Source
from dnascale.data.take.layout import STRANDS, Contig, make_unique
from dnascale.errors import DataError

Parts = list[tuple[int, int]]

#: Where the numbers end: no sequence is as long.
FURTHEST = 2**62
_STRAND_OF = {sign.encode(): index for index, sign in enumerate(STRANDS)}
_UNKNOWN_STRAND = STRANDS.index(".")


def read_bed(source: Source, spliced: bool = False, coding: bool = False) -> dict[str, Contig]:
    """The regions of a BED file, compressed or not, by the name of the sequence that they lie on.

    `spliced`: the blocks of BED12, joined, instead of the whole interval. `coding`: of the blocks, what lies between
    thickStart and thickEnd; regions without such a part are skipped.

    Raises:
        DataError: what is wrong with the file, and in which line.
    """
    return _Bed(source.input.name, spliced or coding, coding).read(source.file())


class _Bed:
    """The reader of one file, and where it stands."""

    def __init__(self, path: str, blocks: bool, coding: bool) -> None:
        self.path, self.blocks, self.coding = path, blocks, coding
        self.contigs: dict[str, Contig] = {}
        self.line = 0
        self.width, self.first_line = 0, 0  # columns, and the line that said so

    def read(self, lines: Iterable[bytes]) -> dict[str, Contig]:
        known: dict[bytes, Contig] = {}
        for self.line, line in enumerate(without_mark(lines), 1):
            columns = line.split(b"\t")
            contig = known.get(columns[0])
            if contig is None:  # a new sequence, spaces for tabs, or no region at all
                columns = columns if len(columns) > 1 else line.split()
                if self.is_no_region(line, columns):
                    continue
                contig = self.contig_of(columns[0], known)
            columns[-1] = columns[-1].rstrip(b"\r\n")
            if len(columns) != self.width:
                self.check_width(columns)
            if not (columns[1].isdigit() and columns[2].isdigit()):
                raise self.bad_interval(columns)
            start, end = int(columns[1]), int(columns[2])
            if not start < end <= FURTHEST:
                raise self.bad_interval(columns)
            strand = _STRAND_OF.get(columns[5], -1) if self.width > 5 else _UNKNOWN_STRAND
            if strand < 0:
                raise self.error(f"the strand {_shown(columns[5])} is none of + - .")
            name = text_of(columns[3]) if self.width > 3 else ""
            if self.blocks:
                parts = self.blocks_of(columns, start, end)
                if parts:
                    contig.add(name, strand, [(a, b, self.line) for a, b in parts])
                else:
                    contig.skipped.append("no coding part")
            else:
                contig.add_interval(name, strand, start, end, self.line)
        if not self.contigs:
            raise DataError(f"{self.path} has no regions in it.")
        make_unique(self.contigs.values())
        return self.contigs

    def contig_of(self, column: bytes, known: dict[bytes, Contig]) -> Contig:
        """The sequence that the first column names, seen for the first time in this spelling."""
        name = text_of(column)
        if not name:
            raise self.error("the first column, the name of the sequence, is empty")
        return known.setdefault(column, self.contigs.setdefault(name, Contig()))

    def is_no_region(self, line: bytes, columns: list[bytes]) -> bool:
        """A blank line, a comment, or a line for a browser."""
        return not columns or line.startswith(b"#") or columns[0] in (b"track", b"browser")

    def check_width(self, columns: list[bytes]) -> None:
        """The first region says how many columns there are."""
        width = len(columns)
        if self.width:
            raise self.error(
                f"{width} columns, but line {self.first_line} has {self.width}; all lines must have as many"
            )
        if width < 3:
            raise self.error(f"{width} columns, where BED has at least three: sequence, start and end")
        if self.blocks and width < 12:
            raise self.error(f"{width} columns, but spliced regions need the twelve of BED12; leave --spliced out")
        self.width, self.first_line = width, self.line

    def bad_interval(self, columns: list[bytes]) -> DataError:
        start, end = columns[1:3]
        for what, value in (("start", start), ("end", end)):
            if not value.isdigit():
                is_gff = len(columns) == 9 and columns[3].isdigit() and columns[4].isdigit()
                hint = "this looks like GTF or GFF, give it as --annotation" if is_gff else "BED counts bases from 0"
                return self.error(f"the {what} {_shown(value)} is not a whole number; {hint}")
        if int(end) > FURTHEST:
            return self.error(f"the end {_shown(end)} is beyond every sequence")
        return self.error(f"the start {_shown(start)} is not before the end {_shown(end)}; BED is 0-based half-open")

    def blocks_of(self, columns: list[bytes], start: int, end: int) -> Parts:
        """The blocks of BED12, ascending, on the sequence; of the coding part alone if so asked."""
        count = self.numbers("blockCount", columns[9])[0]
        sizes, offsets = self.numbers("blockSizes", columns[10]), self.numbers("blockStarts", columns[11])
        if not len(sizes) == len(offsets) == count:
            raise self.error(
                f"blockCount is {count}, but there are {len(sizes)} blockSizes and {len(offsets)} blockStarts"
            )
        parts = [(start + offset, start + offset + size) for offset, size in zip(offsets, sizes, strict=True)]
        if parts[0][0] != start or parts[-1][1] != end:
            raise self.error(
                f"the blocks reach from {parts[0][0]} to {parts[-1][1]}, but the region from {start} to {end}"
            )
        before = start
        for block_start, block_end in parts:
            if block_start < before:
                raise self.error("the blocks overlap, or are not in ascending order")
            if block_start == block_end:
                raise self.error("a block has no bases")
            before = block_end
        if not self.coding:
            return parts
        thick_start, thick_end = self.numbers("thickStart", columns[6])[0], self.numbers("thickEnd", columns[7])[0]
        if not (start <= thick_start <= thick_end <= end or thick_start == thick_end == 0):
            raise self.error(f"thickStart {thick_start} and thickEnd {thick_end} are not within {start} to {end}")
        coding = ((max(a, thick_start), min(b, thick_end)) for a, b in parts)
        return [(a, b) for a, b in coding if a < b]

    def numbers(self, what: str, values: bytes) -> list[int]:
        parts = values.removesuffix(b",").split(b",")
        for part in parts:
            if not part.isdigit():
                raise self.error(f"{what} has {_shown(part)}, which is not a whole number")
        return [int(part) for part in parts]

    def error(self, what: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: {what}.")


def _shown(letters: bytes) -> str:
    return shown(text_of(letters))
