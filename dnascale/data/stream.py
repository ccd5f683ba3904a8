"""From window addresses to batches: tokens gathered from mapped shards, as they are stored, for one rank of many.

The state of the stream is one integer, the position, the same on every rank. It is not a PyTorch DataLoader and is not
given to `Accelerator.prepare`, which would deal the windows out a second time.

The gather runs in the training process, many windows at a time. A Python thread beside it would wait for the interpreter
lock at every shard; worker processes are an option for disks that are slower than the model.
"""

import atexit
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dnascale.data.ahead import ShardsAhead
from dnascale.data.corpus import open_corpus
from dnascale.data.order import Order, Windows
from dnascale.data.read import WindowReader
from dnascale.data.shorter import ShorterWindows
from dnascale.errors import DataError, DnascaleError
from dnascale.files import json_digest
from dnascale.signals import STOPPING

#: Tokens gathered and windows ordered in one go: so many that the cost of a call of numpy or torch vanishes.
_CHUNK_TOKENS = 16 << 20
_CHUNK_WINDOWS = 1 << 15


class Batch:
    """One micro-batch: `tokens` uint8 [B, S] (of k-mers uint16), in pinned memory where there is a GPU, and the windows they came from."""

    __slots__ = ("_chunk", "_first", "tokens")

    def __init__(self, tokens: torch.Tensor, chunk: Windows, first: int) -> None:
        self.tokens = tokens
        self._chunk = chunk
        self._first = first

    @property
    def windows(self) -> Windows:
        return self._chunk.take(slice(self._first, self._first + len(self.tokens)))

    @property
    def keys(self) -> torch.Tensor:
        """int64 [B]: what the masks are keyed by."""
        keys = torch.from_numpy(self._chunk.key[self._first : self._first + len(self.tokens)])
        return keys.pin_memory() if self.tokens.is_pinned() else keys


@dataclass(frozen=True)
class Dealing:
    """How the windows of a global batch are dealt out: in `accumulation` micro-batches, over `world` ranks in turn.

    Raises ValueError unless they divide equally. With `world` a divisor of the order's lanes, a rank keeps to a part of them.
    """

    global_windows: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.global_windows % (self.accumulation * self.world):
            raise ValueError(f"{self.global_windows} windows do not divide by {self.accumulation} x {self.world}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}")

    @property
    def micro_windows(self) -> int:
        """Windows of one micro-batch of one rank."""
        return self.global_windows // (self.accumulation * self.world)

    def positions(self, position: int, steps: int) -> np.ndarray:
        """Positions of this rank in `steps` global batches from `position` on: int64 [steps * accumulation * micro]."""
        return position + np.arange(self.rank, steps * self.global_windows, self.world)


