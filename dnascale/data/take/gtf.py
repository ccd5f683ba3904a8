"""GTF: features belong to the transcript that their `transcript_id` names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from sys import intern

from dnascale.data.sources.alphabet import text_of
from dnascale.data.take.transcripts import JOINED, STOP, TRANS_SPLICED, Transcript
from dnascale.errors import DataError

ATTRIBUTES = re.compile(rb"\s*\w+\s+(\"|\S+\s*;)")
_TRANSCRIPT_ID = re.compile(rb"\btranscript_id\s+(?:\"([^\"]*)\"|([^\s;\"]+))")
_GENE_ID = re.compile(rb"\bgene_id\s+(?:\"([^\"]*)\"|([^\s;\"]+))")


class Gtf:
    """The features of one kind. One id on two sequences is two transcripts (as in the regions that X and Y share)."""

    def __init__(self, path: str, feature: str) -> None:
        self.path, self.feature = path, feature
        self.kinds = {feature.encode()}
        if feature == "CDS":
            self.kinds.add(b"stop_codon")  # stands apart: it is in no CDS by GTF's definition
        self.circular: dict[str, int] = {}
        self._found: dict[tuple[bytes, ...], Transcript] = {}

    def look(self, columns: list[bytes]) -> None:
        """Another feature: nothing hangs on it."""

    def add(self, columns: list[bytes], start: int, end: int, strand: int, phase: int, line: int) -> None:
        """A feature that was asked for."""
        transcript_id, gene_id = _value(_TRANSCRIPT_ID, columns[8]), _value(_GENE_ID, columns[8])
        key: tuple[bytes, ...] = (columns[0], transcript_id)
        if self.feature not in JOINED:
            key = (*key, b"%d" % line)
        elif not transcript_id:
            raise DataError(f"{self.path}:{line}: {text_of(columns[2])} without a transcript_id.")
        transcript = self._found.get(key)
        if transcript is None:
            name, chrom = text_of(transcript_id or gene_id), intern(text_of(columns[0]))
            transcript = Transcript(name, chrom, strand, text_of(gene_id), text_of(transcript_id))
            self._found[key] = transcript
        if transcript.strand != strand:
            transcript.unfit = TRANS_SPLICED
        apart = columns[2] == b"stop_codon" and self.feature == "CDS"
        transcript.add(start, end, STOP if apart else phase, line)

    def transcripts(self) -> Iterable[Transcript]:
        """All, in the order of the file. They are given away, so that memory becomes free on the way."""
        found = list(reversed(self._found.values()))
        self._found.clear()
        while found:
            yield found.pop()


def _value(pattern: re.Pattern[bytes], attributes: bytes) -> bytes:
    match = pattern.search(attributes)
    return (match[1] or match[2] or b"") if match else b""
