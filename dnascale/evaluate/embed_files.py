"""`dnascale embed`: from files of sequences to a file of embeddings, in parts that survive a kill."""

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.sources.formats import read
from dnascale.data.sources.given import STDIN
from dnascale.data.sources.locate import find
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.embed import Embedding, EmbedOptions, batches, embed
from dnascale.evaluate.language_model import load_model
from dnascale.evaluate.parts import open_parts, remove_parts
from dnascale.evaluate.ranks import rank_and_world, wait_for_all
from dnascale.files import check_new_folder, explained, sync, whole_folder

#: Written at a time, and of a zarr chunk.
_ROWS = 4096
KINDS = (".parquet", ".npy", ".zarr")
#: What ends a field or a line, for one reader of tables or another.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def embed_file(
    model: Path,
    sequences: Sequence[str],
    out: Path,
    options: EmbedOptions,
    settings: dict[str, Any],
    progress: Callable[[int], None] = lambda _sequences: None,
) -> int | None:
    """Embeds the records of files of any format that `prepare` reads into `out`; gives the number of vectors, None on all processes but
    the first. What is done survives a kill, and is dealt out over the processes of a launcher.

    Parquet: name, start, end (0-based, half-open), embedding. npy: float32 [n, H], and what each row is in NAME.tsv beside it. zarr: a
    group of four arrays, named as the columns of Parquet.
    `out` appears whole or not at all. `settings`: device, precision and context of `load_model`. Raises UsageError, DataError,
    CheckpointError or SpaceError.
    """
    if out.suffix not in KINDS:
        raise UsageError(f"{out} is neither .parquet, .npy nor .zarr.")
    if out.suffix == ".zarr" and find_spec("zarr") is None:
        raise UsageError(f"{out} needs zarr: pip install 'dnascale[zarr]'.")
    check_new_folder(out)  # the same holds for a file
    rank, world = rank_and_world()
    inputs = find(list(sequences))
    for one in inputs if world > 1 else ():
        if one.location == STDIN or (Path(one.location).exists() and not Path(one.location).is_file()):
            raise UsageError(f"{one.name} is read by one process, and not by {world}: write it to a file first.")
    loaded = load_model(model, **settings)
    options = replace(options, both_strands=loaded.asks_both(options.both_strands))
    parts = open_parts(out, loaded, inputs, {"embed": asdict(options)})
    beside = out.with_suffix(".tsv")
    if out.suffix == ".npy" and beside.exists() and not any(parts.iterdir()):  # not left by a kill of this command
        parts.rmdir()
        raise UsageError(f"{beside} exists, which is to say what the rows of {out.name} are: choose another name.")

    def records() -> Iterator[tuple[str, bytes]]:
        for one in inputs:
            for record in read(one):
                if _CONTROL.search(record.name):
                    raise DataError(
                        f"{one.name} has a sequence named {record.name!r}: names stand in lines of tables, so there may be no tab and "
                        "no line break in one. Rename it."
                    )
                yield record.name, record.bases[:]

    count = 0
    try:
        for number, batch in enumerate(batches(records())):
            count = number + 1
            if number % world == rank and not _part(parts, number).exists():
                _keep(parts, number, embed(loaded, batch, options), loaded.size)
            progress(len(batch))
        wait_for_all()
        if rank:
            return None
        embeddings = chain.from_iterable(_kept(parts, number) for number in range(count))
        first = next(embeddings, None)
        rows = 0 if first is None else _write(chain([first], embeddings), out, loaded.size, parts)
    except OSError as error:
        raise explained(error, out, "What was embedded before is kept") from error
    finally:
        with contextlib.suppress(OSError):
            parts.rmdir()  # where nothing was done
    if not rows:
        remove_parts(out)
        raise DataError(f"{', '.join(sequences)} has no base to embed.")
    remove_parts(out)
    return rows


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.npy"


