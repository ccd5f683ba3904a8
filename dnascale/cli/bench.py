"""`dnascale bench`: how fast this hardware trains, as rows that can be compared."""

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dnascale.cli.arguments import written_here
from dnascale.cli.shared import Json, new_console, new_table

app = typer.Typer(help="Measure the training step on this hardware; compare rows of others.", no_args_is_help=True)

Data = Annotated[
    str, typer.Option(help="Data set folder; default: the built-in human coding sequences, prepared for it.")
]
Rows = Annotated[Path, typer.Argument(metavar="ROWS", help="A bench.jsonl.")]


@app.command("run")
def run(
    presets: Annotated[list[str], typer.Argument(metavar="PRESET...", help="Presets or YAML files.")],
    data: Data = "builtin:human-cds",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Values of a key to try; several are multiplied, e.g. --grid train.engine=plain,zero2.",
        ),
    ] = None,
    override: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="For all rows.")] = None,
    processes: Annotated[
        list[int] | None, typer.Option("--processes", "-n", min=1, help="Processes, e.g. -n 1 -n 2.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of each row; the rate is their median.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of a round, about.")] = 3.0,
    warm_up: Annotated[int, typer.Option(min=1, help="Steps before the first round.")] = 5,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Read the first batch alone, and train on it again and again.")
    ] = False,
    out: Annotated[Path, typer.Option(callback=written_here, help="JSON lines to append to.")] = Path("bench.jsonl"),
) -> None:
    """The real training step, data included, for every point of a grid. A row that runs out of memory says so.

    The global batch is the micro-batch, so that the rate is that of the device; say train.global_batch_tokens to have the preset's.

    e.g. dnascale bench run book small --grid train.micro_batch_tokens=16384,65536
    """
    import tempfile

    from dnascale.bench.throughput import in_process_of_its_own
    from dnascale.config import load_config
    from dnascale.files import explained

    points = _points(presets, grid or [], processes or [1])
    with tempfile.TemporaryDirectory() as folder:
        location = _located(data, Path(folder))
        tasks = []
        for preset, chosen, count in points:
            words = [
                f"data.path={location}",
                "train.steps=1000000000",
                "data.verify=size",
                "schedule.shape=constant",
                "checkpoint.mirror=null",
                *(override or []),
                *chosen,
            ]
            settled = load_config(preset, words)  # what cannot be is said before anything is measured
            if (
                not any(word.startswith("train.global_batch_tokens=") for word in words)
                and settled.train.micro_batch_tokens != "auto"
            ):
                words.append(f"train.global_batch_tokens={settled.train.micro_batch_tokens * count}")
            more = [f"-n {count}"] * (count > 1) + ["--synthetic"] * synthetic
            tasks.append((preset, words, " ".join([preset, *chosen, *more]), count))
        try:
            out.open("a").close()
        except OSError as error:
            raise explained(error, out) from error
        console = new_console(stderr=True)
        options = {"seconds": seconds, "rounds": rounds, "warm_up": warm_up, "synthetic": synthetic}
        rows = []
        for number, (preset, words, name, count) in enumerate(tasks, start=1):
            with console.status(f"{number} of {len(tasks)}: {name}"):
                row = in_process_of_its_own(preset, words, name, count, options)
            rows.append(row)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    show(rows)


@app.command("table")
def table(
    rows: Rows, markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False
) -> None:
    """The rows of a file, side by side."""
    from dnascale.bench.throughput import read_rows

    show(read_rows(rows), markdown)


@app.command("compare")
def compare(before: Rows, after: Rows) -> None:
    """The same rows of two files: how much faster the second is, and whether that is more than their spread."""
    from dnascale.bench.throughput import read_rows

    one, other = ({row["name"]: row for row in read_rows(path) if "error" not in row} for path in (before, after))
    both = [name for name in one if name in other]
    shown = new_table("row", "tokens/s before", "after", "times", "beyond the spread", "GB before", "after")
    for name in both:
        a, b = one[name], other[name]
        apart = a["lowest"] > b["highest"] or b["lowest"] > a["highest"]
        shown.add_row(
            name, f"{a['tokens_per_second']:,.0f}", f"{b['tokens_per_second']:,.0f}", f"{b['tokens_per_second'] / a['tokens_per_second']:.3f}",
            "yes" if apart else "no", f"{a['memory_gb']:.1f}", f"{b['memory_gb']:.1f}",
        )  # fmt: skip
    _print(shown)
    for path, rows, others in ((before, one, other), (after, other, one)):
        if alone := [name for name in rows if name not in others]:
            print(f"only in {path}: {', '.join(alone)}")


