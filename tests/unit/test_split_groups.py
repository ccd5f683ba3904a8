"""Groups from headers, columns, tables and patterns; holdouts by share and by name."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.sources import Input, Record, read, resolve_all
from dnascale.data.split import SPLITS, Grouping, Holdout, Holdouts, group_key
from dnascale.data.split.groups import read_table
from dnascale.data.split.holdout import not_there
from dnascale.errors import DataError, UsageError


def record(header: str, line: int = 1, **fields: str) -> Record:
    name, _, description = header.partition(" ")
    return Record(name, description, b"ACGT", line, fields)


# ------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("header", "group", "rule"),
    [
        ("ENST1.4 cds gene:ENSG00000139618.15 gene_symbol:BRCA2", "ENSG00000139618", "ensembl-gene"),
        ("ENST1 cds gene:ENSMUSG00000041147", "ENSMUSG00000041147", "ensembl-gene"),
        ("ENST1 cds gene:ENSG00000002586.20_PAR_Y", "ENSG00000002586", "ensembl-gene"),
        ("YAL001C_mRNA cds gene:YAL001C", "YAL001C", "ensembl-gene"),
        ("FBtr1 cds gene:FBgn0031208 gene=x", "FBgn0031208", "ensembl-gene"),
        ("lcl|NC_1_cds_NP_1 [gene=OR4F5] [locus_tag=x]", "OR4F5", "gene-tag"),
        ("lcl|NC_1_cds_NP_1 [gene=a b] [x=y]", "a b", "gene-tag"),
        ("x gene=BRCA2;note=y", "BRCA2", "gene-tag"),
        ("x pseudogene=BRCA2", "x", "name"),
        ("ENSG00000143157 species=hsapiens", "ENSG00000143157", "ensembl-id"),
        ("ENST00000456328.2|ENSG00000223972.5|OTTHUMG1|DDX11L1|1657|", "ENSG00000223972", "ensembl-id"),
        ("x ENSG000001431570", "x", "name"),
        ("x", "x", "name"),
        ("chr1 whole gene_symbol:ABC", "chr1", "name"),
    ],
)
def test_the_gene_is_found_in_the_known_headers(header: str, group: str, rule: str) -> None:
    assert Grouping().of(record(header), "a.fa") == (group, rule)


def test_the_gene_of_an_annotation_or_a_table_comes_before_the_header() -> None:
    header = "ENST1 cds gene:ENSG00000000001"
    assert Grouping().of(record(header, gene_id="ENSG00000139618.15"), "a") == ("ENSG00000139618", "field")
    assert Grouping().of(record(header, gene="TFC3", gene_id=""), "a") == ("TFC3", "field")
    assert Grouping().of(record(header, gene_biotype="x"), "a") == ("ENSG00000000001", "ensembl-gene")


@pytest.mark.parametrize(
    ("header", "group", "rule"),
    [
        ("ENST1 cds chromosome:GRCh38:13:23730189:23889400:-1 gene:ENSG1", "13", "ensembl-location"),
        ("20 dna:chromosome chromosome:GRCh38:20:1:64444167:1 REF", "20", "ensembl-location"),
        ("KI27.1 dna:scaffold scaffold:GRCh38:KI270728.1:1:1872759:1 REF", "KI270728.1", "ensembl-location"),
        ("X dna:primary_assembly primary_assembly:BDGP6.46:X:1:23542271:1", "X", "ensembl-location"),
        ("NM_173083 chr1:226418850-226497204(-) assembly=hg19", "chr1", "location"),
        ("YDL248W chrIV:1802-2953(+) exons=1", "chrIV", "location"),
        ("chr20:100-200(+)", "chr20", "location"),
        ("BRCA2::chr13:100-200(+)", "chr13", "location"),
        ("hg38_knownGene_ENST1 range=chr1:11874-14409 5'pad=0 strand=+", "chr1", "location"),
        ("FBgn1 type=gene; loc=2R:complement(1..9); ID=FBgn1", "2R", "location"),
        ("lcl|NC_000913.3_cds_NP_414542.1_1 [gene=thrL] [location=190..255]", "NC_000913.3", "ncbi-cds"),
        ("NC_000020.11 Homo sapiens chromosome 20, GRCh38.p14 Primary Assembly", "20", "ncbi-title"),
        ("NT_187361.1 Homo sapiens chromosome 1 unlocalized genomic scaffold", "1", "ncbi-title"),
        ("YAL001C TFC3 SGDID:S000000001, Chr I from 151006-147594,151166-151097", "I", "sgd-location"),
        ("chr1_KI270706v1_random", "chr1", "ucsc-part"),
        ("chr6_GL000250v2_alt", "chr6", "ucsc-part"),
        ("chr6_apd_hap1", "chr6", "ucsc-part"),
        ("chrUn_KI270302v1", "chrUn_KI270302v1", "name"),
        ("chr20", "chr20", "name"),
    ],
)
def test_the_chromosome_is_found_in_the_known_headers(header: str, group: str, rule: str) -> None:
    assert Grouping.parse("chromosome").of(record(header), "a.fa") == (group, rule)


def test_the_chromosome_that_regions_were_taken_from_comes_before_the_header() -> None:
    assert Grouping("chromosome").of(record("x chr1:1-9", chrom="chr7"), "a.fa") == ("chr7", "field")


@pytest.mark.parametrize(
    ("header", "group", "rule"),
    [
        ("sp|P1|X_HUMAN Protein OS=Homo sapiens OX=9606 GN=X", "Homo sapiens", "os-tag"),
        ("sp|P1|X Protein OS=Escherichia coli (strain K12)", "Escherichia coli", "os-tag"),
        ("x [organism=Mus musculus] [strain=C57BL/6]", "Mus musculus", "species-tag"),
        ("ENSG00000143157 species=hsapiens source=iCodon", "hsapiens", "species-tag"),
        ("NP_1.1 protein [Escherichia coli str. K-12 substr. MG1655]", "Escherichia coli", "brackets"),
        ("NP_1.1 protein [Bacillus sp. X1]", "Bacillus sp. X1", "brackets"),
        ("NC_1 [gene=abc] [gbkey=CDS]", "file.fa", "file"),
        ("chr1", "file.fa", "file"),
    ],
)
def test_the_species_is_found_in_the_known_headers_or_is_the_file(header: str, group: str, rule: str) -> None:
    assert Grouping.parse("species").of(record(header), "file.fa") == (group, rule)


def test_the_organism_of_a_flat_file_comes_before_the_header_and_strains_are_one_species() -> None:
    species = Grouping("species")
    assert species.of(record("x species=y", organism="Mus musculus domesticus"), "a") == ("Mus musculus", "field")
    assert species.of(record("x", organism="Bacillus sp. X1"), "a") == ("Bacillus sp. X1", "field")


def test_by_file_and_by_record() -> None:
    for source in ("a.fa", "/data/a.fa", "https://x.org/data/a.fa", "s3://bucket/a.fa"):
        assert Grouping.parse("file").of(record("x gene:G"), source) == ("a.fa", "file")
    assert Grouping.parse("file").of(record("x"), "builtin:human-cds") == ("builtin:human-cds", "file")
    assert Grouping.parse("record").of(record("x gene:G"), "a.fa") == ("x", "name")


def test_a_pattern_sees_the_whole_header_and_refuses_what_it_does_not_match() -> None:
    yeast = record("YAL001C TFC3 SGDID:S000000001", line=7)
    assert Grouping.parse(r"^Y(.)").of(yeast, "a.fa") == ("A", "pattern")
    assert Grouping.parse(r"^\S+ (\S+)").of(yeast, "a.fa") == ("TFC3", "pattern")
    for pattern in (r"gene:(\S+)", r"SGDID:(\d*)", r"TFC3|gene:(\S+)"):
        with pytest.raises(DataError, match=r"a\.fa:7: record 'YAL001C' does not match"):
            Grouping.parse(pattern).of(yeast, "a.fa")
        assert Grouping.parse(pattern, "record").of(yeast, "a.fa") == ("YAL001C", "name")
    assert Grouping.parse(r"locus=(\S+)", "gene").of(record("x gene=G"), "a.fa") == ("G", "gene-tag")


def test_a_column_names_the_group_and_an_unknown_column_names_the_near_one() -> None:
    row = record("x", line=3, family="GPCR", empty="")
    assert Grouping.parse("column:family").of(row, "t.csv") == ("GPCR", "column")
    with pytest.raises(DataError, match=r"no column 'famly' .*family, empty.*did you mean 'family'"):
        Grouping.parse("column:famly").of(row, "t.csv")
    with pytest.raises(DataError, match=r"t\.csv:3: record 'x' has no 'empty'"):
        Grouping.parse("column:empty").of(row, "t.csv")
    assert Grouping.parse("column:empty", "file").of(row, "t.csv") == ("t.csv", "file")


def test_an_empty_cell_of_the_column_is_told_with_its_row(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("name,sequence,family\na,ACGT,GPCR\nb,ACGT,\n")
    options = PrepareOptions(group="column:family", valid=0)
    with pytest.raises(DataError, match=r"t\.csv:3: record 'b' has no 'family'"):
        prepare([str(table)], tmp_path / "out", options)
    with pytest.raises(DataError, match=r"there is no column 'famly' \(columns: .*family.*did you mean 'family'"):
        prepare([str(table)], tmp_path / "out", replace(options, group="column:famly"))


def test_a_table_names_the_groups_in_another_process_too(tmp_path: Path) -> None:
    table = tmp_path / "groups.tsv"
    table.write_text("# record\tgroup\nx\tone two\ny\tone two\r\nx\tone two\n", encoding="utf-8")
    grouping = Grouping.parse(f"table:{table}")
    assert grouping.of(record("x"), "a.fa") == ("one two", "table")
    assert pickle.loads(pickle.dumps(grouping)).of(record("y gene:G"), "a.fa") == ("one two", "table")
    assert b"one two" not in pickle.dumps(grouping)
    with pytest.raises(DataError, match=r"a\.fa:5: record 'z' is not in .*groups\.tsv"):
        grouping.of(record("z", line=5), "a.fa")
    assert Grouping.parse(f"table:{table}", "gene").of(record("z gene:G"), "a.fa") == ("G", "ensembl-gene")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\tA\nx\tB\n", r":2: record 'x' is in group 'B' here and in 'A' before"),
        ("x\tA\ny\n", r":2: not a record's name, one tab and its group: 'y'"),
        ("x\tA\tmore\n", r":1: not a record's name"),
        ("x\tA\n\ny\tB\n", r":2: not a record's name"),
        ("x\t\n", r":1: not a record's name"),
        ("x \tA\n", r":1: not a record's name"),
        ("# only this\n", "names no group"),
        ("", "names no group"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    table = tmp_path / "groups.tsv"
    table.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(table)) + ".*" + said):
        read_table(table)


def test_a_table_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_table(tmp_path / "none.tsv")
    (tmp_path / "bad.tsv").write_bytes(b"x\tA\n\xff\xfe\tB\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_table(tmp_path / "bad.tsv")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("gen", "did you mean gene"),
        ("chromosone", "did you mean chromosome"),
        (r"locus=\w+", "group in parentheses"),
        ("(", "not a regular expression"),
        ("column:", "lacks what comes after the colon"),
        ("table:", "lacks what comes after the colon"),
    ],
)
def test_a_group_option_that_asks_for_nothing_is_refused(group: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Grouping.parse(group)
    with pytest.raises(UsageError, match="not one of gene, chromosome"):
        Grouping.parse("gene", "genes")


def test_the_genes_of_the_built_in_data_are_all_found() -> None:
    (path,) = resolve_all(["builtin:human-cds"])
    assert {Grouping().of(r, path.name)[1] for r in read(Input.of(path))} == {"ensembl-gene"}


# ----------------------------------------------------------------------------------------------------------- holdouts


def shares(valid: float = 0.0, test: float = 0.0) -> Holdouts:
    return Holdouts(Holdout(valid), Holdout(test))


def test_the_split_of_a_group_is_the_same_in_every_version() -> None:
    """Golden values: changing them moves held-out genes into other people's training data."""
    names = ["BRCA2", "ENSG00000139618", "gene1", "é", "", "TP53"]
    assert [shares(0.3, 0.3).split_of(name) for name in names] == ["test", "test", "train", "train", "test", "test"]
    assert [group_key(name) for name in ("chr20", "é")] == [1939237289434835229, 13949153340754366200]


