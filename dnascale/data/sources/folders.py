"""Which files of a folder are inputs. Here names decide: what a file holds is looked at when it is read."""

from __future__ import annotations

from collections.abc import Iterable

from dnascale.data.sources.compression import SUFFIXES

_SEQUENCES = frozenset(
    ("fa", "fasta", "fas", "fna", "ffn", "frn", "fsa", "mfa", "fq", "fastq", "gb", "gbk", "gbff", "genbank", "embl", "2bit",
     "parquet", "arrow", "feather", "ipc")
)  # fmt: skip
#: Beside files of sequences these are notes about them (sample sheets, assembly reports).
_TABLES = frozenset(("csv", "tsv", "jsonl", "ndjson"))


def chosen(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The paths of a folder that are inputs, and those that are left out, both sorted.

    Left out are hidden files, files whose names do not end like those of sequences, and tables where there are others.
    """
    by_kind: dict[str, list[str]] = {"sequences": [], "tables": [], "others": []}
    for name in sorted(names):
        by_kind[_kind(name)].append(name)
    if by_kind["sequences"]:
        return by_kind["sequences"], sorted(by_kind["tables"] + by_kind["others"])
    return by_kind["tables"], by_kind["others"]


def _kind(name: str) -> str:
    file = name.replace("\\", "/").rpartition("/")[2].lower()
    if file.endswith(".records.parquet"):  # beside the shards of a data set, which may lie in the folder of its inputs
        return "others"
    for end in SUFFIXES:
        file = file.removesuffix(end)
    end = file.rpartition(".")[2]
    if file.startswith(".") or "." not in file:
        return "others"
    return "sequences" if end in _SEQUENCES else "tables" if end in _TABLES else "others"
