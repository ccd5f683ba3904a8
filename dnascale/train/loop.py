"""Training, told in order: join, open the data, build, resume, say what will happen, step, save."""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dnascale.config import Config, changes, parse, to_yaml
from dnascale.data.masking import Masking
from dnascale.data.order import Epoch
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.stream import Batch, TrainStream, WindowReader
from dnascale.errors import CheckpointError, DataError, NumericsError, UsageError
from dnascale.train import checkpoint
from dnascale.train.distributed import connect, from_main, together
from dnascale.train.engines import Engine, GradientReductionCheck, build_engine, deepspeed_config
from dnascale.train.metrics import MetricsFile, Wandb, environment
from dnascale.train.optim import build_optimizer, learning_rate
from dnascale.train.screen import Screen
from dnascale.train.state import TrainState

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel

#: Entries of the Hugging Face configuration that decide what the model computes.
_MODEL_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "layer_types", "local_attention", "max_position_embeddings")  # fmt: skip


@dataclass(frozen=True)
class Batching:
    """How a global batch is divided: global = world x accumulation x micro, in windows."""

    global_windows: int
    micro_windows: int
    accumulation: int
    world: int


def divide_batch(config: Config, world: int) -> Batching:
    """The micro-batch is capped by the global batch; accumulation follows. Raises UsageError unless it divides."""
    context = config.model.context
    windows = config.train.global_batch_tokens // context
    if windows % world:
        raise UsageError(
            f"train.global_batch_tokens={config.train.global_batch_tokens} is {windows} windows of {context}, which "
            f"{world} processes cannot share equally: make it a multiple of {world * context}."
        )
    micro = min(config.train.micro_batch_tokens // context, windows // world)
    if windows % (world * micro):
        raise UsageError(
            f"train.global_batch_tokens={config.train.global_batch_tokens} is not a multiple of {world} processes x "
            f"train.micro_batch_tokens={micro * context}: change one of them."
        )
    return Batching(windows, micro, windows // (world * micro), world)


def train(config: Config) -> Path:
    """Runs or resumes the run in `config.run.dir` and returns that folder. Collective over all processes."""
    from dnascale.model.modernbert import MaskedLanguageModel, build

    # Join the other processes.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batching = divide_batch(config, world)
    deepspeed = deepspeed_config(config, batching.micro_windows, batching.accumulation, world)
    accelerator = connect(config.train, deepspeed)
    run = Path(config.run.dir)
    screen = Screen(accelerator.is_main_process)

    # Open the data, checked once for all.
    dataset = together(accelerator, lambda: load_dataset(Path(config.data.path)))
    reader = together(accelerator, lambda: _open_training_data(config, dataset))
    from_main(accelerator, lambda: _verify(config, reader, screen))
    valid = together(accelerator, lambda: _open_valid(config, dataset))

    # Build the model; decide how many steps.
    hf = build(config.model, dataset.vocabulary, config.train.seed)
    masking = Masking(dataset.vocabulary, **config.masking.model_dump())
    bf16 = config.train.precision == "bf16"
    module = MaskedLanguageModel(
        hf, masking, config.data.separate_records, autocast=torch.bfloat16 if bf16 and deepspeed is None else None
    )
    config = from_main(accelerator, lambda: _settle_config(run, config))
    config = _with_steps(accelerator, config, batching, reader, module, screen)
    assert config.train.steps is not None

    # Hand the model to the engine; continue where the newest valid checkpoint stands.
    module.to(accelerator.device)
    optimizer = build_optimizer(module, config.optimizer)
    engine = build_engine(accelerator, module, optimizer, config, batching.accumulation)
    identity = checkpoint.Identity(
        model={key: getattr(hf.config, key) for key in _MODEL_KEYS},
        vocabulary=dataset.vocabulary.digest,
        data=dataset.fingerprint,
    )
    state = TrainState(total_steps=config.train.steps)
    saved, rejected = from_main(accelerator, lambda: _find_checkpoint(run))
    for sentence in rejected:
        screen.warn(sentence)
    if saved is not None:
        together(accelerator, lambda: saved.require(identity, engine.shapes))
        checkpoint.load(saved, engine)
        state = saved.state
        state.total_steps = config.train.steps
    stream = TrainStream(
        reader, config.train.seed, batching.global_windows, batching.accumulation,
        accelerator.process_index, world, state.epoch, state.position,
    )  # fmt: skip

    # Say what will happen, before it does.
    from_main(accelerator, lambda: _write_run_files(run, config, dataset))
    screen.header(config, engine, batching, dataset, stream, state, resumed=saved is not None)
    metrics = wandb = None
    if accelerator.is_main_process:
        metrics = MetricsFile(run / "metrics.jsonl", state.step)
    wandb = from_main_only(accelerator, lambda: Wandb(config, run, {"data_fingerprint": dataset.fingerprint}))

    # Step.
    check = GradientReductionCheck(engine) if world > 1 else None
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)  # loss sums since the last log
    digest = 0
    waited = elapsed = 0.0
    logged_at = state.step
    started = time.monotonic()
    valid_loss: float | None = None
    with screen.progress(state):
        while state.step < state.total_steps:
            rate = learning_rate(state.step, state.total_steps, config.optimizer.learning_rate, config.schedule)
            micro_batches = stream.next_step()
            for micro in range(batching.accumulation):
                waiting = time.monotonic()
                batch = next(micro_batches)
                tokens, keys = _to_device(batch, accelerator.device)
                waited += time.monotonic() - waiting
                digest += batch.windows.digest()
                sums += engine.backward(tokens, keys, last=micro == batching.accumulation - 1)
            if check is not None:
                _require_distinct(accelerator, digest)
                check.finish()
                check = None
            try:
                gradient_norm = engine.step(rate)
            except NumericsError as error:
                raise NumericsError(
                    f"step {state.step + 1} (learning rate {rate:.2e}): {error}. The weights of step {state.step} are "
                    "not saved; the last checkpoint is untouched. A lower optimizer.learning_rate usually helps."
                ) from None
            state.step += 1
            state.tokens += config.train.global_batch_tokens
            state.epoch, state.position = stream.epoch, stream.position
            last = state.step == state.total_steps

            if state.step % config.log.every == 0 or last:
                elapsed = time.monotonic() - started
                state.seconds += elapsed
                (nats, weight, masked_nats, masked_weight), digest = _sum_over_ranks(accelerator, sums, digest)
                steps = state.step - logged_at
                line: dict[str, Any] = {
                    "step": state.step,
                    "tokens": state.tokens,
                    "epoch": state.epoch,
                    "position": state.position,
                    "loss": nats / max(weight, 1.0),
                    "masked_loss": masked_nats / max(masked_weight, 1.0),
                    "learning_rate": rate,
                    "gradient_norm": gradient_norm,
                    "windows_digest": digest,
                    "tokens_per_second": steps * config.train.global_batch_tokens / elapsed,
                    "data_wait": waited / elapsed,
                    "seconds": state.seconds,
                }
                if not math.isfinite(line["loss"]):
                    raise NumericsError(
                        f"step {state.step}: the loss is {line['loss']}; the last checkpoint is untouched."
                    )
                if metrics is not None:
                    metrics.write(kind="train", **line)
                    wandb.log(**line)
                screen.step(state, line, valid_loss)
                sums.zero_()
                digest, waited, logged_at = 0, 0.0, state.step
                started = time.monotonic()

            pause = time.monotonic()
            if valid is not None and (state.step % config.evaluation.every == 0 or last):
                valid_loss = _validate(engine, valid, config, dataset, batching)
                if metrics is not None:
                    metrics.write(kind="valid", step=state.step, valid_loss=valid_loss)
                    wandb.log(step=state.step, valid_loss=valid_loss)
                screen.valid(state, valid_loss)
            if state.step % config.checkpoint.every == 0 or last:
                path = checkpoint.save(run / "checkpoints", engine, state, identity, config.checkpoint.keep)
                screen.note(f"committed {path}")
            started += time.monotonic() - pause  # the step's speed is not charged for these

    if wandb is not None:
        wandb.finish()
    accelerator.wait_for_everyone()
    screen.done(run, state, valid_loss)
    return run


def from_main_only(accelerator: "Accelerator", make: Any) -> Any:
    """`make()` on rank 0, None elsewhere; an error reaches all."""
    return together(accelerator, lambda: make() if accelerator.is_main_process else None)


def _open_training_data(config: Config, dataset: Dataset) -> WindowReader:
    split = dataset.split("train")
    context = config.model.context
    reader = WindowReader(dataset, "train", context)
    if context > split.longest_record and not config.data.allow_short_records:
        raise DataError(
            f"model.context={context} is longer than the longest training record ({split.longest_record:,} bases), so "
            f"no base could ever see that far: use a smaller model.context, or data.allow_short_records=true to pack "
            "several records into each window all the same."
        )
    if config.masking.repeat_weight != 1.0 and not dataset.soft_mask_bit:
        raise DataError(
            f"masking.repeat_weight={config.masking.repeat_weight} needs the soft mask in the shards: prepare the data "
            "with --soft-mask."
        )
    return reader


def _open_valid(config: Config, dataset: Dataset) -> WindowReader | None:
    if "valid" not in dataset.splits or dataset.splits["valid"].tokens < config.model.context:
        return None
    return WindowReader(dataset, "valid", config.model.context)


def _verify(config: Config, reader: WindowReader, screen: Screen) -> None:
    if config.data.verify == "checksum":
        for shard in screen.track(reader.shards, "verifying shards"):
            shard.verify()


def _settle_config(run: Path, config: Config) -> Config:
    """The configuration to use: `config`, with the steps that the run began with when it is being resumed."""
    path = run / "config.yaml"
    if run.exists() and not run.is_dir():
        raise UsageError(f"run.dir={run} is a file: choose another folder.")
    if not path.is_file():
        if run.is_dir() and any(run.iterdir()):
            raise UsageError(f"run.dir={run} is not empty and holds no run: choose another folder.")
        return config
    import yaml

    before = parse(yaml.safe_load(path.read_text()), str(path))
    same_length = (config.train.minutes, config.train.epochs) == (before.train.minutes, before.train.epochs)
    if config.train.steps is None and same_length:
        config = _set_steps(config, before.train.steps)
    if (differing := changes(before, config)) and not config.run.allow_change:
        raise UsageError(
            f"{run} was begun with another configuration ({'; '.join(differing)}). Use another run.dir, or "
            "run.allow_change=true to go on with the new one."
        )
    return config


def _with_steps(
    accelerator: "Accelerator",
    config: Config,
    batching: Batching,
    reader: WindowReader,
    module: "MaskedLanguageModel",
    screen: Screen,
) -> Config:
    """`config` with train.steps set, from epochs or from a timing of this machine."""
    if config.train.steps is not None:
        return config
    if config.train.minutes is not None:
        screen.note("timing a few steps to fit train.minutes")
        seconds = _time_step(accelerator, config, batching, reader, module)
        return _set_steps(config, max(10, int(config.train.minutes * 60 / seconds)))
    assert config.train.epochs is not None
    windows = Epoch.of(reader.shard_tokens, reader.context, config.train.seed, 0).count
    return _set_steps(config, max(1, round(config.train.epochs * windows / batching.global_windows)))


def _set_steps(config: Config, steps: int | None) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})


