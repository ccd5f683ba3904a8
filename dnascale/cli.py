"""The command line: one thin function a command. Nothing heavy is imported before a command needs it."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnascale import __version__
from dnascale.errors import DnascaleError, UsageError

if TYPE_CHECKING:
    from dnascale.data.shards import Dataset
    from dnascale.evaluate.run import Evaluation

app = typer.Typer(
    name="dnascale",
    help="Train DNA language models, from one laptop to a cluster, with the same commands.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look into data sets and check them.", no_args_is_help=True)
ckpt_app = typer.Typer(help="Look into checkpoints and check them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(ckpt_app, name="ckpt")


_INTERRUPTED = 128 + signal.SIGINT


class Device(StrEnum):
    """Where a model is evaluated."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataFolder = Annotated[str, typer.Argument(metavar="DATA", help="Data set folder or URL.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


def main(args: list[str] | None = None) -> None:
    """Entry point. Errors are one sentence and a documented exit code; `--debug` anywhere adds the traceback."""
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args
    args = [word for word in args if word != "--debug"]
    try:
        code = app(args=args, prog_name="dnascale", standalone_mode=False) or 0
    except DnascaleError as error:
        code = _report(str(error), error.exit_code, debug, error.shared)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own usage errors
            code = UsageError.exit_code
            if sentence := error.format_message():
                _report(sentence, code, debug)
        else:
            hint = "" if debug else " This is a bug in dnascale or its surroundings; --debug shows where."
            code = _report(f"{type(error).__name__}: {error}{hint}", 1, debug)
    if code == _INTERRUPTED:  # typer returns it
        _report(
            "interrupted. `dnascale train` goes on from its last checkpoint when run again; others start anew.",
            code,
            debug=False,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch.distributed" in sys.modules and os.environ.get("WORLD_SIZE", "1") != "1":
        # Threads of gloo and DeepSpeed that still run abort the interpreter's own shutdown now and then.
        os._exit(code)
    sys.exit(code)


def _report(sentence: str, code: int, debug: bool, shared: bool = False) -> int:
    """Prints one sentence: on rank 0 what all ranks met, on any rank what it met alone."""
    if debug:
        import traceback

        traceback.print_exc()
    rank = os.environ.get("RANK", "0")
    if rank == "0" or not shared:
        where = f"rank {rank}: " if rank != "0" else ""
        print(f"dnascale: error: {where}{sentence}", file=sys.stderr, flush=True)
    return code


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"dnascale {__version__}")
        raise typer.Exit


@app.command()
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
    as_json: Json = False,
) -> None:
    """Sequences to training shards, split by gene, with a cleaning report."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from dnascale.data.prepare import PrepareOptions
    from dnascale.data.prepare import prepare as run

    options = PrepareOptions(valid, test, group, min_length, soft_mask, seed)
    console = _console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f} bases"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {what: bar.add_task(what, total=None, visible=False) for what in ("reading", "writing")}
        dataset = run(
            sources, out, options, progress=lambda what, bases: bar.update(tasks[what], advance=bases, visible=True)
        )
    _show_dataset(dataset, as_json)


@data_app.command("inspect")
def data_inspect(data: DataFolder, as_json: Json = False) -> None:
    """What is in a data set."""
    from dnascale.data.shards import load_dataset

    _show_dataset(load_dataset(data), as_json)


@data_app.command("index")
def data_index(
    tars: Annotated[
        list[str], typer.Argument(metavar="TARS...", help="WebDataset tars (not compressed), or globs, to train on.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="Data set folder to make, or the folder that the tars lie in: both then move together."
        ),
    ],
    valid: Annotated[list[str] | None, typer.Option(metavar="TARS", help="Tars held out for validation.")] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="TARS", help="Tars held out for testing.")] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Member of a sample that is its sequence: txt, seq, sequence, dna (letters); bin, tokens, npy (token ids). Default: the one there is."
        ),
    ] = None,
    alphabet: Annotated[
        str | None,
        typer.Option(help="Letters of the token ids 0, 1, 2, ..., e.g. ACGTN. Default: ids of dnascale's vocabulary."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train from WebDataset tars that others made, where they are: writes an index, copies nothing."""
    from dnascale.data.foreign import IndexOptions, find_tars, index

    options = IndexOptions(suffix, alphabet)
    found = {split: find_tars(given or []) for split, given in (("train", tars), ("valid", valid), ("test", test))}
    size = sum(path.stat().st_size for paths in found.values() for path in paths)
    with _bytes_bar("indexing", size) as advance:
        dataset = index(found, out, options, advance)
    _show_dataset(dataset, as_json)
    if dataset.translate is None and not as_json:
        letters = " ".join(dataset.vocabulary.tokens[: dataset.vocabulary.bases])
        print(f"ids      read as 0, 1, 2, ... = {letters}; give --alphabet if they are others")


