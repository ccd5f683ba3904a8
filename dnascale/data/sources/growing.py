"""The sequence of the record at hand: in memory, and past 64 MiB in a temporary file that has no name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from dnascale.data.sources.alphabet import encode
from dnascale.data.sources.record import Letters, Record
from dnascale.files import explained

#: Shorter records are bytes. Longer ones are codes alone, in a large array that has not to be moved.
SHORT_BASES = 1 << 20
#: Longer records lie in a file.
MEMORY_BASES = 64 << 20


class Growing:
    """Letters that come in pieces and become the bases of a record.

    `folder` is where files go (None: the system's). A disk that is full is a SpaceError.
    """

    def __init__(self, folder: str | None = None, short: int = SHORT_BASES, memory: int = MEMORY_BASES) -> None:
        self.folder, self.short, self.memory = folder, short, memory
        self.length = 0
        self._letters: list[bytes | bytearray] = []
        self._codes: list[bytes | bytearray] = []
        self._array: np.ndarray | None = None
        self._file: IO[bytes] | None = None

    def add(self, letters: bytes | bytearray, codes: bytes | bytearray | None = None) -> None:
        """Some more letters, with their codes if these are known. The caller has checked that they are bases."""
        codes = encode(letters) if codes is None else codes
        start, self.length = self.length, self.length + len(letters)
        if self.length <= self.short:
            self._letters.append(letters)
            self._codes.append(codes)
            return
        if self.length <= self.memory:
            if self._array is None:
                self._array = np.empty(self.memory, dtype=np.uint8)  # memory is used as far as it is written
                self._array[:start] = np.frombuffer(b"".join(self._codes), dtype=np.uint8)
                self._letters, self._codes = [], []
            self._array[start : self.length] = np.frombuffer(codes, dtype=np.uint8)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
                self._file.writelines(self._codes)
                if self._array is not None:
                    self._file.write(self._array[:start].data)
                self._letters, self._codes, self._array = [], [], None
            self._file.write(codes)
        except OSError as error:
            raise explained(error, Path(self.folder or tempfile.gettempdir()), kept="") from error

    def record(self, name: str, description: str, line: int, fields: Mapping[str, str] | None = None) -> Record:
        """The record that all this is. A new one begins with the next piece."""
        if self._file is not None:
            with self._file as file:
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            codes = np.frombuffer(mapped, dtype=np.uint8)
            bases: bytes | Letters = Letters(codes)
        elif self._array is not None:
            codes = self._array[: self.length]
            bases = Letters(codes)
        else:
            one = len(self._letters) == 1
            codes = np.frombuffer(self._codes[0] if one else b"".join(self._codes), dtype=np.uint8)
            bases = bytes(self._letters[0]) if one else b"".join(self._letters)
        self.clear()
        return Record.coded(name, description, bases, line, codes, fields or {})

    def clear(self) -> None:
        """Forget it all."""
        self.length, self._letters, self._codes, self._array, self._file = 0, [], [], None, None
