"""Which checkpoints stay, and what becomes of damaged ones."""

import json
import shutil
from pathlib import Path

from jobs import dnascale, metrics, train, train_words

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed


def steps(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in committed(run / "checkpoints")]


def test_the_best_those_of_some_steps_and_pinned_ones_stay(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A learning rate that makes the loss worse again, so that the best is none of the newest.
    options = (
        "checkpoint.every=1", "checkpoint.keep=2", "evaluation.every=1", "optimizer.learning_rate=0.02", "schedule.shape=constant",
        "checkpoint.keep_every=5", "run.allow_change=true", "optimizer.gradient_clip=0",
    )  # fmt: skip
    train(run, human_cds, *options, "train.steps=4")
    assert dnascale("ckpt", "pin", run, "3").code == 0
    train(run, human_cds, *options, "train.steps=13")
    losses = {line["step"]: line["valid_loss"] for line in metrics(run, "valid")}
    best = min(losses, key=lambda step: losses[step])
    assert steps(run) == sorted({3, 5, 10, 12, 13, best})
    rows = {row["step"]: row for row in json.loads(dnascale("ckpt", "ls", run, "--json").output)}
    assert [step for step, row in rows.items() if row["pinned"]] == [3]
    assert all(row["valid_loss"] == losses[step] for step, row in rows.items())
    assert dnascale("ckpt", "pin", run, "3", "--off").code == 0
    train(run, human_cds, *options, "train.steps=14")
    assert 3 not in steps(run) or best == 3


def test_a_checkpoint_that_is_not_there_cannot_be_pinned(tmp_path: Path) -> None:
    outcome = dnascale("ckpt", "pin", tmp_path, "7")
    assert outcome.code == 4
    assert outcome.error == f"{tmp_path}/checkpoints/step-00000007 is not there."


def test_a_damaged_checkpoint_is_set_aside_and_a_new_one_takes_its_place(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("train.steps=4", "checkpoint.every=2")
    train(run, human_cds, *options)
    weights = run / "checkpoints" / "step-00000004" / "rank-00000-of-00001.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 4
    weights.write_bytes(spoilt)
    shutil.copytree(
        run / "checkpoints" / "step-00000002", run / "checkpoints" / "step-00000009"
    )  # renamed by hand: another step
    outcome = dnascale(*train_words(run, human_cds, *options))
    assert outcome.code == 0, outcome.output
    assert "step-00000009 holds step 2: somebody renamed it. It is now damaged-step-00000009." in outcome.output
    assert (
        "does not match its SHA-256: it is damaged. It is now damaged-step-00000004. The one before is used."
        in outcome.output
    )
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names >= {"damaged-step-00000004", "step-00000002", "step-00000004"}
    assert (run / "checkpoints" / "damaged-step-00000004" / weights.name).read_bytes() == bytes(spoilt)


def test_what_was_held_for_a_mirror_goes_when_there_is_no_mirror_any_more(human_cds: Dataset, tmp_path: Path) -> None:
    run, there = tmp_path / "run", tmp_path / "there"
    train(run, human_cds, "train.steps=1")
    held = run / "checkpoints" / ".mirrored-step-00000001"
    for mirror in (f"checkpoint.mirror={there}", "checkpoint.mirror=null"):
        shutil.copytree(run / "checkpoints" / "step-00000001", held)
        steps = len(committed(run / "checkpoints")) + 1
        train(run, human_cds, f"train.steps={steps}", mirror, "run.allow_change=true")
        assert not held.exists()
