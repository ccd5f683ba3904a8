"""Folders that appear whole or not at all, and what to say when the disk does not take them."""

import errno
import glob
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from dnascale.errors import DataError, DnascaleError, SpaceError, UsageError

_STAGING = ".partial-"


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` when the block ends, and goes when the block fails.

    Everything is on disk before the one rename. Raises UsageError when `out` exists and is not empty or cannot be written,
    SpaceError when the disk is full or a file may not grow that large.
    """
    check_new_folder(out)
    work = out.with_name(f".{out.name}{_STAGING}{_process_table()}-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        work.mkdir()
        yield work
        mode = work.stat().st_mode & 0o666  # safetensors' own writer makes files for their owner alone
        for folder, _, files in os.walk(work):
            for file in files:
                Path(folder, file).chmod(mode)
                sync(Path(folder, file))
            sync(Path(folder))
        work.replace(out)
        sync(out.parent)
    except Exception as error:
        if isinstance(error, DnascaleError) or not (isinstance(error, OSError) or no_space(error)):
            raise
        raise explained(error, out) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_new_folder(out: Path) -> None:
    """Raises UsageError when `out` cannot be what another folder is renamed to in the end, or is there and not empty."""
    if not out.name or out.name == "..":
        raise UsageError(f"{out} has no name of its own: name a folder to make.")
    if not str(out).isprintable():
        raise UsageError(f"{str(out)!a} has signs in it that cannot be printed, or is not UTF-8: choose another name.")
    try:
        if out.is_symlink():
            raise UsageError(f"{out} is a link, which no folder can replace: name the folder that it leads to.")
        if out.is_mount():
            raise UsageError(f"{out} is a mounted disk, which no folder can replace: name a folder in it.")
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise explained(error, out) from error
    if taken:
        what, other = ("exists", "name") if out.is_file() else ("exists and is not empty", "folder")
        raise UsageError(f"{out} {what}: choose another {other}, or remove it first.")


def hold(folder: Path, name: str = "lock", shared: bool = False, wait: bool = False) -> TextIO:
    """Claims `folder` for this process until the returned file is closed or the process ends, however it ends.

    `shared`: others may have it shared too. Raises UsageError when another process holds it, unless it is to `wait`. Some
    network file systems do not pass locks between hosts.
    """
    import fcntl

    file = (folder / f".{name}").open("a+")
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.seek(0)
        raise UsageError(
            f"{folder} is being written by another run ({file.read().strip()}): wait for it, or stop it."
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def read_tree(path: Path) -> dict[str, Any]:
    """What a run's config.yaml holds, as it stands there. Raises UsageError where that is no tree of keys."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as configuration: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{path} holds no configuration: it is empty or damaged. Restore it from a copy of the run.")
    return tree


def write_whole(path: Path, content: bytes, durable: bool = True) -> None:
    """Writes a small file that is seen either as it was or whole; if `durable`, also after a power cut."""
    # No process number: containers that share a disk have the same.
    work = path.with_name(f".{path.name}{_STAGING}{secrets.token_hex(4)}")
    try:
        work.write_bytes(content)
        if durable:
            sync(work)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def explained(error: Exception, path: Path, kept: str = "Nothing was kept of it") -> SpaceError | UsageError:
    """What an OSError, or a full disk in another's words, while writing `path` means to a user. `kept`: what is left of it when the disk is full, if that is known."""
    if no_space(error):
        near = next(folder for folder in (path, *path.parents) if folder.exists())
        then = f"{kept}; free" if kept else "Free"
        return SpaceError(
            f"no space left to write {path}: {room(error, near)}. {then} space and run the same command again."
        )
    return UsageError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.")


def unreadable(error: OSError, what: Path | str, hint: str = "") -> DataError:
    """What an OSError while reading `what` means to a user. `hint`: what else to say."""
    return DataError(f"{what} cannot be read: {error.strerror or error}{hint and '; '}{hint}.")


def changed_meanwhile(what: Path | str, again: str = "prepare") -> DataError:
    """What to say of an input that is not what it was when its reading began. `again`: what is to be done once more."""
    return DataError(f"{what} changed while it was read: {again} again when nothing writes to it.")


def room(error: BaseException, folder: Path) -> str:
    """How much there is, after an error for want of it: "12,345 bytes are free"."""
    limited = getattr(error, "errno", None) in (errno.EFBIG, errno.EDQUOT) or "File too large" in str(error)
    limit = " and a file-size limit (ulimit -f) or a quota is set" if limited else ""
    return f"{shutil.disk_usage(folder).free:,} bytes are free{limit}"


def no_space(error: BaseException) -> bool:
    """Whether an error says that the disk is full; safetensors reports it in words alone."""
    number = getattr(error, "errno", None)
    text = str(error)
    return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text


def json_digest(body: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, whatever the order of its keys: what an index or a manifest carries of itself."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    """Makes a file or folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(out: Path) -> None:
    """Removes staging folders for `out` whose process was killed, of those that this host or container can tell it of."""
    import psutil

    for left in out.parent.glob(glob.escape(f".{out.name}{_STAGING}{_process_table()}-") + "*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _process_table() -> str:
    """Tells the processes that are seen from here from those of other hosts and containers, which have the same numbers."""
    seen = socket.gethostname()
    with suppress(OSError):  # there are namespaces of processes on Linux alone
        seen += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(seen.encode()).hexdigest()[:8]
