"""Starting real training runs as a user does: `dnascale train` and `torchrun -m dnascale.train`."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnascale.data.shards import Dataset

#: A model small enough that two processes train twenty steps in seconds.
TINY = [
    "model.hidden_size=64", "model.layers=2", "model.heads=2", "model.intermediate_size=64", "model.context=64",
    "train.global_batch_tokens=2048", "train.micro_batch_tokens=512", "train.device=cpu",
    "log.every=1", "evaluation.every=1000", "evaluation.windows=16",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """The one sentence a user reads."""
        lines = [line for line in self.output.splitlines() if line.startswith("dnascale: error: ")]
        return lines[-1].removeprefix("dnascale: error: ") if lines else ""


def environment(**changes: str) -> dict[str, str]:
    """One thread a process, so that sums have one order; nothing of a surrounding launcher."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return kept | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "160"} | changes


def train_command(run: Path, data: Dataset, *overrides: str, processes: int = 1, engine: str = "plain") -> list[str]:
    config = ["nano", *TINY, f"data.path={data.folder}", f"run.dir={run}", f"train.engine={engine}", *overrides]
    if processes == 1:
        return [sys.executable, "-m", "dnascale", "train", *config]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    # A port of its own, so that runs beside each other do not meet.
    return [*launcher, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "dnascale.train", *config]


def execute(command: list[str], timeout: float = 240, **changes: str) -> Outcome:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment(**changes),
    )
    return Outcome(done.returncode, done.stdout)


def train(run: Path, data: Dataset, *overrides: str, processes: int = 1, engine: str = "plain") -> list[dict[str, Any]]:
    """Trains to the end and returns the lines of metrics.jsonl of kind train. Fails the test when training fails."""
    outcome = execute(train_command(run, data, *overrides, processes=processes, engine=engine))
    assert outcome.code == 0, outcome.output
    return metrics(run)


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def numbers(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What must be equal to the bit: not the timings."""
    keys = (
        "step",
        "tokens",
        "epoch",
        "position",
        "loss",
        "masked_loss",
        "learning_rate",
        "gradient_norm",
        "windows_digest",
    )
    return [tuple(line[key] for key in keys) for line in lines]


def kill_after(command: list[str], run: Path, step: int, timeout: float = 180) -> None:
    """Starts `command`, waits until metrics.jsonl shows `step`, and kills the whole process group with SIGKILL."""
    with (run.parent / f"{run.name}.log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    deadline = time.monotonic() + timeout
    while not any(line["step"] >= step for line in _whole_lines(run)):
        assert job.poll() is None, (run.parent / f"{run.name}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(job.pid, 9)
    job.wait()


def _whole_lines(run: Path) -> list[dict[str, Any]]:
    try:
        return metrics(run)
    except ValueError:  # a line is being written
        return []
