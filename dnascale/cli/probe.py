"""`dnascale probe`: how much of some labels a linear model reads off embeddings."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from dnascale.cli.shared import Json, new_console, new_table


def probe(
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="Of `dnascale embed --per sequence`.")],
    labels: Annotated[
        Path,
        typer.Argument(metavar="LABELS", help="Table (.tsv, .csv, .parquet) with a column `name`, and the labels."),
    ],
    label: Annotated[str, typer.Option(help="Column of the labels: classes, or numbers.")] = "label",
    group: Annotated[
        str | None,
        typer.Option(help="Column of what must not be in training and test at once: gene, chromosome, species."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that are held out by turns.")] = 5,
    as_json: Json = False,
) -> None:
    """Cross-validated logistic (classes) or ridge regression (numbers) on embeddings, with whole groups held out."""
    from dnascale.errors import DataError, UsageError
    from dnascale.evaluate import probe as probing

    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise UsageError("a probe needs scikit-learn: pip install 'dnascale[biology]'.") from None
    known = probing.read_labels(labels, label, group)
    names, values = probing.read_embeddings(embeddings)
    rows = [row for row, name in enumerate(names) if name in known]
    if not rows:
        raise DataError(
            f"no name of {embeddings} is in {labels}: names there begin with {', '.join(list(known)[:3]) or 'nothing'}."
        )
    found = probing.probe(
        values[rows], [known[names[row]][0] for row in rows], [known[names[row]][1] for row in rows], folds
    )
    if as_json:
        print(json.dumps(found.to_dict() | {"without_label": len(names) - len(rows)}, indent=1))
        return
    console = new_console()
    left_out = f"; {len(names) - len(rows):,} without a label" if len(rows) < len(names) else ""
    what = f"{len(found.classes)} classes ({', '.join(found.classes[:8])})" if found.classes else "numbers"
    console.print(f"{found.rows:,} sequences in {found.groups:,} groups, {found.folds} folds, {what}{left_out}")
    table = new_table("held out", "value", "95 % interval over groups")
    for name, score in found.scores.items():
        interval = "" if math.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"
        table.add_row(name, f"{score.value:.3f}", interval)
    console.print(table)
