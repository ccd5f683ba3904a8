"""Features of GTF and GFF3: the two formats, written from the same made-up genes, must give what splicing by hand gives."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Record
from dnascale.data.take import TakeOptions, Taker
from dnascale.data.take.stretch import reverse_complement
from dnascale.data.tally import Count, Tally
from dnascale.errors import DataError

# 60 bases, in which no two stretches of six are the same.
SEQUENCE = b"ACGTTGCAAGGCTTACCGATAGGTCATTCGCGAACTGTCCAGATTTAGCACGGGTATCAA"


def annotated(tmp_path: Path, text: str, feature: str = "CDS", *records: Record) -> tuple[list[Record], Tally]:
    """What an annotation with this text takes, with the balance checked. `|` stands for a tab."""
    path = tmp_path / "annotation"
    path.write_bytes(text.replace("|", "\t").encode())
    taker, tally, result = Taker(TakeOptions(annotation=str(path), feature=feature)), Tally(), []
    for record in records or (Record("c", "", SEQUENCE, 1),):
        tally.read(len(record.bases))
        for region in taker.take(record, tally):
            tally.keep(len(region.bases))
            result.append(region)
    tally.balance()
    taker.check(tally)
    return result, tally


def gtf(kind: str, first: int, last: int, strand: str, phase: object = ".", chrom: str = "c", ids: str = "g t") -> str:
    """A line of GTF, 1-based."""
    gene, transcript = ids.split()
    return f'{chrom}|x|{kind}|{first}|{last}|.|{strand}|{phase}|gene_id "{gene}"; transcript_id "{transcript}"; n 1;\n'


def gff(kind: str, first: int, last: int, strand: str, phase: object, attributes: str, chrom: str = "c") -> str:
    """A line of GFF3, 1-based."""
    return f"{chrom}|x|{kind}|{first}|{last}|.|{strand}|{phase}|{attributes}\n"


@st.composite
def genes(draw: st.DrawFn) -> tuple[list[tuple[int, int]], str, int, bool]:
    """Coding parts on 60 bases (stop codon included where there is one), the strand, the first phase, whether it stops."""
    edges = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=8)))
    edges = edges[: len(edges) // 2 * 2]
    parts = list(zip(edges[::2], edges[1::2], strict=True))
    size = sum(b - a for a, b in parts)
    stops = draw(st.booleans()) and size > 3 and size - 3 > 0
    phase = draw(st.integers(0, 2)) if size - 3 * stops > 3 else 0
    return parts, draw(st.sampled_from("+-")), phase, stops


def cut_at(parts: list[tuple[int, int]], bases: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first so many bases of the parts, and the rest."""
    first, rest = [], []
    for start, end in parts:
        middle = start + min(max(bases, 0), end - start)
        bases -= end - start
        first += [(start, middle)] * (middle > start)
        rest += [(middle, end)] * (end > middle)
    return first, rest


def phases(parts: list[tuple[int, int]], strand: str, phase: int) -> list[int]:
    """The phase of each part, ascending on the plus strand."""
    result = []
    for start, end in parts if strand == "+" else reversed(parts):
        result.append(phase)
        phase = (phase - (end - start)) % 3
    return result if strand == "+" else result[::-1]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(genes(), st.booleans(), st.randoms())
def test_both_formats_give_what_splicing_by_hand_gives(tmp_path, gene, stop_is_in_cds, random):
    parts, strand, phase, stops = gene
    size = sum(b - a for a, b in parts)
    spliced = b"".join(SEQUENCE[a:b] for a, b in parts)
    expected = (spliced if strand == "+" else reverse_complement(spliced))[phase:]

    if strand == "+":
        inside, stop = cut_at(parts, size - 3 * stops)
    else:
        stop, inside = cut_at(parts, 3 * stops)
    cds = parts if stop_is_in_cds else inside
    lines = [gtf("CDS", a + 1, b, strand, p) for (a, b), p in zip(cds, phases(cds, strand, phase), strict=True)]
    lines += [gtf("stop_codon", a + 1, b, strand, 0) for a, b in stop]
    random.shuffle(lines)
    records, tally = annotated(tmp_path, "".join(lines))
    assert [(r.name, r.bases) for r in records] == [("t", expected)]
    assert not tally.noted

    lines = [
        gff("CDS", a + 1, b, strand, p, "ID=cds1;Parent=t")
        for (a, b), p in zip(parts, phases(parts, strand, phase), strict=True)
    ]
    lines += [gff("mRNA", 1, 60, strand, ".", "ID=t;Parent=g"), gff("gene", 1, 60, strand, ".", "ID=g")]
    random.shuffle(lines)
    records, tally = annotated(tmp_path, "##gff-version 3\n" + "".join(lines))
    assert [(r.name, r.bases) for r in records] == [("t", expected)]
    assert records[0].fields.items() >= {"gene": "g", "transcript": "t", "chrom": "c", "strand": strand}.items()
    assert records[0].description.startswith("gene=g c:")
    assert not tally.noted


