"""Batches: the tokens at their addresses, and the same global batches however they are dealt out and read."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import pickle
import random
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mapped import BLOCK, cut, random_records, random_stream, stream_of_records, write_blocks, write_records

from dnascale.data import stream as module
from dnascale.data.order import Mixture, Order, Windows
from dnascale.data.read import WindowReader, covering_windows
from dnascale.data.shards import Dataset
from dnascale.data.stream import Batch, Dealing, TrainStream
from dnascale.errors import DataError

CONTEXT = 24
GLOBAL = 96  # windows of a global batch: divisible by every world size and accumulation below
SEED = 7


# --- the data ---


@dataclass
class Data:
    """Data sets and the streams of all their shards, one after the other."""

    datasets: list[Dataset]
    streams: list[np.ndarray]
    first_shard: list[int]  # of each data set, and where the last ends

    @property
    def folders(self) -> list[Path]:
        return [dataset.folder for dataset in self.datasets]

    def shards(self, source: int) -> range:
        return range(*self.first_shard[source : source + 2])


def join(*parts: tuple[Dataset, list[np.ndarray]]) -> Data:
    first_shard = np.cumsum([0] + [len(streams) for _, streams in parts]).tolist()
    return Data([dataset for dataset, _ in parts], [s for _, streams in parts for s in streams], first_shard)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Of layout `blocks`: two full shards of four blocks (84 windows each) and a short one (13)."""
    stream = random_stream(0, 2 * 4 * BLOCK + 333)
    return join((write_blocks(tmp_path_factory.mktemp("stream") / "one", stream, 4), cut(stream, 4)))


@pytest.fixture(scope="module")
def three(one: Data, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """A mixture of the same, of tars that others wrote (shards large, small and too small), and of a tiny one."""
    lengths = [[*[30, 0, 900, 24, 1500, 7] * 3, 13], [23, 23], [1, 2, 3], [200]]
    records = [random_records(number, of_shard) for number, of_shard in enumerate(lengths)]
    folder = tmp_path_factory.mktemp("stream")
    others = write_records(folder / "others", records), [stream_of_records(of_shard) for of_shard in records]
    tiny = random_stream(3, 700)
    return join((one.datasets[0], one.streams), others, (write_blocks(folder / "tiny", tiny, 1), cut(tiny, 1)))


def windows_of_an_epoch(tokens: int) -> int:
    """That a shard of so many tokens holds, by the documented rule."""
    return (tokens if tokens < 64 * CONTEXT else tokens - CONTEXT + 1) // CONTEXT


# --- what ranks get ---

Address = tuple[int, int, int, int]


@dataclass
class Step:
    """A global batch, put together from what the ranks got: addresses int64 [n, 4] and tokens uint8 [n, context]."""

    address: np.ndarray
    tokens: np.ndarray

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Step)
        return np.array_equal(self.address, other.address) and np.array_equal(self.tokens, other.tokens)


def address_of(windows: Windows) -> np.ndarray:
    return np.stack([windows.epoch, windows.shard, windows.start, windows.key], axis=1)


def dealt_back(of_ranks: Sequence[Batch]) -> Step:
    """Row p of the global micro-batch is row p // R of what rank p % R got."""
    (each,) = {len(batch.tokens) for batch in of_ranks}
    address = np.stack([address_of(batch.windows) for batch in of_ranks], axis=1)
    tokens = np.stack([batch.tokens.numpy() for batch in of_ranks], axis=1)
    assert address.shape == (each, len(of_ranks), 4)
    return Step(address.reshape(-1, 4), tokens.reshape(-1, tokens.shape[-1]))


def together(micro_batches: Sequence[Step]) -> Step:
    return Step(np.concatenate([m.address for m in micro_batches]), np.concatenate([m.tokens for m in micro_batches]))


def streams_of(
    data: Data,
    world: int = 1,
    accumulation: int = 1,
    workers: int = 0,
    position: int = 0,
    mixture: Mixture | None = None,
    global_windows: int = GLOBAL,
    lanes: int | None = None,
    reader: WindowReader | None = None,
) -> list[TrainStream]:
    """One for each rank."""
    reader = reader or WindowReader(data.datasets, "train", CONTEXT)
    order = Order(reader.grids(), SEED, mixture, lanes, lane_windows=16)
    dealings = [Dealing(global_windows, accumulation, rank, world) for rank in range(world)]
    return [TrainStream(reader, order, dealing, position, workers) for dealing in dealings]


