"""Metrics mirrored to TensorBoard and wandb: the same numbers, and no secret."""

import os
import shutil
from pathlib import Path

import pytest
from jobs import dnascale, metrics, train_words

from dnascale.data.shards import Dataset

CANARY = "hf_CanaryCanaryCanaryCanaryCanaryCanary"


def scalars(run: Path, name: str) -> dict[int, float]:
    """What TensorBoard itself reads."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_tensorboard_shows_the_lines_of_metrics_also_over_a_restart(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, "train.steps=6", "checkpoint.every=2", "log.every=1", "log.tensorboard=true")
    assert dnascale(*words, DNASCALE_FAULT="step.forward:step=4:exit").code == 1
    assert dnascale(*words).code == 0
    lines = {line["step"]: line for line in metrics(run)}
    for name in ("nats_per_base", "learning_rate", "tokens_per_second"):
        found = scalars(run, name)
        assert sorted(found) == [1, 2, 3, 4, 5, 6]
        assert found == pytest.approx({step: line[name] for step, line in lines.items()}, rel=1e-5)


def test_where_no_base_is_shown_as_masked_there_is_no_masked_loss(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(
        run, human_cds, "train.steps=2", "log.every=1", "masking.replace_with_mask=0", "masking.replace_with_random=1"
    )
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    for line in metrics(run):
        assert line["loss"] > 1
        assert not {"nats_per_base", "masked_loss"} & set(line)
    assert "masked loss" not in outcome.output


def test_secrets_of_the_environment_are_in_no_file_of_a_run(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, "train.steps=2", "log.tensorboard=true", "log.wandb=offline")
    secrets = dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"), CANARY)
    outcome = dnascale(*words, WANDB_DIR=str(tmp_path / "wandb"), **secrets)
    assert outcome.code == 0, outcome.output
    assert CANARY not in outcome.output
    files = [Path(folder) / name for folder, _, names in os.walk(tmp_path) for name in names]
    assert any("wandb" in str(path) for path in files)
    assert any("tfevents" in path.name for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_a_mirror_that_cannot_begin_is_said_before_training(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, "train.steps=4", "log.every=1", "log.tensorboard=true")
    assert dnascale(*words, "checkpoint.every=2", DNASCALE_FAULT="step.forward:step=4:exit").code == 1
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("in the way")
    outcome = dnascale(*words, "checkpoint.every=2")
    assert outcome.code == 2
    assert f"{run / 'tensorboard'} cannot be written" in outcome.error
