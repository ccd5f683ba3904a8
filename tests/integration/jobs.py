"""Starting real training jobs: one or more processes, each running the command line, with the environment of a launcher.

On Linux the processes are forked from a server that has imported torch, transformers and DeepSpeed once, which makes a
job take a second or two instead of ten. Elsewhere, and where a test is about launching, they are started afresh.
"""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from dnascale.data.shards import Dataset

#: A model small enough that two processes train twenty steps in seconds.
TINY = [
    "model.hidden_size=64", "model.layers=2", "model.heads=2", "model.intermediate_size=64", "model.context=64",
    "train.global_batch_tokens=2048", "train.micro_batch_tokens=512", "train.device=cpu",
    "log.every=1", "evaluation.every=1000", "evaluation.windows=16",
    "optimizer.name=adamw", "optimizer.learning_rate=1e-3",
]  # fmt: skip

#: What a launcher sets, and what keeps sums in one order: one thread a process.
_QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "160"}
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: Imported once by the server; importing starts no thread and touches no device.
_PRELOADED = [
    "accelerate",
    "accelerate.utils",
    "transformers.models.modernbert.modeling_modernbert",
    "deepspeed",
    "rich.progress",
    "omegaconf",
    "pyarrow.parquet",
    "dnascale.cli",
    "dnascale.train.loop",
    "dnascale.model.modernbert",
    "dnascale.evaluate.run",
    "dnascale.data.prepare",
]

DEEPSPEED = find_spec("deepspeed") is not None

Target = Callable[..., None]


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the first exit code that is not 0, and what all its processes printed."""

    code: int
    output: str

    @property
    def error(self) -> str:
        """The one sentence a user reads."""
        lines = [line for line in self.output.splitlines() if line.startswith("dnascale: error: ")]
        return lines[-1].removeprefix("dnascale: error: ") if lines else ""


def environment(**changes: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in _LAUNCHER} | _QUIET | changes


def train_words(run: Path, data: Dataset, *overrides: str, engine: str = "plain") -> list[str]:
    """`dnascale train` of the tiny model, without the program's name."""
    if engine.startswith("zero"):
        require_deepspeed()
    return ["train", "nano", *TINY, f"data.path={data.folder}", f"run.dir={run}", f"train.engine={engine}", *overrides]


def require_deepspeed() -> None:
    """Skips the test where DeepSpeed cannot be installed (macOS)."""
    if not DEEPSPEED:
        pytest.skip("DeepSpeed is not installed here")


def dnascale(*words: str | Path, processes: int = 1, timeout: float = 240, **env: str) -> Outcome:
    """Runs `dnascale WORDS`, on as many processes, to the end."""
    return execute(command_line, [str(word) for word in words], processes=processes, timeout=timeout, **env)


def execute(target: Target, *arguments: Any, processes: int = 1, timeout: float = 240, **env: str) -> Outcome:
    """Runs `target(*arguments)` on as many processes to the end; when one fails, the others get five seconds."""
    job = Job(target, arguments, processes, env)
    deadline = time.monotonic() + timeout
    while any(code is None for code in job.codes()):
        time.sleep(0.01)
        if any(job.codes()):
            deadline = min(deadline, time.monotonic() + 5)
        if time.monotonic() > deadline:
            job.kill()
    return Outcome(next((code for code in job.codes() if code), 0), job.output())


def launch(command: list[str], timeout: float = 240, **env: str) -> Outcome:
    """Runs a command in a process of its own, as a shell would."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment(**env),
        cwd=Path(__file__).parents[2],
    )
    return Outcome(done.returncode, done.stdout)


def train(run: Path, data: Dataset, *overrides: str, processes: int = 1, engine: str = "plain") -> list[dict[str, Any]]:
    """Trains to the end and returns the train lines of metrics.jsonl. Fails the test when training fails."""
    outcome = dnascale(*train_words(run, data, *overrides, engine=engine), processes=processes)
    assert outcome.code == 0, outcome.output
    return metrics(run)


def train_until_killed(
    run: Path, data: Dataset, *overrides: str, step: int, processes: int = 1, engine: str = "plain"
) -> None:
    """Trains until metrics.jsonl shows `step`, then kills every process with SIGKILL."""
    train_until(run, data, *overrides, step=step, processes=processes, engine=engine).kill()


def train_until(
    run: Path, data: Dataset, *overrides: str, step: int, processes: int = 1, engine: str = "plain"
) -> "Job":
    """Trains until metrics.jsonl shows `step`, and returns the job, which goes on."""
    job = Job(command_line, (train_words(run, data, *overrides, engine=engine),), processes, {})
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in _whole_lines(run)):
        assert not any(code is not None for code in job.codes()), job.output()
        assert time.monotonic() < deadline, job.output()
        time.sleep(0.002)
    return job


def metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def numbers(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What must be equal to the bit: not the timings."""
    keys = ("step", "tokens", "epoch", "position", "loss", "masked_loss", "learning_rate", "gradient_norm")
    return [tuple(line[key] for key in (*keys, "windows_digest")) for line in lines]


class Job:
    """Processes that run `target(*arguments)` as ranks 0 to n - 1."""

    def __init__(self, target: Target, arguments: tuple[Any, ...], processes: int, env: dict[str, str]) -> None:
        handle, log = tempfile.mkstemp(suffix=".log")
        os.close(handle)
        self._log = Path(log)
        weakref.finalize(self, self._log.unlink, missing_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload(_PRELOADED)
        self._ranks: list[BaseProcess] = []
        for rank in range(processes):
            group: dict[str, str] = {}
            if processes > 1:
                group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                group |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = context.Process(
                target=_rank, args=(target, arguments, environment(**env) | group, str(self._log))
            )
            process.start()
            self._ranks.append(process)

    def codes(self) -> list[int | None]:
        return [process.exitcode for process in self._ranks]

    def signal(self, rank: int, number: int) -> None:
        pid = self._ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def children(self, rank: int) -> list[psutil.Process]:
        return psutil.Process(self._ranks[rank].pid).children(recursive=True)

    def wait(self, timeout: float = 60) -> list[int | None]:
        """The exit codes of all ranks; those that still run after so many seconds are killed, and have -9."""
        deadline = time.monotonic() + timeout
        for process in self._ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()
        return self.codes()

    def kill(self) -> None:
        for process in self._ranks:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self._ranks:
            process.join()

    def output(self) -> str:
        return self._log.read_text()


def _rank(target: Target, arguments: tuple[Any, ...], env: dict[str, str], log: str) -> None:
    """In the new process: becomes one rank of a job that writes to `log`."""
    import torch

    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    target(*arguments)


def command_line(words: list[str]) -> None:
    from dnascale.cli import main

    sys.argv = ["dnascale", *words]
    main(words)


def _whole_lines(run: Path) -> list[dict[str, Any]]:
    try:
        return metrics(run)
    except ValueError:  # a line is being written
        return []
