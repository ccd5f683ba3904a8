"""How long the processes of a run exchange data in a step: from bytes, bandwidths and latencies.

Counted as the engines here send them (DistributedDataParallel and DeepSpeed 0.19 with ds_configs/). Not modelled: congestion between
nodes, stragglers, protocol switches of NCCL.
"""

import math
from dataclasses import dataclass

ENGINES = ("ddp", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Link:
    """Of one device: `bandwidth` in bytes/s in each direction, `latency` in seconds a message."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """`nodes` of `devices` each; each device has its own share of the network between them."""

    nodes: int
    devices: int
    inside: Link
    between: Link

    @property
    def world(self) -> int:
        return self.nodes * self.devices


def half_seconds(size: float, cluster: Cluster) -> float:
    """Seconds of an all-gather or a reduce-scatter of `size` bytes (as gathered) over all devices.

    Within a node around a ring; between nodes each device exchanges its part, with the latency of a tree.
    """
    g, n = cluster.devices, cluster.nodes
    seconds = 0.0
    if g > 1:
        seconds += (g - 1) * cluster.inside.latency + (g - 1) / g * size / cluster.inside.bandwidth
    if n > 1:
        part = size / g
        seconds += math.ceil(math.log2(n)) * cluster.between.latency + (n - 1) / n * part / cluster.between.bandwidth
    return seconds


def all_reduce_seconds(size: float, cluster: Cluster) -> float:
    """Seconds of an all-reduce of `size` bytes: a reduce-scatter and an all-gather."""
    return 2 * half_seconds(size, cluster)


def messages(engine: str, parameters: int, accumulation: int, bf16: bool) -> list[tuple[str, float]]:
    """(Collective, bytes) of one optimizer step: all_reduce, all_gather or reduce_scatter, bytes of the whole tensor.

    ddp reduces fp32 gradients once a step. zero1 reduces gradients once a step, zero2 and zero3 in every micro-batch; their
    weights and gradients are bf16 in a bf16 run. DeepSpeed reduces buckets of several ranks by an all-reduce in stages 1 and 2.
    zero3 gathers the weights for the forward and again for the backward pass.
    """
    whole = float(parameters * (2 if bf16 else 4))
    if engine == "ddp":
        return [("all_reduce", 4.0 * parameters)]
    if engine == "zero1":
        return [("all_reduce", whole), ("all_gather", whole)]
    if engine == "zero2":
        return [("all_reduce", whole)] * accumulation + [("all_gather", whole)]
    if engine == "zero3":
        return [("all_gather", whole), ("all_gather", whole), ("reduce_scatter", whole)] * accumulation
    raise ValueError(f"no engine {engine}")


def step_seconds(engine: str, parameters: int, accumulation: int, bf16: bool, cluster: Cluster) -> float:
    """Seconds that one step exchanges data, whether or not something is computed meanwhile."""
    if cluster.world == 1:
        return 0.0
    return sum(
        all_reduce_seconds(size, cluster) if kind == "all_reduce" else half_seconds(size, cluster)
        for kind, size in messages(engine, parameters, accumulation, bf16)
    )


def fit(rows: list[dict[str, float]], world: int) -> Link:
    """The link of one node whose all-reduces took what `dnascale doctor` measured: rows of bytes and seconds.

    Least squares in relative error, so that small messages decide the latency and large ones the bandwidth.
    """
    # seconds = latency * 2 (n - 1) + (1 / bandwidth) * 2 (n - 1) / n * bytes; both sides divided by seconds
    steps, share = 2 * (world - 1), 2 * (world - 1) / world
    a = [(steps / row["seconds"], share * row["bytes"] / row["seconds"]) for row in rows]
    xx, xy, yy = sum(x * x for x, _ in a), sum(x * y for x, y in a), sum(y * y for _, y in a)
    x1, y1 = sum(x for x, _ in a), sum(y for _, y in a)
    determinant = xx * yy - xy * xy
    latency, inverse = (x1 * yy - y1 * xy) / determinant, (y1 * xx - x1 * xy) / determinant
    return Link(1 / inverse if inverse > 0 else math.inf, max(latency, 0.0))
