"""2bit: the bases and masks that other readers see, in either byte order and version; damage is refused with its place."""

from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from formats import twobit_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data import sources
from dnascale.data.sources import Input, ReadOptions, ReadReport, growing, record, twobit
from dnascale.errors import DataError


def read(path: Path, data: bytes) -> tuple[list[tuple[str, bytes]], ReadReport]:
    path.write_bytes(data)
    report = ReadReport(str(path))
    return [(r.name, r.bases[:]) for r in sources.read(Input.of(path), report=report)], report


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(path, data)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "genome.2bit"


TWO = [("chr1", b"ACGTNNNNacgtnnnnGGGTTTAAACCC"), ("chrM", b"tttttN")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [0, 1])
def test_bases_and_masks_come_back_in_either_byte_order_and_version(path: Path, order: str, version: int) -> None:
    records, report = read(path, twobit_of(TWO, order, version))
    assert records == TWO
    assert (report.format, report.records, report.bases, report.warnings) == ("2bit", 2, 34, [])


@settings(max_examples=50, deadline=None)
@given(
    bases=st.lists(st.text("ACGTNacgtn", max_size=60), min_size=1, max_size=4),
    order=st.sampled_from("<>"),
    version=st.integers(0, 1),
    chunk=st.sampled_from([4, 8, 1 << 20]),
)
def test_any_sequences_come_back_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, bases: list[str], order: str, version: int, chunk: int
) -> None:
    given_ = [(f"r{number}", text.encode()) for number, text in enumerate(bases)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twobit, "_CHUNK", chunk)
        assert read(tmp_path_factory.mktemp("x") / "a.2bit", twobit_of(given_, order, version))[0] == given_


def test_agrees_with_py2bit_and_twobitreader(path: Path) -> None:
    py2bit, twobitreader = pytest.importorskip("py2bit"), pytest.importorskip("twobitreader")
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT" * 4 + b"NNacgtn", dtype=np.uint8)
    given_ = [
        (f"c{n}", np.repeat(random.choice(letters, 3000), random.integers(1, 9, 3000)).tobytes()) for n in range(3)
    ]
    records, _ = read(path, twobit_of(given_))
    other, third = py2bit.open(str(path), True), twobitreader.TwoBitFile(str(path))
    assert list(other.chroms()) == [name for name, _ in records]
    for name, bases in records:
        assert bases.decode() == str(third[name])
        assert bases.replace(b"n", b"N").decode() == other.sequence(name)  # which gives every N in upper case


@pytest.mark.parametrize(("written", "name"), [("chr\u00e9".encode(), "chr\u00e9"), (b"chr\xe9", "chr\u00e9")])
def test_a_name_is_the_same_in_fasta_and_in_2bit(path: Path, tmp_path: Path, written: bytes, name: str) -> None:
    records, _ = read(path, twobit_of([(written.decode("latin-1"), b"ACGT")]))
    fasta, _ = read(tmp_path / "genome.fa", b">" + written + b"\nACGT\n")
    assert records == fasta == [(name, b"ACGT")]


def test_a_compressed_2bit_is_read_too(path: Path) -> None:
    records, report = read(path, gzip.compress(twobit_of(TWO)))
    assert (records, report.compression, report.format) == (TWO, "gzip", "2bit")


def test_offsets_beyond_4_gib_are_followed_in_version_1(path: Path) -> None:
    """The file is sparse: a hole of 5 GiB lies between the index and the second record."""
    head = twobit_of([("a", b"ACGT"), ("b", b"GGGG")], version=1)
    body = twobit_of([("b", b"TTNNaacc")])[16 + 6 :]
    far = 5 << 30
    with path.open("wb") as file:
        file.write(head[: 16 + 10 + 2] + struct.pack("<Q", far) + head[36:-17])
        file.seek(far)
        file.write(body)
    report = ReadReport(str(path))
    with path.open("rb") as stream:
        found = [(r.name, r.bases) for r in twobit._records(twobit._File(stream, "x"), report, ReadOptions())]
    assert found == [("a", b"ACGT"), ("b", b"TTNNaacc")]


def test_a_record_of_more_than_64_mib_lies_in_a_file_and_takes_no_memory(path: Path) -> None:
    """Bases without end, all A in the file: a repeat of known bytes."""
    length = 70 << 20
    path.write_bytes(twobit_of([("big", b"")])[:-16] + struct.pack("<IIIII", length, 1, 10, 5, 0) + b"\0\0\0\0")
    with path.open("ab") as file:
        file.write(b"\xaa" * (length // 4))
    tracemalloc.start()
    (found,) = sources.read(Input.of(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found.bases, record.Letters)
    assert len(found.bases) == length > growing.MEMORY_BASES
    assert found.bases[:20] == b"AAAAAAAAAANNNNNAAAAA"
    assert found.bases[-4:] == b"AAAA"
    assert peak < 100 << 20


GOOD = twobit_of(TWO)
DAMAGED = {
    "nothing but the signature": (GOOD[:4], "ends within the head"),
    "cut in the head": (GOOD[:15], "ends within the head"),
    "cut in the index": (GOOD[:20], "ends within the list of names"),
    "cut in the counts": (GOOD[:40], "truncated"),
    "cut in the bases": (GOOD[:-1], "within record 'chrM'.*truncated"),
    "version 2": (GOOD[:4] + b"\2" + GOOD[5:], "version 2"),
    "reserved bytes": (GOOD[:12] + b"\1" + GOOD[13:], "reserves 0"),
    "no sequence": (twobit_of([]), "no sequence"),
    "a name twice": (twobit_of([("a", b"A"), ("a", b"C")]), "two records named 'a'"),
    "an empty name": (twobit_of([("", b"A")]), "no usable name for record 1"),
    "an offset into the index": (GOOD[:21] + b"\1\0\0\0" + GOOD[25:], "puts record 'chr1' at byte 1, outside"),
    "an offset beyond the end": (GOOD[:21] + b"\xff\xff\0\0" + GOOD[25:], "outside of bytes.*truncated"),
    "two records in one place": (GOOD[:30] + GOOD[21:25] + GOOD[34:], "'chr1' and 'chrM' in one place"),
    "more runs than the file has room for": (GOOD[:38] + b"\xff\xff\xff\x7f" + GOOD[42:], "no room for the runs of N"),
    "more bases than the file has room for": (GOOD[:34] + b"\xff\xff\xff\x7f" + GOOD[38:], "within record 'chr1'"),
    "a record that reaches into the next": (GOOD[:34] + b"\x40" + GOOD[35:], "reaches into the next one"),
    "a run beyond the record": (GOOD[:50] + b"\x7f" + GOOD[51:], "runs of N of record 'chr1' that overlap"),
    "runs out of order": (GOOD[:42] + GOOD[46:50] + GOOD[42:46] + GOOD[50:], "out of order"),
}


@pytest.mark.parametrize(("data", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_refused_with_its_place(path: Path, data: bytes, message: str) -> None:
    assert re.search(message, refusal(path, data))


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.integers(0, len(GOOD)))
def test_no_damage_gives_anything_but_records_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("x") / "a.2bit"
    data = (GOOD[:at] + bytes([value]) + GOOD[at + 1 :])[: cut if value % 2 else None]
    try:
        records, _ = read(path, data)
    except DataError:
        return
    assert sum(len(bases) for _, bases in records) <= 4 * len(data)


def test_bytes_after_the_last_record_are_told(path: Path) -> None:
    _, report = read(path, GOOD + b"\0" * 7)
    assert report.warnings == [f"{path} has 7 bytes after its last record"]
