"""The same run on several hosts: equal losses, and a host that is lost is named, in time, and not needed to go on."""

import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hosts import ROOT, Host, Network, Running
from jobs import metrics, numbers, train, train_words

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import committed

pytestmark = pytest.mark.cluster

LAUNCH = [sys.executable, "-m", "dnascale", "launch"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
#: Divides over one, two and three hosts.
BATCH = ("train.global_batch_tokens=3072", "train.micro_batch_tokens=512", "train.precision=fp32")


def launch_on(made: Network, hosts: list[Host], words: list[str], *options: str) -> list[Running]:
    names = ",".join(host.name for host in hosts)
    return [made.start(host, [*LAUNCH, "--nodes", names, *options, *words]) for host in hosts]


def wait_for(jobs: list[Running], timeout: float = 120) -> None:
    for job in jobs:
        assert job.wait(timeout) == 0, job.output


def until_step(run: Path, step: int, jobs: list[Running]) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in _lines(run)):
        assert all(job.process.poll() is None for job in jobs), "\n".join(job.output for job in jobs)
        assert time.monotonic() < deadline, "\n".join(job.output for job in jobs)
        time.sleep(0.02)


def _lines(run: Path) -> list[dict[str, Any]]:
    try:
        return metrics(run)
    except ValueError:  # a line is being written
        return []


@pytest.mark.parametrize(("count", "engine"), [(2, "plain"), (2, "zero2"), (2, "zero3"), (3, "plain"), (3, "zero2")])
def test_losses_on_several_hosts_are_those_of_one_to_the_bit(
    three_hosts: Network, human_cds: Dataset, tmp_path: Path, count: int, engine: str
) -> None:
    steps = (*BATCH, "train.steps=6")
    alone = train(tmp_path / "alone", human_cds, *steps, processes=count, engine=engine)
    words = train_words(tmp_path / "spread", human_cds, *steps, engine=engine)
    wait_for(launch_on(three_hosts, three_hosts.hosts[:count], words[1:]))
    assert numbers(metrics(tmp_path / "spread")) == numbers(alone)


def test_the_torchrun_command_that_is_shown_does_the_same(
    three_hosts: Network, human_cds: Dataset, tmp_path: Path
) -> None:
    """What `dnascale launch` prints, copied."""
    words = train_words(tmp_path / "run", human_cds, *BATCH, "train.steps=3")
    jobs = [
        three_hosts.start(
            host,
            [
                str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "1", "--nnodes", "2", "--node-rank", str(rank),
                "--master-addr", "host0", "--master-port", "29500", "-m", "dnascale.train", *words[1:],
            ],
        )
        for rank, host in enumerate(three_hosts.hosts[:2])
    ]  # fmt: skip
    wait_for(jobs)
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("file", "engine"), [("accelerate_nodes_ddp.yaml", "ddp"), ("accelerate_nodes_zero1.yaml", "zero1")]
)
def test_accelerate_launch_on_two_hosts_with_the_files_we_ship(
    three_hosts: Network, human_cds: Dataset, tmp_path: Path, file: str, engine: str
) -> None:
    words = train_words(tmp_path / "run", human_cds, *BATCH, "train.steps=3", engine="auto")
    jobs = [
        three_hosts.start(
            host,
            [
                *ACCELERATE, "--config_file", str(ROOT / "launch" / file), "--num_machines", "2", "--num_processes", "2",
                "--machine_rank", str(rank), "--main_process_ip", "host0", "--main_process_port", "29500",
                "-m", "dnascale.train", *words[1:],
            ],
        )
        for rank, host in enumerate(three_hosts.hosts[:2])
    ]  # fmt: skip
    wait_for(jobs)
    assert f"{engine} · 2 processes" in jobs[0].output
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.parametrize("lost", [2, 0])
def test_a_host_whose_cable_is_pulled_is_named_and_the_others_go_on_without_it(
    three_hosts: Network, human_cds: Dataset, tmp_path: Path, lost: int
) -> None:
    """Whether it is one of many or the first, where all meet."""
    run, steps = tmp_path / "run", (*BATCH, "train.steps=60", "checkpoint.every=5")
    whole = train(tmp_path / "whole", human_cds, *steps, processes=3)
    jobs = launch_on(three_hosts, three_hosts.hosts, train_words(run, human_cds, *steps)[1:], "--lost-after", "5")
    until_step(run, 12, jobs)
    three_hosts.hosts[lost].pull_the_cable()
    begin = time.monotonic()
    codes = [job.wait(60) for job in jobs]
    took = time.monotonic() - begin
    assert codes == [7, 7, 7], "\n".join(job.output for job in jobs)
    left = [rank for rank in range(3) if rank != lost]
    for rank in left:
        assert f"node {lost} (host{lost}) has not been heard from for 5 s" in jobs[rank].output
    assert took < 25
    assert committed(run / "checkpoints")[-1].name < "step-00000060"
    # Two are left: the same global batches, divided by two.
    hosts = [three_hosts.hosts[rank] for rank in left]
    again = launch_on(three_hosts, hosts, train_words(run, human_cds, *steps)[1:])
    wait_for(again)
    assert "3,072 tokens = 2 processes x 3 x 8 windows" in again[0].output
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert [line["windows_digest"] for line in lines] == [line["windows_digest"] for line in whole]
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-3)


