"""`--nodes HOST,HOST`: which of them this machine is."""

import socket

from dnascale.errors import UsageError
from dnascale.launch.plan import Nodes


def find_nodes(listed: str | None, rank: int | None, port: int) -> Nodes | None:
    """The nodes named on the command line, or None. Raises UsageError when this host is not, or more than once, among them."""
    if listed is None:
        if rank is not None:
            raise UsageError("--node-rank says which of --nodes this is: give --nodes HOST,HOST as well.")
        return None
    names = tuple(name.strip() for name in listed.split(",") if name.strip())
    if not names:
        raise UsageError(f"--nodes {listed!r} names no host: write --nodes HOST,HOST.")
    if len(set(names)) < len(names):
        raise UsageError(f"--nodes {listed} names a host twice: one launcher a host, with --processes for more.")
    if rank is None:
        mine = [place for place, name in enumerate(names) if is_here(name)]
        if len(mine) != 1:
            raise UsageError(
                f"this host ({socket.gethostname()}) is {'not' if not mine else 'more than once'} among --nodes {listed}: say which "
                "it is with --node-rank I, counted from 0."
            )
        rank = mine[0]
    if rank >= len(names):
        raise UsageError(f"--node-rank {rank}, but --nodes names {len(names)}, counted from 0.")
    return Nodes(len(names), rank, names[0], port, names)


def is_here(name: str) -> bool:
    """Whether a host name or address is this machine."""
    import psutil

    own = {socket.gethostname(), socket.getfqdn()}
    if name in own:
        return True
    try:
        addresses = {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        return False
    return bool(addresses & {address.address for found in psutil.net_if_addrs().values() for address in found})
