"""Ranks that hold up the others: whose forward pass, or whose data, take longer, line of metrics after line.

In a step of several ranks all are as slow as the slowest, and each looks slow: reductions wait. The forward pass waits for nobody (but under
ZeRO-3, which gathers weights in it), and neither does reading; so these two are timed on each rank.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: A rank is slow that takes so many times the (lower) median of the ranks,
_TIMES = 1.3
_MOST_TIMES = 1000.0  # that are said
#: in so many lines of metrics one after the other;
_LINES = 3
#: and waits for data that make up more of a step than this.
_LEAST_WAIT = 0.05


class ForwardClock:
    """Times forward passes where they are computed, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._count = 0

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        self._count += 1
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
            return
        started = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - started

    def mean(self) -> float:
        """Seconds of one forward pass since the last call; 0 without any. On CUDA the device must have done them."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1e3
        count = self._count
        self._seconds, self._events, self._count = 0.0, [], 0
        return seconds / count if count else 0.0


@dataclass(frozen=True)
class Straggler:
    """`times`: how many times the median of the ranks it takes."""

    step: int
    rank: int
    section: str  # forward or data
    seconds: float  # of a forward pass, or waited for data in a step
    times: float


class Stragglers:
    """Tells of a rank once, and again when it has been as fast as the others in between."""

    def __init__(self) -> None:
        self._slow: dict[str, tuple[int, int]] = {}  # of each section the slow rank, and in how many lines

    def look(
        self, step: int, forward: Sequence[float], waited: Sequence[float], step_seconds: float
    ) -> list[Straggler]:
        """What a line of metrics shows: seconds of a forward pass, and waited for data in a step, of each rank."""
        found = []
        for section, seconds in (("forward", forward), ("data", waited)):
            slowest = max(range(len(seconds)), key=lambda rank: seconds[rank])
            usual = sorted(seconds)[(len(seconds) - 1) // 2]
            slow = len(seconds) > 1 and seconds[slowest] > _TIMES * usual
            if section == "data":
                slow = slow and seconds[slowest] > _LEAST_WAIT * step_seconds
            rank, lines = self._slow.get(section, (-1, 0))
            self._slow[section] = (slowest, lines + 1 if rank == slowest else 1) if slow else (-1, 0)
            if self._slow[section][1] == _LINES:
                times = min(seconds[slowest] / max(usual, 1e-9), _MOST_TIMES)
                found.append(Straggler(step, slowest, section, seconds[slowest], times))
        return found
