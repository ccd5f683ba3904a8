"""What a step is made of, each measured alone: matrix products, copies, reading windows, saving, sums over processes."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dnascale.config import Config

_ROUNDS = 5
_SECONDS = 1.0  # of a round, about


@dataclass(frozen=True)
class Probe:
    """One measurement: the median of some rounds, the slowest and the fastest."""

    what: str
    unit: str
    value: float
    lowest: float
    highest: float


def probes(config: "Config", processes: int, say: Callable[[str], None]) -> Iterator[Probe]:
    """Of the device, the data and the disk of a configuration, one after the other. `say` is told what comes next.

    Raises what is wrong with the configuration or its data.
    """
    import torch

    from dnascale.device import choose_device
    from dnascale.hardware import measured_bandwidth

    device = torch.device(choose_device(config.train.device))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        say(f"matrix products, {name}")
        yield _over(f"matrix product, {name}", "TFLOP/s", partial(_teraflops, device, dtype))
    say("copies")
    yield _over("copy, read and written", "GB/s", lambda: measured_bandwidth(device) / 1e9)
    say("reading windows")
    yield _reading(config)
    say("saving")
    yield _saving(config)
    if processes > 1:
        say(f"sums over {processes} processes")
        yield _all_reduce(device.type, processes)


def _over(what: str, unit: str, measure: Callable[[], float]) -> Probe:
    values = [measure() for _ in range(_ROUNDS)]
    return Probe(what, unit, statistics.median(values), min(values), max(values))


def _teraflops(device: "torch.device", dtype: "torch.dtype") -> float:
    from dnascale.hardware import measured_flops

    return measured_flops(device, dtype) / 1e12


def _reading(config: "Config") -> Probe:
    """Windows as a rank alone would read them, with no step beside it: tokens/s."""
    from dnascale.data.stream import Dealing, TrainStream
    from dnascale.runs import open_data
    from dnascale.train.assemble import open_training_data

    reader, order = open_training_data(config, open_data(config.data))
    windows = max(1, config.train.global_batch_tokens // config.model.context)
    stream = TrainStream(reader, order, Dealing(windows), workers=config.data.workers)
    stream.next_step()

    def rate() -> float:
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < _SECONDS:
            stream.next_step()
            steps += 1
        return steps * windows * config.model.context / (time.perf_counter() - begin) / 1e6

    return _over(f"windows of {config.model.context:,} read, shuffled", "M tokens/s", rate)


def _saving(config: "Config") -> Probe:
    """A whole checkpoint of the model, to the disk of run.dir, digests and fsync in the time."""
    from dnascale.train.assemble import assemble
    from dnascale.train.saving import save

    beside = Path(config.run.dir).absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        job = assemble(config)
        size = sum(4 * one.numel for one in job.engine.held())

        def rate() -> float:
            begin = time.perf_counter()
            saved = save(Path(folder), job.engine, job.state, job.identity)
            seconds = time.perf_counter() - begin
            shutil.rmtree(saved)
            return size / seconds / 1e6

        return _over(f"checkpoint of {size / 1e9:.2f} GB", "MB/s", rate)


def _all_reduce(device: str, processes: int) -> Probe:
    from dnascale.bench.all_reduce import in_new_processes
    from dnascale.errors import PeerError

    values = []
    for _ in range(_ROUNDS):
        found, error = in_new_processes(processes, "nccl" if device == "cuda" else "gloo")
        if found is None:
            raise PeerError(f"{processes} processes cannot sum: {error}. `dnascale doctor` says more.")
        values.append(found["rows"][-1]["bus"] / 1e9)
    return Probe(f"all-reduce, {processes} processes", "GB/s", statistics.median(values), min(values), max(values))
