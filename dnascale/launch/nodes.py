"""The nodes of a run keep in touch: all are there before it starts, and one that falls silent ends it, by name.

A cable that is pulled sends nothing: the processes that train would wait in a collective for `guard.stall`. Each launcher counts up a
number of its own in the store that torchrun keeps on the first node, and reads the others'.
"""

import contextlib
import datetime
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dnascale.errors import PeerError, UsageError, first_line
from dnascale.launch.plan import Nodes

if TYPE_CHECKING:
    from torch.distributed import TCPStore

#: Seconds between two beats, unless `silence` is short.
_BEAT = 2.0
_DONE = "done"


class Watch:
    """Knows which nodes of a run are alive. `silence`: seconds after which a node that was there counts as lost."""

    def __init__(self, nodes: Nodes, silence: float) -> None:
        self._nodes = nodes
        self._silence = silence
        self._period = min(_BEAT, silence / 5)
        self._beats = 0
        self._store: TCPStore | None = None
        self._stop = threading.Event()
        self._complete = False
        self._answered = 0.0  # when the store last did
        self._heard: dict[int, tuple[bytes, float]] = {}  # of each node: its last beat, and when it was a new one
        self._talker = threading.Thread(target=self._talk, daemon=True)

    def join(self, patience: float, say: Callable[[str], None]) -> None:
        """Waits until all nodes are there. Raises PeerError that names who is not after `patience` seconds, UsageError when
        the port is taken.
        """
        deadline = time.monotonic() + patience
        self._store = self._connect(deadline, say)
        told = time.monotonic() + 10
        while missing := self._missing():
            if time.monotonic() > deadline:
                raise PeerError(
                    f"{self._listed(missing)} did not join within {patience:.0f} s: does the same command run there, and can it "
                    f"reach {self._nodes.first} on port {self._nodes.port}?"
                )
            if told is not None and time.monotonic() > told:
                say(f"waiting for {self._listed(missing)}")
                told = time.monotonic() + 60
            time.sleep(0.1)

    def begin(self, lost: Callable[[str], None]) -> None:
        """From now on `lost` is called, once and on a thread of its own, with a sentence when a node falls silent."""
        self._answered = time.monotonic()
        self._talker.start()
        threading.Thread(target=self._judge, args=(lost,), daemon=True).start()

    def end(self, complete: bool) -> None:
        """The run is over here. When it is `complete`, the others, which may be a little later, do not miss this node."""
        self._complete = complete
        self._stop.set()
        self._talker.join(2 * self._period)

    def _connect(self, deadline: float, say: Callable[[str], None]) -> "TCPStore":
        from torch.distributed import DistNetworkError, DistStoreError, TCPStore

        nodes, told = self._nodes, time.monotonic() + 10
        while True:
            try:
                return TCPStore(
                    nodes.first,
                    nodes.port,
                    is_master=nodes.rank == 0,
                    wait_for_workers=False,
                    multi_tenant=True,  # torchrun opens it too, in this process
                    timeout=datetime.timedelta(seconds=min(self._silence, 30)),
                )
            except (DistNetworkError, DistStoreError) as error:
                if nodes.rank == 0:
                    raise UsageError(
                        f"port {nodes.port} on {nodes.first} cannot be used ({first_line(error)}): name another with --port on every node."
                    ) from None
                if time.monotonic() > deadline:
                    raise PeerError(
                        f"the first node, {nodes.first}, does not answer on port {nodes.port}: does the same command run there, and "
                        "does no firewall stand between?"
                    ) from None
                if time.monotonic() > told:
                    say(f"waiting for the first node, {nodes.first}")
                    told = time.monotonic() + 60
                time.sleep(1)

    def _missing(self) -> list[int]:
        assert self._store is not None
        self._beat()
        return [rank for rank in range(self._nodes.count) if not self._store.check([self._key(rank)])]

    def _beat(self) -> None:
        assert self._store is not None
        self._beats += 1
        self._store.set(self._key(self._nodes.rank), str(self._beats))

    def _talk(self) -> None:
        """Says that this node is alive and hears the others. May hang for as long as the kernel believes in a connection."""
        keys = [self._key(rank) for rank in range(self._nodes.count)]
        assert self._store is not None
        while not self._stop.wait(self._period):
            with contextlib.suppress(RuntimeError):  # the store does not answer: DistStoreError, DistNetworkError
                self._beat()
                beats = self._store.multi_get(keys)
                self._answered = now = time.monotonic()
                for rank, beat in enumerate(beats):
                    if self._heard.get(rank, (b"", now))[0] != beat:
                        self._heard[rank] = (beat, now)
        if self._complete:
            with contextlib.suppress(RuntimeError):
                self._store.set(self._key(self._nodes.rank), _DONE)

    def _judge(self, lost: Callable[[str], None]) -> None:
        """Never waits for another node. Time in which this process was suspended does not count."""
        before = time.monotonic()
        while not self._stop.wait(self._period):
            now = time.monotonic()
            suspended, before = now - before - self._period, now
            if suspended > self._period:
                self._answered += suspended
                self._heard = {rank: (beat, since + suspended) for rank, (beat, since) in list(self._heard.items())}
            if now - self._answered > self._silence:
                lost(self._sentence([0]))
                return
            silent = [
                rank
                for rank, (beat, since) in list(self._heard.items())
                if beat != _DONE.encode() and now - since > self._silence
            ]
            if silent:
                lost(self._sentence(silent))
                return

    def _sentence(self, silent: list[int]) -> str:
        return (
            f"{self._listed(silent)} has not been heard from for {self._silence:.0f} s: the machine, its network or its launcher is "
            "gone. The run stops here; started again, on these nodes or on fewer, it goes on from its last checkpoint."
        )

    def _listed(self, ranks: list[int]) -> str:
        names = self._nodes.names
        return ", ".join(f"node {rank}" + (f" ({names[rank]})" if names else "") for rank in ranks)

    @staticmethod
    def _key(rank: int) -> str:
        return f"dnascale/alive/{rank}"
