"""Data sets behind a URL: files are fetched whole into the cache folder, checked, and leased from there.

Bytes come through fsspec, in ranged pieces that are appended to a partial file, so that a cut connection costs one piece
and a killed process leaves what the next one goes on from. A file has its final name only when its size and its digest
are right. docs/reference/remote.md is for users.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from dnascale.data.cache import Cache, Lease, Lock, Room, default_cache, lock_path, partial_path, wish_path
from dnascale.data.transport import DAMAGED, SCHEME, Attempts, Fault, Retry, Source, fault_of, without_secrets
from dnascale.errors import DataError, DnascaleError
from dnascale.files import explained

__all__ = ["Lease", "RemoteFile", "RemoteFolder", "Retry", "default_cache", "is_remote"]

#: Bytes asked for at a time: what a cut connection costs, and what a download keeps in memory.
PIECE = 8 << 20
#: Seconds for which a file whose size is not known before (dataset.json) is taken as it was fetched: processes that start
#: together fetch it once, and a later run does not train on a data set that has since been replaced.
FRESH = 60.0
#: Seconds to wait for room although nothing is arriving: a lease or a download may just be ending.
_PATIENCE = 1.0
_LOOK = 0.5  # seconds between looks for room, each a scan of the cache


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set, and what is known of it before it is here."""

    name: str  # relative to the data set's URL, forward slashes, e.g. train/shard-000003.tar
    bytes: int | None  # None: not known before (dataset.json)
    sha256: str | None  # hex


def is_remote(location: str) -> bool:
    """Whether `location` is a URL, not a path (nor a Windows drive)."""
    return bool(SCHEME.match(location))


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
        self.url = without_secrets(url).rstrip("/")
        last = re.sub(r"[^\w.-]", "_", self.url.rpartition("/")[2]).lstrip(".")
        self.folder = cache / f"{last}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process begins with no downloads and no leases."""
        return self.__dict__ | {"_processes": {}}

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
                    # Of the process that closes it: a forked child must not wait for a lock that a thread of its parent held.
                    return Lease(path, lock, lambda: self._here.look_again())
                # Another process may have fetched it meanwhile, and keep it in use until this one gets on.
                attempts.until(
                    lambda: self._present(file) or lock.take(exclusive=True), "other processes are still using it"
                )
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

    def reject(self, file: RemoteFile) -> None:
        """Has a file that was found damaged here fetched anew by the next lease."""
        path = self._path(file)
        with suppress(OSError):
            lock_path(path).write_text("")
            if file.sha256 is None:
                path.unlink()

    def close(self) -> None:
        """Ends prefetching. A download under way stops at its next piece; leases stay."""
        self._here.closed.set()
        self.prefetch([])

    @property
    def _here(self) -> "_Process":
        pid = os.getpid()
        return self._processes.get(pid) or self._processes.setdefault(pid, _Process(Source(self._url)))

    def _path(self, file: RemoteFile) -> Path:
        # Names come from a downloaded file: they must not lead out of the folder, nor to locks and partial files.
        if "\\" in file.name or any(part.startswith(".") or not part for part in file.name.split("/")):
            raise DataError(
                f"{self.url} lists a file '{file.name}', which is no place inside the data set, so it is not downloaded. If "
                "these are indexed tars, index them with --out of their own folder, and upload that."
            )
        return self.folder / PurePosixPath(file.name)

    def _present(self, file: RemoteFile) -> bool:
        """Whether it is here: the very file, and not one of the same size from before the data set was replaced."""
        path = self._path(file)
        try:
            stat, sha256 = path.stat(), lock_path(path).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if file.bytes is None:
            return file.name in self._here.seen or 0 <= time.time() - stat.st_mtime < FRESH
        return stat.st_size == file.bytes and file.sha256 in (None, sha256)

    def _attempts(self, file: RemoteFile) -> Attempts:
        here = self._here
        return Attempts(without_secrets(here.source.address(file.name)), self._retry, self._deadline, here.closed)

    def _fetch_now(self, file: RemoteFile, path: Path, attempts: Attempts) -> None:
        """Downloads for a lease. The caller holds the file's lock exclusively."""
        content = None
        if file.bytes is None:
            content = self._ask(file.name, None, None, None, attempts)
            file = replace(file, bytes=len(content))
        self._make_room(file, path, attempts)
        self._fill(file, path, attempts, content)

    def _make_room(self, file: RemoteFile, path: Path, attempts: Attempts) -> None:
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

    def _fill(self, file: RemoteFile, path: Path, attempts: Attempts, content: bytes | None = None) -> None:
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
                attempts.failed(Fault("bytes that do not have the file's SHA-256", DAMAGED if last else ""))
            self._cache.finish(path, size, file.sha256)
        except OSError:  # of the disk; those of the network are attempts
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        with self._here.changed:
            self._here.files += 1

    def _append(self, name: str, size: int, partial: Path, attempts: Attempts, content: bytes | None) -> str:
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

    def _ask(self, name: str, start: int | None, end: int | None, size: int | None, attempts: Attempts) -> bytes:
        """Bytes [start, end) of a file, or all its `size` bytes; whatever it holds when these are None."""
        while True:
            try:
                content = self._here.source.read(name, start, end, attempts.seconds())
            except DnascaleError:
                raise
            except Exception as error:
                fault = fault_of(error, self._retry.stall)
            else:
                asked = None if start is None or end is None else end - start
                if content[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
                    fault = Fault(
                        "an HTML page instead of data, as from a login page or a network that asks to sign in"
                    )
                elif asked is not None and len(content) not in (asked, size):
                    fault = Fault(
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

    source: Source
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
