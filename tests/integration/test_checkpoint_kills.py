"""Killed, or without a disk, at every point of a save: what was committed is there, and the run goes on bit for bit."""

from pathlib import Path

import pytest
from jobs import dnascale, metrics, numbers, train, train_words

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed, newest_valid

pytestmark = pytest.mark.faults
LENGTH = ("train.steps=6", "checkpoint.every=2", "checkpoint.keep=2")
BEFORE = ("ckpt.reserve", "ckpt.write", "ckpt.fsync", "ckpt.manifest", "ckpt.rename")
AFTER = ("ckpt.sync", "ckpt.prune")
BY_ALL = ("ckpt.write", "ckpt.fsync")


@pytest.fixture(scope="module")
def whole(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[tuple[object, ...]]]:
    folder = tmp_path_factory.mktemp("whole")
    return {n: numbers(train(folder / str(n), human_cds, *LENGTH, processes=n)) for n in (1, 2)}


def newest_step(run: Path) -> int:
    checkpoint, rejected = newest_valid(run / "checkpoints")
    assert checkpoint is not None
    assert not rejected
    return checkpoint.state.step


@pytest.mark.parametrize("point", [*BEFORE, *AFTER])
def test_killed_at_any_point_of_a_save_the_run_goes_on_from_a_whole_checkpoint(
    human_cds: Dataset, tmp_path: Path, whole: dict[int, list[tuple[object, ...]]], point: str
) -> None:
    run = tmp_path / "run"
    killed = dnascale(*train_words(run, human_cds, *LENGTH), DNASCALE_FAULT=f"{point}:step=4:kill")
    assert killed.code == -9
    assert newest_step(run) == (2 if point in BEFORE else 4)
    assert dnascale(*train_words(run, human_cds, *LENGTH)).code == 0
    assert numbers(metrics(run)) == whole[1]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-00000004", "step-00000006"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "rank"), [(point, rank) for point in (*BEFORE, *AFTER) for rank in (0, 1) if not rank or point in BY_ALL]
)
def test_killed_on_one_of_two_ranks_none_hangs_and_the_run_goes_on(
    human_cds: Dataset, tmp_path: Path, whole: dict[int, list[tuple[object, ...]]], point: str, rank: int
) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, *LENGTH)
    killed = dnascale(*words, processes=2, DNASCALE_FAULT=f"{point}:rank={rank}:step=4:kill")
    assert killed.code != 0
    assert newest_step(run) == (2 if point in BEFORE else 4)
    assert dnascale(*words, processes=2).code == 0
    assert numbers(metrics(run)) == whole[2]


@pytest.mark.parametrize(("fault", "code"), [("enospc", 5), ("eio", 4)])
@pytest.mark.parametrize(
    ("point", "rank"), [("ckpt.reserve", 0), ("ckpt.write", 1), ("ckpt.fsync", 0), ("ckpt.rename", 0)]
)
def test_a_disk_that_fails_on_one_rank_is_told_by_all_and_older_checkpoints_stay(
    human_cds: Dataset,
    tmp_path: Path,
    whole: dict[int, list[tuple[object, ...]]],
    fault: str,
    code: int,
    point: str,
    rank: int,
) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, *LENGTH)
    failed = dnascale(*words, processes=2, DNASCALE_FAULT=f"{point}:rank={rank}:step=4:{fault}")
    assert failed.code == code, failed.output
    assert (
        "no space left for the checkpoint" if fault == "enospc" else "cannot be written: Input/output error"
    ) in failed.error
    assert newest_step(run) == 2
    if (fault, point) == ("enospc", "ckpt.write"):
        assert dnascale(*words, processes=2).code == 0
        assert numbers(metrics(run)) == whole[2]
        assert [path.name for path in committed(run / "checkpoints")] == ["step-00000004", "step-00000006"]
