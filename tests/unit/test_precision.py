"""The precision that a run takes by itself is the one that its device computes faster."""

from __future__ import annotations

import time

import pytest
import torch

from dnascale.config import load_config
from dnascale.device import fastest_precision, settle_precision


def test_what_is_asked_for_stays_and_auto_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnascale.device.fastest_precision", lambda device: {"cpu": "fp32"}[device])
    asked = load_config("nano", ["data.path=D", "train.steps=1", "train.precision=bf16"])
    assert settle_precision(asked, "cpu") is asked
    auto = load_config("nano", ["data.path=D", "train.steps=1"])
    assert auto.train.precision == "auto"
    assert settle_precision(auto, "cpu").train.precision == "fp32"


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_gpus_take_bf16_since_ampere(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert fastest_precision("cuda") == expected


def test_this_cpu_is_not_much_slower_with_the_precision_it_takes() -> None:
    """Where bf16 is emulated it is several times slower, which no noise of a busy machine hides."""
    seconds = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(512, 512).to(dtype)
        tries = []
        for _ in range(9):
            begin = time.process_time()
            a @ a
            tries.append(time.process_time() - begin)
        seconds[name] = min(tries)
    chosen = fastest_precision("cpu")
    assert seconds[chosen] < 3 * min(seconds.values())
