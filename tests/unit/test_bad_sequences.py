"""The table of docs/reference/input.md, row by row: what is said there is what happens."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fasta_text import bgzf, naive

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.sources import ReadOptions, ReadReport, Record, find, read
from dnascale.errors import DataError, UsageError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "input.md"
GOOD = b">a one\nACGT\nAC\n>b two\nGGGG\n"
LONG = b"".join(b">r%d\n%s\n" % (number, b"ACGTTGCATG" * 30) for number in range(40))

#: A case prepares its files and gives the sources, and what should be read of them: text of correct FASTA.
Case = Callable[[Path], tuple[list[str], bytes]]


def one(data: bytes, same_as: bytes = b"", name: str = "genome.fa") -> Case:
    """One file. Where it is accepted, it is read as the FASTA `same_as` (itself, if that is not given)."""

    def case(folder: Path) -> tuple[list[str], bytes]:
        (folder / name).write_bytes(data)
        return [str(folder / name)], same_as or data

    return case


def listed(data: bytes, listing: bytes) -> Case:
    """A file with a list of what is expected."""

    def case(folder: Path) -> tuple[list[str], bytes]:
        (folder / "expected.list").write_bytes(listing)
        return one(data)(folder)

    return case


def archive(folder: Path) -> tuple[list[str], bytes]:
    with zipfile.ZipFile(folder / "genome.zip", "w") as packed:
        packed.writestr("genome.fa", GOOD)
    return [str(folder / "genome.zip")], GOOD


def stale_index(folder: Path) -> tuple[list[str], bytes]:
    (folder / "genome.fa.fai").write_text("a\t999\t4\t7\t8\n")
    return one(GOOD)(folder)


def empty_among_others(folder: Path) -> tuple[list[str], bytes]:
    one(GOOD, name="a.fa")(folder)
    one(b"", name="b.fa")(folder)
    return [f"{folder}/*.fa"], GOOD


def fifo(folder: Path) -> tuple[list[str], bytes]:
    os.mkfifo(folder / "pipe.fa")
    threading.Thread(target=(folder / "pipe.fa").write_bytes, args=(GOOD,), daemon=True).start()
    return [str(folder / "pipe.fa")], GOOD


def not_readable(folder: Path) -> tuple[list[str], bytes]:
    sources, text = one(GOOD)(folder)
    Path(sources[0]).chmod(0)
    return sources, text


def twice(link: Callable[[Path, Path], None]) -> Case:
    def case(folder: Path) -> tuple[list[str], bytes]:
        one(GOOD)(folder)
        link(folder / "again.fa", folder / "genome.fa")
        return [f"{folder}/*.fa"], GOOD

    return case


FLIPPED = bytearray(bgzf(LONG, 500))
FLIPPED[1000] ^= 4

CASES: dict[str, Case] = {
    "empty file": one(b""),
    "only blank lines": one(b"\n\n\n"),
    "no `>` in the first line": one(b"ACGT\n>a\nACGT\n"),
    "text before the first `>`": one(b"My sequences\n>a\nACGT\n"),
    "`;` comment before the first `>`": one(b"; made by X\n>a\nACGT\n"),
    "name used twice": one(b">a\nAC\n>b\nGG\n>a\nTT\n"),
    "`>` without a name": one(b">a\nACGT\n>\nAC\n"),
    "space after `>`": one(b"> a desc\nACGT\n"),
    "record without bases": one(b">a\n>b\nACGT\n"),
    "ragged line lengths": one(b">a\nACGT\nAC\nACGTACGT\nA\n"),
    "blank line inside": one(b">a\nACGT\n\nAC\n"),
    "CRLF": one(GOOD.replace(b"\n", b"\r\n")),
    "mixed line ends": one(b">a\nACGT\r\nAC\rGG\n"),
    "CR only": one(GOOD.replace(b"\n", b"\r")),
    "no line end at the end": one(GOOD.rstrip()),
    "lower case": one(b">a\nACgtNNnn\n"),
    "IUPAC codes and U": one(b">a\nACGTURYKMSWBDHVNacgturykmswbdhvn\n"),
    "protein": one(b">a\nMKVLAAGIVGLPNVGKSTLFNALTKAGAEAANYPFCTIEPNVGVVPM\n"),
    "stop sign `*`": one(b">a\nACGT*\n"),
    "digits": one(b">a\n1 ACGT 5\n"),
    "space inside": one(b">a\nACGT ACGT\n"),
    "tab at the end of a line": one(b">a\nACGT\t\nAC\n"),
    "gaps `-` and `.`": one(b">a\nAC-GT\n>b\nAC.GT\n"),
    "NUL byte": one(b">a\nAC\0GTAC\n"),
    "non-ASCII in sequence": one(">a\nACÄGT\n".encode("latin-1")),
    "Latin-1 header": one(">a Müller\nACGT\n".encode("latin-1")),
    "UTF-8 byte-order mark": one(b"\xef\xbb\xbf" + GOOD, GOOD),
    "UTF-16": one(GOOD.decode().encode("utf-16")),
    "UTF-16 without a mark": one(GOOD.decode().encode("utf-16-le")),
    "`>` in the middle of a line": one(b">a\nACGT>b\nACGT\n"),
    "`;` comment inside": one(b">a\nACGT\n;note\nACGT\n"),
    "FASTQ named as FASTA": one(b"@a one\nACGTAC\n+\nIIII@+\n@b two\nGGGG\n+b two\nIIII\n", GOOD),
    "FASTQ truncated": one(b"@a\nACGT\n+\nIIII\n@b\nACGT\n+\n"),
    "FASTQ, other number of qualities": one(b"@a\nACGT\n+\nIII\n"),
    "FASTQ without `+`": one(b"@a\nACGT\nIIII\n@b\nACGT\n+\nIIII\n"),
    "wrapped FASTQ": one(b"@a one\nACGT\nAC\n+\nII\n@III\n@b two\nGGGG\n+\nIIII\n", GOOD),
    "HTML page": one(b"<!DOCTYPE html>\n<html>404</html>"),
    "JSON page": one(b'{"error": "not found"}'),
    "cut between records, with a list": listed(GOOD[: GOOD.index(b">b")], b"a\t6\t7\t4\t5\nb\t4\t21\t4\t5\n"),
    "cut at the end of a line, with a list": listed(GOOD[:12], b"a\t6\n"),
    "cut in a line, with a list": listed(GOOD[:-3], b"a\t6\nb\t4\n"),
    "cut in a header, with a list": listed(b">chr1\nACGT\n>chr", b"chr1\t4\nchr2\t4\n"),
    "cut anywhere, with a checksum": listed(GOOD[:-1], b"d" * 64 + b"  ./genome.fa\n"),
    "gzip truncated": one(gzip.compress(LONG)[:-50]),
    "gzip with a wrong CRC": one(gzip.compress(LONG)[:-8] + b"\1\2\3\4" + gzip.compress(LONG)[-4:]),
    "BGZF without its end block": one(bgzf(LONG, 500)[:-28]),
    "BGZF truncated": one(bgzf(LONG, 500)[:-200]),
    "BGZF with a flipped bit": one(bytes(FLIPPED)),
    "gzip of several members": one(gzip.compress(LONG[:999]) + gzip.compress(LONG[999:]), LONG),
    "garbage after gzip": one(gzip.compress(LONG) + b"<html>503</html>"),
    "plain text named `.gz`": one(GOOD, name="genome.fa.gz"),
    "gzip named `.fa`": one(gzip.compress(GOOD), GOOD),
    "zip archive": archive,
    "`>` as the last byte": one(GOOD + b">"),
    "tab in a header": one(b">a\tdesc\nACGT\n"),
    "name `../../etc/passwd`": one(b">../../etc/passwd\nACGT\n"),
    "header of 2 MB": one(b">a " + b"x" * 2_000_000 + b"\nACGT\n"),
    "one line of 5 Mb": one(b">a\n" + b"ACGTTGCATGGTCA" * 357_143 + b"\n"),
    "stale `.fai` beside the file": stale_index,
    "empty file among others": empty_among_others,
    "directory": lambda folder: ([str(folder)], one(GOOD)(folder)[1]),
    "FIFO": fifo,
    "`/dev/stdin`": lambda folder: (["/dev/stdin"], GOOD),
    "may not be read": not_readable,
    "one file twice, by a symbolic link": twice(Path.symlink_to),
    "one file twice, by a hard link": twice(Path.hardlink_to),
    "names that differ only in case": one(b">geneA\nACGT\n>GENEa\nGGGG\n"),
    "names that differ only in version": one(b">NC_000001.10\nACGT\n>NC_000001.11\nGGGG\n"),
    "names `chr1` and `1`": one(b">chr1\nACGT\n>1\nGGGG\n"),
    "more than a million records": one(b"".join(b">%d\nAC\n" % number for number in range(1_000_001))),
    "changed while it is read": one(LONG),
    "contig of nothing but N": one(b">a\nNNNNNNNN\n"),
}


def rows() -> list[tuple[str, str]]:
    """Of the page's table: the input and what dnascale does."""
    table = PAGE.read_text(encoding="utf-8").split("## Row by row")[1]
    cells = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")]
    return [(row[0].strip(), row[-1].strip()) for row in cells[1:]]


