"""How a global batch is divided over processes, accumulation and micro-batches, and what a micro-batch is for the model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.data.stream import Batch
from dnascale.errors import UsageError
from dnascale.train.schedules import Stage

if TYPE_CHECKING:
    from dnascale.model.modernbert import MaskedLanguageModel


@dataclass(frozen=True)
class Batching:
    """global = world x accumulation x micro, in windows."""

    global_windows: int
    micro_windows: int
    accumulation: int
    world: int


def divide_batch(config: Config, stage: Stage, world: int) -> Batching:
    """The micro-batch is capped by the global batch; accumulation follows. Raises UsageError unless it divides.

    Before `auto` is settled, a window at a time stands for it.
    """
    context, tokens = stage.context, stage.global_batch_tokens
    where = (
        "train.global_batch_tokens" if tokens == config.train.global_batch_tokens else "global_batch_tokens of a stage"
    )
    windows = tokens // context
    if windows % world:
        raise UsageError(
            f"{where}={tokens} is {windows} windows of {context}, which {world} processes cannot share equally: make it a multiple "
            f"of {world * context}."
        )
    asked = config.train.micro_batch_tokens
    micro = 1 if asked == "auto" else min(asked // context, windows // world)
    if windows % (world * micro):
        raise UsageError(
            f"{where}={tokens} is not a multiple of {world} processes x train.micro_batch_tokens={micro * context}: change one of "
            "them."
        )
    return Batching(windows, micro, windows // (world * micro), world)


def divides(config: Config, of_run: list[Stage], world: int) -> bool:
    """Whether the global batch of every stage is a whole number of micro-batches on each of `world` processes."""
    try:
        for stage in of_run:
            divide_batch(config, stage, world)
    except UsageError:
        return False
    return True


def to_device(
    batch: Batch, module: "MaskedLanguageModel", device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What `module` is called with. The copies do not wait on CUDA, where the tokens are in pinned memory; elsewhere they do, for that
    memory is used again.
    """
    room, later = module.room(batch.tokens), device.type == "cuda"
    return batch.tokens.to(device, non_blocking=later), batch.keys.to(device, non_blocking=later), room
