"""Sequences taken from real genomes are those that others give: files of coding sequences, gffread, bedtools, Biopython."""

import gzip
import io
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import split_records
from dnascale.data.shards import Dataset
from dnascale.data.sources import Record, find, read
from dnascale.data.take import CleanOptions, TakeOptions, Taker, clean
from dnascale.data.take.cds import fault_of_cds
from dnascale.data.tally import Tally
from dnascale.vocab import CHARACTER

EXCERPTS = Path(__file__).parents[1] / "data"
GENOMES = Path(__file__).parents[3] / "shared" / "data"


def genome(name: str) -> str:
    """The path of a file too large for the repository."""
    if not (GENOMES / name).exists():
        pytest.skip(f"{GENOMES / name} is not there")
    return str(GENOMES / name)


def taken(fasta: str, options: TakeOptions) -> tuple[list[Record], Tally]:
    """What is taken of a FASTA file, with the balance and the names of the sequences checked."""
    taker, tally, records = Taker(options), Tally(), []
    for record in read(find([fasta])[0]):
        tally.read(len(record.bases))
        for region in taker.take(record, tally):
            tally.keep(len(region.bases))
            records.append(region)
    tally.balance()
    taker.check(tally)
    return records, tally


def fasta_of(text: str) -> dict[str, bytes]:
    """Sequences by name, read naively."""
    parts = (part.split("\n") for part in text.split(">")[1:])
    return {lines[0].split()[0]: "".join(lines[1:]).encode() for lines in parts}


def plain(path: str, folder: Path) -> Path:
    """A decompressed copy, for tools that want one."""
    copy = folder / Path(path).name.removesuffix(".gz")
    with gzip.open(path) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)
    return copy


def text_of(path: str | Path) -> str:
    """The text of a gzip file."""
    with gzip.open(path, "rt") as file:
        return file.read()


def tool(*command: object) -> str:
    """What another program writes to its standard output."""
    if not shutil.which(str(command[0])):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def faults(records: list[Record], genetic_code: int = 1) -> Counter[str | None]:
    """How many are whole coding sequences (None), and why the others are not."""
    return Counter(fault_of_cds(record.bases, genetic_code) for record in records)


def proteins(records: list[Record], genetic_code: int = 1) -> list[str]:
    """Translations by Biopython, which refuses what is not a whole coding sequence."""
    from Bio.Seq import Seq

    return [str(Seq(record.bases[:]).translate(table=genetic_code, cds=True)) for record in records]


def test_coding_sequences_of_a_yeast_excerpt_are_the_given_ones():
    options = TakeOptions(annotation=str(EXCERPTS / "yeast_chrI.gtf.gz"))
    records, _ = taken(str(EXCERPTS / "yeast_chrI.fa.gz"), options)
    given = fasta_of(text_of(EXCERPTS / "yeast_chrI.cds.fasta.gz"))
    assert {record.fields["gene"]: record.bases for record in records} == given
    assert len(records) == len(given) == 84
    assert sum(record.fields["strand"] == "-" for record in records) == 44


def test_coding_sequences_of_a_human_excerpt_are_whole_when_the_coding_part_is_taken():
    fasta, bed = str(EXCERPTS / "human_chr20.fa.gz"), str(EXCERPTS / "human_chr20.bed12.gz")
    coding, _ = taken(fasta, TakeOptions(regions=bed, coding=True, ignore_chr=True))
    assert [record.name for record in coding] == ["NM_207469", "NM_153269", "NM_033089"]
    assert faults(coding) == {None: 3}
    assert [len(protein) for protein in proteins(coding)] == [95, 363, 404]
    transcripts, _ = taken(fasta, TakeOptions(regions=bed, spliced=True, ignore_chr=True))
    assert None not in faults(transcripts)  # with their untranslated ends
    for part, whole in zip(coding, transcripts, strict=True):
        assert part.bases in whole.bases[:]


