"""`dnascale score` on files: what goes in comes out in its order with scores, and what is wrong is said in a sentence."""

import csv
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from jobs import dnascale
from pyarrow import parquet

from dnascale import Variant, score_variants
from dnascale.cli import main
from dnascale.config import ModelConfig
from dnascale.evaluate.language_model import load_model
from dnascale.evaluate.variants.alleles import Allele
from dnascale.evaluate.variants.run import compare, given_sequences, score
from dnascale.evaluate.variants.scores import ScoreOptions
from dnascale.model.modernbert import build
from dnascale.vocab import CHARACTER

BASES = "ACGT"
SEQUENCE = bytes(np.random.default_rng(5).choice(list(b"ACGT"), 400).astype(np.uint8)).decode()
SECOND = SEQUENCE[::-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    torch.set_num_threads(1)
    hf = build(ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=32, context=32), CHARACTER, seed=1)
    with torch.no_grad():
        for weights in hf.parameters():
            weights.mul_(6) if weights.ndim > 1 else None
    hf.save_pretrained(out)
    CHARACTER.tokenizer(32).save_pretrained(out)
    return out


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Lower case, wrapped, without an index."""
    path = tmp_path / "genome.fa"
    wrapped = "\n".join(SEQUENCE[i : i + 60].lower() for i in range(0, 400, 60))
    path.write_text(f">chr1 the first\n{wrapped}\n>chr2\n{SECOND}\n")
    return path


def other(base: str, step: int = 1) -> str:
    return BASES[(BASES.index(base) + step) % 4]


HEADER = (
    "##fileformat=VCFv4.3\n##contig=<ID=chr1,length=400>\n##contig=<ID=chr2,length=400>\n"
    '##INFO=<ID=AF,Number=A,Type=Float,Description="frequency">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">\n'
    '##FILTER=<ID=q10,Description="quality">\n##ALT=<ID=DEL,Description="deletion">\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tsample one\n'
)


def vcf_lines() -> list[str]:
    """Out of order; several alleles; an indel; symbolic."""
    at = SEQUENCE
    return [
        f"chr2\t301\trs1\t{SECOND[300]}\t{other(SECOND[300])}\t50\tPASS\tAF=0.1\tGT\t0|1",
        f"chr1\t101\t.\t{at[100]}\t{other(at[100])},{other(at[100], 2)}\t.\t.\t.\tGT\t1|2",
        f"chr1\t201\t.\t{at[200:203]}\t{at[200]}\t.\tq10\tAF=0.2\tGT\t0/1",
        f"chr1\t201\t.\t{at[200]}\t<DEL>,{other(at[200])}\t.\tPASS\tAF=0.2,0.1\tGT\t0/2",
        f"chr1\t5\t.\t{at[4:6]}\t{other(at[4])}{other(at[5])}\t.\tPASS\t.\tGT\t0/1",
    ]


def write_vcf(path: Path, lines: list[str], header: str = HEADER) -> Path:
    path.write_text(header + "".join(line + "\n" for line in lines))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def in_process(model: Path, alleles: list[Allele]) -> list[float]:
    loaded, options = load_model(model, "cpu"), ScoreOptions()
    sequences = given_sequences({"chr1": SEQUENCE.encode(), "chr2": SECOND.encode()})
    score(loaded, alleles, sequences, compare(alleles, sequences, "it", options, loaded.context), options)
    return [allele.llr for allele in alleles]


@pytest.mark.parametrize("out_name", ["scored.vcf", "scored.vcf.gz"])
def test_a_vcf_keeps_every_byte_and_is_read_by_bcftools(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out_name: str
) -> None:
    pysam = pytest.importorskip("pysam")
    import pysam.bcftools as bcftools

    vcf = write_vcf(tmp_path / "in.vcf", vcf_lines())
    out = tmp_path / out_name
    code, said, err = run(capsys, "score", model, vcf, "--reference", reference, "--out", out, "--device", "cpu")
    assert code == 0, err
    assert "7 alleles: 6 scored, 1 symbolic" in said
    text = gzip.decompress(out.read_bytes()).decode() if out.suffix == ".gz" else out.read_text()
    kept = []
    for line in text.splitlines():
        if line.startswith(("##INFO=<ID=DNASCALE", "##dnascale")):
            continue
        fields = line.split("\t")
        if not line.startswith("#"):
            info = [field for field in fields[7].split(";") if not field.startswith("DNASCALE")]
            fields[7] = ";".join(info) or "."
        kept.append("\t".join(fields))
    assert "\n".join(kept) + "\n" == vcf.read_text()

    shown = bcftools.query(
        "-f", "%CHROM\t%POS\t%INFO/DNASCALE_LLR\t%INFO/DNASCALE_STATUS\n", str(out), catch_stdout=True
    ).splitlines()
    rows = [row.split("\t") for row in shown]
    assert [row[:2] for row in rows] == [line.split("\t")[:2] for line in vcf_lines()]
    assert [row[3] for row in rows] == [".", ".", ".", "symbolic,scored", "."]
    assert rows[3][2].startswith(".,")
    expected = in_process(
        model,
        [
            Allele(1, "chr1", 100, SEQUENCE[100].encode(), other(SEQUENCE[100]).encode()),
            Allele(1, "chr1", 100, SEQUENCE[100].encode(), other(SEQUENCE[100], 2).encode()),
        ],
    )
    assert [float(value) for value in rows[1][2].split(",")] == pytest.approx(expected, abs=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["genome.fa", "in.vcf", out_name])
    if out.suffix == ".gz":
        sorted_vcf = tmp_path / "sorted.vcf.gz"
        bcftools.sort("-O", "z", "-o", str(sorted_vcf), str(out), catch_stdout=False)
        pysam.tabix_index(str(sorted_vcf), preset="vcf")
        with pysam.VariantFile(str(sorted_vcf)) as indexed:
            assert [record.info["DNASCALE_LLR"][0] is not None for record in indexed.fetch("chr2")] == [True]


@pytest.mark.parametrize("kind", ["tsv", "csv", "parquet", "csv.gz"])
def test_a_table_comes_back_in_its_order_with_two_columns(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    rows = [("chr2", 301, SECOND[300]), ("chr1", 101, SEQUENCE[100]), ("chr1", 11, SEQUENCE[10])]
    given = tmp_path / f"given.{kind}"
    if kind == "parquet":
        parquet.write_table(
            pa.table({"chrom": [r[0] for r in rows], "pos": [r[1] for r in rows], "ref": [r[2] for r in rows],
                      "alt": [other(r[2]) for r in rows], "gene": ["NA", "b", "c"]}), given
        )  # fmt: skip
    else:
        mark = "\t" if kind == "tsv" else ","
        text = "".join(
            mark.join(map(str, row)) + "\n"
            for row in [
                ("#Chrom", "Position", "REF", "ALT", "gene"),
                *((*r, other(r[2]), g) for r, g in zip(rows, ["NA", "b", "c"], strict=True)),
            ]
        )
        given.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    out = tmp_path / "out.tsv"
    code, _, err = run(capsys, "score", model, given, "--reference", reference, "--out", out)
    assert code == 0, err
    with out.open() as file:
        found = list(csv.reader(file, delimiter="\t"))
    assert [row[4] for row in found[1:]] == ["NA", "b", "c"]
    assert found[0][5:] == ["llr", "status"]
    expected = in_process(model, [Allele(1, c, p - 1, r.encode(), other(r).encode()) for c, p, r in rows])
    assert [float(row[5]) for row in found[1:]] == pytest.approx(expected, abs=1e-4)
    assert [int(row[1]) for row in found[1:]] == [301, 101, 11]


def test_a_table_may_hold_its_sequences(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = tmp_path / "given.csv", tmp_path / "out.parquet"
    given.write_text(
        f"sequence,pos,alt\n{SEQUENCE},101,{other(SEQUENCE[100])}\n{SECOND},301,{other(SECOND[300])}\n{SEQUENCE},900,A\n"
    )
    code, said, err = run(
        capsys, "score", model, given, "--out", out, "--json", "--allow-mismatches", "--columns", "pos=pos"
    )
    assert code == 0, err
    assert json.loads(said)["status"] == {"scored": 2, "outside_the_reference": 1}
    from pyarrow import parquet

    llr = parquet.read_table(out).column("llr").to_pylist()
    expected = in_process(
        model,
        [
            Allele(1, "chr1", 100, SEQUENCE[100].encode(), other(SEQUENCE[100]).encode()),
            Allele(1, "chr2", 300, SECOND[300].encode(), other(SECOND[300]).encode()),
        ],
    )
    assert llr[:2] == pytest.approx(expected, abs=1e-4)
    assert llr[2] is None


def good(**changes: str) -> str:
    line = {"chrom": "chr1", "pos": "101", "ref": SEQUENCE[100], "alt": other(SEQUENCE[100]), "info": "."} | changes
    return f"{line['chrom']}\t{line['pos']}\t.\t{line['ref']}\t{line['alt']}\t.\tPASS\t{line['info']}"


PLAIN = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
BAD_VCF = {
    "another base in the reference": (PLAIN + good(ref=other(SEQUENCE[100], 2)) + "\n", 3, "another genome build"),
    "off the end": (PLAIN + good(pos="401") + "\n", 3, "line 3: chr1:401 "),
    "position 0": (PLAIN + good(pos="0") + "\n", 3, "outside the reference"),
    "no number": (PLAIN + good(pos="1e3") + "\n", 3, "in.vcf:3: the position '1e3' is no number"),
    "cut off": (PLAIN + good()[:12] + "\n", 3, "in.vcf:3: 4 columns"),
    "blanks for tabs": (PLAIN + good().replace("\t", " ") + "\n", 3, "separated by tabs"),
    "no title": ("##fileformat=VCFv4.3\n" + good() + "\n", 3, "no line of column names"),
    "chr is missing": (PLAIN + good(chrom="1") + "\n", 3, "--ignore-chr"),
    "another assembly": (PLAIN + good(chrom="NC_000001.11") + "\n", 3, "none of the sequences"),
    "empty": ("", 3, "empty"),
    "no header at all": (good() + "\n", 2, "in.vcf:1: a row where titles should be. Of VCF its header is missing"),
    "sequences": (">chr1\nACGTACGT\n", 2, "holds sequences: the variants come first"),
    "scored already": ('##fileformat=VCFv4.3\n##INFO=<ID=DNASCALE_LLR,Number=A>\n' + PLAIN + good() + "\n", 3, "bcftools annotate -x"),
    "bcf": ("BCF\x02\x02", 3, "convert it with `bcftools view"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"pos": pa.array([101.0, 123.7])}, "row 2: the position 123.7 is no whole number"),
        ({"pos": pa.array([101.0, float("inf")])}, "row 2: the position inf is no number"),
        ({"pos": pa.array([101, None])}, "row 2: the position None is no number"),
        ({"pos": pa.array([101, 501])}, "row 2: chr1:501 A lies outside the reference"),
    ],
)
def test_a_position_that_is_none_is_a_sentence(
    model: Path,
    reference: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: dict[str, pa.Array],
    sentence: str,
) -> None:
    table, out = tmp_path / "in.parquet", tmp_path / "out.tsv"
    given = {
        "chrom": ["chr1"] * 2,
        "pos": columns["pos"],
        "ref": [SEQUENCE[100], "A"],
        "alt": [other(SEQUENCE[100]), "C"],
    }
    parquet.write_table(pa.table(given), table)
    ended, _, err = run(capsys, "score", model, table, "--reference", reference, "--out", out)
    assert (ended, sentence in err) == (3, True), err
    table.write_bytes(table.read_bytes()[:-200] + bytes(200))
    ended, _, err = run(capsys, "score", model, table, "--reference", reference, "--out", out)
    assert (ended, "is no table that can be read" in err) == (3, True), err


def test_text_that_a_table_holds_as_bytes_is_text(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"chrom": ["chr1"] * 3, "pos": [1, 50, 101], "ref": [SEQUENCE[at] for at in (0, 49, 100)]}
    given["alt"] = [other(base) for base in given["ref"]]
    llr = []
    for kind in (pa.string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())):
        columns = {key: pa.array(value, None if key == "pos" else kind) for key, value in given.items()}
        table, out = tmp_path / f"in-{len(llr)}.parquet", tmp_path / f"out-{len(llr)}.parquet"
        parquet.write_table(pa.table(columns), table)
        assert run(capsys, "score", model, table, "--reference", reference, "--out", out)[0] == 0
        llr.append(parquet.read_table(out)["llr"].to_pylist())
    assert None not in llr[0]
    assert llr[0] == llr[1] == llr[2]


def test_what_compresses_is_asked_for_before_anything_is_scored(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pysam", None)
    monkeypatch.setattr(
        "dnascale.evaluate.variants.files.load_model", lambda *_args, **_options: pytest.fail("too late")
    )
    vcf = write_vcf(tmp_path / "in.vcf", vcf_lines())
    words = ("score", model, vcf, "--reference", reference, "--out", tmp_path / "out.vcf.gz")
    ended, _, err = run(capsys, *words)
    assert (ended, "needs pysam: pip install 'dnascale[biology]', or name a .vcf" in err) == (2, True), err


@pytest.mark.parametrize("case", list(BAD_VCF))
def test_a_bad_vcf_is_one_sentence_and_leaves_nothing(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    text, code, sentence = BAD_VCF[case]
    vcf = tmp_path / "in.vcf"
    vcf.write_text(text)
    ended, _, err = run(capsys, "score", model, vcf, "--reference", reference, "--out", tmp_path / "out.vcf")
    assert (ended, sentence in err) == (code, True), err
    assert err.startswith("dnascale: error: ")
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"genome.fa", "in.vcf"}


def test_other_mistakes_are_told_what_to_do(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vcf = write_vcf(tmp_path / "in.vcf", vcf_lines())
    table = tmp_path / "table.csv"
    table.write_text(f"where,pos,ref,alt\nchr1,101,{SEQUENCE[100]},A\n")
    there = tmp_path / "there.vcf"
    there.write_text("mine")
    broken = tmp_path / "broken.fa"
    broken.write_text(">chr1\nACGT!\n")
    plain = ("--reference", reference, "--out", tmp_path / "out.vcf")
    for words, code, sentence in (
        ((model, vcf, "--reference", reference), 2, "--out"),
        ((model, vcf, "--out", tmp_path / "out.vcf"), 2, "--reference"),
        ((model, vcf, "--reference", reference, "--out", tmp_path / "out.xlsx"), 2, ".parquet, .tsv or .csv"),
        ((model, vcf, "--reference", reference, "--out", there), 2, "exists"),
        ((tmp_path, vcf, *plain), 2, "is no model"),
        ((model, tmp_path / "absent.vcf", *plain), 3, "absent.vcf"),
        ((model, vcf, "--reference", tmp_path / "absent.fa", "--out", tmp_path / "out.vcf"), 3, "absent.fa"),
        ((model, vcf, "--reference", broken, "--out", tmp_path / "out.vcf"), 3, "broken.fa:2:5"),
        ((model, table, *plain), 2, "is a table"),
        ((model, table, "--reference", reference, "--out", tmp_path / "o.tsv"), 2, "no column for chrom"),
        ((model, table, "--columns", "chrom=nowhere", "--reference", reference, "--out", tmp_path / "o.tsv"), 2, "no such column"),
        ((model, vcf, *plain, "--context", "99"), 2, "--context 99"),
        ((model, "--saturate", reference, "--coding", "--out", tmp_path / "o"), 3, "no whole coding sequence"),
        ((model, "--saturate", reference, "--region", "chr9:1-5", "--out", tmp_path / "o"), 2, "no sequence 'chr9'"),
        ((model, "--saturate", reference, "--region", "chr1:9-500", "--out", tmp_path / "o"), 2, "not within 1 to 400"),
        ((model, vcf, *plain, "--coding"), 2, "belong to --saturate"),
    ):  # fmt: skip
        ended, _, err = run(capsys, "score", *words)
        assert (ended, sentence in err) == (code, True), (words, err)
    assert there.read_text() == "mine"
    assert not (tmp_path / "out.vcf").exists()


def test_a_quotation_mark_joins_no_lines(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        ("chr1", 101 + n, SEQUENCE[100 + n], other(SEQUENCE[100 + n]), note)
        for n, note in enumerate(('"5-UTR', "x", "y"))
    ]
    words = ("--reference", reference, "--device", "cpu", "--out")
    for kind, delimiter in (("tsv", "\t"), ("csv", ",")):
        table = tmp_path / f"in.{kind}"
        lines = [("chrom", "pos", "ref", "alt", "note"), *rows]
        table.write_text("".join(delimiter.join(map(str, line)) + "\n" for line in lines))
        code, _, err = run(capsys, "score", model, table, *words, tmp_path / f"out.{kind}")
        if kind == "csv":
            assert (code, "3 lines below its titles, and 1 rows can be read" in err) == (3, True), err
    found = list(csv.reader((tmp_path / "out.tsv").open(newline=""), delimiter="\t"))
    assert [tuple(row[:5]) for row in found[1:]] == [tuple(map(str, row)) for row in rows]
    assert {row[6] for row in found[1:]} == {"scored"}


def test_a_table_is_written_without_quotes_where_none_are_needed(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "in.csv"
    row = f"chr1,101,{SEQUENCE[100]},{other(SEQUENCE[100])}"
    words = ("--reference", reference, "--device", "cpu", "--out")
    for number, note in enumerate(("plain", '"a, b"')):
        table.write_text(f"chrom,pos,ref,alt,note\n{row},{note}\n")
        assert run(capsys, "score", model, table, *words, tmp_path / f"{number}.csv")[0] == 0
    assert (tmp_path / "0.csv").read_text().startswith(f"chrom,pos,ref,alt,note,llr,status\n{row},plain,")
    assert [line[4] for line in csv.reader((tmp_path / "1.csv").open(newline=""))] == ["note", "a, b"]


def test_odd_files_of_variants_are_read_or_told(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--reference", reference, "--device", "cpu", "--out")
    marked = tmp_path / "marked.vcf"
    marked.write_text("\ufeff" + HEADER + vcf_lines()[0] + "\n", newline="\r\n")
    assert run(capsys, "score", model, marked, *words, tmp_path / "marked.out.vcf")[0] == 0
    assert (tmp_path / "marked.out.vcf").read_bytes().startswith(b"##fileformat=VCFv4.3\r\n")
    code, _, err = run(capsys, "score", model, "-", *words, tmp_path / "x.vcf")
    assert (code, "write them to one first" in err) == (2, True), err
    latin = tmp_path / "latin.csv"
    latin.write_bytes("chrom,pos,ref,alt,Größe\nchr1,101,A,C,1\n".encode("latin-1"))
    code, _, err = run(capsys, "score", model, latin, *words, tmp_path / "x.csv")
    assert (code, "is no table that can be read" in err) == (3, True), err
    nested = tmp_path / "nested.parquet"
    values = {"chrom": ["chr1"], "pos": [101], "ref": [SEQUENCE[100]], "alt": [other(SEQUENCE[100])], "tags": [["a"]]}
    parquet.write_table(pa.table(values), nested)
    code, _, err = run(capsys, "score", model, nested, *words, tmp_path / "x.tsv")
    assert (code, "a column that .tsv cannot hold" in err) == (2, True), err
    assert run(capsys, "score", model, nested, *words, tmp_path / "y.parquet")[0] == 0
    both = tmp_path / "both.csv"
    both.write_text(f"chrom,pos,ref,alt\nchr1,101,{SEQUENCE[100]},N\n1,102,{SEQUENCE[101]},N\n")
    code, _, err = run(capsys, "score", model, both, "--ignore-chr", *words, tmp_path / "x.csv")
    assert (code, "name it one way" in err) == (3, True), err
    assert not list(tmp_path.glob("x.*")) + list(tmp_path.glob(".*"))


def test_what_is_kept_for_another_output_is_left_alone(
    model: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vcf = write_vcf(tmp_path / "in.vcf", vcf_lines()[:1])
    of_another = tmp_path / ".s1.vcf.parts-bb"
    of_another.mkdir()
    out = tmp_path / "s[1].vcf"
    assert run(capsys, "score", model, vcf, "--reference", reference, "--device", "cpu", "--out", out)[0] == 0
    assert sorted(path.name for path in tmp_path.glob(".*")) == [of_another.name]


def test_two_processes_score_as_one_does(model: Path, reference: Path, tmp_path: Path) -> None:
    lines = [
        f"chr1\t{at + 1}\t.\t{SEQUENCE[at]}\t{other(SEQUENCE[at])}\t.\tPASS\t.\tGT\t0/1" for at in range(0, 400, 3)
    ]
    lines += [f"chr2\t{at + 1}\t.\t{SECOND[at]}\t{other(SECOND[at])}\t.\tPASS\t.\tGT\t0/1" for at in range(0, 400, 3)]
    vcf = write_vcf(tmp_path / "in.vcf", lines)
    for processes in (1, 2):
        outcome = dnascale(
            "score", model, vcf, "--reference", reference, "--out", tmp_path / f"{processes}.vcf", "--device", "cpu",
            processes=processes,
        )  # fmt: skip
        assert outcome.code == 0, outcome.output
    assert (tmp_path / "1.vcf").read_text() == (tmp_path / "2.vcf").read_text()


def test_what_was_scored_on_another_reference_is_not_used_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of references to which a sequence is added, after which every part has another number."""
    from dnascale.evaluate.variants import files

    genome = tmp_path / "genome"
    genome.mkdir()
    (genome / "chr2.fa").write_text(f">chr2\n{SECOND}\n")
    lines = [
        f"chr{1 + (at % 2)}\t{at + 1}\t.\t{(SEQUENCE, SECOND)[at % 2][at]}\tA\t.\tPASS\t.\tGT\t0/1" for at in range(400)
    ]
    vcf = write_vcf(tmp_path / "in.vcf", [line for line in lines if line.split("\t")[3] != "A"])

    def scored(out: str) -> str:
        files.score_file(
            model, vcf, str(genome), tmp_path / out, ScoreOptions(), {"device": "cpu", "precision": "fp32"}, {}
        )
        return (tmp_path / out).read_text()

    with monkeypatch.context() as killed:
        killed.setattr(files, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scored("out.vcf")
    assert list(tmp_path.glob(".out.vcf.parts-*/part-*"))
    (genome / "chr1.fa").write_text(f">chr1\n{SEQUENCE}\n")
    assert scored("out.vcf") == scored("fresh.vcf")


def test_saturation_of_the_built_in_gene_gives_tables_and_figures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    out = tmp_path / "drd2"
    code, said, err = run(
        capsys, "score", model, "--saturate", "builtin:drd2", "--coding", "--together", "2", "--out", out, "--json"
    )
    assert code == 0, err
    summary = json.loads(said)
    assert summary["substitutions"] == 3 * 1245
    assert sum(summary["count"].values()) == 3 * 1245
    assert summary["count"]["start lost"] == 9
    table = parquet.read_table(out / "scores.parquet")
    assert table.num_rows == 3 * 1245
    assert set(table.column("consequence").to_pylist()) == set(summary["count"])
    area = summary["scorers"]["model"]["auroc"]["synonymous above missense"]
    assert area["low"] < area["value"] < area["high"]
    start = summary["scorers"]["model"]["median"]["start lost"]
    assert start["low"] is start["high"] is None  # one codon
    assert start["value"] is not None
    pytest.importorskip("matplotlib")
    for figure in ("consequence.png", "along-sequence.png"):
        assert (out / figure).read_bytes().startswith(b"\x89PNG")


def test_the_page_scores_with_transformers_alone_what_dnascale_scores(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "score-variants.md").read_text()
    ours, theirs = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert "import dnascale" not in theirs
    assert "from dnascale" not in theirs
    monkeypatch.chdir(model.parent)
    (model.parent / "model").symlink_to(model)
    exec(ours, {})
    assert capsys.readouterr().out.endswith(" scored\n")
    alone: dict[str, Any] = {}
    exec(theirs, alone)
    places = [1, 2, 15, 16, 17, 200, 385, 399, 400]
    variants = [Variant("gene", at, SEQUENCE[at - 1], other(SEQUENCE[at - 1])) for at in places]
    scores = score_variants(load_model(model, "cpu"), {"gene": SEQUENCE}, variants, ScoreOptions(both_strands=False))
    for scored, one in zip(scores, variants, strict=True):
        assert scored.llr == pytest.approx(
            alone["llr"](SEQUENCE, one.position, one.reference, one.alternative), abs=1e-5
        )
