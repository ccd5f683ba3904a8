"""What a person sees while a run goes on: the header, one panel that moves, and notes. Silent on all but rank 0."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from dnascale.train.batching import divide_batch
from dnascale.train.metrics import LN4
from dnascale.train.schedules import tokens_of
from dnascale.train.state import TrainState

if TYPE_CHECKING:
    from pathlib import Path

    from dnascale.config import Config
    from dnascale.data.corpus import Corpus
    from dnascale.data.order import Order
    from dnascale.train.engines import Engine
    from dnascale.train.meter import Speed
    from dnascale.train.schedules import Stage

T = TypeVar("T")
_LINES = 25  # of progress in a log file; a terminal has the panel
_SPARKS = 40  # lines of metrics in the panel's curve


class Screen:
    """Terminal output of rank 0: a live panel on a terminal, plain lines elsewhere."""

    def __init__(self, main: bool) -> None:
        from rich.console import Console

        class Lasting(Console):
            def on_broken_pipe(self) -> None:
                """Whoever read has gone (`| head`): training goes on, unseen."""
                with contextlib.suppress(SystemExit):
                    super().on_broken_pipe()

        self.console = Lasting(highlight=False, markup=False, quiet=not main, soft_wrap=True)
        self._bar: Any = None
        self._live: Any = None
        self._losses: list[float] = []  # of the last lines
        self._printed = -1
        self._task: Any = None
        self._tokens = 0  # of the whole run

    def header(
        self,
        config: "Config",
        engine: "Engine",
        of_run: "Sequence[Stage]",
        corpus: "Corpus",
        order: "Order",
        state: TrainState,
        speed: "Speed",
        flops_per_token: float,
    ) -> None:
        """First line: device, dtype, attention, engine. Then every derived number."""
        self.console.print(_how(config, engine), style="bold")
        parameters = sum(p.numel() for p in engine.module.hf.parameters()) if engine.name != "zero3" else sum(
            torch.Size(shape).numel() for shape in engine.shapes.values()
        )  # fmt: skip
        self._tokens = tokens_of(of_run, state.total_steps)
        epochs = self._tokens / (order.epoch_windows * config.model.context)
        lanes = f", {config.data.lanes} lanes of {config.data.lane_windows:,} windows" if config.data.lanes else ""
        # Of all devices together, as MFU is counted.
        peak = f"{speed.peak / 1e12:,.0f} TFLOP/s by the maker's sheet, " if speed.peak is not None else ""
        self.console.print(
            f"model    {parameters:,} parameters: {config.model.layers} layers of {config.model.hidden_size}, "
            f"context {config.model.context}\n"
            f"{_data(corpus, order)}"
            f"{_steps(config, engine, of_run, corpus)}"
            f"speed    {flops_per_token / 1e6:,.1f} MFLOP a token; {peak}{speed.matmul / 1e12:,.3g} TFLOP/s in a matrix product of this "
            f"machine ({config.train.precision}, measured)\n"
            f"run      {state.total_steps:,} steps = {self._tokens:,} tokens = {epochs:.2f} epochs{lanes} -> {config.run.dir}"
        )
        if (plugin := engine.accelerator.deepspeed_plugin) is not None:
            self.console.print(f"deepspeed {_filled(plugin.deepspeed_config)}")

    @contextlib.contextmanager
    def progress(self, state: TrainState) -> Iterator[None]:
        """The panel, while the block runs. Its bar is over tokens: steps may differ in how many they take."""
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        if not self.console.is_terminal or self.console.quiet:
            yield
            return
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), expand=True,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=self._tokens, completed=state.tokens)
        with Live(self._panel(), console=self.console, transient=True, refresh_per_second=4) as self._live:
            yield
        self._bar = None

    def _panel(self, *lines: str) -> Any:
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        return Panel(Group(self._bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))

    def step(self, state: TrainState, line: dict[str, Any], valid_loss: float | None) -> None:
        what, loss = ("masked loss", line["nats_per_base"]) if "nats_per_base" in line else ("loss", line["loss"])
        rate = f"{line['tokens_per_second']:,.0f} tokens/s"
        valid = f"  valid {valid_loss:.4f}" if valid_loss is not None else ""
        if self._bar is not None:
            self._losses = [*self._losses, loss][-_SPARKS:]
            share = f"{line['mfu']:.0%} MFU" if "mfu" in line else f"{line['share_of_matmul']:.0%} of a matrix product"
            where = f"training {state.step:,}/{state.total_steps:,}"
            self._bar.update(self._task, description=where, completed=state.tokens)
            self._live.update(
                self._panel(
                    f"{what} {loss:.4f} nats per base, {LN4 - loss:+.4f} below chance (ln 4){valid}   {_sparks(self._losses)}",
                    f"{rate}, {share}   data wait {line['data_wait']:.1%}   {line['memory_gb']:.1f} GB   learning rate "
                    f"{line['learning_rate']:.2e}   epoch {line['epoch']:.2f}",
                )
            )
        elif state.step * _LINES // state.total_steps > self._printed or state.step == state.total_steps:
            self._printed = state.step * _LINES // state.total_steps
            self.console.print(
                f"step {state.step:>6,}/{state.total_steps:,}  {what} {loss:.4f} (ln 4 = {LN4:.3f})  {rate}{valid}"
            )

    def event(self, event: dict[str, Any]) -> None:
        """A step that was left out, or a rank that holds up the others."""
        if event["kind"] == "skip":
            norm = "" if event["gradient_norm"] is None else f" to {event['gradient_norm']:.3g}"
            last = event["position"] + event["windows"] - 1
            shuffled = "" if event["parts"] == 1 else "parts of windows around "
            self.warn(
                f"step {event['step']:,} left out: {event['reason']}{norm} ({shuffled}windows {event['position']:,} to {last:,} of the order)."
            )
            return
        what = "a forward pass takes" if event["section"] == "forward" else "it waits for data"
        self.warn(
            f"rank {event['rank']} holds up the others: {what} {event['seconds'] * 1e3:,.1f} ms, {event['times']:.1f} times the median "
            "of the ranks."
        )

    def stage(self, state: TrainState, stage: "Stage") -> None:
        self.note(
            f"step {state.step:>6,}/{state.total_steps:,}  from here on {stage.global_batch_tokens:,} tokens a step, windows of "
            f"{stage.context:,}, {stage.masking_rate:g} masked"
        )

    def valid(self, state: TrainState, loss: float) -> None:
        self.console.print(f"step {state.step:>6,}/{state.total_steps:,}  valid loss {loss:.4f} nats per base")

    def print(self, text: str) -> None:
        self.console.print(text)

    def note(self, text: str) -> None:
        self.console.print(text, style="dim")

    def warn(self, text: str) -> None:
        self.console.print(f"warning: {text}", style="yellow")

    def track(self, items: Sequence[T], what: str) -> Iterator[T]:
        from rich.progress import track

        yield from track(items, what, console=self.console, transient=True, disable=not self.console.is_terminal)

    def done(self, state: TrainState, steps: int, valid_loss: float | None, report: "Path | None") -> None:
        if not steps:
            self.console.print(
                f"done     nothing was left of {state.total_steps:,} steps; to go on: train.steps=N run.allow_change=true"
            )
            return
        shown = f", valid loss {valid_loss:.4f} nats per base" if valid_loss is not None else ""
        self.console.print(
            f"done     {state.step:,} steps, {state.tokens:,} tokens in {state.seconds / 60:.1f} min of training{shown}"
        )
        if report is not None:
            self.console.print(f"report   {report}")


def _sparks(values: list[float]) -> str:
    """A curve of one line: the highest bar is the largest value."""
    bars = "▁▂▃▄▅▆▇█"
    least, most = min(values), max(values)
    return (
        "".join(bars[round((value - least) / (most - least) * (len(bars) - 1))] for value in values)
        if most > least
        else ""
    )


def _filled(deepspeed: dict[str, Any]) -> str:
    """What stands in a DeepSpeed configuration where its file says `auto`."""
    keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    filled = [f"{key}={deepspeed[key]}" for key in keys] + [f"bf16.enabled={deepspeed['bf16']['enabled']}"]
    for what in ("offload_optimizer", "offload_param"):
        offload = deepspeed["zero_optimization"].get(what, {})
        filled += [f"{what}={offload['device']}"] if "device" in offload else []
        filled += [f"{what}.nvme_path={offload['nvme_path']}"] if "nvme_path" in offload else []
    return " · ".join(filled)


def _how(config: "Config", engine: "Engine") -> str:
    """Device, dtype, attention, compilation, engine, processes."""
    device, threads = engine.accelerator.device, torch.get_num_threads()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        where += f" ({threads} thread{'s' if threads > 1 else ''})"
    dtype = {"fp32": "fp32", "bf16": "bf16 autocast"}[config.train.precision]
    if engine.name.startswith("zero") and config.train.precision == "bf16":
        dtype = "bf16 weights, fp32 masters"
    records = "records kept apart" if config.data.separate_records else "records mixed"
    how = {"layers": " · compiled by layers", "whole": " · compiled as a whole", None: ""}[engine.compiled]
    how += " · CUDA graphs" if config.train.cuda_graphs else ""
    again = " · layers recomputed" if config.train.recompute else ""
    world = engine.accelerator.num_processes
    processes = f"{world} process{'es' if world > 1 else ''}"
    return f"{where} · {dtype} · attention: {engine.module.attention} ({records}){how}{again} · {engine.name} · {processes}"


def _data(corpus: "Corpus", order: "Order") -> str:
    """A line for each source."""
    lines = ""
    shares = np.array(corpus.weights) / sum(corpus.weights)
    for (name, dataset), grid, share in zip(corpus.sources.items(), order.grids, shares, strict=True):
        named, of_all = (f"{name}: ", f", {share:.2%} of the windows") if len(shares) > 1 else ("", "")
        train = dataset.split("train")
        lines += f"data     {named}{dataset.location}: {train.records:,} records, {train.bases:,} bases, {grid.count:,} windows an epoch{of_all}\n"
    return lines


def _steps(config: "Config", engine: "Engine", of_run: "Sequence[Stage]", corpus: "Corpus") -> str:
    """A line for each stage: how its global batch is divided."""
    lines, world = "", engine.accelerator.num_processes
    predicted = "bases" if corpus.vocabulary.one_base_a_token else f"tokens ({corpus.vocabulary.name})"
    for number, stage in enumerate(of_run, start=1):
        batching = divide_batch(config, stage, world)
        masked = replace(engine.module.masking, rate=stage.masking_rate).count(stage.context)
        named = f"stage {number}" if len(of_run) > 1 else "step"
        length = f"{stage.steps:,} steps of " if stage.steps is not None else ""
        lines += (
            f"{named:<9}{length}{stage.global_batch_tokens:,} tokens = {world} x {batching.accumulation} x {batching.micro_windows} windows "
            f"(processes x accumulation x micro-batch); {masked} of {stage.context} {predicted} predicted\n"
        )
    return lines
