"""Where the inputs are: files, globs and built-in data, each named once."""

from __future__ import annotations

import glob
import os
import secrets
import stat
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

from dnascale.data.remote import is_remote
from dnascale.data.sources.folders import chosen
from dnascale.data.sources.given import STDIN, keep_descriptor, keep_stdin
from dnascale.data.sources.input import HUB, Input
from dnascale.data.transport import without_secrets
from dnascale.errors import DataError, printable
from dnascale.files import unreadable

_HUB_FILES = ("hf://datasets/", "hf://buckets/", "hf://spaces/", "hf://models/")
BUILTIN = {
    "human-cds": "human-cds.fasta.gz",
    "drd2": "DRD2_cds.fasta",
}  # name after `builtin:` → file in dnascale/resources


def find(sources: Sequence[str], left_out: list[str] | None = None) -> list[Input]:
    """The inputs that sources name, in the order given, those of a glob or a folder sorted.

    A source is a file, a glob (`**` enters folders), a folder (the files of sequences in it and in its folders; the others
    are added to `left_out`), a URL (also with a pattern, or of a folder: it ends with `/`), a data set of the Hugging Face
    Hub, `builtin:NAME`, or `-`, standard input.

    Raises:
        DataError: nothing is there, it may not be read, or it is named twice.
    """
    left_out = [] if left_out is None else left_out
    return _once(input for source in sources for input in _inputs_of(source, left_out))


def _once(inputs: Iterable[Input]) -> list[Input]:
    """The inputs. Raises DataError when two are one file, also through a link."""
    seen: dict[tuple[Any, ...], Input] = {}
    for input in inputs:
        key = _identity(input.location)
        if key in seen:
            raise DataError(f"{input.name} and {seen[key].name} are one file, which would count double; name one.")
        seen[key] = input
    return list(seen.values())


def _inputs_of(source: str, left_out: list[str]) -> list[Input]:
    if not source:
        raise DataError("an empty name was given as an input; is a variable of the shell not set?")
    if source in (STDIN, "/dev/stdin", "/dev/fd/0"):
        keep_stdin()
        return [Input(STDIN, "standard input", version=secrets.token_hex(8))]
    if is_hub(source):
        from dnascale.data.sources.hub import version_of

        return [Input(source, without_secrets(source), format=HUB, version=version_of(source))]
    if source.startswith("file://"):
        source = url2pathname(source.removeprefix("file://"))
    if is_remote(source):
        from dnascale.data.sources.listing import inputs_of

        return inputs_of(source, left_out)
    return [_of_file(path) for path in _files_of(source, left_out)]


def _of_file(path: Path) -> Input:
    """Raises DataError when the file cannot be read."""
    try:
        status = path.stat()
    except FileNotFoundError:
        why = "is a link to something that does not exist" if path.is_symlink() else "does not exist"
        raise DataError(f"{path} {why}; check the path (a glob must be quoted for the shell).") from None
    except OSError as error:
        raise unreadable(error, path) from None
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} may not be read by this user; change its permissions.")
    if not stat.S_ISREG(status.st_mode):  # a pipe: what comes out of it another time is something else
        keep_descriptor(str(path))
        return Input(str(path), printable(str(path)), version=secrets.token_hex(8))
    return Input(str(path), printable(str(path)), status.st_size)


def _files_of(source: str, left_out: list[str]) -> list[Path]:
    paths = _paths_of(source)
    if len(paths) != 1 or not paths[0].is_dir():
        return paths
    folder = paths[0]
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in files]
    inputs, others = chosen(names)
    if not inputs:
        raise DataError(f"{folder} is a folder without files of sequences ({len(names):,} others): name the files.")
    left_out += [str(folder / name) for name in others]
    return [folder / name for name in inputs]


def is_hub(source: str) -> bool:
    """Whether `source` names a data set of the Hub, and not a file there."""
    return source.startswith("hf://") and not source.startswith(_HUB_FILES)


def _identity(location: str) -> tuple[Any, ...]:
    try:
        status = os.stat(location)
    except OSError:
        return (location,)
    return status.st_dev, status.st_ino


def resolve_all(sources: Iterable[str]) -> list[Path]:
    """The files that sources name: each a file, a glob (sorted; `**` enters folders), or `builtin:NAME`.

    Raises:
        DataError: nothing is there, it is a directory, it may not be read, or one file is named twice, also through a link.
    """
    paths = list(chain.from_iterable(map(_paths_of, sources)))
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is not None:
        raise DataError(f"{folder} is a directory; name the files in it, for example '{folder}/*.fa.gz'.")
    _once(_of_file(path) for path in paths)
    return paths


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
