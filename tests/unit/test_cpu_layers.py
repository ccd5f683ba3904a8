"""What layers compute on a CPU, against Hugging Face's own modules. Attention is compared in test_attention.py."""

import copy
from typing import Any

import pytest
import torch
from transformers.models.modernbert.modeling_modernbert import ModernBertMLP

from dnascale.config import ModelConfig
from dnascale.model import cpu
from dnascale.model.modernbert import build, modernbert_config
from dnascale.vocab import CHARACTER

MODEL = ModelConfig(hidden_size=32, layers=3, heads=2, intermediate_size=48, context=64, local_attention=16)


def pair(dtype: torch.dtype) -> tuple[Any, Any]:
    """Hugging Face's gated unit, and the same one as it computes here."""
    torch.manual_seed(0)
    theirs = ModernBertMLP(modernbert_config(MODEL, CHARACTER)).to(dtype)
    ours = copy.deepcopy(theirs)
    ours.__class__ = cpu.CpuMLP
    return theirs, ours


@pytest.mark.parametrize("cache", [1, 1 << 12, 1 << 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_unit_and_its_gradients_are_hugging_faces(
    dtype: torch.dtype, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CACHE", cache)
    theirs, ours = pair(dtype)
    given = torch.randn(3, 11, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for unit in (theirs, ours):
        x = given.clone().requires_grad_()
        out = unit(x)
        out.square().sum().backward()
        found.append([out.detach(), x.grad, *(p.grad for p in unit.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert cache == 1 or torch.equal(one, other)  # single rows go through other instructions


def test_operators_are_sound_for_torch() -> None:
    """Shapes without data, aliasing, gradients: torch's own checks."""
    qkv = torch.randn(2, 20, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    angle = torch.randn(1, 20, 2, dtype=torch.float64).repeat(1, 1, 2)
    for mask, reach in ((None, None), (torch.zeros(2, 1, 20, 20, dtype=torch.float64), None), (None, 4)):
        torch.library.opcheck(cpu.attend_in_tiles, (qkv, angle.cos(), angle.sin(), mask, reach))
    torch.library.opcheck(cpu.geglu, (torch.randn(5, 8, requires_grad=True),))


def test_a_unit_with_another_activation_stays_hugging_faces() -> None:
    config = modernbert_config(MODEL, CHARACTER)
    hf = build(MODEL, CHARACTER)
    relu = copy.deepcopy(hf)
    for layer in relu.model.layers:
        layer.mlp.act = torch.nn.ReLU()
    for model, expected in ((hf, cpu.CpuMLP), (relu, ModernBertMLP)):
        cpu.adapt(model)
        assert {type(layer.mlp) for layer in model.model.layers} == {expected}
        assert {type(layer.attn) for layer in model.model.layers} == {cpu.CpuAttention}
    assert config.hidden_activation == "gelu"
