"""What a layer does between its matrix products, on a CPU: a piece at a time, while it is in the cache.

Attention in bf16: torch's own is slow there going back, and the rotary embedding before it goes over all of memory a dozen times. Here a few windows at
a time are turned, multiplied, and put through the softmax: whole windows in global layers, blocks of queries against the keys that they can see in
local ones. Scores are bf16, as in Hugging Face's eager attention. The gated unit in any precision.

Nothing but the input is kept for the backward pass, which computes the rest again (Dao et al. 2022).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from transformers.activations import GELUActivation
from transformers.models.modernbert.modeling_modernbert import ModernBertAttention, ModernBertMLP

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM

#: Bytes of scores, of queries, or of what is gated, a thread: what a core's own cache holds.
_CACHE = 1 << 20


def adapt(hf: "ModernBertForMaskedLM") -> None:
    """Has the layers of a model compute as is written here; their parameters, and what is saved of them, stay as they are."""
    for layer in hf.model.layers:
        layer.attn.__class__ = CpuAttention
        if isinstance(layer.mlp.act, GELUActivation):
            layer.mlp.__class__ = CpuMLP


class Tile(NamedTuple):
    """Queries and the keys that they may see, as ranges of a window; and where their mask is: block, rows and columns."""

    queries: slice
    keys: slice
    block: int
    rows: slice
    columns: slice


def tiles(length: int, reach: int | None, heads: int) -> list[Tile]:
    """In local layers blocks of 2 * reach queries, whose masks are 4 * reach keys wide; in global ones as many queries as there is room for."""
    if reach is None:
        step = max(64, 4 * torch.get_num_threads() * _CACHE // (2 * heads * length))
        blocks = [slice(first, min(first + step, length)) for first in range(0, length, step)]
        return [Tile(queries, slice(0, length), 0, queries, slice(0, length)) for queries in blocks]
    found = []
    for block, first in enumerate(range(0, length, 2 * reach)):
        queries = slice(first, min(first + 2 * reach, length))
        keys = slice(max(0, first - reach), min(first + 3 * reach, length))
        offset = keys.start - (first - reach)
        columns = slice(offset, offset + keys.stop - keys.start)
        found.append(Tile(queries, keys, block, slice(0, queries.stop - first), columns))
    return found


# Operators of their own, so that torch.compile takes them as they are.


@torch.library.custom_op("dnascale::attend_in_tiles", mutates_args=())
def attend_in_tiles(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor | None, reach: int | None
) -> torch.Tensor:
    """qkv [B, S, 3, h, d], cos and sin [1, S, d], mask [B or 1, blocks or 1, queries, keys] to add to scores, or None -> [B, S, h, d]."""
    windows, length, _, heads, size = qkv.shape
    out = qkv.new_empty(windows, length, heads, size)
    of_window = tiles(length, reach, heads)
    for some in _chunks(qkv, reach):
        q, k, v = _turned(qkv[some], cos, sin)
        heads_first = out[some].transpose(1, 2)
        for tile in of_window:
            p = _probabilities(q, k, mask, some, tile)
            heads_first[:, :, tile.queries] = p @ v[:, :, tile.keys]
    return out


@torch.library.custom_op("dnascale::attend_in_tiles_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor | None,
    reach: int | None,
) -> torch.Tensor:
    """The gradient of qkv from that of the result."""
    result = torch.empty_like(qkv)
    of_window = tiles(qkv.shape[1], reach, qkv.shape[3])
    for some in _chunks(qkv, reach):
        q, k, v = _turned(qkv[some], cos, sin)
        d_out = grad[some].transpose(1, 2).contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for tile in of_window:
            p = _probabilities(q, k, mask, some, tile)
            d_tile = d_out[:, :, tile.queries]
            d_v[:, :, tile.keys] += p.mT @ d_tile
            d_p = d_tile @ v[:, :, tile.keys].mT
            d_scores = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            d_q[:, :, tile.queries] = d_scores @ k[:, :, tile.keys]
            d_k[:, :, tile.keys] += d_scores.mT @ q[:, :, tile.queries]
        _turn_back(d_q, d_k, cos, sin, result[some])
        result[some][:, :, 2] = d_v.transpose(1, 2)
    return result


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.reach = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
    return _backward(grad, *ctx.saved_tensors, ctx.reach), None, None, None, None


attend_in_tiles.register_fake(lambda qkv, cos, sin, mask, reach: qkv[:, :, 0].new_empty(qkv[:, :, 0].shape))
_backward.register_fake(lambda grad, qkv, cos, sin, mask, reach: torch.empty_like(qkv))
attend_in_tiles.register_autograd(_differentiate, setup_context=_keep)


@torch.library.custom_op("dnascale::geglu", mutates_args=())
def geglu(x: torch.Tensor) -> torch.Tensor:
    """x [n, 2 * width] -> [n, width], the GELU of its first half times the second."""
    width = x.shape[1] // 2
    out = x.new_empty(len(x), width)
    for some in _rows(x):
        torch.mul(functional.gelu(x[some, :width]), x[some, width:], out=out[some])
    return out


@torch.library.custom_op("dnascale::geglu_backward", mutates_args=())
def _geglu_backward(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    result, width = torch.empty_like(x), x.shape[1] // 2
    for some in _rows(x):
        entry, gate = x[some, :width], x[some, width:]
        torch.mul(grad[some], functional.gelu(entry), out=result[some, width:])
        torch.ops.aten.gelu_backward.grad_input(grad[some] * gate, entry, grad_input=result[some, :width])
    return result


geglu.register_fake(lambda x: x.new_empty(x.shape[0], x.shape[1] // 2))
_geglu_backward.register_fake(lambda grad, x: torch.empty_like(x))
geglu.register_autograd(
    lambda ctx, grad: _geglu_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


class CpuMLP(ModernBertMLP):
    """Hugging Face's module with the same parameters."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.device.type != "cpu":
            return super().forward(hidden_states)
        entry = self.Wi(hidden_states)
        gated = geglu(entry.flatten(0, -2)).unflatten(0, entry.shape[:-1])
        return self.Wo(self.drop(gated))


