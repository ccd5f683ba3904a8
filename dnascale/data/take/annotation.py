"""Features of an annotation, GTF or GFF3, strictly read. Coordinates become 0-based half-open here.

The dialect is told by the ninth column of the first feature. It says which transcript a line belongs to (`gtf.py`,
`gff3.py`); then each transcript's parts are put in order and laid out (`transcripts.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dnascale.data.sources.alphabet import shown, text_of
from dnascale.data.sources.lines import without_mark
from dnascale.data.sources.opened import Source
from dnascale.data.take import gff3, gtf
from dnascale.data.take.layout import STRANDS, Contig
from dnascale.data.take.regions import FURTHEST
from dnascale.data.take.transcripts import NO_PHASE, lay_out
from dnascale.errors import DataError

_STRAND_OF = {b"+": 0, b"-": 1, b".": STRANDS.index("."), b"?": STRANDS.index(".")}
_PHASE_OF = {b"0": 0, b"1": 1, b"2": 2, b".": NO_PHASE}


def read_annotation(source: Source, feature: str = "CDS") -> dict[str, Contig]:
    """The features of one kind in a GTF or GFF3 file, compressed or not, by the sequence that they lie on.

    Of CDS, exon, UTR and codons, the parts of a transcript are joined; any other feature is a region of its own. Coding
    sequences begin with their first whole codon (by the phase) and end with the stop codon. Labels: `gene` and
    `transcript`, where the file names them.

    Raises:
        DataError: what is wrong with the file, and in which line; or there is no such feature.
    """
    return _Reader(source.input.name, feature).read(source.file())


class _Reader:
    """The reader of one file, and where it stands."""

    def __init__(self, path: str, feature: str) -> None:
        self.path, self.feature, self.line = path, feature, 0
        self.counts: Counter[bytes] = Counter()  # features of each kind
        self.dialect: gtf.Gtf | gff3.Gff3 | None = None

    def read(self, lines: Iterable[bytes]) -> dict[str, Contig]:
        for self.line, line in enumerate(without_mark(lines), 1):
            if line.startswith((b"##FASTA", b">")):
                break  # sequences follow
            if line.startswith(b"#") or not line.strip():
                continue
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) != 9:
                is_bed = len(columns) >= 3 and columns[1].isdigit() and columns[2].isdigit()
                hint = "; this looks like BED, give it as --regions" if is_bed else ""
                raise self.error(f"{len(columns)} columns, where GTF and GFF3 have nine with tabs between them{hint}")
            self.counts[columns[2]] += 1
            dialect = self.dialect or self.told_by(columns)
            if dialect is None:
                continue
            if columns[2] in dialect.kinds:
                dialect.add(columns, *self.place(columns), self.line)
            else:
                dialect.look(columns)
        if self.dialect is None or not self.counts[self.feature.encode()]:
            raise self.no_such_feature()
        return lay_out(self.dialect.transcripts(), self.path, self.feature == "CDS", self.dialect.circular)

    def told_by(self, columns: list[bytes]) -> gtf.Gtf | gff3.Gff3 | None:
        """The dialect, as soon as a ninth column tells. In some GTF files that of a gene is a bare name."""
        if gff3.ATTRIBUTES.match(columns[8]):
            self.dialect = gff3.Gff3(self.path, self.feature)
        elif gtf.ATTRIBUTES.match(columns[8]):
            self.dialect = gtf.Gtf(self.path, self.feature)
        elif columns[2] == self.feature.encode():
            column = shown(text_of(columns[8]))
            raise self.error(f"the ninth column {column} is neither GTF ('gene_id \"a\";') nor GFF3 ('ID=a')")
        return self.dialect

    def place(self, columns: list[bytes]) -> tuple[int, int, int, int]:
        """Start and end (0-based half-open), strand, phase."""
        first, last, sign, phase = columns[3], columns[4], columns[6], columns[7]
        if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last) <= FURTHEST):
            interval = f"{shown(text_of(first))} to {shown(text_of(last))}"
            raise self.error(f"{interval} is no interval; bases count from 1, and the end is not before the start")
        if sign not in _STRAND_OF:
            raise self.error(f"the strand {shown(text_of(sign))} is none of + - . ?")
        if phase not in _PHASE_OF:
            raise self.error(f"the phase {shown(text_of(phase))} is none of 0 1 2 .")
        return int(first) - 1, int(last), _STRAND_OF[sign], _PHASE_OF[phase]

    def no_such_feature(self) -> DataError:
        if not self.counts:
            return DataError(f"{self.path} has no features in it.")
        there = ", ".join(f"{text_of(kind)} ({count:,})" for kind, count in self.counts.most_common(12))
        return DataError(f"{self.path} has no feature {shown(self.feature)}; it has {there}. Name one with --feature.")

    def error(self, what: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: {what}.")
