"""Which checkpoints stay: the newest, every so many steps, the best by held-out loss, and those that somebody has pinned."""

import contextlib
import os
import shutil
from pathlib import Path

from dnascale.config import CheckpointConfig
from dnascale.errors import CheckpointError
from dnascale.files import explained
from dnascale.train.checkpoint import Checkpoint, committed, step_of
from dnascale.train.mirror import HELD

#: A file of this name in a checkpoint's folder keeps it.
_PIN = "PINNED"


def prune(folder: Path, newest: Path, config: CheckpointConfig) -> None:
    """Removes what is not to stay of the checkpoints up to `newest`, and what interrupted saves left. Called only after a commit.

    Folders of later steps were not written by this run, or were found damaged when it began: they do not count, and stay.
    What cannot be removed now is removed next time.
    """
    # What a run held for its mirror when it was killed is still to be sent, unless there is no mirror any more.
    names = (".step-", ".trash-", *([HELD] if config.mirror is None else []))
    leftovers = [path for path in folder.iterdir() if path.name.startswith(names)]
    own = [path for path in committed(folder) if path.name <= newest.name]
    stay = {*own[-config.keep :], *_best(own, config.keep_best), *filter(is_pinned, own)}
    if config.keep_every is not None:
        stay |= {path for path in own if step_of(path) % config.keep_every == 0}
    for path in [*leftovers, *(path for path in own if path not in stay)]:
        with contextlib.suppress(OSError):
            # Renamed first, so that a half-removed checkpoint is never taken for one.
            trash = path if path.name.startswith(".") else path.rename(folder / f".trash-{path.name}-{os.getpid()}")
            shutil.rmtree(trash, ignore_errors=True)


def pin(checkpoint: Path, on: bool) -> None:
    """Keeps a checkpoint until the pin is taken off. Raises CheckpointError when there is none of that step, UsageError when it cannot be
    written there.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not there.")
    try:
        if on:
            (checkpoint / _PIN).touch()
        else:
            (checkpoint / _PIN).unlink(missing_ok=True)
    except OSError as error:
        raise explained(error, checkpoint / _PIN) from error


def is_pinned(checkpoint: Path) -> bool:
    return (checkpoint / _PIN).exists()


def _best(own: list[Path], count: int) -> list[Path]:
    """Those with the least held-out loss, of those that were evaluated at their step."""
    losses: list[tuple[float, Path]] = []
    for path in own if count else ():
        with contextlib.suppress(CheckpointError):
            if (loss := Checkpoint(path).state.valid_loss) is not None:
                losses.append((loss, path))
    return [path for _, path in sorted(losses)[:count]]
