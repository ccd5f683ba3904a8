"""Inputs behind a URL: their bytes, once, from the start, in pieces that are asked for again when they fail.

Nothing is kept on disk, but for the files of a server that knows no byte ranges. An input that is shorter than the server
says, or that is replaced while it is read, is an error: it never just ends early.
"""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from dnascale.data.remote import PIECE
from dnascale.data.transport import Attempts, Fault, Retry, Source, fault_of, without_secrets
from dnascale.errors import DnascaleError
from dnascale.files import changed_meanwhile, explained, no_space

T = TypeVar("T")
_DEADLINE = 900.0  # seconds for one piece, with its repetitions
_LATER = "check the network and the server, then run the same command again"
_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<size>\d+)")


def open_url(url: str, retry: Retry | None = None, piece: int = PIECE) -> io.RawIOBase:
    """The bytes behind `url`, to be read once. Memory: two pieces of `piece` bytes.

    Raises:
        DataError: (on reading, too) it is not there, may not be read, fails again and again, or was replaced.
        UsageError: the scheme is not known, or its package is not installed.
        SpaceError: the disk of temporary files is full.
    """
    return _Stream(located(url, retry), piece)


def located(url: str, retry: Retry | None = None) -> _Http | _Object:
    """What is behind `url`. Nothing is asked yet."""
    return (_Http if is_web(url) else _Object)(url, retry or Retry())


def is_web(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


class Location(Source):
    """What is behind one URL, asked again and again until it answers."""

    def __init__(self, url: str, retry: Retry) -> None:
        super().__init__(url)
        self.shown = without_secrets(url)
        self.retry = retry
        self.closed = threading.Event()

    def address(self, name: str) -> str:
        return self._url

    @property
    def files(self) -> Any:
        """The fsspec file system, for `ask`."""
        self._files = self._files or self._open()
        return self._files

    @property
    def path(self) -> str:
        """The URL as the file system wants it."""
        return str(self.files._strip_protocol(self._url))

    def ask(self, once: Callable[[float], T]) -> T:
        """What `once(seconds)` gives when it does not fail, within `seconds`. Raises DataError when it fails too often."""
        attempts = Attempts(self.shown, self.retry, _DEADLINE, self.closed, _LATER)
        while True:
            seconds = attempts.seconds()
            try:
                return once(seconds)
            except DnascaleError:
                raise
            except _NoAnswer as error:
                fault = Fault(str(error))
            except Exception as error:
                if isinstance(error, OSError) and no_space(error):
                    raise explained(error, Path(tempfile.gettempdir()), kept="") from None
                fault = fault_of(error, self.retry.stall)
            # Outside the handler, so that the transport's error, which may hold credentials, is not chained to ours.
            attempts.failed(fault)

    def info(self, seconds: float) -> dict[str, Any]:
        """What the file system says of the file: `size`, `type` and more."""
        from fsspec.asyn import sync

        files = self.files
        files.invalidate_cache()
        call = partial(sync, files.loop, files._info, timeout=seconds) if files.async_impl else files.info
        found: dict[str, Any] = call(self.path)
        return found

    def body(self, start: int, end: int) -> IO[bytes]:
        """Bytes [start, end)."""
        return io.BytesIO(self.part(start, end))

    def part(self, start: int, end: int) -> bytes:
        """Bytes [start, end). Raises DataError when they cannot be had, or are of another version of the file."""
        raise NotImplementedError


class _NoAnswer(Exception):
    """An answer of no use, which may be better the next time."""


class _Object(Location):
    """A file of S3, Google Cloud, the Hugging Face Hub, or whatever else fsspec knows."""

    size: int

    def first(self, piece: int) -> IO[bytes]:
        """The first `piece` bytes. Sets `size`; `part` gives the rest."""
        self.version = self._version()
        self.size = self.version[0]
        return io.BytesIO(self.part(0, min(piece, self.size)) if self.size else b"")

    def part(self, start: int, end: int) -> bytes:
        return self.ask(lambda seconds: self.exactly(self.read("", start, end, seconds), start, end))

    def exactly(self, content: bytes, start: int, end: int) -> bytes:
        if len(content) != end - start:
            raise _NoAnswer(f"{len(content):,} bytes where {end - start:,} were asked for, from byte {start:,} on")
        return content

    def finish(self) -> None:
        """Raises DataError if this is no longer the file that it was."""
        if self._version() != self.version:
            raise changed_meanwhile(self.shown)

    def _version(self) -> tuple[int, str]:
        info = self.ask(self.info)
        return int(info["size"]), mark_of(info)


class _Http(Location):
    """A file of a web server, which may know byte ranges and its size, or not."""

    size: int
    version: str

    def first(self, piece: int) -> IO[bytes]:
        """The first `piece` bytes, or all there are where the server gives no ranges. Sets `size`."""
        return self.ask(lambda seconds: self._first(piece, seconds))

    def part(self, start: int, end: int) -> bytes:
        return self.ask(lambda seconds: self._part(start, end, seconds))

    def finish(self) -> None:
        """Every answer said which version it is of."""

    def info(self, seconds: float) -> dict[str, Any]:
        """What the server says of the file when it is not asked for the file itself, which some refuse."""
        from fsspec.asyn import sync

        headers: dict[str, str] = sync(self.files.loop, self._head, timeout=seconds)
        size = headers.get("Content-Length", "")
        packed = headers.get("Content-Encoding", "identity") != "identity"
        return {**headers, "type": "file", "size": int(size) if size.isdigit() and not packed else None}

    async def _head(self) -> dict[str, str]:
        session = await self.files.set_session()
        async with session.head(self.files.encode_url(self.path), allow_redirects=True, **self.files.kwargs) as answer:
            answer.raise_for_status()
            return dict(answer.headers)

    def _first(self, piece: int, seconds: float) -> IO[bytes]:
        body: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=piece)  # noqa: SIM115
        try:
            self._fill(body, piece, seconds)
        except BaseException:
            body.close()
            raise
        return body

    def _fill(self, body: IO[bytes], piece: int, seconds: float) -> None:
        headers = self._get(0, piece, body, seconds)
        size = body.tell()
        match = _RANGE.match(headers.get("Content-Range", ""))
        if match:
            self.size, self.version = int(match["size"]), mark_of(headers)
            if size != min(piece, self.size):
                raise _NoAnswer(f"{size:,} bytes where {min(piece, self.size):,} were asked for")
        elif "Content-Range" in headers:  # of a file that is being made, or is packed for the way
            self._get(None, None, body, seconds)
            self.size = body.tell()
        else:
            self.size = size
        body.seek(0)

    def _part(self, start: int, end: int, seconds: float) -> bytes:
        body = io.BytesIO()
        headers = self._get(start, end, body, seconds)
        match = _RANGE.match(headers.get("Content-Range", ""))
        if not match or int(match["start"] or -1) != start or body.tell() != end - start:
            raise _NoAnswer(f"{body.tell():,} bytes where {end - start:,} were asked for, from byte {start:,} on")
        if (int(match["size"]), mark_of(headers)) != (self.size, self.version):
            raise changed_meanwhile(self.shown)
        return body.getvalue()

    def _get(self, start: int | None, end: int | None, body: IO[bytes], seconds: float) -> Any:
        from fsspec.asyn import sync

        # Of a body that is long because there are no ranges, only each part has to arrive in time.
        return sync(self.files.loop, self._transfer, start, end, body, seconds)

    async def _transfer(self, start: int | None, end: int | None, body: IO[bytes], seconds: float) -> Any:
        """Writes the answer into `body`, from its start; its headers."""
        import aiohttp

        files = self.files
        body.seek(0)
        body.truncate()
        request = dict(files.kwargs)
        if start is not None and end is not None:
            request["headers"] = {**request.get("headers", {}), "Range": f"bytes={start}-{end - 1}"}
        session = await files.set_session()
        wait = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        async with asyncio.timeout(seconds) as limit:
            async with session.get(files.encode_url(self.path), timeout=wait, **request) as answer:
                if answer.status == 416 and answer.headers.get("Content-Range", "").startswith("bytes */0"):
                    return answer.headers  # an empty file
                answer.raise_for_status()
                if start and answer.status != 206:
                    return {}  # all of the file again: not what was asked for
                async for some in answer.content.iter_chunked(1 << 20):
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    body.write(some)
                    self.bytes += len(some)
                packed = answer.headers.get("Content-Encoding", "identity") != "identity"
                return {"Content-Range": "packed"} if packed and answer.status == 206 else answer.headers


