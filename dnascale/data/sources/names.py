"""Names that occur twice, found in memory that does not grow with the names: 20 bytes a record, then a file."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import IO
from zlib import crc32

import numpy as np

from dnascale.files import explained

_ROW = np.dtype([("alike", "<u8"), ("exact", "<u4"), ("line", "<u8")])
_pack = struct.Struct("<8sIQ").pack
_MEMORY_BYTES = 32 << 20


@dataclass
class Names:
    """The names of one input, each as two digests and its line.

    `alike` digests what is left of a name without case, `chr` and version, so that equal names and similar names
    have it in common; `exact` tells the two apart. Both must agree by accident for a false alarm (2^-96 a pair).
    """

    folder: str | None = None
    _rows: bytearray = field(default_factory=bytearray)
    _file: IO[bytes] | None = None

    def add(self, names: Iterable[str], lines: Iterable[int]) -> None:
        """Remember names, and the line where the record of each begins."""
        for name, line in zip(names, lines, strict=True):
            stem, dot, version = name.rpartition(".")
            alike = (stem if dot and version.isdecimal() else name).lower().removeprefix("chr")
            digest = blake2b(alike.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._rows += _pack(digest, crc32(name.encode("utf-8", "surrogatepass")), line)
        if len(self._rows) >= _MEMORY_BYTES:
            try:
                self._file = self._file or tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
                self._file.write(self._rows)
            except OSError as error:
                raise explained(error, Path(self.folder or tempfile.gettempdir()), kept="") from error
            self._rows.clear()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Lines of equal and of similar names: two int64 arrays [n, 2], the earlier line first, in order."""
        equal: list[np.ndarray] = []
        similar: list[np.ndarray] = []
        for rows in self._parts():
            rows = rows[np.lexsort((rows["line"], rows["exact"], rows["alike"]))]
            alike = rows["alike"][1:] == rows["alike"][:-1]
            exact = rows["exact"][1:] == rows["exact"][:-1]
            lines = np.stack((rows["line"][:-1], rows["line"][1:]), axis=1).astype(np.int64)
            equal.append(lines[alike & exact])
            similar.append(np.sort(lines[alike & ~exact], axis=1))
        return _in_order(equal), _in_order(similar)

    def _parts(self) -> Iterator[np.ndarray]:
        """The rows in parts that fit the memory; names that are alike are in one part."""
        if self._file is None:
            yield np.frombuffer(self._rows, dtype=_ROW)
            return
        with self._file as file:
            file.write(self._rows)
            parts = np.uint64(1 + file.tell() // _MEMORY_BYTES)
            for part in range(int(parts)):
                file.seek(0)
                chosen = []
                while block := file.read(_MEMORY_BYTES // _ROW.itemsize * _ROW.itemsize):
                    rows = np.frombuffer(block, dtype=_ROW)
                    chosen.append(rows[rows["alike"] % parts == part])
                yield np.concatenate(chosen)


def _in_order(pairs: list[np.ndarray]) -> np.ndarray:
    lines = np.concatenate(pairs)
    return lines[np.argsort(lines[:, 1], kind="stable")]
