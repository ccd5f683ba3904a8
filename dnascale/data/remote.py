"""Data sets behind a URL: files are fetched whole into the cache folder, checked, and leased from there.

Bytes come through fsspec, in ranged pieces that are appended to a partial file, so that a cut connection costs one piece
and a killed process leaves what the next one goes on from. A file has its final name only when its size and its digest
are right. docs/reference/remote.md is for users.
"""

import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from dnascale.data.cache import Cache, Lease, Lock, Room, default_cache, lock_path, partial_path, wish_path
from dnascale.errors import DataError, DnascaleError, UsageError
from dnascale.files import explained

__all__ = ["Lease", "RemoteFile", "RemoteFolder", "Retry", "default_cache", "is_remote"]

#: Bytes asked for at a time: what a cut connection costs, and what a download keeps in memory.
PIECE = 8 << 20
#: Seconds for which a file whose size is not known before (dataset.json) is taken as it was fetched: processes that start
#: together fetch it once, and a later run does not train on a data set that has since been replaced.
FRESH = 60.0
#: Seconds to wait for room although nothing is arriving: a lease or a download may just be ending.
_PATIENCE = 1.0
_POLL = 0.02  # seconds between looks at a lock of another process
_LOOK = 0.5  # seconds between looks for room, each a scan of the cache

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL = re.compile(_SCHEME.pattern + r"[^\s'\"<>]*")  # inside a sentence
#: user:password@, also where the password holds a slash that should have been written %2F; a port is no password.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#@:\[\s]+:(?!\d*/)\S*@|[^/?#\s]*@)")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}

