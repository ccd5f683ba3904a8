"""From predictions of tokens to nats per base, so that vocabularies compare with each other and with ln 4.

one base a token       the cross-entropy of the token
overlapping k-mers     that of the token's first base, summed over all k-mers that begin with it: exact
longer tokens          that of the token, over the number of bases it stands for
"""

import torch
from torch.nn import functional

from dnascale.data.masking import first_letters
from dnascale.vocab import PREDICTED_BASES, Vocabulary


def letter_log_p(logits: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Logits of overlapping k-mers float32 [N, V] -> ln p of the first base, [N, 4] in the order of the ids (A, T, C, G)."""
    log_p = logits.log_softmax(dim=-1)
    kmers = log_p[:, vocabulary.first_long : len(vocabulary)].unflatten(1, (PREDICTED_BASES, -1)).logsumexp(dim=2)
    return torch.logaddexp(kmers, log_p[:, :PREDICTED_BASES])


def base_nats(logits: torch.Tensor, labels: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    """Nats of the bases that tokens stand for: logits float32 [N, V], labels int64 [N] of predictable tokens -> [N]."""
    if vocabulary.views == 1:
        return functional.cross_entropy(logits, labels, reduction="none")
    # Where nothing was to be predicted a label may be no base; its weight is 0.
    letters = first_letters(labels, vocabulary).clamp(max=PREDICTED_BASES - 1)
    return -letter_log_p(logits, vocabulary).gather(1, letters[:, None]).squeeze(1)
