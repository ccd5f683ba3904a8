"""What the commands have in common: arguments, tables, progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataFolder = Annotated[str, typer.Argument(metavar="DATA", help="Data set folder or URL.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


def new_console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bytes_bar(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes while the block runs: call what it gives with the bytes done since the last time."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    console = new_console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=size)
        yield lambda done: bar.advance(task, done)


def new_table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True, overflow="ignore")
    return table
