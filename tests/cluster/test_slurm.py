"""launch/slurm.sbatch, as it is, on a real Slurm of two nodes: preempted, requeued, completed; no step lost or done twice."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import ROOT, Network, network
from jobs import Outcome, launch, metrics, numbers, train, train_words
from scheduler import SCRIPT, Scheduler, slurm
from test_nodes import BATCH, _lines

from dnascale import errors
from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed

pytestmark = pytest.mark.cluster


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[Network]:
    with network(2, tmp_path) as made:
        yield made


@pytest.fixture
def scheduler(two_hosts: Network, tmp_path: Path) -> Iterator[Scheduler]:
    with slurm(two_hosts, tmp_path / "slurm") as running:
        yield running


def submit(scheduler: Scheduler, tmp_path: Path, words: list[str], *options: str) -> str:
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PROCESSES": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }  # fmt: skip
    return scheduler.run("sbatch", "--parsable", *options, SCRIPT, *words, cwd=tmp_path, **env)


def until_step(scheduler: Scheduler, job: str, run: Path, step: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in _lines(run)):
        assert scheduler.state(job) in ("PENDING", "RUNNING", "CONFIGURING"), log.read_text()
        assert time.monotonic() < deadline, scheduler.logs() + (log.read_text() if log.exists() else "")
        time.sleep(0.05)


#: Whether processes that are asked to end save first: exit code 75.
SAVES_ON_SIGNAL = any(getattr(kind, "exit_code", None) == 75 for kind in vars(errors).values())
STEPS = (*BATCH, "train.steps=60", "checkpoint.every=5", "checkpoint.keep=100")


def test_a_job_that_must_leave_goes_back_into_the_queue_and_completes_the_same_run(
    scheduler: Scheduler, human_cds: Dataset, tmp_path: Path
) -> None:
    """No step is lost, and none counts twice; where the processes save when they are asked to end, none is done twice."""
    run = tmp_path / "my run"
    whole = train(tmp_path / "whole", human_cds, *STEPS, processes=2)
    job = submit(scheduler, tmp_path, train_words(run, human_cds, *STEPS)[1:])
    log = tmp_path / f"dnascale-{job}.log"
    until_step(scheduler, job, run, 12, log)
    scheduler.run("scancel", "--batch", "--signal=USR1", job)
    scheduler.wait_until(job, "PENDING")
    newest, reached = committed(run / "checkpoints")[-1], metrics(run)[-1]["step"]
    assert reached < 60
    if SAVES_ON_SIGNAL:
        assert newest.name == f"step-{reached:08d}"
        assert "slurm.sbatch: saved; back into the queue" in log.read_text()
    scheduler.wait_until(job, "COMPLETED")
    said = log.read_text()
    assert "slurm.sbatch: told to leave at" in said
    assert "start 2, " in said
    assert f"resumed  from the checkpoint of step {int(newest.name[5:])}" in said
    assert numbers(metrics(run)) == numbers(whole)


def test_a_job_of_higher_priority_takes_the_nodes_and_gives_them_back(
    scheduler: Scheduler, human_cds: Dataset, tmp_path: Path
) -> None:
    """Slurm's own preemption: SIGTERM, a time of grace, and the queue."""
    run = tmp_path / "run"
    whole = train(tmp_path / "whole", human_cds, *STEPS, processes=2)
    job = submit(scheduler, tmp_path, train_words(run, human_cds, *STEPS)[1:])
    log = tmp_path / f"dnascale-{job}.log"
    until_step(scheduler, job, run, 12, log)
    urgent = scheduler.run(
        "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap", "sleep 1", cwd=tmp_path
    )
    scheduler.wait_until(urgent, "COMPLETED")
    scheduler.wait_until(job, "COMPLETED")
    assert "resumed  from the checkpoint of step" in log.read_text()
    assert numbers(metrics(run)) == numbers(whole)


def test_a_job_that_loses_a_node_starts_again_on_the_one_that_is_left(
    two_hosts: Network, scheduler: Scheduler, human_cds: Dataset, tmp_path: Path
) -> None:
    """With --nodes=1-2: the same global batches, on half of the processes."""
    run = tmp_path / "run"
    whole = train(tmp_path / "whole", human_cds, *STEPS, processes=2)
    job = submit(scheduler, tmp_path, train_words(run, human_cds, *STEPS)[1:], "--nodes=1-2")
    log = tmp_path / f"dnascale-{job}.log"
    until_step(scheduler, job, run, 12, log)
    two_hosts.hosts[1].pull_the_cable()
    scheduler.wait_until(job, "COMPLETED", timeout=240)
    said = log.read_text()
    assert "resumed  from the checkpoint of step" in said
    assert "3,072 tokens = 1 x 6 x 8 windows" in said
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in whole]


def test_an_error_is_not_tried_again(scheduler: Scheduler, human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, *BATCH, "train.steps=2", "data.verify=start")
    shutil.copytree(human_cds.folder, tmp_path / "data")
    (tmp_path / "data" / "train" / "shard-000000.tar").unlink()
    job = submit(scheduler, tmp_path, [*words[1:], f"data.path={tmp_path / 'data'}"])
    scheduler.wait_until(job, "FAILED", "COMPLETED", "CANCELLED")
    said = (tmp_path / f"dnascale-{job}.log").read_text()
    assert scheduler.state(job) == "FAILED"
    assert "shard-000000.tar is missing" in said
    assert "ended with exit code 3" in said


def test_a_run_goes_from_a_mac_to_several_processes_to_slurm_and_back_to_one(
    scheduler: Scheduler, human_cds: Dataset, tmp_path: Path
) -> None:
    """Each launcher ends in a checkpoint from which the next goes on; the losses are those of one process that did it all."""
    run = tmp_path / "my run"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    whole = train(tmp_path / "whole", human_cds, *BATCH, "train.steps=8", "schedule.shape=constant")

    def until(step: int) -> list[str]:
        more = (f"train.steps={step}", "run.allow_change=true", "schedule.shape=constant")
        return train_words(run, human_cds, *BATCH, *more)[1:]

    outputs = [launch(["bash", str(ROOT / "launch" / "mac.sh"), *until(2)], PATH=path)]
    outputs.append(launch(["bash", str(ROOT / "launch" / "multi_gpu.sh"), "2", *until(4)], PATH=path))
    job = submit(scheduler, tmp_path, until(6))
    scheduler.wait_until(job, "COMPLETED")
    outputs.append(Outcome(0, (tmp_path / f"dnascale-{job}.log").read_text()))
    outputs.append(launch(["bash", str(ROOT / "launch" / "a100.sh"), *until(8)], PATH=path, GPU_GB="80"))
    for step, outcome in zip((2, 4, 6, 8), outputs, strict=True):
        assert outcome.code == 0, outcome.output
        assert f"committed {run}/checkpoints/step-{step:08d}" in outcome.output
        assert step == 2 or f"resumed  from the checkpoint of step {step - 2}" in outcome.output
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in whole]
