"""Failing on purpose, where and when a test wants: DNASCALE_FAULT="POINT[:rank=R][:step=S]:ACTION", several separated by commas.

Points are marked in the code by `fault("name")` and cost a look into the environment. docs/reference/faults.md lists them.
"""

import errno
import os
import signal
import time

#: What may happen at a point; "sleep=SECONDS" besides.
ACTIONS = ("kill", "term", "stop", "exit", "raise", "enospc", "eio")


def fault(point: str, step: int | None = None) -> None:
    """Does what DNASCALE_FAULT asks for at this point, if anything. `step`: of the training, where it is known.

    Raises OSError or RuntimeError when that is what is asked for.
    """
    for wanted in filter(None, os.environ.get("DNASCALE_FAULT", "").split(",")):
        _happens(wanted, point, step)


def _happens(wanted: str, point: str, step: int | None) -> None:
    where, *conditions, action = wanted.split(":")
    if where != point:
        return
    for condition in conditions:
        key, _, value = condition.partition("=")
        found = {"rank": os.environ.get("RANK", "0"), "step": str(step)}[key]
        if found != value:
            return
    if action.startswith("sleep="):
        time.sleep(float(action.removeprefix("sleep=")))
    elif action in ("kill", "term", "stop"):
        os.kill(os.getpid(), getattr(signal, f"SIG{action.upper()}"))
    elif action == "exit":
        os._exit(1)
    elif action in ("enospc", "eio"):
        number = getattr(errno, action.upper())
        raise OSError(number, os.strerror(number))
    elif action == "raise":
        raise RuntimeError(f"DNASCALE_FAULT at {point}")
    else:
        raise ValueError(f"DNASCALE_FAULT={wanted}: no such action; there are: {', '.join(ACTIONS)}, sleep=SECONDS")
