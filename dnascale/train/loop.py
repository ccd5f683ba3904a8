"""Training, told in order: assemble, say what will happen, step, save."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.device import choose_device
from dnascale.errors import DataError, DnascaleError, Stopped
from dnascale.faults import fault
from dnascale.report.page import write_report
from dnascale.train import checkpoint
from dnascale.train.assemble import Job, assemble, enter
from dnascale.train.batching import to_device
from dnascale.train.distributed import from_main, together
from dnascale.train.engines import GradientReductionCheck
from dnascale.train.folder import as_recorded, require_visible, write_run_files
from dnascale.train.guard import TakenStep
from dnascale.train.interruption import Interruption
from dnascale.train.memory import shortages_explained
from dnascale.train.meter import Meter
from dnascale.train.metrics import MetricsFile, Recorder, TensorBoard, Wandb
from dnascale.train.replicas import require_equal_replicas
from dnascale.train.retention import prune
from dnascale.train.saving import Saving
from dnascale.train.schedules import learning_rate, stage_at, tokens_of

if TYPE_CHECKING:
    from accelerate import Accelerator


#: Share of the training tokens in shards too short for a window from which a run warns.
_UNSEEN = 0.01
#: Seconds that a run which was told to stop waits for its mirror: schedulers give five minutes in all.
_GOING = 120.0


def train(config: Config) -> Path:
    """Runs or resumes the run in `config.run.dir` and returns that folder. Collective over all processes.

    Raises Stopped when it was asked to stop, and has saved.
    """
    with shortages_explained(
        config, lambda: "before a step was taken", torch.device(choose_device(config.train.device))
    ):
        job = assemble(config, hold=True)
    from_main(job.accelerator, lambda: write_run_files(job.run, job.config, job.corpus, job.state.step))
    together(job.accelerator, lambda: require_visible(job.run))
    recorder = together(job.accelerator, lambda: _open_recorder(job))
    _announce(job)
    begun_at = job.state.step
    if job.resumed:
        recorder.write("resume", step=begun_at, processes=job.batching.world, engine=job.engine.name)
    with shortages_explained(job.config, lambda: f"in step {job.state.step + 1}", job.accelerator.device):
        try:
            valid_loss, stopped_by = _take_steps(job, recorder)
        finally:
            job.stream.close()
    if job.mirror is not None:
        job.mirror.finish(_GOING if stopped_by is not None else None)
    together(job.accelerator, recorder.close)
    job.accelerator.wait_for_everyone()
    if job.lock is not None:
        job.lock.close()
    report = _report(job)
    if stopped_by is not None:
        stop = Stopped(
            f"by {stopped_by} after step {job.state.step:,} of {job.state.total_steps:,}, and saved. The same command goes on from there."
        )
        stop.shared = True
        raise stop
    job.screen.done(job.state, job.state.step - begun_at, valid_loss, report)
    return job.run


def open_meter(job: Job) -> Meter:
    by_base = job.corpus.vocabulary.one_base_a_token
    return Meter(job.accelerator, job.speed, job.guard, job.engine.clock, by_base, repeats=job.corpus.soft_mask_bit)


def _take_steps(job: Job, recorder: Recorder) -> tuple[float | None, str | None]:
    """Steps to the end, with what is due after each. Returns the last validation loss, and why it stopped before the end."""
    config, state = job.config, job.state
    meter = open_meter(job)
    check = GradientReductionCheck(job.engine) if job.batching.world > 1 else None
    valid_loss: float | None = None
    stopped_by: str | None = None
    interruption = Interruption(job.accelerator, job.run)
    with job.screen.progress(state), without_garbage_collection(), interruption, job.watchdog:
        while state.step < state.total_steps and stopped_by is None:
            if (stage := stage_at(job.stages, state.position)) is not job.stage:
                enter(job, stage)
                job.watchdog.compiles()
                job.screen.stage(state, stage)
            rate = learning_rate(state.step, state.total_steps, config.optimizer.learning_rate, config.schedule)
            take_step(job, meter, rate, check)
            check = None if check is None or check.proven else check
            job.watchdog.begun()
            last = state.step == state.total_steps
            stopped_by = None if last else interruption.asked()
            save = last or stopped_by is not None or state.step % config.checkpoint.every == 0
            # Also before each checkpoint, so that no part of a line is lost when the run is resumed from it.
            line_due = save or state.step % config.log.every == 0
            # First: the line may find that the run cannot go on, and what is written would be lost.
            if job.saving is not None and line_due and (job.saving.written() or save):
                job.watchdog.at("checkpoint", state.step)
                with meter.paused():
                    _commit(job, recorder)
            if line_due:
                line, events = meter.line(state, job.order.epoch_windows)
                for event in events:
                    recorder.write(**event)
                    job.screen.event(event)
                if line is not None:
                    recorder.write("train", **line)
                    job.screen.step(state, line, valid_loss)
                job.guard.require_patience()
                gc.collect(1)
            with meter.paused():
                if (every := config.guard.replicas) is not None and (save or state.step % every == 0):
                    require_equal_replicas(job.engine, state.step)
                if job.valid is not None and (last or state.step % config.evaluation.every == 0):
                    job.watchdog.at("evaluation", state.step)
                    state.valid_loss = valid_loss = _validate(job)
                    recorder.write("valid", step=state.step, valid_loss=valid_loss)
                    job.screen.valid(state, valid_loss)
                job.watchdog.at("checkpoint", state.step)
                if save:
                    background = config.checkpoint.asynchronous and not last and stopped_by is None
                    job.saving = Saving(job.run / "checkpoints", job.engine, state, job.identity, background)
                    if not background:
                        _commit(job, recorder)
        if stopped_by is not None:
            recorder.write("stop", step=state.step, reason=stopped_by)
        interruption.done()
    return valid_loss, stopped_by


def _commit(job: Job, recorder: Recorder) -> None:
    """Completes the checkpoint that is on its way. Collective."""
    assert job.saving is not None
    path = job.saving.commit()
    job.saving = None
    recorder.write("checkpoint", step=checkpoint.step_of(path))
    job.screen.note(f"committed {path}")
    if job.accelerator.is_main_process:
        fault("ckpt.prune", checkpoint.step_of(path))
        prune(path.parent, path, job.config.checkpoint)
        if job.mirror is not None:
            job.mirror.send(path)


def take_step(job: Job, meter: Meter, rate: float, check: GradientReductionCheck | None) -> None:
    """One optimizer step; moves the state on. Nothing here waits for the device: `meter.line` does, now and then."""
    step = job.state.step + 1
    job.watchdog.at("data.read", step)
    with meter.waiting():
        fault("data.read", step)
        micro_batches = job.stream.next_step()
    job.watchdog.at("step.forward", step)
    fault("step.forward", step)
    for micro, batch in enumerate(micro_batches):
        with meter.waiting():
            inputs = to_device(batch, job.engine.module, job.accelerator.device)
        meter.add(batch.windows, job.engine.backward(*inputs, last=micro == job.batching.accumulation - 1))
    if check is not None:
        _require_distinct(job.accelerator, int(micro_batches[0].keys[0]))
        check.finish()
    job.watchdog.at("step.update", step)
    fault("step.update", step)
    state, tokens = job.state, job.stage.global_batch_tokens
    windows = tokens // job.config.model.context
    taken = TakenStep(step, state.position, windows, job.config.model.context // job.stage.context, rate)
    meter.stepped(taken, *job.engine.step(rate, job.guard), tokens, job.flops_per_token)
    state.step += 1
    state.valid_loss = None
    state.tokens += tokens
    state.position += windows


def _open_recorder(job: Job) -> Recorder:
    if not job.accelerator.is_main_process:
        return Recorder()
    wandb = Wandb(as_recorded(job.config), job.run, {"data_fingerprint": job.corpus.fingerprint})
    board = TensorBoard(job.config, job.run, job.state.step)
    return Recorder(MetricsFile(job.run / "metrics.jsonl", job.state.step), [wandb, board])


def _announce(job: Job) -> None:
    """Says what will happen, before it does: device, dtype, attention and engine first, then every derived number."""
    job.screen.header(
        job.config, job.engine, job.stages, job.corpus, job.order, job.state, job.speed, job.flops_per_token
    )
    windows = tokens_of(job.stages, job.state.total_steps) // job.config.model.context
    for number, stage in enumerate(job.stages, start=1):
        if stage.first_window >= windows:
            job.screen.warn(
                f"stage {number} never begins: the run is over before it. Make it longer, or the stages before it shorter."
            )
    tokens, context = job.stream.reader.shard_tokens, job.config.model.context
    if (unseen := tokens[tokens < context].sum() / tokens.sum()) > _UNSEEN:
        job.screen.warn(
            f"{unseen:.0%} of the training tokens lie in shards shorter than a window of {context:,}, and are never seen: a smaller "
            "model.context sees more of them, and data sets that are prepared together have longer shards than merged ones."
        )
    if job.valid is None:
        job.screen.warn("the data hold out no valid split of a window or more: nothing is evaluated while training.")
    if job.resumed:
        job.screen.print(f"resumed  from the checkpoint of step {job.state.step:,}")


def _report(job: Job) -> Path | None:
    """The page about the run, in its folder; what hinders it is a warning."""
    if not job.accelerator.is_main_process:
        return None
    path = job.run / "report.html"
    try:
        write_report([job.run], path)
    except (DnascaleError, ValueError, KeyError, TypeError) as error:
        job.screen.warn(f"no report: {error}")
        return None
    return path


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Python looks for reference cycles at its own times, on each rank at another: all others wait for that one."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _require_distinct(accelerator: "Accelerator", first: int) -> None:
    """Raises DataError when two ranks trained on the same windows in the first step. `first`: key of the first window of this one."""
    seen = accelerator.gather(torch.tensor([first], device=accelerator.device)).tolist()
    if len(set(seen)) < len(seen):
        raise DataError("two processes read the same windows: the data are not divided over the ranks.")


def _validate(job: Job) -> float:
    """Loss in nats per base over a fixed share of the valid split. Collective."""
    from dnascale.evaluate.loss import held_out_loss

    accelerator, world = job.accelerator, job.batching.world
    assert job.valid is not None

    def over_ranks(sums: torch.Tensor) -> torch.Tensor:
        return accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu() if world > 1 else sums

    job.engine.module.eval()
    result = held_out_loss(
        job.engine.forward, job.valid, job.corpus.vocabulary, accelerator.device,
        max(1, job.batching.micro_windows * job.stage.context // job.config.model.context),
        max_windows=job.config.evaluation.windows, passes=1,
        rank=accelerator.process_index, world=world, reduce=over_ranks,
    )  # fmt: skip
    job.engine.module.train()
    return result.nats_per_base
