"""What a run forgets at the border of a stage, and what is said of a run that is made longer."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dnascale.config import Config, GuardConfig, load_config
from dnascale.train import assemble
from dnascale.train.guard import WINDOW, Guard
from dnascale.train.schedules import Stage
from dnascale.train.state import TrainState


def of_steps(steps: int) -> Config:
    return load_config("nano", ["data.path=x", f"train.steps={steps}", "schedule.warmup=0.05", "schedule.decay=0.3"])


@pytest.mark.parametrize(
    ("step", "before", "now", "said"),
    [
        (100, 1_000, 10_000, "its warm-up, of which schedule.warmup is the share, now goes on to step 500"),
        (600, 1_000, 10_000, None),
        (900, 1_000, 10_000, "its learning rate rises again from"),
        (100, 1_000, 10_000, "the learning rate falls back from 0.002 to 0.0004"),
        (95, 100, 3_000, "now goes on to step 150, and the learning rate rises again from 0.0004 to 0.0013"),
        (20, 1_000, 10_000, None),
        (100, 1_000, 1_000, None),
    ],
)
def test_a_longer_run_says_where_its_learning_rate_goes(step: int, before: int, now: int, said: str | None) -> None:
    found = assemble._rises_again(TrainState(before, step=step), now, of_steps(now))
    assert found is None if said is None else said in str(found)


@pytest.mark.parametrize(("position", "kept"), [(0, False), (40, False), (44, True)])
def test_gradient_norms_are_compared_within_a_stage_alone(
    monkeypatch: pytest.MonkeyPatch, position: int, kept: bool
) -> None:
    """`enter` is for a new stage, and for a run that goes on in the middle of one."""
    config, norms = of_steps(100), [1.0, 1.1] * (WINDOW // 2)
    state = TrainState(100, position=position, norms=norms)
    guard = Guard(GuardConfig(spike=6.0), torch.device("cpu"), state)
    stage = Stage(40 if position else 0, None, 2048, 256, 0.2)
    for name in ("_open_stream", "stage_flops", "divide_batch"):
        monkeypatch.setattr(assemble, name, lambda *_: SimpleNamespace(micro_windows=8, accumulation=1))
    module = SimpleNamespace(masking=stage)  # `replace` needs a dataclass that has a rate
    monkeypatch.setattr(assemble, "replace", lambda masking, **_: masking)
    engine = SimpleNamespace(divide=lambda *_: None, module=module)
    job: Any = SimpleNamespace(
        config=config, stage=None, state=state, guard=guard, stages=[stage], order=None, engine=engine,
        accelerator=SimpleNamespace(num_processes=1), stream=SimpleNamespace(reader=None),
    )  # fmt: skip
    assemble.enter(job, stage)
    assert bool(guard.judge(torch.tensor(50.0))) is kept
    assert not math.isnan(float(guard._recent[-1]))
