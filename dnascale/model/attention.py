"""Attention: which tokens see each other, and the kernel that computes it on the device at hand.

Hugging Face's ModernBERT calls `attend` (registered under `NAME`) in every layer. Global layers see a whole record, local
layers `reach` tokens to each side; records that share a window never see each other. A `Layout` holds what follows from
the tokens of a batch, computed once a forward and shared by all layers. In bf16 on a CPU `cpu.py` does more than that function can.

Position ids alone do not separate packed sequences in ModernBERT: they never reach the attention function. Without a
layout `attend` is Hugging Face's own SDPA, so that the bare model computes what it does anywhere else.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from dnascale.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The name under which transformers knows `attend`.
NAME = "dnascale"

#: Local layers in blocks pay where a window is longer than this many reaches; below, one dense mask is as fast.
BLOCKED_FROM = 6


class Layout(NamedTuple):
    """Who sees whom in one batch of [B, S] tokens, as the kernel wants it. A tuple, which torch.compile takes apart."""

    kernel: str
    reach: int
    everything: torch.Tensor | None = None  # mask of global layers [B, 1, S, S], bool or to add; None sees all
    near: torch.Tensor | None = None  # mask of local layers: [B or 1, 1, S, S], or a block of queries a row
    starts: torch.Tensor | None = None  # int32 [records + 1] in the flattened batch; the last ones are B * S


def register() -> None:
    """Makes `attend` known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def use(hf: "PreTrainedModel") -> None:
    """Makes a ModernBERT that was read from somewhere attend by `attend`. Raises UsageError where transformers would not:
    it warns alone, and records of one window would attend to each other.
    """
    register()
    hf.set_attn_implementation(NAME)
    if hf.config._attn_implementation != NAME:
        raise UsageError(
            "this transformers does not let the attention of ModernBERT be replaced, so records in one window would not be "
            "kept apart: install the version that dnascale asks for (pip install --upgrade dnascale), with its sources."
        )


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
        kernel = _KERNELS[layout.kernel]
        return kernel(query, key, value, layout, sliding_window is not None, scaling), None
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


def _lay_out_masks(tokens: torch.Tensor, separator: int | None, reach: int) -> Layout:
    """Dense masks. `separator` None: all tokens of a window are one record."""
    if separator is None:
        return Layout("masks", reach, near=_near(tokens.shape[1], reach, tokens)[None, None])
    masks = record_masks(tokens, separator, reach)
    return Layout("masks", reach, masks["full_attention"], masks["sliding_attention"])


def _lay_out_blocks(tokens: torch.Tensor, separator: int | None, reach: int) -> Layout:
    """Local layers in blocks of `reach` queries against three blocks of keys: work grows with S and not with its square.

    `near` is bool [B * blocks, 1, reach, 3 * reach], or [blocks, ...] where it is the same for all windows.
    """
    windows, length = tokens.shape
    blocks = -(-length // reach)
    block = torch.arange(blocks, device=tokens.device)[:, None]
    query = (block * reach + torch.arange(reach, device=tokens.device))[:, :, None]
    key = ((block - 1) * reach + torch.arange(3 * reach, device=tokens.device))[:, None, :]
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
    return Layout("blocks", reach, everything, near.reshape(-1, 1, reach, 3 * reach))


def _lay_out_tiles(tokens: torch.Tensor, separator: int | None, reach: int) -> Layout:
    """Masks as what is added to scores, bf16: global layers [B, 1, S, S]; local ones a block of 2 * reach queries against 4 * reach keys,
    [B, blocks, 2 * reach, 4 * reach], or [1, 1, ...] where it is the same for all.
    """
    windows, length = tokens.shape
    query = torch.arange(2 * reach, device=tokens.device)[:, None]
    key = torch.arange(-reach, 3 * reach, device=tokens.device)[None, :]
    near = ((query - key).abs() <= reach)[None, None]
    if separator is None:
        return Layout("tiles", reach, near=_to_add(near))
    record = record_ids(tokens, separator)
    everything = (record[:, :, None] == record[:, None, :])[:, None]
    blocks = -(-length // (2 * reach))
    padded = functional.pad(record, (reach, 2 * reach * blocks - length + reach), value=-1)
    own = padded[:, reach:-reach].view(windows, blocks, 2 * reach, 1)
    seen = padded.unfold(1, 4 * reach, 2 * reach)[:, :, None, :]
    return Layout("tiles", reach, _to_add(everything), _to_add(near & (own == seen)))


def _to_add(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=torch.bfloat16, device=visible.device).masked_fill_(~visible, -torch.inf)


def _lay_out_flash(kernel: str, tokens: torch.Tensor, separator: int | None, reach: int, room: int) -> Layout:
    """Starts of records. `room`: records there is place for, at least B + 2 * separators, so that shapes are static."""
    windows, length = tokens.shape
    total, device = windows * length, tokens.device
    if separator is None:
        return Layout(kernel, reach, starts=torch.arange(0, total + length, length, dtype=torch.int32, device=device))
    record = record_ids(tokens, separator)
    begins = functional.pad(record[:, 1:] != record[:, :-1], (1, 0), value=True).flatten()
    place = torch.where(begins, begins.cumsum(0) - 1, room)  # all that begins no record goes to the slot behind
    token = torch.arange(total, dtype=torch.int32, device=device)
    starts = torch.full((room + 1,), total, dtype=torch.int32, device=device)
    return Layout("packed flash", reach, starts=starts.scatter(0, place, torch.where(begins, token, total)))


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float) -> torch.Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


# The kernels: q, k, v [B, h, S, d] -> [B, S, h, d].


def _with_masks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, local: bool, scale: float
) -> torch.Tensor:
    return _sdpa(q, k, v, layout.near if local else layout.everything, scale).transpose(1, 2)


