"""Regions of BED files: what is taken, against a naive reading of the format, and what is refused, with its line."""

import gzip
import hashlib
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Record
from dnascale.data.take import TakeOptions, Taker
from dnascale.data.take.layout import Contig, Names
from dnascale.data.take.layout import take as take_from
from dnascale.data.take.stretch import View, reverse_complement
from dnascale.data.tally import Count, Tally
from dnascale.errors import DataError, UsageError

SEQUENCE = b"AACCGGTTRYacgtnnACGTAAACCCGGGTTT"  # 32 bases


def bed(tmp_path: Path, text: str) -> str:
    """A BED file with this text."""
    path = tmp_path / "regions.bed"
    path.write_bytes(text.encode())
    return str(path)


def taken(options: TakeOptions, *records: Record) -> tuple[list[Record], Tally]:
    """What is taken of the records, with the balance checked."""
    taker, tally, result = Taker(options), Tally(), []
    for record in records or (Record("chr1", "", SEQUENCE, 1),):
        tally.read(len(record.bases))
        for region in taker.take(record, tally):
            tally.keep(len(region.bases))
            result.append(region)
    tally.balance()
    return result, tally


def test_intervals_are_taken_on_their_strand_with_names_and_places(tmp_path):
    text = "chr1\t0\t4\tfirst\t0\t+\nchr1\t2\t9\tsecond\t0\t-\nchr1\t9\t12\t.\t0\t.\n"
    regions, tally = taken(TakeOptions(regions=bed(tmp_path, text)))
    assert [(r.name, r.bases) for r in regions] == [
        ("first", b"AACC"),
        ("second", b"YAACCGG"),
        ("chr1:9-12(.)", b"Yac"),
    ]
    assert regions[1].fields == {"chrom": "chr1", "start": "2", "end": "9", "strand": "-"}
    assert regions[1].description == "chr1:2-9(-)"
    assert tally.dropped == {"outside the regions": Count(0, 20)}
    assert (tally.repeated, tally.cut, tally.contigs) == (2, 2, {"chr1"})


def test_three_columns_are_enough_and_columns_of_the_record_stay(tmp_path):
    record = Record("chr1", "", SEQUENCE, 3, {"species": "worm"})
    regions, _ = taken(TakeOptions(regions=bed(tmp_path, "chr1 0 4\nchr1 0 4\n")), record)
    assert [(r.name, r.bases, r.line) for r in regions] == [("chr1:0-4(.)", b"AACC", 3), ("chr1:0-4(.)#2", b"AACC", 3)]
    assert regions[0].fields["species"] == "worm"


@pytest.mark.parametrize(
    "text",
    [
        "browser position chr1:1-10\ntrack name=x\n# a comment\n\nchr1\t0\t4\tn\n",
        "\ufeffchr1\t0\t4\tn\r\n\r\n#\tx\ty\tz\r\n",
        "\ufeffbrowser position chr1:1-10\nchr1\t0\t4\tn\n",
        "chr1   0 4  n\n",
        "chr1\t0\t4\tn",
    ],
)
def test_forms_of_the_same_file(tmp_path, text):
    regions, _ = taken(TakeOptions(regions=bed(tmp_path, text)))
    assert [(r.name, r.bases) for r in regions] == [("n", b"AACC")]


def test_a_compressed_file_is_read_whatever_its_name(tmp_path):
    path = tmp_path / "regions.bed"
    path.write_bytes(gzip.compress(b"chr1\t0\t4\n"))
    assert taken(TakeOptions(regions=str(path)))[0][0].bases == b"AACC"


BED12 = "chr1\t2\t20\ttx\t0\t{strand}\t{thick}\t0\t3\t4,3,2,\t0,8,16,\n"


def test_blocks_are_joined_on_the_strand(tmp_path):
    exons = SEQUENCE[2:6] + SEQUENCE[10:13] + SEQUENCE[18:20]
    for strand in "+-":
        path = bed(tmp_path, BED12.format(strand=strand, thick="4\t19"))
        whole, tally = taken(TakeOptions(regions=path, spliced=True))
        assert whole[0].bases == (exons if strand == "+" else reverse_complement(exons))
        assert tally.dropped["outside the regions"].bases == 32 - 9
        coding, _ = taken(TakeOptions(regions=path, coding=True))
        inner = exons[2:-1]
        assert coding[0].bases == (inner if strand == "+" else reverse_complement(inner))
        assert (coding[0].fields["start"], coding[0].fields["end"]) == ("4", "19")
        assert len(taken(TakeOptions(regions=path))[0][0].bases) == 18


