"""Windows out of mapped shards: of either layout they are slices of the stream, and no damage gets into one."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data import mapped as module
from dnascale.data.mapped import MappedShards
from dnascale.data.order import Windows
from dnascale.data.read import WindowReader
from dnascale.data.shards import BLOCK_ROW, Dataset, Index, Shard, Split, block_offset, load_dataset
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.vocab import CHARACTER, Vocabulary

BLOCK = 512  # tokens; the smallest whole number of tar blocks
LETTERS = np.frombuffer(b"AAACCCGGGTTTNacgtnRYUi-?*", dtype=np.uint8)


# --- data sets by hand; test_stream and test_corpus use them too ---


def save(
    folder: Path,
    splits: dict[str, Index],
    vocabulary: Vocabulary = CHARACTER,
    soft_mask_bit: bool = False,
    **more: object,
) -> Dataset:
    described = {
        name: Split(1, int(index.tokens.sum()), int(index.tokens.sum()), 1, 0, {}, index)
        for name, index in splits.items()
    }
    Dataset(folder, "", "", vocabulary, soft_mask_bit, [], {}, {}, {}, described, **more).save(folder)  # type: ignore[arg-type]
    return load_dataset(folder)


def write_stream(folder: Path, split: str, stream: np.ndarray, shard_blocks: int = 2) -> Index:
    writer = ShardWriter(folder, split, block_tokens=BLOCK, shard_blocks=shard_blocks)
    while len(stream):
        piece, stream = stream[: writer.room], stream[writer.room :]
        writer.write(piece)
    return writer.index()


def write_blocks(folder: Path, stream: np.ndarray, shard_blocks: int = 2, split: str = "train") -> Dataset:
    """A data set of layout `blocks`, of one split."""
    return save(folder, {split: write_stream(folder, split, stream, shard_blocks)}, block_tokens=BLOCK)


def write_records(
    folder: Path,
    shards: Sequence[Sequence[bytes]],
    translate: bytes | None = CHARACTER.byte_table,
    split: str = "train",
) -> Dataset:
    """A data set of layout `records`, its tars and their index by Python's tarfile."""
    rows = []
    for number, records in enumerate(shards):
        name = f"others-{number}.tar"
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(folder / name, "w") as tar:
            for place, record in enumerate(records):
                info = tarfile.TarInfo(f"a/record {place}.seq")
                info.size = len(record)
                tar.addfile(info, io.BytesIO(record))
        with tarfile.open(folder / name) as tar:
            blocks = [
                (member.offset_data, len(record), zlib.crc32(record))
                for member, record in zip(tar.getmembers(), records, strict=True)
            ]
        data = (folder / name).read_bytes()
        tokens = sum(map(len, records)) + len(records)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(Shard(name, len(data), digest, tokens, len(records), np.array(blocks, dtype=BLOCK_ROW)))
    return save(folder, {split: Index.of(rows)}, layout="records", translate=translate)


def random_stream(seed: int, tokens: int) -> np.ndarray:
    """Bases, separators and soft-mask bits."""
    rng = np.random.default_rng(seed)
    stream = rng.choice([0, 1, 2, 3, 4, CHARACTER.sep], tokens, p=[0.3, 0.2, 0.2, 0.2, 0.05, 0.05])
    return (stream | np.where((stream < 5) & (rng.random(tokens) < 0.2), 0x80, 0)).astype(np.uint8)


def random_records(seed: int, lengths: Sequence[int]) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.choice(LETTERS, length).tobytes() for length in lengths]


def stream_of_records(records: Sequence[bytes]) -> np.ndarray:
    """Encoded letter by letter, each record followed by [SEP]."""
    known = {letter: number for number, letter in enumerate(CHARACTER.tokens) if len(letter) == 1}
    ids = []
    for record in records:
        for letter in record.decode():
            ids.append(known.get(letter, known.get(letter.upper(), CHARACTER.unk)))
        ids.append(CHARACTER.sep)
    return np.array(ids, dtype=np.uint8)


def cut(stream: np.ndarray, shard_blocks: int = 2) -> list[np.ndarray]:
    """The streams of the shards that `write_blocks` makes."""
    return np.split(stream, range(shard_blocks * BLOCK, len(stream), shard_blocks * BLOCK))


