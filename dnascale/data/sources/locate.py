"""Where the inputs are: files, globs and built-in data, each named once."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path

from dnascale.errors import DataError

BUILTIN = {"human-cds": "human-cds.fasta.gz"}  # name after `builtin:` → file in dnascale/resources


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to read: where it is, the name to show for it, and its size in bytes where that is known.

    `format` is set where the place alone decides it (a data set of the Hub is no file that could be looked into).
    """

    location: str
    name: str
    bytes: int | None = None
    format: str | None = None

    @classmethod
    def of(cls, path: Path) -> Input:
        """The input that is the file `path`."""
        return cls(str(path), str(path))


def find(sources: Sequence[str]) -> list[Input]:
    """The inputs that sources name, in the order given, those of a glob sorted. Raises as `resolve`."""
    return [Input(str(path), str(path), path.stat().st_size) for path in resolve_all(sources)]


def resolve(source: str) -> list[Path]:
    """The files that a source names: a file, a glob (sorted; `**` enters folders), or `builtin:human-cds`.

    Raises:
        DataError: nothing is there, it is a directory, it may not be read, or one file is named twice.
    """
    return resolve_all((source,))


def resolve_all(sources: Iterable[str]) -> list[Path]:
    """As `resolve`, for several sources. One file named twice, also through a link, is an error."""
    seen: dict[tuple[int, int], Path] = {}
    for path in chain.from_iterable(map(_paths_of, sources)):
        try:
            status = path.stat()
        except FileNotFoundError:
            why = "is a link to something that does not exist" if path.is_symlink() else "does not exist"
            raise DataError(f"{path} {why}; check the path (a glob must be quoted for the shell).") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        if path.is_dir():
            raise DataError(f"{path} is a directory; name the files in it, for example '{path}/*.fa.gz'.")
        if not os.access(path, os.R_OK):
            raise DataError(f"{path} may not be read by this user; change its permissions.")
        identity = status.st_dev, status.st_ino
        if identity in seen:
            raise DataError(f"{path} and {seen[identity]} are one file, which would count double; name one.")
        seen[identity] = path
    return list(seen.values())


def _paths_of(source: str) -> list[Path]:
    scheme, colon, name = source.partition(":")
    if scheme + colon == "builtin:":
        if name not in BUILTIN:
            known = ", ".join(f"builtin:{name}" for name in BUILTIN)
            raise DataError(f"there are no built-in data named {source}; known: {known}.")
        return [Path(str(resources.files("dnascale") / "resources" / BUILTIN[name]))]
    pattern = os.path.expanduser(source)
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        return [Path(pattern)]
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(match)]
    if not found:
        raise DataError(f"no file matches {source}; check the path and the pattern.")
    return found
