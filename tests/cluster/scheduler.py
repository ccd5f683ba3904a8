"""A real Slurm on this machine: munged and slurmctld here, one slurmd on each host of a network of namespaces."""

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import ROOT, Network

#: Eight GPUs that are only counted, and as many CPUs as the script asks for.
_CONFIG = """
ClusterName=dnascale
SlurmctldHost=controller({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=20
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=600
InactiveLimit=0
Waittime=0
GresTypes=gpu
{nodes}
PartitionName=low Nodes={names} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes={names} PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


@dataclass
class Scheduler:
    """Submits, asks, signals. `folder` holds its configuration, its state and its logs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str | Path, cwd: Path | None = None, **env: str) -> str:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            env=self.environment | env,
            cwd=cwd or self.folder,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")

    def wait_until(self, job: str, *states: str, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            assert time.monotonic() < deadline, f"job {job} is {state}, not {states}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


def require_slurm() -> None:
    """Skips where Slurm is not installed."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: make cluster-packages (Debian, root)")


@contextlib.contextmanager
def slurm(made: Network, folder: Path) -> Iterator[Scheduler]:
    """The scheduler over all hosts of a network; its daemons are ended with the block."""
    require_slurm()
    for name in ("state", *(f"spool-{host.name}" for host in made.hosts)):
        (folder / name).mkdir(parents=True)
    nodes = "\n".join(
        f"NodeName={host.name} NodeAddr={host.address} CPUs=64 RealMemory=1000 Gres=gpu:8 State=UNKNOWN"
        for host in made.hosts
    )
    names = ",".join(host.name for host in made.hosts)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(controller=made.controller, folder=folder, nodes=nodes, names=names))
    for number in range(8):
        os.mknod(folder / f"gpu{number}", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # /dev/null, by another name
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    env = {"SLURM_CONF": str(config), "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root")}
    daemons: list[subprocess.Popen[bytes]] = []

    def begin(words: list[str], name: str) -> None:
        with (folder / f"{name}.out.log").open("wb") as log:
            daemons.append(
                subprocess.Popen(words, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
            )

    scheduler = Scheduler(folder, env)
    try:
        begin(
            [
                "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
                f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
            ],
            "munged",
        )  # fmt: skip
        _until(lambda: (folder / "munge.socket").exists(), scheduler)
        # Under the name that the configuration gives it.
        begin(["unshare", "--uts", "sh", "-c", "hostname controller && exec slurmctld -D"], "slurmctld")
        for host in made.hosts:
            begin(host.words(["slurmd", "-D", "-N", host.name], SLURM_CONF=str(config)), f"slurmd-{host.name}")
        _until(lambda: _idle(scheduler) == len(made.hosts), scheduler)
        yield scheduler
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _idle(scheduler: Scheduler) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--partition=low", "--states=idle", "--format=%D"],
        capture_output=True, text=True, env=scheduler.environment,
    )  # fmt: skip
    return int(done.stdout.split()[0]) if done.returncode == 0 and done.stdout.split() else 0


def _until(ready: "object", scheduler: Scheduler, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < deadline, scheduler.logs()
        time.sleep(0.1)


SCRIPT = ROOT / "launch" / "slurm.sbatch"
