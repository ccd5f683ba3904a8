"""Strict, fast FASTA reading: what is not clearly DNA or RNA sequence is an error that says where it stands.

The reader works on blocks of 256 KiB. Within a block there is no loop over lines: a record is cut out with
`bytes.find`, lines of one width lose their ends in one strided copy, and one `translate` into codes is both the
check of every letter and the encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate

import numpy as np

from dnascale.data.sources.alphabet import (
    BASES,
    INVALID,
    NOT_A_BASE,
    PROTEIN,
    encode,
    meaning,
    shown,
    shown_byte,
    text_of,
)
from dnascale.data.sources.growing import Growing
from dnascale.data.sources.lines import Chunk, chunks
from dnascale.data.sources.opened import Source
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import Problem, ReadOptions, ReadReport
from dnascale.errors import DataError
from dnascale.vocab import PREDICTED_BASES, SOFT_MASK_BIT

_MAX_HEADER_BYTES = 64 << 10
_SHORT_BYTES = 4096  # records of this size on average are read many at once
_STRIDED_BYTES = 2048  # below, what NumPy costs a call is more than it saves
_PROTEIN_SHARE = 0.1  # of the letters; in proteins a third are amino acids that no base shares its letter with


def records(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The reader of this format. Line ends may be LF, CRLF or CR."""
    return _Parser(source.report, options).records(chunks(source.blocks(), source.report))