def test_a_host_that_does_not_come_is_named(three_hosts: Network, human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, *BATCH, "train.steps=3")
    names = ",".join(host.name for host in three_hosts.hosts[:2])
    job = three_hosts.start(three_hosts.hosts[0], [*LAUNCH, "--nodes", names, *words[1:]])
    deadline = time.monotonic() + 60
    while "waiting for node 1 (host1)" not in job.output:
        assert job.process.poll() is None, job.output
        assert time.monotonic() < deadline, job.output
        time.sleep(0.1)
    assert not (tmp_path / "run").exists()


def test_the_ssh_script_names_the_lost_host_and_goes_on_with_the_others(
    three_hosts: Network, human_cds: Dataset, tmp_path: Path
) -> None:
    """With `ssh` that enters the namespace of a host, as long as its cable is plugged in."""
    bin_folder = tmp_path / "a bin"
    bin_folder.mkdir()
    ssh = bin_folder / "ssh"
    cases = "".join(
        f"  {host.name}) grep -q up /sys/class/net/{host.cable}/operstate || exit 255\n"
        f'    exec {" ".join(_quoted(host.words([])))} sh -c "$*" ;;\n'
        for host in three_hosts.hosts
    )
    ssh.write_text(
        '#!/usr/bin/env bash\nwhile [ $# -gt 0 ]; do case "$1" in -o) shift 2 ;; -*) shift ;; *) break ;; esac; done\n'
        f'host=$1; shift\ncase "$host" in\n{cases}esac\n'
    )
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    run = tmp_path / "my run"
    steps = (*BATCH, "train.steps=60", "checkpoint.every=5")
    whole = train(tmp_path / "whole", human_cds, *steps, processes=3)
    words = train_words(run, human_cds, *steps)[1:]
    log = tmp_path / "script.log"
    import subprocess

    with log.open("wb") as file:
        script = subprocess.Popen(
            ["bash", str(ROOT / "launch" / "multi_node_ssh.sh"), ",".join(h.name for h in three_hosts.hosts), *words],
            env=os.environ | {"PATH": f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", "LOST_AFTER": "5"},
            stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
        )  # fmt: skip
    three_hosts.running.append(Running(script, log))
    until_step(run, 12, [three_hosts.running[-1]])
    three_hosts.hosts[1].pull_the_cable()
    assert script.wait(120) == 0, log.read_text()
    said = log.read_text()
    assert "host0: dnascale: error: node 1 (host1) has not been heard from" in said
    assert "host1 does not answer" in said
    assert "once more, on host0 host2" in said
    assert [line["windows_digest"] for line in metrics(run)] == [line["windows_digest"] for line in whole]


def _quoted(words: list[str]) -> list[str]:
    import shlex

    return [shlex.quote(word) for word in words]
