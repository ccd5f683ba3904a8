"""Which device is here, and which precision it computes fastest in."""

import torch

from dnascale.config import Config
from dnascale.errors import UsageError
from dnascale.hardware import measured_flops


def choose_device(asked: str) -> str:
    """cpu, cuda or mps for one of these or auto. Raises UsageError for a device that is not here."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(device for device, available in here.items() if available)
    if not here.get(asked):
        what = "torch sees no such device here" if asked in here else "that is no kind of device (cuda, mps or cpu)"
        raise UsageError(f"device={asked}, but {what}; there is: {', '.join(d for d in here if here[d])}.")
    return asked


def fastest_precision(device: str) -> str:
    """bf16 for GPUs since Ampere, for CPUs with instructions for it and for Macs that are faster with it, else fp32.

    Elsewhere bf16 is slower, up to ten times.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    if device == "cpu":
        # Private names, so they may be gone one day; then fp32, which is right everywhere.
        asked = (getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile"))
        return "bf16" if any(supported is not None and supported() for supported in asked) else "fp32"
    return "bf16" if device == "mps" and _bf16_pays(torch.device("mps")) else "fp32"


def _bf16_pays(device: torch.device) -> bool:
    """Whether matrix products are a fifth faster in bf16, tried: some of Apple's GPUs emulate it, old systems have none."""
    try:
        return measured_flops(device, torch.bfloat16, 2048) > 1.2 * measured_flops(device, torch.float32, 2048)
    except (RuntimeError, TypeError):  # macOS 13 and older
        return False


def settle_precision(config: Config, device: str) -> Config:
    """`config` with train.precision said, where it was `auto`."""
    if config.train.precision != "auto":
        return config
    return config.with_train(precision=fastest_precision(device))
