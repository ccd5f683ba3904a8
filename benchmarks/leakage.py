"""What the audit says of the same human coding sequences, split by record, by gene, and by gene with clusters.

Usage: python benchmarks/leakage.py human_cds_union.fasta.gz [--every 4] [--valid 0.1]

The records are transcripts of several sources, so that a gene has one name here and another there. Where a header
gives the place of a transcript on the genome (`chr1:226418850-226497204(-)`), its gene is taken to be all transcripts
that overlap it on the same strand; they are written as a table for `--group table:FILE`. The other records have an
Ensembl gene id or a name in the header. Prints a Markdown table for docs/explanation/leakage.md.
"""

from __future__ import annotations

import argparse
import platform
import re
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from dnascale import __version__
from dnascale.data.sources import ReadOptions, ReadReport, Record, find, read
from dnascale.data.split import Grouping, Holdout, Holdouts, Sample, Sketcher, SplitOptions, Table, group_key, settle

_PLACE = re.compile(r"^(chr\w+):(\d+)-(\d+)\(([+-])\)")


def loci(records: list[Record]) -> dict[str, str]:
    """Record name to the first transcript of its locus, for those with a place in the header."""
    placed = []
    for record in records:
        if match := _PLACE.match(record.description):
            placed.append(((match[1], match[4]), int(match[2]), int(match[3]), record.name))
    found: dict[str, str] = {}
    where, end, locus = None, 0, ""
    for strand, start, stop, name in sorted(placed):
        if strand != where or start > end:
            where, end, locus = strand, 0, name
        end = max(end, stop)
        found[name] = locus
    return found


def row(
    title: str, records: list[Record], sample: Sample, grouping: Grouping, options: SplitOptions, every: int
) -> str:
    names = [grouping.of(record, "input")[0] for record in records]
    keys = np.array([group_key(name) for name in names], dtype=np.uint64)
    settled = settle([Table(keys, names.__getitem__, sample=sample)], options, every)
    audit = settled.leakage
    assert audit is not None
    overlap, leaked = audit.overlaps[0], audit.leaked[0]
    refused = "refused" if leaked.share > (options.max_leakage or 0) else "passes"
    groups = f"{len(set(names)):,}" + (f", {settled.units:,} units of several" if settled.units is not None else "")
    return (
        f"| {title} | {groups} | {leaked.records:,} | {overlap.kmers:,} | {overlap.shared:,} | {overlap.share:.2%} | "
        f"{leaked.leaked:,} | {leaked.share:.2%} | {refused} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What the audit says of one file, split in several ways.")
    parser.add_argument("fasta")
    parser.add_argument("--every", type=int, default=4, help="one 31-mer in how many is looked at; 1: all")
    parser.add_argument("--valid", default="0.1")
    arguments = parser.parse_args()
    (source,) = find([arguments.fasta])
    records = list(read(source, ReadOptions(), ReadReport(source.name)))
    sketcher = Sketcher(arguments.every)
    for record in records:
        sketcher.add(record.codes())
    sample = Sample(*sketcher.finish())
    holdouts = Holdouts(Holdout.parse("--valid", arguments.valid))
    bases = sum(len(record.bases) for record in records)
    print(
        f"{Path(source.name).name}: {len(records):,} records, {bases:,} bases; valid {arguments.valid}; one 31-mer in"
    )
    print(
        f"{arguments.every}; dnascale {__version__}, numpy {np.__version__}, Python {platform.python_version()}, {date.today()}\n"
    )
    print(
        "| split by | groups | valid records | 31-mers looked at | in train | share | leaked records | share | default |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "genes.tsv"
        table.write_text("".join(f"{name}\t{locus}\n" for name, locus in loci(records).items()))
        by_gene = Grouping.parse(f"table:{table}", otherwise="gene")
        for title, grouping, cluster in (
            ("record", Grouping("record"), None),
            ("gene", by_gene, None),
            ("record, `--cluster 0.5`", Grouping("record"), 0.5),
            ("record, `--cluster 0.2`", Grouping("record"), 0.2),
            ("gene, `--cluster 0.5`", by_gene, 0.5),
            ("gene, `--cluster 0.2`", by_gene, 0.2),
            ("gene, `--cluster 0.05`", by_gene, 0.05),
        ):
            options = SplitOptions(holdouts, cluster=cluster)
            print(row(title, records, sample, grouping, options, arguments.every), flush=True)


if __name__ == "__main__":
    main()
