"""Strict FASTQ reading: four lines a read, or wrapped lines where they can be told apart. Qualities are dropped.

A read whose letters are wrong can be left out. Where the lines themselves do not fit together (no '+', other numbers
of bases and qualities, an end in the middle), nobody knows where the next read begins, and reading stops.
"""

from __future__ import annotations

from collections.abc import Iterator
from string import ascii_letters as letters_
from string import digits, punctuation

import numpy as np

from dnascale.data.sources.alphabet import BASES, INVALID, NOT_A_BASE, encode, meaning, shown, shown_byte
from dnascale.data.sources.fasta import split_header
from dnascale.data.sources.lines import Chunk, chunks
from dnascale.data.sources.opened import Source
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import Problem, ReadOptions
from dnascale.errors import DataError

_MAX_LINE_BYTES = 64 << 20
_QUALITIES = (letters_ + digits + punctuation).encode()  # '!' to '~'


def records(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The reader of this format. Names may repeat: the two reads of a pair have one."""
    return _Parser(source, options).records()


class _Parser:
    """Where the reader stands, and the read in hand."""

    def __init__(self, source: Source, options: ReadOptions) -> None:
        self.report = source.report
        self.problems = Problems(self.report, options)
        self.number, self.place = 0, (Chunk(b"", b"", 0), 0)  # of the line at hand: its number, and where it begins
        self.lines = self.split(chunks(source.blocks(), self.report))

    def split(self, text: Iterator[Chunk]) -> Iterator[bytes]:
        """The lines, without their ends."""
        rest: list[bytes] = []  # of a line that began in an earlier chunk
        for chunk in text:
            begin = 0
            for line in chunk.text.split(b"\n"):
                end = begin + len(line)
                if end == len(chunk.text) and not line:
                    break
                if not rest:
                    self.number, self.place = self.number + 1, (chunk, begin)
                if end == len(chunk.text):
                    rest.append(line)
                    break
                yield b"".join((*rest, line)) if rest else line
                rest, begin = [], end + 1
            if sum(map(len, rest)) > _MAX_LINE_BYTES:
                raise self.damage("a line of more than 64 MiB; is a line break missing?")
        if rest:
            yield b"".join(rest)

    def records(self) -> Iterator[Record]:
        for header in self.lines:
            if not header:
                self.only_blank_lines()
                return
            if not header.startswith(b"@"):
                raise self.damage("a read must start with '@' here; does the read before it have a line too many?")
            if record := self.read(header[1:]):
                self.report.records += 1
                self.report.bases += len(record.bases)
                if not record.bases:
                    self.report.empty += 1
                yield record

    def read(self, header: bytes) -> Record | None:
        """The read whose header line is at hand; None if it is left out."""
        name, description = split_header(header)
        if b"\0" in header:
            raise self.damage("a NUL byte in a header; the file is damaged, or UTF-16 text")
        if not name:
            raise self.damage("'@' without a name; write the name directly after it")
        start, bad = self.number, None
        lines: list[bytes] = []
        while not (line := self.next_line(name)).startswith(b"+"):
            if line.startswith(b"@"):
                raise self.damage(
                    f"read {shown(name)} has no '+' line before the next read begins; fetch the file again"
                )
            bad = bad or self.fault_of(line, name)
            lines.append(line)
        if line[1:] not in (b"", header):
            raise self.damage(
                f"the '+' line of read {shown(name)} repeats another header; lines are missing or doubled"
            )
        letters = lines[0] if len(lines) == 1 else b"".join(lines)
        bad = self.skip_qualities(name, len(letters), wrapped=len(lines) > 1) or bad
        if bad:
            good = len(letters) - len(letters.translate(None, BASES))
            self.problems.bad_record(bad.line, bad.column, bad.what, bad.offset, good)
            return None
        return Record.coded(name, description, letters, start, np.frombuffer(encode(letters), dtype=np.uint8), {})

    def skip_qualities(self, name: str, bases: int, wrapped: bool) -> Problem | None:
        """Reads as many qualities as there are bases; says what is wrong with one of them."""
        qualities, bad = 0, None
        while True:
            line = self.next_line(name, last=bases == 0)
            qualities += len(line)
            if strange := line.translate(None, _QUALITIES):
                what = f"{shown_byte(strange[:1])} in read {shown(name)}: no quality, which are '!' to '~'"
                bad = bad or self.problem(what, line.index(strange[:1]))
            if qualities >= bases or not wrapped:
                break
        if qualities != bases:
            raise self.damage(
                f"read {shown(name)} has {bases:,} bases and {qualities:,} qualities; fetch the file again"
            )
        return bad

    def next_line(self, name: str, last: bool = False) -> bytes:
        line = next(self.lines, None)
        if line is None:
            if last:
                return b""  # the qualities of an empty read, without a line end
            raise self.damage(f"the file ends within read {shown(name)}: it is truncated, fetch it again")
        return line

    def fault_of(self, line: bytes, name: str) -> Problem | None:
        """What is wrong with a line of bases."""
        if encode(line).find(INVALID) < 0:
            return None
        match = NOT_A_BASE.search(line)
        assert match is not None
        return self.problem(f"{shown_byte(match[0])} in read {shown(name)}: {meaning(match[0])}", match.start())

    def only_blank_lines(self) -> None:
        first = self.number
        if any(self.lines):
            raise self.damage("a read after blank lines; is a part of the file missing?")
        self.report.warn(f"{self.report.name}:{first}:1: blank lines at the end were skipped")

    def problem(self, what: str, index: int = 0) -> Problem:
        chunk, start = self.place
        return Problem(self.report.name, self.number, index + 1, what, chunk.offset(start) + index)

    def damage(self, what: str) -> DataError:
        return DataError(str(self.problem(what)))