def next_global(streams: Sequence[TrainStream]) -> Step:
    """The next global batch of all ranks."""
    steps = [stream.next_step() for stream in streams]
    assert {len(step) for step in steps} == {streams[0].dealing.accumulation}
    assert len({stream.position for stream in streams}) == 1
    return together([dealt_back(of_ranks) for of_ranks in zip(*steps, strict=True)])


def digest(steps: Sequence[Step]) -> str:
    total = hashlib.sha256()
    for step in steps:
        total.update(np.ascontiguousarray(step.address))
        total.update(np.ascontiguousarray(step.tokens))
    return total.hexdigest()


def check_tokens(data: Data, step: Step) -> None:
    for (_, shard, start, _), tokens in zip(step.address.tolist(), step.tokens, strict=True):
        assert tokens.tobytes() == data.streams[shard][start : start + CONTEXT].tobytes()


EPOCH = 84 + 84 + 13  # windows of an epoch of `one`: no multiple of GLOBAL
TWO_EPOCHS = -(-2 * EPOCH // GLOBAL)  # steps


@pytest.fixture(scope="module")
def alone(one: Data) -> list[Step]:
    """The first eight epochs on one rank, in one go."""
    streams = streams_of(one)
    return [next_global(streams) for _ in range(4 * TWO_EPOCHS)]


# --- one order ---


def test_a_batch_holds_the_tokens_at_its_addresses_and_these_are_the_order(one: Data, alone: list[Step]) -> None:
    (stream,) = streams_of(one)
    order = stream.order.windows(np.arange(len(alone) * GLOBAL))
    np.testing.assert_array_equal(np.concatenate([step.address for step in alone]), address_of(order))
    for step in alone:
        check_tokens(one, step)
    starts = np.concatenate([step.address[:, 2] for step in alone])
    assert (starts % BLOCK > BLOCK - CONTEXT).any()  # some windows lie over a tar header
    (batch,) = stream.next_step()
    assert (batch.tokens.dtype, batch.tokens.shape) == (torch.uint8, (GLOBAL, CONTEXT))
    assert (batch.keys.dtype, batch.keys.tolist()) == (torch.int64, alone[0].address[:, 3].tolist())


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_global_batches_are_the_same_for_every_world_size_and_accumulation(
    one: Data, alone: list[Step], world: int, accumulation: int
) -> None:
    streams = streams_of(one, world, accumulation)
    assert digest([next_global(streams) for _ in range(TWO_EPOCHS)]) == digest(alone[:TWO_EPOCHS])
    assert streams[0].epoch == 2


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("world", "accumulation", "workers"), [(1, 1, 1), (2, 1, 2), (1, 2, 3), (3, 2, 1), (1, 1, 4)])
def test_worker_processes_change_nothing(
    one: Data, alone: list[Step], world: int, accumulation: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 2 * GLOBAL * CONTEXT // world)  # many chunks
    streams = streams_of(one, world, accumulation, workers)
    assert digest([next_global(streams) for _ in range(TWO_EPOCHS)]) == digest(alone[:TWO_EPOCHS])


@pytest.mark.parametrize(("chunk_tokens", "chunk_windows"), [(1, 1), (1, 700), (3 * GLOBAL * CONTEXT, 5 * GLOBAL)])
def test_how_many_windows_are_gathered_at_a_time_changes_nothing(
    one: Data, alone: list[Step], chunk_tokens: int, chunk_windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_TOKENS", chunk_tokens)
    monkeypatch.setattr(module, "_CHUNK_WINDOWS", chunk_windows)
    for world, accumulation in ((1, 1), (2, 2)):
        streams = streams_of(one, world, accumulation)
        assert digest([next_global(streams) for _ in alone]) == digest(alone)


@pytest.mark.parametrize("lanes", [1, 4, 5])
def test_lanes_are_an_order_of_their_own_and_the_same_for_every_world_size(
    one: Data, alone: list[Step], lanes: int
) -> None:
    digests = set()
    for world, accumulation in ((1, 1), (4, 1), (3, 2)):
        streams = streams_of(one, world, accumulation, lanes=lanes)
        steps = [next_global(streams) for _ in range(TWO_EPOCHS)]
        digests.add(digest(steps))
        for step in steps:
            check_tokens(one, step)
    assert len(digests) == 1
    assert digest(alone[:TWO_EPOCHS]) not in digests


def test_a_mixture_is_the_same_for_every_world_size_and_holds_the_right_tokens(three: Data) -> None:
    mixture = Mixture([5, 3, 2])
    digests = set()
    for world, accumulation, workers in ((1, 1, 0), (8, 2, 0), (3, 1, 0), (2, 2, 1)):
        streams = streams_of(three, world, accumulation, workers, mixture=mixture)
        steps = [next_global(streams) for _ in range(10)]
        digests.add(digest(steps))
        for step in steps:
            check_tokens(three, step)
            assert set(step.address[:, 1].tolist()) <= set(range(7)) | {7, 8, 9}
    assert len(digests) == 1


def test_another_seed_gives_another_order_and_hides_other_bases(one: Data) -> None:
    zero, again, other = (TrainStream.open(one.folders[0], CONTEXT, GLOBAL, seed=seed) for seed in (0, 0, 1))
    first, second, third = (next_global([stream]) for stream in (zero, again, other))
    assert first == second
    assert first.address[:, 1:3].tolist() != third.address[:, 1:3].tolist()
    assert not set(first.address[:, 3].tolist()) & set(third.address[:, 3].tolist())


START_METHOD = """
import sys
import torch
from dnascale.data.stream import TrainStream

if __name__ == "__main__":
    folder, method, steps = sys.argv[1:]
    torch.multiprocessing.set_start_method(method)
    stream = TrainStream.open(folder, 24, 96, seed=7, workers=1)
    for _ in range(int(steps)):
        (batch,) = stream.next_step()
        print(batch.windows.key.tobytes().hex(), batch.tokens.numpy().tobytes().hex())
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_change_nothing(one: Data, alone: list[Step], tmp_path: Path, method: str) -> None:
    (tmp_path / "script.py").write_text(START_METHOD)
    command = [sys.executable, str(tmp_path / "script.py"), str(one.folders[0]), method, "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [f"{step.address[:, 3].tobytes().hex()} {step.tokens.tobytes().hex()}" for step in alone[:6]]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("dealing", [(96, 1, 0, 5), (96, 64, 0, 1), (10, 2, 0, 2)])
def test_a_global_batch_that_does_not_divide_is_refused(dealing: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="windows do not divide by"):
        Dealing(*dealing)


# --- going on ---


def test_fifty_stops_at_random_places_and_other_ranks_change_no_global_batch(one: Data, alone: list[Step]) -> None:
    """Each time with another world size, accumulation and number of workers; some stops cut a step in two."""
    rng = random.Random(1)
    done: list[Step] = []
    stops = 0
    state = streams_of(one)[0].state_dict()
    while stops < 50:
        if len(done) >= len(alone) - 4:
            done, state = [], streams_of(one)[0].state_dict()
        world, accumulation = rng.choice([1, 2, 3, 4, 8]), rng.choice([1, 2])
        workers = rng.choice([1, 2]) if world == 1 and rng.random() < 0.3 else 0
        streams = streams_of(one, world, accumulation, workers, position=rng.randrange(1000))
        for stream in streams:
            stream.load_state_dict(json.loads(json.dumps(state)))
        count = rng.randint(0, 4)
        if rng.random() < 0.5:
            done += [next_global(streams) for _ in range(count)]
        else:
            micro_batches = [dealt_back(part) for part in zip(*(islice(s, count) for s in streams), strict=True)]
            whole = len(micro_batches) // accumulation
            done += [together(micro_batches[i * accumulation :][:accumulation]) for i in range(whole)]
        (state,) = {json.dumps(stream.state_dict()): stream.state_dict() for stream in streams}.values()
        assert state["position"] == len(done) * GLOBAL
        assert digest(done) == digest(alone[: len(done)])
        stops += 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_may_be_set_anywhere_also_while_more_is_read_ahead(
    one: Data, alone: list[Step], workers: int
) -> None:
    (stream,) = streams_of(one, workers=workers)
    for step in (3, 0, 11, 1, 1, 12) if not workers else (3, 1):
        stream.position = step * GLOBAL
        assert stream.position == step * GLOBAL
        assert [next_global([stream]) for _ in range(3)] == alone[step : step + 3]
    stream.position = 40  # not where a global batch began
    windows = stream.next_step()[0].windows
    np.testing.assert_array_equal(stream.order.positions(windows), np.arange(40, 40 + GLOBAL))


def test_the_state_in_the_middle_of_an_accumulation_is_that_of_the_last_whole_step(one: Data) -> None:
    (stream,) = streams_of(one, accumulation=4)
    for number, _ in enumerate(stream, start=1):
        assert stream.state_dict()["position"] == stream.position == number // 4 * GLOBAL
        assert stream.epoch == stream.position // EPOCH
    assert stream.position > EPOCH > stream.position - GLOBAL


def test_a_loop_left_in_the_middle_of_an_accumulation_goes_on_where_the_state_says(
    one: Data, alone: list[Step]
) -> None:
    (stream,) = streams_of(one, accumulation=2)
    for number, _ in enumerate(stream):
        if number == 2:
            break
    assert stream.position == GLOBAL
    micro_batches = [dealt_back([batch]) for batch in islice(stream, 2)]
    assert stream.position == 2 * GLOBAL
    assert together(micro_batches) == alone[1]


OTHERS: dict[str, Any] = {
    "seed": {"seed": 1},
    "context": {"context": 25},
    "lanes": {"lanes": 2},
    "lane windows": {"lanes": 4, "lane_windows": 8},
    "no lanes": {"lanes": None},
    "data": {"data": 1},
    "more data": {"data": (0, 1)},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_order_is_refused_in_a_sentence(three: Data, change: dict[str, Any]) -> None:
    def opened(data: int | tuple[int, ...] = 0, context: int = CONTEXT, **more: Any) -> TrainStream:
        places: Any = three.folders[data] if isinstance(data, int) else three.folders[:2]
        return TrainStream.open(places, context, GLOBAL, **({"lanes": 4} | more))

    state = opened().state_dict()
    opened().load_state_dict(state)
    with pytest.raises(DataError, match=r"^this state of the data was saved with other data[^\n]+\.$"):
        opened(**change).load_state_dict(state)


def test_a_state_of_another_split_is_refused(one: Data) -> None:
    (dataset,) = one.datasets
    both = replace(dataset, splits=dataset.splits | {"valid": dataset.split("train")})
    train, valid = (
        TrainStream(reader, Order(reader.grids(), SEED), Dealing(GLOBAL))
        for reader in (WindowReader(both, split, CONTEXT) for split in ("train", "valid"))
    )
    assert next_global([train]) == next_global([valid])
    with pytest.raises(DataError, match="was saved with other data"):
        valid.load_state_dict(train.state_dict())


def test_a_state_of_another_mixture_is_refused_and_one_of_equal_weights_is_not(three: Data) -> None:
    def opened(places: list[Path], weights: list[float] | None) -> TrainStream:
        return TrainStream.open(places, CONTEXT, GLOBAL, weights=weights)

    state = opened(three.folders[:2], [1, 3]).state_dict()
    opened(three.folders[:2], [0.25, 0.75]).load_state_dict(state)
    for places, weights in ((three.folders[:2], [3.0, 1]), (three.folders[:2], None), (three.folders[1::-1], [1, 3])):
        with pytest.raises(DataError, match="was saved with other data"):
            opened(places, weights).load_state_dict(state)


# --- every base once an epoch ---


def check_epoch(data: Data, source: int, address: np.ndarray) -> None:
    """The windows of a whole epoch of a source show each base once, but for the ends of each shard."""
    first = data.first_shard[source]
    for shard in data.shards(source):
        size = len(data.streams[shard])
        seen = np.zeros(size, dtype=int)
        starts = address[address[:, 1] == shard][:, 2].tolist()
        for start in starts:
            assert 0 <= start <= size - CONTEXT
            seen[start : start + CONTEXT] += 1
        assert len(starts) == windows_of_an_epoch(size), (source, shard - first)
        assert seen.sum() == len(starts) * CONTEXT
        if starts:
            phase = int(np.argmax(seen))
            assert (seen[phase : phase + len(starts) * CONTEXT] == 1).all()  # so nothing twice
            assert size - seen.sum() < 2 * CONTEXT
    assert len(set(address[:, 3].tolist())) == len(address)


def by_epoch(address: np.ndarray) -> dict[int, np.ndarray]:
    return {epoch: address[address[:, 0] == epoch] for epoch in sorted(set(address[:, 0].tolist()))}


@pytest.mark.parametrize("lanes", [None, 3])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (4, 2)])
def test_an_epoch_shows_every_base_once_but_for_the_ends_of_shards(
    one: Data, world: int, accumulation: int, lanes: int | None
) -> None:
    streams = streams_of(one, world, accumulation, lanes=lanes)
    assert streams[0].order.epoch_windows == EPOCH == sum(windows_of_an_epoch(len(stream)) for stream in one.streams)
    steps = [next_global(streams) for _ in range(2 * TWO_EPOCHS)]
    address = np.concatenate([step.address for step in steps])
    assert (np.diff(address[:, 0]) >= 0).all()  # epoch after epoch
    epochs = by_epoch(address)
    for epoch in range(4):
        check_epoch(one, 0, epochs[epoch])
    assert len({tuple(sorted(of_epoch[:, 2].tolist())) for of_epoch in epochs.values()}) > 3  # not on the same grid
    keys = [set(of_epoch[:, 3].tolist()) for of_epoch in epochs.values()]
    assert len(set().union(*keys)) == sum(map(len, keys))  # and with other bases hidden


@pytest.mark.parametrize("lanes", [None, 2])
@pytest.mark.parametrize("weights", [[5, 3, 2], [0.9, 0.0999, 0.0001]])
def test_in_a_mixture_every_source_has_exact_epochs_of_its_own_and_its_share_is_exact_everywhere(
    three: Data, weights: list[float], lanes: int | None
) -> None:
    streams = streams_of(three, 2, 1, mixture=Mixture(weights), global_windows=3000, lanes=lanes)
    steps = [next_global(streams) for _ in range(9)]
    assert streams[0].order.epoch_windows == sum(windows_of_an_epoch(len(stream)) for stream in three.streams)
    address = np.concatenate([step.address for step in steps])
    source = np.searchsorted(three.first_shard, address[:, 1], side="right") - 1
    for number, weight in enumerate(weights):
        within = np.concatenate([[0], np.cumsum(source == number)])
        assert set((within[10_000:] - within[:-10_000]).tolist()) == {round(weight / sum(weights) * 10_000)}
        mine = address[source == number]
        assert (np.diff(mine[:, 0]) >= 0).all()
        epochs = by_epoch(mine)
        assert list(epochs) == list(range(len(epochs)))
        for epoch in islice(epochs, len(epochs) - 1):  # all but the last are whole
            check_epoch(three, number, epochs[epoch])
        assert len(epochs) > 5 or weight < 0.01
    windows = Counter(source.tolist())
    for begin in range(0, len(source), 100):  # spread out, and not one source after the other
        for number in range(len(weights)):
            here = (source[begin : begin + 100] == number).sum()
            assert abs(here - 100 * windows[number] / len(source)) <= 2


# --- as an iterable ---


@pytest.mark.parametrize("global_windows", [1, 48, 61, 96, 122, EPOCH])
@pytest.mark.parametrize("set_epoch", [False, True])
def test_five_epochs_of_iterating_lose_and_repeat_nothing_and_give_all_ranks_as_many(
    one: Data, global_windows: int, set_epoch: bool
) -> None:
    world = 2 if global_windows % 2 == 0 else 1
    accumulation = 3 if global_windows % (3 * world) == 0 else 1
    streams = streams_of(one, world, accumulation, global_windows=global_windows)
    whole: list[Step] = []
    for epoch in range(5):
        if set_epoch:
            for stream in streams:
                stream.set_epoch(epoch)
        assert {stream.epoch for stream in streams} == {epoch}
        announced = {len(stream) for stream in streams}
        of_ranks = [list(stream) for stream in streams]
        assert {len(batches) for batches in of_ranks} == announced
        begun = range(-(-epoch * EPOCH // global_windows), -(-(epoch + 1) * EPOCH // global_windows))
        assert announced == {len(begun) * accumulation}
        assert begun[0] * global_windows // EPOCH == begun[-1] * global_windows // EPOCH == epoch
        whole += [dealt_back(part) for part in zip(*of_ranks, strict=True)]
    (stream,) = streams_of(one, global_windows=global_windows)
    expected = [next_global([stream]) for _ in range(-(-5 * EPOCH // global_windows))]
    assert digest([together(whole)]) == digest([together(expected)])
    positions = stream.order.positions(Windows(*together(whole).address.T))
    np.testing.assert_array_equal(positions, np.arange(len(positions)))


def test_iterating_from_the_middle_gives_the_rest_of_the_epoch(one: Data, alone: list[Step]) -> None:
    for done in range(5):
        (stream,) = streams_of(one, accumulation=2)
        for _ in range(done):
            stream.next_step()
        epoch, length = stream.epoch, len(stream)
        rest = list(stream)
        until = -(-(epoch + 1) * EPOCH // GLOBAL)
        assert together([dealt_back([batch]) for batch in rest]) == together(alone[done:until])
        assert length == 2 * (until - -(-epoch * EPOCH // GLOBAL))  # of the whole epoch
        assert stream.position == until * GLOBAL
        assert next_global([stream]) == alone[until]  # and next_step goes on


def test_a_stream_that_is_moved_while_it_is_iterated_goes_on_from_there(one: Data, alone: list[Step]) -> None:
    (stream,) = streams_of(one, accumulation=2)
    seen = []
    for batch in stream:
        seen.append(dealt_back([batch]))
        if len(seen) == 1:
            stream.position = GLOBAL
    assert together(seen[2:]) == alone[1]
    assert stream.position == 2 * GLOBAL


def test_epochs_smaller_than_a_global_batch_are_no_epochs_and_the_steps_run_on_over_them(one: Data) -> None:
    (stream,) = streams_of(one, global_windows=EPOCH + 1)
    uses: list[Callable[[], object]] = [lambda: len(stream), lambda: next(iter(stream)), lambda: stream.set_epoch(1)]
    for use in uses:
        with pytest.raises(DataError, match=r"^an epoch has 181 windows, fewer than a global batch of 182: [^\n]+\.$"):
            use()
    steps = [next_global([stream]) for _ in range(5)]
    order = stream.order.windows(np.arange(5 * (EPOCH + 1)))
    np.testing.assert_array_equal(together(steps).address, address_of(order))


# --- memory, processes, faults ---


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_stays_what_it_was_while_the_stream_goes_on(
    one: Data, alone: list[Step], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_TOKENS", 2 * GLOBAL * CONTEXT)
    (stream,) = streams_of(one, workers=workers)
    held = [stream.next_step()[0] for _ in range(12)][::3]
    for _ in range(12):
        stream.next_step()
    stream.position = 0
    stream.next_step()
    stream.reader.keep(np.array([], dtype=np.int64))
    for number, batch in enumerate(held):
        assert dealt_back([batch]) == alone[3 * number]
        assert batch.keys.tolist() == alone[3 * number].address[:, 3].tolist()


def test_writing_into_a_batch_changes_neither_the_data_nor_other_batches(one: Data, alone: list[Step]) -> None:
    (stream,) = streams_of(one, accumulation=2)
    for step in alone[:8]:
        left, right = stream.next_step()
        left.tokens.fill_(99)
        np.testing.assert_array_equal(right.tokens.numpy(), step.tokens[GLOBAL // 2 :])
    stream.position = 0
    assert next_global([stream]) == alone[0]


OTHER_PROCESS = """
import pickle, sys
from pathlib import Path

for stream in pickle.loads(Path(sys.argv[1]).read_bytes()):
    for _ in range(2):
        (batch,) = stream.next_step()
        print(batch.windows.key.tobytes().hex(), batch.tokens.numpy().tobytes().hex())
"""


def test_a_pickled_stream_goes_on_in_another_process(one: Data, alone: list[Step], tmp_path: Path) -> None:
    reader = WindowReader(one.datasets, "train", CONTEXT)
    (fresh,), (later,) = streams_of(one), streams_of(one, position=4 * GLOBAL, reader=reader)
    next_global(streams_of(one, reader=reader))  # its files are open
    (tmp_path / "streams").write_bytes(pickle.dumps([fresh, later]))
    command = [sys.executable, "-c", OTHER_PROCESS, str(tmp_path / "streams")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = [alone[number] for number in (0, 1, 4, 5)]
    assert done.stdout.split() == [part.tobytes().hex() for step in steps for part in (step.address[:, 3], step.tokens)]


def test_a_stream_that_has_begun_can_be_pickled(one: Data, alone: list[Step]) -> None:
    (stream,) = streams_of(one)
    stream.next_step()
    assert next_global([pickle.loads(pickle.dumps(stream))]) == alone[1]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The first steps touch a damaged block."""
    dataset = write_blocks(tmp_path_factory.mktemp("stream") / "damaged", random_stream(0, 4 * BLOCK))
    path = dataset.folder / dataset.split("train").shards[1].name
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    return dataset


@pytest.fixture(scope="module", params=[0, 1])
def said(damaged: Dataset, request: pytest.FixtureRequest) -> str:
    """What is said of it, with and without a worker process."""
    stream = TrainStream.open(damaged.folder, CONTEXT, 72, workers=request.param)
    with pytest.raises(DataError) as caught:
        stream.next_step()
    assert stream.position == 0
    return str(caught.value)


def test_a_damaged_block_stops_the_stream_and_is_named(said: str) -> None:
    assert "shard-000001.tar: block 0 (bytes 512 to 1,024) does not match its checksum" in said


def test_an_error_of_the_data_is_one_line_wherever_it_was_found(said: str) -> None:
    assert "\n" not in said


def test_a_stream_that_met_a_damaged_block_stays_before_it_and_goes_on_once_it_is_right(tmp_path: Path) -> None:
    dataset = write_blocks(tmp_path / "damaged", random_stream(0, 16 * BLOCK))
    sound = TrainStream.open(dataset.folder, CONTEXT, 4)
    expected = [next_global([sound]) for _ in range(80)]
    touches = [bool(((s.address[:, 1] == 1) & (s.address[:, 2] < BLOCK)).any()) for s in expected]
    path = dataset.folder / dataset.split("train").shards[1].name
    good = path.read_bytes()
    path.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    stream = TrainStream.open(dataset.folder, CONTEXT, 4)
    steps: list[Step] = []
    refused = 0
    while refused < 20:
        try:
            steps.append(next_global([stream]))
        except DataError:
            refused += 1
        assert stream.position == 4 * len(steps)
    assert len(steps) == touches.index(True) > 1  # all before it, though many are gathered at a time
    with pytest.raises(DataError, match="does not match its checksum"):
        list(stream)
    path.write_bytes(good)
    steps += [next_global([stream]) for _ in expected[len(steps) :]]
    assert digest(steps) == digest(expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_random_numbers_of_training_are_left_alone(one: Data, workers: int) -> None:
    (stream,) = streams_of(one, workers=workers)
    before = torch.get_rng_state()
    stream.next_step()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_is_let_go_is_gone_and_its_workers_with_it(one: Data, workers: int) -> None:
    (stream,) = streams_of(one, workers=workers)
    stream.next_step()
    there = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert there() is None
        assert not multiprocessing.active_children()
    finally:
        gc.enable()
        gc.collect()


def test_a_context_longer_than_every_shard_is_refused(one: Data) -> None:
    longest = 4 * BLOCK
    assert WindowReader(one.datasets, "train", longest).context == longest
    with pytest.raises(DataError, match=r"fewer than one window of 2,049: use a smaller model\.context"):
        WindowReader(one.datasets, "train", longest + 1)


def test_a_missing_shard_is_refused_before_the_first_batch(one: Data, tmp_path: Path) -> None:
    streams = streams_of(replace(one, datasets=[replace(one.datasets[0], folder=tmp_path)]))
    with pytest.raises(DataError, match=r"shard-000000\.tar is missing"):
        next_global(streams)


# --- evaluation ---


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


def test_covering_windows_of_several_sources_read_back_as_their_streams(three: Data) -> None:
    reader = WindowReader(three.datasets, "train", CONTEXT)
    windows, first = covering_windows(reader.shard_tokens, CONTEXT)
    tokens = reader.read(windows).numpy()
    for shard, stream in enumerate(three.streams):
        rows = np.flatnonzero(windows.shard == shard)
        parts = [tokens[row, first[row] :] for row in rows.tolist()]
        assert b"".join(part.tobytes() for part in parts) == (stream.tobytes() if len(stream) >= CONTEXT else b"")
