"""Strict, fast FASTA reading: what is not clearly DNA or RNA sequence is an error that says where it stands.

The reader works on blocks of 256 KiB. Within a block there is no loop over lines: a record is cut out with
`bytes.find`, freed of line ends with `bytes.replace` and checked with one `bytes.translate`.
"""

from __future__ import annotations

import glob
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO

from dnascale.errors import DataError, UsageError

_gzip_file: Callable[..., Any] = gzip.GzipFile
_gzip_errors: tuple[Any, ...] = (EOFError, zlib.error, OSError)
with suppress(ImportError):  # isal has no wheel for some machines; gzip reads the same files at half the speed
    from isal import igzip, isal_zlib

    _gzip_file, _gzip_errors = igzip.IGzipFile, (*_gzip_errors, isal_zlib.error)

BUILTIN = {"human-cds": "human-cds.fasta.gz"}  # name after `builtin:` → file in dnascale/resources

_BLOCK_BYTES = 256 << 10  # fits the cache: a tenth faster than 8 MiB, and damage is placed more exactly
_MAX_HEADER_BYTES = 64 << 10
_MAX_WARNINGS = 20
_GZIP_MAGIC = b"\x1f\x8b"
# The empty member that ends every whole BGZF file (SAM specification, section 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")

# A C G T U N, the IUPAC ambiguity codes, and `i` for inosine. Capital I is refused: it is isoleucine.
_BASES = b"ACGTUNRYKMSWBDHVacgtunrykmswbdhvi"
_NOT_A_BASE = re.compile(rb"[^%s\n]" % _BASES)
_BLANK_LINES = re.compile(rb"\n\n")  # a regular expression finds these three times as fast as bytes.find

# Which byte, what it is, what it means and what to do.
_BAD_BYTES: tuple[tuple[bytes, str], ...] = (
    (b" \t", "white space in a sequence line, inside it or at its end; some tools count it, remove it"),
    (b"0123456789", "a digit; this looks like a numbered sequence listing, write the bases alone"),
    (b"-.", "a gap; aligned sequences are not accepted, remove the gaps"),
    (b"*", "a stop sign; it belongs to protein sequences, remove it or give the DNA"),
    (b"\0", "a NUL byte; the file is damaged (a hole left by an interrupted copy?), fetch it again"),
    (b";", "a ';' comment, which is not part of FASTA; remove the line"),
    (b"+@", "a sign of FASTQ; give FASTA (`seqtk seq -A` converts)"),
    (b"EFILPQXZJOefilpqxzjo", "no base but an amino acid; this looks like protein, give the DNA"),
)

