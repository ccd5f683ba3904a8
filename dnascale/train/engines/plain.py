"""The plain engine: torch alone, in one process or under DistributedDataParallel."""

import contextlib
import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from dnascale.config import Config
from dnascale.train.engines.engine import Engine, Fragment, ranks_of
from dnascale.train.engines.graphs import Graphs
from dnascale.train.guard import Guard
from dnascale.train.optim import set_step, share_work, shared_state

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel


class PlainEngine(Engine):
    """fp32 weights with bf16 autocast, on one device or replicated by DistributedDataParallel."""

    def __init__(
        self,
        accelerator: "Accelerator",
        module: "MaskedLanguageModel",
        optimizer: torch.optim.Optimizer,
        config: Config,
        accumulation: int,
    ) -> None:
        super().__init__(accelerator, module, config)
        self.name = "plain" if accelerator.num_processes == 1 else "ddp"
        self.model = accelerator.prepare_model(module)
        self.optimizer = optimizer
        self.accumulation = accumulation
        self.graphs = Graphs(self._micro_batch, self.parameters.values()) if config.train.cuda_graphs else None
        if (ranks := ranks_of(accelerator, cut=False)) is not None:
            share_work(optimizer, ranks)

    def divide(self, micro_windows: int, accumulation: int) -> None:
        self.accumulation = accumulation
        if self.graphs is not None:
            self.graphs.forget()

    def backward(self, tokens: torch.Tensor, keys: torch.Tensor, room: int, last: bool) -> torch.Tensor:
        if self.graphs is not None:
            # Always for several records: which kernel a window has does not hang on those before it.
            return self.graphs(tokens, keys, room or self.module.attention.room(len(tokens), 1))
        hold = self.model.no_sync() if not last and hasattr(self.model, "no_sync") else contextlib.nullcontext()
        with hold:
            return self._micro_batch(tokens, keys, room, self.clock.forward())

    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit := self.config.optimizer.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        left_out = guard.judge(norm)
        if norm.device.type != "mps":
            # The fused optimizer reads this on the device, and leaves weights and moments alone where it is 1.
            self.optimizer.found_inf = left_out.float()
            self.optimizer.step()
        elif not left_out:  # before torch 2.13 AdamW does not read it there
            self.optimizer.step()
        if self.graphs is not None:
            self.graphs.zero_gradients()
        else:
            # DDP's gradients are views of what it sends: new ones would be held beside it while they accumulate.
            self.optimizer.zero_grad(set_to_none=self.name == "plain")
        return norm, left_out

    def _micro_batch(
        self, tokens: torch.Tensor, keys: torch.Tensor, room: int, timed: AbstractContextManager[None] | None = None
    ) -> torch.Tensor:
        """Forward, which is not `timed` where a graph records it, and backward."""
        with timed or contextlib.nullcontext():
            loss, sums = self.model(tokens, keys, room)
        (loss / self.accumulation).backward()
        return sums

    def full_gradient(self, name: str) -> torch.Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None
        return gradient

    def held(self) -> list[Fragment]:
        return [
            Fragment(name, kind, 0, math.prod(shape))
            for name, kinds in self.kinds.items()
            for kind, shape in kinds.items()
        ]

    def owned(self) -> list[Fragment]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        fragments = []
        for whole in self.held():
            share = -(-whole.numel // world)
            start = min(rank * share, whole.numel)
            if numel := min(share, whole.numel - start):
                fragments.append(replace(whole, start=start, numel=numel))
        return fragments

    def get(self, fragment: Fragment) -> torch.Tensor:
        parameter = self.parameters[fragment.parameter]
        if fragment.kind == "weight":
            tensor = parameter.data
        else:
            shared = shared_state(self.optimizer, fragment.parameter)
            tensor = (
                shared[fragment.kind] if fragment.kind in shared else self.optimizer.state[parameter][fragment.kind]
            )
        return tensor.view(-1).narrow(0, fragment.start, fragment.numel)

    @torch.no_grad()
    def put(self, fragment: Fragment, value: torch.Tensor) -> None:
        self.get(fragment).copy_(value)

    def loaded(self, updates: int) -> None:
        set_step(self.optimizer, updates)