def test_the_table_and_the_cases_have_the_same_rows() -> None:
    assert [name for name, _ in rows()] == list(CASES)


def outcome(
    sources: list[str], options: ReadOptions, meanwhile: Callable[[], object]
) -> tuple[list[Record], list[str]]:
    """The records and the warnings of all sources. `meanwhile` is called after the first record."""
    records: list[Record] = []
    warnings: list[str] = []
    for item in find(sources):
        report = ReadReport(item.name)
        for record in read(item, options, report):
            records.append(record)
            meanwhile()
            meanwhile = int
        warnings += report.warnings
        assert (report.records, report.problems) == (len(records), [])
    return records, warnings


@pytest.mark.parametrize(("name", "expected"), rows(), ids=[name for name, _ in rows()])
def test_row(name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, text = CASES[name](tmp_path)
    if name == "`/dev/stdin`":
        assert through_standard_input(text) == "a ACGTAC 1\nb GGGG 4\n"
        assert expected == "accepted"
        return
    if name == "more than a million records":
        assert sum(1 for _ in read(find(sources)[0])) == 1_000_001
        assert expected == "accepted"
        return
    if name == "may not be read":  # root may read everything
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    changed = name == "changed while it is read"
    meanwhile = (lambda: os.truncate(sources[0], 5000)) if changed else int
    listing = tmp_path / "expected.list"
    options = ReadOptions(expect=str(listing) if listing.exists() else None)
    kind, _, phrase = expected.partition(": ")
    phrase = phrase.strip('"')
    if kind == "error":
        with pytest.raises(DataError) as caught:
            outcome(sources, options, meanwhile)
        assert phrase
        assert phrase in str(caught.value)
        assert caught.value.exit_code == 3
        return
    records, warnings = outcome(sources, options, meanwhile)
    assert [(r.name, r.description, r.bases[:], r.line) for r in records] == naive(text) or "FASTQ" in name
    assert [(r.name, r.description, r.bases[:]) for r in records] == [row[:3] for row in naive(text)]
    if kind == "warning":
        assert phrase
        assert len(warnings) == 1
        assert phrase in warnings[0]
    else:
        assert expected == "accepted"
        assert warnings == []


def through_standard_input(text: bytes) -> str:
    program = (
        "from dnascale.data.sources import find, read\n"
        "for record in read(find(['/dev/stdin'])[0]): print(record.name, record.bases.decode(), record.line)"
    )
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, check=True)
    return done.stdout.decode()


