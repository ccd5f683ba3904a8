"""What the loop asks of an engine: one optimizer step, and the state behind it as fragments.

Fragments are ranges of a parameter's fp32 weight and of what the optimizer keeps for it, by name. Every engine cuts parameters
differently; checkpoints are written in fragments and so belong to none of them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dnascale.config import CompileMode, Config
from dnascale.errors import UsageError
from dnascale.train.guard import Guard
from dnascale.train.optim import states
from dnascale.train.optimizers import Ranks
from dnascale.train.stragglers import ForwardClock

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of one tensor of a parameter's state, flattened."""

    parameter: str
    kind: str  # "weight", or one that the optimizer keeps
    start: int
    numel: int


class Engine(ABC):
    """One training step, and the state behind it. `module` is the model as this process holds it."""

    name: str

    def __init__(self, accelerator: "Accelerator", module: "MaskedLanguageModel", config: Config) -> None:
        self.accelerator = accelerator
        self.module = module
        self.config = config
        self.compiled = compile_mode(config, accelerator)
        self.clock = ForwardClock(accelerator.device)
        #: Hugging Face's parameter names; the tied decoder weight appears once, as the embedding.
        self.parameters = dict(module.hf.named_parameters())
        self.shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
        #: The fp32 tensors that make up the training state of each parameter, by kind, and their shapes.
        self.kinds = {
            name: {"weight": shape, **states(config.optimizer.name, name, shape)} for name, shape in self.shapes.items()
        }

    @abstractmethod
    def divide(self, micro_windows: int, accumulation: int) -> None:
        """From now on a step has `accumulation` micro-batches of so many windows. Called between steps."""

    @abstractmethod
    def backward(self, tokens: torch.Tensor, keys: torch.Tensor, room: int, last: bool) -> torch.Tensor:
        """Forward and backward of one micro-batch; `last` of its step reduces over ranks. Returns the loss sums, float32 [6 + 2 x groups]."""

    @abstractmethod
    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips, updates the weights, clears the gradients.

        Returns the global gradient norm before clipping, fp32 [], and whether the guard left the step out, bool []: weights and
        moments are as they were then. Does not wait for the device to find out, but on MPS.
        """

    @abstractmethod
    def full_gradient(self, name: str) -> torch.Tensor:
        """The reduced gradient of a parameter, between the last backward and the step. Collective."""

    @abstractmethod
    def held(self) -> list[Fragment]:
        """The fragments whose state this rank holds."""

    @abstractmethod
    def get(self, fragment: Fragment) -> torch.Tensor:
        """fp32 [numel]."""

    @abstractmethod
    def put(self, fragment: Fragment, value: torch.Tensor) -> None:
        """Replaces what `get` returns."""

    @abstractmethod
    def loaded(self, updates: int) -> None:
        """Called after `put`: derives what follows from the fp32 weights, and sets how many updates the optimizer has made."""

    def owned(self) -> list[Fragment]:
        """The fragments this rank writes to a checkpoint: over all ranks, every element once."""
        return self.held()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V] for evaluation. Collective under ZeRO-3: every rank calls it as often."""
        return self.module.logits(input_ids)


def compile_mode(config: Config, accelerator: "Accelerator") -> CompileMode | None:
    """How the step is compiled, if at all. ZeRO-3 gathers weights module by module, which no graph may contain."""
    stage = accelerator.deepspeed_plugin.zero_stage if accelerator.deepspeed_plugin is not None else 0
    if stage == 3 and config.train.compile:
        raise UsageError(
            f"train.compile={config.train.compile} does not go with ZeRO-3: use zero1, zero2, plain, or train.compile=false."
        )
    if config.train.compile is None:
        return "layers" if accelerator.device.type == "cuda" and stage < 3 else None
    return config.train.compile or None


def ranks_of(accelerator: "Accelerator", cut: bool) -> Ranks | None:
    """The processes of this run for its optimizer; None for one that is alone."""

    def add(tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.to(accelerator.device)  # offloaded state is in host memory, which NCCL does not reach
        torch.distributed.all_reduce(there)
        return tensor if there is tensor else tensor.copy_(there)

    world = accelerator.num_processes
    return Ranks(accelerator.process_index, world, add, cut) if world > 1 else None
