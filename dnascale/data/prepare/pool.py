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
from dnascale.errors import DataError, PeerError


class Pool:
    """At most so many worker processes, one task each at a time. They are started when there is work, and kept for the next.

    Use as a context manager.
    """

    def __init__(self, work: Work, workers: int, progress: Progress) -> None:
        self.work, self.progress = work, progress
        self.most = workers
        self.workers: list[_Worker] = []
        self.failures: dict[Task, str] = {}

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()

    def carry_out(self, tasks: Sequence[Task]) -> dict[Task, str]:
        """Does the tasks, one alone in this process. Gives the tasks whose input was unusable, and why.

        Raises what else goes wrong, at once; PeerError when a worker is killed. What is done then stays done.
        """
        self.failures = {}
        if min(self.most, len(tasks)) <= 1:
            self._carry_out_here(tasks)
            return self.failures
        while len(self.workers) < min(self.most, len(tasks)):
            self.workers.append(_Worker(self.work))
        waiting = deque(tasks)
        with selectors.DefaultSelector() as selector:
            for worker in self.workers[: len(tasks)]:
                selector.register(worker.output, selectors.EVENT_READ, worker)
                worker.give(waiting.popleft())
            while any(worker.task for worker in self.workers):
                for key, _ in selector.select():
                    worker = key.data
                    for message in worker.messages():
                        self._take(worker, message)
                    if worker.task is None and waiting:
                        worker.give(waiting.popleft())
        return self.failures

    def _carry_out_here(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            try:
                task.perform(self.work, self.progress.advance)
            except DataError as error:
                self.failures[task] = str(error)
            else:
                self.progress.finish(task, task.size(self.work), peak_bytes())

    def _take(self, worker: "_Worker", message: dict[str, Any]) -> None:
        if "advance" in message:
            self.progress.advance(message["advance"])
            return
        task, worker.task = worker.task, None
        assert task is not None
        if "error" not in message:
            self.progress.finish(task, task.size(self.work), message["peak"])
        elif "errno" in message:
            raise OSError(message["errno"], message["text"])
        elif message["error"] == "DataError":
            self.failures[task] = message["text"]
        else:
            raise getattr(errors, message["error"])(message["text"])


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