# ----------------------------------------------------------------------------- several problems, and leaving them out

MANY_BAD = b">a\nAC-GT\n>b\nACGT\nAC>c\nGG\n>\nACG\n>d\nAAAA\n>e\nAC GT 1\n"


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(MANY_BAD)
    report = ReadReport(str(path), can_skip=True)
    (item,) = find([str(path)])
    reading = read(item, report=report)
    assert next(reading).name == "d"
    with pytest.raises(DataError) as caught:
        next(reading)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} has 4 problems:"
    assert [re.sub(r": .*", "", line.removeprefix(f"  {path}:")) for line in lines[1:-1]] == [
        "2:3 (byte 5)",
        "5:3 (byte 19)",
        "7:1 (byte 25)",
        "12:3 (byte 44)",
    ]
    assert "(3 bytes of the record are no bases)" in lines[4]
    assert lines[-1] == "Mend the file, or leave such records out with --skip-bad-records."
    with pytest.raises(DataError) as caught:
        list(read(item))
    assert str(caught.value).splitlines()[-1] == "Mend the file."  # of a command without that option
    for problem in report.problems:
        assert problem.offset is not None
        line = MANY_BAD[: problem.offset].count(b"\n") + 1
        column = problem.offset - MANY_BAD.rfind(b"\n", 0, problem.offset)
        assert (line, column) == (problem.line, problem.column)


