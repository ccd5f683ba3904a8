"""A real HTTP server on this machine that serves bytes from memory, counts them, and fails as it is told.

It answers byte ranges. Its paths may be those of a bucket: for reading, that is what S3 is.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from dnascale.data.remote import RemoteFile

HTML = b"<!DOCTYPE html><html><body>Please sign in to the guest network.</body></html>"


@cache
def content(size: int, seed: object = 0) -> bytes:
    """`size` bytes that look random, and are the same everywhere."""
    blocks = (hashlib.sha512(f"{seed}:{number}".encode()).digest() for number in range(size // 64 + 1))
    return b"".join(blocks)[:size]


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of its bytes.

    `kind`: a status ("503"), "stall" (no answer), "cut" (half of the body, then the connection ends), "short" (half of the
    range, properly), "flip" (one byte is wrong), "html" (a page, status 200), "whole" (the range is ignored), "garbled" (no HTTP).
    """

    kind: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Request:
    """A request as it arrived, and how many bytes of body it got."""

    path: str  # with its query
    start: int | None
    end: int | None  # exclusive
    at: float  # time.time()
    headers: dict[str, str]
    sent: int = 0
    fault: str = ""


class Server:
    """A data set at `url`/set, and whatever else is put there.

    `files` by path; `faults` by path, one for each request until they are used up; `always`, asked for every request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, deque[Fault]] = {}
        self.always: Callable[[Request], Fault | None] = lambda _: None
        self.delay = 0.0  # seconds before each answer
        self.requests: list[Request] = []
        self.ending = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def add(self, name: str, size: int = 300_000, root: str = "/set") -> RemoteFile:
        """A file of the data set; its bytes depend on its name."""
        self.files[f"{root}/{name}"] = body = content(size, name)
        return RemoteFile(name, size, hashlib.sha256(body).hexdigest())

    def put(self, folder: Path, root: str = "/set") -> None:
        """All files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{root}/{path.relative_to(folder)}"] = path.read_bytes()

    def script(self, path: str, *kinds: str | Fault) -> None:
        self.faults[path] = deque(kind if isinstance(kind, Fault) else Fault(kind) for kind in kinds)

    def fault(self, request: Request) -> Fault | None:
        queue = self.faults.get(request.path.partition("?")[0])
        return queue.popleft() if queue else self.always(request)

    def of(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path.partition("?")[0] == path]

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for a delayed acknowledgement
    home: ClassVar[Server]

    def do_GET(self) -> None:
        home = self.home
        path = self.path.partition("?")[0]
        start, end = self._range()
        request = Request(self.path, start, end, time.time(), dict(self.headers))
        with home.lock:
            fault = home.fault(request) or Fault("")
            request.fault = fault.kind
            home.requests.append(request)
        home.ending.wait(home.delay)
        if fault.kind == "stall":
            home.ending.wait(60)
            self.close_connection = True
            return
        if fault.kind == "garbled":
            self.wfile.write(b"\x00\x01 nothing like HTTP\r\n\r\n")
            self.close_connection = True
            return
        if fault.kind.isdigit():
            self._answer(request, int(fault.kind), fault.body, fault.headers)
            return
        if fault.kind == "html":
            self._answer(request, 200, HTML, {"Content-Type": "text/html"})
            return
        whole = home.files.get(path)
        if whole is None:
            self._answer(request, 404, b"", {})
            return
        if start is None or fault.kind == "whole":
            self._answer(request, 200, self._spoilt(whole, fault), fault.headers)
        elif start >= len(whole):
            self._answer(request, 416, b"", {})
        else:
            end = min(end if end is not None else len(whole), len(whole))
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(whole)}", **fault.headers}
            self._answer(request, 206, self._spoilt(whole[start:end], fault), headers, cut=fault.kind == "cut")

    def do_HEAD(self) -> None:
        """Sizes; without faults, and not counted."""
        whole = self.home.files.get(self.path.partition("?")[0])
        self.send_response_only(200 if whole is not None else 404)
        self.send_header("Content-Length", str(len(whole or b"")))
        self.end_headers()

    def _range(self) -> tuple[int | None, int | None]:
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        return (int(first) if first else None), (int(last) + 1 if last else None)

    def _spoilt(self, body: bytes, fault: Fault) -> bytes:
        if fault.kind == "short":
            return body[: len(body) // 2]
        if fault.kind == "flip":
            middle = len(body) // 2
            return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        return body

    def _answer(self, request: Request, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            body = body[: len(body) // 2]
            self.close_connection = True
        request.sent = len(body)  # before the client has them, or it could look too early
        try:
            self.wfile.write(body)
        except OSError:  # the client is gone
            request.sent = 0
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """A client that goes away, or is killed, is no error of the server."""


@contextmanager
def serving(home: Server | None = None) -> Iterator[Server]:
    """A server at `url` while the block runs."""
    home = home or Server()
    server = _Threads(("127.0.0.1", 0), type("Handler", (_Handler,), {"home": home}))
    home.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.002}, daemon=True)
    thread.start()
    try:
        yield home
    finally:
        home.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
