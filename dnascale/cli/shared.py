"""What the commands have in common: arguments, tables, progress bars."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_LINE_EVERY = 30  # seconds, of progress in a log

DataFolder = Annotated[str, typer.Argument(metavar="DATA", help="Data set folder or URL.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


class ReaderGone(Exception):
    """Whoever read what is printed has gone."""


def new_console(stderr: bool = False) -> Any:
    from rich.console import Console

    class Viewed(Console):
        def on_broken_pipe(self) -> None:
            raise ReaderGone

    return Viewed(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bytes_bar(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes while the block runs: call what it gives with the bytes done since the last time."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    console = new_console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=size)
        yield lambda done: bar.advance(task, done)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """How far a long piece of work is while the block runs: call what it gives with (what is done, how many, of how many).

    A bar on a terminal; in a log, where work takes long, a line every half minute.
    """
    from rich.progress import MofNCompleteColumn, Progress

    console = new_console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    logged = not console.is_terminal and os.environ.get("RANK", "0") == "0"
    due = time.monotonic() + _LINE_EVERY

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal due
            bar.update(task, description=what, completed=done, total=total)
            if logged and time.monotonic() >= due:
                due = time.monotonic() + _LINE_EVERY
                console.print(f"{what}: {done:,}{'' if total is None else f' of {total:,}'}")

        yield show


def new_table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True, overflow="ignore")
    return table