def windows_at(shard: Sequence[int] | np.ndarray, start: Sequence[int] | np.ndarray) -> Windows:
    columns = np.asarray(shard, dtype=np.int64), np.asarray(start, dtype=np.int64)
    return Windows(np.zeros_like(columns[0]), *columns, np.arange(len(columns[0])))


# --- the data of this file ---

#: Lengths of the records of each shard: nothing, whole tar blocks and their neighbours, one long, many short.
LENGTHS = ([0, 1, 511, 512, 513, 0], [2000], [3, 0, 0, 7, 1024] * 4, [25] * 40)


class Truth:
    """A data set and the streams of its shards, and where in them its blocks begin."""

    def __init__(self, dataset: Dataset, streams: list[np.ndarray], blocks: list[list[int]]) -> None:
        self.dataset = dataset
        self.streams = streams
        self.ends = [np.cumsum(of_shard) for of_shard in blocks]

    @property
    def tokens(self) -> list[int]:
        return [len(stream) for stream in self.streams]

    def touched(self, shard: int, start: int, length: int) -> range:
        """Numbers of the blocks that a window touches."""
        first, last = np.searchsorted(self.ends[shard], [start, start + length - 1], side="right")
        return range(first, last + 1)

    def every_window(self, context: int) -> Windows:
        """At every start, in random order, some of them twice."""
        pairs = [(shard, start) for shard, size in enumerate(self.tokens) for start in range(size - context + 1)]
        rng = np.random.default_rng(context)
        chosen = rng.permutation(np.concatenate([np.arange(len(pairs)), rng.integers(0, len(pairs), 10)]))
        return windows_at(*np.array(pairs)[chosen].T)

    def at(self, windows: Windows, context: int) -> np.ndarray:
        rows = zip(windows.shard.tolist(), windows.start.tolist(), strict=True)
        return np.stack([self.streams[shard][start : start + context] for shard, start in rows])


def make(folder: Path, layout: str) -> Truth:
    if layout == "blocks":
        stream = random_stream(0, 2 * 5 * BLOCK + 3 * BLOCK + 77)
        dataset = write_blocks(folder, stream, shard_blocks=5)
        sizes = [[BLOCK] * 5, [BLOCK] * 5, [BLOCK] * 3 + [77]]
        return Truth(dataset, cut(stream, 5), sizes)
    sizes = [[length + 1 for length in of_shard] for of_shard in LENGTHS]
    letters = [random_records(number, of_shard) for number, of_shard in enumerate(LENGTHS)]
    if layout == "records":
        return Truth(write_records(folder, letters), [stream_of_records(of_shard) for of_shard in letters], sizes)
    ids = [[bytes(token & 3 for token in record) for record in of_shard] for of_shard in letters]
    streams = [np.array([t for r in of_shard for t in (*r, CHARACTER.sep)], dtype=np.uint8) for of_shard in ids]
    return Truth(write_records(folder, ids, translate=None), streams, sizes)


@pytest.fixture(scope="module", params=["blocks", "records", "records of ids"])
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return make(tmp_path_factory.mktemp("mapped") / "data", request.param)


@pytest.fixture
def copy(truth: Truth, tmp_path: Path) -> Truth:
    """The same in a folder that a test may damage."""
    shutil.copytree(truth.dataset.folder, tmp_path / "data")
    again = Truth(load_dataset(tmp_path / "data"), truth.streams, [])
    again.ends = truth.ends
    return again


def path(dataset: Dataset, shard: int) -> Path:
    return dataset.folder / dataset.split("train").shards[shard].name


def flip(dataset: Dataset, shard: int, block: int, place: int) -> None:
    """Another byte at a place of a block."""
    at = int(dataset.split("train").shards[shard].blocks["offset"][block]) + place
    with path(dataset, shard).open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ 1]))


