"""Gradients that are not finite, or jump: the step changes nothing, on any rank, and a run that meets no other stops."""

import math
import shutil
from pathlib import Path

import poisoned
import pytest
import torch
from jobs import Outcome, execute, metrics, numbers, require_deepspeed, train_words
from test_reshard import state

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import Checkpoint
from dnascale.train.guard import WINDOW

pytestmark = pytest.mark.faults
NAN = math.nan


def run_with(
    run: Path,
    data: Dataset,
    factors: dict[int, float],
    *overrides: str,
    processes: int = 1,
    rank: int = 0,
    first: int = 1,
    engine: str = "plain",
) -> Outcome:
    words = train_words(run, data, f"train.micro_batch_tokens={2048 // processes}", *overrides, engine=engine)
    return execute(poisoned.main, words, factors, rank, first, processes=processes)


@pytest.mark.parametrize(
    ("processes", "engine", "factor"),
    [
        (1, "plain", NAN), (2, "plain", math.inf), (2, "zero2", NAN),
        pytest.param(2, "zero3", NAN, marks=pytest.mark.slow), pytest.param(2, "zero1", math.inf, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_one_bad_gradient_on_one_rank_changes_nothing_on_any(
    human_cds: Dataset, tmp_path: Path, processes: int, engine: str, factor: float
) -> None:
    if engine != "plain":
        require_deepspeed()
    run = tmp_path / "run"
    options = ("train.steps=6", "checkpoint.every=1", "checkpoint.keep=9")
    outcome = run_with(run, human_cds, {3: factor}, *options, processes=processes, rank=processes - 1, engine=engine)
    assert outcome.code == 0, outcome.output
    assert [(one["step"], one["position"], one["windows"]) for one in metrics(run, "skip")] == [(3, 64, 32)]
    assert "warning: step 3 left out: gradient not finite (windows 64 to 95 of the order)." in outcome.output
    before, after = (Checkpoint(run / "checkpoints" / f"step-0000000{step}") for step in (2, 3))
    kept, found = state(before), state(after)
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    assert after.state.skipped == 1
    assert not all(
        torch.equal(value, kept[name])
        for name, value in state(Checkpoint(run / "checkpoints" / "step-00000004")).items()
    )
    # The update after it is the third, also for a run that was interrupted there.
    whole = numbers(metrics(run))
    for step in (4, 5, 6):
        shutil.rmtree(run / "checkpoints" / f"step-0000000{step}")
    again = run_with(run, human_cds, {}, *options, processes=processes, first=4, engine=engine)
    assert again.code == 0, again.output
    assert numbers(metrics(run)) == whole


def test_too_many_in_a_row_stop_the_run_and_what_was_saved_stays(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    bad = dict.fromkeys((2, 5, 6, 7, 8), NAN)
    outcome = run_with(run, human_cds, bad, "train.steps=12", "checkpoint.every=4", "guard.patience=3")
    assert outcome.code == 6
    assert "step 7 " in outcome.error
    assert "3 steps in a row were left out" in outcome.error
    assert Checkpoint(run / "checkpoints" / "step-00000004").state.skipped == 1
    assert [one["step"] for one in metrics(run, "skip")] == [2, 5, 6, 7]
    assert not (run / "checkpoints" / "step-00000008").exists()


def test_a_checkpoint_that_is_written_is_kept_when_patience_ends(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("checkpoint.asynchronous=true", "checkpoint.every=4", "guard.patience=20", "log.every=1000")
    bad = dict.fromkeys(range(5, 40), NAN)
    outcome = run_with(run, human_cds, bad, "train.steps=40", *options)
    assert outcome.code == 6
    # Of step 24 the line is due before the next save, and finds the end: that of step 20 was written long before.
    assert (run / "checkpoints" / "step-00000020").is_dir()


def test_a_row_is_counted_over_an_interruption(human_cds: Dataset, tmp_path: Path) -> None:
    run, bad = tmp_path / "run", dict.fromkeys(range(3, 9), NAN)
    assert run_with(run, human_cds, bad, "train.steps=4", "checkpoint.every=4", "guard.patience=3").code == 0
    more = ("train.steps=8", "run.allow_change=true", "guard.patience=3")
    outcome = run_with(run, human_cds, bad, *more, first=5)
    assert outcome.code == 6
    assert "step 5 " in outcome.error


def test_a_jump_of_the_gradient_is_left_out_also_after_an_interruption(human_cds: Dataset, tmp_path: Path) -> None:
    small = ("model.hidden_size=32", "model.layers=1", "train.global_batch_tokens=512", "train.micro_batch_tokens=512")
    options = (
        *small,
        f"train.steps={WINDOW + 20}",
        f"checkpoint.every={WINDOW + 4}",
        "checkpoint.keep=9",
        "guard.spike=8",
    )
    jumps = {WINDOW // 2: 1.5, WINDOW + 10: 1000.0}
    run = tmp_path / "run"
    assert run_with(run, human_cds, jumps, *options).code == 0
    assert [one["step"] for one in metrics(run, "skip")] == [WINDOW + 10]
    whole = numbers(metrics(run))
    shutil.rmtree(run / "checkpoints" / f"step-{WINDOW + 20:08d}")
    assert run_with(run, human_cds, jumps, *options, first=WINDOW + 5).code == 0
    assert numbers(metrics(run)) == whole
    assert [one["reason"] for one in metrics(run, "skip")] == ["gradient norm jumped"]


def test_a_jump_cannot_be_watched_for_with_deepspeed(human_cds: Dataset, tmp_path: Path) -> None:
    require_deepspeed()
    outcome = run_with(tmp_path / "run", human_cds, {}, "train.steps=2", "guard.spike=6", engine="zero2")
    assert outcome.code == 2
    assert outcome.error.startswith("guard.spike needs the gradient's norm before the step")