@app.command("validate")
def validate(rows: Rows) -> None:
    """Whether a file's rows can stand in a table with others: what a contribution of measurements must pass."""
    from dnascale.bench.throughput import read_rows

    read_rows(rows)
    print(f"{rows}: every row is complete")


@app.command("plot")
def plot(
    rows: Rows,
    out: Annotated[
        Path, typer.Option(callback=written_here, help="File to write: .png, .svg, or .html with the table below.")
    ] = Path("bench.png"),
) -> None:
    """The rows of a file as a picture."""
    from dnascale.bench.plot import plot as draw
    from dnascale.bench.throughput import read_rows

    found = read_rows(rows)
    draw(found, out, [HEADS, *cells(found)])
    print(out)


@app.command("probe")
def probe(
    preset: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset or a YAML file.")] = "book",
    override: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="As for `dnascale train`.")] = None,
    data: Data = "builtin:human-cds",
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="Also sum over so many processes.")] = 1,
    as_json: Json = False,
) -> None:
    """What a step is made of, each alone: matrix products, copies, reading windows, saving, sums over processes."""
    import tempfile
    from dataclasses import asdict

    from dnascale.bench.probes import probes
    from dnascale.config import load_config

    console = new_console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            f"data.path={_located(data, Path(folder))}",
            "train.steps=1",
            "data.verify=size",
            *(override or []),
            "checkpoint.mirror=null",
        ]
        if not any(word.startswith("run.dir=") for word in words):
            words.append(f"run.dir={folder}/run")
        with console.status("probing") as status:
            found = list(probes(load_config(preset, words), processes, lambda what: status.update(what)))
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    shown = new_table("probe", "median", "slowest", "fastest", "unit")
    for one in found:
        shown.add_row(one.what, *(f"{value:,.4g}" for value in (one.value, one.lowest, one.highest)), one.unit)
    new_console().print(shown)


HEADS = ["row", "device", "engine", "precision", "tokens/s", "spread", "TFLOP/s", "MFU", "of matmul", "GB", "data wait"]


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """What is shown of each row, under HEADS; of one without a rate, its name and why."""
    from dnascale.bench.throughput import devices_of

    lines = []
    for row in rows:
        if "error" in row:
            lines.append([row["name"], row["error"]])
            continue
        spread = (row["highest"] - row["lowest"]) / 2 / row["tokens_per_second"]
        lines.append([
            row["name"], devices_of(row), row["engine"], row["precision"], f"{row['tokens_per_second']:,.0f}", f"±{spread:.1%}", f"{row['tflops']:,.3g}",
            "" if row["mfu"] is None else f"{row['mfu']:.1%}", f"{row['share_of_matmul']:.0%}", f"{row['memory_gb']:.1f}", f"{row['data_wait']:.1%}",
        ])  # fmt: skip
    return lines


def show(rows: list[dict[str, Any]], markdown: bool = False) -> None:
    lines = cells(rows)
    if markdown:
        print("| " + " | ".join(HEADS) + " |\n|" + "---|" * len(HEADS))
        for line in lines:
            print("| " + " | ".join([*line, *[""] * (len(HEADS) - len(line))]) + " |")
        return
    shown = new_table(*HEADS)
    for line in lines:
        shown.add_row(*line)
    _print(shown)


def _print(shown: Any) -> None:
    console = new_console()
    console.width = max(console.width, 160)
    console.print(shown)


def _points(presets: list[str], grid: list[str], processes: list[int]) -> list[tuple[str, list[str], int]]:
    axes = [
        [f"{key}={value}" for value in values.split(",")] for key, _, values in (one.partition("=") for one in grid)
    ]
    return [
        (preset, list(chosen), count)
        for preset in presets
        for count in processes
        for chosen in itertools.product(*axes)
    ]


def _located(data: str, folder: Path) -> str:
    """The data set's place; of built-in sequences a set that is prepared for it in `folder`."""
    if not data.startswith("builtin:"):
        return str(Path(data).resolve())
    from dnascale.data.prepare import PrepareOptions, prepare

    prepare([data], folder / "data", PrepareOptions(valid=0.1))
    return str(folder / "data")
