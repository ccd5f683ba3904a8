"""What is here: devices, memory, processors, and the Slurm job that this process is part of."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from dnascale.errors import UsageError

#: What Slurm calls the steps of `salloc`'s shell and of a batch script, which are no steps of srun (slurm.h).
_SHELLS = ("4294967290", "4294967291")
#: Asked in a process of its own: CUDA in the launcher would take half a gigabyte of the first GPU for as long as it runs.
_PROBE = """
import json, torch
devices = [{"kind": "cuda", "name": p.name, "memory": p.total_memory}
           for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))]
if not devices and torch.backends.mps.is_available():
    devices = [{"kind": "mps", "name": "Apple GPU", "memory": torch.mps.recommended_max_memory()}]
print(json.dumps(devices))
"""


@dataclass(frozen=True)
class Device:
    """An accelerator. `memory` in bytes; on a Mac the share of the unified memory that the GPU may use."""

    kind: str  # cuda or mps
    name: str
    memory: int


@dataclass(frozen=True)
class Slurm:
    """The job that a process runs in. `node` is None in the batch script, and this node's place among `hosts` in a step."""

    job: int
    hosts: tuple[str, ...]
    node: int | None
    restarts: int = 0
    cpus: int | None = None  # of a task, where the job asked for a number


@dataclass(frozen=True)
class Machine:
    """One node, as a launcher sees it. `memory` in bytes."""

    system: str
    cores: int
    memory: int
    devices: tuple[Device, ...] = ()
    deepspeed: bool = False
    slurm: Slurm | None = None
    threads: int | None = None  # OMP_NUM_THREADS, where it is set

    @property
    def device(self) -> str:
        return self.devices[0].kind if self.devices else "cpu"


def look(environment: Mapping[str, str] = os.environ) -> Machine:
    """This machine, now. Raises UsageError when torch does not start."""
    import psutil

    return Machine(
        system=platform.system(),
        cores=usable_cores(),
        memory=psutil.virtual_memory().total,
        devices=find_devices(),
        deepspeed=find_spec("deepspeed") is not None,
        slurm=find_slurm(environment),
        threads=int(threads) if (threads := environment.get("OMP_NUM_THREADS", "")).isdigit() else None,
    )


def usable_cores() -> int:
    """Processors that this process may run on: less than there are under Slurm, in containers and with taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_devices() -> tuple[Device, ...]:
    """The accelerators that torch sees (CUDA_VISIBLE_DEVICES counts). Raises UsageError when torch does not start."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"torch cannot look for devices here ({cause}): is its installation whole?")
    return tuple(Device(**device) for device in json.loads(done.stdout.splitlines()[-1]))


def find_slurm(environment: Mapping[str, str]) -> Slurm | None:
    """The Slurm job of an environment, or None. Raises UsageError when its list of nodes is not understood, or when a node has
    several tasks.
    """
    if "SLURM_JOB_ID" not in environment or "SLURM_JOB_NODELIST" not in environment:
        return None
    in_step = environment.get("SLURM_STEP_ID", _SHELLS[0]) not in _SHELLS
    tasks, nodes = (int(environment.get(f"SLURM_STEP_NUM_{what}", "1")) for what in ("TASKS", "NODES"))
    if in_step and tasks > nodes:
        raise UsageError(
            f"this Slurm step has {tasks} tasks on {nodes} node{'s' if nodes > 1 else ''}: start one a node (srun "
            "--ntasks-per-node=1), which starts a process for each GPU."
        )
    listed = environment.get("SLURM_STEP_NODELIST") if in_step else None
    return Slurm(
        job=int(environment["SLURM_JOB_ID"]),
        hosts=expand_hosts(listed or environment["SLURM_JOB_NODELIST"]),
        node=int(environment["SLURM_NODEID"]) if in_step else None,
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
        cpus=int(environment["SLURM_CPUS_PER_TASK"]) if "SLURM_CPUS_PER_TASK" in environment else None,
    )


def expand_hosts(listed: str) -> tuple[str, ...]:
    """`gpu[01-03,7],login` to the names that Slurm means: gpu01, gpu02, gpu03, gpu7, login. Raises UsageError for other text."""
    names: list[str] = []
    for name in re.split(r",(?![^\[]*\])", listed):  # at commas outside of brackets
        before, bracket, rest = name.partition("[")
        group, closed, after = rest.partition("]")
        if not bracket:
            names.append(name)
            continue
        tails = expand_hosts(after) if after else ("",)
        try:
            numbers = [number for part in group.split(",") for number in _range(part)]
        except ValueError:
            numbers = []
        if not closed or not numbers:
            raise UsageError(f"the list of nodes {listed!r} of this Slurm job is not understood.")
        names += [before + number + tail for number in numbers for tail in tails]
    return tuple(names)


def _range(part: str) -> list[str]:
    """`08-11` to 08, 09, 10, 11."""
    first, _, last = part.partition("-")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
