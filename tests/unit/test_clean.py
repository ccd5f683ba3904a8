"""Cleaning against naive reimplementations: every base is kept or counted, whatever the letters and wherever the pieces end."""

import itertools
import mmap
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Record
from dnascale.data.sources.growing import Growing
from dnascale.data.take import CleanOptions, clean, cleaning
from dnascale.data.take.cds import fault_of_cds
from dnascale.data.take.genetic_codes import STOPS, amino_acids
from dnascale.data.take.stretch import COMPLEMENT, View, as_dna, reverse_complement, stretch
from dnascale.data.tally import Count, Tally
from dnascale.errors import UsageError

LETTERS = "ACGTUNRYKMSWBDHV"
RUNS = st.lists(
    st.one_of(st.text("ACGTacgt", max_size=12), st.text("Nn", max_size=9), st.text("RYUui", max_size=2)), max_size=8
).map(lambda parts: "".join(parts).encode())


def cleaned(bases: bytes, options: CleanOptions) -> tuple[list[Record], Tally]:
    """What `clean` makes of one record, with everything counted and the balance checked."""
    tally = Tally()
    tally.read(len(bases))
    records = list(clean(Record("seq", "a description", bases, 7, {"gene": "g"}), options, tally))
    for record in records:
        tally.keep(len(record.bases))
    tally.balance()
    return records, tally


@given(
    RUNS, st.sampled_from(["strict", "iupac", "rna"]), st.none() | st.integers(0, 6), st.integers(1, 8), st.booleans()
)
def test_every_base_is_kept_or_counted(bases, alphabet, max_n_run, min_length, valid_cds):
    cleaned(bases, CleanOptions(min_length, max_n_run, alphabet, valid_cds))


@settings(max_examples=300)
@given(RUNS, st.integers(0, 6), st.integers(1, 4), st.integers(1, 9))
def test_runs_of_n_are_cut_out_as_a_regular_expression_would(bases, max_n_run, min_length, piece):
    whole, cleaning._PIECE = cleaning._PIECE, piece
    try:
        records, tally = cleaned(bases, CleanOptions(min_length, max_n_run, "rna"))
    finally:
        cleaning._PIECE = whole
    expected = []
    if bases.strip(b"Nn"):
        expected = [part for part in re.split(rb"[Nn]{%d,}" % (max_n_run + 1), bases) if part]
        if tally.cut or tally.dropped:
            assert tally.cut == len(expected) - 1
    assert [record.bases for record in records] == [part for part in expected if len(part) >= min_length]
    for record in records:
        offset = record.start
        assert bases[offset : offset + len(record.bases)] == record.bases
        assert (record.name, record.line, record.fields["gene"]) == ("seq", 7, "g")


def test_what_needs_no_cleaning_is_the_same_object():
    record = Record("a", "", b"ACGTNNNNacgtRYK" * 10, 1)
    assert list(clean(record, CleanOptions(max_n_run=4), Tally())) == [record]
    assert next(clean(record, CleanOptions(max_n_run=4), Tally())) is record
    assert next(clean(record, CleanOptions(alphabet="rna"), Tally())) is record


def test_reasons_are_counted_apart():
    for bases, options, reason in (
        (b"", CleanOptions(), "empty sequence"),
        (b"NNnn", CleanOptions(), "nothing but N"),
        (b"ACGTR", CleanOptions(alphabet="strict"), "letters other than A, C, G, T and N"),
        (b"ACGU", CleanOptions(alphabet="strict"), "letters other than A, C, G, T and N"),
        (b"ACG", CleanOptions(min_length=4), "shorter than 4 bases"),
        (b"ATGA", CleanOptions(valid_cds=True), "CDS: length not divisible by 3"),
        (b"CTGTAA", CleanOptions(valid_cds=True), "CDS: ATG not first"),
        (b"ATGTAC", CleanOptions(valid_cds=True), "CDS: no stop codon last"),
        (b"ATGtgaTAA", CleanOptions(valid_cds=True), "CDS: stop codon inside"),
    ):
        records, tally = cleaned(bases, options)
        assert not records
        assert tally.dropped == {reason: Count(1, len(bases))}


def test_u_is_read_as_t_by_default_and_counted():
    records, tally = cleaned(b"AUGGcuuNRi", CleanOptions())
    assert records[0].bases == b"ATGGcttNRi"
    assert (records[0].name, records[0].description, records[0].line) == ("seq", "a description", 7)
    assert tally.noted == {"bases U read as T": 3}
    assert tally.letters == {"U": 3, "R": 1, "i": 1}


def test_u_is_kept_in_the_rna_alphabet():
    records, tally = cleaned(b"AUGGcuuNR", CleanOptions(alphabet="rna"))
    assert records[0].bases == b"AUGGcuuNR"
    assert tally.noted == {}


def test_strict_keeps_both_cases_of_acgtn_and_names_the_letters_of_what_it_leaves_out():
    records, _ = cleaned(b"ACGTNacgtn", CleanOptions(alphabet="strict"))
    assert records[0].bases == b"ACGTNacgtn"
    _, tally = cleaned(b"ACGTACGTRRy" * 3, CleanOptions(alphabet="strict"))
    assert tally.warnings[-1] == "record 'seq' (line 7) is left out: it has 6 R, 3 Y"
    assert tally.letters == {"R": 6, "Y": 3}


