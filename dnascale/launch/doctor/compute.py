"""Checks of the computation: devices, precision, each attention kernel, a whole training step, the compiler."""

import platform
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from dnascale.launch.doctor.finding import Finding, bad, note, ok

if TYPE_CHECKING:
    import torch


def _device(asked: str) -> "torch.device":
    import torch

    from dnascale.device import choose_device

    return torch.device(choose_device(asked))


def devices(asked: str) -> list[Finding]:
    """What torch computes on here, and why not on more."""
    import torch

    device = _device(asked)
    if device.type == "cuda":
        return [finding for index in range(torch.cuda.device_count()) for finding in _gpu(index)]
    if device.type == "mps":
        memory = torch.mps.recommended_max_memory()
        found = f"Apple GPU, {platform.machine()}, may use {memory / 1e9:.0f} GB of the unified memory"
        return [ok("device", found, memory=memory)]
    if _nvidia_without_torch():
        mend = f"this torch ({torch.__version__}) has no CUDA, or the driver is too old for it: see pytorch.org/get-started"
        return [note("device", "an NVIDIA card is here, but torch does not see it", mend)]
    threads = torch.get_num_threads()
    return [ok("device", f"CPU, {threads} thread{'s' if threads > 1 else ''}", threads=threads)]


def _gpu(index: int) -> list[Finding]:
    import torch

    from dnascale.hardware import peak_flops

    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    peak = peak_flops(torch.device("cuda", index))
    sheet = f", {peak / 1e12:.0f} TFLOP/s bf16 by its data sheet" if peak else ""
    found = (
        f"{properties.name}, {total / 1e9:.0f} GB ({free / 1e9:.0f} free), capability {properties.major}.{properties.minor}, "
        f"CUDA {torch.version.cuda}{sheet}"
    )
    numbers = {"memory": total, "free": free, "capability": [properties.major, properties.minor]}
    if free < 0.8 * total:
        return [note(f"device {index}", found, "another program holds its memory: see nvidia-smi", **numbers)]
    return [ok(f"device {index}", found, **numbers)]


def _nvidia_without_torch() -> bool:
    from pathlib import Path

    return Path("/proc/driver/nvidia/version").exists()


def precision(asked: str) -> list[Finding]:
    """Matrix products in fp32 and bf16, measured, and what train.precision=auto takes."""
    import torch

    from dnascale.device import fastest_precision
    from dnascale.hardware import measured_flops

    device = _device(asked)
    size = 4096 if device.type == "cuda" else 1024 if device.type == "mps" else 512
    rates = {name: measured_flops(device, getattr(torch, kind), size) for name, kind in _PRECISIONS.items()}
    taken = fastest_precision(device.type)
    found = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in rates.items()) + f"; auto takes {taken}"
    other = next(name for name in rates if name != taken)
    if rates[other] > 1.5 * rates[taken]:
        return [
            note("precision", found, f"train.precision={other} may be faster here: try a few steps of both", **rates)
        ]
    return [ok("precision", found, **rates)]


_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def attention(asked: str) -> list[Finding]:
    """Each kernel that this device may use, forward and backward, against dense attention in fp32 on the CPU."""
    import torch

    from dnascale.device import fastest_precision
    from dnascale.model.attention import Attention
    from dnascale.model.exactness import TOLERANCE, relative_error

    device = _device(asked)
    dtype = torch.bfloat16 if fastest_precision(device.type) == "bf16" else torch.float32
    chosen = Attention.choose(device, dtype, 64, 1024, 1, 64).kernel
    findings = []
    for kernel in dict.fromkeys([chosen, "blocks", "masks"]):
        relative_error(kernel, device, dtype)  # the first call loads and plans
        begin = time.perf_counter()
        error = relative_error(kernel, device, dtype)
        seconds = time.perf_counter() - begin
        name = f"attention: {kernel}"
        found = f"{str(dtype).removeprefix('torch.')}, relative error {error:.1e}, {seconds * 1e3:.1f} ms"
        if not error < TOLERANCE[dtype]:
            findings.append(bad(name, found, "this torch computes it wrongly on this device: use another version"))
        else:
            findings.append(ok(name, f"{'taken: ' if kernel == chosen else ''}{found}", error=error))
    if device.type == "cuda" and chosen != "flash":
        mend = "flash attention needs compute capability 8.0 or newer, and torch 2.11 or newer"
        findings.append(note("attention", f"{chosen} is taken: slower than flash attention", mend))
    return findings