def test_yeast_coding_sequences_are_the_given_ones_and_the_rest_is_explained():
    options = TakeOptions(annotation=genome("yeast_sacCer3.ensGene.gtf.gz"))
    records, _ = taken(genome("yeast_sacCer3.fa.gz"), options)
    given = fasta_of(text_of(genome("yeast_sacCer3.cds.fasta.gz")))
    mine = {record.fields["gene"]: record.bases for record in records}
    assert len(records) == len(mine) == 6600
    assert sum(mine[gene] == bases for gene, bases in given.items()) == len(given) == 6574

    others = [record for record in records if record.fields["gene"] not in given]
    assert faults(others) == {"CDS: stop codon inside": 16, "CDS: ATG not first": 10}
    assert Counter(record.fields["chrom"] == "chrM" for record in others) == {True: 22, False: 4}
    tally = Tally()
    whole = [kept for record in records for kept in clean(record, CleanOptions(valid_cds=True), tally)]
    assert {record.fields["gene"] for record in whole} == set(given)
    assert sum(count.records for count in tally.dropped.values()) == 26


def test_yeast_coding_sequences_are_those_of_gffread(tmp_path):
    gtf, fasta = genome("yeast_sacCer3.ensGene.gtf.gz"), genome("yeast_sacCer3.fa.gz")
    tool("gffread", "-x", tmp_path / "out.fa", "-g", plain(fasta, tmp_path), plain(gtf, tmp_path))
    records, _ = taken(fasta, TakeOptions(annotation=gtf))
    assert {record.name: record.bases for record in records} == fasta_of((tmp_path / "out.fa").read_text())