@given(st.integers(0, 2**64 - 1), st.floats(0, 0.5), st.floats(0, 0.49))
def test_many_keys_at_once_give_what_exact_arithmetic_gives(key: int, valid: float, test: float) -> None:
    place = key / 2**64  # correctly rounded by Python
    expected = "valid" if place < valid else "test" if place < valid + test else "train"
    assert SPLITS[shares(valid, test).splits_of(np.array([key], np.uint64))[0]] == expected


def test_shares_are_those_asked_for_and_a_growing_share_only_adds() -> None:
    groups = [f"gene{i}" for i in range(5000)]
    counts = Counter(shares(0.1, 0.3).split_of(group) for group in groups)
    for split, share in (("valid", 0.1), ("test", 0.3), ("train", 0.6)):
        assert abs(counts[split] - share * 5000) < 5 * np.sqrt(5000 * share * (1 - share))
    for group in groups:
        if shares(0.1).split_of(group) == "valid":
            assert shares(0.2, 0.1).split_of(group) == "valid"


def test_named_groups_are_held_out_and_shares_are_taken_of_the_others() -> None:
    holdouts = Holdouts(Holdout.parse("--valid", "chr20,chr21"), Holdout.parse("--test", "0.5"))
    names = ["chr20", "chr21", *(f"scaffold{i}" for i in range(200))]
    splits = [holdouts.split_of(name) for name in names]
    assert splits[:2] == ["valid", "valid"]
    assert set(splits[2:]) == {"train", "test"}
    assert 60 < splits.count("test") < 140
    assert holdouts.splits == ("train", "valid", "test")
    assert holdouts.missing(np.array([group_key("chr20")], np.uint64)) == [("--valid", "chr21")]


