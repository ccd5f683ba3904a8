"""Which precision a device computes fastest in."""

import torch

from dnascale.config import Config


def fastest_precision(device: str) -> str:
    """bf16 for GPUs since Ampere and for CPUs with instructions for it, else fp32: elsewhere bf16 is slower, up to ten times."""
    if device == "cuda":
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp32"
    if device == "cpu":
        # Private names, so they may be gone one day; then fp32, which is right everywhere.
        asked = (getattr(torch.cpu, f"_is_{feature}_supported", None) for feature in ("avx512_bf16", "amx_tile"))
        return "bf16" if any(supported is not None and supported() for supported in asked) else "fp32"
    return "fp32"


def settle_precision(config: Config, device: str) -> Config:
    """`config` with train.precision said, where it was `auto`."""
    if config.train.precision != "auto":
        return config
    train = config.train.model_copy(update={"precision": fastest_precision(device)})
    return config.model_copy(update={"train": train})
