"""Held-out loss of a masked model, in nats per base: every base of a split hidden and predicted once.

The bases of each window are dealt into disjoint groups by a hash of the window and the position; one pass hides one
group. At a masking rate of 1/7 that is seven passes. Nothing is random, so two models compare on the same positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dnascale.data.masking import mask_group
from dnascale.data.read import WindowReader, covering_windows
from dnascale.errors import DataError
from dnascale.vocab import PREDICTED_BASES, SOFT_MASK_BIT, Vocabulary

#: Share of bases hidden in one pass: 1 / GROUPS = 14 %, near the 15 % at which DNA models are usually evaluated.
GROUPS = 7


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss and accuracy over `bases` held-out bases."""

    nats_per_base: float
    accuracy: float
    accuracy_by_base: dict[str, float]
    bases: int

    @property
    def bits_per_base(self) -> float:
        return self.nats_per_base / math.log(2)


def held_out_loss(
    logits: Callable[[torch.Tensor], torch.Tensor],
    reader: WindowReader,
    vocabulary: Vocabulary,
    device: torch.device,
    batch_windows: int,
    max_windows: int | None = None,
    groups: int = GROUPS,
    passes: int = GROUPS,
    rank: int = 0,
    world: int = 1,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
    progress: Callable[[int], None] = lambda _windows: None,
) -> HeldOutLoss:
    """`logits` maps int64 [B, S] to [B, S, V]. Windows are dealt out over ranks; `reduce` sums float64 [3, 4] over them.

    `passes < groups` hides only the first groups: a cheaper estimate over a fixed share of the bases. Every rank calls
    `logits` as often. Raises DataError when no base can be scored.
    """
    windows, first = covering_windows(reader.shard_tokens, reader.context)
    if max_windows is not None and len(windows) > max_windows:
        chosen = np.linspace(0, len(windows) - 1, max_windows).astype(np.int64)
        windows, first = windows.take(chosen), first[chosen]
    share = -(-len(windows) // world)
    mine = np.arange(rank * share, (rank + 1) * share)
    real = mine < len(windows)
    mine = np.minimum(mine, len(windows) - 1)

    # By true base: summed nats, correct predictions, count.
    sums = torch.zeros(3, PREDICTED_BASES, dtype=torch.float64)
    for begin in range(0, share, batch_windows):
        rows = mine[begin : begin + batch_windows]
        tokens = reader.read(windows.take(rows)).to(device)
        reader.release()
        keys = torch.from_numpy(windows.key[rows]).to(device)
        counted = torch.from_numpy(first[rows][:, None] <= np.arange(reader.context)[None, :])
        counted = (counted & torch.from_numpy(real[begin : begin + batch_windows, None])).to(device)
        truth = tokens.long() & ~SOFT_MASK_BIT
        for group in range(passes):
            input_ids, hidden = mask_group(tokens, keys, group, groups, vocabulary)
            with torch.no_grad():
                predicted = logits(input_ids).float()
            scored = hidden & counted
            labels = truth[scored].cpu()
            of_scored = predicted[scored].cpu()  # float64 sums are kept on the host: MPS has none
            nats = functional.cross_entropy(of_scored, labels, reduction="none").double()
            correct = (of_scored[:, :PREDICTED_BASES].argmax(dim=1) == labels).double()
            for row, values in enumerate((nats, correct, torch.ones_like(nats))):
                sums[row].index_add_(0, labels, values)
        progress(len(rows))
    nats, correct, count = reduce(sums)
    if not count.sum():
        raise DataError("the split has no A, C, G or T to predict.")
    return HeldOutLoss(
        nats_per_base=float(nats.sum() / count.sum()),
        accuracy=float(correct.sum() / count.sum()),
        accuracy_by_base={
            vocabulary.tokens[i]: float(correct[i] / count[i]) for i in range(PREDICTED_BASES) if count[i]
        },
        bases=int(count.sum()),
    )