@pytest.mark.parametrize(
    ("text", "share", "names"),
    [
        ("0.1", 0.1, ()),
        (0.25, 0.25, ()),
        ("0", 0.0, ()),
        ("1e-3", 0.001, ()),
        ("chr20", 0.0, ("chr20",)),
        ("chr20, chrX", 0.0, ("chr20", "chrX")),
        ("=20", 0.0, ("20",)),
        ("20,21", 0.0, ("20", "21")),
        ("=0.1", 0.0, ("0.1",)),
    ],
)
def test_a_number_is_a_share_and_anything_else_names_groups(text: str, share: float, names: tuple[str, ...]) -> None:
    assert Holdout.parse("--valid", text) == Holdout(share, names)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("20", r"--valid 20 must be a share .* --valid =20"),
        ("1", "must be a share"),
        ("-0.1", "must be a share"),
        ("nan", "must be a share"),
        ("", "an empty name"),
        ("chr1,,chr2", "an empty name"),
        ("chr1,chr2,chr1", "names chr1 twice"),
    ],
)
def test_a_holdout_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Holdout.parse("--valid", text)


def test_holdouts_that_leave_nothing_or_claim_a_group_twice_are_refused() -> None:
    with pytest.raises(UsageError, match="leave some for train"):
        shares(0.5, 0.5)
    with pytest.raises(UsageError, match="chrX cannot be held out for both"):
        Holdouts(Holdout(names=("chr1", "chrX")), Holdout(names=("chrX",)))


@pytest.mark.parametrize(
    ("name", "groups", "said"),
    [
        ("chr2O", ["chr1", "chr20", "chr22"], "near it are chr22, chr20"),
        ("chr20", ["1", "20", "X"], "near it are 20"),
        ("20", ["chr1", "chr20"], "near it are chr20"),
        ("BRCA", ["x", "y"], "there are 2 groups: x, y"),
        ("z", list("abcdefg"), r"there are 7 groups: a, b, c, d, e, \.\.\."),
    ],
)
def test_a_named_group_that_is_not_there_names_the_near_ones(name: str, groups: list[str], said: str) -> None:
    message = str(not_there("--valid", name, groups))
    assert re.search(said, message)
    assert message.startswith(f"--valid {name}: no record")
