"""From a configuration to a run that is ready to take steps: join, open the data, build the model, resume."""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from dnascale.config import Config
from dnascale.data.corpus import Corpus
from dnascale.data.masking import Masking
from dnascale.data.order import Order
from dnascale.data.read import WindowReader
from dnascale.data.shorter import ShorterWindows
from dnascale.data.stream import Batch, Dealing, TrainStream
from dnascale.device import choose_device, settle_precision
from dnascale.errors import CheckpointError, DataError, UsageError
from dnascale.model.flash import use_flash_attention
from dnascale.model.flops import stage_flops
from dnascale.runs import open_data
from dnascale.train import checkpoint
from dnascale.train.batching import Batching, divide_batch
from dnascale.train.distributed import connect, from_main, together
from dnascale.train.engines import (
    Engine,
    build_engine,
    compile_mode,
    deepspeed_config,
    require_few_in_bf16,
    require_graphs,
)
from dnascale.train.folder import hold_run, settle_config
from dnascale.train.guard import Guard
from dnascale.train.initial import begin_with, read_source
from dnascale.train.length import settle_steps
from dnascale.train.memory import attempt_step, find_micro_batch, keep_freed_memory
from dnascale.train.meter import Speed, measure_speed
from dnascale.train.mirror import Mirror, fetch_newer
from dnascale.train.optim import build_optimizer
from dnascale.train.saving import Saving
from dnascale.train.schedules import Stage, learning_rate, stage_at, stages
from dnascale.train.screen import Screen
from dnascale.train.state import TrainState
from dnascale.train.watchdog import Watchdog
from dnascale.vocab import Vocabulary

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel

#: Entries of the Hugging Face configuration that decide what the model computes.
_MODEL_KEYS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "layer_types", "local_attention", "max_position_embeddings", "rope_parameters")  # fmt: skip


@dataclass
class Job:
    """A run that is ready to take steps."""

    config: Config
    run: Path
    accelerator: "Accelerator"
    stages: list[Stage]
    stage: Stage
    batching: Batching
    corpus: Corpus
    order: Order
    valid: WindowReader | None
    engine: Engine
    identity: checkpoint.Identity
    state: TrainState
    stream: TrainStream
    screen: Screen
    resumed: bool
    speed: Speed
    guard: Guard
    watchdog: Watchdog
    mirror: Mirror | None  # on rank 0, where one is asked for
    lock: TextIO | None  # on rank 0, while the run is this job's
    flops_per_token: float = 0.0  # of this stage
    saving: Saving | None = None  # a checkpoint on its way


