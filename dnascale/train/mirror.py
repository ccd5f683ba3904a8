"""Copies of checkpoints in an object store or another folder, from which a run goes on where its own folder is lost: checkpoint.mirror.

    URL/step-00001000/rank-00000-of-00002.safetensors
    URL/step-00001000/MANIFEST.json                     sent last: without it there is no checkpoint
    URL/config.yaml                                     of the run

Any place that fsspec knows: s3://, gs://, a path. Sent in a thread of rank 0, after the commit; what fails is a warning, and the next
checkpoint is tried again.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnascale.data.remote import is_remote
from dnascale.data.transport import without_secrets
from dnascale.errors import CheckpointError, UsageError, first_line
from dnascale.files import explained, sync, write_whole
from dnascale.train.checkpoint import Checkpoint, Newer, committed, step_of

_MANIFEST = "MANIFEST.json"
_CONFIG = "config.yaml"
#: How a store says that there is nothing, and not that it cannot be asked.
_NOTHING = (FileNotFoundError, NotADirectoryError)
HELD = ".mirrored-"  # before the name of a checkpoint that is on its way


class Mirror:
    """Sends checkpoints; the newest that waits, when one is under way."""

    def __init__(self, location: str, keep: int, warn: Callable[[str], None]) -> None:
        """Raises UsageError for a location that fsspec does not know."""
        self._files, self._root = _open(location)
        self._is_folder = not is_remote(location)
        self._shown, self._keep, self._warn = _shown(location), keep, warn
        self._waiting: Path | None = None  # links to a checkpoint's files
        self._going: Path | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, checkpoint: Path) -> None:
        """Of a committed checkpoint, whose files are linked first: it may be removed while they are on their way. Returns at once."""
        held = checkpoint.with_name(f"{HELD}{checkpoint.name}")
        with self._lock:
            self._waiting = None
            for left in checkpoint.parent.glob(f"{HELD}*"):  # what waited, or a killed process has left
                if left != self._going:
                    shutil.rmtree(left, ignore_errors=True)
            try:
                shutil.copytree(checkpoint, held, copy_function=_link)
            except OSError as error:
                self._warn(f"{checkpoint.name} is not sent to {self._shown}: {first_line(error)}; training goes on.")
                return
            self._waiting = held
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def catch_up(self, checkpoint: Path) -> None:
        """Sends a checkpoint that the run goes on from, unless it is there: a run that was killed may not have come to it."""
        with contextlib.suppress(Exception):  # each store has its own; the next checkpoint says what is wrong
            if checkpoint.name not in _steps(self._files, self._root):
                self.send(checkpoint)

    def finish(self, seconds: float | None = None) -> None:
        """Waits until what was given is there, or has failed; not longer than `seconds`."""
        if (thread := self._thread) is not None:
            thread.join(seconds)
            if thread.is_alive():
                self._warn(
                    f"the last checkpoint was not in {self._shown} after {seconds:.0f} s, and is not waited for: the next start here sends it."
                )

    def _work(self) -> None:
        while True:
            with self._lock:
                held, self._waiting = self._waiting, None
                self._going = held
                if held is None:
                    self._thread = None
                    return
            name = held.name.removeprefix(HELD)
            try:
                self._put(held, name)
                self._prune(name)
            except Exception as error:  # each store has its own
                self._warn(
                    f"{name} is not in {self._shown} ({type(error).__name__}: {first_line(error)}); training goes on, and the next "
                    "checkpoint is sent there again."
                )
            finally:
                shutil.rmtree(held, ignore_errors=True)

    def _put(self, held: Path, step: str) -> None:
        there = f"{self._root}/{step}"
        self._files.makedirs(there, exist_ok=True)
        names = [path.name for path in held.iterdir() if path.name != _MANIFEST]
        with contextlib.suppress(FileNotFoundError):  # of a checkpoint that lies in no run
            self._files.put_file(str(held.parent.parent / _CONFIG), f"{self._root}/{_CONFIG}")
        for name in sorted(names):
            self._files.put_file(str(held / name), f"{there}/{name}")
            if self._is_folder:
                sync(Path(there, name))
        if self._is_folder:  # where half a file can be seen, which no store shows
            write_whole(Path(there, _MANIFEST), (held / _MANIFEST).read_bytes())
        else:
            self._files.put_file(str(held / _MANIFEST), f"{there}/{_MANIFEST}")

    def _prune(self, newest: str) -> None:
        """Removes what is older than the newest ones up to `newest`, also what never became whole. Later steps are not this run's."""
        whole = [name for name in _steps(self._files, self._root) if name <= newest]
        stay = whole[-self._keep :]
        for name in _folders(self._files, self._root):
            if name < newest and name not in stay:
                # The manifest first: what is left of it is no checkpoint.
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}/{_MANIFEST}")
                self._files.rm(f"{self._root}/{name}", recursive=True)