# How a file that is not FASTA starts, what it is, and what to do.
_NOT_FASTA: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"@",), "FASTQ reads (or SAM), convert them to FASTA"),
    ((b"<",), "an HTML or XML page (the download has probably failed), fetch the file again"),
    ((b"{", b"["), "JSON (an error page of a failed download?), fetch the file again"),
    ((b"version https://git-lfs",), "a Git LFS pointer and not the file itself, run `git lfs pull`"),
    ((b"\xff\xfe", b"\xfe\xff", b"\0>"), "UTF-16 text, convert it with `iconv -f UTF-16 -t UTF-8`"),
    ((b"PK\x03\x04", b"PK\x05\x06"), "a zip archive, unpack it first"),
    ((b"BZh",), "bzip2, recompress it with gzip"),
    ((b"\xfd7zXZ\0",), "xz, recompress it with gzip"),
    ((b"\x28\xb5\x2f\xfd",), "zstd, recompress it with gzip"),
    ((_GZIP_MAGIC,), "gzip within gzip (compressed twice), decompress it once"),
    ((b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43"), "UCSC 2bit, convert it with `twoBitToFa`"),
    ((b"BAM\1",), "BAM, convert it with `samtools fasta`"),
    ((b"LOCUS ",), "a GenBank record, convert it to FASTA"),
    ((b"ID   ",), "an EMBL record, convert it to FASTA"),
    ((b"##",), "an annotation or variant table (GFF or VCF), give the sequences"),
    ((b";",), "a ';' comment, remove everything before the first '>'"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence: `bases` as in the file (case kept, no line ends); its header is in `line`, from 1."""

    name: str
    description: str
    bases: bytes
    line: int


@dataclass
class ReadReport:
    """What was read from one file. `bases` counts bases, `empty` the records without any."""

    path: Path
    records: int = 0
    bases: int = 0
    empty: int = 0
    warnings: list[str] = field(default_factory=list)
    compression: str = "plain"

    def warn(self, text: str) -> None:
        """Keep a warning; after the first 20 only that there were more."""
        if len(self.warnings) < _MAX_WARNINGS:
            self.warnings.append(text)
        elif len(self.warnings) == _MAX_WARNINGS:
            self.warnings.append(f"{self.path}: further warnings are not shown")


def read_fasta(path: Path, report: ReadReport | None = None) -> Iterator[Record]:
    """Read the records of a FASTA file, plain or gzip (told by content), in file order.

    Line ends may be LF, CRLF or CR. `report` is filled on the way. Memory: twice the largest record.

    Raises:
        DataError: the file cannot be read, is damaged, or is not FASTA of DNA or RNA; the message starts with
            `path:line:column`, 1-based. Records before the fault have been yielded by then.
    """
    return _read(path, report if report is not None else ReadReport(path), _BLOCK_BYTES)


def _read(path: Path, report: ReadReport, block_bytes: int) -> Iterator[Record]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    with stream:
        blocks = _blocks(stream, path, report, block_bytes)
        yield from _Parser(path, report).records(_line_feeds(blocks, report))


def _blocks(stream: Any, path: Path, report: ReadReport, block_bytes: int) -> Iterator[bytes]:
    """Decompressed blocks of the file, without a byte-order mark."""
    source: IO[bytes] = stream
    head = stream.peek(64)
    if head.startswith(_GZIP_MAGIC):
        report.compression = "gzip"
        _check_end_of_gzip(stream, head, path, report)
        source = _gzip_file(fileobj=stream, mode="rb")
    done = 0
    while True:
        try:
            block = source.read(block_bytes if done else max(block_bytes, 3))
        except _gzip_errors as error:
            raise DataError(_damage(error, path, report, done)) from None
        if not block:
            return
        if done == 0 and block.startswith(b"\xef\xbb\xbf"):
            report.warn(f"{path}:1:1: a UTF-8 byte-order mark was skipped")
            block, done = block[3:], 3
        done += len(block)
        yield block


def _check_end_of_gzip(stream: BinaryIO, head: bytes, path: Path, report: ReadReport) -> None:
    """A BGZF file that was cut between two of its members is valid gzip: only the missing end block tells."""
    if not stream.seekable():
        return
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - len(_BGZF_END)))
    tail = stream.read()
    stream.seek(0)
    is_bgzf = head[3:4] == b"\x04" and b"BC\x02\0" in head[12:]
    if is_bgzf and tail != _BGZF_END:
        raise DataError(f"{path} lacks BGZF's end-of-file block at its end: it is truncated; fetch it again.")
    if not tail[-16:].strip(b"\0"):  # gzip allows it as padding, an interrupted download leaves it too
        report.warn(f"{path} ends with zero bytes after the compressed data; check its size or checksum")


def _damage(error: Exception, path: Path, report: ReadReport, done: int) -> str:
    kind = f"a damaged gzip file ({error})"
    if isinstance(error, EOFError):
        kind = "a gzip file that ends too early, truncated or with stray bytes at its end"
    elif "Not a gzipped file" in str(error):
        kind = "gzip followed by something that is not gzip"
    elif isinstance(error, OSError) and error.errno:
        kind = f"not readable to its end ({error.strerror})"
    seen = f"{done:,} decompressed bytes and {report.records:,} whole records"
    return f"{path} is {kind}; {seen} were read before. Fetch it again."


def _line_feeds(blocks: Iterable[bytes], report: ReadReport) -> Iterator[bytes]:
    """CRLF and CR become LF, also where a block ends between CR and LF."""
    kinds: set[str] = set()
    held = b""
    for block in blocks:
        block, held = held + block if held else block, b""
        if b"\r" in block:
            if block.endswith(b"\r"):
                block, held = block[:-1], b"\r"
            crlf = block.count(b"\r\n")
            counts = {"CRLF": crlf, "CR": block.count(b"\r") - crlf, "LF": block.count(b"\n") - crlf}
            kinds.update(kind for kind, count in counts.items() if count)
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif "LF" not in kinds and b"\n" in block:
            kinds.add("LF")
        yield block
    if held:
        kinds.add("CR")
        yield b"\n"
    if len(kinds) > 1:
        report.warn(f"{report.path} mixes line ends ({', '.join(sorted(kinds))}); all were accepted")


class _Parser:
    """Where the reader stands: the place in the file and the record in hand. Sees LF line ends only."""

    def __init__(self, path: Path, report: ReadReport) -> None:
        self.path, self.report = path, report
        self.line, self.column = 1, 0  # the line at hand, and how many bytes of it are behind us
        self.blank_lines, self.first_blank = 0, 0
        self.line_of: dict[str, int] = {}
        self.name, self.description, self.header_line = "", "", 0
        self.parts: list[bytes] = []

    def records(self, blocks: Iterator[bytes]) -> Iterator[Record]:
        header: bytes | None = None  # the header line at hand, as far as it has been seen
        for block in chain((self.first_block(blocks),), blocks):
            here, end = 0, len(block)
            while here < end:
                if header is not None:
                    stop = block.find(b"\n", here)
                    header += block[here : stop if stop >= 0 else end]
                    if len(header) > _MAX_HEADER_BYTES:
                        raise self.error("a header of more than 64 KiB; is the line break after it missing?")
                    if stop < 0:
                        break
                    self.open_record(header)
                    header, self.line, self.column = None, self.line + 1, 0
                else:
                    stop = block.find(b">", here)
                    self.take(block[here : stop if stop >= 0 else end])
                    if stop < 0:
                        break
                    if self.column:
                        raise self.error("'>' inside a sequence line; is the line break before it missing?")
                    if self.header_line:
                        yield self.close_record()
                    header = b""
                here = stop + 1
        if header == b"":
            raise self.error("the file ends with '>': it is probably truncated, fetch it again")
        if header is not None:
            self.open_record(header)
        yield self.close_record()
        if self.blank_lines:
            where = f"{self.path}:{self.first_blank}:1"
            self.report.warn(f"{where}: blank lines were skipped, {self.blank_lines} in all")

    def first_block(self, blocks: Iterator[bytes]) -> bytes:
        """What is left of the first block that has something in it, beginning with '>'."""
        head = b""
        for block in blocks:
            head = block.lstrip(b"\n")
            self.take(block[: len(block) - len(head)])
            if head.startswith(b">"):
                return head
            if head:
                break
        for block in blocks:  # enough to say what this is, however small the blocks are
            head += block
            if len(head) >= 512:
                break
        if not head.strip():
            raise self.error("no sequence, only blank lines" if head or self.line > 1 else "the file is empty")
        raise self.error(f"the first line must start with '>', but this is {_what_is(head)}")

    def take(self, piece: bytes) -> None:
        """Check some sequence, which may begin and end anywhere in a line, and keep it."""
        bases = piece.replace(b"\n", b"")
        if bases.translate(None, _BASES):
            raise self.bad_byte(piece)
        line_ends = len(piece) - len(bases)
        if line_ends:
            blank_first = self.column == 0 and piece.startswith(b"\n")
            if blank_first or _BLANK_LINES.search(piece):
                self.count_blank_lines(piece, blank_first)
            self.line += line_ends
            self.column = len(piece) - piece.rfind(b"\n") - 1
        else:
            self.column += len(piece)
        if bases:
            self.parts.append(bases)

    def count_blank_lines(self, piece: bytes, blank_first: bool) -> None:
        blank = [match.start() for match in re.finditer(rb"(?m)^\n", piece) if match.start() or blank_first]
        if not self.blank_lines:
            self.first_blank = self.line + piece.count(b"\n", 0, blank[0])
        self.blank_lines += len(blank)

    def open_record(self, header: bytes) -> None:
        if b"\0" in header:
            column = 2 + header.index(b"\0")
            raise self.error("a NUL byte in a header; the file is damaged, or UTF-16 text", column)
        self.name, self.description = _split_header(header)
        if not self.name:
            raise self.error("'>' without a name; write the name directly after it, as in '>chr1'")
        if self.name in self.line_of:
            first = self.line_of[self.name]
            raise self.error(f"the name {_shown(self.name)} was used in line {first}; rename one of the two")
        self.header_line = self.line_of[self.name] = self.line

    def close_record(self) -> Record:
        bases = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts = []
        self.report.records += 1
        self.report.bases += len(bases)
        if not bases:
            self.report.empty += 1
            self.report.warn(f"{self.path}:{self.header_line}:1: record {_shown(self.name)} has no bases")
        return Record(self.name, self.description, bases, self.header_line)

    def bad_byte(self, piece: bytes) -> DataError:
        match = _NOT_A_BASE.search(piece)
        assert match is not None
        at, byte = match.start(), match[0]
        before = piece.rfind(b"\n", 0, at)
        self.line += piece.count(b"\n", 0, at)
        self.column = at - before - 1 if before >= 0 else self.column + at
        meaning = "not a base, and no known code for one; this is no DNA or RNA sequence"
        if byte >= b"\x80":
            meaning = "not ASCII; the file is damaged or is no sequence"
        meaning = next((text for bytes_, text in _BAD_BYTES if byte in bytes_), meaning)
        shown = f"'{byte.decode()}'" if b" " < byte < b"\x7f" else f"byte 0x{byte[0]:02X}"
        return self.error(f"{shown} in record {_shown(self.name)}: {meaning}")

    def error(self, what: str, column: int | None = None) -> DataError:
        end = "" if what.endswith("?") else "."
        return DataError(f"{self.path}:{self.line}:{column or self.column + 1}: {what}{end}")


def _split_header(header: bytes) -> tuple[str, str]:
    """Name and description. UTF-8 where it is that, otherwise Latin-1, which takes any byte."""
    try:
        text = header.decode()
    except UnicodeDecodeError:
        text = header.decode("latin-1")
    name = text.partition(" ")[0].partition("\t")[0]
    return name, text[len(name) :].strip(" \t")


def _shown(name: str) -> str:
    """A name fit for a terminal: quoted, escaped, and not longer than a line."""
    return ascii(name if len(name) <= 60 else name[:57] + "...")


def _what_is(head: bytes) -> str:
    for starts, what in _NOT_FASTA:
        if head.startswith(starts):
            return what
    line = head.split(b"\n", 1)[0]
    if line.lstrip().startswith(b">"):
        return "white space before '>', remove it"
    if not _NOT_A_BASE.search(line):
        return "a sequence without a header, put a line like '>name' before it"
    if any(byte >= 0x80 or (byte < 0x20 and byte not in b"\t\n") for byte in head[:64]):
        return f"binary data (it starts with {head[:4].hex(' ')}), give FASTA"
    return f"other text ({_shown(line[:40].decode('latin-1'))}), remove everything before the first '>'"


def resolve(source: str) -> list[Path]:
    """The files that a source names: a file, a glob (sorted; `**` enters folders), or `builtin:human-cds`.

    Raises:
        DataError: nothing is there, it is a directory, it may not be read, or one file is named twice.
    """
    return resolve_all((source,))


def resolve_all(sources: Iterable[str]) -> list[Path]:
    """As `resolve`, for several sources. One file named twice, also through a link, is an error."""
    seen: dict[tuple[int, int], Path] = {}
    for path in chain.from_iterable(map(_paths_of, sources)):
        try:
            status = path.stat()
        except FileNotFoundError:
            why = "is a link to something that does not exist" if path.is_symlink() else "does not exist"
            raise DataError(f"{path} {why}; check the path (a glob must be quoted for the shell).") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        if path.is_dir():
            raise DataError(f"{path} is a directory; name the files in it, for example '{path}/*.fa.gz'.")
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} may not be read by this user; change its permissions.")
        identity = status.st_dev, status.st_ino
        if identity in seen:
            raise DataError(f"{path} and {seen[identity]} are one file, which would count double; name one.")
        seen[identity] = path
    return list(seen.values())


def _paths_of(source: str) -> list[Path]:
    scheme, colon, name = source.partition(":")
    if scheme + colon == "builtin:":
        if name not in BUILTIN:
            known = ", ".join(f"builtin:{name}" for name in BUILTIN)
            raise DataError(f"there are no built-in data named {source}; known: {known}.")
        return [Path(str(resources.files("dnascale") / "resources" / BUILTIN[name]))]
    pattern = os.path.expanduser(source)
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(match)]
    if not found:
        raise DataError(f"no file matches {source}; check the path and the pattern.")
    return found


# `gene:ID` is Ensembl's; of its own ids the version goes (ENSG00000139618.15), and the _PAR_Y of a copy.
_ENSEMBL_TAG = re.compile(r"(?<!\S)gene:(ENS[A-Z]*G\d{11}|\S+)")
_GENE_TAG = re.compile(r"\[gene=([^\]]+)\]|(?<![^\s;|])gene=([^\s;|\]]+)")
_ENSEMBL_ID = re.compile(r"(?<![A-Za-z0-9])(ENS[A-Z]*G\d{11})(?!\d)")
_GROUP_RULES = (("ensembl-gene", _ENSEMBL_TAG), ("gene-tag", _GENE_TAG), ("ensembl-id", _ENSEMBL_ID))


def group_of(record: Record, pattern: re.Pattern[str] | None) -> tuple[str, str]:
    """The group that a record is split with (its gene, if the header tells), and the rule that found it.

    With a pattern: its first capture group in the header (name, one space, description). Without, the rules:
    `ensembl-gene` (gene:ID), `gene-tag` ([gene=NAME] or gene=NAME), `ensembl-id` (an Ensembl gene id
    anywhere), `name` (the record's own).

    Raises:
        UsageError: the pattern has no capture group.
        DataError: the pattern does not match, or captures nothing.
    """
    header = f"{record.name} {record.description}".rstrip(" ")
    if pattern is not None:
        shown = f"the group pattern {pattern.pattern!r}"
        if not pattern.groups:
            raise UsageError(f"{shown} has no capture group; put ( ) around what names the gene.")
        match = pattern.search(header)
        if match is None or not match[1]:
            raise DataError(f"{shown} finds nothing in record {_shown(record.name)} (line {record.line}).")
        return match[1], "pattern"
    for rule, known in _GROUP_RULES:
        if match := known.search(header):
            return next(group for group in match.groups() if group), rule
    return record.name, "name"
