"""`dnascale plan`: memory, hours and cost of a run before anything runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dnascale.cli.shared import Json, new_console, new_table

if TYPE_CHECKING:
    from dnascale.bench.forecast import Forecast
    from dnascale.config import Config
    from dnascale.hardware import Card


#: In which the tokens of a budget settle.
_ROUNDS = 20


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A preset or a YAML file.")] = "base",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for `dnascale train`.")] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option(
            "--hardware",
            "-w",
            metavar="NAME",
            help="e.g. H100, 'RTX 4090', or `here`, measured; may be repeated. Default: all.",
        ),
    ] = None,
    devices: Annotated[int, typer.Option("--devices", "-n", min=1, help="How many of them.")] = 1,
    tokens: Annotated[
        float | None,
        typer.Option(min=1, help="Tokens to train on. Default: train.steps, or train.epochs of data.path."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="HOURS",
            min=0.01,
            help="Say how many tokens can be trained in so many hours instead. Default where no length is known: train.minutes, or 24.",
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(metavar="MONEY", min=0, help="Of one device for an hour.")] = None,
    rows: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Rows of `dnascale bench run`: rates of the same model on the same hardware are taken from them.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Memory, hours, energy and cost of a run on hardware that need not be here: estimates, from the makers' sheets.

    e.g. dnascale plan base --tokens 10e9 --hardware H100 --devices 8 --price 2.5

    e.g. dnascale plan small --hardware 'RTX 4090' --budget 24
    """
    from dnascale.bench.forecast import forecast, with_measured
    from dnascale.bench.throughput import read_rows
    from dnascale.errors import UsageError
    from dnascale.vocab import CHARACTER

    settled, known = _settled(config, overrides or [], tokens)
    if hardware and "here" in hardware:
        settled = _for_here(settled)
    measured = [row for path in rows or () for row in read_rows(path)]
    if budget is None and known is None:
        budget = (settled.train.minutes or 24 * 60) / 60
    found, refused = [], []
    for card in _cards(hardware, settled, devices):
        try:
            one = forecast(settled, card, devices, known or 1, len(CHARACTER))
            for _ in range(_ROUNDS if budget and settled.schedule.stages else 0):  # each stage has a rate of its own
                of_budget = max(1, int(one.tokens_per_second * (budget or 0) * 3600))
                one = forecast(settled, card, devices, of_budget, len(CHARACTER))
            found.append(with_measured(one, settled, measured))
        except UsageError as error:
            refused.append(str(error))
    if not found:
        raise UsageError(refused[0])
    if as_json:
        print(json.dumps([_json(row, budget, price) for row in found], indent=1))
        return
    _show(settled, found, refused, budget, price)


def _settled(config: str, overrides: list[str], tokens: float | None) -> "tuple[Config, int | None]":
    """The configuration, whether or not it says what to train on and for how long, and the tokens of the run, if they are known."""
    from dnascale.config import load_config
    from dnascale.errors import UsageError
    from dnascale.runs import open_data
    from dnascale.train.schedules import stages, tokens_of

    # What a preset or file leaves open is filled in, and nothing else.
    for more in ([], ["train.steps=1"], ["data.path=unknown"], ["data.path=unknown", "train.steps=1"]):
        try:
            settled = load_config(config, [*overrides, *more])
            break
        except UsageError as error:
            wrong = error
    else:
        raise wrong
    train = settled.train
    if tokens is not None:
        return settled, int(tokens)
    if train.steps is not None and "train.steps=1" not in more:
        return settled, tokens_of(stages(settled), train.steps)
    if train.minutes is None and settled.data.path is not None and Path(settled.data.path).is_dir():
        corpus = open_data(settled.data)
        length = sum(corpus.reader("train", settled.model.context).shard_tokens.tolist())
        return settled, int((train.epochs or 1.0) * length)
    return settled, None


def _for_here(config: "Config") -> "Config":
    """`config` with the precision that a run on this machine takes."""
    from dnascale.device import choose_device, settle_precision

    return settle_precision(config, choose_device(config.train.device))


def _here(config: "Config", devices: int) -> "Card":
    import torch

    from dnascale.device import choose_device
    from dnascale.errors import UsageError
    from dnascale.hardware import card_here

    device = torch.device(choose_device(config.train.device))
    if devices > 1 and device.type != "cuda":
        raise UsageError(
            f"--devices {devices}: of --hardware here there is one, whose cores several processes would share."
        )
    return card_here(device, torch.float32 if config.train.precision == "fp32" else torch.bfloat16)


