"""Cleaning of records: the alphabet, runs of N, lengths, whole coding sequences. What is left out is counted.

A record in which nothing is to be done is looked at once, in C, and given on as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dnascale.data.sources import Record
from dnascale.data.sources.alphabet import shown
from dnascale.data.sources.record import Bases
from dnascale.data.take.cds import fault_of_cds
from dnascale.data.take.genetic_codes import STOPS
from dnascale.data.take.stretch import as_dna, stretch
from dnascale.data.tally import Tally
from dnascale.errors import UsageError
from dnascale.vocab import CHARACTER, PREDICTED_BASES, SOFT_MASK_BIT

Alphabet = Literal["strict", "iupac", "rna"]

_PIECE = 256 << 10  # bases looked at together: they stay in the cache
_NOTHING: Iterator[Record] = iter(())
#: A record with a larger share of letters other than A, C, G, T, U and N is warned about.
_MANY = 0.05


@dataclass(frozen=True)
class CleanOptions:
    """What is asked of a record.

    Attributes:
        min_length: shorter records are left out.
        max_n_run: longer runs of N are cut out, what stands between them becomes records. None: they stay.
        alphabet: `iupac` keeps every code and reads U as T; `rna` keeps U too; `strict` leaves out a record that has
            anything but A, C, G, T and N. Lower case is kept by all.
        valid_cds: keep only whole coding sequences, see `fault_of_cds`.
        genetic_code: NCBI's number of the code that `valid_cds` goes by.

    Raises:
        UsageError: a value that cannot be, or has nothing to act on.
    """

    min_length: int = 1
    max_n_run: int | None = None
    alphabet: Alphabet = "iupac"
    valid_cds: bool = False
    genetic_code: int = 1

    def __post_init__(self) -> None:
        if self.min_length < 1:
            raise UsageError(f"--min-length {self.min_length} must be at least 1.")
        if self.max_n_run is not None and self.max_n_run < 0:
            raise UsageError(f"--max-n-run {self.max_n_run} must be at least 0.")
        if self.alphabet not in get_args(Alphabet):
            raise UsageError(f"--alphabet {self.alphabet} is none of {', '.join(get_args(Alphabet))}.")
        if self.genetic_code not in STOPS:
            known = ", ".join(map(str, sorted(STOPS)))
            raise UsageError(
                f"--genetic-code {self.genetic_code} is not known, or its stop codons also code for amino acids; "
                f"known: {known}."
            )
        if self.genetic_code != 1 and not self.valid_cds:
            raise UsageError("--genetic-code says which code --valid-cds goes by: add --valid-cds.")


def clean(record: Record, options: CleanOptions, tally: Tally) -> Iterator[Record]:
    """The record as the options want it: itself, another, its pieces, or nothing.

    In this order: empty, alphabet, nothing but N, whole coding sequence, runs of N, length. What is left out is
    counted in `tally`, and so are pieces beyond the first (`cut`). Pieces keep the name; `start` says where they begin in
    `record`. Memory is bounded, whatever the length.
    """
    bases: Bases = record.bases
    size = len(bases)
    if not size:
        tally.drop("empty sequence", 0)
        return _NOTHING
    n_bases, letters = (0, {}) if record.plain else _other_letters(bases) if size <= _PIECE else _other_codes(record)
    if letters:
        tally.meet(letters)
        _warn_of_many(record, letters, tally)
        if options.alphabet == "strict":
            tally.drop("letters other than A, C, G, T and N", size)
            tally.warn(f"{_place(record)} is left out: it has {_listed(letters)}")
            return _NOTHING
        if options.alphabet == "iupac" and "U" in letters:
            tally.note("bases U read as T", letters["U"])
            bases = as_dna(bases)
            record = Record(record.name, record.description, bases, record.line, record.fields)
    if n_bases == size:
        tally.drop("nothing but N", size)
    elif options.valid_cds and (fault := fault_of_cds(bases, options.genetic_code)):
        tally.drop(fault, size)
    elif options.max_n_run is not None and n_bases > options.max_n_run:
        return _pieces(record, options.max_n_run, options.min_length, tally)
    elif size < options.min_length:
        tally.drop(_too_short(options.min_length), size)
    else:
        return iter((record,))
    return _NOTHING


def _too_short(min_length: int) -> str:
    return f"shorter than {min_length} bases"


def _other_letters(bases: Bases) -> tuple[int, dict[str, int]]:
    """How many N there are, and how many of each letter but A, C, G, T and N; both cases together."""
    if len(bases) <= _PIECE and not bases[:].translate(None, b"ACGTacgt"):  # nearly all of many short records
        return 0, {}
    n_bases = 0
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(bases), _PIECE):
        rest = bases[start : start + _PIECE].translate(None, b"ACGTacgt")
        if rest:
            other = rest.translate(None, b"Nn")
            n_bases += len(rest) - len(other)
            if other:
                counts += np.bincount(np.frombuffer(other, dtype=np.uint8), minlength=256)
    letters: dict[str, int] = {}
    for byte in np.flatnonzero(counts).tolist():
        letter = chr(byte) if byte == ord("i") else chr(byte).upper()  # inosine is written in lower case only
        letters[letter] = letters.get(letter, 0) + int(counts[byte])
    return n_bases, letters


def _other_codes(record: Record) -> tuple[int, dict[str, int]]:
    """The same of a long record, whose codes its reader has made already."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(record.bases), _PIECE):
        codes = record.codes(start, start + _PIECE) & np.uint8(SOFT_MASK_BIT - 1)
        if codes.max() >= PREDICTED_BASES:
            counts += np.bincount(codes[codes >= PREDICTED_BASES], minlength=256)
    letters = {CHARACTER.tokens[code]: int(counts[code]) for code in np.flatnonzero(counts).tolist()}
    return letters.pop("N", 0), dict(sorted(letters.items()))


