"""An input that has been opened: its decompressed bytes, once, from the start."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dnascale.data.remote import is_remote
from dnascale.data.sources.compression import Stored, blocks
from dnascale.data.sources.expect import Expected
from dnascale.data.sources.given import STDIN, Stdin, revealed
from dnascale.data.sources.input import Input
from dnascale.data.sources.report import ReadReport
from dnascale.files import changed_meanwhile, unreadable

BLOCK_BYTES = 256 << 10  # fits the cache: a tenth faster than 8 MiB, and damage is placed more exactly
HEAD_BYTES = 4096
MAX_BLANK_BYTES = 1 << 20


class Source:
    """What the reader of a format gets: `head` to look at, then `blocks` or a `file` to read, from the start.

    Use as a context manager. On leaving without an error the rest is read, for `report.sha256`.

    Raises:
        DataError: on opening and reading: not there, may not be read, damaged; on leaving: changed meanwhile.
    """

    def __init__(
        self,
        input: Input,
        report: ReadReport,
        block_bytes: int = BLOCK_BYTES,
        expected: Expected | None = None,
    ) -> None:
        self.input, self.report, self._expected = input, report, expected
        algorithm = expected.algorithm(input.name) if expected else None
        self._stream = _opened(input)
        self._stored = Stored(self._stream, report, algorithm)
        self._block_bytes = block_bytes
        self._blocks = blocks(self._stored, report, block_bytes)
        self._before = _identity(self._stream)
        #: The first decompressed bytes, 4 KiB that are not blank lines where there are that many.
        self.head = b""
        with closed_on_error(self._stream):
            for block in self._blocks:
                self.head += block
                if len(self.head) >= HEAD_BYTES and (self.head.strip() or len(self.head) > MAX_BLANK_BYTES):
                    break

    def blocks(self) -> Iterator[bytes]:
        """The decompressed bytes. To be called once."""
        for start in range(0, len(self.head), self._block_bytes):
            yield self.head[start : start + self._block_bytes]
        yield from self._blocks

    def file(self) -> io.BufferedReader:
        """The decompressed bytes as a binary file that cannot seek, for libraries that want one."""
        return io.BufferedReader(_AsFile(self.blocks()), BLOCK_BYTES)

    @property
    def path(self) -> Path | None:
        """The file itself, for formats that are read by random access: if it is a plain regular file."""
        plain = bool(self._before) and self.report.compression == "plain"
        return Path(self.input.location) if plain else None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        with self._stream:
            if kind is None:
                self._finish()

    def _finish(self) -> None:
        for _ in self._blocks:
            pass
        self.report.sha256 = self._stored.sha256.hexdigest()
        if self._expected and self._stored.other:
            self._expected.check_digest(self.input.name, self._stored.other.hexdigest())
        if self._before is not None and self._before != _identity(self.input.location):
            raise changed_meanwhile(self.input.name)


@contextmanager
def closed_on_error(stream: IO[bytes]) -> Iterator[None]:
    """Closes the stream if what follows fails."""
    try:
        yield
    except BaseException:
        stream.close()
        raise


def _opened(input: Input) -> IO[bytes]:
    if input.location == STDIN:
        return cast(IO[bytes], Stdin())
    if is_remote(input.location):
        from dnascale.data.sources.urls import open_url

        return cast(IO[bytes], open_url(revealed(input.location)))
    try:
        return Path(input.location).open("rb", buffering=0)
    except OSError as error:
        raise unreadable(error, input.name) from None


def _identity(file: IO[bytes] | str) -> tuple[int, ...] | None:
    """Which file this is, its size and time of change. None for what is no regular file."""
    try:
        status = os.stat(file) if isinstance(file, str) else os.fstat(file.fileno())
    except (OSError, ValueError):
        return ()
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _AsFile(io.RawIOBase):
    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._left = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = memoryview(next(self._blocks, b""))
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
