"""NCBI's genetic codes by number: https://www.ncbi.nlm.nih.gov/Taxonomy/Utils/wprintgc.cgi"""

from functools import cache

from dnascale.errors import UsageError

#: Amino acids of code 1, codons in the order T, C, A, G, the first base slowest.
_STANDARD = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
#: Where each differs from it. Left out: 27, 28 and 31, whose stops are read as amino acids too.
_DIFFERENT = {
    1: "",
    2: "TGA=W ATA=M AGA=* AGG=*",
    3: "TGA=W CTT=T CTC=T CTA=T CTG=T ATA=M",
    4: "TGA=W",
    5: "TGA=W ATA=M AGA=S AGG=S",
    6: "TAA=Q TAG=Q",
    9: "TGA=W AAA=N AGA=S AGG=S",
    10: "TGA=C",
    11: "",
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
    if genetic_code not in _DIFFERENT:
        raise UsageError(f"genetic code {genetic_code} is not known; known: {', '.join(map(str, _DIFFERENT))}.")
    codons = [a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"]
    table = dict(zip(codons, _STANDARD, strict=True))
    return table | dict(pair.split("=") for pair in _DIFFERENT[genetic_code].split())


#: Stop codons of each code.
STOPS: dict[int, tuple[str, ...]] = {
    code: tuple(codon for codon, letter in amino_acids(code).items() if letter == "*") for code in _DIFFERENT
}