class _Parser:
    """Where the reader stands: the place in the file and the record in hand."""

    def __init__(self, report: ReadReport, options: ReadOptions) -> None:
        self.report = report
        self.line, self.column = 1, 0  # the line at hand, and how many bytes of it are behind us
        self.blank_lines, self.first_blank = 0, 0
        self.problems = Problems(report, options)
        self.name, self.description = "", ""
        self.header_line, self.header_at = 0, (Chunk(b"", b"", 0), 0)
        self.bases = Growing(options.temporary)
        self.problem: Problem | None = None  # the first of the record at hand
        self.good, self.strange, self.amino = 0, 0, 0  # letters of a bad record: bases, others, amino acids

    def records(self, text: Iterator[Chunk]) -> Iterator[Record]:
        header: bytes | None = None  # the header line at hand, as far as it has been seen
        chunk = Chunk(b"", b"", 0)
        for chunk in text:
            block = chunk.text
            here, end, untried = 0, len(block), True
            if not self.header_line and header is None:
                here = self.skip_to_first(chunk)
            while here < end:
                if header is not None:
                    stop = block.find(b"\n", here)
                    header += block[here : stop if stop >= 0 else end]
                    if len(header) > _MAX_HEADER_BYTES:
                        raise self.damage("a header of more than 64 KiB; is the line break after it missing?")
                    if stop < 0:
                        break
                    self.open_record(header)
                    header, self.line, self.column = None, self.line + 1, 0
                else:
                    stop = block.find(b">", here)
                    self.take(chunk, here, stop if stop >= 0 else end)
                    if stop < 0:
                        break
                    if self.column:
                        self.mark(chunk, stop, _MISSING_BREAK)
                        self.column += 1
                    else:
                        if self.header_line and (record := self.close_record()):
                            yield record
                        if untried and (last := block.rfind(b"\n>", stop)) > stop:
                            untried = False
                            if whole := self.short_records(block[stop + 1 : last]):
                                yield from whole
                                stop = last + 1
                        header, self.header_at = b"", (chunk, stop)
                here = stop + 1
        if header is None and not self.header_line:
            raise self.damage("no sequence, only blank lines" if self.line > 1 else "the file is empty")
        if header == b"":
            raise self.damage("the file ends with '>': it is probably truncated, fetch it again")
        if header is not None:
            self.open_record(header)
        if record := self.close_record():
            yield record
        self.finish()

    def skip_to_first(self, chunk: Chunk) -> int:
        """Where the first header begins in this chunk, or its end."""
        rest = chunk.text.lstrip(b"\n")
        here = len(chunk.text) - len(rest)
        if here:
            self.count_blank_lines(chunk.text[:here])
            self.line += here
        if rest and not rest.startswith(b">"):
            self.header_at = (chunk, here)
            raise self.damage("the first line must start with '>'; this is not FASTA")
        return here

    def short_records(self, text: bytes) -> Iterator[Record] | None:
        """Whole short records, without the first '>' and the last line end, if nothing is wrong with them at all.

        It is the quick way. None: they must be read one by one, to say what is wrong, or for they are long.
        """
        entries = text.split(b"\n>")
        if len(text) > _SHORT_BYTES * len(entries) or b"\n\n" in text or b"\0" in text:
            return None
        parts = [entry.partition(b"\n") for entry in entries]
        headers = [split_header(header) for header, _, _ in parts if len(header) <= _MAX_HEADER_BYTES]
        letters = [sequence.replace(b"\n", b"") for _, _, sequence in parts]
        codes = encode(bytearray().join(letters))
        if codes.find(INVALID) >= 0 or not all(letters) or not all(name for name, _ in headers):
            return None
        if len(headers) < len(parts):
            return None
        # A record has a line for its header, and one more than its sequence has line ends.
        sizes = [2 + len(part[2]) - len(bases) for part, bases in zip(parts, letters, strict=True)]
        lines = list(accumulate(sizes, initial=self.line))
        self.line = lines.pop()
        self.problems.new_names((name for name, _ in headers), lines)
        self.report.records += len(letters)
        self.report.bases += len(codes)
        return _coded(headers, letters, lines, np.frombuffer(codes, dtype=np.uint8))

    def take(self, chunk: Chunk, start: int, end: int) -> None:
        """Check some sequence, which may begin and end anywhere in a line, and keep it."""
        piece = chunk.text[start:end]
        letters, line_ends = self.without_line_ends(piece)
        codes = encode(letters)
        if self.problem is None and codes.find(INVALID) < 0:
            if letters:
                self.bases.add(letters, codes)
        else:
            self.take_bad(chunk, start, piece, letters)
        if line_ends:
            self.line += line_ends
            self.column = len(piece) - piece.rfind(b"\n") - 1
        else:
            self.column += len(piece)

    def without_line_ends(self, piece: bytes) -> tuple[bytes | bytearray, int]:
        """The letters of a piece, and how many lines ended in it."""
        if len(piece) >= _STRIDED_BYTES and (regular := _without_regular_ends(piece, self.column == 0)):
            return regular, len(piece) - len(regular)
        letters = piece.replace(b"\n", b"")
        line_ends = len(piece) - len(letters)
        if line_ends and (b"\n\n" in piece or (self.column == 0 and piece.startswith(b"\n"))):
            self.count_blank_lines(piece)
        return letters, line_ends

    def count_blank_lines(self, piece: bytes) -> None:
        blank = [match.start() for match in re.finditer(rb"(?m)^\n", piece) if match.start() or self.column == 0]
        if not self.blank_lines:
            self.first_blank = self.line + piece.count(b"\n", 0, blank[0])
        self.blank_lines += len(blank)

    def take_bad(self, chunk: Chunk, start: int, piece: bytes, letters: bytes | bytearray) -> None:
        """Sequence of a record that is left out, because of this piece or of something before it."""
        strange = letters.translate(None, BASES)
        self.good += len(letters) - len(strange)
        self.strange += len(strange)
        self.amino += len(strange) - len(strange.translate(None, PROTEIN))
        match = NOT_A_BASE.search(piece)
        if match and self.problem is None:
            what = f"{shown_byte(match[0])} in record {shown(self.name)}: {meaning(match[0])}"
            before = piece.rfind(b"\n", 0, match.start())
            line = self.line + piece.count(b"\n", 0, match.start())
            column = match.start() - before if before >= 0 else self.column + match.start() + 1
            self.mark(chunk, start + match.start(), what, line, column)

    def mark(self, chunk: Chunk, index: int, what: str, line: int = 0, column: int = 0) -> None:
        """The record at hand is bad, for what is at this place. Only the first reason is kept."""
        if self.problem is None:
            line, column = line or self.line, column or self.column + 1
            self.problem = Problem(self.report.name, line, column, what, chunk.offset(index))
            self.good += self.bases.length
            self.bases.clear()

    def open_record(self, header: bytes) -> None:
        if b"\0" in header:
            at = header.index(b"\0") + 1
            raise self.damage("a NUL byte in a header; the file is damaged, or UTF-16 text", at)
        self.header_line = self.line
        self.name, self.description = split_header(header)
        if self.name:
            self.problems.new_name(self.name, self.line)
        else:
            self.column = 0
            self.mark(*self.header_at, "'>' without a name; write the name directly after it, as in '>chr1'")

    def close_record(self) -> Record | None:
        if problem := self.problem:
            if self.amino > _PROTEIN_SHARE * (self.good + self.strange):
                self.problem = None
                raise DataError(str(problem))
            more = f" ({self.strange:,} bytes of the record are no bases)" if self.strange > 1 else ""
            self.problems.bad_record(problem.line, problem.column, problem.what + more, problem.offset, self.good)
            self.problem, self.good, self.strange, self.amino = None, 0, 0, 0
            return None
        self.report.gave(self.bases.length, shown(self.name), self.header_line)
        return self.bases.record(self.name, self.description, self.header_line)

    def finish(self) -> None:
        """What only the whole file tells."""
        self.problems.finish()
        if self.blank_lines:
            where = f"{self.report.name}:{self.first_blank}:1"
            self.report.warn(f"{where}: blank lines were skipped, {self.blank_lines} in all")

    def damage(self, what: str, after: int = 0) -> DataError:
        """The file itself is not what it should be, seen `after` bytes from the start of the header at hand."""
        if self.problem:
            self.close_record()
        chunk, index = self.header_at
        return DataError(str(Problem(self.report.name, self.line, 1 + after, what, chunk.offset(index) + after)))


