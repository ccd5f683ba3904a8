"""Steps whose gradient is not finite, where no device is needed to see what an engine makes of them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dnascale.errors import NumericsError
from dnascale.train.engines.reduction import GradientReductionCheck
from dnascale.train.engines.zero import DeepSpeedEngine


@pytest.mark.parametrize("given", [float("inf"), -1.0, torch.tensor(-1.0), torch.tensor(2.0)])
@pytest.mark.parametrize("applied", [True, False])
def test_the_norm_that_deepspeed_gives_is_on_the_device_whatever_it_is(given: Any, applied: bool) -> None:
    """On another device than the host's for one step of ten, the ten could not be stacked."""
    model = SimpleNamespace(step=lambda: None, get_global_grad_norm=lambda: given, was_step_applied=lambda: applied)

    def norm_on(device: str) -> tuple[torch.Tensor, torch.Tensor]:
        accelerator = SimpleNamespace(device=torch.device(device))
        engine: Any = SimpleNamespace(zero=SimpleNamespace(set_lr=lambda _: None), model=model, accelerator=accelerator)
        return DeepSpeedEngine.step(engine, 1e-3, guard=None)  # type: ignore[arg-type]

    assert {one.device.type for one in norm_on("meta")} == {"meta"}
    norm, left_out = norm_on("cpu")
    fine = applied and float(given) == 2.0
    assert (float(norm), bool(left_out)) == ((2.0, False) if fine else (float("inf"), True))


def test_gradients_are_proven_to_be_reduced_in_the_first_step_that_counts() -> None:
    name = GradientReductionCheck.PARAMETER
    weight = torch.nn.Parameter(torch.ones(3))
    accelerator = SimpleNamespace(reduce=lambda tensor, reduction: tensor, num_processes=2)
    engine: Any = SimpleNamespace(
        parameters={name: weight}, accelerator=accelerator, name="ddp", full_gradient=lambda _: weight.grad
    )
    check = GradientReductionCheck(engine)
    for scale, proven in ((float("nan"), False), (1.0, True)):
        weight.grad = None
        (weight * scale).sum().backward()
        check.finish()
        assert check.proven == proven
    wrong = GradientReductionCheck(engine)
    weight.grad = None
    weight.sum().backward()
    weight.grad *= 3  # type: ignore[operator]
    with pytest.raises(NumericsError, match="not reduced"):
        wrong.finish()
