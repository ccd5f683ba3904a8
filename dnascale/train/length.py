"""How many steps a run takes: as told, or from epochs, or from a timing of this machine."""

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.data.order import Order
from dnascale.data.read import WindowReader
from dnascale.data.shorter import ShorterWindows
from dnascale.data.stream import Dealing, TrainStream
from dnascale.train.batching import divide_batch, to_device
from dnascale.train.engines import Graphs, compile_mode
from dnascale.train.memory import give_back_memory
from dnascale.train.schedules import Stage, steps_within
from dnascale.train.screen import Screen
from dnascale.train.trial import trial_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel


def settle_steps(
    accelerator: "Accelerator",
    config: Config,
    of_run: list[Stage],
    reader: WindowReader,
    order: Order,
    module: "MaskedLanguageModel",
    screen: Screen,
) -> Config:
    """`config` with train.steps set, from epochs or from a timing of this machine."""
    if config.train.steps is not None:
        return config
    if config.train.minutes is not None:
        alone = accelerator.deepspeed_plugin is None and accelerator.num_processes == 1
        more = "" if alone else ", each process alone and undivided: exchanging data comes on top"
        screen.note(f"timing a few steps to fit train.minutes{more}")
        seconds = [_time_step(accelerator, config, stage, reader, order, module) for stage in of_run]
        return config.with_train(steps=max(10, steps_within(of_run, config.train.minutes * 60, seconds)))
    assert config.train.epochs is not None
    tokens = config.train.epochs * order.epoch_windows * config.model.context
    return config.with_train(steps=steps_within(of_run, tokens, [stage.global_batch_tokens for stage in of_run]))


def _time_step(
    accelerator: "Accelerator",
    config: Config,
    stage: Stage,
    reader: WindowReader,
    order: Order,
    module: "MaskedLanguageModel",
) -> float:
    """Seconds of one optimizer step of a stage, by a copy of the bare model here; the slowest rank counts."""
    batching = divide_batch(config, stage, accelerator.num_processes)
    shorter = ShorterWindows(order, config.model.context // stage.context, 0)
    stream = TrainStream(reader.of_context(stage.context), shorter, Dealing(batching.micro_windows))
    trial, optimizer = trial_of(module, config, stage, compile_mode(config, accelerator))
    assert config.train.minutes is not None
    until = time.monotonic() + min(10.0, 0.02 * 60 * config.train.minutes)
    bare = partial(_micro_batch, trial)
    graphs = Graphs(bare, trial.parameters()) if config.train.cuda_graphs else None
    micro_batches: list[float] = []
    updates: list[float] = []
    # Long enough that what else the machine does for a moment is not taken for its speed.
    while len(updates) < 30 or time.monotonic() < until:
        begin = time.monotonic()
        for batch in stream.next_step():
            (graphs or bare)(*to_device(batch, trial, accelerator.device)).tolist()  # waits for the device
        micro_batches.append(time.monotonic() - begin)
        begin = time.monotonic()
        float(torch.nn.utils.clip_grad_norm_(trial.parameters(), 1.0))
        optimizer.step()
        if graphs is None:
            optimizer.zero_grad(set_to_none=True)
        else:
            graphs.zero_gradients()
        updates.append(time.monotonic() - begin)
    # The first steps allocate memory and choose kernels.
    del trial, optimizer, bare, graphs
    give_back_memory(accelerator.device)
    one = statistics.median(micro_batches[10:]) * batching.accumulation + statistics.median(updates[10:])
    return float(accelerator.gather(torch.tensor([one], device=accelerator.device)).max())


def _micro_batch(model: "MaskedLanguageModel", tokens: torch.Tensor, keys: torch.Tensor, room: int) -> torch.Tensor:
    loss, sums = model(tokens, keys, room)
    loss.backward()
    return sums
