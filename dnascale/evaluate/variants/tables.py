"""Variants in TSV, CSV and Parquet: (chrom, pos, ref, alt), or (sequence, pos, alt). Positions count from 1, as in VCF."""

from pathlib import Path
from typing import Any

from dnascale.data.sources.input import Input
from dnascale.data.sources.opened import Source
from dnascale.data.sources.report import ReadReport
from dnascale.errors import DataError, UsageError, first_line
from dnascale.evaluate.variants.alleles import Allele, Status

#: What is found without being named, in lower case and without '#'.
NAMES = {
    "chrom": ("chrom", "chr", "chromosome", "contig", "seqname"),
    "pos": ("pos", "position", "pos_hg38", "pos_hg19", "pos_grch38", "pos_grch37"),
    "ref": ("ref", "reference", "ref_allele", "reference_allele"),
    "alt": ("alt", "alternate", "alternative", "alt_allele", "alternate_allele"),
    "sequence": ("sequence", "seq"),
}
_PARQUET = b"PAR1"


def read_table(path: Path) -> Any:
    """A pyarrow Table, text columns as text. Raises DataError when it cannot be read."""
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
            text = {title: pa.string() for title in titles if _plain(title) not in NAMES["pos"]}
            return csv.read_csv(
                source.file(),
                parse_options=csv.ParseOptions(delimiter=delimiter),
                convert_options=csv.ConvertOptions(column_types=text),
            )
    except (pa.ArrowInvalid, OSError) as error:  # Parquet that is damaged is an OSError
        raise DataError(f"{path} is no table that can be read: {first_line(error)}.") from None


def columns_of(table: Any, path: Path, named: dict[str, str]) -> dict[str, str]:
    """Which column is what: `chrom`, `pos`, `ref`, `alt`, or `sequence`, `pos`, `alt` and perhaps `ref`.

    Raises UsageError when one is missing, found twice or wrongly named.
    """
    titles: list[str] = table.column_names
    for role, title in named.items():
        if role not in NAMES:
            raise UsageError(f"--columns: {role!r} is none of {', '.join(NAMES)}.")
        if title not in titles:
            raise UsageError(f"--columns {role}={title}: {path} has no such column; it has {', '.join(titles)}.")
    found = dict(named)
    for role, known in NAMES.items():
        if role in found:
            continue
        fitting = [title for title in titles if _plain(title) in known]
        if len(fitting) > 1:
            raise UsageError(
                f"{path} has several columns for {role} ({', '.join(fitting)}): name one with --columns {role}=..."
            )
        if fitting:
            found[role] = fitting[0]
    needed = ("pos", "alt") if "sequence" in found and "chrom" not in found else ("chrom", "pos", "ref", "alt")
    missing = [role for role in needed if role not in found]
    if missing:
        raise UsageError(
            f"{path} has no column for {', '.join(missing)} among {', '.join(titles)}: name it, e.g. "
            f"--columns {missing[0]}=TITLE (positions count from 1)."
        )
    return found


def read_alleles(path: Path, table: Any, columns: dict[str, str]) -> tuple[list[Allele], dict[str, bytes]]:
    """One allele a row, and the sequences of a table that holds them, by the name that the alleles give as contig.

    Raises DataError naming the row of the first that makes no sense.
    """
    values = {role: _values(table.column(title)) for role, title in columns.items()}
    own = "chrom" not in columns
    sequences: dict[str, bytes] = {}
    names: dict[str, str] = {}
    found = []
    for row in range(table.num_rows):
        where = f"{path}: row {row + 1}"
        start = _whole(values["pos"][row], where) - 1
        alt = str(values["alt"][row] or "").encode()
        if own:
            letters = str(values["sequence"][row] or "")
            contig = names.setdefault(letters, f"sequence of row {row + 1}")
            sequences.setdefault(contig, letters.encode())
            given = values["ref"][row] if "ref" in values else None
            ref = str(given).encode() if given else letters[start : start + 1].encode() if start >= 0 else b""
        else:
            contig, ref = str(values["chrom"][row]), str(values["ref"][row] or "").encode()
        allele = Allele(row + 1, contig, start, ref, alt)
        if own and not ref:
            allele.status = Status.outside
        found.append(allele)
    return found, sequences


def scored_table(table: Any, alleles: list[Allele]) -> Any:
    """The table with two more columns, llr (null where there is none) and status."""
    import pyarrow as pa

    taken = {"llr", "status"} & set(table.column_names)
    if taken:
        raise UsageError(f"the table has a column {taken.pop()!r} already, where the score is to go: rename it.")
    llr = [allele.llr if allele.status is Status.scored else None for allele in alleles]
    table = table.append_column("llr", pa.array(llr, pa.float64()))
    return table.append_column("status", pa.array([str(allele.status) for allele in alleles]))


def table_of(alleles: list[Allele]) -> Any:
    """A table of alleles that came from elsewhere: chrom, pos (from 1), ref, alt."""
    import pyarrow as pa

    return pa.table(
        {
            "chrom": pa.array([allele.contig for allele in alleles], pa.string()),
            "pos": pa.array([allele.start + 1 for allele in alleles], pa.int64()),
            "ref": pa.array([allele.ref.decode() for allele in alleles], pa.string()),
            "alt": pa.array([allele.alt.decode() for allele in alleles], pa.string()),
        }
    )


def write_table(table: Any, path: Path, kind: str) -> None:
    """`kind`: .parquet, .tsv or .csv."""
    from pyarrow import csv, parquet

    if kind == ".parquet":
        parquet.write_table(table, path)
    else:
        csv.write_csv(table, path, csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ",", quoting_style="needed"))


def _values(column: Any) -> list[Any]:
    """A column as Python's own values; bytes are text."""
    return [one.decode(errors="replace") if isinstance(one, bytes) else one for one in column.to_pylist()]


def _whole(position: Any, where: str) -> int:
    try:
        number = int(position)
    except (TypeError, ValueError, OverflowError):  # the last: infinity
        raise DataError(f"{where}: the position {position!r} is no number.") from None
    if isinstance(position, float) and position != number:
        raise DataError(f"{where}: the position {position!r} is no whole number.")
    return number


def _plain(title: str) -> str:
    return title.strip().lstrip("#").lower()
