"""`dnascale embed`: sequences to vectors."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
)  # fmt: skip
from dnascale.cli.shared import Json, progress_bar


class Per(StrEnum):
    """What one vector is of."""

    sequence = "sequence"
    window = "window"
    base = "base"


def embed(
    model: Model,
    sequences: Annotated[
        list[str], typer.Argument(metavar="SEQUENCES...", help="FASTA, or any other input that `prepare` reads.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            callback=written_here,
            help="What to make: .parquet, .zarr, or .npy with its rows named in a .tsv beside it.",
        ),
    ],
    per: Annotated[Per, typer.Option(help="One vector a sequence (mean), a window (mean), or a base.")] = Per.sequence,
    window: Annotated[
        int | None, typer.Option(min=1, help="Bases a window with --per window; what the model takes.")
    ] = None,
    layer: Annotated[
        int, typer.Option(help="0 the embeddings, 1 the first layer, ...; -1 the last, after its norm.")
    ] = -1,
    strands: StrandsOption = Strands.auto,
    context: ContextOption = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.fp32,
    batch_tokens: BatchOption = None,
    as_json: Json = False,
) -> None:
    """Embeddings: the hidden states of a model, of sequences, windows or bases, to Parquet, npy or zarr.

    A killed command goes on where it was when given again. On several devices: torchrun --nproc-per-node N -m dnascale embed ...
    """
    from dnascale.errors import UsageError
    from dnascale.evaluate.embed import EmbedOptions
    from dnascale.evaluate.embed_files import embed_file

    if window is not None and per is not Per.window:
        raise UsageError("--window belongs to --per window.")
    options = EmbedOptions(per.value, layer, BOTH[strands], window, batch_tokens)
    settings = {"device": device.value, "precision": precision.value, "context": context}
    done = 0
    with progress_bar() as bar:

        def advance(more: int) -> None:
            nonlocal done
            done += more
            bar("embedding sequences", done, None)

        count = embed_file(model, sequences, out, options, settings, advance)
    if count is None:  # of several processes, the first has written it
        return
    print(json.dumps({"out": str(out), "vectors": count}) if as_json else f"{out}: {count:,} vectors")
