"""How long a run will take, and what it needs, on hardware that is described and not at hand.

Time is that of matrix products, attention and memory traffic, one after the other, at the rates of the maker's sheet, divided by
what three measured rows reached of that (docs/benchmarks/step.md); memory is model/memory.py's estimate. Neither is a measurement.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dnascale.bench.communication import Cluster, Link, step_seconds
from dnascale.config import Config, ModelConfig
from dnascale.errors import UsageError
from dnascale.hardware import Card, card_of
from dnascale.model.attention import BLOCKED_FROM
from dnascale.model.flops import keys_per_token, product_flops_per_token, train_flops_per_token
from dnascale.model.memory import parameters, state_bytes, token_bytes, token_bytes_on_cpu, tokens_that_fit
from dnascale.train.batching import divide_batch
from dnascale.train.engines.deepspeed import STAGES
from dnascale.train.memory import candidates
from dnascale.train.schedules import Stage, stages

#: Of the sheet's rate: matrix products (0.79 measured on H100 and H200, 8,192-cube), flash attention of whole records, and of local
#: windows, whose tiles compute 2.5 times the keys that are seen. Of the sheet's bandwidth: element-wise kernels.
_PRODUCTS, _GLOBAL, _LOCAL, _TRAFFIC = 0.8, 0.4, 0.16, 0.9
#: Bytes a channel and layer that forward and backward move, fused (bf16): norms, rotation and residuals, attention's inputs and outputs, and
#: the gated unit.
_BYTES_HIDDEN, _BYTES_ATTENTION, _BYTES_GATE = 54, 50, 16
#: Measured over forecast, the mean of base at 8,192 and large at 1,024 on an H200 and base at 1,024 on an H100 (0.83, 0.73, 0.75).
_REACHED = 0.77
#: Seconds a layer and micro-batch that the host takes to launch what is compiled by layers: 27 ms for `small`'s twelve on an H100's host.
_LAUNCH = 2.25e-3
#: Seconds a layer and step that Muon's iterations take, which ranks share: what `small` took on that H100 beyond it (docs/benchmarks/learning.jsonl).
_MUON_LAUNCH = 0.9e-3
#: Time of a step that computes the layers' forward pass twice: of forward and backward it is a third.
_FORWARD_AGAIN = 4 / 3
#: Between nodes, bytes/s a device and seconds a message: one 400 Gb/s port each.
_BETWEEN = Link(50e9, 10e-6)
_INSIDE_LATENCY = 5e-6
#: Bytes a parameter of a checkpoint: fp32 weights and both moments.
_SAVED = 12
#: Of CPUs in bf16, fitted: of the time that products, and those of Muon, would take at the rate of a 1,024-cube; bytes that are moved a channel
#: and layer, and a channel, layer and key that is looked at.
_CPU_PRODUCTS, _CPU_MUON, _CPU_CHANNEL, _CPU_KEY = 0.463, 1.67, 698, 1.74
#: In fp32: of products; bytes a channel and layer, a head, layer and key that is seen, and a channel of local layers computed in blocks.
_FP32_PRODUCTS, _FP32_CHANNEL, _FP32_KEY, _FP32_BLOCKED = 0.76, 1433, 44, 1021
#: Of CPUs, bytes of a process with nothing in it, and what it holds in fp32 of the activations of model/memory.py's estimate.
_PROCESS, _FP32_KEPT = 475e6, 1.12
_HOST_SHARE = 0.8


@dataclass(frozen=True)
class Forecast:
    """Of one run. Bytes and seconds are of one device, where nothing else is said."""

    card: Card
    devices: int
    engine: str
    parameters: int
    flops_per_token: float
    tokens: int  # of the run
    state_bytes: float
    activation_bytes: float
    micro_batch_tokens: int
    accumulation: int
    step_seconds: float
    communication_seconds: float  # of a step, not hidden by anything
    tokens_per_second: float  # of all devices
    mfu: float
    measured: str | None = None  # the row that the rate comes from; None: the sheet

    @property
    def hours(self) -> float:
        return self.tokens / self.tokens_per_second / 3600

    @property
    def kilowatt_hours(self) -> float | None:
        """At the devices' full power, where it is known; hosts and cooling not counted."""
        return None if self.card.watts is None else self.hours * self.devices * self.card.watts / 1000

    @property
    def checkpoint_bytes(self) -> int:
        return _SAVED * self.parameters


