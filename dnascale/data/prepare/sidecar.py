"""Which record each stretch of a shard came from: shard-NNNNNN.records.parquet, never needed to train."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dnascale.data.prepare.runs import text_lengths

#: Rows of the table that are made at a time: a row group of the file.
_GROUP_ROWS = 1 << 17


@dataclass(frozen=True)
class Stretches:
    """What the sidecar of the shard with tokens [begin, end) of its split's stream is made of."""

    rows: Iterable[tuple[np.ndarray, np.ndarray]]  # PLACED [n] and the places of their first tokens (int64), in order
    begin: int
    end: int
    texts: Path


class Edges(Protocol):
    """Where lower case begins and ends in stretches."""

    def of(
        self, rows: np.ndarray, texts: np.ndarray, before: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For rows whose stretches begin `before` tokens into their record, `starts` into the shard, and are `lengths` long.

        Gives int64 [n + 1], bounds in int64 [m], the edges as offsets in each stretch in bases; and int64 [n], the bases
        of the record before each stretch.
        """


def write_sidecar(path: Path, stretches: Stretches, edges: Edges) -> tuple[int, int]:
    """Writes the table. Gives its number of rows (a separator alone in its shard has none) and of bases in lower case."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [("record", pa.string()), ("group", pa.string()), ("source", pa.int32()), ("record_start", pa.int64()),
         ("shard_start", pa.int64()), ("length", pa.int64()), ("soft_mask_edges", pa.list_(pa.int64()))]
    )  # fmt: skip
    written = masked = 0
    with (
        stretches.texts.open("rb") as texts,
        path.open("wb") as out,  # not its name, which may look like a URL
        pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for rows, places in stretches.rows:
            for at in range(0, len(rows), _GROUP_ROWS):
                some = slice(at, at + _GROUP_ROWS)
                columns, lower = _columns(rows[some], places[some], stretches, texts, edges)
                if columns:
                    writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                    written += len(columns[0])
                    masked += lower
    return written, masked


def _columns(
    rows: np.ndarray, places: np.ndarray, stretches: Stretches, texts: Any, edges: Edges
) -> tuple[list[Any], int]:
    import pyarrow as pa

    begins = np.maximum(places, stretches.begin)
    ends = np.minimum(places + rows["tokens"].astype(np.int64) - 1, stretches.end)  # without the separator
    some = ends > begins
    rows, places, begins, ends = rows[some], places[some], begins[some], ends[some]
    if not len(rows):
        return [], 0
    texts.seek(int(rows["text"][0]))
    size = int(rows["text"][-1] - rows["text"][0]) + int(text_lengths(rows[-1:])[0])
    data = np.frombuffer(texts.read(size), dtype=np.uint8)
    starts, lengths = begins - stretches.begin, ends - begins
    bounds, values, bases_before = edges.of(rows, data, begins - places, starts, lengths)
    columns = [
        *_names(rows, data),
        _array(rows["source"].astype(np.int32)),
        _array(rows["start"].astype(np.int64) + bases_before),
        _array(starts),
        _array(lengths),
        pa.ListArray.from_arrays(_array(bounds.astype(np.int32)), _array(values)),
    ]
    return columns, int(values[1::2].sum() - values[::2].sum())


def _array(values: np.ndarray) -> Any:
    """Integers as they are. `pa.array` would import pandas where there is one, which takes longer than many a shard."""
    import pyarrow as pa

    kind = {4: pa.int32(), 8: pa.int64()}[values.itemsize]
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def _names(rows: np.ndarray, data: np.ndarray) -> tuple[Any, Any]:
    """The names of records and of their groups. In the texts, the two and then the edges follow each other."""
    begins = (rows["text"] - rows["text"][0]).astype(np.int64)
    names, labels = rows["name"].astype(np.int64), rows["label"].astype(np.int64)
    return _strings(data, begins, names), _strings(data, begins + names, labels)


def _strings(data: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> Any:
    """Stretches of UTF-8 (uint8 [n]) as a column. `take` and `cast` of pyarrow would do, and import what takes longer."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data[places])]
    return pa.Array.from_buffers(pa.string(), len(lengths), buffers)


@dataclass(frozen=True)
class EdgesOfTokens:
    """Of shards in which a token is a base: their own edges, uint32 [2 k], offsets in the shard."""

    edges: np.ndarray

    def of(
        self, rows: np.ndarray, texts: np.ndarray, before: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = np.searchsorted(self.edges, starts[:1], side="left")
        bounds = np.concatenate([first, np.searchsorted(self.edges, starts + lengths, side="right")])
        values = self.edges[bounds[0] : bounds[-1]].astype(np.int64) - np.repeat(starts, np.diff(bounds))
        return bounds - bounds[0], values, before


@dataclass(frozen=True)
class EdgesOfRecords:
    """Of shards whose tokens do not tell to the base: what was noted of each record, cut where its shard begins and ends.

    `bases_before(row, tokens)`: how many bases the first tokens of a record stand for.
    """

    bases_before: Callable[[np.void, int], int]

    def of(
        self, rows: np.ndarray, texts: np.ndarray, before: np.ndarray, starts: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = rows["edges"].astype(np.int64) // 8
        ends = (rows["text"] - rows["text"][0]).astype(np.int64) + text_lengths(rows)
        where = np.repeat(ends - 8 * np.cumsum(counts), counts) + 8 * np.arange(counts.sum())
        values = texts[where[:, None] + np.arange(8)].view("<u8").astype(np.int64).ravel()
        bounds = np.concatenate([[0], np.cumsum(counts)])
        skipped = np.zeros(len(rows), dtype=np.int64)
        cut = {0, len(rows) - 1}  # only the first and the last record of a shard may go on in another
        parts = []
        for row in sorted(cut):
            if before[row] == 0 and lengths[row] == rows["tokens"][row] - 1:
                continue
            skipped[row] = begin = self.bases_before(rows[row], int(before[row]))
            end = self.bases_before(rows[row], int(before[row] + lengths[row]))
            own = np.clip(values[bounds[row] : bounds[row + 1]], begin, end).reshape(-1, 2) - begin
            parts.append((row, own[own[:, 0] < own[:, 1]].ravel()))
        for row, own in reversed(parts):
            values = np.concatenate([values[: bounds[row]], own, values[bounds[row + 1] :]])
            bounds[row + 1 :] += len(own) - (bounds[row + 1] - bounds[row])
        return bounds, values, skipped