def fetch_config(location: str, path: Path) -> bool:
    """Brings the configuration of the run whose checkpoints are there to `path`. Whether there is one.

    Raises CheckpointError when the mirror does not answer: without it a run would go on that may have been another.
    """
    files, root = _open(location)
    try:
        content = files.cat_file(f"{root}/{_CONFIG}")
    except _NOTHING:
        return False
    except Exception as error:  # each store has its own
        raise _no_answer(location, error, f"{path.parent} has no configuration") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise explained(error, path) from error
    return True


def fetch_newer(location: str, folder: Path, than: int | None) -> list[str]:
    """Brings the newest valid checkpoint of a mirror into `folder`, when it is of a later step `than` the newest valid one there
    (None: there is none); says what it did.

    Raises CheckpointError when there is no checkpoint here, and the mirror does not answer or none of its checkpoints can be fetched: to
    begin anew would be worse than to wait.
    """
    said: list[str] = []
    shown = _shown(location)
    try:
        files, root = _open(location)
        names = _steps(files, root)
    except UsageError:
        raise
    except Exception as error:
        if than is None:
            raise _no_answer(location, error, f"{folder} has no checkpoint") from None
        return [f"{_silence(location, error)}: the run goes on from its own checkpoints."]
    for name in reversed(names):
        if than is not None and step_of(Path(name)) <= than:
            break
        if name in {path.name for path in committed(folder)}:  # damaged here: it is set aside, and the mirror's taken
            shutil.rmtree(folder / f"damaged-{name}", ignore_errors=True)
            (folder / name).rename(folder / f"damaged-{name}")
        try:
            _get(files, f"{root}/{name}", folder / name)
        except Newer as error:
            raise CheckpointError(f"of {shown}: {error}") from None
        except CheckpointError as error:
            said.append(f"of {shown}: {error}")
            continue
        return [*said, f"{name} comes from {shown}"]
    if than is None and names:
        raise CheckpointError(
            f"{folder} has no checkpoint, and none of {shown} could be fetched: {' '.join(said)} Give the same command again, or leave out "
            "checkpoint.mirror to begin anew."
        )
    return said


def _silence(location: str, error: Exception) -> str:
    return f"{_shown(location)} does not answer ({type(error).__name__}: {first_line(error)})"


def _no_answer(location: str, error: Exception, missing: str) -> CheckpointError:
    return CheckpointError(
        f"{_silence(location, error)}, and {missing}: give the same command again when it does, or leave out checkpoint.mirror to begin anew."
    )


def _get(files: Any, there: str, final: Path) -> None:
    """Raises CheckpointError when it does not arrive whole."""
    work = final.with_name(f".{final.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for path in files.ls(there, detail=False):
            name = str(path).rpartition("/")[2]
            if name.startswith("."):  # half a manifest, of a process that was killed
                continue
            files.get_file(path, str(work / name))
            sync(work / name)
        Checkpoint(work).verify()
    except CheckpointError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except Exception as error:
        shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(f"{there} cannot be fetched ({type(error).__name__}: {first_line(error)}).") from error
    sync(work)
    work.rename(final)
    sync(final.parent)


def _open(location: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(location, skip_instance_cache=True)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"checkpoint.mirror={_shown(location)} is no place that can be written: {first_line(error)}"
        ) from None
    return files, str(root).rstrip("/")


def _folders(files: Any, root: str) -> list[str]:
    """Names of the folders of checkpoints in a mirror, oldest first."""
    files.invalidate_cache()
    try:
        paths = files.ls(root, detail=False)
    except _NOTHING:
        return []
    names = {str(path).rstrip("/").rpartition("/")[2] for path in paths}
    return sorted(name for name in names if name.startswith("step-"))


def _steps(files: Any, root: str) -> list[str]:
    """Those that are whole."""
    return [name for name in _folders(files, root) if _is_there(files, f"{root}/{name}/{_MANIFEST}")]


def _is_there(files: Any, path: str) -> bool:
    """Raises what the store raises; its own `exists` may take any failure for a no, and a checkpoint would be removed, or a run begun anew."""
    try:
        files.info(path)
    except _NOTHING:
        return False
    return True


def _link(source: str, target: str) -> None:
    """A second name for a file; a copy where the file system knows no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _shown(location: str) -> str:
    return without_secrets(location) if is_remote(location) else location
