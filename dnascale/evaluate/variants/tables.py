"""Variants in TSV, CSV and Parquet: (chrom, pos, ref, alt), or (sequence, pos, alt). Positions count from 1, as in VCF."""

import io
from pathlib import Path
from typing import Any

from dnascale.errors import DataError, UsageError, first_line
from dnascale.evaluate.table import write_table
from dnascale.evaluate.variants.alleles import Allele, Status

#: What is found without being named, in lower case and without '#'.
NAMES = {
    "chrom": ("chrom", "chr", "chromosome", "contig", "seqname"),
    "pos": ("pos", "position", "pos_hg38", "pos_hg19", "pos_grch38", "pos_grch37"),
    "ref": ("ref", "reference", "ref_allele", "reference_allele"),
    "alt": ("alt", "alternate", "alternative", "alt_allele", "alternate_allele"),
    "sequence": ("sequence", "seq"),
}


def is_position(title: str) -> bool:
    """Whether a column of this title has positions, which may be numbers."""
    return _plain(title) in NAMES["pos"]


def require_titles(table: Any, path: Path) -> None:
    """Raises UsageError where the first line names no columns: a VCF without its header, sequences."""
    titles: list[str] = table.column_names
    if titles and titles[0].startswith(">"):
        raise UsageError(f"{path} holds sequences: the variants come first, and the sequences behind --reference.")
    if len(titles) > 3 and titles[1].isdigit():
        raise UsageError(
            f"{path}:1: a row where titles should be. Of VCF its header is missing (##fileformat=VCFv4.2, and #CHROM with the titles); of a "
            "table, the line with the names of its columns (chrom, pos, ref, alt)."
        )


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
        allele = Allele(row + 1, contig, start, ref, alt, unit="row")
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


def require_writable(table: Any, kind: str) -> None:
    """Raises UsageError where the table with its scores could not be written as `kind`."""
    import pyarrow as pa

    scored_table(table.slice(0, 0), [])
    try:
        write_table(table.slice(0, 1), io.BytesIO(), kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UsageError(
            f"the table has a column that {kind} cannot hold ({first_line(error)}): name a .parquet for the scores."
        ) from None


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
