"""What changes over a run, as pure functions of the step or of the tokens: no scheduler object, nothing to save."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dnascale.config import Config, ScheduleConfig, StageConfig


def learning_rate(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step`, counted from 0: linear from peak / warm-up steps to `peak`, then as `schedule.shape` says.

    wsd: constant, then down over the last `decay` of the steps (Hu et al. 2024), linear or, with wsd-sqrt, as 1 - sqrt(share of
    it that is over) (Hägele et al. 2024). linear and cosine go down all the way, constant does not. Down to `final * peak`, which the
    step after the last would have. In steps, so the same for every world size.
    """
    warmup_steps = round(schedule.warmup * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    decay_steps = {"constant": 0, "linear": total_steps - warmup_steps, "cosine": total_steps - warmup_steps}.get(
        schedule.shape, round(schedule.decay * total_steps)
    )
    left = total_steps - step
    if left >= decay_steps:
        return peak
    share = left / decay_steps  # of the decay that is still to come
    if schedule.shape == "wsd-sqrt":
        share = 1 - math.sqrt(1 - share)
    elif schedule.shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return peak * (schedule.final + (1 - schedule.final) * share)


@dataclass(frozen=True)
class Stage:
    """A part of a run in which batch, context and masking rate stay the same."""

    first_window: int  # of the run: windows of model.context before it
    steps: int | None  # None: to the end
    global_batch_tokens: int
    context: int
    masking_rate: float


def stages(config: Config) -> list[Stage]:
    """The stages of a run: of `schedule.stages`, or the one that there is without any. A stage of n tokens has as many steps as
    it takes to see them.
    """
    out: list[Stage] = []
    window = 0
    for one in config.schedule.stages or [StageConfig(tokens=None)]:
        batch = one.global_batch_tokens or config.train.global_batch_tokens
        steps = None if one.tokens is None else -(-one.tokens // batch)
        rate = one.masking_rate or config.masking.rate
        out.append(Stage(window, steps, batch, one.context or config.model.context, rate))
        window += (steps or 0) * batch // config.model.context
    return out


def stage_at(of_run: Sequence[Stage], position: int) -> Stage:
    """The stage in which the window of this number is trained on."""
    return next(stage for stage in reversed(of_run) if stage.first_window <= position)


def steps_within(of_run: Sequence[Stage], budget: float, costs: Sequence[float]) -> int:
    """Steps for a budget (in tokens, or in seconds), when a step of each stage costs so much of it. Rounded; at least 1."""
    taken = 0
    for stage, cost in zip(of_run, costs, strict=True):
        if stage.steps is None or budget < stage.steps * cost:
            return max(1, taken + round(budget / cost))
        taken += stage.steps
        budget -= stage.steps * cost
    return max(1, taken)


def tokens_of(of_run: Sequence[Stage], steps: int) -> int:
    """Tokens in the first `steps` steps of a run."""
    tokens = 0
    for stage in of_run:
        here = steps if stage.steps is None else min(steps, stage.steps)
        tokens += here * stage.global_batch_tokens
        steps -= here
    return tokens
