"""Measuring the training step: the loop's own, data included, in rounds, after a warm-up.

Each row is measured in a process of its own (or several, under torchrun), so that its memory is its own, and running out of it is a
result like any other.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale import __version__

if TYPE_CHECKING:
    from dnascale.config import Config
    from dnascale.data.stream import Batch, TrainStream
    from dnascale.train.assemble import Job

#: What a row must have to stand in a table with others, and of what type.
COLUMNS: dict[str, type | tuple[type, ...]] = {
    "name": str, "parameters": int, "context": int, "devices": int, "device": str, "precision": str, "engine": str,
    "attention": str, "compile": (str, type(None)), "recompute": (str, bool), "micro_batch_tokens": int, "accumulation": int,
    "global_batch_tokens": int, "tokens_per_second": float, "lowest": float, "highest": float, "tokens_per_second_per_device": float,
    "bases_per_second": float, "samples_per_second": float, "step_seconds": float, "flops_per_token": float, "tflops": float,
    "mfu": (float, type(None)), "share_of_matmul": float, "data_wait": float, "memory_gb": float, "watts": (float, type(None)), "synthetic": bool, "seconds_to_ready": float, "rounds": int,
    "versions": dict, "commit": (str, type(None)), "date": str, "config": dict,
}  # fmt: skip


class _Repeated:
    """The first step's batches for ever, in the place of a TrainStream."""

    def __init__(self, stream: "TrainStream") -> None:
        self._batches = stream.next_step()

    def next_step(self) -> "list[Batch]":
        return self._batches


def steps(job: "Job", synthetic: bool = False) -> Iterator[None]:
    """Takes one step after the other, with a line of metrics every ten, as a run does by default.

    `synthetic`: all of them on the windows of the first, so that nothing is read.
    """
    from dnascale.train import loop

    if synthetic:
        job.stream = _Repeated(job.stream)  # type: ignore[assignment]
    meter = loop.open_meter(job)
    with loop.without_garbage_collection():
        while True:
            loop.take_step(job, meter, 1e-4, None)
            if job.state.step % 10 == 0:
                meter.line(job.state, job.order.epoch_windows)
                job.guard.require_patience()
            yield


def measure(
    config: "Config", name: str, seconds: float, rounds: int, warm_up: int, synthetic: bool = False
) -> dict[str, Any] | None:
    """The row of one configuration, as this process and its peers take it; None on ranks other than 0. Collective.

    Rounds are of about so many `seconds`; the rate is the median over them.
    """
    import torch

    from dnascale.hardware import device_name, wait_for
    from dnascale.train.assemble import assemble
    from dnascale.train.environment import environment
    from dnascale.train.folder import as_recorded

    begin = time.perf_counter()
    job = assemble(config)
    device, world = job.accelerator.device, job.accelerator.num_processes
    taken = steps(job, synthetic)
    for _ in range(warm_up):
        next(taken)
    wait_for(device)
    ready = time.perf_counter() - begin
    tokens = job.stage.global_batch_tokens

    def step_seconds(count: int) -> float:
        """Of each of the next steps, on the slowest process."""
        job.accelerator.wait_for_everyone()
        begin = time.perf_counter()
        for _ in range(count):
            next(taken)
        wait_for(device)
        return _slowest(job, (time.perf_counter() - begin) / count)

    each, rates = step_seconds(1), []
    for _ in range(rounds):
        each = step_seconds(max(1, int(seconds / each)))
        rates.append(tokens / each)
    watts = _power(device)
    waits = [_data_wait(job, taken) for _ in range(3)]
    memory = _peak_memory(job)
    if not job.accelerator.is_main_process:
        return None
    rate, peak = statistics.median(rates), job.speed.peak
    known = environment()
    return {
        "name": name, "parameters": sum(torch.Size(shape).numel() for shape in job.engine.shapes.values()), "context": job.stage.context,
        "devices": world, "device": device_name(device), "precision": job.config.train.precision, "engine": job.engine.name,
        "attention": str(job.engine.module.attention), "compile": job.engine.compiled, "recompute": job.config.train.recompute,
        "micro_batch_tokens": job.batching.micro_windows * job.stage.context, "accumulation": job.batching.accumulation,
        "global_batch_tokens": tokens, "tokens_per_second": rate, "lowest": min(rates), "highest": max(rates),
        "tokens_per_second_per_device": rate / world, "bases_per_second": rate * job.speed.bases_per_token,
        "samples_per_second": rate / job.stage.context, "step_seconds": tokens / rate, "flops_per_token": job.flops_per_token,
        "tflops": rate * job.flops_per_token / 1e12, "mfu": None if peak is None else rate * job.flops_per_token / peak / world,
        "share_of_matmul": rate * job.flops_per_token / job.speed.matmul, "data_wait": statistics.median(waits), "memory_gb": memory, "watts": watts, "synthetic": synthetic,
        "seconds_to_ready": ready, "rounds": rounds, "versions": known["versions"] | {"python": platform.python_version(), "dnascale": __version__},
        "commit": known.get("commit"), "date": time.strftime("%Y-%m-%d"), "config": as_recorded(job.config).model_dump(mode="json"),
    }  # fmt: skip


