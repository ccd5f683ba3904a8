"""Tables: the column of sequences is found or named, all rows come back whatever the format, and bad ones are placed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnascale.data import sources
from dnascale.data.sources import Input, ReadOptions, ReadReport, Record, columns, delimited, tables
from dnascale.data.split import Grouping
from dnascale.errors import DataError, UsageError


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=3)
    return out.getvalue()


def arrow_file(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def arrow_stream(table: pa.Table) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def feather(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pa.feather.write_feather(table, out)
    return out.getvalue()


def csv_of(table: pa.Table, delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator="\n")  # type: ignore[arg-type]
    writer.writerow(table.column_names)
    writer.writerows(["" if value is None else value for value in row.values()] for row in table.to_pylist())
    return out.getvalue().encode()


def jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode()


FORMATS: dict[str, Callable[[pa.Table], bytes]] = {
    "parquet": parquet,
    "arrow file": arrow_file,
    "arrow stream": arrow_stream,
    "feather": feather,
    "csv": csv_of,
    "csv, all quoted": lambda table: csv_of(table, quoting=csv.QUOTE_ALL),
    "csv with semicolons": lambda table: csv_of(table, ";"),
    "tsv": lambda table: csv_of(table, "\t"),
    "jsonl": jsonl,
}
GENES = pa.table(
    {
        "name": ["a", "b", "c", "d", "e"],
        "sequence": ["ACGT", "acgtNNRY", "", None, "TTTTT"],
        "gene": ["BRCA1", "BRCA1", None, "X", 'with "quotes", and commas'],
        "chromosome": [17, 17, 2, 3, 4],
        "score": [0.5, 0.25, 1.0, 1.0, 1.0],
    }
)
# Text formats cannot tell the empty sequence from one that is missing.
TEXT_ONLY = ("csv", "csv, all quoted", "csv with semicolons", "tsv")


def read(path: Path, data: bytes, **options: Any) -> tuple[list[Record], ReadReport]:
    path.write_bytes(data)
    report = ReadReport(str(path))
    return list(sources.read(Input.of(path), ReadOptions(**options), report)), report


def refusal(path: Path, data: bytes, **options: Any) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        read(path, data, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def named(records: list[Record]) -> list[tuple[str, bytes]]:
    return [(record.name, record.bases[:]) for record in records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table"


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ------------------------------------------------------------------------------------- what is accepted


def test_every_format_gives_the_same_records(path: Path, form: str) -> None:
    records, report = read(path, FORMATS[form](GENES))
    empty = [] if form in TEXT_ONLY else [("c", b"")]
    assert named(records) == [("a", b"ACGT"), ("b", b"acgtNNRY"), *empty, ("e", b"TTTTT")]
    assert (report.records, report.bases, report.empty) == (len(records), 17, len(empty))
    missing = 2 - len(empty)
    assert f"{missing} rows without a value in column 'sequence' were left out" in " ".join(report.warnings)


def test_other_columns_are_fields_as_text(path: Path, form: str) -> None:
    records, _ = read(path, FORMATS[form](GENES))
    wanted = [{"gene": "BRCA1", "chromosome": "17"}, {"gene": 'with "quotes", and commas', "chromosome": "4"}]
    found = [{key: value for key, value in record.fields.items() if key != "score"} for record in records]
    assert [found[0], found[-1]] == wanted
    assert [record.codes().tolist() for record in records] == [
        Record("", "", record.bases, 1).codes().tolist() for record in records
    ]


def test_codes_are_those_of_the_letters(path: Path) -> None:
    for record in read(path, parquet(GENES))[0]:
        assert record.codes().tolist() == Record("x", "", record.bases, 1).codes().tolist()


def test_a_missing_value_is_no_field(path: Path) -> None:
    record = read(path, parquet(GENES))[0][2]
    assert (record.name, dict(record.fields)) == ("c", {"chromosome": "2"})


def test_rows_without_a_column_of_names_are_named_by_their_place(path: Path, form: str) -> None:
    table = pa.table({"dna": ["ACGTACGT", "CCCC"], "score": [0.5, 0.5]})
    records, _ = read(path, FORMATS[form](table))
    lines = {"jsonl": ["line-1", "line-2"]} | {form: ["line-2", "line-3"] for form in TEXT_ONLY}
    assert [record.name for record in records] == lines.get(form, ["row-1", "row-2"])


KINDS = (
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
)  # fmt: skip


@pytest.mark.parametrize("write", [arrow_file, arrow_stream])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_type_of_text_is_read_from_arrow(path: Path, kind: pa.DataType, write: Callable[[pa.Table], bytes]) -> None:
    values = ["ACGT", None, "ac", "ACGT"]
    column = pa.array(values).cast(pa.binary()) if pa.types.is_binary(kind) else pa.array(values)
    column = column.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)
    assert named(read(path, write(pa.table({"seq": column})))[0]) == [
        ("row-1", b"ACGT"),
        ("row-3", b"ac"),
        ("row-4", b"ACGT"),
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_any_type_of_text_is_read_from_parquet(path: Path, kind: pa.DataType) -> None:
    column = pa.array(["ACGT", None, "ac"])
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    assert named(read(path, parquet(pa.table({"seq": column})))[0]) == [("row-1", b"ACGT"), ("row-3", b"ac")]


def test_nested_columns_are_left_alone(path: Path) -> None:
    table = pa.table(
        {"exons": [[1, 2], [3]], "of": [{"a": "ACGT"}, {"a": "x"}], "seq": ["ACGT", "GG"], "more": [["ACGT"], []]}
    )
    for write in (parquet, arrow_file, jsonl):
        records, _ = read(path, write(table))
        assert [record.bases[:] for record in records] == [b"ACGT", b"GG"]


def test_compressed_tables_are_read(path: Path, form: str) -> None:
    records, report = read(path, gzip.compress(FORMATS[form](GENES)))
    assert (len(records) >= 3, report.compression) == (True, "gzip")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8).filter(str.strip),
            st.text("ACGTNacgtn", min_size=4, max_size=40),
        ),
        min_size=1,
        max_size=30,
        unique_by=lambda row: row[0].lower(),
    ),
    form=st.sampled_from(["csv", "csv, all quoted", "tsv", "jsonl", "parquet"]),
    chunk=st.sampled_from([1, 20, 4 << 20]),
)
def test_any_names_and_sequences_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], form: str, chunk: int
) -> None:
    table = pa.table({"id": [name for name, _ in rows], "seq": [bases for _, bases in rows]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_CHUNK_BYTES", chunk)
        records, _ = read(tmp_path_factory.mktemp("x") / "a", FORMATS[form](table), name_column="id", column="seq")
    expected = [(name, bases.encode()) for name, bases in rows]
    if form in TEXT_ONLY:
        expected = [row for row in expected if row[1] not in (b"NA", b"nan")]
    assert named(records) == expected


def test_crlf_and_a_byte_order_mark_are_no_part_of_a_csv(path: Path) -> None:
    records, _ = read(path, b"\xef\xbb\xbf" + csv_of(GENES).replace(b"\n", b"\r\n"))
    assert named(records)[0] == ("a", b"ACGT")


def test_a_quoted_line_break_is_part_of_its_value_and_lines_still_count(path: Path) -> None:
    text = b'id,note,seq\nx,"two\nlines",ACGT\ny,one,GGGG\n'
    records, _ = read(path, text)
    assert [(r.name, r.line, r.fields["note"]) for r in records] == [("x", 2, "two\nlines"), ("y", 4, "one")]


def test_blank_lines_in_json_are_skipped_and_lines_still_count(path: Path) -> None:
    records, _ = read(path, b'\n{"id": "x", "seq": "ACGT"}\n\n{"id": "y", "seq": "GG"}\n')
    assert [(r.name, r.line) for r in records] == [("x", 2), ("y", 4)]


def test_json_keys_that_change_their_type_or_come_late_are_read(path: Path) -> None:
    text = b'{"id": 1, "seq": "ACGT"}\n{"id": "x", "seq": "GG"}\n{"seq": "TT", "id": 2.5, "new": "?"}\n'
    assert named(read(path, text)[0]) == [("1", b"ACGT"), ("x", b"GG"), ("2.5", b"TT")]


def test_names_that_are_not_utf8_are_taken_as_latin_1(path: Path) -> None:
    records, _ = read(path, "id,seq\nMüller,ACGT\n".encode("latin-1"))
    assert records[0].name == "Müller"


@pytest.mark.parametrize("form", ["csv", "csv, all quoted"])
@pytest.mark.parametrize("missing", ["NA", "NaN", "null", ""])
def test_what_programs_write_for_a_missing_value_is_no_sequence(path: Path, missing: str, form: str) -> None:
    """R writes NA, of which both letters would be bases."""
    records, report = read(path, FORMATS[form](pa.table({"id": ["x", "y"], "seq": ["ACGT", missing]})))
    assert named(records) == [("x", b"ACGT")]
    assert "1 rows without a value" in report.warnings[0]


# ------------------------------------------------------------------------------- which column is which


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ({"seq": ["ACGT"], "note": ["hello"]}, "seq"),
        ({"Coding Sequence": ["ACGT"], "protein": ["MKV"]}, "Coding Sequence"),
        ({"x": ["ACGTACGTACGTACGTACGTACGT"], "gene": ["CAT"], "allele": ["A"]}, "x"),
        ({"sequence": ["MKVLAAPLQE" * 3], "orf": ["ATGAAAGTGCTGGCGGCGCCGCTG"]}, "orf"),
        ({"sequence": ["ACGTACGTACGTACGTACGTACGTAA"], "utr5": ["ACGTACGTACGTACGTACGTACGT"]}, "sequence"),
        ({"text": ["ACGT"]}, "text"),
    ],
)
def test_the_column_of_sequences_is_found(path: Path, table: dict[str, list[str]], column: str) -> None:
    records, _ = read(path, parquet(pa.table(table)))
    assert [record.bases[:].decode() for record in records] == table[column]


def test_of_two_columns_of_dna_one_must_be_named(path: Path, form: str) -> None:
    table = pa.table({"id": ["x"], "cds": ["ACGTAC"], "cdna": ["GGACGTAC"]})
    assert "several columns that may hold the sequences ('cds', 'cdna'): say which" in refusal(
        path, FORMATS[form](table)
    )
    assert named(read(path, FORMATS[form](table), column="cdna")[0]) == [("x", b"GGACGTAC")]


def test_a_table_without_dna_lists_its_columns(path: Path, form: str) -> None:
    message = refusal(path, FORMATS[form](pa.table({"error": ["not found"], "code": [404]})))
    assert "no column holds DNA (its columns are 'error', 'code')" in message


def test_a_named_column_must_be_there_and_hold_text(path: Path) -> None:
    data = parquet(GENES)
    assert "--column dna: " in refusal(path, data, column="dna")
    assert "there are 'name', 'sequence', 'gene'" in refusal(path, data, column="dna")
    assert "holds no text but int64" in refusal(path, data, column="chromosome")
    assert "--name-column id: " in refusal(path, data, name_column="id")


def test_another_column_can_name_the_records(path: Path, form: str) -> None:
    table = pa.table({"name": ["a", "b"], "key": ["k1", "k2"], "seq": ["ACGT", "GGGG"]})
    assert named(read(path, FORMATS[form](table), name_column="key")[0]) == [("k1", b"ACGT"), ("k2", b"GGGG")]


def test_a_description_is_the_records_description(path: Path) -> None:
    table = pa.table({"id": ["a"], "seq": ["ACGT"], "description": ["cds gene:ENSG00000139618.15"]})
    ((record,), _) = read(path, parquet(table))
    assert Grouping().of(record, "a.parquet") == ("ENSG00000139618", "ensembl-gene")


# -------------------------------------------------------------------------------------- what is refused


def test_bad_rows_are_placed_and_the_others_go_on(path: Path, form: str) -> None:
    table = pa.table({"id": list("abcde"), "seq": ["ACGT" * 9, "AC-T", "GGGG" * 9, "ACGU\tA", "TTTT" * 9]})
    data = FORMATS[form](table)
    first = {"jsonl": 1} | dict.fromkeys(TEXT_ONLY, 2)
    message = refusal(path, data)
    assert f"{path}:{first.get(form, 1) + 1}:1: '-', letter 3 of record 'b': a gap" in message
    assert f"{path}:{first.get(form, 1) + 3}:1: byte 0x09, letter 5 of record 'd'" in message
    records, report = read(path, data, skip_bad_records=True)
    assert [record.name for record in records] == ["a", "c", "e"]
    assert (report.bad_records, report.bad_bases) == (2, 10)


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize(("first", "last"), [('primer 5" long', '"quoted start'), ('"half', 'other half"')])
def test_a_quote_that_takes_whole_rows_with_it_is_refused(path: Path, delimiter: str, first: str, last: str) -> None:
    rows = [("a", "ACGT" * 9, first), *((f"s{n}", "ACGT" * 9, "x") for n in range(50)), ("z", "ACGT" * 9, last)]
    rows.append(("end", "ACGT" * 9, "x"))
    if first.startswith("primer"):  # the second quote is opened early, and closed by nothing but the number of quotes
        rows[1], rows[-2] = rows[-2], rows[1]
    text = "".join(delimiter.join(row) + "\n" for row in [("id", "seq", "note"), *rows])
    assert "takes whole rows with it" in refusal(path, text.encode())


def test_a_key_that_is_null_at_first_is_a_column(path: Path) -> None:
    lines = [{"id": f"s{n}", "seq": "ACGT" * 9, "gene": None if n < 150 else f"g{n}"} for n in range(200)]
    lines += [{"id": "late", "seq": "ACGT" * 9, "symbol": "TP53"}]
    records, _ = read(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert records[0].fields.get("gene") is None
    assert records[150].fields["gene"] == "g150"
    assert records[200].fields["symbol"] == "TP53"


def test_a_name_twice_and_a_name_that_is_missing_are_refused(path: Path, form: str) -> None:
    table = pa.table({"id": ["a", "a", None], "seq": ["ACGT", "GG", "TT"]})
    message = refusal(path, FORMATS[form](table))
    assert "no name in column 'id'" in message
    assert "the name of this record was used in line" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,seq\na,ACGT\nb,GG,GG\nc,TT\n", ":3:1: 3 values where the first line names 2 columns"),
        (b"id,seq\na,ACGT\nb\n", ":3:1: 1 values where"),
        (b'id,seq\na,"ACGT\nb,GG\n', "ends within quotes"),
        (b"id,id,seq\na,b,ACGT\n", ":1: two columns are named 'id'"),
        (b"a,ACGTACGTACGTACGTACGTACGT\n", ":1: a sequence where the names of the columns should be"),
        (b"id,seq\n", "without rows"),
        (b"chr1\t100\t200\nchr1\t300\t400\n", "no column holds DNA"),
    ],
)
def test_what_is_no_sound_csv_is_told_in_a_sentence(path: Path, text: bytes, message: str) -> None:
    assert message in refusal(path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"seq": "ACGT"}\n{"seq": "AC\n', ":2:1: no JSON"),
        (b'{"seq": "ACGT"}\n["ACGT"]\n', ":2:1: no JSON object; one object a line is due"),
        (b'{"seq": "ACGT"}\n{"seq": "A"} {"seq": "C"}\n', ":2:1: no JSON (Extra data"),
        (b'{"seq": "ACGT"}\n{"seq": "A", "seq": "C"}\n', ":2:1: no JSON (a key is there twice)"),
        (b'{"seq": "ACGT"}\n{"seq": "\xff"}\n', ":2:1: byte 0xFF, letter 1 of record 'line-2': not ASCII"),
        (b'{"seq": "ACGT"}\n\n{"seq": "\xff"}\n', ":3:1: no JSON ('utf-8' codec"),
        (b'{"seq": "ACGT"}\n{"seq": 17}\n', ":2:1: '1', letter 1 of record 'line-2': a digit"),
        (b'{\n  "seq": "ACGT"\n}\n', "`jq -c '.[]'`"),
        (b'[{"seq": "ACGT"}]\n', "JSON Lines"),
        (b"{}\n", "no JSON Lines"),
    ],
)
def test_what_is_no_sound_jsonl_is_told_in_a_sentence(path: Path, text: bytes, message: str) -> None:
    assert message in refusal(path, text)


@pytest.mark.parametrize("form", ["parquet", "arrow file", "arrow stream"])
@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
@example(at=0.416015625, value=128, cut=False)  # a column's name in the footer that is no UTF-8
@example(at=930.5 / 2485, value=242, cut=False)  # what pyarrow aborts over, when asked for the column
def test_damage_of_binary_tables_gives_records_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, form: str, at: float, value: int, cut: bool
) -> None:
    data = FORMATS[form](GENES)
    place = int(at * len(data))
    damaged = data[:place] if cut else data[:place] + bytes([value]) + data[place + 1 :]
    try:
        records, _ = read(tmp_path_factory.mktemp("x") / "a", damaged)
    except (DataError, UsageError):
        return
    assert len(records) <= 5


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "jsonl", "2bit", "genbank", "embl"])
@settings(max_examples=40, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text('id,seq\t\n"ACGT{}[]:;0', max_size=60).map(str.encode),
        st.sampled_from([b"", b"\n", b"\n\nid,seq\nx,ACGT\n", b"seq", b'"', b"{}", b"PAR1PAR1", b"ARROW1\0\0"]),
    )
)
def test_whatever_is_said_to_be_of_a_format_gives_records_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: bytes
) -> None:
    with suppress(DataError, UsageError):
        read(tmp_path_factory.mktemp("x") / "a", data, format=form)


def test_blank_lines_before_a_header_are_skipped_and_lines_still_count(path: Path) -> None:
    ((record,), _) = read(path, b"\n\nid,seq\nx,ACGT\n")
    assert (record.name, record.line) == ("x", 4)


def test_columns_of_one_name_are_refused(path: Path) -> None:
    table = pa.table([["ACGT"], ["ACGT"]], names=["seq", "seq"])
    assert "two columns named 'seq'" in refusal(path, parquet(table))


def test_a_table_without_text_says_what_it_has(path: Path) -> None:
    assert "no column of text" in refusal(path, parquet(pa.table({"x": [1], "y": [["ACGT"]]})))


# ------------------------------------------------------------------------------- size and malice


def test_rows_that_are_larger_than_a_batch_are_read_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_SLICE_BYTES", 10)
    monkeypatch.setattr(tables, "_BATCH_BYTES", 10)
    random = np.random.default_rng(0)
    rows = ["".join(random.choice(list("ACGT"), int(length))) for length in random.integers(4, 60, 100)]
    for write in (parquet, arrow_file):
        records, _ = read(path, write(pa.table({"seq": rows})))
        assert [record.bases[:].decode() for record in records] == rows


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_cell_beyond_the_limit_is_refused(path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (columns, delimited, tables):
        monkeypatch.setattr(module, "MAX_CELL", 1000)
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 100)
    data = FORMATS[form](pa.table({"id": list("ab"), "seq": ["ACGT", "ACGT" * 600_000]}))
    assert "limit" in refusal(path, data)


def test_a_line_without_end_is_refused_before_it_fills_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "MAX_CELL", 1 << 20)
    monkeypatch.setattr(delimited, "_CHUNK_BYTES", 1 << 16)
    for start in (b'{"seq": "', b"id,seq\na,"):
        assert "a row of more than 64 MiB" in refusal(path, gzip.compress(start + b"A" * (20 << 20)))


@pytest.mark.parametrize("depth", [1000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_that_is_nested_without_end_is_refused_or_ignored(
    path: Path, depth: int, opening: str, closing: str
) -> None:
    deep = opening * depth + "1" + closing * depth
    ignored = f'{{"seq": "ACGT"}}\n{{"seq": "GG", "x": {deep}}}\n'
    assert named(read(path, ignored.encode())[0]) == [("line-1", b"ACGT"), ("line-2", b"GG")]
    message = refusal(path, f'{{"seq": "ACGT"}}\n{{"seq": {deep}}}\n'.encode())
    assert ":2:1:" in message


def test_a_pickle_in_a_schema_is_not_loaded(path: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pwned"
    code = b"cposix\nsystem\n(S'touch %s'\ntR." % str(mark).encode()
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": code}
    field = pa.field("seq", pa.string(), metadata=metadata)
    for write in (parquet, arrow_file, arrow_stream):
        records, _ = read(path, write(pa.table([["ACGT"]], schema=pa.schema([field]))))
        assert named(records) == [("row-1", b"ACGT")]
    assert not mark.exists()


def test_names_that_are_paths_stay_names(path: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    records, _ = read(path, parquet(pa.table({"id": ["../../etc/passwd", "/tmp/x"], "seq": ["ACGT", "GG"]})))
    assert [record.name for record in records] == ["../../etc/passwd", "/tmp/x"]
    assert set(tmp_path.iterdir()) - before == {path}
