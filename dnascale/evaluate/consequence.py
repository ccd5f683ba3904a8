"""What a substitution in a coding sequence does to the protein, under one of NCBI's genetic codes."""

from functools import cache

import numpy as np

from dnascale.data.take.cds import STOPS, fault_of_cds
from dnascale.errors import DataError, UsageError

#: Consequences, from the mildest.
CONSEQUENCES = ("synonymous", "missense", "nonsense", "start lost", "stop lost")
#: Amino acids of NCBI's genetic code 1, codons in the order T, C, A, G, the first base slowest.
_STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
#: Where the others differ: https://www.ncbi.nlm.nih.gov/Taxonomy/Utils/wprintgc.cgi
_DIFFERENT = {
    2: "TGA=W ATA=M AGA=* AGG=*",
    3: "TGA=W CTT=T CTC=T CTA=T CTG=T ATA=M",
    4: "TGA=W",
    5: "TGA=W ATA=M AGA=S AGG=S",
    6: "TAA=Q TAG=Q",
    9: "TGA=W AAA=N AGA=S AGG=S",
    10: "TGA=C",
    12: "CTG=S",
    13: "TGA=W ATA=M AGA=G AGG=G",
    14: "TAA=Y TGA=W AAA=N AGA=S AGG=S",
    15: "TAG=Q",
    16: "TAG=L",
    21: "TGA=W ATA=M AAA=N AGA=S AGG=S",
    22: "TCA=* TAG=L",
    23: "TTA=*",
    24: "TGA=W AGA=S AGG=K",
    25: "TGA=G",
    26: "CTG=A",
    29: "TAA=Y TAG=Y",
    30: "TAA=E TAG=E",
    32: "TAG=W",
    33: "TAA=Y TGA=W AGA=S AGG=K",
}


@cache
def amino_acids(genetic_code: int = 1) -> dict[str, str]:
    """Codon to one-letter amino acid, `*` for a stop. Raises UsageError for a code that is not known."""
    if genetic_code not in STOPS:
        raise UsageError(f"genetic code {genetic_code} is not known; known: {', '.join(map(str, sorted(STOPS)))}.")
    codons = [a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"]
    table = dict(zip(codons, _STANDARD, strict=True))
    return table | dict(pair.split("=") for pair in _DIFFERENT.get(genetic_code, "").split())


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
