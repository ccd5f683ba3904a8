"""Every substitution of DRD2, and the saturation genome editing of BRCA2, scored by a model and by counts."""

from __future__ import annotations

import csv
import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.shards import Dataset
from dnascale.data.sources.formats import read
from dnascale.data.sources.locate import find
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.statistics import Estimate, auroc, bootstrap
from dnascale.evaluate.variants.alleles import Allele, codes_of
from dnascale.evaluate.variants.saturate import MODEL, Saturation, count_scores
from dnascale.evaluate.variants.scores import ScoreOptions, Scoring

#: First base of the file's stretch of chromosome 13 in GRCh38, from 1.
CONTEXT_START = 32_300_001


def scores(
    likelihood: Likelihood, saturation: Saturation, data: Dataset, options: ScoreOptions
) -> dict[str, np.ndarray]:
    """float64 [n] by scorer: the model's LLR, and those of `count_scores`."""
    (bases,) = saturation.sequences.values()
    codes = codes_of(bases)
    scoring = Scoring(likelihood, options)
    scoring.add(saturation.alleles, lambda start, end: codes[start:end], len(codes))
    return {MODEL: scoring.answer()} | count_scores(saturation, data)


def brca2(table: Path, context: Path) -> tuple[Saturation, dict[str, np.ndarray]]:
    """The coding variants of the table on the spliced exons that it covers, from the first whole codon; and what was measured.

    Between the first and the last coding position of an exon every base is coding: the table leaves some out. Consequences are
    the table's. Measured: the functional score of each variant, and whether ClinVar has it as pathogenic (1), benign (0) or
    neither (nan).
    """
    chromosome = next(iter(read(find([str(context)])[0]))).bases[:].upper()
    with gzip.open(table, "rt") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["cds_pos"]]
    known = sorted({(int(row["cds_pos"]), int(row["pos_hg38"])) for row in rows})
    place = {}
    for (cds, genome), (next_cds, next_genome) in itertools.pairwise(known):
        if next_cds - cds != 1 and next_genome - genome != next_cds - cds:
            raise SystemExit(
                f"{table}: coding positions {cds} to {next_cds} are apart in the gene and on the chromosome."
            )
        place |= {cds + step: genome + step for step in range(next_cds - cds)}
    place[known[-1][0]] = known[-1][1]
    first = known[0][0] + (1 - known[0][0]) % 3  # codons begin at coding positions 1, 4, 7, ...
    spliced = bytes(chromosome[place[cds] - CONTEXT_START] for cds in range(first, known[-1][0] + 1))
    alleles, kinds, measured, clinical = [], [], [], []
    for row in rows:
        start = int(row["cds_pos"]) - first
        if start < 0 or row["consequence"] not in ("synonymous", "missense", "nonsense"):
            continue
        ref, alt = row["ref"].encode(), row["alt"].encode()
        if spliced[start : start + 1] != ref:
            raise SystemExit(f"{table}: {row['chrom']}:{row['pos_hg38']} has {row['ref']}, the sequence does not.")
        alleles.append(Allele(len(alleles) + 1, "BRCA2", start, ref, alt))
        kinds.append(row["consequence"])
        measured.append(float(row["log2_D14_D5_normSyn"]))
        clinical.append({"P": 1.0, "B": 0.0}.get(row["PB"], float("nan")))
    measures = {"function": np.array(measured), "pathogenic": np.array(clinical)}
    return Saturation({"BRCA2": spliced}, alleles, kinds), measures


def against_measured(
    saturation: Saturation, scorers: dict[str, np.ndarray], measures: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """By scorer: Spearman's correlation with the functional score (all, and missense alone), and AUROC of ClinVar's benign above
    pathogenic; intervals by bootstrap over codons.
    """
    codons = np.array([allele.start // 3 for allele in saturation.alleles])
    missense = np.array(saturation.consequences) == "missense"
    known = np.isfinite(measures["pathogenic"])
    found = {}
    for name, values in scorers.items():
        found[name] = {
            "Spearman with function, all": _spearman(values, measures["function"], codons).to_dict(),
            "Spearman with function, missense": _spearman(
                values[missense], measures["function"][missense], codons[missense]
            ).to_dict(),
            "AUROC ClinVar benign above pathogenic": _benign_above(
                values[known], measures["pathogenic"][known] == 0, codons[known]
            ).to_dict(),
        }
    return found


def _spearman(one: np.ndarray, other: np.ndarray, groups: np.ndarray) -> Estimate:
    from scipy.stats import rankdata

    def statistic(rows: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(one[rows]), rankdata(other[rows]))[0, 1])

    return bootstrap(statistic, groups)


def _benign_above(values: np.ndarray, benign: np.ndarray, groups: np.ndarray) -> Estimate:
    return bootstrap(lambda rows: auroc(values[rows][benign[rows]], values[rows][~benign[rows]]), groups)
