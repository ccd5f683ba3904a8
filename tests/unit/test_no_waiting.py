"""A step asks nothing of the device: traced on a GPU that is not there.

Fake tensors have shapes and a device but no values, so reading a value fails or is seen, and so is a copy to or from the host, which
waits for all that the device was given before. Indexing fake tensors of a GPU needs a torch that is built for one; tensors on the
device "meta" have no values either, and need none.
"""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_optimizers import NAMES, Layered, config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnascale.config import GuardConfig, ModelConfig
from dnascale.data.masking import Masking
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.train.engines import PlainEngine
from dnascale.train.guard import WINDOW, Guard
from dnascale.train.meter import Meter
from dnascale.train.optim import build_optimizer
from dnascale.train.state import TrainState
from dnascale.vocab import CHARACTER

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Collects operations whose result the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        name = function.overloadpacket.__name__
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero") or len(devices) > 1:
            self.found.append(name)
        return out


def on_fake_gpu(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(torch.empty(p.shape, device="cuda"))
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_update_of_every_optimizer_waits_for_nothing(name: str) -> None:
    with FakeTensorMode():
        model = on_fake_gpu(Layered())
        engine = PlainEngine.__new__(PlainEngine)
        engine.name = "ddp"
        engine.graphs = None
        engine.parameters = dict(model.named_parameters())
        engine.config = SimpleNamespace(optimizer=config(name))  # type: ignore[assignment]
        engine.optimizer = build_optimizer(model, config(name))
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        guard = Guard(GuardConfig(spike=6.0), torch.device("cpu"), TrainState(9))
        guard._recent = torch.empty(WINDOW, device="cuda")
        with Waits() as waits:
            norm, left_out = engine.step(0.1, guard)
    assert norm.device.type == left_out.device.type == "cuda"
    assert not waits.found


@pytest.mark.parametrize(("name", "kept"), [("ddp", True), ("plain", False)])
def test_gradients_that_ddp_sends_from_keep_their_place_and_others_are_given_back(name: str, kept: bool) -> None:
    model = Layered()
    engine = PlainEngine.__new__(PlainEngine)
    engine.name, engine.parameters = name, dict(model.named_parameters())
    engine.graphs = None
    engine.config = SimpleNamespace(optimizer=config("adamw"))  # type: ignore[assignment]
    engine.optimizer = build_optimizer(model, config("adamw"))
    places = {}
    for key, p in engine.parameters.items():
        p.grad = torch.ones_like(p)
        places[key] = p.grad.data_ptr()
    engine.step(0.1, Guard(GuardConfig(), torch.device("cpu"), TrainState(9)))
    for key, p in engine.parameters.items():
        if kept:
            assert p.grad is not None
            assert p.grad.data_ptr() == places[key]
            assert not p.grad.any()
        else:
            assert p.grad is None


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("kernel", ["flash", "packed flash", "masks", "blocks"])
def test_masking_model_loss_and_their_gradients_wait_for_nothing(kernel: str, separate: bool, recompute: bool) -> None:
    shape = ModelConfig(hidden_size=32, layers=4, heads=2, intermediate_size=48, context=96, local_attention=16)
    masking = Masking(CHARACTER, 0.2, 0.8, 0.1, reverse_complement=True, repeat_weight=0.5)
    model = MaskedLanguageModel(build(shape, CHARACTER), masking, separate, device=META).to(META)
    model.attention.kernel = kernel
    model.hf.model.embeddings._forward_hooks.clear()  # it asks for autocast, which "meta" does not know
    if recompute:
        model.recompute_layers()
    meter = Meter(SimpleNamespace(device=META), None, None, None, by_base=True, repeats=True)  # type: ignore[arg-type]
    tokens, keys = torch.empty(4, 96, dtype=torch.uint8, device=META), torch.empty(4, dtype=torch.int64, device=META)
    with Waits() as waits:
        loss, sums = model(tokens, keys, model.attention.room(4, 9))
        (loss / 2).backward()
        meter.add(SimpleNamespace(digest=lambda: 0), sums)  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.device == META for p in model.parameters())
    assert not waits.found


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x * torch.ones(3).to(x.device),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_what_waits_is_seen(wait: Any, device: str) -> None:
    with FakeTensorMode() if device == "cuda" else contextlib.nullcontext():
        x = torch.empty(3, device=device)
        seen = False
        with Waits() as waits:
            try:
                wait(x)
            except Exception:  # values that are not there, or a GPU that is not
                seen = True
    assert seen or waits.found
