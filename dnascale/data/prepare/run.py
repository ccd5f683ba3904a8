"""Carrying out a plan: whatever is open, stage by stage, here or in worker processes, alone or as one of several ranks."""

import glob
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dnascale.data.prepare.finish import finish
from dnascale.data.prepare.options import PrepareOptions
from dnascale.data.prepare.plan import Plan, Work, work_folder
from dnascale.data.prepare.pool import Pool
from dnascale.data.prepare.settle import Settled, load_settled, settle
from dnascale.data.prepare.tasks import Progress, Task, read_tasks, write_tasks
from dnascale.data.shards import BLOCK_TOKENS, Dataset, load_dataset
from dnascale.data.writer import SHARD_BLOCKS
from dnascale.errors import DataError, UsageError
from dnascale.files import check_new_folder, explained, hold, write_whole

_SHOWN_PROBLEMS = 20
_LEAVE_OUT = "Mend or remove these inputs, or leave them out with --skip-bad-files."


@dataclass(frozen=True)
class Crew:
    """Who does the work: `workers` processes here, as rank `rank` of `world` that share the tasks.

    `part`: this call is one of several for the same data set, which may have been finished by another already.
    """

    workers: int = 1
    rank: int = 0
    world: int = 1
    part: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers} must be at least 1.")
        if self.world < 1:
            raise UsageError(f"--world {self.world} must be at least 1, and --rank {self.rank} below it.")
        if not 0 <= self.rank < self.world:
            raise UsageError(f"--rank {self.rank} must be from 0 to {self.world - 1}, below --world {self.world}.")

    def share(self, tasks: Sequence[Task]) -> list[Task]:
        return [task for number, task in enumerate(tasks) if number % self.world == self.rank]


@dataclass(frozen=True)
class Unfinished:
    """What is left for other ranks."""

    stage: str
    open: int
    of: int

    def __str__(self) -> str:
        what = "inputs are not read" if self.stage == "reading" else "shards are not written"
        return f"this rank's share of {self.stage} is done; {self.open} of {self.of} {what} yet, by other ranks"


def prepare(
    sources: Sequence[str],
    out: Path,
    options: PrepareOptions,
    workers: int = 1,
    progress: Progress | None = None,
    block_tokens: int = BLOCK_TOKENS,
    shard_blocks: int = SHARD_BLOCKS,
) -> Dataset:
    """Reads `sources` and writes the data set folder `out`, going on from what an earlier call that was stopped has left.

    Raises DataError (input), UsageError (options, `out` not empty), SpaceError (disk full) and PeerError (a worker was
    killed); in each case nothing is left at `out`, and what is worth keeping is in `out`.preparing.
    """
    out = Path(out)
    if not (out.name and work_folder(out).is_dir()):
        check_new_folder(out)  # before anything is looked at
    plan = Plan.of(sources, options, block_tokens, shard_blocks)
    done = carry_out_plan(plan, out, Crew(workers), progress or Progress())
    assert isinstance(done, Dataset)
    return done


def carry_out_plan(plan: Plan, out: Path, crew: Crew, progress: Progress) -> Dataset | Unfinished:
    """Does this crew's share of what is open, and finishes the data set when nothing is open any more.

    A part that comes when `out` is whole already has nothing to do.
    """
    if not out.name:
        check_new_folder(out)
    work = Work.beside(out, plan)
    if (out / "dataset.json").exists():
        left = work.begun() == plan.to_dict()  # by a kill when the data set was whole
        if crew.part or left:
            done = finished(plan, out)
            if left:
                shutil.rmtree(work.folder, ignore_errors=True)
            return done
    check_new_folder(out)
    try:
        with _claimed(work, crew), _said_what_is_kept(work, crew, progress):
            if not crew.part:
                check_new_folder(out)  # again: another run may have ended since
            _forget_problems(out, crew)
            for sentence in (plan.about_left_out, work.begin(alone=crew.world == 1)):
                if sentence:
                    progress.note(sentence)
            return _carry_out(work, out, crew, progress)
    except OSError as error:
        if crew.part and (out / "dataset.json").exists():  # finished by another, and the work folder removed
            return finished(plan, out)
        kept = f"What is done is kept in {work.folder}" if work.folder.exists() else "Nothing was kept of it"
        raise explained(error, out, kept) from error


def finished(plan: Plan, out: Path) -> Dataset:
    """The data set that other ranks have made. Raises UsageError when it was made of something else."""
    dataset = load_dataset(out)
    names = [source["name"] for source in dataset.sources]
    sizes = [
        source["bytes"] == size
        for source, input, (size, _) in zip(dataset.sources, plan.inputs, plan.stamps, strict=False)
        if Path(input.location).is_file() and "bytes" in source
    ]
    same = names == [Path(input.name).name for input in plan.inputs] and all(sizes)
    if dataset.options != plan.options.to_dict() or not same:
        raise UsageError(
            f"{out} exists, prepared from other inputs or with other options: choose another folder, or remove it first."
        )
    return dataset


