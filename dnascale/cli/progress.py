"""How far `dnascale prepare` is: stage, tasks, bases a second, time left and memory, on a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dnascale.cli.shared import new_console
from dnascale.data.prepare.tasks import Progress, Stage, Task

_UNITS = {"reading": "inputs", "writing": "shards", "comparing": "sources"}


class ShownProgress(Progress):
    """Fills in a bar of rich, and remembers what to say at the end."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._row: Any = None
        self._stage: Stage = "reading"
        self._tasks = self._tasks_done = 0
        self._size = self._size_done = 0
        self._began, self._bases = time.monotonic(), 0
        self._peak, self._said = 0, ""
        self._done: dict[Stage, tuple[int, float]] = {}  # bases and seconds, over the sources of a recipe

    def begin(self, stage: Stage, tasks: int, size: int) -> None:
        self._close_stage()
        self._stage, self._tasks, self._tasks_done = stage, tasks, 0
        self._size, self._size_done = size, 0
        self._began, self._bases = time.monotonic(), 0
        self._row = self._bar.add_task(stage, total=size if stage != "reading" else None, said="")
        self._show()

    def advance(self, bases: int) -> None:
        self._bases += bases
        self._show()

    def finish(self, task: Task, size: int, peak_bytes: int) -> None:
        self._tasks_done += 1
        self._size_done += size
        self._peak = max(self._peak, peak_bytes)
        self._show()

    def note(self, sentence: str) -> None:
        self._bar.console.print(f"note     {sentence}", style="yellow")

    @property
    def summary(self) -> str:
        """What was done here, how long it took and in how much memory; empty when there was nothing to do."""
        self._close_stage()
        parts = [
            f"{stage} {seconds:,.1f} s ({bases / seconds / 1e6:,.1f} million bases/s kept)"
            for stage, (bases, seconds) in self._done.items()
        ]
        return f"speed    {', '.join(parts)}; at most {self._peak / 1e6:,.0f} MB a process" if parts else ""

    def _show(self) -> None:
        if self._stage != "reading":
            done: float = self._bases
        elif self._size_done:  # an input is as many bytes, of which one stands for so many bases
            self._bar.update(self._row, total=self._size)
            done = max(
                self._size_done, min(self._size, self._bases * self._size_done / max(self._size_done, self._bases))
            )
        else:
            done = 0
        seconds = max(time.monotonic() - self._began, 1e-3)
        said = (
            f"{_UNITS[self._stage]} {self._tasks_done}/{self._tasks}, {self._bases:,} bases, "
            f"{self._bases / seconds / 1e6:,.0f} Mb/s, {self._peak / 1e6:,.0f} MB"
        )
        self._bar.update(self._row, completed=done, said=said)

    def _close_stage(self) -> None:
        if self._row is not None and self._bases:
            seconds = max(time.monotonic() - self._began, 1e-3)
            bases, before = self._done.get(self._stage, (0, 0.0))
            self._done[self._stage] = (bases + self._bases, before + seconds)
        if self._row is not None:
            self._bar.update(self._row, visible=False)
        self._row = None


@contextmanager
def shown_progress() -> Iterator[ShownProgress]:
    """A bar while the block runs, where standard error is a terminal."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = new_console(stderr=True)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield ShownProgress(bar)