def _slowest(job: "Job", seconds: float) -> float:
    import torch

    if job.accelerator.num_processes == 1:
        return seconds
    own = torch.tensor([seconds], dtype=torch.float32, device=job.accelerator.device)
    return float(job.accelerator.gather(own).max())


def _data_wait(job: "Job", taken: Iterator[None]) -> float:
    """Share of one step that its windows take to be read."""
    from dnascale.hardware import wait_for

    begin = time.perf_counter()
    job.stream.next_step()
    read = time.perf_counter() - begin
    begin = time.perf_counter()
    next(taken)
    wait_for(job.accelerator.device)
    return read / (time.perf_counter() - begin)


def _peak_memory(job: "Job") -> float:
    """10^9 bytes: of the device's memory on CUDA, else of the process; of the rank that had most."""
    import torch

    device = job.accelerator.device
    if device.type == "cuda":
        used = float(torch.cuda.max_memory_allocated(device))
    else:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _slowest(job, used / 1e9)


def _power(device: Any) -> float | None:
    """Watts that the device draws right after the last round, by its driver's sensor; None where nothing reads it."""
    import torch

    try:
        return torch.cuda.power_draw(device) / 1e3 if device.type == "cuda" else None
    except Exception:  # without nvidia-ml-py, or a sensor
        return None


def in_process_of_its_own(
    preset: str, overrides: list[str], name: str, processes: int, options: dict[str, Any]
) -> dict[str, Any]:
    """The row of a configuration; {"name", "error"} where there is none."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        task = json.dumps(
            {"preset": preset, "overrides": [*overrides, f"run.dir={folder}/run"], "name": name, "out": str(out)}
            | options
        )
        launcher = [sys.executable, "-m"]
        if processes > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [*launcher, "dnascale.bench.throughput", task], capture_output=True, text=True, env=environment
        )
        if out.is_file():
            row: dict[str, Any] = json.loads(out.read_text())
            return row
        said = [line for line in done.stderr.splitlines() if line.startswith("dnascale: error: ")]
        why = said[-1].removeprefix("dnascale: error: ") if said else (done.stderr.strip().splitlines() or ["?"])[-1]
        return {"name": name, "error": why, "exit_code": done.returncode}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of `dnascale bench run`. Raises UsageError, or DataError with a line for each thing that is wrong."""
    from dnascale.errors import DataError, UsageError

    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is no file of `dnascale bench run`.") from None
    rows, wrong = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["name"]
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{path}:{number} is no row of `dnascale bench run`.") from None
        rows.append(row)
        wrong += [f"{path}:{number}: {one}" for one in _wrong(row)]
    if wrong:
        raise DataError("\n".join(wrong))
    return rows


def devices_of(row: dict[str, Any]) -> str:
    """What a row was measured on."""
    return str(row["device"]) if row["devices"] == 1 else f"{row['devices']} x {row['device']}"


def _wrong(row: dict[str, Any]) -> list[str]:
    """What a row that was measured lacks, or cannot be."""
    if "error" in row:
        return []
    said = [f"{key} is missing" for key in COLUMNS if key not in row]
    said += [f"{key} is {row[key]!r}" for key, kind in COLUMNS.items() if key in row and not _is(row[key], kind)]
    if not said and not 0 < row["lowest"] <= row["tokens_per_second"] <= row["highest"]:
        said.append("tokens_per_second is not between lowest and highest")
    if not said and row["mfu"] is not None and not 0 < row["mfu"] < 1:
        said.append(f"mfu is {row['mfu']}")
    return said


def _is(value: Any, kind: Any) -> bool:
    """A whole number is a float too."""
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def _child(task: dict[str, Any]) -> None:
    """In the process of a row."""
    from dnascale.config import load_config
    from dnascale.device import choose_device
    from dnascale.errors import DnascaleError
    from dnascale.train.memory import explain_shortage, is_out_of_memory

    settled = load_config(task["preset"], task["overrides"])
    try:
        row = measure(settled, task["name"], task["seconds"], task["rounds"], task["warm_up"], task["synthetic"])
    except Exception as error:
        import torch

        if is_out_of_memory(error):
            error = explain_shortage(settled, "in a step", torch.device(choose_device(settled.train.device)))
        kind = "" if isinstance(error, DnascaleError) else f"{type(error).__name__}: "
        print(f"dnascale: error: {kind}{error}", file=sys.stderr, flush=True)
        os._exit(getattr(error, "exit_code", 1))
    if row is not None:
        Path(task["out"]).write_text(json.dumps(row))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo and DeepSpeed may still run


if __name__ == "__main__":
    _child(json.loads(sys.argv[1]))