class CpuAttention(ModernBertAttention):
    """Hugging Face's module with the same parameters: what lies between its two matrix products is done in tiles."""

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: Any = None, attention_mask: Any = None, **options: Any
    ) -> tuple[torch.Tensor, None]:
        layout = options.get("layout")
        if layout is None or layout.kernel != "tiles":  # the bare model, or fp32, or elsewhere
            return super().forward(hidden_states, position_embeddings, attention_mask, **options)
        local = self.sliding_window is not None
        qkv = self.Wqkv(hidden_states).unflatten(-1, (3, -1, self.head_dim))
        mask = layout.near if local else layout.everything
        out = attend_in_tiles(qkv, *position_embeddings, mask, layout.reach if local else None)
        return self.out_drop(self.Wo(out.flatten(2))), None


def _rows(x: torch.Tensor) -> list[slice]:
    many = max(1, torch.get_num_threads() * _CACHE // (x.shape[1] * x.element_size()))
    return [slice(first, first + many) for first in range(0, len(x), many)]


def _chunks(qkv: torch.Tensor, reach: int | None) -> list[slice]:
    """As many windows at a time as the caches have room for."""
    windows, length, _, heads, size = qkv.shape
    queries, keys = (length, length) if reach is None else (min(2 * reach, length), min(4 * reach, length))
    each = heads * max(queries * keys, length * size) * qkv.element_size()
    many = max(1, torch.get_num_threads() * _CACHE // each)
    return [slice(first, first + many) for first in range(0, windows, many)]


def _turned(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[b, S, 3, h, d] -> q, k, v [b, h, S, d]: q and k by the rotary embedding, in fp32, and q times d^-0.5."""
    windows, length, _, heads, size = qkv.shape
    half = size // 2
    turned = qkv.new_empty(2, windows, heads, length, size)
    for number, scale in enumerate((size**-0.5, 1.0)):
        c, s = (angle[..., :half].float() * scale for angle in (cos, sin))  # the other half is the same
        x = qkv[:, :, number].transpose(1, 2).float()
        first, second = x[..., :half], x[..., half:]
        part = torch.mul(first, c).addcmul_(second, s, value=-1)
        turned[number, ..., :half] = part
        turned[number, ..., half:] = torch.mul(second, c, out=part).addcmul_(first, s)
    return turned[0], turned[1], qkv[:, :, 2].transpose(1, 2).contiguous()


def _turn_back(
    d_q: torch.Tensor, d_k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, result: torch.Tensor
) -> None:
    """Gradients of what `_turned` gives, [b, h, S, d], as those of its input, into [b, S, 3, h, d]."""
    size = d_q.shape[-1]
    half = size // 2
    for number, (gradient, scale) in enumerate(((d_q, size**-0.5), (d_k, 1.0))):
        c, s = (angle[..., :half].float() * scale for angle in (cos, sin))
        x, into = gradient.float(), result[:, :, number].transpose(1, 2)
        first, second = x[..., :half], x[..., half:]
        part = torch.mul(first, c).addcmul_(second, s)
        into[..., :half] = part
        into[..., half:] = torch.mul(second, c, out=part).addcmul_(first, s, value=-1)


def _probabilities(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, some: slice, tile: Tile
) -> torch.Tensor:
    """[b, h, queries, keys] of one tile of `some` windows."""
    scores = q[:, :, tile.queries] @ k[:, :, tile.keys].mT
    if mask is not None:
        of_windows = mask[some] if len(mask) > 1 else mask
        block = min(tile.block, mask.shape[1] - 1)
        scores += of_windows[:, block, None, tile.rows, tile.columns]
    return scores.softmax(-1)
