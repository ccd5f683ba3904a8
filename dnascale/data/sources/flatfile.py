"""GenBank and EMBL flat files: the sequence of each record, checked against its own numbering and its stated length.

Case has no meaning in these formats (sequences are lower case by convention), so bases are given in upper case. The
numbers beside the sequence lines must count the bases: a line that is missing is found, and placed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dnascale.data.sources.alphabet import BASES, NOT_A_BASE, meaning, shown, shown_byte, text_of
from dnascale.data.sources.growing import Growing
from dnascale.data.sources.lines import chunks
from dnascale.data.sources.opened import Source
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions
from dnascale.errors import DataError

_MAX_LINE = 64 << 10
_MAX_QUALIFIERS = 1000  # lines
_MAX_FIELD = 1000  # characters; a longer qualifier is no name of anything
_NOT_BASES = b" \n0123456789"  # what else stands in a sequence line
_LINE_BASES = 60  # in every full line of both formats, in groups of ten
_NUMBER_DIGITS = 9
_SHAPE = bytes(32 if chr(byte) in " 0123456789" else 10 if byte == 10 else 97 for byte in range(256))


@dataclass(frozen=True)
class _Format:
    """What differs between the two."""

    first: bytes  # how a record begins
    sequence: bytes  # how the line before its bases begins
    contig: tuple[bytes, ...]  # lines of a record that only points to others
    line: re.Pattern[bytes]  # of bases
    number_at: int  # the first of its columns in a regular line
    number_is_end: bool  # the number counts the line's own bases too
    margin: int  # columns before the bases of a regular line
    width: int  # to which it is filled with blanks


_GENBANK = _Format(
    first=b"LOCUS ", sequence=b"ORIGIN", contig=(b"CONTIG", b"WGS", b"TSA", b"TLS"),
    line=re.compile(rb" *(?P<number>\d+)(?P<bases>(?: +[^\s\d]+)+) *"),
    number_at=0, number_is_end=False, margin=10, width=0,
)  # fmt: skip
_EMBL = _Format(
    first=b"ID   ", sequence=b"SQ   ", contig=(b"CO   ",),
    line=re.compile(rb" +(?P<bases>(?:[^\s\d]+ +)+)(?P<number>\d+) *"),
    number_at=71, number_is_end=True, margin=5, width=80,
)  # fmt: skip

_LOCUS = re.compile(r"LOCUS +(\S+) +(\d+) (bp|aa|rc)\b")
_EMBL_LENGTH = re.compile(r"; *(\d+) *(BP|AA)\b")
_QUALIFIER = re.compile(r'/(\w+)="((?:[^"]|"")*)"')
_GENE = re.compile(rb'/gene="([^"]+)"')


def genbank(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of a GenBank file. Raises DataError where it is damaged or has bad records."""
    return _Parser(source, options, _GENBANK).records()


