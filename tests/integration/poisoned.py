"""A training job in which the loss of some steps is multiplied, on one rank, by a number or by nan."""

import os
import sys

from dnascale.cli import main as dnascale
from dnascale.model.modernbert import MaskedLanguageModel


def main(words: list[str], factors: dict[int, float], rank: int, first: int) -> None:
    """`factors` by step; `first`: the step that this start of the run begins with. One micro-batch a step."""
    forward, step = MaskedLanguageModel.forward, first - 1

    def multiplied(self: MaskedLanguageModel, *inputs: object) -> object:
        nonlocal step
        loss, sums = forward(self, *inputs)  # type: ignore[arg-type]
        if not self.training:
            return loss, sums
        step += 1
        factor = factors.get(step, 1.0) if os.environ.get("RANK", "0") == str(rank) else 1.0
        return loss * factor, sums * factor

    MaskedLanguageModel.forward = multiplied  # type: ignore[method-assign, assignment]
    sys.argv = ["dnascale", *words]
    dnascale(words)
