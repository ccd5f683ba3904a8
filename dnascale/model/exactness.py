"""How far an attention kernel is from the definition, on the device that it will run on."""

import torch

from dnascale.model.attention import Attention, attend, record_masks

#: Largest relative error of a sound kernel.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-2, torch.float32: 1e-4}


def relative_error(
    kernel: str, device: torch.device, dtype: torch.dtype, head_size: int = 64, reach: int = 64
) -> float:
    """The largest, in the Frobenius norm, of output and gradients, against dense attention in fp32 on the CPU.

    Over windows of several records, which are many times as long as local layers see, in global and local layers, two heads.
    """
    separator, length = 1, 8 * reach
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((2, length), 5)
    tokens[0, [length // 3, length // 3 + 1, length - 5]] = separator
    # As a layer gives them: query and key after their rotation, the value a part of a larger tensor.
    query, key, outer = (torch.randn(2, 2, length, head_size, generator=generator).to(dtype) for _ in range(3))
    value = torch.randn(2, length, 3, 2, head_size, generator=generator).to(dtype).unbind(2)[2].transpose(1, 2)
    scale = head_size**-0.5
    worst = 0.0
    for local in (False, True):
        attention = Attention(kernel, separator, reach)
        placed = [x.to(device).detach().requires_grad_() for x in (query, key, value)]
        layout = attention.lay_out(tokens.to(device), attention.room(2, 3))
        window = reach + 1 if local else None
        q, k, v = placed
        out, _ = attend(torch.nn.Module(), q, k, v, None, scale, sliding_window=window, layout=layout)
        out.backward(outer.transpose(1, 2).to(device))
        found = [out.detach().transpose(1, 2), *(x.grad for x in placed)]
        mask = record_masks(tokens, separator, reach)["sliding_attention" if local else "full_attention"]
        exact = [x.float().detach().requires_grad_() for x in (query, key, value)]
        q, k, v = exact
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        expected.backward(outer.float())
        wanted = [expected.detach(), *(x.grad for x in exact)]
        for a, b in zip(found, wanted, strict=True):
            assert a is not None
            assert b is not None
            worst = max(worst, float((a.float().cpu() - b).norm() / b.norm()))
    return worst
