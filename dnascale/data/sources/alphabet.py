"""The letters that are sequence, what each is coded as, and what to say about any other byte."""

from __future__ import annotations

import re

from dnascale.vocab import CHARACTER

#: A C G T U N, the IUPAC ambiguity codes, and `i` for inosine. Capital I is refused: it is isoleucine.
BASES = b"ACGTUNRYKMSWBDHVacgtunrykmswbdhvi"
NOT_A_BASE = re.compile(rb"[^%s\n]" % BASES)
#: The code of every byte that is not a base.
INVALID = 0xFF
_CODES = bytes(
    CHARACTER.byte_table[byte] | CHARACTER.soft_mask_table[byte] if byte in BASES else INVALID for byte in range(256)
)

#: Letters that are amino acids and nothing else.
PROTEIN = b"EFILPQXZJOefilpqxzjo"
_LETTERS = bytes(_CODES.index(code) if code in _CODES and code != INVALID else 0 for code in range(256))

# Which byte, what it is, what it means and what to do.
_BAD_BYTES: tuple[tuple[bytes, str], ...] = (
    (b" \t", "white space in a sequence line, inside it or at its end; some tools count it, remove it"),
    (b"0123456789", "a digit; this looks like a numbered sequence listing, write the bases alone"),
    (b"-.", "a gap; aligned sequences are not accepted, remove the gaps"),
    (b"*", "a stop sign; it belongs to protein sequences, remove it or give the DNA"),
    (b"\0", "a NUL byte; the file is damaged (a hole left by an interrupted copy?), fetch it again"),
    (b";", "a ';' comment, which is not part of FASTA; remove the line"),
    (b"+@", "a sign of FASTQ; give FASTA (`seqtk seq -A` converts)"),
    (PROTEIN, "no base but an amino acid; this looks like protein, give the DNA"),
)


def encode(letters: bytes | bytearray) -> bytes | bytearray:
    """Letters to codes, one byte each: the character's id, bit 7 set for lower case, or INVALID.

    A bytearray takes 0.4 ms a megabyte, and bytes take 0.7.
    """
    return letters.translate(_CODES)


def decode(codes: bytes) -> bytes:
    """The letters that codes stand for: the inverse of `encode`."""
    return codes.translate(_LETTERS)


def meaning(byte: bytes) -> str:
    """What a byte that is not a base is, and what to do: the second half of an error message."""
    for bytes_, text in _BAD_BYTES:
        if byte in bytes_:
            return text
    if byte >= b"\x80":
        return "not ASCII; the file is damaged or is no sequence"
    return "not a base, and no known code for one; this is no DNA or RNA sequence"


def shown_byte(byte: bytes) -> str:
    """A byte fit for a terminal."""
    return f"'{byte.decode()}'" if b" " < byte < b"\x7f" else f"byte 0x{byte[0]:02X}"


def shown(name: str, most: int = 60) -> str:
    """A name fit for a terminal: quoted, escaped, and of `most` characters at most."""
    return ascii(name if len(name) <= most else name[: most - 3] + "...")


def text_of(letters: bytes) -> str:
    """Names and what else is no sequence: UTF-8 where it is that, otherwise Latin-1, which takes any byte."""
    try:
        return letters.decode()
    except UnicodeDecodeError:
        return letters.decode("latin-1")
