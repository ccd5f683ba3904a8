"""A worker process of `prepare`: does the tasks that come by standard input, a line each, and answers by standard output."""

import json
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from dnascale.data.prepare.plan import Work
from dnascale.data.prepare.tasks import Task, peak_bytes
from dnascale.errors import DnascaleError, kind


def main() -> None:
    """Runs until there are no more lines."""
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
        return {"error": kind(error), "text": str(error)}
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "text": error.strerror or str(error)}
    except Exception as error:
        import traceback

        traceback.print_exc()
        return {"error": "DnascaleError", "text": f"{type(error).__name__}: {error} (while {task.describe(work)})"}
    answers.write(json.dumps({"advance": untold}).encode() + b"\n")
    return {"peak": peak_bytes()}


if __name__ == "__main__":
    main()
