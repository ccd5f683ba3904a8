"""Which steps are left out: those whose gradient is not finite, or jumped.

Decided on the device from the norm of the global gradient, which every rank has: all leave out the same steps, and nothing
waits. What was left out is read when a line of metrics is due. The learning rate stays a function of the step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from dnascale.config import GuardConfig
from dnascale.errors import NumericsError
from dnascale.train.state import TrainState

#: Steps over which a norm is compared with those before (OLMo 2 compares over as many: SkipStepOptimizer in OLMo-core).
WINDOW = 128


@dataclass(frozen=True)
class TakenStep:
    """What is known of a step before the device has made it."""

    step: int
    position: int  # of its first window in the order
    windows: int
    parts: int  # of each window, where those of a stage are shorter
    learning_rate: float


class Guard:
    """`judge` on the device, `account` for it on the host."""

    def __init__(self, config: GuardConfig, device: torch.device, state: TrainState) -> None:
        self._config = config
        self._hopeless: NumericsError | None = None
        recent = [math.nan] * (WINDOW - len(state.norms)) + state.norms
        self._recent = torch.tensor(recent, dtype=torch.float32, device=device)

    def forget(self) -> None:
        """Norms of another batch, context or masking rate are nothing to compare with."""
        self._recent = torch.full_like(self._recent, math.nan)

    def judge(self, norm: torch.Tensor) -> torch.Tensor:
        """norm fp32 [] -> bool [], True where the step is to change nothing."""
        out = norm.isfinite().logical_not()
        if self._config.spike is not None:
            # Not a number, and so no limit, until the window is full.
            limit = self._recent.mean() + self._config.spike * self._recent.std()
            out = out | (norm > limit)
            self._recent = torch.where(
                out, self._recent, torch.cat([self._recent.narrow(0, 1, WINDOW - 1), norm.view(1)])
            )
        return out

    def account(
        self, steps: Iterable[TakenStep], norms: list[float], out: list[bool], state: TrainState
    ) -> list[dict[str, Any]]:
        """Counts in `state` what was left out of some steps, and returns a record of each."""
        events = []
        for taken, norm, left_out in zip(steps, norms, out, strict=True):
            state.skipped_in_row = state.skipped_in_row + 1 if left_out else 0
            if not left_out:
                continue
            state.skipped += 1
            finite = math.isfinite(norm)
            events.append(
                {
                    "step": taken.step, "reason": "gradient norm jumped" if finite else "gradient not finite",
                    "gradient_norm": norm if finite else None, "position": taken.position, "windows": taken.windows,
                    "parts": taken.parts,
                }
            )  # fmt: skip
            if state.skipped_in_row >= self._config.patience and self._hopeless is None:
                self._hopeless = NumericsError(
                    f"step {taken.step} (learning rate {taken.learning_rate:.2e}): the gradient norm is {norm}, and {state.skipped_in_row} steps "
                    "in a row were left out for such. The last checkpoint is untouched. A lower optimizer.learning_rate usually helps."
                )
        if self._config.spike is not None:
            state.norms = [norm for norm in self._recent.tolist() if not math.isnan(norm)]
        return events

    def require_patience(self) -> None:
        """Raises NumericsError, on all ranks, when too many steps in a row were left out. Called when these have been recorded."""
        if self._hopeless is not None:
            raise self._hopeless