_LATER = "check the network and the server, then run the same command again; what has arrived is kept"
_ABSENT = "check the URL, or upload the data set again"
_DENIED = "check the credentials, and that they may read this file"
_DAMAGED = "it is damaged, or of another version of the data set; upload the data set again"
_REFUSED = "check the URL and how its storage is set up"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set, and what is known of it before it is here."""

    name: str  # relative to the data set's URL, forward slashes, e.g. train/shard-000003.tar
    bytes: int | None  # None: not known before (dataset.json)
    sha256: str | None  # hex


@dataclass(frozen=True)
class Retry:
    """When a download that fails is tried again: after a random part of min(cap, base * 2^k) seconds."""

    attempts: int = 8  # that fail one after the other; a piece that arrives starts the count again
    base: float = 0.5
    cap: float = 30.0
    stall: float = 60.0  # seconds that one piece may take


def is_remote(location: str) -> bool:
    """Whether `location` is a URL, not a path (nor a Windows drive)."""
    return bool(_SCHEME.match(location))


class RemoteFolder:
    """The files of one data set behind `url`, in the cache folder `cache` of at most `limit` bytes (None: no limit).

    `downloads` files are prefetched at a time. `deadline` bounds the seconds of one lease, and of one prefetch. The
    processes of a node share the cache, each with an object of its own; a forked child may go on with its parent's object,
    not with its leases. `folder` is where the files appear, `self.url` the URL without credentials.
    """

    def __init__(
        self,
        url: str,
        cache: Path,
        limit: int | None = None,
        downloads: int = 4,
        deadline: float = 900.0,
        retry: Retry | None = None,
        piece: int = PIECE,
    ) -> None:
        self._url = url
        self._cache = Cache(cache, limit)
        self._downloads = downloads
        self._deadline = deadline
        self._retry = retry or Retry()
        self._piece = piece
        self._processes: dict[int, _Process] = {}
        # Of the URL without credentials: with a new token it is the same data set.
        self.url = _without_secrets(url).rstrip("/")
        last = re.sub(r"[^\w.-]", "_", self.url.rpartition("/")[2]).lstrip(".")
        self.folder = cache / f"{last}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    @property
    def bytes_fetched(self) -> int:
        """Bytes that this process received; answers that it did not take are counted where their length is known."""
        return self._here.source.bytes

    @property
    def files_fetched(self) -> int:
        """Files that this process fetched whole."""
        return self._here.files

    def lease(self, file: RemoteFile) -> Lease:
        """The file, whole and checked. Waits for a download of it that is under way, in any process of the node.

        Raises DataError when it cannot be had or does not fit the cache, UsageError when a package is missing or the cache
        cannot be written, SpaceError when the disk is full.
        """
        path = self._path(file)
        lock = Lock(lock_path(path))
        attempts = self._attempts(file)
        try:
            while True:
                attempts.until(lambda: lock.take(exclusive=False), "another download of it is still under way")
                if self._present(file):
                    # Eviction goes by atime; mtime stays the time of the download.
                    with suppress(PermissionError):
                        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                    self._here.leased(file.name)
                    return Lease(path, lock, self._here.look_again)
                attempts.until(lambda: lock.take(exclusive=True), "other processes are still using it")
                if not self._present(file):
                    self._fetch_now(file, path, attempts)
        except BaseException as error:
            lock.close()
            if isinstance(error, OSError):
                raise explained(error, path) from error
            raise

    def prefetch(self, files: Sequence[RemoteFile]) -> None:
        """Downloads `files`, soonest first, in the background, as far as they fit; replaces the files wished for before.

        No process removes them from the cache for a prefetch of its own. Files of unknown size are left to `lease`, and so
        is every error.
        """
        here = self._here
        wishes: dict[str, _Wish] = {}
        with here.changed:
            for file in files:
                with suppress(DnascaleError):
                    if file.bytes is not None:
                        old = here.wishes.pop(file.name, None)
                        wishes[file.name] = wish = old or _Wish(file, Lock(wish_path(self._path(file))))
                        wish.lock.take(exclusive=False)
            for wish in here.wishes.values():
                wish.lock.close()
            here.wishes = wishes
            while wishes and len(here.threads) < self._downloads and not here.closed.is_set():
                here.threads.append(threading.Thread(target=self._work, args=[here], name="prefetch", daemon=True))
                here.threads[-1].start()
        here.look_again()

    def close(self) -> None:
        """Ends prefetching. A download under way stops at its next piece; leases stay."""
        self._here.closed.set()
        self.prefetch([])

    @property
    def _here(self) -> "_Process":
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Process(_Source(self._url)))

    def _path(self, file: RemoteFile) -> Path:
        # Names come from a downloaded file: they must not lead out of the folder, nor to locks and partial files.
        if "\\" in file.name or any(part.startswith(".") or not part for part in file.name.split("/")):
            raise DataError(
                f"{self.url} lists a file '{file.name}', which is no place inside a data set and could "
                "overwrite something else: do not use this data set."
            )
        return self.folder / PurePosixPath(file.name)

    def _present(self, file: RemoteFile) -> bool:
        try:
            stat = self._path(file).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if file.bytes is None:
            return file.name in self._here.seen or time.time() - stat.st_mtime < FRESH
        return stat.st_size == file.bytes

    def _attempts(self, file: RemoteFile) -> "_Attempts":
        here = self._here
        return _Attempts(_without_secrets(here.source.address(file.name)), self._retry, self._deadline, here.closed)

    def _fetch_now(self, file: RemoteFile, path: Path, attempts: "_Attempts") -> None:
        """Downloads for a lease. The caller holds the file's lock exclusively."""
        content = None
        if file.bytes is None:
            content = self._ask(file.name, None, None, None, attempts)
            file = replace(file, bytes=len(content))
        self._make_room(file, path, attempts)
        self._fill(file, path, attempts, content)

    def _make_room(self, file: RemoteFile, path: Path, attempts: "_Attempts") -> None:
        """Waits for room as long as other files are arriving, for those can go once they are here. Raises DataError."""
        size = file.bytes or 0
        limit = size if self._cache.limit is None else self._cache.limit
        wishes = [self._path(wish.file) for wish in list(self._here.wishes.values())]
        end = time.monotonic() + _PATIENCE

        def look() -> bool:
            nonlocal end
            room: Room = self._cache.reserve(path, size, wishes, urgent=True)
            if room.arriving:
                end = time.monotonic() + _PATIENCE
            if not room.fits and (size > limit or time.monotonic() > end):
                raise DataError(
                    f"{attempts.url} ({size:,} bytes) does not fit the cache {self._cache.root}, whose limit is {limit:,} "
                    f"bytes, of which the processes of this node are using {room.used:,}: raise data.cache_limit_gb, or lower "
                    "data.lanes."
                )
            return room.fits

        attempts.until(look, "downloads of other processes are filling the cache", _LOOK / 4)

    def _fill(self, file: RemoteFile, path: Path, attempts: "_Attempts", content: bytes | None = None) -> None:
        """Downloads the rest of a partial file, checks all of it and names it. The caller holds the lock exclusively."""
        size = file.bytes or 0
        partial = partial_path(path, size)
        try:
            for last in (False, True):
                digest = self._append(file.name, size, partial, attempts, content)
                if file.sha256 in (None, digest):
                    break
                content = None
                os.truncate(partial, 0)
                attempts.failed(_Fault("bytes that do not have the file's SHA-256", _DAMAGED if last else ""))
            self._cache.finish(path, size)
        except OSError:  # of the disk; those of the network are attempts
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        with self._here.changed:
            self._here.files += 1

    def _append(self, name: str, size: int, partial: Path, attempts: "_Attempts", content: bytes | None) -> str:
        """Downloads a partial file from where it ends; the SHA-256 of all of it, hex."""
        with partial.open("r+b") as out:
            digest = hashlib.file_digest(out, "sha256")
            done = out.tell()
            while done < size:
                end = min(done + self._piece, size)
                content = content or self._ask(name, done, end, size, attempts)
                if len(content) > end - done:  # all of the file, from a server that does not know ranges
                    out.seek(0)
                    done, digest = 0, hashlib.sha256()
                out.write(content)
                out.flush()  # so that it is there for the next process if this one is killed
                digest.update(content)
                done, content = done + len(content), None
            return digest.hexdigest()

    def _ask(self, name: str, start: int | None, end: int | None, size: int | None, attempts: "_Attempts") -> bytes:
        """Bytes [start, end) of a file, or all its `size` bytes; whatever it holds when these are None."""
        while True:
            try:
                content = self._here.source.read(name, start, end, attempts.seconds())
            except DnascaleError:
                raise
            except Exception as error:
                fault = _fault(error, self._retry.stall)
            else:
                asked = None if start is None or end is None else end - start
                if content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    fault = _Fault(
                        "an HTML page instead of data, as from a login page or a network that asks to sign in"
                    )
                elif asked is not None and len(content) not in (asked, size):
                    fault = _Fault(
                        f"{len(content):,} bytes where {asked:,} were asked for, as from a file that is shorter than listed"
                    )
                else:
                    attempts.progress()
                    return content
            # Outside the handler, so that the transport's error, which may hold credentials, is not chained to ours.
            attempts.failed(fault)

    def _work(self, here: "_Process") -> None:
        """One thread of `prefetch`."""
        while not here.closed.is_set():
            chosen = None
            with suppress(DnascaleError, OSError):
                chosen = self._choose(here)
            if chosen is None:
                with here.changed:
                    here.changed.wait(_LOOK)
                continue
            wish, lock = chosen
            with lock:
                try:
                    self._fill(wish.file, self._path(wish.file), self._attempts(wish.file))
                except Exception:
                    wish.failed = True  # `lease` meets the error itself, and raises it
            here.look_again()

    def _choose(self, here: "_Process") -> "tuple[_Wish, Lock] | None":
        """The soonest wish that is not here and that nobody downloads: with its lock, and room for it."""
        with here.choosing:
            if time.monotonic() < here.full_until:
                return None
            with here.changed:
                wishes = list(here.wishes.values())
                for wish in wishes:  # again, because a process that made room may have had the lock for a moment
                    wish.lock.take(exclusive=False)
            for wish in wishes:
                if wish.failed or self._present(wish.file):
                    continue
                path = self._path(wish.file)
                lock = Lock(lock_path(path))
                if lock.take(exclusive=True) and not self._present(wish.file):
                    if self._cache.reserve(path, wish.file.bytes or 0).fits:
                        return wish, lock
                    here.full_until = time.monotonic() + _LOOK
                    lock.close()
                    return None
                lock.close()
        return None