def embl(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of an EMBL file. Raises DataError where it is damaged or has bad records."""
    return _Parser(source, options, _EMBL).records()


class _BadRecord(Exception):
    """This record is left out; the next one may be good."""


@dataclass
class _Head:
    """What is said of a record before its bases."""

    line: int
    locus: str = ""
    length: int = 0
    accession: str = ""
    version: str = ""
    description: list[str] = field(default_factory=list)
    organism: str = ""
    genes: set[str] = field(default_factory=set)  # the first two
    qualifiers: list[str] = field(default_factory=list)  # lines of the feature `source`
    in_source: bool = False  # the feature table is there
    contig: str = ""  # the keyword with which it points to other records

    @property
    def name(self) -> str:
        """Accession and version, as in the FASTA files of the same archives."""
        return self.version or self.accession or self.locus

    def fields(self) -> dict[str, str]:
        """Qualifiers of the first source, and the gene where the record has one."""
        pairs = _QUALIFIER.findall(" ".join(self.qualifiers))
        fields = {key: value.replace('""', '"') for key, value in reversed(pairs) if len(value) <= _MAX_FIELD}
        if self.organism:
            fields.setdefault("organism", self.organism)
        if len(self.genes) == 1:
            fields["gene"] = next(iter(self.genes))
        return fields


class _Parser:
    """Where the reader stands in the file, and the rules of its format."""

    def __init__(self, source: Source, options: ReadOptions, form: _Format) -> None:
        self.report, self.options, self.form = source.report, options, form
        self.text = _Text((chunk.text for chunk in chunks(source.blocks(), source.report)), self.report.name)
        self.problems = Problems(self.report, options)
        self.bases = Growing(options.temporary)

    def records(self) -> Iterator[Record]:
        outside = 0
        while (line := self.text.next_line()) is not None:
            if line.startswith(self.form.first):
                try:
                    yield self.record(line)
                except _BadRecord:
                    self.skip_record()
            elif line.strip():
                outside = outside or self.text.line
        if outside:
            self.report.warn(f"{self.report.name}:{outside}:1: text outside of the records was skipped")
        self.problems.finish()

    def record(self, line: bytes) -> Record:
        head = _Head(self.text.line)
        read_line = _genbank_line if self.form is _GENBANK else _embl_line
        self.first_line(head, line)
        section = b""
        while (line := self.need_line(head)) != b"//":
            if line.startswith(self.form.sequence):
                self.sequence(head)
                return self.finish(head)
            if line.startswith(self.form.contig):
                head.contig = line.split(maxsplit=1)[0].decode()
            elif line.startswith(self.form.first):
                raise self.bad(head, f"a new record begins here, before the '//' of {self.shown(head)}", self.text.line)
            elif b"\0" in line:
                raise self.bad(head, f"{meaning(bytes(1))}", self.text.line, line.index(0) + 1)
            section = read_line(head, line, section)
        raise self.bad(head, self.without_sequence(head))

    def first_line(self, head: _Head, line: bytes) -> None:
        """Name and length, and whether this is DNA or RNA at all."""
        text = text_of(line)
        if self.form is _GENBANK:
            match = _LOCUS.match(text)
            head.locus, length, unit = match.groups() if match else ("", "0", "")
        else:
            head.locus, parts = text[5:].split(";")[0].split(" ")[0], text.split(";")
            match = _EMBL_LENGTH.search(text)
            length, unit = match.groups() if match else ("0", "")
            if len(parts) > 1 and parts[1].strip().startswith("SV ") and parts[1].split()[1].isdigit():
                head.version = f"{head.locus}.{parts[1].split()[1]}"
        head.length = int(length)
        if not match:
            raise self.bad(head, f"no length in the first line of a record ({shown(text)}); it is damaged")
        if unit.lower() == "aa":
            raise self.bad(head, f"{self.shown(head)} is protein ({head.length:,} amino acids); give the DNA")
        if unit == "rc":
            raise self.bad(head, f"{self.shown(head)} lists {head.length:,} other records and has no bases; give those")

    def sequence(self, head: _Head) -> None:
        """The bases of a record, from the line after `ORIGIN` or `SQ` to `//`."""
        self.bases.clear()
        for chunk in self.text.sequence_lines():
            letters = chunk.translate(None, _NOT_BASES)
            first_line = self.text.line + 1
            self.text.line += chunk.count(b"\n")
            if not self.regular(chunk, letters, self.bases.length):
                self.check_lines(head, chunk, first_line, self.bases.length)
            self.bases.add(letters.upper())
        if self.need_line(head) != b"//":
            raise self.bad(head, f"no sequence line in {self.shown(head)}, nor the '//' after it", self.text.line)

    def regular(self, chunk: bytes, letters: bytes, before: int) -> bool:
        """Whether every line is as both formats prescribe, told without a loop over the lines."""
        if letters.translate(None, BASES) or chunk.translate(_SHAPE) != self.shape(len(letters)):
            return False
        starts = [*range(before, before + len(letters), _LINE_BASES), before + len(letters)]
        return self.numbers(chunk) == (starts[1:] if self.form.number_is_end else [start + 1 for start in starts[:-1]])

    def numbers(self, chunk: bytes) -> list[int]:
        """The numbers of regular lines."""
        width, at = len(self.line_shape(_LINE_BASES)), self.form.number_at
        full = len(chunk) // width
        lines = np.frombuffer(chunk, np.uint8, full * width).reshape(full, width)
        digits = np.maximum(lines[:, at : at + _NUMBER_DIGITS], ord("0")) - ord("0")  # blanks are zeros
        last = chunk[full * width :][at : at + _NUMBER_DIGITS]
        return (digits @ 10 ** np.arange(_NUMBER_DIGITS)[::-1]).tolist() + ([int(last)] if last else [])

    def shape(self, letters: int) -> bytes:
        """Lines of so many letters with `a` for each of them, and blanks for digits."""
        lines, rest = divmod(letters, _LINE_BASES)
        return self.line_shape(_LINE_BASES) * lines + (self.line_shape(rest) if rest else b"")

    def line_shape(self, letters: int) -> bytes:
        groups = b" ".join(b"a" * min(10, letters - at) for at in range(0, letters, 10))
        return (b" " * self.form.margin + groups).ljust(self.form.width) + b"\n"

    def check_lines(self, head: _Head, chunk: bytes, first_line: int, before: int) -> None:
        """Looks at every line: for lines of other lengths, and to place what is wrong."""
        for number, line in enumerate(chunk.split(b"\n")[:-1], first_line):
            if not line.strip():
                continue
            match = self.form.line.fullmatch(line)
            if not match:
                raise self.bad(
                    head, f"no sequence line of {self.shown(head)} ({shown(line.decode('latin-1'))})", number
                )
            if other := NOT_A_BASE.search(match["bases"].replace(b" ", b"\n")):
                column = match.start("bases") + other.start() + 1
                what = f"{shown_byte(other[0])} in {self.shown(head)}: {meaning(other[0])}"
                raise self.bad(head, what, number, column)
            length = len(match["bases"].replace(b" ", b""))
            due = before + (length if self.form.number_is_end else 1)
            if int(match["number"]) != due:
                raise self.bad(
                    head,
                    f"the line is numbered {int(match['number']):,} where {due:,} bases of {self.shown(head)} are due; "
                    "lines are missing, doubled or damaged, fetch the file again",
                    number,
                )
            before += length

    def finish(self, head: _Head) -> Record:
        length = self.bases.length
        if not length and head.length:
            raise self.bad(head, self.without_sequence(head))
        if length != head.length:
            what = f"{self.shown(head)} has {length:,} bases, but its first line says {head.length:,}"
            raise self.bad(head, f"{what}; it is damaged, fetch the file again")
        self.problems.new_name(head.name, head.line)
        self.report.gave(length, shown(head.name), head.line)
        return self.bases.record(head.name, " ".join(head.description).rstrip("."), head.line, head.fields())

    def without_sequence(self, head: _Head) -> str:
        if head.contig:
            return (
                f"{self.shown(head)} has no bases of its own: {head.contig} points to other records; download it with its "
                "sequence (at NCBI: 'GenBank (full)', or rettype=gbwithparts)"
            )
        return f"{self.shown(head)} has no bases; download it with its sequence"

    def shown(self, head: _Head) -> str:
        return f"record {shown(head.name)}"

    def bad(self, head: _Head, what: str, line: int = 0, column: int = 1) -> _BadRecord:
        self.problems.bad_record(line or head.line, column, what, bases=self.bases.length)
        self.bases.clear()
        return _BadRecord()

    def need_line(self, head: _Head) -> bytes:
        line = self.text.next_line()
        if line is None:
            raise DataError(
                f"{self.report.name}:{self.text.line}: the file ends within {self.shown(head)}, without its '//': it is "
                "truncated; fetch it again."
            )
        return b"//" if line.rstrip() == b"//" else line

    def skip_record(self) -> None:
        """Goes to the end of the record at hand, or to the beginning of the next."""
        while not self.text.line_starts_with(self.form.first):
            line = self.text.next_line()
            if line is None or line.rstrip() == b"//":
                return


def _genbank_line(head: _Head, line: bytes, section: bytes) -> bytes:
    """Takes what is wanted from a line before the sequence. The section that it belongs to."""
    if section == b"FEATURES" and line.startswith(b"     "):
        _feature_line(head, line[5:])
        return section
    keyword, text = line[:12].strip(), text_of(line[12:]).strip()
    section = keyword or section
    if section == b"DEFINITION":
        head.description.append(text)
    elif keyword == b"ACCESSION" and text:
        head.accession = text.split()[0]
    elif keyword == b"VERSION" and text:
        head.version = text.split()[0]
    elif keyword == b"ORGANISM":
        head.organism = text
    return section


def _embl_line(head: _Head, line: bytes, section: bytes) -> bytes:
    """As `_genbank_line`; here every line says what it is."""
    code, text = line[:2], text_of(line[5:]).strip()
    if code == b"FT":
        _feature_line(head, line[5:])
    elif code == b"DE":
        head.description.append(text)
    elif code == b"AC" and text and not head.accession:
        head.accession = text.split(";")[0].split()[0]
    elif code == b"SV" and text:
        head.version = text.split()[0]
    elif code == b"OS" and not head.organism:
        head.organism = text
    return section


def _feature_line(head: _Head, line: bytes) -> None:
    """A line of the feature table, from the column where the names of features stand."""
    key = line[:16].strip()
    if key:
        head.in_source = key == b"source" and not head.qualifiers
    elif head.in_source and len(head.qualifiers) < _MAX_QUALIFIERS:
        head.qualifiers.append(text_of(line).strip())
    if len(head.genes) < 2 and (gene := _GENE.search(line)):
        head.genes.add(text_of(gene[1]).strip())


class _Text:
    """The lines of a file, without the loop over lines where only bases are left."""

    def __init__(self, blocks: Iterator[bytes], name: str) -> None:
        self.blocks, self.name = blocks, name
        self.text, self.at = b"", 0
        self.line = 0  # the number of the last line that was given out

    def fill(self) -> bool:
        """Reads on. False at the end of the file, whose last line ends by then."""
        block = next(filter(None, self.blocks), None)
        self.text, self.at = self.text[self.at :] + (block or b""), 0
        if block is None and self.text and not self.text.endswith(b"\n"):
            block = b"\n"
            self.text += block
        return block is not None

    def next_line(self) -> bytes | None:
        while (stop := self.text.find(b"\n", self.at)) < 0:
            if len(self.text) - self.at > _MAX_LINE:
                raise DataError(f"{self.name}:{self.line + 1}:1: a line of more than 64 KiB; this is no flat file.")
            if not self.fill():
                return None
        line, self.at = self.text[self.at : stop], stop + 1
        self.line += 1
        return line

    def line_starts_with(self, start: bytes) -> bool:
        """Looks at the next line."""
        while len(self.text) - self.at < len(start) and self.fill():
            pass
        return self.text.startswith(start, self.at)

    def sequence_lines(self) -> Iterator[bytes]:
        """Whole lines up to the next `//`, many at a time. The caller counts them."""
        while not self.line_starts_with(b"//"):
            stop = self.text.find(b"\n//", self.at)
            if stop < 0:
                stop = self.text.rfind(b"\n", self.at)
            if stop < 0:
                if len(self.text) - self.at > _MAX_LINE:
                    raise DataError(f"{self.name}:{self.line + 1}:1: a line of more than 64 KiB; this is no flat file.")
                if not self.fill():
                    return
                continue
            chunk, self.at = self.text[self.at : stop + 1], stop + 1
            yield chunk