def test_the_ribosome_may_step_back(tmp_path):
    text = gff("CDS", 1, 10, "+", 0, "ID=a;Parent=t") + gff("CDS", 10, 14, "+", 2, "ID=a;Parent=t")
    records, tally = annotated(tmp_path, text)
    assert records[0].bases == SEQUENCE[:10] + SEQUENCE[9:14]
    assert tally.repeated == 1


def test_phases_that_are_missing_or_odd_are_noted(tmp_path):
    records, tally = annotated(tmp_path, gtf("CDS", 1, 7, "+", "."))
    assert records[0].bases == SEQUENCE[:7]
    assert tally.noted == {"transcripts without a phase, taken from their first base": 1}
    records, tally = annotated(tmp_path, gtf("CDS", 1, 7, "+", 0) + gtf("CDS", 11, 17, "+", 1))
    assert records[0].bases == SEQUENCE[:7] + SEQUENCE[10:17]
    assert tally.noted == {"transcripts whose phases do not follow from the lengths of their parts": 1}


def test_a_phase_may_use_up_the_first_part(tmp_path):
    text = gtf("CDS", 1, 1, "+", 2) + gtf("CDS", 11, 17, "+", 1)
    assert annotated(tmp_path, text)[0][0].bases == SEQUENCE[11:17]
    text = gtf("CDS", 20, 20, "-", 2) + gtf("CDS", 11, 17, "-", 1)
    assert annotated(tmp_path, text)[0][0].bases == reverse_complement(SEQUENCE[10:16])
    records, tally = annotated(tmp_path, gtf("CDS", 1, 2, "+", 2))
    assert (records, tally.skipped) == ([], {"no whole codon": 1})


def test_one_gtf_id_on_two_sequences_is_two_transcripts(tmp_path):
    text = gtf("CDS", 1, 3, "+", 0) + gtf("CDS", 4, 6, "+", 0, chrom="d")
    records, _ = annotated(tmp_path, text, "CDS", Record("c", "", SEQUENCE, 1), Record("d", "", SEQUENCE, 2))
    assert [(r.name, r.bases) for r in records] == [("t", SEQUENCE[:3]), ("t#2", SEQUENCE[3:6])]


def test_parts_on_both_strands_are_trans_spliced_and_skipped(tmp_path):
    for text in (
        gtf("CDS", 1, 3, "+", 0) + gtf("CDS", 11, 13, "-", 0),
        gff("CDS", 1, 3, "+", 0, "ID=a;Parent=t") + gff("CDS", 11, 13, "-", 0, "ID=a;Parent=t"),
        gff("CDS", 1, 3, "+", 0, "ID=a;Parent=t")
        + gff("CDS", 11, 13, "+", 0, "ID=a;Parent=t;exception=trans-splicing"),
        gff("CDS", 1, 3, "+", 0, "ID=a.1;Parent=t") + gff("CDS", 11, 13, "-", 0, "ID=a.2;Parent=t"),
        gff("CDS", 1, 3, "+", 0, "ID=a;Parent=t") + gff("CDS", 11, 13, "+", 0, "ID=a;Parent=t", "d"),
    ):
        records, tally = annotated(tmp_path, text)
        assert (records, tally.skipped) == ([], {"trans-spliced": 1})
        assert tally.dropped == {"outside the regions": Count(1, 60)}


def test_a_feature_across_the_origin_of_a_circular_sequence_is_skipped(tmp_path):
    region = gff("region", 1, 60, "+", ".", "ID=c:1..60;Is_circular=true")
    crossing = gff("CDS", 55, 66, "+", 0, "ID=a;Parent=g") + gff("CDS", 1, 6, "+", 0, "ID=b;Parent=g")
    crossing += gff("CDS", 55, 60, "+", 0, "ID=to the end")
    records, tally = annotated(tmp_path, region + gff("gene", 1, 66, "+", ".", "ID=g") + crossing)
    assert [r.name for r in records] == ["b", "to the end"]
    assert tally.skipped == {"across the origin of a circular sequence": 1}
    two_lines = gff("CDS", 55, 60, "+", 0, "ID=a") + gff("CDS", 1, 6, "+", 0, "ID=a")
    records, tally = annotated(tmp_path, region + two_lines)
    assert (records, tally.skipped) == ([], {"across the origin of a circular sequence": 1})
    assert annotated(tmp_path, two_lines)[1].skipped == {}  # nothing says that it is circular
    with pytest.raises(DataError, match=r":1: the region c:54-66 \(from 0\) ends beyond c, which has 60 bases"):
        annotated(tmp_path, crossing)