def _keep(folder: Path, number: int, rows: Iterator[Embedding], size: int) -> None:
    """Written as the rows come. The .npy gets its name last: where it is, the part is whole."""
    path = _part(folder, number)
    work = path.with_suffix(f".partial-{secrets.token_hex(4)}")  # the same command may have been given twice
    try:
        _write_npy(rows, work, size)
        for written in (_rows_of(work), work):
            sync(written)
        _rows_of(work).replace(path.with_suffix(".tsv"))
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
        _rows_of(work).unlink(missing_ok=True)


def _kept(folder: Path, number: int) -> Iterator[Embedding]:
    path = _part(folder, number)
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.with_suffix(".tsv").open() as rows:
        next(rows)
        for line, row in zip(rows, values, strict=True):
            name, start, end = line.rstrip("\n").rsplit("\t", 2)
            yield Embedding(name, int(start), int(end), row)


def _write(rows: Iterator[Embedding], out: Path, size: int, parts: Path) -> int:
    """Makes `out`, and .tsv beside an .npy, whole or not at all: written in `parts`."""
    if out.suffix == ".zarr":
        with whole_folder(out) as folder:
            return _write_zarr(rows, folder, size)
    work = parts / f"whole-{secrets.token_hex(4)}{out.suffix}"
    try:
        count = (_write_parquet if out.suffix == ".parquet" else _write_npy)(rows, work, size)
        sync(work)
        if out.suffix == ".npy":
            sync(_rows_of(work))
            _rows_of(work).replace(out.with_suffix(".tsv"))
        work.replace(out)
        return count
    finally:
        work.unlink(missing_ok=True)
        _rows_of(work).unlink(missing_ok=True)


def _write_parquet(embeddings: Iterator[Embedding], path: Path, size: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("name", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("embedding", pa.list_(pa.float32(), size)),
    ]
    schema, count = pa.schema(fields), 0
    with path.open("wb") as out, pq.ParquetWriter(out, schema) as file:  # not its name, which may look like a URL
        for rows in _chunks(embeddings):
            values = pa.array(np.concatenate([row.values for row in rows]).astype(np.float32))
            columns = [pa.array([getattr(row, field) for row in rows]) for field, _ in fields[:3]]
            vectors = pa.FixedSizeListArray.from_arrays(values, size)
            file.write_table(pa.Table.from_arrays([*columns, vectors], schema=schema))
            count += len(rows)
    return count


def _write_npy(embeddings: Iterator[Embedding], path: Path, size: int) -> int:
    """The header has room for any number of rows, and is written again when their number is known."""
    count = 0
    with path.open("wb") as file, _rows_of(path).open("w") as names:
        names.write("name\tstart\tend\n")
        file.write(_npy_header(0, size))
        for rows in _chunks(embeddings):
            file.write(np.stack([row.values for row in rows]).astype("<f4").tobytes())
            names.writelines(f"{row.name}\t{row.start}\t{row.end}\n" for row in rows)
            count += len(rows)
        file.seek(0)
        file.write(_npy_header(count, size))
    return count


def _write_zarr(embeddings: Iterator[Embedding], folder: Path, size: int) -> int:
    import zarr

    group, count = zarr.open_group(folder, mode="w"), 0
    vectors = group.create_array("embedding", shape=(0, size), chunks=(_ROWS, size), dtype="float32")
    names = group.create_array("name", shape=(0,), chunks=(_ROWS,), dtype=str)
    bounds = {key: group.create_array(key, shape=(0,), chunks=(_ROWS,), dtype="int64") for key in ("start", "end")}
    for rows in _chunks(embeddings):
        vectors.append(np.stack([row.values for row in rows]).astype(np.float32))
        names.append(np.array([row.name for row in rows], dtype=object))
        for key, array in bounds.items():
            array.append(np.array([getattr(row, key) for row in rows]))
        count += len(rows)
    return count


def _npy_header(count: int, size: int) -> bytes:
    """Format 1.0 of numpy.lib.format, 128 bytes."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {size}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _rows_of(work: Path) -> Path:
    return work.with_name(work.name + ".tsv")


def _chunks(embeddings: Iterator[Embedding], rows: int = _ROWS) -> Iterator[list[Embedding]]:
    chunk: list[Embedding] = []
    for one in embeddings:
        chunk.append(one)
        if len(chunk) == rows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
