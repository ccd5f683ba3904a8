"""The memory of the device: how large a micro-batch fits, and what to say when one does not."""

import contextlib
import ctypes
import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
import yaml

from dnascale.config import CompileMode, Config
from dnascale.data.stream import Batch
from dnascale.errors import MemoryShortage, UsageError
from dnascale.model.memory import token_bytes_on_cpu
from dnascale.train.batching import divides, to_device
from dnascale.train.checkpoint import committed
from dnascale.train.environment import devices
from dnascale.train.schedules import Stage, stages
from dnascale.train.trial import trial_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dnascale.model.modernbert import MaskedLanguageModel

#: Of the device's memory, what a step may take: the rest is for evaluation, fragmentation and other programs.
_SHARE = 0.92
#: And where a graph keeps the memory of a step while evaluation needs its own.
_SHARE_BESIDE_GRAPHS = 0.6
#: Of the host's free memory, what the activations of all its processes may take on CPUs.
_HOST_SHARE = 0.5
#: How torch says that memory ran out, where it has no class for it.
_SHORTAGE = (
    "out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED"
)  # fmt: skip
#: Names of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Lets the allocator of this process keep what a step frees, for the next one.

    glibc returns blocks of 32 MiB and more to the system, which clears their pages again at each step. Nothing happens with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Older ones refuse more than 32 MiB; without either the other setting would only do harm.
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)):
        mallopt(_M_TRIM_THRESHOLD, -1)


def free_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this host has left, or the least that a control group which this process is in does (Slurm, containers)."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):
        inside = groups / own.read_text().rpartition("0::/")[2].strip()
        for group in (inside, *inside.parents):
            with contextlib.suppress(OSError, ValueError, StopIteration):  # not in this one, or "max": no limit
                most, taken = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                lines = (group / "memory.stat").read_text().splitlines()
                given_back = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
                free = min(free, max(0, most - taken + given_back))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """torch says it in one class on CUDA, and in words elsewhere."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGE)
    )


def candidates(config: Config, of_run: list[Stage], world: int) -> list[int]:
    """The micro-batches, in tokens, that divide the global batch of every stage on `world` processes; largest first."""
    context = config.model.context
    largest = max(stage.global_batch_tokens for stage in of_run) // world // context
    return [
        windows * context
        for windows in range(largest, 0, -1)
        if divides(config.with_train(micro_batch_tokens=windows * context), of_run, world)
    ]


def recorded(run: Path, devices: list[str], graphs: bool) -> int | None:
    """The micro-batch that a run on the same devices was begun with: taken again, so that it continues to the bit. None before the
    first checkpoint: there is nothing to continue, and it may have been too large.
    """
    if not committed(run / "checkpoints"):
        return None
    try:
        before = json.loads((run / "environment.json").read_text())["devices"]
        train = yaml.safe_load((run / "config.yaml").read_text())["train"]
        tokens = train["micro_batch_tokens"] if train.get("cuda_graphs", False) == graphs else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tokens if before == devices and isinstance(tokens, int) else None


def find_micro_batch(
    config: Config,
    of_run: list[Stage],
    accelerator: "Accelerator",
    attempt: Callable[[int], None],
    say: Callable[[str], None],
) -> Config:
    """`config` with the largest micro-batch that fits on every rank, instead of `auto`. Collective.

    On GPUs `attempt(tokens)` takes a real step; what does not fit is halved. On CPUs, where nothing fails before the whole machine
    suffers, the choice follows from the free memory. Raises MemoryShortage when not even the smallest fits.
    """
    world, device, graphs = accelerator.num_processes, accelerator.device, config.train.cuda_graphs
    possible = candidates(config, of_run, world)
    if not possible:
        raise UsageError(
            "train.micro_batch_tokens=auto: no micro-batch divides the global batches of all stages: set it, or change the stages."
        )
    before = torch.tensor([recorded(Path(config.run.dir), devices(), graphs) or 0], device=device)
    agreed = int(accelerator.gather(before).min())
    if agreed in possible:
        say(f"micro-batch of {agreed:,} tokens, as the run began")
        return config.with_train(micro_batch_tokens=agreed)
    if not probes(device):
        free = free_memory() * _HOST_SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", world))
        fits = int(free / token_bytes_on_cpu(config.model, config.train.precision == "fp32"))
        smallest = int(accelerator.gather(torch.tensor([fits], device=device)).min())
        chosen = next((tokens for tokens in possible if tokens <= smallest), possible[-1])
        say(f"micro-batch of {chosen:,} tokens, for which this machine has memory")
        return config.with_train(micro_batch_tokens=chosen)
    tokens = possible[0]
    while True:
        fitted = _fits(attempt, tokens, device, _SHARE_BESIDE_GRAPHS if graphs else _SHARE)
        if bool(accelerator.gather(torch.tensor([int(fitted)], device=device)).min()):
            say(f"micro-batch of {tokens:,} tokens, the largest that a step was possible with")
            return config.with_train(micro_batch_tokens=tokens)
        smaller = [other for other in possible if other <= tokens // 2] or [
            other for other in possible if other < tokens
        ]
        if not smaller:
            divided = (
                f" What was tried has all weights, gradients and moments on each device: train.engine={config.train.engine} needs less, "
                "so set train.micro_batch_tokens."
                if accelerator.deepspeed_plugin is not None
                else ""
            )
            without_graphs = " Without train.cuda_graphs there is more room." if graphs else ""
            raise MemoryShortage(
                f"not even a micro-batch of {tokens:,} tokens fits on every device ({usage(device)}): use a smaller model.context, "
                f"a smaller model, or train.recompute=layers.{divided}{without_graphs}"
            )
        tokens = smaller[0]


def probes(device: torch.device) -> bool:
    """Whether running out of memory is an error here, and not the end of the process."""
    return device.type in ("cuda", "mps")


def attempt_step(
    module: "MaskedLanguageModel",
    config: Config,
    stage: Stage,
    read: Callable[[int], Batch],
    compiled: CompileMode | None,
) -> Callable[[int], None]:
    """A function that takes one step of a copy of the bare model with a micro-batch of so many tokens.

    Gradients, moments and fp32 weights are whole there, as without ZeRO, which needs less.
    """

    def attempt(tokens: int) -> None:
        # By layers, which takes seconds; as a whole it needs no more.
        trial, optimizer = trial_of(module, config, stage, None if compiled is None else "layers")
        batch = read(tokens // stage.context)
        device = module.complement.device
        for _ in range(2):  # the second has moments and gradients beside the activations
            loss, _ = trial(*to_device(batch, trial, device))
            loss.backward()
            optimizer.step()
            float(loss.detach())  # waits for the device

    return attempt


def _fits(attempt: Callable[[int], None], tokens: int, device: torch.device, most: float = _SHARE) -> bool:
    """Whether a step of so many tokens is possible, with some memory left over."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        attempt(tokens)
        share = torch.cuda.max_memory_reserved(device) / _total(device) if device.type == "cuda" else 0.0
        return share <= most
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        give_back_memory(device)


