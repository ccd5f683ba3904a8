"""Tables in and out: TSV, CSV and Parquet, as pyarrow has them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dnascale.data.sources.input import Input
from dnascale.data.sources.opened import Source
from dnascale.data.sources.report import ReadReport
from dnascale.errors import DataError, first_line

_PARQUET = b"PAR1"
_LINE = re.compile(rb"[^\r\n]+")


def read_table(path: Path, inferred: Callable[[str], bool] = lambda _title: False) -> Any:
    """A pyarrow Table of a .tsv, .csv or Parquet file, known by its content, compressed or not. Columns of text files are text, but those
    whose title is `inferred`. Raises DataError when it cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    report = ReadReport(str(path))
    try:
        with Source(Input.of(path), report) as source:
            if source.head.startswith(_PARQUET):
                if source.path is None:
                    raise DataError(f"{path} is compressed Parquet: decompress it first.")
                for _ in source.blocks():
                    pass
                return parquet.read_table(source.path)
            first = source.head.split(b"\n", 1)[0]
            delimiter = "\t" if b"\t" in first else ","
            titles = [
                title.strip().strip('"') for title in first.decode("utf-8-sig", "replace").strip().split(delimiter)
            ]
            text = {title: pa.string() for title in titles if not inferred(title)}
            # Between tabs a quotation mark is a letter, unless the titles are in quotes too.
            quote = '"' if delimiter == "," or b'"' in first else False
            content = source.file().read()
            table = csv.read_csv(
                pa.BufferReader(content),
                parse_options=csv.ParseOptions(delimiter=delimiter, quote_char=quote),
                convert_options=csv.ConvertOptions(column_types=text),
            )
            rows = sum(1 for _ in _LINE.finditer(content)) - 1
            if table.num_rows != rows:
                raise DataError(
                    f"{path} has {rows:,} lines below its titles, and {table.num_rows:,} rows can be read: a quotation mark that is not "
                    "closed joins lines. Remove it."
                )
            table.column_names  # noqa: B018 - decodes them
            return table
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:  # Parquet that is damaged is an OSError
        raise DataError(f"{path} is no table that can be read: {first_line(error)}.") from None


def write_table(table: Any, file: IO[bytes], kind: str) -> None:
    """`kind`: .parquet, .tsv or .csv, in quotes only where something in the table needs them."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    if kind == ".parquet":
        parquet.write_table(table, file)
        return
    delimiter, begin = "\t" if kind == ".tsv" else ",", file.tell()
    titles = delimiter.join(table.column_names)
    try:
        if titles.count(delimiter) >= table.num_columns or set('"\r\n') & set(titles):
            raise pa.ArrowInvalid(titles)
        file.write(titles.encode() + b"\n")
        csv.write_csv(table, file, csv.WriteOptions(include_header=False, delimiter=delimiter, quoting_style="none"))
    except pa.ArrowInvalid:  # a value has a quotation mark, a delimiter or the end of a line in it
        file.seek(begin)
        file.truncate()
        csv.write_csv(table, file, csv.WriteOptions(delimiter=delimiter, quoting_style="needed"))
