"""Which record each stretch of a shard came from: shard-NNNNNN.records.parquet, never needed to train."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Rows of the table that are made at a time: a row group of the file.
_GROUP_ROWS = 1 << 17


@dataclass(frozen=True)
class Stretches:
    """What the sidecar of the shard with tokens [begin, end) of its split's stream is made of."""

    rows: Iterable[tuple[np.ndarray, np.ndarray]]  # PLACED [n] and the places of their first tokens (int64), in order
    begin: int
    end: int
    edges: np.ndarray  # of lower case, offsets in the shard, begin and end alternating


def write_sidecar(path: Path, stretches: Stretches, texts: Path) -> int:
    """Writes the table, and gives its number of rows. A separator may be alone in its shard: it has no row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("record", pa.string()), ("group", pa.string()), ("source", pa.int32()), ("record_start", pa.int64()),
         ("shard_start", pa.int64()), ("length", pa.int64()), ("soft_mask_edges", pa.list_(pa.int64()))]
    )  # fmt: skip
    written = 0
    with (
        texts.open("rb") as names,
        pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for rows, places in stretches.rows:
            for at in range(0, len(rows), _GROUP_ROWS):
                columns = _columns(rows[at : at + _GROUP_ROWS], places[at : at + _GROUP_ROWS], stretches, names)
                table = pa.table(columns, schema=schema)
                written += len(table)
                if len(table):
                    writer.write_table(table)
    return written


def _columns(rows: np.ndarray, places: np.ndarray, stretches: Stretches, names: Any) -> list[Any]:
    import pyarrow as pa

    begins = np.maximum(places, stretches.begin)
    ends = np.minimum(places + rows["tokens"].astype(np.int64) - 1, stretches.end)  # without the separator
    some = ends > begins
    rows, places, begins, ends = rows[some], places[some], begins[some], ends[some]
    starts, lengths = begins - stretches.begin, ends - begins
    record, group = _texts(rows, names)
    return [
        record, group,
        pa.array(rows["source"].astype(np.int32)),
        pa.array(rows["start"].astype(np.int64) + begins - places),
        pa.array(starts),
        pa.array(lengths),
        _edges(starts, lengths, stretches.edges),
    ]  # fmt: skip


def _texts(rows: np.ndarray, names: Any) -> tuple[Any, Any]:
    """The names of records and of their groups, which lie in the file in turn."""
    import pyarrow as pa

    if not len(rows):
        return pa.array([], pa.string()), pa.array([], pa.string())
    lengths = np.stack([rows["name"], rows["label"]], axis=1).astype(np.int64).ravel()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    names.seek(int(rows["text"][0]))
    data = names.read(int(rows["text"][-1] - rows["text"][0]) + int(lengths[-2:].sum()))
    both = pa.LargeStringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(data)).cast(pa.string())
    return both.take(pa.array(np.arange(0, len(lengths), 2))), both.take(pa.array(np.arange(1, len(lengths), 2)))


def _edges(starts: np.ndarray, lengths: np.ndarray, edges: np.ndarray) -> Any:
    """The edges of each stretch, as offsets in it."""
    import pyarrow as pa

    if not len(starts):
        return pa.array([], pa.list_(pa.int64()))
    first = np.searchsorted(edges, starts[:1], side="left")
    offsets = np.concatenate([first, np.searchsorted(edges, starts + lengths, side="right")])
    values = edges[offsets[0] : offsets[-1]].astype(np.int64) - np.repeat(starts, np.diff(offsets))
    return pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), pa.array(values))
