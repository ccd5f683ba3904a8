"""Stopping between two steps because somebody asks for it: all ranks together, so that they can save and end as one.

SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGHUP (a terminal or connection that is gone) to any process, or a file STOP in the run folder.
Schedulers send signals to some processes, at moments of their own; what each has heard is exchanged at every step, and acted upon one
step later, so that no step waits for it.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dnascale.signals import STOPPING, heard
from dnascale.train.distributed import TIMEOUT

if TYPE_CHECKING:
    from accelerate import Accelerator

#: What stands for the file among the numbers that are exchanged.
_STOP_FILE = 255
#: Seconds between two looks for the file, which may be on a slow file system.
_LOOK_EVERY = 1.0
#: Seconds within which a second Ctrl-C is the same one: launchers pass on what the terminal has sent to all processes.
_SAME_CTRL_C = 1.0


class Interruption:
    """A context within which signals no longer end the process: `asked` tells of them. A second Ctrl-C ends it at once."""

    def __init__(self, accelerator: "Accelerator", run: Path) -> None:
        """Collective."""
        self._main = accelerator.is_main_process
        self._stop_file = run / "STOP"
        self._looked = -_LOOK_EVERY
        self._heard = 0
        self._exchange: Any = None  # (work, tensor) on its way
        self._group: Any = None
        if accelerator.num_processes > 1:
            import torch.distributed as dist

            # On the host, whatever the devices use: the device is not waited for.
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def __enter__(self) -> "Interruption":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():  # as in some notebooks: no signals, STOP works
            return self
        # A thread hears of signals also while this one waits for another process and would not.
        self._ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        self._mouth = mouth
        self._before = {number: signal.signal(number, lambda *_: None) for number in heard()}
        self._wakeup = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._mouth.close()
        if self._exchange is not None and error is None:
            self._exchange[0].wait()

    def asked(self) -> str | None:
        """Why to stop now, the same on every rank; None to go on. Collective, once a step."""
        own = self._heard or (_STOP_FILE if self._main and self._sees_file() else 0)
        if self._group is None:
            return _name(own)
        import torch
        import torch.distributed as dist

        agreed = 0
        if self._exchange is not None:
            work, tensor = self._exchange
            work.wait()
            agreed = int(tensor)
        tensor = torch.tensor(own, dtype=torch.int32)
        self._exchange = (dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True), tensor)
        return _name(agreed)

    def done(self) -> None:
        """All that was asked for is done: takes the file away, so that the next start goes on."""
        if self._main:
            with contextlib.suppress(OSError):
                self._stop_file.unlink()

    def _sees_file(self) -> bool:
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return False
        self._looked = time.monotonic()
        return self._stop_file.exists()

    def _listen(self) -> None:
        first = 0.0
        while byte := self._ear.recv(1):
            if (number := byte[0]) not in STOPPING:
                continue
            if not self._heard:
                self._heard, first = number, time.monotonic()
            elif number == signal.SIGINT and time.monotonic() - first > _SAME_CTRL_C:
                cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
                sentence = f"{cursor}dnascale: interrupted twice: left at once, without saving.\n"
                os.write(2, sentence.encode())
                os._exit(128 + signal.SIGINT)
        self._ear.close()


def _name(number: int) -> str | None:
    if not number:
        return None
    return "the file STOP" if number == _STOP_FILE else signal.Signals(number).name
