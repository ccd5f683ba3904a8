"""Optimizers, memory and stages on a GPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dnascale.config import OptimizerConfig, OptimizerName
from dnascale.data.masking import Masking
from dnascale.data.stream import TrainStream
from dnascale.hardware import peak_flops
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.train import memory
from dnascale.train.optim import build_optimizer
from dnascale.vocab import CHARACTER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
]
CUDA = torch.device("cuda")


class Layered(nn.Module):
    """Names as in the real model: a matrix in a layer, an embedding, a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.ModuleDict({"Wo": nn.Linear(48, 64, bias=False), "Wqkv": nn.Linear(32, 96, bias=False)})
        self.model = nn.ModuleDict(
            {"layers": nn.ModuleList([layer]), "emb": nn.Embedding(5, 4), "norm": nn.LayerNorm(8)}
        )


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_optimizers_make_the_steps_of_a_cpu_and_never_wait_for_the_device(name: str) -> None:
    config = OptimizerConfig.model_validate({"name": name, "learning_rate": 0.01})
    here, there = Layered(), Layered().to(CUDA)
    optimizers = [build_optimizer(model, config) for model in (here, there)]
    bad = torch.zeros((), device=CUDA)
    for step in range(4):
        draw = torch.Generator().manual_seed(step)
        for p, q in zip(here.parameters(), there.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.to(CUDA)
        torch.cuda.synchronize()
        optimizers[0].step()
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first may load kernels
        try:
            optimizers[1].found_inf = bad  # type: ignore[attr-defined]
            optimizers[1].step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for (name_of, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        # Muon's iteration makes rounding larger.
        assert torch.allclose(p, q.cpu(), atol=1e-4 if name == "muon" else 1e-5), name_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "human-cds"
    dnascale("prepare", "builtin:human-cds", "--out", str(folder))
    return folder


def dnascale(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dnascale", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(data: Path, run: Path, *overrides: str) -> list[dict[str, Any]]:
    common = ("train.global_batch_tokens=8192", "train.micro_batch_tokens=4096", "log.every=1", "evaluation.every=1000",
              "train.steps=12", "checkpoint.every=6", "checkpoint.keep=9",
              "optimizer.name=adamw", "optimizer.learning_rate=1e-3")  # fmt: skip
    dnascale("train", "nano", f"data.path={data}", f"run.dir={run}", *common, *overrides)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def numbers(lines: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    return [tuple(line[key] for key in ("loss", "gradient_norm", "learning_rate", "windows_digest")) for line in lines]


STAGES = (
    "schedule.stages=[{tokens: 20000, context: 64, global_batch_tokens: 4096, masking_rate: 0.4}, "
    "{tokens: 40000, context: 128}, {}]"
)


@pytest.mark.parametrize("optimizer", ["muon", "stable_adamw", "adafactor"])
@pytest.mark.parametrize("compiled", ["false", "layers"])
def test_a_run_in_stages_goes_on_to_the_bit(data: Path, tmp_path: Path, optimizer: str, compiled: str) -> None:
    options = (f"optimizer.name={optimizer}", f"train.compile={compiled}", "train.deterministic=true", STAGES)
    whole = train(data, tmp_path / "run", *options)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    assert numbers(train(data, tmp_path / "run", *options)) == numbers(whole)


@pytest.mark.parametrize(
    "options",
    [
        ("train.compile=false",),
        ("train.compile=layers",),
        ("train.compile=whole",),
        ("train.compile=false", "train.precision=fp32"),
        ("train.compile=layers", "train.recompute=layers", "optimizer.name=muon", "train.deterministic=true"),
    ],
    ids=" ".join,
)
@pytest.mark.timeout(900)
def test_a_run_of_cuda_graphs_learns_as_the_run_without(data: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    options = (*options, STAGES)
    plain, graphs = (
        train(data, tmp_path / f"graphs-{on}", *options, f"train.cuda_graphs={on}") for on in ("false", "true")
    )
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in graphs] == pytest.approx([line[key] for line in plain], rel=0.02)
    if "train.deterministic=true" in options:
        shutil.rmtree(tmp_path / "graphs-true" / "checkpoints" / "step-00000012")
        again = train(data, tmp_path / "graphs-true", *options, "train.cuda_graphs=true")
        assert numbers(again) == numbers(graphs)


def test_metrics_know_the_device(data: Path, tmp_path: Path) -> None:
    line = train(data, tmp_path / "run")[-1]
    assert ("mfu" in line) == (peak_flops(CUDA) is not None and torch.cuda.get_device_capability() >= (8, 0))
    assert 0 < line["share_of_matmul"] < 1
    assert 0 < line["memory_gb"] < torch.cuda.get_device_properties(0).total_memory / 1e9


def test_the_micro_batch_that_fits_is_found(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dnascale("train", "nano", f"data.path={data}", f"run.dir={run}", "train.micro_batch_tokens=auto", "train.steps=2",
             "train.global_batch_tokens=65536")  # fmt: skip
    assert "micro_batch_tokens: 65536" in (run / "config.yaml").read_text()


def module(context: int = 1024) -> tuple[MaskedLanguageModel, Any]:
    from dnascale.config import load_config

    config = load_config("book", ["data.path=x", "train.steps=1", f"model.context={context}", "train.precision=bf16"])
    masking = Masking(CHARACTER, **config.masking.model_dump())
    hf = build(config.model, CHARACTER)
    return MaskedLanguageModel(hf, masking, autocast=torch.bfloat16, device=CUDA).to(CUDA), config


def test_too_large_a_step_is_no_end_but_an_answer(data: Path) -> None:
    from dnascale.train.schedules import stages

    model, config = module()
    stream = TrainStream.open(data, 1024, 1)
    stage = stages(config)[0]

    def read(windows: int) -> Any:
        batch = stream.next_step()[0]
        batch.tokens = batch.tokens.expand(windows, -1)
        batch._chunk = batch._chunk.take(torch.zeros(windows, dtype=torch.int64).numpy())
        batch._first = 0
        return batch

    attempt = memory.attempt_step(model, config, stage, read, None)
    torch.cuda.set_per_process_memory_fraction(4e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        assert memory._fits(attempt, 1024, CUDA)
        assert not memory._fits(attempt, 1 << 20, CUDA)
        assert memory._fits(attempt, 1024, CUDA)  # what the failure held is free again
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_recomputed_layers_take_less_memory() -> None:
    peaks, losses = [], []
    tokens = torch.randint(0, 4, (64, 1024), dtype=torch.uint8, device=CUDA)
    for again in (False, True):
        model, _ = module()
        if again:
            model.recompute_layers()
        torch.cuda.reset_peak_memory_stats()
        loss, _ = model(tokens, torch.arange(64, device=CUDA), 0)
        loss.backward()
        losses.append(float(loss.detach()))
        peaks.append(torch.cuda.max_memory_allocated())
        del model, loss
        torch.cuda.empty_cache()
    assert peaks[1] < 0.5 * peaks[0]
    assert losses[0] == losses[1]