def test_a_region_without_a_coding_part_is_skipped_and_counted(tmp_path):
    text = (
        BED12.format(strand="+", thick="2\t2")
        + BED12.format(strand="+", thick="0\t0")
        + BED12.format(strand="+", thick="2\t6")
    )
    regions, tally = taken(TakeOptions(regions=bed(tmp_path, text), coding=True))
    assert [r.bases for r in regions] == [SEQUENCE[2:6]]
    assert tally.skipped == {"no coding part": 2}
    regions, tally = taken(TakeOptions(regions=bed(tmp_path, BED12.format(strand="+", thick="7\t9")), coding=True))
    assert regions == []  # the thick part lies between two blocks
    assert tally.dropped == {"outside the regions": Count(1, 32)}


@st.composite
def lines_of_bed(draw: st.DrawFn) -> list[tuple[int, int, str, str, list[tuple[int, int]]]]:
    """Regions on a sequence of 60 bases: start, end, name, strand, blocks."""
    result = []
    for _ in range(draw(st.integers(1, 6))):
        edges = sorted(draw(st.sets(st.integers(0, 60), min_size=2, max_size=8)))
        edges = edges[: len(edges) // 2 * 2]
        blocks = list(zip(edges[::2], edges[1::2], strict=True))
        name = draw(st.sampled_from(["a", "b", "a b", ".", "é"]))
        result.append((edges[0], edges[-1], name, draw(st.sampled_from("+-.")), blocks))
    return result


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines_of_bed(), st.binary(min_size=60, max_size=60), st.booleans())
def test_taking_agrees_with_a_naive_reading(tmp_path, lines, seed, spliced):
    sequence = bytes(b"ACGTacgtNnRYSWKMBDHV"[byte % 20] for byte in seed)
    text = "".join(
        f"c\t{start}\t{end}\t{name}\t0\t{strand}\t{start}\t{end}\t0\t{len(blocks)}"
        f"\t{','.join(str(b - a) for a, b in blocks)}\t{','.join(str(a - start) for a, _ in blocks)}\n"
        for start, end, name, strand, blocks in lines
    )
    regions, tally = taken(TakeOptions(regions=bed(tmp_path, text), spliced=spliced), Record("c", "", sequence, 1))
    partner = dict(zip("ACGTNRYKMSWBDHV", "TGCANYRMKSWVHDB", strict=True))
    times = [0] * 60
    for region, (start, end, _, strand, blocks) in zip(regions, lines, strict=True):
        places = [i for a, b in (blocks if spliced else [(start, end)]) for i in range(a, b)]
        letters = [chr(sequence[i]) for i in places]
        if strand == "-":
            letters = [partner[x] if x.isupper() else partner[x.upper()].lower() for x in reversed(letters)]
        assert region.bases.decode() == "".join(letters)
        for i in places:
            times[i] += 1
    assert len({r.name for r in regions}) == len(regions)
    assert tally.repeated == sum(max(0, count - 1) for count in times)
    dropped = tally.dropped.get("outside the regions", Count())
    assert (dropped.records, dropped.bases) == (0, times.count(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " has no regions in it."),
        ("# nothing\n\ntrack name=x\n", " has no regions in it."),
        ("chr1\t0\n", ":1: 2 columns, where BED has at least three"),
        ("chr1\t0\t4\n\nchr1\t0\t4\tn\n", ":3: 4 columns, but line 1 has 3"),
        ("chr1\t0\t4\t\n", None),
        ("\t0\t4\n", ":1: the first column, the name of the sequence, is empty"),
        ("chr1\t0\t4\nchr1\t5\t5\n", ":2: the start '5' is not before the end '5'; BED is 0-based half-open"),
        ("chr1\t5\t4\n", ":1: the start '5' is not before the end '4'"),
        ("chrom\tstart\tend\n", ":1: the start 'start' is not a whole number; BED counts bases from 0"),
        ("chr1\t-1\t4\n", ":1: the start '-1' is not a whole number"),
        ("chr1\t1_0\t40\n", ":1: the start '1_0' is not a whole number"),
        ("chr1\t1\t4e3\n", ":1: the end '4e3' is not a whole number"),
        ("chr1\t1\t99999999999999999999\n", ":1: the end '99999999999999999999' is beyond every sequence"),
        ("chr1\t1\t4\tn\t0\t*\n", ":1: the strand '*' is none of + - ."),
        (
            'chr1\tsrc\tCDS\t1\t4\t.\t+\t0\tgene_id "a";\n',
            ":1: the start 'src' is not a whole number; this looks like GTF",
        ),
        ("chr1\t1\t33\n", ":1: the region chr1:1-33 (from 0) ends beyond chr1, which has 32 bases"),
        ("chr1\t1\t4\nchr1\t1\t5\nchr1\t1\t40\nchr1\t1\t5\n", ":3: the region chr1:1-40"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path, text, message):
    path = bed(tmp_path, text)
    if message is None:
        taken(TakeOptions(regions=path))
        return
    with pytest.raises(DataError, match=re.escape(path + message)):
        taken(TakeOptions(regions=path))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("3\t4,3\t0,8,16", "blockCount is 3, but there are 2 blockSizes and 3 blockStarts"),
        ("2\t4,3,2\t0,8,16", "blockCount is 2, but there are 3 blockSizes"),
        ("3\t4,x,2\t0,8,16", "blockSizes has 'x', which is not a whole number"),
        ("0\t\t", "blockSizes has '', which is not a whole number"),
        ("3\t4,3,2\t1,8,16", "the blocks reach from 3 to 20, but the region from 2 to 20"),
        ("3\t4,3,2\t0,8,15", "the blocks reach from 2 to 19, but the region from 2 to 20"),
        ("3\t4,3,2\t0,3,16", "the blocks overlap, or are not in ascending order"),
        ("3\t4,0,2\t0,8,16", "a block has no bases"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path, columns, message):
    path = bed(tmp_path, f"chr1\t2\t20\ttx\t0\t+\t4\t19\t0\t{columns}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}:1: {message}")):
        taken(TakeOptions(regions=path, spliced=True))
    taken(TakeOptions(regions=path))  # whole intervals need no blocks


