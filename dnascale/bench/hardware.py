"""What hardware can do at most: peak rates as their makers state them, and measured on the device at hand."""

import re
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Card:
    """What a maker states of a device."""

    name: str
    teraflops: float  # dense bf16 matrix products with fp32 accumulation
    memory: float  # 10^9 bytes
    bandwidth: float  # 10^12 bytes/s of its memory
    watts: float
    #: Bytes/s in each direction to the other devices of a node: NVLink, Infinity Fabric, or PCIe.
    link: float = 25e9


#: From NVIDIA's data sheets and architecture papers (A100, H100, H200, B200, L4, L40S, A40, A10; Ampere, Ada and Blackwell GeForce) and
#: AMD's (CDNA 2 and 3). Where a sheet states the rate with sparsity, half of it. The first whose name is in the device's is meant.
CARDS = (
    Card("B200", 2250.0, 180, 7.7, 1000, 900e9), Card("H200", 989.4, 141, 4.8, 700, 450e9), Card("H100 NVL", 835.0, 94, 3.9, 400, 300e9),
    Card("H100 PCIe", 756.0, 80, 2.0, 350), Card("H100", 989.4, 80, 3.35, 700, 450e9), Card("GH200", 989.4, 96, 4.0, 700, 450e9),
    Card("A100-PCIE-40GB", 311.9, 40, 1.555, 250), Card("A100-SXM4-40GB", 311.9, 40, 1.555, 400, 300e9),
    Card("A100 80GB PCIe", 311.9, 80, 1.935, 300), Card("A100", 311.9, 80, 2.039, 400, 300e9), Card("L40S", 362.0, 48, 0.864, 350),
    Card("L4", 121.0, 24, 0.3, 72), Card("A40", 149.7, 48, 0.696, 300), Card("A10", 125.0, 24, 0.6, 150),
    Card("RTX 5090", 209.5, 32, 1.792, 575), Card("RTX 4090", 165.2, 24, 1.008, 450), Card("RTX 4080", 97.5, 16, 0.717, 320),
    Card("RTX 3090", 71.0, 24, 0.936, 350), Card("RTX 3080", 59.5, 10, 0.760, 320),
    Card("MI300X", 1307.4, 192, 5.3, 750, 448e9), Card("MI250X", 383.0, 128, 3.28, 560, 100e9),
)  # fmt: skip


def card_of(name: str) -> Card | None:
    """The card of a device by its whole name; None for one that is not in the table."""
    if "Laptop" in name:  # a smaller chip, under the name of the desktop's
        return None
    return next((card for card in CARDS if re.search(rf"\b{card.name}\b", name, re.IGNORECASE)), None)


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the maker states for dense bf16; None for hardware that is not in the table, CPUs and Macs."""
    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return None if card is None else card.teraflops * 1e12


def measured_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int | None = None) -> float:
    """FLOP/s of the device's own matrix product of [size, size] random numbers, the best of eight runs.

    Random and not zeros, which draw less power and run faster than real data.
    """
    size = size or {"cuda": 8192, "mps": 4096}.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait_for(device)
        begin = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def measured_bandwidth(device: torch.device) -> float:
    """Bytes/s of the device's memory, read and written both counted: the best of eight copies of a quarter of a gigabyte."""
    source = torch.rand(1 << 26, device=device)
    copy = torch.empty_like(source)
    best = float("inf")
    for _ in range(8):
        wait_for(device)
        begin = time.perf_counter()
        copy.copy_(source)
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * source.nbytes / best


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
