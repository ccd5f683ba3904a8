"""Nodes that keep in touch, as threads of one process: who is missing, who falls silent, who is done."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from dnascale.errors import PeerError, UsageError
from dnascale.launch.nodes import Watch
from dnascale.launch.plan import Nodes

NAMES = ("first", "second")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    return free


def watch(rank: int, port: int, silence: float = 0.6) -> Watch:
    return Watch(Nodes(2, rank, "127.0.0.1", port, NAMES), silence)


def both(port: int) -> tuple[Watch, Watch]:
    first, second = watch(0, port), watch(1, port)
    other = threading.Thread(target=second.join, args=(20, print))
    other.start()
    first.join(20, print)
    other.join()
    return first, second


def test_a_node_that_falls_silent_is_named_by_the_other(port: int) -> None:
    first, second = both(port)
    lost: list[str] = []
    first.begin(lost.append)
    second.begin(lambda _sentence: None)
    time.sleep(1.0)
    assert lost == []
    second.end(complete=False)
    deadline = time.monotonic() + 10
    while not lost:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lost[0].startswith("node 1 (second) has not been heard from for 1 s")
    first.end(complete=False)


def test_time_in_which_a_job_was_suspended_does_not_count(port: int) -> None:
    script = (
        "import time, sys\n"
        "from dnascale.launch.nodes import Watch\n"
        "from dnascale.launch.plan import Nodes\n"
        f"watch = Watch(Nodes(1, 0, '127.0.0.1', {port}, ('a',)), 0.6)\n"
        "watch.join(20, print)\n"
        "lost = []\n"
        "watch.begin(lost.append)\n"
        "print('begun', flush=True)\n"
        "time.sleep(4)\n"
        "sys.exit(len(lost))\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "begun\n"
        job.send_signal(signal.SIGSTOP)
        time.sleep(2)
        job.send_signal(signal.SIGCONT)
        assert job.wait() == 0


def test_a_node_that_is_done_is_not_missed(port: int) -> None:
    first, second = both(port)
    lost: list[str] = []
    first.begin(lost.append)
    second.begin(lost.append)
    second.end(complete=True)
    time.sleep(1.5)
    assert lost == []
    first.end(complete=True)


def test_a_node_that_does_not_come_is_named(port: int) -> None:
    with pytest.raises(PeerError, match=r"node 1 \(second\) did not join within 1 s"):
        watch(0, port).join(1, print)


def test_a_first_node_that_does_not_answer_is_named(port: int) -> None:
    with pytest.raises(PeerError, match=r"the first node, 127\.0\.0\.1, does not answer"):
        watch(1, port).join(0, print)


def test_a_port_that_is_taken_is_said(port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        with pytest.raises(
            UsageError, match=rf"port {port} on 127\.0\.0\.1 cannot be used .*: name another with --port"
        ):
            watch(0, port).join(1, print)
