"""Engines: how one optimizer step is computed on the devices at hand. Plain (one process or DDP) or DeepSpeed ZeRO.

An engine also shows the training state as fragments: ranges of a parameter's fp32 weight and of what the optimizer keeps
for it, by name. Every engine cuts parameters differently; checkpoints are written in fragments and so belong to none of them.
"""

import contextlib
import hashlib
import json
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dnascale.config import CompileMode, Config
from dnascale.errors import NumericsError, UsageError
from dnascale.train.guard import Guard
from dnascale.train.optim import place, set_step, share_work, shared_state, states
from dnascale.train.optimizers import Piece, Ranks

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel

#: The files of ds_configs/.
_STAGES = ("zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme")


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
        """Forward and backward of one micro-batch; `last` of its step reduces over ranks. Returns the loss sums [4]."""

    @abstractmethod
    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips, updates the weights, clears the gradients.

        Returns the global gradient norm before clipping, fp32 [], and whether the guard left the step out, bool []: weights and
        moments are as they were then. Does not wait for the device to find out.
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
        if (ranks := ranks_of(accelerator, cut=False)) is not None:
            share_work(optimizer, ranks)

    def divide(self, micro_windows: int, accumulation: int) -> None:
        self.accumulation = accumulation

    def backward(self, tokens: torch.Tensor, keys: torch.Tensor, room: int, last: bool) -> torch.Tensor:
        hold = self.model.no_sync() if not last and hasattr(self.model, "no_sync") else contextlib.nullcontext()
        with hold:
            loss, sums = self.model(tokens, keys, room)
            (loss / self.accumulation).backward()
        return sums

    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if limit := self.config.optimizer.gradient_clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The fused optimizer reads this on the device, and leaves weights and moments alone where it is 1.
        left_out = guard.judge(norm)
        self.optimizer.found_inf = left_out.float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, left_out

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
        self.model.set_train_micro_batch_size(micro_windows)
        self.model.set_train_batch_size(micro_windows * accumulation * self.accelerator.num_processes)
        self.accelerator.deepspeed_plugin.deepspeed_config |= {  # what is shown
            "train_micro_batch_size_per_gpu": micro_windows,
            "gradient_accumulation_steps": accumulation,
            "train_batch_size": micro_windows * accumulation * self.accelerator.num_processes,
        }

    def backward(self, tokens: torch.Tensor, keys: torch.Tensor, room: int, last: bool) -> torch.Tensor:
        self.model.set_gradient_accumulation_boundary(last)
        loss, sums = self.model(tokens, keys, room)
        self.model.backward(loss)
        if not last:
            self.model.step()  # counts the micro-batch; weights stay
        return sums

    def step(self, learning_rate: float, guard: Guard) -> tuple[torch.Tensor, torch.Tensor]:
        self.zero.set_lr(learning_rate)
        self.model.step()
        norm = torch.as_tensor(self.model.get_global_grad_norm(), dtype=torch.float32)
        # DeepSpeed leaves out a step whose gradient is not finite, and gives -1 for its norm.
        norm = norm if self.model.was_step_applied() and norm >= 0 else torch.full_like(norm, math.inf)
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


