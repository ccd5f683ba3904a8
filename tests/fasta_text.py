"""FASTA for tests: an independent reader, and what bgzip writes."""

import re
import struct
import zlib


def naive(text: bytes) -> list[tuple[str, str, bytes, int]]:
    """An independent parser of correct FASTA: line by line, nothing clever."""
    records: list[tuple[str, str, list[bytes], int]] = []
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", text), 1):
        if line.startswith(b">"):
            name, *rest = re.split(r"[ \t]", line[1:].decode("latin-1"), maxsplit=1)
            records.append((name, "".join(rest).strip(" \t"), [], number))
        elif line:
            records[-1][2].append(line)
    return [(name, description, b"".join(lines), number) for name, description, lines, number in records]


def bgzf(data: bytes, member_bytes: int = 20) -> bytes:
    """What bgzip writes: gzip members with a BC field, and an empty one at the end."""
    out = b""
    for start in [*range(0, len(data), member_bytes), len(data)]:
        piece = data[start : start + member_bytes]
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(piece) + packer.flush()
        head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff\x06\x00BC\x02\x00"
        out += head + struct.pack("<H", len(body) + 25) + body + struct.pack("<II", zlib.crc32(piece), len(piece))
    return out