def test_bad_records_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(MANY_BAD)
    report = ReadReport(str(path))
    records = list(read(find([str(path)])[0], ReadOptions(skip_bad_records=True), report))
    assert [(record.name, record.bases) for record in records] == [("d", b"AAAA")]
    assert (report.records, report.bases, report.bad_records) == (1, 4, 4)
    assert report.bad_bases == 4 + (4 + 2 + 1 + 2) + 3 + 4  # the c of '>c' reads as one
    assert report.problem_count == len(report.problems) == 4


def test_what_prepare_leaves_out_is_in_its_report_and_its_balance(tmp_path: Path) -> None:
    (tmp_path / "genome.fa").write_bytes(MANY_BAD)
    options = PrepareOptions(valid=0, skip_bad_records=True)
    dataset = prepare([str(tmp_path / "genome.fa")], tmp_path / "out", options)
    cleaning = dataset.cleaning
    assert cleaning["dropped"] == {"bad records": {"records": 4, "bases": 20}}
    assert (cleaning["records_in"], cleaning["bases_in"]) == (5, 24)
    assert (cleaning["records_out"], cleaning["bases_out"]) == (1, 4)
    assert len(dataset.sources[0]["problems"]) == 4


def test_the_first_twenty_problems_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(b"".join(b">r%d\nA-\n" % number for number in range(30_000)))
    report = ReadReport(str(path))
    with pytest.raises(DataError) as caught:
        list(read(find([str(path)])[0], report=report))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path} has 30,000 problems:"
    assert len(lines) == 1 + 20 + 2
    assert lines[-2] == "  and 29,980 more."
    assert (report.problem_count, len(report.problems)) == (30_000, 10_000)


def test_names_that_repeat_are_an_error_also_where_bad_records_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(b">a\nAC\n>b\nA-\n>a\nGG\n>c\nAC\n>a\nTT\n")
    with pytest.raises(DataError) as caught:
        list(read(find([str(path)])[0], ReadOptions(skip_bad_records=True)))
    assert [line.removeprefix(f"  {path}:") for line in str(caught.value).splitlines()[1:]] == [
        "5:1: the name of this record was used in line 1 already; rename one of the two.",
        "9:1: the name of this record was used in line 5 already; rename one of the two.",
    ]