def test_coding_sequence_without_a_strand_is_skipped(tmp_path):
    records, tally = annotated(tmp_path, gtf("CDS", 1, 3, ".", 0))
    assert (records, tally.skipped) == ([], {"no strand": 1})


def test_one_part_of_two_transcripts_is_taken_for_each(tmp_path):
    text = gff("CDS", 1, 3, "+", 0, "ID=a;Parent=t1,t2") + gff("CDS", 7, 9, "+", 0, "ID=a;Parent=t1,t2")
    records, tally = annotated(tmp_path, text)
    assert [(r.name, r.bases) for r in records] == [(t, SEQUENCE[:3] + SEQUENCE[6:9]) for t in ("t1", "t2")]
    assert tally.repeated == 6


def test_two_coding_sequences_of_one_transcript_stay_two(tmp_path):
    text = gff("mRNA", 1, 40, "+", ".", "ID=t;Parent=g") + gff("gene", 1, 40, "+", ".", "ID=g")
    for identity, first in (("a", 1), ("b", 4)):
        text += gff("CDS", first, 6, "+", 0, f"ID={identity};Parent=t") + gff(
            "CDS", 11, 13, "+", 0, f"ID={identity};Parent=t"
        )
    records, _ = annotated(tmp_path, text)
    assert [(r.name, r.bases) for r in records] == [
        ("a", SEQUENCE[:6] + SEQUENCE[10:13]),
        ("b", SEQUENCE[3:6] + SEQUENCE[10:13]),
    ]
    assert {r.fields["transcript"] for r in records} == {"t"}


def test_files_that_number_the_lines_of_a_coding_sequence_are_understood(tmp_path):
    text = gff("mRNA", 1, 40, "-", ".", "ID=t;Parent=g") + gff("gene", 1, 40, "-", ".", "ID=g")
    text += gff("CDS", 11, 13, "-", 0, "ID=t.CDS.1;Parent=t") + gff("CDS", 1, 6, "-", 0, "ID=t.CDS.2;Parent=t")
    records, _ = annotated(tmp_path, text)
    assert [(r.name, r.bases) for r in records] == [("t", reverse_complement(SEQUENCE[:6] + SEQUENCE[10:13]))]
    assert records[0].fields["gene"] == "g"


def test_coding_sequences_directly_below_a_gene_stay_apart(tmp_path):
    text = (
        gff("gene", 1, 30, "+", ".", "ID=g")
        + gff("CDS", 1, 3, "+", 0, "ID=a;Parent=g")
        + gff("CDS", 7, 9, "+", 0, "ID=b;Parent=g")
    )
    records, _ = annotated(tmp_path, text)
    assert [(r.name, r.fields["gene"], r.fields["transcript"]) for r in records] == [("a", "g", "a"), ("b", "g", "b")]


def test_features_without_id_and_parent_are_regions_of_their_own(tmp_path):
    text = gff("CDS", 1, 3, "+", 0, "locus_tag=L1") + gff("CDS", 7, 9, "-", 0, "product=x")
    records, _ = annotated(tmp_path, text)
    assert [(r.name, r.fields.get("gene")) for r in records] == [("c:0-3(+)", "L1"), ("c:6-9(-)", None)]


def test_escaped_characters_are_decoded(tmp_path):
    text = gff("CDS", 1, 3, "+", 0, "ID=a%3B1;Parent=t%2C1", "c%7C1") + gff(
        "mRNA", 1, 3, "+", ".", "ID=t%2C1;Parent=g%25", "c%7C1"
    )
    text += gff("gene", 1, 3, "+", ".", "ID=g%25", "c%7C1")
    records, _ = annotated(tmp_path, text, "CDS", Record("c|1", "", SEQUENCE, 1))
    assert (records[0].name, records[0].fields["gene"], records[0].fields["chrom"]) == ("t,1", "g%", "c|1")


def test_sequences_at_the_end_of_the_file_end_the_features(tmp_path):
    for end in ("##FASTA\n>c\nACGT\n", ">c\nACGT\n", "###\n"):
        records, _ = annotated(tmp_path, "##gff-version 3\n\n" + gff("CDS", 1, 3, "+", 0, "ID=a") + end)
        assert [r.name for r in records] == ["a"]


@pytest.mark.parametrize("first", ["##gff-version 3\n", ""])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, first):
    regions, _ = annotated(tmp_path, "\ufeff" + first + gff("CDS", 1, 6, "+", 0, "ID=a"))
    assert [region.name for region in regions] == ["a"]