def mapped_files(folder: Path) -> set[str]:
    """Which files below `folder` this process has mapped, by what the kernel says."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    lines = maps.read_text().splitlines()
    return {line.split("/")[-1] for line in lines if f" {folder}/" in line and ".tar" in line}


# --- the right tokens ---


def test_the_stream_of_each_shard_is_what_was_written(truth: Truth) -> None:
    shards = MappedShards(truth.dataset, "train")
    assert shards.tokens.tolist() == truth.tokens
    for number in reversed(range(len(truth.streams))):
        np.testing.assert_array_equal(shards.stream(number), truth.streams[number])


@pytest.mark.parametrize("context", [1, 2, 24, 511, 512, 513, 1100, 2001])
def test_a_window_at_any_place_is_a_slice_of_the_stream_over_however_many_blocks(truth: Truth, context: int) -> None:
    windows = truth.every_window(context)
    read = WindowReader(truth.dataset, "train", context).read(windows)
    assert read.dtype == torch.uint8
    np.testing.assert_array_equal(read.numpy(), truth.at(windows, context))
    rows = zip(windows.shard.tolist(), windows.start.tolist(), strict=True)
    crossed = {len(truth.touched(shard, start, context)) for shard, start in rows}
    if truth.dataset.layout == "blocks":
        assert crossed == {1: {1}, 513: {2}, 1100: {3, 4}, 2001: {4, 5}}.get(context, {1, 2})
    else:
        assert crossed >= {1: {1}, 2: {1, 2}, 24: {1, 2, 6}, 1100: {1, 3, 11}, 2001: {1, 6, 11}}.get(
            context, {1, 2, 21}
        )


def test_windows_read_one_by_one_are_the_same_as_many_at_once(truth: Truth) -> None:
    reader = WindowReader(truth.dataset, "train", 600)
    windows = truth.every_window(600).take(slice(100))
    whole = reader.read(windows)
    for row in range(len(windows)):
        assert reader.read(windows.take(slice(row, row + 1)))[0].equal(whole[row])
    assert reader.read(windows.take(slice(0))).shape == (0, 600)


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), min_size=1, max_size=4),
    context=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_records_of_any_lengths_read_as_their_stream(shards: list[list[int]], context: int, seed: int) -> None:
    records = [random_records(seed + number, lengths) for number, lengths in enumerate(shards)]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [[length + 1 for length in lengths] for lengths in shards]
        truth = Truth(write_records(Path(folder), records), list(map(stream_of_records, records)), sizes)
        if max(truth.tokens) < context:
            with pytest.raises(DataError, match="fewer than one window"):
                WindowReader(truth.dataset, "train", context)
            return
        windows = truth.every_window(context)
        read = WindowReader(truth.dataset, "train", context).read(windows)
        np.testing.assert_array_equal(read.numpy(), truth.at(windows, context))


def test_one_read_takes_windows_of_several_data_sets_of_either_layout(tmp_path: Path) -> None:
    truths = [make(tmp_path / layout, layout) for layout in ("records", "blocks", "records of ids")]
    every = Truth(truths[0].dataset, [stream for truth in truths for stream in truth.streams], [])
    reader = WindowReader([truth.dataset for truth in truths], "train", 700)
    assert reader.shard_tokens.tolist() == every.tokens
    windows = every.every_window(700)
    np.testing.assert_array_equal(reader.read(windows).numpy(), every.at(windows, 700))
    last = windows.take(windows.shard == len(every.streams) - 1)  # of one of them alone
    np.testing.assert_array_equal(reader.read(last).numpy(), every.at(last, 700))


@pytest.mark.parametrize("beyond", ["before", "after", "long"])
def test_a_window_that_is_not_in_its_shard_is_never_read(truth: Truth, beyond: str) -> None:
    reader = WindowReader(truth.dataset, "train", 700)
    shard = int(np.argmax(truth.tokens))
    start = {"before": -1, "after": truth.tokens[shard] - 699, "long": 1 << 40}[beyond]
    with pytest.raises(ValueError, match="outside its shard"):
        reader.read(windows_at([shard, shard], [0, start]))


# --- checks ---


def test_a_damaged_block_is_refused_by_each_window_that_touches_it_and_by_no_other(copy: Truth) -> None:
    context = 600
    windows = copy.every_window(context)
    expected = copy.at(windows, context)
    rows = list(zip(windows.shard.tolist(), windows.start.tolist(), strict=True))
    blocks = [(0, 0), (0, 1), (0, 3), (1, 0), (2, 3), (len(copy.ends) - 1, len(copy.ends[-1]) - 1)]
    for number, (shard, block) in enumerate(blocks):
        size = int(np.diff(copy.ends[shard], prepend=0)[block]) - (copy.dataset.layout == "records")
        if not size:
            continue
        place = (0, size - 1, size // 2)[number % 3]
        flip(copy.dataset, shard, block, place)
        touch = np.array([at == shard and block in copy.touched(at, start, context) for at, start in rows])
        reader = WindowReader(copy.dataset, "train", context)
        np.testing.assert_array_equal(reader.read(windows.take(~touch)).numpy(), expected[~touch])
        begin = int(copy.dataset.split("train").shards[shard].blocks["offset"][block])
        named = f"{path(copy.dataset, shard)}: block {block} (bytes {begin:,} to {begin + size:,}) "
        starts = [windows.start[touch].min(), windows.start[touch].max()] if touch.any() else []
        for start in starts * 2:  # by one token of it alone; and again, for it is not forgotten
            with pytest.raises(DataError, match=re.escape(named)):
                reader.read(windows_at([shard], [start]))
        spared = windows.take(np.flatnonzero(~touch)[:50])
        np.testing.assert_array_equal(reader.read(spared).numpy(), expected[~touch][:50])
        with pytest.raises(DataError, match=re.escape(named)):
            reader.check(shard, blocks=True)
        for other in set(range(len(copy.streams))) - {shard}:
            reader.check(other, blocks=True)
        flip(copy.dataset, shard, block, place)


def test_a_block_is_compared_once_and_only_when_a_window_needs_it(
    truth: Truth, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def counting(data: memoryview) -> int:
        compared.append(len(data))
        return zlib.crc32(data)

    monkeypatch.setattr(module, "isal_zlib", SimpleNamespace(crc32=counting))
    reader = WindowReader(truth.dataset, "train", 24)
    assert not compared
    reader.read(windows_at([1, 1, 1], [5, 5, 9]))
    assert len(compared) == 1
    for _ in range(2):
        reader.read(truth.every_window(24))
    count = sum(len(ends) for ends, tokens in zip(truth.ends, truth.tokens, strict=True) if tokens >= 24)
    assert len(compared) == count
    MappedShards(truth.dataset, "train", "size").stream(0)
    assert len(compared) == count


def test_with_verify_size_nothing_but_the_size_is_looked_at(copy: Truth) -> None:
    for place in range(10):
        flip(copy.dataset, 1, 0, place)
    reader = WindowReader(copy.dataset, "train", 24, "size")
    assert reader.read(windows_at([1], [0]))[0].numpy().tobytes() != copy.streams[1][:24].tobytes()
    path(copy.dataset, 2).write_bytes(b"short")
    with pytest.raises(DataError, match=r"has 5 bytes, dataset\.json says"):
        reader.read(windows_at([2], [0]))


@pytest.mark.parametrize("change", [-1, -1024, -513, 1, 512, None])
def test_a_shard_of_another_size_is_refused_when_it_is_first_needed(copy: Truth, change: int | None) -> None:
    file = path(copy.dataset, 1)
    data = file.read_bytes()
    content = b"" if change is None else data[:change] if change < 0 else data + bytes(change)
    file.write_bytes(content)
    reader = WindowReader(copy.dataset, "train", 24)
    np.testing.assert_array_equal(reader.read(windows_at([0], [7]))[0].numpy(), copy.streams[0][7:31])
    for _ in range(2):
        with pytest.raises(
            DataError, match=re.escape(f"{file} has {len(content):,} bytes, dataset.json says {len(data):,}")
        ):
            reader.read(windows_at([0, 1], [7, 0]))
    for blocks in (False, True):
        reader.check(0, blocks)
        with pytest.raises(DataError, match=re.escape(f"{file} has {len(content):,} bytes")):
            reader.check(1, blocks)
    file.write_bytes(data)  # copied again
    np.testing.assert_array_equal(reader.read(windows_at([1], [0]))[0].numpy(), copy.streams[1][:24])


def test_a_missing_shard_is_named_when_it_is_first_needed(copy: Truth) -> None:
    file = path(copy.dataset, 1)
    file.unlink()
    reader = WindowReader(copy.dataset, "train", 24)
    reader.read(windows_at([0], [0]))
    missing = re.escape(f"{file} is missing; {copy.dataset.folder}/dataset.json lists it")
    with pytest.raises(DataError, match=missing):
        reader.read(windows_at([1], [0]))
    with pytest.raises(DataError, match=missing):
        MappedShards(copy.dataset, "train", "size").stream(1)
    file.mkdir()  # nor is a folder one
    with pytest.raises(DataError, match=re.escape(str(file))):
        reader.read(windows_at([1], [0]))


CHANGED = """
import os, sys
import numpy as np
from dnascale.data.order import Windows
from dnascale.data.read import WindowReader
from dnascale.data.shards import load_dataset
from dnascale.errors import DataError

