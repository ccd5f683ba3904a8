"""FASTA against a naive strict reader: the same records, or an error, whatever the bytes, blocks, widths and sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fasta_text import naive
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Input, ReadOptions, ReadReport, Record, fasta, names, read
from dnascale.data.sources.growing import Growing
from dnascale.data.sources.names import Names
from dnascale.errors import DataError, UsageError
from dnascale.vocab import CHARACTER

Row = tuple[str, str, bytes, int]
LETTERS = set(b"ACGTUNRYKMSWBDHVacgtunrykmswbdhvi")


def strict(text: bytes) -> list[Row] | None:
    """The records of a text, or None where it is not strict FASTA. Line by line, nothing clever."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    if text.startswith(b"@"):
        return None  # FASTQ has its own tests
    lines = re.split(rb"\r\n|\r|\n", text)
    seen = set()
    for line in filter(None, lines):
        if line.startswith(b">"):
            name = re.split(rb"[ \t]", line[1:])[0]
            if not name or name in seen or b"\0" in line:
                return None
            seen.add(name)
        elif not seen or not set(line) <= LETTERS:
            return None
    return naive(text) if seen else None


def rows(path: Path, data: bytes, block_bytes: int) -> list[Row] | None:
    path.write_bytes(data)
    report = ReadReport(str(path))
    try:
        records = list(read(Input.of(path), ReadOptions(), report, block_bytes))
    except DataError:
        return None
    for record in records:
        assert_codes(record)
    assert report.bases == sum(len(record.bases) for record in records)
    return [(record.name, record.description, record.bases[:], record.line) for record in records]


