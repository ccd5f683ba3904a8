"""`dnascale prepare`: sequences to shards."""

import os
from pathlib import Path
from typing import Annotated

import typer

from dnascale.cli.dataset import show_dataset
from dnascale.cli.shared import Json
from dnascale.errors import UsageError


def prepare(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="FASTA files (plain or gzip), globs, or builtin:human-cds.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Data set folder to make.")],
    valid: Annotated[float, typer.Option(help="Share of the groups held out for validation.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the groups held out for testing.")] = 0.0,
    group: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose first ( ) names a record's group in its header. Default: the gene if the header tells, else the record."
        ),
    ] = None,
    min_length: Annotated[int, typer.Option(help="Leave out records shorter than this many bases.")] = 1,
    soft_mask: Annotated[
        bool, typer.Option("--soft-mask", help="Keep lower case in the shards (bit 7), for loss weights of repeats.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the order of records in the shards.")] = 0,
    skip_bad_files: Annotated[
        bool,
        typer.Option("--skip-bad-files", help="Leave out inputs that are unusable, and list them in dataset.json."),
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes. Default: one a CPU, fewer for small inputs.")] = None,
    rank: Annotated[
        int | None, typer.Option(help="Number of this part of the work, from 0. Default: the Slurm array's.")
    ] = None,
    world: Annotated[int | None, typer.Option(help="How many parts there are, on whatever machines.")] = None,
    as_json: Json = False,
) -> None:
    """Sequences to training shards, split by gene, with a cleaning report.

    What is done is kept in OUT.preparing: stopped or killed, the same command goes on from there.
    """
    from dnascale.cli.progress import shown_progress
    from dnascale.data.prepare import Crew, Plan, PrepareOptions, carry_out_plan
    from dnascale.data.shards import Dataset

    options = PrepareOptions(
        valid=valid, test=test, group=group, min_length=min_length, soft_mask=soft_mask, seed=seed,
        skip_bad_files=skip_bad_files,
    )  # fmt: skip
    rank, world = _part(rank, world)
    plan = Plan.of(sources, options)
    crew = Crew(_workers(workers, sum(size for size, _ in plan.stamps)), rank, world)
    with shown_progress() as progress:
        done = carry_out_plan(plan, out, crew, progress)
    if isinstance(done, Dataset):
        show_dataset(done, as_json)
    else:
        print(f"rank {rank} of {world}: {done}")
    if not as_json and progress.summary:
        print(progress.summary)


def _workers(asked: int | None, size: int) -> int:
    """A process costs more than it gains for a few megabytes."""
    if asked is not None:
        return asked
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, size // (8 << 20)))


def _part(rank: int | None, world: int | None) -> tuple[int, int]:
    """Which part of the work this call does: as said, or as a Slurm array says, or all of it."""
    if (rank is None) != (world is None):
        raise UsageError("--rank and --world belong together: give both, or neither.")
    if rank is not None and world is not None:
        return rank, world
    array = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "STEP")}
    if array["ID"] is None or array["COUNT"] is None:
        return 0, 1
    return (int(array["ID"]) - int(array["MIN"] or 0)) // int(array["STEP"] or 1), int(array["COUNT"])
