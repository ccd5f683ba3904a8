"""A run that is told minutes: its steps are settled once, for all processes, and stay when it goes on."""

from pathlib import Path

import yaml
from jobs import dnascale, metrics, train_until_killed, train_words

from dnascale.data.shards import Dataset


def steps_of(run: Path) -> int:
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["steps"]


def test_the_steps_that_fit_into_the_minutes_are_settled_once_and_stay_on_another_number_of_processes(
    human_cds: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ("train.minutes=0.05", "checkpoint.every=5")
    train_until_killed(run, human_cds, *words, step=7, processes=2)
    settled = steps_of(run)
    assert settled >= 10
    outcome = dnascale(*train_words(run, human_cds, *words))
    assert outcome.code == 0, outcome.output
    assert "timing" not in outcome.output
    assert steps_of(run) == settled
    assert metrics(run)[-1]["step"] == settled
