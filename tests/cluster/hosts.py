"""Several hosts on this machine: network namespaces with addresses, names and cables of their own, joined by a bridge.

What runs on one sees no other's loopback, resolves the others by name, and can be cut off as if its cable were pulled: nothing
is sent, and nobody is told.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What a job needs of this environment; the rest stays out, as it does on another host.
_KEPT = ("PATH", "HOME", "PYTHONPATH", "TMPDIR", "LANG")


@dataclass(frozen=True)
class Host:
    """A network namespace. `name` resolves on all hosts, by the file `names`, and is what the host takes itself for."""

    name: str
    namespace: str
    cable: str
    address: str
    names: Path

    def words(self, command: list[str], **env: str) -> list[str]:
        """`command`, to be run on this host with a clean environment."""
        kept = {key: os.environ[key] for key in _KEPT if key in os.environ} | {"OMP_NUM_THREADS": "1"} | env
        variables = [f"{key}={value}" for key, value in kept.items()]
        # Not `ip netns exec`, which hides /sys/fs/cgroup.
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount"]
        inside = [
            "sh",
            "-c",
            'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"',
            self.name,
            str(self.names),
        ]
        return [*enter, *inside, "env", "-i", *variables, *command]

    def pull_the_cable(self) -> None:
        _ip("link", "set", self.cable, "down")

    def plug_it_in(self) -> None:
        _ip("link", "set", self.cable, "up")


@dataclass
class Running:
    """A process on a host, and what it has printed."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self, timeout: float) -> int:
        return self.process.wait(timeout)

    @property
    def output(self) -> str:
        return self.log.read_text()


@dataclass
class Network:
    """Hosts, and what runs on them. `controller` is this machine's address on their network."""

    hosts: list[Host]
    controller: str
    folder: Path
    running: list[Running] = field(default_factory=list)

    def start(self, host: Host, command: list[str], **env: str) -> Running:
        log = self.folder / f"{host.name}-{len(self.running)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                host.words(command, **env), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT
            )
        self.running.append(Running(process, log))
        return self.running[-1]


def require_namespaces() -> None:
    """Skips where no network namespace can be made: without root, in most containers."""
    if sys.platform != "linux" or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs Linux with iproute2 and util-linux")
    probe = f"dnaprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    enter = ["nsenter", f"--net=/run/netns/{probe}", "unshare", "--uts", "--mount", "true"]
    inside = subprocess.run(enter, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", probe], check=True)
    if inside.returncode:
        pytest.skip(f"network namespaces cannot be entered here: {inside.stderr.strip()}")


@contextlib.contextmanager
def network(count: int, folder: Path) -> Iterator[Network]:
    """`count` hosts, host0 to hostN, until the block ends; what runs on them is ended then."""
    require_namespaces()
    tag = f"{os.getpid() % 60_000:x}"
    bridge, net = f"dna{tag}", f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
    file = folder / "hosts"
    hosts = [Host(f"host{i}", f"dna{tag}h{i}", f"dna{tag}c{i}", f"{net}.{i + 1}", file) for i in range(count)]
    controller = f"{net}.254"
    names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts)
    file.write_text(names + f"{controller} controller\n")
    made = Network(hosts, controller, folder)
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{controller}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in hosts:
            _ip("netns", "add", host.namespace)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", "net0", "netns", host.namespace)
            _ip("link", "set", host.cable, "master", bridge, "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "net0")
            _ip("-n", host.namespace, "link", "set", "net0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        yield made
    finally:
        for host in hosts:
            listed = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True)
            for pid in listed.stdout.split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), 9)
        for running in made.running:
            running.process.kill()
            running.process.wait()
        for host in hosts:
            # The cable by itself: a namespace goes later, when its last connection has ended.
            subprocess.run(["ip", "link", "del", host.cable], capture_output=True)
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
