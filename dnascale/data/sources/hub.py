"""Data sets of the Hugging Face Hub, or of a local folder, through `datasets`, streamed. No code of a data set ever runs.

`hf://OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`, and `hf:///FOLDER[:SPLIT]` for a folder. A single file of the Hub is
`hf://datasets/OWNER/NAME/FILE`, which is read like any other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from dnascale.data.sources.alphabet import shown
from dnascale.data.sources.columns import Rows, is_wanted, records
from dnascale.data.sources.input import HUB
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions, ReadReport
from dnascale.data.transport import without_secrets
from dnascale.errors import DataError, DnascaleError, UsageError
from dnascale.files import unreadable

_HUB = re.compile(
    r"hf://(?P<path>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:@]+))?(?:/(?P<config>[^/:]+))?(?::(?P<split>[\w.+-]+))?/?"
)
_LOCAL = re.compile(r"hf://(?P<path>(?:/|\./|\.\./|~/).*?)(?::(?P<split>[\w.+-]+))?")
# What reads only tables. Others decode files by their names, and one of them unpickles.
_KINDS = ("parquet", "arrow", "csv", "json")
_NAME_FILES = "name its files instead, as in 'hf://datasets/OWNER/NAME/*.fa.gz' or a local path"
_ROWS = 1000


@dataclass(frozen=True)
class _Place:
    path: str
    revision: str | None
    config: str | None
    split: str | None


def hub_records(location: str, options: ReadOptions, report: ReadReport) -> Iterator[Record]:
    """The records of a data set, in its order. `report.sha256` is of names and bases, there being no file.

    Raises:
        DataError: it is not there, cannot be reached, is no table, or holds bad records.
        UsageError: `datasets` is not installed, or the location is not understood or names no split of several.
    """
    place = _parsed(location)
    report.format = HUB
    digest = hashlib.sha256()
    with _explained(report.name):
        streams = _streams(place, report.name)
    for record in records(_rows(streams, report.name), Problems(report, options), options):
        digest.update(f"{record.name}\0{len(record.bases)}\0".encode())
        digest.update(record.bases[:])
        yield record
    report.sha256 = digest.hexdigest()


def version_of(location: str) -> str | None:
    """Tells a local folder from what it was before. None for data sets of the Hub, of which @REVISION names one version.

    Raises as `hub_records`, but asks no network.
    """
    place = _parsed(location)
    if not _LOCAL.fullmatch(location):
        return None
    states = []
    for root, folders, files in os.walk(place.path):
        folders.sort()
        for file in sorted(files):
            path = os.path.join(root, file)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                raise DataError(
                    f"{location}: {path} is a link to something that does not exist; copy the folder again, with what its links lead to."
                ) from None
            except OSError as error:
                raise unreadable(error, f"{location}: {path}") from None
            states.append([os.path.relpath(path, place.path), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16]


def _parsed(location: str) -> _Place:
    if match := _LOCAL.fullmatch(location):
        folder = os.path.expanduser(match["path"])
        if not Path(folder).is_dir():
            raise DataError(f"{location}: there is no folder {folder}; name the folder of a data set.")
        return _Place(folder, None, None, match["split"])
    match = _HUB.fullmatch(location)
    if not match:
        raise UsageError(
            f"{shown(without_secrets(location))} is not understood: a data set is hf://OWNER/NAME[@REVISION][/CONFIG][:SPLIT] "
            "or hf:///FOLDER[:SPLIT], a file hf://datasets/OWNER/NAME/FILE."
        )
    revision = unquote(match["revision"]) if match["revision"] else None
    return _Place(match["path"], revision, match["config"], match["split"])


def _streams(place: _Place, name: str) -> list[Any]:
    """The splits that were asked for, as streams of Arrow tables."""
    try:
        import datasets
    except ImportError:
        raise UsageError(f"{name} needs the package datasets: pip install 'dnascale[datasets]'.") from None
    saved = {"state.json", "dataset_dict.json"} & set(os.listdir(place.path) if os.path.isdir(place.path) else ())
    if saved:
        found = datasets.load_from_disk(place.path)
    else:
        builder = datasets.load_dataset_builder(place.path, place.config, revision=place.revision)
        kind = type(builder).__module__.removeprefix("datasets.packaged_modules.").partition(".")[0]
        if kind not in _KINDS:
            raise DataError(f"{name} is no data set of tables but of {kind}: {_NAME_FILES}.")
        found = builder.as_streaming_dataset()
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    wanted = place.split.split("+") if place.split else list(splits)
    if len(wanted) > 1 and not place.split:
        raise UsageError(
            f"{name} has several splits ({', '.join(splits)}): name one, as in {name}:{wanted[0]}, or A+B."
        )
    unknown = [split for split in wanted if split not in splits]
    if unknown:
        raise UsageError(f"{name} has no split {shown(unknown[0])}; there are {', '.join(splits)}.")
    return [splits[split].with_format("arrow") for split in wanted]


def _rows(streams: list[Any], name: str) -> Iterator[Rows]:
    done = 0
    with _explained(name):
        for stream in streams:
            for table in stream.iter(batch_size=_ROWS):
                wanted = [field.name for field in table.schema if is_wanted(field.type)]
                for batch in table.select(wanted).to_batches():
                    yield Rows(batch, range(done + 1, done + 1 + batch.num_rows))
                    done += batch.num_rows


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Errors of `datasets`, of which there are many kinds, as ours."""
    try:
        yield
    except (DnascaleError, GeneratorExit):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        if "Dataset scripts are no longer supported" in words:
            advice = "it is a program, which is not run; ask its authors for Parquet files"
        elif type(error).__name__ == "DataFilesNotFoundError":  # what older ones say of FASTA
            advice = f"it holds no tables; if it holds sequences, {_NAME_FILES}"
        elif isinstance(error, ConnectionError | TimeoutError) or "offline" in words.lower():
            advice = "check the name and the network; without a network, give a local copy as hf:///FOLDER"
        else:
            advice = "check the name, the revision, and that you may read it (`hf auth login`)"
        raise DataError(
            f"{name} cannot be read ({type(error).__name__}: {without_secrets(words)}): {advice}."
        ) from None