def _carry_out(work: Work, out: Path, crew: Crew, progress: Progress) -> Dataset | Unfinished:
    with Pool(work, crew.workers, progress) as pool:
        if left := _stage(pool, out, crew, read_tasks(work)):
            return left
        settled = _settled(work, crew)
        if left := _stage(pool, out, crew, write_tasks(work, settled)):
            return left
    with hold(work.folder, "finish", wait=True):
        if (out / "dataset.json").exists():
            return load_dataset(out)
        dataset = finish(work, settled, out)
        _forget_problems(out, Crew())
        return dataset


def _stage(pool: Pool, out: Path, crew: Crew, tasks: list[Task]) -> Unfinished | None:
    """Does what is open of this crew's share of a stage's tasks. Gives what others have left open."""
    work = pool.work
    mine = [task for task in crew.share(tasks) if not task.is_done(work)]
    mine.sort(key=lambda task: -task.size(work))  # the longest first: none is begun last
    pool.progress.begin(tasks[0].stage, len(mine), sum(task.size(work) for task in mine))
    if failures := pool.carry_out(mine):
        raise _problems(failures, work, problems_file(out, crew))
    left = sum(not task.is_done(work) for task in tasks) if crew.world > 1 else 0
    return Unfinished(tasks[0].stage, left, len(tasks)) if left else None


def _settled(work: Work, crew: Crew) -> Settled:
    """One process of all settles; the others wait for it and read what it has written."""
    with hold(work.folder, "settle", wait=True):
        for left in work.folder.glob("settled.partial-*") if crew.world == 1 else ():  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        return load_settled(work) or settle(work)


def _problems(failures: dict[Task, str], work: Work, path: Path) -> DataError:
    """One error for all unusable inputs. If there is more than one problem, all are written into the file `path`."""
    tasks = sorted(failures, key=lambda task: task.number)
    every = {work.plan.inputs[t.number].name: json.loads(work.problems(t.number).read_bytes()) for t in tasks}
    count = len({problem for problems in every.values() for problem in problems})
    said = ""
    if count > 1:
        write_whole(path, json.dumps(every, indent=1).encode())
        said = f"\nAll {count:,} problems are in {path}."
    texts = list(dict.fromkeys(failures[task] for task in tasks))
    if len(texts) == 1:  # of several inputs too, when a file that the options name is what is wrong
        return DataError(texts[0] + said)
    lines = [f"  {line}" for text in texts for line in text.splitlines()]
    more = [f"  and {len(lines) - _SHOWN_PROBLEMS:,} lines more"] if len(lines) > _SHOWN_PROBLEMS else []
    what = f"{len(tasks)} of {len(work.plan.inputs)} inputs are unusable:"
    return DataError("\n".join([what, *lines[:_SHOWN_PROBLEMS], *more, _LEAVE_OUT]) + said)


def problems_file(out: Path, crew: Crew) -> Path:
    """Where all problems of the inputs of `out` that this crew has read are listed when there are several."""
    rank = f"-{crew.rank}" if crew.world > 1 else ""
    return out.with_name(f"{out.name}.problems{rank}.json")


def _forget_problems(out: Path, crew: Crew) -> None:
    """Removes the lists of earlier calls, but for those of ranks that may be at work."""
    for path in (problems_file(out, Crew()), problems_file(out, crew)):
        path.unlink(missing_ok=True)
    if crew.world == 1:
        for path in out.parent.glob(glob.escape(f"{out.name}.problems-") + "*.json"):
            path.unlink(missing_ok=True)


@contextmanager
def _claimed(work: Work, crew: Crew) -> Iterator[None]:
    """The work folder, for one run on its own or for the ranks of one run. Nothing is left of it without a result."""
    work.folder.mkdir(parents=True, exist_ok=True)
    with hold(work.folder, shared=crew.world > 1):
        try:
            yield
        finally:
            if crew.world == 1 and not work.has_results():
                shutil.rmtree(work.folder, ignore_errors=True)


@contextmanager
def _said_what_is_kept(work: Work, crew: Crew, progress: Progress) -> Iterator[None]:
    """Notes, when the block refuses something, what a rerun goes on from. Only for who has claimed the folder: it may be removed."""
    try:
        yield
    except (DataError, UsageError):
        if work.has_results():
            alone = "" if crew.world == 1 else " when no rank is at work any more"
            progress.note(
                f"what was read is kept in {work.folder}: prepare goes on from there; remove it to begin anew{alone}"
            )
        raise
