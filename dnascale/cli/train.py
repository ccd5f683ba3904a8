"""`dnascale train`, and what is done with a run afterwards: `eval`, `export`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnascale.cli.arguments import Device, written_here
from dnascale.cli.shared import Json, new_console, new_table, progress_bar

if TYPE_CHECKING:
    from dnascale.evaluate.detail import Detail
    from dnascale.evaluate.run import Evaluation


def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A preset (nano, mini, book, small, base, large) or a YAML file.")
    ],
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
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Run folder, one of its checkpoints, or, with --data, a Hugging Face folder."
        ),
    ],
    split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "valid",
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set folder or URL, if it has moved since training; of several, the folder that has them by name."
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=3, help="Of a Hugging Face folder: bases a window, if less than it takes.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            callback=written_here,
            help="JSON file to write, with a picture beside it. Default: in the run; of a folder, none.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Held-out loss of a run, beside baselines fitted on the same training data, and what it is of parts of the bases.

    Writes evaluation-SPLIT.json and .png into the run, or where --out says. A run and a Hugging Face folder with the same --context hide the same bases.
    """
    from dnascale.errors import UsageError
    from dnascale.evaluate import run as evaluation
    from dnascale.runs import Run

    of_folder = (model / "config.json").is_file() and not (model / "config.yaml").is_file()
    if of_folder and data is None:
        raise UsageError(f"{model} is a Hugging Face folder: say what to evaluate it on, --data FOLDER.")
    if not of_folder and context is not None:
        raise UsageError("--context belongs to Hugging Face folders: a run has its own.")
    if out is not None and out.suffix != ".json":
        raise UsageError(f"--out {out}: the result is JSON, so let the name end in .json.")
    with progress_bar() as progress:
        if of_folder:
            assert data is not None
            result = evaluation.evaluate_folder(model, data, split, device.value, context, out, progress)
        else:
            result = evaluation.evaluate(Run.open(model, data), split, device.value, out, progress)
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        show_evaluation(result)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Argument(callback=written_here, metavar="OUT", help="Folder to make.")],
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="For the model card, e.g. mit or cc-by-4.0.")
    ] = None,
    shard_gb: Annotated[float, typer.Option(min=0.0001, help="Most GB of one file of weights.")] = 5.0,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Then upload it to the Hugging Face Hub; HF_TOKEN is the token."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: for yourself alone, where it is new.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx, its logits compared in ONNX Runtime.")] = False,
) -> None:
    """A run's model as a plain Hugging Face folder, loaded by transformers without dnascale."""
    from dnascale.errors import UsageError
    from dnascale.export import export as write
    from dnascale.export import hub_token
    from dnascale.export import push as upload
    from dnascale.runs import Run

    if private and push is None:
        raise UsageError("--private belongs to --push OWNER/NAME.")
    token = hub_token() if push is not None else ""
    opened = Run.open(run)
    write(opened, out, licence, shard_gb, onnx)
    also = ", and model.onnx, whose logits ONNX Runtime gives too" if onnx else ""
    print(
        f"{out}: model, tokenizer and card of step {opened.checkpoint.state.step:,}, read back with equal logits{also}"
    )
    if push is not None:
        print(f"pushed to {upload(out, push, token, private)}")


def show_evaluation(result: "Evaluation") -> None:
    import math

    console = new_console()
    model = result.model
    name = "this model" if result.step is None else f"this model (step {result.step:,})"
    rows = [(name, model.nats_per_base, True)]
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
    if result.detail is not None:
        _show_detail(result.detail)


def _show_detail(detail: "Detail") -> None:
    import math

    from dnascale.evaluate.statistics import Estimate

    console = new_console()
    unit = detail.unit + ("s" if detail.units != 1 else "")
    ahead = detail.ahead
    if ahead.value < 0:
        ahead = Estimate(-ahead.value, -ahead.high, -ahead.low)
    which = "ahead of" if detail.ahead.value >= 0 else "behind"
    if math.isnan(detail.loss.low):
        console.print(
            f"{which} {detail.ahead_of} by {ahead.value:.4f}; no interval: the split is {detail.units} {unit}"
        )
    else:
        over = f"95 % intervals over {detail.units:,} {unit}"
        console.print(f"{detail.loss} nats per base, {which} {detail.ahead_of} by {ahead} ({over})")
    for title, parts in detail.parts.items():
        table = new_table(title, "nats per base", "accuracy", "bases")
        for part in parts:
            table.add_row(part.name, f"{part.nats_per_base:.4f}", f"{part.accuracy:.1%}", f"{part.bases:,}")
        console.print()
        console.print(table)