def of_gffread_and_ours(tmp_path: Path, feature: str, option: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The worm's transcripts, once from gffread and once from us."""
    gff, fasta = genome("korf1pct_worm_ce.gff3.gz"), genome("korf1pct_worm_ce.fa.gz")
    tool("gffread", option, tmp_path / "out.fa", "-g", plain(fasta, tmp_path), plain(gff, tmp_path))
    records, _ = taken(fasta, TakeOptions(annotation=gff, feature=feature))
    return fasta_of((tmp_path / "out.fa").read_text()), {record.name: record.bases for record in records}


def test_worm_coding_sequences_are_those_of_gffread(tmp_path):
    other, mine = of_gffread_and_ours(tmp_path, "CDS", "-x")
    assert mine == other
    assert len(mine) == 307


def test_worm_exons_are_those_of_gffread_but_where_exon_lines_are_missing(tmp_path):
    """At the ends of this excerpt, three transcripts lack exons; gffread puts the CDS or UTR lines in their place."""
    other, mine = of_gffread_and_ours(tmp_path, "exon", "-w")
    lack = {"Transcript:T25D3.3.1", "Transcript:T25D3.4a.1", "Transcript:T17A3.2.1"}
    assert {name for name in other if mine.get(name) != other[name]} == lack
    assert set(mine) < set(other)
    assert len(other) == 428


def test_worm_coding_sequences_are_whole_but_for_five():
    options = TakeOptions(annotation=genome("korf1pct_worm_ce.gff3.gz"))
    records, tally = taken(genome("korf1pct_worm_ce.fa.gz"), options)
    assert faults(records) == {None: 302, "CDS: no stop codon last": 3, "CDS: ATG not first": 2}
    assert not tally.skipped
    assert len({record.fields.get("gene") for record in records} - {None}) == 154
    assert sum("gene" not in record.fields for record in records) == 12  # whose genes end outside the excerpt
    assert len(proteins([record for record in records if not fault_of_cds(record.bases)])) == 302


def test_mycoplasma_coding_sequences_are_those_of_its_genbank_record():
    from Bio import SeqIO

    options = TakeOptions(annotation=genome("mycoplasma_genitalium.gff.gz"))
    records, _ = taken(genome("mycoplasma_genitalium.fa.gz"), options)
    genbank = SeqIO.read(io.StringIO(text_of(genome("mycoplasma_genitalium.gb.gz"))), "genbank")
    given = Counter(str(f.extract(genbank.seq)).encode() for f in genbank.features if f.type == "CDS")
    assert Counter(record.bases for record in records) == given


def test_human_chr20_coding_sequences_are_whole_in_every_transcript():
    fasta, bed = genome("human_GRCh37_chr20.fa.gz"), genome("human_GRCh37_chr20.coding.bed12.gz")
    records, tally = taken(fasta, TakeOptions(regions=bed, coding=True, ignore_chr=True))
    assert faults(records) == {None: 613}
    assert len(proteins(records)) == 613
    assert not tally.skipped


@pytest.mark.parametrize(("name", "count"), [("coding", 613), ("noncoding", 402)])
@pytest.mark.parametrize("spliced", [True, False])
def test_human_chr20_transcripts_are_those_of_bedtools(tmp_path, name, count, spliced):
    fasta, bed = genome("human_GRCh37_chr20.fa.gz"), genome(f"human_GRCh37_chr20.{name}.bed12.gz")
    records, _ = taken(fasta, TakeOptions(regions=bed, spliced=spliced, ignore_chr=True))
    renamed = tmp_path / "regions.bed"
    renamed.write_text(re.sub(r"(?m)^chr", "", text_of(bed)))
    split = ["-split"] if spliced else []
    out = tool(
        "bedtools", "getfasta", "-s", "-nameOnly", "-tab", *split, "-fi", plain(fasta, tmp_path), "-bed", renamed
    )
    other = [line.split("\t")[1].encode() for line in out.splitlines()]
    assert [record.bases[:] for record in records] == other
    assert len(records) == count


def letters_of(dataset: Dataset, split: str) -> Counter[bytes]:
    """The records of a split as letters."""
    letters = np.frombuffer("".join(CHARACTER.tokens[: CHARACTER.bases]).encode(), dtype=np.uint8)
    return Counter(letters[record].tobytes() for record in split_records(dataset, split))


def test_prepare_writes_the_coding_sequences_of_an_annotation_and_accounts_for_every_base(tmp_path):
    options = PrepareOptions(
        annotation=str(EXCERPTS / "yeast_chrI.gtf.gz"), valid_cds=True, valid=0.1, max_leakage=None
    )
    dataset = prepare([str(EXCERPTS / "yeast_chrI.fa.gz")], tmp_path / "out", options)
    given = fasta_of(text_of(EXCERPTS / "yeast_chrI.cds.fasta.gz"))
    written = letters_of(dataset, "train") + letters_of(dataset, "valid")
    assert written == Counter(given.values())

    report = dataset.cleaning
    assert report["bases_in"] == 152_000
    assert report["bases_out"] == sum(map(len, given.values()))
    lost = sum(count["bases"] for count in report["dropped"].values())
    assert report["bases_in"] + report["repeated"] == report["bases_out"] + lost
    assert set(report["dropped"]) == {"outside the regions"}
    assert dataset.groups == {"field": 84}  # the genes of the annotation


def test_prepare_cuts_a_chromosome_at_its_runs_of_n(tmp_path):
    options = PrepareOptions(max_n_run=100, min_length=200_000, valid=0, group="record")
    dataset = prepare([genome("human_GRCh37_chr20.fa.gz")], tmp_path / "out", options)
    (whole,) = fasta_of(text_of(genome("human_GRCh37_chr20.fa.gz"))).values()
    parts = [part for part in re.split(b"N{101,}", whole) if part]
    assert letters_of(dataset, "train") == Counter(part for part in parts if len(part) >= 200_000)
    assert dataset.cleaning["cut"] == len(parts) - 1
    assert dataset.cleaning["dropped"]["runs of more than 100 N"]["bases"] == len(whole) - sum(map(len, parts))
    short = [part for part in parts if len(part) < 200_000]
    dropped = dataset.cleaning["dropped"].get("shorter than 200000 bases", {"records": 0, "bases": 0})
    assert dropped == {"records": len(short), "bases": sum(map(len, short))}
