"""A rank made slow on purpose is named within fifty steps, and why; two that are not are not."""

import time
from pathlib import Path

import pytest
from jobs import command_line, dnascale, execute, metrics, train_words

from dnascale.data.shards import Dataset

pytestmark = pytest.mark.faults


def with_a_slow_forward(words: list[str], rank: int) -> None:
    """The command, in which the model of one rank computes for twenty milliseconds more."""
    from dnascale.train import assemble, loop

    build = loop.assemble

    def and_slow(config: object, hold: bool) -> assemble.Job:
        job = build(config, hold)  # type: ignore[arg-type]
        if job.accelerator.process_index == rank:
            job.engine.module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        return job

    loop.assemble = and_slow
    command_line(words)


def test_a_rank_that_computes_slowly_is_named(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=50", "log.every=10")
    outcome = execute(with_a_slow_forward, words, 1, processes=2)
    assert outcome.code == 0, outcome.output
    (found,) = metrics(tmp_path / "run", "straggler")
    assert (found["rank"], found["section"]) == (1, "forward")
    assert found["seconds"] > 0.02
    assert "warning: rank 1 holds up the others: a forward pass takes" in outcome.output


def test_a_rank_whose_data_are_slow_is_named(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=50", "log.every=10")
    outcome = dnascale(*words, processes=2, DNASCALE_FAULT="data.read:rank=0:sleep=0.02")
    assert outcome.code == 0, outcome.output
    assert ("data", 0) in {(one["section"], one["rank"]) for one in metrics(tmp_path / "run", "straggler")}
    assert "warning: rank 0 holds up the others: it waits for data" in outcome.output


def test_equal_ranks_are_not_named(human_cds: Dataset, tmp_path: Path) -> None:
    """Lines of fifty steps, so that another process of this machine, which takes a core for a moment, is no straggler."""
    words = train_words(tmp_path / "run", human_cds, "train.steps=250", "log.every=50", "checkpoint.every=1000")
    outcome = dnascale(*words, processes=2)
    assert outcome.code == 0, outcome.output
    assert "holds up the others" not in outcome.output