def step(asked: str) -> list[Finding]:
    """A whole optimizer step of a tiny model; operations that the device leaves to the CPU are counted."""
    device = _device(asked)
    take_step = tiny_step(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        losses = [take_step() for _ in range(3)]
    strays = sorted({str(w.message).split("'")[1] for w in said if "fall back to run on the CPU" in str(w.message)})
    if strays:
        found = f"works, but {', '.join(strays)} run on the CPU"
        return [note("training step", found, "a newer torch may have them; each is slow: report them", strays=strays)]
    if not losses[-1] < losses[0]:
        found = f"the loss of three steps on the same window did not fall: {losses}"
        return [bad("training step", found, "this torch computes wrongly on this device: use another version")]
    return [ok("training step", f"masking, forward, backward, update: loss {losses[0]:.3f} to {losses[-1]:.3f}")]


def tiny_step(device: "torch.device") -> Callable[[], float]:
    """A function that takes one step of a tiny model on one fixed batch, as training does, and returns its loss."""
    import torch

    from dnascale.config import MaskingConfig, ModelConfig, OptimizerConfig
    from dnascale.data.masking import Masking
    from dnascale.device import fastest_precision
    from dnascale.model.modernbert import MaskedLanguageModel, build
    from dnascale.train.optim import build_optimizer
    from dnascale.vocab import CHARACTER

    model = ModelConfig(
        hidden_size=64, layers=3, heads=2, intermediate_size=96, context=128, local_attention=16, initializer_range=0.06
    )
    masking = Masking(CHARACTER, **MaskingConfig().model_dump())
    autocast = torch.bfloat16 if fastest_precision(device.type) == "bf16" else None
    module = MaskedLanguageModel(build(model, CHARACTER), masking, autocast=autocast, device=device).to(device)
    optimizer = build_optimizer(module, OptimizerConfig(learning_rate=1e-2))
    bases = torch.tensor([CHARACTER.encode(base)[0] for base in "ACGT"], dtype=torch.uint8)
    tokens = bases[torch.randint(4, (4, 128), generator=torch.Generator().manual_seed(0))]
    tokens[:, 50] = CHARACTER.sep
    keys = torch.arange(4)
    room = module.room(tokens)

    def take() -> float:
        loss, _ = module(tokens.to(device), keys.to(device), room)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(module.parameters(), 1.0, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return take


def compilation(asked: str) -> list[Finding]:
    """torch.compile of a small function, forward and backward."""
    import torch

    device = _device(asked)
    if device.type == "mps":
        return [ok("torch.compile", "off on a Mac by default (train.compile=layers tries it)")]
    layer = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32)).to(device)
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    inputs = torch.randn(8, 32, device=device)
    needed = device.type == "cuda"
    try:
        begin = time.perf_counter()
        out = compiled(inputs)
        out.sum().backward()
        seconds = time.perf_counter() - begin
    except Exception as error:
        mend = "install a C++ compiler (g++)" if device.type == "cpu" else "install triton and a C compiler"
        sentence = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        alternative = "" if not needed else ", or train.compile=false, at some cost in speed"
        return [(bad if needed else note)("torch.compile", sentence, mend + alternative)]
    difference = float(((out - layer(inputs)).norm() / out.norm()).detach())
    if difference > 1e-2:
        return [
            bad(
                "torch.compile", f"relative error {difference:.1e}", "train.compile=false, and another version of torch"
            )
        ]
    used = "on" if needed else "off"
    return [ok("torch.compile", f"works, {seconds:.0f} s for a small layer; {used} by default here", seconds=seconds)]
