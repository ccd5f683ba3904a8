"""A copy of the bare model, which takes steps before the run does: to find out what fits, and how long a step takes."""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from dnascale.config import CompileMode, Config
from dnascale.train.optim import build_optimizer
from dnascale.train.schedules import Stage

if TYPE_CHECKING:
    from dnascale.model.modernbert import MaskedLanguageModel


def trial_of(
    module: "MaskedLanguageModel", config: Config, stage: Stage, compiled: CompileMode | None
) -> tuple["MaskedLanguageModel", torch.optim.Optimizer]:
    """The copy and its optimizer, whose moments, gradients and fp32 weights are whole, as without ZeRO."""
    trial = copy.deepcopy(module)
    trial.masking = replace(trial.masking, rate=stage.masking_rate)
    if config.train.precision == "bf16":
        trial.autocast = torch.bfloat16  # DeepSpeed will have the weights in bf16; here they are still fp32
    if compiled is not None:
        trial.compile_step(compiled)
    return trial, build_optimizer(trial, config.optimizer, config.train.precision)
