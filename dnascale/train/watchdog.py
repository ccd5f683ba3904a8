"""Ends a process that gets no further, and says which rank the others wait for.

A rank that hangs, in a file system or a device, leaves all others in a collective, for as long as that may take. A thread of each
process looks whether training moves, and leaves a sign of life in the run folder for the others: RUN/.beats/rank-00000.json.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from dnascale.errors import PeerError
from dnascale.files import write_whole

#: In the order in which a step goes through them; the first of them is furthest behind.
PHASES = ("data.read", "step.forward", "step.update", "evaluation", "checkpoint")
#: Seconds that a first step, which may compile, evaluations and saves may take at least.
_LONG = 3600.0


@dataclass(frozen=True)
class Beat:
    """A sign of life."""

    rank: int
    pid: int
    host: str
    step: int
    phase: str
    seconds: float  # that it has been there

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, PHASES.index(self.phase)


class Watchdog:
    """A context around the steps: `at` tells where training is, and costs an assignment."""

    def __init__(self, run: Path, rank: int, world: int, stall: float | None) -> None:
        """`stall`: seconds without getting further after which the process is ended, with exit code 7; None: never."""
        self._folder, self._rank, self._world, self._stall = run / ".beats", rank, world, stall
        self._now = (0, PHASES[0])
        self._first = True
        self._ended = threading.Event()

    def at(self, phase: str, step: int) -> None:
        self._now = (step, phase)

    def compiles(self) -> None:
        """The next step is the first of its kind, and may compile."""
        self._first = True

    def begun(self) -> None:
        """A step is done: the next is as long as any other."""
        self._first = False

    def __enter__(self) -> "Watchdog":
        if self._stall is not None:
            with contextlib.suppress(OSError):
                self._file(self._rank).unlink()  # of an earlier start
            self._thread = threading.Thread(target=self._watch, args=(self._stall,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._stall is not None:
            self._thread.join()

    def _watch(self, stall: float) -> None:
        tick = min(5.0, stall / 10)
        seen, waited = self._now, 0.0
        # Ticks are counted and not the clock looked at: a job that was suspended, and goes on, has not hung.
        while not self._ended.wait(tick):
            now = self._now
            waited = 0.0 if now != seen else waited + tick
            seen = now
            limit = max(stall, _LONG) if self._first or now[1] in ("evaluation", "checkpoint") else stall
            with contextlib.suppress(OSError):
                self._leave(Beat(self._rank, os.getpid(), socket.gethostname(), *now, waited))
            if waited >= limit:
                self._end(waited, stall)

    def _leave(self, beat: Beat) -> None:
        self._folder.mkdir(exist_ok=True)
        write_whole(self._file(self._rank), json.dumps(asdict(beat)).encode(), durable=False)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.json"

    def _end(self, waited: float, stall: float) -> None:
        step, phase = self._now
        print(
            f"dnascale: error: rank {self._rank}: no progress for {waited:,.0f} s at step {step:,} ({phase}). {self._who_is_behind()} "
            "The stacks of this process follow. Started again, the run goes on from its newest checkpoint.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(all_threads=True)
        # Those that wait for this one began to wait a little later: they too name it, before they lose it.
        time.sleep(min(10.0, stall / 2))
        os._exit(PeerError.exit_code)

    def _who_is_behind(self) -> str:
        beats = []
        for rank in range(self._world):
            with contextlib.suppress(OSError, ValueError, TypeError):
                beats.append(Beat(**json.loads(self._file(rank).read_text())))
        if self._world == 1 or not beats:
            return "It hangs by itself."
        if len(beats) < self._world:
            missing = sorted(set(range(self._world)) - {beat.rank for beat in beats})
            return f"No sign of life of rank {', '.join(map(str, missing))}."
        least = min(beat.progress for beat in beats)
        behind = [beat for beat in beats if beat.progress == least]
        # A process that is stopped leaves no more signs: those that wait for it are at the same place, and have been for longer.
        longest = max(beat.seconds for beat in behind)
        behind = [beat for beat in behind if beat.seconds < longest / 2] or behind
        listed = ", ".join(
            f"rank {one.rank} (process {one.pid} on {one.host}, step {one.step:,}, {one.phase})" for one in behind
        )
        return f"Furthest behind: {listed}."
