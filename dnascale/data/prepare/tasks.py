"""The tasks of a plan: what is open, and doing one."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.read import leave_out, read_input
from dnascale.data.prepare.settle import Settled
from dnascale.data.prepare.write import is_written, write_shard
from dnascale.errors import DataError

#: "comparing" is of the sources of a recipe with each other.
Stage = Literal["reading", "writing", "comparing"]


@dataclass(frozen=True)
class Task:
    """Reading input `number`, or writing shard `number` of `split`."""

    stage: Stage
    number: int
    split: str = ""
    tokens: int = 0

    def is_done(self, work: Work) -> bool:
        return is_written(work, self.split, self.number) if self.split else work.is_read(self.number)

    def perform(self, work: Work, advance: Callable[[int], None]) -> None:
        """Raises DataError when the input is unusable, unless such inputs are to be left out."""
        if self.split:
            write_shard(work, self.split, self.number, advance)
            return
        try:
            read_input(work, self.number, advance)
        except DataError as error:
            if not work.plan.options.skip_bad_files:
                raise
            leave_out(work, self.number, str(error))

    def size(self, work: Work) -> int:
        """Bytes to read, or tokens to write."""
        return self.tokens if self.split else work.plan.stamps[self.number][0]

    def describe(self, work: Work) -> str:
        """For messages."""
        if self.split:
            return f"writing shard {self.number} of {self.split}"
        return f"reading {work.plan.inputs[self.number].name}"


def read_tasks(work: Work) -> list[Task]:
    return [Task("reading", number) for number in range(len(work.plan.inputs))]


def write_tasks(work: Work, settled: Settled) -> list[Task]:
    return [Task("writing", *shard) for shard in settled.shards(work.plan.shard_tokens)]


class Progress:
    """What is told about a run while it goes on. This one keeps it to itself; the command line shows it."""

    def begin(self, stage: Stage, tasks: int, size: int) -> None:
        """A stage begins, with so many tasks to do here, of this size in all: bytes to read, or tokens to write."""

    def advance(self, bases: int) -> None:
        """So many more bases were read or written."""

    def finish(self, task: Task, size: int, peak_bytes: int) -> None:
        """A task of this size is done; the process that did it has had at most so many bytes of memory."""

    def note(self, sentence: str) -> None:
        """Something a user should know."""


def peak_bytes() -> int:
    """Largest memory that this process has had."""
    import resource

    try:  # getrusage counts what the process was before exec too: a copy of its parent
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
