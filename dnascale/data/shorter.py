"""Shorter windows, cut from those of an order: what a run trains on before its context reaches full length.

Each window of the order is cut into equal parts, which are shuffled among the windows of a stretch. A stage that takes
as many tokens as n windows hold sees exactly those n, so what follows it goes on where it ended, and no base of an epoch is
seen twice or left out because of the change. There is no state but the position, as in `order.py`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dnascale.data.order import Grid, Mixture, Order, Windows, hash64, permute

_PARTS = int.from_bytes(b"parts", "big")


@dataclass(frozen=True)
class ShorterWindows:
    """The windows [first, first + count) of an order (without end if `count` is None), each in `parts` parts.

    Positions count parts since the first window. `order.lane_windows` windows are shuffled with each other.
    """

    order: Order
    parts: int
    first: int
    count: int | None = None

    @property
    def epoch_windows(self) -> int:
        return self.order.epoch_windows * self.parts

    @property
    def grids(self) -> list[Grid]:
        return self.order.grids

    @property
    def seed(self) -> int:
        return self.order.seed

    @property
    def mixture(self) -> Mixture | None:
        return self.order.mixture

    @property
    def lanes(self) -> int | None:
        return self.order.lanes

    @property
    def lane_windows(self) -> int:
        return self.order.lane_windows

    @cached_property
    def _stretch(self) -> int:
        """Windows shuffled with each other; not more than an epoch, so that they are of two epochs at most."""
        return min(self.order.lane_windows, self.order.epoch_windows)

    def windows(self, position: np.ndarray) -> Windows:
        """int64 [n] positions >= 0 -> their windows, each `order`'s context / parts tokens long.

        Positions past the end, which readers ask for ahead of time, are what follows, not shuffled.
        """
        position = np.asarray(position, dtype=np.int64)
        length = self._stretch * self.parts
        stretch = position // length
        place = position.copy()
        for one in np.unique(stretch).tolist():
            begin = one * length
            size = length if self.count is None else min(length, self.count * self.parts - begin)
            rows = np.flatnonzero((stretch == one) & (position < begin + size))
            if rows.size:
                key = int(hash64(self.seed, _PARTS, self.first + one * self._stretch))
                place[rows] = begin + permute(position[rows] - begin, size, key)
        whole, part = np.divmod(place, self.parts)
        windows = self.order.windows(self.first + whole)
        start = windows.start + part * (self.order.grids[0].context // self.parts)
        key64 = (hash64(windows.key, part) >> np.uint64(1)).astype(np.int64)
        return Windows(windows.epoch, windows.shard, start, key64)
