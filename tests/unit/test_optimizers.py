"""Each optimizer against an independent one: torch's Muon, transformers' Adafactor, StableAdamW written out with numpy."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TransformersAdafactor

from dnascale.config import ModelConfig, OptimizerConfig
from dnascale.model.modernbert import build
from dnascale.train.optim import build_optimizer, parameter_groups, place, set_step, states
from dnascale.train.optimizers import OPTIMIZERS, Piece, Ranks, orthogonalize
from dnascale.vocab import CHARACTER

NAMES = ["adamw", *OPTIMIZERS]


class Layered(nn.Module):
    """Names as in the real model: matrices inside layers, an embedding outside, a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.ModuleDict({"Wo": nn.Linear(6, 8, bias=False), "Wqkv": nn.Linear(4, 18, bias=False)})
        self.model = nn.ModuleDict(
            {"layers": nn.ModuleList([layer]), "emb": nn.Embedding(5, 4), "norm": nn.LayerNorm(8)}
        )


def config(name: str, **changes: object) -> OptimizerConfig:
    values = {"learning_rate": 1.0, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.3, "momentum": 0.9}
    return OptimizerConfig.model_validate({"name": name, **values, **changes})


SHAPES = {name: p.shape for name, p in Layered().named_parameters()}


def gradients(step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return {name: torch.randn(shape, generator=draw) * (1 + 9 * (step == 2)) for name, shape in SHAPES.items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rate: float = 0.01) -> None:
    for step in steps:
        for name, gradient in gradients(step).items():
            model.get_parameter(name).grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = rate * (step + 1)
        optimizer.step()


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}


def test_stable_adamw_equals_the_algorithm_written_by_hand() -> None:
    model = Layered()
    expected = weights(model)
    moments = {name: [np.zeros_like(w), np.zeros_like(w)] for name, w in expected.items()}
    clipped = 0
    train(model, build_optimizer(model, config("stable_adamw")), range(5))
    for step in range(5):
        t = step + 1
        for name, gradient in gradients(step).items():
            g, (v, u) = gradient.double().numpy(), moments[name]
            # The paper's own form of the bias correction: the decays themselves change with the step.
            beta1, beta2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in (0.8, 0.95))
            v[...] = beta1 * v + (1 - beta1) * g
            u[...] = beta2 * u + (1 - beta2) * g**2
            rms = np.sqrt(np.mean(g**2 / np.maximum(u, 1e-14)))
            clipped += rms > 1
            rate = 0.01 * t / max(1.0, rms)
            decay = 0.3 if expected[name].ndim == 2 else 0.0
            expected[name] = expected[name] * (1 - rate * decay) - rate * v / (np.sqrt(u) + 1e-7)
    assert clipped
    for name, found in weights(model).items():
        np.testing.assert_allclose(found, expected[name], rtol=2e-5, atol=1e-6)


