"""metrics.jsonl on a disk that fills up and has room again: every line once, and whole."""

import errno
import json
import os
from pathlib import Path

import pytest

from dnascale.errors import SpaceError
from dnascale.train.metrics import MetricsFile


class Disk:
    """Takes so many bytes, then none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self._write = room, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._write(descriptor, content[: self.room])
        self.room -= done
        return done


def test_a_line_of_which_half_was_written_goes_on_where_it_broke_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    disk = Disk(monkeypatch, room=50)
    metrics.write(kind="train", step=1)
    for step in range(2, 5):
        with pytest.warns(UserWarning, match="no space left"):
            metrics.write(kind="train", step=step)
    disk.room = 1 << 20
    metrics.write(kind="train", step=5)
    metrics.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("room", [True, False])
def test_what_is_left_is_written_at_the_end_or_told(
    room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    disk = Disk(monkeypatch, room=0)
    with pytest.warns(UserWarning, match="no space left"):
        metrics.write(step=1)
    if room:
        disk.room = 1 << 20
        metrics.close()
        assert json.loads(path.read_text()) == {"step": 1}
    else:
        with pytest.raises(SpaceError, match="Its last 1 lines are lost"):
            metrics.close()
