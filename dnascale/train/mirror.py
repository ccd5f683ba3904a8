"""Copies of checkpoints in an object store or another folder, from which a run goes on where its own folder is lost: checkpoint.mirror.

    URL/step-00001000/rank-00000-of-00002.safetensors
    URL/step-00001000/MANIFEST.json                     sent last: without it there is no checkpoint

Any place that fsspec knows: s3://, gs://, a path. Sent in a thread of rank 0, after the commit; what fails is a warning, and the next
checkpoint is tried again.
"""

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnascale.data.remote import is_remote
from dnascale.data.transport import without_secrets
from dnascale.errors import CheckpointError, UsageError
from dnascale.files import sync
from dnascale.train.checkpoint import Checkpoint, committed, step_of

_MANIFEST = "MANIFEST.json"


class Mirror:
    """Sends checkpoints; the newest that waits, when one is under way."""

    def __init__(self, location: str, keep: int, warn: Callable[[str], None]) -> None:
        """Raises UsageError for a location that fsspec does not know."""
        self._files, self._root = _open(location)
        self._shown, self._keep, self._warn = _shown(location), keep, warn
        self._waiting: Path | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, checkpoint: Path) -> None:
        """Of a committed checkpoint; returns at once."""
        with self._lock:
            self._waiting = checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Waits until what was given is there, or has failed."""
        if (thread := self._thread) is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                checkpoint, self._waiting = self._waiting, None
                if checkpoint is None:
                    self._thread = None
                    return
            try:
                self._put(checkpoint)
                self._prune()
            except Exception as error:  # each store has its own
                self._warn(
                    f"{checkpoint.name} is not in {self._shown} ({type(error).__name__}: {_first_line(error)}); training goes on, and the "
                    "next checkpoint is sent there again."
                )

    def _put(self, checkpoint: Path) -> None:
        there = f"{self._root}/{checkpoint.name}"
        self._files.makedirs(there, exist_ok=True)
        names = [path.name for path in checkpoint.iterdir() if path.name != _MANIFEST]
        for name in [*sorted(names), _MANIFEST]:
            self._files.put_file(str(checkpoint / name), f"{there}/{name}")

    def _prune(self) -> None:
        for name in _steps(self._files, self._root)[: -self._keep]:
            # The manifest first: what is left of it is no checkpoint.
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}/{_MANIFEST}")
            self._files.rm(f"{self._root}/{name}", recursive=True)


def fetch_newer(location: str, folder: Path, than: int | None) -> list[str]:
    """Brings the newest valid checkpoint of a mirror into `folder`, when it is of a later step `than` the newest valid one there
    (None: there is none); says what it did.

    Raises CheckpointError when the mirror does not answer and there is no checkpoint here: to begin anew would be worse than to wait.
    """
    said: list[str] = []
    shown = _shown(location)
    try:
        files, root = _open(location)
        names = _steps(files, root)
    except UsageError:
        raise
    except Exception as error:
        sentence = f"{shown} does not answer ({type(error).__name__}: {_first_line(error)})"
        if than is None:
            raise CheckpointError(
                f"{sentence}, and {folder} has no checkpoint: give the same command again when it does, or leave out checkpoint.mirror to begin anew."
            ) from None
        return [f"{sentence}: the run goes on from its own checkpoints."]
    for name in reversed(names):
        if than is not None and step_of(Path(name)) <= than:
            break
        if name in {path.name for path in committed(folder)}:  # damaged here: it is set aside, and the mirror's taken
            shutil.rmtree(folder / f"damaged-{name}", ignore_errors=True)
            (folder / name).rename(folder / f"damaged-{name}")
        try:
            _get(files, f"{root}/{name}", folder / name)
        except CheckpointError as error:
            said.append(f"of {shown}: {error}")
            continue
        return [*said, f"{name} comes from {shown}"]
    return said


def _get(files: Any, there: str, final: Path) -> None:
    """Raises CheckpointError when it does not arrive whole."""
    work = final.with_name(f".{final.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        for path in files.ls(there, detail=False):
            name = str(path).rpartition("/")[2]
            files.get_file(path, str(work / name))
            sync(work / name)
        Checkpoint(work).verify()
    except CheckpointError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    except Exception as error:
        shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(f"{there} cannot be fetched ({type(error).__name__}: {_first_line(error)}).") from error
    sync(work)
    work.rename(final)
    sync(final.parent)


def _open(location: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        files, root = url_to_fs(location, skip_instance_cache=True)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"checkpoint.mirror={_shown(location)} is no place that can be written: {_first_line(error)}"
        ) from None
    return files, str(root).rstrip("/")


def _steps(files: Any, root: str) -> list[str]:
    """Names of the whole checkpoints of a mirror, oldest first."""
    files.invalidate_cache()
    if not files.exists(root):
        return []
    names = {str(path).rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False)}
    return sorted(name for name in names if name.startswith("step-") and files.exists(f"{root}/{name}/{_MANIFEST}"))


def _shown(location: str) -> str:
    return without_secrets(location) if is_remote(location) else location


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