def assert_codes(record: Record) -> None:
    """Codes are ids of characters with the soft mask in bit 7."""
    letters = record.bases[:]
    expected = CHARACTER.encode_bases(letters) | CHARACTER.soft_mask(letters)
    assert np.array_equal(record.codes(), expected)
    assert np.array_equal(record.codes(1, 3), expected[1:3])


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """Correct FASTA: any number of records, each with a width of its own, any line ends, perhaps ragged or blank lines."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    text = b""
    for number in range(draw(st.integers(1, 12))):
        size = draw(st.sampled_from([0, 1, 5, 60, 61, 200, 3000, 9000]))
        width = draw(st.sampled_from([1, 7, 60, 70, 2500, 100_000]))
        word = draw(st.sampled_from([b"ACGT", b"acgtN", b"ACgtRYKMi"]))
        bases = (word * (size // len(word) + 1))[:size]
        lines = [bases[at : at + width] for at in range(0, size, width)]
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from([b"", b"AC", b"A" * 61])))
        text += end.join([b">r%d some" % number, *lines, b""])
    return text if draw(st.booleans()) else text.removesuffix(end)


BLOCKS = st.sampled_from([1, 3, 61, 122, 4000, 10_000, 1 << 20])


@settings(max_examples=200, deadline=None)
@given(text=texts(), block_bytes=BLOCKS, strided=st.sampled_from([0, 2048]), short=st.sampled_from([0, 64, 1 << 20]))
def test_correct_text_is_read_as_by_the_naive_reader(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, block_bytes: int, strided: int, short: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "_STRIDED_BYTES", strided)
        patch.setattr(fasta, "_SHORT_BYTES", short)
        got = rows(tmp_path_factory.getbasetemp() / "correct.fa", text, block_bytes)
    if text.endswith(b">"):
        assert got is None
    else:
        assert got == strict(text) == naive(text)


@settings(max_examples=200, deadline=None)
@given(
    text=texts(),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["set", "insert", "cut", "swap"]),
            st.floats(0, 1, exclude_max=True),
            st.one_of(st.sampled_from(b">\n\r AN-*\0@;\xff"), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=3,
    ),
    block_bytes=BLOCKS,
)
def test_changed_bytes_give_an_error_or_what_the_strict_reader_reads(
    tmp_path_factory: pytest.TempPathFactory,
    text: bytes,
    changes: list[tuple[str, float, int]],
    block_bytes: int,
) -> None:
    for kind, where, byte in changes:
        at = int(where * len(text))
        if kind == "cut":
            text = text[:at] + text[at + byte :]
        elif kind == "swap":
            text = text[at:] + text[:at]
        else:
            text = text[:at] + bytes([byte]) + text[at + (kind == "set") :]
    if text.startswith((b"@", b"\x1f\x8b", b"BZh")):
        return
    expected = strict(text)
    if text.endswith(b">") or (expected is not None and len(text) > 65_000):
        expected = rows(tmp_path_factory.getbasetemp() / "changed.fa", text, 1 << 20)
    assert rows(tmp_path_factory.getbasetemp() / "changed.fa", text, block_bytes) == expected


@pytest.mark.parametrize("width", [1, 2, 59, 60, 61, 80, 1000, 99_999])
def test_lines_of_every_width_and_a_fault_at_every_edge(tmp_path: Path, width: int) -> None:
    bases = b"ACGTTGCANN" * 2000
    text = b">chr\n" + b"\n".join(bases[at : at + width] for at in range(0, len(bases), width)) + b"\n"
    assert rows(tmp_path / "a.fa", text, 4096) == [("chr", "", bases, 1)]
    for at in (5, 4 + width, 6 + width, 4090, 4096, 4097, 8192, len(text) - 2):
        if at < len(text) and text[at] != 10:
            broken = text[:at] + b"-" + text[at + 1 :]
            (tmp_path / "a.fa").write_bytes(broken)
            report = ReadReport("a")
            with pytest.raises(DataError):
                list(read(Input.of(tmp_path / "a.fa"), ReadOptions(), report, 4096))
            (problem,) = report.problems
            assert problem.offset == at
            assert problem.line == broken[:at].count(b"\n") + 1
            assert problem.column == at - broken.rfind(b"\n", 0, at)


# --------------------------------------------------------------------------------------------------- long records


@pytest.mark.parametrize(("short", "memory"), [(100, 1000), (0, 1000), (100, 100), (0, 0), (1 << 20, 1 << 21)])
@pytest.mark.parametrize("size", [1, 99, 100, 101, 999, 1000, 1001, 5000])
def test_bases_are_the_same_in_memory_in_an_array_and_in_a_file(short: int, memory: int, size: int) -> None:
    letters = (b"ACGTNacgtnRYKMSWBDHVUui" * 250)[:size]
    grown = Growing(None, short, memory)
    for _ in range(2):  # the second record shares nothing with the first
        for at in range(0, size, 37):
            grown.add(letters[at : at + 37])
        record = grown.record("a", "b", 3)
        assert (len(record.bases), record.bases[:], record.line) == (size, letters, 3)
        assert record.bases[size // 2 : size // 2 + 9] == letters[size // 2 : size // 2 + 9]
        assert record.bases[-3:] == letters[-3:]
        assert isinstance(record.bases, bytes) == (size <= short)
        assert_codes(record)


def test_a_folder_for_files_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(UsageError, match="gone cannot be written: No such file or directory"):
        Growing(str(gone), 1, 2).add(b"ACGT")
    monkeypatch.setattr(names, "_MEMORY_BYTES", 1)
    with pytest.raises(UsageError, match="gone cannot be written: No such file or directory"):
        Names(str(gone)).add(("a",), (1,))


def test_a_record_outlives_the_next_ones() -> None:
    grown = Growing(None, 10, 100)
    records = []
    for letters in (b"A" * 50, b"C" * 200, b"G" * 5, b"T" * 50):
        grown.add(letters)
        records.append((grown.record("a", "", 1), letters))
    assert all(record.bases[:] == letters for record, letters in records)


def test_memory_does_not_grow_with_a_long_record(tmp_path: Path) -> None:
    """80 MB in one record: what Python allocates stays far below it."""
    import tracemalloc

    line = b"ACGTTGCATGCATTTGGGCCAACGTTGCATGCATTTGGGCCAACGTTGCATGCATTTGGGCC\n"
    path = tmp_path / "long.fa"
    with path.open("wb") as file:
        file.write(b">chr1\n")
        for _ in range(80):
            file.write(line * (1_000_000 // len(line)))
    tracemalloc.start()
    try:
        (record,) = read(Input.of(path))
        assert tracemalloc.get_traced_memory()[0] < 5 << 20
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert len(record.bases) == 80 * (1_000_000 // len(line)) * (len(line) - 1)
    assert record.bases[-4:] == b"GGCC"


# ---------------------------------------------------------------------------------------------------------- names


def naive_pairs(given_names: list[str]) -> list[list[int]]:
    """Lines of equal names: each use with the one before it."""
    last: dict[str, int] = {}
    pairs = []
    for line, name in enumerate(given_names, 1):
        if name in last:
            pairs.append([last[name], line])
        last[name] = line
    return pairs


@settings(max_examples=100, deadline=None)
@given(
    given_names=st.lists(
        st.sampled_from(["a", "A", "chr1", "1", "1.2", "1.3", "chr1.2", "b", "é", "x.y"]), max_size=30
    ),
    memory=st.sampled_from([20, 40, 100, 1 << 20]),
)
def test_repeated_and_similar_names_are_found_in_memory_and_in_a_file(given_names: list[str], memory: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names, "_MEMORY_BYTES", memory)
        found = Names()
        for line, name in enumerate(given_names, 1):
            found.add((name,), (line,))
        equal, similar = found.finish()
    assert equal.tolist() == naive_pairs(given_names)
    alike = {re.sub(r"^chr|\.\d+$", "", name.lower()) for name in given_names}
    assert (len(similar) > 0) == (len(alike) < len(set(given_names)))
