"""Whether all ranks still hold the same weights: a bit that flipped in one device's memory would otherwise be trained on, and saved.

Where weights are replicated (DDP, ZeRO-1 and 2) they are equal to the bit at every step. A sum over the bits of each parameter finds any
single flip; it reads the weights once, and exchanges 8 bytes a parameter.
"""

from typing import TYPE_CHECKING

import torch

from dnascale.errors import NumericsError

if TYPE_CHECKING:
    from dnascale.train.engines import Engine

_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def require_equal_replicas(engine: "Engine", step: int) -> None:
    """Raises NumericsError, on every rank, that names the ranks that differ from most, and where. Collective.

    Does nothing in one process, and under ZeRO-3, where each weight is held once.
    """
    accelerator = engine.accelerator
    if accelerator.num_processes == 1 or engine.name == "zero3":
        return
    own = torch.stack([_bits(parameter.data) for parameter in engine.parameters.values()])
    digests = accelerator.gather(own[None]).cpu()  # [ranks, parameters]
    usual = digests.mode(dim=0).values
    if bool((digests == usual).all()):
        return
    different = digests != usual
    names = list(engine.parameters)
    where = [names[n] for n in different.any(dim=0).nonzero().flatten().tolist()]
    ranks = different.any(dim=1).nonzero().flatten().tolist()
    whose = (
        f"rank {', '.join(map(str, ranks))} differs from the others"
        if accelerator.num_processes > 2
        else "the two ranks differ"
    )
    raise NumericsError(
        f"after step {step:,} {whose} in the weights {', '.join(where[:3])}{f' and {len(where) - 3} more' if len(where) > 3 else ''}, which "
        "must be equal to the bit: a fault of a device's memory, or of the network. Nothing is saved of it; the last checkpoint is from before. "
        "Look at the devices (nvidia-smi -q -d ECC), and give the same command again. Where hosts compute differently (other CPUs, other versions "
        "of torch), their weights part by rounding: use equal ones, or guard.replicas=null."
    )


def _bits(weights: torch.Tensor) -> torch.Tensor:
    """int64 []: the sum of the numbers as integers of the same bits."""
    return weights.view(_INTEGER[weights.dtype]).sum(dtype=torch.int64)