def _in_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, local: bool, scale: float
) -> torch.Tensor:
    if not local:
        return _with_masks(q, k, v, layout, local, scale)
    windows, heads, length, size = q.shape
    reach, near = layout.reach, layout.near
    assert near is not None
    blocks = -(-length // reach)
    tail = blocks * reach - length
    # [B, h, S, d] -> [B * blocks, h, reach or 3 * reach, d]
    q = functional.pad(q, (0, 0, 0, tail)).view(windows, heads, blocks, reach, size).transpose(1, 2).flatten(0, 1)
    k, v = (
        functional.pad(x, (0, 0, reach, reach + tail)).unfold(2, 3 * reach, reach).permute(0, 2, 1, 4, 3).flatten(0, 1)
        for x in (k, v)
    )
    if len(near) != windows * blocks:
        near = near.repeat(windows, 1, 1, 1)
    out = _sdpa(q, k, v, near, scale)
    return out.unflatten(0, (windows, blocks)).transpose(2, 3).flatten(1, 2)[:, :length]


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, local: bool, scale: float
) -> torch.Tensor:
    """torch's variable-length flash attention. As "flash", global layers over windows of one record take SDPA (cuDNN on Hopper)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    if layout.kernel == "flash" and not local:
        return _with_masks(q, k, v, layout, local, scale)
    windows, _, length, _ = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    seen = (layout.reach, layout.reach) if local else (-1, -1)
    # From torch 2.15 on global layers would go to cuDNN, which is not sound with the empty records behind the last one before 9.25.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = varlen_attn(q, k, v, layout.starts, layout.starts, length, length, scale=scale, window_size=seen)
    return out.unflatten(0, (windows, length))


def _in_tiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout, local: bool, scale: float
) -> torch.Tensor:
    """For models whose layers are Hugging Face's own: the rotary embedding is done."""
    from dnascale.model.cpu import attend_in_tiles

    length, size = q.shape[-2:]
    qkv = torch.stack([q * (scale * size**0.5), k, v], 2).permute(0, 3, 2, 1, 4)
    still = q.new_ones(1, length, size)
    mask, reach = (layout.near, layout.reach) if local else (layout.everything, None)
    return attend_in_tiles(qkv, still, torch.zeros_like(still), mask, reach)


_KERNELS = {
    "masks": _with_masks, "blocks": _in_blocks, "tiles": _in_tiles, "flash": _flash, "packed flash": _flash
}  # fmt: skip


@dataclass
class Attention:
    """The kernel of a model: lays out each batch. `reach` is how far local layers see to each side."""

    kernel: str  # flash, packed flash, tiles, blocks or masks
    separator: int | None  # None: records of a window see each other
    reach: int
    _room: int = 0

    @classmethod
    def choose(
        cls, device: torch.device, dtype: torch.dtype, head_size: int, context: int, separator: int | None, reach: int
    ) -> "Attention":
        """Flash attention on CUDA where it can (half precision, since Ampere), tiles in bf16 on a CPU, else SDPA, in blocks for long windows."""
        half = dtype in (torch.bfloat16, torch.float16)
        if device.type == "cuda" and half and head_size % 8 == 0 and head_size <= 256 and _has_windowed_varlen(device):
            return cls("packed flash" if flash_implementation() else "flash", separator, reach)
        if device.type == "cpu" and dtype == torch.bfloat16:
            return cls("tiles", separator, reach)
        return cls("blocks" if context >= BLOCKED_FROM * reach else "masks", separator, reach)

    def __str__(self) -> str:
        return {
            "flash": "variable-length flash, SDPA where a window is one record",
            "packed flash": f"variable-length {flash_implementation() or 'flash'}",
            "tiles": "in tiles that stay in the cache",
            "blocks": f"SDPA, local layers in blocks of {self.reach}",
            "masks": "SDPA with masks",
        }[self.kernel]

    def room(self, windows: int, separators: int) -> int:
        """How many records to lay a batch out for: 0 if each window is one record. Grows seldom, for each is one compile."""
        if self.separator is None or not separators:
            return 0
        if "flash" not in self.kernel:
            return 1
        needed = windows + 2 * separators
        while self._room < needed:
            self._room = max(2 * self._room, windows + 64)
        return self._room

    def lay_out(self, tokens: torch.Tensor, room: int) -> Layout:
        """tokens int64 [B, S], `room` as said by the method of this name."""
        separator = self.separator if room else None
        if "flash" in self.kernel:
            return _lay_out_flash(self.kernel, tokens, separator, self.reach, room)
        lay_out = {"tiles": _lay_out_tiles, "blocks": _lay_out_blocks, "masks": _lay_out_masks}[self.kernel]
        return lay_out(tokens, separator, self.reach)


def flash_implementation() -> str | None:
    """Whose flash attention this process has in the place of torch's own (`flash.py`)."""
    try:
        from torch.nn.attention import current_flash_attention_impl
    except ImportError:  # torch before 2.11
        return None
    return current_flash_attention_impl()


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
