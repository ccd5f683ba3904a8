"""What must survive besides weights and optimizer moments: a few integers, the same on every rank."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Where a run stands. With the configuration, this and the tensors of a checkpoint decide all that follows."""

    total_steps: int
    step: int = 0  # optimizer steps done
    tokens: int = 0  # tokens trained on
    position: int = 0  # in the order of the data: windows trained on since the beginning, over all epochs
    optimizer_from: int = 0  # step at which the optimizer began: not 0 where another took over
    skipped: int = 0  # steps since then whose update was left out
    skipped_in_row: int = 0  # of these, the last ones without a good step between
    norms: list[float] = field(default_factory=list)  # gradient norms that the next ones are compared with
    valid_loss: float | None = None  # held-out nats per base at this very step, if it was evaluated
    seconds: float = 0.0  # wall time spent in training steps, over all restarts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
