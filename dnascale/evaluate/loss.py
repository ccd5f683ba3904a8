"""Held-out loss of a masked model, in nats per base: every token of a split hidden and predicted once.

The tokens of each window are dealt into disjoint groups by a hash of the window and the position; one pass hides one
group. At a masking rate of 1/7 that is seven passes. Nothing is random, so two models compare on the same positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dnascale.data.masking import anchor_share, first_letters, mask_group
from dnascale.data.read import WindowReader, covering_windows
from dnascale.errors import DataError
from dnascale.model.per_base import base_nats, letter_log_p
from dnascale.vocab import PREDICTED_BASES, Vocabulary

#: Share of bases hidden in one pass: 1 / GROUPS = 14 %, near the 15 % at which DNA models are usually evaluated.
GROUPS = 7
#: Logits that are in memory at a time (1 GiB in fp32): large vocabularies are evaluated in smaller batches.
_MOST_LOGITS = 1 << 28


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss and accuracy over held-out bases. Where tokens are longer, accuracy is of whole tokens, and of no single base."""

    nats_per_base: float
    accuracy: float
    accuracy_by_base: dict[str, float]
    bases: int
    tokens: int  # predicted ones: as many as bases, unless tokens are longer

    @property
    def bits_per_base(self) -> float:
        return self.nats_per_base / math.log(2)


def groups_for(vocabulary: Vocabulary) -> int:
    """Into how many groups tokens are dealt, so that one pass hides 1 / GROUPS of the bases."""
    return round(1 / anchor_share(1 / GROUPS, vocabulary.views))


def held_out_loss(
    logits: Callable[[torch.Tensor], torch.Tensor],
    reader: WindowReader,
    vocabulary: Vocabulary,
    device: torch.device,
    batch_windows: int,
    max_windows: int | None = None,
    passes: int | None = None,
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    progress: Callable[[int], None] = lambda _windows: None,
    note: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None] | None = None,
) -> HeldOutLoss:
    """`logits` maps int64 [B, S] to [B, S, V]. Windows are dealt out over ranks; `reduce` sums float64 [4, n] over them.

    `passes` hides only the first so many groups of tokens (`groups_for`): a cheaper estimate over a fixed share of the bases.
    `note` is told of each prediction of this rank: shard and place in its stream (int64 [n]), nats float32 and whether it was right.
    Every rank calls `logits` as often. Raises DataError when no base can be scored.
    """
    groups = groups_for(vocabulary)
    batch_windows = max(1, min(batch_windows, _MOST_LOGITS // (reader.context * len(vocabulary))))
    windows, first = covering_windows(reader.shard_tokens, reader.context)
    if max_windows is not None and len(windows) > max_windows:
        chosen = np.linspace(0, len(windows) - 1, max_windows).astype(np.int64)
        windows, first = windows.take(chosen), first[chosen]
    share = -(-len(windows) // world)
    mine = np.arange(rank * share, (rank + 1) * share)
    real = mine < len(windows)
    mine = np.minimum(mine, len(windows) - 1)

    # Of each true base, and of longer tokens (last, if there are any): summed nats, correct predictions, tokens, bases.
    kinds = PREDICTED_BASES if vocabulary.one_base_a_token else PREDICTED_BASES + 1
    sums = torch.zeros(4, kinds, dtype=torch.float64)
    ids = vocabulary.soft_mask_bit - 1
    bases_per_token = torch.from_numpy(vocabulary.bases_per_token).double()
    for begin in range(0, share, batch_windows):
        rows = mine[begin : begin + batch_windows]
        tokens = reader.read(windows.take(rows)).to(device)
        reader.release()
        keys = torch.from_numpy(windows.key[rows]).to(device)
        counted = torch.from_numpy(first[rows][:, None] <= np.arange(reader.context)[None, :])
        counted = (counted & torch.from_numpy(real[begin : begin + batch_windows, None])).to(device)
        truth = tokens.long() & ids
        for group in range(groups if passes is None else passes):
            input_ids, hidden = mask_group(tokens, keys, group, groups, vocabulary)
            with torch.no_grad():
                predicted = logits(input_ids)
            scored = hidden & counted
            labels = truth[scored].cpu()
            of_scored = predicted[scored].float().cpu()  # float64 sums are kept on the host: MPS has none
            nats = base_nats(of_scored, labels, vocabulary).double()
            kind, correct = _compared(of_scored, labels, vocabulary)
            for of, values in enumerate((nats, correct.double(), torch.ones_like(nats), bases_per_token[labels])):
                sums[of].index_add_(0, kind, values)
            if note is not None:
                row, column = (index.cpu().numpy() for index in scored.nonzero(as_tuple=True))
                where = windows.take(rows[row])
                note(where.shard, where.start + column, nats.float().numpy(), correct.numpy())
        progress(len(rows))
    nats, correct, count, bases = reduce(sums)
    if not count.sum():
        raise DataError("the split has no A, C, G or T to predict.")
    by_base = range(PREDICTED_BASES) if vocabulary.one_base_a_token else ()
    return HeldOutLoss(
        nats_per_base=float(nats.sum() / bases.sum()),
        accuracy=float(correct.sum() / count.sum()),
        accuracy_by_base={vocabulary.tokens[i]: float(correct[i] / count[i]) for i in by_base if count[i]},
        bases=int(bases.sum()),
        tokens=int(count.sum()),
    )


def _compared(logits: torch.Tensor, labels: torch.Tensor, vocabulary: Vocabulary) -> tuple[torch.Tensor, torch.Tensor]:
    """Of n predictions: which of the sums they belong to (int64 [n]), and whether the most likely one is right (bool [n])."""
    if vocabulary.views > 1:
        letters = first_letters(labels, vocabulary)
        return letters, letter_log_p(logits, vocabulary).argmax(dim=1) == letters
    bases = logits[:, :PREDICTED_BASES]
    if vocabulary.one_base_a_token:
        return labels, bases.argmax(dim=1) == labels
    longer = logits[:, vocabulary.first_long : len(vocabulary)]
    number = torch.where(labels < PREDICTED_BASES, labels, labels - vocabulary.first_long + PREDICTED_BASES)
    return number.clamp(max=PREDICTED_BASES), torch.cat([bases, longer], dim=1).argmax(dim=1) == number