def deepspeed_config(config: Config, micro_windows: int, accumulation: int, world: int) -> dict[str, Any] | None:
    """The DeepSpeed configuration that the run asks for, `auto` values filled in; None for the plain engine.

    `train.engine` names one of ds_configs/ or a file; `auto` follows `accelerate launch --use_deepspeed`.
    """
    path = _config_file(config.train.engine)
    if path is None:
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a DeepSpeed configuration: {error}") from None
    if config.guard.spike is not None:
        raise UsageError(
            "guard.spike needs the gradient's norm before the step, which DeepSpeed does not give: leave it out, or train.engine=plain."
        )
    stage = values.get("zero_optimization", {}).get("stage") if isinstance(values, dict) else None
    if stage not in (1, 2, 3):
        raise UsageError(
            f"{path} must set zero_optimization.stage to 1, 2 or 3, not {stage}; without ZeRO use train.engine=plain."
        )
    for section in ("optimizer", "scheduler", "fp16"):
        if section in values:
            raise UsageError(
                f"{path} has a section '{section}', which the run's own configuration decides: leave it out."
            )
    bf16 = config.train.precision == "bf16"
    if values.setdefault("bf16", {}).setdefault("enabled", "auto") not in ("auto", bf16):
        raise UsageError(
            f'{path} sets bf16.enabled={values["bf16"]["enabled"]}, the run has train.precision={config.train.precision}: write "auto".'
        )
    values["bf16"]["enabled"] = bf16
    filled = {
        "train_micro_batch_size_per_gpu": micro_windows,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_windows * accumulation * world,
        "gradient_clipping": config.optimizer.gradient_clip,
    }
    for key, value in filled.items():
        if values.setdefault(key, "auto") not in ("auto", value):
            raise UsageError(f'{path} sets {key}={values[key]}, the run\'s configuration gives {value}: write "auto".')
        values[key] = value
    on_disk = values["zero_optimization"].get("offload_optimizer", {}).get("device") == "nvme"
    if on_disk and config.optimizer.name != "adamw":
        raise UsageError(
            f"{path} keeps the optimizer's state on NVMe, where {config.optimizer.name} cannot reach what it needs of whole "
            "parameters: use optimizer.name=adamw, or offload to memory (zero3_offload)."
        )
    for what in ("offload_optimizer", "offload_param"):
        if (offload := values["zero_optimization"].get(what, {})).get("nvme_path") == "auto":
            offload["nvme_path"] = str(_scratch(config.run.dir))
    return values


def _scratch(run: str) -> Path:
    """A folder of this run alone on the node's own disk (TMPDIR)."""
    digest = hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"dnascale-offload-{digest}"


def _config_file(engine: str) -> Path | None:
    if engine == "auto":
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
            return None
        if file := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
            return Path(file)
        engine = f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if engine == "plain":
        return None
    if engine in _STAGES:
        return Path(__file__).parents[1] / "ds_configs" / f"{engine}.json"
    if engine.endswith(".json"):
        return Path(engine)
    raise UsageError(f"train.engine={engine} is none of auto, plain, {', '.join(_STAGES)} and no .json file.")


def ranks_of(accelerator: "Accelerator", cut: bool) -> Ranks | None:
    """The processes of this run for its optimizer; None for one that is alone."""

    def add(tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.to(accelerator.device)  # offloaded state is in host memory, which NCCL does not reach
        torch.distributed.all_reduce(there)
        return tensor if there is tensor else tensor.copy_(there)

    world = accelerator.num_processes
    return Ranks(accelerator.process_index, world, add, cut) if world > 1 else None


def build_engine(
    accelerator: "Accelerator",
    module: "MaskedLanguageModel",
    optimizer: torch.optim.Optimizer,
    config: Config,
    accumulation: int,
) -> Engine:
    if accelerator.deepspeed_plugin is not None:
        return DeepSpeedEngine(accelerator, module, optimizer, config)
    return PlainEngine(accelerator, module, optimizer, config, accumulation)


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


class GradientReductionCheck:
    """Proves once, in the first step, that gradients are averaged over the ranks.

    A hook keeps this rank's own gradient of one small parameter; its mean over the ranks must be what the engine is
    about to step with. A launcher or wrapper that does not reduce passes every other test of a running job.
    """

    PARAMETER = "model.final_norm.weight"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.own: torch.Tensor | None = None
        self._hook = engine.parameters[self.PARAMETER].register_hook(self._add)

    def _add(self, gradient: torch.Tensor) -> None:
        own = gradient.detach().float().clone()
        self.own = own if self.own is None else self.own + own

    def finish(self) -> None:
        """Between the last backward and the step. Raises NumericsError on every rank if the check fails."""
        self._hook.remove()
        assert self.own is not None
        mean = self.engine.accelerator.reduce(self.own, reduction="mean")
        held = self.engine.full_gradient(self.PARAMETER).float()
        error = float((held - mean).norm() / mean.norm().clamp_min(1e-30))
        # bf16 gradients carry 8 bits, and are summed in another order.
        if not error < 0.05:
            raise NumericsError(
                f"gradients are not reduced over the {self.engine.accelerator.num_processes} processes (relative "
                f"difference {error:.2g} from their mean): each would train alone. Engine: {self.engine.name}."
            )
