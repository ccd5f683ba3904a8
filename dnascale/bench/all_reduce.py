"""All-reduce between processes, measured: gloo on CPUs, NCCL on GPUs. On several nodes, by torchrun:

torchrun --nproc-per-node 8 --nnodes 2 --node-rank I --master-addr HOST -m dnascale.bench.all_reduce
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

#: Bytes of the tensors that are summed.
SIZES = (8 << 10, 1 << 20, 16 << 20, 64 << 20)
_PATIENCE = 180.0


def in_new_processes(count: int, backend: str) -> tuple[dict[str, Any] | None, str]:
    """What `measure` gives in so many processes on this machine; or None, and why not."""
    from dnascale.train.distributed import free_port

    group = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "DNASCALE_BACKEND": backend,
    }
    command = [sys.executable, "-m", __name__]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        out, errors = ranks[0].communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {_PATIENCE:.0f} s"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if ranks[0].returncode:
        return None, (errors.strip().splitlines() or ["no message"])[-1][:200]
    return json.loads(out.splitlines()[-1]), ""


def measure(backend: str) -> dict[str, Any]:
    """In each process of an initialised group: {rows: [{bytes, seconds, bus}], skew}. `bus` is bytes/s as NCCL counts them:
    2 (n - 1) / n of the tensor over the time, which does not depend on the number of processes. `skew` in seconds.
    """
    import torch
    import torch.distributed as dist

    from dnascale.hardware import wait_for

    world, rank = dist.get_world_size(), dist.get_rank()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    rows = []
    for size in SIZES:
        tensor = torch.full((size // 4,), float(rank + 1), device=device)
        dist.all_reduce(tensor)
        if float(tensor[-1]) != world * (world + 1) / 2:
            raise RuntimeError(f"the sum of {size} bytes over {world} processes is wrong")
        times = []
        for _ in range(5 if size > 1 << 20 else 20):
            wait_for(device)
            dist.barrier()
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            wait_for(device)
            times.append(time.perf_counter() - begin)
        slowest = torch.tensor([sorted(times)[len(times) // 2]], device=device)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        seconds = float(slowest)
        rows.append({"bytes": size, "seconds": seconds, "bus": 2 * (world - 1) / world * size / seconds})
    return {"processes": world, "rows": rows, "skew": _skew(device)}


def _skew(device: Any) -> float:
    """Seconds between the earliest and the latest clock of all processes, read right after a barrier."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    now = torch.tensor([time.time()], dtype=torch.float64, device=device)
    every = [torch.zeros_like(now) for _ in range(dist.get_world_size())]
    dist.all_gather(every, now)
    times = [float(one) for one in every]
    return max(times) - min(times)


def main() -> None:
    """One process of the group that the environment describes; rank 0 prints JSON."""
    import torch
    import torch.distributed as dist

    backend = os.environ.get("DNASCALE_BACKEND") or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    measured = measure(backend)
    if dist.get_rank() == 0:
        print(json.dumps(measured), flush=True)
    dist.barrier()
    os._exit(0)  # threads of gloo may abort the interpreter's own shutdown


if __name__ == "__main__":
    main()
