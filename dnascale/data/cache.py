"""The cache folder that the processes of a node share: its locks, and its limit in bytes.

Beside a cached file NAME stand `.NAME.lock` and `.NAME.wish`, and while it arrives `.NAME.<its bytes>.partial`.
NAME.lock is held exclusively by who downloads or removes the file, shared by who reads it. NAME.wish is held shared by
who will read it soon. Locks are flocks: they vanish with their process, however it dies. They are never removed: a process
could hold the lock of a removed file while another makes the file anew and locks that.
"""

import fcntl
import os
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from dnascale.errors import UsageError
from dnascale.files import explained, no_space

#: The end of the name of a data set's folder; nothing outside such folders is counted or removed.
_OURS = re.compile(r"-[0-9a-f]{12}$")
_LOCK = re.compile(r"\.(.+)\.lock$")
_PARTIAL = re.compile(r"\.(.+)\.(\d+)\.partial$")


def default_cache() -> Path:
    """$DNASCALE_CACHE, or dnascale in the user's cache folder."""
    if given := os.environ.get("DNASCALE_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dnascale"


def lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def wish_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.wish")


def partial_path(path: Path, size: int) -> Path:
    return path.with_name(f".{path.name}.{size}.partial")


class Lock:
    """A flock on a file of its own, made when missing. Held until `close`, or until the process ends.

    Two of them on one path exclude each other in one process as between two. A forked child does not hold its parent's.
    """

    _all: ClassVar["weakref.WeakSet[Lock]"] = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        Lock._all.add(self)

    def take(self, exclusive: bool, wait: bool = False) -> bool:
        """Takes the lock, or changes its kind; False when another holds it, and then nothing is held any more.

        Raises UsageError where the file system has no locks or the file cannot be made, SpaceError when the disk is full.
        """
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            fcntl.flock(self._file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            if no_space(error):
                raise explained(error, self.path) from error
            raise UsageError(
                f"{self.path} cannot be locked ({error.strerror}), and processes that share the cache would meet half files: "
                "choose a cache folder on a local disk with DNASCALE_CACHE or data.cache."
            ) from error
        return True

    def close(self) -> None:
        file, self._file = self._file, None
        if file:
            file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def _close_inherited(cls) -> None:
        # A child's copy of the descriptor would keep the lock held after its parent, who took it, has let go.
        for lock in list(cls._all):
            lock.close()


os.register_at_fork(after_in_child=Lock._close_inherited)


class Lease:
    """A local, whole file that no process removes while the lease is open."""

    def __init__(self, path: Path, lock: Lock, closed: Callable[[], None]) -> None:
        self.path = path
        self._lock = lock
        self._closed: Callable[[], None] | None = closed

    def close(self) -> None:
        self._lock.close()
        closed, self._closed = self._closed, None
        if closed:
            closed()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Room:
    """Whether a file fits; the bytes of the other files that are left; whether one of them is still arriving."""

    fits: bool
    used: int
    arriving: bool


@dataclass
class _Entry:
    """What the cache holds of one data file: the file, partials of it, or both."""

    path: Path
    bytes: int = 0
    used: int = 0  # when last leased or written, ns
    files: list[Path] = field(default_factory=list)
    arriving: bool = False

    def add(self, file: Path, size: int | None) -> None:
        self.arriving |= size is not None
        try:
            stat = file.stat()
        except FileNotFoundError:  # its owner has just given it up
            return
        self.bytes += stat.st_size if size is None else size
        self.used = max(self.used, stat.st_atime_ns, stat.st_mtime_ns)
        self.files.append(file)


class Cache:
    """The files of all data sets below `root`, kept within `limit` bytes (None: without limit)."""

    def __init__(self, root: Path, limit: int | None) -> None:
        self.root = root
        self.limit = limit

    def reserve(self, path: Path, size: int, wishes: Sequence[Path] = (), urgent: bool = False) -> Room:
        """Makes the partial file of `path`, once its `size` bytes fit; the caller holds path's lock exclusively.

        Least recently used files go first, never one that is leased or arriving. Files that some process wishes for go
        only when `urgent`: first this process' own `wishes` (soonest first), the last wanted before the others.
        """
        with self._alone():
            for old in path.parent.iterdir():
                match = _PARTIAL.match(old.name)
                if match and match[1] == path.name and int(match[2]) != size:
                    old.unlink()
            path.unlink(missing_ok=True)
            room = self._make_room(path, size, wishes, urgent)
            if room.fits:
                partial_path(path, size).touch()
            return room

    def finish(self, path: Path, size: int, sha256: str | None) -> None:
        """Gives the partial file its final name; its lock file tells what it was compared with."""
        lock_path(path).write_text(sha256 or "")
        # Alone, because a scan that meets a renaming may see neither name, and count too little.
        with self._alone():
            partial_path(path, size).replace(path)

    def _alone(self) -> Lock:
        lock = Lock(self.root / ".lock")
        lock.take(exclusive=True, wait=True)
        return lock

    def _make_room(self, path: Path, size: int, wishes: Sequence[Path], urgent: bool) -> Room:
        if self.limit is None:
            return Room(True, 0, False)
        left = {entry.path: entry for entry in self._entries() if entry.path != path}
        place = {wish: number for number, wish in enumerate(wishes)}
        by_use = sorted(left.values(), key=lambda entry: entry.used)
        own = sorted((entry for entry in by_use if entry.path in place), key=lambda entry: -place[entry.path])
        used = sum(entry.bytes for entry in by_use)
        for entries, wished in ((by_use, False), (own, True), (reversed(by_use), True)):
            if wished and not urgent:
                break
            for entry in entries:
                if used + size <= self.limit:
                    break
                if entry.path in left and _evict(entry, wished):
                    used -= left.pop(entry.path).bytes
        return Room(used + size <= self.limit, used, any(entry.arriving for entry in left.values()))

    def _entries(self) -> Iterable[_Entry]:
        for folder in self.root.iterdir():
            if not _OURS.search(folder.name):
                continue
            for where, _, names in os.walk(folder):
                entries = {match[1]: _Entry(Path(where, match[1])) for name in names if (match := _LOCK.match(name))}
                for name in names:
                    if name in entries:
                        entries[name].add(Path(where, name), None)
                    elif (match := _PARTIAL.match(name)) and match[1] in entries:
                        entries[match[1]].add(Path(where, name), int(match[2]))
                yield from (entry for entry in entries.values() if entry.files)


def _evict(entry: _Entry, wished: bool) -> bool:
    """Removes a file that nobody leases or downloads, and, unless `wished`, nobody wishes for."""
    with Lock(lock_path(entry.path)) as lock, Lock(wish_path(entry.path)) as wish:
        if not lock.take(exclusive=True) or not (wished or wish.take(exclusive=True)):
            return False
        for file in entry.files:
            file.unlink(missing_ok=True)
        return True
