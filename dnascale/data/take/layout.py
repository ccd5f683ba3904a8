"""Where on a sequence the regions lie, and how they are cut out of it. Coordinates are 0-based half-open."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from dnascale.data.sources import Record
from dnascale.data.sources.record import Bases
from dnascale.data.take.stretch import reverse_complement, stretch
from dnascale.data.tally import Tally
from dnascale.errors import DataError

#: Why bases are left out that no region covers.
OUTSIDE = "outside the regions"
#: Strands as they are stored, by index.
STRANDS = "+-."


class Names:
    """Names that are given out once: `a`, then `a#2`, `a#3`."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """The name itself, the first time."""
        times = self._times
        if name not in times:
            times[name] = 1
            return name
        again = name
        while again in times:
            times[name] += 1
            again = f"{name}#{times[name]}"
        times[again] = 1
        return again


@dataclass(slots=True)
class Contig:
    """The regions of one sequence, in the order of their file.

    Region i has the parts `first[i]` to `first[i + 1]` (the last, to the end), in ascending order on the plus strand;
    they are joined. `lines` says of each part where it stands in the file, from 1; `strands` holds indexes into
    `STRANDS`. A name may be empty: then the interval is the name. `labels` holds the gene and the transcript of each
    region ("": not known), or nothing at all. `skipped`: why regions of this sequence are not here; `noted`: what is odd about others.
    """

    starts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    first: array[int] = field(default_factory=lambda: array("q"))
    strands: bytearray = field(default_factory=bytearray)
    lines: array[int] = field(default_factory=lambda: array("q"))
    names: list[str] = field(default_factory=list)
    labels: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)

    def add(self, name: str, strand: int, parts: Iterable[tuple[int, int, int]]) -> None:
        """One more region, of parts with start, end and line. A name of `.` is none."""
        self.first.append(len(self.starts))
        for start, end, line in parts:
            self.starts.append(start)
            self.ends.append(end)
            self.lines.append(line)
        self.strands.append(strand)
        self.names.append("" if name == "." else name)

    def add_interval(self, name: str, strand: int, start: int, end: int, line: int) -> None:
        """The same as `add` for one part, at half the time: there may be millions."""
        self.first.append(len(self.starts))
        self.starts.append(start)
        self.ends.append(end)
        self.strands.append(strand)
        self.lines.append(line)
        self.names.append("" if name == "." else name)


def make_unique(contigs: Iterable[Contig]) -> None:
    """Names that stand there several times get numbers, in the order of the file within each sequence."""
    contigs = list(contigs)
    names = [name for contig in contigs for name in contig.names if name]
    if len(set(names)) == len(names):
        return
    unique = Names().unique
    for contig in contigs:
        contig.names = [unique(name) if name else "" for name in contig.names]


def take(record: Record, contig: Contig, source: str, tally: Tally) -> Iterator[Record]:
    """The regions of one sequence as records, on their strand, in the order of the file `source`.

    Fields are added: `chrom`, `start`, `end` (of the whole region, on the plus strand), `strand`, and `gene` and
    `transcript` where they are known.
    What no region covers is counted as dropped, what several cover as repeated.

    Raises:
        DataError: a region ends beyond the sequence.
    """
    bases, chrom = record.bases, record.name
    _check_ends(record, contig, source)
    _count(len(bases), contig, tally)
    labels: Sequence[tuple[str, str]] = contig.labels or [("", "")] * len(contig.names)
    names = Names()  # of the intervals without one
    starts, ends, first = contig.starts, contig.ends, contig.first
    for region, (name, strand, begin) in enumerate(zip(contig.names, contig.strands, first, strict=True)):
        stop = first[region + 1] if region + 1 < len(first) else len(starts)
        start, end, sign = starts[begin], ends[stop - 1], STRANDS[strand]
        if stop - begin == 1:
            taken: Bases = stretch(bases, start, end)
        else:
            taken = b"".join([bases[starts[part] : ends[part]] for part in range(begin, stop)])
        if sign == "-":
            taken = reverse_complement(taken)
        interval = f"{chrom}:{start}-{end}({sign})"
        fields = {**record.fields, "chrom": chrom, "start": str(start), "end": str(end), "strand": sign}
        description = interval
        gene, transcript = labels[region]
        if gene:
            fields["gene"] = gene
            description = f"gene={gene} {interval}"
        if transcript:
            fields["transcript"] = transcript
        yield Record(name or names.unique(interval), description, taken, record.line, fields)


def _check_ends(record: Record, contig: Contig, source: str) -> None:
    size = len(record.bases)
    if not contig.ends or max(contig.ends) <= size:
        return
    part = next(part for part, end in enumerate(contig.ends) if end > size)
    raise DataError(
        f"{source}:{contig.lines[part]}: the region {record.name}:{contig.starts[part]}-{contig.ends[part]} (from 0) ends beyond "
        f"{record.name}, which has {size:,} bases; are these coordinates of another assembly?"
    )


def _count(size: int, contig: Contig, tally: Tally) -> None:
    """Bases and records that the regions leave out or take several times."""
    starts, ends = (np.frombuffer(values, dtype=np.int64) for values in (contig.starts, contig.ends))
    taken = int((ends - starts).sum())
    order = np.argsort(starts, kind="stable")
    reach = np.maximum.accumulate(ends[order]) if len(order) else ends
    begins = starts[order].copy()
    begins[1:] = np.maximum(begins[1:], reach[:-1])
    covered = int(np.maximum(ends[order] - begins, 0).sum())
    regions = len(contig.names)
    if covered < size or not regions:
        tally.drop(OUTSIDE, size - covered, records=0 if regions else 1)
    tally.repeated += taken - covered
    tally.cut += regions - 1 if regions else 0
    for reason in contig.skipped:
        tally.skip(reason)
    for what in contig.noted:
        tally.note(what)
