"""`dnascale train`, and what is done with a run afterwards: `eval`, `export`."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnascale.cli.shared import Json, RunFolder, new_console, new_table

if TYPE_CHECKING:
    from dnascale.evaluate.run import Evaluation


class Device(StrEnum):
    """Where a model is evaluated."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset (nano, book, base, large) or a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="e.g. data.path=DATA train.steps=1000 run.dir=runs/first"),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Train a model, or continue the run in run.dir. `--show` prints every key of the configuration.

    On several devices the same program: torchrun --nproc-per-node N -m dnascale.train CONFIG KEY=VALUE..., or
    accelerate launch --config_file FILE -m dnascale.train CONFIG KEY=VALUE...
    """
    from dnascale.config import load_config, to_yaml

    settled = load_config(config, overrides or [])
    if show:
        print(to_yaml(settled), end="")
        return
    from dnascale.train.loop import train as run

    run(settled)


def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "valid",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    data: Annotated[str | None, typer.Option(help="Data set folder or URL, if it has moved since training.")] = None,
    as_json: Json = False,
) -> None:
    """Held-out loss of a run, beside baselines fitted on the same training data."""
    from rich.progress import Progress

    from dnascale.evaluate.run import evaluate as score
    from dnascale.runs import Run

    console = new_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        result = score(
            Run.open(run, data),
            split,
            device.value,
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        show_evaluation(result)


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the model card, e.g. mit or cc-by-4.0.")
    ] = None,
    shard_gb: Annotated[float, typer.Option(min=0.0001, help="Most GB of one file of weights.")] = 5.0,
) -> None:
    """A run's model as a plain Hugging Face folder, loaded by transformers without dnascale."""
    from dnascale.export import export as write
    from dnascale.runs import Run

    opened = Run.open(run)
    write(opened, out, licence, shard_gb)
    print(f"{out}: model, tokenizer and card of step {opened.checkpoint.state.step:,}, read back with equal logits")


def show_evaluation(result: "Evaluation") -> None:
    import math

    console = new_console()
    model = result.model
    rows = [(f"this model (step {result.step:,})", model.nats_per_base, True)]
    rows += [(b.name, b.nats_per_base, False) for b in result.baselines]
    table = new_table("held-out loss", "nats per base", "bits per base", "model is better by")
    for name, nats, own in sorted(rows, key=lambda row: -row[1]):
        style = "bold" if own else None
        gain = "" if own else f"{nats - model.nats_per_base:+.4f}"
        table.add_row(name, f"{nats:.4f}", f"{nats / math.log(2):.4f}", gain, style=style)
    console.print(table)
    by_base = ", ".join(f"{base} {share:.1%}" for base, share in model.accuracy_by_base.items())
    of_what = f"({by_base})" if by_base else f"of {model.tokens:,} whole tokens"
    console.print(
        f"accuracy {model.accuracy:.1%} {of_what} over {model.bases:,} bases of the {result.split} split",
        soft_wrap=True,
    )
