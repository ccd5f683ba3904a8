"""Coding against non-coding windows of a chromosome: embeddings, hexamer counts and GC content under one classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dnascale.data.sources.formats import read
from dnascale.data.sources.locate import find
from dnascale.evaluate.consequence import codon_numbers
from dnascale.evaluate.language_model import LanguageModel
from dnascale.evaluate.likelihood import BATCH_TOKENS, reverse_complement
from dnascale.evaluate.statistics import Estimate, auroc, bootstrap
from dnascale.evaluate.variants.alleles import codes_of

WINDOW = 150
#: Windows of one stretch of so many bases are never in training and test at once.
BIN = 1_000_000
FOLDS = 5
#: Windows of random non-coding sequence in which the hexamer score counts; none is among those classified.
_BACKGROUND = 5000
K = 31


@dataclass(frozen=True)
class Windows:
    """codes uint8 [n, WINDOW] on the forward strand of the chromosome, coding bool [n], bins int64 [n], background uint8 [m, WINDOW].

    seen bool [n]: coding windows that share a K-mer with the training split.
    """

    codes: np.ndarray
    coding: np.ndarray
    bins: np.ndarray
    background: np.ndarray
    seen: np.ndarray


def kmers(codes: np.ndarray) -> np.ndarray:
    """uint64: the canonical K-mers of A, C, G, T in codes uint8 [n], sorted, each once."""
    if len(codes) < K:
        return np.empty(0, dtype=np.uint64)
    forward = np.zeros(len(codes) - K + 1, dtype=np.uint64)
    backward = np.zeros_like(forward)
    for place in range(K):
        digit = codes[place : place + len(forward)].astype(np.uint64) & np.uint64(3)
        forward = (forward << np.uint64(2)) | digit
        # Complements differ in the last bit: A 0, T 1, C 2, G 3.
        backward |= (digit ^ np.uint64(1)) << np.uint64(2 * place)
    bad = np.convolve((codes > 3).astype(np.int64), np.ones(K, dtype=np.int64), mode="valid") > 0
    return np.unique(np.minimum(forward, backward)[~bad])


def shared(codes: np.ndarray, known: np.ndarray) -> tuple[int, int]:
    """How many canonical K-mers of codes are in `known` (sorted), and how many there are."""
    own = kmers(codes)
    place = np.minimum(np.searchsorted(known, own), max(0, len(known) - 1))
    return int((known[place] == own).sum()) if len(known) else 0, len(own)


def exons(bed12: Path, coding: bool) -> list[tuple[str, int, int]]:
    """Blocks of a BED12 file, 0-based half-open; of these the translated parts alone if `coding`."""
    import gzip

    found = set()
    with gzip.open(bed12, "rt") as lines:
        for line in lines:
            chrom, start, _, _, _, _, thick_start, thick_end, _, _, sizes, starts = line.split("\t")[:12]
            for size, offset in zip(sizes.rstrip(",\n").split(","), starts.rstrip(",\n").split(","), strict=True):
                first = int(start) + int(offset)
                last = first + int(size)
                if coding:
                    first, last = max(first, int(thick_start)), min(last, int(thick_end))
                if last > first:
                    found.add((chrom, first, last))
    return sorted(found)


def choose(fasta: Path, coding: Path, others: Path, known: np.ndarray, count: int, seed: int = 0) -> Windows:
    """`count` coding windows, cut from translated exons, and as many non-coding ones of the same GC content.

    Coding windows that share no K-mer with `known` come first. Non-coding windows touch no exon of either BED12 file.
    """
    chromosome = codes_of(next(iter(read(find([str(fasta)])[0]))).bases[:])
    rng = np.random.default_rng(seed)
    tiles = sorted(start for _, first, last in exons(coding, True) for start in range(first, last - WINDOW + 1, WINDOW))
    apart = tiles[:1]
    for start in tiles:  # exons of two transcripts may overlap
        if start - apart[-1] >= WINDOW:
            apart.append(start)
    seen = {start: shared(chromosome[start : start + WINDOW], known)[0] > 0 for start in apart}
    wanted = sorted((int(start) for start in rng.permutation(apart)), key=lambda start: seen[start])
    wanted = [start for start in wanted if (chromosome[start : start + WINDOW] < 4).all()][:count]
    taken = np.zeros(len(chromosome) + 1, dtype=np.int64)
    for _, first, last in exons(coding, False) + exons(others, False):
        taken[max(0, first - WINDOW) : last] = 1
    free = rng.permutation(np.flatnonzero(taken[: len(chromosome) - WINDOW] == 0))[:200_000]
    places = free[:, None] + np.arange(WINDOW)
    clean = (chromosome[places] < 4).all(axis=1)
    free, content = free[clean], _gc(chromosome[places[clean]])
    pool: dict[int, list[int]] = {}
    for start, gc in zip(free, content, strict=True):
        pool.setdefault(round(gc * 50), []).append(int(start))
    pairs = []
    for start in wanted:
        near = pool.get(round(float(_gc(chromosome[None, start : start + WINDOW])[0]) * 50))
        if near:
            pairs.append((start, near.pop()))
    starts = np.array([start for pair in pairs for start in pair])
    background = np.setdiff1d(free, starts)
    background = rng.permutation(background[np.abs(background[:, None] - starts).min(axis=1) >= WINDOW][:_BACKGROUND])
    cut = chromosome[starts[:, None] + np.arange(WINDOW)]
    coding_rows = np.tile([True, False], len(pairs))
    in_training = np.array([coding_ and seen[start] for start, coding_ in zip(starts, coding_rows, strict=True)])
    return Windows(cut, coding_rows, starts // BIN, chromosome[background[:, None] + np.arange(WINDOW)], in_training)


def _gc(codes: np.ndarray) -> np.ndarray:
    return (codes[..., :] >= 2).mean(axis=-1)


def embeddings(model: LanguageModel, codes: np.ndarray, layer: int = -1) -> np.ndarray:
    """float32 [n, H]: mean hidden state of each window, mean of both strands."""
    rows = max(1, BATCH_TOKENS[model.device.type] // codes.shape[1])
    parts = []
    for start in range(0, len(codes), rows):
        window = codes[start : start + rows]
        both = model.hidden(window, layer).mean(dim=1) + model.hidden(reverse_complement(window), layer).mean(dim=1)
        parts.append((both / 2).cpu().numpy())
    return np.concatenate(parts)


def hexamer_counts(codes: np.ndarray) -> np.ndarray:
    """float [n, 4096]: how often each hexamer is on either strand of a window."""
    return sum(_hexamers(strand) for strand in (codes, reverse_complement(codes)))  # type: ignore[return-value]


def _hexamers(codes: np.ndarray) -> np.ndarray:
    numbers = sum(codes[:, k : codes.shape[1] - 5 + k].astype(np.int64) << (2 * (5 - k)) for k in range(6))
    row = np.arange(len(codes))[:, None] * 4096
    return np.bincount((numbers + row).ravel(), minlength=4096 * len(codes)).reshape(len(codes), 4096).astype(float)


def hexamer_score(windows: Windows, train: list[np.ndarray]) -> np.ndarray:
    """float [n]: mean ln ratio of in-frame hexamers in training genes over those in non-coding sequence, best of six frames.

    The score of CPAT (Wang et al., Nucleic Acids Research 41:e74, 2013), which knows the strand and frame, for windows where they
    are not known.
    """
    coding = np.ones(4096)
    for record in train:
        numbers = codon_numbers(record)
        both = (numbers[:-1] >= 0) & (numbers[1:] >= 0)
        coding += np.bincount((numbers[:-1] * 64 + numbers[1:])[both], minlength=4096)
    other = (
        _hexamers(windows.background).sum(axis=0) + _hexamers(reverse_complement(windows.background)).sum(axis=0) + 1
    )
    ratio = np.log(coding / coding.sum()) - np.log(other / other.sum())
    frames = []
    for strand in (windows.codes, reverse_complement(windows.codes)):
        for frame in range(3):
            whole = strand[:, frame : frame + (strand.shape[1] - frame) // 3 * 3]
            numbers = np.stack([codon_numbers(one) for one in whole])
            frames.append(ratio[numbers[:, :-1] * 64 + numbers[:, 1:]].mean(axis=1))
    return np.max(frames, axis=0)


def cross_validated(features: np.ndarray, windows: Windows) -> np.ndarray:
    """float [n]: out-of-fold log-odds of a ridge-penalized logistic regression; folds and the choice of C hold out whole stretches."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = np.empty(len(features))
    for train, test in GroupKFold(FOLDS).split(features, windows.coding, windows.bins):
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
            cv=GroupKFold(3),
            scoring="roc_auc",
        )
        search.fit(features[train], windows.coding[train], groups=windows.bins[train])
        out[test] = search.decision_function(features[test])
    return out


def area(scores: np.ndarray, windows: Windows, unseen: bool = False) -> Estimate:
    """AUROC that a coding window (that is not in training, if `unseen`) scores higher; interval by bootstrap over stretches of BIN bases."""
    scored = np.flatnonzero(~windows.seen) if unseen else np.arange(len(scores))

    def statistic(chosen: np.ndarray) -> float:
        rows = scored[chosen]
        return auroc(scores[rows][windows.coding[rows]], scores[rows][~windows.coding[rows]])

    return bootstrap(statistic, windows.bins[scored])
