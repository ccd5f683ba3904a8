"""Which tokens may see each other: records that share a window stay apart, local layers see 129 tokens.

Position ids alone do not separate packed sequences in ModernBERT (they never reach the attention function),
so the separation is given as one explicit mask for each kind of layer.
"""

import torch


def record_masks(tokens: torch.Tensor, separator: int, local_attention: int) -> dict[str, torch.Tensor]:
    """Attention masks for windows of several records: tokens int64 [B, S] -> bool [B, 1, S, S], True = visible.

    A separator is a record of its own: no base sees it, so a record gives the same logits here as when it is run
    alone. Local layers see `local_attention // 2` tokens to each side (ModernBERT's sliding window).
    """
    is_separator = (tokens == separator).long()
    record = 2 * is_separator.cumsum(dim=1) - is_separator
    same_record = (record[:, :, None] == record[:, None, :])[:, None]
    place = torch.arange(tokens.shape[1], device=tokens.device)
    near = (place[:, None] - place[None, :]).abs() <= local_attention // 2
    return {"full_attention": same_record, "sliding_attention": same_record & near}
