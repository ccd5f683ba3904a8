"""Engines: how one optimizer step is computed on the devices at hand. Plain (one process or DDP) or DeepSpeed ZeRO."""

from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.train.engines.deepspeed import deepspeed_config, require_few_in_bf16
from dnascale.train.engines.engine import Engine, Fragment, compile_mode
from dnascale.train.engines.graphs import Graphs, require_graphs
from dnascale.train.engines.plain import PlainEngine
from dnascale.train.engines.reduction import GradientReductionCheck
from dnascale.train.engines.zero import DeepSpeedEngine

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel

__all__ = [
    "Engine",
    "Fragment",
    "GradientReductionCheck",
    "Graphs",
    "PlainEngine",
    "build_engine",
    "compile_mode",
    "deepspeed_config",
    "require_few_in_bf16",
    "require_graphs",
]


def build_engine(
    accelerator: "Accelerator",
    module: "MaskedLanguageModel",
    optimizer: torch.optim.Optimizer,
    config: Config,
    accumulation: int,
) -> Engine:
    if accelerator.deepspeed_plugin is not None:
        return DeepSpeedEngine(accelerator, module, optimizer, config)
    return PlainEngine(accelerator, module, optimizer, config, accumulation)
