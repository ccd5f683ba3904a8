"""A training job on ranks that run out of memory above a number of tokens each, as a GPU would."""

import os
import sys

import torch

from dnascale.cli import main as dnascale
from dnascale.model.modernbert import MaskedLanguageModel
from dnascale.train import memory


def main(words: list[str], room: dict[str, int], from_step: int) -> None:
    """`room`: tokens that rank N can take, by str(N), from its forward pass number `from_step` on."""
    mine = room.get(os.environ.get("RANK", "0"))
    forward, passes = MaskedLanguageModel.forward, 0

    def limited(self: MaskedLanguageModel, tokens: torch.Tensor, *rest: object) -> object:
        nonlocal passes
        passes += 1
        if mine is not None and passes >= from_step and tokens.numel() > mine:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(self, tokens, *rest)  # type: ignore[arg-type]

    MaskedLanguageModel.forward = limited  # type: ignore[method-assign, assignment]
    memory.probes = lambda _device: True
    sys.argv = ["dnascale", *words]
    dnascale(words)
