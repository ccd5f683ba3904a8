"""What hardware can do at most: peak rates as their makers state them, and measured on the device at hand."""

import re
import time

import torch

#: Dense bf16 matrix products with fp32 accumulation, TFLOP/s, by a part of the name that torch gives the device.
#: From NVIDIA's data sheets and architecture papers (A100, H100, H200, B200, L4, L40S, A40, A10, Ada, Ampere and Blackwell
#: GeForce); where a sheet states the rate with sparsity, half of it.
_PEAKS = {
    "B200": 2250.0, "H200": 989.4, "H100 NVL": 835.0, "H100 PCIe": 756.0, "H100": 989.4, "GH200": 989.4,
    "A100": 311.9, "L40S": 362.0, "L4": 121.0, "A40": 149.7, "A10": 125.0, "RTX 5090": 209.5, "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the maker states for dense bf16; None for hardware that is not in the table, CPUs and Macs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "Laptop" in name:  # a smaller chip, under the name of the desktop's
        return None
    return next((peak * 1e12 for part, peak in _PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def measured_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int | None = None) -> float:
    """FLOP/s of the device's own matrix product of [size, size] random numbers, the best of eight runs.

    Random and not zeros, which draw less power and run faster than real data.
    """
    size = size or {"cuda": 8192, "mps": 4096}.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        _wait(device)
        begin = time.perf_counter()
        a @ b
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
