"""`dnascale score --saturate`: every substitution of sequences, by consequence where they are coding, beside count-based scorers."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.read import split_records
from dnascale.data.shards import Dataset
from dnascale.data.sources.formats import read
from dnascale.data.sources.locate import find
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.baselines import ContextModel
from dnascale.evaluate.consequence import CONSEQUENCES, codon_numbers, consequence, require_cds
from dnascale.evaluate.statistics import Estimate, auroc, bootstrap
from dnascale.evaluate.variants.alleles import Allele, codes_of

#: Flank of the two-sided context model that scores the same changes.
_FLANK = 4
#: Order of the Markov chain that scores them.
_ORDER = 5
_MAX_FIT_TOKENS = 100_000_000
MODEL = "model"


@dataclass(frozen=True)
class Saturation:
    """Sequences in upper case by name, all their substitutions, and what each does if they are coding."""

    sequences: dict[str, bytes]
    alleles: list[Allele]
    consequences: list[str] | None

    @property
    def digest(self) -> str:
        """SHA-256 of the sequences and their names."""
        return hashlib.sha256(repr(self.sequences).encode()).hexdigest()

    @classmethod
    def of(cls, location: str, coding: bool = False, genetic_code: int = 1, region: str | None = None) -> "Saturation":
        """`location`: a FASTA file, or builtin:drd2. `region`: NAME:START-END, from 1, both ends in it. Raises DataError or UsageError."""
        sequences: dict[str, bytes] = {}
        names: set[str] = set()
        wanted = None if region is None else region.rpartition(":")[0]
        for source in find([location]):
            for record in read(source):
                if record.name in names:
                    raise DataError(f"{location} has the sequence {record.name!r} twice: rename one.")
                names.add(record.name)
                if wanted in (None, record.name):  # the others of a genome would take gigabytes
                    sequences[record.name] = record.bases[:].upper().replace(b"U", b"T")
        spans = {name: (0, len(bases)) for name, bases in sequences.items()}
        if region is not None:
            spans = dict([_span(region, sequences, location)])
        alleles: list[Allele] = []
        kinds: list[str] | None = [] if coding else None
        for name, (start, end) in spans.items():
            bases = sequences[name]
            if coding:
                require_cds(bases, name, genetic_code)
            for at in range(start, end):
                for alt in "ACGT":
                    if bases[at : at + 1] in (b"A", b"C", b"G", b"T") and alt.encode() != bases[at : at + 1]:
                        alleles.append(Allele(len(alleles) + 1, name, at, bases[at : at + 1], alt.encode()))
                        if kinds is not None:
                            kinds.append(consequence(bases, at, alt, genetic_code))
        if not alleles:
            raise DataError(f"{location} has no A, C, G or T to change.")
        return cls(sequences, alleles, kinds)


def count_scores(saturation: Saturation, data: Dataset) -> dict[str, np.ndarray]:
    """ln p(alternative) - ln p(reference) [n] of each substitution by codon frequency, by a Markov chain of the sequence, and by a
    two-sided context model with the codon phase, all counted on the training split of `data`, whose records start in frame.
    """
    records = split_records(data, "train", _MAX_FIT_TOKENS)
    counts = np.zeros(64)
    for record in records:
        numbers = codon_numbers(record)
        counts += np.bincount(numbers[numbers >= 0], minlength=64)
    frequency = np.log((counts + 1) / (counts.sum() + 64))  # each codon seen once more than it was
    context = ContextModel(_FLANK, _FLANK, phase=True).fit(records)
    codon = np.empty(len(saturation.alleles))
    neighbours = np.empty(len(saturation.alleles))
    codes = {name: codes_of(bases) for name, bases in saturation.sequences.items()}
    log_p = {name: context.log_probability(one) for name, one in codes.items()}
    for number, allele in enumerate(saturation.alleles):
        at, ref, alt = allele.start, codes_of(allele.ref)[0], codes_of(allele.alt)[0]
        row = log_p[allele.contig][at]
        neighbours[number] = row[alt] - row[ref]
        first = at - at % 3
        old = codes[allele.contig][first : first + 3].copy()
        new = old.copy()
        new[at % 3] = alt
        both = [codon_numbers(old), codon_numbers(new)]
        known = all(len(one) and one[0] >= 0 for one in both)
        codon[number] = frequency[both[1][0]] - frequency[both[0][0]] if known else np.nan
    markov = _markov_ratios(saturation.alleles, codes, ContextModel(_ORDER).fit(records))
    return {
        "codon frequency": codon,
        f"Markov order {_ORDER}": markov,
        f"context {_FLANK}+{_FLANK} + codon phase": neighbours,
    }


def _markov_ratios(alleles: Sequence[Allele], codes: dict[str, np.ndarray], chain: ContextModel) -> np.ndarray:
    """float64 [n]: ln p of the sequence with each substitution, less that without: the base, and those that follow upon it."""
    out = np.empty(len(alleles))
    for number, allele in enumerate(alleles):
        first = max(0, allele.start - _ORDER)
        old = codes[allele.contig][first : allele.start + _ORDER + 1]
        new = old.copy()
        new[allele.start - first] = codes_of(allele.alt)[0]
        with_old, with_new = (chain.log_probability(one)[np.arange(len(one)), np.minimum(one, 3)] for one in (old, new))
        known = (old < 4)[allele.start - first :]
        out[number] = (with_new - with_old)[allele.start - first :][known].sum()
    return out


def summarize(saturation: Saturation, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians by consequence, and AUROC that a milder change scores higher, for each scorer; intervals by bootstrap over codons.

    `scores`: by scorer, float64 [n]. Without consequences, the median of all.
    """
    codons = np.array([f"{a.contig}:{a.start // 3}" for a in saturation.alleles])
    kinds = np.array(saturation.consequences) if saturation.consequences is not None else np.full(len(codons), "all")
    here = [kind for kind in (*CONSEQUENCES, "all") if (kinds == kind).any()]
    counts = {kind: int((kinds == kind).sum()) for kind in here}
    scorers = {name: _summary(values, kinds, here, codons) for name, values in scores.items()}
    return {"substitutions": len(saturation.alleles), "count": counts, "scorers": scorers}