def test_damage_comes_after_the_problems_before_it(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_bytes(b">a\nAC-GT\n>b\nACGT\n>")
    for skip in (False, True):
        with pytest.raises(DataError) as caught:
            list(read(find([str(path)])[0], ReadOptions(skip_bad_records=skip)))
        assert "the file ends with '>'" in str(caught.value)
        assert ("a gap" in str(caught.value)) is not skip


# ------------------------------------------------------------------------------------------------ what is expected

REPORT = (
    "# Assembly name:  GRCh38.p14\r\n"
    "# Sequence-Name\tSequence-Role\tAssigned-Molecule\tAssigned-Molecule-Location/Type\tGenBank-Accn\tRelationship\t"
    "RefSeq-Accn\tAssembly-Unit\tSequence-Length\tUCSC-style-name\r\n"
    "1\tassembled-molecule\t1\tChromosome\tCM000663.2\t=\tNC_000001.11\tPrimary Assembly\t6\tchr1\r\n"
    "HSCHR1_RANDOM\tunlocalized-scaffold\t1\tChromosome\tKI270706.1\t=\tna\tPrimary Assembly\t4\tna\r\n"
)


def expecting(folder: Path, data: bytes, listing: str) -> list[Record]:
    (folder / "list").write_text(listing, newline="")
    (folder / "genome.fa").write_bytes(data)
    return list(read(find([str(folder / "genome.fa")])[0], ReadOptions(expect=str(folder / "list"))))


@pytest.mark.parametrize(
    "names", [(b"1", b"KI270706.1"), (b"chr1", b"HSCHR1_RANDOM"), (b"NC_000001.11", b"KI270706.1")]
)
def test_an_assembly_report_is_met_by_any_of_its_names(tmp_path: Path, names: tuple[bytes, bytes]) -> None:
    assert len(expecting(tmp_path, b">%s\nACGTAC\n>%s\nGGGG\n" % names, REPORT)) == 2
    with pytest.raises(DataError, match=r"record '1' of .*list is missing; the file is cut"):
        expecting(tmp_path, b">%s\nGGGG\n" % names[1], REPORT)


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_a_checksum_file_is_met_by_the_file_as_it_lies_on_the_disk(tmp_path: Path, algorithm: str) -> None:
    packed = gzip.compress(GOOD)
    digest = hashlib.new(algorithm, packed).hexdigest()
    assert len(expecting(tmp_path, packed, f"{digest.upper()} *./a/b/genome.fa\n")) == 2
    with pytest.raises(DataError, match=rf"genome.fa is not the file that .*list lists: its {algorithm} is "):
        expecting(tmp_path, gzip.compress(GOOD + b"A"), f"{digest}  genome.fa\n")
    with pytest.raises(DataError, match=r"genome.fa is not in .*list"):
        expecting(tmp_path, packed, f"{digest}  other.fa\n")


@pytest.mark.parametrize(
    ("listing", "words"), [("", "is empty"), ("a 6\n", "list:1: 'a 6' is neither"), ("a\tx\n", "list:1")]
)
def test_a_list_that_is_none_is_a_usage_error(tmp_path: Path, listing: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        expecting(tmp_path, GOOD, listing)


def test_prepare_meets_what_is_expected(tmp_path: Path) -> None:
    for number, bases in enumerate((b"ACGTTGCATG", b"GGTTGCATCA")):
        records = (b">r%d_%d gene=g%d\n%s\n" % (number, i, i, bases * (i + 4)) for i in range(40))
        (tmp_path / f"{number}.fa").write_bytes(b"".join(records))
    sources = [str(tmp_path / f"{number}.fa") for number in range(2)]
    lengths = tmp_path / "0.fa.fai"
    lengths.write_text("".join(f"r0_{i}\t{10 * (i + 4)}\t0\t0\t0\n" for i in range(40)))
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(Path(s).read_bytes()).hexdigest()}  {Path(s).name}\n" for s in sources))
    for given, listing in ((sources[:1], lengths), (sources, sums)):
        options = PrepareOptions(valid=0, expect=str(listing))
        assert prepare(given, tmp_path / f"of-{listing.name}", options).options["expect"] == str(listing)
    with pytest.raises(UsageError, match="lists the records of one input, and there are 2"):
        prepare(sources, tmp_path / "out", PrepareOptions(valid=0, expect=str(lengths)))
    with pytest.raises(DataError, match="record 'r1_0' is not in"):
        prepare(sources[1:], tmp_path / "out", PrepareOptions(valid=0, expect=str(lengths)))
    assert not (tmp_path / "out").exists()
