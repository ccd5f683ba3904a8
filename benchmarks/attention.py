"""Every attention kernel beside Hugging Face's eager attention over each record alone: how far logits and gradients differ.

    python benchmarks/attention.py            # on a GPU where there is one

The model is ModernBERT with layers of both kinds and weights so large that what is far away matters. What is shown is the largest
difference over the largest value, in per cent. In bf16 a number has 8 bits, so eager attention in bf16 is shown as well.
"""

import argparse
import copy
from itertools import pairwise
from typing import Any

import torch

from dnascale.config import ModelConfig
from dnascale.data.masking import Masking
from dnascale.device import choose_device
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.vocab import CHARACTER

CONTEXT = 512
#: Where the records of a window end.
WINDOWS = {
    "one record": [],
    "two": [200],
    "around the reach of local layers": [63, 127, 192, 257],
    "many short": list(range(3, CONTEXT, 4)),
    "separators side by side": [0, 1, 2, 300, 301, 511],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    device = torch.device(parser.parse_args().device or choose_device("auto"))
    torch.set_num_threads(1)  # of many small products: threads wait for each other longer than they compute
    size = ModelConfig(hidden_size=128, layers=4, heads=2, intermediate_size=192, context=CONTEXT)
    hf = build(size, CHARACTER).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    hf.to(device)
    print(f"{device}, torch {torch.__version__}\n")
    print(f"| precision | kernel | {' | '.join(WINDOWS)} |\n|---|---|{'---|' * len(WINDOWS)}")
    narrow = ["flash"] if device.type == "cuda" else ["tiles"] if device.type == "cpu" else []
    for precision, kernels in ((None, ["masks", "blocks"]), (torch.bfloat16, ["eager", "masks", "blocks", *narrow])):
        for kernel in kernels:
            cells = [compare(hf, device, precision, kernel, ends) for ends in WINDOWS.values()]
            name = {"eager": "eager, each record alone"}.get(kernel, kernel)
            print(f"| {'fp32' if precision is None else 'bf16'} | {name} | {' | '.join(cells)} |", flush=True)


def compare(hf: Any, device: torch.device, precision: torch.dtype | None, kernel: str, ends: list[int]) -> str:
    """A cell: logits, gradients. The yardstick is fp32."""
    draw = torch.Generator().manual_seed(len(ends))
    tokens = torch.randint(0, 4, (4, CONTEXT), generator=draw)
    tokens[:, ends] = CHARACTER.sep
    tokens, weight = tokens.to(device), torch.randn(4, CONTEXT, len(CHARACTER), generator=draw).to(device)
    expected = each_alone(hf, tokens, weight, ends, None)
    if kernel == "eager":
        found = each_alone(hf, tokens, weight, ends, precision)
    else:
        masking = Masking(CHARACTER, 0.2, 0.8, 0.1, reverse_complement=False, repeat_weight=1.0)
        ours = copy.deepcopy(hf)  # the other stays Hugging Face's own
        model = MaskedLanguageModel(ours, masking, autocast=precision, device=device).to(device)
        model.attention.kernel = kernel
        found = gradients_of(ours, model.logits(tokens), weight)
    off = [float((one - exact).abs().max() / exact.abs().max()) for one, exact in zip(found, expected, strict=True)]
    return ", ".join(f"{100 * one:.2g} %" for one in off)


def each_alone(
    hf: Any, tokens: torch.Tensor, weight: torch.Tensor, ends: list[int], precision: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, gradients) of Hugging Face's model that is given one record at a time."""
    hf.set_attn_implementation("eager")
    cuts = sorted({0, CONTEXT, *ends, *(end + 1 for end in ends)})
    with torch.autocast(tokens.device.type, dtype=precision, enabled=precision is not None):
        logits = torch.cat([hf(input_ids=tokens[:, begin:end]).logits for begin, end in pairwise(cuts)], dim=1)
    return gradients_of(hf, logits, weight)


def gradients_of(hf: Any, logits: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    hf.zero_grad(set_to_none=True)
    (logits.float() * weight).sum().backward()
    return logits.detach().float(), torch.cat([p.grad.float().flatten() for p in hf.parameters()])


if __name__ == "__main__":
    main()
