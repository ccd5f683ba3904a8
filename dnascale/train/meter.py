"""What a run is measured by, gathered without waiting for the device: it is read when a line of metrics is due."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dnascale.data.order import Windows
from dnascale.model.loss_groups import GROUPS
from dnascale.train.guard import Guard, TakenStep
from dnascale.train.memory import peak_bytes
from dnascale.train.state import TrainState
from dnascale.train.stragglers import ForwardClock, Stragglers

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Sums of a batch: (weighted nats, weight) of all predictions, of those shown as [MASK], and of the bases of these; then the groups.
_SUMS = 6 + 2 * len(GROUPS)


@dataclass(frozen=True)
class Speed:
    """What the devices of a run can do, all together."""

    peak: float | None  # FLOP/s by the maker's sheet, for the run's precision; None where there is none
    matmul: float  # FLOP/s of the devices' own matrix product, measured
    bases_per_token: float  # of the training split


def measure_speed(accelerator: "Accelerator", precision: str, bases_per_token: float) -> Speed:
    """Measures all devices at the same time, as a step uses them. Takes a fraction of a second. Collective."""
    from dnascale.hardware import measured_flops, peak_flops

    device = accelerator.device
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    accelerator.wait_for_everyone()
    own = torch.tensor([measured_flops(device, dtype, 512 if device.type == "cpu" else None)], device=device)
    peak = peak_flops(device) if dtype == torch.bfloat16 else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # the peak is to be that of training
    return Speed(
        None if peak is None else peak * accelerator.num_processes,
        float(accelerator.gather(own).sum()),
        bases_per_token,
    )


class Meter:
    """What has happened since the last line of metrics.jsonl: loss sums on the device, windows, waiting."""

    def __init__(
        self, accelerator: "Accelerator", speed: Speed, guard: Guard, clock: ForwardClock, by_base: bool, repeats: bool
    ) -> None:
        """`by_base`: a token is a base, so each base has a loss. `repeats`: the shards say which bases are soft-masked."""
        self._accelerator = accelerator
        self._speed = speed
        self._guard = guard
        self._clock = clock
        self._stragglers = Stragglers()
        self._shown = {group for group in GROUPS if by_base or len(group) > 1} - (
            set() if repeats else {"repeats", "outside_repeats"}
        )
        # Values from backward are float32; their sums over steps are not, where the device can.
        dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64
        self._sums = torch.zeros(_SUMS, dtype=dtype, device=accelerator.device)
        self._reset()

    def _reset(self) -> None:
        self._sums.zero_()
        self._norms: list[torch.Tensor] = []  # gradient norm of each step, on the device
        self._left_out: list[torch.Tensor] = []  # whether the step was left out, on the device
        self._steps: list[TakenStep] = []
        self._tokens = 0
        self._flops = 0.0
        self.digest = 0
        self._waited = 0.0
        self._started = time.monotonic()

    def add(self, windows: Windows, sums: torch.Tensor) -> None:
        self.digest += windows.digest()
        self._sums += torch.where(sums[0].isfinite(), sums, 0.0)  # of the rest there is a mean

    def stepped(
        self, taken: TakenStep, gradient_norm: torch.Tensor, left_out: torch.Tensor, tokens: int, flops_per_token: float
    ) -> None:
        """An optimizer step over `tokens` was taken; what the device knows of it is read when the line is made."""
        self._steps.append(taken)
        self._norms.append(gradient_norm)
        self._left_out.append(left_out)
        self._tokens += tokens
        self._flops += tokens * flops_per_token

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in the block counts as waiting for data."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in the block (evaluation, checkpoints) is not counted."""
        begin = time.monotonic()
        yield
        self._started += time.monotonic() - begin

    def line(self, state: TrainState, epoch_windows: int) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The line to write, summed over ranks, and what is noteworthy: steps that were left out, ranks that hold up the others; each with
        its `kind`. Begins anew. Collective.

        There is no line when no loss was finite.
        """
        accelerator, device = self._accelerator, self._accelerator.device
        norms, left_out = torch.stack([torch.stack(self._norms), torch.stack(self._left_out).float()]).tolist()
        steps = len(norms)
        skips = self._guard.account(self._steps, norms, [bool(one) for one in left_out], state)
        sums = accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        digest = accelerator.reduce(torch.tensor([self.digest], device=device), reduction="sum")
        elapsed = time.monotonic() - self._started
        own = [elapsed / steps, self._waited / elapsed, peak_bytes(device) / 1e9, self._clock.mean()]
        of_ranks = accelerator.gather(torch.tensor([own], dtype=torch.float32, device=device)).T.tolist()
        state.seconds += elapsed
        loss, masked_loss, nats_per_base = (_mean(sums, first) for first in (0, 2, 4))
        waited = [share * seconds for share, seconds in zip(of_ranks[1], of_ranks[0], strict=True)]
        slow = self._stragglers.look(state.step, of_ranks[3], waited, elapsed / steps)
        events = [{"kind": "skip", **skip} for skip in skips] + [{"kind": "straggler", **vars(one)} for one in slow]
        if loss is None:
            self._reset()
            return None, events
        kept = [norm for norm, out in zip(norms, left_out, strict=True) if not out]
        rate = self._tokens / elapsed
        line = {
            "step": state.step,
            "tokens": state.tokens,
            "epoch": state.position / epoch_windows,
            "position": state.position,
            "loss": loss,
            # Of positions shown as [MASK], where there are any.
            **{
                key: value
                for key, value in (("masked_loss", masked_loss), ("nats_per_base", nats_per_base))
                if value is not None
            },
            **self._losses(sums),
            "learning_rate": self._steps[-1].learning_rate,
            "gradient_norm": kept[-1] if kept else None,
            "skipped": len(skips),
            "windows_digest": int(digest),
            "tokens_per_second": rate,
            "bases_per_second": rate * self._speed.bases_per_token,
            **({} if self._speed.peak is None else {"mfu": self._flops / elapsed / self._speed.peak}),
            "share_of_matmul": self._flops / elapsed / self._speed.matmul,
            "data_wait": self._waited / elapsed,
            "data_wait_max": max(of_ranks[1]),
            "step_seconds_min": min(of_ranks[0]),
            "step_seconds_max": max(of_ranks[0]),
            "forward_seconds_min": min(of_ranks[3]),
            "forward_seconds_max": max(of_ranks[3]),
            "memory_gb": max(of_ranks[2]),
            "seconds": state.seconds,
        }
        self._reset()
        return line, events

    def _losses(self, sums: list[float]) -> dict[str, float]:
        """The loss of each group that has members."""
        losses = {group: _mean(sums, 6 + 2 * n) for n, group in enumerate(GROUPS) if group in self._shown}
        return {f"loss_{group}": loss for group, loss in losses.items() if loss is not None}


def _mean(sums: list[float], first: int) -> float | None:
    """Of (sum, weight) at `first`; None where there is no weight."""
    return sums[first] / sums[first + 1] if sums[first + 1] else None
