"""checkpoint.asynchronous: training goes on while a checkpoint is written, and what is written is the state of its step."""

import json
import signal
from pathlib import Path

import pytest
import torch
from jobs import dnascale, metrics, numbers, train, train_until, train_words
from safetensors.torch import load_file, save
from test_reshard import state

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import Checkpoint, committed, newest_valid
from dnascale.train.saving import write_safetensors

LENGTH = ("train.steps=12", "checkpoint.every=4", "checkpoint.keep=9")
BACKGROUND = (*LENGTH, "checkpoint.asynchronous=true")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_slow_disk_holds_nobody_up_and_every_checkpoint_is_that_of_its_step(
    human_cds: Dataset, tmp_path: Path, processes: int
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    expected = train(whole, human_cds, *LENGTH, processes=processes)
    words = train_words(run, human_cds, *BACKGROUND)
    outcome = dnascale(*words, processes=processes, DNASCALE_FAULT="ckpt.fsync:step=4:sleep=0.4")
    assert outcome.code == 0, outcome.output
    assert numbers(metrics(run)) == numbers(expected)
    said = outcome.output
    assert (
        said.index("step      5/12") < said.index("committed") < said.index("step      9/12")
    )  # before the next one begins
    assert [path.name for path in committed(run / "checkpoints")] == [f"step-{step:08d}" for step in (4, 8, 12)]
    for step in (4, 8, 12):
        one, other = (state(Checkpoint(folder / "checkpoints" / f"step-{step:08d}")) for folder in (run, whole))
        assert all(torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.faults
def test_a_disk_that_fails_in_the_background_is_told_by_all_ranks(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, *BACKGROUND)
    outcome = dnascale(*words, processes=2, DNASCALE_FAULT="ckpt.fsync:rank=1:step=8:enospc")
    assert outcome.code == 5
    assert outcome.output.count("dnascale: error: ") == 1
    assert "rank 1: no space left for the checkpoint" in outcome.error
    assert [path.name for path in committed(run / "checkpoints")] == ["step-00000004"]
    assert dnascale(*words, processes=2).code == 0
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))


@pytest.mark.faults
def test_who_is_asked_to_stop_completes_what_is_on_its_way(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = (*BACKGROUND, "train.steps=400", "checkpoint.every=20")
    job = train_until(run, human_cds, *more, step=21)
    job.signal(0, signal.SIGTERM)
    assert job.wait() == [75], job.output()
    found, rejected = newest_valid(run / "checkpoints")
    assert found is not None
    assert not rejected
    assert found.state.step == metrics(run)[-1]["step"]
    assert (run / "checkpoints" / "step-00000020").is_dir()
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.faults
@pytest.mark.parametrize("point", ["ckpt.write", "ckpt.fsync", "ckpt.manifest"])
def test_killed_while_writing_in_the_background_the_run_goes_on(human_cds: Dataset, tmp_path: Path, point: str) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, *BACKGROUND)
    assert dnascale(*words, DNASCALE_FAULT=f"{point}:step=8:kill").code == -9
    found, _ = newest_valid(run / "checkpoints")
    assert found is not None
    assert found.state.step == 4
    assert dnascale(*words).code == 0
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))


def test_the_file_is_what_safetensors_itself_reads_and_writes(tmp_path: Path) -> None:
    tensors = {f"weight/λ{n}@0": torch.randn(n) for n in (1, 7, 0, 4096)}
    path = tmp_path / "one.safetensors"
    with path.open("xb") as out:
        size, _ = write_safetensors(out, tensors.items())
    assert (
        size
        == path.stat().st_size
        == 8 + int.from_bytes(path.read_bytes()[:8], "little") + 4 * sum(map(len, tensors.values()))
    )
    found = load_file(path)
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    length = int.from_bytes((theirs := save(tensors))[:8], "little")
    assert set(json.loads(theirs[8 : 8 + length])) == set(tensors)
