"""Make human-cds.fasta.gz, the data behind `builtin:human-cds`, from two files of human coding sequences.

Usage: python make_human_cds.py ICODON.fasta.gz CALM.fasta.gz OUT [--held-out DRD2.fasta]

NOTICE.md, beside this file, says where the two come from. Left out are exact duplicates (the first is kept)
and the genes that examples are evaluated on: by Ensembl gene id, by gene symbol, and, with `--held-out`,
whatever shares 48 bases in a row with one of its sequences.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dnascale.data.sources import Input, Record, read
from dnascale.data.split.groups import by_gene

HELD_OUT = {"ENSG00000149295": "DRD2", "ENSG00000012048": "BRCA1", "ENSG00000139618": "BRCA2"}
SHARED_BASES = 48  # isoforms of one gene share runs of this length, paralogs of a receptor hardly ever do


def words(bases: bytes) -> Iterator[bytes]:
    """Every run of 48 bases."""
    return (bases[start : start + SHARED_BASES] for start in range(len(bases) - SHARED_BASES + 1))


def header(record: Record, source: str) -> str:
    """What the packaged file keeps of a header: name, gene, source and the symbol of the gene, if any."""
    gene, rule = by_gene(record, source)
    if not rule.startswith("ensembl"):
        raise SystemExit(f"{source}: no Ensembl gene id in the header of {record.name}")
    symbol = re.search(r"gene_symbol:\S+", record.description)
    return " ".join([record.name, f"gene:{gene}", f"source={source}", *([symbol[0]] if symbol else [])])


def is_held_out(line: str, bases: bytes, evaluation: set[bytes]) -> bool:
    """Whether this is a gene of HELD_OUT, or shares 48 bases in a row with an evaluation sequence."""
    symbol = re.search(r"gene_symbol:(\S+)", line)
    return (
        any(gene in line for gene in HELD_OUT)
        or (symbol is not None and symbol[1] in HELD_OUT.values())
        or any(word in evaluation for word in words(bases))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make human-cds.fasta.gz; see the head of this file.")
    parser.add_argument("icodon", type=Path)
    parser.add_argument("calm", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=Path, help="FASTA of sequences that must not be in OUT")
    options = parser.parse_args()

    evaluation: set[bytes] = set()
    if options.held_out:
        for record in read(Input.of(options.held_out)):
            evaluation.update(words(record.bases[:].upper()))
    counts: Counter[str] = Counter()
    kept: dict[bytes, str] = {}
    for source, path in (("iCodon", options.icodon), ("CaLM", options.calm)):
        for record in read(Input.of(path)):
            line, bases = header(record, source), record.bases[:].upper()
            if is_held_out(line, bases, evaluation):
                counts[f"{source}: held out"] += 1
            elif bases in kept:
                counts[f"{source}: duplicates"] += 1
            else:
                kept[bases] = line
                counts[f"{source}: records"] += 1
                counts[f"{source}: bases"] += len(bases)
    names = Counter(line.split()[0] for line in kept.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise SystemExit(f"names used twice: {', '.join(twice)}")

    # A line per sequence is 7 % smaller than lines of 60. Without a time and a file name, gzip makes the same
    # bytes of the same input (with the same zlib).
    text = b"".join(b">%s\n%s\n" % (line.encode("ascii"), bases) for bases, line in kept.items())
    with options.out.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text)
    for what, count in sorted(counts.items()):
        print(f"{what:20} {count:>10,}")
    print(f"{len(kept):,} records, {sum(map(len, kept)):,} bases, {options.out.stat().st_size:,} bytes")
    print(f"SHA-256 of the decompressed text: {hashlib.sha256(text).hexdigest()}")


if __name__ == "__main__":
    main()
