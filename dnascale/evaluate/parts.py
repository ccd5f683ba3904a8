"""What long work has done so far, kept beside its output until that is written: the same command goes on from it."""

import glob
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dnascale import __version__
from dnascale.data.sources.input import Input
from dnascale.errors import DataError
from dnascale.evaluate.language_model import LanguageModel
from dnascale.files import explained


def open_parts(out: Path, model: LanguageModel, inputs: Iterable[Input], options: dict[str, Any]) -> Path:
    """The folder beside `out` for what is done so far, named after everything that decides the scores.

    The same command finds it again after a kill; other inputs, another model, other options or another version of dnascale have
    another one. Files are known by
    name and content, what is behind a URL by name and version.
    """
    of_inputs = [[input.name, input.version or _digest(input)] for input in inputs]
    decides = [__version__, model.digest, model.context, str(model.autocast), options, of_inputs]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode())
    folder = out.with_name(f".{out.name}.parts-{digest.hexdigest()[:16]}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explained(error, folder) from error
    return folder


def remove_parts(out: Path) -> None:
    """Removes what this and earlier commands kept for `out`, which is written now."""
    for folder in out.parent.glob(glob.escape(f".{out.name}.parts-") + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def _digest(input: Input) -> str | None:
    """SHA-256 of a file; None where there is none to read, as behind a URL whose server tells no versions."""
    path = Path(input.location)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
