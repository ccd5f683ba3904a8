"""Attention: which tokens see each other, and the kernel that computes it on the device at hand.

Hugging Face's ModernBERT calls `attend` (registered under `NAME`) in every layer. Global layers see a whole record, local
layers `reach` tokens to each side; records that share a window never see each other. A `Layout` holds what follows from
the tokens of a batch, computed once a forward and shared by all layers.

Position ids alone do not separate packed sequences in ModernBERT: they never reach the attention function. Without a
layout `attend` is Hugging Face's own SDPA, so that the bare model computes what it does anywhere else.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

#: The name under which transformers knows `attend`.
NAME = "dnascale"

#: Local layers in blocks pay where a window is longer than this many reaches; below, one dense mask is as fast.
_BLOCKED_FROM = 6


class Layout(Protocol):
    """Who sees whom in one batch of [B, S] tokens."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: bool, scale: float) -> torch.Tensor:
        """q, k, v [B, h, S, d] -> [B, S, h, d]."""
        ...


def register() -> None:
    """Makes `attend` known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: q, k, v [B, h, S, d] -> ([B, S, h, d], None)."""
    if layout is not None:
        return layout(query, key, value, sliding_window is not None, scaling), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def record_ids(tokens: torch.Tensor, separator: int) -> torch.Tensor:
    """int64 [B, S] -> int64 [B, S], equal where two tokens of a window belong to one record.

    A separator is a record of its own: no base sees it, so a record gives the same logits here as when it is run alone.
    """
    is_separator = (tokens == separator).long()
    return 2 * is_separator.cumsum(dim=1) - is_separator


def record_masks(tokens: torch.Tensor, separator: int, reach: int) -> dict[str, torch.Tensor]:
    """The definition, as dense masks: tokens int64 [B, S] -> bool [B, 1, S, S] a kind of layer, True = visible."""
    record = record_ids(tokens, separator)
    same_record = (record[:, :, None] == record[:, None, :])[:, None]
    return {"full_attention": same_record, "sliding_attention": same_record & _near(tokens.shape[1], reach, tokens)}


def _near(length: int, reach: int, like: torch.Tensor) -> torch.Tensor:
    place = torch.arange(length, device=like.device)
    return (place[:, None] - place[None, :]).abs() <= reach


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


@dataclass(frozen=True)
class MaskedLayout:
    """Dense masks, any device. `everything` and `near` are bool [B or 1, 1, S, S]; None sees all."""

    everything: torch.Tensor | None
    near: torch.Tensor

    @classmethod
    def of(cls, tokens: torch.Tensor, separator: int | None, reach: int) -> "MaskedLayout":
        """`separator` None: all tokens of a window are one record."""
        if separator is None:
            return cls(None, _near(tokens.shape[1], reach, tokens)[None, None])
        masks = record_masks(tokens, separator, reach)
        return cls(masks["full_attention"], masks["sliding_attention"])

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: bool, scale: float) -> torch.Tensor:
        return _sdpa(q, k, v, self.near if local else self.everything, scale).transpose(1, 2)