def _cards(names: list[str] | None, config: "Config", devices: int) -> "list[Card]":
    from dnascale.errors import UsageError
    from dnascale.hardware import CARDS, card_of

    if not names:
        return list(CARDS)
    found = []
    for name in names:
        if name == "here":
            found.append(_here(config, devices))
            continue
        if (card := card_of(name)) is None:
            listed = ", ".join(sorted(card.name for card in CARDS))
            raise UsageError(f"--hardware {name} is not in the table: {listed}. What is here is --hardware here.")
        found.append(card)
    return found


def _json(row: "Forecast", budget: float | None, price: float | None) -> dict[str, object]:
    values = asdict(row) | {
        "checkpoint_bytes": row.checkpoint_bytes,
        "from": row.measured or "maker's sheet, scaled by measured rows",
    }
    if budget is not None:
        values["tokens"] = int(row.tokens_per_second * budget * 3600)
        values["hours"] = budget
        return values | ({} if price is None else {"cost": price * row.devices * budget})
    values |= {"hours": row.hours, "kilowatt_hours": row.kilowatt_hours}
    return values | ({} if price is None else {"cost": price * row.devices * row.hours})


def _by_part(config: "Config", row: "Forecast") -> Any:
    """What a device holds, by engine, with the micro-batch of a row."""
    from dnascale.model.memory import state_parts

    program = row.state_bytes - sum(state_parts(config.model, row.engine, row.devices).values())
    heads = ("weights", "gradients", "optimizer", "activations", *(["program"] if row.card.cpu else []), "together")
    unit, size = ("MB", 1e6) if row.state_bytes + row.activation_bytes < 1e9 else ("GB", 1e9)
    table = new_table(f"{unit} on each of {row.devices} {row.card.name} (estimated)", *heads)
    for engine in ("plain", "zero1", "zero2", "zero3", "zero3_offload"):
        parts = [*state_parts(config.model, engine, row.devices).values(), row.activation_bytes]
        parts += [program] if row.card.cpu else []
        marked = f"{engine} (this run)" if engine == row.engine else engine
        table.add_row(marked, *(f"{part / size:.{1 if unit == 'MB' else 2}f}" for part in (*parts, sum(parts))))
    return table


def _show(
    config: "Config", rows: "list[Forecast]", refused: list[str], budget: float | None, price: float | None
) -> None:
    console = new_console()
    first = rows[0]
    console.print(
        f"model     {first.parameters / 1e6:,.1f} M parameters, context {config.model.context:,}: {first.flops_per_token / 1e6:,.0f} MFLOP a token\n"
        f"run       {'' if budget else f'{first.tokens:,} tokens, '}{config.train.global_batch_tokens:,} a step, on {first.devices} "
        f"device{'s' if first.devices > 1 else ''}, train.engine={first.engine}\n"
        f"storage   {first.checkpoint_bytes / 1e9:,.2f} GB a checkpoint, one byte a base of data"
    )
    columns = [
        "hardware",
        "needs GB",
        "of GB",
        "micro-batch",
        "tokens/s",
        "MFU",
        "exchange",
        f"tokens in {budget:g} h" if budget else "hours",
    ]
    table = new_table(*columns, *([] if budget else ["kWh"]), *(["cost"] if price is not None else []))
    for row in sorted(rows, key=lambda one: -one.tokens_per_second):
        hours = budget or row.hours
        cells = [
            row.card.name, f"{(row.state_bytes + row.activation_bytes) / 1e9:.1f}", f"{row.card.memory:.3g}",
            f"{row.micro_batch_tokens:,} x {row.accumulation}", f"{row.tokens_per_second:,.0f}{'*' if row.measured else ''}", f"{row.mfu:.0%}",
            f"{row.communication_seconds / row.step_seconds:.0%}",
            f"{row.tokens_per_second * budget * 3600 / 1e9:,.2f} G" if budget else f"{hours:,.2f}",
        ]  # fmt: skip
        cells += [] if budget else ["" if row.kilowatt_hours is None else f"{row.kilowatt_hours:,.2f}"]
        cells += [] if price is None else [f"{price * row.devices * hours:,.2f}"]
        table.add_row(*cells)
    console.width = max(console.width, 120)
    console.print(table)
    console.print()
    console.print(_by_part(config, first))
    for row in rows:
        if row.measured:
            console.print(f"* {row.card.name}: measured ({row.measured})")
    for sentence in refused:
        console.print(f"not: {sentence}")
    console.print(
        "Estimates: the makers' sheets, scaled by three measured rows (docs/explanation/forecast.md). Exchange is counted as hidden by nothing.",
        style="dim",
    )