def _warn_of_many(record: Record, letters: Mapping[str, int], tally: Tally) -> None:
    ambiguous = sum(count for letter, count in letters.items() if letter != "U")
    share = ambiguous / len(record.bases)
    if share > _MANY:
        tally.warn(
            f"{_place(record)}: {share:.1%} of its letters are not A, C, G, T, U or N ({_listed(letters)}); "
            "is this protein, or a consensus of many sequences?"
        )


def _place(record: Record) -> str:
    return f"record {shown(record.name)} (line {record.line})"


def _listed(letters: Mapping[str, int]) -> str:
    return ", ".join(f"{letters[letter]:,} {letter}" for letter in sorted(letters))


def _pieces(record: Record, max_n_run: int, min_length: int, tally: Tally) -> Iterator[Record]:
    """What stands between the runs of more than `max_n_run` N. There is a base that is not N."""
    starts, ends = _runs_of_n(record.bases, max_n_run)
    size = len(record.bases)
    tally.drop(f"runs of more than {max_n_run} N", int((ends - starts).sum()), records=0)
    begins, stops = np.append(0, ends), np.append(starts, size)
    kept = begins < stops
    places = list(zip(begins[kept].tolist(), stops[kept].tolist(), strict=True))
    tally.cut += len(places) - 1
    for start, end in places:
        if end - start < min_length:
            tally.drop(_too_short(min_length), end - start)
        elif end - start == size:
            yield record
        else:
            bases = stretch(record.bases, start, end)
            yield Record(record.name, record.description, bases, record.line, record.fields, start=start)


def _runs_of_n(bases: Bases, longer_than: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and ends, int64 [n], of the runs of N or n that are longer than this, in order."""
    found: list[np.ndarray] = []  # starts, ends; pairs
    open_start = open_end = -1  # a run that reaches the end of the piece before
    for at in range(0, len(bases), _PIECE):
        piece = bases[at : at + _PIECE]
        if b"N" not in piece and b"n" not in piece:
            continue
        is_n = np.zeros(len(piece) + 2, dtype=np.int8)
        is_n[1:-1] = (np.frombuffer(piece, dtype=np.uint8) | 0x20) == ord("n")
        runs = np.flatnonzero(np.diff(is_n)).reshape(-1, 2) + at
        if open_end == runs[0, 0]:
            runs[0, 0] = open_start
        elif open_end - open_start > longer_than:
            found.append(np.array([[open_start, open_end]]))
        open_start, open_end = -1, -1
        if runs[-1, 1] == at + len(piece):
            open_start, open_end = runs[-1].tolist()
            runs = runs[:-1]
        found.append(runs[runs[:, 1] - runs[:, 0] > longer_than])
    if open_end - open_start > longer_than:
        found.append(np.array([[open_start, open_end]]))
    all_runs = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
    return all_runs[:, 0], all_runs[:, 1]
