"""Inputs that must be read by random access, whatever they come from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dnascale.data.sources.opened import Source
from dnascale.files import explained


@contextmanager
def seekable(source: Source, folder: str | None) -> Iterator[BinaryIO]:
    """The decompressed input as a file that can seek: itself where it is one, else a copy without a name in `folder`.

    Raises SpaceError when the disk of temporary files is full.
    """
    if source.path is not None:
        with source.path.open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            for block in source.blocks():
                file.write(block)
            file.flush()
        except OSError as error:
            raise explained(error, Path(folder or tempfile.gettempdir()), kept="") from error
        file.seek(0)
        yield file
