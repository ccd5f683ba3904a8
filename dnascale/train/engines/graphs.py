"""A micro-batch as one CUDA graph: the device repeats recorded launches, which the host would otherwise make one by one.

It pays where a step's kernels are shorter than their launches: small models, small micro-batches. What is recorded reads its inputs from, and
leaves its results at, the same addresses each time, and keeps the memory in between.
"""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.errors import UsageError, first_line
from dnascale.train.memory import is_out_of_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Tokens [B, S], keys [B], room -> loss sums; adds to the gradients of the parameters.
MicroBatch = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
#: Runs before one is recorded: kernels are compiled and chosen in the first (PyTorch's notes on CUDA graphs ask for three).
_WARM_UP = 3
#: Largest relative difference of loss sums, and of the gradient as a whole, between a recorded micro-batch and one that is not: kernels of the
#: backward pass may add in any order.
_SUMS, _GRADIENT = 1e-3, 1e-2


def require_graphs(config: Config, accelerator: "Accelerator") -> None:
    """Raises UsageError where train.cuda_graphs is asked for and cannot be."""
    if not config.train.cuda_graphs:
        return
    if (device := accelerator.device.type) != "cuda":
        raise UsageError(f"train.cuda_graphs=true is for CUDA, and this run is on {device}: leave it out.")
    if accelerator.num_processes > 1 or accelerator.deepspeed_plugin is not None:
        raise UsageError(
            "train.cuda_graphs=true is for one process with train.engine=plain: what processes send each other is not recorded. Leave it out."
        )


@dataclass
class _Recorded:
    tokens: torch.Tensor
    keys: torch.Tensor
    room: int
    replay: Callable[[], None]
    sums: torch.Tensor

    def read(self, tokens: torch.Tensor, keys: torch.Tensor) -> None:
        self.tokens.copy_(tokens)
        self.keys.copy_(keys)


class Graphs:
    """Calls of a micro-batch, which is recorded at the first one, and again for windows with more records than it has room for.

    There is one recording at a time, because each keeps the memory of a step.
    """

    def __init__(self, micro_batch: MicroBatch, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._micro_batch = micro_batch
        self._parameters = list(parameters)
        self._recorder = Recorder()
        self._recorded: _Recorded | None = None

    def forget(self) -> None:
        """What was recorded, because the micro-batch computes something else from now on."""
        if self._recorded is not None:
            self._recorder.wait()
            self._recorded = None

    def __call__(self, tokens: torch.Tensor, keys: torch.Tensor, room: int) -> torch.Tensor:
        """What the micro-batch returns. Adds to the gradients, which must stay where they are.

        Raises UsageError when it cannot be recorded, or computes something else then.
        """
        if self._recorded is None or room > self._recorded.room:
            self.forget()
            with self._recorder.aside():
                self._recorded = self._record(tokens, keys, room)
        recorded = self._recorded
        recorded.read(tokens, keys)
        recorded.replay()
        return recorded.sums.clone()

    def zero_gradients(self) -> None:
        torch._foreach_zero_(self._gradients())

    def _gradients(self) -> list[torch.Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _record(self, tokens: torch.Tensor, keys: torch.Tensor, room: int) -> _Recorded:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        before = [gradient.clone() for gradient in self._gradients()]
        # Others than it is recorded with: what it has kept of those would not be seen.
        others = tokens.view(torch.uint8).flip(0).view(tokens.dtype), keys + 1
        self.zero_gradients()
        expected = self._micro_batch(*others, room), [gradient.clone() for gradient in self._gradients()]
        inputs = tokens.clone(), keys.clone()
        try:
            recorded = _Recorded(*inputs, room, *self._recorder.record(lambda: self._micro_batch(*inputs, room)))
            recorded.read(*others)
            self.zero_gradients()
            recorded.replay()
            agrees = _agree((recorded.sums, self._gradients()), expected)
        except Exception as error:
            raise _explained(error) from error
        if not agrees:
            raise UsageError(
                "train.cuda_graphs=true computes something else on this device than the same micro-batch without: leave it out."
            )
        torch._foreach_copy_(self._gradients(), before)
        return recorded


class Recorder:
    """Records what runs on the device as CUDA graphs; all on one stream, on which it also runs before."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What runs within runs on the stream of the graphs."""
        gc.collect()  # which does not happen while training, and what is left of a backward pass belongs to another stream
        torch.cuda.empty_cache()
        self._stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """What repeats a run, and where its result is afterwards."""
        for _ in range(_WARM_UP):
            run()
        graph = torch.cuda.CUDAGraph()
        cause: Exception | None = None
        try:
            # Of this thread alone: another one may be pinning the memory of what comes next.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    sums = run()
                except Exception as error:
                    cause = error
                    raise
        except Exception as error:  # the end of a recording that has failed raises an error of its own
            raise cause or error from None
        return graph.replay, sums

    def wait(self) -> None:
        """Until what was begun is done."""
        torch.cuda.synchronize()


def _agree(found: tuple[torch.Tensor, list[torch.Tensor]], expected: tuple[torch.Tensor, list[torch.Tensor]]) -> bool:
    """Whether loss sums and gradients are those expected, which need not be finite. Waits for the device."""
    norm = torch.nn.utils.get_total_norm(expected[1])
    off = torch.nn.utils.get_total_norm(torch._foreach_sub(found[1], expected[1]))
    sums = torch.allclose(found[0], expected[0], rtol=_SUMS, atol=1e-6, equal_nan=True)
    return sums and bool(off <= _GRADIENT * norm if norm.isfinite() else ~off.isfinite())


def _explained(error: Exception) -> Exception:
    """What is to be raised in place of an error while recording."""
    if is_out_of_memory(error):
        return torch.OutOfMemoryError(first_line(error))
    return UsageError(
        f"train.cuda_graphs=true does not run here ({type(error).__name__}: {first_line(error)}): leave it out."
    )
