"""What fits, by arithmetic; and what is kept of it between steps."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dnascale.config import Config, parse
from dnascale.data.masking import Masking
from dnascale.model.memory import token_bytes_on_cpu
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.train.batching import divides
from dnascale.train.environment import devices
from dnascale.train.memory import candidates, explain_shortage, free_memory, is_out_of_memory, recorded
from dnascale.train.schedules import stages
from dnascale.vocab import CHARACTER


def config(stages: list[dict[str, int]] | None = None, **model: int) -> Config:
    values = {
        "data": {"path": "x"}, "run": {"dir": "y"}, "schedule": {"stages": stages or []},
        "model": {"hidden_size": 64, "layers": 3, "heads": 2, "intermediate_size": 96, "context": 64, **model},
        "train": {"steps": 10, "global_batch_tokens": 24 * model.get("context", 64), "micro_batch_tokens": "auto"},
    }  # fmt: skip
    return parse(values, "test")


def test_the_micro_batch_of_a_run_is_kept_on_the_same_hardware_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {micro_batch_tokens: 4096}")
    (tmp_path / "environment.json").write_text(json.dumps({"devices": devices()}))
    assert recorded(tmp_path, devices(), False) is None  # it may have been too large for the first step
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert recorded(tmp_path, devices(), False) == 4096
    assert recorded(tmp_path, devices(), True) is None  # a graph keeps memory for itself
    for other in ([], ["MPS, 17 GB"], ["NVIDIA H100"]):
        assert recorded(tmp_path, other, False) is None


def test_candidates_are_what_divides_the_batch_of_every_process_and_stage() -> None:
    def found(world: int, of_run: list[dict[str, int]] | None = None) -> list[int]:
        one = config(of_run)
        return [tokens // 64 for tokens in candidates(one, stages(one), world)]

    assert found(1) == [24, 12, 8, 6, 4, 3, 2, 1]
    assert found(2) == [12, 6, 4, 3, 2, 1]
    assert found(5) == []
    # A stage of 9 windows takes them all at once, or 3, or 1.
    assert found(1, [{"tokens": 64, "global_batch_tokens": 64 * 9}, {}]) == [24, 12, 3, 1]
    assert found(1, [{"tokens": 64, "context": 16}, {}]) == [24, 12, 8, 6, 4, 3, 2, 1]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    "of_run",
    [
        [],
        [{"tokens": 64, "context": 16}, {}],
        [{"tokens": 64, "context": 16, "global_batch_tokens": 320}, {}],
        [{"tokens": 64, "context": 16, "global_batch_tokens": 320}, {"context": 32, "global_batch_tokens": 384}],
    ],
)
def test_a_batch_is_refused_before_auto_is_settled_only_where_no_micro_batch_divides_it(
    world: int, of_run: list[dict[str, int]]
) -> None:
    one = config(of_run)
    if candidates(one, stages(one), world):
        assert divides(one, stages(one), world)
    if not divides(one, stages(one), world):
        assert not candidates(one, stages(one), world)


def test_the_micro_batch_that_is_advised_needs_what_the_sentence_says() -> None:
    one = config().with_train(micro_batch_tokens=3 * 64)
    sentence = str(explain_shortage(one, "in step 7", torch.device("cpu")))
    assert sentence.startswith("out of memory in step 7 with micro-batches of 192 tokens")
    assert "train.micro_batch_tokens=64 (or auto) needs about 1/3 as much and trains the same, with 3 times" in sentence


def test_a_micro_batch_that_the_batch_caps_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    one = config().with_train(global_batch_tokens=512, micro_batch_tokens=1024)
    sentence = str(explain_shortage(one, "in step 7", torch.device("cpu")))
    assert "with micro-batches of 256 tokens" in sentence
    assert "train.micro_batch_tokens=128 (or auto)" in sentence


def kept_bytes(module: MaskedLanguageModel, tokens: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """What autograd keeps for the backward pass, without weights; and the gradients."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = module(tokens, torch.arange(len(tokens)))
    loss.backward()
    return sum(kept.values()), [p.grad for p in module.parameters() if p.grad is not None]


def model(one: Config) -> MaskedLanguageModel:
    return MaskedLanguageModel(build(one.model, CHARACTER), Masking(CHARACTER, 0.3, 0.8, 0.1, False, 1.0))


def test_recomputed_layers_keep_less_and_give_the_same_gradients_to_the_bit() -> None:
    one = config(layers=6)
    tokens = torch.randint(0, 4, (4, 64), dtype=torch.uint8)
    kept, gradients = kept_bytes(model(one), tokens)
    again = model(one)
    again.recompute_layers()
    kept_again, gradients_again = kept_bytes(again, tokens)
    assert kept_again < 0.35 * kept
    assert len(gradients) == len(gradients_again) > 20
    for a, b in zip(gradients, gradients_again, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("context", [64, 1024])
def test_the_estimate_is_near_what_autograd_keeps(context: int) -> None:
    one = config(context=context)
    tokens = torch.randint(0, 4, (2, context), dtype=torch.uint8)
    measured = kept_bytes(model(one), tokens)[0] / tokens.numel()
    assert 0.7 * measured < token_bytes_on_cpu(one.model, fp32=True) < 1.6 * measured


def test_only_a_lack_of_memory_is_one() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
    )
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's allocator")
@pytest.mark.parametrize("kept", [True, False])
def test_pages_of_freed_blocks_are_not_asked_for_again(kept: bool) -> None:
    program = f"""
import resource, torch
from dnascale.train.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 20, dtype=torch.uint8)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[3:]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(ended.stdout) < 16) == kept


def test_a_control_group_bounds_what_is_free(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("1:name=systemd:/\n0::/slurm/job_7\n")
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    everything = free_memory(tmp_path, tmp_path / "nothing")
    for folder, most in ((job, "max"), (job.parent, "5000")):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text("3000\n")
        (folder / "memory.stat").write_text("anon 2000\ninactive_file 700\n")
    assert free_memory(tmp_path, own) == 5000 - 3000 + 700
    (job.parent / "memory.max").write_text("max\n")
    assert free_memory(tmp_path, own) == pytest.approx(everything, rel=0.2)
