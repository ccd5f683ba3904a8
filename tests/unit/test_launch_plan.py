"""What `dnascale launch` decides, for machines that are not here."""

from pathlib import Path
from typing import Any

import pytest

from dnascale.config import Config, load_config
from dnascale.errors import UsageError
from dnascale.launch.machine import Device, Machine, Slurm, expand_hosts, find_slurm
from dnascale.launch.plan import Launch, Nodes, plan
from dnascale.model.memory import tokens_that_fit

GB = 10**9
H100 = Device("cuda", "NVIDIA H100", 80 * GB)


def machine(*devices: Device, **changes: Any) -> Machine:
    return Machine(
        **{"system": "Linux", "cores": 16, "memory": 64 * GB, "devices": devices, "deepspeed": True} | changes
    )


def configured(preset: str = "base", *overrides: str) -> tuple[Config, list[str]]:
    words = [preset, "data.path=my data", "run.dir=runs/a b", *overrides]
    return load_config(words[0], words[1:]), words


def planned(where: Machine, preset: str = "base", *overrides: str, **options: Any) -> Launch:
    config, words = configured(preset, *overrides)
    return plan(where, config, words, **options)


def test_one_gpu_needs_no_launcher() -> None:
    chosen = planned(machine(H100))
    assert "torchrun" not in chosen.words
    assert chosen.words[1:3] == ["-m", "dnascale.train"]
    assert chosen.words[-1] == "train.processes=1"


def test_eight_gpus_are_eight_processes_under_torchrun() -> None:
    chosen = planned(machine(*[H100] * 8))
    assert chosen.words[:3] == ["torchrun", "--nproc-per-node", "8"]
    assert "train.processes=8" in chosen.words
    assert chosen.environment == {"OMP_NUM_THREADS": "2"}
    assert "global batch 524,288 tokens = 8 processes x 2 x 32 windows of 1024" in chosen.reasons


def test_the_line_that_is_shown_can_be_pasted_into_a_shell() -> None:
    import shlex

    chosen = planned(machine(H100, H100))
    assert "'data.path=my data'" in chosen.shown()
    assert shlex.split(chosen.shown())[1:] == chosen.words


def test_the_example_of_the_docs_is_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "launch.md").read_text()
    words = ["base", "data.path=data"]
    chosen = plan(machine(*[H100] * 8, cores=64), load_config(words[0], words[1:]), words)
    for line in [*(f"- {reason}" for reason in chosen.reasons), chosen.shown()]:
        assert f"\n{line}\n" in page.replace("NVIDIA H100", H100.name)


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="torch sees 2 GPUs"):
        planned(machine(H100, H100), processes=4)


def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.device=cuda, but torch sees no GPU here"):
        planned(machine(), "base", "train.device=cuda")


def test_a_mac_is_one_process_without_deepspeed() -> None:
    chosen = planned(
        machine(Device("mps", "Apple GPU", 12 * GB), system="Darwin", memory=16 * GB, deepspeed=False), "book"
    )
    assert "torchrun" not in chosen.words
    assert "train.engine=plain" in chosen.words
    assert any("of the unified memory" in reason for reason in chosen.reasons)
    with pytest.raises(UsageError, match="a Mac has one GPU"):
        planned(machine(Device("mps", "Apple GPU", 12 * GB), system="Darwin"), processes=2)


@pytest.mark.parametrize(("memory", "fits"), [(8, False), (12, False), (24, True), (80, True)])
def test_a_micro_batch_that_may_not_fit_is_left_to_trying(memory: int, fits: bool) -> None:
    chosen = planned(machine(Device("cuda", "a card", memory * GB)))
    assert ("train.micro_batch_tokens=auto" in chosen.words) is not fits


def test_a_micro_batch_that_was_chosen_stays() -> None:
    words = planned(machine(Device("cuda", "a card", 8 * GB)), "base", "train.micro_batch_tokens=32768").words
    assert [word for word in words if word.startswith("train.micro_batch_tokens=")] == [
        "train.micro_batch_tokens=32768"
    ]


