"""Is a sequence a whole coding sequence? Start, stop and frame, under one of NCBI's genetic codes."""

from __future__ import annotations

from functools import cache

import numpy as np

from dnascale.data.sources.record import Bases
from dnascale.data.take.genetic_codes import STOPS
from dnascale.data.take.stretch import DNA

_PIECE = 3 << 18  # bases looked at together, whole codons
_OTHER = 64  # a letter that is not A, C, G or T makes a codon no table entry belongs to
_DIGITS = bytes("ACGT".find(chr(byte).upper().replace("U", "T")) % (_OTHER + 1) for byte in range(256))


def fault_of_cds(bases: Bases, genetic_code: int = 1) -> str | None:
    """Why `bases` is no whole coding sequence, or None: the first of these that is found.

    The length is not divisible by three; ATG is not first; no stop codon is last; a stop codon stands inside. U counts
    as T, in either case. A codon with a letter other than A, C, G, T is never a stop.
    """
    size = len(bases)
    if size % 3:
        return "CDS: length not divisible by 3"
    stops = STOPS[genetic_code]
    if _codon(bases, 0) != "ATG":
        return "CDS: ATG not first"
    if _codon(bases, size - 3) not in stops:
        return "CDS: no stop codon last"
    is_stop = _is_stop(genetic_code)
    for start in range(0, size - 3, _PIECE):
        piece = bases[start : min(start + _PIECE, size - 3)]
        digits = np.frombuffer(piece.translate(_DIGITS), dtype=np.uint8).astype(np.uint16)
        if is_stop[(digits[::3] << 4) + (digits[1::3] << 2) + digits[2::3]].any():
            return "CDS: stop codon inside"
    return None


@cache
def _is_stop(genetic_code: int) -> np.ndarray:
    """bool [codon number]: what the codons of three digits mean."""
    table = np.zeros(_OTHER * 21 + 1, dtype=bool)
    for stop in STOPS[genetic_code]:
        first, second, third = ("ACGT".index(letter) for letter in stop)
        table[16 * first + 4 * second + third] = True
    return table


def _codon(bases: Bases, start: int) -> str:
    return bases[start : start + 3].translate(DNA).decode("ascii").upper()
