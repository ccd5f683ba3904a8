"""Learning rate and optimizer, against the formulas written out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dnascale.config import Config, ModelConfig, OptimizerConfig, ScheduleConfig, parse
from dnascale.errors import UsageError
from dnascale.model.modernbert import build
from dnascale.train.optim import build_optimizer, set_step
from dnascale.train.schedules import Stage, learning_rate, stage_at, stages, steps_within, tokens_of
from dnascale.vocab import CHARACTER


def schedule(warmup: float = 0.1, decay: float = 0.2, final: float = 0.0) -> ScheduleConfig:
    return ScheduleConfig(warmup=warmup, decay=decay, final=final)


def rates(total: int, shape: ScheduleConfig, peak: float = 2.0) -> list[float]:
    return [learning_rate(step, total, peak, shape) for step in range(total)]


# --- learning rate ---


def test_rates_of_a_short_run_are_those_drawn_by_hand() -> None:
    # 10 steps: 2 of warm-up, 4 at the peak, 4 of decay towards a quarter of the peak.
    expected = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.625, 1.25, 0.875]
    assert rates(10, schedule(0.2, 0.4, 0.25)) == pytest.approx(expected)


@given(
    total=st.integers(1, 2000),
    warmup=st.floats(0, 1),
    share=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_rate_rises_stays_and_falls_without_a_jump_and_never_leaves_its_bounds(
    total: int, warmup: float, share: float, final: float
) -> None:
    decay = (1 - warmup) * share
    found = rates(total, schedule(warmup, decay, final), peak=1.0)
    up, down = round(warmup * total), round(decay * total)
    assert max(found) <= 1.0
    assert min(found) > 0
    for step, rate in enumerate(found):
        assert rate >= final or step < up
    largest_step = max(1 / up if up else 0, (1 - final) / down if down else 0) + 1e-12
    assert all(abs(b - a) <= largest_step for a, b in pairwise(found))
    peak_at = max(up - 1, 0)
    assert found[: peak_at + 1] == sorted(found[: peak_at + 1])
    assert found[peak_at:] == sorted(found[peak_at:], reverse=True)
    assert found[peak_at] == 1.0 or peak_at > total - down  # both phases rounded up


def test_last_step_is_one_step_of_decay_above_the_end() -> None:
    assert rates(1000, schedule(0.1, 0.2, 0.0))[-1] == pytest.approx(2.0 / 200)
    assert rates(1000, schedule(0.1, 0.2, 0.5))[-1] == pytest.approx(1.0 + 1.0 / 200)


def test_without_warm_up_the_first_rate_and_without_decay_the_last_is_the_peak() -> None:
    assert rates(50, schedule(0.0, 0.5))[0] == 2.0
    assert rates(50, schedule(0.5, 0.0))[-1] == 2.0
    assert rates(50, schedule(0.0, 0.0)) == [2.0] * 50
    assert rates(1, schedule()) == [2.0]


def test_rate_depends_on_the_step_and_the_length_alone() -> None:
    one = rates(300, schedule())
    assert [learning_rate(step, 300, 2.0, schedule()) for step in reversed(range(300))] == one[::-1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("wsd", [1, 2, 2, 2, 2, 2, 2, 1.625, 1.25, 0.875]),
        ("wsd-sqrt", [1, 2, 2, 2, 2, 2, 2, 0.5 + 1.5 * 0.5, 0.5 + 1.5 * (1 - 0.5**0.5), 0.5 + 1.5 * (1 - 0.75**0.5)]),
        ("constant", [1, *[2] * 9]),
        ("linear", [1, 2, 2, *[0.5 + 1.5 * left / 8 for left in range(7, 0, -1)]]),
        ("cosine", [1, 2, 2, *[0.5 + 0.75 * (1 + np.cos(np.pi * done / 8)) for done in range(1, 8)]]),
    ],
)
def test_every_shape_is_the_one_drawn_by_hand(shape: str, expected: list[float]) -> None:
    found = rates(10, ScheduleConfig(shape=shape, warmup=0.2, decay=0.4, final=0.25))
    assert found == pytest.approx(expected)


@given(
    shape=st.sampled_from(["wsd", "wsd-sqrt", "cosine", "linear", "constant"]),
    total=st.integers(1, 500),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    final=st.floats(0, 1),
)
def test_every_shape_never_rises_after_the_warm_up(
    shape: str, total: int, warmup: float, decay: float, final: float
) -> None:
    found = rates(total, ScheduleConfig(shape=shape, warmup=warmup, decay=decay, final=final), peak=1.0)
    after = found[max(round(warmup * total) - 1, 0) :]
    assert all(b <= a + 1e-12 for a, b in pairwise(after))
    assert min(after) >= final - 1e-12
    assert after[0] == 1.0


# --- stages ---


def staged(*of_run: dict[str, Any]) -> Config:
    values = {
        "data": {"path": "x"}, "run": {"dir": "y"}, "schedule": {"stages": list(of_run)},
        "model": {"hidden_size": 8, "layers": 1, "heads": 1, "intermediate_size": 8, "context": 64},
        "train": {"steps": 10, "global_batch_tokens": 256, "micro_batch_tokens": 64},
    }  # fmt: skip
    return parse(values, "test")


def test_a_run_without_stages_is_one_stage_to_the_end() -> None:
    assert stages(staged()) == [Stage(0, None, 256, 64, 0.2)]


def test_stages_follow_each_other_in_windows_of_the_longest_context() -> None:
    found = stages(
        staged({"tokens": 1000, "context": 16}, {"tokens": 640, "global_batch_tokens": 64}, {"masking_rate": 0.1})
    )
    assert found == [Stage(0, 4, 256, 16, 0.2), Stage(16, 10, 64, 64, 0.2), Stage(26, None, 256, 64, 0.1)]
    assert [stage_at(found, p).first_window for p in (0, 15, 16, 25, 26, 10**9)] == [0, 0, 16, 16, 26, 26]
    assert [tokens_of(found, n) for n in (0, 4, 5, 14, 16)] == [0, 1024, 1088, 1664, 1664 + 512]


@given(steps=st.integers(1, 40), lengths=st.lists(st.integers(1, 2000), max_size=3))
def test_steps_and_tokens_agree(steps: int, lengths: list[int]) -> None:
    of_run = stages(staged(*({"tokens": n, "global_batch_tokens": 64 * (i + 1)} for i, n in enumerate(lengths)), {}))
    tokens = tokens_of(of_run, steps)
    costs = [stage.global_batch_tokens for stage in of_run]
    assert steps_within(of_run, tokens, costs) == steps
    position = tokens_of(of_run, steps - 1) // 64
    assert tokens - tokens_of(of_run, steps - 1) == stage_at(of_run, position).global_batch_tokens


@pytest.mark.parametrize(
    ("of_run", "sentence"),
    [
        ([{"tokens": 64}], "schedule.stages[0] must have no tokens"),
        ([{}, {}], "schedule.stages[0] must have tokens, its length"),
        ([{"context": 48}], "schedule.stages[0].context=48 must divide model.context=64"),
        (
            [{"tokens": 64}, {"global_batch_tokens": 32}],
            "schedule.stages[1].global_batch_tokens=32 must be a multiple of",
        ),
        ([{"contxt": 16}], "unknown key 'schedule.stages.0.contxt' (did you mean 'schedule.stages.0.context'?)"),
    ],
)
def test_stages_that_cannot_be_are_refused_by_a_sentence(of_run: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(UsageError) as error:
        staged(*of_run)
    assert sentence in str(error.value)


# --- AdamW ---


class Small(nn.Module):
    """A matrix, a bias and a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)).pow(3).sum()


