"""Batch, context and masking rate that change over a run: exact on any engine, and wherever it is interrupted."""

import json
import shutil
from pathlib import Path
from typing import Any

import compiled
import pytest
from jobs import DEEPSPEED, dnascale, execute, metrics, numbers, train, train_until_killed, train_words

from dnascale.data.shards import Dataset

#: Steps 1 to 4 are short windows in small batches, 5 to 7 longer ones, the rest are whole. 13 steps = 25,600 tokens.
STAGES = (
    "schedule.stages=[{tokens: 4096, context: 16, global_batch_tokens: 1024, masking_rate: 0.4}, "
    "{tokens: 9000, context: 32, masking_rate: 0.3, global_batch_tokens: 3072}, {masking_rate: 0.1}]"
)
OPTIONS = (STAGES, "train.steps=13", "checkpoint.every=1", "checkpoint.keep=20", "train.precision=fp32")


@pytest.fixture(scope="module")
def whole(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stages") / "run"
    train(run, human_cds, *OPTIONS)
    return run


def test_tokens_positions_and_losses_follow_the_stages(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["tokens"] for line in lines] == [
        1024,
        2048,
        3072,
        4096,
        7168,
        10240,
        13312,
        *range(15360, 25601, 2048),
    ]
    assert [line["position"] * 64 for line in lines] == [line["tokens"] for line in lines]
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.faults
@pytest.mark.parametrize("step", [2, 4, 7, 9])
def test_a_run_cut_off_in_any_stage_or_between_two_continues_to_the_bit(
    whole: Path, human_cds: Dataset, tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for later in range(step + 1, 14):
        shutil.rmtree(run / "checkpoints" / f"step-{later:08d}")
    outcome = dnascale(*train_words(run, human_cds, *OPTIONS))
    assert f"resumed  from the checkpoint of step {step}\n" in outcome.output
    assert numbers(metrics(run)) == numbers(metrics(whole))


@pytest.mark.faults
def test_a_run_killed_in_the_middle_continues_to_the_bit(whole: Path, human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = (*OPTIONS[:2], "checkpoint.every=3", "checkpoint.keep=20", "train.precision=fp32")
    train_until_killed(run, human_cds, *options, step=5)
    assert numbers(train(run, human_cds, *options)) == numbers(metrics(whole))


@pytest.mark.parametrize(
    "engine", ["plain", "zero2", pytest.param("zero3", marks=pytest.mark.slow)] if DEEPSPEED else ["plain"]
)
def test_two_processes_see_the_same_windows_and_learn_the_same(
    whole: Path, human_cds: Dataset, tmp_path: Path, engine: str
) -> None:
    lines: list[dict[str, Any]] = train(
        tmp_path / "run", human_cds, *OPTIONS[:2], *OPTIONS[4:], processes=2, engine=engine
    )
    for line, alone in zip(lines, metrics(whole), strict=True):
        assert (line["windows_digest"], line["tokens"]) == (alone["windows_digest"], alone["tokens"])
        assert line["loss"] == pytest.approx(alone["loss"], rel=1e-4)


def test_a_run_in_the_middle_of_a_stage_goes_on_with_two_processes(
    whole: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for later in range(7, 14):
        shutil.rmtree(run / "checkpoints" / f"step-{later:08d}")
    lines = train(run, human_cds, *OPTIONS, processes=2)
    assert [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in metrics(whole)]
    assert lines[-1]["loss"] == pytest.approx(metrics(whole)[-1]["loss"], rel=1e-4)


def test_every_stage_is_announced_and_its_steps_are_counted_by_epochs(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, STAGES, "train.epochs=0.005")
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    assert "stage 1  4 steps of 1,024 tokens = 1 x 2 x 32 windows" in outcome.output
    assert "6 of 16 bases predicted" in outcome.output
    assert "stage 3  2,048 tokens = 1 x 4 x 8 windows" in outcome.output
    assert "= 0.01 epochs" in outcome.output
    assert "from here on 3,072 tokens a step, windows of 32, 0.3 masked" in outcome.output


def test_a_stage_that_the_run_is_too_short_for_is_said_before_it_begins(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=3")
    outcome = dnascale(*words, "schedule.stages=[{tokens: 8192}, {masking_rate: 0.5}]")
    assert outcome.code == 0, outcome.output
    assert "warning: stage 2 never begins: the run is over before it." in outcome.output
    assert "stage 1 never" not in outcome.output


@pytest.mark.parametrize("how", ["layers", pytest.param("whole", marks=pytest.mark.slow)])
def test_a_compiled_run_learns_the_same_and_goes_on_without_breaks(
    whole: Path, human_cds: Dataset, tmp_path: Path, how: str
) -> None:
    run, counts = tmp_path / "run", tmp_path / "counts.json"
    words = train_words(run, human_cds, *OPTIONS, f"train.compile={how}", "evaluation.every=2")
    for stages, left_out in ((3, 0), (2, 7)):  # from nothing, and again from the middle of the second stage
        for later in range(14 - left_out, 14):
            shutil.rmtree(run / "checkpoints" / f"step-{later:08d}")
        outcome = execute(compiled.main, words, counts)
        assert outcome.code == 0, outcome.output
        found = json.loads(counts.read_text())
        assert not found["breaks"]
        # With and without records that end within a window. By layers: masking, two layers, and the loss.
        assert stages <= found["graphs"] / (1 if how == "whole" else 4) <= 2 * stages
        for line, alone in zip(metrics(run), metrics(whole), strict=True):
            assert (line["windows_digest"], line["tokens"]) == (alone["windows_digest"], alone["tokens"])
            assert line["loss"] == pytest.approx(alone["loss"], rel=1e-4)
