"""What only a GPU can show: its kernels, the compiled step without a host sync, and masks equal to a CPU's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from dnascale.config import FlashAttention, ModelConfig
from dnascale.data.masking import Masking
from dnascale.errors import UsageError
from dnascale.model.attention import Attention
from dnascale.model.flash import use_flash_attention
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.vocab import CHARACTER

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(300),
]
CUDA = torch.device("cuda")
MODEL = ModelConfig(hidden_size=128, layers=4, heads=2, intermediate_size=192, context=512)
CASES = {"one record": [511], "two": [200, 400], "many": [1, 7, 63, 64, 65, 66, 90, 128], "short": [3] * 128}


def windows(lengths: list[int], rows: int = 4) -> torch.Tensor:
    rng = np.random.default_rng(len(lengths))
    parts = [part for n in lengths for part in (rng.integers(0, 4, n), [CHARACTER.sep])]
    return torch.from_numpy(np.stack([np.resize(np.concatenate(parts), MODEL.context)] * rows)).long()


def masking(**changes: Any) -> Masking:
    recipe = {"rate": 0.3, "replace_with_mask": 0.8, "replace_with_random": 0.1}
    return Masking(CHARACTER, **(recipe | {"reverse_complement": True, "repeat_weight": 0.5} | changes))


def strong() -> Any:
    hf = build(MODEL, CHARACTER)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    return hf


def gradients(model: MaskedLanguageModel) -> torch.Tensor:
    return torch.cat([p.grad.float().flatten().cpu() for p in model.hf.parameters()])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", ["FA3", "FA4"])
def test_flash_attention_of_another_package_is_exact_where_it_is_installed(name: FlashAttention) -> None:
    try:
        use_flash_attention(name, CUDA, "bf16")  # which tries it
        model = MaskedLanguageModel(strong(), masking(), autocast=torch.bfloat16, device=CUDA).to(CUDA)
        assert model.attention.kernel == "packed flash"
    except UsageError as error:
        if "computes attention wrongly" in str(error):
            raise
        pytest.skip(str(error))  # not installed, no kernels for this card, or a version that this torch cannot call
    finally:
        use_flash_attention("torch", CUDA, "bf16")


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES)
def test_flash_kernels_equal_masks_in_fp32_on_the_cpu(lengths: list[int]) -> None:
    tokens, keys = windows(lengths).to(torch.uint8), torch.arange(4)
    reference = MaskedLanguageModel(strong(), masking())
    reference.attention.kernel = "masks"
    loss, _ = reference(tokens, keys)
    loss.backward()
    model = MaskedLanguageModel(strong(), masking(), autocast=torch.bfloat16, device=CUDA).to(CUDA)
    assert model.attention.kernel == "flash"
    found, _ = model(tokens.to(CUDA), keys.to(CUDA))
    found.backward()
    assert float(found.detach()) == pytest.approx(float(loss.detach()), rel=0.01)
    # bf16 keeps 8 bits; a record that saw its neighbour would be wrong by tens of per cent.
    assert relative(gradients(model), gradients(reference)) < 0.05


def test_masks_are_the_same_bits_as_on_a_cpu() -> None:
    rng = np.random.default_rng(0)
    stored = rng.choice([0, 1, 2, 3, 4, CHARACTER.sep, 0x80, 0x83], (64, 777)).astype(np.uint8)
    tokens, keys = torch.from_numpy(stored), torch.from_numpy(rng.integers(0, 2**63, 64))
    complement = torch.from_numpy(CHARACTER.complement_table).long()
    on_cpu = masking()(tokens, keys, complement)
    on_gpu = masking()(tokens.to(CUDA), keys.to(CUDA), complement.to(CUDA))
    compiled = torch.compile(masking(), fullgraph=True, dynamic=False)(
        tokens.to(CUDA), keys.to(CUDA), complement.to(CUDA)
    )
    for name in ("input_ids", "positions", "labels", "weights", "hidden"):
        assert torch.equal(getattr(on_cpu, name), getattr(on_gpu, name).cpu()), name
        assert torch.equal(getattr(on_cpu, name), getattr(compiled, name).cpu()), name


def test_the_compiled_step_is_compiled_once_and_never_waits_for_the_device() -> None:
    torch._dynamo.reset()
    counters.clear()
    model = MaskedLanguageModel(build(MODEL, CHARACTER), masking(), autocast=torch.bfloat16, device=CUDA).to(CUDA)
    eager = MaskedLanguageModel(build(MODEL, CHARACTER), masking(), autocast=torch.bfloat16, device=CUDA).to(CUDA)
    model.compile_step("layers")
    batches = [windows([150 + seed, 90, 400]).to(torch.uint8) for seed in range(4)]
    inputs = [(b.to(CUDA), torch.arange(4, device=CUDA) + 4 * n, model.room(b)) for n, b in enumerate(batches)]
    model(*inputs[0])[0].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = []
        for one in inputs:
            loss, part = model(*one)
            loss.backward()
            sums.append(part)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, part in zip(inputs, sums, strict=True):
        assert torch.allclose(part, eager(*one)[1], rtol=0.02)
    assert counters["stats"]["unique_graphs"] == 5
    assert not counters["graph_break"]


def test_room_for_more_records_is_made_without_wrong_results() -> None:
    model = MaskedLanguageModel(strong(), masking(), autocast=torch.bfloat16, device=CUDA).to(CUDA).eval()
    tokens = windows([3] * 128).to(CUDA)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        needed = model.attention.room(4, int((tokens == CHARACTER.sep).sum()))
        tight = model._body(tokens, model.attention.lay_out(tokens, needed))
        roomy = model._body(tokens, model.attention.lay_out(tokens, 4 * needed))
    assert torch.equal(tight, roomy)


def test_attention_says_which_kernel_it_takes() -> None:
    assert Attention.choose(CUDA, torch.bfloat16, 64, 512, 21, 64).kernel == "flash"
    assert Attention.choose(CUDA, torch.float32, 64, 512, 21, 64).kernel == "blocks"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "human-cds"
    dnascale("prepare", "builtin:human-cds", "--out", str(folder))
    return folder


def dnascale(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "dnascale", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def train(data: Path, run: Path, *overrides: str) -> dict[int, float]:
    """Losses by step of a short run of small batches."""
    dnascale("train", "nano", f"data.path={data}", f"run.dir={run}", "train.global_batch_tokens=8192",
             "train.micro_batch_tokens=4096", "log.every=1", "checkpoint.every=10", "evaluation.every=1000",
             "train.steps=20", "optimizer.name=adamw", "optimizer.learning_rate=1e-3", *overrides)  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}


def test_a_run_goes_on_to_the_bit_where_it_was_stopped(data: Path, tmp_path: Path) -> None:
    whole = train(data, tmp_path / "run", "train.deterministic=true", "train.compile=false")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000020")
    assert train(data, tmp_path / "run", "train.deterministic=true", "train.compile=false") == whole
    assert whole[20] < whole[1] - 0.3


@pytest.mark.parametrize(
    "device",
    ["train.device=cpu", "train.compile=layers", "train.engine=zero1", "train.engine=zero2", "train.engine=zero3"],
)
def test_losses_agree_with_those_of_plain_training_on_the_gpu(data: Path, tmp_path: Path, device: str) -> None:
    if "zero" in device:
        pytest.importorskip("deepspeed")
    plain = train(data, tmp_path / "plain", "train.compile=false")
    assert train(data, tmp_path / "other", device) == pytest.approx(plain, rel=0.02)
