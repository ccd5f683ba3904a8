"""The order of training windows, as pure functions: (seed, epoch, position) -> window address.

No state and no I/O. Any position of any epoch is reached in O(1), so resuming is a seek, and every world
size sees the same sequence of windows. A window is `context` consecutive tokens of one shard's token
stream; each epoch shifts the window grid of each shard by a random phase, so that a base is seen in many
frames.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 6  # of the Feistel network; four already pass uniformity tests, six cost nothing here


def mix64(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, the finaliser of SplitMix64 (Steele, Lea and Flood 2014). A bijection."""
    x = np.asarray(x, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash64(*parts: int | np.ndarray) -> np.ndarray:
    """Integers (or arrays that broadcast) -> uint64. Order matters; each part is mixed in turn."""
    state: np.ndarray = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = mix64(state + np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.uint64))
    return state


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """A keyed bijection of [0, size): int64 indices of any shape -> int64 of the same shape.

    A balanced Feistel network over the smallest even number of bits that holds `size`, with cycle walking
    (Black and Rogaway 2002): values outside [0, size) are sent through again. The domain is under four
    times `size`, so fewer than four passes are expected.
    """
    index = np.asarray(index, dtype=np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index outside [0, {size})")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    round_keys = hash64(key, np.arange(_ROUNDS))

    def network(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for round_key in round_keys:
            left, right = right, left ^ (mix64(right + round_key) & low)
        return (left << half) | right

    out = network(index.astype(np.uint64).ravel())
    while (outside := np.flatnonzero(out >= size)).size:
        out[outside] = network(out[outside])
    return out.astype(np.int64).reshape(index.shape)


@dataclass(frozen=True)
class Windows:
    """Addresses of n windows. All arrays have shape [n]."""

    epoch: np.ndarray  # int64
    shard: np.ndarray  # int64, index into the split's shard list
    start: np.ndarray  # int64, token offset inside the shard's stream
    key: np.ndarray  # int64 >= 0, the identity that masking is keyed by

    def __len__(self) -> int:
        return len(self.key)

    def take(self, which: slice | np.ndarray) -> "Windows":
        return Windows(self.epoch[which], self.shard[which], self.start[which], self.key[which])

    def digest(self) -> int:
        """Sum of a 24-bit hash of each window's key: equal for the same set of windows, however it is dealt out."""
        return int((hash64(self.key) >> np.uint64(40)).sum())


@dataclass(frozen=True)
class Epoch:
    """The window grid of one epoch: `count` windows of `context` tokens over shards of the given sizes.

    Tokens before a shard's phase and after its last whole window are not seen in this epoch: fewer than
    2 * context a shard. They fall inside a window in other epochs.
    """

    seed: int
    epoch: int
    context: int
    phase: np.ndarray  # int64 [shards]
    first: np.ndarray  # int64 [shards + 1], number of windows before each shard

    @classmethod
    def of(cls, shard_tokens: np.ndarray, context: int, seed: int, epoch: int) -> "Epoch":
        tokens = np.asarray(shard_tokens, dtype=np.int64)
        # A shard that holds few windows keeps its phase below the slack, so that it never loses one to the shift.
        slack = np.where(tokens >= 4 * context, context, tokens % context + 1)
        draw = hash64(seed, epoch, 0x7068617365, np.arange(len(tokens)))  # "phase"
        phase = (draw % np.maximum(slack, 1).astype(np.uint64)).astype(np.int64)
        windows = np.maximum(tokens - phase, 0) // context
        return cls(seed, epoch, context, phase, np.concatenate([[0], np.cumsum(windows)]))

    @property
    def count(self) -> int:
        return int(self.first[-1])

    def windows(self, position: np.ndarray) -> Windows:
        """Positions of this epoch's order, int64 [n] in [0, count) -> their windows."""
        place = permute(position, self.count, int(hash64(self.seed, self.epoch, 0x6F72646572)))  # "order"
        shard = np.searchsorted(self.first, place, side="right") - 1
        start = self.phase[shard] + (place - self.first[shard]) * self.context
        key = hash64(self.seed, self.epoch, shard, start) >> np.uint64(1)
        return Windows(np.full(len(place), self.epoch), shard, start, key.astype(np.int64))


def next_windows(
    shard_tokens: np.ndarray, context: int, seed: int, epoch: int, position: int, count: int
) -> tuple[Windows, int, int]:
    """The next `count` windows from (epoch, position), running on into later epochs, and where that leaves off.

    Returns (windows, epoch, position) with position < the count of its epoch.
    """
    parts: list[Windows] = []
    missing = count
    while True:
        grid = Epoch.of(shard_tokens, context, seed, epoch)
        take = min(missing, grid.count - position)
        parts.append(grid.windows(np.arange(position, position + take)))
        missing -= take
        position += take
        if position == grid.count:
            epoch, position = epoch + 1, 0
        if not missing:
            break
    windows = Windows(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("epoch", "shard", "start", "key")))
    return windows, epoch, position