def assemble(config: Config, hold: bool = False) -> Job:
    """Collective over all processes. Raises what is wrong with the configuration, the data or the checkpoint, on all of them.

    `hold`: claims the run's folder for this job before it looks for a checkpoint there (rank 0, `Job.lock`).
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)

    # Join the other processes.
    config = settle_precision(config, choose_device(config.train.device))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    of_run = stages(config)
    batchings = [divide_batch(config, stage, world) for stage in of_run]
    # Such that DeepSpeed makes room for gradients that accumulate, if any stage does.
    batching = max(batchings, key=lambda one: one.accumulation)
    deepspeed = deepspeed_config(config, batching.micro_windows, batching.accumulation, world)
    accelerator = connect(config.train, deepspeed)
    together(accelerator, lambda: require_graphs(config, accelerator))
    together(accelerator, lambda: _settle_flash_attention(config, accelerator.device))
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    run = Path(config.run.dir)
    screen = Screen(accelerator.is_main_process)

    # Open the data, and check the shards.
    corpus = together(accelerator, lambda: open_data(config.data))
    reader, order = together(accelerator, lambda: open_training_data(config, corpus))
    valid = together(accelerator, lambda: corpus.held_out("valid", config.model.context))
    together(accelerator, lambda: _verify(config, reader, valid, accelerator, screen))

    # Find what to go on from.
    config = from_main(accelerator, lambda: settle_config(run, config))
    with contextlib.ExitStack() as on_failure:
        lock = together(accelerator, lambda: hold_run(run) if hold and accelerator.is_main_process else None)
        if lock is not None:
            on_failure.callback(lock.close)
        saved, sentences = from_main(accelerator, lambda: _find_checkpoint(run, config.checkpoint.mirror))
        for sentence in sentences:
            screen.warn(sentence)

        # Build the model; settle what the device and the length of the run decide.
        module = _build_module(config, corpus, accelerator, deepspeed is not None, fresh=saved is None)
        config = _settle_micro_batch(config, of_run, reader, order, module, accelerator, screen)
        if deepspeed is not None:
            most = max(divide_batch(config, stage, world).accumulation for stage in of_run)
            require_few_in_bf16(config, deepspeed, most)
        config = settle_steps(accelerator, config, of_run, reader, order, module, screen)

        # Hand the model to the engine, which takes the checkpoint.
        if (how := compile_mode(config, accelerator)) is not None:
            module.compile_step(how)
        optimizer = build_optimizer(module, config.optimizer, config.train.precision, with_state=deepspeed is None)
        engine = build_engine(accelerator, module, optimizer, config, batching.accumulation)
        identity = checkpoint.Identity(
            model={key: getattr(module.hf.config, key) for key in _MODEL_KEYS},
            vocabulary=corpus.vocabulary.digest,
            data=corpus.fingerprint,
        )
        state = _restore(config, engine, identity, corpus.vocabulary, saved, screen)
        stage = stage_at(of_run, state.position)
        stream = _open_stream(config, reader, order, of_run, state.position, accelerator)
        _require_one_order(accelerator, stream)
        speed = measure_speed(accelerator, config.train.precision, corpus.bases_in_a_token("train"))
        where = config.checkpoint.mirror if accelerator.is_main_process else None
        mirror = together(
            accelerator, lambda: None if where is None else Mirror(where, config.checkpoint.keep, screen.warn)
        )
        if mirror is not None and saved is not None:
            mirror.catch_up(saved.folder)
        job = Job(
            config, run, accelerator, of_run, stage, batching, corpus, order, valid, engine, identity, state, stream, screen,
            saved is not None, speed, Guard(config.guard, accelerator.device, state),
            Watchdog(run, accelerator.process_index, accelerator.num_processes, config.guard.stall), mirror, lock,
        )  # fmt: skip
        enter(job, stage)
        on_failure.pop_all()
        return job


def _build_module(
    config: Config, corpus: Corpus, accelerator: "Accelerator", deepspeed: bool, fresh: bool
) -> "MaskedLanguageModel":
    """The model on the device, with `fresh` weights or none. Under DeepSpeed the weights will be bf16, else matrix products alone are."""
    from dnascale.model.modernbert import MaskedLanguageModel, build, build_to_fill

    bf16, model, vocabulary = config.train.precision == "bf16", config.model, corpus.vocabulary
    module = MaskedLanguageModel(
        build(model, vocabulary, config.train.seed) if fresh else build_to_fill(model, vocabulary),
        Masking(corpus.vocabulary, **config.masking.model_dump()),
        config.data.separate_records,
        autocast=torch.bfloat16 if bf16 and not deepspeed else None,
        weights=torch.bfloat16 if bf16 and deepspeed else torch.float32,
        device=accelerator.device,
    ).to(accelerator.device)
    if config.train.recompute:
        module.recompute_layers()
    return module


def _settle_flash_attention(config: Config, device: torch.device) -> None:
    model = config.model
    head_size, reach = model.hidden_size // model.heads, model.local_attention // 2
    use_flash_attention(config.train.flash_attention, device, config.train.precision, head_size, reach)


def _settle_micro_batch(
    config: Config,
    of_run: list[Stage],
    reader: WindowReader,
    order: Order,
    module: "MaskedLanguageModel",
    accelerator: "Accelerator",
    screen: Screen,
) -> Config:
    """`config` with a number of tokens for train.micro_batch_tokens, where it was `auto`. Collective."""
    if config.train.micro_batch_tokens != "auto":
        return config
    longest = max(of_run, key=lambda stage: (stage.context, stage.masking_rate))
    parts = ShorterWindows(order, config.model.context // longest.context, 0)

    def read(windows: int) -> Batch:
        return TrainStream(reader.of_context(longest.context), parts, Dealing(windows)).next_step()[0]

    attempt = attempt_step(module, config, longest, read, compile_mode(config, accelerator))
    return find_micro_batch(config, of_run, accelerator, attempt, screen.note)


def _restore(
    config: Config,
    engine: Engine,
    identity: checkpoint.Identity,
    vocabulary: Vocabulary,
    saved: checkpoint.Checkpoint | None,
    screen: Screen,
) -> TrainState:
    """The state to go on from: that of the checkpoint, which the engine then has, or of a beginning. Collective."""
    accelerator, total = engine.accelerator, config.train.steps
    assert total is not None
    if saved is None:
        if (location := config.model.init_from) is not None:
            source = together(accelerator, lambda: read_source(location))
            sentence = together(accelerator, lambda: begin_with(source, engine, vocabulary))
            screen.print(f"init     {sentence}")
        return TrainState(total_steps=total)
    together(accelerator, lambda: saved.require(identity, engine.shapes))
    name, restart = config.optimizer.name, config.optimizer.restart
    state = together(accelerator, lambda: checkpoint.resume_state(saved, name, restart))
    if state.step > total:
        raise UsageError(
            f"{config.run.dir} is at step {state.step:,} already, beyond train.steps={total:,}: a run cannot be made shorter. "
            "model.init_from=RUN begins another one with its weights."
        )
    checkpoint.load(saved, engine, state)
    if rises := _rises_again(state, total, config):
        screen.warn(rises)
    return replace(state, total_steps=total)


def _rises_again(state: TrainState, total: int, config: Config) -> str | None:
    """What is to be said when a run is made longer whose learning rate had gone down, or had been through its warm-up."""
    peak = config.optimizer.learning_rate
    before = learning_rate(state.step - 1, state.total_steps, peak, config.schedule)
    after = learning_rate(state.step, total, peak, config.schedule)
    warmup = config.schedule.warmup
    if not state.step < total > state.total_steps or state.step < round(warmup * state.total_steps):
        return None
    longer = f"the run was to end at step {state.total_steps:,} and now ends at {total:,}"
    if state.step < round(warmup * total):
        return (
            f"{longer}: its warm-up, of which schedule.warmup is the share, now "
            f"goes on to step {round(warmup * total):,}, and the learning rate {'falls back' if after < before else 'rises again'} from {before:.2g} "
            f"to {after:.2g}."
        )
    if after < 2 * before:
        return None
    return (
        f"{longer}: its learning rate rises again from {before:.2g} to "
        f"{after:.2g}, and the loss with it, until it goes down at the new end."
    )


def enter(job: Job, stage: Stage) -> None:
    """Goes over to the batch, context and masking rate of a stage."""
    job.stage = stage
    if job.state.position == stage.first_window:  # and not in the middle of it, where a run goes on
        job.guard.forget()
    job.batching = divide_batch(job.config, stage, job.accelerator.num_processes)
    job.stream = _open_stream(job.config, job.stream.reader, job.order, job.stages, job.state.position, job.accelerator)
    masking = replace(job.engine.module.masking, rate=stage.masking_rate)
    job.engine.module.masking = masking
    job.engine.divide(job.batching.micro_windows, job.batching.accumulation)
    job.flops_per_token = stage_flops(job.config, masking, job.stream, stage.context)


def _open_stream(
    config: Config, reader: WindowReader, order: Order, of_run: list[Stage], position: int, accelerator: "Accelerator"
) -> TrainStream:
    """The windows from `position` (in windows of model.context) to the end of its stage, as this rank sees them."""
    stage, rank, world = stage_at(of_run, position), accelerator.process_index, accelerator.num_processes
    batching = divide_batch(config, stage, world)
    dealing = Dealing(batching.global_windows, batching.accumulation, rank, world)
    parts = config.model.context // stage.context
    if parts == 1:
        return TrainStream(reader.of_context(stage.context), order, dealing, position, config.data.workers)
    count = None if stage.steps is None else stage.steps * stage.global_batch_tokens // config.model.context
    shorter = ShorterWindows(order, parts, stage.first_window, count)
    place = (position - stage.first_window) * parts
    return TrainStream(reader.of_context(stage.context), shorter, dealing, place, config.data.workers)


def open_training_data(config: Config, corpus: Corpus) -> tuple[WindowReader, Order]:
    context = config.model.context
    reader = corpus.reader("train", context, "size" if config.data.verify == "size" else "checksum")
    longest = corpus.longest_record("train")
    in_bases = context * corpus.bases_per_token("train")
    if in_bases > longest and not config.data.allow_short_records:
        what = "" if in_bases == context else f"(about {in_bases:,.0f} bases) "
        raise DataError(
            f"model.context={context} {what}is longer than the longest training record ({longest:,} bases), so "
            f"no base could ever see that far: use a smaller model.context, or data.allow_short_records=true to pack "
            "several records into each window all the same."
        )
    if config.masking.repeat_weight != 1.0 and not corpus.soft_mask_bit:
        raise DataError(
            f"masking.repeat_weight={config.masking.repeat_weight} needs the soft mask in the shards: prepare the data "
            "with --soft-mask."
        )
    return reader, corpus.order(reader, config.train.seed, config.data.lanes, config.data.lane_windows)


def _verify(
    config: Config, reader: WindowReader, valid: WindowReader | None, accelerator: "Accelerator", screen: Screen
) -> None:
    """Each rank looks at its share of the shards: sizes, and checksums too with data.verify=start."""
    for one in filter(None, (reader, valid)):
        mine = range(accelerator.process_index, len(one.shard_tokens), accelerator.num_processes)
        for shard in screen.track(mine, "verifying shards"):
            one.check(shard, blocks=config.data.verify == "start")


def _find_checkpoint(run: Path, mirror: str | None) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """The newest valid one, and what is to be said of others."""
    folder = run / "checkpoints"
    saved, rejected = checkpoint.newest_valid(folder)
    _refuse_newer(rejected)
    fetched = [] if mirror is None else fetch_newer(mirror, folder, saved.state.step if saved is not None else None)
    if fetched:
        saved, rejected = checkpoint.newest_valid(folder)
    if saved is None and rejected:
        anew = ": remove that folder to start again" if all(isinstance(e, checkpoint.Damaged) for e in rejected) else ""
        raise CheckpointError(f"{rejected[0]} No valid checkpoint is left in {folder}{anew}.")
    return saved, [*fetched, *checkpoint.set_aside(rejected)]


def _refuse_newer(rejected: list[CheckpointError]) -> None:
    """Raises the error of a checkpoint of a later version: to go on from an older one would in the end replace it."""
    for error in rejected:
        if isinstance(error, checkpoint.Newer):
            raise error


def _require_one_order(accelerator: "Accelerator", stream: TrainStream) -> None:
    """Raises DataError on every rank when some have other data, or would read them in another order. Collective."""
    from accelerate.utils import gather_object

    found = gather_object([stream.state_dict()["order"]])
    if other := [str(rank) for rank, order in enumerate(found) if order != found[0]]:
        raise DataError(
            f"rank {', '.join(other)} found other data than rank 0 (another fingerprint or order): each host must see the "
            "same data set at data.path."
        )
