"""A checkpoint belongs to no engine and no number of ranks: every pair below gives the same fp32 state to the bit."""

import math
import shutil
from pathlib import Path

import pytest
import reshard
import torch
from jobs import execute, require_deepspeed, train

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import Checkpoint, require_newest

SOURCES = {"zero3 on 2": (2, "zero3"), "plain on 1": (1, "plain")}
TARGETS = [(1, "plain"), (2, "plain"), (2, "zero1"), (1, "zero2"), (2, "zero3")]


@pytest.fixture(scope="module")
def runs(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reshard")
    for name, (processes, engine) in SOURCES.items():
        train(folder / name, human_cds, "train.steps=4", "checkpoint.every=4", processes=processes, engine=engine)
    return {name: folder / name for name in SOURCES}


def state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        f"{kind} {p['name']}": checkpoint.read(kind, p["name"], 0, math.prod(shape))
        for p in checkpoint.manifest["parameters"]
        for kind, shape in p["kinds"].items()
    }


@pytest.mark.parametrize(("processes", "engine"), TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_weights_and_moments_are_equal_to_the_bit_after_loading_elsewhere(
    runs: dict[str, Path], human_cds: Dataset, tmp_path: Path, source: str, processes: int, engine: str
) -> None:
    if engine.startswith("zero"):
        require_deepspeed()
    arguments = (str(runs[source]), str(tmp_path), engine, str(human_cds.folder))
    outcome = execute(reshard.main, *arguments, processes=processes)
    assert outcome.code == 0, outcome.output
    before, after = require_newest(runs[source]), Checkpoint(tmp_path / "step-00000004")
    after.verify()
    assert after.manifest["world_size"] == processes
    assert len(after.manifest["files"]) == processes
    expected, found = state(before), state(after)
    assert set(found) == set(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert any(tensor.abs().sum() > 0 for name, tensor in found.items() if name.startswith("exp_avg_sq"))


def test_a_zero3_run_continues_as_plain_and_as_zero1(human_cds: Dataset, tmp_path: Path) -> None:
    steps = ("train.steps=8", "checkpoint.every=4")
    whole = train(tmp_path / "whole", human_cds, *steps, processes=2, engine="zero3")
    for processes, engine in ((1, "plain"), (2, "zero1")):
        run = tmp_path / engine
        shutil.copytree(tmp_path / "whole", run)
        shutil.rmtree(run / "checkpoints" / "step-00000008")  # back to step 4, as after a crash
        lines = train(run, human_cds, *steps, processes=processes, engine=engine)
        assert [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in whole]
        assert lines[:4] == whole[:4]
        for line, reference in zip(lines, whole, strict=True):
            assert line["loss"] == pytest.approx(reference["loss"], rel=0.005)


@pytest.mark.parametrize("optimizer", [pytest.param("muon", marks=pytest.mark.slow), "adafactor"])
def test_the_state_of_every_optimizer_is_that_of_no_engine(human_cds: Dataset, tmp_path: Path, optimizer: str) -> None:
    """zero3 on 2 -> plain on 1 -> zero1 on 2 -> the same to the bit."""
    options = ("train.steps=3", f"optimizer.name={optimizer}")
    train(tmp_path / "run", human_cds, *options, processes=2, engine="zero3")
    expected = state(require_newest(tmp_path / "run"))
    source = tmp_path / "run"
    for processes, engine in ((1, "plain"), (2, "zero1")):
        target = tmp_path / engine / "checkpoints"
        outcome = execute(reshard.main, str(source), str(target), engine, str(human_cds.folder), processes=processes)
        assert outcome.code == 0, outcome.output
        source = target.parent
        shutil.copy(tmp_path / "run" / "config.yaml", source)
        found = state(require_newest(source))
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    if optimizer == "adafactor":
        assert any("exp_avg_sq_row" in name and value.abs().sum() > 0 for name, value in expected.items())