def test_other_features_are_joined_by_transcript_or_stand_alone(tmp_path):
    text = 'c|x|gene|1|30|.|-|.|gene_id "g";\n' + gtf("transcript", 1, 30, "-") + gtf("stop_codon", 1, 3, "-")
    text += gtf("exon", 1, 6, "-") + gtf("exon", 21, 30, "-") + gtf("transcript", 5, 9, "+", ids="g t2")
    exons = reverse_complement(SEQUENCE[:6] + SEQUENCE[20:30])
    assert [(r.name, r.bases) for r in annotated(tmp_path, text, "exon")[0]] == [("t", exons)]
    assert [(r.name, r.bases) for r in annotated(tmp_path, text, "gene")[0]] == [
        ("g", reverse_complement(SEQUENCE[:30]))
    ]
    assert [r.name for r in annotated(tmp_path, text, "transcript")[0]] == ["t", "t2"]
    assert [r.bases for r in annotated(tmp_path, text, "stop_codon")[0]] == [reverse_complement(SEQUENCE[:3])]
    text = (
        gff("gene", 1, 30, "+", ".", "ID=g")
        + gff("exon", 1, 3, "+", ".", "ID=e1;Parent=t")
        + gff("mRNA", 1, 30, "+", ".", "ID=t;Parent=g")
    )
    text += gff("exon", 7, 9, "+", ".", "ID=e2;Parent=t") + gff("exon", 7, 9, "+", ".", "Parent=t2")
    assert [(r.name, r.bases) for r in annotated(tmp_path, text, "exon")[0]] == [
        ("t", SEQUENCE[:3] + SEQUENCE[6:9]),
        ("t2", SEQUENCE[6:9]),
    ]
    for feature in ("gene", "mRNA"):
        records, _ = annotated(tmp_path, text, feature)
        assert [(r.bases, r.fields["gene"]) for r in records] == [(SEQUENCE[:30], "g")]


def test_genes_with_a_bare_name_in_the_ninth_column_do_not_confuse(tmp_path):
    text = "c|AUGUSTUS|gene|1|30|.|+|.|g1\nc|AUGUSTUS|transcript|1|30|.|+|.|g1.t1\n" + gtf("CDS", 1, 3, "+", 0)
    assert [r.name for r in annotated(tmp_path, text)[0]] == ["t"]


def test_identifiers_without_quotes_are_understood(tmp_path):
    text = "c|x|CDS|1|3|.|+|0|gene_id 12; transcript_id 34.1; exon_number 1\n"
    records, _ = annotated(tmp_path, text)
    assert (records[0].name, records[0].fields["gene"]) == ("34.1", "12")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " has no features in it."),
        ("##gff-version 3\n\n", " has no features in it."),
        ("c x CDS 1 3 . + 0 ID=a\n", ":1: 1 columns, where GTF and GFF3 have nine"),
        ("c|x|CDS|1|3|.|+|0\n", ":1: 8 columns"),
        ("c|1|3\n", ":1: 3 columns, where GTF and GFF3 have nine with tabs between them; this looks like BED"),
        ("c|x|CDS|1|3|.|+|0|something\n", ":1: the ninth column 'something' is neither GTF"),
        ("c|x|CDS|0|3|.|+|0|ID=a\n", ":1: '0' to '3' is no interval; bases count from 1"),
        ("c|x|CDS|5|3|.|+|0|ID=a\n", ":1: '5' to '3' is no interval"),
        ("c|x|CDS|x|3|.|+|0|ID=a\n", ":1: 'x' to '3' is no interval"),
        ("c|x|CDS|1|3|.|*|0|ID=a\n", ":1: the strand '*' is none of + - . ?"),
        ("c|x|CDS|1|3|.|+|3|ID=a\n", ":1: the phase '3' is none of 0 1 2 ."),
        ('#\nc|x|CDS|1|3|.|+|0|gene_id "g";\n', ":2: CDS without a transcript_id"),
        ("c|x|CDS|1|63|.|+|0|ID=a\n", ":1: the region c:0-63 (from 0) ends beyond c, which has 60 bases"),
        (
            gtf("CDS", 1, 3, "+", 0) + gtf("CDS", 7, 9, "+", 0) + gtf("CDS", 1, 3, "+", 0),
            ":3: t has the part 1-3 a second time (first in line 1)",
        ),
        (gtf("gene", 1, 3, "+") + gtf("exon", 1, 3, "+"), " has no feature 'CDS'; it has gene (1), exon (1). Name one"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path, text, message):
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "annotation") + message)):
        annotated(tmp_path, text)
