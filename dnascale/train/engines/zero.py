"""The DeepSpeed engine: ZeRO stages 1 to 3, also offloaded."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dnascale.config import Config
from dnascale.train.engines.deepspeed import batch_sizes
from dnascale.train.engines.engine import Engine, Fragment, ranks_of
from dnascale.train.guard import Guard
from dnascale.train.optim import place, set_step, shared_state
from dnascale.train.optimizers import Piece

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel


class DeepSpeedEngine(Engine):
    """DeepSpeed ZeRO stages 1 to 3: bf16 weights, fp32 masters and moments divided over the ranks."""

    def __init__(
        self,
        accelerator: "Accelerator",
        module: "MaskedLanguageModel",
        optimizer: torch.optim.Optimizer,
        config: Config,
    ) -> None:
        super().__init__(accelerator, module, config)
        self.stage = accelerator.deepspeed_plugin.zero_stage
        self.name = f"zero{self.stage}"
        self.model, _ = accelerator.prepare(module, optimizer)
        self.zero = self.model.optimizer
        ranks, pieces = ranks_of(accelerator, cut=True), self._pieces()
        if self.stage < 3:
            place(self.zero.optimizer, pieces, ranks)
            self.zero._lazy_init_hp_params_optimizer_state()
        elif self.zero.swap_optimizer:
            for group in self._groups():
                flat = self.zero.fp32_partitioned_groups_flat[group]
                place(self.zero.optimizer, {flat: pieces[flat]}, ranks)
        else:
            place(self.zero.optimizer, pieces, ranks)

    def _pieces(self) -> dict[torch.Tensor, list[Piece]]:
        """The flat fp32 tensors that this rank's optimizer updates, one a parameter group (and sub-group), and what is in them."""
        flat = self.zero.single_partition_of_fp32_groups if self.stage < 3 else self.zero.fp32_partitioned_groups_flat
        pieces: dict[torch.Tensor, list[Piece]] = {tensor: [] for tensor in flat}
        for fragment in self._cut():
            parameter = self.parameters[fragment.parameter]
            if self.stage < 3:
                group, offset = parameter._hp_mapping.param_group_index, parameter._hp_mapping.hp_fragment_address.start
            else:
                group, offset, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
            pieces[flat[group]].append(Piece(fragment.parameter, fragment.start, fragment.numel, offset))
        return pieces

    def _groups(self) -> Iterator[int]:
        """The groups of ZeRO-3, each with its state in memory, where it may be changed, while it is given."""
        for group in range(len(self.zero.fp32_partitioned_groups_flat)):
            on_disk = self.zero._swappable_optimizer_subgroup(group)
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_in(group)
            yield group
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_out(group)

    def divide(self, micro_windows: int, accumulation: int) -> None:
        sizes = batch_sizes(micro_windows, accumulation, self.accelerator.num_processes)
        self.model.set_train_micro_batch_size(micro_windows)
        self.model.set_train_batch_size(sizes["train_batch_size"])
        self.accelerator.deepspeed_plugin.deepspeed_config |= sizes  # what is shown

    def backward(self, tokens: torch.Tensor, keys: torch.Tensor, room: int, last: bool) -> torch.Tensor:
        self.model.set_gradient_accumulation_boundary(last)
        with self.clock.forward():
            loss, sums = self.model(tokens, keys, room)
        self.model.backward(loss)
        if not last:
            self.model.step()  # counts the micro-batch; weights stay
        return sums

    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        self.zero.set_lr(learning_rate)
        self.model.step()
        # A number on the host, inf or -1 by version, where DeepSpeed left the step out because its gradient is not finite.
        given = self.model.get_global_grad_norm()
        norm = torch.as_tensor(given, dtype=torch.float32, device=self.accelerator.device)
        applied = norm >= 0 if self.model.was_step_applied() else torch.zeros_like(norm, dtype=torch.bool)
        norm = torch.where(applied, norm, math.inf)
        return norm, norm.isfinite().logical_not()

    def full_gradient(self, name: str) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(self.parameters[name])

    def held(self) -> list[Fragment]:
        optimizer = self.zero.optimizer
        return self._of_kinds(self._cut()) + [
            Fragment(name, kind, 0, tensor.numel())
            for name in self.parameters
            for kind, tensor in shared_state(optimizer, name).items()
        ]

    def owned(self) -> list[Fragment]:
        # What all ranks hold is kept up by those that have a piece of the parameter, and saved by the one that has its beginning.
        first = {fragment.parameter for fragment in self._cut() if fragment.start == 0}
        elementwise = self._of_kinds(self._cut())
        return elementwise + [f for f in self.held()[len(elementwise) :] if f.parameter in first]

    def _of_kinds(self, cut: list[Fragment]) -> list[Fragment]:
        """The same ranges, of every kind of state that has an element for each of the parameter's."""
        optimizer = self.zero.optimizer
        return [
            replace(one, kind=kind)
            for one in cut
            for kind in self.kinds[one.parameter]
            if kind not in shared_state(optimizer, one.parameter)
        ]

    def _cut(self) -> list[Fragment]:
        """The ranges of the weights that this rank holds."""
        fragments = []
        for name, parameter in self.parameters.items():
            if self.stage == 3:
                size = parameter.ds_tensor.numel()
                start = self.accelerator.process_index * size
                numel = max(0, min(size, parameter.ds_numel - start))
            elif parameter._hp_mapping is None:
                continue
            else:
                start = parameter._hp_mapping.lp_fragment_address.start
                numel = parameter._hp_mapping.lp_fragment_address.numel
            if numel:
                fragments.append(Fragment(name, "weight", start, numel))
        return fragments

    def get(self, fragment: Fragment) -> torch.Tensor:
        parameter = self.parameters[fragment.parameter]
        if fragment.kind in (shared := shared_state(self.zero.optimizer, fragment.parameter)):
            return shared[fragment.kind].view(-1).narrow(0, fragment.start, fragment.numel)
        if self.stage < 3:
            return parameter._hp_mapping.get_hp_fragment(None if fragment.kind == "weight" else fragment.kind)
        local = self._local(parameter, fragment.kind)[: fragment.numel]
        return (
            local.clone() if self.zero.swap_optimizer else local
        )  # the buffer of what comes from a disk is used again

    def _local(self, parameter: Any, kind: str) -> torch.Tensor:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if kind == "weight":
            return safe_get_local_fp32_param(parameter)
        return safe_get_local_optimizer_state(parameter, kind)

    @torch.no_grad()
    def put(self, fragment: Fragment, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if self.stage < 3 or fragment.kind in shared_state(self.zero.optimizer, fragment.parameter):
            self.get(fragment).copy_(value)
            return
        parameter = self.parameters[fragment.parameter]
        padded = self._local(parameter, fragment.kind).clone()  # the last rank's part is padded
        padded[: fragment.numel] = value
        if fragment.kind == "weight":
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, fragment.kind)

    def loaded(self, updates: int) -> None:
        set_step(self.zero.optimizer, updates)
        if self.stage < 3:
            self.zero.update_lp_params()
            return
        self.zero.checkpoint_event_prologue()
        for group in self._groups():
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        self.zero.checkpoint_event_epilogue()
