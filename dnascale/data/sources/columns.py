"""From the rows of a table to records: which column holds the sequences, which the names, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dnascale.data.sources.alphabet import BASES, INVALID, encode, meaning, shown, shown_byte, text_of
from dnascale.data.sources.problems import Problems
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions
from dnascale.errors import DataError, UsageError

#: How columns of sequences, and of names, are called; the first that is there. Compared in lower case, `_` for blanks.
SEQUENCE_NAMES = (
    "sequence", "seq", "dna", "dna_sequence", "dna_seq", "nucleotide_sequence", "nucleotides", "nt_sequence", "nt_seq",
    "cds", "cds_sequence", "coding_sequence", "cdna", "cdna_sequence", "genomic_sequence", "bases", "text",
)  # fmt: skip
_NAME_NAMES = (
    "name", "id", "record", "record_id", "seq_id", "sequence_id", "seq_name", "sequence_name", "accession",
    "transcript_id", "transcript", "identifier",
)  # fmt: skip
#: Bytes of the longest sequence that a cell of a table may hold.
MAX_CELL = 64 << 20
_SAMPLE_ROWS = 1000
_SURE_LENGTH = 20  # mean number of letters that are no accident, in a column of any name
_SLICE_BYTES = 16 << 20
_MAX_NAME = 64 << 10
_NOT_A_BASE = re.compile(rb"[^%s]" % BASES)  # a line end is none either


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table (a pyarrow RecordBatch), and the number of each in the file, from 1."""

    batch: Any
    numbers: Sequence[int]


