"""The optimizer of a run: by its name, with its parameter groups, and what it keeps for each parameter."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from dnascale.config import OptimizerConfig
from dnascale.train.optimizers import OPTIMIZERS, Piece, PiecewiseOptimizer, Ranks, is_hidden_matrix

if TYPE_CHECKING:
    from torch import Tensor, nn


def states(optimizer: str, parameter: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The fp32 tensors that an optimizer keeps for a parameter, and their shapes: what a checkpoint holds besides weights."""
    which = OPTIMIZERS.get(optimizer, PiecewiseOptimizer)  # torch's AdamW keeps what the base class does
    return dict.fromkeys(which.kinds(parameter, shape), shape) | which.shared_kinds(parameter, shape)


def parameter_groups(model: "nn.Module", config: OptimizerConfig) -> list[dict[str, Any]]:
    """Muon's matrices apart; all other matrices; and norms and biases, which have no weight decay."""
    parameters = {name.removeprefix("hf."): p for name, p in model.named_parameters() if p.requires_grad}
    hidden = [n for n, p in parameters.items() if config.name == "muon" and is_hidden_matrix(n, tuple(p.shape))]
    other = [name for name, p in parameters.items() if p.ndim >= 2 and name not in hidden]
    vectors = [name for name, p in parameters.items() if p.ndim < 2]
    return [
        {
            "params": [parameters[name] for name in names],
            "shapes": {name: tuple(parameters[name].shape) for name in names},
            "hidden": names is hidden,
            "weight_decay": 0.0 if names is vectors else config.weight_decay,
        }
        for names in (hidden, other, vectors)
        if names
    ]


def build_optimizer(
    model: "nn.Module", config: OptimizerConfig, precision: str = "fp32", with_state: bool = True
) -> torch.optim.Optimizer:
    """The optimizer of that name over whole parameters, with the state of step 0, so that it can be read before the first.

    `precision` (fp32 or bf16) is that of muon's matrix products; state and updates are fp32. Without `with_state` there is none,
    for an engine that cuts the parameters and then calls `place`.
    """
    groups = parameter_groups(model, config)
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    if config.name == "adamw":
        fused = groups[0]["params"][0].device.type != "meta"
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, **common, fused=fused)
    else:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        optimizer = OPTIMIZERS[config.name](groups, **common, momentum=config.momentum, dtype=dtype)
    if with_state:
        whole = {
            parameter: [Piece(name, 0, parameter.numel())]
            for group in optimizer.param_groups
            for name, parameter in zip(group["shapes"], group["params"], strict=True)
        }
        place(optimizer, whole)
    return optimizer


def place(
    optimizer: torch.optim.Optimizer,
    pieces: "Mapping[Tensor, list[Piece]]",
    ranks: Ranks | None = None,
) -> None:
    """Says what parameters the tensors that `optimizer` updates are made of, and gives each the state of step 0."""
    if isinstance(optimizer, PiecewiseOptimizer):
        optimizer.place(pieces, ranks)
        return
    for tensor in pieces:
        optimizer.state[tensor] = {
            "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
            **{kind: torch.zeros_like(tensor) for kind in ("exp_avg", "exp_avg_sq")},
        }


def share_work(optimizer: torch.optim.Optimizer, ranks: Ranks) -> None:
    """Ranks that have all parameters whole may divide what is the same on each."""
    if isinstance(optimizer, PiecewiseOptimizer):
        optimizer.ranks = ranks


def shared_state(optimizer: torch.optim.Optimizer, parameter: str) -> "dict[str, Tensor]":
    """State of a whole parameter that every rank holds, by kind."""
    return optimizer.shared[parameter] if isinstance(optimizer, PiecewiseOptimizer) else {}


def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Sets how many updates the state has seen (the bias correction of Adam)."""
    for state in optimizer.state.values():
        state["step"].fill_(float(step))