def test_adafactor_equals_transformers() -> None:
    ours, theirs = Layered(), Layered()
    reference = TransformersAdafactor(
        [
            {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.3},
            {"params": [p for p in theirs.parameters() if p.ndim < 2]},
        ],
        lr=1.0, scale_parameter=False, relative_step=False, warmup_init=False,
    )  # fmt: skip
    train(ours, build_optimizer(ours, config("adafactor")), range(5))
    train(theirs, reference, range(5))
    for name, found in weights(ours).items():
        np.testing.assert_allclose(found, weights(theirs)[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_muon_equals_torch_and_adamw_has_the_rest() -> None:
    ours, theirs = Layered(), Layered()
    hidden = [n for n, _ in theirs.named_parameters() if ".layers." in n]
    # Query, key and value are matrices of their own.
    split = {
        n: [nn.Parameter(c.clone()) for c in theirs.get_parameter(n).chunk(3 if "qkv" in n else 1)] for n in hidden
    }
    muon = torch.optim.Muon(
        [c for chunks in split.values() for c in chunks],
        lr=1.0,
        weight_decay=0.3,
        momentum=0.9,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = torch.optim.AdamW(
        [
            {"params": [theirs.model["emb"].weight], "weight_decay": 0.3},
            {"params": list(theirs.model["norm"].parameters()), "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95), eps=1e-7,
    )  # fmt: skip
    train(ours, build_optimizer(ours, config("muon"), "bf16"), range(4))  # torch's iteration is in bf16 everywhere
    for step in range(4):
        for name, gradient in gradients(step).items():
            for chunk, part in zip(split.get(name, []), gradient.chunk(len(split.get(name, [1]))), strict=False):
                chunk.grad = part.clone()
            theirs.get_parameter(name).grad = gradient.clone()
        for group in [*muon.param_groups, *rest.param_groups]:
            group["lr"] = 0.01 * (step + 1)
        muon.step()
        rest.step()
    for name, found in weights(ours).items():
        expected = torch.cat(split[name]) if name in split else theirs.get_parameter(name)
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-3, atol=2e-4, err_msg=name)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    for found in (orthogonalize(matrices, torch.float32), orthogonalize(matrices.mT, torch.float32).mT):
        values = torch.linalg.svdvals(found)
        assert 0.6 < values.min() <= values.max() < 1.25
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        assert (found - u @ v).norm() / (u @ v).norm() < 0.3


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_leaves_weights_and_state_as_they_are(name: str) -> None:
    model = Layered()
    optimizer = build_optimizer(model, config(name))
    for first in (0, 3):  # also as the first step
        train(model, optimizer, range(first, first + 3 * (first > 0)))
        before, state = weights(model), tensors(optimizer)
        for index, p in enumerate(model.parameters()):
            p.grad = torch.full_like(p, float("nan") if index % 2 else float("inf"))
        optimizer.found_inf = torch.ones(())
        optimizer.step()
        optimizer.found_inf = torch.zeros(())
        for key, value in tensors(optimizer).items():
            assert torch.equal(value, state[key]), key
        for key, value in weights(model).items():
            np.testing.assert_array_equal(value, before[key])
    # And all goes on as if it had not been.
    other = Layered()
    train(other, build_optimizer(other, config(name)), range(3, 6))
    for key, value in weights(model).items():
        np.testing.assert_array_equal(value, weights(other)[key])


def tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {
        id(p): n for group in optimizer.param_groups for n, p in zip(group["shapes"], group["params"], strict=True)
    }
    out = {f"{names[id(p)]} {k}": v.clone() for p, state in optimizer.state.items() for k, v in state.items()}
    shared = getattr(optimizer, "shared", {})
    return out | {f"{name} {k}": v.clone() for name, state in shared.items() for k, v in state.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_what_the_checkpoint_is_told_and_decides_all_that_follows(name: str) -> None:
    one, other = Layered(), Layered()
    optimizer, again = (build_optimizer(model, config(name)) for model in (one, other))
    train(one, optimizer, range(3))
    other.load_state_dict(one.state_dict())
    told = {
        f"{parameter} {kind}": shape
        for parameter, p in one.named_parameters()
        for kind, shape in states(name, parameter, tuple(p.shape)).items()
    }
    saved = {key: value for key, value in tensors(optimizer).items() if not key.endswith(" step")}
    assert {key: tuple(value.shape) for key, value in saved.items()} == told
    for group in again.param_groups:
        for parameter, p in zip(group["shapes"], group["params"], strict=True):
            for state in (again.state[p], getattr(again, "shared", {}).get(parameter, {})):
                for kind in state.keys() - {"step"}:
                    state[kind].copy_(saved[f"{parameter} {kind}"])
    set_step(again, 3)
    train(one, optimizer, range(3, 6))
    train(other, again, range(3, 6))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_pieces_on_several_ranks_are_updated_like_whole_parameters(name: str, world: int) -> None:
    """As ZeRO cuts them: each group flat, in equal parts, the last of them padded."""
    whole = Layered()
    train(whole, build_optimizer(whole, config(name)), range(4))
    results: dict[str, np.ndarray] = {n: np.full(p.shape, np.nan).ravel() for n, p in whole.named_parameters()}
    sums, models = _LockStep(world), [Layered() for _ in range(world)]

    def rank(number: int) -> None:
        model = models[number]
        groups, pieces, flats = parameter_groups(model, config(name)), {}, []
        for group in groups:
            named = dict(zip(group["shapes"], group["params"], strict=True))
            size = -(-sum(p.numel() for p in named.values()) // world)
            flat = torch.zeros(size)
            pieces[flat], begin = [], 0
            for parameter, p in named.items():
                first, last = max(begin, number * size), min(begin + p.numel(), (number + 1) * size)
                if first < last:
                    piece = Piece(parameter, first - begin, last - first, first - number * size)
                    flat[piece.offset : piece.offset + piece.numel] = p.detach().view(-1)[piece.start :][: piece.numel]
                    pieces[flat].append(piece)
                begin += p.numel()
            group["params"] = [flat]
            flats.append(flat)
        optimizer = OPTIMIZERS[name](groups, lr=1.0, betas=(0.8, 0.95), eps=1e-7, momentum=0.9, dtype=torch.float32)
        place(optimizer, pieces, Ranks(number, world, sums.add, cut=True) if world > 1 else None)
        for step in range(4):
            for flat in flats:
                flat.grad = torch.zeros_like(flat)
                for piece in pieces[flat]:
                    gradient = gradients(step)[piece.parameter].view(-1)[piece.start :][: piece.numel]
                    flat.grad[piece.offset : piece.offset + piece.numel] = gradient
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
            optimizer.step()
        for flat in flats:
            for piece in pieces[flat]:
                part = flat[piece.offset : piece.offset + piece.numel].detach().double().numpy()
                results[piece.parameter][piece.start : piece.start + piece.numel] = part

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for parameter, found in results.items():
        np.testing.assert_allclose(found, weights(whole)[parameter].ravel(), rtol=1e-5, atol=1e-6, err_msg=parameter)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ranks_that_have_all_matrices_divide_the_work_and_get_the_same_bits(precision: str) -> None:
    alone = Layered()
    train(alone, build_optimizer(alone, config("muon"), precision), range(3))
    sums, models = _LockStep(2), [Layered() for _ in range(2)]
    done: list[int] = []

    def rank(number: int) -> None:
        optimizer = build_optimizer(models[number], config("muon"), precision)
        optimizer.ranks = Ranks(number, 2, sums.add, cut=False)
        train(models[number], optimizer, range(3))
        done.append(number)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(done) == [0, 1]
    for p, q, r in zip(alone.parameters(), *(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


class _LockStep:
    """An all-reduce among threads."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=30)
        self._lock = threading.Lock()
        self._total: Tensor | None = None

    def add(self, tensor: Tensor) -> Tensor:
        with self._lock:
            self._total = tensor.clone() if self._total is None else self._total + tensor
        self._barrier.wait()
        tensor.copy_(self._total)
        self._barrier.wait()
        self._total = None
        self._barrier.wait()
        return tensor


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_cuts_parameters_pays_for_no_whole_state(name: str) -> None:
    model = Layered()
    optimizer = build_optimizer(model, config(name), with_state=False)
    assert not optimizer.state
    flat = [torch.zeros(4) for _ in optimizer.param_groups]
    first = [next(iter(group["shapes"])) for group in optimizer.param_groups]
    place(optimizer, {tensor: [Piece(parameter, 0, 4)] for tensor, parameter in zip(flat, first, strict=True)})
    assert set(map(id, optimizer.state)) == set(map(id, flat))


def test_groups_of_the_real_model() -> None:
    hf = build(ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=32), CHARACTER)
    hidden, other, vectors = parameter_groups(hf, config("muon"))
    assert [group["weight_decay"] for group in (hidden, other, vectors)] == [0.3, 0.3, 0.0]
    assert {name.split(".")[-2] for name in hidden["shapes"]} == {"Wqkv", "Wo", "Wi"}
    assert set(other["shapes"]) == {"model.embeddings.tok_embeddings.weight", "head.dense.weight"}
    assert all(len(shape) == 1 for shape in vectors["shapes"].values())
    assert sum(len(group["shapes"]) for group in (hidden, other, vectors)) == len(list(hf.parameters()))
