"""The optimizer, and the learning rate as a pure function of the step: no scheduler object, nothing to save."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from dnascale.config import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from torch import nn

#: The optimizer's fp32 tensors of each parameter, by the names torch.optim.AdamW gives them.
MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the rate of optimizer step `step`, counted from 0.

    Linear from peak / warm-up steps to `peak`, then constant, then linear to `final * peak`, which the step after
    the last would have. A schedule in steps, so the same for every world size.
    """
    warmup_steps = round(schedule.warmup * total_steps)
    decay_steps = round(schedule.decay * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = total_steps - step
    if left < decay_steps:
        return peak * (schedule.final + (1 - schedule.final) * left / decay_steps)
    return peak


def build_optimizer(model: "nn.Module", config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone: norms and biases (one dimension) have none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=parameters[0].device.type != "meta"
    )


def allocate_moments(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> None:
    """Gives each tensor the AdamW state of step 0, so that it can be read and written before the first step."""
    for tensor in tensors:
        optimizer.state[tensor] = {
            "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
            **{moment: torch.zeros_like(tensor, memory_format=torch.preserve_format) for moment in MOMENTS},
        }


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets how many updates the moments have seen (the bias correction of Adam)."""
    for state in optimizer.state.values():
        state["step"].fill_(float(step))
