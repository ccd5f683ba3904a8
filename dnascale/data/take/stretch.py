"""Stretches of a sequence: short ones as bytes, long ones as views that are read when they are sliced."""

from __future__ import annotations

from dnascale.data.sources.record import Bases

#: A longer stretch is a `View`: no copy, and memory stays bounded whatever the chromosome.
VIEW_BYTES = 1 << 20

_DNA = b"ACGTNRYKMSWBDHV"
_PARTNER = b"TGCANYRMKSWVHDB"
#: IUPAC complements, case kept. U pairs with A; A gives T, so that the complement of RNA is DNA. `i` stays.
COMPLEMENT = bytes.maketrans(_DNA + _DNA.lower() + b"Uu", _PARTNER + _PARTNER.lower() + b"Aa")
#: U and u become T and t.
DNA = bytes.maketrans(b"Uu", b"Tt")


class View:
    """Part of a long sequence, perhaps reversed and with other letters. `len` and slices (bytes) work on it."""

    __slots__ = ("_bases", "_end", "_letters", "_reverse", "_start")

    def __init__(self, bases: Bases, start: int, end: int, letters: bytes | None = None, reverse: bool = False) -> None:
        self._bases, self._start, self._end = bases, start, end
        self._letters, self._reverse = letters, reverse

    def __len__(self) -> int:
        return self._end - self._start

    def __getitem__(self, part: slice) -> bytes:
        start, end, step = part.indices(len(self))
        if step != 1:
            raise ValueError("a view is sliced in steps of one")
        end = max(start, end)
        if self._reverse:
            letters = self._bases[self._end - end : self._end - start][::-1]
        else:
            letters = self._bases[self._start + start : self._start + end]
        return letters.translate(self._letters) if self._letters else letters


def stretch(bases: Bases, start: int, end: int) -> bytes | View:
    """`bases[start:end]`."""
    return bases[start:end] if end - start <= VIEW_BYTES else View(bases, start, end)


def reverse_complement(bases: Bases) -> bytes | View:
    """The other strand, in its own direction: IUPAC codes, case kept."""
    if isinstance(bases, bytes):
        return bases.translate(COMPLEMENT)[::-1]
    return View(bases, 0, len(bases), COMPLEMENT, reverse=True)


def as_dna(bases: Bases) -> bytes | View:
    """The same with T for U, case kept."""
    return bases.translate(DNA) if isinstance(bases, bytes) else View(bases, 0, len(bases), DNA)
