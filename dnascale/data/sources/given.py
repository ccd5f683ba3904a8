"""What is given to this process and to those that it starts, and is written nowhere: standard input, credentials of URLs."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from typing import Any

from dnascale.data.transport import without_secrets
from dnascale.errors import DataError

STDIN = "-"
_STDIN_VARIABLE = "DNASCALE_STDIN"  # the file descriptor that standard input was
_PIPES_VARIABLE = "DNASCALE_PIPES"  # file descriptors that inputs are, as in /dev/fd/63
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_URLS_VARIABLE = "DNASCALE_URLS"  # JSON: location → URL


def keep_stdin() -> None:
    """Keeps standard input for whoever reads it, also where processes get another one. Raises DataError on a terminal."""
    if os.isatty(0):
        raise DataError("standard input (-) is a terminal: pipe sequences into it, or name files.")
    os.environ[_STDIN_VARIABLE] = str(os.dup(0))


def keep_descriptor(path: str) -> None:
    """If `path` is an open file of this process, as a shell's `<(command)` is, keeps it for the processes that it starts."""
    if match := _DESCRIPTOR.fullmatch(path):
        known = os.environ.get(_PIPES_VARIABLE, "").split()
        os.environ[_PIPES_VARIABLE] = " ".join(dict.fromkeys([*known, match[1]]))


def inherited() -> tuple[int, ...]:
    """The file descriptors that a process which reads inputs has to be started with."""
    kept = " ".join(os.environ.get(variable, "") for variable in (_STDIN_VARIABLE, _PIPES_VARIABLE))
    return tuple(int(number) for number in kept.split())


class Stdin(io.RawIOBase):
    """Standard input as it was kept, to be read once."""

    def __init__(self) -> None:
        self._fd = int(os.environ[_STDIN_VARIABLE])

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return b"".join(iter(lambda: self.read(1 << 20), b"")) if size < 0 else os.read(self._fd, size)

    def readinto(self, buffer: Any) -> int:
        block = self.read(len(buffer))
        buffer[: len(block)] = block
        return len(block)


def hidden(url: str) -> str:
    """A location that stands for `url` and holds no credentials: without user, password and query.

    What of the query tells one file from another is in a digest that is slow to guess. See `revealed`.
    """
    location = without_secrets(url)
    query = url.partition("?")[2]
    if query:
        location += "#" + hashlib.pbkdf2_hmac("sha256", query.encode(), location.encode(), 100_000, 8).hex()
    if location != url:
        known = json.loads(os.environ.get(_URLS_VARIABLE, "{}"))
        os.environ[_URLS_VARIABLE] = json.dumps(known | {location: url})
    return location


def revealed(location: str) -> str:
    """The URL that `location` stands for, in the process that called `hidden`, or one that it started.

    Raises:
        DataError: this process knows no such URL.
    """
    url = json.loads(os.environ.get(_URLS_VARIABLE, "{}")).get(location, location)
    if "#" in url and url == location:
        raise DataError(f"{without_secrets(location)}: what followed '?' in this URL is not known here; give it again.")
    return str(url)