def with_measured(found: Forecast, config: Config, rows: Iterable[dict[str, Any]]) -> Forecast:
    """`found` with the rate of the fastest row of `dnascale bench` on as many of the same devices, of the same model and engine, if there
    is one. What was forecast of memory stays.
    """
    engine = "ddp" if found.engine == "plain" and found.devices > 1 else found.engine.partition("_")[0]
    model = config.model.model_dump(mode="json", exclude={"init_from"})
    same = [
        row
        for row in rows
        if "error" not in row
        and (row["devices"], row["engine"], row["precision"])
        == (found.devices, engine, "fp32" if config.train.precision == "fp32" else "bf16")
        and row["config"]["train"]["engine"].partition("_")[2] == found.engine.partition("_")[2]  # offloaded alike
        and card_of(row["device"]) == found.card
        and {key: row["config"]["model"].get(key) for key in model} == model
    ]
    if not same:
        return found
    best = max(same, key=lambda row: float(row["tokens_per_second"]))
    rate = float(best["tokens_per_second"])
    peak = found.devices * found.card.teraflops * 1e12
    return replace(
        found, tokens_per_second=rate, step_seconds=config.train.global_batch_tokens / rate, communication_seconds=0.0,
        mfu=rate * found.flops_per_token / peak, measured=f"{best['name']}, {best['date']}",
    )  # fmt: skip


