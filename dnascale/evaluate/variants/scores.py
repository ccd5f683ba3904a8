"""Log-likelihood ratios of alleles. The formulas are in docs/reference/scores.md.

Windows are symmetric: as many bases before the variant as after it, so that the score on the other strand is the same number.
At an end of the sequence they move inwards.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dnascale.errors import NumericsError
from dnascale.evaluate.language_model import BASE_OF_CODE
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.variants.alleles import Allele

Mode = Literal["masked", "wild-type", "pll"]
#: Positions hidden in one window with `together` are at least so many bases apart.
APART = 16


@dataclass(frozen=True)
class ScoreOptions:
    """How alleles are scored.

    mode: masked (the differing bases are hidden), wild-type (nothing is hidden), or pll (pseudo-log-likelihood of both windows).
    indels: scored by pll, or skipped. both_strands: the mean of both, else the strand as given; None: as
    the model was trained, both where that is not known. together: positions hidden at
    once in a window, exact with 1.
    """

    mode: Mode = "masked"
    indels: Literal["pll", "skip"] = "pll"
    both_strands: bool | None = None
    together: int = 1

    def cost(self, allele: Allele, context: int) -> int:
        """Forwards of a window that an allele takes, about."""
        by_sum = self.mode == "pll" or len(allele.ref) != len(allele.alt)
        return -(-2 * context // self.together) if by_sum else 1


def flanks(start: int, end: int, span: int, length: int, context: int) -> tuple[int, int]:
    """Bases before `start` and after `end` in the window around them, which must hold `span` bases in the middle."""
    flank = (context - span) // 2
    left, right = min(flank, start), min(flank, length - end)
    return min(2 * flank - right, start), min(2 * flank - left, length - end)


@dataclass
class _Substitution:
    """An allele, by its number, and its bases (0 to 3) where they differ from the reference's."""

    number: int
    ref: np.ndarray
    alt: np.ndarray


@dataclass
class _Window:
    """What the model is asked: ln p at `positions` of `codes`, and whose it is, with the first of its positions."""

    codes: np.ndarray
    positions: np.ndarray
    wanted: list[tuple[int, _Substitution]]


#: The start and the end of a window in the sequence, and the groups of positions that are asked for in it.
_Cut = tuple[int, int, list[tuple[int, ...]]]


class Scoring:
    """Alleles of any number of sequences, whose windows wait for the same forwards.

    >>> scoring = Scoring(likelihood, options)  # doctest: +SKIP
    >>> scoring.add(alleles, codes, length)  # doctest: +SKIP
    >>> llr = scoring.answer()  # doctest: +SKIP
    """

    def __init__(self, likelihood: Likelihood, options: ScoreOptions) -> None:
        self.likelihood, self.options = likelihood, options
        self._llr: list[float] = []
        self._windows: dict[tuple[int, int], list[_Window]] = {}  # those of as many bases and positions

    def add(self, alleles: Sequence[Allele], codes: Callable[[int, int], np.ndarray], length: int) -> None:
        """Cuts out the windows of alleles that lie in a sequence and agree with it; what needs many forwards is asked at once.

        `codes(start, end)` gives character codes uint8 of the sequence, which has `length` bases.
        """
        points: dict[tuple[int, ...], list[_Substitution]] = {}  # by the positions that differ
        for number, allele in enumerate(alleles, start=len(self._llr)):
            start, ref, alt = allele.trimmed()
            if self.options.mode == "pll" or len(ref) != len(alt):
                self._llr.append(_by_sums(start, ref, alt, codes, length, self.likelihood, self.options))
                continue
            self._llr.append(0.0)
            differs = np.flatnonzero(ref != alt)
            substitution = _Substitution(number, BASE_OF_CODE[ref[differs]], BASE_OF_CODE[alt[differs]])
            points.setdefault(tuple(int(at) for at in start + differs), []).append(substitution)
        for first, last, groups in self._cut(points, length):
            wanted, size = [], 0
            for group in groups:
                wanted += [(size, substitution) for substitution in points[group]]
                size += len(group)
            window = _Window(codes(first, last), np.concatenate(groups) - first, wanted)
            self._windows.setdefault((last - first, size), []).append(window)

    def answer(self) -> np.ndarray:
        """float64 [n]: ln p(alternative) - ln p(reference), nats, of all alleles in the order in which they were added.

        Raises NumericsError when the model gives no finite number.
        """
        out = np.array(self._llr)
        for windows in self._windows.values():
            codes = np.stack([window.codes for window in windows])
            positions = np.stack([window.positions for window in windows])
            found = self.likelihood.log_p(codes, positions, self.options.mode == "masked")
            for window, log_p in zip(windows, found, strict=True):
                for first, one in window.wanted:
                    rows = np.arange(first, first + len(one.ref))
                    out[one.number] = (log_p[rows, one.alt] - log_p[rows, one.ref]).sum()
        if not np.isfinite(out).all():
            raise NumericsError(
                f"{self.likelihood.model.name} gives log-likelihoods that are not finite: its weights are damaged."
            )
        return out

    def _cut(self, points: Iterable[tuple[int, ...]], length: int) -> list[_Cut]:
        context, together = self.likelihood.model.context, self.options.together
        single = sorted(places for places in points if len(places) == 1)
        several = [places for places in points if len(places) > 1]
        if self.options.mode == "masked" and together > 1:
            return _together(single, length, context, together) + _alone(several, length, context)
        return _alone(single + several, length, context)


def _alone(groups: Iterable[tuple[int, ...]], length: int, context: int) -> list[_Cut]:
    """A window around each group of positions."""
    cut: list[_Cut] = []
    for group in groups:
        start, end = group[0], group[-1] + 1
        left, right = flanks(start, end, end - start, length, context)
        cut.append((start - left, end + right, [group]))
    return cut


def _together(positions: Iterable[tuple[int, ...]], length: int, context: int, together: int) -> list[_Cut]:
    """Windows in steps of half a window, each for single positions, which are sorted, in its middle half."""
    width = min(context, length)
    step = max(1, width // 2)
    cut: list[_Cut] = []
    blocks: dict[int, list[list[tuple[int, ...]]]] = {}
    for (position,) in positions:
        mine = blocks.setdefault(position // step, [])
        open_ = next((g for g in mine if len(g) < together and position - g[-1][0] >= APART), None)
        if open_ is None:
            open_ = []
            mine.append(open_)
            start = min(max(position // step * step - (width - step) // 2, 0), length - width)
            cut.append((start, start + width, open_))
        open_.append((position,))
    return cut


def _by_sums(
    start: int,
    ref: np.ndarray,
    alt: np.ndarray,
    codes: Callable[[int, int], np.ndarray],
    length: int,
    likelihood: Likelihood,
    options: ScoreOptions,
) -> float:
    """Pseudo-log-likelihood of the window with the alternative allele, less that of the window with the reference."""
    end, span = start + len(ref), max(len(ref), len(alt))
    left, right = flanks(start, end, span, length, likelihood.model.context)
    before, after = codes(start - left, start), codes(end, end + right)
    sums = [
        likelihood.pseudo_log_likelihood(window, 0, len(window), options.together)
        for window in (np.concatenate([before, allele, after]) for allele in (ref, alt))
    ]
    return sums[1] - sums[0]
