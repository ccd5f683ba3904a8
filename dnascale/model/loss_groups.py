"""The loss of groups of predictions, summed on the device beside the loss that is trained: by what was shown, by base, and
inside or outside repeats."""

import torch

from dnascale.data.masking import MaskedBatch

#: Predicted tokens shown as a random base or as they are; of those shown as [MASK], each base, soft-masked ones and others.
GROUPS = ("random", "kept", "a", "c", "g", "t", "repeats", "outside_repeats")


def group_sums(nats: torch.Tensor, batch: MaskedBatch) -> torch.Tensor:
    """nats float32 [B * K] of the predictions of a batch -> float32 [2 * groups]: (nats, number) of each of `GROUPS`.

    Not weighted, so that repeats have a loss even where masking.repeat_weight is 0. Base ids are those of the character vocabulary.
    """
    hidden, soft, labels = batch.hidden, batch.soft, batch.labels
    members = torch.stack(
        [
            batch.random, batch.counted & ~hidden & ~batch.random,
            *(hidden & (labels == base) for base in range(4)), hidden & soft, hidden & ~soft,
        ]
    ).flatten(1).float()  # fmt: skip
    return torch.stack([(members * nats).sum(1), members.sum(1)], dim=1).flatten()
