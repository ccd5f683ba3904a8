"""Files and folders that appear whole, also where several hosts write beside each other and have processes of one number."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from dnascale import files
from dnascale.files import whole_folder, write_whole


@pytest.fixture
def ended() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_two_containers_with_one_process_number_write_a_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, path = files.sync, tmp_path / "plan.json"

    def other_writes_meanwhile(work: Path) -> None:
        monkeypatch.setattr(files, "sync", sync)
        write_whole(path, b"other")
        assert path.read_bytes() == b"other"
        sync(work)

    monkeypatch.setattr(files, "sync", other_writes_meanwhile)
    write_whole(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["out", "out[1]", "*"])
def test_what_a_killed_process_has_left_goes_when_the_same_is_written_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    with monkeypatch.context() as at_that_time:
        at_that_time.setattr(os, "getpid", lambda: ended)
        killed = whole_folder(tmp_path / name)
        work = killed.__enter__()
    with whole_folder(tmp_path / name):
        assert not work.exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("where", ["host", "container"])
def test_what_another_host_or_container_is_writing_stays(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    """Its process has a number that no process has here."""
    with monkeypatch.context() as there:
        there.setattr(os, "getpid", lambda: ended)
        if where == "host":
            there.setattr(socket, "gethostname", lambda: "another")
        else:
            there.setattr(os, "readlink", lambda _: "pid:[1]")
        other = whole_folder(tmp_path / "out")
        work = other.__enter__()
    with whole_folder(tmp_path / "out"):
        pass
    assert work.exists()


def test_folders_of_names_that_a_pattern_would_match_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    with monkeypatch.context() as at_that_time:
        at_that_time.setattr(os, "getpid", lambda: ended)
        other = whole_folder(tmp_path / "out1")
        work = other.__enter__()
    with whole_folder(tmp_path / "out[1]"):
        assert work.exists()
