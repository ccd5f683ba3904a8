"""Parquet and Arrow files (IPC file or stream, which Feather 2 is): records from their rows, some rows at a time."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnascale.data.sources.columns import MAX_CELL, Rows, is_text, is_wanted, records
from dnascale.data.sources.opened import Source
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions
from dnascale.data.sources.spool import seekable
from dnascale.errors import DataError

_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 2048
_ARROW_FILE = b"ARROW1"


def parquet(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of a Parquet file, a page of each column in memory. Raises as `columns.records`."""
    import pyarrow.parquet as pq

    name = source.report.name
    with seekable(source, options.temporary) as file:
        with _explained(name, "Parquet"):
            table = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
            wanted = _wanted(table.schema_arrow, name)
        yield from records(_parquet_rows(table, wanted, name), Problems(source.report, options), options)


def _parquet_rows(table: Any, wanted: list[str], name: str) -> Iterator[Rows]:
    done = 0
    for group in range(table.num_row_groups):
        with _explained(name, "Parquet"):
            size = _row_bytes(table.metadata.row_group(group), name)
            count = max(1, min(_BATCH_ROWS, _BATCH_BYTES // size))
            batches = table.iter_batches(count, row_groups=[group], columns=wanted, use_threads=False)
            for batch in batches:
                yield Rows(batch, range(done + 1, done + 1 + batch.num_rows))
                done += batch.num_rows


def _row_bytes(group: Any, name: str) -> int:
    """The mean size of a row, as the file states it for all columns. (To ask for a column of a damaged file aborts the process.)"""
    size = group.total_byte_size // max(1, group.num_rows)
    if size > MAX_CELL:
        raise DataError(
            f"{name} has rows of {size:,} bytes, where a cell of 64 MiB is the limit: give such long sequences as FASTA or "
            "2bit."
        )
    return max(1, size)


def arrow(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of an Arrow IPC file or stream. Memory: one of its batches, where they are compressed."""
    import pyarrow as pa

    name = source.report.name
    with seekable(source, options.temporary) as file:
        with _explained(name, "Arrow IPC"):
            # Not closed here: it goes with the last batch that lies in it.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            data = pa.BufferReader(pa.py_buffer(content))
            is_file = content[: len(_ARROW_FILE)] == _ARROW_FILE
            reader = pa.ipc.open_file(data) if is_file else pa.ipc.open_stream(data)
            wanted = _wanted(reader.schema, name)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
        yield from records(_arrow_rows(batches, wanted, name), Problems(source.report, options), options)


def _arrow_rows(batches: Iterator[Any], wanted: list[str], name: str) -> Iterator[Rows]:
    done = 0
    with _explained(name, "Arrow IPC"):
        for batch in batches:
            chosen = batch.select(wanted)
            chosen.validate(full=True)  # what the file says of itself may point anywhere
            yield Rows(chosen, range(done + 1, done + 1 + batch.num_rows))
            done += batch.num_rows


def _wanted(schema: Any, name: str) -> list[str]:
    """The columns to read."""
    names = [field.name for field in schema if is_wanted(field.type)]
    if not any(is_text(field.type) for field in schema):
        kinds = ", ".join(f"{field.name}: {field.type}" for field in schema)[:300]
        raise DataError(f"{name} has no column of text, so none that could hold sequences ({kinds}).")
    doubled = next((column for column in names if schema.names.count(column) > 1), None)
    if doubled is not None:
        raise DataError(f"{name} has two columns named {doubled!r}: rename one of the two.")
    return names


@contextmanager
def _explained(name: str, kind: str) -> Iterator[None]:
    """Errors of pyarrow as ours."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        words = " ".join(str(error).split())[:200]
        raise DataError(f"{name} is a {kind} file that cannot be read, damaged or truncated ({words}).") from None
