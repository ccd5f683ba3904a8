"""One thing to read, before it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HUB = "hf"  # the format of data sets of the Hugging Face Hub


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to read: where it is, the name to show for it, and its size in bytes where that is known.

    Neither holds credentials. `format` is set where the place alone decides it (a data set of the Hub is no file that could
    be looked into). `version` tells a file behind a URL from one that replaces it, as far as the server does, and one
    stream from the next.
    """

    location: str
    name: str
    bytes: int | None = None
    format: str | None = None
    version: str | None = None

    @classmethod
    def of(cls, path: Path) -> Input:
        """The input that is the file `path`."""
        return cls(str(path), str(path))
