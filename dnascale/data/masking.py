"""Masked language modelling on the device: which tokens are hidden, what stands in their place, which strand.

Every choice is an integer hash of (window key, position), so it belongs to the window and not to a rank, a
worker or a random generator, and is the same to the bit on CPU, CUDA and MPS. Exactly K positions are chosen
in every window: shapes are static and the mean over micro-batches is the mean over the global batch.
"""

from dataclasses import dataclass

import torch

from dnascale.errors import UsageError
from dnascale.vocab import CHARACTER, PREDICTED_BASES, Vocabulary

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
    weights: torch.Tensor  # float32 [B, K]; 0 where a window has fewer than K predictable tokens
    counted: torch.Tensor  # bool [B, K]; predictable, so that the prediction counts
    hidden: torch.Tensor  # bool [B, K]; shown as [MASK], and not as a random base or as it is
    random: torch.Tensor  # bool [B, K]; shown as a random base
    soft: torch.Tensor  # bool [B, K]; soft-masked


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


def _ahead(values: torch.Tensor, places: int) -> torch.Tensor:
    """[B, S]: at each position what stands `places` further on (or before, if negative), 0 beyond the window."""
    length = values.shape[1]
    there = torch.arange(length, device=values.device) + places
    return torch.where((there >= 0) & (there < length), values.roll(-places, 1), torch.zeros_like(values))


