"""The parts of a transcript's feature, put in order, checked and laid out: strand, stop codon, phase."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from dnascale.data.take.layout import STRANDS, Contig, make_unique
from dnascale.errors import DataError

Part = tuple[int, int, int]  # start, end, line

#: Features whose parts are joined by transcript. Of all others, each is a region of its own.
JOINED = frozenset(
    [
        "CDS",
        "exon",
        "UTR",
        "5UTR",
        "3UTR",
        "five_prime_UTR",
        "three_prime_UTR",
        "five_prime_utr",
        "three_prime_utr",
        "start_codon",
        "stop_codon",
    ]
)
NO_PHASE = -1
STOP = -2  # in place of a phase: a stop codon that the file gives apart (GTF)
TRANS_SPLICED = "trans-spliced"
_NUMBERS = 4  # of each part: start, end, phase, line


@dataclass(slots=True)
class Transcript:
    """What a file says of one transcript's feature. Of each part, `parts` has start, end, phase and line in a row."""

    name: str
    chrom: str
    strand: int
    gene: str = ""
    transcript: str = ""
    parts: array[int] = field(default_factory=lambda: array("q"))
    unfit: str = ""  # why it cannot be taken

    def add(self, start: int, end: int, phase: int, line: int) -> None:
        """One more part, as the file gives it."""
        self.parts.extend((start, end, phase, line))

    def __len__(self) -> int:
        """The number of parts."""
        return len(self.parts) // _NUMBERS

    def in_order(self) -> tuple[list[Part], list[int], list[Part]]:
        """The parts, ascending on the plus strand, their phases, and stop codons that stand apart."""
        starts, ends, phases, lines = (self.parts[i::_NUMBERS] for i in range(_NUMBERS))
        rows = sorted(zip(starts, ends, lines, phases, strict=True))
        parts = [row[:3] for row in rows if row[3] != STOP]
        return parts, [row[3] for row in rows if row[3] != STOP], [row[:3] for row in rows if row[3] == STOP]


def lay_out(
    transcripts: Iterable[Transcript], path: str, coding: bool, circular: Mapping[str, int]
) -> dict[str, Contig]:
    """Transcripts as regions, by sequence, in the order given.

    `coding`: the feature is CDS, which has a strand, a phase and a stop codon. `circular`: the lengths of circular
    sequences, whose features may go on beyond their end.

    Raises:
        DataError: a part is there twice.
    """
    contigs: dict[str, Contig] = {}
    for transcript in transcripts:
        contig = contigs.setdefault(transcript.chrom, Contig())
        parts, phases, stops = transcript.in_order()
        if not parts:
            continue  # a stop codon alone
        for one, other in pairwise(parts):
            if one[:2] == other[:2]:
                raise DataError(
                    f"{path}:{other[2]}: {transcript.name} has the part {one[0] + 1}-{one[1]} a second time (first in "
                    f"line {one[2]}); remove one of the lines, or give the transcripts names of their own."
                )
        if reason := _unfit(transcript, parts, coding, circular):
            contig.skipped.append(reason)
            continue
        if coding:
            contig.noted.extend(_doubts(parts, phases, transcript.strand))
            parts = _in_frame(parts, phases, transcript.strand, stops)
            if not parts:
                contig.skipped.append("no whole codon")
                continue
        contig.add(transcript.name, transcript.strand, parts)
        contig.labels.append((transcript.gene, transcript.transcript))
    make_unique(contigs.values())
    return contigs


def _unfit(transcript: Transcript, parts: list[Part], coding: bool, circular: Mapping[str, int]) -> str:
    if transcript.unfit:
        return transcript.unfit
    if (length := circular.get(transcript.chrom)) is not None:
        last = max(end for _, end, _ in parts)
        # Written as an end beyond the length, or as two parts that meet at the origin.
        if last > length or (last == length and len(parts) > 1 and parts[0][0] == 0):
            return "across the origin of a circular sequence"
    if coding and STRANDS[transcript.strand] == ".":
        return "no strand"
    return ""


def _in_frame(parts: list[Part], phases: list[int], strand: int, stops: list[Part]) -> list[Part]:
    """The coding parts with the stop codon, and without the bases before the first whole codon."""
    forward = STRANDS[strand] == "+"
    surplus = max(phases[0 if forward else -1], 0)
    parts = _joined(parts + [rest for stop in stops for rest in _beyond(stop, parts)])
    while surplus and parts:
        at = 0 if forward else -1
        start, end, line = parts[at]
        away = min(surplus, end - start)
        surplus -= away
        parts[at] = (start + away, end, line) if forward else (start, end - away, line)
        if away == end - start:
            del parts[at]
    return parts


def _beyond(stop: Part, parts: list[Part]) -> list[Part]:
    """What of a stop codon is not in the coding parts already (files differ in that)."""
    rests, (begin, stop_end, line) = [], stop
    for start, end, _ in parts:
        if begin < min(start, stop_end):
            rests.append((begin, min(start, stop_end), line))
        begin = max(begin, end)
    if begin < stop_end:
        rests.append((begin, stop_end, line))
    return rests


def _joined(parts: list[Part]) -> list[Part]:
    """In order, parts that touch made one. Parts that overlap stay: the ribosome may step back."""
    result: list[Part] = []
    for start, end, line in sorted(parts):
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end, result[-1][2])
        else:
            result.append((start, end, line))
    return result


def _doubts(parts: list[Part], phases: list[int], strand: int) -> list[str]:
    """What is odd about the phases: none, or not those that follow from the lengths (a frame shift, or a mistake)."""
    if NO_PHASE in phases:
        return ["transcripts without a phase, taken from their first base"]
    steps = list(zip(parts, phases, strict=True))
    if STRANDS[strand] == "-":
        steps.reverse()
    expected = steps[0][1]
    for (start, end, _), phase in steps:
        if phase != expected:
            return ["transcripts whose phases do not follow from the lengths of their parts"]
        expected = (phase - (end - start)) % 3
    return []
