"""`dnascale ckpt`: the checkpoints of a run."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from dnascale.cli.arguments import written_here
from dnascale.cli.shared import Json, RunFolder, new_console, new_table

app = typer.Typer(help="Look into checkpoints, check them, keep them, hand them on.", no_args_is_help=True)


@app.command("ls")
def ls(run: RunFolder, as_json: Json = False) -> None:
    """The checkpoints of a run."""
    from dnascale.errors import CheckpointError
    from dnascale.train.checkpoint import Checkpoint, committed
    from dnascale.train.retention import is_pinned

    rows = []
    for path in committed(run / "checkpoints"):
        row: dict[str, Any] = {"checkpoint": path.name}
        try:
            saved = Checkpoint(path)
            row |= {"step": saved.state.step, "tokens": saved.state.tokens, "valid_loss": saved.state.valid_loss,
                    "pinned": is_pinned(path), "engine": saved.manifest["engine"],
                    "world_size": saved.manifest["world_size"],
                    "bytes": sum(file["bytes"] for file in saved.manifest["files"])}  # fmt: skip
        except CheckpointError as error:
            row["error"] = str(error)
        rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        raise CheckpointError(f"{run} has no checkpoints.")
    best = min((row["valid_loss"] for row in rows if row.get("valid_loss") is not None), default=math.nan)
    shown = new_table("checkpoint", "step", "tokens", "valid loss", "engine", "world size", "bytes", "")
    for row in rows:
        if "error" in row:
            shown.add_row(row["checkpoint"], row["error"])
        else:
            shown.add_row(row["checkpoint"], f"{row['step']:,}", f"{row['tokens']:,}",
                          "" if row["valid_loss"] is None else f"{row['valid_loss']:.4f}", row["engine"],
                          str(row["world_size"]), f"{row['bytes']:,}",
                          " ".join(mark for mark, on in (("best", row["valid_loss"] == best), ("pinned", row["pinned"])) if on))  # fmt: skip
    new_console().print(shown)


@app.command("pin")
def pin(
    run: RunFolder,
    step: Annotated[int, typer.Argument(metavar="STEP", help="Of the checkpoint.")],
    off: Annotated[bool, typer.Option("--off", help="Take the pin off.")] = False,
) -> None:
    """Keep a checkpoint, whatever checkpoint.keep says."""
    from dnascale.train import retention

    checkpoint = run / "checkpoints" / f"step-{step:08d}"
    retention.pin(checkpoint, not off)
    print(f"{checkpoint}: {'may be removed' if off else 'stays'}")


@app.command("verify")
def verify(run: RunFolder) -> None:
    """Compare every file of every checkpoint of a run with its digest."""
    from dnascale.errors import CheckpointError
    from dnascale.train.checkpoint import Checkpoint, committed

    found = committed(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run} has no checkpoints.")
    damaged = []
    for path in found:
        try:
            Checkpoint(path).verify()
            print(f"{path}: all digests right")
        except CheckpointError as error:
            damaged.append(str(error))
            print(f"{path}: {error}")
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged; training uses the newest whole one."
        )


@app.command("convert")
def convert(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(callback=written_here, metavar="OUT", help="Folder to make.")],
) -> None:
    """A checkpoint for other programs: whole fp32 tensors by name, one safetensors file of weights and one a moment.

    dnascale itself needs no conversion: every engine, on any number of devices, goes on from any checkpoint.
    """
    from dnascale.exchange import convert as write
    from dnascale.runs import Run

    opened = Run.open(run)
    files = write(opened, out)
    print(f"{out}: step {opened.checkpoint.state.step:,} in {', '.join(file.name for file in files)}")


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="With a DeepSpeed checkpoint, or a pytorch_model.bin.")
    ],
    out: Annotated[
        Path,
        typer.Argument(callback=written_here, metavar="OUT", help="Hugging Face folder to make, for model.init_from."),
    ],
    model: Annotated[
        Path | None, typer.Option(help="Folder with config.json and tokenizer, if they are not in FOLDER.")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read the pickles in FOLDER: they may run any code.")
    ] = False,
) -> None:
    """Weights of DeepSpeed's own checkpoints, or of pickles, as safetensors to begin with."""
    from dnascale.exchange import import_weights

    print(import_weights(source, out, model, trust_pickle))
    print(f"dnascale train CONFIG data.path=DATA run.dir=RUN model.init_from={out}")