def give_back_memory(device: torch.device) -> None:
    """Gives back what is not referred to any more. A compiled model refers to itself, and would wait for Python to look."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


@contextlib.contextmanager
def shortages_explained(config: Config, when: Callable[[], str], device: torch.device) -> Iterator[None]:
    """Raises MemoryShortage, with what `explain_shortage` says, where something within runs out of memory."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise explain_shortage(config, when(), device) from error
        raise


def explain_shortage(config: Config, when: str, device: torch.device) -> MemoryShortage:
    """The sentence for a run that ran out of memory `when`: "in step 3", "before a step was taken"."""
    asked = config.train.micro_batch_tokens
    if asked == "auto":
        return MemoryShortage(
            f"out of memory {when}: {usage(device)}. The model and its optimizer do not fit there: a smaller model does."
        )
    # No more than a process has of a step.
    world = int(os.environ.get("WORLD_SIZE", "1"))
    tokens = min(asked, max(stage.global_batch_tokens for stage in stages(config)) // world)
    smaller = next((t for t in range(tokens // 2, 0, -1) if t % config.model.context == 0 and tokens % t == 0), None)
    cure = (
        f"train.micro_batch_tokens={smaller} (or auto) needs about 1/{tokens // smaller} as much and trains the same, with "
        f"{tokens // smaller} times the accumulation"
        if smaller
        else "train.recompute=layers needs less, and so does a smaller model.context"
    )
    if config.train.cuda_graphs:
        cure += ". train.cuda_graphs=false gives back what a step needs while evaluation runs"
    return MemoryShortage(
        f"out of memory {when} with micro-batches of {tokens:,} tokens: {usage(device)}. {cure}. What was saved is "
        "untouched; the same command goes on from there."
    )


def usage(device: torch.device) -> str:
    """What is in use of the device, in words."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 1e9
        free = torch.cuda.mem_get_info(device)[0] / 1e9
        return f"{device} has {_total(device) / 1e9:.1f} GB, of which at most {peak:.1f} GB were in use by this process and {free:.1f} GB are free"
    memory = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss / 1e9
    return f"this machine has {memory.total / 1e9:.1f} GB, of which this process uses {own:.1f} GB and {memory.available / 1e9:.1f} GB are free"


def peak_bytes(device: torch.device) -> int:
    """The most that this process has had in use: of the device's memory on CUDA; what it has now of that on MPS, else of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return psutil.Process().memory_info().rss


def _total(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory
