"""As much of an engine as a save needs, in one process: weights and moments of a few parameters."""

from types import SimpleNamespace
from typing import Any

import torch

from dnascale.train.checkpoint import Identity
from dnascale.train.engines import Fragment

IDENTITY = Identity(model={"hidden_size": 4, "layers": 2}, vocabulary="letters", data="these")


class OneRank:
    """`tensors`: of each parameter its fp32 tensors by kind. Every tensor is held in pieces of at most `piece` elements."""

    name = "plain"

    def __init__(
        self, tensors: dict[str, dict[str, torch.Tensor]], piece: int = 1 << 30, optimizer: str = "adamw"
    ) -> None:
        self.tensors = tensors
        self.config = SimpleNamespace(optimizer=SimpleNamespace(name=optimizer))
        self.accelerator = SimpleNamespace(
            process_index=0, num_processes=1, is_main_process=True, device=torch.device("cpu")
        )
        self.shapes = {name: tuple(kinds["weight"].shape) for name, kinds in tensors.items()}
        self.kinds = {
            name: {kind: tuple(value.shape) for kind, value in kinds.items()} for name, kinds in tensors.items()
        }
        self._fragments = [
            Fragment(name, kind, start, min(piece, value.numel() - start))
            for name, kinds in tensors.items()
            for kind, value in kinds.items()
            for start in range(0, value.numel(), piece)
        ]
        self.updates: int | None = None

    def owned(self) -> list[Fragment]:
        return self._fragments

    held = owned

    def get(self, fragment: Fragment) -> torch.Tensor:
        flat = self.tensors[fragment.parameter][fragment.kind].reshape(-1)
        return flat.narrow(0, fragment.start, fragment.numel)

    def put(self, fragment: Fragment, value: torch.Tensor) -> None:
        self.get(fragment).copy_(value)

    def loaded(self, updates: int) -> None:
        self.updates = updates


def some_state(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return {
        name: {kind: torch.randn(shape, generator=random) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        for name, shape in (("embedding", (5, 4)), ("norm", (4,)), ("head", (3, 7)))
    }


def engine(**options: Any) -> Any:
    return OneRank(some_state(), **options)
