"""The order of training windows, as pure functions: (seed, position) -> window address, and back.

No I/O, and no state but a cache. Any position is reached in O(1), so resuming is a seek, and every world size sees the
same sequence of windows. A position counts the windows since the beginning of training; it runs on over epochs.

A window is `context` consecutive tokens of one shard's token stream. Each epoch shifts the window grid of each shard by
a random phase, so that a base is seen in many frames; the number of windows is the same in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
#: Shards of fewer windows give up none of them for the shift of the grid.
_FEW_WINDOWS = 64

#: Names of what is drawn, so that no two draws share a hash.
_PHASE, _ORDER, _SHARDS, _SOURCE = (int.from_bytes(name, "big") for name in (b"phase", b"order", b"shards", b"source"))


def mix64(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, the finaliser of SplitMix64 (Steele, Lea and Flood 2014). A bijection that sends near values far apart."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """Integers (or arrays that broadcast) -> uint64. Order matters; each part is mixed in turn."""
    state: np.ndarray = np.asarray(_GOLDEN, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix64(state + np.uint64(_GOLDEN) + np.asarray(part).astype(np.uint64))
    return state


def permute(index: np.ndarray, size: int, key: int | np.ndarray, inverse: bool = False) -> np.ndarray:
    """A keyed bijection of [0, size), or its inverse: int64 indices of any shape -> int64 of the same shape.

    `key` is a hash (uint64), or an array of them, one for each index; sizes go up to 2^62. A Feistel network with cycle walking (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002): values outside [0, size) are sent through again. The domain is a
    rectangle that holds `size` with less than one row to spare, so few are. Raises ValueError for an index outside.
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index outside [0, {size})")
    keys = np.asarray(key, dtype=np.uint64).ravel()
    out = _network(index.ravel(), size, keys, inverse)
    outside = np.flatnonzero(out >= size)
    while outside.size:
        again = _network(out[outside], size, keys if len(keys) == 1 else keys[outside], inverse)
        out[outside] = again
        outside = outside[again >= size]
    return out.reshape(index.shape)


