"""One alternative allele: where it is, what it changes, and why it has no score if it has none."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from dnascale.data.sources.alphabet import encode
from dnascale.errors import DataError
from dnascale.evaluate.language_model import BASE_OF_CODE
from dnascale.vocab import SOFT_MASK_BIT


class Status(StrEnum):
    """What became of an allele. Words without spaces, as VCF wants them."""

    scored = "scored"
    mismatch = "reference_mismatch"
    absent = "not_in_reference"
    outside = "outside_the_reference"
    symbolic = "symbolic"
    star = "overlapping_deletion"
    missing = "missing"
    same = "same_as_reference"
    indel = "indel_skipped"
    letters = "not_ACGT"
    long = "too_long"


@dataclass(slots=True)
class Allele:
    """`row`: line of the file, or row of the table, from 1, as `unit` says. `start`: 0-based. `ref` and `alt`: letters as they are
    written.
    """

    row: int
    contig: str
    start: int
    ref: bytes
    alt: bytes
    status: Status = Status.scored
    llr: float = float("nan")
    unit: str = "line"

    def settle(self, indels: bool, context: int) -> None:
        """Sets the status that follows from the allele alone. `context`: bases that the model takes at once."""
        if self.status is not Status.scored:
            return
        ref, alt = self.ref.upper(), self.alt.upper()
        if alt in (b"", b"."):
            self.status = Status.missing
        elif alt in (b"*", b"<*>"):
            self.status = Status.star
        elif b"<" in alt or b"[" in alt or b"]" in alt or alt.startswith(b".") or alt.endswith(b"."):
            self.status = Status.symbolic
        elif not _plain(ref) or not _plain(alt):
            self.status = Status.letters
        elif ref == alt:
            self.status = Status.same
        else:
            _, ref_codes, alt_codes = self.trimmed()
            if len(ref_codes) != len(alt_codes) and not indels:
                self.status = Status.indel
            elif max(len(ref_codes), len(alt_codes)) > context - 2:
                self.status = Status.long

    def trimmed(self) -> tuple[int, np.ndarray, np.ndarray]:
        """(start, ref, alt) without what both alleles end and begin with; the alleles as character codes uint8."""
        ref, alt, start = self.ref.upper(), self.alt.upper(), self.start
        shared = _shared(ref[::-1], alt[::-1])
        ref, alt = ref[: len(ref) - shared], alt[: len(alt) - shared]
        shared = _shared(ref, alt)
        return start + shared, codes_of(ref[shared:]), codes_of(alt[shared:])


def codes_of(letters: bytes) -> np.ndarray:
    """Character codes uint8 [n], whatever the case."""
    return np.frombuffer(encode(letters), dtype=np.uint8) & ~np.uint8(SOFT_MASK_BIT)


def checked_codes_of(letters: bytes, what: str) -> np.ndarray:
    """The same. Raises DataError for letters that are no bases, of `what`."""
    codes = codes_of(letters)
    if (codes == 0xFF & ~SOFT_MASK_BIT).any():
        raise DataError(f"{what} has letters that are no bases.")
    return codes


def same_bases(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two sequences of character codes are the same bases; a letter that is no base equals none."""
    left, right = BASE_OF_CODE[one], BASE_OF_CODE[other]
    return len(left) == len(right) and bool((left == right).all() and (left >= 0).all())


def _plain(letters: bytes) -> bool:
    return bool(letters) and not letters.translate(None, b"ACGTU")


def _shared(one: bytes, other: bytes) -> int:
    """How many first letters two alleles share."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return shared
