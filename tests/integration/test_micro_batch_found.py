"""micro_batch_tokens=auto: found on all ranks before the first step; and what is said when memory runs out later."""

from pathlib import Path

import little_memory
import pytest
import yaml
from jobs import Outcome, dnascale, execute, metrics, train, train_words

from dnascale.data.shards import Dataset

OPTIONS = ("train.micro_batch_tokens=auto", "train.steps=3", "train.precision=fp32")


def run_with(
    run: Path, data: Dataset, room: dict[str, int], *overrides: str, processes: int = 1, from_step: int = 0
) -> Outcome:
    words = train_words(run, data, *OPTIONS, *overrides)
    return execute(little_memory.main, words, room, from_step, processes=processes)


def micro_batch(run: Path) -> int:
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["micro_batch_tokens"]


def test_the_rank_with_least_memory_decides_and_the_global_batch_is_kept(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = run_with(run, human_cds, {"1": 300}, processes=2)
    assert outcome.code == 0, outcome.output
    assert "micro-batch of 256 tokens" in outcome.output
    assert "2,048 tokens = 2 x 4 x 4 windows" in outcome.output
    assert micro_batch(run) == 256
    # The same run as with a micro-batch that was asked for, so the probing has left nothing behind.
    asked = train(tmp_path / "asked", human_cds, *OPTIONS[1:], "train.micro_batch_tokens=256", processes=2)
    keys = ("loss", "gradient_norm", "windows_digest")
    assert [[line[k] for k in keys] for line in metrics(run)] == [[line[k] for k in keys] for line in asked]


def test_a_run_goes_on_with_the_micro_batch_it_began_with(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_with(run, human_cds, {"0": 600})
    assert micro_batch(run) == 512
    outcome = run_with(run, human_cds, {}, "train.steps=5", "run.allow_change=true")
    assert "micro-batch of 512 tokens, as the run began" in outcome.output
    assert len(metrics(run)) == 5


def test_nothing_fits(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = run_with(tmp_path / "run", human_cds, {"0": 10})
    assert outcome.code == 8
    assert "not even a micro-batch of 64 tokens fits" in outcome.error


@pytest.mark.parametrize("engine", ["plain", pytest.param("zero1", marks=pytest.mark.slow)])
def test_memory_that_runs_out_later_is_explained_with_numbers(human_cds: Dataset, tmp_path: Path, engine: str) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=9", "checkpoint.every=2", engine=engine)
    outcome = execute(little_memory.main, words, {"0": 500}, 10)
    assert outcome.code == 8
    assert "out of memory in step 3 with micro-batches of 512 tokens: this machine has " in outcome.error
    assert "train.micro_batch_tokens=256 (or auto)" in outcome.error
    assert len(outcome.error.splitlines()) == 1
    # What it says works, and the run goes on.
    assert dnascale(*words, "train.micro_batch_tokens=256").code == 0


def test_memory_that_runs_out_while_a_step_is_timed_is_explained_too(human_cds: Dataset, tmp_path: Path) -> None:
    words = [word for word in train_words(tmp_path / "run", human_cds) if not word.startswith("train.steps=")]
    outcome = execute(little_memory.main, [*words, "train.minutes=1"], {"0": 500}, 3)
    assert outcome.code == 8
    assert "out of memory before a step was taken with micro-batches of 512 tokens" in outcome.error


@pytest.mark.slow
def test_where_the_engine_needs_less_than_what_was_tried_that_is_said(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = run_with(tmp_path / "run", human_cds, {"0": 10}, "train.engine=zero3")
    assert outcome.code == 8
    assert "train.engine=zero3 needs less, so set train.micro_batch_tokens" in outcome.error


def test_on_a_cpu_the_choice_follows_from_the_memory(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, *OPTIONS))
    assert outcome.code == 0, outcome.output
    assert "micro-batch of 2,048 tokens, for which this machine has memory" in outcome.output
