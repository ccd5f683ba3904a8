"""Tasks in worker processes: each a fresh Python that takes tasks by standard input and reports by standard output.

Lines of JSON, no pickle. A worker ends when its standard input does: so none outlives its parent, however that ended.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dnascale import errors
from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.tasks import Progress, Task
from dnascale.errors import DataError, DnascaleError, PeerError
from dnascale.files import explained


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
            progress.finish(task, peak_bytes())
    return failures


def peak_bytes() -> int:
    """Largest memory that this process has had."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
            self.progress.finish(task, message["peak"])
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
        command = [sys.executable, "-m", "dnascale.data.prepare.workers", str(work.folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
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


def main() -> None:
    """A worker: does the tasks that come, one a line, until there are no more lines."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    tasks: deque[dict[str, Any]] = deque()
    some = threading.Semaphore(0)

    def listen() -> None:
        for line in sys.stdin.buffer:
            tasks.append(json.loads(line))
            some.release()
        os._exit(0)  # the parent has ended, or needs no more

    threading.Thread(target=listen, daemon=True).start()
    work = Work.load(Path(sys.argv[1]))
    while True:
        some.acquire()
        answer = _answer(work, Task(**tasks.popleft()), answers)
        answers.write(json.dumps(answer).encode() + b"\n")


def _answer(work: Work, task: Task, answers: Any) -> dict[str, Any]:
    told, untold = time.monotonic(), 0

    def advance(bases: int) -> None:
        nonlocal told, untold
        untold += bases
        if time.monotonic() - told > 0.1:
            answers.write(json.dumps({"advance": untold}).encode() + b"\n")
            told, untold = time.monotonic(), 0

    try:
        task.perform(work, advance)
    except DnascaleError as error:
        return {"error": type(error).__name__, "text": str(error)}
    except OSError as error:
        meant = explained(error, work.folder)
        return {"error": type(meant).__name__, "text": str(meant)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": "DnascaleError", "text": f"{type(error).__name__}: {error} (while {task.describe(work)})"}
    answers.write(json.dumps({"advance": untold}).encode() + b"\n")
    return {"peak": peak_bytes()}


if __name__ == "__main__":
    main()
