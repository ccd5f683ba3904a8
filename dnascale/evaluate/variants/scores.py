"""Log-likelihood ratios of the alleles of one sequence. The formulas are in docs/reference/scores.md.

Windows are symmetric: as many bases before the variant as after it, so that the score on the other strand is the same number.
At an end of the sequence they move inwards.
"""

from collections.abc import Callable, Sequence
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


def score_alleles(
    alleles: Sequence[Allele],
    codes: Callable[[int, int], np.ndarray],
    length: int,
    likelihood: Likelihood,
    options: ScoreOptions,
) -> np.ndarray:
    """float64 [n]: ln p(alternative) - ln p(reference), nats. `codes(start, end)` gives character codes of the sequence.

    All alleles lie in the sequence and agree with it. Raises NumericsError when the model gives no finite number.
    """
    context = likelihood.model.context
    out = np.empty(len(alleles))
    points: dict[tuple[int, ...], list[int]] = {}  # of substitutions by the positions that differ
    for number, allele in enumerate(alleles):
        start, ref, alt = allele.trimmed()
        if options.mode == "pll" or len(ref) != len(alt):
            out[number] = _by_sums(start, ref, alt, codes, length, likelihood, options)
        else:
            places = tuple(int(at) for at in start + np.flatnonzero(ref != alt))
            points.setdefault(places, []).append(number)
    single = sorted(places[0] for places in points if len(places) == 1)
    if options.mode == "masked" and options.together > 1:
        log_p = _together(single, codes, length, likelihood, options.together)
    else:
        log_p = _one_by_one([(at,) for at in single], codes, length, context, likelihood, options.mode)
    log_p |= _one_by_one([p for p in points if len(p) > 1], codes, length, context, likelihood, options.mode)
    for places, numbers in points.items():
        for number in numbers:
            start, ref, alt = alleles[number].trimmed()
            differs = np.flatnonzero(ref != alt)
            rows = np.arange(len(differs))
            found = log_p[places]
            out[number] = (found[rows, BASE_OF_CODE[alt[differs]]] - found[rows, BASE_OF_CODE[ref[differs]]]).sum()
    if not np.isfinite(out).all():
        raise NumericsError(
            f"{likelihood.model.name} gives log-likelihoods that are not finite: its weights are damaged."
        )
    return out


def _one_by_one(
    places: list[tuple[int, ...]],
    codes: Callable[[int, int], np.ndarray],
    length: int,
    context: int,
    likelihood: Likelihood,
    mode: str,
) -> dict[tuple[int, ...], np.ndarray]:
    """ln p [K, 4] for each group of K positions, from a window around the group."""
    shapes: dict[tuple[int, int], list[tuple[tuple[int, ...], int, int]]] = {}
    for place in places:
        start, end = place[0], place[-1] + 1
        left, right = flanks(start, end, end - start, length, context)
        shapes.setdefault((right + end - start + left, len(place)), []).append((place, start - left, end + right))
    found: dict[tuple[int, ...], np.ndarray] = {}
    for group in shapes.values():
        windows = np.stack([codes(first, last) for _, first, last in group])
        at = np.array([[position - first for position in place] for place, first, _ in group])
        for (place, _, _), log_p in zip(group, likelihood.log_p(windows, at, mode == "masked"), strict=True):
            found[place] = log_p
    return found


def _together(
    positions: list[int],
    codes: Callable[[int, int], np.ndarray],
    length: int,
    likelihood: Likelihood,
    together: int,
) -> dict[tuple[int, ...], np.ndarray]:
    """ln p [1, 4] of each position: windows in steps of half a window, each for the positions in its middle half."""
    width = min(likelihood.model.context, length)
    step = max(1, width // 2)
    groups: list[list[int]] = []
    blocks: dict[int, list[list[int]]] = {}
    for position in positions:  # sorted
        mine = blocks.setdefault(position // step, [])
        open_ = next((g for g in mine if len(g) < together and position - g[-1] >= APART), None)
        if open_ is None:
            open_ = []
            mine.append(open_)
            groups.append(open_)
        open_.append(position)
    if not groups:
        return {}
    starts = [min(max(group[0] // step * step - (width - step) // 2, 0), length - width) for group in groups]
    windows = np.stack([codes(start, start + width) for start in starts])
    at = np.array([(group + [group[-1]] * together)[:together] for group in groups]) - np.array(starts)[:, None]
    log_p = likelihood.log_p(windows, at)
    return {(p,): log_p[g, k][None] for g, group in enumerate(groups) for k, p in enumerate(group)}


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
