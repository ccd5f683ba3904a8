"""SHA-256 of what is read or written, taken beside it."""

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

_AT_ONCE = 1 << 20  # bytes that are handed over together: less would cost more than it takes to hash them
_AHEAD = 8  # of these wait, at most


class Sha256:
    """SHA-256 in a thread of its own: hashing leaves the interpreter to those who read and write meanwhile.

    What it is given must stay as it is until `hexdigest`. For little, no thread is started.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._waiting: list[bytes | memoryview] = []
        self._size = 0  # of these
        self._thread: ThreadPoolExecutor | None = None
        self._begun: deque[Future[None]] = deque()

    def update(self, data: bytes | memoryview) -> None:
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= _AT_ONCE:
            self._thread = self._thread or ThreadPoolExecutor(1)
            self._begun.append(self._thread.submit(self._hash, self._waiting))
            self._waiting, self._size = [], 0
            if len(self._begun) > _AHEAD:
                self._begun.popleft().result()

    def hexdigest(self) -> str:
        """Of all so far. Ends the thread."""
        if self._thread:
            self._thread.shutdown()
            self._thread = None
        while self._begun:
            self._begun.popleft().result()
        self._hash(self._waiting)
        self._waiting, self._size = [], 0
        return self._sha256.hexdigest()

    def _hash(self, pieces: list[bytes | memoryview]) -> None:
        for piece in pieces:
            self._sha256.update(piece)