def _time_step(
    accelerator: "Accelerator",
    config: Config,
    batching: Batching,
    reader: WindowReader,
    module: "MaskedLanguageModel",
) -> float:
    """Seconds of one optimizer step of the bare model here; the slowest rank counts. Weights stay as they are."""
    module.to(accelerator.device)
    stream = TrainStream(reader, config.train.seed, batching.micro_windows, 1, 0, 1)
    timings = []
    for _ in range(6):
        begin = time.monotonic()
        for batch in stream.next_step():
            loss, _ = module(*_to_device(batch, accelerator.device))
            loss.backward()
            float(loss)  # waits for the device
        timings.append((time.monotonic() - begin) * batching.accumulation)
    module.zero_grad(set_to_none=True)
    seconds = torch.tensor([sorted(timings[1:])[2]], device=accelerator.device)
    # The update and the logging add a few per cent to forward and backward.
    return 1.05 * float(accelerator.gather(seconds).max())


def _find_checkpoint(run: Path) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    saved, rejected = checkpoint.newest_valid(run / "checkpoints")
    if saved is None and rejected:
        raise CheckpointError(
            f"{rejected[0]} No valid checkpoint is left in {run / 'checkpoints'}: remove that folder to start again."
        )
    return saved, rejected


def _write_run_files(run: Path, config: Config, dataset: Dataset) -> None:
    try:
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(to_yaml(config))
        described = environment() | {"data": str(dataset.folder), "data_fingerprint": dataset.fingerprint}
        (run / "environment.json").write_text(json.dumps(described, indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"run.dir={run} cannot be written: {error.strerror or error}.") from None


def _to_device(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, keys = torch.from_numpy(batch.tokens), torch.from_numpy(batch.windows.key)
    if device.type == "cuda":
        tokens, keys = tokens.pin_memory(), keys.pin_memory()
    return tokens.to(device, non_blocking=True), keys.to(device, non_blocking=True)


def _sum_over_ranks(accelerator: "Accelerator", sums: torch.Tensor, digest: int) -> tuple[list[float], int]:
    total = accelerator.reduce(sums.clone(), reduction="sum").tolist()
    seen = accelerator.reduce(torch.tensor([digest], device=accelerator.device), reduction="sum")
    return total, int(seen)


def _require_distinct(accelerator: "Accelerator", digest: int) -> None:
    """Raises DataError when two ranks trained on the same windows in the first step."""
    seen = accelerator.gather(torch.tensor([digest], device=accelerator.device)).tolist()
    if len(set(seen)) < len(seen):
        raise DataError("two processes read the same windows: the data are not divided over the ranks.")


def _validate(engine: Engine, reader: WindowReader, config: Config, dataset: Dataset, batching: Batching) -> float:
    from dnascale.evaluate.loss import held_out_loss

    accelerator = engine.accelerator
    engine.module.eval()
    result = held_out_loss(
        engine.forward, reader, dataset.vocabulary, accelerator.device, batching.micro_windows,
        max_windows=config.evaluation.windows, passes=1,
        rank=accelerator.process_index, world=batching.world,
        reduce=lambda sums: accelerator.reduce(sums, reduction="sum"),
    )  # fmt: skip
    engine.module.train()
    return result.nats_per_base
