"""Text with any line ends as text with line feeds, and the way back from a place in it to a byte of the input."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from dnascale.data.sources.report import ReadReport

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Chunk:
    """Some text with LF alone, and where it was: `raw` at byte `start` of the (decompressed) input."""

    __slots__ = ("raw", "start", "text")

    def __init__(self, text: bytes, raw: bytes, start: int) -> None:
        self.text, self.raw, self.start = text, raw, start

    def offset(self, index: int) -> int:
        """The byte of the input, from 0, that became `text[index]`."""
        if len(self.text) != len(self.raw):
            for pair in re.finditer(rb"\r\n", self.raw):
                if pair.start() >= index:
                    break
                index += 1
        return self.start + index


def chunks(blocks: Iterator[bytes], report: ReadReport) -> Iterator[Chunk]:
    """CRLF and CR become LF, also where a block ends between CR and LF. A byte-order mark is skipped."""
    kinds: set[str] = set()
    start, held = 0, b""
    for block in _after_mark(blocks):
        if start == 0 and block.startswith(BYTE_ORDER_MARK):
            report.warn(f"{report.name}:1:1: a UTF-8 byte-order mark was skipped")
            block, start = block[3:], 3
        raw, held = held + block if held else block, b""
        text = raw
        if b"\r" in raw:
            if raw.endswith(b"\r"):
                raw, held = raw[:-1], b"\r"
            crlf = raw.count(b"\r\n")
            counts = {"CRLF": crlf, "CR": raw.count(b"\r") - crlf, "LF": raw.count(b"\n") - crlf}
            kinds.update(kind for kind, count in counts.items() if count)
            text = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        elif "LF" not in kinds and b"\n" in raw:
            kinds.add("LF")
        yield Chunk(text, raw, start)
        start += len(raw)
    if held:
        kinds.add("CR")
        yield Chunk(b"\n", held, start)
    if len(kinds) > 1:
        report.warn(f"{report.name} mixes line ends ({', '.join(sorted(kinds))}); all were accepted")


def without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines, of which the first has no byte-order mark."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(BYTE_ORDER_MARK)


def _after_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same blocks, of which the first is long enough to see a byte-order mark in it."""
    first = b""
    for block in blocks:
        first += block
        if len(first) >= len(BYTE_ORDER_MARK):
            break
    if first:
        yield first
    yield from blocks
