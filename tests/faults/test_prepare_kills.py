"""`prepare`, killed: whatever moment it is killed at, the same command run again gives the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fasta import random_fasta, tree, write

from dnascale.data.prepare import Crew, PrepareOptions, prepare
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.recipe import Recipe, Source, carry_out_recipe
from dnascale.data.prepare.tasks import Progress, Stage, Task
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.verify import verify

pytestmark = pytest.mark.faults

OPTIONS = PrepareOptions(valid=0.2, test=0.1, soft_mask=True, drop_duplicates=True, max_leakage=1.0)
SHARDS = {"block_tokens": 512, "shard_blocks": 2}
_fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three files, one of which has a record that is read and written in pieces."""
    folder = tmp_path_factory.mktemp("sources")
    made = [write(folder / f"{n}.fa", [(f"{n}{h}", b) for h, b in random_fasta(n, 60)]) for n in range(2)]
    return [*made, write(folder / "2.fa", [("long gene=long", "ACGTTGCAacgt" * 100)])]


@pytest.fixture(scope="module")
def whole(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run gives that nobody kills."""
    return tree(prepare(sources, tmp_path_factory.mktemp("whole") / "out", OPTIONS, **SHARDS).folder)


class Telling(Progress):
    """Writes a byte at each sign of progress; at one of them the process stops itself, until it is killed."""

    def __init__(self, pipe: int, stop_at: int | None) -> None:
        self.pipe = pipe
        self.stop_at = stop_at
        self.told = 0

    def _tell(self) -> None:
        os.write(self.pipe, b".")
        self.told += 1
        if self.told == self.stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)

    def begin(self, stage: Stage, tasks: int, size: int) -> None:
        self._tell()

    def advance(self, bases: int) -> None:
        self._tell()

    def finish(self, task: Task, size: int, peak_bytes: int) -> None:
        self._tell()


class Running:
    """A forked process that prepares."""

    def __init__(self, sources: list[str], out: Path, workers: int = 1, stop_at: int | None = None) -> None:
        reading, writing = os.pipe()
        self.process = _fork.Process(target=self._run, args=(sources, out, workers, stop_at, reading, writing))
        self.process.start()
        os.close(writing)
        self.signs = reading

    @staticmethod
    def _run(sources: list[str], out: Path, workers: int, stop_at: int | None, reading: int, writing: int) -> None:
        os.close(reading)
        prepare(sources, out, OPTIONS, workers, Telling(writing, stop_at), **SHARDS)

    def wait_for(self, signs: int) -> bool:
        """Until there were so many signs of progress; whether there were."""
        return all(os.read(self.signs, 1) for _ in range(signs))

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.end()

    def end(self) -> int:
        self.process.join()
        os.close(self.signs)
        assert self.process.exitcode is not None
        return self.process.exitcode


@pytest.fixture(scope="module")
def signs(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many signs of progress a run that nobody kills gives."""
    running, count = Running(sources, tmp_path_factory.mktemp("counted") / "out"), 0
    while os.read(running.signs, 1):
        count += 1
    assert running.end() == 0
    return count


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_moment_and_run_again_it_gives_the_same_bytes(
    seed: int, sources: list[str], whole: dict[str, bytes], signs: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    out = tmp_path / "out"
    kills = 0
    while not out.exists():
        sign = rng.randint(1, signs) if kills < 3 else signs
        # the first is killed where it stands, as a machine with other work may be done before a kill comes
        running = Running(sources, out, stop_at=None if kills else sign)
        running.wait_for(sign)
        if kills:
            time.sleep(rng.random() * 0.02)
        running.kill()
        assert kills or not out.exists()
        kills += 1
    if (left := tmp_path / "out.preparing").exists():  # killed while it tidied up
        assert not (left / "shards").exists()
    assert tree(out) == whole


def killed_at_rename(sources: list[str], out: Path, number: int, after: bool) -> bool:
    """Runs until just before or after the n-th rename, and is killed there; whether there were so many."""

    def run() -> None:
        rename: Callable[..., Any] = Path.replace
        count = 0

        def counted(self: Path, target: Path) -> Path:
            nonlocal count
            count += 1
            if count == number and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result: Path = rename(self, target)
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        Path.replace = counted  # type: ignore[method-assign, assignment]
        prepare(sources, out, OPTIONS, **SHARDS)

    process = _fork.Process(target=run)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_any_of_its_renames_it_goes_on(
    after: bool, sources: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    number = 1
    while killed_at_rename(sources, out := tmp_path / f"{number}" / "out", number, after):
        if not out.exists():
            prepare(sources, out, OPTIONS, **SHARDS)
        assert tree(out) == whole, f"killed {'after' if after else 'before'} rename {number}"
        number += 1
    assert number > 20


class _Killed(BaseException):
    """In place of a kill, at a place that is known."""


def _killed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next removal of a work folder, when a data set is whole, does not happen."""
    real, due = shutil.rmtree, [True]

    def removed(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith(".preparing") and due:
            due.clear()
            raise _Killed
        real(path, *rest, **more)

    monkeypatch.setattr(shutil, "rmtree", removed)


@pytest.mark.parametrize("removed", [False, True])
def test_killed_when_all_is_whole_it_keeps_every_shard(
    sources: list[str], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    out = tmp_path / "out"
    _killed_once(monkeypatch)
    with pytest.raises(_Killed):
        prepare(sources, out, OPTIONS, **SHARDS)
    if removed:  # by hand, and what is beside it not
        shutil.rmtree(out)
    assert tree(prepare(sources, out, OPTIONS, **SHARDS).folder) == whole
    assert not (tmp_path / "out.preparing").exists()


def test_a_recipe_killed_when_a_source_is_whole_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = two_sources(tmp_path), tmp_path / "out"
    _killed_once(monkeypatch)
    with pytest.raises(_Killed):
        carry_out_recipe(recipe, out, Crew(), Progress())
    made = (tmp_path / "out.preparing" / "a" / "train" / "shard-000000.tar").stat().st_mtime_ns
    carry_out_recipe(recipe, out, Crew(), Progress())
    assert (out / "a" / "train" / "shard-000000.tar").stat().st_mtime_ns == made
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "mixture.yaml"]
    for name in "ab":
        assert not list(verify(load_dataset(out / name)))


def test_a_late_rank_leaves_what_another_has_just_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out, real = two_sources(tmp_path), tmp_path / "out", shutil.rmtree

    def slow(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith(".preparing"):
            time.sleep(0.5)
        real(path, *rest, **more)

    monkeypatch.setattr(shutil, "rmtree", slow)
    found: list[Any] = []

    def as_rank(rank: int) -> None:
        time.sleep(0.3 * rank)
        try:
            found.append(carry_out_recipe(recipe, out, Crew(1, rank, 2, part=True), Progress()))
        except BaseException as error:
            found.append(error)

    ranks = [threading.Thread(target=as_rank, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [type(one) for one in found] == [dict, dict], found
    done = carry_out_recipe(recipe, out, Crew(1, 0, 2, part=True), Progress())
    assert all(isinstance(one, Dataset) for one in done.values())
    for name in "ab":
        assert not list(verify(load_dataset(out / name)))


def test_two_ranks_that_settle_at_once_do_not_disturb_each_other(
    sources: list[str], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that does not pass locks between hosts."""
    from dnascale.data.prepare import settle as module

    real, overtaken = module._settle, []

    def slow(work: Work, staging: Path) -> module.Settled:
        if not overtaken:
            overtaken.append(staging)
            module.settle(work)
        return real(work, staging)

    monkeypatch.setattr(module, "_settle", slow)
    assert tree(prepare(sources, tmp_path / "out", OPTIONS, **SHARDS).folder) == whole
    assert len(overtaken) == 1


def test_what_a_killed_settle_has_left_goes_with_the_next_start(
    sources: list[str], whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.data.prepare import settle as module

    real, seen = module._settle, []

    def look(work: Work, staging: Path) -> module.Settled:
        seen.append(sorted(path.name for path in work.folder.glob("settled.partial-*")))
        if len(seen) == 1:
            (work.folder / "settled.partial-left").mkdir()  # as by a process that ends here
            raise _Killed
        return real(work, staging)

    monkeypatch.setattr(module, "_settle", look)
    with pytest.raises(_Killed):
        prepare(sources, tmp_path / "out", OPTIONS, **SHARDS)
    assert (tmp_path / "out.preparing" / "settled.partial-left").is_dir()
    assert tree(prepare(sources, tmp_path / "out", OPTIONS, **SHARDS).folder) == whole
    assert [len(names) for names in seen] == [1, 1]
    assert "settled.partial-left" not in seen[1]


def two_sources(folder: Path) -> Recipe:
    files = [write(folder / f"{n}.fa", [(f"{n}{h}", b) for h, b in random_fasta(n, 60)]) for n in range(2)]
    options = PrepareOptions(valid=0, max_leakage=None)
    return Recipe({name: Source((file,), options, None) for name, file in zip("ab", files, strict=True)})


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_a_worker_or_its_parent_killed_leaves_no_process_and_the_rerun_gives_the_same_bytes(
    victim: str, sources: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    running = Running(sources, out, workers=2)
    assert running.process.pid is not None
    parent = psutil.Process(running.process.pid)
    while len(workers := parent.children()) < 2:
        time.sleep(0.01)
    if victim == "parent":
        running.wait_for(2)
        running.kill()
    else:
        workers[0].kill()
        assert running.end() == 1
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert len(gone) == 2
    assert not out.exists()
    assert tree(prepare(sources, out, OPTIONS, **SHARDS).folder) == whole


def test_a_killed_worker_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    fasta = tmp_path / "slow.fa"
    os.mkfifo(fasta)  # nothing is ever written: the worker waits in it
    other = write(tmp_path / "other.fa", [("a", "ACGT")])
    command = [sys.executable, "-m", "dnascale", "prepare", str(fasta), other, "--out", str(tmp_path / "out"), "--workers", "2"]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parent = psutil.Process(running.pid)
    done = (tmp_path / "out.preparing" / "read").glob("*/done.json")
    while not any(done):
        assert running.poll() is None
        time.sleep(0.05)
        done = (tmp_path / "out.preparing" / "read").glob("*/done.json")
    for worker in parent.children():
        worker.kill()
    _, error = running.communicate(timeout=60)
    assert running.returncode == 7
    assert error.count("\n") == 1
    assert "was killed (signal 9" in error
    assert "run the same command again" in error


def test_ctrl_c_ends_all_processes_and_the_rerun_goes_on(tmp_path: Path) -> None:
    fasta = tmp_path / "slow.fa"
    os.mkfifo(fasta)
    other = write(tmp_path / "other.fa", [("a", "ACGT")])
    command = [sys.executable, "-m", "dnascale", "prepare", str(fasta), other, "--out", str(tmp_path / "out"), "--workers", "2", "--valid", "0"]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not any((tmp_path / "out.preparing" / "read").glob("*/done.json")):
        assert running.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(running.pid).children()
    assert len(workers) == 2
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, error = running.communicate(timeout=60)
    assert running.returncode == 130
    assert error.count("\n") == 1
    assert "interrupted" in error
    assert not psutil.wait_procs(workers, timeout=10)[1]
    fasta.unlink()
    write(fasta, [("b", "ACGT")])
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "was begun with another version of" in again.stderr
    assert "read     2 records, 8 bases" in again.stdout
