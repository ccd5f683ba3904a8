"""What a substitution in a coding sequence does to the protein, under one of NCBI's genetic codes."""

import numpy as np

from dnascale.data.take.cds import fault_of_cds
from dnascale.data.take.genetic_codes import amino_acids
from dnascale.errors import DataError

#: Consequences, from the mildest.
CONSEQUENCES = ("synonymous", "missense", "nonsense", "start lost", "stop lost")


def require_cds(bases: bytes, name: str, genetic_code: int = 1) -> None:
    """Raises DataError when `bases` is no whole coding sequence, or has letters other than A, C, G, T."""
    amino_acids(genetic_code)
    letters = bases.upper().replace(b"U", b"T")
    fault = fault_of_cds(letters, genetic_code)
    if fault is None and letters.translate(None, b"ACGT"):
        fault = "CDS: letters other than A, C, G, T"
    if fault:
        raise DataError(
            f"the sequence {name!r} is no whole coding sequence ({fault.removeprefix('CDS: ')}), so the consequence of a change is "
            "not known: give one that begins with ATG and ends with a stop codon, another --genetic-code, or leave out --coding."
        )


def consequence(cds: bytes, position: int, alt: str, genetic_code: int = 1) -> str:
    """One of `CONSEQUENCES` for the base `alt` at a 0-based position of a whole coding sequence in upper case."""
    table = amino_acids(genetic_code)
    first = position - position % 3
    old = cds[first : first + 3].decode()
    new = old[: position % 3] + alt + old[position % 3 + 1 :]
    before, after = table[old], table[new]
    if first == 0:
        return "start lost"  # any change of ATG
    if before == after:
        return "synonymous"
    if after == "*":
        return "nonsense"
    return "stop lost" if before == "*" else "missense"


def codon_numbers(cds: np.ndarray) -> np.ndarray:
    """Character codes uint8 [n] -> int64 [n // 3]: number of each codon, 0 to 63 (base-4 digits A, T, C, G); -1 with another letter."""
    codons = cds[: len(cds) // 3 * 3].reshape(-1, 3).astype(np.int64)
    return np.where((codons < 4).all(axis=1), codons @ np.array([16, 4, 1]), -1)
