"""Running the command of a plan on this node: signals reach the processes that train, their exit code is ours."""

import contextlib
import os
import shutil
import signal
import socket
import sys
from typing import Any

from dnascale.errors import PeerError, UsageError
from dnascale.launch.nodes import Watch
from dnascale.launch.plan import Launch, Nodes
from dnascale.signals import heard

#: Seconds that a node waits for the others to join: a shared file system may be slow to import from.
_PATIENCE = 900.0


def start(launch: Launch, silence: float) -> int:
    """Runs the plan to its end and returns the exit code, that of the first process that failed.

    One process takes the place of this one. Raises PeerError when nodes do not join, UsageError when the command is not here.
    """
    if launch.words[0] != "torchrun":
        _replace_this_process(launch)
    # torchrun runs in this process, so that it needs to be on no PATH and tells which exit code the processes had.
    os.environ.update(launch.environment | _interface(launch.nodes))
    watch = None
    if launch.nodes.count > 1:
        watch = Watch(launch.nodes, silence)
        watch.join(_PATIENCE, _say)
        watch.begin(_give_up)
    code = _torchrun(launch.words[1:])
    if watch is not None:
        watch.end(complete=code == 0)
    return code


def _replace_this_process(launch: Launch) -> None:
    if shutil.which(launch.words[0]) is None:
        raise UsageError(f"{launch.words[0]} is not on PATH.")
    sys.stdout.flush()
    os.execvpe(launch.words[0], launch.words, os.environ | launch.environment)


def _torchrun(words: list[str]) -> int:
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # Its reports of a failure are screens long; ours is a sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for number in heard():
        signal.signal(number, _forward)
    try:
        # After those named here torchrun ends the processes within 30 seconds, whether they have saved or not.
        run(parse_args(["--signals-to-handle", "SIGQUIT", *words]))
    except ChildFailedError as error:
        return _explained(error)
    return 0


def _explained(error: Any) -> int:
    """Returns the exit code of the process that failed first; says which one was killed, since it could not say so itself."""
    # One that was killed is the cause of what others met; those ended by SIGTERM were so by torchrun, after the cause.
    failures = sorted(
        error.failures.items(),
        key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode >= 0, item[1].timestamp),
    )
    rank, failure = failures[0]
    if failure.exitcode >= 0:
        return int(failure.exitcode)
    name = signal.Signals(-failure.exitcode).name
    hint = ": was memory short?" if name == "SIGKILL" else "."
    print(
        f"dnascale: error: rank {rank} on {socket.gethostname()} was ended by {name}{hint} Started again, the run goes on from its "
        "last checkpoint.",
        file=sys.stderr,
    )
    return PeerError.exit_code


def _children() -> list[Any]:
    import psutil

    return psutil.Process().children()


def _forward(number: int, _frame: object) -> None:
    for child in _children():
        with contextlib.suppress(OSError):
            os.kill(child.pid, number)


def _give_up(sentence: str) -> None:
    """A node is lost: ends the processes here, which wait for it, and this one."""
    print(f"dnascale: error: {sentence}", file=sys.stderr, flush=True)
    for child in _children():
        with contextlib.suppress(OSError):
            os.kill(child.pid, signal.SIGKILL)
    os._exit(PeerError.exit_code)


def _interface(nodes: Nodes) -> dict[str, str]:
    """The network interface that leads to the first node, or from it to another, for gloo and NCCL, which otherwise guess from this host's name."""
    if nodes.count == 1 or {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"} & set(os.environ):
        return {}
    import psutil

    try:
        # Of its own name a host often knows no address but one that only itself can reach.
        other = nodes.names[1] if nodes.rank == 0 and len(nodes.names) > 1 else nodes.first
        family, _, _, _, place = socket.getaddrinfo(other, nodes.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return {}
    names = [name for name, found in psutil.net_if_addrs().items() if any(a.address == own for a in found)]
    if not names or own.startswith("127.") or own == "::1":
        return {}
    return {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": names[0]}


def _say(sentence: str) -> None:
    print(f"dnascale: {sentence}", file=sys.stderr, flush=True)
