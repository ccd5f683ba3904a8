"""CSV, TSV and JSON Lines: text is cut into chunks of whole lines, and pyarrow makes a table of each at once.

A chunk that pyarrow does not take, or whose rows are not its lines, is read again row by row, so that what is wrong is
found and placed. Columns are read as they stand: no number, date or missing value is guessed, but for `NA` and its kin.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dnascale.data.sources.alphabet import shown
from dnascale.data.sources.columns import MAX_CELL, SEQUENCE_NAMES, Rows, records
from dnascale.data.sources.lines import chunks
from dnascale.data.sources.opened import Source
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions
from dnascale.errors import DataError

_CHUNK_BYTES = 4 << 20
_MAX_HEADER = 64 << 10
_DELIMITERS = (b"\t", b",", b";", b"|")
#: What programs write for a value that is not there; of most, all letters would be bases, or nearly.
_MISSING = frozenset((b"", b"NA", b"N/A", b"NaN", b"nan", b"NULL", b"null", b"None"))
_LONG_DNA = re.compile("[ACGTUNacgtun]{20,}")
#: What is the sequence of a row that stands within a value of another.
_DNA = re.compile("[ACGTUNacgtun]{10,}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclass(frozen=True, slots=True)
class _Lines:
    """Whole lines; the first has the number `line`."""

    text: bytes
    line: int


def looks_delimited(text: bytes) -> bool:
    """Whether a file that begins with `text` may be CSV or TSV: by its first line, which names the columns."""
    line = text.split(b"\n", 1)[0].strip(b"\r")
    if _CONTROL.search(line) or line.startswith((b"#", b"@", b">", b"<")):
        return False
    return _delimiter(line) in line or line.strip(b'"').lower() in {name.encode() for name in SEQUENCE_NAMES}


def delimited(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of a CSV or TSV file whose first line names its columns. Raises as `columns.records`."""
    problems = Problems(source.report, options)
    return records(_csv_rows(source, problems), problems, options, "line", _MISSING)