def train_steps(model: Small, optimizer: torch.optim.Optimizer, first: int, count: int) -> list[dict[str, np.ndarray]]:
    """Steps with a new rate each; the gradients of every step."""
    gradients = []
    for step in range(first, first + count):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        optimizer.zero_grad()
        model(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).backward()
        gradients.append({name: p.grad.double().numpy().copy() for name, p in model.named_parameters()})
        optimizer.step()
    return gradients


CONFIG = OptimizerConfig(learning_rate=1.0, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.3)


def test_steps_equal_adamw_written_by_hand_with_decay_on_matrices_alone() -> None:
    model = Small()
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    moments = {name: [np.zeros_like(w), np.zeros_like(w)] for name, w in weights.items()}
    gradients = train_steps(model, build_optimizer(model, CONFIG), 0, 4)
    for step, of_step in enumerate(gradients):
        rate = 0.01 * (step + 1)
        for name, gradient in of_step.items():
            first, second = moments[name]
            first[...] = 0.8 * first + 0.2 * gradient
            second[...] = 0.95 * second + 0.05 * gradient**2
            update = first / (1 - 0.8 ** (step + 1)) / (np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-7)
            decay = 0.3 if name == "linear.weight" else 0.0
            weights[name] = weights[name] - rate * decay * weights[name] - rate * update
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), weights[name], rtol=2e-5, atol=1e-6)


def test_weight_decay_falls_on_every_matrix_of_the_model_once_and_on_no_norm_or_bias() -> None:
    hf = build(ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=48, context=32), CHARACTER)
    optimizer = build_optimizer(hf, CONFIG)
    names = {id(p): name for name, p in hf.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert sorted(decayed + plain) == sorted(names.values())  # each once, the tied decoder weight too
    assert all("norm" in name or name.endswith("bias") for name in plain)
    assert not any("norm" in name or name.endswith("bias") for name in decayed)


def test_training_continues_to_the_bit_from_weights_moments_and_step_count() -> None:
    one, other = Small(), Small()
    optimizer = build_optimizer(one, CONFIG)
    train_steps(one, optimizer, 0, 3)
    other.load_state_dict(one.state_dict())
    again = build_optimizer(other, CONFIG)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            again.state[b][moment].copy_(optimizer.state[a][moment])
    set_step(again, 3)
    train_steps(one, optimizer, 3, 3)
    train_steps(other, again, 3, 3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
