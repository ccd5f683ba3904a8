"""The signals that ask a run to save and end (docs/reference/exit-codes.md): of schedulers, of Ctrl-C, of a terminal or connection that is gone."""

import signal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def heard() -> list[signal.Signals]:
    """Those that this process hears: nohup has SIGHUP ignored."""
    return [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
