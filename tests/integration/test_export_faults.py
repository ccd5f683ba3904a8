"""An export that is killed, or meets a full disk: its folder is there whole, or not at all."""

import os
import sys
from pathlib import Path

import pytest
from jobs import dnascale, launch, train

from dnascale.data.shards import Dataset

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def run(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "run"
    train(folder, human_cds, "train.steps=2")
    return folder


@pytest.mark.parametrize(
    ("action", "code", "sentence"),
    [("kill", -9, ""), ("enospc", 5, "no space left to write"), ("eio", 2, "cannot be written: Input/output error")],
)
def test_a_failed_export_leaves_nothing_under_its_name(
    run: Path, tmp_path: Path, action: str, code: int, sentence: str
) -> None:
    out = tmp_path / "model"
    failed = dnascale("export", run, out, DNASCALE_FAULT=f"export.write:{action}")
    assert failed.code == code, failed.output
    assert sentence in failed.error
    assert not out.exists()
    if action != "kill":
        assert os.listdir(tmp_path) == []
    again = dnascale("export", run, out)
    assert again.code == 0, again.output
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(os.listdir(out))


@pytest.mark.parametrize("command", [["export"], ["ckpt", "convert"]], ids=" ".join)
def test_weights_for_which_there_is_no_room_are_told_and_leave_nothing(
    run: Path, tmp_path: Path, command: list[str]
) -> None:
    words = [sys.executable, "-m", "dnascale", *command, str(run), str(tmp_path / "out")]
    outcome = launch(["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *words])  # KiB of a file
    assert outcome.code == 5, outcome.output
    assert "no space left to write" in outcome.output
    assert os.listdir(tmp_path) == []
