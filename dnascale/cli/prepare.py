"""`dnascale prepare`: sequences to shards."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dnascale.cli.arguments import written_here
from dnascale.cli.dataset import show_dataset
from dnascale.cli.shared import Json
from dnascale.errors import UsageError

_READING, _TAKING, _CLEANING = "What is read", "What is taken of it", "What is left out"
_SPLITTING, _RUNNING = "Splits", "How it runs"


def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files of sequences, folders, globs, URLs (https, s3, gs, hf), - for standard input, builtin:human-cds; or a recipe of several sources (YAML).",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", callback=written_here, help="Data set folder to make.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="character, kmer:K, kmer:K:overlap, or a folder made by `dnascale tokenizer train`."
        ),
    ] = "character",
    soft_mask: Annotated[
        bool,
        typer.Option(
            "--soft-mask",
            help="Keep lower case in the shards, so that training can give repeats less weight (masking.repeat_weight).",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the order of records in the shards.")] = 0,
    format: Annotated[
        str | None,
        typer.Option(
            help="fasta, fastq, 2bit, genbank, embl, parquet, arrow, csv, jsonl. Default: told by content.",
            rich_help_panel=_READING,
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table that holds the sequences. Default: found by name and content.",
            rich_help_panel=_READING,
        ),
    ] = None,
    name_column: Annotated[
        str | None, typer.Option(help="Column of a table that holds the names.", rich_help_panel=_READING)
    ] = None,
    skip_bad_records: Annotated[
        bool,
        typer.Option(
            "--skip-bad-records", help="Leave out records that are unusable, and count them.", rich_help_panel=_READING
        ),
    ] = False,
    skip_bad_files: Annotated[
        bool,
        typer.Option(
            "--skip-bad-files",
            help="Leave out whole inputs that are unusable, and list them.",
            rich_help_panel=_READING,
        ),
    ] = False,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What the input must hold: a .fai, chrom.sizes or assembly report; or checksums (sha256sum, md5sum).",
            rich_help_panel=_READING,
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="BED", help="Take these regions, each as a record (BED3 to BED12).", rich_help_panel=_TAKING
        ),
    ] = None,
    spliced: Annotated[
        bool, typer.Option("--spliced", help="Of BED12, take the blocks, joined.", rich_help_panel=_TAKING)
    ] = False,
    coding: Annotated[
        bool,
        typer.Option(
            "--coding",
            help="Of BED12, take the blocks between thickStart and thickEnd, joined.",
            rich_help_panel=_TAKING,
        ),
    ] = False,
    annotation: Annotated[
        str | None,
        typer.Option(
            metavar="GTF|GFF3", help="Take features of this annotation, spliced by transcript.", rich_help_panel=_TAKING
        ),
    ] = None,
    feature: Annotated[
        str, typer.Option(help="Which features: CDS, exon, gene, or what else it has.", rich_help_panel=_TAKING)
    ] = "CDS",
    ignore_chr: Annotated[
        bool,
        typer.Option(
            "--ignore-chr", help="Regions, annotation: take chr1 and 1 for one sequence.", rich_help_panel=_TAKING
        ),
    ] = False,
    allow_absent: Annotated[
        bool,
        typer.Option(
            "--allow-absent", help="Regions may lie on sequences that are not given.", rich_help_panel=_TAKING
        ),
    ] = False,
    min_length: Annotated[
        int, typer.Option(help="Leave out records shorter than this many bases.", rich_help_panel=_CLEANING)
    ] = 1,
    max_n_run: Annotated[
        int | None,
        typer.Option(help="Cut longer runs of N out; what stands between becomes records.", rich_help_panel=_CLEANING),
    ] = None,
    alphabet: Annotated[
        str,
        typer.Option(
            help="iupac: every code, U read as T. rna: U kept. strict: records of A, C, G, T and N alone.",
            rich_help_panel=_CLEANING,
        ),
    ] = "iupac",
    valid_cds: Annotated[
        bool,
        typer.Option(
            "--valid-cds",
            help="Keep only whole coding sequences: ATG first, a stop codon last, none inside, length divisible by 3.",
            rich_help_panel=_CLEANING,
        ),
    ] = False,
    genetic_code: Annotated[
        int, typer.Option(help="NCBI's number of the code for --valid-cds.", rich_help_panel=_CLEANING)
    ] = 1,
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates",
            help="Keep one of records with the same bases, on either strand.",
            rich_help_panel=_CLEANING,
        ),
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            help="What stays in one split: gene, chromosome, species, file, record, column:NAME, table:FILE, or a regular expression whose ( ) names it in the header. Default: gene, if the header tells.",
            rich_help_panel=_SPLITTING,
        ),
    ] = None,
    group_otherwise: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="gene, chromosome, species, file or record: for records in which --group (a column, table or expression) finds nothing.",
            rich_help_panel=_SPLITTING,
        ),
    ] = None,
    valid: Annotated[
        str,
        typer.Option(
            help="Held out for validation: a share of the groups (0.1), or their names (chr20,chr21).",
            rich_help_panel=_SPLITTING,
        ),
    ] = "0.1",
    test: Annotated[
        str,
        typer.Option(help="Held out for testing: a share of the groups, or their names.", rich_help_panel=_SPLITTING),
    ] = "0",
    cluster: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Put groups that share at least this part of their 31-mers into one split; 0.2 is a good start.",
            rich_help_panel=_SPLITTING,
        ),
    ] = None,
    max_leakage: Annotated[
        float,
        typer.Option(
            help="Refuse a held-out split of which more than this part stands in train too; 1 allows all.",
            rich_help_panel=_SPLITTING,
        ),
    ] = 0.1,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes. Default: one a CPU, fewer for small inputs.", rich_help_panel=_RUNNING),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            help="Which part of the work this call does, from 0. In a Slurm array: its task.", rich_help_panel=_RUNNING
        ),
    ] = None,
    world: Annotated[
        int | None,
        typer.Option(
            help="How many parts there are, on any machines that see one --out. In a Slurm array: its size.",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sequences to training shards, split by gene, with a cleaning report.

    e.g. dnascale prepare genes.fa.gz --out data

    e.g. dnascale prepare genome.fa.gz --annotation genes.gtf.gz --valid-cds --group chromosome --valid chr20 --out data

    What is done is kept in OUT.preparing: stopped or killed, the same command goes on from there.
    """
    given = {name: value for name, value in locals().items() if name not in _NO_OPTIONS}

    from dnascale.cli.progress import shown_progress
    from dnascale.data.prepare import Crew, Plan, PrepareOptions, carry_out_plan
    from dnascale.data.prepare.recipe import is_recipe
    from dnascale.data.shards import Dataset

    options = PrepareOptions(**given)
    if is_recipe(sources):
        if options != PrepareOptions():
            raise UsageError(f"{sources[0]} is a recipe: write the options into it, under `options:` or a source.")
        _prepare_recipe(sources[0], out, workers, _part(rank, world), as_json)
        return
    part = _part(rank, world)
    plan = Plan.of(sources, options)
    crew = Crew(_workers(workers, sum(size for size, _ in plan.stamps)), *(part or (0, 1)), part=part is not None)
    with shown_progress() as progress:
        done = carry_out_plan(plan, out, crew, progress)
    if isinstance(done, Dataset):
        show_dataset(done, as_json)
    elif as_json:
        print(json.dumps({"rank": crew.rank, "world": crew.world, **asdict(done)}))
    else:
        print(f"rank {crew.rank} of {crew.world}: {done}")
    if not as_json and progress.summary:
        print(progress.summary)