@dataclass
class _Wish:
    """A file to prefetch. Its lock tells other processes not to remove it."""

    file: RemoteFile
    lock: Lock
    failed: bool = False


@dataclass
class _Process:
    """What must not cross a fork: threads, locks, connections, and what they are about."""

    source: "_Source"
    wishes: dict[str, _Wish] = field(default_factory=dict)  # soonest first
    seen: set[str] = field(default_factory=set)  # files leased before
    files: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    choosing: threading.Lock = field(default_factory=threading.Lock)
    full_until: float = 0.0  # when to look for room again
    closed: threading.Event = field(default_factory=threading.Event)

    def leased(self, name: str) -> None:
        """A wish has come true."""
        with self.changed:
            self.seen.add(name)
            if wish := self.wishes.pop(name, None):
                wish.lock.close()

    def look_again(self) -> None:
        """Room or wishes may have changed."""
        with self.changed:
            self.full_until = 0.0
            self.changed.notify_all()


@dataclass(frozen=True)
class _Fault:
    """What went wrong with one attempt. With advice, asking again is of no use."""

    words: str
    advice: str = ""
    wait: float = 0.0  # seconds that the server asks to be left alone


class _Attempts:
    """How often a file was tried, what that met, and the time that is left. Raises DataError when it is enough."""

    def __init__(self, url: str, retry: Retry, deadline: float, closed: threading.Event) -> None:
        self.url = url
        self._retry = retry
        self._deadline = deadline
        self._end = time.monotonic() + deadline
        self._closed = closed
        self._all = 0
        self._row = 0
        self._met: dict[str, None] = {}

    def seconds(self) -> float:
        """The time that the next piece may take."""
        self._pause(0)
        if (left := self._end - time.monotonic()) <= 0:
            raise self._error(_LATER, late=True)
        return min(left, self._retry.stall)

    def progress(self) -> None:
        self._row = 0

    def failed(self, fault: _Fault) -> None:
        """Waits before the next attempt."""
        self._all += 1
        self._row += 1
        self._met.pop(fault.words, None)
        self._met[fault.words] = None
        if fault.advice or self._row >= self._retry.attempts:
            raise self._error(fault.advice or _LATER)
        longest = min(self._retry.cap, self._retry.base * 2 ** (self._row - 1))
        # Not from the seeded generator: it is the same in every process, and they would all ask at the same moment.
        wait = max(random.SystemRandom().uniform(0, longest), fault.wait)
        if time.monotonic() + wait > self._end:
            raise self._error(_LATER, late=True)
        self._pause(wait)

    def until(self, done: Callable[[], bool], reason: str, every: float = _POLL) -> None:
        """Waits for what other processes do; `reason` says what keeps it from being done."""
        while not done():
            if time.monotonic() > self._end:
                self._met[reason] = None
                raise self._error(_LATER, late=True)
            self._pause(every)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise DataError(f"{self.url} was not downloaded, because the data set was closed: open it again.")

    def _error(self, advice: str, late: bool = False) -> DataError:
        attempts = f"{self._all} attempt{'s' * (self._all != 1)}"
        within = f"{self._deadline:g} s ({attempts})" if late else attempts
        met = "; ".join(list(self._met)[-3:]) or "it is arriving too slowly"
        return DataError(f"{self.url} could not be downloaded in {within}: {met}. The run needs this file: {advice}.")