def test_a_coding_part_outside_its_region_is_refused(tmp_path):
    path = bed(tmp_path, BED12.format(strand="+", thick="1\t19"))
    with pytest.raises(DataError, match="thickStart 1 and thickEnd 19 are not within 2 to 20"):
        taken(TakeOptions(regions=path, coding=True))


def test_spliced_needs_twelve_columns(tmp_path):
    path = bed(tmp_path, "chr1\t2\t20\ttx\t0\t+\n")
    with pytest.raises(DataError, match=":1: 6 columns, but spliced regions need the twelve of BED12"):
        taken(TakeOptions(regions=path, spliced=True))


def test_sequences_without_regions_are_dropped_and_counted(tmp_path):
    path = bed(tmp_path, "chr1\t0\t4\n")
    regions, tally = taken(TakeOptions(regions=path), Record("chr1", "", SEQUENCE, 1), Record("chr2", "", b"ACGT", 9))
    assert len(regions) == 1
    assert tally.dropped == {"outside the regions": Count(1, 32)}


def test_sequences_that_were_not_in_the_input_are_an_error_over_all_tasks(tmp_path):
    options = TakeOptions(regions=bed(tmp_path, "chr1\t0\t4\nchr2\t0\t4\nchr2\t1\t4\n"))
    _, one = taken(options)
    with pytest.raises(DataError, match=r"2 regions of .* on 1 sequence not in the input \('chr2'\); give"):
        Taker(options).check(one)
    _, other = taken(options, Record("chr2", "", SEQUENCE, 1))
    Taker(options).check(Tally.from_dict(other.to_dict()).merge(one))
    allowed = TakeOptions(regions=options.regions, allow_absent=True)
    Taker(allowed).check(one)
    assert "2 regions" in one.warnings[0]
    with pytest.raises(DataError, match="not in the input"):  # nothing at all was met
        Taker(allowed).check(Tally())


