"""Writers of formats, independent of our readers and as plain as their descriptions: nothing clever."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import groupby

Sequences = Sequence[tuple[str, bytes]]


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """First place and length of each run of true."""
    found, at = [], 0
    for value, group in groupby(flags):
        length = len(list(group))
        found += [(at, length)] if value else []
        at += length
    return found


def packed(bases: bytes) -> bytes:
    codes = ["TCAG".index(letter) if letter in "TCAG" else 0 for letter in bases.decode().upper()]
    codes += [0] * (-len(codes) % 4)
    return bytes(a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*[iter(codes)] * 4, strict=True))


def twobit_of(sequences: Sequences, order: str = "<", version: int = 0) -> bytes:
    """An independent writer, after the format's description at UCSC: one record at a time, nothing clever."""
    width = "Q" if version else "I"
    at = 16 + sum(1 + len(name) + struct.calcsize(width) for name, _ in sequences)
    index, body = b"", b""
    for name, bases in sequences:
        index += struct.pack("B", len(name)) + name.encode("latin-1") + struct.pack(order + width, at + len(body))
        body += struct.pack(order + "I", len(bases))
        for flags in ([letter in b"Nn" for letter in bases], [letter >= 97 for letter in bases]):
            found = runs(flags)
            body += struct.pack(
                f"{order}I{2 * len(found)}I", len(found), *(a for a, _ in found), *(b for _, b in found)
            )
        body += struct.pack(order + "I", 0) + packed(bases)
    return struct.pack(order + "IIII", 0x1A412743, version, len(sequences), 0) + index + body


def groups(bases: str) -> list[list[str]]:
    """Lines of six groups of ten, as both formats have them."""
    lines = [bases[at : at + 60] for at in range(0, len(bases), 60)]
    return [[line[at : at + 10] for at in range(0, len(line), 10)] for line in lines]


def genbank(
    name: str, bases: str, length: int | None = None, features: str = "", unit: str = "bp", end: str = "//\n"
) -> str:
    numbered = "".join(f"{60 * n + 1:>9} {' '.join(line)}\n" for n, line in enumerate(groups(bases)))
    return (
        f"LOCUS       {name:<16} {len(bases) if length is None else length:>11} {unit}    DNA     linear   BCT 01-JAN-2020\n"
        f"DEFINITION  A record of\n            two lines.\nACCESSION   {name}\nVERSION     {name}.1\n"
        "SOURCE      Yeast\n  ORGANISM  Saccharomyces cerevisiae\n            Eukaryota; Fungi.\n"
        f"FEATURES             Location/Qualifiers\n{features}ORIGIN      \n{numbered}{end}"
    )


def embl(
    name: str, bases: str, length: int | None = None, features: str = "", unit: str = "BP", end: str = "//\n"
) -> str:
    stated = len(bases) if length is None else length
    numbered = "".join(
        f"     {' '.join(line):<66}{60 * n + sum(map(len, line)):>9}\n" for n, line in enumerate(groups(bases))
    )
    return (
        f"ID   {name}; SV 1; linear; genomic DNA; STD; FUN; {stated} {unit}.\nXX\nAC   {name};\nXX\n"
        "DE   A record of\nDE   two lines.\nXX\nOS   Saccharomyces cerevisiae\nXX\n"
        f"FH   Key             Location/Qualifiers\n{features}SQ   Sequence {stated} BP;\n{numbered}{end}"
    )
