"""Batches: the tokens at their addresses, and the same global batches for every number of ranks."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from dnascale.data.order import Windows
from dnascale.data.shards import Dataset, ShardWriter, Split
from dnascale.data.stream import Batch, TrainStream, WindowReader, covering_windows
from dnascale.errors import DataError
from dnascale.vocab import CHARACTER

BLOCK = 512
CONTEXT = 24
GLOBAL = 96  # windows of a global batch: divisible by every world size and accumulation below
Row = tuple[int, int, int, int, bytes]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two full shards of two blocks and a short one, random tokens."""
    folder = tmp_path_factory.mktemp("stream")
    writer = ShardWriter(folder, "train", block_tokens=BLOCK, shard_blocks=2)
    stream = np.random.default_rng(0).integers(0, 4, 2 * 2 * BLOCK + 333, dtype=np.uint8)
    while len(stream):
        piece, stream = stream[: writer.room], stream[writer.room :]
        writer.write(piece)
    split = Split(1, 2381, 2381, 2381, 0, {}, writer.close())
    return Dataset(folder, "", "", CHARACTER, False, [], {}, {}, {}, {"train": split}, block_tokens=BLOCK)


@pytest.fixture(scope="module")
def reader(dataset: Dataset) -> WindowReader:
    return WindowReader(dataset, "train", CONTEXT)


def shard_streams(dataset: Dataset) -> list[bytes]:
    """The tokens of each shard, by Python's tarfile."""
    streams = []
    for shard in dataset.split("train").shards:
        with tarfile.open(dataset.folder / shard.name) as tar:
            streams.append(b"".join(tar.extractfile(member).read() for member in tar.getmembers()))  # type: ignore[union-attr]
    return streams


def rows(batch: Batch) -> list[Row]:
    w = batch.windows
    columns = (w.epoch.tolist(), w.shard.tolist(), w.start.tolist(), w.key.tolist())
    return [(*address, tokens.tobytes()) for *address, tokens in zip(*columns, batch.tokens, strict=True)]


def steps(
    reader: WindowReader, world: int, accumulation: int, count: int, epoch: int = 0, position: int = 0
) -> list[list[list[list[Row]]]]:
    """What each rank gets: [step][micro-batch][rank] -> rows."""
    streams = [TrainStream(reader, 7, GLOBAL, accumulation, rank, world, epoch, position) for rank in range(world)]
    out = []
    for _ in range(count):
        per_rank = [[rows(batch) for batch in stream.next_step()] for stream in streams]
        out.append([list(of_micro) for of_micro in zip(*per_rank, strict=True)])
        assert len({(stream.epoch, stream.position) for stream in streams}) == 1
    return out


def test_a_batch_holds_the_tokens_at_its_addresses_in_its_order(dataset: Dataset, reader: WindowReader) -> None:
    truth = shard_streams(dataset)
    (batch,) = TrainStream(reader, 0, 500, 1, 0, 1).next_step()
    assert batch.tokens.dtype == np.uint8
    assert batch.tokens.shape == (500, CONTEXT)
    crossing = 0
    for _, shard, start, _, tokens in rows(batch):
        assert tokens == truth[shard][start : start + CONTEXT]
        crossing += start % BLOCK > BLOCK - CONTEXT
    assert crossing > 0  # some windows lie over a tar header


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_global_batches_are_the_same_for_every_world_size_and_accumulation(
    reader: WindowReader, world: int, accumulation: int
) -> None:
    alone = steps(reader, 1, 1, 5)
    shared = steps(reader, world, accumulation, 5)
    for ((whole,),), of_step in zip(alone, shared, strict=True):
        parts = [part for micro in of_step for part in micro]
        assert {len(part) for part in parts} == {GLOBAL // (world * accumulation)}
        assert [row for part in parts for row in part] == whole  # nothing twice, nothing lost, the same order
        assert len({row[:3] for row in whole}) == GLOBAL
    assert alone[-1][0][0][0][0] > 0  # an epoch was crossed


def test_a_stream_started_at_a_saved_position_continues_with_the_same_rows(reader: WindowReader) -> None:
    stream = TrainStream(reader, 7, GLOBAL, 1, 0, 1)
    whole = steps(reader, 2, 2, 6)
    for done in range(6):
        assert steps(reader, 2, 2, 6 - done, stream.epoch, stream.position) == whole[done:]
        list(stream.next_step())


def test_another_seed_gives_another_order(reader: WindowReader) -> None:
    one, other = (rows(next(iter(TrainStream(reader, seed, GLOBAL, 1, 0, 1).next_step()))) for seed in (0, 1))
    assert [row[1:3] for row in one] != [row[1:3] for row in other]
    assert not {row[3] for row in one} & {row[3] for row in other}  # nor are the same bases hidden


def test_a_whole_epoch_of_steps_shows_every_window_once(reader: WindowReader) -> None:
    seen = [row for step in steps(reader, 2, 1, 4) for micro in step for part in micro for row in part]
    first_epoch = [row[1:3] for row in seen if row[0] == 0]
    assert len(set(first_epoch)) == len(first_epoch)
    for shard, tokens in enumerate(reader.shard_tokens.tolist()):
        starts = sorted(start for index, start in first_epoch if index == shard)
        assert starts == list(range(starts[0], tokens - CONTEXT + 1, CONTEXT))
        assert starts[0] < CONTEXT


@pytest.mark.parametrize("sizes", [[100, 24, 23, 48, 1, 0, 49], [24], [25], [1000]])
def test_covering_windows_count_every_token_of_a_shard_that_holds_a_window_once(sizes: list[int]) -> None:
    windows, first = covering_windows(np.array(sizes), CONTEXT)
    counted = [np.zeros(size, dtype=int) for size in sizes]
    for shard, start, begin in zip(windows.shard.tolist(), windows.start.tolist(), first.tolist(), strict=True):
        assert 0 <= start <= sizes[shard] - CONTEXT
        assert 0 <= begin < CONTEXT
        counted[shard][start + begin : start + CONTEXT] += 1
    for size, counts in zip(sizes, counted, strict=True):
        assert (counts == (size >= CONTEXT)).all()
    assert len(set(windows.key.tolist())) == len(windows)


def test_a_context_longer_than_every_shard_is_refused(dataset: Dataset) -> None:
    longest = 2 * BLOCK
    assert WindowReader(dataset, "train", longest).context == longest
    with pytest.raises(DataError, match=r"fewer than one window of 1,025: use a smaller model\.context"):
        WindowReader(dataset, "train", longest + 1)


def test_a_missing_shard_is_refused_before_the_first_batch(dataset: Dataset, tmp_path: Path) -> None:
    elsewhere = Dataset(tmp_path, "", "", CHARACTER, False, [], {}, {}, {}, dataset.splits, block_tokens=BLOCK)
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing"):
        WindowReader(elsewhere, "train", CONTEXT)


def test_no_windows_read_as_an_empty_batch(reader: WindowReader) -> None:
    none = np.array([], dtype=np.int64)
    assert reader.read(Windows(none, none, none, none)).tokens.shape == (0, CONTEXT)
