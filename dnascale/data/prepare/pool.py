"""Tasks in worker processes: each a fresh Python (worker.py) that takes tasks by standard input and answers by standard output.

Lines of JSON, no pickle. A worker ends when its standard input does: so none outlives its parent, however that ended.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dnascale import errors
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.tasks import Progress, Task, peak_bytes
from dnascale.data.sources.given import inherited
from dnascale.errors import DataError, DnascaleError, PeerError


def carry_out(work: Work, tasks: Sequence[Task], workers: int, progress: Progress) -> dict[Task, str]:
    """Does the tasks, in this process or in several. Gives the tasks whose input was unusable, and why.

    Raises what else goes wrong, at once; PeerError when a worker is killed. What is done then stays done.
    """
    if workers <= 1 or len(tasks) <= 1:
        return _carry_out_here(work, tasks, progress)
    return _Pool(work, min(workers, len(tasks)), progress).carry_out(tasks)


def _carry_out_here(work: Work, tasks: Sequence[Task], progress: Progress) -> dict[Task, str]:
    failures = {}
    for task in tasks:
        try:
            task.perform(work, progress.advance)
        except DataError as error:
            failures[task] = str(error)
        else:
            progress.finish(task, task.size(work), peak_bytes())
    return failures


class _Pool:
    """Worker processes, one task each at a time."""

    def __init__(self, work: Work, workers: int, progress: Progress) -> None:
        self.work, self.progress = work, progress
        self.count = workers
        self.failures: dict[Task, str] = {}

    def carry_out(self, tasks: Sequence[Task]) -> dict[Task, str]:
        waiting = deque(tasks)
        workers: list[_Worker] = []
        try:
            with selectors.DefaultSelector() as selector:
                for _ in range(self.count):
                    worker = _Worker(self.work)
                    workers.append(worker)
                    selector.register(worker.output, selectors.EVENT_READ, worker)
                    worker.give(waiting.popleft())
                while any(worker.task for worker in workers):
                    for key, _ in selector.select():
                        worker = key.data
                        for message in worker.messages():
                            self._take(worker, message)
                        if worker.task is None and waiting:
                            worker.give(waiting.popleft())
        finally:
            for worker in workers:
                worker.kill()
        return self.failures

    def _take(self, worker: "_Worker", message: dict[str, Any]) -> None:
        if "advance" in message:
            self.progress.advance(message["advance"])
            return
        task, worker.task = worker.task, None
        assert task is not None
        if "error" not in message:
            self.progress.finish(task, task.size(self.work), message["peak"])
        elif message["error"] == "DataError":
            self.failures[task] = message["text"]
        else:
            raise getattr(errors, message["error"], DnascaleError)(message["text"])


class _Worker:
    """One process, seen from its parent."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.task: Task | None = None
        self._rest = b""
        command = [sys.executable, "-m", "dnascale.data.prepare.worker", str(work.folder)]
        # In a group of its own: Ctrl-C reaches the parent alone, which ends its workers.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=inherited(), process_group=0
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout

    def give(self, task: Task) -> None:
        self.task = task
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        except BrokenPipeError:
            raise self._lost() from None

    def messages(self) -> list[dict[str, Any]]:
        """What has come since the last time. Raises PeerError when the process has ended."""
        data = os.read(self.output.fileno(), 1 << 16)
        if not data:
            raise self._lost()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _lost(self) -> PeerError:
        code = self._process.wait()
        doing = self.task.describe(self.work) if self.task else "waiting"
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"was killed (signal {-code}" + (", often for want of memory)" if code == -signal.SIGKILL else ")")
        return PeerError(
            f"a worker process {how} while {doing}. What is done is kept in {self.work.folder}: run the same command again, "
            "with fewer --workers if memory was short."
        )