@data_app.command("verify")
def data_verify(data: DataFolder) -> None:
    """Compare every file with its digest, and every count; names file, block and byte of each fault."""
    from dnascale.data.shards import load_dataset
    from dnascale.data.verify import verify
    from dnascale.errors import DataError

    dataset = load_dataset(data)
    shards = [shard for split in dataset.splits.values() for shard in split.shards]
    size = sum(shard.bytes for shard in shards)
    with _bytes_bar("verifying", size) as advance:
        faults = verify(dataset, advance)
    for fault in faults:
        print(fault)
    if faults:
        raise DataError(
            f"{dataset.location} is damaged: {len(faults)} fault{'s' * (len(faults) != 1)}. Copy these files again, or prepare the data again."
        )
    print(
        f"{dataset.location}: {len(shards)} shards, {size:,} bytes, all digests, and numbers of tokens and records, right"
    )


@app.command()
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


@app.command("eval")
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

    console = _console(stderr=True)
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
        _show_evaluation(result)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
) -> None:
    """A run's model as a plain Hugging Face folder, loaded by transformers without dnascale."""
    from dnascale.export import export as write
    from dnascale.runs import Run

    opened = Run.open(run)
    write(opened, out)
    print(f"{out}: model, tokenizer and card of step {opened.checkpoint.state.step:,}, read back with equal logits")


@ckpt_app.command("ls")
def ckpt_ls(run: RunFolder, as_json: Json = False) -> None:
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
    table = _table("checkpoint", "step", "tokens", "engine", "world size", "bytes")
    for row in rows:
        if "error" in row:
            table.add_row(row["checkpoint"], row["error"])
        else:
            table.add_row(row["checkpoint"], f"{row['step']:,}", f"{row['tokens']:,}", row["engine"],
                          str(row["world_size"]), f"{row['bytes']:,}")  # fmt: skip
    _console().print(table)


@ckpt_app.command("verify")
def ckpt_verify(run: RunFolder) -> None:
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


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _bytes_bar(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes while the block runs: call what it gives with the bytes done since the last time."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    console = _console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=size)
        yield lambda done: bar.advance(task, done)


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True, overflow="ignore")
    return table


def _show_dataset(dataset: "Dataset", as_json: bool) -> None:
    if as_json:
        print(dataset.to_json(), end="")
        return
    console = _console()
    table = _table("split", "records", "bases", "longest", "shards", "GC", "N", "lower case")
    for name, split in dataset.splits.items():
        of = split.composition.get
        known = sum(of(base, 0) for base in "ACGT")
        table.add_row(
            name, f"{split.records:,}", f"{split.bases:,}", f"{split.longest_record:,}", str(len(split.shards)),
            f"{(of('G', 0) + of('C', 0)) / max(known, 1):.1%}", f"{of('N', 0) / max(split.bases, 1):.2%}",
            f"{split.soft_masked / max(split.bases, 1):.1%}",
        )  # fmt: skip
    console.print(table)
    cleaning = dataset.cleaning
    console.print(f"read     {cleaning['records_in']:,} records, {cleaning['bases_in']:,} bases")
    for reason, lost in cleaning["dropped"].items():
        console.print(f"dropped  {lost['records']:,} records, {lost['bases']:,} bases: {reason}")
    if uracils := sum(split.composition.get("U", 0) for split in dataset.splits.values()):
        console.print(
            f"warning  {uracils:,} bases are U: this is RNA, and U is never predicted. Write T for U to train on all four bases.",
            style="yellow",
        )
    rules = ", ".join(f"{count:,} by {rule}" for rule, count in dataset.groups.items())
    if rules:
        console.print(f"groups   {rules}")
    for source in dataset.sources:
        for warning in source["warnings"]:
            console.print(f"warning  {warning}", style="yellow")
    console.print(f"written  {dataset.location} (fingerprint {dataset.fingerprint[:12]})")


def _show_evaluation(result: "Evaluation") -> None:
    import math

    console = _console()
    model = result.model
    rows = [(f"this model (step {result.step:,})", model.nats_per_base, True)]
    rows += [(b.name, b.nats_per_base, False) for b in result.baselines]
    table = _table("held-out loss", "nats per base", "bits per base", "model is better by")
    for name, nats, own in sorted(rows, key=lambda row: -row[1]):
        style = "bold" if own else None
        gain = "" if own else f"{nats - model.nats_per_base:+.4f}"
        table.add_row(name, f"{nats:.4f}", f"{nats / math.log(2):.4f}", gain, style=style)
    console.print(table)
    by_base = ", ".join(f"{base} {share:.1%}" for base, share in model.accuracy_by_base.items())
    console.print(
        f"accuracy {model.accuracy:.1%} ({by_base}) over {model.bases:,} bases of the {result.split} split",
        soft_wrap=True,
    )