def _summary(values: np.ndarray, kinds: np.ndarray, here: Sequence[str], codons: np.ndarray) -> dict[str, Any]:
    known = np.isfinite(values)  # a codon with N has no frequency
    medians = {}
    for kind in here:
        mine = (kinds == kind) & known
        medians[kind] = _median(values[mine], codons[mine]).to_dict()
    pairs = [("synonymous", "missense"), ("synonymous", "nonsense"), ("missense", "nonsense")]
    areas = {}
    for mild, severe in pairs:
        if mild in here and severe in here:
            among = ((kinds == mild) | (kinds == severe)) & known
            own, is_mild = values[among], kinds[among] == mild
            areas[f"{mild} above {severe}"] = _area(own, is_mild, codons[among]).to_dict()
    return {"median": medians, "auroc": areas}


def _median(values: np.ndarray, groups: np.ndarray) -> Estimate:
    return bootstrap(lambda rows: float(np.median(values[rows])), groups)


def _area(values: np.ndarray, is_mild: np.ndarray, groups: np.ndarray) -> Estimate:
    return bootstrap(lambda rows: auroc(values[rows][is_mild[rows]], values[rows][~is_mild[rows]]), groups)


def write_results(saturation: Saturation, scores: dict[str, np.ndarray], summary: dict[str, Any], folder: Path) -> None:
    """scores.parquet (and .tsv), summary.json, and the figures consequence.png and along-sequence.png, which need matplotlib."""
    import pyarrow as pa

    from dnascale.evaluate.table import write_table
    from dnascale.evaluate.variants.tables import scored_table, table_of

    table = scored_table(table_of(saturation.alleles), saturation.alleles)
    if saturation.consequences is not None:
        table = table.append_column("consequence", pa.array(saturation.consequences))
    for name, values in scores.items():
        if name != MODEL:
            table = table.append_column(name, pa.array(values))
    for kind in (".parquet", ".tsv"):
        with (folder / f"scores{kind}").open("wb") as file:
            write_table(table, file, kind)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    from dnascale.evaluate import figures

    if figures.possible():
        figures.by_consequence(saturation.consequences, scores, folder / "consequence.png")
        figures.along_sequences(
            saturation.alleles, scores[MODEL], saturation.consequences, folder / "along-sequence.png"
        )


def _span(region: str, sequences: dict[str, bytes], location: str) -> tuple[str, tuple[int, int]]:
    name, _, ends = region.rpartition(":")
    first, _, last = ends.replace(",", "").partition("-")
    if not (name and first.isdigit() and last.isdigit()):
        raise UsageError(
            f"--region {region!r} is not NAME:START-END, e.g. chr13:32316461-32316527 (from 1, both ends in it)."
        )
    if name not in sequences:
        raise UsageError(f"--region {region!r}: {location} has no sequence {name!r}.")
    start, end = int(first) - 1, int(last)
    if not 0 <= start < end <= len(sequences[name]):
        raise UsageError(f"--region {region!r} is not within 1 to {len(sequences[name]):,}, the bases of {name}.")
    return name, (start, end)