def test_names_with_and_without_chr_are_told_and_joined_when_asked(tmp_path):
    path = bed(tmp_path, "chr1\t0\t4\nchrM\t0\t4\n")
    records = Record("1", "", SEQUENCE, 1), Record("MT", "", SEQUENCE, 9)
    regions, tally = taken(TakeOptions(regions=path), *records)
    assert not regions
    with pytest.raises(
        DataError, match="the input has '1' where the file says 'chr1'; if they are one, add --ignore-chr"
    ):
        Taker(TakeOptions(regions=path)).check(tally)
    options = TakeOptions(regions=path, ignore_chr=True)
    regions, tally = taken(options, *records)
    assert [(r.name, r.fields["chrom"]) for r in regions] == [("1:0-4(.)", "1")]
    with pytest.raises(DataError, match="the input has 'MT' where the file says 'chrM'; write the names alike"):
        Taker(options).check(tally)


def test_a_taker_travels_to_other_processes_without_its_table(tmp_path):
    taker = Taker(TakeOptions(regions=bed(tmp_path, "chr1\t0\t4\n" * 10_000)))
    assert len(list(taker.take(Record("chr1", "", SEQUENCE, 1), Tally()))) == 10_000
    sent = pickle.dumps(taker)
    assert len(sent) < 1000
    assert len(list(pickle.loads(sent).take(Record("chr1", "", SEQUENCE, 1), Tally()))) == 10_000


def test_without_regions_the_record_is_the_same_object():
    record = Record("chr1", "", SEQUENCE, 1)
    assert next(Taker(TakeOptions()).take(record, Tally())) is record
    Taker(TakeOptions()).check(Tally())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regions": "a", "annotation": "b"}, "--regions and --annotation exclude each other"),
        ({"spliced": True}, "--spliced says how to take the regions"),
        ({"coding": True, "annotation": "a"}, "--coding says how to take the regions"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        TakeOptions(**options)


def test_long_regions_are_views(tmp_path, monkeypatch):
    monkeypatch.setattr("dnascale.data.take.stretch.VIEW_BYTES", 5)
    contig = Taker(
        TakeOptions(regions=bed(tmp_path, "chr1\t1\t30\ta\t0\t-\nchr1\t1\t30\tb\t0\t+\nchr1\t1\t3\tc\t0\t+\n"))
    ).contigs["chr1"]
    minus, plus, short = take_from(Record("chr1", "", SEQUENCE, 1), contig, "x", Tally())
    assert isinstance(minus.bases, View)
    assert isinstance(plus.bases, View)
    assert minus.bases[:] == reverse_complement(SEQUENCE[1:30])
    assert plus.bases[3:7] == SEQUENCE[4:8]
    assert plus.codes(2, 6).tolist() == Record("x", "", SEQUENCE[3:7], 1).codes().tolist()
    assert short.bases == b"AC"


@given(st.lists(st.sampled_from(["a", "a#2", "a#3", "b"]), max_size=12))
def test_names_are_given_out_once(names):
    give = Names()
    given_out = [give.unique(name) for name in names]
    assert len(set(given_out)) == len(names)
    assert all(out == name or out.startswith(name + "#") for out, name in zip(given_out, names, strict=True))


def test_nothing_is_taken_from_a_sequence_whose_regions_were_all_skipped():
    tally = Tally()
    assert list(take_from(Record("c", "", b"ACGT", 1), Contig(skipped=["no strand"]), "x", tally)) == []
    assert (tally.skipped, tally.dropped) == ({"no strand": 1}, {"outside the regions": Count(1, 4)})


def test_the_digest_of_the_file_is_noted_and_must_be_the_same_in_all_tasks(tmp_path):
    path = Path(bed(tmp_path, "chr1\t0\t4\n"))
    _, one = taken(TakeOptions(regions=str(path)))
    assert one.files == {"regions.bed": hashlib.sha256(path.read_bytes()).hexdigest()}
    _, again = taken(TakeOptions(regions=str(path)))
    assert one.merge(again).files == again.files
    bed(tmp_path, "chr1\t0\t5\n")
    _, other = taken(TakeOptions(regions=str(path)))
    with pytest.raises(DataError, match=r"regions.bed changed while the sequences were read"):
        one.merge(other)


def test_the_file_is_read_once_in_a_process_and_again_when_it_changes(tmp_path):
    options = TakeOptions(regions=bed(tmp_path, "chr1\t0\t4\n"))
    assert Taker(options).contigs is Taker(TakeOptions(regions=options.regions)).contigs
    assert len(taken(options)[0]) == 1
    bed(tmp_path, "chr1\t0\t4\nchr1\t4\t8\n")
    assert len(taken(options)[0]) == 2
