"""One sequence, as every reader gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dnascale.data.sources.alphabet import encode

#: Bases of a longer record lie in a temporary file instead of memory.
SPILL_BYTES = 64 << 20


class Bases(Protocol):
    """Letters of a sequence, wherever they lie: `bytes`, a map of a file, or a part of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(slots=True)
class Record:
    """One sequence with its name.

    `bases` are the letters as in the input: case kept, no line ends. Of a record of more than 64 MiB they are a
    read-only map of a file without a name, or a part of one; `len` and slices (bytes) work the same, nothing else does.
    `line` is the line, or row, where the record begins, from 1. `fields` are its other columns or qualifiers.
    """

    name: str
    description: str
    bases: Bases
    line: int
    fields: Mapping[str, str] = field(default_factory=dict)
    _codes: bytes | None = field(init=False, default=None, repr=False, compare=False)

    def codes(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """Codes of `bases[start:end]`, uint8: the character's id, with bit 7 set where it is lower case.

        Free where a reader has made them while it checked the letters. Of a long record, ask for parts.
        """
        if self._codes is not None:
            return np.frombuffer(self._codes, dtype=np.uint8)[start:end]
        return np.frombuffer(encode(self.bases[start:end]), dtype=np.uint8)
