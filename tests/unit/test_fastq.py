"""FASTQ: the bases that were written are read, in four lines or wrapped; what does not fit together is an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Input, ReadOptions, ReadReport, Record, fastq, read
from dnascale.errors import DataError

QUALITIES = "".join(map(chr, range(33, 127)))  # '@' and '+' among them


def records_of(
    path: Path, data: bytes, block_bytes: int = 1 << 20, skip: bool = False
) -> tuple[list[Record], ReadReport]:
    path.write_bytes(data)
    report = ReadReport(str(path))
    options = ReadOptions(format="fastq", skip_bad_records=skip)
    return list(read(Input.of(path), options, report, block_bytes)), report


def refusal(path: Path, data: bytes) -> str:
    """The message, without the path; the same at any block size."""
    messages = set()
    for size in (1, 2, 7, 1 << 20):
        with pytest.raises(DataError) as caught:
            records_of(path, data, size)
        messages.add(str(caught.value).removeprefix(f"{path}:"))
    (message,) = messages
    return message


@st.composite
def reads(draw: st.DrawFn) -> list[tuple[str, str, str, str]]:
    """Name, description, bases and qualities of some reads. Names may repeat."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        bases = draw(st.text("ACGTNacgtnRYU", max_size=40))
        qualities = draw(st.text(QUALITIES, min_size=len(bases), max_size=len(bases)))
        name = draw(st.text("abc:/12@+>", min_size=1, max_size=8))
        found.append((name, draw(st.text("N1:0@+> ", max_size=6)).strip(), bases, qualities))
    return found


@settings(max_examples=200, deadline=None)
@given(
    given_reads=reads(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    width=st.sampled_from([0, 1, 7, 16]),  # 0: four lines a read
    repeated=st.booleans(),
    last=st.booleans(),
    block_bytes=st.sampled_from([1, 2, 5, 31, 1 << 20]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    given_reads: list[tuple[str, str, str, str]],
    end: str,
    width: int,
    repeated: bool,
    last: bool,
    block_bytes: int,
) -> None:
    lines: list[str] = []
    expected = []
    for name, description, bases, qualities in given_reads:
        # A wrapped line of qualities is told from the next read by its place alone, so any sign may begin it.
        step = width or max(1, len(bases))
        parts = [[text[at : at + step] for at in range(0, len(text), step)] or [""] for text in (bases, qualities)]
        header = f"{name} {description}".rstrip()
        expected.append((name, description, bases.encode(), len(lines) + 1))
        lines += [f"@{header}", *parts[0], f"+{header if repeated else ''}", *parts[1]]
    data = end.join(lines).encode() + (end.encode() if last else b"")
    records, report = records_of(tmp_path_factory.getbasetemp() / "reads.fq", data, block_bytes)
    assert [(r.name, r.description, r.bases, r.line) for r in records] == expected
    assert report.format == "fastq"
    assert report.bases == sum(len(bases) for _, _, bases, _ in expected)
    assert report.empty == sum(not bases for _, _, bases, _ in expected)
    assert [w for w in report.warnings if "mixes" not in w] == []


REFUSED = {
    "no '@'": (b"read\nAC\n+\nII\n", "1:1 .*must start with '@'"),
    "a line too many": (b"@a\nAC\n+\nII\nII\n@b\nAC\n+\nII\n", "5:1 .byte 11.: a read must start with '@' here"),
    "no name": (b"@\nAC\n+\nII\n", "1:1 .*'@' without a name"),
    "NUL in a header": (b"@a\0b\nAC\n+\nII\n", "1:1 .*a NUL byte"),
    "no '+' line": (b"@a\nAC\nII\n@b\nAC\n+\nII\n", "4:1 .*read 'a' has no '[+]' line"),
    "no '+' line in the last read": (b"@a\nAC\nII\n", ".*ends within read 'a'"),
    "another header after '+'": (b"@a x\nAC\n+b x\nII\n", "3:1 .*repeats another header"),
    "too few qualities": (b"@a\nACGT\n+\nIII\n@b\nAC\n+\nII\n", "4:1 .byte 10.: read 'a' has 4 bases and 3 qualities"),
    "too many qualities": (b"@a\nACGT\n+\nIIIII\n", "4:1 .*4 bases and 5 qualities"),
    "too many qualities, wrapped": (b"@a\nAC\nGT\n+\nIII\nII\n", "6:1 .*4 bases and 5 qualities"),
    "cut after the header": (b"@a\nAC\n+\nII\n@b\n", ".*ends within read 'b'.*truncated"),
    "cut in the bases": (b"@a\nAC\n+\nII\n@b\nA", ".*ends within read 'b'"),
    "cut before the qualities": (b"@a\nAC\n+\n", ".*ends within read 'a'"),
    "cut in the qualities": (b"@a\nACGT\n+\nII", "4:1 .*4 bases and 2 qualities"),
    "blank line between reads": (b"@a\nAC\n+\nII\n\n@b\nAC\n+\nII\n", ".*a read after blank lines"),
    "bad base": (b"@a\nAC\n+\nII\n@b\nA.C\n+\nIII\n", "6:2 .byte 15.: '[.]' in read 'b': a gap"),
    "bad base after CRLF": (b"@a\r\nAC\r\n+\r\nII\r\n@b\r\nA.C\r\n+\r\nIII\r\n", "6:2 .byte 20.: '[.]' in read 'b'"),
    "bad quality": (b"@a\nACG\n+\nI I\n", "4:2 .byte 10.: byte 0x20 in read 'a': no quality"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_with_place_and_reason(tmp_path: Path, data: bytes, message: str) -> None:
    assert re.match(message, refusal(tmp_path / "reads.fq", data))


def test_bad_reads_can_be_left_out(tmp_path: Path) -> None:
    data = b"@a\nAC.T\n+\nIIII\n@b\nGG\n+\nII\n@c\nAA\n+\nI\x7f\n"
    records, report = records_of(tmp_path / "reads.fq", data, skip=True)
    assert [(record.name, record.bases) for record in records] == [("b", b"GG")]
    assert (report.bad_records, report.bad_bases, report.problem_count) == (2, 5, 2)
    with pytest.raises(DataError, match="4 bases and 3"):  # of the file, not of a read
        records_of(tmp_path / "reads.fq", data + b"@d\nACGT\n+\nIII\n", skip=True)


def test_blank_lines_at_the_end_are_a_warning(tmp_path: Path) -> None:
    records, report = records_of(tmp_path / "reads.fq", b"@a\nAC\n+\nII\n\n\n")
    assert len(records) == 1
    assert report.warnings == [f"{tmp_path}/reads.fq:5:1: blank lines at the end were skipped"]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastq, "_MAX_LINE_BYTES", 1000)
    with pytest.raises(DataError, match="a line of more than 64 MiB"):
        records_of(tmp_path / "reads.fq", b"@a\n" + b"A" * 5000, 100)


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.sampled_from([b"@a", b"@b x", b"AC", b"+", b"II", b"\n", b"\n", b"\n", b"\r\n", b"@", b".", b"\0"]),
        max_size=24,
    )
)
def test_any_bytes_give_the_same_result_at_any_block_size(
    tmp_path_factory: pytest.TempPathFactory, data: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.fq"
    outcomes: set[object] = set()
    for size in (1, 2, 3, 1 << 20):
        try:
            records, report = records_of(path, b"".join(data), size)
            outcomes.add((tuple((r.name, r.bases, r.line) for r in records), tuple(report.warnings)))
        except DataError as error:
            outcomes.add(str(error))
    assert len(outcomes) == 1