_MISSING_BREAK = "'>' inside a sequence line; is the line break before it missing (truncated or joined files)?"


def _coded(
    headers: list[tuple[str, str]], letters: list[bytes], lines: list[int], codes: np.ndarray
) -> Iterator[Record]:
    """The records that these are; `codes` (uint8 [n]) are those of all their letters."""
    plain, start = bool((codes & np.uint8(SOFT_MASK_BIT - 1)).max() < PREDICTED_BASES), 0
    for (name, description), bases, line in zip(headers, letters, lines, strict=True):
        end = start + len(bases)
        yield Record.coded(name, description, bases, line, codes[start:end], {}, plain)
        start = end


def _without_regular_ends(piece: bytes, at_line_start: bool) -> bytearray | None:
    """The letters of a piece whose lines have one width, but for what is left of the first and the last.

    None where it is not so, or where lines may be blank.
    """
    first = piece.find(b"\n")
    if first < 0:
        return bytearray(piece)
    width = piece.find(b"\n", first + 1) - first - 1
    if width <= 0 or (first == 0 and at_line_start):
        return None
    rows = (len(piece) - first - 1) // (width + 1)
    ends = np.ndarray((rows,), np.uint8, piece, first + 1 + width, (width + 1,))
    rest = piece[first + 1 + rows * (width + 1) :]
    if (ends != 10).any() or rest.startswith(b"\n") or b"\n\n" in rest:
        return None
    letters = bytearray(first + rows * width)
    letters[:first] = piece[:first]
    line = np.dtype((np.void, width))
    np.ndarray((rows,), line, letters, first)[:] = np.ndarray((rows,), line, piece, first + 1, (width + 1,))
    letters += rest.replace(b"\n", b"")
    return None if b"\n" in letters else letters


def split_header(header: bytes) -> tuple[str, str]:
    """Name and description."""
    text = text_of(header)
    name, _, description = text.partition(" ")
    if "\t" in name:
        name, _, description = text.partition("\t")
    return name, description.strip(" \t")
