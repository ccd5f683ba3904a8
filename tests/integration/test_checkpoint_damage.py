"""No damage to a checkpoint is loaded, and no power cut leaves a run without one.

The power cut: a save is recorded as the operations that it asks of the file system. Whatever was not synced when the power went may be
on the disk or not, in any order; each such state is laid out in a folder and read (Pillai et al. 2014, "All file systems are not
created equal").
"""

import itertools
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import train
from one_rank import OneRank

from dnascale.config import CheckpointConfig
from dnascale.data.shards import Dataset
from dnascale.errors import CheckpointError
from dnascale.train.checkpoint import Checkpoint, newest_valid
from dnascale.train.retention import prune
from dnascale.train.saving import save
from dnascale.train.state import TrainState

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def saved(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of two ranks."""
    run = tmp_path_factory.mktemp("run") / "run"
    train(run, human_cds, "train.steps=2", "checkpoint.every=2", "model.hidden_size=32", "model.layers=1", processes=2)
    return run / "checkpoints" / "step-00000002"


# --- bit rot ---


def accepted(folder: Path) -> bool:
    try:
        Checkpoint(folder).verify()
    except CheckpointError:
        return False
    return True


def damages(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Single flipped bits, cuts, lost pages, and what is too much."""
    yield content + b"\0"
    yield b""
    while True:
        at = rng.randrange(len(content))
        yield content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        yield content[:at]
        page = at & ~4095
        zeroed = content[:page] + bytes(min(4096, len(content) - page)) + content[page + 4096 :]
        if zeroed != content:
            yield zeroed


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_damage_to_any_file_is_accepted(saved: Path, tmp_path: Path, count: int) -> None:
    copy = tmp_path / saved.name
    shutil.copytree(saved, copy)
    files = sorted(path for path in copy.iterdir())
    assert len(files) == 3
    assert accepted(copy)
    tried = 0
    for path in files:
        whole = path.read_bytes()
        for content in itertools.islice(damages(whole, random.Random(count)), count // len(files)):
            path.write_bytes(content)
            # A manifest without its last line feed says the same.
            harmless = path.suffix == ".json" and same_json(content, whole)
            assert accepted(copy) == harmless
            tried += not harmless
        path.write_bytes(whole)
    assert tried > 0.98 * count
    assert accepted(copy)


def same_json(content: bytes, whole: bytes) -> bool:
    try:
        return bool(json.loads(content) == json.loads(whole))
    except ValueError:
        return False


def test_a_rank_s_file_of_another_step_is_not_accepted(human_cds: Dataset, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / saved.name
    shutil.copytree(saved, copy)
    first, second = sorted(copy.glob("*.safetensors"))
    shutil.copy(first, second)
    assert not accepted(copy)


# --- power cuts ---

Operation = tuple[str, Path, Any]


class Recorder:
    """What a save asks of the file system below `root`, in order, as it does it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.operations = root, list[Operation]()
        self._before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self._real_fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)
        monkeypatch.setattr(Path, "mkdir", self._wrapped(Path.mkdir, lambda path, *_, **__: ("mkdir", path, None)))
        monkeypatch.setattr(Path, "rename", self._wrapped(Path.rename, lambda path, to: ("rename", path, Path(to))))
        monkeypatch.setattr(
            shutil, "rmtree", self._wrapped(shutil.rmtree, lambda path, **_: ("remove", Path(path), None))
        )

    def _wrapped(self, real: Callable[..., Any], describe: Callable[..., Operation]) -> Callable[..., Any]:
        def wrapper(path: Any, *arguments: Any, **options: Any) -> Any:
            self._notice_files()
            if Path(path).is_relative_to(self.root):
                self.operations.append(describe(path, *arguments, **options))
            return real(path, *arguments, **options)

        return wrapper

    def _fsync(self, handle: int) -> None:
        self._notice_files()
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_relative_to(self.root):
            self.operations.append(("fsync", path, None))
        self._real_fsync(handle)

    def _notice_files(self) -> None:
        """Files that appeared or changed since the last operation, whoever wrote them."""
        known = self._before | {path: content for kind, path, content in self.operations if kind == "write"}
        moved = {to: path for kind, path, to in self.operations if kind == "rename"}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path.parent not in moved and known.get(path) != (content := path.read_bytes()):
                self.operations.append(("write", path, content))


def states(operations: list[Operation], rng: random.Random, most: int) -> Iterator[list[Operation]]:
    """What may be on the disk if the power goes after these: all that was synced, and any part of the rest."""
    doubtful = [n for n, one in enumerate(operations) if not is_durable(n, operations) and one[0] != "fsync"]
    subsets = 1 << len(doubtful)
    chosen = range(subsets) if subsets <= most else [0, subsets - 1, *(rng.randrange(subsets) for _ in range(most))]
    for bits in chosen:
        lost = {n for place, n in enumerate(doubtful) if not bits >> place & 1}
        state: list[Operation] = []
        for n, (kind, path, value) in enumerate(operations):
            if n in lost or kind == "fsync":
                continue
            if kind == "write" and not is_synced_file(n, operations):  # its name may be there, and not its bytes
                value = rng.choice([value, b"", bytes(len(value)), value[: len(value) // 2]])
            state.append((kind, path, value))
        yield state


def is_durable(n: int, operations: list[Operation]) -> bool:
    """Whether the folder that an entry is in was synced after it."""
    path = operations[n][1]
    return any(kind == "fsync" and where == path.parent for kind, where, _ in operations[n + 1 :])


def is_synced_file(n: int, operations: list[Operation]) -> bool:
    path = operations[n][1]
    return any(kind == "fsync" and where == path for kind, where, _ in operations[n + 1 :])


def lay_out(state: list[Operation], root: Path, before: Path, to: Path) -> None:
    """`before` with the operations of a state done to it, as far as they can be done."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(before, to)
    for kind, path, value in state:
        place = to / path.relative_to(root)
        if kind == "mkdir":
            place.mkdir(parents=True, exist_ok=True)
        elif kind == "write" and place.parent.is_dir():
            place.write_bytes(value)
        elif kind == "remove":
            shutil.rmtree(place, ignore_errors=True)
        elif kind == "rename" and place.exists():
            target = to / value.relative_to(root)
            if not target.exists():
                place.rename(target)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("keep", [1, 2])
def test_after_a_power_cut_at_any_moment_of_a_save_a_whole_checkpoint_is_found(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    folder, before, cut = tmp_path / "checkpoints", tmp_path / "before", tmp_path / "cut"
    of = Checkpoint(saved)
    monkeypatch.setattr("accelerate.utils.gather_object", lambda values: values)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda values: values)
    engine: Any = OneRank({name: {"weight": value} for name, value in of.weights().items()})
    for step in (2, 4):
        save(folder, engine, TrainState(9, step), of.identity)
    prune(folder, folder / "step-00000004", CheckpointConfig(keep=keep))
    shutil.copytree(folder, before)
    with monkeypatch.context() as patch:
        recorder = Recorder(folder, patch)
        path = save(folder, engine, TrainState(9, 6), of.identity)
        prune(folder, path, CheckpointConfig(keep=keep))
        operations = recorder.operations
    assert [kind for kind, *_ in operations].count("rename") >= 2  # the commit, and what is pruned
    committed_at = next(n for n, (kind, path, _) in enumerate(operations) if (kind, path) == ("fsync", folder))
    tried, rng = 0, random.Random(keep)
    for end in range(len(operations) + 1):
        for state in states(operations[:end], rng, most=48):
            lay_out(state, folder, before, cut)
            found, _ = newest_valid(cut)
            assert found is not None, (end, state)
            assert found.state.step in ((6,) if end > committed_at else (4, 6)), (end, state)
            tried += 1
    assert tried > 60
