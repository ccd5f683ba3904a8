"""From a file of variants to a file of scores, and from a FASTA to the folder of its saturation."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.shards import load_dataset
from dnascale.data.sources.input import Input
from dnascale.data.sources.locate import find
from dnascale.errors import UsageError
from dnascale.evaluate.language_model import load_model
from dnascale.evaluate.parts import open_parts, remove_parts
from dnascale.evaluate.ranks import rank_and_world
from dnascale.evaluate.table import read_table, write_table
from dnascale.evaluate.variants import tables, vcf
from dnascale.evaluate.variants.alleles import Allele
from dnascale.evaluate.variants.run import (
    check_new_file,
    compare,
    given_sequences,
    reference_of,
    score,
)  # fmt: skip
from dnascale.evaluate.variants.saturate import (
    MODEL,
    Saturation,
    count_scores,
    summarize,
    write_results,
)  # fmt: skip
from dnascale.evaluate.variants.scores import ScoreOptions
from dnascale.files import check_new_folder, explained, sync, whole_folder

Progress = Callable[[int, int], None]
_TABLES = (".parquet", ".tsv", ".csv")


def score_file(
    model: Path,
    variants: Path,
    reference: str | None,
    out: Path,
    options: ScoreOptions,
    settings: dict[str, Any],
    columns: dict[str, str],
    ignore_chr: bool = False,
    allow_mismatches: bool = False,
    batch_tokens: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> list[Allele] | None:
    """Scores the variants of a file into `out`, and gives its alleles; None on all processes but the first.

    `settings`: device, precision and context of `load_model`. Raises UsageError, DataError, CheckpointError or SpaceError.
    """
    check_new_file(out)
    kind = _kind(out)
    if str(variants) == "-" or (variants.exists() and not variants.is_file()):
        raise UsageError(f"{variants} is no file, and the variants are read several times: write them to one first.")
    as_vcf = vcf.is_vcf(variants)
    table = None if as_vcf else read_table(variants, tables.is_position)
    if table is not None:
        tables.require_titles(table, variants)
    if kind == ".vcf" and table is not None:
        raise UsageError(f"{variants} is a table, and {out.name} would be VCF: name a .parquet, .tsv or .csv.")
    own: dict[str, bytes] = {}
    if table is None:
        alleles = vcf.read_alleles(variants)
    else:
        alleles, own = tables.read_alleles(variants, table, tables.columns_of(table, variants, columns))
        tables.require_writable(table, kind)  # before anything is computed
    if reference is None and not own and alleles:
        raise UsageError("variants by position need the sequence around them: --reference genome.fa")
    sources = [] if own or reference is None else find([reference])
    sequences = reference_of(sources) if sources else given_sequences(own)
    loaded = load_model(model, **settings)
    options = replace(options, both_strands=loaded.asks_both(options.both_strands))
    order = compare(
        alleles, sequences, reference or str(variants), options, loaded.context, ignore_chr, allow_mismatches
    )
    parts = open_parts(
        out,
        loaded,
        [Input.of(variants), *sources],
        asdict(options) | {"ignore_chr": ignore_chr, "columns": columns},
    )
    score(loaded, alleles, sequences, order, options, parts, ignore_chr, batch_tokens, progress)
    if rank_and_world()[0]:
        return None
    _write(
        out,
        kind,
        variants,
        table,
        alleles,
        f"model={loaded.name} mode={options.mode} strands={'both' if options.both_strands else 'forward'}",
    )
    remove_parts(out)
    return alleles


def saturate(
    model: Path,
    location: str,
    out: Path,
    options: ScoreOptions,
    settings: dict[str, Any],
    region: str | None = None,
    coding: bool = False,
    genetic_code: int = 1,
    baselines: Path | None = None,
    batch_tokens: int | None = None,
    progress: Progress = lambda _done, _total: None,
) -> dict[str, Any] | None:
    """Scores every substitution into the folder `out`, and gives its summary; None on all processes but the first."""
    check_new_folder(out)
    saturation = Saturation.of(location, coding, genetic_code, region)
    data = load_dataset(baselines) if baselines is not None else None
    loaded = load_model(model, **settings)
    options = replace(options, both_strands=loaded.asks_both(options.both_strands))
    sequences = given_sequences(saturation.sequences)
    order = compare(saturation.alleles, sequences, location, options, loaded.context)
    decides = asdict(options) | {"saturate": saturation.digest, "region": region}
    parts = open_parts(out, loaded, [], decides)
    score(loaded, saturation.alleles, sequences, order, options, parts, False, batch_tokens, progress)
    if rank_and_world()[0]:
        return None
    scores = {MODEL: np.array([allele.llr for allele in saturation.alleles])}
    if data is not None:
        scores |= count_scores(saturation, data)
    summary = summarize(saturation, scores) | {"model": loaded.name, "sequences": location, **asdict(options)}
    with whole_folder(out) as work:
        write_results(saturation, scores, summary, work)
    remove_parts(out)
    return summary


def _kind(out: Path) -> str:
    if out.name.endswith((".vcf", ".vcf.gz", ".vcf.bgz")):
        vcf.require_writable(out)
        return ".vcf"
    if out.suffix in _TABLES:
        return out.suffix
    raise UsageError(f"{out.name}: scores are written as .vcf, .vcf.gz, .parquet, .tsv or .csv: let its name end so.")


def _write(out: Path, kind: str, variants: Path, table: Any, alleles: list[Allele], how: str) -> None:
    work = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        if kind == ".vcf":
            with vcf.opened_for_writing(work, out) as file:
                vcf.write_scored(variants, alleles, file, how)
        else:
            scored = tables.scored_table(tables.table_of(alleles) if table is None else table, alleles)
            with work.open("wb") as file:
                write_table(scored, file, kind)
        sync(work)
        work.replace(out)
    except OSError as error:
        raise explained(error, out, "The scores are kept beside it") from error
    finally:
        work.unlink(missing_ok=True)
