"""The formats, told by content: which reader reads what, and what to say of everything else.

To add a format, write its reader in a module here, and its row in `FORMATS`. A reader is called with the opened
source and the options, and gives records; it counts them in `source.report`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dnascale.data.sources.alphabet import NOT_A_BASE, shown
from dnascale.data.sources.compression import GZIP_MAGIC
from dnascale.data.sources.delimited import looks_delimited
from dnascale.data.sources.expect import Expected
from dnascale.data.sources.hub import hub_records
from dnascale.data.sources.input import HUB, Input
from dnascale.data.sources.lines import BYTE_ORDER_MARK
from dnascale.data.sources.opened import BLOCK_BYTES, Source
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions, ReadReport
from dnascale.errors import DataError, UsageError

Reader = Callable[[Source, ReadOptions], Iterator[Record]]


@dataclass(frozen=True)
class Format:
    """One format that is read: its name, how its text begins (see `first_text`), and its reader, `module:function`."""

    name: str
    starts: tuple[bytes, ...]
    reader: str

    def load(self) -> Reader:
        """The reader, imported when first used."""
        module, _, function = self.reader.partition(":")
        reader: Reader = getattr(importlib.import_module(f"dnascale.data.sources.{module}"), function)
        return reader


DELIMITED = Format("csv", (), "delimited:delimited")  # told last, by what is no sign of anything else
FORMATS = (
    Format("fasta", (b">",), "fasta:records"),
    Format("fastq", (b"@",), "fastq:records"),
    Format("genbank", (b"LOCUS ",), "flatfile:genbank"),
    Format("embl", (b"ID   ",), "flatfile:embl"),
    Format("2bit", (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43"), "twobit:records"),
    Format("parquet", (b"PAR1",), "tables:parquet"),
    Format("arrow", (b"ARROW1\0\0", b"\xff\xff\xff\xff"), "tables:arrow"),
    Format("jsonl", (b"{",), "delimited:json_lines"),
    DELIMITED,
)
#: Those with columns.
TABLES = ("parquet", "arrow", "jsonl", "csv")

# How a file that nobody here reads starts, what it is, and what to do.
_OTHERS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    (tuple(b"@%s\t" % tag for tag in (b"HD", b"SQ", b"RG", b"PG", b"CO")), "SAM, convert it with `samtools fasta`"),
    ((b"<",), "an HTML or XML page (the download has probably failed), fetch the file again"),
    ((b"[",), "JSON, of which only JSON Lines are read, one object a line (`jq -c '.[]'` makes them)"),
    ((b"version https://git-lfs",), "a Git LFS pointer and not the file itself, run `git lfs pull`"),
    ((b"\xff\xfe", b"\xfe\xff", b"\0>"), "UTF-16 text, convert it with `iconv -f UTF-16 -t UTF-8`"),
    ((b"PK\x03\x04", b"PK\x05\x06"), "a zip archive, unpack it first"),
    ((b"7z\xbc\xaf\x27\x1c",), "a 7z archive, unpack it first"),
    ((b"Rar!\x1a\x07",), "a RAR archive, unpack it first"),
    ((b"\x1f\x9d",), "compressed with `compress` (.Z), recompress it with gzip"),
    ((b"\x04\x22\x4d\x18",), "compressed with lz4, recompress it with gzip"),
    ((b"LZIP",), "compressed with lzip, recompress it with gzip"),
    ((b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"), "compressed twice, decompress it once"),
    ((GZIP_MAGIC,), "gzip within gzip (compressed twice), decompress it once"),
    ((b"BAM\1", b"CRAM"), "BAM or CRAM, convert it with `samtools fasta`"),
    ((b"NCBI.sra",), "an SRA archive, convert it with `fasterq-dump`"),
    ((b"%PDF",), "a PDF document, give the sequences"),
    ((b"PARE",), "encrypted Parquet, decrypt it first"),
    ((b"FEA1",), "Feather of version 1, write it again as version 2 or Parquet"),
    ((b"ORC",), "ORC, convert it to Parquet"),
    ((b"\x89HDF",), "HDF5, write its sequences as FASTA or Parquet"),
    ((b"SQLite format 3",), "an SQLite data base, export a table as CSV"),
    ((b"##",), "an annotation or variant table (GFF or VCF), give the sequences"),
    ((b";",), "a ';' comment, remove everything before the first '>'"),
)


def read(
    input: Input,
    options: ReadOptions = ReadOptions(),  # noqa: B008  frozen
    report: ReadReport | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[Record]:
    """The records of one input, in its order, strictly checked. `report` is filled on the way.

    Compression and format are told by content. Memory: a few times the largest record, of which 64 MiB at
    most are in memory.

    Raises:
        DataError: the input cannot be read, is damaged, or has problems; the message names the place.
        UsageError: no such format.
    """
    report = report if report is not None else ReadReport(input.name)
    expected = Expected.load(options.expect) if options.expect else None
    if input.format == HUB:
        records = hub_records(input.location, options, report)
        yield from expected.check(records, report) if expected else records
        report.refuse(options.skip_bad_records)
        return
    with Source(input, report, block_bytes, expected) as source:
        form = _format_of(source, options)
        report.format = form.name
        if (options.column or options.name_column) and form.name not in TABLES:
            report.warnings.append(
                f"{input.name} is {form.name}, which has no columns: --column, --name-column name nothing in it"
            )
        records = form.load()(source, options)
        try:
            yield from expected.check(records, report) if expected else records
        except DataError as error:
            report.refuse(options.skip_bad_records, fatal=str(error))
    report.refuse(options.skip_bad_records)


def first_text(head: bytes) -> bytes:
    """What a file begins with, after a byte-order mark and blank lines."""
    return head.removeprefix(BYTE_ORDER_MARK).lstrip(b"\r\n")


def _format_of(source: Source, options: ReadOptions) -> Format:
    name = options.format or source.input.format
    if name:
        for form in FORMATS:
            if form.name == name:
                return form
        known = ", ".join(form.name for form in FORMATS)
        raise UsageError(f"there is no format {name!r}; known: {known}.")
    text = first_text(source.head)
    if source.head[257:262] != b"ustar":
        fitting = [(len(start), form) for form in FORMATS for start in form.starts if text.startswith(start)]
        other = [len(start) for starts, _ in _OTHERS for start in starts if text.startswith(start)]
        length, form = max(fitting, key=lambda fit: fit[0], default=(-1, FORMATS[0]))
        if length >= max(other, default=0):
            return form
    if _what_starts(text) is None and looks_delimited(text):
        return DELIMITED
    raise _not_sequence(source, text)


def _not_sequence(source: Source, text: bytes) -> DataError:
    """What a file is that has no sequences for us."""
    report = source.report
    blank = source.head[: len(source.head) - len(text)]
    marked = blank.startswith(BYTE_ORDER_MARK)
    line = 1 + len(blank.replace(b"\r\n", b"\n")) - 3 * marked
    if not text.strip():
        what = "the file is empty" if line == 1 and not text else "no sequence, only blank lines"
        return DataError(f"{report.name}:{line}:1: {what}.")
    return DataError(f"{report.name}:{line}:1: the first line must start with '>', but this is {_what_is(text)}.")


def _what_starts(head: bytes) -> str | None:
    """What a file is that starts like this, if it is known."""
    if head[257:262] == b"ustar":
        return "a tar archive, unpack it first"
    return next((what for starts, what in _OTHERS if head.startswith(starts)), None)


def _what_is(head: bytes) -> str:
    if what := _what_starts(head):
        return what
    line = head.split(b"\n", 1)[0]
    if line.lstrip().startswith(b">"):
        return "white space before '>', remove it"
    if not NOT_A_BASE.search(line):
        return "a sequence without a header, put a line like '>name' before it"
    if any(byte >= 0x80 or (byte < 0x20 and byte not in b"\t\n") for byte in head[:64]):
        return f"binary data (it starts with {head[:4].hex(' ')}), give FASTA"
    mend = "remove everything before the first '>'" if b"\n>" in head else "give sequences, e.g. FASTA"
    return f"other text ({shown(line[:40].decode('latin-1'))}), {mend}"
