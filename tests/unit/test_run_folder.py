"""config.yaml of a run whose configuration is changed: whole at every moment, and what has trained is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dnascale.config import Config, load_config
from dnascale.errors import SpaceError
from dnascale.train import folder
from dnascale.train.folder import settle_config, write_run_files
from dnascale.vocab import CHARACTER

CORPUS: Any = SimpleNamespace(location="data", fingerprint="f", vocabulary=CHARACTER, sources={})


def config(run: Path, rate: str) -> Config:
    overrides = [
        "data.path=data",
        "train.steps=9",
        "run.allow_change=true",
        f"run.dir={run}",
        f"optimizer.learning_rate={rate}",
    ]
    return load_config("nano", overrides)


def test_what_trained_is_kept_also_when_a_change_trains_nothing(tmp_path: Path) -> None:
    for rate in ("1e-3", "2e-3", "3e-3"):  # the second start ends before its first checkpoint
        write_run_files(tmp_path, config(tmp_path, rate), CORPUS, step=0 if rate == "1e-3" else 500)
    assert "learning_rate: 0.001" in (tmp_path / "config-until-step-00000500.yaml").read_text()
    assert "learning_rate: 0.003" in (tmp_path / "config.yaml").read_text()


def test_a_full_disk_leaves_a_run_that_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run_files(tmp_path, config(tmp_path, "1e-3"), CORPUS, step=0)
    whole = folder.write_whole

    def full(path: Path, content: bytes) -> None:
        if path.name == "config.yaml":
            raise OSError(28, "No space left on device")
        whole(path, content)

    changed = config(tmp_path, "2e-3")
    monkeypatch.setattr(folder, "write_whole", full)
    with pytest.raises(SpaceError):
        write_run_files(tmp_path, changed, CORPUS, step=500)
    assert settle_config(tmp_path, changed) == changed
    assert "learning_rate: 0.001" in (tmp_path / "config.yaml").read_text()
