"""One sequence, as every reader gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dnascale.data.sources.alphabet import decode, encode


class Bases(Protocol):
    """Letters: bytes, or something long that reads what is asked of it. Whole: `bases[:]`, if it fits the memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class Letters:
    """The letters of a long sequence that is held as codes (uint8 [n], in memory or mapped from a file)."""

    __slots__ = ("codes",)

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice, /) -> bytes:
        return decode(self.codes[part].tobytes())


@dataclass(slots=True)
class Record:
    """One sequence with its name.

    `bases` are the letters as in the input: case kept, no line ends. Up to 1 MiB they are bytes; longer ones
    may be anything that has a length and gives bytes for a slice, so take them in parts.
    `line` is the line, or row, where the record begins, from 1. `fields` are its other columns or qualifiers.
    `start` is where the bases begin in the record that they were cut out of, from 0.
    `plain`: there is nothing but A, C, G and T in either case; False where the reader has not looked.
    """

    name: str
    description: str
    bases: Bases
    line: int
    fields: Mapping[str, str] = field(default_factory=dict)
    start: int = 0
    plain: bool = field(default=False, compare=False)
    _codes: np.ndarray | None = field(init=False, default=None, repr=False, compare=False)

    @classmethod
    def coded(
        cls, name: str, description: str, bases: Bases, line: int, codes: np.ndarray, fields: Mapping[str, str],
        plain: bool = False,
    ) -> Record:  # fmt: skip
        """A record whose letters have been encoded already, for a check."""
        record = cls(name, description, bases, line, fields, plain=plain)
        record._codes = codes
        return record

    def codes(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """Codes of `bases[start:end]`, uint8: the character's id, with bit 7 set where it is lower case.

        Free where a reader has made them while it checked the letters. Of a long record, ask for parts.
        """
        if self._codes is not None:
            return self._codes[start:end]
        return np.frombuffer(encode(self.bases[start:end]), dtype=np.uint8)
