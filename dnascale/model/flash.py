"""Flash attention of the flash-attn packages in the place of torch's own, through torch's registry of implementations.

torch's dispatcher is changed for the whole process, so a run decides once, before its model is built.
"""

import importlib.util
from typing import NamedTuple

import torch

from dnascale.config import FlashAttention
from dnascale.errors import UsageError, first_line
from dnascale.model.attention import Attention, flash_implementation
from dnascale.model.exactness import TOLERANCE, relative_error


class _Package(NamedTuple):
    module: str
    capabilities: tuple[int, ...]  # major numbers of the devices that it has kernels for
    install: str


#: What torch's registry imports for each name, and where its kernels run (torch/nn/attention/_fa3.py, _fa4.py).
_PACKAGES = {
    "FA3": _Package(
        "flash_attn_interface", (9,), "build the folder `hopper` of https://github.com/Dao-AILab/flash-attention"
    ),
    "FA4": _Package(
        "flash_attn.cute", (9, 10), "pip install flash-attn-4 (with torch before 2.15: flash-attn-4==4.0.0b17)"
    ),
}


def use_flash_attention(
    name: FlashAttention, device: torch.device, precision: str, head_size: int = 64, reach: int = 64
) -> None:
    """Puts an implementation in the place of torch's own and tries it on heads of such a size and local layers of such a reach; "torch"
    puts torch's back.

    Raises UsageError where it is not installed, has no kernels for the device, precision or heads, or computes something else than
    attention.
    """
    if name == "torch":
        _restore()
        return
    asked, package = f"train.flash_attention={name}", _PACKAGES[name]
    if device.type != "cuda" or precision != "bf16":
        raise UsageError(f"{asked} is for bf16 on CUDA, and this run is {precision} on {device.type}: leave it out.")
    if "flash" not in Attention.choose(device, torch.bfloat16, head_size, 1, None, reach).kernel:
        raise UsageError(f"{asked} has no kernels for heads of {head_size} dimensions on this device: leave it out.")
    major, minor = torch.cuda.get_device_capability(device)
    if major not in package.capabilities:
        has = " and ".join(f"{number}.x" for number in package.capabilities)
        raise UsageError(
            f"{asked} has kernels for compute capability {has}, and {torch.cuda.get_device_name(device)} has {major}.{minor}: leave it out."
        )
    if not _installed(package.module):
        raise UsageError(
            f"{asked} needs the Python module {package.module}, which is not installed: {package.install}, or leave it out."
        )
    try:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl(name)
        off = relative_error("packed flash", device, torch.bfloat16, head_size, reach)
    except Exception as error:
        _restore()
        raise UsageError(
            f"{asked} does not run here ({type(error).__name__}: {first_line(error)}): leave it out, or install another version."
        ) from error
    if not off < TOLERANCE[torch.bfloat16]:
        _restore()
        raise UsageError(
            f"{asked} computes attention wrongly on this device (relative error {off:.1e}): leave it out, or install another version."
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package around it is not there, or broken
        return False


def _restore() -> None:
    if flash_implementation() is not None:
        torch.nn.attention.restore_flash_attention_impl()