def test_many_ambiguous_letters_are_warned_about_and_listed():
    _, tally = cleaned(b"ACGT" * 23 + b"WWWWKKMs", CleanOptions())
    assert tally.warnings == [
        "record 'seq' (line 7): 8.0% of its letters are not A, C, G, T, U or N (2 K, 1 M, 1 S, 4 W); "
        "is this protein, or a consensus of many sequences?"
    ]
    _, tally = cleaned(b"ACGU" * 23 + b"NNNNNNNR", CleanOptions())  # RNA and unknown bases are no reason
    assert not tally.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 0}, "--min-length 0 must be at least 1"),
        ({"max_n_run": -1}, "--max-n-run -1 must be at least 0"),
        ({"alphabet": "protein"}, "--alphabet protein is none of strict, iupac, rna"),
        ({"genetic_code": 27}, "--genetic-code 27 is not known, or its stop codons also code"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        CleanOptions(**options)


def test_a_map_is_cleaned_like_bytes(tmp_path, monkeypatch):
    bases = b"nnNACGUacgRNNNNNAAAuuN" * 50
    monkeypatch.setattr("dnascale.data.take.stretch.VIEW_BYTES", 5)  # longer pieces become views
    monkeypatch.setattr(cleaning, "_PIECE", 64)
    path = tmp_path / "bases"
    path.write_bytes(bases)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for options in (
            CleanOptions(),
            CleanOptions(max_n_run=3, min_length=8),
            CleanOptions(max_n_run=3, alphabet="rna"),
        ):
            from_map, one = cleaned(mapped, options)  # type: ignore[arg-type]
            from_bytes, other = cleaned(bases, options)
            assert [(r.bases[:], r.fields) for r in from_map] == [(r.bases[:], r.fields) for r in from_bytes]
            assert one == other
            assert any(isinstance(r.bases, View) for r in from_map)


@given(st.text(LETTERS + LETTERS.lower() + "i", min_size=1, max_size=40), st.data())
def test_views_slice_like_bytes(text, data):
    bases = text.encode()
    view = View(bases, 0, len(bases))
    places = st.integers(-len(bases) - 2, len(bases) + 2)
    start, end = data.draw(places), data.draw(places)
    for of_view, of_bytes in (
        (view, bases),
        (reverse_complement(view), reverse_complement(bases)),
        (as_dna(reverse_complement(view)), as_dna(reverse_complement(bases))),
        (stretch(reverse_complement(view), 1, len(bases)), reverse_complement(bases)[1:]),
    ):
        assert of_view[start:end] == of_bytes[start:end]
        assert of_view[:] == of_bytes[:]
        assert len(of_view) == len(of_bytes)


def test_complements_are_those_of_biopython():
    from Bio.Seq import reverse_complement as other

    letters = LETTERS.replace("U", "")
    for text in (letters, letters.lower(), letters[::2] + letters[1::2].lower()):
        assert reverse_complement(text.encode()).decode() == other(text)
    assert reverse_complement(b"AUGu") == b"aCAT"
    assert COMPLEMENT[ord("i")] == ord("i")


def test_stop_codons_and_amino_acids_are_those_of_ncbi():
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    for code, stops in STOPS.items():
        assert sorted(stops) == sorted(unambiguous_dna_by_id[code].stop_codons)
        assert amino_acids(code) == unambiguous_dna_by_id[code].forward_table | dict.fromkeys(stops, "*")
    for code, table in unambiguous_dna_by_id.items():  # none that could be offered is missing
        assert (code in STOPS) == (not set(table.stop_codons) & set(table.forward_table)), code


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(["ATG", "TAA", "TAG", "TGA", "GCT", "CTA", "NNN", "taa", "aug", "TAR", "A", "UGA"]), max_size=9
    )
)
def test_whole_coding_sequences_are_told_as_a_loop_over_codons_would(codons):
    bases = "".join(codons)
    for code, stops in STOPS.items():
        plain = bases.upper().replace("U", "T")
        read = [plain[i : i + 3] for i in range(0, len(plain), 3)]
        whole = len(plain) % 3 == 0 and read[:1] == ["ATG"] and read[-1] in stops and not set(read[:-1]) & set(stops)
        assert (fault_of_cds(bases.encode(), code) is None) == whole


def test_stops_are_found_wherever_the_pieces_end(monkeypatch):
    monkeypatch.setattr("dnascale.data.take.cds._PIECE", 6)
    for length, place in itertools.product(range(1, 9), range(8)):
        codons = ["GCT"] * length
        if place < length:
            codons[place] = "TGA"
        bases = ("ATG" + "".join(codons) + "TAA").encode()
        assert fault_of_cds(bases) == ("CDS: stop codon inside" if place < length else None)


@pytest.mark.parametrize("options", [CleanOptions(), CleanOptions(alphabet="strict"), CleanOptions(max_n_run=2)])
@pytest.mark.parametrize("letters", [b"ACGT", b"ACgtNNNNac", b"ACUGuNRYkmi", b"NNnn", b"R", b"acgtn" * 100_000 + b"W"])
def test_a_record_is_cleaned_alike_as_letters_and_as_codes(letters: bytes, options: CleanOptions) -> None:
    outcomes = []
    for short in (1 << 20, 0):
        grown = Growing(short=short)
        grown.add(letters)
        record = grown.record("a", "", 1)
        assert isinstance(record.bases, bytes) == (short > 0)
        tally = Tally()
        tally.read(len(letters))
        cleaned = [(r.bases[:], dict(r.fields)) for r in clean(record, options, tally)]
        outcomes.append((cleaned, tally.to_dict()))
    assert outcomes[0] == outcomes[1]