zero, starts = np.zeros(300, dtype=np.int64), np.arange(300)
for folder in sys.argv[1:]:
    dataset = load_dataset(folder)
    path = dataset.folder / dataset.split("train").shards[0].name
    data = path.read_bytes()
    for verify in ("checksum", "size"):
        for size in (0, 1, len(data) - 4097, len(data) - 1, len(data) + 1, len(data) + 8192):
            reader = WindowReader(dataset, "train", 700, verify)
            first = reader.read(Windows(zero, zero, starts, starts))
            os.truncate(path, size)
            for _ in range(2):
                try:
                    reader.read(Windows(zero, zero, starts, starts))
                    print(verify, size, "was read")
                except DataError as error:
                    print("refused" if f"{path} was changed while it was being read" in str(error) else error)
            path.write_bytes(data)
"""


def test_a_file_that_is_cut_or_grows_after_it_was_opened_is_refused_and_kills_nobody(tmp_path: Path) -> None:
    """In a process of its own: access to a mapped page beyond a file's end is a SIGBUS."""
    folders = [str(make(tmp_path / layout, layout).dataset.folder) for layout in ("blocks", "records")]
    done = subprocess.run([sys.executable, "-c", CHANGED, *folders], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["refused"] * 48


# --- what is held ---


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """Twelve shards of a block."""
    stream = random_stream(1, 12 * BLOCK)
    return Truth(write_blocks(tmp_path_factory.mktemp("many"), stream, 1), cut(stream, 1), [[BLOCK]] * 12)


def test_more_shards_than_may_be_open_at_a_time_read_the_same(many: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_open_files", lambda: 3)
    reader = WindowReader(many.dataset, "train", 24)
    windows = many.every_window(24)
    expected = many.at(windows, 24)
    rng = np.random.default_rng(0)
    for _ in range(100):
        rows = rng.integers(0, len(windows), int(rng.integers(1, 6)))
        np.testing.assert_array_equal(reader.read(windows.take(rows)).numpy(), expected[rows])
        needed = {f"shard-{shard:06d}.tar" for shard in windows.shard[rows].tolist()}
        held = mapped_files(many.dataset.folder)
        assert len(held) <= 3
        assert needed <= held or len(needed) > 3
    for rows in (np.arange(len(windows)), np.flatnonzero(windows.shard > 7), np.arange(0)):
        np.testing.assert_array_equal(reader.read(windows.take(rows)).numpy(), expected[rows])
        assert len(mapped_files(many.dataset.folder)) <= 3
    for shard in (0, 1, 2, 0, 3):  # the one that was not used for longest goes
        reader.read(windows_at([shard], [0]))
    assert mapped_files(many.dataset.folder) == {f"shard-00000{shard}.tar" for shard in (0, 2, 3)}
    del reader
    shards = MappedShards(many.dataset, "train")
    streams = [shards.stream(number) for number in range(12)]
    assert len(mapped_files(many.dataset.folder)) <= 3
    np.testing.assert_array_equal(np.concatenate(streams), np.concatenate(many.streams))


def test_several_sources_of_more_shards_than_may_be_open_read_the_same(
    many: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_open_files", lambda: 2)
    other = make(tmp_path, "records")
    every = Truth(many.dataset, [*many.streams, *other.streams], [])
    windows = every.every_window(24)
    reader = WindowReader([many.dataset, other.dataset], "train", 24)
    np.testing.assert_array_equal(reader.read(windows).numpy(), every.at(windows, 24))
    assert len(mapped_files(many.dataset.folder)) <= 2
    assert len(mapped_files(tmp_path)) <= 2


def test_keep_closes_what_is_not_kept_and_what_was_read_stays(many: Truth, tmp_path: Path) -> None:
    other = make(tmp_path, "records")
    reader = WindowReader([many.dataset, other.dataset], "train", 24)
    windows = windows_at([0, 3, 5, 12, 13], [1, 2, 3, 4, 5])
    tokens = reader.read(windows)
    before = tokens.clone()
    of_many = {"shard-000000.tar", "shard-000003.tar", "shard-000005.tar"}
    assert mapped_files(many.dataset.folder) == of_many
    assert mapped_files(tmp_path) == {"others-0.tar", "others-1.tar"}
    reader.release()  # local files are no cache's
    assert mapped_files(many.dataset.folder) == of_many
    reader.keep(np.array([3, 4, 13]))
    assert mapped_files(many.dataset.folder) == {"shard-000003.tar"}
    assert mapped_files(tmp_path) == {"others-1.tar"}
    assert reader.read(windows).equal(before)
    reader.keep(np.array([], dtype=np.int64))
    assert not mapped_files(many.dataset.folder) | mapped_files(tmp_path)
    assert tokens.equal(before)
    assert reader.read(windows).equal(before)
    del reader
    assert not mapped_files(many.dataset.folder) | mapped_files(tmp_path)


#: Ways to hold a part of what was read, and nothing else of it.
HOLDERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda tokens: tokens,
    "row": lambda tokens: tokens[5],
    "stretch": lambda tokens: tokens.split(4)[1],
    "transposed": lambda tokens: tokens.view(-1)[::7],
    "numpy": lambda tokens: tokens.numpy()[3:6],
    "memoryview": lambda tokens: memoryview(tokens.numpy())[8:],
    "dlpack": lambda tokens: torch.from_dlpack(tokens)[2],
    "storage": lambda tokens: tokens.untyped_storage(),
    "reinterpreted": lambda tokens: tokens.view(torch.int64)[1],
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_whoever_holds_a_part_of_what_was_read_keeps_it_as_it_was(
    many: Truth, hold: Callable[[torch.Tensor], Any]
) -> None:
    reader = WindowReader(many.dataset, "train", 24)
    windows = many.every_window(24)
    rng = np.random.default_rng(0)
    held: list[tuple[Any, bytes]] = []
    for number in range(120):
        size = 500 if number % 3 else int(rng.integers(10, 1000))
        part = hold(reader.read(windows.take(rng.integers(0, len(windows), size))))
        if number % 4 == 0:
            held.append((part, content(part)))
        assert all(content(old) == was for old, was in held)
        held = held[-6:]  # and some are let go
        del part


def content(part: Any) -> bytes:
    if isinstance(part, torch.UntypedStorage):
        part = torch.empty(0, dtype=torch.uint8).set_(part)  # type: ignore[call-overload]
    return bytes(part) if isinstance(part, memoryview) else np.asarray(part).tobytes()


UNPICKLED = """
import hashlib, pickle, sys
from dataclasses import replace
from pathlib import Path

for reader, windows in pickle.loads(Path(sys.argv[1]).read_bytes()):
    print(hashlib.sha256(reader.read(windows).numpy()).hexdigest())
"""


def test_a_pickled_reader_reads_the_same_in_another_process(many: Truth, tmp_path: Path) -> None:
    layouts = [make(tmp_path / layout, layout).dataset for layout in ("blocks", "records", "records of ids")]
    readers = [WindowReader([dataset, many.dataset], "train", 24) for dataset in layouts] * 2
    windows = windows_at([0, 1, 4, 9], [3, 9, 5, 488])
    digests = []
    for number, reader in enumerate(readers):
        if number == 3:  # these have their files open
            before = pickle.dumps([(reader, windows) for reader in readers[:3]])
        digests.append(hashlib.sha256(reader.read(windows).numpy()).hexdigest())
    assert digests[:3] == digests[3:]
    content = pickle.dumps(pickle.loads(before) + [(reader, windows) for reader in readers[3:]])
    for reader, _ in pickle.loads(content):
        assert hashlib.sha256(reader.read(windows).numpy()).hexdigest() in digests
    (tmp_path / "readers").write_bytes(content)
    command = [sys.executable, "-c", UNPICKLED, str(tmp_path / "readers")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == digests


FEW_FILES = """
import resource, sys
import numpy as np
from dnascale.data.order import Windows
from dnascale.data.read import WindowReader
from dnascale.data.shards import load_dataset

resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
readers = [WindowReader(load_dataset(folder), "train", 64) for folder in sys.argv[2:]]
for reader in readers:
    shard = np.arange(len(reader.shard_tokens))
    for part in shard.reshape(int(sys.argv[1]), -1):
        reader.read(Windows(part, part, 0 * part, part))
"""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """400 shards."""
    return write_blocks(tmp_path_factory.mktemp("crowd"), random_stream(2, 400 * BLOCK), 1)


@pytest.mark.parametrize(("parts", "readers"), [(1, 1), (400, 10)])
def test_a_process_that_may_open_few_files_reads_many_shards(crowd: Dataset, parts: int, readers: int) -> None:
    command = [sys.executable, "-c", FEW_FILES, str(parts), *[str(crowd.folder)] * readers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- what changes under an open reader, and what an index may not say ---


def small(folder: Path) -> Dataset:
    with ShardWriter(folder, "train", 512, 4) as writer:
        writer.write(np.arange(1800, dtype=np.int64).astype(np.uint8) % 4)
        split = Split(1, 1799, 1800, 1799, 0, {}, writer.index())
    dataset = Dataset(folder, "small", "a test", CHARACTER, False, [], {}, {}, {}, {"train": split}, 512)
    dataset.save(folder)
    return load_dataset(folder)


@pytest.mark.parametrize("closed", [False, True])
def test_a_shard_overwritten_while_it_is_read_is_checked_anew(tmp_path: Path, closed: bool) -> None:
    shards = MappedShards(small(tmp_path), "train")
    right = shards.stream(0)
    path = tmp_path / "train" / "shard-000000.tar"
    os.utime(path, ns=(0, 0))  # touched, and nothing else
    np.testing.assert_array_equal(shards.stream(0), right)
    with path.open("r+b") as file:
        file.seek(block_offset(1, 512) + 7)
        file.write(b"\x05")
    if closed:  # as where a process may open fewer files than there are shards
        shards.keep([])
    os.utime(path, ns=(1, 1))  # so that its time differs however coarse the clock is
    with pytest.raises(DataError, match=r"block 1 \(bytes 1,536 to 2,048\) does not match its checksum"):
        shards.stream(0)


def test_a_copy_in_the_cache_that_is_damaged_is_fetched_anew_by_the_next_start(tmp_path: Path) -> None:
    small(tmp_path / "set")
    url, cache = (tmp_path / "set").as_uri(), tmp_path / "cache"
    right = MappedShards(load_dataset(url, cache), "train").stream(0)
    for name, sentence in (
        ("shard-000000.tar", "It is a copy, which the same command fetches again"),
        ("blocks.npy", None),
    ):
        (copy_,) = cache.rglob(f"*{name}")
        content = bytearray(copy_.read_bytes())
        content[block_offset(1, 512) + 7 if sentence else -1] ^= 1
        copy_.write_bytes(content)
        if sentence:
            with pytest.raises(DataError, match=sentence):
                MappedShards(load_dataset(url, cache), "train").stream(0)
        np.testing.assert_array_equal(MappedShards(load_dataset(url, cache), "train").stream(0), right)


@pytest.mark.parametrize(
    ("table", "field", "value"),
    [
        ("shards", "tokens", 1 << 40), ("shards", "tokens", 1700), ("blocks", "tokens", 1 << 30),
        ("blocks", "offset", 1 << 40), ("blocks", "offset", 0),
    ],
)  # fmt: skip
def test_an_index_that_says_what_cannot_be_is_refused_and_kills_nobody(
    tmp_path: Path, table: str, field: str, value: int
) -> None:
    dataset = small(tmp_path)
    index = dataset.split("train").shards
    rows = {"shards": index.shards.copy(), "blocks": index.blocks.copy()}
    rows[table][field][0] = value
    wrong = replace(dataset.split("train"), shards=Index(index.names, rows["shards"], rows["blocks"]))
    replace(dataset, splits={"train": wrong}).save(tmp_path)
    shards = MappedShards(load_dataset(tmp_path), "train", verify="size")
    with pytest.raises(DataError, match=r"says what cannot be of train/shard-000000\.tar"):
        shards.locate(np.array([0]), np.array([1000]), 100)
