"""Masked language modelling on the device: which bases are hidden, what stands in their place, which strand.

Every choice is an integer hash of (window key, position), so it belongs to the window and not to a rank, a
worker or a random generator, and is the same to the bit on CPU, CUDA and MPS. Exactly K positions are chosen
in every window: shapes are static and the mean over micro-batches is the mean over the global batch.
"""

from dataclasses import dataclass

import torch

from dnascale.vocab import PREDICTED_BASES, SOFT_MASK_BIT, Vocabulary

_U32 = 0xFFFFFFFF
_POSITION_BITS = 24  # of a sort key: windows of up to 16 Mi tokens
# One salt a decision, so that decisions are independent.
_CHOOSE, _REPLACE, _RANDOM_BASE, _STRAND, _GROUP = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822


@dataclass(frozen=True)
class MaskedBatch:
    """What the model sees and what it must say. B windows of S tokens, K predicted positions in each."""

    input_ids: torch.Tensor  # int64 [B, S]
    positions: torch.Tensor  # int64 [B, K], ascending
    labels: torch.Tensor  # int64 [B, K], the true ids at `positions`
    weights: torch.Tensor  # float32 [B, K]; 0 where a window has fewer than K predictable bases
    hidden: torch.Tensor  # bool [B, K]; shown as [MASK], and not as a random base or as it is


def _mul32(x: torch.Tensor, factor: int) -> torch.Tensor:
    """x * factor mod 2^32 for 0 <= x < 2^32 held in int64, without overflow of int64."""
    return ((x & 0xFFFF) * factor + ((((x >> 16) * factor) & 0xFFFF) << 16)) & _U32


def _mix32(x: torch.Tensor) -> torch.Tensor:
    """int64 in [0, 2^32) -> the same range: the `lowbias32` hash of Chris Wellons (2018). A bijection."""
    x = _mul32(x ^ (x >> 16), 0x7FEB352D)
    x = _mul32(x ^ (x >> 15), 0x846CA68B)
    return x ^ (x >> 16)


def position_hash(keys: torch.Tensor, length: int, salt: int) -> torch.Tensor:
    """Window keys int64 [B] -> int64 [B, length], uniform in [0, 2^32)."""
    window = _mix32((keys & _U32) ^ salt)
    window = _mix32(window ^ (keys >> 32))
    position = torch.arange(length, device=keys.device, dtype=torch.int64)
    return _mix32((window[:, None] + _mul32(position, 0x9E3779B9)[None, :]) & _U32)


def reverse_complement(tokens: torch.Tensor, complement: torch.Tensor) -> torch.Tensor:
    """int64 [B, S] -> the other strand, read 5' to 3'. `complement` is int64 [V]; soft-mask bits move along."""
    flipped = tokens.flip(1)
    return complement[flipped & ~SOFT_MASK_BIT] | (flipped & SOFT_MASK_BIT)


@dataclass(frozen=True)
class Masking:
    """The recipe. `rate` is the share of a window's tokens that are predicted: K = round(rate * S), at least 1."""

    vocabulary: Vocabulary
    rate: float
    replace_with_mask: float
    replace_with_random: float
    reverse_complement: bool
    repeat_weight: float

    def count(self, context: int) -> int:
        return max(1, round(self.rate * context))

    def __call__(self, tokens: torch.Tensor, keys: torch.Tensor, complement: torch.Tensor) -> MaskedBatch:
        """tokens uint8 [B, S] (bit 7 = soft mask), window keys int64 [B], complement table int64 [V]."""
        stored = tokens.long()
        length = stored.shape[1]
        if self.reverse_complement:
            other = position_hash(keys, 1, _STRAND) & 1
            stored = torch.where(other.bool(), reverse_complement(stored, complement), stored)
        ids = stored & ~SOFT_MASK_BIT
        predictable = ids < PREDICTED_BASES

        # The K smallest of (not predictable, hash, position): a total order, so every device picks the same set.
        draw = position_hash(keys, length, _CHOOSE) + (~predictable).long() * (_U32 + 1)
        place = torch.arange(length, device=ids.device)
        order = (draw << _POSITION_BITS) | place
        positions = order.topk(self.count(length), dim=1, largest=False).indices.sort(dim=1).values

        labels = ids.gather(1, positions)
        counted = predictable.gather(1, positions)
        soft = (stored.gather(1, positions) & SOFT_MASK_BIT) != 0
        weights = counted.float() * torch.where(soft, self.repeat_weight, 1.0)

        fate = position_hash(keys, length, _REPLACE).gather(1, positions)
        random_base = position_hash(keys, length, _RANDOM_BASE).gather(1, positions) % PREDICTED_BASES
        to_mask = int(self.replace_with_mask * (_U32 + 1))
        to_random = int((self.replace_with_mask + self.replace_with_random) * (_U32 + 1))
        hidden = counted & (fate < to_mask)
        shown = torch.where(counted & (fate < to_random), random_base, labels)
        input_ids = ids.scatter(1, positions, torch.where(hidden, self.vocabulary.mask, shown))
        return MaskedBatch(input_ids, positions, labels, weights, hidden)


def mask_group(
    tokens: torch.Tensor, keys: torch.Tensor, group: int, groups: int, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """For evaluation: hides one of `groups` disjoint sets of bases; over all groups each base is hidden once.

    tokens uint8 [B, S], keys int64 [B] -> (input_ids int64 [B, S], hidden bool [B, S]).
    """
    ids = tokens.long() & ~SOFT_MASK_BIT
    hidden = (position_hash(keys, ids.shape[1], _GROUP) % groups == group) & (ids < PREDICTED_BASES)
    return torch.where(hidden, vocabulary.mask, ids), hidden
