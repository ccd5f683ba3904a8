"""Whether processes reach each other, and how fast."""

from typing import Any

from dnascale.bench.all_reduce import in_new_processes
from dnascale.launch.doctor.finding import Finding, bad, note, ok


def communication(asked: str, processes: int | None) -> list[Finding]:
    """Starts one process a GPU, or two on the CPU, and times all-reduces between them."""
    import torch

    from dnascale.device import choose_device

    device = choose_device(asked)
    if device == "mps":
        return [ok("processes", "a Mac trains with one")]
    count = processes or (torch.cuda.device_count() if device == "cuda" else 2)
    backend = "nccl" if device == "cuda" else "gloo"
    if count == 1:
        return [ok("processes", "one GPU, one process: nothing to exchange")]
    measured, error = in_new_processes(count, backend)
    what = f"{backend}, {count} processes"
    if measured is None:
        mend = "NCCL_DEBUG=INFO torchrun --nproc-per-node N -m dnascale.bench.all_reduce says more"
        return [bad(what, f"all-reduce fails: {error}", mend if backend == "nccl" else "is the loopback interface up?")]
    return [judge(what, measured, backend)]


def judge(what: str, measured: dict[str, Any], backend: str) -> Finding:
    """The line for what `measure` gave."""
    largest = measured["rows"][-1]
    found = (
        f"all-reduce sums right; {measured['rows'][0]['seconds'] * 1e6:,.0f} us for 8 kB, bus {largest['bus'] / 1e9:.2f} GB/s for "
        f"{largest['bytes'] / 1e6:.0f} MB; clocks within {measured['skew'] * 1e3:.0f} ms"
    )
    if measured["skew"] > 1.0:
        return note(what, found, "the hosts' clocks differ: run chrony on all of them", **measured)
    if backend == "nccl" and largest["bus"] < 10e9:
        return note(what, found, "less than PCIe gives: look at nvidia-smi topo -m and NCCL_DEBUG=INFO", **measured)
    return ok(what, found, **measured)
