"""Nanoseconds a base of the two things that the splits add to the first stage of prepare: samples of 31-mers and digests.

Usage: python benchmarks/sketch.py human_GRCh37_chr20.fa.gz [--bases 50_000_000]

Prints the best of five for each rate, and how many 31-mers came out for each that was wanted: the bias of the rule.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date
from functools import partial

import numpy as np

from dnascale import __version__
from dnascale.data.sources import ReadOptions, ReadReport, find, read
from dnascale.data.split import Sketcher, content_digest


def _part(codes: np.ndarray, start: int, end: int) -> np.ndarray:
    return codes[start:end]


def main() -> None:
    parser = argparse.ArgumentParser(description="Nanoseconds a base of samples and digests.")
    parser.add_argument("fasta")
    parser.add_argument("--bases", type=int, default=50_000_000, help="how many to read at most")
    arguments = parser.parse_args()
    (source,) = find([arguments.fasta])
    pieces, size = [], 0
    for record in read(source, ReadOptions(), ReadReport(source.name)):
        pieces.append(np.array(record.codes(0, min(len(record.bases), arguments.bases - size))))
        size += len(pieces[-1])
        if size >= arguments.bases:
            break
    known = sum(int(np.count_nonzero(codes & 0x7F < 4)) for codes in pieces)
    print(f"{size:,} bases, {known:,} of them A, C, G, T, in {len(pieces):,} records; dnascale {__version__}, ", end="")
    print(f"numpy {np.__version__}, {platform.processor() or platform.machine()}, {date.today()}\n")
    print("| what | ns a base | sampled / wanted |")
    print("|---|---|---|")
    for every in (1, 4, 16, 64, 512, 4096):
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            sketcher = Sketcher(every)
            for codes in pieces:
                sketcher.add(codes)
            values, _ = sketcher.finish()
            best = min(best, time.perf_counter() - start)
        print(f"| one 31-mer in {every:,} | {best / size * 1e9:.2f} | {len(values) * every / known:.2f} |", flush=True)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for codes in pieces:
            content_digest(partial(_part, codes), len(codes))
        best = min(best, time.perf_counter() - start)
    print(f"| digest | {best / size * 1e9:.2f} | |")


if __name__ == "__main__":
    main()
