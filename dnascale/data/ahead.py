"""Which shards a rank needs next: known exactly, since the order is a function. For data sets behind a URL."""

from collections import deque

import numpy as np

from dnascale.data.order import Order
from dnascale.data.read import WindowReader
from dnascale.data.remote import RemoteFile
from dnascale.data.shorter import ShorterWindows

#: Shards wished for besides those that are being read, and at most in all: each wish holds an open file.
_SHARDS, _MOST = 8, 64
#: Tokens of this rank that are looked at in one go, and at most.
_STRETCH_TOKENS, _FURTHEST_TOKENS = 1 << 24, 1 << 31


class ShardsAhead:
    """Has the next shards of remote sources downloaded, and lets go of those that are not among them."""

    def __init__(self, reader: WindowReader, order: Order | ShorterWindows, rank: int, world: int) -> None:
        self.reader = reader
        self.order = order
        self._rank, self._world = rank, world
        windows = min(max(1, _STRETCH_TOKENS // reader.context), order.epoch_windows)
        self._stretch = windows * world  # positions
        self._all = sum(int(np.count_nonzero(np.diff(grid.first))) for grid in order.grids)  # shards with a window
        self._furthest = max(1, _FURTHEST_TOKENS // reader.context) * world
        self._remote = any(dataset.remote for dataset in reader.sources)
        self._seen: deque[tuple[int, np.ndarray]] = deque()  # of each stretch: where it ends, its shards as they come
        self._end = 0
        self._wished: list[int] = []

    def look(self, position: int) -> None:
        """The stream is at `position`: wishes for what comes next. Does nothing for local data."""
        if not self._remote:
            return
        if not (self._seen and self._seen[0][0] - self._stretch <= position < self._end):
            self._seen.clear()
            self._end = position
        while self._seen and self._seen[0][0] <= position:
            self._seen.popleft()
        known = {shard for _, shards in self._seen for shard in shards.tolist()}
        while self._wants_more(position, len(known)):
            windows = self.order.windows(self._end + np.arange(self._rank, self._stretch, self._world))
            shards, first = np.unique(windows.shard, return_index=True)
            self._end += self._stretch
            self._seen.append((self._end, shards[np.argsort(first)]))
            known.update(shards.tolist())
        wished = list(dict.fromkeys(shard for _, shards in self._seen for shard in shards.tolist()))
        if wished != self._wished:
            self._wished = wished
            self.reader.keep(np.array(wished))
            self._prefetch()

    def _wants_more(self, position: int, known: int) -> bool:
        if not self._seen:
            return True
        enough = min(len(self._seen[0][1]) + _SHARDS, self._all)
        return known < enough and self._end - position < self._furthest

    def _prefetch(self) -> None:
        for first, mapped in zip(self.reader.first_shard.tolist(), self.reader.shards, strict=False):
            if mapped.dataset.remote is not None:
                files: list[RemoteFile] = [
                    mapped.index.file(shard - first) for shard in self._wished if 0 <= shard - first < len(mapped.index)
                ]
                mapped.dataset.remote.prefetch(files[:_MOST])
