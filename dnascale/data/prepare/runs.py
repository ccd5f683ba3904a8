"""Records between reading and writing: sorted runs on disk, so that memory does not grow with their number.

A read task collects records until their tokens or their number reach a limit, sorts them by key and appends them: to `tokens.bin`
the tokens (each record followed by a separator), to `texts.bin` the names, to `rows.bin` a row of fixed size each, and in the order of
the input to `keys.bin` the hashes of their groups. Since the key is
the place in the shuffled order, what a shard needs of a run lies in one piece. Long records go to `tokens.bin` at once.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: A record of a run. Offsets and lengths of tokens count the separator, and are in tokens.
ROW = np.dtype(
    [
        ("key", "<u8"),  # place in the shuffled order
        ("group", "<u8"),  # hash of the group's name
        ("ordinal", "<u8"),  # number of the record in its input
        ("token", "<u8"),  # offset in tokens.bin
        ("tokens", "<u8"),
        ("bases", "<u8"),
        ("start", "<u8"),  # of a part: offset in the record it was cut from, in bases
        ("text", "<u8"),  # offset in texts.bin, of the name, then the group, then the edges of lower case
        ("name", "<u4"),  # length of the name in bytes
        ("label", "<u4"),  # length of the group's name in bytes
        ("edges", "<u8"),  # length of the edges in bytes
    ]
)
RUN_ROWS = 1 << 18
RUN_BYTES = 1 << 25
_LONG = np.uint64(1 << 63)  # marks, in a row that is not yet sorted, a record that is in tokens.bin already
_ROWS_AT_ONCE = 512  # whose tokens are put together to be written


class RunWriter:
    """Collects records, and writes them in sorted runs into `folder`."""

    def __init__(self, folder: Path, separator: bytes, run_rows: int = RUN_ROWS, run_bytes: int = RUN_BYTES) -> None:
        self._separator, self._width = separator, len(separator)  # one token, and its bytes
        self._run_rows = run_rows
        self._tokens_file = (folder / "tokens.bin").open("wb", buffering=0)
        self._texts_file = (folder / "texts.bin").open("wb", buffering=0)
        self._rows_file = (folder / "rows.bin").open("wb", buffering=0)
        self._keys_file = (folder / "keys.bin").open("wb", buffering=0)
        self._rows: list[np.ndarray] = []
        self._tokens, self._used = np.empty(run_bytes, dtype=np.uint8), 0  # used again and again: new memory is slow
        self._texts = bytearray()
        self._tokens_written = self._texts_written = 0  # in bytes
        self._pending = 0
        self.runs: list[int] = []  # records of each
        self.records = 0

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._tokens_file, self._texts_file, self._rows_file, self._keys_file):
            file.close()

    def add(self, rows: np.ndarray, texts: bytes, tokens: bytes) -> None:
        """Records: rows (ROW [n]) but for their places, and in one row each their texts and their tokens with separators."""
        end = self._used + len(tokens)
        if end > len(self._tokens):
            self.flush()
            end = len(tokens)
            if end > len(self._tokens):
                self._tokens = np.empty(end, dtype=np.uint8)
        counts = rows["tokens"]
        rows["token"] = self._used // self._width + np.cumsum(counts) - counts
        self._tokens.data[self._used : end] = tokens
        self._used = end
        self._add(rows, texts)

    def add_long(self, row: np.ndarray, texts: bytes, pieces: Iterable[Any]) -> None:
        """One record (ROW [1]) whose tokens come in pieces (buffers), which are written as they come."""
        at = self._tokens_written
        for piece in pieces:
            self._tokens_written += put(self._tokens_file, piece)
        self._tokens_written += put(self._tokens_file, self._separator)
        row["tokens"] = (self._tokens_written - at) // self._width
        row["token"] = _LONG | np.uint64(at // self._width)
        self._add(row, texts)

    def _add(self, rows: np.ndarray, texts: bytes) -> None:
        rows["ordinal"] = np.arange(self.records, self.records + len(rows))
        lengths = text_lengths(rows)
        rows["text"] = len(self._texts) + np.cumsum(lengths) - lengths
        self._texts += texts
        self._rows.append(rows)
        self.records += len(rows)
        self._pending += len(rows)
        if self._pending >= self._run_rows:
            self.flush()

    def flush(self) -> None:
        """Sorts what is at hand by key, and writes it as a run."""
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        put(self._keys_file, np.ascontiguousarray(rows["group"]))
        rows = rows[np.argsort(rows["key"], kind="stable")]
        width, counts = self._width, rows["tokens"].astype(np.int64)
        short = rows["token"] < _LONG
        starts, lengths = rows["token"][short].astype(np.int64) * width, counts[short] * width
        begins = self._tokens_written // width + np.cumsum(counts * short) - counts
        rows["token"] = np.where(short, begins.astype(np.uint64), rows["token"] & ~_LONG)
        for at in range(0, len(starts), _ROWS_AT_ONCE):
            some = slice(at, at + _ROWS_AT_ONCE)
            self._tokens_written += put(self._tokens_file, gather(self._tokens.data, starts[some], lengths[some]))
        lengths = text_lengths(rows)
        texts = gather(self._texts, rows["text"].astype(np.int64), lengths)
        rows["text"] = self._texts_written + np.cumsum(lengths) - lengths
        self._texts_written += put(self._texts_file, texts)
        put(self._rows_file, rows)
        self.runs.append(len(rows))
        self._rows, self._pending, self._used, self._texts = [], 0, 0, bytearray()

    def finish(self) -> None:
        """Writes what is left."""
        self.flush()


def gather(data: bytes | bytearray | memoryview, starts: np.ndarray, lengths: np.ndarray) -> bytes:
    """The stretches of `data` (starts and lengths int64 [n], in bytes), one after the other."""
    view = memoryview(data)
    ends = starts + lengths
    if len(starts) and bool((starts[1:] == ends[:-1]).all()):
        return bytes(view[int(starts[0]) : int(ends[-1])])
    return b"".join([view[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])


class Runs:
    """All runs of several read tasks, in the order of their keys, by ranges of about `most` records."""

    def __init__(self, folders: Sequence[Path], lengths: Sequence[Sequence[int]], most: int = RUN_ROWS) -> None:
        """`lengths`: of each folder the numbers of records of its runs."""
        self._folders = folders
        self.records = sum(map(sum, lengths))
        self.ranges = -(-self.records // most) or 1
        edges = np.array([(i << 64) // self.ranges for i in range(1, self.ranges)], dtype=np.uint64)
        self._bounds = [self._bounds_of(folder, counts, edges) for folder, counts in zip(folders, lengths, strict=True)]

    @staticmethod
    def _bounds_of(folder: Path, lengths: Sequence[int], edges: np.ndarray) -> np.ndarray:
        """int64 [runs, ranges + 1]: rows of the file at which each range begins and the last ends."""
        bounds, at = np.zeros((len(lengths), len(edges) + 2), dtype=np.int64), 0
        for run, length in enumerate(lengths):
            rows = np.fromfile(folder / "rows.bin", dtype=ROW, count=length, offset=at * ROW.itemsize)
            bounds[run] = [at, *(at + np.searchsorted(rows["key"], edges)), at + length]
            at += length
        return bounds

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray, bytearray]:
        """Of range `number`: rows [n] in the shuffled order, the input of each (int64 [n]), and their texts in a row.

        Records with equal keys (one name in several inputs) stay in the order of the inputs.
        """
        parts, sources, texts = [np.zeros(0, dtype=ROW)], [np.zeros(0, dtype=np.int64)], bytearray()
        for source, (folder, bounds) in enumerate(zip(self._folders, self._bounds, strict=True)):
            for begin, end in bounds[:, number : number + 2].tolist():
                if begin == end:
                    continue
                part = np.fromfile(folder / "rows.bin", dtype=ROW, count=end - begin, offset=begin * ROW.itemsize)
                text = _read_texts(folder, part)
                part["text"] = part["text"] - part["text"][0] + np.uint64(len(texts))
                texts += text
                parts.append(part)
                sources.append(np.full(len(part), source))
        rows, source_of = np.concatenate(parts), np.concatenate(sources)
        order = np.lexsort((rows["ordinal"], source_of, rows["key"]))
        return rows[order], source_of[order], texts


def _read_texts(folder: Path, rows: np.ndarray) -> bytes:
    """Of rows that follow each other in a run."""
    begin = int(rows["text"][0])
    end = int(rows["text"][-1]) + int(text_lengths(rows[-1:])[0])
    with (folder / "texts.bin").open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def texts_of(rows: np.ndarray, texts: bytes | bytearray) -> bytes:
    """The texts of rows (with offsets into `texts`), one after the other."""
    return gather(texts, rows["text"].astype(np.int64), text_lengths(rows))


def text_lengths(rows: np.ndarray) -> np.ndarray:
    """int64 [n]: bytes of each row's name, group and edges together."""
    return (rows["name"] + rows["edges"] + rows["label"]).astype(np.int64)


def put(file: Any, data: Any) -> int:
    """Writes bytes or an array [n] to an unbuffered file, which may take less at a time. Gives the number of bytes."""
    left: memoryview = data.view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)
    size = len(left)
    while left:
        left = left[file.write(left) :]
    return size