@dataclass(frozen=True)
class BlockedLayout:
    """Local layers in blocks of `reach` queries against three blocks of keys: work grows with S and not with its square.

    `near` is bool [B * blocks, 1, reach, 3 * reach], or [blocks, ...] when it is the same for all windows.
    """

    everything: torch.Tensor | None
    near: torch.Tensor
    reach: int

    @classmethod
    def of(cls, tokens: torch.Tensor, separator: int | None, reach: int) -> "BlockedLayout":
        windows, length = tokens.shape
        blocks = -(-length // reach)
        query = torch.arange(blocks * reach, device=tokens.device).view(blocks, reach, 1)
        # Key j of a block stands `reach` before its first query, plus j.
        key = (
            torch.arange(3 * reach, device=tokens.device)
            + reach * torch.arange(-1, blocks - 1, device=tokens.device)[:, None]
        )
        key = key[:, None, :]
        # Queries behind the end see whatever is near, so that no row of the softmax is empty; they are cut off.
        near = ((query - key).abs() <= reach) & (key >= 0) & ((key < length) | (query >= length))
        everything = None
        if separator is not None:
            record = record_ids(tokens, separator)
            everything = (record[:, :, None] == record[:, None, :])[:, None]
            padded = functional.pad(record, (reach, blocks * reach - length + reach), value=-1)
            own = padded[:, reach : reach + blocks * reach].view(windows, blocks, reach, 1)
            seen = padded.unfold(1, 3 * reach, reach)[:, :, None, :]
            near = near & (own == seen)
        near = near.reshape(-1, 1, reach, 3 * reach)
        return cls(everything, near, reach)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: bool, scale: float) -> torch.Tensor:
        if not local:
            return _sdpa(q, k, v, self.everything, scale).transpose(1, 2)
        windows, heads, length, size = q.shape
        blocks = -(-length // self.reach)
        tail = blocks * self.reach - length
        # [B, h, S, d] -> [B * blocks, h, reach or 3 * reach, d]
        q = functional.pad(q, (0, 0, 0, tail)).view(windows, heads, blocks, self.reach, size).transpose(1, 2)
        k, v = (
            functional.pad(x, (0, 0, self.reach, self.reach + tail))
            .unfold(2, 3 * self.reach, self.reach)
            .permute(0, 2, 1, 4, 3)
            .flatten(0, 1)
            for x in (k, v)
        )
        near = self.near if len(self.near) == windows * blocks else self.near.repeat(windows, 1, 1, 1)
        out = _sdpa(q.flatten(0, 1), k, v, near, scale)
        return out.unflatten(0, (windows, blocks)).transpose(2, 3).flatten(1, 2)[:, :length]


@dataclass(frozen=True)
class FlashLayout:
    """Variable-length flash attention: `starts` int32 [records + 1] in the flattened batch, the last ones B * S.

    Without separators the windows are equal records, and global layers take dense SDPA (cuDNN on Hopper).
    """

    starts: torch.Tensor
    reach: int
    dense: bool

    @classmethod
    def of(cls, tokens: torch.Tensor, separator: int | None, reach: int, room: int) -> "FlashLayout":
        """`room`: records there is place for, at least B + 2 * separators, so that shapes are static."""
        windows, length = tokens.shape
        if separator is None:
            starts = torch.arange(0, (windows + 1) * length, length, dtype=torch.int32, device=tokens.device)
            return cls(starts, reach, dense=True)
        record = record_ids(tokens, separator)
        begins = functional.pad(record[:, 1:] != record[:, :-1], (1, 0), value=True).flatten()
        place = torch.where(begins, begins.cumsum(0) - 1, room)  # all that begins no record goes to one slot behind
        token = torch.arange(windows * length, dtype=torch.int32, device=tokens.device)
        starts = torch.full((room + 1,), windows * length, dtype=torch.int32, device=tokens.device)
        starts = starts.scatter(0, place, torch.where(begins, token, windows * length))
        return cls(starts, reach, dense=False)

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, local: bool, scale: float) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if self.dense and not local:
            return _sdpa(q, k, v, None, scale).transpose(1, 2)
        windows, _, length, _ = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        seen = (self.reach, self.reach) if local else (-1, -1)
        out = varlen_attn(q, k, v, self.starts, self.starts, length, length, scale=scale, window_size=seen)
        return out.unflatten(0, (windows, length))


@dataclass
class Attention:
    """The kernel of a model: lays out each batch. `reach` is how far local layers see to each side."""

    kernel: str  # flash, blocks or masks
    separator: int | None  # None: records of a window see each other
    reach: int
    _room: int = 0

    @classmethod
    def choose(
        cls, device: torch.device, dtype: torch.dtype, head_size: int, context: int, separator: int | None, reach: int
    ) -> "Attention":
        """Flash attention on CUDA where it can (half precision, since Ampere), else SDPA, in blocks for long windows."""
        half = dtype in (torch.bfloat16, torch.float16)
        if device.type == "cuda" and half and head_size % 8 == 0 and head_size <= 256 and _has_windowed_varlen(device):
            return cls("flash", separator, reach)
        return cls("blocks" if context >= _BLOCKED_FROM * reach else "masks", separator, reach)

    def __str__(self) -> str:
        return {
            "flash": "variable-length flash, SDPA where a window is one record",
            "blocks": f"SDPA, local layers in blocks of {self.reach}",
            "masks": "SDPA with masks",
        }[self.kernel]

    def room(self, windows: int, separators: int) -> int:
        """How many records to lay a batch out for: 0 if each window is one record. Grows seldom, for each is one compile."""
        if self.separator is None or not separators:
            return 0
        if self.kernel != "flash":
            return 1
        needed = windows + 2 * separators
        while self._room < needed:
            self._room = max(2 * self._room, windows + 64)
        return self._room

    def lay_out(self, tokens: torch.Tensor, room: int) -> Layout:
        """tokens int64 [B, S], `room` as said by the method of this name."""
        separator = self.separator if room else None
        if self.kernel == "flash":
            return FlashLayout.of(tokens, separator, self.reach, room)
        kind = BlockedLayout if self.kernel == "blocks" else MaskedLayout
        return kind.of(tokens, separator, self.reach)


def _has_windowed_varlen(device: torch.device) -> bool:
    """torch 2.11 brought `window_size`; the kernels are for compute capability 8.0 and later."""
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return False
    import inspect

    return "window_size" in inspect.signature(varlen.varlen_attn).parameters and (
        torch.cuda.get_device_capability(device) >= (8, 0)
    )
