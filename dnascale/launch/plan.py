"""From a machine and a configuration to one command, with reasons. Pure: looks at nothing, starts nothing."""

import shlex
import sys
from dataclasses import dataclass, field

from dnascale.config import Config
from dnascale.errors import UsageError
from dnascale.launch.machine import Machine
from dnascale.model.memory import parameters, state_bytes, tokens_that_fit
from dnascale.train.batching import divide_batch, divides
from dnascale.train.engines.deepspeed import STAGES
from dnascale.train.schedules import stages

#: Where the first node listens. In Slurm another for each job, so that two jobs may share a node.
PORT = 29_500
#: Seconds after which a silent node counts as lost.
LOST_AFTER = 60.0
_PORTS_OF_JOBS = range(20_000, 30_000)
_ENGINES = ("plain", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Nodes:
    """The machines of a run, and which of them this is. `first` is the host that the others connect to."""

    count: int = 1
    rank: int = 0
    first: str = "127.0.0.1"
    port: int = PORT
    #: Told apart by name in messages; empty where names are not known.
    names: tuple[str, ...] = ()


@dataclass
class Launch:
    """What will be run on this node. `words` is the command: `torchrun` or `srun` or python itself."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    nodes: Nodes = field(default_factory=Nodes)
    #: Nodes of the job that the global batch cannot be divided over; they have nothing to do.
    idle: bool = False

    def shown(self) -> str:
        """The command as a line for a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.words)])


