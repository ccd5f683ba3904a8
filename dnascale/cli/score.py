"""`dnascale score`: variants, or every substitution of a sequence."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dnascale.cli.arguments import (
    BOTH,
    BatchOption,
    ContextOption,
    Device,
    DeviceOption,
    Model,
    Precision,
    PrecisionOption,
    Strands,
    StrandsOption,
    written_here,
)
from dnascale.cli.shared import Json, new_console, new_table, progress_bar

if TYPE_CHECKING:
    from dnascale.evaluate.variants.alleles import Allele

_SATURATE = "Every substitution"


class Mode(StrEnum):
    """How a substitution is scored."""

    masked = "masked"
    wild_type = "wild-type"
    pll = "pll"


class Indels(StrEnum):
    """What is done with insertions and deletions."""

    pll = "pll"
    skip = "skip"


def score(
    model: Model,
    variants: Annotated[
        Path | None, typer.Argument(metavar="VARIANTS", help="VCF, or a table (TSV, CSV, Parquet); compressed or not.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="FASTA that the variants were called on; no index is needed.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=written_here, help="File to make: .vcf, .vcf.gz, .parquet, .tsv or .csv; a folder with --saturate."
        ),
    ] = None,
    mode: Annotated[
        Mode, typer.Option(help="masked: hide the changed bases; wild-type: hide nothing; pll: both windows whole.")
    ] = Mode.masked,
    indels: Annotated[Indels, typer.Option(help="Score indels by pseudo-log-likelihood, or skip them.")] = Indels.pll,
    strands: StrandsOption = Strands.auto,
    together: Annotated[
        int, typer.Option(min=1, help="Positions hidden at once in a window: faster, and approximate above 1.")
    ] = 1,
    columns: Annotated[
        str | None, typer.Option(help="Columns of a table, e.g. chrom=CHR,pos=START,ref=REF,alt=ALT (or sequence=...).")
    ] = None,
    ignore_chr: Annotated[bool, typer.Option("--ignore-chr", help="Take chr1 and 1 for one sequence.")] = False,
    allow_mismatches: Annotated[
        bool,
        typer.Option(
            "--allow-mismatches", help="Score the others where over 1 % of the alleles do not agree with the reference."
        ),
    ] = False,
    saturate: Annotated[
        str | None,
        typer.Option(help="Score every substitution of this FASTA, or of builtin:drd2.", rich_help_panel=_SATURATE),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Only these bases: NAME:START-END, from 1.", rich_help_panel=_SATURATE)
    ] = None,
    coding: Annotated[
        bool,
        typer.Option(
            "--coding",
            help="The sequences are coding: say what each change does to the protein.",
            rich_help_panel=_SATURATE,
        ),
    ] = False,
    genetic_code: Annotated[int, typer.Option(help="NCBI's number of it.", rich_help_panel=_SATURATE)] = 1,
    baselines: Annotated[
        Path | None,
        typer.Option(
            help="Data set of coding sequences: count-based scorers of its training split beside the model.",
            rich_help_panel=_SATURATE,
        ),
    ] = None,
    context: ContextOption = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Zero-shot scores: how much less likely the model finds the alternative allele (log-likelihood ratio, nats).

    A killed command goes on where it was when given again. On several devices: torchrun --nproc-per-node N -m dnascale score ...
    """
    from dnascale.errors import UsageError
    from dnascale.evaluate.variants.scores import ScoreOptions

    if out is None:
        raise UsageError(
            "say where the scores go: --out scores.vcf.gz, .vcf, .parquet, .tsv or .csv (a folder with --saturate)."
        )
    given: Literal["pll", "skip"] = "pll" if indels is Indels.pll else "skip"
    options = ScoreOptions(mode.value, given, BOTH[strands], together)
    settings: dict[str, Any] = {"device": device.value, "precision": precision.value, "context": context}
    if saturate is not None:
        if variants is not None or reference is not None:
            raise UsageError(
                "--saturate takes its variants and its reference from one FASTA: leave out VARIANTS and --reference."
            )
        if columns is not None or ignore_chr or allow_mismatches or indels is not Indels.pll:
            raise UsageError("--columns, --ignore-chr, --allow-mismatches and --indels are for a file of VARIANTS.")
        if genetic_code != 1 and not coding:
            raise UsageError("--genetic-code says what --coding sequences mean: add --coding, or leave it out.")
        _saturate(
            model, saturate, region, coding, genetic_code, baselines, out, options, settings, batch_tokens, as_json
        )
        return
    if region is not None or coding or baselines is not None or genetic_code != 1:
        raise UsageError("--region, --coding, --genetic-code and --baselines belong to --saturate.")
    if variants is None:
        raise UsageError("name a file of variants (VCF, TSV, CSV, Parquet), or a FASTA with --saturate.")
    from dnascale.evaluate.variants.files import score_file

    with progress_bar() as bar:
        alleles = score_file(
            model,
            variants,
            reference,
            out,
            options,
            settings,
            _named(columns),
            ignore_chr,
            allow_mismatches,
            batch_tokens,
            partial(bar, "scoring alleles"),
        )
    if alleles is not None:
        _show(alleles, out, as_json)


def _named(columns: str | None) -> dict[str, str]:
    from dnascale.errors import UsageError

    pairs = [pair.partition("=") for pair in (columns or "").split(",") if pair]
    if any(not role or not title for role, _, title in pairs):
        raise UsageError(f"--columns {columns!r} is not ROLE=TITLE, several separated by commas.")
    return {role.strip(): title.strip() for role, _, title in pairs}


def _show(alleles: "list[Allele]", out: Path, as_json: bool) -> None:
    from collections import Counter

    from dnascale.evaluate.variants.run import mismatches

    counts = Counter(str(allele.status) for allele in alleles)
    if as_json:
        print(json.dumps({"out": str(out), "alleles": len(alleles), "status": counts}, indent=1))
        return
    for line in mismatches(alleles):
        print(f"note     {line}")
    said = ", ".join(f"{count:,} {status}" for status, count in counts.most_common())
    print(f"{out}: {len(alleles):,} alleles: {said}")


def _saturate(
    path: Path, location: str, region: str | None, coding: bool, genetic_code: int, baselines: Path | None, out: Path,
    options: Any, settings: dict[str, Any], batch_tokens: int | None, as_json: bool,
) -> None:  # fmt: skip
    from dnascale.evaluate.figures import possible
    from dnascale.evaluate.statistics import shown
    from dnascale.evaluate.variants.files import saturate

    with progress_bar() as bar:
        summary = saturate(
            path,
            location,
            out,
            options,
            settings,
            region,
            coding,
            genetic_code,
            baselines,
            batch_tokens,
            partial(bar, "scoring alleles"),
        )
    if summary is None:
        return
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    medians = new_table("consequence", "changes", "scorer", "median LLR, nats")
    areas = new_table("AUROC", "scorer", "")
    for kind, count in summary["count"].items():
        for name, one in summary["scorers"].items():
            medians.add_row(kind, f"{count:,}", name, shown(one["median"][kind]))
    for pair in next(iter(summary["scorers"].values()))["auroc"]:
        for name, one in summary["scorers"].items():
            areas.add_row(pair, name, shown(one["auroc"][pair]))
    console = new_console()
    console.print(medians)
    if areas.rows:
        console.print(areas)
    figures = "" if possible() else " No figures: they need matplotlib (pip install 'dnascale[biology]')."
    print(f"{out}: {summary['substitutions']:,} substitutions; intervals of 95 %, bootstrap over codons.{figures}")
