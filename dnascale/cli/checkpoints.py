"""`dnascale ckpt`: the checkpoints of a run."""

import json
from typing import Any

import typer

from dnascale.cli.shared import Json, RunFolder, new_console, new_table

app = typer.Typer(help="Look into checkpoints and check them.", no_args_is_help=True)


@app.command("ls")
def ls(run: RunFolder, as_json: Json = False) -> None:
    """The checkpoints of a run."""
    from dnascale.errors import CheckpointError
    from dnascale.train.checkpoint import Checkpoint, committed

    rows = []
    for path in committed(run / "checkpoints"):
        row: dict[str, Any] = {"checkpoint": path.name}
        try:
            saved = Checkpoint(path)
            row |= {"step": saved.state.step, "tokens": saved.state.tokens, "engine": saved.manifest["engine"],
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
    shown = new_table("checkpoint", "step", "tokens", "engine", "world size", "bytes")
    for row in rows:
        if "error" in row:
            shown.add_row(row["checkpoint"], row["error"])
        else:
            shown.add_row(row["checkpoint"], f"{row['step']:,}", f"{row['tokens']:,}", row["engine"],
                          str(row["world_size"]), f"{row['bytes']:,}")  # fmt: skip
    new_console().print(shown)


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
