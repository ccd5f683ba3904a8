"""GFF3: features belong to their parents, and lines with one ID are one feature."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from dnascale.data.sources.alphabet import text_of
from dnascale.data.take.transcripts import JOINED, TRANS_SPLICED, Transcript

ATTRIBUTES = re.compile(rb"[^\s;=\"]+=")
_LEAVES = {kind.encode() for kind in JOINED} | {b"intron"}  # never the parent of anything
_GENE_TAGS = ("gene", "gene_id", "locus_tag")
_DEEPEST = 10  # generations

Key = tuple[str, str]  # parent, ID; either may be empty


class Gff3:
    """The features of one kind, and what stands above them."""

    def __init__(self, path: str, feature: str) -> None:
        self.path, self.feature = path, feature
        self.kinds = {feature.encode()}
        self.circular: dict[str, int] = {}
        self._above: dict[str, tuple[str, str]] = {}  # ID → kind and first parent
        self._found: dict[Key, Transcript] = {}

    def look(self, columns: list[bytes]) -> None:
        """Another feature, which may be a parent of one that was asked for."""
        if columns[2] in _LEAVES:
            return
        attributes = _attributes(columns[8])
        if attributes.get("Is_circular") == "true" and columns[4].isdigit():
            self.circular[_text(columns[0])] = int(columns[4])
        if "ID" in attributes:
            parent = attributes.get("Parent", "").partition(",")[0]
            self._above[_decoded(attributes["ID"])] = _text(columns[2]), _decoded(parent)

    def add(self, columns: list[bytes], start: int, end: int, strand: int, phase: int, line: int) -> None:
        """A feature that was asked for. With several parents it belongs to each."""
        self.look(columns)
        attributes = _attributes(columns[8])
        identity = _decoded(attributes.get("ID", ""))
        parents = [_decoded(parent) for parent in attributes.get("Parent", "").split(",")]
        if self.feature not in JOINED:
            keys = [("", identity or f"\0{line}")]
        elif self.feature == "CDS":
            keys = [(parent, identity) for parent in parents]
        else:  # exons and the like have IDs of their own
            keys = [(parent, "" if parent else identity) for parent in parents]
        for key in keys:
            key = key if any(key) else ("", f"\0{line}")
            transcript = self._found.get(key)
            if transcript is None:
                tag = next((tag for tag in _GENE_TAGS if tag in attributes), "")
                gene = _decoded(attributes.get(tag, ""))
                transcript = self._found[key] = Transcript("", _text(columns[0]), strand, gene)
            if transcript.chrom != _text(columns[0]) or transcript.strand != strand:
                transcript.unfit = TRANS_SPLICED
            if attributes.get("exception") == "trans-splicing":
                transcript.unfit = TRANS_SPLICED
            transcript.add(start, end, phase, line)

    def transcripts(self) -> Iterable[Transcript]:
        """All, in the order of the file, with names and labels."""
        found = self._by_parent() if self.feature == "CDS" and not self._ids_are_shared() else self._found
        of_parent = Counter(parent for parent, _ in found)
        for (parent, identity), transcript in found.items():
            identity = "" if identity.startswith("\0") else identity
            is_gene = self._is_gene(parent)
            alone = of_parent[parent] == 1 and not is_gene
            transcript.name = parent if parent and (alone or not identity) else identity
            transcript.gene = self._gene_of(parent or identity) or transcript.gene
            owner = transcript.name if is_gene else parent
            transcript.transcript = owner or ("" if self._is_gene(identity) else identity)
            yield transcript

    def _ids_are_shared(self) -> bool:
        """Do lines of one CDS have one ID, as the specification says? Some files number the lines instead."""
        return any(identity and len(transcript) > 1 for (_, identity), transcript in self._found.items())

    def _by_parent(self) -> dict[Key, Transcript]:
        """All CDS lines of a transcript made one; those directly below a gene stay what they are."""
        merged: dict[Key, Transcript] = {}
        for (parent, identity), transcript in self._found.items():
            if not parent or self._is_gene(parent):
                merged[parent, identity] = transcript
            elif (first := merged.setdefault((parent, ""), transcript)) is not transcript:
                if (first.chrom, first.strand) != (transcript.chrom, transcript.strand):
                    first.unfit = TRANS_SPLICED
                first.unfit = first.unfit or transcript.unfit
                first.parts.extend(transcript.parts)
        return merged

    def _is_gene(self, identity: str) -> bool:
        kind, _ = self._above.get(identity, ("", ""))
        return kind.lower().endswith("gene")

    def _gene_of(self, identity: str) -> str:
        for _ in range(_DEEPEST):
            if self._is_gene(identity):
                return identity
            _, identity = self._above.get(identity, ("", ""))
        return ""


def _attributes(column: bytes) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text_of(column).split(";"))
    return {name.strip(): value for name, _, value in pairs}


def _text(column: bytes) -> str:
    return text_of(unquote_to_bytes(column) if b"%" in column else column)


def _decoded(value: str) -> str:
    return text_of(unquote_to_bytes(value)) if "%" in value else value
