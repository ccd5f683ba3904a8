"""Checks around the computation: packages, disk, data, clock."""

import ctypes
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from dnascale.launch.doctor.finding import Finding, bad, note, ok
from dnascale.launch.machine import usable_cores

#: Bytes per second below which writing a checkpoint is felt.
_SLOW_DISK = 100e6
_PROBE_BYTES = 256 << 20
#: adjtimex's answer when nobody keeps the clock right.
_TIME_ERROR = 5


def system() -> list[Finding]:
    """Operating system, Python, processors, memory."""
    import psutil

    memory, cores = psutil.virtual_memory(), usable_cores()
    found = (
        f"{platform.platform()}, Python {platform.python_version()}, {cores} CPU cores, "
        f"{memory.total / 1e9:.0f} GB memory, {memory.available / 1e9:.0f} GB free"
    )
    numbers = {"cores": cores, "memory": memory.total, "memory_free": memory.available}
    return [ok("system", found, **numbers)]


def packages() -> list[Finding]:
    """What dnascale needs, in versions that it works with."""
    from packaging.requirements import Requirement

    versions, wrong = {}, []
    for line in requires("dnascale") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            versions[needed.name] = version(needed.name)
        except PackageNotFoundError:
            wrong.append(str(needed))
        else:
            if not needed.specifier.contains(versions[needed.name], prereleases=True):
                wrong.append(f"{needed} (here {versions[needed.name]})")
    if wrong:
        return [
            bad("packages", f"missing or too old: {', '.join(wrong)}", "pip install -U dnascale", versions=versions)
        ]
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "accelerate"))
    return [ok("packages", shown, versions=versions)]


def deepspeed() -> list[Finding]:
    """DeepSpeed, and the one operator that one of our configurations must compile."""
    if sys.platform != "linux":
        return [ok("DeepSpeed", f"not used on {platform.system()}: one process trains plainly")]
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        mend = "pip install 'dnascale[deepspeed]', for train.engine=zero1, zero2, zero3"
        return [note("DeepSpeed", "not installed; plain and DistributedDataParallel need none", mend)]
    from dnascale.train.distributed import import_deepspeed

    import_deepspeed(on_cpu=not _has_cuda())
    findings = [ok("DeepSpeed", f"{found}; zero1, zero2, zero3, zero3_offload compile nothing", version=found)]
    if can_build_async_io():
        findings.append(ok("DeepSpeed async_io", "can be built: zero3_nvme works"))
    else:
        mend = "apt-get install libaio-dev g++ ninja-build, if you want train.engine=zero3_nvme"
        findings.append(note("DeepSpeed async_io", "cannot be built here", mend))
    return findings


def can_build_async_io() -> bool:
    """Whether libaio, its headers and a compiler are here. DeepSpeed must have been imported as training does."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return shutil.which("c++") is not None and bool(AsyncIOBuilder().is_compatible(verbose=False))


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def disk(folder: Path) -> list[Finding]:
    """Writing, syncing and reading back a quarter of a gigabyte where runs will be, and what is free there."""
    place = folder.resolve()
    free = shutil.disk_usage(place).free
    if free < 2 * _PROBE_BYTES:
        return [bad("disk", f"{place}: {free / 1e9:.1f} GB free", "free space, or name another folder with --dir")]
    block = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir=place) as file:
        begin = time.perf_counter()
        for _ in range(_PROBE_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = _PROBE_BYTES / (time.perf_counter() - begin)
        if hasattr(os, "posix_fadvise"):  # out of the page cache, so that the disk is read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begin = time.perf_counter()
        while file.read(1 << 20):
            pass
        read = _PROBE_BYTES / (time.perf_counter() - begin)
    found = f"{place}: writes {written / 1e6:,.0f} MB/s synced, reads {read / 1e6:,.0f} MB/s, {free / 1e9:,.0f} GB free"
    numbers = {"write": written, "read": read, "free": free}
    if written < _SLOW_DISK:
        mend = "a checkpoint of base takes 1.3 GB: put run.dir on a faster disk, or raise checkpoint.every"
        return [note("disk", found, mend, **numbers)]
    return [ok("disk", found, **numbers)]


def data(location: str | None) -> list[Finding]:
    """Every byte of a data set against its digest."""
    if location is None:
        return [ok("data", "not asked for (--data DATA compares every byte with its digest)")]
    from dnascale.data.verify import opened_to_verify, verify

    with opened_to_verify(location) as dataset:
        shards = [shard for split in dataset.splits.values() for shard in split.shards]
        size = sum(shard.bytes for shard in shards)
        begin = time.perf_counter()
        faults = verify(dataset)
        rate = size / (time.perf_counter() - begin)
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        mend = f"dnascale data verify {location} lists all; restore the files from a copy, or prepare them again"
        return [bad("data", f"{faults[0]}{more}", mend, faults=faults)]
    found = (
        f"{location}: {len(shards)} shards, {size / 1e6:,.0f} MB, every digest right, read at {rate / 1e6:,.0f} MB/s"
    )
    return [ok("data", found, shards=len(shards), bytes=size, rate=rate)]


def clock() -> list[Finding]:
    """Whether somebody keeps the clock right, and whether it stands before what is installed here."""
    installed = Path(__file__).stat().st_mtime
    if time.time() < installed - 86_400:
        found = f"it says {time.strftime('%F %T')}, before dnascale was installed"
        return [bad("clock", found, "set it: certificates and file times are wrong; training itself does not read it")]
    state = _kernel_clock()
    found = f"{time.strftime('%F %T %Z')}"
    if state == _TIME_ERROR:
        mend = "run chrony or systemd-timesyncd, where logs of several hosts are compared"
        return [note("clock", f"{found}, kept right by nobody", mend, synchronised=False)]
    how = "kept right" if state is not None else "whether it is kept right is not known here"
    return [ok("clock", f"{found}, {how}", synchronised=None if state is None else True)]


def _kernel_clock() -> int | None:
    """Linux's own opinion of its clock (adjtimex with nothing to adjust); None where it cannot be asked."""
    if sys.platform != "linux":
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        state = int(libc.adjtimex(ctypes.create_string_buffer(512)))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None
