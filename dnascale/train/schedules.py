"""What changes over a run, as pure functions of the step: no scheduler object, nothing to save."""

from dnascale.config import ScheduleConfig


def learning_rate(step: int, total_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): the rate of optimizer step `step`, counted from 0.

    Linear from peak / warm-up steps to `peak`, then constant, then linear to `final * peak`, which the step after
    the last would have. A schedule in steps, so the same for every world size.
    """
    warmup_steps = round(schedule.warmup * total_steps)
    decay_steps = round(schedule.decay * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    left = total_steps - step
    if left < decay_steps:
        return peak * (schedule.final + (1 - schedule.final) * left / decay_steps)
    return peak