def _prepare_recipe(recipe: str, out: Path, workers: int | None, part: tuple[int, int] | None, as_json: bool) -> None:
    from dnascale.cli.progress import shown_progress
    from dnascale.data.prepare import Crew
    from dnascale.data.prepare.recipe import carry_out_recipe, load_recipe, report
    from dnascale.data.shards import Dataset

    loaded = load_recipe(Path(recipe))
    crew = Crew(_workers(workers, 1 << 40), *(part or (0, 1)), part=part is not None)
    with shown_progress() as progress:
        done = carry_out_recipe(loaded, out, crew, progress)
    if as_json:
        print(report(done))
        return
    for name, one in done.items():
        print(f"{name}:")
        if isinstance(one, Dataset):
            show_dataset(one, as_json=False)
        else:
            print(f"rank {crew.rank} of {crew.world}: {one}")
    if progress.summary:
        print(progress.summary)


#: Parameters of the command that are no PrepareOptions.
_NO_OPTIONS = ("sources", "out", "workers", "rank", "world", "as_json")


def _workers(asked: int | None, size: int) -> int:
    """A process costs more than it gains for a few megabytes."""
    if asked is not None:
        return asked
    from dnascale.launch.machine import usable_cores

    return max(1, min(usable_cores(), size // (8 << 20)))


def _part(rank: int | None, world: int | None) -> tuple[int, int] | None:
    """Which part of the work this call does: as said, or as a Slurm array says; None: all of it."""
    if (rank is None) != (world is None):
        raise UsageError("--rank and --world belong together: give both, or neither.")
    if rank is not None and world is not None:
        return rank, world
    array = {name: os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT", "MIN", "STEP")}
    if array["ID"] is None or array["COUNT"] is None:
        return None
    return (int(array["ID"]) - int(array["MIN"] or 0)) // int(array["STEP"] or 1), int(array["COUNT"])
