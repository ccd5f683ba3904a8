"""What hardware can do at most: peak rates as their makers state them, and measured on the device at hand."""

import platform
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Card:
    """What a maker states of a device."""

    name: str
    teraflops: float  # dense bf16 matrix products with fp32 accumulation
    memory: float  # 10^9 bytes
    bandwidth: float  # 10^12 bytes/s of its memory; of a CPU, of layer norms
    watts: float | None  # None: not known
    #: Bytes/s in each direction to the other devices of a node: NVLink, Infinity Fabric, or PCIe.
    link: float = 25e9
    cpu: bool = False  # rates are then measured, and not a maker's


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


#: Other chips, or a part of one, under a name that is in the table.
_OTHER_CHIP = re.compile(r"\b(Laptop|MIG|Ti|SUPER|D|H200 NVL)\b", re.IGNORECASE)


def card_of(name: str) -> Card | None:
    """The card of a device by its whole name; None for one that is not in the table."""
    if _OTHER_CHIP.search(name):
        return None
    return next((card for card in CARDS if re.search(rf"\b{card.name}\b", name, re.IGNORECASE)), None)


def card_here(device: torch.device, dtype: torch.dtype) -> Card:
    """The device at hand: from the table where it is in it, else as measured, in a second or two. Measured rates are of products in `dtype`."""
    import psutil

    name = device_name(device)
    if device.type == "cuda" and (known := card_of(name)) is not None:
        return known
    if device.type == "cuda":
        memory: float = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = psutil.virtual_memory().total
    rate = measured_flops(device, dtype) / 1e12
    moved = measured_norm(device) if device.type == "cpu" else measured_bandwidth(device)
    return Card(name, rate, memory / 1e9, moved / 1e12, None, cpu=device.type == "cpu")


def device_name(device: torch.device) -> str:
    """Of a GPU its model; of a CPU its model and the threads that torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the maker states for dense bf16; None for hardware that is not in the table, CPUs and Macs."""
    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return None if card is None else card.teraflops * 1e12


def measured_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16, size: int | None = None) -> float:
    """FLOP/s of the device's own matrix product of [size, size] random numbers, the best of eight runs or of a tenth of a second's.

    Random and not zeros, which draw less power and run faster than real data. Eight small products are over before a core that something
    else had for a moment is back.
    """
    size = size or {"cuda": 8192, "mps": 4096}.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, runs, until = float("inf"), 0, time.perf_counter() + 0.1
    while runs < 8 or time.perf_counter() < until:
        runs += 1
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


def measured_norm(device: torch.device) -> float:
    """Bytes/s, read and written, of layer norms of 4 MB in fp32: what a CPU does between matrix products, in its caches. Copies of large
    tensors say less of it, and differ by half from one minute to the next on shared machines. The best of forty.
    """
    rows = torch.randn(4096, 256, device=device)
    best = float("inf")
    for _ in range(40):
        wait_for(device)
        begin = time.perf_counter()
        torch.nn.functional.layer_norm(rows, (256,))
        wait_for(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * rows.nbytes / best


def wait_for(device: torch.device) -> None:
    """Until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
