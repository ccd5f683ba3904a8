"""`dnascale launch` and the scripts of launch/, for real: two processes on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from jobs import Outcome, dnascale, environment, launch, metrics, require_deepspeed, train_words

from dnascale.data.shards import Dataset
from dnascale.launch.start import _explained

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "dnascale", "launch"]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def words(run: Path, data: Dataset, *overrides: str, engine: str = "auto") -> list[str]:
    return train_words(run, data, *overrides, engine=engine)[1:]


def test_launch_says_what_it_runs_and_runs_it_on_as_many_processes(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = launch([*LAUNCH, "--processes", "2", *words(tmp_path / "my run", human_cds, "train.steps=2")])
    assert outcome.code == 0, outcome.output
    assert "torchrun --nproc-per-node 2" in outcome.output
    assert "global batch 2,048 tokens = 2 processes x 2 x 8 windows of 64" in outcome.output
    assert "ddp · 2 processes" in outcome.output
    assert len(metrics(tmp_path / "my run")) == 2


def test_the_exit_code_is_that_of_the_processes(human_cds: Dataset, tmp_path: Path) -> None:
    """torchrun's own would be 1."""
    outcome = launch(
        [*LAUNCH, "-n", "2", *words(tmp_path / "run", human_cds, "train.steps=1", "masking.repeat_weight=0.5")]
    )
    assert outcome.code == 3, outcome.output
    assert "needs the soft mask" in outcome.error
    assert outcome.output.count("dnascale: error: ") == 1


def test_a_dry_run_starts_nothing(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale("launch", "-n", "2", "--dry-run", *words(tmp_path / "run", human_cds, "train.steps=1"))
    assert outcome.code == 0, outcome.output
    assert "torchrun --nproc-per-node 2" in outcome.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--node-rank", "1"], "--node-rank says which of --nodes this is"),
        (["--nodes", "no-such-host.invalid,other.invalid"], "is not among --nodes"),
        (["--nodes", "a,a"], "names a host twice"),
        (["--nodes", "a,b", "--node-rank", "2"], "--nodes names 2, counted from 0"),
        (["--processes", "3"], "which 3 processes cannot share equally"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    options: list[str], sentence: str, human_cds: Dataset, tmp_path: Path
) -> None:
    outcome = dnascale("launch", *options, *words(tmp_path / "run", human_cds, "train.steps=1"))
    assert outcome.code == 2
    assert sentence in outcome.error


def test_of_several_failures_the_cause_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun ends the others with SIGTERM, and what they met came after."""

    def code(*failures: tuple[int, int]) -> int:
        found = {rank: SimpleNamespace(exitcode=exitcode, timestamp=at) for rank, (exitcode, at) in enumerate(failures)}
        return _explained(SimpleNamespace(failures=found))

    assert code((-signal.SIGTERM, 1), (3, 2)) == 3
    assert code((7, 5), (6, 4)) == 6
    assert capsys.readouterr().err == ""
    assert code((1, 1), (-signal.SIGKILL, 2)) == 7
    assert "rank 1 on " in capsys.readouterr().err


@pytest.mark.faults
def test_a_process_that_is_killed_is_named_and_all_end(human_cds: Dataset, tmp_path: Path) -> None:
    import psutil

    run = tmp_path / "run"
    command = [*LAUNCH, "-n", "2", *words(run, human_cds, "train.steps=100000")]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment(), text=True)
    while not metrics(run):
        assert job.poll() is None
        time.sleep(0.05)
    ranks = psutil.Process(job.pid).children()
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 7
    assert "was ended by SIGKILL: was memory short? Started again, the run goes on" in errors
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_what_a_terminal_or_a_scheduler_sends_to_all_processes_is_one_wish_to_save_and_end(
    human_cds: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [*LAUNCH, "-n", "2", *words(run, human_cds, "train.steps=100000", "checkpoint.every=100000")]
    job = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment(), text=True, start_new_session=True
    )
    while not metrics(run):
        assert job.poll() is None
        time.sleep(0.05)
    os.killpg(job.pid, number)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 75, errors
    assert errors.count(f"dnascale: stopped: by {number.name}") == 1
    assert "bug" not in errors
    assert len(list((run / "checkpoints").glob("step-*"))) == 1


def script(name: str, *given: str) -> Outcome:
    return launch(["bash", str(ROOT / "launch" / name), *given], PATH=PATH, GPU_GB="12")


@pytest.mark.slow
def test_each_script_goes_on_from_the_checkpoint_of_the_one_before(human_cds: Dataset, tmp_path: Path) -> None:
    """From a laptop to several processes and back; Slurm's turn is in tests/cluster."""
    run = tmp_path / "run"
    rungs: list[tuple[str, list[str]]] = [
        ("mac.sh", []),
        ("gaming_gpu.sh", []),
        ("multi_gpu.sh", ["2"]),
        ("a100.sh", []),
    ]
    for number, (name, before) in enumerate(rungs, start=1):
        given = words(run, human_cds, f"train.steps={2 * number}", "run.allow_change=true", "train.precision=fp32")
        outcome = script(name, *before, *given)
        assert outcome.code == 0, outcome.output
        assert f"committed {run}/checkpoints/step-{2 * number:08d}" in outcome.output
        if number > 1:
            assert f"resumed  from the checkpoint of step {2 * number - 2}" in outcome.output
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "processes", "header"),
    [
        ("accelerate_single.yaml", "1", "plain · 1 process"),
        ("accelerate_zero1.yaml", "2", "zero1 · 2 processes"),
        ("accelerate_zero3.yaml", "2", "zero3 · 2 processes"),
    ],
)
def test_accelerate_launch_with_the_other_files_we_ship(
    human_cds: Dataset, tmp_path: Path, file: str, processes: str, header: str
) -> None:
    if "zero" in file:
        require_deepspeed()
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    options = ["--config_file", str(ROOT / "launch" / file), "--num_processes", processes]
    given = words(tmp_path / "run", human_cds, "train.steps=2")
    outcome = launch([*accelerate, *options, "-m", "dnascale.train", *given])
    assert outcome.code == 0, outcome.output
    assert header in outcome.output
    assert len(metrics(tmp_path / "run")) == 2