def seconds_per_token(model: ModelConfig, card: Card, masking_rate: float, vocabulary: int) -> float:
    """Of one device that computes all the time, on windows of one record."""
    hidden, layers, inner = model.hidden_size, model.layers, model.intermediate_size
    peak, bandwidth = card.teraflops * 1e12, card.bandwidth * 1e12
    window = np.array([model.context])
    whole, products = model.global_layers, product_flops_per_token(model, vocabulary, masking_rate)
    everything = 12 * hidden * whole * keys_per_token(window, None)
    near = 12 * hidden * (layers - whole) * keys_per_token(window, model.local_attention // 2)
    traffic = layers * ((_BYTES_HIDDEN + _BYTES_ATTENTION) * hidden + _BYTES_GATE * inner)
    ideal = products / _PRODUCTS + everything / _GLOBAL + near / _LOCAL
    return (ideal / peak + traffic / (_TRAFFIC * bandwidth)) / _REACHED


def cpu_seconds_per_token(config: Config, card: Card, vocabulary: int) -> float:
    """Of a CPU: products at the measured rate, and what is not products as bytes at the measured rate of layer norms. The numbers are fits to
    rows on one machine (docs/benchmarks/cpu.jsonl).
    """
    model = config.model
    hidden, layers, context = model.hidden_size, model.layers, model.context
    whole, products = model.global_layers, product_flops_per_token(model, vocabulary, config.masking.rate)
    muon = _orthogonalisation(model) / config.train.global_batch_tokens if config.optimizer.name == "muon" else 0.0
    if config.train.precision == "fp32":
        blocks = context >= BLOCKED_FROM * (model.local_attention // 2)
        products = _FP32_PRODUCTS * (products + muon)
        keys = model.heads * (whole if blocks else layers) * context
        moved: float = (
            _FP32_CHANNEL * layers * hidden + _FP32_KEY * keys + _FP32_BLOCKED * blocks * (layers - whole) * hidden
        )
    else:
        products = _CPU_PRODUCTS * products + _CPU_MUON * muon
        keys = hidden * (whole * context + (layers - whole) * min(context, 2 * model.local_attention))
        moved = _CPU_CHANNEL * layers * hidden + _CPU_KEY * keys
    return products / (card.teraflops * 1e12) + moved / (card.bandwidth * 1e12)


def _orthogonalisation(model: ModelConfig) -> float:
    """FLOPs of Muon's five iterations over the matrices of all layers, once a step."""
    hidden, inner = model.hidden_size, model.intermediate_size
    shapes = ((3 * hidden, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))
    sides = [(min(shape), max(shape)) for shape in shapes]
    return 5.0 * model.layers * sum(4 * long * short**2 + 2 * short**3 for short, long in sides)


def _needs(config: Config, card: Card, engine: str, devices: int) -> tuple[float, float, int]:
    """Bytes of state, bytes of activations a token, and the largest micro-batch in tokens that fits."""
    model = config.model
    if not card.cpu:
        again = bool(config.train.recompute)
        fits = tokens_that_fit(model, int(card.memory * 1e9), engine, devices, flash=True, recompute=again)
        return state_bytes(model, engine, devices), token_bytes(model, True, again), fits
    state = state_bytes(model, engine, devices) + _PROCESS
    fp32 = config.train.precision == "fp32"
    each = token_bytes_on_cpu(model, fp32) * (_FP32_KEPT if fp32 else 1.0)
    return state, each, max(0, int((_HOST_SHARE * card.memory * 1e9 - state) / each)) // model.context * model.context


def forecast(config: Config, card: Card, devices: int, tokens: int, vocabulary: int, node: int = 8) -> Forecast:
    """What `config` takes on `devices` cards, `node` of them in a machine, for so many tokens.

    The micro-batch is the configuration's where that fits, else, and with `auto`, the largest that fits and divides the global batch.
    Raises UsageError when none does, and for GPUs in fp32.
    """
    model, engine = config.model, "plain" if config.train.engine == "auto" else config.train.engine
    if engine not in ("plain", *STAGES):
        raise UsageError(
            f"train.engine={engine}: a forecast knows plain, {', '.join(STAGES)}; say the one that the file is like."
        )
    if config.train.precision == "fp32" and not card.cpu:
        raise UsageError(
            f"{card.name}: forecasts of GPUs are of bf16 alone; `dnascale bench run` measures train.precision=fp32."
        )
    of_run = stages(config)
    state, activation, fits = _needs(config, card, engine, devices)
    possible = [size for size in candidates(config, of_run, devices) if size <= fits]
    if config.train.micro_batch_tokens != "auto":
        share = max(stage.global_batch_tokens for stage in of_run) // devices
        asked = min(config.train.micro_batch_tokens, share)
        possible = [asked] if asked <= fits else possible
    if not possible:
        needs = (state + model.context * activation) / 1e9
        raise UsageError(
            f"on {devices} x {card.name} ({card.memory:g} GB) no micro-batch of {config.train.global_batch_tokens:,} tokens a step fits or divides "
            f"evenly: a single window needs about {needs:,.1f} GB with train.engine={engine}. More devices, ZeRO{'' if config.train.recompute else ', or train.recompute=layers'}."
        )
    settled = config.with_train(micro_batch_tokens=possible[0])
    seconds = exchanged = flops = 0.0
    steps, left, most = 0, tokens, 0
    count = parameters(model) + vocabulary * model.hidden_size
    for stage in of_run:
        needed = math.ceil(left / stage.global_batch_tokens)
        here = needed if stage.steps is None else min(stage.steps, needed)
        step, of_it, accumulation, each = _step(settled, stage, card, engine, devices, node, vocabulary, count)
        seconds, exchanged = seconds + here * step, exchanged + here * of_it
        flops += here * stage.global_batch_tokens * each
        steps, left, most = steps + here, left - here * stage.global_batch_tokens, max(most, accumulation)
        if left <= 0:
            break
    seen = tokens - left
    return Forecast(
        card, devices, engine, count, flops / seen, tokens, state, possible[0] * activation, possible[0], most, seconds / steps,
        exchanged / steps, seen / seconds, flops / seconds / (devices * card.teraflops * 1e12),
    )  # fmt: skip


def _step(
    config: Config, stage: Stage, card: Card, engine: str, devices: int, node: int, vocabulary: int, count: int
) -> tuple[float, float, int, float]:
    """Seconds of a step of a stage, those of its communication, its accumulation, and FLOPs a token. `count`: parameters."""
    model = config.model.model_copy(update={"context": stage.context})
    batching = divide_batch(config, stage, devices)
    micro, masked = batching.micro_windows * stage.context, stage.masking_rate
    if card.cpu:
        here = config.model_copy(update={"model": model})
        computing = micro * cpu_seconds_per_token(here, card, vocabulary)
    else:
        computing = max(micro * seconds_per_token(model, card, masked, vocabulary), _LAUNCH * model.layers)
    if config.train.recompute:
        computing *= _FORWARD_AGAIN
    cluster = Cluster(math.ceil(devices / node), min(devices, node), Link(card.link, _INSIDE_LATENCY), _BETWEEN)
    how = "ddp" if engine == "plain" else engine.partition("_")[0]
    exchanged = step_seconds(how, count, batching.accumulation, True, cluster)
    update = 0.0 if card.cpu or config.optimizer.name != "muon" else _MUON_LAUNCH * model.layers / devices
    flops = train_flops_per_token(model, vocabulary, masked, np.array([model.context]))
    return batching.accumulation * computing + update + exchanged, exchanged, batching.accumulation, flops