def is_text(kind: Any) -> bool:
    """Whether a column of this Arrow type can hold sequences."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
        pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def is_wanted(kind: Any) -> bool:
    """Whether a column of this Arrow type is read: text, and what may name a group (whole numbers, yes or no)."""
    import pyarrow as pa

    return is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def records(
    rows: Iterator[Rows],
    problems: Problems,
    options: ReadOptions,
    unit: str = "row",
    missing: frozenset[bytes] = frozenset(),
) -> Iterator[Record]:
    """The records of a table.

    `unit` is what the numbers of its rows count: rows of the table, or lines of the file. A sequence in `missing` is none.

    Raises:
        DataError: no column, or more than one, holds DNA; no rows; bad rows.
        UsageError: the columns that `options` name are not there, or hold no text.
    """
    table: _Table | None = None
    for some in rows:
        if not some.batch.num_rows:
            continue
        table = table or _Table(some, options, problems, unit, missing)
        yield from table.records(some)
    if table is None:
        raise DataError(f"{problems.report.name} is a table without rows: there is nothing to read.")
    table.finish()


class _Table:
    """The columns that were chosen, by the first rows, and what was met in them."""

    def __init__(
        self, first: Rows, options: ReadOptions, problems: Problems, unit: str, none: frozenset[bytes]
    ) -> None:
        self.report, self.problems, self.unit, self.none = problems.report, problems, unit, none
        self.sequence = _sequence_column(first.batch, options, self.report.name)
        self.name = _name_column(first.batch, options, self.report.name, self.sequence)
        self.missing, self.first_missing = 0, 0

    def records(self, rows: Rows) -> Iterator[Record]:
        columns = {name: _plain(rows.batch.column(name)) for name in rows.batch.schema.names}
        sequences = columns.pop(self.sequence)
        offsets, data = _buffers(sequences)
        nulls = sequences.is_null().to_numpy(zero_copy_only=False).tolist()
        names = self.names(columns, rows.numbers)
        described = "description" in columns
        start = 0
        while start < len(nulls):  # parts of a batch that may be large, being a map of a file
            end = int(np.searchsorted(offsets, offsets[start] + _SLICE_BYTES, side="right")) - 1
            end = min(max(end, start + 1), len(nulls))
            letters = data[offsets[start] : offsets[end]].to_pybytes()
            codes = np.frombuffer(encode(letters), dtype=np.uint8)
            edges = (offsets[start : end + 1] - offsets[start]).tolist()
            sound = not (codes == INVALID).any()
            found = [
                (at, letters[begin:stop], begin, stop)
                for at, begin, stop in zip(range(start, end), edges[:-1], edges[1:], strict=True)
            ]
            good = [
                row for row in found if self.is_good(names[row[0]], row[1], rows.numbers[row[0]], nulls[row[0]], sound)
            ]
            if self.name is not None:
                self.problems.new_names([names[row[0]] for row in good], [rows.numbers[row[0]] for row in good])
            for at, bases, begin, stop in good:
                fields = _Fields(columns, at, self.name)
                text = fields.get("description", "") if described else ""
                yield Record.coded(names[at], text, bases, rows.numbers[at], codes[begin:stop], fields)
            start = end

    def names(self, columns: dict[str, Any], numbers: Sequence[int]) -> list[str]:
        """A name for each row, empty where it has none."""
        if self.name is None:
            return [f"{self.unit}-{number}" for number in numbers]
        return [_decoded(value) or "" for value in columns[self.name].to_pylist()]

    def is_good(self, name: str, bases: bytes, number: int, null: bool, sound: bool) -> bool:
        """Whether this row is a record, which is counted. If not, why has been noted."""
        if null or bases in self.none:
            self.first_missing = self.first_missing or number
            self.missing += 1
            return False
        if name and bases and sound and len(name) <= _MAX_NAME and len(bases) <= MAX_CELL:
            self.report.records += 1
            self.report.bases += len(bases)
            return True
        if not name or len(name) > _MAX_NAME:
            what = "no name" if not name else "a name of more than 64 KiB"
            what += f" in column {self.name!r}; name another with --name-column"
        elif len(bases) > MAX_CELL:
            what = f"a sequence of {len(bases):,} bases in one cell, where 64 MiB is the limit; give it as FASTA"
        elif other := _NOT_A_BASE.search(bases):
            what = f"{shown_byte(other[0])}, letter {other.start() + 1:,} of record {shown(name)}: {meaning(other[0])}"
        else:
            self.report.gave(len(bases), shown(name), number)
            return True
        self.problems.bad_record(number, 1, what, bases=len(bases))
        return False

    def finish(self) -> None:
        if self.missing:
            self.report.warn(
                f"{self.report.name}: {self.missing:,} rows without a value in column {self.sequence!r} were left out, the "
                f"first is {self.unit} {self.first_missing}"
            )
        self.problems.finish()


class _Fields(Mapping[str, str]):
    """The other columns of one row, those without a value left out. Made into text only when asked for.

    `in` asks whether there is such a column, `get` whether this row has a value in it.
    """

    __slots__ = ("_at", "_columns", "_name")

    def __init__(self, columns: dict[str, Any], at: int, name: str | None) -> None:
        self._columns, self._at, self._name = columns, at, name

    def __getitem__(self, key: str) -> str:
        value = None if key == self._name else _decoded(self._columns[key][self._at].as_py())
        if value is None:
            raise KeyError(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._columns and key != self._name

    def __iter__(self) -> Iterator[str]:
        return (key for key, column in self._columns.items() if key != self._name and column[self._at].is_valid)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _decoded(value: Any) -> str | None:
    """A value of a column as text. None for null."""
    if isinstance(value, bytes):
        return text_of(value)
    return None if value is None else str(value)


def _plain(array: Any) -> Any:
    """A column as large_binary, or as it is when it holds no text."""
    import pyarrow as pa

    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.cast(pa.large_binary()) if is_text(array.type) else array


def _buffers(array: Any) -> tuple[np.ndarray, Any]:
    """Offsets, int64 [n + 1], and the Arrow buffer that they point into, of a large_binary array."""
    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    return edges, data


def _sequence_column(batch: Any, options: ReadOptions, where: str) -> str:
    names = batch.schema.names
    if options.column:
        name = _named(options.column, names, "--column", where)
        kind = batch.schema.field(name).type
        if not is_text(kind):
            raise UsageError(f"column {name!r} of {where} holds no text but {kind}: name the column of the sequences.")
        return name
    text = [name for name in names if is_text(batch.schema.field(name).type)]
    named = [name for name in text if _key(name) in SEQUENCE_NAMES]
    dna = [name for name in text if _is_dna(batch.column(name), 1 if name in named else _SURE_LENGTH)]
    for candidates in ([name for name in named if name in dna], dna, named):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise UsageError(
                f"{where} has several columns that may hold the sequences ({_list(candidates)}): say which with --column."
            )
    raise DataError(
        f"{where} is a table in which no column holds DNA (its columns are {_list(names) or 'none of text'}): name the "
        "column with --column, or check that this is the right file and has a header."
    )


def _name_column(batch: Any, options: ReadOptions, where: str, sequence: str) -> str | None:
    names = [name for name in batch.schema.names if name != sequence]
    if options.name_column:
        return _named(options.name_column, names, "--name-column", where)
    known = {_key(name): name for name in reversed(names)}
    return next((known[name] for name in _NAME_NAMES if name in known), None)


def _named(wanted: str, names: list[str], option: str, where: str) -> str:
    if wanted not in names:
        raise UsageError(f"{option} {wanted}: {where} has no such column; there are {_list(names)}.")
    return wanted


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _list(names: list[str]) -> str:
    return ", ".join(shown(name) for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _is_dna(array: Any, least: int) -> bool:
    """Whether the first values of a column are DNA or RNA, but for a few letters, with `least` letters on average."""
    values = _plain(array.slice(0, _SAMPLE_ROWS)).drop_null()
    edges, data = _buffers(values)
    if not len(values) or edges[-1] - edges[0] < least * len(values):
        return False
    letters = data[edges[0] : min(edges[-1], edges[0] + _SLICE_BYTES)].to_pybytes()
    return len(letters.translate(None, BASES)) <= 0.01 * len(letters) and (
        len(letters.translate(None, b"ACGTUNacgtun")) <= 0.1 * len(letters)
    )