class TrainStream:
    """The micro-batches of one rank, without end. Global batch t is the same set of windows for every world size.

    Also a PyTorch-shaped iterable: iterating gives the micro-batches of the rest of an epoch, `len` is their number in a
    whole one, `set_epoch`, `state_dict` and `load_state_dict` move the position. A global batch belongs to the epoch that
    it begins in, so no window is left out or repeated, and every rank has as many batches.

    `position` is the whole state: the windows of all ranks before the next step. It may be set to any number.
    `workers` processes gather ahead where reading is slower than training. They do not change what is delivered.
    """

    def __init__(
        self, reader: WindowReader, order: Order | ShorterWindows, dealing: Dealing, position: int = 0, workers: int = 0
    ) -> None:
        self.reader = reader
        self.order = order
        self.dealing = dealing
        self.position = position
        self.workers = workers
        self._steps: Iterator[list[Batch]] = iter(())
        self._steps_at = -1  # position of the next of them
        self._closed_at_exit = False

    def __getstate__(self) -> dict[str, object]:
        """A copy for another process reads for itself."""
        return self.__dict__ | {"_steps": iter(()), "_steps_at": -1, "_closed_at_exit": False}

    @classmethod
    def open(
        cls,
        data: str | Path | Sequence[str | Path],
        context: int,
        global_windows: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        split: str = "train",
        weights: Sequence[float] | None = None,
        lanes: int | None = None,
        lane_windows: int = 16_384,
        workers: int = 0,
    ) -> "TrainStream":
        """The stream of a data set (folder or URL), or of a mixture of several, by default in equal shares."""
        reader, order = open_order(data, context, seed, split, weights, lanes, lane_windows)
        return cls(reader, order, Dealing(global_windows, accumulation, rank, world), workers=workers)

    @property
    def epoch(self) -> int:
        """The epoch that the next step begins in."""
        return self.position // self.order.epoch_windows

    def next_step(self) -> list[Batch]:
        """The micro-batches of this rank for one optimizer step; moves the position on."""
        step = self._read()
        self.position += self.dealing.global_windows
        return step

    def set_epoch(self, epoch: int) -> None:
        """Goes to the first global batch that begins in `epoch`."""
        self.position = self._first_step(epoch) * self.dealing.global_windows

    def __len__(self) -> int:
        """Micro-batches of this rank in the current epoch."""
        return (self._first_step(self.epoch + 1) - self._first_step(self.epoch)) * self.dealing.accumulation

    def __iter__(self) -> Iterator[Batch]:
        """The micro-batches of the rest of the current epoch. The position moves on with the last of each step."""
        end = self._first_step(self.epoch + 1) * self.dealing.global_windows
        while (position := self.position) < end:
            *first, last = self._read()
            yield from first
            if self.position == position:  # nobody has moved it meanwhile
                self.position += self.dealing.global_windows
            yield last

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, the same on every rank: as of the last whole step that was handed out."""
        return {"position": self.position, "order": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the state was taken, with any world size. Raises DataError if the order is another one."""
        if state["order"] != self._identity():
            raise DataError(
                "this state of the data was saved with other data, another context, seed, mixture or number of lanes: "
                "its position has no meaning here."
            )
        self.position = state["position"]

    def _first_step(self, epoch: int) -> int:
        """Raises DataError when some epochs have no step."""
        if self.order.epoch_windows < self.dealing.global_windows:
            raise DataError(
                f"an epoch has {self.order.epoch_windows:,} windows, fewer than a global batch of "
                f"{self.dealing.global_windows:,}: use a smaller batch, or `next_step`, which runs on over epochs."
            )
        return -(-epoch * self.order.epoch_windows // self.dealing.global_windows)

    def _identity(self) -> str:
        order = self.order
        return json_digest(
            {
                "data": [dataset.fingerprint for dataset in self.reader.sources],
                "split": self.reader.split,
                "context": self.reader.context,
                "seed": order.seed,
                "mixture": order.mixture.counts.tolist() if order.mixture else None,
                "lanes": [order.lanes, order.lane_windows] if order.lanes else None,
            }
        )

    def close(self) -> None:
        """Ends the worker processes, which a signal to stop does not."""
        self._steps = iter(())
        self._steps_at = -1

    def _read(self) -> list[Batch]:
        """The step at the position."""
        if self._steps_at != self.position:
            if self.workers and not self._closed_at_exit:
                # Before multiprocessing's own end, which waits for processes that do not heed its signal.
                atexit.register(_close, weakref.ref(self))
                self._closed_at_exit = True
            self._steps = _Chunks(self.reader, self.order, self.dealing).steps(self.position, self.workers)
        self._steps_at = -1  # an error leaves nothing to go on with
        step = next(self._steps)
        self._steps_at = self.position + self.dealing.global_windows
        return step


def open_order(
    data: str | Path | Sequence[str | Path],
    context: int,
    seed: int = 0,
    split: str = "train",
    weights: Sequence[float] | None = None,
    lanes: int | None = None,
    lane_windows: int = 16_384,
) -> tuple[WindowReader, Order]:
    """The windows of a data set (folder or URL) and their order, or those of a mixture, by default in equal shares."""
    places = [data] if isinstance(data, str | Path) else list(data)
    names = [f"{number:06d}" for number in range(len(places))]
    given = [1.0] * len(places) if weights is None else list(weights)
    corpus = open_corpus(dict(zip(names, places, strict=True)), dict(zip(names, given, strict=True)))
    reader = corpus.reader(split, context)
    return reader, corpus.order(reader, seed, lanes, lane_windows)


def _close(stream: "weakref.ref[TrainStream]") -> None:
    if (still := stream()) is not None:
        still.close()


def _leave_signals(_worker: int) -> None:
    """In a worker process: schedulers tell all processes to stop, and the one that trains decides when this one ends."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)  # of the process that trains, which would hear of it twice
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


class _Chunks(TorchDataset[Any]):
    """What one rank reads, many steps at a time."""

    def __init__(self, reader: WindowReader, order: Order | ShorterWindows, dealing: Dealing) -> None:
        self.reader = reader
        self.order = order
        self.dealing = dealing
        self.step_windows = dealing.global_windows // dealing.world
        # Few epochs of very small data, each of which is drawn by itself.
        windows = min(_CHUNK_TOKENS // reader.context, 4 * order.epoch_windows)
        self.most_steps = max(1, windows // self.step_windows)
        self._ordered = 0, 0, Windows.empty(0)  # from which position on, how many steps, and their windows

    def steps(self, position: int, workers: int) -> Iterator[list[Batch]]:
        """The micro-batches of step after step from `position` on, without end."""
        each, accumulation = self.dealing.micro_windows, self.dealing.accumulation
        for tokens, windows in self._gathered(position, workers):
            batches = [Batch(part, windows, number * each) for number, part in enumerate(tokens.split(each))]
            for step in range(0, len(batches), accumulation):
                yield batches[step : step + accumulation]

    def _gathered(self, position: int, workers: int) -> Iterator[tuple[torch.Tensor, Windows]]:
        """Tokens and windows of chunk after chunk."""
        ahead = ShardsAhead(self.reader, self.order, self.dealing.rank, self.dealing.world)
        pin = torch.cuda.is_available()
        if not workers:
            for begin, steps in self._sizes(position):
                ahead.look(begin)
                yield self._read(begin, steps, pin)
        loader: Any = DataLoader(
            self, batch_size=None, sampler=self._sizes(position), num_workers=workers, pin_memory=pin,
            generator=torch.Generator(),  # it would draw from the one of the training
            worker_init_fn=_leave_signals,
        )  # fmt: skip
        for begin, result, columns in loader:
            if isinstance(result, DnascaleError):
                raise result
            ahead.look(begin)
            # A copy: of views into pinned memory PyTorch would not know that a transfer still reads them.
            yield result, Windows(*columns.numpy().copy())

    def __getitem__(self, chunk: tuple[int, int]) -> tuple[int, Any, torch.Tensor | None]:
        """In a worker process: position, tokens, and the columns of the windows as int64 [4, n]; or an error for tokens."""
        try:
            tokens, windows = self._read(*chunk, pin=False)
        except DnascaleError as error:  # raised here, PyTorch would add its own words to it
            return chunk[0], error, None
        self.reader.release()
        columns = np.stack([windows.epoch, windows.shard, windows.start, windows.key])
        return chunk[0], tokens, torch.from_numpy(columns)

    def _sizes(self, position: int) -> Iterator[tuple[int, int]]:
        """(position, steps) of chunk after chunk. The first is one step, to be there soon; each next one is twice as large."""
        steps = 1
        while True:
            yield position, steps
            position += steps * self.dealing.global_windows
            steps = min(2 * steps, self.most_steps)

    def _read(self, position: int, steps: int, pin: bool) -> tuple[torch.Tensor, Windows]:
        """Tokens uint8 or uint16 [n, context] and windows of this rank in `steps` steps from `position` on."""
        windows = self._windows(position, steps)
        return self.reader.read(windows, pin), windows

    def _windows(self, position: int, steps: int) -> Windows:
        begin, known, windows = self._ordered
        skip, off = divmod(position - begin, self.dealing.global_windows)
        if off or skip < 0 or skip + steps > known:
            # Long windows are few in a chunk, and are ordered for several chunks at once.
            ahead = min(_CHUNK_WINDOWS, 4 * self.order.epoch_windows) // self.step_windows
            known = max(steps, ahead) if steps == self.most_steps else steps
            windows = self.order.windows(self.dealing.positions(position, known))
            self._ordered, skip = (position, known, windows), 0
        return windows.take(slice(skip * self.step_windows, (skip + steps) * self.step_windows))
