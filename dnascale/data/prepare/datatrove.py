"""Prepare on a cluster through datatrove's executors (Slurm, Ray, local): the extra `datatrove`.

    share = Share(Plan.of(sources, options), out)
    LocalPipelineExecutor([share], tasks=64, logging_dir="logs/1").run()   # reads
    LocalPipelineExecutor([share], tasks=64, logging_dir="logs/2").run()   # writes; the last task finishes the data set

With the other executors the same (SlurmPipelineExecutor takes the first as `depends` of the second). All machines must see the
inputs and the folder of `out`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnascale.data.prepare.plan import Plan
from dnascale.data.prepare.run import Crew, carry_out_plan
from dnascale.data.prepare.tasks import Progress


@dataclass(frozen=True)
class Share:
    """A step of a pipeline: does a rank's share of what is open when it is called."""

    plan: Plan
    out: Path

    def __call__(self, data: Iterable[Any] | None, rank: int, world_size: int) -> None:
        carry_out_plan(self.plan, Path(self.out), Crew(1, rank, world_size, part=True), Progress())