def json_lines(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of a JSON Lines file, one object a line. Raises as `columns.records`."""
    problems = Problems(source.report, options)
    return records(_json_rows(source, problems), problems, options, "line")


def _csv_rows(source: Source, problems: Problems) -> Iterator[Rows]:
    table: _Csv | None = None
    for chunk in _chunks(source, quoted=True):
        if table is None:
            text = chunk.text.lstrip(b"\n")
            header, _, rest = text.partition(b"\n")
            line = chunk.line + len(chunk.text) - len(text)
            table = _Csv(header, source.report.name, line)
            chunk = _Lines(rest, line + 1)
        yield from _rows(chunk, table, problems)


def _json_rows(source: Source, problems: Problems) -> Iterator[Rows]:
    table: _Json | None = None
    for chunk in _chunks(source, quoted=False):
        if table is None:
            table = _Json(chunk, source.report.name)
        yield from _rows(chunk, table, problems)


def _rows(chunk: _Lines, form: _Csv | _Json, problems: Problems) -> Iterator[Rows]:
    """A chunk as rows: all at once where each line is a row, else one by one."""
    import pyarrow as pa

    if not chunk.text.strip():
        return
    lines = chunk.text.count(b"\n")
    try:
        table = form.fast(chunk.text)
    except pa.ArrowException:
        table = None
    if table is None or table.num_rows != lines:
        yield form.slow(chunk, problems)
        return
    done = chunk.line
    for batch in table.to_batches():
        yield Rows(batch, range(done, done + batch.num_rows))
        done += batch.num_rows


def _chunks(source: Source, quoted: bool) -> Iterator[_Lines]:
    """The text in chunks that end with a line; where `quoted`, not with one that is within quotes."""
    line, name = 1, source.report.name
    pending: list[bytes] = []
    size, due = 0, _CHUNK_BYTES
    for block in (chunk.text for chunk in chunks(source.blocks(), source.report)):
        pending.append(block)
        size += len(block)
        if size < due:
            continue
        text = b"".join(pending)
        end = _cut(text, quoted)
        if not end and size > MAX_CELL:
            raise DataError(
                f"{name}:{line}: a row of more than 64 MiB, which is the limit in a table{_UNCLOSED * quoted}; give such "
                "long sequences as FASTA."
            )
        if end:
            yield _Lines(text[:end], line)
            line += text.count(b"\n", 0, end)
        pending, size = [text[end:]], len(text) - end
        due = min(max(_CHUNK_BYTES, 2 * size), MAX_CELL + 1)  # so that a long row is not joined again and again
    text = b"".join(pending)
    if quoted and text.count(b'"') % 2:
        raise DataError(
            f"{name}:{line}: the file ends within quotes{_UNCLOSED}; it is truncated, or a quote is missing."
        )
    if text:
        yield _Lines(text if text.endswith(b"\n") else text + b"\n", line)


_UNCLOSED = " (a quote is opened here or further on, and not closed)"


def _cut(text: bytes, quoted: bool) -> int:
    """Where the last line ends that is not within quotes. 0: nowhere."""
    end = text.rfind(b"\n") + 1
    within = quoted and text.count(b'"', 0, end) % 2
    while within and end:
        before = text.rfind(b"\n", 0, end - 1) + 1
        within ^= text.count(b'"', before, end) % 2
        end = before
    return end


class _Csv:
    """A table whose columns the first line names."""

    def __init__(self, header: bytes, name: str, line: int) -> None:
        self.name = name
        if len(header) > _MAX_HEADER:
            raise DataError(
                f"{name}:{line}: a first line of more than 64 KiB, where the names of the columns should be."
            )
        self.delimiter = _delimiter(header).decode()
        (self.columns,) = csv.reader([header.decode("latin-1")], delimiter=self.delimiter)
        self.columns = [column.encode("latin-1").decode("utf-8", "replace").strip() for column in self.columns]
        doubled = next((column for column in self.columns if self.columns.count(column) > 1), None)
        if doubled is not None:
            raise DataError(f"{name}:{line}: two columns are named {shown(doubled)}; is the first line the header?")
        if any(_LONG_DNA.fullmatch(column) for column in self.columns):
            raise DataError(
                f"{name}:{line}: a sequence where the names of the columns should be; add a line with names."
            )

    def fast(self, text: bytes) -> Any:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        return arrow_csv.read_csv(
            pa.BufferReader(text),
            arrow_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self.columns),
            arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(self.columns, pa.binary()), null_values=[""], strings_can_be_null=True
            ),
        )

    def slow(self, chunk: _Lines, problems: Problems) -> Rows:
        lines = (line + "\n" for line in chunk.text.decode("latin-1").split("\n")[:-1])
        reader = csv.reader(lines, delimiter=self.delimiter)
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        limit = csv.field_size_limit(2 * MAX_CELL)
        try:
            number = chunk.line
            for row in reader:
                if any("\n" in value and self._has_row(value) for value in row):
                    raise DataError(
                        f"{self.name}:{number}: a quote that is opened here or further on takes whole rows with it; close it, or "
                        "remove it."
                    )
                if len(row) == len(self.columns):
                    rows.append([value or None for value in row])
                    numbers.append(number)
                elif row:
                    what = f"{len(row)} values where the first line names {len(self.columns)} columns"
                    problems.bad_record(number, 1, what)
                number = chunk.line + reader.line_num
        except csv.Error as error:
            raise DataError(
                f"{self.name}:{number}: no CSV ({error}); the rest of the file cannot be told apart."
            ) from None
        finally:
            csv.field_size_limit(limit)
        return Rows(_batch(self.columns, rows, "latin-1"), numbers)

    def _has_row(self, value: str) -> bool:
        """Whether a line within a value is a row of its own: as many cells, one of which is a sequence."""
        cells = (line.split(self.delimiter) for line in value.split("\n")[1:-1])
        return len(self.columns) > 1 and any(
            len(row) == len(self.columns) and any(map(_DNA.fullmatch, row)) for row in cells
        )


class _Json:
    """A table whose columns are the keys of its first objects, those of some megabytes."""

    def __init__(self, chunk: _Lines, name: str) -> None:
        import pyarrow as pa

        self.name = name
        kinds: dict[str, Any] = {}
        empty: dict[str, None] = {}
        for line in chunk.text.split(b"\n"):
            row = _parsed(line)
            for key, value in row.items() if isinstance(row, dict) else ():
                kind = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}.get(type(value))
                if kind is not None:
                    kinds[key] = pa.string() if kinds.get(key, kind) != kind else kind
                elif value is None:
                    empty[key] = None
        if kinds:  # what later lines may have a text for
            kinds |= {key: pa.string() for key in empty if key not in kinds}
        else:
            raise DataError(
                f"{name}:{chunk.line}: no JSON Lines, in which every line is an object with text in it; of other JSON, "
                "`jq -c '.[]'` makes such lines."
            )
        self.columns = list(kinds)
        self.schema = pa.schema(kinds)

    def fast(self, text: bytes) -> Any:
        import pyarrow as pa
        from pyarrow import json as arrow_json

        # With a schema, and other keys ignored: what pyarrow would make of them itself can be nested without end.
        return arrow_json.read_json(
            pa.BufferReader(text),
            arrow_json.ReadOptions(use_threads=False, block_size=len(text) + 1),
            arrow_json.ParseOptions(explicit_schema=self.schema, unexpected_field_behavior="ignore"),
        )

    def slow(self, chunk: _Lines, problems: Problems) -> Rows:
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        for number, line in enumerate(chunk.text.split(b"\n")[:-1], chunk.line):
            if not line.strip():
                continue
            row = _parsed(line)
            if isinstance(row, str):
                problems.bad_record(number, 1, row)
                continue
            values = [row.get(column) for column in self.columns]
            rows.append([None if value is None else str(value) for value in values])
            numbers.append(number)
        return Rows(_batch(self.columns, rows, "utf-8"), numbers)


def _parsed(line: bytes) -> dict[str, Any] | str:
    """The object in a line, or what is wrong with it."""
    try:
        row = json.loads(line, object_pairs_hook=_once)
    except RecursionError:
        return "JSON that is nested too deeply"
    except ValueError as error:  # of JSON, of its encoding, of a number that is too long
        return f"no JSON ({error}); one object a line is due"
    return row if isinstance(row, dict) else "no JSON object; one object a line is due"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _batch(columns: list[str], rows: list[list[str | None]], encoding: str) -> Any:
    import pyarrow as pa

    def array(values: Iterable[str | None]) -> Any:
        encoded = (None if value is None else value.encode(encoding, "backslashreplace") for value in values)
        return pa.array(encoded, pa.large_binary())

    arrays = [array(row[at] for row in rows) for at in range(len(columns))]
    return pa.record_batch(arrays, names=columns)


def _delimiter(line: bytes) -> bytes:
    return max(_DELIMITERS, key=line.count)
