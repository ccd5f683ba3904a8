"""GenBank and EMBL: the sequences that Biopython reads, and a sentence for every record that is not whole."""

from __future__ import annotations

import gzip
import io
import re
from pathlib import Path
from typing import Any

import pytest
from formats import embl, genbank
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data import sources
from dnascale.data.sources import Input, ReadOptions, ReadReport, Record
from dnascale.errors import DataError

WRITERS = {"genbank": genbank, "embl": embl}
SOURCE = (
    "     source          1..70\n"
    '                     /organism="Homo\n                     sapiens"\n'
    '                     /chromosome="17"\n'
    '                     /note="called ""the"" one"\n'
    "     gene            1..70\n"
    '                     /gene="BRCA1"\n'
    "     CDS             1..70\n"
    '                     /gene="BRCA1"\n'
)
SEVENTY = "acgtacgtaa" * 7


def read(path: Path, data: str | bytes, block_bytes: int = 1 << 18, **options: Any) -> tuple[list[Record], ReadReport]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    report = ReadReport(str(path))
    return list(sources.read(Input.of(path), ReadOptions(**options), report, block_bytes)), report


def refusal(path: Path, data: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(path, data)
    return str(caught.value)


def biopython(data: str, form: str) -> list[tuple[str, str, bytes]]:
    seqio = pytest.importorskip("Bio.SeqIO")
    return [(r.id, r.description, bytes(r.seq)) for r in seqio.parse(io.StringIO(data), form)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.gb"


@pytest.fixture(params=WRITERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def as_features(form: str, features: str) -> str:
    return features if form == "genbank" else re.sub("(?m)^     ", "FT   ", features)


# ------------------------------------------------------------------------------------- what is accepted


@settings(max_examples=25, deadline=None)
@given(
    bases=st.lists(st.text("acgtnryACGT", min_size=1, max_size=200), min_size=1, max_size=4),
    form=st.sampled_from(sorted(WRITERS)),
    block=st.sampled_from([1, 7, 64, 1 << 18]),
    eol=st.sampled_from(["\n", "\r\n"]),
)
def test_agrees_with_biopython_whatever_the_blocks_and_line_ends(
    tmp_path_factory: pytest.TempPathFactory, bases: list[str], form: str, block: int, eol: str
) -> None:
    text = "".join(WRITERS[form](f"AB{number}", sequence) for number, sequence in enumerate(bases))
    records, report = read(tmp_path_factory.mktemp("x") / "a", text.replace("\n", eol), block)
    assert [(r.name, r.description, r.bases) for r in records] == [
        (name, description.rstrip("."), sequence) for name, description, sequence in biopython(text, form)
    ]
    assert [r.name for r in records] == [f"AB{number}.1" for number in range(len(bases))]
    assert (report.format, report.records, report.bases) == (form, len(bases), sum(map(len, bases)))


def test_qualifiers_become_fields(path: Path, form: str) -> None:
    ((record,), _) = read(path, WRITERS[form]("AB1", SEVENTY, features=as_features(form, SOURCE)))
    assert record.fields == {
        "organism": "Homo sapiens",
        "chromosome": "17",
        "note": 'called "the" one',
        "gene": "BRCA1",
    }


def test_a_record_of_several_genes_belongs_to_none_of_them(path: Path, form: str) -> None:
    features = as_features(form, SOURCE + '     gene            1..70\n                     /gene="NBR2"\n')
    ((record,), _) = read(path, WRITERS[form]("AB1", SEVENTY, features=features))
    assert "gene" not in record.fields


def test_without_a_feature_table_the_organism_is_that_of_the_record(path: Path, form: str) -> None:
    ((record,), _) = read(path, WRITERS[form]("AB1", SEVENTY))
    assert record.fields == {"organism": "Saccharomyces cerevisiae"}


def test_lines_of_other_lengths_are_read_if_their_numbers_count(path: Path) -> None:
    text = genbank("AB1", "").replace("0 bp", "9 bp").replace("//", "        1 acg tac\n        7 gta\n//")
    assert [r.bases for r in read(path, text)[0]] == [b"ACGTACGTA"]


def test_line_numbers_are_those_of_the_file(path: Path, form: str) -> None:
    text = "\n" + WRITERS[form]("AB1", SEVENTY) + "\n\n" + WRITERS[form]("AB2", SEVENTY)
    starts = [n for n, line in enumerate(text.split("\n"), 1) if line.startswith(("LOCUS", "ID "))]
    assert [r.line for r in read(path, text)[0]] == starts


def test_compressed_files_are_read(path: Path, form: str) -> None:
    records, report = read(path, gzip.compress(WRITERS[form]("AB1", SEVENTY).encode()))
    assert (len(records), report.compression) == (1, "gzip")


OLD_EMBL = {
    "ID   BSUB9999   standard; circular DNA; PRO; 4 BP.\nAC   AL009126;\nSV   AL009126.1\nSQ   Sequence 4 BP;\n     acgt  4\n//\n": "AL009126.1",
    "ID   1    standard; DNA; HTG; 4 BP.\nAC   chromosome:GRCh38:1:1:4:1\nSQ   Sequence 4 BP;\n     acgt  4\n//\n": "chromosome:GRCh38:1:1:4:1",
    "ID   X56734; SV XXX; linear; mRNA; STD; PLN; 4 BP.\nSQ   Sequence 4 BP;\n     acgt  4\n//\n": "X56734",
}


@pytest.mark.parametrize(("text", "name"), OLD_EMBL.items())
def test_older_first_lines_of_embl(path: Path, text: str, name: str) -> None:
    ((record,), _) = read(path, text)
    assert (record.name, record.bases) == (name, b"ACGT")


# -------------------------------------------------------------------------------------- what is refused


def test_a_stated_length_that_is_not_that_of_the_sequence(path: Path, form: str) -> None:
    message = refusal(path, WRITERS[form]("AB1", SEVENTY, length=71))
    assert "record 'AB1.1' has 70 bases, but its first line says 71" in message
    assert message.startswith(f"{path}:1:1: ")


def test_a_missing_sequence_line_is_placed(path: Path, form: str) -> None:
    lines = WRITERS[form]("AB1", "acgtacgtaa" * 30).split("\n")
    at = next(n for n, line in enumerate(lines) if line.startswith(("ORIGIN", "SQ ")))
    del lines[at + 2]
    assert f"{path}:{at + 3}:1: the line is numbered" in refusal(path, "\n".join(lines))


def test_a_missing_base_is_placed(path: Path, form: str) -> None:
    text = WRITERS[form]("AB1", "acgtacgtaa" * 30)
    at = text.index("acgtacgtaa acg") + 3
    line = text.count("\n", 0, at) + 1
    place = line if form == "embl" else line + 1  # GenBank's numbers say where the next line begins
    assert f"{path}:{place}:1: the line is numbered" in refusal(path, text[:at] + text[at + 1 :])


@pytest.mark.parametrize(("sign", "words"), [("e", "amino acid"), ("-", "a gap"), ("*", "a stop sign"), ("\0", "NUL")])
def test_what_is_no_base_is_placed_to_the_column(path: Path, form: str, sign: str, words: str) -> None:
    text = WRITERS[form]("AB1", SEVENTY)
    at = text.rindex("acgtacgtaa") + 4
    line, column = text.count("\n", 0, at) + 1, at - text.rindex("\n", 0, at)
    message = refusal(path, text[:at] + sign + text[at + 1 :])
    assert message.startswith(f"{path}:{line}:{column}: ")
    assert words in message


def test_a_digit_in_the_sequence_is_refused(path: Path, form: str) -> None:
    text = WRITERS[form]("AB1", SEVENTY * 2)
    at = text.index("acgtacgtaa") + 4
    assert "no sequence line of record 'AB1.1'" in refusal(path, text[:at] + "7" + text[at + 1 :])


@pytest.mark.parametrize("cut", [10, 200, -3, -30])
def test_a_truncated_file_is_refused(path: Path, form: str, cut: int) -> None:
    message = refusal(path, WRITERS[form]("AB0", SEVENTY) + WRITERS[form]("AB1", SEVENTY)[:cut])
    assert "truncated" in message or "no length in the first line" in message


def test_protein_is_refused(path: Path, form: str) -> None:
    text = WRITERS[form]("AB1", "mkvllaal", unit="aa" if form == "genbank" else "AA")
    assert "is protein (8 amino acids); give the DNA" in refusal(path, text)


def test_swissprot_is_refused(path: Path) -> None:
    text = "ID   001R_FRG3G              Reviewed;         256 AA.\nSQ   SEQUENCE   4 AA;\n     MAFS\n//\n"
    assert "is protein" in refusal(path, text)


@pytest.mark.parametrize("line", ["CONTIG      join(AB2.1:1..70)\n", "WGS         AB2-AB9\n", ""])
def test_a_genbank_record_without_sequence_says_what_to_download(path: Path, line: str) -> None:
    text = re.sub(r"(?s)ORIGIN.*//", line + "//", genbank("AB1", SEVENTY))
    message = refusal(path, text)
    assert "record 'AB1.1' has no bases" in message
    assert ("gbwithparts" in message) == bool(line)


def test_an_embl_record_without_sequence_is_refused(path: Path) -> None:
    text = re.sub(r"(?s)SQ  .*//", "CO   join(AB2.1:1..70)\n//", embl("AB1", SEVENTY))
    assert "CO points to other records" in refusal(path, text)


def test_an_origin_without_bases_is_refused(path: Path, form: str) -> None:
    assert "has no bases" in refusal(path, WRITERS[form]("AB1", "", length=70))


def test_a_name_twice_is_refused(path: Path, form: str) -> None:
    assert "the name of this record was used in line 1 already" in refusal(path, WRITERS[form]("AB1", SEVENTY) * 2)


def test_a_missing_end_of_record_is_refused(path: Path, form: str) -> None:
    text = WRITERS[form]("AB1", SEVENTY, end="") + WRITERS[form]("AB2", SEVENTY)
    message = refusal(path, text)
    assert "no sequence line of record 'AB1.1'" in message


def test_all_problems_of_a_file_are_listed_and_good_records_go_on(path: Path, form: str) -> None:
    write = WRITERS[form]
    text = write("A", SEVENTY, length=1) + write("B", SEVENTY) + write("C", "acgtxx") + write("D", SEVENTY)
    records, report = read(path, text, skip_bad_records=True)
    assert [r.name for r in records] == ["B.1", "D.1"]
    assert (report.bad_records, report.records) == (2, 2)
    message = refusal(path, text)
    assert "says 1" in message
    assert "'x'" in message


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 2000), value=st.binary(min_size=1, max_size=3), form=st.sampled_from(sorted(WRITERS)))
def test_no_damage_gives_anything_but_records_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes, form: str
) -> None:
    features = as_features(form, SOURCE)
    text = "".join(WRITERS[form](name, SEVENTY * 3, features=features) for name in ("AB1", "AB2")).encode()
    at %= len(text)
    try:
        records, _ = read(tmp_path_factory.mktemp("x") / "a", text[:at] + value + text[at + len(value) :])
    except DataError:
        return
    assert sorted({len(record.bases) for record in records}) == [210]


def test_a_line_without_end_is_refused_before_it_fills_memory(path: Path) -> None:
    assert "a line of more than 64 KiB" in refusal(path, "LOCUS       " + "x" * (1 << 20))
