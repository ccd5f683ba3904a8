"""Runs that are asked to stop: they save together, say so with exit code 75, and go on as if nothing had been."""

import signal
import time
from pathlib import Path

import psutil
import pytest
from jobs import dnascale, metrics, numbers, train, train_until, train_words

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed

pytestmark = pytest.mark.faults
#: Long enough to be interrupted, with no checkpoint of its own before the end.
LENGTH = ("train.steps=60", "checkpoint.every=1000")


@pytest.fixture(scope="module")
def uninterrupted(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[tuple[object, ...]]]:
    """Numbers of the whole run, by number of processes."""
    folder = tmp_path_factory.mktemp("whole")
    return {n: numbers(train(folder / str(n), human_cds, *LENGTH, processes=n)) for n in (1, 2)}


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP", "the file STOP"])
def test_a_run_that_is_asked_to_stop_saves_its_last_step_and_goes_on_bit_for_bit(
    human_cds: Dataset, tmp_path: Path, uninterrupted: dict[int, list[tuple[object, ...]]], reason: str
) -> None:
    run = tmp_path / "run"
    job = train_until(run, human_cds, *LENGTH, step=3)
    if reason == "the file STOP":
        (run / "STOP").touch()
    else:
        job.signal(0, signal.Signals[reason])
    assert job.wait() == [75], job.output()
    last = metrics(run)[-1]["step"]
    assert last < 60
    assert f"dnascale: stopped: by {reason} after step {last} of 60, and saved." in job.output()
    assert [path.name for path in committed(run / "checkpoints")] == [f"step-{last:08d}"]
    assert metrics(run, "stop") == [{"kind": "stop", "step": last, "reason": reason}]
    assert not (run / "STOP").exists()
    assert dnascale(*train_words(run, human_cds, *LENGTH)).code == 0
    assert numbers(metrics(run)) == uninterrupted[1]


@pytest.mark.parametrize("reason", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_processes_that_read_ahead_too_is_one_to_stop(
    human_cds: Dataset, tmp_path: Path, reason: signal.Signals
) -> None:
    """As Slurm, systemd and `timeout` send it: to all processes of the job."""
    run = tmp_path / "run"
    job = train_until(run, human_cds, *LENGTH, "data.workers=2", step=3)
    readers = job.children(0)
    assert readers
    assert len(readers) >= 2
    for process in readers:
        process.send_signal(reason)
    job.signal(0, reason)
    assert job.wait() == [75], job.output()
    assert not psutil.wait_procs(readers, timeout=10)[1]
    assert committed(run / "checkpoints")


@pytest.mark.parametrize("engine", ["plain", pytest.param("zero2", marks=pytest.mark.slow)])
def test_all_ranks_stop_at_one_step_when_a_single_one_is_told(
    human_cds: Dataset, tmp_path: Path, uninterrupted: dict[int, list[tuple[object, ...]]], engine: str
) -> None:
    run = tmp_path / "run"
    job = train_until(run, human_cds, *LENGTH, step=3, processes=2, engine=engine)
    job.signal(1, signal.SIGTERM)
    assert job.wait() == [75, 75], job.output()
    assert job.output().count("dnascale: stopped: by SIGTERM") == 1
    last = metrics(run)[-1]["step"]
    assert [path.name for path in committed(run / "checkpoints")] == [f"step-{last:08d}"]
    lines = train(run, human_cds, *LENGTH, processes=2, engine=engine)
    assert [line["step"] for line in lines] == list(range(1, 61))
    if engine == "plain":
        assert numbers(lines) == uninterrupted[2]


def test_a_signal_during_a_save_or_an_evaluation_waits_for_it(human_cds: Dataset, tmp_path: Path) -> None:
    """Every step saves and evaluates, so that signals come at any moment of these."""
    run = tmp_path / "run"
    busy = ("train.steps=60", "checkpoint.every=1", "evaluation.every=1")
    for number, wait in enumerate((0.0, 0.013, 0.029, 0.041)):
        job = train_until(run, human_cds, *busy, step=1 + 3 * number)
        time.sleep(wait)
        job.signal(0, signal.SIGTERM)
        assert job.wait() == [75], job.output()
        assert committed(run / "checkpoints")[-1].name == f"step-{metrics(run)[-1]['step']:08d}"
        assert not list((run / "checkpoints").glob(".*"))


def test_a_second_ctrl_c_ends_a_process_that_waits_for_one_that_hangs(human_cds: Dataset, tmp_path: Path) -> None:
    job = train_until(tmp_path / "run", human_cds, *LENGTH, step=3, processes=2)
    job.signal(1, signal.SIGSTOP)
    job.signal(0, signal.SIGINT)
    job.signal(0, signal.SIGINT)  # a launcher that passes it on: the same Ctrl-C
    time.sleep(1.3)
    assert job.codes()[0] is None
    begin = time.monotonic()
    job.signal(0, signal.SIGINT)
    while job.codes()[0] is None and time.monotonic() < begin + 10:
        time.sleep(0.01)
    took = time.monotonic() - begin
    job.kill()
    assert job.codes()[0] == 130
    assert took < 2
    assert "interrupted twice: left at once, without saving" in job.output()
