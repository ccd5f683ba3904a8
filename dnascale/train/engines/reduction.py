"""A proof, taken once, that gradients are averaged over the ranks."""

import torch

from dnascale.errors import NumericsError
from dnascale.train.engines.engine import Engine


class GradientReductionCheck:
    """Proves once, in the first step whose gradient is finite, that gradients are averaged over the ranks.

    A hook keeps this rank's own gradient of one small parameter; its mean over the ranks must be what the engine is
    about to step with. A launcher or wrapper that does not reduce passes every other test of a running job.
    """

    PARAMETER = "model.final_norm.weight"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.own: torch.Tensor | None = None
        self.proven = False
        self._hook = engine.parameters[self.PARAMETER].register_hook(self._add)

    def _add(self, gradient: torch.Tensor) -> None:
        own = gradient.detach().float().clone()
        self.own = own if self.own is None else self.own + own

    def finish(self) -> None:
        """Between the last backward and the step. Raises NumericsError on every rank if the check fails."""
        assert self.own is not None
        mean = self.engine.accelerator.reduce(self.own, reduction="mean")
        self.own = None
        if not bool(mean.isfinite().all()):  # the step is left out
            return
        self.proven = True
        self._hook.remove()
        held = self.engine.full_gradient(self.PARAMETER).float()
        error = float((held - mean).norm() / mean.norm().clamp_min(1e-30))
        # bf16 gradients carry 8 bits, and are summed in another order.
        if not error < 0.05:
            raise NumericsError(
                f"gradients are not reduced over the {self.engine.accelerator.num_processes} processes (relative "
                f"difference {error:.2g} from their mean): each would train alone. Engine: {self.engine.name}."
            )