def mark_of(info: Any) -> str:
    """What tells a file from one that replaces it, in what a file system or the headers of an answer say."""
    # The time first: the machines behind one address may not agree on an ETag.
    marks = ("Last-Modified", "LastModified", "ETag", "etag", "md5Hash", "generation", "blob_id", "mtime")
    return next((str(info[mark]) for mark in marks if info.get(mark)), "")


class _Stream(io.RawIOBase):
    """The pieces one after the other; while one is read, the next is on its way."""

    def __init__(self, remote: _Object | _Http, piece: int) -> None:
        self._remote, self._piece = remote, piece
        self._fetching = ThreadPoolExecutor(1)
        self._next: Future[IO[bytes]] | None = self._fetching.submit(remote.first, piece)
        self._body: IO[bytes] = io.BytesIO()
        self._done = 0  # bytes up to the end of `_body`

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(self._piece), b""))
        block = self._body.read(size)
        while not block and size and self._next is not None:
            self._advance()
            block = self._body.read(size)
        return block

    def _advance(self) -> None:
        assert self._next is not None
        self._body.close()
        self._body = self._next.result()
        self._done += self._body.seek(0, io.SEEK_END)
        self._body.seek(0)
        if self._done < self._remote.size:
            end = min(self._done + self._piece, self._remote.size)
            self._next = self._fetching.submit(self._remote.body, self._done, end)
        else:
            self._next = None
            self._remote.finish()

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._remote.closed.set()
        self._body.close()
        if self._next is not None:
            self._next.add_done_callback(_close)
        super().close()


def _close(fetched: Future[IO[bytes]]) -> None:
    if not fetched.cancelled() and fetched.exception() is None:
        fetched.result().close()
