"""A clock that is wrong, or set back between two starts: checkpoints go by their step, durations by a clock that only goes on."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from jobs import launch, metrics, numbers, train_words

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed, step_of

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        shutil.which("faketime") is None, reason="faketime is not installed (make test-packages installs it)"
    ),
]
OPTIONS = ("train.steps=8", "checkpoint.every=2", "checkpoint.keep=2", "checkpoint.keep_best=0", "log.every=1")


def test_a_run_goes_on_after_the_clock_was_set_back_by_two_days(human_cds: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnascale", *train_words(tmp_path / "run", human_cds, *OPTIONS)]
    died = launch(["faketime", "-f", "+1d", *command], DNASCALE_FAULT="step.forward:step=6:exit")
    assert died.code == 1, died.output
    again = launch(["faketime", "-f", "-1d", *command])
    assert again.code == 0, again.output
    assert "resumed  from the checkpoint of step 4" in again.output
    assert [step_of(path) for path in committed(tmp_path / "run" / "checkpoints")] == [6, 8]
    lines = metrics(tmp_path / "run")
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < 600
    whole = launch([sys.executable, "-m", "dnascale", *train_words(tmp_path / "whole", human_cds, *OPTIONS)])
    assert whole.code == 0, whole.output
    assert numbers(lines) == numbers(metrics(tmp_path / "whole"))


def test_times_of_files_that_cannot_be_decide_nothing(human_cds: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dnascale", *train_words(tmp_path / "run", human_cds, *OPTIONS)]
    assert launch(command, DNASCALE_FAULT="step.forward:step=6:exit").code == 1
    for path, when in zip(committed(tmp_path / "run" / "checkpoints"), (2**31, 0), strict=True):
        os.utime(path, (when, when))  # the older one in 2038, the newer one in 1970
    again = launch(command)
    assert again.code == 0, again.output
    assert "resumed  from the checkpoint of step 4" in again.output
