"""Joining the process group, and failing together.

Accelerate runs one process, or several that train unsynchronised on the same data, when it is launched or
initialised in ways that look right. Nothing is trained here unless the launcher, the environment, torch.distributed
and Accelerate agree on the number of processes.
"""

import datetime
import os
import socket
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dnascale import errors
from dnascale.config import TrainConfig
from dnascale.device import choose_device
from dnascale.errors import DnascaleError, PeerError, UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
#: Of every collective: a checkpoint to a slow file system, or one rank's verification of its shards, must fit.
TIMEOUT = datetime.timedelta(minutes=60)


def connect(train: TrainConfig, deepspeed: dict[str, Any] | None) -> "Accelerator":
    """The Accelerator of this process. `deepspeed` is a complete DeepSpeed configuration, or None for plain and DDP.

    Raises UsageError or PeerError when the parts disagree on the number of processes.
    """
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    on_cpu = choose_device(train.device) == "cpu"
    if deepspeed is None:
        kwargs = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        # accelerate's wish for a newer name that older versions of torch do not know.
        warnings.filterwarnings("ignore", category=FutureWarning, message="`broadcast_buffers` is deprecated")
        accelerator = Accelerator(
            cpu=on_cpu, mixed_precision="no", kwargs_handlers=[kwargs, InitProcessGroupKwargs(timeout=TIMEOUT)]
        )
    else:
        import_deepspeed(on_cpu)
        if "WORLD_SIZE" not in os.environ:  # started without a launcher: a group of one
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
            os.environ["MASTER_PORT"] = str(free_port())
        backend = "gloo" if on_cpu else "nccl"
        accelerator = Accelerator(
            mixed_precision="bf16" if train.precision == "bf16" else "no",
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed),
            gradient_accumulation_steps=deepspeed["gradient_accumulation_steps"],
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=TIMEOUT)],
        )
    _require_agreement(accelerator, train.processes)
    return accelerator


def import_deepspeed(on_cpu: bool) -> None:
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError:
        raise UsageError(
            "this engine needs DeepSpeed, which is not installed: pip install 'dnascale[deepspeed]' (Linux), "
            "or train with train.engine=plain."
        ) from None
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed calls collectives by names that torch has renamed; said once a call, on every rank.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    # Used for inference only, and costs a minute of compilation and a C++ compiler at the first start on CPUs.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _require_agreement(accelerator: "Accelerator", wanted: int | None) -> None:
    import torch.distributed as dist
    from accelerate.utils import DistributedType

    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.DEEPSPEED)
    if accelerator.distributed_type not in known:
        raise UsageError(
            f"Accelerate was set up for {accelerator.distributed_type.value}; dnascale trains plainly, with DDP, or with "
            "DeepSpeed: use one of the files in launch/, or run `accelerate config` again."
        )
    seen = {
        "the environment (WORLD_SIZE)": int(os.environ.get("WORLD_SIZE", "1")),
        "torch.distributed": dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1,
        "Accelerate": accelerator.num_processes,
    }
    if (promised := _launched_processes()) is not None:
        seen["the launcher's command"] = promised
    if wanted is not None:
        seen["train.processes"] = wanted
    if len(set(seen.values())) > 1:
        listed = ", ".join(f"{who} says {count}" for who, count in seen.items())
        raise PeerError(
            f"the number of processes is not agreed on: {listed}. Training now would be wrong without a sign. "
            "On CPUs, launch with: torchrun --nproc-per-node N -m dnascale.train CONFIG train.device=cpu "
            "(or: accelerate launch --multi_gpu --num_processes N -m dnascale.train CONFIG train.device=cpu)."
        )


def _launched_processes() -> int | None:
    """The number of processes that `accelerate launch`, as a parent of this process, was asked for."""
    import psutil
    import yaml

    for parent in psutil.Process().parents()[:3]:
        try:
            command = parent.cmdline()
        except psutil.Error:
            return None
        if "launch" not in command or not any("accelerate" in Path(word).name for word in command[:3]):
            continue
        options = dict(pairwise(command))
        options |= dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
        for name in ("--num_processes", "--num-processes"):
            if name in options:
                return int(options[name])
        from accelerate.commands.config.config_args import default_yaml_config_file

        file = Path(options.get("--config_file", options.get("--config-file", default_yaml_config_file)))
        if file.is_file():
            return yaml.safe_load(file.read_text()).get("num_processes")
    return None


def together(accelerator: "Accelerator", action: Callable[[], T]) -> T:
    """Runs `action` on every rank; an error on any is raised on all, with the same cause.

    A rank that raises alone leaves the others waiting in their next collective.
    """
    from accelerate.utils import gather_object

    value: Any = None
    cause: Exception | None = None
    failure: tuple[str, str] | None = None
    try:
        value = action()
    except Exception as error:
        if accelerator.num_processes == 1:
            raise
        cause = error
        known = isinstance(error, DnascaleError)
        failure = errors.kind(error), str(error) if known else f"{type(error).__name__}: {error}"
    outcomes = gather_object([failure])
    failed = [(rank, outcome) for rank, outcome in enumerate(outcomes) if outcome is not None]
    if failed:
        rank, (kind, message) = failed[0]
        where = f"rank {rank}: " if accelerator.num_processes > 1 and len(failed) < len(outcomes) else ""
        shared = getattr(errors, kind)(where + message)
        shared.shared = True
        raise shared from cause
    return value


def from_main(accelerator: "Accelerator", action: Callable[[], T]) -> T:
    """Runs `action` on rank 0 alone and gives its value (picklable by the process group) to all; errors reach all."""
    from accelerate.utils import broadcast_object_list

    value = together(accelerator, lambda: action() if accelerator.is_main_process else None)
    return broadcast_object_list([value])[0]


def free_port() -> int:
    """A port of this host that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
