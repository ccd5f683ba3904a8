"""FASTA reading: what is accepted, what is refused and with which words, and the same at any block size."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from fasta_text import bgzf, naive
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data import sources
from dnascale.data.sources import (
    Input,
    ReadOptions,
    ReadReport,
    Record,
    compression,
    find,
    opened,
    resolve_all,
)
from dnascale.data.split import Grouping
from dnascale.data.take.cds import fault_of_cds
from dnascale.errors import DataError

Compress = Callable[[bytes], bytes]
BLOCK_SIZES = (1, 2, 3, 7, 64, 1 << 20)
BUILTIN_RECORDS, BUILTIN_BASES, BUILTIN_GENES = 1920, 3_402_542, 1898


def read(path: Path, data: bytes, block_bytes: int = 1 << 20) -> tuple[list[Record], ReadReport]:
    path.write_bytes(data)
    report = ReadReport(str(path))
    return list(sources.read(Input.of(path), ReadOptions(), report, block_bytes)), report


def refusal(path: Path, data: bytes, block_bytes: int = 1 << 20) -> str:
    """The message of the error, without the path before `line:column`, and without the byte."""
    with pytest.raises(DataError) as caught:
        read(path, data, block_bytes)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    return re.sub(r" \(byte [\d,]+\)", "", str(caught.value)).removeprefix(f"{path}:")


def as_tuples(records: list[Record]) -> list[tuple[str, str, bytes, int]]:
    return [(r.name, r.description, r.bases, r.line) for r in records]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return tmp_path / "genome.fa"


# ------------------------------------------------------------------------------------- what is refused

REFUSED = {
    "empty file": (b"", "1:1: the file is empty"),
    "only a byte-order mark": (b"\xef\xbb\xbf", "1:1: the file is empty"),
    "only blank lines": (b"\n\r\n\n", "4:1: no sequence, only blank lines"),
    "only white space": (b"\n  \n\t\n", "2:1: no sequence, only blank lines"),
    "SAM": (b"@HD\tVN:1.6\n", "1:1: .*SAM.*samtools fasta"),
    "HTML page": (b"<!DOCTYPE html>\n<html>404</html>", "1:1: .*HTML.*download"),
    "JSON list": (b'["not found"]', "1:1: .*JSON"),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "1:1: .*Git LFS"),
    "UTF-16 with its mark": (">a\nACGT\n".encode("utf-16"), "1:1: .*UTF-16"),
    "UTF-16, big-endian without mark": (">a\nACGT\n".encode("utf-16-be"), "1:1: .*UTF-16"),
    "UTF-16, little-endian without mark": (">a\nACGT\n".encode("utf-16-le"), "1:2: .*NUL.*UTF-16"),
    "zip archive": (b"PK\x03\x04\x14\x00", "1:1: .*zip"),
    "7z archive": (b"7z\xbc\xaf\x27\x1c\x00", "1:1: .*7z"),
    "RAR archive": (b"Rar!\x1a\x07\x00", "1:1: .*RAR"),
    "tar archive": (b"genome.fa" + bytes(248) + b"ustar\x0000" + bytes(248), "1:1: .*tar archive"),
    "tar of a file named like FASTA": (b">a.fa" + bytes(252) + b"ustar\x0000" + bytes(248), "1:1: .*tar archive"),
    "compress": (b"\x1f\x9d\x90", "1:1: .*[.]Z"),
    "lz4": (b"\x04\x22\x4d\x18\x64", "1:1: .*lz4"),
    "lzip": (b"LZIP\x01", "1:1: .*lzip"),
    "CRAM": (b"CRAM\x03", "1:1: .*CRAM"),
    "SRA": (b"NCBI.sra\x05", "1:1: .*fasterq-dump"),
    "PDF": (b"%PDF-1.7", "1:1: .*PDF"),
    "GFF table": (b"##gff-version 3\nchr1\t.\n", "1:1: .*GFF"),
    "sequence without header": (b"ACGTNN\nACGT\n", "1:1: .*sequence without a header"),
    "other binary data": (b"\x00\x01\x02\x03ACGT", "1:1: .*binary data .*00 01 02 03"),
    "a lone gzip magic byte": (b"\x1f", "1:1: .*binary data"),
    "text before the first record": (b"\nMy sequences\n>a\nACGT\n", "2:1: .*other text .*My sequences"),
    "comment before the first record": (b"; made by X\n>a\nACGT\n", "1:1: .*';' comment"),
    "white space before the first '>'": (b" >a\nACGT\n", "1:1: .*white space before '>'"),
    "comment inside": (b">a\nACGT\n;note\nACGT\n", "3:1: ';' in record 'a'.*comment"),
    "text inside": (b">a\nACGT\nand then\n", "3:4: byte 0x20 in record 'a': white space"),
    "duplicate name": (b">a\nAC\n>b\nAC\n>a x\nGG\n", "5:1: the name of this record was used in line 1"),
    "no name": (b">a\nAC\n>\nAC\n", "3:1: '>' without a name"),
    "no name but a description": (b"> a desc\nAC\n", "1:1: '>' without a name"),
    "tab instead of a name": (b">\tdesc\nAC\n", "1:1: '>' without a name"),
    "'>' as the last byte": (b">a\nACGT\n>", "3:1: the file ends with '>'.*truncated"),
    "nothing but '>'": (b">", "1:1: the file ends with '>'"),
    "'>' inside a sequence line": (b">a\nACGT\nAC>b\nACGT\n", "3:3: '>' inside a sequence line"),
    "digits": (b">a\n1 ACGT 5\n", "2:1: '1' in record 'a': a digit"),
    "inner space": (b">a\nAC GT\n", "2:3: byte 0x20 in record 'a': white space"),
    "trailing space": (b">a\nACGT \nAC\n", "2:5: byte 0x20.*white space"),
    "trailing tab": (b">a\nACGT\t\n", "2:5: byte 0x09.*white space"),
    "trailing space before CRLF": (b">a\r\nACGT \r\n", "2:5: byte 0x20.*white space"),
    "gap -": (b">a\nAC--GT\n", "2:3: '-' in record 'a': a gap"),
    "gap .": (b">a\nAC.GT\n", "2:3: '[.]' in record 'a': a gap"),
    "stop sign": (b">a\nACGT*\n", "2:5: '[*]' in record 'a': a stop sign"),
    "NUL byte": (b">a\nACGT\nAC\0GT\n", "3:3: byte 0x00 in record 'a': a NUL byte"),
    "NUL byte in a header": (b">ab\0c\nACGT\n", "1:4: a NUL byte in a header"),
    "non-ASCII": (">a\nACGÜ\n".encode(), "2:4: byte 0xC3 in record 'a': not ASCII"),
    "non-breaking space": (b">a\nAC\xa0GT\n", "2:3: byte 0xA0 in record 'a': not ASCII"),
    "byte-order mark inside": (b">a\nACGT\n\xef\xbb\xbf>b\nACGT\n", "3:1: byte 0xEF"),
    "FASTQ inside": (b">a\nACGT\n@read1\n", "3:1: '@' in record 'a': a sign of FASTQ"),
    "another sign": (b">a\nACG?\n", "2:4: '[?]' in record 'a': not a base"),
    "control byte": (b">a\nACG\x1b\n", "2:4: byte 0x1B in record 'a': not a base"),
    "vertical tab": (b">a\nACG\x0b\n", "2:4: byte 0x0B"),
    "header too long": (b">" + b"x" * 65_537 + b"\nAC\n", "1:1: a header of more than 64 KiB"),
    "endless header": (b">a\nAC\n>" + b"x" * 200_000, "3:1: a header of more than 64 KiB"),
    "after CRLF lines": (b">a\r\nACGT\r\nAC-T\r\n", "3:3: '-'"),
    "after CR lines": (b">a\rACGT\rAC-T\r", "3:3: '-'"),
    "after a byte-order mark": (b"\xef\xbb\xbf>a\nAC-T\n", "2:3: '-'"),
    "after blank lines": (b"\n\n>a\n\nAC-T\n", "5:3: '-'"),
    "terminal escapes in a name": (b">\x1b[31mred\nAC-T\n", r"2:3: '-' in record '\\x1b\[31mred'"),
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_with_place_and_reason(fasta: Path, data: bytes, message: str, compress: Compress) -> None:
    assert re.match(message, refusal(fasta, compress(data)))


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusal_is_the_same_at_any_block_size(fasta: Path, data: bytes, message: str) -> None:
    sizes = BLOCK_SIZES if len(data) < 1000 else (1000, 65_536, 65_537)
    assert len({refusal(fasta, data, size) for size in sizes}) == 1


@pytest.mark.parametrize("letter", "EFILPQXZJOeflpqxzjo")
def test_refuses_amino_acid_codes_as_protein(fasta: Path, letter: str) -> None:
    message = refusal(fasta, f">a\nACGT\nMK{letter}\n".encode())
    assert message.startswith(f"3:3: '{letter}' in record 'a'")
    assert "protein" in message


def test_every_byte_is_a_base_a_line_end_or_refused(fasta: Path) -> None:
    for value in range(256):
        data = b">a\nA" + bytes([value]) + b"C\n"
        if bytes([value]) in b"ACGTUNRYKMSWBDHVacgtunrykmswbdhvi":
            assert read(fasta, data)[0][0].bases == data[3:6]
        elif value in b"\r\n":
            assert read(fasta, data)[0][0].bases == b"AC"
        else:
            assert refusal(fasta, data).startswith("2:2: ")


def test_records_before_the_fault_are_yielded(fasta: Path) -> None:
    fasta.write_bytes(b">a\nAC\n>b\nGG\n>c\nG-G\n")
    report = ReadReport(str(fasta))
    reading = sources.read(Input.of(fasta), report=report)
    assert [next(reading).name, next(reading).name] == ["a", "b"]
    with pytest.raises(DataError, match=r":6:2 \(byte 16\): '-' in record 'c'"):
        next(reading)
    assert (report.records, report.bases) == (2, 4)


def test_refuses_gzip_within_gzip(fasta: Path) -> None:
    assert "compressed twice" in refusal(fasta, gzip.compress(gzip.compress(b">a\nA\n")))


def test_long_names_are_shortened_in_messages(fasta: Path) -> None:
    message = refusal(fasta, b">" + b"x" * 5000 + b"\nAC-\n")
    assert "xxx..." in message
    assert len(message) < 250


def test_missing_or_unreadable_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(sources.read(Input.of(tmp_path / "none.fa")))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(sources.read(Input.of(tmp_path)))


# ------------------------------------------------------------------------------------ what is accepted

ACCEPTED = {
    "one line": b">a\nACGT\n",
    "wrapped and ragged lines": b">a\nACGT\nA\nACGTACGT\n>b\nAC\n",
    "no line end at the end": b">a\nAC\n>b\nGG",
    "CRLF": b">a one\r\nACGT\r\nAC\r\n>b\r\nGG\r\n",
    "CR alone, old Mac": b">a one\rACGT\rAC\r>b\rGG\r",
    "CR alone without a last one": b">a one\rACGT\rAC",
    "soft-masked": b">a\nACGTacgtNNnn\n",
    "IUPAC codes and U": b">a\nACGTUNRYKMSWBDHVacgtunrykmswbdhv\n",
    "inosine": b">a\nACiGT\n",
    "'>' in a header": b">a b>c >d\nACGT\n",
    "tab in a header": b">a\tb\tc d\nACGT\n",
    "several spaces in a header": b">a   b  c \nACGT\n",
    "Latin-1 header": ">a Müller\nACGT\n".encode("latin-1"),
    "header that ends the file": b">a\nAC\n>b",
    "name like a path": b">../../etc/passwd\nACGT\n",
    "header of exactly 64 KiB": b">" + b"x" * 65_536 + b"\nAC\n",
    "names that differ in case or version": b">chr1\nA\n>Chr1\nC\n>NC_1.1\nG\n>NC_1.2\nT\n",
    "blank lines": b"\n\n>a\n\nAC\n\n\nGT\n\n>b\nA\n\n",
    "empty records": b">a\n>b\nAC\n>c\n\n>d\n",
    "CR CR LF": b">a\r\r\nAC\r\r\nGT\r\r\n",
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bgzf], ids=["plain", "gzip", "bgzf"])
@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_accepts_and_agrees_with_a_naive_parser(fasta: Path, data: bytes, compress: Compress) -> None:
    sizes = BLOCK_SIZES if len(data) < 1000 else (1000, 65_536, 65_537)
    for size in sizes:
        records, report = read(fasta, compress(data), size)
        assert as_tuples(records) == naive(data)
        assert report.records == len(records)
        assert report.bases == sum(len(record.bases) for record in records)
        assert report.compression == ("plain" if compress is bytes else "gzip")


def test_utf8_header_is_kept(fasta: Path) -> None:
    records, report = read(fasta, ">a 5′-UTR\nACGT\n".encode())
    assert records[0].description == "5′-UTR"
    assert report.warnings == []


def test_record_is_small() -> None:
    assert not hasattr(Record("a", "", b"ACGT", 1), "__dict__")


def test_default_report_and_block_size(fasta: Path) -> None:
    sequence = b"ACGTACGTAC" * 100_000  # several blocks
    fasta.write_bytes(b">a\n" + b"\n".join(sequence[i : i + 70] for i in range(0, len(sequence), 70)) + b"\n")
    (record,) = sources.read(Input.of(fasta))
    assert record.bases == sequence
    assert len(sequence) > opened.BLOCK_BYTES


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_warns_of_a_byte_order_mark(fasta: Path, size: int) -> None:
    records, report = read(fasta, b"\xef\xbb\xbf>a\nACGT\n", size)
    assert as_tuples(records) == [("a", "", b"ACGT", 1)]
    assert report.warnings == [f"{fasta}:1:1: a UTF-8 byte-order mark was skipped"]


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_warns_of_blank_lines_once_with_place_and_count(fasta: Path, size: int) -> None:
    _, report = read(fasta, b">a\nAC\n\n\nGT\n>b\n\nAC\n", size)
    assert report.warnings == [f"{fasta}:3:1: blank lines were skipped, 3 in all"]
    _, report = read(fasta, b"\n>a\nAC\n\n", size)
    assert report.warnings == [f"{fasta}:1:1: blank lines were skipped, 2 in all"]


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_warns_of_mixed_line_ends(fasta: Path, size: int) -> None:
    _, report = read(fasta, b">a\nAC\r\nGT\r", size)
    assert report.warnings == [f"{fasta} mixes line ends (CR, CRLF, LF); all were accepted"]
    assert read(fasta, b">a\r\nAC\r\nGT\r\n", size)[1].warnings == []


def test_warns_of_and_counts_empty_records(fasta: Path) -> None:
    records, report = read(fasta, b">a\nAC\n>b some\n>c\n")
    assert [record.bases for record in records] == [b"AC", b"", b""]
    assert (report.records, report.empty, report.bases) == (3, 2, 2)
    assert report.warnings == [
        f"{fasta}:3:1: record 'b' has no bases",
        f"{fasta}:4:1: record 'c' has no bases",
    ]


def test_warnings_are_capped_and_say_so(fasta: Path) -> None:
    _, report = read(fasta, b"".join(b">r%d\n" % number for number in range(1000)))
    assert report.empty == 1000
    assert len(report.warnings) == 21
    assert report.warnings[-1].endswith("further warnings are not shown")


def test_many_short_records(fasta: Path) -> None:
    records, _ = read(fasta, b"".join(b">r%d\nACGT\n" % number for number in range(5000)), 1000)
    assert [record.name for record in records] == [f"r{number}" for number in range(5000)]
    assert [record.line for record in records] == list(range(1, 10_001, 2))


# ----------------------------------------------------------------------------------------- compression

TEXT = b"".join(b">r%d\n%s\n" % (number, b"ACGTTGCATG" * 30) for number in range(40))


def test_compression_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    for name, data, packing in (("x.fa.gz", TEXT, "plain"), ("y.fa", gzip.compress(TEXT), "gzip")):
        records, report = read(tmp_path / name, data)
        assert len(records) == 40
        assert report.compression == packing


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.Codec("zstd").compress(data, asbytes=True)
    return packed


PACKINGS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_compression_reads_the_same_also_in_several_streams(fasta: Path, packing: str) -> None:
    pack = PACKINGS[packing]
    for packed in (pack(TEXT), pack(TEXT[:1000]) + pack(b"") + pack(TEXT[1000:])):
        for size in (1, 100, 1 << 20):
            records, report = read(fasta, packed, size)
            assert as_tuples(records) == naive(TEXT)
            assert (report.compression, report.bytes_read, report.warnings) == (packing, len(packed), [])
            assert report.sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_compressed_file_cut_anywhere_is_an_error(fasta: Path, packing: str) -> None:
    packed = PACKINGS[packing](TEXT)
    magic = {"gzip": 2, "bzip2": 3, "xz": 6, "zstd": 4}[packing]
    for end in range(1, len(packed)):
        message = refusal(fasta, packed[:end])
        assert end < magic or re.search(f"is a {packing} file that ends too early, truncated", message)


@pytest.mark.parametrize("packing", PACKINGS)
def test_something_after_compressed_data_is_an_error(fasta: Path, packing: str) -> None:
    packed = PACKINGS[packing](TEXT)
    assert f"is {packing} followed by something that is not {packing}" in refusal(fasta, packed + b"<html>503</html>")
    assert packing in refusal(fasta, packed + packed[:20])


@pytest.mark.parametrize("packing", ["bzip2", "xz"])
def test_every_flipped_bit_is_noticed_or_means_nothing(fasta: Path, packing: str) -> None:
    packed = PACKINGS[packing](b">a\nACGTTGCATGCAAAT\n>b\nGGCATG\n")
    for bit in range(len(packed) * 8):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            records, _ = read(fasta, bytes(flipped))
        except DataError:
            continue
        assert [record.bases for record in records] == [b"ACGTTGCATGCAAAT", b"GGCATG"]
        assert packing == "bzip2"  # a few bits of it mean nothing


def test_xz_may_be_padded_with_zeros(fasta: Path) -> None:
    assert as_tuples(read(fasta, lzma.compress(TEXT) + bytes(8))[0]) == naive(TEXT)


def test_xz_that_asks_for_much_memory_is_refused(fasta: Path) -> None:
    packed = lzma.compress(TEXT, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20}])
    assert "Memory usage limit" in refusal(fasta, packed)


def test_a_decompression_bomb_is_refused(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = bz2.compress(b">a\n" + b"A" * 5_000_000)
    assert len(bomb) < 1000
    assert len(read(fasta, bomb)[0][0].bases) == 5_000_000  # too little to be a bomb
    monkeypatch.setattr(compression, "_RATIO_FROM_BYTES", 1 << 20)
    assert "decompression bomb" in refusal(fasta, bomb)


@pytest.mark.parametrize("end", [".gz", ".bgz", ".bgzf", ".bz2", ".xz", ".zst", ".zstd", ".GZ"])
def test_warns_of_a_name_that_promises_compression(tmp_path: Path, end: str) -> None:
    path = tmp_path / f"x.fa{end}"
    _, report = read(path, TEXT)
    assert report.warnings == [f"{path} is not compressed, although its name says so; it was read as it is"]


DAMAGED = {
    "wrong CRC": (lambda packed: packed[:-8] + b"\1\2\3\4" + packed[-4:], r"damaged gzip file \(CRC"),
    "wrong length": (lambda packed: packed[:-4] + b"\1\2\3\4", "damaged gzip file .*[Ll]ength"),
    "garbage after it": (lambda packed: packed + b"<html>server error</html>", "something that is not gzip"),
    "unknown method": (lambda packed: packed[:2] + b"\x09" + packed[3:], "damaged gzip file"),
    "truncated": (lambda packed: packed[:-40], "ends too early, truncated"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_gzip_says_how_much_was_read(fasta: Path, damage: Compress, message: str) -> None:
    text = refusal(fasta, damage(gzip.compress(TEXT)), 100)
    assert re.search(message, text)
    assert re.search(
        r"near byte [\d,]+ of the file; [\d,]+ decompressed bytes and [\d,]+ whole records were read", text
    )


def test_every_flipped_bit_of_a_gzip_is_noticed_or_harmless(fasta: Path) -> None:
    packed = gzip.compress(b">a\nACGTTGCATGCAAAT\n>b\nGGCATG\n", mtime=0)
    harmless = 0
    for bit in range(len(packed) * 8):
        flipped = bytearray(packed)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            records, _ = read(fasta, bytes(flipped))
        except DataError:
            continue
        assert [record.bases for record in records] == [b"ACGTTGCATGCAAAT", b"GGCATG"]
        harmless += 1
    assert harmless <= 8 * 10  # time, system and flags in the header are not checked by gzip


def test_damage_counts_whole_records(fasta: Path) -> None:
    packed = gzip.compress(TEXT[: len(TEXT) // 2]) + b"garbage, and more of it"
    with pytest.raises(DataError) as caught:
        read(fasta, packed, 1)
    count = re.search(r"([\d,]+) decompressed bytes and ([\d,]+) whole records", str(caught.value))
    assert count is not None
    assert int(count[1].replace(",", "")) <= len(TEXT) // 2


def test_bgzf_reads(fasta: Path) -> None:
    packed = bgzf(TEXT, 500)
    assert packed.endswith(compression._BGZF_END)
    assert as_tuples(read(fasta, packed, 100)[0]) == naive(TEXT)


@pytest.mark.parametrize("cut", [28, 27, 29, 200], ids=["between blocks", "in the end block", "in data", "deep"])
def test_bgzf_without_its_end_block_is_truncated(fasta: Path, cut: int) -> None:
    assert "lacks BGZF's end-of-file block" in refusal(fasta, bgzf(TEXT, 500)[:-cut])


def test_bgzf_with_zero_bytes_appended_is_refused(fasta: Path) -> None:
    assert "lacks BGZF's end-of-file block" in refusal(fasta, bgzf(TEXT, 500) + bytes(100))


def test_two_bgzf_files_joined_are_one(fasta: Path) -> None:
    records, _ = read(fasta, bgzf(b">a\nACGT\n") + bgzf(b">b\nGG\n"))
    assert as_tuples(records) == [("a", "", b"ACGT", 1), ("b", "", b"GG", 3)]


def test_warns_of_zero_bytes_after_gzip(fasta: Path) -> None:
    records, report = read(fasta, gzip.compress(TEXT) + bytes(512))
    assert len(records) == 40
    assert report.warnings == [f"{fasta} ends with zero bytes after the compressed data; check its size or checksum"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no /dev/fd on this system")
@pytest.mark.parametrize("data", [TEXT, bgzf(TEXT, 500)], ids=["plain", "bgzf"])
def test_reads_from_a_pipe(data: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)  # less than a pipe holds
    os.close(writer)
    records = list(sources.read(Input.of(Path(f"/dev/fd/{reader}"))))
    os.close(reader)
    assert as_tuples(records) == naive(TEXT)


# ------------------------------------------------------------------------------------------ properties

names = st.text("abcXYZ019_.:|-", min_size=1, max_size=12)
descriptions = st.text("abc XYZ019>;=[]äµ", max_size=20).map(str.strip)
sequences = st.text("ACGTNacgtnRYKMSWBDHVUui", max_size=80).map(str.encode)
entries = st.lists(st.tuples(names, descriptions, sequences), min_size=1, max_size=6, unique_by=lambda e: e[0])


@settings(max_examples=150, deadline=None)
@given(
    entries=entries,
    width=st.integers(1, 90),
    line_end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    last_line_end=st.booleans(),
    compress=st.sampled_from([bytes, gzip.compress, bgzf]),
    block_bytes=st.sampled_from([1, 2, 5, 7, 31, 1 << 20]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[str, str, bytes]],
    width: int,
    line_end: bytes,
    last_line_end: bool,
    compress: Compress,
    block_bytes: int,
) -> None:
    lines: list[bytes] = []
    expected = []
    for name, description, bases in entries:
        expected.append((name, description, bases, len(lines) + 1))
        lines.append(f">{name} {description}".rstrip(" ").encode())
        lines.extend(bases[start : start + width] for start in range(0, len(bases), width))
    data = line_end.join(lines) + (line_end if last_line_end else b"")
    records, report = read(tmp_path_factory.getbasetemp() / "round-trip.fa", compress(data), block_bytes)
    assert as_tuples(records) == expected
    assert report.bases == sum(len(bases) for _, _, bases in entries)
    assert report.empty == sum(not bases for _, _, bases in entries)


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.sampled_from([b">", b"a", b"AC", b"\n", b"\r", b" ", b"-", b"\0", b"\xef\xbb\xbf"]), max_size=14)
)
def test_any_bytes_give_the_same_result_at_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.fa"
    outcomes: set[object] = set()
    for size in (1, 2, 3, 1 << 20):
        try:
            records, report = read(path, b"".join(data), size)
            outcomes.add((tuple(as_tuples(records)), tuple(report.warnings)))
        except DataError as error:
            outcomes.add(str(error))
    assert len(outcomes) == 1


# --------------------------------------------------------------------------------------------- resolve


def test_resolve_a_file_and_a_sorted_glob(tmp_path: Path) -> None:
    for name in ("b.fa", "a.fa", "c.txt", "d/e.fa", "fa.fa/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b">a\nA\n")
    assert resolve_all([str(tmp_path / "b.fa")]) == [tmp_path / "b.fa"]
    assert resolve_all([f"{tmp_path}/*.fa"]) == [tmp_path / "a.fa", tmp_path / "b.fa"]
    assert resolve_all([f"{tmp_path}/**/*.fa"]) == [tmp_path / "a.fa", tmp_path / "b.fa", tmp_path / "d/e.fa"]


def test_resolve_takes_an_existing_name_with_brackets_literally(tmp_path: Path) -> None:
    (tmp_path / "hs[1].fa").write_bytes(b">a\nA\n")
    assert resolve_all([str(tmp_path / "hs[1].fa")]) == [tmp_path / "hs[1].fa"]


def test_resolve_expands_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.fa").write_bytes(b">a\nA\n")
    assert resolve_all(["~/a.fa"]) == [tmp_path / "a.fa"]


def test_resolve_refuses_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.fa").write_bytes(b">a\nA\n")
    (tmp_path / "dangling.fa").symlink_to(tmp_path / "gone")
    for source, message in (
        (tmp_path / "none.fa", "none.fa does not exist"),
        (tmp_path / "a.fa" / "x", "cannot be read: Not a directory"),
        (tmp_path, "is a directory; name the files in it"),
        (tmp_path / "*.fasta", "no file matches"),
        (tmp_path / "dangling.fa", "is a link to something that does not exist"),
        (tmp_path / "d*.fa", "is a link to something that does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            resolve_all([str(source)])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match="may not be read by this user"):
        resolve_all([str(tmp_path / "a.fa")])


def test_resolve_refuses_one_file_twice(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(b">a\nA\n")
    (tmp_path / "b.fa").symlink_to(tmp_path / "a.fa")
    with pytest.raises(DataError, match=r"b\.fa and .*a\.fa are one file"):
        resolve_all([f"{tmp_path}/*.fa"])
    with pytest.raises(DataError, match="are one file"):
        resolve_all([str(tmp_path / "a.fa"), str(tmp_path / "." / "a.fa")])
    (tmp_path / "c.fa").hardlink_to(tmp_path / "a.fa")
    with pytest.raises(DataError, match="are one file"):
        resolve_all([str(tmp_path / "a.fa"), str(tmp_path / "c.fa")])


def test_resolve_all_keeps_the_order_of_the_sources(tmp_path: Path) -> None:
    for name in ("a.fa", "b.fa"):
        (tmp_path / name).write_bytes(b">a\nA\n")
    assert resolve_all([str(tmp_path / "b.fa"), f"{tmp_path}/a*"]) == [tmp_path / "b.fa", tmp_path / "a.fa"]


def test_unknown_builtin_lists_the_known() -> None:
    with pytest.raises(DataError, match="no built-in data named builtin:mouse; known: builtin:human-cds"):
        resolve_all(["builtin:mouse"])


# ---------------------------------------------------------------------------------------- builtin data


def test_builtin_human_cds() -> None:
    (path,) = resolve_all(["builtin:human-cds"])
    assert path.stat().st_size < 1_500_000
    report = ReadReport(str(path))
    records = list(sources.read(Input.of(path), report=report))
    assert (report.records, report.bases, report.warnings) == (BUILTIN_RECORDS, BUILTIN_BASES, [])
    assert len({record.bases for record in records}) == BUILTIN_RECORDS
    groups = {Grouping().of(record, path.name) for record in records}
    assert {rule for _, rule in groups} == {"ensembl-gene"}
    assert len(groups) == BUILTIN_GENES
    assert not {group for group, _ in groups} & {"ENSG00000149295", "ENSG00000012048", "ENSG00000139618"}
    assert not [record.name for record in records if re.search(r"gene_symbol:(DRD2|BRCA[12])\b", record.description)]
    assert all(re.search(r"source=(iCodon|CaLM)", record.description) for record in records)
    notice = (path.parent / "NOTICE.md").read_text(encoding="utf-8")
    for said in (
        f"{BUILTIN_RECORDS:,}",
        f"{BUILTIN_BASES:,}",
        "Santiago G. Medina",
        "Carlos Outeiral Rubiera",
    ):
        assert said in notice


def test_builtin_drd2_is_one_whole_coding_sequence() -> None:
    (record,) = sources.read(*find(["builtin:drd2"]))
    assert len(record.bases) == 1245
    assert fault_of_cds(record.bases) is None


@pytest.mark.parametrize("letters", ["ACGT", "acgtACGT", "ACGTN", "ACGTn", "ACGU", "ACGTi", "ACGTR"])
def test_records_called_plain_have_nothing_but_bases(tmp_path: Path, letters: str) -> None:
    path = tmp_path / "a.fa"
    path.write_text("".join(f">r{number}\nACGTacgt\n{letters if number == 7 else 'AC'}\n" for number in range(20)))
    records = list(sources.read(Input.of(path)))
    assert [record.name for record in records if record.plain and set(record.bases[:]) - set(b"ACGTacgt")] == []
    assert any(record.plain for record in records) == (set(letters) <= set("ACGTacgt"))