def test_a_micro_batch_that_does_not_divide_any_more_is_left_to_trying() -> None:
    """Three nodes of one GPU: 512 windows of base do not divide over three, 768 do, but not by 32 each."""
    changed = ("train.global_batch_tokens=786432", "train.micro_batch_tokens=32768")
    config, _ = configured("base", *changed)
    chosen = plan(machine(*[H100] * 3), config, ["my.yaml", "data.path=x"])
    assert "train.micro_batch_tokens=auto" not in chosen.words  # 256 windows each, 32 at a time
    config, _ = configured("base", "train.global_batch_tokens=786432", "train.micro_batch_tokens=30720")
    assert "train.micro_batch_tokens=auto" in plan(machine(*[H100] * 3), config, ["my.yaml", "data.path=x"]).words


def test_every_stage_of_a_run_must_divide_over_the_nodes() -> None:
    stages = "schedule.stages=[{tokens: 1048576, global_batch_tokens: 131072}, {}]"
    chosen = [
        planned(machine(H100, slurm=Slurm(1, tuple(f"n{i}" for i in range(n)), 0)), "base", stages).nodes.count
        for n in (3, 4)
    ]
    assert chosen == [2, 4]


def test_the_memory_that_two_runs_took_is_estimated_within_a_tenth() -> None:
    """base at 65,536 tokens took 34.6 GB, large at 32,768 38.8 GB (docs/benchmarks/step.md)."""
    for preset, context, tokens, took in (("base", 8192, 65_536, 34.6), ("large", 1024, 32_768, 38.8)):
        model = configured(preset, f"model.context={context}", f"train.micro_batch_tokens={context}")[0].model
        memory = int(took * GB / 0.8)  # of which 80 % are planned with
        assert tokens_that_fit(model, memory, "plain", 1, flash=True) == pytest.approx(tokens, rel=0.13)


def test_a_model_too_large_for_one_card_is_divided_over_several() -> None:
    big = ("model.hidden_size=2048", "model.layers=32", "model.heads=32", "model.intermediate_size=5248")
    small = Device("cuda", "a card", 24 * GB)
    chosen = planned(machine(*[small] * 8), "base", *big)
    engine = next(word for word in chosen.words if word.startswith("train.engine="))
    assert engine == "train.engine=zero1"
    with pytest.raises(UsageError, match="does not fit into 24 GB by estimate"):
        planned(machine(small), "base", *big)


def test_an_engine_that_was_chosen_stays() -> None:
    words = planned(machine(*[H100] * 2), "base", "train.engine=zero2").words
    assert [word for word in words if word.startswith("train.engine=")] == ["train.engine=zero2"]


def in_slurm(hosts: int, node: int | None, **changes: Any) -> Machine:
    job = Slurm(4711, tuple(f"n{i}" for i in range(hosts)), node, **changes)
    return machine(*[H100] * 8, slurm=job)


def test_in_a_slurm_step_each_node_has_its_own_rank_and_the_same_meeting_place() -> None:
    first, second = (planned(in_slurm(2, node)).words for node in (0, 1))
    at = first.index("--node-rank") + 1
    assert (first[at], second[at]) == ("0", "1")
    assert first[:at] + first[at + 1 :] == second[:at] + second[at + 1 :]
    assert first[first.index("--master-addr") + 1] == "n0"
    assert first[first.index("--master-port") + 1] == "24711"
    assert "train.processes=16" in first


def test_two_jobs_on_a_node_meet_on_two_ports() -> None:
    ports = {planned(machine(H100, slurm=Slurm(job, ("n0", "n1"), 0))).nodes.port for job in (10, 11, 12)}
    assert len(ports) == 3


def test_the_batch_script_of_several_nodes_starts_one_task_on_each() -> None:
    chosen = planned(in_slurm(2, None), processes=4)
    assert chosen.words[:2] == ["srun", "--ntasks-per-node=1"]
    assert chosen.words[-6:-3] == ["launch", "--processes", "4"]


def test_srun_is_told_the_cpus_of_a_task() -> None:
    words = planned(in_slurm(2, None, cpus=12)).words
    assert "--cpus-per-task=12" in words


def test_a_number_of_threads_that_was_chosen_stays() -> None:
    assert planned(machine(H100, H100, threads=1)).environment == {}
    assert (
        "one process on the CPU, with 1 thread (OMP_NUM_THREADS); --processes starts more"
        in planned(machine(threads=1), "nano", "train.steps=1").reasons
    )


