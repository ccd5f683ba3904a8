"""Inputs behind URLs that fail: asked for again, or refused in one sentence; never a file that is silently short."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import IO

import pytest
from servers import Fault, Server, content, serving

from dnascale.data import sources
from dnascale.data.sources import Input, ReadReport, urls
from dnascale.data.sources.urls import open_url
from dnascale.data.transport import Retry
from dnascale.errors import DataError

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.faults
QUICK = Retry(attempts=4, base=0.001, cap=0.002, stall=20.0)
IMPATIENT = Retry(attempts=4, base=0.001, cap=0.002, stall=0.5)  # where an answer never comes
PIECE = 10_000
BODY = content(95_000, "input")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/genome.fa"] = BODY
        yield server


def read(server: Server, path: str = "/genome.fa", block: int = 3001, retry: Retry = QUICK) -> bytes:
    with open_url(server.url + path, retry, PIECE) as stream:
        return b"".join(iter(lambda: stream.read(block), b""))


@pytest.mark.parametrize("block", [1000, PIECE, 1 << 20])
def test_a_file_comes_in_pieces(server: Server, block: int) -> None:
    assert read(server, block=block) == BODY
    assert sorted(request.start or 0 for request in server.requests) == list(range(0, 95_000, PIECE))


@pytest.mark.parametrize("kind", ["503", "429", "cut", "short", "stall", "garbled"])
@pytest.mark.parametrize("which", [0, 4])
def test_a_piece_that_fails_is_asked_for_again(server: Server, kind: str, which: int) -> None:
    server.script("/genome.fa", *[Fault("")] * which, kind)
    assert read(server, retry=IMPATIENT if kind == "stall" else QUICK) == BODY
    assert server.sent < 1.5 * len(BODY)


@pytest.mark.parametrize("kind", ["503", "cut", "short", "garbled", "whole"])
def test_a_piece_that_fails_again_and_again_is_one_sentence(server: Server, kind: str) -> None:
    """The whole file in answer to a range is one that is not ours: what came before may be of another file."""
    server.always = lambda request: Fault(kind) if request.start else None
    with pytest.raises(
        DataError, match=r"could not be downloaded in 4 attempts: .*run the same command again"
    ) as caught:
        read(server)
    assert "\n" not in str(caught.value)
    assert "is kept" not in str(caught.value)


def test_a_file_without_ranges_is_taken_whole(server: Server) -> None:
    server.always = lambda _: Fault("whole")
    assert read(server) == BODY


def test_a_file_without_ranges_that_ends_early_is_taken_anew_or_refused(server: Server) -> None:
    short = Fault("200", {"Content-Length": "95000"}, BODY[:9000])
    server.script("/genome.fa", short, Fault("whole"))
    assert read(server, retry=IMPATIENT) == BODY
    server.always = lambda _: short
    with pytest.raises(DataError, match="could not be downloaded in 4 attempts"):
        read(server, retry=IMPATIENT)


@pytest.mark.parametrize("status", ["401", "403", "404", "410", "400"])
def test_what_cannot_be_had_is_said_at_once(server: Server, status: str) -> None:
    server.always = lambda _: Fault(status)
    with pytest.raises(DataError, match=rf"in 1 attempt: HTTP {status}"):
        read(server)


def test_a_file_that_is_replaced_meanwhile_is_refused(server: Server) -> None:
    versions = iter(["a", "a", "b"])
    server.always = lambda _: Fault("", {"ETag": next(versions, "b")})
    with pytest.raises(DataError, match="changed while it was read"):
        read(server)


def test_a_file_that_grows_meanwhile_is_refused(server: Server) -> None:
    def grow(request: object) -> None:
        if len(server.requests) == 3:
            server.files["/genome.fa"] = BODY + b"more"

    server.always = grow  # type: ignore[assignment]
    with pytest.raises(DataError, match="changed while it was read"):
        read(server)


def test_an_empty_file_is_empty(server: Server) -> None:
    server.files["/empty.fa"] = b""
    server.always = lambda _: Fault("416", {"Content-Range": "bytes */0"})
    assert read(server, "/empty.fa") == b""


def test_a_page_in_place_of_the_file_is_named(server: Server) -> None:
    server.always = lambda _: Fault("html")
    with pytest.raises(DataError, match="HTML or XML page"):
        list(sources.read(Input(f"{server.url}/genome.fa", "genome")))


def test_the_digest_and_the_bytes_are_those_of_the_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b">a\n" + b"ACGT" * 20_000 + b"\n"
    server.files["/a.fa"] = text
    monkeypatch.setattr(urls, "PIECE", PIECE)
    report = ReadReport("a")
    (record,) = sources.read(Input(f"{server.url}/a.fa", "a"), report=report)
    assert record.bases[:] == b"ACGT" * 20_000
    assert (report.sha256, report.bytes_read) == (hashlib.sha256(text).hexdigest(), len(text))


def test_a_full_disk_is_a_space_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from dnascale.errors import SpaceError

    class Full:
        def __init__(self, **_: object) -> None: ...
        def seek(self, *_: object) -> int:
            return 0

        def truncate(self) -> int:
            return 0

        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr(urls.tempfile, "SpooledTemporaryFile", Full)
    with pytest.raises(SpaceError, match="no space left"):
        read(server)


@pytest.mark.parametrize("bytes_read", [0, 100, 95_000])
def test_no_file_is_left_open(server: Server, monkeypatch: pytest.MonkeyPatch, bytes_read: int) -> None:
    made: list[IO[bytes]] = []
    temporary = urls.tempfile.SpooledTemporaryFile

    def making(**options: int) -> IO[bytes]:
        made.append(temporary(**options))
        return made[-1]

    monkeypatch.setattr(urls.tempfile, "SpooledTemporaryFile", making)
    server.script("/genome.fa", "503", "cut")
    with open_url(server.url + "/genome.fa", QUICK, PIECE) as stream:
        stream.read(bytes_read)
    deadline = time.monotonic() + 20
    while not (made and all(one.closed for one in made)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made
    assert all(one.closed for one in made)
    assert len(made) == 3 or not bytes_read
