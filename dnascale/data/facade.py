"""The same windows for other people's training loops: the Hugging Face Trainer, Lightning, a plain DataLoader.

Item p of a `WindowDataset` is window p of the order. The order is shuffled already, so the loader must not shuffle: read
in sequence, batch t is the same set of windows for any number of processes, as long as the global batch is the same.
`TrainStream` is several times faster, and downloads what comes next; use it where the loop is yours.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from dnascale.data.masking import Masking
from dnascale.data.order import Order
from dnascale.data.read import WindowReader
from dnascale.data.stream import open_order

Item = dict[str, torch.Tensor]


class WindowDataset(TorchDataset[Item]):
    """Windows by position, for `epochs` epochs: `tokens` uint8 [S] (of k-mers uint16) and `key` int64 [], which masks are keyed by."""

    def __init__(self, reader: WindowReader, order: Order, epochs: int = 1) -> None:
        self.reader = reader
        self.order = order
        self.epochs = epochs

    @classmethod
    def open(
        cls,
        data: str | Path | Sequence[str | Path],
        context: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        split: str = "train",
        weights: Sequence[float] | None = None,
        lanes: int | None = None,
        lane_windows: int = 16_384,
    ) -> "WindowDataset":
        """Of a data set (folder or URL), or of a mixture of several. Raises DataError when one cannot be opened."""
        return cls(*open_order(data, context, seed, split, weights, lanes, lane_windows), epochs)

    def __len__(self) -> int:
        return self.epochs * self.order.epoch_windows

    def __getitem__(self, position: int) -> Item:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Item]:
        """Many at once, which is what PyTorch's loader asks for: one gather a batch."""
        wanted = np.asarray(positions, dtype=np.int64)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"position outside [0, {len(self)})")
        windows = self.order.windows(wanted)
        tokens, keys = self.reader.read(windows), torch.from_numpy(windows.key)
        return [{"tokens": row, "key": key} for row, key in zip(tokens.unbind(), keys.unbind(), strict=True)]


class MaskingCollator:
    """Items to what a Hugging Face masked language model takes: `input_ids` and `labels`, int64 [B, S].

    The masks are those of `dnascale train`. Labels are -100 where nothing is predicted.
    """

    def __init__(self, masking: Masking) -> None:
        self.masking = masking
        self.complement = torch.from_numpy(masking.vocabulary.complement_table).long()

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        tokens, keys = (torch.stack([item[name] for item in items]) for name in ("tokens", "key"))
        batch = self.masking(tokens, keys, self.complement)
        labels = torch.full_like(batch.input_ids, -100)
        labels.scatter_(1, batch.positions, torch.where(batch.weights > 0, batch.labels, -100))
        return {"input_ids": batch.input_ids, "labels": labels}