def _network(x: np.ndarray, size: int, keys: np.ndarray, inverse: bool) -> np.ndarray:
    """One pass of the Feistel network: int64 [n] -> int64 [n], keys uint64 [1] or [n].

    A value is a row and a column of the rectangle of `rows` x 2^bits. They change in turn, each by a hash of the other
    and the key: the row by addition modulo `rows`, the column by XOR. The inverse is the same rounds backwards.
    """
    bits = (size - 1).bit_length() // 2
    rows, last = np.uint32(-(-size >> bits)), np.uint32((1 << bits) - 1)
    row, column = (x >> bits).astype(np.uint32), x.astype(np.uint32) & last
    words = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    turns = range(6 if size >= 4096 else 24)  # small rectangles need more to look random
    for turn in reversed(turns) if inverse else turns:
        salt = words[turn % 2] + np.uint32(turn // 2 * 0x9E3779B9 & 0xFFFFFFFF)
        if turn % 2:
            column ^= _mix32(row + salt) & last
            continue
        shift = ((_mix32(column + salt).astype(np.uint64) * rows) >> np.uint64(32)).astype(np.uint32)
        # Of a sum below 2 * rows and the same less `rows`, the smaller is right: below zero, uint32 wraps to a large number.
        if inverse:
            row -= shift
            np.minimum(row, row + rows, out=row)
        else:
            row += shift
            np.minimum(row, row - rows, out=row)
    return (row.astype(np.int64) << bits) | column


def _mix32(x: np.ndarray) -> np.ndarray:
    """uint32 -> uint32 in place: `lowbias32` of Wellons' hash prospector (2018). 32 bits, for they are fast in SIMD."""
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return x


@dataclass(frozen=True)
class Windows:
    """Addresses of n windows. All arrays have shape [n]."""

    epoch: np.ndarray  # int64, of its source
    shard: np.ndarray  # int64, index into the shards of all sources, one source after the other
    start: np.ndarray  # int64, token offset inside the shard's stream
    key: np.ndarray  # int64 >= 0, the identity that masking is keyed by

    @classmethod
    def empty(cls, n: int) -> "Windows":
        """n windows, to be filled in."""
        return cls(*(np.empty(n, dtype=np.int64) for _ in range(4)))

    def __len__(self) -> int:
        return len(self.key)

    def take(self, which: slice | np.ndarray) -> "Windows":
        return Windows(self.epoch[which], self.shard[which], self.start[which], self.key[which])

    def put(self, rows: np.ndarray, part: "Windows") -> None:
        """Fills in `rows` (int64 [m]) with the m windows of `part`."""
        for name in ("epoch", "shard", "start", "key"):
            getattr(self, name)[rows] = getattr(part, name)

    def digest(self) -> int:
        """Sum of a 24-bit hash of each window's key: equal for the same set of windows, however it is dealt out."""
        return int((hash64(self.key) >> np.uint64(40)).sum())


@dataclass(frozen=True)
class Grid:
    """The windows of `context` tokens that one source holds in every epoch, numbered shard by shard.

    A shard of T tokens has (T - context + 1) // context windows, a shard shorter than 64 windows has T // context. The phase
    is any that leaves them whole. Tokens before it and after the last window are not seen in that epoch: fewer than
    2 * context a shard, and every token of a shard that has a window is seen in some epochs.
    """

    context: int
    slack: np.ndarray  # int64 [shards], phases run over [0, slack)
    first: np.ndarray  # int64 [shards + 1], number of windows before each shard

    @classmethod
    def of(cls, shard_tokens: np.ndarray, context: int) -> "Grid":
        tokens = np.asarray(shard_tokens, dtype=np.int64)
        windows = np.where(tokens < _FEW_WINDOWS * context, tokens, tokens - context + 1) // context
        slack = np.where(windows > 0, tokens - windows * context + 1, 1)
        return cls(context, slack, np.concatenate([[0], np.cumsum(windows)]))

    @property
    def count(self) -> int:
        """Windows of an epoch."""
        return int(self.first[-1])

    @cached_property
    def _windows_a_shard(self) -> int:
        """The number that all shards but the last have, or 0 when they differ."""
        counts = np.diff(self.first)
        even = len(counts) == 1 or ((counts[:-1] == counts[0]).all() and counts[-1] <= counts[0])
        return int(counts[0]) if even else 0

    def shard(self, place: np.ndarray) -> np.ndarray:
        """The shard of window number `place`, int64 [n]."""
        if each := self._windows_a_shard:  # all shards but the last are full: a division is faster than a search
            return np.minimum(place // each, len(self.slack) - 1)
        return np.searchsorted(self.first, place, side="right") - 1

    def phases(self, *key: int) -> np.ndarray:
        """int64 [shards]: how far each shard's grid is shifted."""
        draw = hash64(*key, _PHASE, np.arange(len(self.slack)))
        return (draw % self.slack.astype(np.uint64)).astype(np.int64)


class Mixture:
    """Which source the window at each position comes from: exact in proportion, and spread out.

    Weights are rounded to n_i / 10,000. Every run of 10,000 positions, wherever it begins, holds exactly n_i windows of
    source i, because the sequence of sources has that period, and about one in each of n_i equal parts of it. Each source
    counts its own windows, and so its own epochs.
    """

    PERIOD = 10_000

    def __init__(self, weights: Sequence[float]) -> None:
        """Raises ValueError for weights that are not positive, or so small that a source gets none of 10,000 windows."""
        share = np.asarray(weights, dtype=np.float64)
        if not (len(share) and np.isfinite(share).all() and (share > 0).all()):
            raise ValueError("weights must be positive numbers")
        share = share / share.max()
        quota = share / share.sum() * self.PERIOD
        self.counts = np.floor(quota).astype(np.int64)
        missing = self.PERIOD - int(self.counts.sum())
        self.counts[np.argsort(self.counts - quota, kind="stable")[:missing]] += 1  # largest remainders
        if (self.counts == 0).any():
            raise ValueError(f"one is so small that its source gets none of {self.PERIOD:,} windows")
        # The k-th of n windows is due in the k-th of n equal parts of the period: where in it is drawn, so that sources of
        # the same weight do not take turns in step with the ranks.
        source = np.repeat(np.arange(len(share)), self.counts)
        turn = np.arange(self.PERIOD) - np.repeat(np.cumsum(self.counts) - self.counts, self.counts)
        draw = (hash64(_SOURCE, source, turn) >> np.uint64(11)) / 2.0**53
        due = np.argsort((turn + draw) / self.counts[source], kind="stable")
        self._source, self._turn = source[due], turn[due]

    def sources(self, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] positions -> (source, number of this window within its source), int64 [n] each."""
        period, place = np.divmod(np.asarray(position, dtype=np.int64), self.PERIOD)
        source = self._source[place]
        return source, period * self.counts[source] + self._turn[place]

    def positions(self, source: int, index: np.ndarray) -> np.ndarray:
        """The inverse of `sources`."""
        period, turn = np.divmod(np.asarray(index, dtype=np.int64), self.counts[source])
        return period * self.PERIOD + np.flatnonzero(self._source == source)[turn]


def temperature_weights(tokens: Sequence[int], temperature: float) -> list[float]:
    """Weights of sources of these sizes, size^(1/temperature): 1 is by size, more is more even (Devlin 2018, mBERT)."""
    size = np.asarray(tokens, dtype=np.float64)
    weights: list[float] = ((size / size.max()) ** (1 / temperature)).tolist()
    return weights


@dataclass(frozen=True)
class _Epoch:
    """What is drawn once for an epoch of a source."""

    phase: np.ndarray  # int64 [shards]
    order_key: int
    window_key: int
    shards: np.ndarray | None = None  # int64 [shards], in the order in which lanes go through them
    first: np.ndarray | None = None  # int64 [shards + 1], windows before each of these


class Order:
    """The order of all windows: position -> window, for one or several sources.

    By default each epoch of a source is shuffled as a whole. With `lanes`, the shards of an epoch follow each other in
    random order and are cut into that many lanes; position q of an epoch takes from lane q % lanes, and each lane is shuffled within
    stretches of `lane_windows`. Only a few shards a lane are in use at a time, which is what remote data and data larger
    than memory want. Lanes belong to the run and never follow from the number of processes.
    """

    def __init__(
        self,
        grids: Sequence[Grid],
        seed: int,
        mixture: Mixture | None = None,
        lanes: int | None = None,
        lane_windows: int = 16_384,
    ) -> None:
        if min(grid.count for grid in grids) == 0:
            raise ValueError("a source holds no whole window")
        if len(grids) != (1 if mixture is None else len(mixture.counts)):
            raise ValueError("several sources need a mixture of as many weights")
        if lane_windows < 1 or (lanes is not None and lanes < 1):
            raise ValueError("lanes and lane_windows must be at least 1")
        self.grids = list(grids)
        self.seed = seed
        self.mixture = mixture
        self.lanes = lanes
        self.lane_windows = lane_windows
        self._first_shard = np.cumsum([0] + [len(grid.slack) for grid in grids])
        self._epochs: dict[tuple[int, int], _Epoch] = {}

    @property
    def epoch_windows(self) -> int:
        """Positions of one epoch: of the only source, or until a mixture has shown as many windows as all hold."""
        return sum(grid.count for grid in self.grids)

    def windows(self, position: np.ndarray) -> Windows:
        """int64 [n] positions >= 0 -> their windows."""
        position = np.asarray(position, dtype=np.int64)
        if len(position) and position.min() < 0:
            raise ValueError("a position below 0")
        if self.mixture is None:
            return self._of_source(0, position)
        source, index = self.mixture.sources(position)
        out = Windows.empty(len(position))
        for one in range(len(self.grids)):
            rows = np.flatnonzero(source == one)
            if rows.size:
                out.put(rows, self._of_source(one, index[rows]))
        return out

    def positions(self, windows: Windows) -> np.ndarray:
        """The inverse: int64 [n]. Raises ValueError for windows that are not of this order."""
        if len(windows) and (
            windows.shard.min() < 0 or windows.shard.max() >= self._first_shard[-1] or windows.epoch.min() < 0
        ):
            raise ValueError("a window is of no shard, or of no epoch")
        out = np.empty(len(windows), dtype=np.int64)
        source = np.searchsorted(self._first_shard, windows.shard, side="right") - 1
        for one, epoch in sorted(set(zip(source.tolist(), windows.epoch.tolist(), strict=True))):
            rows = np.flatnonzero((source == one) & (windows.epoch == epoch))
            grid, drawn = self.grids[one], self._epoch(one, epoch)
            shard = windows.shard[rows] - self._first_shard[one]
            number, off = np.divmod(windows.start[rows] - drawn.phase[shard], grid.context)
            if off.any() or (number < 0).any() or (number >= np.diff(grid.first)[shard]).any():
                raise ValueError("a window is not on the grid of its epoch")
            index = epoch * grid.count + self._position_in_epoch(grid, drawn, shard, number)
            out[rows] = index if self.mixture is None else self.mixture.positions(one, index)
        return out

    def _of_source(self, source: int, index: np.ndarray) -> Windows:
        """The windows of a source, which counts on over its epochs."""
        count = self.grids[source].count
        if not len(index):
            return Windows.empty(0)
        first, last = int(index.min()) // count, int(index.max()) // count
        if first == last:
            return self._of_epoch(source, first, index - first * count)
        out = Windows.empty(len(index))
        of_each = index // count
        for epoch in (first, last) if last == first + 1 else np.unique(of_each).tolist():
            rows = np.flatnonzero(of_each == epoch)
            out.put(rows, self._of_epoch(source, epoch, index[rows] - epoch * count))
        return out

    def _of_epoch(self, source: int, epoch: int, position: np.ndarray) -> Windows:
        grid, drawn = self.grids[source], self._epoch(source, epoch)
        if drawn.shards is None or drawn.first is None:
            place = permute(position, grid.count, drawn.order_key)
            shard = grid.shard(place)
            number = place - grid.first[shard]
        else:
            place = self._lane_place(grid, drawn, position)
            turn = np.searchsorted(drawn.first, place, side="right") - 1
            shard, number = drawn.shards[turn], place - drawn.first[turn]
            place = grid.first[shard] + number
        start = drawn.phase[shard] + number * grid.context
        key = (hash64(drawn.window_key, place) >> np.uint64(1)).astype(np.int64)
        return Windows(np.full(len(place), epoch), shard + self._first_shard[source], start, key)

    def _position_in_epoch(self, grid: Grid, drawn: _Epoch, shard: np.ndarray, number: np.ndarray) -> np.ndarray:
        if drawn.shards is None or drawn.first is None:
            return permute(grid.first[shard] + number, grid.count, drawn.order_key, inverse=True)
        turn = np.argsort(drawn.shards)[shard]
        return self._lane_place(grid, drawn, drawn.first[turn] + number, inverse=True)

    def _lane_place(self, grid: Grid, drawn: _Epoch, value: np.ndarray, inverse: bool = False) -> np.ndarray:
        """Position -> place in the epoch's sequence of shards; or back, when `inverse`."""
        assert self.lanes is not None
        count, lanes = grid.count, min(self.lanes, grid.count)
        length, longer = divmod(count, lanes)  # the first `longer` lanes have one window more
        if inverse:
            lane = np.where(
                value < longer * (length + 1), value // (length + 1), longer + (value - longer * (length + 1)) // length
            )
        else:
            lane = value % lanes
        begin = lane * length + np.minimum(lane, longer)
        index = value - begin if inverse else value // lanes
        stretch = index // self.lane_windows
        stretch_begin = stretch * self.lane_windows
        size = np.minimum(self.lane_windows, length + (lane < longer) - stretch_begin)
        keys = hash64(drawn.order_key, lane, stretch)
        out = np.empty_like(value)
        for one in np.unique(size):  # two or three: full stretches, and the last of long and short lanes
            rows = np.flatnonzero(size == one)
            out[rows] = permute((index - stretch_begin)[rows], int(one), keys[rows], inverse)
        out += stretch_begin
        return out * lanes + lane if inverse else out + begin

    def _epoch(self, source: int, epoch: int) -> _Epoch:
        """What is drawn for an epoch. Kept, since it takes a pass over the shards."""
        if (source, epoch) not in self._epochs:
            if len(self._epochs) > 2 * len(self.grids):
                self._epochs.clear()
            grid = self.grids[source]
            where = (self.seed, _SOURCE, source, epoch)
            shards = first = None
            if self.lanes is not None:
                shards = np.argsort(hash64(*where, _SHARDS, np.arange(len(grid.slack))), kind="stable")
                first = np.concatenate([[0], np.cumsum(np.diff(grid.first)[shards])])
            self._epochs[source, epoch] = _Epoch(
                grid.phases(*where), int(hash64(*where, _ORDER)), int(hash64(*where)), shards, first
            )
        return self._epochs[source, epoch]
