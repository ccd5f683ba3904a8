"""Surroundings that break programs: no HOME, other locales and time zones, odd names, links, assertions switched off."""

import os
import sys
from pathlib import Path

import pytest
from jobs import launch, metrics, numbers, train_words

from dnascale.data.shards import Dataset

pytestmark = pytest.mark.faults
OPTIONS = ("train.steps=3", "log.every=1", "checkpoint.every=3")


@pytest.fixture(scope="module")
def usual(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    run = tmp_path_factory.mktemp("usual") / "run"
    assert launch([sys.executable, "-m", "dnascale", *train_words(run, human_cds, *OPTIONS)]).code == 0
    return numbers(metrics(run))


@pytest.mark.parametrize(
    ("folder", "python", "env"),
    [
        ("plain", ["-O"], {"LC_ALL": "C", "TZ": "Asia/Kolkata"}),
        ("two words, ünïcode, 100 % (1)", [], {"LC_ALL": "tr_TR.UTF-8"}),
        ("n" * 200, [], {"TMPDIR": "", "XDG_CACHE_HOME": "/nowhere/at/all"}),
    ],
    ids=["no assertions, C, another time zone", "a name of words, Turkish", "a long name, no place for caches"],
)
def test_training_evaluation_and_export_are_the_same(
    human_cds: Dataset,
    tmp_path: Path,
    usual: list[tuple[object, ...]],
    folder: str,
    python: list[str],
    env: dict[str, str],
) -> None:
    run = tmp_path / folder / "run"
    command = ["env", "-u", "HOME", sys.executable, *python, "-m", "dnascale"]
    outcome = launch([*command, *train_words(run, human_cds, *OPTIONS)], **env)
    assert outcome.code == 0, outcome.output
    assert numbers(metrics(run)) == usual
    exported = launch([*command, "export", str(run), str(tmp_path / folder / "model")], **env)
    assert exported.code == 0, exported.output


def test_a_run_folder_behind_a_link_is_the_folder(
    human_cds: Dataset, tmp_path: Path, usual: list[tuple[object, ...]]
) -> None:
    real = tmp_path / "elsewhere" / "real"
    real.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    outcome = launch([sys.executable, "-m", "dnascale", *train_words(link / "run", human_cds, *OPTIONS)])
    assert outcome.code == 0, outcome.output
    assert numbers(metrics(real / "run")) == usual
    assert os.path.islink(link)


def test_training_goes_on_when_whoever_read_its_output_has_gone(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = train_words(run, human_cds, *OPTIONS)
    outcome = launch(
        ["bash", "-c", 'set -o pipefail; "$@" | head -n 1', "-", sys.executable, "-m", "dnascale", *map(str, words)]
    )
    assert outcome.code == 0, outcome.output
    assert metrics(run)[-1]["step"] == 3
    assert (run / "checkpoints" / "step-00000003").is_dir()