def plan(
    machine: Machine,
    config: Config,
    words: list[str],
    processes: int | None = None,
    nodes: Nodes | None = None,
    lost_after: float = LOST_AFTER,
) -> Launch:
    """The command that trains `config`, given as `words` (CONFIG KEY=VALUE...), here.

    `processes` on each node; by default one a GPU. `nodes`: by default those of the Slurm job, else this one alone. Raises
    UsageError for what cannot be: more processes than GPUs, a model that no engine fits into memory.
    """
    device = machine.device if config.train.device == "auto" else config.train.device
    reasons = [_what_is_here(machine)]
    if nodes is None:
        nodes = _slurm_nodes(machine, reasons)
        if nodes is None:
            return _over_srun(machine, words, processes, lost_after, reasons)
    local = _local_processes(machine, device, processes, reasons)
    used = _divisible(config, nodes.count, local, reasons)
    overrides = [*_memory(config, machine, device, used * local, words, reasons), f"train.processes={used * local}"]
    environment = {}
    if machine.threads is None and (local > 1 or nodes.count > 1):
        threads = max(1, machine.cores // local)
        environment["OMP_NUM_THREADS"] = str(threads)
        reasons.append(
            f"{machine.cores} CPU cores for {local} process{'es' if local > 1 else ''}: {threads} thread"
            f"{'s' if threads > 1 else ''} each"
        )
    nodes = Nodes(used, nodes.rank, nodes.first, nodes.port, nodes.names[:used])
    return Launch(_command(nodes, local, [*words, *overrides]), environment, reasons, nodes, idle=nodes.rank >= used)


def _what_is_here(machine: Machine) -> str:
    if not machine.devices:
        return f"{machine.system}, {machine.cores} CPU cores, {machine.memory / 1e9:.0f} GB, no GPU that torch can use"
    first = machine.devices[0]
    count = f"{len(machine.devices)} x " if len(machine.devices) > 1 else ""
    what = "of the unified memory" if first.kind == "mps" else "each" if count else ""
    return f"{machine.system}, {count}{first.name}, {first.memory / 1e9:.0f} GB {what}".rstrip()


def _slurm_nodes(machine: Machine, reasons: list[str]) -> Nodes | None:
    """The nodes of the Slurm job; one node outside of Slurm; None in a job of several nodes, but outside of its steps."""
    slurm = machine.slurm
    if slurm is None:
        return Nodes()
    again = f", start {slurm.restarts + 1}" if slurm.restarts else ""
    if slurm.node is None:
        if len(slurm.hosts) > 1:
            reasons.append(
                f"Slurm job {slurm.job} on {len(slurm.hosts)} nodes{again}: srun starts this on each of them"
            )
            return None
        return Nodes(names=slurm.hosts)
    reasons.append(f"Slurm job {slurm.job}, node {slurm.node} of {len(slurm.hosts)} ({slurm.hosts[slurm.node]}){again}")
    port = _PORTS_OF_JOBS[slurm.job % len(_PORTS_OF_JOBS)]
    return Nodes(len(slurm.hosts), slurm.node, slurm.hosts[0], port, slurm.hosts)


def _over_srun(
    machine: Machine, words: list[str], processes: int | None, lost_after: float, reasons: list[str]
) -> Launch:
    assert machine.slurm is not None
    options = ["--processes", str(processes)] if processes is not None else []
    options += ["--lost-after", f"{lost_after:g}"] if lost_after != LOST_AFTER else []
    # Nodes with nothing to do end at once: no task waits for the others for a limited time only.
    srun = ["srun", "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=0"]
    if machine.slurm.cpus is not None:  # since Slurm 22.05 a task has one CPU unless srun is told how many
        srun.append(f"--cpus-per-task={machine.slurm.cpus}")
    command = [*srun, sys.executable, "-m", "dnascale", "launch", *options, *words]
    return Launch(command, reasons=reasons, nodes=Nodes(len(machine.slurm.hosts), names=machine.slurm.hosts))


def _local_processes(machine: Machine, device: str, wanted: int | None, reasons: list[str]) -> int:
    gpus = sum(found.kind == "cuda" for found in machine.devices) if device == "cuda" else 0
    if device == "mps" and (wanted or 1) > 1:
        raise UsageError("a Mac has one GPU, which one process uses: leave out --processes.")
    if device == "cuda":
        if not gpus:
            raise UsageError("train.device=cuda, but torch sees no GPU here.")
        if wanted is not None and wanted > gpus:
            raise UsageError(f"--processes {wanted}, but torch sees {gpus} GPUs here: one process a GPU.")
        reasons.append(f"one process a GPU: {wanted or gpus}")
        return wanted or gpus
    if device == "cpu" and wanted is None:
        threads = machine.threads or machine.cores
        why = " (OMP_NUM_THREADS)" if machine.threads else ""
        reasons.append(
            f"one process on the CPU, with {threads} thread{'s' if threads > 1 else ''}{why}; --processes starts more"
        )
    return wanted or 1


def _divisible(config: Config, nodes: int, local: int, reasons: list[str]) -> int:
    """The largest number of nodes, up to `nodes`, over which every global batch of the run divides into whole windows."""
    of_run = stages(config)
    windows = " and ".join(dict.fromkeys(str(one.global_batch_tokens // one.context) for one in of_run))
    for used in range(nodes, 0, -1):
        if divides(config.with_train(micro_batch_tokens="auto"), of_run, used * local):
            if used < nodes:
                reasons.append(
                    f"{windows} windows of the global batch do not divide over {nodes} x {local} processes: {used} of {nodes} "
                    "nodes are used"
                )
            return used
    raise UsageError(
        f"train.global_batch_tokens={config.train.global_batch_tokens} is {windows} windows, which {local} processes cannot share "
        f"equally: start a number of processes that divides {windows} (--processes)."
    )


def _memory(
    config: Config, machine: Machine, device: str, world: int, words: list[str], reasons: list[str]
) -> list[str]:
    """Overrides that make the run fit: the engine where it is `auto`, and the micro-batch where the preset's number may not."""
    engine, room = config.train.engine, None
    if device != "cpu":
        engine, room = _engine(config, machine, device, world, reasons)
    overrides = [f"train.engine={engine}"] if engine != config.train.engine else []
    asked, first = config.train.micro_batch_tokens, stages(config)[0]
    chosen = any(word.startswith("train.micro_batch_tokens=") for word in words)
    divided = divides(config, stages(config), world)
    if asked == "auto" or (not chosen and not (divided and asked <= (room or asked))):
        if asked != "auto":
            overrides.append("train.micro_batch_tokens=auto")
        reasons.append(
            "the micro-batch is found before the first step: the largest that fits and divides the global batch"
        )
    elif divided:
        batching = divide_batch(config, first, world)
        reasons.append(
            f"global batch {first.global_batch_tokens:,} tokens = {world} process{'es' if world > 1 else ''} x "
            f"{batching.accumulation} x {batching.micro_windows} windows of {first.context}"
        )
    return overrides


def _engine(config: Config, machine: Machine, device: str, world: int, reasons: list[str]) -> tuple[str, int | None]:
    """The simplest engine whose state leaves room for a window, and how many tokens fit beside it by estimate."""
    wanted = config.train.engine
    if wanted not in ("auto", "plain", *STAGES):  # a file, or what training will refuse
        return wanted, None
    memory = min((found.memory for found in machine.devices), default=machine.memory)
    candidates = [wanted] if wanted != "auto" else list(_ENGINES if world > 1 and machine.deepspeed else _ENGINES[:1])
    for engine in candidates:
        fits = tokens_that_fit(
            config.model, memory, engine, world, flash=device == "cuda", recompute=bool(config.train.recompute)
        )
        if fits:
            state = state_bytes(config.model, engine, world)
            reasons.append(
                f"{parameters(config.model) / 1e6:.0f} M parameters take {state / 1e9:.1f} GB with {engine} on each of {world}; about "
                f"{fits:,} tokens fit beside it (estimated)"
            )
            return engine, fits
    hint = "" if machine.deepspeed else " With dnascale[deepspeed] more would fit."
    raise UsageError(
        f"a window of {config.model.context} tokens of this model does not fit into {memory / 1e9:.0f} GB by estimate "
        f"({', '.join(candidates)}): use a smaller model or model.context, or train.engine=zero3_offload.{hint} "
        "`dnascale train` tries all the same."
    )


def _command(nodes: Nodes, local: int, words: list[str]) -> list[str]:
    program = ["-m", "dnascale.train", *words]
    if nodes.count == 1 and local == 1:
        return [sys.executable, *program]
    if nodes.count == 1:
        where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    else:
        where = ["--nnodes", str(nodes.count), "--node-rank", str(nodes.rank)]
        where += ["--master-addr", nodes.first, "--master-port", str(nodes.port)]
    return ["torchrun", "--nproc-per-node", str(local), *where, *program]