class _Source:
    """The file system behind a URL, opened when first read."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._files: Any = None
        self._lock = threading.Lock()
        self._protocol = url.partition("://")[0].lower()
        self.bytes = 0

    def address(self, name: str) -> str:
        """The URL of a file, with the credentials that the data set's URL holds."""
        if self._protocol in ("http", "https"):
            base, mark, query = self._url.partition("?")
            return f"{base.rstrip('/')}/{quote(name)}{mark}{query}"
        return f"{self._url.rstrip('/')}/{name}"

    def read(self, name: str, start: int | None, end: int | None, seconds: float) -> bytes:
        """Bytes [start, end) of a file, or what the server sends instead. Raises whatever the transport raises."""
        from fsspec.asyn import sync

        with self._lock:
            self._files = files = self._files or self._open()
        path = files._strip_protocol(self.address(name))
        if files.async_impl:
            content = sync(files.loop, files._cat_file, path, start=start, end=end, timeout=seconds)
        else:  # has a time limit of its own, or none
            options = {"cache_type": "none"} if self._protocol == "hf" else {}  # it would read ahead, for nothing
            content = files.cat_file(path, start, end, **options)
        with self._lock:
            self.bytes += len(content)
        return bytes(content)

    def _open(self) -> Any:
        from fsspec.config import apply_config
        from fsspec.core import url_to_fs
        from fsspec.registry import get_filesystem_class

        options: dict[str, dict[str, Any]] = {}
        if self._protocol in ("http", "https"):
            # Ranges are of the file's own bytes; and proxies are where everybody looks for them.
            options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}}
        elif self._protocol in ("s3", "s3a"):
            options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
        try:
            given = apply_config(get_filesystem_class(self._protocol), {})  # the user's own settings
            merged = {key: {**given.get(key, {}), **value} for key, value in options.items()}
            files = url_to_fs(self._url, skip_instance_cache=True, **merged)[0]
        except ImportError:
            package = _PACKAGES.get(self._protocol, "another package")
            raise UsageError(f"reading {self._protocol}:// needs {package}: pip install 'dnascale[cloud]'") from None
        except ValueError as error:
            if "Protocol not known" not in str(error):
                raise
            raise UsageError(
                f"{_without_secrets(self._url)} cannot be read, {self._protocol}:// is not known: use https://, s3://, gs:// "
                "or hf://."
            ) from None
        if hasattr(files, "retries"):
            files.retries = 1  # we are the ones who try again, and who know how long the server wants to be left alone
        return files


