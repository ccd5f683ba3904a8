"""What `plan` says, against rows that were measured, and against arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest

from dnascale.bench.forecast import forecast, with_measured
from dnascale.bench.throughput import COLUMNS
from dnascale.cli import main
from dnascale.config import Config, load_config
from dnascale.errors import UsageError
from dnascale.hardware import CARDS, Card, card_of
from dnascale.model.memory import parameters

BENCHMARKS = Path(__file__).parents[2] / "docs" / "benchmarks"
ROWS = [json.loads(line) for line in (BENCHMARKS / "step.jsonl").read_text().splitlines()]
OURS = [row for row in ROWS if row["variant"] == "ours"]
VOCABULARY = 23


def card(name: str) -> Card:
    found = card_of(name)
    assert found is not None
    return found


def config(preset: str, *overrides: str) -> Config:
    return load_config(preset, ["data.path=D", "train.steps=1", *overrides])


@pytest.mark.parametrize("row", OURS, ids=lambda row: f"{row['preset']}@{row['context']} on {row['device']}")
def test_measured_rows_are_met_within_15_per_cent_in_time_and_10_in_memory(row: dict[str, Any]) -> None:
    size = row["micro_batch_tokens"]
    settled = config(
        row["preset"],
        f"model.context={row['context']}",
        f"train.global_batch_tokens={size}",
        f"train.micro_batch_tokens={size}",
    )
    found = forecast(settled, card(row["device"]), 1, size, VOCABULARY)
    assert found.tokens_per_second == pytest.approx(row["tokens_per_second"], rel=0.15)
    assert (found.state_bytes + found.activation_bytes) / 1e9 == pytest.approx(row["memory_gb"], rel=0.10)
    assert found.flops_per_token == pytest.approx(row["flops_per_token"], rel=0.02)


def test_there_are_rows_to_compare_with() -> None:
    assert len({(row["preset"], row["context"], row["device"]) for row in OURS}) >= 3


def test_a_small_model_is_as_slow_as_its_launches() -> None:
    one = forecast(config("small"), card("H100"), 1, 10**9, VOCABULARY)
    with_adamw = forecast(config("small", "optimizer.name=adamw"), card("H100"), 1, 10**9, VOCABULARY)
    assert with_adamw.tokens_per_second == pytest.approx(1.19e6, rel=0.05)
    assert forecast(config("small"), card("B200"), 1, 10**9, VOCABULARY).tokens_per_second == one.tokens_per_second
    rows = [json.loads(line) for line in (BENCHMARKS / "learning.jsonl").read_text().splitlines()]
    (trained,) = (row for row in rows if row.get("preset") == "small" and row["step"] == 5566)
    assert one.tokens_per_second == pytest.approx(trained["tokens"] / trained["seconds"], rel=0.05)


def test_muon_costs_less_of_a_step_the_larger_and_the_more_devices_there_are() -> None:
    def share(words: str, devices: int = 1) -> float:
        muon, adamw = (
            forecast(config("base", f"optimizer.name={name}", words), card("H100"), devices, 10**9, VOCABULARY)
            for name in ("muon", "adamw")
        )
        return muon.step_seconds / adamw.step_seconds - 1

    small, large = (f"train.global_batch_tokens={size}" for size in (32_768, 262_144))
    assert 0.1 < share(small) < 0.4
    assert 0 < share(large) < share(small) / 4
    assert 0 < share(large, 8) < share(large)


def test_hours_energy_and_size_follow_from_the_rate() -> None:
    one = forecast(config("base"), card("H100"), 8, 10**10, VOCABULARY)
    assert one.hours == pytest.approx(10**10 / one.tokens_per_second / 3600)
    assert one.kilowatt_hours == pytest.approx(8 * 0.7 * one.hours)
    assert one.checkpoint_bytes == 12 * one.parameters
    assert one.parameters == pytest.approx(110_873_111, rel=0.001)
    alone = forecast(config("base"), card("H100"), 1, 10**10, VOCABULARY)
    assert 7 < one.tokens_per_second / alone.tokens_per_second < 8


def test_what_a_device_holds_is_shown_by_part_and_engine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "base", "-w", "H100", "-n", "4", "--tokens", "1e9", "train.engine=zero2"])
    said = {line.split()[0]: line.split()[-5:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    count = parameters(config("base").model) / 1e9
    for engine, factors in (
        ("plain", (4, 4, 8)),
        ("zero1", (2, 2, 3)),
        ("zero2", (2, 0.5, 3)),
        ("zero3", (0.5, 0.5, 3)),
        ("zero3_offload", (0.5, 0.5, 0)),
    ):
        *parts, activations, together = map(float, said[engine])
        assert parts == pytest.approx([factor * count for factor in factors], abs=0.006)
        assert together == pytest.approx(sum(parts) + activations, abs=0.03)


def test_a_file_of_deepspeed_and_offloading_are_not_taken_for_what_they_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UsageError, match=r"train.engine=my.json: a forecast knows plain, zero1"):
        forecast(config("base", "train.engine=my.json"), card("H100"), 1, 1, VOCABULARY)
    settled = config("base", "train.engine=zero3")
    row = {
        "name": "base", "devices": 8, "device": "NVIDIA H100 80GB HBM3", "engine": "zero3", "precision": "bf16", "tokens_per_second": 9e5,
        "date": "2026-11-26", "config": config("base", "train.engine=zero3_offload").model_dump(mode="json"),
    }  # fmt: skip
    sheet = forecast(settled, card("H100"), 8, 1, VOCABULARY)
    assert with_measured(sheet, settled, [row]) == sheet
    assert with_measured(sheet, settled, [row | {"config": settled.model_dump(mode="json")}]).tokens_per_second == 9e5


def test_a_micro_batch_is_at_most_the_share_of_a_device() -> None:
    for preset, devices, micro in (("book", 8, 2048), ("small", 8, 4096), ("base", 64, 8192)):
        found = forecast(config(preset), card("H100"), devices, 1, VOCABULARY)
        assert (found.micro_batch_tokens, found.accumulation) == (micro, 1)
        alike = forecast(config(preset, f"train.micro_batch_tokens={micro}"), card("H100"), devices, 1, VOCABULARY)
        assert found.activation_bytes == alike.activation_bytes


def test_recomputed_layers_take_less_memory_and_more_time() -> None:
    fixed = ("model.context=16384", "train.global_batch_tokens=1048576", "train.micro_batch_tokens=16384")
    tight = Card("tight", 100, 24, 1, 100)
    with pytest.raises(UsageError, match=r"or train\.recompute=layers\.$"):
        forecast(config("large", *fixed), tight, 1, 1, VOCABULARY)
    again = config("large", *fixed, "train.recompute=layers")
    assert forecast(again, tight, 1, 1, VOCABULARY).activation_bytes < 8e9
    whole, twice = (forecast(one, card("H200"), 1, 1, VOCABULARY) for one in (config("large", *fixed), again))
    assert twice.step_seconds == pytest.approx(4 / 3 * whole.step_seconds)


def test_a_budget_is_spent_over_all_stages(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "base",
        "model.context=32768",
        "schedule.stages=[{tokens: 1000000000, context: 1024}, {}]",
        "-w",
        "H100",
        "-n",
        "8",
    )
    rows = json.loads(said(capsys, *words, "--budget", "24", "--price", "2", "--json")[1])
    assert rows[0]["cost"] == 2 * 8 * 24
    needed = json.loads(said(capsys, *words, "--tokens", str(rows[0]["tokens"]), "--json")[1])
    assert needed[0]["hours"] == pytest.approx(24, rel=0.01)


def test_fp32_on_a_gpu_is_not_forecast() -> None:
    with pytest.raises(UsageError, match="forecasts of GPUs are of bf16 alone"):
        forecast(config("base", "train.precision=fp32"), card("H100"), 1, 1, VOCABULARY)


def test_zero_makes_room_where_there_is_none() -> None:
    tiny = Card("tiny", 100, 5, 1, 100)
    with pytest.raises(UsageError, match=r"on 4 x tiny \(5 GB\) no micro-batch .* train.engine=plain"):
        forecast(config("large", "train.micro_batch_tokens=auto"), tiny, 4, 1, VOCABULARY)
    held = forecast(config("large", "train.micro_batch_tokens=auto", "train.engine=zero2"), tiny, 4, 1, VOCABULARY)
    assert held.state_bytes < 3e9
    assert held.accumulation * held.micro_batch_tokens * 4 == 1_048_576


@pytest.mark.parametrize(
    ("name", "memory"),
    [("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA A100-SXM4-80GB", 80), ("NVIDIA A100 80GB PCIe", 80), ("NVIDIA H100 80GB HBM3", 80),
     ("NVIDIA GeForce RTX 4080", 16), ("rtx 4090", 24)],
)  # fmt: skip
def test_cards_of_one_chip_are_told_apart(name: str, memory: int) -> None:
    assert card(name).memory == memory


def test_every_card_finds_itself() -> None:
    assert [card_of(one.name) for one in CARDS] == list(CARDS)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_the_command_compares_hardware_for_a_run_or_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = said(capsys, "base", "--tokens", "1e9", "-n", "2", "--price", "3", "--json")
    assert code == 0
    rows = json.loads(out)
    assert len(rows) == len(CARDS)
    assert all(row["cost"] == pytest.approx(6 * row["hours"]) for row in rows)
    code, out = said(capsys, "small", "-w", "RTX 4090", "--budget", "24")
    assert code == 0
    assert "RTX 4090" in out
    code, out = said(capsys, "nano", "train.steps=1000", "-w", "H100")
    assert code == 0
    assert "2,048,000 tokens" in out


@pytest.mark.parametrize(("words", "hours"), [([], 24), (["train.minutes=90"], 1.5), (["--budget", "3"], 3)])
def test_where_no_length_is_known_the_command_says_what_a_day_gives_or_the_minutes_asked_for(
    words: list[str], hours: float, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = said(capsys, "base", *words, "-w", "H100", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert row["hours"] == hours
    assert row["tokens"] == pytest.approx(row["tokens_per_second"] * hours * 3600, rel=1e-6)
    assert f"tokens in {hours:g} h" in said(capsys, "base", *words, "-w", "H100")[1]


def test_stages_are_forecast_each_with_its_batch_and_in_their_order() -> None:
    small, large = (f"train.global_batch_tokens={2**n}" for n in (15, 20))
    h100, tokens = card("H100"), 10 * 2**20
    alone = [forecast(config("base", batch), h100, 1, tokens, VOCABULARY) for batch in (small, large)]
    first = "schedule.stages=[{tokens: 5242880, global_batch_tokens: 32768}, {}]"
    staged = forecast(config("base", large, first), h100, 1, tokens, VOCABULARY)
    assert staged.hours == pytest.approx(sum(one.hours for one in alone) / 2, rel=1e-6)
    assert staged.mfu < 1
    only = forecast(config("base", large, first), h100, 1, tokens // 2, VOCABULARY)
    assert only.hours == pytest.approx(alone[0].hours / 2, rel=1e-6)


def test_the_tokens_of_a_run_in_stages_are_those_of_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("base", "train.steps=20", "train.global_batch_tokens=65536", "-w", "H100", "--json")
    code, out = said(capsys, *words, "schedule.stages=[{tokens: 327680, global_batch_tokens: 32768}, {}]")
    assert code == 0
    assert json.loads(out)[0]["tokens"] == 10 * 32_768 + 10 * 65_536


def test_hardware_that_nobody_knows_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = said(capsys, "base", "-w", "TPU v5")
    assert code == 2
    assert "--hardware TPU v5 is not in the table" in out


def test_a_measured_row_of_the_same_model_and_hardware_gives_the_rate() -> None:
    settled = config("base")
    sheet = forecast(settled, card("H100"), 1, 10**9, VOCABULARY)
    row = {
        "name": "base", "devices": 1, "device": "NVIDIA H100 80GB HBM3", "engine": "plain", "precision": "bf16", "tokens_per_second": 5e5,
        "date": "2026-11-26", "config": settled.model_dump(mode="json"),
    }  # fmt: skip
    found = with_measured(sheet, settled, [row | {"tokens_per_second": 4e5}, row])
    assert (found.tokens_per_second, found.measured) == (5e5, "base, 2026-11-26")
    assert found.mfu == pytest.approx(5e5 * sheet.flops_per_token / 989.4e12)
    others: list[dict[str, Any]] = [
        {"devices": 2}, {"device": "NVIDIA A100-SXM4-80GB"}, {"engine": "zero1"}, {"precision": "fp32"},
        {"config": config("base", "model.layers=3").model_dump(mode="json")}, {"name": "base", "error": "out of memory"},
    ]  # fmt: skip
    for change in others:
        assert with_measured(sheet, settled, [row | change]) == sheet


def test_the_command_says_what_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {key: 1.0 for key, kind in COLUMNS.items() if kind is float} | {
        key: 1 for key, kind in COLUMNS.items() if kind is int
    }
    row = numbers | {
        "attention": "flash", "compile": None, "recompute": False, "mfu": 0.3, "watts": None, "synthetic": False, "versions": {},
        "commit": None, "lowest": 3e6, "highest": 3e6, "name": "base --grid x", "devices": 8, "device": "NVIDIA H100 80GB HBM3", "engine": "ddp", "precision": "bf16", "tokens_per_second": 3e6,
        "date": "2026-11-26", "config": config("base").model_dump(mode="json"),
    }  # fmt: skip
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    with pytest.raises(SystemExit):
        main(["plan", "base", "-w", "H100", "-w", "H200", "-n", "8", "--tokens", "1e9", "--rows", str(rows)])
    said = capsys.readouterr().out
    assert "3,000,000*" in said
    assert "* H100: measured (base --grid x, 2026-11-26)" in said


# --- this machine, as it is measured ---

CPU_ROWS = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "docs" / "benchmarks" / "cpu.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("row", CPU_ROWS, ids=lambda row: f"{row['name']} at {row['context']}")
def test_rows_of_a_cpu_are_met_within_15_per_cent_in_time_and_10_in_memory(row: dict[str, Any]) -> None:
    """With the matrix product that the row itself measured, and layer norms at 27.3 GB/s, as this machine has them."""
    machine = Card(row["device"], row["tflops"] / row["share_of_matmul"], 25, 0.0273, None, cpu=True)
    found = forecast(Config.model_validate(row["config"]), machine, 1, 10**6, VOCABULARY)
    assert found.micro_batch_tokens == row["micro_batch_tokens"]
    assert found.tokens_per_second == pytest.approx(row["tokens_per_second"], rel=0.15)
    assert (found.state_bytes + found.activation_bytes) / 1e9 == pytest.approx(row["memory_gb"], rel=0.10)
    assert found.kilowatt_hours is None


def test_the_cpu_was_measured_in_at_least_six_ways() -> None:
    ways = {(row["parameters"], row["context"], row["micro_batch_tokens"], row["precision"]) for row in CPU_ROWS}
    assert len(ways) >= 6


def test_what_is_here_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "nano", "train.device=cpu", "-w", "here", "--tokens", "1e6"])
    said = capsys.readouterr().out
    assert "thread" in said
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "nano", "train.device=cpu", "-w", "here", "-n", "2", "--tokens", "1e6"])
    assert stopped.value.code == 2
    assert "of --hardware here there is one" in capsys.readouterr().err


def test_what_a_file_says_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("preset: nano\ndata: {sources: {a: {path: A}, b: {path: B}}}\ntrain: {steps: 1000}\n")
    with pytest.raises(SystemExit) as stopped:
        main(["plan", str(path), "-w", "H100"])
    assert not stopped.value.code
    assert "2,048,000 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "nano", "-w", "H100", "model.heds=3", "--tokens", "1e6"])
    assert stopped.value.code == 2
    assert "model.heds" in capsys.readouterr().err
