"""Decompression, told by the first bytes and never by a name. What is not whole is an error that says where."""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Any

from isal import igzip, isal_zlib

from dnascale.data.digest import Sha256
from dnascale.data.sources.report import ReadReport
from dnascale.errors import DataError

_ERRORS: tuple[Any, ...] = (EOFError, OSError, isal_zlib.error, lzma.LZMAError)

GZIP_MAGIC = b"\x1f\x8b"
# The empty member that ends every whole BGZF file (SAM specification, section 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_TAIL_BYTES = len(_BGZF_END)
_CHUNK_BYTES = 64 << 10
_XZ_MEMORY_BYTES = 128 << 20  # `xz -9` asks for 65 MiB
# Genomes compress 3 to 5 times, a million near-copies of a virus some 300 times, one letter for ever 1030 (gzip) to
# 40,000 times (bzip2): what is past this after the first GiB is meant to fill a disk.
_MAX_RATIO, _RATIO_FROM_BYTES = 1000, 1 << 30


class Stored(io.RawIOBase):
    """An input as it lies on the disk, read once from its start: counted, hashed, its last bytes kept."""

    def __init__(self, stream: IO[bytes], report: ReadReport, algorithm: str | None = None) -> None:
        self.stream, self.report = stream, report
        self.sha256 = Sha256()
        self.other = hashlib.new(algorithm, usedforsecurity=False) if algorithm else None  # what a list was made with
        self.tail = b""
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def peek(self, size: int) -> bytes:
        """The next bytes, `size` where there are that many; they stay to be read."""
        while len(self._ahead) < size and (more := self._fetch(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        if self._ahead:
            size = len(self._ahead) if size < 0 else size
            block, self._ahead = self._ahead[:size], self._ahead[size:]
            return block
        return self._fetch(size)

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def _fetch(self, size: int) -> bytes:
        block = self.stream.read(size) or b""
        self.sha256.update(block)
        if self.other:
            self.other.update(block)
        self.report.bytes_read += len(block)
        self.tail = block[-_TAIL_BYTES:] if len(block) >= _TAIL_BYTES else (self.tail + block)[-_TAIL_BYTES:]
        return block


# How the libraries, and `_Streams`, say that another stream should begin, and something else does.
_FOLLOWED = ("Not a stream", "Not a gzipped file", "Unknown frame descriptor")


_Decoder = bz2.BZ2Decompressor | lzma.LZMADecompressor


class _Streams:
    """Streams of bzip2 or xz, one after the other, and nothing else after them."""

    def __init__(self, stored: Stored, new: Callable[[], _Decoder], magic: bytes, padding: bytes) -> None:
        self.stored, self.new, self.magic, self.padding = stored, new, magic, padding
        self.decoder = new()

    def read(self, size: int) -> bytes:
        while True:
            data = b""
            if self.decoder.eof:
                data = self.decoder.unused_data.lstrip(self.padding)
                while not data:
                    if not (more := self.stored.read(_CHUNK_BYTES)):
                        return b""
                    data = more.lstrip(self.padding)
                if not data[: len(self.magic)] == self.magic[: len(data)]:
                    raise OSError(_FOLLOWED[0])
                self.decoder = self.new()
            elif self.decoder.needs_input and not (data := self.stored.read(_CHUNK_BYTES)):
                raise EOFError
            if block := self.decoder.decompress(data, size):
                return block


def _gzip(stored: Stored) -> Any:
    return igzip.IGzipFile(fileobj=stored, mode="rb")  # twice as fast as gzip.GzipFile


def _bzip2(stored: Stored) -> Any:
    return _Streams(stored, bz2.BZ2Decompressor, b"BZh", b"")


def _xz(stored: Stored) -> Any:
    def new() -> _Decoder:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    return _Streams(stored, new, b"\xfd7zXZ\0", b"\0")


def _zstd(stored: Stored) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd")


_ZSTD_SKIPPABLE = tuple(bytes((0x50 + number,)) + b"\x2a\x4d\x18" for number in range(16))
_KINDS: tuple[tuple[str, tuple[bytes, ...], Callable[[Stored], Any]], ...] = (
    ("gzip", (GZIP_MAGIC,), _gzip),
    ("bzip2", (b"BZh",), _bzip2),
    ("xz", (b"\xfd7zXZ\0",), _xz),
    ("zstd", (b"\x28\xb5\x2f\xfd", *_ZSTD_SKIPPABLE), _zstd),
)
#: How names of compressed files end, in lower case. They only raise expectations: the first bytes tell.
SUFFIXES = (".gz", ".bgz", ".bgzf", ".bz2", ".xz", ".zst", ".zstd")


def blocks(stored: Stored, report: ReadReport, block_bytes: int) -> Iterator[bytes]:
    """The decompressed bytes of an input, in blocks of at most `block_bytes`.

    Raises:
        DataError: the input is truncated, damaged, followed by something else, or a decompression bomb.
    """
    source: Any = stored
    head = stored.peek(64)
    for kind, magic, opened in _KINDS:
        if head.startswith(magic):
            report.compression, source = kind, opened(stored)
    if source is stored and head and report.name.lower().endswith(SUFFIXES):
        report.warn(f"{report.name} is not compressed, although its name says so; it was read as it is")
    is_bgzf = report.compression == "gzip" and head[3:4] == b"\x04" and b"BC\x02\0" in head[12:]
    done = 0
    while True:
        try:
            block = source.read(block_bytes)
        except _ERRORS as error:
            if is_bgzf and isinstance(error, EOFError):
                break
            raise DataError(_damage(error, report, done)) from None
        if not block:
            break
        done += len(block)
        if done > _RATIO_FROM_BYTES and done > _MAX_RATIO * report.bytes_read:
            raise DataError(
                f"{report.name} grows more than {_MAX_RATIO:,} times when it is decompressed: no sequences do, it looks "
                "like a decompression bomb. If you trust it, decompress it yourself and give the plain file."
            )
        yield block
    if is_bgzf and stored.tail != _BGZF_END:  # one that was cut between two members is valid gzip
        raise DataError(f"{report.name} lacks BGZF's end-of-file block at its end: it is truncated; fetch it again.")
    if report.compression == "gzip" and not stored.tail[-16:].strip(b"\0"):
        # gzip allows it as padding, an interrupted download leaves it too
        report.warn(f"{report.name} ends with zero bytes after the compressed data; check its size or checksum")


def _damage(error: Exception, report: ReadReport, done: int) -> str:
    packing = report.compression
    kind = f"a damaged {packing} file ({error})"
    if isinstance(error, OSError) and error.errno:
        kind = f"not readable to its end ({error.strerror})"
    elif isinstance(error, EOFError) or "Truncated compressed stream" in str(error):
        kind = f"a {packing} file that ends too early, truncated or with stray bytes at its end"
    elif any(words in str(error) for words in _FOLLOWED):
        kind = f"{packing} followed by something that is not {packing}"
    seen = f"{done:,} decompressed bytes and {report.records:,} whole records"
    return (
        f"{report.name} is {kind} near byte {report.bytes_read:,} of the file; {seen} were read before. Fetch it again."
    )
