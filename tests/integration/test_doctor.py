"""`dnascale doctor`: what works is called so, and what is broken is found by trying, not by asking."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from jobs import dnascale

from dnascale.bench.all_reduce import SIZES
from dnascale.data.shards import Dataset
from dnascale.launch.doctor import Finding, Options, Verdict, checks, compute, run_check, surroundings
from dnascale.launch.doctor.communication import communication, judge


@pytest.mark.slow
def test_the_whole_examination_of_this_machine(human_cds: Dataset, tmp_path: Path) -> None:
    outcome = dnascale("doctor", "--device", "cpu", "--data", str(human_cds.folder), "--dir", tmp_path, "--json")
    findings = json.loads(outcome.output[outcome.output.index("[") :])
    verdicts = {finding["what"]: finding["verdict"] for finding in findings}
    assert outcome.code == 0, outcome.output
    assert "bad" not in verdicts.values()
    assert {"system", "packages", "training step", "gloo, 2 processes", "disk", "data", "clock"} <= set(verdicts)
    assert all(finding["mend"] for finding in findings if finding["verdict"] != "ok")


@pytest.mark.parametrize("name", ["system", "packages", "devices", "attention", "training step", "disk", "clock"])
def test_what_works_here_is_not_called_bad(name: str, tmp_path: Path) -> None:
    check = next(check for check in checks() if check[0] == name)
    found = run_check(check, Options(device="cpu", folder=tmp_path))
    assert found
    assert all(finding.verdict is not Verdict.bad for finding in found), found


def test_a_kernel_that_computes_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lets records see each other."""
    from dnascale.model import attention

    def leaking(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _layout: object, _local: bool, scale: float
    ) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)

    monkeypatch.setitem(attention._KERNELS, "blocks", leaking)
    verdicts = {finding.what: finding.verdict for finding in compute.attention("cpu")}
    assert verdicts["attention: blocks"] is Verdict.bad
    assert verdicts["attention: masks"] is Verdict.ok


def test_operations_that_stray_to_the_cpu_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    losses = iter([3.0, 2.0, 1.0])

    def step() -> float:
        warnings.warn(
            "The operator 'aten::foo' is not currently supported on the MPS backend and will fall back to run on the CPU.",
            stacklevel=1,
        )
        return next(losses)

    monkeypatch.setattr(compute, "tiny_step", lambda _device: step)
    (finding,) = compute.step("cpu")
    assert finding.verdict is Verdict.note
    assert finding.numbers["strays"] == ["aten::foo"]


def test_a_step_that_does_not_learn_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "tiny_step", lambda _device: lambda: 3.0)
    assert compute.step("cpu")[0].verdict is Verdict.bad


def test_a_damaged_shard_is_found(human_cds: Dataset, tmp_path: Path) -> None:
    shutil.copytree(human_cds.folder, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[100_000] ^= 1
    shard.write_bytes(content)
    (finding,) = surroundings.data(str(tmp_path / "data"))
    assert finding.verdict is Verdict.bad
    assert "shard-000000.tar" in finding.found


def test_a_package_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "version", lambda name: "0.1" if name == "torch" else "99")
    (finding,) = surroundings.packages()
    assert finding.verdict is Verdict.bad
    assert "torch>=2.11 (here 0.1)" in finding.found


def test_a_check_that_breaks_is_a_finding_and_others_go_on() -> None:
    def broken(_options: Options) -> list[Finding]:
        raise ValueError("no\nsuch luck")

    (finding,) = run_check(("a check", broken), Options())
    assert (finding.verdict, finding.found) == (Verdict.bad, "ValueError: no such luck")


def test_two_processes_sum_right_and_are_timed() -> None:
    (finding,) = communication("cpu", 2)
    assert finding.verdict is Verdict.ok, finding
    assert [row["bytes"] for row in finding.numbers["rows"]] == list(SIZES)
    assert all(row["seconds"] > 0 for row in finding.numbers["rows"])


def test_clocks_that_differ_are_noticed() -> None:
    rows = [{"bytes": size, "seconds": 1e-3, "bus": 1e12} for size in SIZES]
    assert judge("nccl", {"rows": rows, "skew": 3600.0}, "nccl").verdict is Verdict.note
    assert judge("nccl", {"rows": rows, "skew": 0.01}, "nccl").verdict is Verdict.ok
