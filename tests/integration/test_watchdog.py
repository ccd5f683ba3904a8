"""A rank that hangs: every process ends with exit code 7, and says whom it waited for."""

import signal
import time
from pathlib import Path

import pytest
from jobs import Job, command_line, dnascale, metrics, train_until, train_words

from dnascale.data.shards import Dataset

pytestmark = pytest.mark.faults
STALL = "guard.stall=2"


def test_the_rank_that_waits_for_its_data_is_named_by_all(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=8", STALL)
    job = Job(command_line, (words,), 2, {"DNASCALE_FAULT": "data.read:rank=1:step=4:sleep=60"})
    begin = time.monotonic()
    assert job.wait(40) == [7, 7], job.output()
    assert time.monotonic() - begin < 40
    said = job.output()
    assert "rank 0: no progress for 2 s at step 4 (step.forward). Furthest behind: rank 1 (process " in said
    assert ", step 4, data.read). The stacks of this process follow." in said
    assert "in next_step" in said or "loop.py" in said  # where it stands


def test_a_rank_that_is_stopped_is_named_by_the_one_that_waits(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = train_until(run, human_cds, "train.steps=100000", STALL, step=4, processes=2)
    while len(list((run / ".beats").glob("rank-*.json"))) < 2:
        time.sleep(0.01)
    job.signal(1, signal.SIGSTOP)
    deadline = time.monotonic() + 30
    while job.codes()[0] is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.codes()[0] == 7, job.output()
    job.signal(1, signal.SIGCONT)
    job.kill()
    assert "Furthest behind: rank 1 (process " in job.output()


def test_a_job_that_was_suspended_and_goes_on_has_not_hung(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = train_until(run, human_cds, "train.steps=300", STALL, step=4)
    job.signal(0, signal.SIGSTOP)
    time.sleep(3)
    job.signal(0, signal.SIGCONT)
    assert job.wait() == [0], job.output()
    assert metrics(run)[-1]["step"] == 300


def test_null_waits_for_ever(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=4", "guard.stall=null")
    assert dnascale(*words, DNASCALE_FAULT="data.read:step=3:sleep=3").code == 0
    assert not (tmp_path / "run" / ".beats").exists()
