"""`dnascale launch`: training on what is here. `dnascale doctor`: what that is, and what is wrong with it."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dnascale.cli.arguments import Device
from dnascale.cli.shared import Json, new_console

if TYPE_CHECKING:
    from dnascale.launch.doctor import Finding


def launch(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A preset (nano, mini, book, small, base, large) or a YAML file.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="As for `dnascale train`.")] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", "-n", min=1, help="Processes on each node; by default one a GPU.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="HOST,HOST", help="Nodes of the run, the first one first; give it on each. Slurm has its own."
        ),
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option(metavar="I", min=0, help="Which of --nodes this is, from 0; by default by its name.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on the first of --nodes.")] = 29_500,
    lost_after: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="A node that is silent for so long counts as lost.")
    ] = 60,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Train on this machine, or on all nodes of this Slurm job: looks at what is here, prints the command and why, and runs it.

    The exit code is that of the processes that train.
    """
    from dnascale.config import load_config
    from dnascale.launch.hosts import find_nodes
    from dnascale.launch.machine import look
    from dnascale.launch.plan import plan

    words = [config, *(overrides or [])]
    named, settled = find_nodes(nodes, node_rank, port), load_config(config, overrides or [])
    chosen = plan(look(), settled, words, processes, named, lost_after)
    console = new_console(stderr=True)
    for reason in chosen.reasons:
        console.print(f"- {reason}")
    if chosen.idle:
        console.print("this node has nothing to do")
        return
    console.print(chosen.shown(), style="bold")
    if dry_run:
        return
    from dnascale.launch.start import start

    if code := start(chosen, lost_after):
        raise typer.Exit(code)


def doctor(
    data: Annotated[str | None, typer.Option(help="Data set whose every byte is compared with its digest.")] = None,
    folder: Annotated[
        Path, typer.Option("--dir", file_okay=False, exists=True, help="Where runs will be: this disk is timed.")
    ] = Path(),
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    processes: Annotated[
        int | None, typer.Option("--processes", "-n", min=1, help="Processes that exchange data.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Try what training needs on this machine, and say how to mend what does not work.

    Everything is tried for real, in about half a minute. The exit code is 2 when something is bad, else 0.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from dnascale.launch.doctor import Options, Verdict, checks, run_check

    options = Options(device.value, data, folder, processes)
    findings: list[Finding] = []
    console = new_console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        for check in checks():
            bar.update(task, description=check[0])
            findings += run_check(check, options)
    if as_json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=1))
    else:
        _show(findings)
    if any(finding.verdict is Verdict.bad for finding in findings):
        raise typer.Exit(2)


def _show(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "verdict", "found", "to mend it"):
        table.add_column(column, overflow="fold")
    styles = {"ok": "green", "note": "yellow", "bad": "red"}
    for finding in findings:
        verdict = f"[{styles[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(_plain(finding.what), verdict, _plain(finding.found), _plain(finding.mend))
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160  # a file has no width of its own
    Console(highlight=False, width=wide).print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    from dnascale.errors import printable

    return escape(printable(text))
