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
from dnascale.bench.hardware import Card, card_of
from dnascale.config import Config, ModelConfig
from dnascale.errors import UsageError
from dnascale.model.flops import keys_per_token, train_flops_per_token
from dnascale.model.memory import parameters, state_bytes, token_bytes, tokens_that_fit
from dnascale.train.batching import divide_batch
from dnascale.train.memory import candidates, with_micro_batch
from dnascale.train.schedules import stages

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
#: Between nodes, bytes/s a device and seconds a message: one 400 Gb/s port each.
_BETWEEN = Link(50e9, 10e-6)
_INSIDE_LATENCY = 5e-6
#: Bytes a parameter of a checkpoint: fp32 weights and both moments.
_SAVED = 12


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
    def kilowatt_hours(self) -> float:
        """At the devices' full power; hosts and cooling not counted."""
        return self.hours * self.devices * self.card.watts / 1000

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
        and (row["devices"], row["engine"], row["precision"]) == (found.devices, engine, "bf16")
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
    whole = sum(layer % model.global_every == 0 for layer in range(layers))
    products = 6 * (layers * (4 * hidden**2 + 3 * hidden * inner) + masking_rate * (hidden**2 + hidden * vocabulary))
    everything = 12 * hidden * whole * keys_per_token(window, None)
    near = 12 * hidden * (layers - whole) * keys_per_token(window, model.local_attention // 2)
    traffic = layers * ((_BYTES_HIDDEN + _BYTES_ATTENTION) * hidden + _BYTES_GATE * inner)
    ideal = products / _PRODUCTS + everything / _GLOBAL + near / _LOCAL
    return (ideal / peak + traffic / (_TRAFFIC * bandwidth)) / _REACHED


def forecast(config: Config, card: Card, devices: int, tokens: int, vocabulary: int, node: int = 8) -> Forecast:
    """What `config` takes on `devices` cards, `node` of them in a machine, for so many tokens.

    The micro-batch is the configuration's, or with `auto` the largest that fits and divides the global batch. Raises UsageError when
    none does.
    """
    model, engine = config.model, "plain" if config.train.engine == "auto" else config.train.engine
    of_run = stages(config)
    fits = tokens_that_fit(model, int(card.memory * 1e9), engine, devices, flash=True)
    possible = [size for size in candidates(config, of_run, devices) if size <= fits]
    if config.train.micro_batch_tokens != "auto":
        possible = [config.train.micro_batch_tokens] if config.train.micro_batch_tokens <= fits else possible
    if not possible:
        needs = (state_bytes(model, engine, devices) + model.context * token_bytes(model, True)) / 1e9
        raise UsageError(
            f"on {devices} x {card.name} ({card.memory:g} GB) no micro-batch of {config.train.global_batch_tokens:,} tokens a step fits or divides "
            f"evenly: a single window needs about {needs:,.1f} GB with train.engine={engine}. More devices, ZeRO, or train.recompute=layers."
        )
    micro = possible[0]
    batching = divide_batch(with_micro_batch(config, micro), of_run[0], devices)
    count = parameters(model) + vocabulary * model.hidden_size
    computing = max(micro * seconds_per_token(model, card, config.masking.rate, vocabulary), _LAUNCH * model.layers)
    inside = min(devices, node)
    cluster = Cluster(math.ceil(devices / node), inside, Link(card.link, _INSIDE_LATENCY), _BETWEEN)
    exchanged = step_seconds(
        "ddp" if engine == "plain" else engine.partition("_")[0], count, batching.accumulation, True, cluster
    )
    step = batching.accumulation * computing + exchanged
    rate = config.train.global_batch_tokens / step
    flops = train_flops_per_token(model, vocabulary, config.masking.rate, np.array([model.context]))
    return Forecast(
        card, devices, engine, count, flops, tokens, state_bytes(model, engine, devices), micro * token_bytes(model, True), micro,
        batching.accumulation, step, exchanged, rate, rate * flops / (devices * card.teraflops * 1e12),
    )  # fmt: skip
