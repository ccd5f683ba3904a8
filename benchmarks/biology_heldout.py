"""Held-out genes, base by base: a model's loss beside count-based rivals, its period of three, and stops in each frame."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dnascale.evaluate.baselines import ALPHAS, ContextModel
from dnascale.evaluate.consequence import codon_numbers
from dnascale.evaluate.language_model import BASE_OF_CODE, BASES
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.statistics import Estimate, bootstrap

#: One base in seven is hidden at a time, as in `dnascale eval`.
GROUPS = 7
STOPS = ("TAA", "TAG", "TGA")
#: Columns of a model that counts (A, T, C, G) in the order of BASES.
_TO_BASES = np.array(["ATCG".index(base) for base in BASES])
#: Bases of one periodogram: a multiple of three, so that a period of 3 is one of its frequencies.
SEGMENT = 297


@dataclass(frozen=True)
class HeldOut:
    """Coding sequences in frame (uint8 [bases] each), and ln p of A, C, G, T at each base, float [bases, 4] each, by predictor."""

    records: list[np.ndarray]
    log_p: dict[str, list[np.ndarray]]

    @property
    def group(self) -> np.ndarray:
        """int64 [bases of all records]: which record."""
        return np.repeat(np.arange(len(self.records)), [len(record) for record in self.records])

    def nats(self, name: str) -> list[np.ndarray]:
        """-ln p of what is there, by record."""
        pairs = zip(self.log_p[name], self.records, strict=True)
        return [-log_p[np.arange(len(record)), BASE_OF_CODE[record]] for log_p, record in pairs]


def in_frame(records: Sequence[np.ndarray], bases: int, seed: int = 0) -> list[np.ndarray]:
    """Whole coding sequences of A, C, G, T (from ATG, a multiple of three), drawn until there are `bases`."""
    start = np.array(["ATCG".index(base) for base in "ATG"])
    good = [r for r in records if len(r) % 3 == 0 and len(r) > 3 and (r < 4).all() and (r[:3] == start).all()]
    drawn: list[np.ndarray] = []
    for number in np.random.default_rng(seed).permutation(len(good)):
        if sum(map(len, drawn)) >= bases:
            break
        drawn.append(good[number])
    return drawn


def predict(likelihood: Likelihood, record: np.ndarray, seed: int) -> np.ndarray:
    """ln p [bases, 4] of every base of a record, each hidden once with a seventh of its window; windows of equal length."""
    pieces = -(-len(record) // likelihood.model.context)
    edges = np.linspace(0, len(record), pieces + 1).astype(np.int64)
    out = np.empty((len(record), len(BASES)))
    rng = np.random.default_rng(seed)
    for start, end in itertools.pairwise(edges):
        order = rng.permutation(end - start)
        width = -(-len(order) // GROUPS)
        at = np.resize(order, GROUPS * width).reshape(width, GROUPS).T  # what is over begins again
        found = likelihood.log_p(np.broadcast_to(record[start:end], (GROUPS, end - start)), at)
        out[start + at] = found
    return out


def rivals(train: Sequence[np.ndarray]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """By name, what gives ln p [bases, 4] of a record after counting the training records, which start in frame."""
    models = {f"Markov order {order}": ContextModel(order).fit(train) for order in (1, 3, 5, 7)}
    models |= {f"context {k}+{k}": ContextModel(k, k).fit(train) for k in (2, 4)}
    models["context 4+4 + codon phase"] = ContextModel(4, 4, phase=True).fit(train)
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "uniform": lambda record: np.full((len(record), 4), -np.log(4))
    }
    for name, model in models.items():
        found[name] = lambda record, model=model: model.log_probability(record)[:, _TO_BASES]  # type: ignore[misc]
    codon, hexamer = _codon_tables(train)
    found["codon usage"] = lambda record: _by_codon(record, codon)
    found["hexamer (codon before)"] = lambda record: _by_codon(record, hexamer)
    return found


def _codon_tables(train: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a codon [1, 64], and after another one [64, 64]: shrunk to the first, by the weight that is best for a tenth."""

    def count(records: Sequence[np.ndarray]) -> np.ndarray:
        pairs = np.zeros(64 * 64)
        for record in records:
            numbers = codon_numbers(record)
            both = (numbers[:-1] >= 0) & (numbers[1:] >= 0)
            pairs += np.bincount((numbers[:-1] * 64 + numbers[1:])[both], minlength=64 * 64)
        return pairs.reshape(64, 64)

    def shrink(pairs: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        one = (pairs.sum(axis=0) + 1) / (pairs.sum() + 64)
        return one[None], (pairs + alpha * one) / (pairs.sum(axis=1, keepdims=True) + alpha)

    held, rest = count(train[::10]), count([r for number, r in enumerate(train) if number % 10])
    alpha = min(ALPHAS, key=lambda alpha: -float((held * np.log(shrink(rest, alpha)[1])).sum()))
    return shrink(held + rest, alpha)


def _by_codon(record: np.ndarray, table: np.ndarray) -> np.ndarray:
    """ln p [bases, 4] of each base given the other two of its codon, and the codon before if the table has rows for it."""
    numbers = codon_numbers(record)
    before = np.concatenate([[0], numbers[:-1]]) if len(table) > 1 else np.zeros(len(numbers), dtype=np.int64)
    rows = table[before].reshape(-1, 4, 4, 4)
    if len(table) > 1:
        rows[0] = table.mean(axis=0).reshape(4, 4, 4)
    codons = record.reshape(-1, 3)
    every = np.arange(len(codons))
    of_place = [
        rows[every, :, codons[:, 1], codons[:, 2]],
        rows[every, codons[:, 0], :, codons[:, 2]],
        rows[every, codons[:, 0], codons[:, 1], :],
    ]
    p = np.stack(of_place, axis=1).reshape(-1, 4)
    return np.log(p / p.sum(axis=1, keepdims=True))[:, _TO_BASES]


def losses(held_out: HeldOut, model: str) -> dict[str, tuple[Estimate, Estimate]]:
    """By predictor: nats per base, and how much more that is than the model's on the same bases; intervals over records."""
    sizes = np.array([len(record) for record in held_out.records])
    sums = {name: np.array([nats.sum() for nats in held_out.nats(name)]) for name in held_out.log_p}
    each = np.arange(len(sizes))

    def mean(values: np.ndarray) -> Estimate:
        return bootstrap(lambda rows: float(values[rows].sum() / sizes[rows].sum()), each)

    return {name: (mean(values), mean(values - sums[model])) for name, values in sums.items()}


def by_codon_position(held_out: HeldOut, name: str) -> list[Estimate]:
    """Nats per base at codon positions 1, 2, 3; intervals over records."""
    per_record = np.array([nats.reshape(-1, 3).mean(axis=0) for nats in held_out.nats(name)])
    codons = np.array([len(record) // 3 for record in held_out.records])
    each = np.arange(len(codons))

    def mean(place: int) -> Estimate:
        return bootstrap(lambda rows: float(np.average(per_record[rows, place], weights=codons[rows])), each)

    return [mean(place) for place in range(3)]


def periodogram(held_out: HeldOut, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(period in bases, power) of the loss along segments of SEGMENT bases, as a multiple of the median power."""
    segments = []
    for nats in held_out.nats(name):
        whole = nats[: len(nats) // SEGMENT * SEGMENT].reshape(-1, SEGMENT)
        segments.append(whole - whole.mean(axis=1, keepdims=True))
    power = (np.abs(np.fft.rfft(np.concatenate(segments), axis=1)) ** 2).mean(axis=0)[1:]
    return SEGMENT / np.arange(1, len(power) + 1), power / np.median(power)


def stop_probability(held_out: HeldOut, name: str) -> list[Estimate]:
    """Mean probability of the base that would make three neighbours TAA, TAG or TGA, in frames 0 (of codons), 1 and 2.

    Over all places where one changed base would do so. The stop codon at the end is left out.
    """
    of_record = np.zeros((len(held_out.records), 3, 2))  # summed p, places
    for number, (record, log_p) in enumerate(zip(held_out.records, held_out.log_p[name], strict=True)):
        bases, p = BASE_OF_CODE[record], np.exp(log_p)
        starts = np.arange(len(record) - 5)
        for stop in STOPS:
            wanted = [BASES.index(base) for base in stop]
            same = np.stack([bases[starts + place] == wanted[place] for place in range(3)])
            for place in range(3):
                there = starts[~same[place] & np.delete(same, place, axis=0).all(axis=0)]
                chances = p[there + place, wanted[place]]
                of_record[number, :, 0] += np.bincount(there % 3, chances, minlength=3)
                of_record[number, :, 1] += np.bincount(there % 3, minlength=3)
    each = np.arange(len(of_record))

    def mean(frame: int) -> Estimate:
        return bootstrap(lambda rows: float(np.divide(*of_record[rows, frame].sum(axis=0))), each)

    return [mean(frame) for frame in range(3)]
