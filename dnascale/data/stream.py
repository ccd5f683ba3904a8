"""From window addresses to batches: uint8 tokens gathered from mapped shards, for one rank of many.

The stream's state is (epoch, position), the same on every rank. It is not a PyTorch DataLoader and is not
given to `Accelerator.prepare`, which would deal the windows out a second time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dnascale.data.order import Epoch, Windows, next_windows
from dnascale.data.shards import Dataset, ShardReader
from dnascale.errors import DataError


@dataclass(frozen=True)
class Batch:
    """One micro-batch: `tokens` uint8 [B, S] and the windows they came from."""

    tokens: np.ndarray
    windows: Windows


class WindowReader:
    """Reads windows of one split. Raises DataError for shards that are missing or of the wrong size."""

    def __init__(self, dataset: Dataset, split: str, context: int) -> None:
        info = dataset.split(split)
        self.context = context
        self.shards = [ShardReader(dataset, shard) for shard in info.shards]
        self.shard_tokens = np.array([shard.tokens for shard in info.shards], dtype=np.int64)
        if self.shard_tokens.max(initial=0) < context:
            raise DataError(
                f"split '{split}' of {dataset.folder} has {info.tokens:,} tokens, fewer than one window of "
                f"{context:,}: use a smaller model.context or more data."
            )

    def read(self, windows: Windows) -> Batch:
        out = np.empty((len(windows), self.context), dtype=np.uint8)
        # In shard order, so that neighbouring windows share pages.
        for row in np.lexsort((windows.start, windows.shard)):
            self.shards[windows.shard[row]].read(int(windows.start[row]), out[row])
        return Batch(out, windows)


@dataclass
class TrainStream:
    """Endless batches of one rank. Global batch t is the same set of windows for every world size.

    A global batch of G windows is cut into `accumulation` micro-batches of G / accumulation windows, and each
    of these into `world` equal, contiguous parts.
    """

    reader: WindowReader
    seed: int
    global_windows: int
    accumulation: int
    rank: int
    world: int
    epoch: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        if Epoch.of(self.reader.shard_tokens, self.reader.context, self.seed, 0).count == 0:
            raise DataError("the training split holds no whole window: use a smaller model.context or more data.")
        if self.global_windows % (self.accumulation * self.world):
            raise ValueError(f"{self.global_windows} windows do not divide by {self.accumulation} x {self.world}")

    def next_step(self) -> Iterator[Batch]:
        """The micro-batches of this rank for one optimizer step; moves the state on."""
        windows, self.epoch, self.position = next_windows(
            self.reader.shard_tokens, self.reader.context, self.seed, self.epoch, self.position, self.global_windows
        )
        share = self.global_windows // (self.accumulation * self.world)
        for micro in range(self.accumulation):
            begin = (micro * self.world + self.rank) * share
            yield self.reader.read(windows.take(slice(begin, begin + share)))


def covering_windows(shard_tokens: np.ndarray, context: int) -> tuple[Windows, np.ndarray]:
    """Windows that hold every token of a split once: (windows, first) for evaluation.

    Each shard is cut at multiples of `context`; its tail is covered by a window that ends at the shard's end, in
    which only positions from `first` on (int64 [n]) are to be counted. A shard shorter than `context` is left out.
    """
    tokens = np.asarray(shard_tokens, dtype=np.int64)
    whole, tail = tokens // context, np.where(tokens >= context, tokens % context, 0)
    count = whole + (tail > 0)
    shard = np.repeat(np.arange(len(tokens)), count)
    place = np.arange(len(shard)) - np.repeat(np.cumsum(count) - count, count)
    in_tail = place == whole[shard]
    start = np.where(in_tail, tokens[shard] - context, place * context)
    first = np.where(in_tail, context - tail[shard], 0)
    windows = Windows(np.zeros_like(shard), shard, start, np.arange(len(shard), dtype=np.int64))
    return windows, first
