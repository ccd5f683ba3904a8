"""Loads the newest checkpoint of one run with the engine at hand and saves it elsewhere at once, without a step."""

import os
from pathlib import Path

import torch

from dnascale.config import load_config
from dnascale.data.masking import Masking
from dnascale.data.shards import load_dataset
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.train import checkpoint
from dnascale.train.batching import divide_batch
from dnascale.train.distributed import connect
from dnascale.train.engines import build_engine, deepspeed_config
from dnascale.train.optim import build_optimizer
from dnascale.train.saving import save
from dnascale.train.schedules import stages


def main(source: str, target: str, engine_name: str, data: str) -> None:
    config = load_config(f"{source}/config.yaml", [f"train.engine={engine_name}"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    (stage,) = stages(config)
    batching = divide_batch(config, stage, world)
    deepspeed = deepspeed_config(config, batching.micro_windows, batching.accumulation, world)
    accelerator = connect(config.train, deepspeed)
    dataset = load_dataset(Path(data))
    # Another seed: what is equal afterwards came from the checkpoint.
    hf = build(config.model, dataset.vocabulary, seed=12345)
    masking = Masking(dataset.vocabulary, **config.masking.model_dump())
    module = MaskedLanguageModel(hf, masking, autocast=None if deepspeed else torch.bfloat16)
    engine = build_engine(accelerator, module, build_optimizer(module, config.optimizer), config, batching.accumulation)
    saved = checkpoint.require_newest(Path(source))
    checkpoint.load(saved, engine, saved.state)
    save(Path(target), engine, saved.state, saved.identity)
    if engine_name == "zero3":
        return
    # The weights that the next forward will use are the rounded fp32 ones.
    for name, parameter in engine.parameters.items():
        expected = saved.read("weight", name, 0, parameter.numel()).to(parameter.dtype)
        assert torch.equal(parameter.detach().cpu().flatten(), expected), name
