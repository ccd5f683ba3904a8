"""Decompression, told by the first bytes and never by a name. What is not whole is an error that says where."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Any

from dnascale.data.sources.report import ReadReport
from dnascale.errors import DataError

_gzip_file: Callable[..., Any] = gzip.GzipFile
_gzip_errors: tuple[Any, ...] = (EOFError, zlib.error, OSError)
with suppress(ImportError):  # isal has no wheel for some machines; gzip reads the same files at half the speed
    from isal import igzip, isal_zlib

    _gzip_file, _gzip_errors = igzip.IGzipFile, (*_gzip_errors, isal_zlib.error)

GZIP_MAGIC = b"\x1f\x8b"
# The empty member that ends every whole BGZF file (SAM specification, section 4.1.2).
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_TAIL_BYTES = len(_BGZF_END)


class Stored(io.RawIOBase):
    """An input as it lies on the disk, read once from its start: counted, hashed, its last bytes kept."""

    def __init__(self, stream: IO[bytes], report: ReadReport) -> None:
        self.stream, self.report = stream, report
        self.digest = hashlib.sha256()
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
        self.digest.update(block)
        self.report.bytes_read += len(block)
        self.tail = block[-_TAIL_BYTES:] if len(block) >= _TAIL_BYTES else (self.tail + block)[-_TAIL_BYTES:]
        return block


def blocks(stored: Stored, report: ReadReport, block_bytes: int) -> Iterator[bytes]:
    """The decompressed bytes of an input, in blocks of at most `block_bytes`.

    Raises:
        DataError: the input is truncated, damaged, or followed by something else.
    """
    source: Any = stored
    head = stored.peek(64)
    is_bgzf = False
    if head.startswith(GZIP_MAGIC):
        report.compression = "gzip"
        is_bgzf = head[3:4] == b"\x04" and b"BC\x02\0" in head[12:]
        source = _gzip_file(fileobj=stored, mode="rb")
    done = 0
    while True:
        try:
            block = source.read(block_bytes)
        except _gzip_errors as error:
            if is_bgzf and isinstance(error, EOFError):
                break
            raise DataError(_damage(error, report, done)) from None
        if not block:
            break
        done += len(block)
        yield block
    if is_bgzf and stored.tail != _BGZF_END:  # one that was cut between two members is valid gzip
        raise DataError(f"{report.name} lacks BGZF's end-of-file block at its end: it is truncated; fetch it again.")
    if source is not stored and not stored.tail[-16:].strip(b"\0"):
        # gzip allows it as padding, an interrupted download leaves it too
        report.warn(f"{report.name} ends with zero bytes after the compressed data; check its size or checksum")


def _damage(error: Exception, report: ReadReport, done: int) -> str:
    kind = f"a damaged gzip file ({error})"
    if isinstance(error, EOFError):
        kind = "a gzip file that ends too early, truncated or with stray bytes at its end"
    elif "Not a gzipped file" in str(error):
        kind = "gzip followed by something that is not gzip"
    elif isinstance(error, OSError) and error.errno:
        kind = f"not readable to its end ({error.strerror})"
    seen = f"{done:,} decompressed bytes and {report.records:,} whole records"
    return f"{report.name} is {kind}; {seen} were read before. Fetch it again."