def _fault(error: Exception, stall: float) -> _Fault:
    """What an error of a transport means, whichever of fsspec's it is."""
    causes = list(_causes(error))
    status, code, headers = next((answer for cause in causes if (answer := _answer(cause))[0]), (None, "", {}))
    text = _URL.sub(lambda url: _without_secrets(url[0]), str(error))
    words = f"{type(error).__name__}: {' '.join(text.split())}"[:300].rstrip(": ")
    if status:
        with suppress(ValueError):
            words = f"HTTP {status} {HTTPStatus(status).phrase}"
        words += f" ({code})" * bool(code)
    # A garbled or cut answer, which aiohttp gives a status of its own.
    if any(type(cause).__module__ == "aiohttp.http_exceptions" for cause in causes):
        return _Fault(words)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return _Fault(words if status else "not found", _ABSENT)
    # gcsfs says 403 in words alone; the names below are botocore's, google.auth's, ssl's and aiohttp's.
    kinds = {type(cause).__name__ for cause in causes}
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or str(error).startswith("Forbidden")
        or kinds & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
    ):
        return _Fault(words, _DENIED)
    if code in ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"):
        return _Fault(words, wait=_retry_after(headers))
    if status:
        # 416: the file is shorter than what is known of it, which a stale mirror may get over.
        passing = status in (408, 416, 425, 429) or status >= 500
        return _Fault(words, "" if passing else _REFUSED, _retry_after(headers) if status in (429, 503) else 0.0)
    if kinds & {"SSLCertVerificationError", "ClientConnectorCertificateError"}:
        return _Fault(words, "check the clock and the certificates of this machine")
    if kinds & {"ParamValidationError", "ProfileNotFound", "ConfigParseError"} or isinstance(
        error, ValueError | TypeError | NotImplementedError | AttributeError | ImportError | IsADirectoryError
    ):
        return _Fault(words, _REFUSED)
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return _Fault(f"no answer within {stall:g} s")
    return _Fault(words)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: BaseException) -> tuple[int | None, str, Mapping[str, str]]:
    """HTTP status, error code and headers in an error of botocore, of httpx (Hugging Face), of aiohttp or gcsfs."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        meta = response.get("ResponseMetadata", {})
        return meta.get("HTTPStatusCode"), response.get("Error", {}).get("Code", ""), meta.get("HTTPHeaders", {})
    if response is not None:
        return response.status_code, "", response.headers
    status = getattr(error, "code" if type(error).__name__ == "HttpError" else "status", None)
    return (status if isinstance(status, int) else None), "", getattr(error, "headers", None) or {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: given as seconds or as a date."""
    value = str(headers.get("Retry-After") or headers.get("retry-after") or "0")
    with suppress(ValueError, TypeError):
        if value.strip().isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def _without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment: what may be printed."""
    return re.sub(r"[?#].*", "", _LOGIN.sub("", url), flags=re.DOTALL)