def first_letters(ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Ids of the first letters of overlapping k-mers; single letters and special tokens are themselves."""
    rest = vocabulary.views - 1
    return torch.where(ids < vocabulary.first_long, ids, (ids - vocabulary.first_long) // PREDICTED_BASES**rest)


def reverse_complement(
    tokens: torch.Tensor, complement: torch.Tensor, vocabulary: Vocabulary = CHARACTER
) -> torch.Tensor:
    """int64 [B, S] -> the other strand, read 5' to 3'. `complement` is int64 [V]; soft-mask bits move along.

    k-mers that are apart stay the units that they are, so a run's left-over letters come first. An overlapping k-mer that
    would begin at a base outside the window is not known, and is the letter of its base.
    """
    soft, views = tokens & vocabulary.soft_mask_bit, vocabulary.views
    ids = tokens ^ soft
    if views == 1:
        return (complement[ids] | soft).flip(1)
    ends_here = _ahead(ids, 1 - views)  # the k-mer whose last base this is
    other = torch.where(ends_here >= vocabulary.first_long, ends_here, first_letters(ids, vocabulary))
    return (complement[other] | soft).flip(1)


def is_predictable(ids: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """bool: tokens of A, C, G and T alone."""
    letters = ids < PREDICTED_BASES
    return letters if vocabulary.first_long == len(vocabulary) else letters | (ids >= vocabulary.first_long)


def hide(ids: torch.Tensor, hidden: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """int64 [B, S] with [MASK] at the `hidden` positions (bool [B, S]), and in every token that shows a base of theirs."""
    covered = hidden
    for places in range(1, vocabulary.views):
        covered = covered | (_ahead(hidden, places) & (ids >= vocabulary.first_long))
    return torch.where(covered, vocabulary.mask, ids)


def respell(ids: torch.Tensor, change: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Overlapping k-mers int64 [B, S] after the letter of each position had `change` (int64 [B, S]) added to its id."""
    letters, kmers = ids + change, ids
    for places in range(vocabulary.views):
        kmers = kmers + _ahead(change, places) * PREDICTED_BASES ** (vocabulary.views - 1 - places)
    return torch.where(ids < vocabulary.first_long, letters, kmers)


def anchor_share(hidden: float, views: int) -> float:
    """Share of bases to predict so that a share `hidden` of all bases is seen in no token.

    Where a base is seen in one token these are the same. With k views, hiding base p hides tokens p - k + 1 to p, and a
    base between two hidden ones, at distances i and j with i + j <= k, is gone too.
    """
    if views == 1:
        return hidden
    low, high = 0.0, hidden
    for _ in range(50):
        p = (low + high) / 2
        between = sum((d - 1) * p**2 * (1 - p) ** (d - 2) for d in range(2, views + 1))
        low, high = (p, high) if p + (1 - p) * between < hidden else (low, p)
    return low


@dataclass(frozen=True)
class Masking:
    """The recipe. `rate` is the share of a window's bases that are hidden: K = round(rate * S) predictions, at least 1.

    With overlapping k-mers fewer are predicted, so that as many are hidden (`anchor_share`). Raises UsageError for the other
    strand of tokens that have none.
    """

    vocabulary: Vocabulary
    rate: float
    replace_with_mask: float
    replace_with_random: float
    reverse_complement: bool
    repeat_weight: float

    def __post_init__(self) -> None:
        if self.reverse_complement and not self.vocabulary.has_other_strand:
            raise UsageError(
                f"masking.reverse_complement=true cannot be had with the tokenizer {self.vocabulary.name}: which tokens the other "
                "strand has is not told by these. Leave it false, or prepare the data with characters or k-mers."
            )

    def count(self, context: int) -> int:
        return max(1, round(anchor_share(self.rate, self.vocabulary.views) * context))

    def __call__(self, tokens: torch.Tensor, keys: torch.Tensor, complement: torch.Tensor) -> MaskedBatch:
        """tokens uint8 or uint16 [B, S] (top bit = soft mask), window keys int64 [B], complement table int64 [V]."""
        vocabulary = self.vocabulary
        stored = tokens.long()
        length = stored.shape[1]
        if self.reverse_complement:
            other = position_hash(keys, 1, _STRAND) & 1
            stored = torch.where(other.bool(), reverse_complement(stored, complement, vocabulary), stored)
        ids = stored & ~vocabulary.soft_mask_bit
        predictable = is_predictable(ids, vocabulary)

        # The K smallest of (not predictable, hash, position): a total order, so every device picks the same set.
        draw = position_hash(keys, length, _CHOOSE) + (~predictable).long() * (_U32 + 1)
        place = torch.arange(length, device=ids.device)
        order = (draw << _POSITION_BITS) | place
        positions = order.topk(self.count(length), dim=1, largest=False).indices.sort(dim=1).values

        labels = ids.gather(1, positions)
        counted = predictable.gather(1, positions)
        soft = (stored.gather(1, positions) & vocabulary.soft_mask_bit) != 0
        weights = counted.float() * torch.where(soft, self.repeat_weight, 1.0)

        fate = position_hash(keys, length, _REPLACE).gather(1, positions)
        draw = position_hash(keys, length, _RANDOM_BASE).gather(1, positions)
        to_mask = int(self.replace_with_mask * (_U32 + 1))
        to_random = int((self.replace_with_mask + self.replace_with_random) * (_U32 + 1))
        hidden = counted & (fate < to_mask)
        replaced = counted & (fate < to_random)
        if vocabulary.views == 1:
            shown = torch.where(replaced, _random_token(draw, vocabulary), labels)
            input_ids = ids.scatter(1, positions, torch.where(hidden, vocabulary.mask, shown))
        else:  # a base is replaced, and hidden, in all tokens that show it
            change = torch.where(replaced & ~hidden, draw % PREDICTED_BASES - first_letters(labels, vocabulary), 0)
            shown = respell(ids, torch.zeros_like(ids).scatter(1, positions, change), vocabulary)
            input_ids = hide(shown, torch.zeros_like(predictable).scatter(1, positions, hidden), vocabulary)
        return MaskedBatch(input_ids, positions, labels, weights, counted, hidden, replaced & ~hidden, soft)


def _random_token(draw: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Hashes int64 -> ids of predictable tokens, each as likely."""
    number = draw % vocabulary.predictable
    if vocabulary.predictable == PREDICTED_BASES:
        return number
    return torch.where(number < PREDICTED_BASES, number, number - PREDICTED_BASES + vocabulary.first_long)


def mask_group(
    tokens: torch.Tensor, keys: torch.Tensor, group: int, groups: int, vocabulary: Vocabulary
) -> tuple[torch.Tensor, torch.Tensor]:
    """For evaluation: hides one of `groups` disjoint sets of tokens; over all groups each is predicted once.

    tokens uint8 or uint16 [B, S], keys int64 [B] -> (input_ids int64 [B, S], predicted bool [B, S]).
    """
    ids = tokens.long() & ~vocabulary.soft_mask_bit
    predicted = (position_hash(keys, ids.shape[1], _GROUP) % groups == group) & is_predictable(ids, vocabulary)
    return hide(ids, predicted, vocabulary), predicted