def test_nodes_over_which_the_global_batch_does_not_divide_stay_idle() -> None:
    """512 windows over 3 x 8 processes: two nodes do the same experiment, the third has nothing to do."""
    chosen = [planned(in_slurm(3, node)) for node in range(3)]
    assert [launch.idle for launch in chosen] == [False, False, True]
    assert chosen[0].words[chosen[0].words.index("--nnodes") + 1] == "2"
    assert any("2 of 3 nodes are used" in reason for reason in chosen[0].reasons)


def test_fewer_nodes_keep_the_global_batch() -> None:
    """What is left after a node is lost: the same tokens a step, more of them one after another."""
    reasons = [planned(in_slurm(hosts, 0), "large").reasons for hosts in (4, 2, 1)]
    assert [line for found in reasons for line in found if line.startswith("global batch")] == [
        "global batch 1,048,576 tokens = 32 processes x 2 x 16 windows of 1024",
        "global batch 1,048,576 tokens = 16 processes x 4 x 16 windows of 1024",
        "global batch 1,048,576 tokens = 8 processes x 8 x 16 windows of 1024",
    ]


def test_a_batch_that_no_number_of_nodes_divides_is_refused() -> None:
    with pytest.raises(UsageError, match="which 8 processes cannot share equally"):
        planned(machine(*[H100] * 8), "base", "train.global_batch_tokens=12288", "train.micro_batch_tokens=1024")


def test_plain_nodes_are_those_that_were_named() -> None:
    chosen = planned(machine(H100), nodes=Nodes(2, 1, "a.example", 29_999, ("a.example", "b.example")))
    assert chosen.words[:8] == [
        "torchrun", "--nproc-per-node", "1", "--nnodes", "2", "--node-rank", "1", "--master-addr",
    ]  # fmt: skip


def test_the_environment_of_slurm_is_read_in_and_out_of_a_step() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a,b", "SLURM_RESTART_COUNT": "2"}
    assert find_slurm({}) is None
    assert find_slurm(job) == Slurm(7, ("a", "b"), None, 2)
    step = job | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "b", "SLURM_NODEID": "0"}
    assert find_slurm(step) == Slurm(7, ("b",), 0, 2)
    shell = step | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_NODES": "1"}  # of salloc: its first node alone
    assert find_slurm(shell) == Slurm(7, ("a", "b"), None, 2)


def test_srun_passes_on_when_a_node_counts_as_lost() -> None:
    config, words = configured("base")
    in_slurm = machine(H100, slurm=Slurm(1, ("a", "b"), None))
    assert "--lost-after" not in plan(in_slurm, config, words).words
    asked = plan(in_slurm, config, words, lost_after=5.0).words
    assert asked[asked.index("--lost-after") + 1] == "5"


def test_an_engine_that_does_not_exist_is_left_to_training_to_refuse() -> None:
    assert "train.engine=ddp" in planned(machine(H100), "base", "train.engine=ddp").words


def test_recomputed_layers_make_room() -> None:
    long, small = ("model.context=16384", "train.global_batch_tokens=1048576"), Device("cuda", "a card", 24 * GB)
    with pytest.raises(UsageError, match="does not fit"):
        planned(machine(small), "large", *long)
    planned(machine(small), "large", *long, "train.recompute=layers")


def test_the_first_node_finds_its_interface_by_the_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian lets a host's own name stand for 127.0.1.1."""
    import socket

    import psutil

    from dnascale.launch.start import _interface

    asked: list[str] = []

    def resolved(host: str, port: int, **_: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("127.0.1.1" if host == "a" else "127.0.0.9", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    monkeypatch.setattr(psutil, "net_if_addrs", dict)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for rank in (0, 1):
        _interface(Nodes(2, rank, "a", 29_500, ("a", "b")))
    assert asked == ["b", "a"]


def test_several_tasks_on_a_node_are_refused() -> None:
    """Each would be a launcher of all processes of that node."""
    step = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
    with pytest.raises(UsageError, match=r"8 tasks on 1 node: start one a node"):
        find_slurm(step | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "1"})


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("n0", ["n0"]),
        ("a,b", ["a", "b"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("gpu[8-11]", ["gpu8", "gpu9", "gpu10", "gpu11"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_a_list_of_nodes_is_expanded_as_slurm_means_it(listed: str, names: list[str]) -> None:
    assert expand_hosts(listed) == tuple(names)


@pytest.mark.parametrize("listed", ["n[1-3", "n[a-b]", "n[]"])
def test_a_list_of_nodes_that_is_none_is_an_error(listed: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        expand_hosts(listed)
