"""UCSC 2bit: four bases a byte, and beside them the runs of N and of lower case (soft mask), which is kept.

Byte order and version (0: offsets of 32 bits, 1: of 64) are told by the head. Every offset, count and run is checked
before anything is read by it, and no two records may share bytes, so that a small file cannot grow without bounds.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from dnascale.data.sources.alphabet import shown, text_of
from dnascale.data.sources.growing import Growing
from dnascale.data.sources.opened import Source
from dnascale.data.sources.record import Record
from dnascale.data.sources.report import ReadOptions, ReadReport
from dnascale.data.sources.spool import seekable
from dnascale.errors import DataError

_MAGIC = {b"\x43\x27\x41\x1a": "<", b"\x1a\x41\x27\x43": ">"}  # the byte order
_CHUNK = 4 << 20  # bases decoded at a time
# The four bases of every byte: 0 1 2 3 are T C A G, and the first base has the highest bits.
_FOUR = np.frombuffer(b"TCAG", dtype=np.uint8)[(np.arange(256)[:, None] >> np.array([6, 4, 2, 0])) & 3]
_CUT = "the file is truncated; fetch it again"
_BROKEN = "the file is damaged; fetch it again"


def records(source: Source, options: ReadOptions) -> Iterator[Record]:
    """The records of a 2bit file, in the order of its index; `line` counts them from 1.

    Memory: the names, the runs of one record, and 20 MB.

    Raises:
        DataError: the file is truncated, damaged, or of another version.
    """
    with seekable(source, options.temporary) as stream:
        yield from _records(_File(stream, source.report.name), source.report, options)


def _records(file: _File, report: ReadReport, options: ReadOptions) -> Iterator[Record]:
    bases = Growing(options.temporary)
    index = file.index()
    offsets = sorted(offset for _, offset in index)
    for number, (name, offset) in enumerate(index, 1):
        after = bisect_right(offsets, offset)
        limit = offsets[after] if after < len(offsets) else file.size
        layout = file.layout(name, offset, limit)
        if limit == file.size and layout.end < limit:
            report.warn(f"{report.name} has {limit - layout.end:,} bytes after its last record")
        for start in range(0, layout.length, _CHUNK):
            bases.add(file.decode(layout, start, min(start + _CHUNK, layout.length)))
        report.gave(layout.length, shown(name), number)
        yield bases.record(name, "", number)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of one record are. Runs are int64 [2, n]: their first bases, and the bases after their last."""

    length: int
    unknown: np.ndarray
    masked: np.ndarray
    packed: int  # where the bases begin in the file
    end: int  # where the record ends in it


class _File:
    """A 2bit file whose head is sound."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream, self.name = stream, name
        self.size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        self.order = _MAGIC.get(stream.read(4), "<")
        stream.seek(4)
        version, self.count, reserved = self.numbers(3, "the head")
        if version not in (0, 1):
            raise self.error(f"is 2bit of version {version}; versions 0 and 1 are known, convert it with `twoBitToFa`")
        if reserved:
            raise self.error(f"has {reserved} where the 2bit format reserves 0; {_BROKEN}")
        if not self.count:
            raise self.error("has no sequence; the list of names in it is empty")
        self.offset_bytes = 8 if version else 4

    def error(self, what: str) -> DataError:
        return DataError(f"{self.name} {what}.")

    def read(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which must be there before any memory is taken for them."""
        at = self.stream.tell()
        if count > self.size - at:
            raise self.error(f"ends within {what} (at byte {self.size:,}, {count:,} from {at:,} on are due); {_CUT}")
        got = self.stream.read(count)
        if len(got) < count:
            raise self.error(f"could not be read to its end: {len(got):,} of {count:,} bytes of {what} came; {_CUT}")
        return got

    def numbers(self, count: int, what: str) -> list[int]:
        return np.frombuffer(self.read(4 * count, what), dtype=f"{self.order}u4").tolist()

    def index(self) -> list[tuple[str, int]]:
        """Names and offsets, which the file has in front of the records."""
        found: dict[str, int] = {}
        for number in range(1, self.count + 1):
            length = self.read(1, "the list of names")[0]
            entry = self.read(length + self.offset_bytes, "the list of names")
            name = text_of(entry[:length])
            if not name or "\0" in name:
                raise self.error(f"has no usable name for record {number} ({shown(name)}); {_BROKEN}")
            if name in found:
                raise self.error(f"has two records named {shown(name)}; rename one of the two")
            found[name] = int.from_bytes(entry[length:], "little" if self.order == "<" else "big")
        begin = self.stream.tell()
        at: dict[int, str] = {}
        for name, offset in found.items():
            if not begin <= offset < self.size:
                raise self.error(
                    f"puts record {shown(name)} at byte {offset:,}, outside of bytes {begin:,} to {self.size:,}; {_CUT}"
                )
            if at.setdefault(offset, name) != name:
                raise self.error(f"puts records {shown(at[offset])} and {shown(name)} in one place; {_BROKEN}")
        return list(found.items())

    def layout(self, name: str, offset: int, limit: int) -> _Layout:
        """Reads what precedes the bases of a record, which must end at byte `limit`."""
        what = f"record {shown(name)}"
        self.stream.seek(offset)
        (length,) = self.numbers(1, what)
        unknown = self.runs(length, f"the runs of N of {what}", limit)
        masked = self.runs(length, f"the runs of lower case of {what}", limit)
        self.numbers(1, what)  # reserved
        packed = self.stream.tell()
        end = packed + (length + 3) // 4
        if end > self.size:
            raise self.error(f"ends at byte {self.size:,}, within {what}, which needs {end:,}; {_CUT}")
        if end > limit:
            raise self.error(f"has a {what} of {length:,} bases that reaches into the next one; {_BROKEN}")
        return _Layout(length, unknown, masked, packed, end)

    def runs(self, length: int, what: str, limit: int) -> np.ndarray:
        """A table of runs: in order, apart from each other, and within the record."""
        (count,) = self.numbers(1, what)
        if 8 * count > limit - self.stream.tell():
            cut = self.stream.tell() + 8 * count > self.size
            raise self.error(f"has no room for {what}, {count:,} of them; {_CUT if cut else _BROKEN}")
        table = np.frombuffer(self.read(8 * count, what), dtype=f"{self.order}u4").astype(np.int64).reshape(2, count)
        table[1] += table[0]
        if count and (table[1, -1] > length or np.any(table[1] <= table[0]) or np.any(table[0, 1:] < table[1, :-1])):
            raise self.error(f"has {what} that overlap, are out of order, or leave its {length:,} bases; {_BROKEN}")
        return table

    def decode(self, layout: _Layout, start: int, end: int) -> bytes:
        """Bases [start, end) of a record, ASCII; `start` is a multiple of four."""
        self.stream.seek(layout.packed + start // 4)
        packed = np.frombuffer(self.read((end - start + 3) // 4, "its bases"), dtype=np.uint8)
        bases = _FOUR[packed].reshape(-1)[: end - start]
        for first, last in _inside(layout.unknown, start, end):
            bases[first:last] = ord("N")
        for first, last in _inside(layout.masked, start, end):
            bases[first:last] |= 0x20  # lower case
        return bases.tobytes()


def _inside(runs: np.ndarray, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of runs that lie in [start, end), counted from `start`."""
    first, last = np.searchsorted(runs[1], start, side="right"), np.searchsorted(runs[0], end)
    places = np.clip(runs[:, first:last] - start, 0, end - start).tolist()
    return zip(*places, strict=True)
